"""Sums over directions and data of relu(w . x): by matrix products, by KeOps, and compiled (ridge.cpp)."""

import ctypes
import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from . import compiler
from .errors import GridError, KernelError
from .keops import LazyTensor

_TILE = 1 << 17  # entries of one tile of directions x data: 1 MiB in float64 stays in cache (6 times faster at 10^6)
_PAD = 8  # data fill whole registers, whatever the machine's
_ALONE = 1 << 21  # with fewer pairs, .2 ms of work, a second thread costs what it saves


@dataclass(frozen=True, eq=False)
class Moved:
    """Neurons after a step of gradient descent.

    Attributes:
        positions: (N, d + 1), the directions and then the second layer.
        outputs: (n,) of the network there, in float64.
        fastest: the largest speed.
    """

    positions: Float[Tensor, "N k"]
    outputs: Float[Tensor, " n"]
    fastest: float


class Stream(ABC):
    """Sums over directions of relu(w . x_j): the only code that sees directions and data together."""

    def __init__(self, directions: Float[Tensor, "N d"], X: Float[Tensor, "n d"]) -> None:
        if directions.shape[1] != X.shape[1]:
            raise GridError(f"received directions in R^{directions.shape[1]} and data in R^{X.shape[1]}, need the same")
        if directions.dtype != X.dtype or directions.device != X.device:
            raise GridError(
                f"received directions in {directions.dtype} on {directions.device} and data in {X.dtype} on "
                f"{X.device}, need the same: convert one with .to()"
            )
        self.directions, self.X = directions, X

    @abstractmethod
    def outputs(self, weights: Float[Tensor, " N"]) -> Float[Tensor, " n"]:
        """sum_w weights relu(w . x_j), in float64."""

    @abstractmethod
    def potential(self, z: Float[Tensor, " n"]) -> Float[Tensor, " N"]:
        """S = sum_j z_j relu(w . x_j)."""

    @abstractmethod
    def slopes(self, z: Float[Tensor, " n"]) -> Float[Tensor, "N d"]:
        """G = sum_j z_j 1{w . x_j > 0} x_j: then S = w . G."""

    def parts(self) -> Iterator[slice]:
        """Directions that are met together: all of them, where no array grows with N n."""
        yield slice(0, self.directions.shape[0])

    def descend(
        self, a: Float[Tensor, " N"], masses: Float[Tensor, " N"], z: Float[Tensor, " n"], dt: float, decay: float
    ) -> Moved:
        """One step of gradient descent on neurons (w, a), in one pass.

        Args:
            a: second layer.
            masses: of the neurons.
            z: gradient of the loss at their outputs.
            dt: how far they go along their velocity -(a G + 2 decay w, w . G + 2 decay a).
            decay: weight of |w|^2 + a^2.
        """
        N, d = self.directions.shape
        moved = torch.empty(N, d + 1, dtype=a.dtype, device=a.device)
        outputs = torch.zeros(self.X.shape[0], dtype=torch.float64, device=a.device)
        fastest = torch.zeros((), dtype=a.dtype, device=a.device)
        for part in self.parts():
            w, a_i, new = self.directions[part], a[part], moved[part]
            slopes = type(self)(w, self.X).slopes(z.to(a.dtype))
            down = torch.cat([a_i[:, None] * slopes, (w * slopes).sum(1, keepdim=True)], dim=1)
            down += 2 * decay * torch.cat([w, a_i[:, None]], dim=1)
            new[:, :d], new[:, d] = w - dt * down[:, :d], a_i - dt * down[:, d]
            outputs += type(self)(new[:, :d], self.X).outputs(masses[part] * new[:, d])
            fastest = torch.maximum(fastest, down.norm(dim=1).max())
        return Moved(moved, outputs, float(fastest))


