"""The kernel of a cost that is a sum over factors: one log-sum-exp an axis.

On the CPU by compiled code (fused.cpp), on a GPU by Triton (tritons.py); elsewhere by torch as shifted matrix products.
For an axis of n nodes cut into tiles of 16, with J a tile of inputs and I a tile of outputs, these are

    out_i = s_I + log sum_J w_IJ sum_{k in J} exp(-(c_ik - c_IJ)/eps) exp(b_k - m_J),   w_IJ = exp(m_J - c_IJ/eps - s_I)

where m_J is the largest b in J, c_IJ the smallest cost between the tiles and s_I the largest m_J - c_IJ/eps. Only the
tiles J near I enter the product. Nothing is dropped in silence: for the others max_J (m_J - c_IJ/eps) + log n bounds
all they could add, and an output which that bound reaches, or whose sum underflowed, is computed again by a true
log-sum-exp. Where such outputs are many the window is doubled.

The exponentials are N (1 + 3/16) an axis instead of N n, the rest is BLAS in float64 whatever the grid's dtype.
"""

import functools
import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from . import fused
from .costs import Cost, SquaredArc, geodesic
from .errors import KernelError
from .factors import Circle, Factor
from .fused import FusedAxis, InTurn
from .gibbs import LOG_ZERO, GibbsKernel, Twice
from .grid import Grid
from .pages import empty
from .passes import Feed, Parts, Used
from .trial import trusted

if TYPE_CHECKING:
    from .tritons import TritonAxis

_TILE = 16
_WIDEST = 17  # tiles in a window, or more while its table is no larger than one array of N
_MARGIN = 40.0  # exp(-40) = 4e-18: what is left out is below half an ulp
_TINY = 1e-280  # a sum below it may have lost terms to underflow
_CHUNK, _CHUNK_OFF_CPU = 1 << 20, 1 << 23  # elements of a temporary
_lock = threading.Lock()  # windows and the array in between are written: not by two threads at once
_REPAIRS = 8.0  # repairing a share of more than this / n of the outputs costs more than a wider window


