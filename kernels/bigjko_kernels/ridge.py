"""Sums over directions and data of relu(w . x) as compiled code (ridge.cpp)."""

import ctypes
import functools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from . import compiler
from .errors import GridError, KernelError
from .streams import Moved, Stream, Tiled

_DTYPES = (torch.float32, torch.float64)
_PAD = 8  # data fill whole registers, whatever the machine's
_ALONE = 1 << 17  # with fewer pairs, 50 microseconds of work, a second thread costs what it saves


class _Rows(ctypes.Structure):
    _fields_ = [("place", ctypes.c_void_p), ("stride", ctypes.c_long), ("single", ctypes.c_long)]

    @classmethod
    def of(cls, values: Tensor) -> "_Rows":
        return cls(values.data_ptr(), values.stride(0), values.dtype == torch.float32)


class _Job(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in ("count", "threads")),
        ("w", _Rows),
        *((name, ctypes.c_long) for name in ("n", "dim", "padded")),
        *((name, ctypes.c_void_p) for name in ("x", "z", "zx")),
    ]


class _Neurons(ctypes.Structure):
    _fields_ = [
        *((name, _Rows) for name in ("a", "masses", "moved")),
        *((name, ctypes.c_double) for name in ("dt", "decay")),
    ]


@functools.cache
def load(march: str = "native") -> Any:
    """The compiled sums, or None where they cannot be had."""
    return compiler.load("ridge.cpp", march)


def _checked(values: Tensor, size: int) -> Tensor:
    """One number each, as C++ that checks nothing can read them."""
    if values.shape != (size,) or values.device.type != "cpu":
        raise GridError(f"received values of shape {tuple(values.shape)} on {values.device}, need ({size},) on the CPU")
    return values if values.dtype in _DTYPES else values.double()


class Compiled(Stream):
    """In C++ on the CPU: every activation is used where it is computed, in double whatever the dtype.

    Cost N n (d + 1) multiplications, 2 N n d for slopes, 3 N n d for a descent; memory O(N + n). The bits are the same
    for any number of threads. For d up to a hundred or so: see `stream`. Sums that need a gradient are left to Tiled.
    """

    @staticmethod
    def takes(directions: Tensor) -> bool:
        """Whether this machine can."""
        return directions.device.type == "cpu" and directions.dtype in _DTYPES and load() is not None

    def __init__(self, directions: Float[Tensor, "N d"], X: Float[Tensor, "n d"]) -> None:
        super().__init__(directions, X)
        if not self.takes(directions):
            raise KernelError(
                f"received directions in {directions.dtype} on {directions.device}, need float32 or float64 on the CPU "
                "and a C++ compiler: use Tiled"
            )
        self._rows = directions if directions.stride(1) == 1 else directions.contiguous()
        n, d = X.shape
        self._columns = torch.zeros(d, -(-n // _PAD) * _PAD, dtype=torch.float64)
        self._columns[:, :n] = X.detach().T

    def _call(self, name: str, *arguments: Any, z: Tensor | None = None) -> None:
        (N, d), (n, padded) = self.directions.shape, (self.X.shape[0], self._columns.shape[1])
        places = [self._columns.data_ptr(), 0, 0]
        if z is not None:
            filled = torch.zeros(padded, dtype=torch.float64)
            filled[:n] = _checked(z, n)
            scaled = filled * self._columns
            places[1:] = filled.data_ptr(), scaled.data_ptr()
        threads = torch.get_num_threads() if N * n >= _ALONE else 1
        getattr(load(), name)(ctypes.byref(_Job(N, threads, _Rows.of(self._rows), n, d, padded, *places)), *arguments)

    def outputs(self, weights: Tensor) -> Tensor:
        """See Stream."""
        if self._tracked(weights):
            return Tiled(self.directions, self.X).outputs(weights)
        weights = _checked(weights, self.directions.shape[0])
        out = torch.empty(self.X.shape[0], dtype=torch.float64)
        self._call("bigjko_outputs", ctypes.byref(_Rows.of(weights)), ctypes.c_void_p(out.data_ptr()))
        return out

    def potential(self, z: Tensor) -> Tensor:
        """See Stream."""
        if self._tracked(z):
            return Tiled(self.directions, self.X).potential(z)
        out = self._rows.new_empty(self.directions.shape[0])
        self._call("bigjko_heights", ctypes.byref(_Rows.of(out)), z=z)
        return out

    def slopes(self, z: Tensor) -> Tensor:
        """See Stream."""
        if self._tracked(z):
            return Tiled(self.directions, self.X).slopes(z)
        out = self._rows.new_empty(self.directions.shape)
        self._call("bigjko_slopes", ctypes.byref(_Rows.of(out)), z=z)
        return out

    def descend(self, a: Tensor, masses: Tensor, z: Tensor, dt: float, decay: float) -> Moved:
        """See Stream."""
        if self._tracked(a, masses, z):
            return Tiled(self.directions, self.X).descend(a, masses, z, dt, decay)
        N, d = self.directions.shape
        a, masses = _checked(a, N), _checked(masses, N)
        moved, out = self._rows.new_empty(N, d + 1), torch.empty(self.X.shape[0], dtype=torch.float64)
        fastest = ctypes.c_double()
        neurons = _Neurons(_Rows.of(a), _Rows.of(masses), _Rows.of(moved), dt, decay)
        places = ctypes.c_void_p(out.data_ptr()), ctypes.byref(fastest)
        self._call("bigjko_descend", ctypes.byref(neurons), *places, z=z)
        return Moved(moved, out, fastest.value)
