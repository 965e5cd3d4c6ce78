"""The compiled version of Separable: shapes of lines, the path that it took, and how it is built.

That it agrees with the oracle on every grid, cost and input is test_kernels.py's matrix.
"""

import copy
import ctypes
import math
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bigjko_kernels import (
    LOG_ZERO,
    Circle,
    Compiled,
    Factor,
    Grid,
    GridError,
    KernelError,
    Line,
    Ridge,
    Separable,
    Sheets,
    SquaredArc,
    SquaredEuclidean,
    fused,
    passes,
)
from bigjko_kernels.fused import FusedAxis, InTurn
from bigjko_kernels.separable import TorchAxis
from bigjko_kernels.streams import Tiled

from .registry import GRIDS, INPUTS, log_tolerance
from .test_kernels import Largest, assert_close, epsilon_of, exact, hard, oracle


def on_axis(factor: Factor) -> FusedAxis:
    cost = SquaredArc() if isinstance(factor, Circle) else SquaredEuclidean()
    return FusedAxis(factor, cost, 0.75 * factor.spacing**2, factor.size)


def applied(axis: FusedAxis, b: Tensor) -> Tensor:
    out = torch.empty(b.shape, dtype=torch.float64)
    axis(b, out)
    return out


def expected_of(axis: FusedAxis, b: Tensor) -> Tensor:
    log_k: Tensor = -axis.cost(axis.nodes[:, None], axis.nodes) / axis.epsilon
    return (log_k[:, :, None] + b[:, None]).logsumexp(2)


@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 20), st.integers(2, 50), st.integers(1, 70)),
    periodic=st.booleans(),
    drift=st.sampled_from([0.0, 5.0, 100.0]),
)
def test_lines_may_lie_in_memory_in_any_way(
    seed: int, shape: tuple[int, int, int], periodic: bool, drift: float
) -> None:
    # 16 lines at a time: fewer than that, more, side by side in memory, one node after the other, or across a gap.
    generator = torch.Generator().manual_seed(seed)
    before, n, after = shape
    factor = Circle.uniform(n) if periodic and n > 2 else Line.uniform(0.0, 1.0, n)
    axis = on_axis(factor)
    b = drift * torch.linspace(0.0, n / 0.75, n)[:, None].double() + torch.randn(shape, generator=generator).double()
    b = b.masked_fill(torch.rand(shape, generator=generator) < 0.05, LOG_ZERO)
    expected = expected_of(axis, b)
    assert_close(applied(axis, b), expected, log_tolerance(expected, torch.float64))


def test_threads_and_history_do_not_change_a_bit() -> None:
    """A step is pure: the same values give the same bits, on one thread or two, on a new axis or a used one."""
    grid = Grid.uniform([-3.0] * 3, [3.0] * 3, [64] * 3)
    x = grid.points().reshape(*grid.shape, 3)
    b = -((x**2).sum(-1) / 2 + 0.75 * x[..., 0].relu() * x[..., 1]) / (0.75 * grid.spacing)  # 9 nodes of drift
    axis = on_axis(grid.factors[0])
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 2, 2, 1):
            torch.set_num_threads(count)
            for before in (1, 64 * 64):  # lines side by side, and one by one
                found.append(applied(axis, b.reshape(before, 64, -1)))
        fresh = [applied(on_axis(grid.factors[0]), b.reshape(before, 64, -1)) for before in (1, 64 * 64)]
    finally:
        torch.set_num_threads(threads)
    assert b.numel() >= fused._ALONE
    assert all(torch.equal(out, fresh[k % 2]) for k, out in enumerate(found))


# ----------------------------------------------------------------------------------------------------- the path taken


@dataclass
class Taken:
    """Outputs that a true log-sum-exp had to mend, and how often the kept blocks were thrown away."""

    mended: int = 0
    restarts: int = 0


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Taken:
    seen, repair, restart = Taken(), FusedAxis._repair, FusedAxis._restart

    def watched_repair(self: FusedAxis, out: Tensor, b: Tensor) -> None:
        seen.mended += int((out == math.inf).sum())
        repair(self, out, b)

    def watched_restart(self: FusedAxis) -> None:
        seen.restarts += hasattr(self, "blocks")
        restart(self)

    monkeypatch.setattr(FusedAxis, "_repair", watched_repair)
    monkeypatch.setattr(FusedAxis, "_restart", watched_restart)
    return seen