class Separable(GibbsKernel):
    """A cost that is a sum over factors, one axis at a time; exact for any input.

    Cost: 3 passes of torch.exp an axis in float64, 3 to 5 in float32 (bench/RESULTS.md), up to three times that for
    slopes of b that move mass by more than 6 nodes; float32 sums in float32 where nothing can be lost. Keeps one array
    of N in float64 where there are two axes or more, and does all axes but the first slab by slab in the cache where
    slabs have up to 65,536 nodes. Input that jumps by hundreds from node to node falls back to n
    exponentials for the nodes where sums underflow.
    The torch version takes three to five times as long; it also falls back for slopes of b that move mass more than a
    window (16 nodes, doubling to 128 or more) or tear a tile by 600.

    Args:
        grid: the nodes.
        epsilon: entropic temperature, in units of the cost.
        cost: ground cost; half the squared geodesic distance by default.
        axis: how an axis is done: FusedAxis or TritonAxis where one can be, else TorchAxis, by default.
    """

    def __init__(
        self,
        grid: Grid,
        epsilon: float,
        cost: Cost | None = None,
        axis: "type[FusedAxis | TorchAxis | TritonAxis] | None" = None,
    ) -> None:
        super().__init__(grid, epsilon, geodesic(grid) if cost is None else cost)
        parts = self.cost.per_factor(grid)
        if parts is None:
            raise KernelError(f"received {self.cost!r} on {grid!r}, which is no sum over factors: use kernels.Lazy")
        found: list[tuple[int, FusedAxis | TorchAxis | TritonAxis]] = []
        for k, (f, part) in enumerate(zip(grid.factors, parts, strict=True)):
            if part is not None and f.size > 1:
                chosen = axis or _fastest(f, grid.size)
                found.append((k, chosen(f, part, epsilon, grid.size)))
        self.axis, self._axes = axis, found
        fused = [(k, axis) for k, axis in found if isinstance(axis, FusedAxis)]
        self._in_turn = InTurn(fused, grid.shape) if found and len(fused) == len(found) else None
        self._between: Tensor | None = None

    def on(self, grid: Grid) -> "Separable":
        """See GibbsKernel."""
        return Separable(grid, self.epsilon, self.cost, self.axis)

    def _log_apply(self, b: Tensor, out: Tensor) -> Tensor:
        with _lock:
            return self._axis_by_axis(b, out)

    def _fed(self, feed: Feed, b: Tensor, out: Tensor, then: Feed | None) -> Tensor:
        in_turn = self._in_turn
        if in_turn is None or in_turn.shares is None or not in_turn.takes(b):
            return super()._fed(feed, b, out, then)
        parts = feed.parts(*in_turn.shares)
        if parts is None:
            return super()._fed(feed, b, out, then)
        last = None if then is None else then.parts(1, b.numel())
        with _lock:
            through, left = in_turn(b, self._room(b, out), out, parts, last)
            self._finished(self._source(b, out), out, left)
        if then is not None and (last is None or not through):
            then.whole()
        return out

    def twice(
        self,
        b: Float[Tensor, "*grid"],
        out: Float[Tensor, "*grid"],
        feed: Feed | None,
        over: Feed,
        then: Feed | None = None,
    ) -> Twice:
        """See GibbsKernel: in one call of compiled code where all axes and feeds are."""
        if self._in_turn is not None and self._in_turn.shares is not None:
            return _InTurnTwice(self, self._in_turn, b, out, feed, over, then)
        return super().twice(b, out, feed, over, then)

    def _room(self, b: Tensor, out: Tensor) -> Tensor | None:
        """For what all axes but the first make; of a single one for what it is of, where that is done in place."""
        lead, _ = self._axes[0]
        if len(self._axes) == 1 and out.data_ptr() != b.data_ptr():
            return None
        if self._between is None:
            shape = math.prod(b.shape[: lead + 1]), math.prod(b.shape[lead + 1 :])
            self._between = empty(shape, torch.float64, b.device)
        return self._between

    def _source(self, b: Tensor, out: Tensor) -> Tensor:
        """What an application by compiled code, in place perhaps, has been of."""
        if len(self._axes) > 1 or self._between is None or out.data_ptr() != b.data_ptr():
            return b
        return self._between.view(b.shape)

    def _axis_by_axis(self, b: Tensor, out: Tensor) -> Tensor:
        if not self._axes:
            return out.copy_(b)
        if len(self._axes) == 1 and out.data_ptr() == b.data_ptr():
            b = b.clone()
        between = self._room(b, out)
        if self._in_turn is not None and self._in_turn.takes(b):
            _, left = self._in_turn(b, between, out)
            return self._finished(b, out, left)
        return self._finished(b, out, slice(None))

    def _finished(self, b: Tensor, out: Tensor, left: slice | None) -> Tensor:
        """What is left, by axes: these slabs of all but the first axis, and that; or None."""
        if left is None:
            return out
        # The first axis last: before it the others are done slab by slab, in the cache. Rounded once, at the end: in
        # between, values can be far larger than the answer.
        (lead, first), rest = self._axes[0], self._axes[1:]
        shape = (math.prod(b.shape[:lead]), b.shape[lead], math.prod(b.shape[lead + 1 :]))
        if self._between is None or not rest:
            first(b.reshape(shape), out.view(shape))
            return out
        rows, between = b.reshape(-1, shape[2])[left], self._between[left]
        step = max(1, min(rows.shape[0], _chunk(b) // shape[2]))
        spare = torch.empty(step if len(rest) > 1 else 0, shape[2], dtype=torch.float64, device=b.device)
        for start in range(0, rows.shape[0], step):
            slab, target = rows[start : start + step], between[start : start + step]
            # Back and forth, so that the last of them writes into `between`.
            ends = [target, spare[: target.shape[0]]]
            for to_come, (k, axis) in zip(range(len(rest) - 1, -1, -1), rest, strict=True):
                lines = (-1, b.shape[k], math.prod(b.shape[k + 1 :]))
                end = ends[to_come % 2]
                axis(slab.reshape(lines), end.view(lines))
                slab = end
        first(self._between.view(shape), out.view(shape))
        return out


class _InTurnTwice(Twice):
    """In one call, as far as that is possible."""

    def __init__(
        self,
        kernel: Separable,
        in_turn: InTurn,
        b: Tensor,
        out: Tensor,
        feed: Feed | None,
        over: Feed,
        then: Feed | None,
    ) -> None:
        super().__init__(kernel, b, out, feed, over, then)
        self._separable, self._in_turn = kernel, in_turn
        self._parts: tuple[Parts | None, Parts | None, Parts | None] = (None, None, None)
        self._call: fused.Twice | None = None

    def _ready(self) -> fused.Twice | None:
        """The call, as long as the kernel has the blocks it knows; None where feeds are not compiled, or by axes."""
        (feed, over, then), shares = self._feeds, self._in_turn.shares
        if shares is None or not self._in_turn.takes(self._b):
            return None
        first, second = None if feed is None else feed.parts(*shares), over.parts(*shares)
        last = None if then is None else then.parts(1, self._b.numel())
        if second is None or (first is None) != (feed is None):
            return None
        known = self._call if (first, second, last) == self._parts else None
        if known is None or not self._in_turn.knows(known):
            room = self._separable._room(self._out, self._out)
            known = self._in_turn.prepared(self._b, room, self._out, first, second, last)
        self._call, self._parts = known, (first, second, last)
        return self._call

    def __call__(self) -> None:
        """See Twice."""
        kernel, b, out, (_, over, then) = self._separable, self._b, self._out, self._feeds
        with _lock:
            call = self._ready()
            if call is not None:
                applied, left = self._in_turn.twice(call, b, kernel._room(out, out), out)
                if applied < 2:
                    kernel._finished(kernel._source(out, out) if applied else b, out, left)
        if call is None:
            return super().__call__()
        if applied == 0:
            kernel.log_apply(out, out=out, feed=over)
        if then is not None and (applied < 2 or self._parts[2] is None):
            then.whole()
        return None

    def through(self, use: Callable[[Parts, int], Used]) -> Used | None:
        """See Twice."""
        with _lock:
            call = self._ready()
            if call is None or (self._parts[2] is None) != (self._feeds[2] is None):
                return None
            return self._in_turn.through(call, use)


def _chunk(x: Tensor) -> int:
    return _CHUNK if x.device.type == "cpu" else _CHUNK_OFF_CPU


def _fastest(factor: Factor, grid_size: int) -> "type[FusedAxis | TorchAxis | TritonAxis]":
    if FusedAxis.takes(factor, grid_size):
        return FusedAxis
    by_triton = _by_triton(factor.nodes.device)
    return by_triton if by_triton is not None and by_triton.takes(factor, grid_size) else TorchAxis


@functools.cache
def _by_triton(device: torch.device) -> "type[TritonAxis] | None":
    """TritonAxis if it works on a device, which is tried on a small axis; torch for GPUs brings Triton on Linux."""
    if device.type != "cuda":
        return None

    def trial() -> "tuple[type[TritonAxis], float]":
        from .tritons import TritonAxis

        circle, cost = Circle.uniform(40, device=device), SquaredArc()
        b = torch.randn(1, 40, 64, dtype=torch.float64, device=device)
        out = torch.empty_like(b)
        TritonAxis(circle, cost, 0.01, b.numel())(b, out)
        log_k = -cost(circle.nodes[:, None], circle.nodes[None]) / 0.01
        return TritonAxis, float((out - torch.logsumexp(log_k[None, :, :, None] + b[:, None], 2)).abs().max())

    return trusted(trial, device)


class TorchAxis:
    """The kernel along one factor, on values of shape (before, n, after)."""

    def __init__(self, factor: Factor, cost: Cost, epsilon: float, grid_size: int) -> None:
        self.n = factor.size
        self.periodic = isinstance(factor, Circle)
        self.tiles = -(-self.n // _TILE)
        last = torch.full((self.tiles * _TILE - self.n,), self.n - 1, device=factor.nodes.device)
        index = torch.cat([torch.arange(self.n, device=factor.nodes.device), last])
        self.nodes = factor.nodes.double()
        self.padded = self.nodes[index].reshape(self.tiles, _TILE, -1)
        self.cost, self.epsilon = cost, epsilon
        # Filled in place: small results kept among large temporaries cut the heap up, to 8 N^2 bytes of it.
        self.closest = self.padded.new_empty(self.tiles, self.tiles)
        for row, tile in zip(self.closest, self.padded, strict=True):
            row.copy_(self._log_k(tile, self.padded).amax(dim=(0, 2)))
        self.width = min(self.tiles, 3)
        self.widest = min(self.tiles, max(_WIDEST, grid_size // (self.n * _TILE)))
        self._build()

    def _log_k(self, tile: Tensor, others: Tensor) -> Tensor:
        """-c/eps between a tile's nodes (T, k) and some tiles' (J, T, k): shape (T, J, T)."""
        log_k: Tensor = -self.cost(tile[:, None, None], others[None]) / self.epsilon
        return log_k

    def _build(self) -> None:
        """Tables of one window: which tiles, their nearest costs, the shifted kernel, and what stays outside."""
        first = torch.arange(self.tiles, device=self.nodes.device) - self.width // 2
        if not self.periodic:
            first = first.clamp(0, self.tiles - self.width)
        self.window = (first[:, None] + torch.arange(self.width, device=first.device)) % self.tiles
        self.near = self.closest.gather(1, self.window)
        self.kernel = torch.stack(
            [
                (self._log_k(tile, self.padded[w]) - near[None, :, None]).exp().reshape(_TILE, -1)
                for tile, w, near in zip(self.padded, self.window, self.near, strict=True)
            ]
        )
        self.outside = self.closest.scatter(1, self.window, LOG_ZERO)

    def __call__(self, b: Tensor, out: Tensor) -> None:
        """The sums, into another array; in between all is float64."""
        if b.shape[2] == 1:  # the lines are laid side by side, so that every product has long rows
            lines = b[:, :, 0].T.double().contiguous()[None]
            sums = torch.empty_like(lines)
            self._chunks(lines, sums)
            out[:, :, 0].T.copy_(sums[0])
        else:
            self._chunks(b, out)

    def _chunks(self, b: Tensor, out: Tensor) -> None:
        before, _, after = b.shape
        per_line = self.tiles * self.width * _TILE
        if before > 1:
            step = max(1, _chunk(b) // (per_line * after))
            for start in range(0, before, step):
                out[start : start + step] = self._lines(b[start : start + step])
        else:
            step = max(1, _chunk(b) // per_line)
            for start in range(0, after, step):
                out[:, :, start : start + step] = self._lines(b[:, :, start : start + step])

    def _lines(self, b: Tensor) -> Tensor:
        """One chunk of lines, exactly."""
        b = b.double()
        while True:
            out, beyond, torn = self._product(b)
            share = _REPAIRS / self.n
            if self.width >= self.widest or int(beyond.sum()) <= share * beyond.numel():
                break
            self.width = min(self.widest, 2 * self.width - 1)
            self._build()
        wrong = beyond | torn
        if bool(wrong.any()):
            self._repair(out, b, wrong)
        return out

    def _product(self, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        before, n, after = b.shape
        if n < self.tiles * _TILE:
            b = torch.nn.functional.pad(b, (0, 0, 0, self.tiles * _TILE - n), value=LOG_ZERO)
        b = b.reshape(before, self.tiles, _TILE, after)
        top = b.amax(dim=2)  # m_J
        scaled = (b - top.masked_fill(top == LOG_ZERO, 0.0)[:, :, None]).exp()
        reach = top[:, self.window] + self.near[None, :, :, None]  # m_J - c_IJ/eps
        shift = reach.amax(dim=2)  # s_I
        finite = shift.masked_fill(shift == LOG_ZERO, 0.0)
        weights = (reach - finite[:, :, None]).exp()
        terms = scaled[:, self.window].mul_(weights[:, :, :, None])
        sums = self.kernel @ terms.reshape(before, self.tiles, self.width * _TILE, after)
        out = sums.log() + finite[:, :, None]
        torn = (sums < _TINY) & (shift != LOG_ZERO)[:, :, None]
        if self.width < self.tiles:
            far = self._outside(top) + (math.log(n) + _MARGIN)
            beyond = (out < far[:, :, None]) & (far != LOG_ZERO)[:, :, None]
        else:
            beyond = torch.zeros_like(torn)
        cut = (slice(None), slice(0, n))
        whole = (before, self.tiles * _TILE, after)
        return out.reshape(whole)[cut], beyond.reshape(whole)[cut], torn.reshape(whole)[cut]

    def _outside(self, top: Tensor) -> Tensor:
        """max_J (m_J - c_IJ/eps) over the tiles outside I's window: shape (before, tiles, after)."""
        if top.numel() * self.tiles <= _chunk(top):
            return (top[:, None] + self.outside[None, :, :, None]).amax(dim=2)
        return torch.stack([(top + row[None, :, None]).amax(dim=1) for row in self.outside], dim=1)

    def _repair(self, out: Tensor, b: Tensor, wrong: Tensor) -> None:
        """A true log-sum-exp over the whole axis for the outputs that need one."""
        lead, node, trail = wrong.nonzero(as_tuple=True)
        step = max(1, _chunk(b) // self.n)
        for start in range(0, node.numel(), step):
            a, i, c = (index[start : start + step] for index in (lead, node, trail))
            log_k = -self.cost(self.nodes[i][:, None], self.nodes[None]) / self.epsilon
            out[a, i, c] = torch.logsumexp(log_k + b[a, :, c], dim=1)
