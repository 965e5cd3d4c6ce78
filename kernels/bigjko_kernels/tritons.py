"""One axis of the separable kernel on a GPU, by Triton: one kernel for the sums, one for the tiles' largest values.

With J a tile of 16 inputs, I a tile of 32 outputs, m_J the largest b in J and c_IJ the least cost between them,

    out_i = s + log sum_J sum_{k in J} exp(-(c_ik - c_IJ)/eps) exp(b_k - c_IJ/eps - s),   s = max_J (m_J - c_IJ/eps),

the inner sum a product of matrices. Tiles J with m_J - c_IJ/eps < s - cut add n exp(s - cut) at most. Where that is
more than rounding of the smallest output, the cut is moved out to where it is not, and the sum made again; where a sum
underflows, the outputs of I are true log-sum-exps. All within one program, so that the host never waits.

Imported where there is a GPU, or by a test with TRITON_INTERPRET=1: Triton reads that when a kernel is defined.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .costs import Cost
from .factors import Circle, Factor

_TILE = 16  # inputs: what a matrix product on tensor cores takes
_OUTPUTS, _LINES = 32, 64  # of one program
_MARGIN = 40.0  # exp(-40) = 4e-18: what is left out is below half an ulp
_SLACK = tl.constexpr(10.0)  # of the first cut, beyond what tiles tell
_FAR = tl.constexpr(500.0)  # that they are believed
_TINY = tl.constexpr(1e-280)  # a sum below it may have lost terms to underflow
_INF = tl.constexpr(math.inf)


def jit(kernel: Callable[..., Any], **options: Any) -> Any:
    """Of the function as it is written: what checks types at run time may have wrapped it."""
    return triton.jit(inspect.unwrap(kernel), **options)


@jit
def _tops(  # type: ignore[no-untyped-def]
    b, tops, n, tiles, along, across, blocks, lines, T: tl.constexpr, L: tl.constexpr
):  # fmt: skip
    """The largest value of every tile, on L of the lines that follow one another; +inf where there is a NaN.

    Nodes of a line lie `along` apart, lines `across`; in `tops`, where a line has `tiles` values, as the same shape.
    """
    tile = tl.program_id(0) % tiles
    block = tl.program_id(0) // tiles % blocks
    first = (tl.program_id(0) // tiles // blocks).to(tl.int64) * along
    line = block * L + tl.arange(0, L)
    k = tile * T + tl.arange(0, T)
    places = (first * n + line.to(tl.int64) * across)[None, :] + (k.to(tl.int64) * along)[:, None]
    x = tl.load(b + places, mask=(k < n)[:, None] & (line < lines)[None, :], other=-_INF)
    x = tl.where(x == x, x, _INF).to(tl.float64)
    step = tiles if across > 1 else across
    tl.store(tops + (first * tiles + line.to(tl.int64) * step + tile * along), tl.max(x, 0), mask=line < lines)


@jit
def _sums(  # type: ignore[no-untyped-def]
    b, tops, near, log_k, ratio, out, margin, n, tiles, groups, along, across, blocks, lines,
    AROUND: tl.constexpr, T: tl.constexpr, OUT: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """The outputs of one tile on L lines; see _tops for how they lie."""
    group = tl.program_id(0) % groups
    block = tl.program_id(0) // groups % blocks
    first = (tl.program_id(0) // groups // blocks).to(tl.int64) * along
    line = block * L + tl.arange(0, L)
    there = line < lines
    inner = tl.arange(0, T)
    column = first * n + line.to(tl.int64) * across
    step = tiles if across > 1 else across
    high = tops + (first * tiles + line.to(tl.int64) * step)
    previous = near + (group + groups - 1) % groups * tiles if AROUND else near + tl.maximum(group - 1, 0) * tiles
    following = near + (group + 1) % groups * tiles if AROUND else near + tl.minimum(group + 1, groups - 1) * tiles
    near += group * tiles
    # Around a circle tiles are counted from the one opposite.
    start = (group * (OUT // T) + (tiles + 1) // 2) if AROUND else group * 0
    # s, and the same for the outputs before and after these: how far theirs lie apart tells where to cut first.
    s = tl.full((L,), -_INF, tl.float64)
    s_previous = s
    s_following = s
    for o in range(0, tiles, T):
        J = o + inner
        top = tl.load(
            high[None, :] + (J.to(tl.int64) * along)[:, None], mask=(tiles > J)[:, None] & there[None, :], other=-_INF
        )
        s = tl.maximum(s, tl.max(top + tl.load(near + J, mask=tiles > J, other=-_INF)[:, None], 0))
        s_previous = tl.maximum(
            s_previous, tl.max(top + tl.load(previous + J, mask=tiles > J, other=-_INF)[:, None], 0)
        )
        s_following = tl.maximum(
            s_following, tl.max(top + tl.load(following + J, mask=tiles > J, other=-_INF)[:, None], 0)
        )
    live = there & (s > -_INF) & (s < _INF)
    shift = tl.where(live, s, 0.0)
    i = group * OUT + tl.arange(0, OUT).to(tl.int64)
    rows = log_k + i * (tiles * T)
    acc = tl.zeros((OUT, L), tl.float64)
    torn = tl.max(live.to(tl.int32), 0) > 0
    fall = tl.maximum(s - s_previous, s - s_following)
    cut = margin + _SLACK + tl.minimum(tl.maximum(tl.max(tl.where(live, fall, 0.0), 0), 0.0), _FAR)
    again = torn
    while again:
        from_ = tiles
        to = tiles * 0
        for o in range(0, tiles, T):
            turn = o + inner
            J = (start + turn) % tiles
            ok = (turn < tiles)[:, None] & live[None, :]
            top = tl.load(high[None, :] + (J.to(tl.int64) * along)[:, None], mask=ok, other=-_INF)
            reach = top + tl.load(near + J)[:, None] - shift[None, :]
            enters = tl.max((reach >= -cut).to(tl.int32), 1) > 0
            from_ = tl.minimum(from_, tl.min(tl.where(enters, turn, tiles), 0))
            to = tl.maximum(to, tl.max(tl.where(enters, turn + 1, 0), 0))
        acc = tl.zeros((OUT, L), tl.float64)
        for turn in range(from_, to):
            J = (start + turn) % tiles
            k = J * T + inner
            x = tl.load(
                b + (column[None, :] + (k.to(tl.int64) * along)[:, None]),
                mask=(k < n)[:, None] & live[None, :],
                other=-_INF,
            ).to(tl.float64)
            c = tl.load(near + J)
            r = tl.load(ratio + (i[:, None] * (tiles * T) + k[None, :]))
            acc = tl.dot(r, tl.exp(x + c - shift[None, :]), acc, out_dtype=tl.float64)
        counts = (i < n)[:, None] & live[None, :]
        least = tl.min(tl.min(tl.where(counts, acc, 1.0), 0), 0)
        torn = least < _TINY
        wider = margin - tl.log(tl.maximum(least, _TINY))
        again = (wider > cut) & (to - from_ < tiles)
        cut = wider
    total = acc
    base = shift[None, :] + tl.zeros((OUT, L), tl.float64)
    if torn:
        peak = tl.full((OUT, L), -_INF, tl.float64)
        origin = tl.zeros((), tl.int64)
        for k in range(n):
            x = tl.load(b + column + (origin + k) * along, mask=live, other=-_INF).to(tl.float64)
            peak = tl.maximum(peak, tl.load(rows + k)[:, None] + x[None, :])
        base = tl.where(peak > -_INF, peak, 0.0)
        total = tl.zeros((OUT, L), tl.float64)
        for k in range(n):
            x = tl.load(b + column + (origin + k) * along, mask=live, other=-_INF).to(tl.float64)
            total += tl.exp(tl.load(rows + k)[:, None] + x[None, :] - base)
    result = base + tl.log(total)
    result = tl.where((s < _INF)[None, :], result, _INF)
    result = tl.where((s > -_INF)[None, :], result, -_INF)
    tl.store(out + (column[None, :] + (i * along)[:, None]), result, mask=(i < n)[:, None] & there[None, :])


class TritonAxis:
    """The kernel along one factor, on values of shape (before, n, after) on a GPU, in float64 whatever their dtype.

    Keeps 2 n^2 numbers; the tiles' largest values are N/16 more while it works.
    """

    @staticmethod
    def takes(factor: Factor, grid_size: int) -> bool:
        """Whether n^2 is no more than max(512 n, N)."""
        return factor.nodes.device.type == "cuda" and factor.size**2 <= max(512 * factor.size, grid_size)

    def __init__(self, factor: Factor, cost: Cost, epsilon: float, grid_size: int) -> None:
        self.n = factor.size
        self.tiles, self.groups = -(-self.n // _TILE), -(-self.n // _OUTPUTS)
        self.around = isinstance(factor, Circle)
        nodes = factor.nodes.double()
        index = torch.arange(self.groups * _OUTPUTS, device=nodes.device).clamp(max=self.n - 1)
        outputs, inputs = nodes[index], nodes[index[: self.tiles * _TILE]]
        self.log_k: Tensor = torch.stack([-cost(x, inputs) / epsilon for x in outputs[:, None]])
        blocks = self.log_k.view(self.groups, _OUTPUTS, self.tiles, _TILE)
        self.near = blocks.amax(dim=(1, 3))
        self.ratio = (blocks - self.near[:, None, :, None]).exp_().view_as(self.log_k)

    def __call__(self, b: Tensor, out: Tensor) -> None:
        """The sums, into another contiguous array."""
        b = b.contiguous()
        before, n, after = b.shape
        tops = torch.empty(before, self.tiles, after, dtype=torch.float64, device=b.device)
        # Lines that follow one another, and how often such a run comes.
        runs, lines, across = (1, before, n) if after == 1 else (before, after, 1)
        L = min(_LINES, max(16, triton.next_power_of_2(lines)))
        blocks = -(-lines // L)
        margin = _MARGIN + math.log(n)
        how = (after, across, blocks, lines)
        tables, sizes = (self.near, self.log_k, self.ratio), (n, self.tiles, self.groups, *how)
        with torch.cuda.device_of(b):
            _tops[self.tiles * blocks * runs,](b, tops, n, self.tiles, *how, T=_TILE, L=L)
            _sums[self.groups * blocks * runs,](
                b, tops, *tables, out, margin, *sizes, AROUND=self.around, T=_TILE, OUT=_OUTPUTS, L=L
            )
