"""Sums over directions and data of relu(w . x), and over nodes that are directions times the rest (ridge.cpp)."""

import ctypes
import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from . import compiler
from .errors import GridError, KernelError
from .passes import Feed, Parts, Weighing
from .streams import Moved, Stream, Tiled

_DTYPES = (torch.float32, torch.float64)
_PAD = 8  # data fill whole registers, whatever the machine's
_FEW = 128  # data whose Gram matrices stay in the cache
_ALONE = 1 << 17  # with fewer pairs, 50 microseconds of work, a second thread costs what it saves


class _Rows(ctypes.Structure):
    _fields_ = [("place", ctypes.c_void_p), ("stride", ctypes.c_long), ("single", ctypes.c_long)]

    @classmethod
    def of(cls, values: Tensor) -> "_Rows":
        return cls(values.data_ptr(), values.stride(0), values.dtype == torch.float32)


class _Pairs(ctypes.Structure):
    _fields_ = [
        ("count", ctypes.c_long),
        ("w", _Rows),
        *((name, ctypes.c_long) for name in ("n", "dim", "padded")),
        ("x", ctypes.c_void_p),
    ]


class _Network(ctypes.Structure):
    _fields_ = [("outer", ctypes.c_long), ("inner", ctypes.c_long), ("amplitude", ctypes.c_void_p)]


class _Blending(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("pairs", "z", "net", "base")),
        ("scale", ctypes.c_double),
        ("potential", ctypes.c_void_p),
        ("alpha", ctypes.c_double),
        ("out", ctypes.c_void_p),
        ("single", ctypes.c_long),
    ]


class _Weighing(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("pairs", "net", "log_p", "rest", "out")),
        ("single", ctypes.c_long),
        ("threads", ctypes.c_long),
    ]


class _Neurons(ctypes.Structure):
    _fields_ = [
        *((name, _Rows) for name in ("a", "masses", "moved")),
        *((name, ctypes.c_double) for name in ("dt", "decay")),
    ]


@functools.cache
def load(march: str = "native") -> Any:
    """The compiled sums, or None where they cannot be had."""
    library = compiler.load("ridge.cpp", march)
    if library is None:
        return None
    pairs, rows, network = (ctypes.POINTER(kind) for kind in (_Pairs, _Rows, _Network))
    place, single = ctypes.c_void_p, ctypes.c_long
    kinds = {
        "bigjko_outputs": (rows, place),
        "bigjko_heights": (place, rows),
        "bigjko_slopes": (place, rows),
        "bigjko_descend": (place, ctypes.POINTER(_Neurons), place, ctypes.POINTER(ctypes.c_double)),
        "bigjko_gram": (network, network, place, place, single),
    }
    for name, arguments in kinds.items():
        function = getattr(library, name)
        function.restype, function.argtypes = None, (pairs, *arguments, ctypes.c_long)
    library.bigjko_blend.restype, library.bigjko_blend.argtypes = None, (ctypes.POINTER(_Blending), ctypes.c_long)
    library.bigjko_weigh.restype, library.bigjko_weigh.argtypes = (
        None,
        (ctypes.POINTER(_Weighing), *3 * [ctypes.c_long]),
    )
    return library


def _checked(values: Tensor, size: int) -> Tensor:
    """One number each, as C++ that checks nothing can read them."""
    if values.shape != (size,) or values.device.type != "cpu":
        raise GridError(f"received values of shape {tuple(values.shape)} on {values.device}, need ({size},) on the CPU")
    return values if values.dtype in _DTYPES else values.double()


