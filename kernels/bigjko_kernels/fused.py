"""One axis of the separable kernel as compiled code (fused.cpp)."""

import ctypes
import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import compiler
from .costs import Cost
from .factors import Circle, Factor
from .passes import Parts, Used

# As in fused.cpp: nodes a tile, lines at a time, tiles a group, and the entries of one block of the kernel.
_TILE, _LINES, _GROUP, _BLOCK = 8, 16, 8, 192
_MIDDLE = _TILE // 2
_BAND = 2  # tiles on either side whose blocks are there from the start
_CHUNK = 1 << 20  # elements of a temporary
_CACHED = 1 << 16  # nodes of a slab whose axes are done in turn before the next: two arrays of 512 KiB
_SHARED = 8  # slabs, at least, for threads to share
_ALONE = 1 << 16  # with fewer values, .2 ms of work, a second thread costs what it saves
_ABSENT, _WANTED = -1, -2
_lock = threading.Lock()  # a kernel that two threads share must not gain blocks while the other reads them


class _Tables(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in ("n", "tiles", "groups", "around")),
        *((name, ctypes.c_void_p) for name in ("near", "apart", "group_near", "group_far", "where", "blocks")),
        ("last", ctypes.c_long),
    ]


class _Among(ctypes.Structure):
    _fields_ = [("axis", ctypes.c_void_p), ("before", ctypes.c_long), ("after", ctypes.c_long)]


class Twice(ctypes.Structure):
    """Two applications, the second in place. First `applied`: how many of them were done. known: of which blocks."""

    _fields_ = [
        ("applied", ctypes.c_long),
        ("axes", ctypes.POINTER(_Among)),
        ("some", ctypes.c_long),
        *((name, ctypes.c_void_p) for name in ("b", "between", "out")),
        *((name, ctypes.c_long) for name in ("single", "size", "count")),
        ("done", ctypes.c_void_p),
        ("threads", ctypes.c_long),
        *((name, ctypes.POINTER(Parts)) for name in ("first", "second", "then")),
        *((name, ctypes.c_long) for name in ("finished", "marked")),
    ]
    applied: int
    finished: int
    marked: int
    known: list[_Tables]


@functools.cache
def load(march: str = "native") -> Any:
    """The compiled functions, or None where they cannot be had."""
    library = compiler.load("fused.cpp", march)
    if library is None:
        return None
    lines = library.bigjko_lines
    number, place = ctypes.c_long, ctypes.c_void_p
    kinds = (place, number, place, number, number, number, number, place, number, ctypes.POINTER(number))
    lines.argtypes = (ctypes.POINTER(_Tables), *kinds)
    lines.restype = None
    counts = (number, number, number, place, number)
    feeds = (ctypes.POINTER(Parts), ctypes.POINTER(Parts))
    arguments = (number, place, place, place, *counts, *feeds, ctypes.POINTER(number))
    library.bigjko_in_turn.argtypes, library.bigjko_in_turn.restype = (ctypes.POINTER(_Among), *arguments), number
    library.bigjko_twice.argtypes, library.bigjko_twice.restype = (ctypes.POINTER(Twice), *3 * [number]), None
    return library