class Tiled(Stream):
    """Tiles of directions by matrix products: one tile of 2^17 entries, or of one direction, at a time."""

    def parts(self) -> Iterator[slice]:
        """See Stream."""
        N = self.directions.shape[0]
        rows = max(1, _TILE // max(self.X.shape[0], 1))
        yield from (slice(start, min(N, start + rows)) for start in range(0, N, rows))

    def tiles(self) -> Iterator[tuple[slice, Tensor]]:
        """Slices of directions with their pre-activations w . x_j."""
        for part in self.parts():
            yield part, self.directions[part] @ self.X.T

    def outputs(self, weights: Tensor) -> Tensor:
        """See Stream."""
        total = torch.zeros(self.X.shape[0], dtype=torch.float64, device=self.X.device)
        for part, act in self.tiles():
            total += weights[part].double() @ act.relu_().double()
        return total

    def potential(self, z: Tensor) -> Tensor:
        """See Stream."""
        return torch.cat([act.relu_() @ z for _, act in self.tiles()])

    def slopes(self, z: Tensor) -> Tensor:
        """See Stream."""
        scaled = (z[:, None] * self.X).T.contiguous()
        # The gate is written over its own tile, and the product has the long side last: 2.6 times faster than
        # (act > 0).to(dtype) @ scaled.T.
        return torch.cat([(scaled @ act.gt_(0).T).T for _, act in self.tiles()])


class Keops(Stream):
    """The same sums by KeOps: O(N + n) memory."""

    def _act(self) -> tuple[LazyTensor, LazyTensor]:
        w, x = LazyTensor(self.directions[:, None].contiguous()), LazyTensor(self.X[None].contiguous())
        return (w * x).sum(-1), x

    def outputs(self, weights: Tensor) -> Tensor:
        """See Stream."""
        act, _ = self._act()
        scaled = act.relu() * LazyTensor(weights.to(self.X.dtype)[:, None, None].contiguous())
        out: Tensor = scaled.sum(dim=0, dtype_acc="float64").reshape(-1)
        return out.double()

    def potential(self, z: Tensor) -> Tensor:
        """See Stream."""
        act, _ = self._act()
        out: Tensor = (act.relu() * LazyTensor(z[None, :, None].contiguous())).sum(dim=1).reshape(-1)
        return out

    def slopes(self, z: Tensor) -> Tensor:
        """See Stream."""
        act, x = self._act()
        # KeOps' step is 1 at 0; relu'(0) = 0 asks for 1 - step(-act).
        gate = 1 - (-act).step()
        out: Tensor = (gate * LazyTensor(z[None, :, None].contiguous()) * x).sum(dim=1)
        return out


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


class Compiled(Stream):
    """In C++ on the CPU: every activation is used where it is computed, in double whatever the dtype.

    Cost N n (d + 2) multiplications, 2 d more for slopes; memory O(N + n). Bits do not depend on the number of threads.
    For small d: matrix products gain on it, see `stream`. Sums that need a gradient are left to Tiled.
    """

    @staticmethod
    def takes(directions: Tensor) -> bool:
        """Whether this machine can."""
        real = directions.dtype in (torch.float32, torch.float64)
        return directions.device.type == "cpu" and real and load() is not None

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

    def _tracked(self, *values: Tensor) -> bool:
        return torch.is_grad_enabled() and any(t.requires_grad for t in (*values, self.directions, self.X))

    def _call(self, name: str, *arguments: Any, z: Tensor | None = None) -> None:
        (N, d), (n, padded) = self.directions.shape, (self.X.shape[0], self._columns.shape[1])
        filled = torch.zeros(padded, dtype=torch.float64)
        if z is not None:
            filled[:n] = z.expand(n)
        scaled = filled * self._columns
        threads = torch.get_num_threads() if N * n >= _ALONE else 1
        places = (t.data_ptr() for t in (self._columns, filled, scaled))
        getattr(load(), name)(ctypes.byref(_Job(N, threads, _Rows.of(self._rows), n, d, padded, *places)), *arguments)

    def _values(self, values: Tensor) -> Tensor:
        """One number a direction, as the C++ can read it: beyond the last it would read on."""
        if values.shape != self.directions.shape[:1]:
            raise GridError(f"received values of shape {tuple(values.shape)}, need ({self.directions.shape[0]},)")
        return values if values.dtype in (torch.float32, torch.float64) else values.double()

    def outputs(self, weights: Tensor) -> Tensor:
        """See Stream."""
        if self._tracked(weights):
            return Tiled(self.directions, self.X).outputs(weights)
        weights, out = self._values(weights), torch.empty(self.X.shape[0], dtype=torch.float64)
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
        a, masses, (N, d) = self._values(a), self._values(masses), self.directions.shape
        moved, out = self._rows.new_empty(N, d + 1), torch.empty(self.X.shape[0], dtype=torch.float64)
        fastest = ctypes.c_double()
        neurons = _Neurons(_Rows.of(a), _Rows.of(masses), _Rows.of(moved), dt, decay)
        places = ctypes.c_void_p(out.data_ptr()), ctypes.byref(fastest)
        self._call("bigjko_descend", ctypes.byref(neurons), *places, z=z)
        return Moved(moved, out, fastest.value)