class Network:
    """Nodes (outer, directions, inner) on which a network's amplitude is constant along the directions.

    Args:
        shape: of values on the nodes.
        direction_axes: side by side, in order.
        amplitude: broadcast over the shape.
    """

    @classmethod
    def of(cls, shape: Sequence[int], direction_axes: Sequence[int], amplitude: Tensor) -> "Network | None":
        """None where the amplitude is another (particles), or tracked."""
        first = min(direction_axes, default=0)
        together = tuple(direction_axes) == tuple(range(first, first + len(direction_axes)))
        sizes = (1,) * (len(shape) - amplitude.ndim) + tuple(amplitude.shape)
        constant = together and all(sizes[k] == 1 for k in direction_axes) and not amplitude.requires_grad
        return cls(shape, direction_axes, amplitude) if constant and math.prod(shape) > 0 else None

    def __init__(self, shape: Sequence[int], direction_axes: Sequence[int], amplitude: Tensor) -> None:
        sizes = [1 if k in direction_axes else size for k, size in enumerate(shape)]
        first = min(direction_axes, default=0)
        self._amplitude = amplitude.double().expand(sizes).contiguous()
        self._sizes = math.prod(shape[:first]), math.prod(sizes[first:])

    def struct(self) -> _Network:  # no pointer is kept: a stepper can be copied and pickled
        """For C++."""
        return _Network(*self._sizes, self._amplitude.data_ptr())


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

    @functools.cached_property
    def _pairs(self) -> _Pairs:
        (N, d), (n, padded) = self.directions.shape, (self.X.shape[0], self._columns.shape[1])
        return _Pairs(N, _Rows.of(self._rows), n, d, padded, self._columns.data_ptr())

    def __getstate__(self) -> dict[str, Any]:  # without pointers: a stepper can be copied and pickled
        return {name: value for name, value in self.__dict__.items() if name != "_pairs"}

    def _threads(self, nodes: int = 0) -> int:
        many = self.directions.shape[0] * self.X.shape[0] >= _ALONE
        return torch.get_num_threads() if many else compiler.threads(nodes)

    def _numbers(self, z: Tensor) -> Tensor:
        return _checked(z, self.X.shape[0]).double().contiguous()

    def outputs(self, weights: Tensor) -> Tensor:
        """See Stream."""
        if self._tracked(weights):
            return Tiled(self.directions, self.X).outputs(weights)
        weights = _checked(weights, self.directions.shape[0])
        out = torch.empty(self.X.shape[0], dtype=torch.float64)
        load().bigjko_outputs(self._pairs, _Rows.of(weights), out.data_ptr(), self._threads())
        return out

    def potential(self, z: Tensor) -> Tensor:
        """See Stream."""
        if self._tracked(z):
            return Tiled(self.directions, self.X).potential(z)
        out, z = self._rows.new_empty(self.directions.shape[0]), self._numbers(z)
        load().bigjko_heights(self._pairs, z.data_ptr(), _Rows.of(out), self._threads())
        return out

    def slopes(self, z: Tensor) -> Tensor:
        """See Stream."""
        if self._tracked(z):
            return Tiled(self.directions, self.X).slopes(z)
        out, z = self._rows.new_empty(self.directions.shape), self._numbers(z)
        load().bigjko_slopes(self._pairs, z.data_ptr(), _Rows.of(out), self._threads())
        return out

    def blend(
        self, on: Network, base: Tensor, scale: float, V: Tensor | None, alpha: float, z: Tensor, out: Tensor
    ) -> "Blend | None":
        """What writes scale base + alpha (V + amplitude potential(z)) into out; None where it could not."""
        if self._tracked(z) or not compiler.takes(base, out, *(() if V is None else (V,))):
            return None
        return Blend(self, on, base, scale, V, alpha, z, out)

    def weighing(self, on: Network, log_p: Tensor, rest: Tensor) -> "Weighed | None":
        """Adds rest to log_p; outputs of amplitude exp(log_p). None where it could not."""
        if self._tracked() or not compiler.takes(log_p, rest):
            return None
        return Weighed(self, on, log_p, rest)

    def gram(self, alpha: Network, beta: Network, p: Tensor) -> Tensor | None:
        """See Ridge.gram. None where it could not, or matrix products are faster."""
        n = self.X.shape[0]
        if n > _FEW or self._tracked() or not compiler.takes(p):
            return None
        out = torch.empty(n, n, dtype=torch.float64)
        places = (alpha.struct(), beta.struct(), p.data_ptr(), out.data_ptr())
        load().bigjko_gram(self._pairs, *places, p.dtype == torch.float32, self._threads(p.numel()))
        return out

    def descend(self, a: Tensor, masses: Tensor, z: Tensor, dt: float, decay: float) -> Moved:
        """See Stream."""
        if self._tracked(a, masses, z):
            return Tiled(self.directions, self.X).descend(a, masses, z, dt, decay)
        N, d = self.directions.shape
        a, masses, z = _checked(a, N), _checked(masses, N), self._numbers(z)
        moved, out = self._rows.new_empty(N, d + 1), torch.empty(self.X.shape[0], dtype=torch.float64)
        fastest = ctypes.c_double()
        neurons = _Neurons(_Rows.of(a), _Rows.of(masses), _Rows.of(moved), dt, decay)
        load().bigjko_descend(self._pairs, z.data_ptr(), neurons, out.data_ptr(), fastest, self._threads())
        return Moved(moved, out, fastest.value)


class Blend(Feed):
    """Of `Compiled.blend`."""

    def __init__(
        self,
        stream: Compiled,
        on: Network,
        base: Tensor,
        scale: float,
        V: Tensor | None,
        alpha: float,
        z: Tensor,
        out: Tensor,
    ) -> None:
        self._network, self._threads = on.struct(), stream._threads(out.numel())
        self._pairs = stream._pairs
        self._z, self._numbers = z, stream._numbers(z)
        self._held = stream, on, base, V, out  # as long as there are pointers to them
        pairs, net = (ctypes.addressof(x) for x in (self._pairs, self._network))
        added = None if V is None else V.data_ptr()
        places = (pairs, self._numbers.data_ptr(), net, base.data_ptr(), scale, added, alpha, out.data_ptr())
        self._all = _Blending(*places, out.dtype == torch.float32)
        self._parts = Parts.of(load().bigjko_blend_some, self._all)

    def whole(self) -> None:
        """See Feed."""
        if self._numbers is not self._z:
            self._numbers.copy_(self._z)
        load().bigjko_blend(self._all, self._threads)

    def parts(self, shares: int, nodes: int) -> Parts | None:
        """See Feed. Parts of several sheets would take the sums over data for each sheet."""
        whole_directions = self._network.outer == 1 and nodes % self._network.inner == 0
        return self._parts if (whole_directions or shares == 1) and self._numbers is self._z else None


class Weighed(Weighing):
    """Of `Compiled.weighing`."""

    def __init__(self, stream: Compiled, on: Network, log_p: Tensor, rest: Tensor) -> None:
        self._network, self._pairs = on.struct(), stream._pairs
        self._outputs, self._room = None, torch.empty(stream.X.shape[0], dtype=torch.float64)
        self._held = stream, on, log_p, rest  # as long as there are pointers to them
        pairs, net = (ctypes.addressof(x) for x in (self._pairs, self._network))
        places = (pairs, net, log_p.data_ptr(), rest.data_ptr(), self._room.data_ptr())
        self._all = _Weighing(*places, log_p.dtype == torch.float32, stream._threads(log_p.numel()))
        self._parts = Parts.of(load().bigjko_weigh, self._all)

    def whole(self) -> None:
        """See Feed."""
        load().bigjko_weigh(self._all, 0, 0, 0)
        self._outputs = self._room

    def parts(self, shares: int, nodes: int) -> Parts | None:
        """See Feed. In one share alone."""
        if shares > 1:
            return None
        self._outputs = self._room
        return self._parts