class FusedAxis:
    """The kernel along one factor, on values of shape (before, n, after) on the CPU; see fused.cpp for the sums.

    Keeps 1.5 (n/8)^2 bounds, and the blocks of the kernel that were ever needed: up to max(512 n, N) numbers.
    """

    @staticmethod
    def takes(factor: Factor, grid_size: int) -> bool:
        """Whether this machine can, and the bounds need no more room than the blocks."""
        long = factor.size**2 // _TILE**2 > max(256 * factor.size, grid_size)
        return factor.nodes.device.type == "cpu" and not long and load() is not None

    def __init__(self, factor: Factor, cost: Cost, epsilon: float, grid_size: int) -> None:
        self.n = factor.size
        self.tiles = -(-self.n // _TILE)
        index = torch.arange(self.tiles * _TILE).clamp(max=self.n - 1)
        self.nodes = factor.nodes.double()
        self.single = factor.nodes.dtype == torch.float32
        self.padded = self.nodes[index].reshape(self.tiles, _TILE, -1)
        self.cost, self.epsilon = cost, epsilon
        groups = -(-self.tiles // _GROUP)
        self.around = isinstance(factor, Circle)
        self.apart = self.padded.new_full((self.n,), -math.inf)
        self.near = self.padded.new_empty(self.tiles, self.tiles)
        self.group_near, self.group_far = self.padded.new_empty(2, self.tiles, groups)
        grouped = torch.arange(groups * _GROUP).clamp(max=self.tiles - 1)
        for i, tile in enumerate(self.padded):  # filled in place: see TorchAxis
            log_k = self._log_k(tile[:, None, None], self.padded[None])
            self.near[i] = log_k.amax(dim=(0, 2))
            for k, row in enumerate(log_k.flatten(1)[:, : self.n], i * _TILE):
                distance = (torch.arange(self.n) - min(k, self.n - 1)).abs()
                if self.around:
                    distance = torch.minimum(distance, self.n - distance)
                self.apart.scatter_reduce_(0, distance, row, "amax")
            self.group_near[i] = self.near[i, grouped].reshape(groups, _GROUP).amax(dim=1)
            self.group_far[i] = log_k.amin(dim=(0, 2))[grouped].reshape(groups, _GROUP).amin(dim=1)
        outputs = torch.arange(self.tiles)[:, None].expand(-1, 2 * _BAND + 1)
        inputs = outputs + torch.arange(-_BAND, _BAND + 1)
        inside = (inputs >= 0) & (inputs < self.tiles) | self.around
        band = torch.stack([outputs[inside], inputs[inside] % self.tiles], dim=1)
        self.band = band.unique(dim=0)  # a circle of few tiles meets itself
        self.room, self.crowded = max(512 * self.n, grid_size) // _BLOCK, False
        self._restart()

    def _log_k(self, x: Tensor, y: Tensor) -> Tensor:
        log_k: Tensor = -self.cost(x, y) / self.epsilon
        return log_k

    def _restart(self) -> None:
        self.where = torch.full((self.tiles, self.tiles), _ABSENT, dtype=torch.int32)
        self.blocks = torch.empty(0, _BLOCK, dtype=torch.float64)
        self._add(self.band)

    def _add(self, pairs: Tensor) -> None:
        """Blocks of some pairs of tiles (I, J)."""
        size = self.blocks.shape[0]
        new = torch.zeros(pairs.shape[0], _BLOCK, dtype=torch.float64)
        step = _CHUNK // _BLOCK
        for start in range(0, pairs.shape[0], step):
            i, j = pairs[start : start + step].T
            log_k = self._log_k(self.padded[j][:, :, None], self.padded[i][:, None])  # (pairs, inputs, outputs)
            middle = log_k[:, :, _MIDDLE]
            log_r = log_k - middle[:, :, None]
            top, low = log_r.amax(dim=1), log_r.amin(dim=1)
            part = new[start : start + step]
            part[:, :64] = (log_r - top[:, None]).exp().flatten(1)
            part[:, 64:72], part[:, 72:80], part[:, 80:88] = middle, top, low
            part[:, 88], part[:, 89] = top.amax(dim=1), low.amin(dim=1)
            near = log_k.amax(dim=(1, 2))
            part[:, 90], part[:, 91] = near, log_k.amin(dim=(1, 2))
            part[:, 92] = log_k.diagonal(dim1=1, dim2=2).amin(dim=1)
            q = part[:, 96:160] = (log_k - near[:, None, None]).exp().flatten(1)
            part[:, 160:] = q.float().view(torch.float64)
        self.blocks = torch.cat([self.blocks, new])
        self.where[pairs[:, 0], pairs[:, 1]] = torch.arange(size, size + pairs.shape[0], dtype=torch.int32)
        self.__dict__.pop("tables", None)

    @functools.cached_property
    def tables(self) -> _Tables:
        """For C++, until there are other blocks."""
        tables = (self.near, self.apart, self.group_near, self.group_far, self.where, self.blocks)
        sizes = (self.n, self.tiles, self.group_near.shape[1], self.around)
        return _Tables(*sizes, *(t.data_ptr() for t in tables), False)

    def __getstate__(self) -> dict[str, Any]:  # without pointers: a stepper can be copied and pickled
        return {name: value for name, value in self.__dict__.items() if name != "tables"}

    def __call__(self, b: Tensor, out: Tensor) -> None:
        """The sums, into another contiguous array; both in float64 or float32, in between all is float64."""
        with _lock:
            self._lines(b.contiguous(), out)

    def _lines(self, b: Tensor, out: Tensor) -> None:
        before, _, after = b.shape
        done = torch.zeros(-(-before * after // _LINES), dtype=torch.uint8)
        threads = torch.get_num_threads() if b.numel() >= _ALONE else 1
        result = (ctypes.c_long * 2)(1, 0)
        wrong, last, restarted = False, False, False
        while result[0]:
            self.tables.last = last
            values = (b.data_ptr(), b.dtype == torch.float32, out.data_ptr(), out.dtype == torch.float32)
            load().bigjko_lines(self.tables, *values, self.single, before, after, done.data_ptr(), threads, result)
            wrong |= bool(result[1])
            if result[0]:
                wanted = (self.where == _WANTED).nonzero()
                last = wanted.shape[0] > self.room - self.blocks.shape[0]
                if last and not restarted:  # most of the blocks that are kept served other values
                    last, restarted = False, True
                    self._restart()
                else:
                    self.where[self.where == _WANTED] = _ABSENT
                    self._add(wanted[: self.room - self.blocks.shape[0]])
        self.tables.last, self.crowded = False, last
        if wrong:
            self._repair(out, b)

    def _repair(self, out: Tensor, b: Tensor) -> None:
        """A true log-sum-exp over the whole axis for the outputs that are marked +inf."""
        lead, node, trail = (out == math.inf).nonzero(as_tuple=True)
        step = max(1, _CHUNK // self.n)
        for start in range(0, node.numel(), step):
            a, i, c = (index[start : start + step] for index in (lead, node, trail))
            log_k = self._log_k(self.nodes[i][:, None], self.nodes[None])
            out[a, i, c] = torch.logsumexp(log_k + b[a, :, c].double(), dim=1).to(out.dtype)


class InTurn:
    """All axes of an array in one call, the last first, as far as that is possible.

    Args:
        axes: with their places among the axes of `shape`, in order.
        shape: of the array.

    Attributes:
        shares: in which it asks for what makes the array, and the nodes of one; None if it cannot.
    """

    def __init__(self, axes: Sequence[tuple[int, FusedAxis]], shape: Sequence[int]) -> None:
        lead = axes[0][0]
        self.size = math.prod(shape[lead + 1 :])
        self.count = math.prod(shape[: lead + 1])
        self.axes = [axis for _, axis in axes[::-1]]
        slabs = len(axes) > 2
        befores = [math.prod(shape[lead + 1 : k] if slabs and k > lead else shape[:k]) for k, _ in axes[::-1]]
        self.sizes = list(zip(befores, (math.prod(shape[k + 1 :]) for k, _ in axes[::-1]), strict=True))
        self._possible = not slabs or (self.size <= _CACHED and self.count >= _SHARED)
        self._done = torch.empty(self.count, dtype=torch.uint8)
        self._known: list[_Tables] = []
        self._among: ctypes.Array[_Among] | None = None
        self.shares: tuple[int, int] | None = None
        if slabs:
            self.shares = self.count, self.size
        elif self.sizes[0][1] == 1:  # whose lines lie one after the other
            self.shares = -(-self.sizes[0][0] // _LINES), _LINES * self.axes[0].n

    def __getstate__(self) -> dict[str, Any]:  # without pointers
        return self.__dict__ | {"_known": [], "_among": None}

    def takes(self, b: Tensor) -> bool:
        """Whether it should be tried: not where an axis lacked room for its blocks the last time."""
        return self._possible and b.is_contiguous() and not any(axis.crowded for axis in self.axes)

    def __call__(
        self, b: Tensor, between: Tensor | None, out: Tensor, parts: Parts | None = None, then: Parts | None = None
    ) -> tuple[bool, slice | None]:
        """Whether all went through, `then` included, and what is still to be done.

        That is slabs of `between`, and after them the first axis; None if nothing is, `then` perhaps excepted.

        Args:
            b: contiguous.
            between: float64, for what all axes but the first make of b; of a single axis for b, where that is out.
            out: may be b.
            parts: what makes b in `shares`: so many, of so many nodes.
            then: what to call once all is done.
        """
        with _lock:
            marked = ctypes.c_long()
            finished = load().bigjko_in_turn(*self._how(b, between, out), parts, then, marked)
            return finished == len(self.axes), self._left(finished, marked.value, b, between, out)

    def prepared(
        self, b: Tensor, between: Tensor | None, out: Tensor, first: Parts | None, second: Parts, then: Parts | None
    ) -> Twice:
        """The same of b and then of out, in place, as a call.

        Args:
            b, between, out: as above.
            first, second: what makes b, if it is not made, and what remakes out in between.
            then: what to call after the second.
        """
        parts = (x if x is None else ctypes.pointer(x) for x in (first, second, then))
        with _lock:
            call = Twice(0, *self._how(b, between, out), *parts)
            call.known = self._known
            return call

    def knows(self, call: Twice) -> bool:
        """Whether a call is of the blocks that there are."""
        return call.known is self._known and [axis.tables for axis in self.axes] == self._known

    def twice(self, call: Twice, b: Tensor, between: Tensor | None, out: Tensor) -> tuple[int, slice | None]:
        """How many of the two applications were done, and what is left of the next."""
        with _lock:
            load().bigjko_twice(call, 0, 0, 0)
            return call.applied, self._left(call.finished, call.marked, out if call.applied else b, between, out)

    def through(self, call: Twice, use: Callable[[Parts, int], Used]) -> Used:
        """What `use` makes of a call as compiled code, and of the address of a number that is 2 if it went through."""
        with _lock:
            call.applied = 2  # as long as it is not called
            return use(Parts.of(load().bigjko_twice, call), ctypes.addressof(call))

    def _how(self, b: Tensor, between: Tensor | None, out: Tensor) -> tuple[Any, ...]:
        tables = [axis.tables for axis in self.axes]
        if tables != self._known:
            pairs = zip(tables, self.sizes, strict=True)
            self._known = tables
            self._among = (_Among * len(tables))(*(_Among(ctypes.addressof(x), *size) for x, size in pairs))
        places = (b.data_ptr(), None if between is None else between.data_ptr(), out.data_ptr())
        threads = torch.get_num_threads() if b.numel() >= _ALONE else 1
        sizes = (self.axes[0].single, self.size, self.count, self._done.data_ptr(), threads)
        return self._among, len(self.axes), *places, *sizes

    def _left(self, finished: int, marked: int, b: Tensor, between: Tensor | None, out: Tensor) -> slice | None:
        if finished == len(self.axes):
            return None
        if marked:
            axis, (before, after) = self.axes[finished], self.sizes[finished]
            first, last = finished == 0, finished + 1 == len(self.axes)
            source = between if between is not None and first and last and b.data_ptr() == out.data_ptr() else b
            ends = (out if last or between is None else between), (source if first or between is None else between)
            axis._repair(*(x.view(before, axis.n, after) for x in ends))
            return None if last else slice(0)
        left = [] if finished else (self._done == 0).nonzero()[:, 0].tolist()
        return slice(left[0], left[-1] + 1) if left else slice(0)