def blocks(K: Separable) -> list[int]:
    return [axis.blocks.shape[0] for _, axis in K._axes if isinstance(axis, FusedAxis)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_cpu_takes_the_fused_version(dtype: torch.dtype) -> None:
    grid = GRIDS["box"]().to(dtype=dtype)
    assert all(isinstance(axis, FusedAxis) for _, axis in Separable(grid, 0.1)._axes)


def test_smooth_input_needs_no_other_blocks_and_no_repair(path: Taken) -> None:
    for grid in (GRIDS["line"](), GRIDS["plane"](), GRIDS["circle"]()):
        K = Separable(grid, epsilon_of(grid))
        fresh = blocks(K)
        K.log_apply(INPUTS["smooth"](grid))
        assert blocks(K) == fresh
    assert path.mended == 0


def test_a_drift_of_20_nodes_needs_a_few_more_blocks_and_no_repair(path: Taken) -> None:
    grid = Grid.uniform([-3.0], [3.0], [700])
    K = Separable(grid, epsilon_of(grid))
    b = INPUTS["moves 20 nodes"](grid)
    expected = exact("line", "euclidean", 0.75, "moves 20 nodes", torch.float64)
    assert_close(K.log_apply(b), expected, log_tolerance(expected, torch.float64))
    # 88 tiles. Bounds see mass from where it is to twice where it goes: 40 nodes, 5 tiles, and 3 on each side.
    (known,) = blocks(K)
    assert known <= 88 * (2 * 2 + 1 + 5 + 6)
    K.log_apply(b)
    assert blocks(K) == [known]
    assert path.mended == 0


def test_slopes_that_tear_a_tile_need_no_repair(path: Taken) -> None:
    # 100 nodes a step, towards the middle: 133 a node, 1067 a tile, more than the range of a double.
    grid = Grid.uniform([0.0, 0.0], [399.0, 29.0], [400, 30])
    x = grid.points()[:, 0].reshape(grid.shape)
    b = torch.minimum(x, 399 - x) * (100 / 0.75)
    K = Separable(grid, epsilon_of(grid))
    expected = Separable(grid, K.epsilon, axis=TorchAxis).log_apply(b)
    assert_close(K.log_apply(b), expected, log_tolerance(expected, torch.float64))
    assert path.mended == 0


def test_sums_that_underflow_are_mended(path: Taken) -> None:
    # The cost of the cone rises to 36.8 within a few nodes, and stays there: exp(-(c_ik - c_rk)/eps) spans it all.
    grid = GRIDS["circle"]()
    cost = "cone of any start"
    K = Separable(grid, epsilon_of(grid), oracle("circle", cost, 0.75, torch.float64).cost)
    out = K.log_apply(INPUTS["one spike"](grid))
    expected = exact("circle", cost, 0.75, "one spike", torch.float64)
    assert_close(out, expected, log_tolerance(expected, torch.float64))
    assert 0 < path.mended <= grid.size / 10


def test_blocks_that_find_no_room_cost_time_and_no_digit(path: Taken) -> None:
    grid = Grid.uniform([-3.0], [3.0], [700])
    K = Separable(grid, epsilon_of(grid))
    ((_, axis),) = K._axes
    assert isinstance(axis, FusedAxis)
    axis.room = axis.blocks.shape[0] + 100
    for values in ("moves 20 nodes", "spans 1e4"):
        expected = exact("line", "euclidean", 0.75, values, torch.float64)
        assert_close(K.log_apply(INPUTS[values](grid)), expected, log_tolerance(expected, torch.float64))
        assert axis.blocks.shape[0] <= axis.room
    assert path.restarts == 2
    assert path.mended > 0


def test_a_kernel_gives_the_same_answer_whatever_it_was_given_before() -> None:
    grid = GRIDS["line"]()
    used, fresh = Separable(grid, epsilon_of(grid)), Separable(grid, epsilon_of(grid))
    for values in ("moves 20 nodes", "one spike"):
        used.log_apply(INPUTS[values](grid))
    b = INPUTS["smooth"](grid)
    assert torch.equal(used.log_apply(b), fresh.log_apply(b))


def test_a_long_axis_allocates_no_square(path: Taken) -> None:
    grid = Grid.uniform([-3.0], [3.0], [16_000])
    with Largest() as largest:
        K = Separable(grid, epsilon_of(grid))
        for b in hard(grid):
            K.log_apply(b)
    assert isinstance(K._axes[0][1], FusedAxis)
    # Blocks and bounds hold 256 entries a node at most; N^2 would be 16,000 N.
    assert largest.entries <= 256 * grid.size
    assert path.mended == 0


def test_an_axis_whose_bounds_would_take_too_much_memory_is_left_to_torch() -> None:
    assert not FusedAxis.takes(Line.uniform(0.0, 1.0, 17_000), 17_000)
    assert FusedAxis.takes(Line.uniform(0.0, 1.0, 17_000), 17_000 * 300)


@pytest.mark.parametrize("nodes", range(20, 45))
def test_drifts_around_the_one_at_which_one_exponential_a_node_ends(nodes: int, path: Taken) -> None:
    # The costs of two tiles of 8 differ by up to 149 a tile between them: 5 tiles apart it is too much.
    axis = on_axis(Line.uniform(0.0, 1.0, 300))
    x = torch.arange(300, dtype=torch.float64)
    steep = torch.minimum(x, 299 - x) * (nodes / 0.75)
    b = steep[:, None] + torch.rand(300, 20, generator=torch.Generator().manual_seed(nodes), dtype=torch.float64)
    expected = expected_of(axis, b[None])
    assert_close(applied(axis, b[None]), expected, log_tolerance(expected, torch.float64))
    assert path.mended == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "shape", [(9, 90), (12, 1), (9, 21, 21), (12, 10, 40), (8, 9, 10, 11), (30, 1, 20, 17)], ids=str
)
def test_axes_done_in_turn_are_those_done_one_by_one(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Smooth slabs, empty ones, and some with spikes, which lack blocks or have marks; also those of no memory."""
    grid = Grid.uniform([0.0] * len(shape), [1.0] * len(shape), shape, dtype=dtype)
    generator = torch.Generator().manual_seed(sum(shape))
    b = torch.randn(shape, dtype=torch.float64, generator=generator)
    b[0], b[3] = LOG_ZERO, 1e5 * b[3]
    b[5:7].masked_fill_(torch.rand(b[5:7].shape, generator=generator) < 0.9, LOG_ZERO)
    b = b.to(dtype)
    kernel, tried, plain = Separable(grid, 0.75 * grid.spacing**2), list[slice | None](), InTurn.__call__

    def counted(self: InTurn, *arguments: Any) -> tuple[bool, slice | None]:
        through, left = plain(self, *arguments)
        tried.append(left)
        return through, left

    monkeypatch.setattr(InTurn, "__call__", counted)
    one_by_one = Separable(grid, kernel.epsilon)
    one_by_one._in_turn = None
    for values in (b, b.new_zeros(1).expand(shape), b):
        expected = one_by_one.log_apply(values)
        assert_close(kernel.log_apply(values), expected, log_tolerance(expected.double(), dtype))
        again = values.clone(memory_format=torch.contiguous_format)
        assert_close(kernel.log_apply(again, out=again), expected, log_tolerance(expected.double(), dtype))
    assert len(tried) == 5
    if len(shape) > 2 and max(shape[1:]) == 40:  # there are tiles whose blocks are not there from the start
        assert tried[0] is not None
        assert 0 < len(range(shape[0])[tried[0]]) < shape[0]


class Asked(passes.Multiple):
    """That remembers what it was asked for."""

    def __init__(self, x: Tensor, by: float, out: Tensor) -> None:
        super().__init__(x, by, out)
        self.shares = list[tuple[int, int]]()

    def parts(self, shares: int, nodes: int) -> passes.Parts | None:
        self.shares.append((shares, nodes))
        return super().parts(shares, nodes)


FED = {
    "line": (Line.uniform(0.0, 1.0, 40),),
    "sheets and a line": (Sheets.of([-1.0, 1.0, 2.0]), Line.uniform(0.0, 1.0, 40)),
    "a line and sheets": (Line.uniform(0.0, 1.0, 70), Sheets.of([-1.0, 1.0])),
    "wide": (Line.uniform(0.0, 1.0, 9), Line.uniform(0.0, 1.0, 300)),
    "plane": (Line.uniform(0.0, 1.0, 70), Line.uniform(0.0, 1.0, 21)),
    "sheets between": (Line.uniform(0.0, 1.0, 40), Sheets.of([-1.0, 0.5, 1.0]), Line.uniform(0.0, 1.0, 20)),
    "sheets last": (Line.uniform(0.0, 1.0, 30), Line.uniform(0.0, 1.0, 20), Sheets.of([-1.0, 1.0])),
    "sheets first": (Sheets.of([-1.0, 1.0]), Line.uniform(0.0, 1.0, 30), Line.uniform(0.0, 1.0, 20)),
    "one node first": (Line.uniform(0.0, 1.0, 1), *(Line.uniform(0.0, 1.0, n) for n in (12, 9, 10))),
    "space": (Line.uniform(0.0, 1.0, 9), Line.uniform(0.0, 1.0, 21), Line.uniform(0.0, 1.0, 21)),
    "four axes": tuple(Line.uniform(0.0, 1.0, n) for n in (8, 9, 10, 11)),
}


@pytest.mark.parametrize("spikes", [False, True], ids=["smooth", "spikes"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", FED)
def test_an_input_made_part_by_part_is_the_one_made_at_once(name: str, dtype: torch.dtype, spikes: bool) -> None:
    """In place and not, where all axes are done in turn and where some are done again."""
    grid = Grid(FED[name]).to(dtype=dtype)
    kernel, generator = Separable(grid, 0.01), torch.Generator().manual_seed(grid.size)
    x, log_q = (torch.randn(grid.shape, dtype=torch.float64, generator=generator) for _ in range(2))
    if spikes:
        x[..., ::3] *= 1e4
    x, log_q = x.to(dtype), log_q.to(dtype)
    made, b = 0.3 * x, torch.full_like(x, math.nan)
    feed = Asked(x, 0.3, b)
    found = kernel.log_apply(b, feed=feed)
    assert torch.equal(found, kernel.log_apply(b))
    torch.testing.assert_close(b, made, atol=0.0, rtol=torch.finfo(dtype).eps)
    assert len(feed.shares) == (name not in ("sheets last", "a line and sheets"))
    assert all((shares - 1) * nodes < grid.size <= shares * nodes for shares, nodes in feed.shares)

    quotient, at_once = made.clone(), passes.Division(log_q.exp(), log_q, made)
    at_once.whole()
    by_parts, expected = passes.Division(log_q.exp(), log_q, quotient), kernel.log_apply(made)
    assert kernel.log_apply(quotient, out=quotient, feed=by_parts) is quotient
    assert torch.equal(quotient, expected)
    size = float((log_q.exp() * (log_q - made)).abs().double().sum())
    assert float(by_parts.total) == pytest.approx(float(at_once.total), abs=1e-14 * size)


@pytest.mark.parametrize("spiky", ["neither", "first", "second"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", FED)
def test_two_applications_at_once_are_one_after_the_other(name: str, dtype: torch.dtype, spiky: str) -> None:
    """Where both go through at once, and where the first or the second is done again axis by axis."""
    grid = Grid(FED[name]).to(dtype=dtype)
    generator = torch.Generator().manual_seed(grid.size)
    x, log_q = (torch.randn(grid.shape, dtype=torch.float64, generator=generator) for _ in range(2))
    (x if spiky == "first" else log_q)[..., ::3] *= 1 if spiky == "neither" else 1e4
    x, log_q = x.to(dtype), log_q.to(dtype)
    q = log_q.clamp(max=5.0).exp()

    one_by_one, kernel = Separable(grid, 0.01), Separable(grid, 0.01)
    for _ in range(2):  # the second time the blocks are there
        b, expected = torch.empty_like(x), torch.empty_like(x)
        one_by_one.log_apply(b, out=expected, feed=passes.Multiple(x, 0.3, b))
        division = passes.Division(q, log_q, expected)
        one_by_one.log_apply(expected, out=expected, feed=division)

        fed, out, seen = torch.full_like(x, math.nan), torch.full_like(x, math.nan), list[Tensor]()
        over = passes.Division(q, log_q, out)

        def keep(out: Tensor = out, seen: list[Tensor] = seen) -> None:
            seen.append(out.clone())

        kernel.twice(fed, out, passes.Multiple(x, 0.3, fed), over, passes.Feed(keep))()
        assert torch.equal(out, expected)
        assert torch.equal(fed, b)
        assert len(seen) == 1
        assert torch.equal(seen[0], expected)
        size = float((q * expected.nan_to_num(0.0, 0.0, 0.0)).abs().double().sum()) + abs(float(over.total))
        assert float(over.total) == pytest.approx(float(division.total), abs=1e-14 * size)


@pytest.mark.parametrize("epsilon", [0.01, 2e-5])
@pytest.mark.parametrize("name", FED)
def test_two_applications_can_be_had_as_often_as_their_arrays_change(name: str, epsilon: float) -> None:
    """By one object: as itself, as compiled code, and after what could not be done at once."""
    grid = Grid(FED[name])
    generator = torch.Generator().manual_seed(grid.size)
    x, log_q, q, b, out = (torch.zeros(grid.shape, dtype=torch.float64) for _ in range(5))
    kernel, sums = Separable(grid, epsilon), list[Tensor]()
    over = passes.Division(q, log_q, out)
    twice = kernel.twice(b, out, passes.Multiple(x, 0.3, b), over, passes.Feed(lambda: sums.append(out.clone())))
    alone = kernel.twice(b, out, passes.Multiple(x, 0.3, b), over)

    def call(make: passes.Parts, applied: int) -> int:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p, *3 * [ctypes.c_long])(make.make)(make.what, 0, 0, 0)
        return ctypes.c_long.from_address(applied).value

    went, turns = list[int | None](), (False, False, True, False, True, True, False, False)
    for turn, spiky in enumerate(turns):
        for values in (x, log_q):
            values.zero_()
            for k, size in enumerate(grid.shape):
                phase = torch.rand((), dtype=torch.float64, generator=generator)
                values += grid.along(k, torch.cos(torch.linspace(0.0, 1.0, size, dtype=torch.float64) + phase))
        if spiky:
            (x if turn % 2 else log_q)[..., ::3] -= 1e4
        q.copy_(log_q.clamp(max=5.0).exp())
        expected, plain = torch.empty_like(x), Separable(grid, epsilon)
        plain.log_apply(0.3 * x, out=expected)
        value = float((q * expected).sum())
        plain.log_apply(log_q - expected, out=expected)
        scale = float((q * expected.nan_to_num(0.0, 0.0, 0.0)).abs().sum()) + abs(value)
        twice()
        torch.testing.assert_close(out, expected, rtol=1e-14, atol=1e-14)
        assert len(sums) == turn + 1
        assert torch.equal(sums[-1], out)
        assert float(over.total) == pytest.approx(value, abs=1e-14 * scale)
        assert twice.through(call) is None  # what follows is no compiled code
        out.fill_(math.nan)
        went.append(alone.through(call))
        if went[-1] == 2:
            torch.testing.assert_close(out, expected, rtol=1e-14, atol=1e-14)
            assert float(over.total) == pytest.approx(value, abs=1e-14 * scale)
    # These lack a way, or room for blocks.
    if name in ("sheets last", "a line and sheets") or (name == "wide" and epsilon > 1e-3):
        assert went == [None] * 8
    elif epsilon < 1e-3 and name != "wide":
        assert [done == 2 for done in went] == [not spiky for spiky in turns]
    else:
        assert went[1:] == [2] * 7  # the first time blocks may be missing


def test_what_follows_two_applications_is_weighed_in_the_same_call() -> None:
    grid, generator = Grid(FED["space"]), torch.Generator().manual_seed(4)
    (shape, kernel), count = (grid.shape, Separable(grid, 0.01)), math.prod(grid.shape[:2])
    W, X = (torch.randn(n, 2, dtype=torch.float64, generator=generator) for n in (count, 5))
    a = torch.randn(shape[2], dtype=torch.float64, generator=generator)
    ridge = Ridge(Compiled(W, X), shape, (0, 1), a, a, a)
    x, log_q = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))
    b, out = torch.empty_like(x), torch.empty_like(x)
    kernel.twice(b, out, passes.Multiple(x, 0.3, b), passes.Division(log_q.exp(), log_q, out))()
    expected, log_p = ridge.outputs((out + b).exp()), out + b
    sums = ridge.weighing(out, b)
    assert sums.parts(1, grid.size) is not None
    kernel.twice(b, out, passes.Multiple(x, 0.3, b), passes.Division(log_q.exp(), log_q, out), sums)()
    torch.testing.assert_close(sums.outputs, expected, rtol=1e-12, atol=1e-12 * float(log_p.exp().sum()))
    torch.testing.assert_close(out, log_p, rtol=1e-14, atol=1e-13)


FITTED = FED | {"steep": (Line.uniform(-1.0, 1.0, 40), Line.uniform(-1.0, 1.0, 24))}


@pytest.mark.parametrize("spiky", ["not", "along the first axis", "along the last axis"])
@pytest.mark.parametrize("epsilon", [0.01, 2e-5])
@pytest.mark.parametrize("name", FITTED)
def test_a_potential_is_fitted_in_the_call_that_blurs_it(name: str, epsilon: float, spiky: str) -> None:
    """Also where axes are done again, the last of them alone or all, and where what follows is no compiled code."""
    grid, rule = Grid(FITTED[name]), passes.Rule(1.0, 0.5)
    generator = torch.Generator().manual_seed(grid.size)
    d, log_p = (torch.randn(grid.shape, dtype=torch.float64, generator=generator) for _ in range(2))
    if spiky == "along the first axis":
        d = -1000 * d[tuple(slice(0, 1 if k else None) for k in range(d.ndim))].abs().expand(d.shape).contiguous()
    elif spiky == "along the last axis":
        d[..., ::3] -= 1e4 * d[..., ::3].abs()
    one_by_one, kernel = Separable(grid, epsilon), Separable(grid, epsilon)
    for _ in range(2):  # the second time the blocks are there
        p, expected = torch.empty_like(d), torch.empty_like(d)
        one_by_one.log_apply(p, out=p, feed=passes.Multiple(d, 1.0, p))
        blurred = p.clone()
        apart = passes.Fitting(log_p, p, d, rule, expected)
        apart.whole()
        work, out = torch.full_like(d, math.nan), torch.full_like(d, math.nan)
        fitting = passes.Fitting(log_p, work, d, rule, out)
        kernel.log_apply(work, out=work, feed=passes.Multiple(d, 1.0, work), then=fitting)
        assert fitting.found == apart.found
        assert torch.equal(work, p)
        assert torch.equal(out, expected)
        kernel.log_apply(work, out=work, feed=passes.Multiple(d, 1.0, work), then=passes.Feed(work.neg_))
        assert torch.equal(work, -blurred)


def test_what_follows_needs_a_feed() -> None:
    grid = Grid(FED["space"])
    with pytest.raises(KernelError, match="a then without a feed"):
        Separable(grid, 0.01).log_apply(torch.zeros(grid.shape, dtype=torch.float64), then=passes.Feed(lambda: None))


def test_two_applications_look_at_what_they_write_into() -> None:
    grid = Grid(FED["space"])
    kernel, b = Separable(grid, 0.01), torch.zeros(grid.shape, dtype=torch.float64)
    for out, why in (
        (torch.empty_like(b, dtype=torch.float32), "received out"),
        (torch.empty(grid.shape[::-1], dtype=torch.float64).permute(2, 1, 0), "not contiguous"),
    ):
        with pytest.raises((GridError, KernelError), match=why):
            kernel.twice(b, out, passes.Multiple(b, 0.3, b), passes.Division(b, b, out))


def test_sums_are_asked_for_once_they_are_made() -> None:
    W, X = torch.randn(12, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    one, p = torch.ones(1, dtype=torch.float64), torch.zeros(12, dtype=torch.float64)
    for ridge in (Ridge(Compiled(W, X), (12,), (0,), one, one, one), Ridge(Tiled(W, X), (12,), (0,), one, one, one)):
        sums = ridge.weighing(p.clone(), p.clone())
        with pytest.raises(KernelError, match="received nothing to weigh yet"):
            _ = sums.outputs
        sums.whole()
        torch.testing.assert_close(sums.outputs, (W @ X.T).relu().sum(0))


def test_a_kernel_with_two_applications_at_once_can_be_copied() -> None:
    grid = Grid(FED["space"])
    kernel, x = Separable(grid, 0.01), torch.zeros(grid.shape, dtype=torch.float64)
    kernel.log_apply(x)
    for copied in (copy.deepcopy(kernel), pickle.loads(pickle.dumps(kernel))):
        assert torch.equal(copied.log_apply(x), kernel.log_apply(x))


@pytest.mark.parametrize(
    ("name", "axes", "together"),
    [("space", (0, 1), True), ("plane", (0,), True), ("sheets between", (0,), False), ("one node first", (0,), False)],
)
def test_a_network_is_tilted_part_by_part(name: str, axes: tuple[int, ...], together: bool) -> None:
    """Where parts are whole directions; else at once."""
    grid, generator = Grid(FED[name]), torch.Generator().manual_seed(4)
    shape = grid.shape
    count, rest = math.prod(shape[k] for k in axes), [1 if k in axes else n for k, n in enumerate(shape)]
    W, X, z = (torch.randn(n, dtype=torch.float64, generator=generator) for n in ((count, 2), (5, 2), (5,)))
    amplitude = torch.randn(rest, dtype=torch.float64, generator=generator)
    base, V = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))
    ridge, kernel = Ridge(Compiled(W, X), shape, axes, amplitude, amplitude, amplitude), Separable(grid, 0.01)
    assert kernel._in_turn is not None
    assert kernel._in_turn.shares is not None
    for potential in (None, V):
        b = torch.full(shape, math.nan, dtype=torch.float64)
        made = torch.empty_like(base)
        ridge.feed(base, 0.5, potential, -3.0, z, made).whole()
        feed = ridge.feed(base, 0.5, potential, -3.0, z, b)
        assert (feed.parts(*kernel._in_turn.shares) is not None) == together
        found = kernel.log_apply(b, feed=feed)
        torch.testing.assert_close(b, made, atol=1e-14, rtol=1e-14)
        assert torch.equal(found, kernel.log_apply(b))


def test_a_feed_may_use_kernels() -> None:
    grid = Grid.uniform([0.0], [1.0], [20])
    kernel, b = Separable(grid, 0.1), torch.empty(20, dtype=torch.float64)
    zero = torch.zeros_like(b)
    found = kernel.log_apply(b, feed=passes.Feed(lambda: kernel.log_apply(zero, out=b)))
    assert torch.equal(found, kernel.log_apply(kernel.log_apply(zero)))


def test_a_feed_and_a_gradient_exclude_each_other() -> None:
    grid = Grid.uniform([0.0], [1.0], [20])
    b = torch.zeros(20, dtype=torch.float64, requires_grad=True)
    with pytest.raises(KernelError, match="feed for a b that requires gradients"):
        Separable(grid, 0.1).log_apply(b, feed=passes.Feed(lambda: None))


AXES = {
    "line": Line.uniform(0.0, 1.0, 130),
    "uneven line": Line.at(torch.rand(130, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).cumsum(0)),
    "circle": Circle.uniform(128),
    "circle of no whole tiles": Circle.uniform(131),
    "circle of few tiles": Circle.uniform(32),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("slope", [0.3, 1.0, 1.3, 1.4, 3.0, 3.5, 5.0, 8.0, 9.0, 10.0, 13.0, 18.0, 25.0])
@pytest.mark.parametrize("name", AXES)
def test_slopes_tell_which_tiles_matter(name: str, slope: float, dtype: torch.dtype) -> None:
    """Up, down, both in turn, and a ramp that falls off at once, on lines of their own and side by side."""
    axis = on_axis(AXES[name].to(dtype=dtype))
    x = torch.arange(axis.n, dtype=torch.float64)
    waves = [(x % 50 - 25).abs(), x.minimum(axis.n - x), x, -x, torch.zeros_like(x), x % 40, -(x % 40)]
    noise = 0.1 * torch.rand(2, axis.n, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    mixed = slope * torch.stack([waves[k % 7] for k in range(16)], dim=1)
    for wave in (mixed, *(slope * wave[:, None] for wave in waves)):
        b = (wave + noise).to(dtype)
        expected = expected_of(axis, b.double())
        assert_close(applied(axis, b), expected, log_tolerance(expected, dtype))


@given(seed=st.integers(0, 10**6), n=st.integers(60, 200))
def test_calm_and_steep_lines_may_meet_in_one_array(seed: int, n: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.arange(n, dtype=torch.float64)
    noise = torch.rand(n, generator=generator, dtype=torch.float64)
    empty = torch.full((n,), LOG_ZERO, dtype=torch.float64)
    halves = torch.where(x < n / 2, 100 / 0.75 * x, noise)
    spike = empty.clone()
    spike[int(noise[0] * n)] = 0.7
    cut = noise.masked_fill(x > n / 3, LOG_ZERO)
    lines = [noise, halves, -133.0 * x, 1e4 * noise, 500 * (x % 2), cut, spike, empty]
    calm = torch.rand(2, 16, generator=generator) < 0.6
    kinds = torch.randint(len(lines), (2, 16), generator=generator).masked_fill(calm, 0)
    b = torch.stack(lines)[kinds].transpose(1, 2).contiguous()
    axis = on_axis(Line.uniform(0.0, 1.0, n))
    expected = expected_of(axis, b)
    assert_close(applied(axis, b), expected, log_tolerance(expected, torch.float64))


# ------------------------------------------------------------------------------------------------------------ building

USE = """
import torch
from bigjko_kernels import Grid, Separable
grid = Grid.uniform([0.0], [1.0], [50])
K = Separable(grid, 0.1)
print(type(K._axes[0][1]).__name__, float(K.log_apply(torch.zeros(50, dtype=torch.float64))[0]))
"""


def told(process: subprocess.Popen[str]) -> tuple[str, str]:
    """The last line, after what KeOps has to say, and the warnings."""
    out, errors = process.communicate()
    return out.splitlines()[-1] if out else "", errors


def use(folder: Path, **environment: str) -> subprocess.Popen[str]:
    env = {**os.environ, "BIGJKO_CACHE_FOLDER": str(folder), **environment}
    command = [sys.executable, "-c", USE]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_without_a_compiler_the_torch_version_runs_and_says_so(tmp_path: Path) -> None:
    out, errors = told(use(tmp_path, CXX="no-such-compiler"))
    assert out.startswith("TorchAxis")
    assert errors.count("RuntimeWarning: fused.cpp could not be compiled") == 1
    assert "there is no compiler no-such-compiler. Install g++" in errors


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho what went wrong >&2\nexit 1\n")
    broken.chmod(0o755)
    out, errors = told(use(tmp_path / "cache", CXX=str(broken)))
    assert out.startswith("TorchAxis")
    assert "failed: what went wrong" in errors
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.slow
def test_two_processes_build_at_once_and_a_third_builds_nothing(tmp_path: Path) -> None:
    pair = [use(tmp_path), use(tmp_path)]
    first, second = (told(process)[0] for process in pair)
    assert first == second
    assert first.startswith("FusedAxis")
    (library,) = tmp_path.iterdir()
    made = library.stat().st_mtime_ns
    assert told(use(tmp_path))[0] == first
    assert library.stat().st_mtime_ns == made


@pytest.mark.parametrize("drift", [0.0, 1.0, 2.0, 4.0, 5.0, 8.0, 30.0])
def test_floats_are_summed_to_an_ulp_and_a_little(drift: float) -> None:
    """From sums in floats to sums in doubles. 40 terms of float32 add up to 40 2^-24 = 2.4e-6 at most."""
    grid = Grid.uniform([-3.0] * 2, [3.0] * 2, [96] * 2, dtype=torch.float32)
    wide = grid.to(dtype=torch.float64)
    epsilon = 0.75 * grid.spacing**2
    x = wide.points().reshape(*wide.shape, 2)
    noise = torch.randn(wide.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    b = drift / (0.75 * grid.spacing) * x.sum(-1) - (x**2).sum(-1) / 2 + 0.3 * noise
    b = (b - b.max()).float()
    exact = Separable(wide, epsilon).log_apply(b.double())
    size = exact.float().abs()
    ulp = (torch.nextafter(size, size + 1) - size).double()
    error = (Separable(grid, epsilon).log_apply(b).double() - exact).abs()
    assert float((error - ulp).max()) <= 2.4e-6
