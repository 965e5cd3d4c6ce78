"""Log-domain kernels: against the dense float64 oracle on adversarial input, and for the path that they took."""

import functools
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bigjko_kernels import (
    LOG_ZERO,
    Circle,
    Cost,
    Dense,
    GibbsKernel,
    Grid,
    HellingerKantorovich,
    KernelError,
    Lazy,
    Line,
    PerFactor,
    Separable,
    Sheets,
    Sphere,
    SquaredArc,
    SquaredEuclidean,
    geodesic,
    gibbs,
)
from bigjko_kernels.costs import Term
from bigjko_kernels.fused import FusedAxis
from bigjko_kernels.keops import LazyTensor, fitting_threads
from bigjko_kernels.lazy import _Sheet
from bigjko_kernels.separable import TorchAxis
from bigjko_kernels.series import Series
from bigjko_kernels.tiles import Pairs, Tiles

from .registry import COSTS, GENERAL, GRIDS, INPUTS, KERNELS, log_tolerance, signs, sinh_axis


def epsilon_of(grid: Grid, times: float = 0.75) -> float:
    """In units of h^2; a grid without neighbours has no h."""
    return times * (grid.spacing or 1.0) ** 2


@functools.cache
def oracle(grid: str, cost: str, times: float, dtype: torch.dtype) -> Dense:
    """In float64, on the nodes as `dtype` rounds them."""
    rounded = GRIDS[grid]().to(dtype=dtype).to(dtype=torch.float64)
    return Dense(rounded, epsilon_of(GRIDS[grid](), times), COSTS[cost].make(rounded))


@functools.cache
def exact(grid: str, cost: str, times: float, values: str, dtype: torch.dtype) -> Tensor:
    b = INPUTS[values](GRIDS[grid]()).to(dtype)
    return oracle(grid, cost, times, dtype).log_apply(b.double())


def assert_close(out: Tensor, expected: Tensor, tolerance: Tensor) -> None:
    """Empty where the oracle is empty, and within the tolerance elsewhere."""
    assert not out.isnan().any()
    assert torch.equal(out == LOG_ZERO, expected == LOG_ZERO)
    carried = expected != LOG_ZERO
    worst = float(((out.double() - expected).abs() / tolerance)[carried].max()) if carried.any() else 0.0
    assert worst <= 1, f"{worst:.3g} times the tolerance"


TRIPLES = [
    (grid, cost, kernel)
    for grid, make in GRIDS.items()
    for cost, a_cost in COSTS.items()
    for kernel, case in KERNELS.items()
    if a_cost.fits(make()) and case.tolerance is not None and case.takes(make(), a_cost.make(make()))
]


@pytest.mark.parametrize("values", INPUTS)
@pytest.mark.parametrize(("grid", "cost", "kernel"), TRIPLES)
def test_log_apply_agrees_with_the_oracle(
    grid: str, cost: str, kernel: str, values: str, dtype: torch.dtype, device: torch.device
) -> None:
    nodes = GRIDS[grid]().to(dtype=dtype, device=device)
    b = INPUTS[values](GRIDS[grid]()).to(dtype=dtype, device=device)
    case = KERNELS[kernel]
    if not case.takes(nodes, COSTS[cost].make(nodes)):  # another dtype than it takes
        with pytest.raises(KernelError, match=r"need .* in float64: use kernels.Lazy"):
            case.make(nodes, 1.0, COSTS[cost].make(nodes))
        return
    out = case.make(nodes, epsilon_of(GRIDS[grid]()), COSTS[cost].make(nodes)).log_apply(b)
    assert (out.shape, out.dtype, out.device) == (b.shape, dtype, b.device)
    expected = exact(grid, cost, 0.75, values, dtype)
    assert case.tolerance is not None
    assert_close(out.cpu(), expected, case.tolerance(expected, dtype))


@pytest.mark.parametrize("times", [0.25, 10.0])
@pytest.mark.parametrize("values", INPUTS)
@pytest.mark.parametrize(
    ("grid", "cost", "kernel"), [t for t in TRIPLES if t[0] in {"line", "mixed plane", "circle"} or t[2] == "circulant"]
)
def test_log_apply_agrees_with_the_oracle_at_other_temperatures(
    grid: str, cost: str, kernel: str, values: str, times: float
) -> None:
    # .25 h^2 is the smallest that a step takes: tiles are torn by their own products. 10 h^2 reaches far.
    nodes, b = GRIDS[grid](), INPUTS[values](GRIDS[grid]())
    out = KERNELS[kernel].make(nodes, epsilon_of(nodes, times), COSTS[cost].make(nodes)).log_apply(b)
    expected = exact(grid, cost, times, values, torch.float64)
    assert_close(out, expected, log_tolerance(expected, torch.float64))


@pytest.mark.parametrize(("grid", "cost", "kernel"), TRIPLES)
def test_kernels_are_symmetric(grid: str, cost: str, kernel: str) -> None:
    nodes = GRIDS[grid]()
    K = KERNELS[kernel].make(nodes, epsilon_of(nodes), COSTS[cost].make(nodes))
    f, g = INPUTS["one spike"](nodes), INPUTS["spans 1e4"](nodes)
    left = torch.logsumexp((f + K.log_apply(g)).reshape(-1), 0)
    right = torch.logsumexp((K.log_apply(f) + g).reshape(-1), 0)
    # Two sums of N positive terms that agree one by one: each within log_apply's own tolerance.
    assert (left - right).abs() <= 2 * log_tolerance(left, torch.float64)


def test_the_oracle_is_the_double_sum() -> None:
    grid = Grid(
        (Sheets.of([1.0, -1.0]), Line.at(torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)), Circle.uniform(4))
    )
    cost = geodesic(grid)
    epsilon, b = 0.3, torch.randn(grid.shape, dtype=torch.float64)
    b[0, 1, 2] = LOG_ZERO
    out = Dense(grid, epsilon, cost).log_apply(b)
    for s in range(2):
        for i in range(3):
            for j in range(4):
                total = 0.0
                for k in range(3):
                    for m in range(4):
                        dx = float(grid.factors[1].nodes[i, 0] - grid.factors[1].nodes[k, 0])
                        turn = min(abs(j - m), 4 - abs(j - m)) * math.pi / 2
                        total += math.exp(-(dx**2 / 2 + turn**2 / 2) / epsilon + float(b[s, k, m]))
                assert float(out[s, i, j]) == pytest.approx(math.log(total), abs=1e-13)  # 12 terms of rounding


@pytest.mark.parametrize("kind", [Separable, Lazy])
def test_a_gaussian_is_blurred_by_epsilon(kind: type[GibbsKernel], device: torch.device) -> None:
    # sum_k h exp(-(x - y)^2 / 2 eps) N(y; m, v) = sqrt(2 pi eps) N(x; m, v + eps): the trapezoidal rule is exact to
    # exp(-2 pi^2 s^2/h^2) with s^2 = eps v/(eps + v) = 11 h^2, which is 1e-96.
    grid = Grid.uniform([-3.0], [3.0], [401], device=device)
    x, h, mean, var, epsilon = grid.points()[:, 0], grid.spacing, 0.3, 0.0625, 0.0025

    def log_normal(variance: float) -> Tensor:
        return -((x - mean) ** 2) / (2 * variance) - math.log(2 * math.pi * variance) / 2

    out = kind(grid, epsilon, SquaredEuclidean()).log_apply(log_normal(var))
    expected = log_normal(var + epsilon) + math.log(2 * math.pi * epsilon) / 2 - math.log(h)
    inside = (x - mean).abs() < 1.5  # six deviations; beyond the box there are no nodes to sum over
    assert (out - expected)[inside].abs().max() <= 1e-12 * 30  # the largest |log| there is 25


@pytest.mark.parametrize("axis", [FusedAxis, TorchAxis])
@given(seed=st.integers(0, 10**6), nodes=st.integers(1, 70), steep=st.sampled_from([0.0, 1.0, 30.0, 1000.0]))
def test_separable_is_exact_on_any_axis(axis: type[FusedAxis | TorchAxis], seed: int, nodes: int, steep: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    gaps = 10 ** (2 * torch.rand(nodes, generator=generator, dtype=torch.float64) - 1)  # .1 to 10, neighbours at random
    grid = Grid((Line.at(gaps.cumsum(0)),))
    b = steep * torch.randn(nodes, generator=generator, dtype=torch.float64)
    b = b.masked_fill(torch.rand(nodes, generator=generator) < 0.3, LOG_ZERO)
    epsilon = 0.25 + 10 * float(torch.rand(1, generator=generator))
    expected = Dense(grid, epsilon).log_apply(b)
    out = Separable(grid, epsilon, axis=axis).log_apply(b)
    assert_close(out, expected, log_tolerance(expected, torch.float64))


@pytest.mark.parametrize("kernel", GENERAL)
def test_a_fitted_kernel_is_the_same_kernel(kernel: str) -> None:
    grid = GRIDS["plane"]()
    b = INPUTS["moves 20 nodes"](grid)
    K = KERNELS[kernel].make(grid, epsilon_of(grid), geodesic(grid))
    expected = exact("plane", "euclidean", 0.75, "moves 20 nodes", torch.float64)
    assert_close(K.fitted(b).log_apply(b), expected, log_tolerance(expected, torch.float64))


# --------------------------------------------------------------------------------------------------------- derivatives

SMALL = {
    "line": lambda: Grid.uniform([-1.0], [1.0], [7]),
    "signed circle": lambda: Grid((Sheets.of([1.0, -1.0]), Circle.uniform(5))),
}
EMPTY = {"full": (), "with empty nodes": (0, 3)}  # 0: the first node, KeOps' weak spot


@pytest.mark.parametrize("empty", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("kernel", GENERAL)
def test_gradcheck(kernel: str, make: Any, empty: tuple[int, ...], device: torch.device) -> None:
    grid = make().to(device=device)
    K = KERNELS[kernel].make(grid, 0.3, geodesic(grid))
    b = torch.randn(grid.shape, dtype=torch.float64, device=device)
    b.reshape(-1)[list(empty)] = LOG_ZERO
    b.requires_grad_()
    # Central differences of 1e-6: 1e-12 of third derivatives and 1e-10 of rounding, far below gradcheck's own 1e-5.
    assert torch.autograd.gradcheck(K.log_apply, b, eps=1e-6, atol=1e-7, rtol=1e-6)
    weights = torch.randn(grid.shape, dtype=torch.float64, device=device)
    (gradient,) = torch.autograd.grad((weights * K.log_apply(b)).sum(), b)
    assert (gradient.reshape(-1)[list(empty)] == 0).all()  # zero, not NaN
    # The same sum, differentiated by torch: the two adjoint applications add 1e-15 of the weights.
    c = b.detach().cpu().reshape(-1).requires_grad_()
    log_kernel = Dense(grid.to(device="cpu"), 0.3).log_kernel  # of a sheet, the leading factor
    plain = torch.logsumexp(log_kernel + c.reshape(-1, 1, len(log_kernel)), 2).reshape(-1)
    (expected,) = torch.autograd.grad((weights.cpu().reshape(-1) * plain).sum(), c)
    assert (gradient.cpu().reshape(-1) - expected.nan_to_num(0.0)).abs().max() <= 1e-13


@pytest.mark.parametrize("kernel", GENERAL)
def test_nothing_has_no_gradient(kernel: str) -> None:
    grid = Grid((Sheets.of([1.0, -1.0]), Circle.uniform(5)))
    b = torch.zeros(grid.shape, dtype=torch.float64)
    b[1] = LOG_ZERO  # a whole sheet: no mass reaches it
    b.requires_grad_()
    out = KERNELS[kernel].make(grid, 0.3, geodesic(grid)).log_apply(b)
    assert (out[1] == LOG_ZERO).all()
    (gradient,) = torch.autograd.grad(out.exp().sum(), b)
    assert torch.isfinite(gradient).all()
    assert (gradient[1] == 0).all()
    assert (gradient[0] > 0).all()


# ----------------------------------------------------------------------------------------------------- the path taken


@dataclass
class Path:
    """What TorchAxis did: outputs that its window could not vouch for, that had underflowed, that it mended."""

    beyond: int = 0
    torn: int = 0
    mended: int = 0
    widths: list[int] = field(default_factory=list)


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Path:
    seen, product, repair = Path(), TorchAxis._product, TorchAxis._repair

    def watched_product(self: TorchAxis, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out, beyond, torn = product(self, b)
        seen.widths.append(self.width)
        seen.beyond, seen.torn = int(beyond.sum()), int(torn.sum())
        return out, beyond, torn

    def watched_repair(self: TorchAxis, out: Tensor, b: Tensor, wrong: Tensor) -> None:
        seen.mended += int(wrong.sum())
        repair(self, out, b, wrong)

    monkeypatch.setattr(TorchAxis, "_product", watched_product)
    monkeypatch.setattr(TorchAxis, "_repair", watched_repair)
    return seen


def test_smooth_input_takes_the_narrow_window_and_no_repair(path: Path) -> None:
    for grid in (GRIDS["line"](), GRIDS["plane"](), GRIDS["circle"]()):
        Separable(grid, epsilon_of(grid), axis=TorchAxis).log_apply(INPUTS["smooth"](grid))
    assert set(path.widths) == {3}
    assert path.mended == 0


def test_the_window_widens_for_mass_that_moves_20_nodes(path: Path) -> None:
    grid = Grid.uniform([-3.0], [3.0], [700])
    K = Separable(grid, epsilon_of(grid), axis=TorchAxis)
    b = INPUTS["moves 20 nodes"](grid)
    expected = exact("line", "euclidean", 0.75, "moves 20 nodes", torch.float64)
    for _ in range(2):  # the second call starts from the wide window
        assert_close(K.log_apply(b), expected, log_tolerance(expected, torch.float64))
    assert path.widths[0] == 3
    assert path.widths == sorted(path.widths)
    assert path.widths[-1] > 3


def test_outputs_beyond_the_widest_window_are_mended(path: Path) -> None:
    grid = Grid.uniform([-3.0], [3.0], [700])
    out = Separable(grid, epsilon_of(grid), axis=TorchAxis).log_apply(INPUTS["one spike"](grid))
    # 700 nodes in 44 tiles, 17 of them in the window: 27 tiles of 16 nodes at most see nothing of the spike.
    assert path.widths[-1] == 17
    assert 300 <= path.beyond <= 27 * 16
    assert path.mended >= path.beyond
    expected = exact("line", "euclidean", 0.75, "one spike", torch.float64)
    assert_close(out, expected, log_tolerance(expected, torch.float64))


def test_sums_that_underflow_are_mended(path: Path) -> None:
    # Within one pair of tiles, the costs of 31 and of 1 node differ by (31^2 - 1)/(2 * .25) = 1920 > 700.
    grid = Grid.uniform([-1.0], [1.0], [48])
    b = INPUTS["moves 20 nodes"](grid)
    out = Separable(grid, epsilon_of(grid, 0.25), axis=TorchAxis).log_apply(b)
    assert path.torn > 0
    assert path.beyond == 0
    assert path.mended == path.torn
    expected = Dense(grid, epsilon_of(grid, 0.25)).log_apply(b)
    assert_close(out, expected, log_tolerance(expected, torch.float64))


def test_a_kernel_gives_the_same_answer_whatever_it_was_given_before() -> None:
    grid = GRIDS["line"]()
    used, fresh = Separable(grid, epsilon_of(grid), axis=TorchAxis), Separable(grid, epsilon_of(grid), axis=TorchAxis)
    for values in ("moves 20 nodes", "one spike"):  # widen the window
        used.log_apply(INPUTS[values](grid))
    b = INPUTS["smooth"](grid)
    # A window of 17 tiles adds, to the 3 that matter, terms below exp(-40) and a reordering of the sum.
    assert (used.log_apply(b) - fresh.log_apply(b)).abs().max() <= 1e-14 * (1 + b.abs().max())


@pytest.mark.parametrize("grid", GRIDS)
def test_gibbs_chooses_separable_wherever_the_cost_is_a_sum(grid: str) -> None:
    nodes = GRIDS[grid]()
    has_sphere = any(isinstance(f, Sphere) for f in nodes.factors)
    assert type(gibbs(nodes, 0.1)) is (Dense if has_sphere else Separable)


@pytest.mark.parametrize(("nodes", "kind"), [(1024, Dense), (1025, Lazy)])
def test_gibbs_writes_out_the_kernel_of_few_nodes_a_sheet(nodes: int, kind: type) -> None:
    assert type(gibbs(Grid((Sheets.of([1.0, -1.0]), Sphere.fibonacci(nodes))), 0.1)) is kind


def test_log_zero_at_the_first_node_does_not_spoil_keops() -> None:
    grid = GRIDS["circle"]()
    b = INPUTS["smooth"](grid)
    b[:100] = LOG_ZERO
    epsilon = epsilon_of(grid)
    expected = Dense(grid, epsilon).log_apply(b)
    assert_close(Lazy(grid, epsilon).log_apply(b), expected, log_tolerance(expected, torch.float64))


# ---------------------------------------------------------------------------------------------- tiles and their pairs

BOUNDED = [
    (grid, cost)
    for grid, make in GRIDS.items()
    for cost, case in COSTS.items()
    if case.fits(make()) and grid != "point"
]


def tiles_of(grid: Grid, cost: Cost) -> tuple[Tensor, Tiles]:
    points = Grid(tuple(f for f in grid.factors if not isinstance(f, Sheets))).points()
    tiles = Tiles(points, cost)
    return points[tiles.order], tiles


@pytest.mark.parametrize(("grid", "cost"), BOUNDED)
def test_costs_between_tiles_are_bounded(grid: str, cost: str) -> None:
    c = COSTS[cost].make(GRIDS[grid]())
    points, tiles = tiles_of(GRIDS[grid](), c)
    assert torch.equal(tiles.order.sort().values, torch.arange(len(points)))
    all_costs = c(points[:, None], points[None])
    for level in tiles.levels[:7]:
        count = len(level.centres)
        assert level.starts[[0, -1]].tolist() == [0, len(points)]
        assert (level.starts.diff() > 0).all()
        tile = torch.arange(count).repeat_interleave(level.starts.diff())
        pair = (tile[:, None] * count + tile[None]).flatten()
        found = all_costs.new_zeros(count**2)
        least = found.scatter_reduce(0, pair, all_costs.flatten(), "amin", include_self=False)
        greatest = found.scatter_reduce(0, pair, all_costs.flatten(), "amax", include_self=False)
        low, high, _ = tiles.bounds(
            level, torch.arange(count).repeat_interleave(count), torch.arange(count).repeat(count)
        )
        assert (low <= least).all()  # to the last bit, though the cone cost loses half its digits near the cut:
        assert (high >= greatest).all()  # radii are longer by more than coordinates are rounded by


@given(
    seed=st.integers(0, 10**6),
    nodes=st.integers(1, 300),
    dim=st.integers(1, 4),
    cost=st.sampled_from([SquaredEuclidean(), SquaredArc(), HellingerKantorovich()]),
    steep=st.sampled_from([0.0, 10.0, 1e4]),
    empty=st.sampled_from([0.0, 0.3, 0.99]),
    log_epsilon=st.floats(-4.0, 1.0),
)
def test_what_is_left_out_is_below_half_an_ulp(
    seed: int, nodes: int, dim: int, cost: Cost, steep: float, empty: float, log_epsilon: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(nodes, dim, generator=generator, dtype=torch.float64)
    if not isinstance(cost, SquaredEuclidean):
        points = points / points.norm(dim=1, keepdim=True)
    tiles, epsilon = Tiles(points, cost), 10**log_epsilon
    points = points[tiles.order]
    b = steep * torch.randn(nodes, generator=generator, dtype=torch.float64)
    b = b.masked_fill(torch.rand(nodes, generator=generator) < empty, LOG_ZERO)
    b[int(torch.randint(nodes, (1,), generator=generator))] = 0.0
    pairs = tiles.pairs(b, epsilon, 37.0)
    kept = torch.zeros(nodes, nodes, dtype=torch.long)
    for (i, i_end), (j, j_end) in zip(pairs.outputs.tolist(), pairs.inputs.tolist(), strict=True):
        kept[i:i_end, j:j_end] += 1
    assert kept.max() == 1
    assert int(kept.sum()) == pairs.count
    exponents = b - cost(points[:, None], points[None]) / epsilon
    left_out = exponents.masked_fill(kept == 1, LOG_ZERO).logsumexp(1)
    assert (left_out <= exponents.logsumexp(1) - 37.0).all()


def test_few_pairs_of_a_sphere_matter() -> None:
    grid = Grid((Sphere.fibonacci(30_000),))
    _, tiles = tiles_of(grid, SquaredArc())
    shares = {}
    for values in INPUTS:
        if values != "all empty":
            b = INPUTS[values](grid)[tiles.order]
            shares[values] = tiles.pairs(b, epsilon_of(grid), 37.0).count / grid.size**2
    # exp(-c/eps) = exp(-37)/N at 8.5 h, in a disc of 230 nodes; tiles 3.5 h across reach into two to three times as
    # many, and where b rises by 27 a node, low_I is that much lower.
    assert 230 <= shares["smooth"] * grid.size <= 700
    assert shares["moves 20 nodes"] * grid.size <= 1500
    assert shares["one spike"] * grid.size <= 12
    assert max(shares.values()) <= 0.1


def test_every_pair_is_kept_where_all_of_them_matter() -> None:
    grid = Grid((Sphere.fibonacci(500),))
    _, tiles = tiles_of(grid, SquaredArc())
    pairs = tiles.pairs(INPUTS["smooth"](grid)[tiles.order], 100.0, 37.0)
    assert pairs.count == grid.size**2
    big = Grid((Sphere.fibonacci(20_000),))  # where the smallest tiles would make too many pairs, larger ones serve
    _, tiles = tiles_of(big, SquaredArc())
    pairs = tiles.pairs(INPUTS["smooth"](big)[tiles.order], 100.0, 37.0)
    assert pairs.count == big.size**2
    assert len(pairs.outputs) <= 16 * big.size


def test_keops_runs_on_one_thread_over_small_ranges() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for rows, expected in ((12, 1), (5000, 2)):
            with fitting_threads(torch.tensor([[0, rows]])):
                assert torch.get_num_threads() == expected
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("values", "times"), [*((values, 0.75) for values in INPUTS), ("smooth", 1e3)])
@pytest.mark.parametrize("cost", [SquaredArc(), HellingerKantorovich()], ids=repr)
def test_lazy_agrees_with_the_oracle_on_a_deep_tree(
    cost: Cost, values: str, times: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways: list[int | None] = []
    reduce = _Sheet.reduce

    def watched(self: _Sheet, b: Tensor, pairs: Pairs, series: list[Series] | None) -> Tensor:
        if pairs.count:
            ways.append(None if series is None else len(series[0].coefficients))
        return reduce(self, b, pairs, series)

    monkeypatch.setattr(_Sheet, "reduce", watched)
    grid = Grid((signs(), Sphere.fibonacci(2000)))
    b = INPUTS[values](grid).to(dtype)
    b[1] += 5.0
    epsilon = epsilon_of(grid, times)
    rounded = grid.to(dtype=dtype)
    out = Lazy(rounded, epsilon, cost).log_apply(b)
    sphere = Grid((rounded.to(dtype=torch.float64).factors[1],))  # sheet by sheet: the oracle takes 8192 nodes
    K = Dense(sphere, epsilon, cost)
    expected = torch.stack([K.log_apply(sheet) for sheet in b.double()])
    assert_close(out, expected, log_tolerance(expected, dtype))
    if values == "smooth":
        # Tiles .3 to .5 across, .08 from node to node: with .75 h^2 to 1.4 apart, with 1e3 h^2 = 6 to the other side.
        assert {12, 24} <= set(ways)
        assert times < 1 or None in ways


@pytest.mark.parametrize("values", INPUTS)
def test_outputs_in_no_range_are_left_to_chance_on_a_gpu(values: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # KeOps clears all outputs first on the CPU alone; elsewhere those in no range are as its new array was.
    logsumexp, left = LazyTensor.logsumexp, []

    def on_a_gpu(self: Any, dim: int, ranges: tuple[Tensor, ...]) -> Tensor:
        out: Tensor = logsumexp(self, dim=dim, ranges=ranges)
        met = torch.zeros(out.shape[0], dtype=torch.bool)
        for start, end in ranges[0].tolist():
            met[start:end] = True
        left.append(int((~met).sum()))
        return out.masked_fill(~met[:, None], torch.nan)

    monkeypatch.setattr(LazyTensor, "logsumexp", on_a_gpu)
    grid = GRIDS["signed sphere"]()
    out = Lazy(grid, epsilon_of(grid), SquaredArc()).log_apply(INPUTS[values](grid))
    expected = exact("signed sphere", "arc", 0.75, values, torch.float64)
    assert_close(out, expected, log_tolerance(expected, torch.float64))
    assert any(left) or values == "all empty"


def test_a_cost_that_tells_no_terms_is_summed_over_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SquaredArc, "terms", Cost.terms)
    grid = GRIDS["signed sphere"]()
    b = INPUTS["moves 20 nodes"](grid)
    expected = exact("signed sphere", "arc", 0.75, "moves 20 nodes", torch.float64)
    assert_close(
        Lazy(grid, epsilon_of(grid), SquaredArc()).log_apply(b), expected, log_tolerance(expected, torch.float64)
    )


@pytest.mark.parametrize(
    "cost", [SquaredEuclidean(), SquaredArc(), HellingerKantorovich(), HellingerKantorovich(1.0)], ids=repr
)
@pytest.mark.parametrize("length", [12, 24])
def test_a_series_is_the_cost(cost: Cost, length: int) -> None:
    (term,) = cost.terms(3)
    series = Series.of(term, length, 4.0)
    if isinstance(cost, SquaredEuclidean):
        assert (len(series.coefficients), series.reach) == (1, 4.0)
    else:  # singular at s = 4, 3.2 and 2: a third and a tenth of the way at least
        assert len(series.coefficients) == length
        assert series.reach >= (0.3 if length == 12 else 0.9)
    s = series.reach * torch.logspace(-16, 0, 1000, dtype=torch.float64)
    powers = sum(float(a) * (s - series.middle) ** k for k, a in enumerate(series.coefficients))
    # Twenty roundings, of which the series of the cone cost itself takes fifteen.
    assert ((s * powers / term.of(s)) - 1).abs().max() <= 20 * torch.finfo(torch.float64).eps


def test_a_term_that_is_no_power_series_has_none() -> None:
    assert Series.of(Term(3, torch.sqrt, unit=False), 12, 4.0).reach == 0.0


# -------------------------------------------------------------------------------------------------------------- memory


class Largest(TorchDispatchMode):
    """The most entries any tensor had that torch allocated meanwhile. Views do not count: their storage does."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.entries = max(self.entries, leaf.untyped_storage().nbytes() // leaf.element_size())
        return out


def hard(grid: Grid) -> Iterator[Tensor]:
    """Input for the narrow window, and input with more empty nodes than the widest window holds."""
    yield INPUTS["smooth"](grid)
    hole = INPUTS["smooth"](grid)
    hole.reshape(-1)[:1000] = LOG_ZERO
    yield hole


def test_separable_allocates_no_square_on_a_long_axis(path: Path) -> None:
    grid = Grid.uniform([-3.0], [3.0], [20_000])
    with Largest() as largest:
        K = Separable(grid, epsilon_of(grid), axis=TorchAxis)
        for b in hard(grid):
            K.log_apply(b)
    assert path.widths[-1] == 17
    assert path.mended > 0
    # The widest table holds 17 tiles of 16 nodes a node, 272 N; chunks of a repair hold 2^20 entries and the costs of
    # tiles with tiles (N/16)^2 = 78 N. N^2 would be 20,000 N.
    assert largest.entries <= 272 * grid.size + (1 << 20)


def test_separable_allocates_no_square_on_a_plane() -> None:
    grid = Grid.uniform([-3.0, -3.0], [3.0, 3.0], [256, 256])
    with Largest() as largest:
        K = Separable(grid, epsilon_of(grid), axis=TorchAxis)
        for b in (*hard(grid), INPUTS["moves 20 nodes"](grid)):
            K.log_apply(b)
    # Chunks hold 2^20 = 16 N entries, whatever the window; N^2 would be 65,536 N.
    assert largest.entries <= 16 * grid.size


LONG_AXIS = """
import re, sys, torch
torch.set_num_threads(1)
from bigjko_kernels import Grid, Separable, fused, separable
axis = {"FusedAxis": fused.FusedAxis, "TorchAxis": separable.TorchAxis}[sys.argv[1]]
def peak():  # not ru_maxrss, which a child inherits from its parent
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
before = peak()
for nodes in (9_000, 9_500, 10_000, 10_500, 11_000):
    grid = Grid.uniform([-3.0], [3.0], [nodes])
    Separable(grid, 0.75 * grid.spacing**2, axis=axis).log_apply(-grid.points()[:, 0] ** 2)
print(peak() - before)
"""


@pytest.mark.parametrize("axis", ["FusedAxis", "TorchAxis"])
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_separable_keeps_no_square_resident_on_a_long_axis(axis: str) -> None:
    # What torch allocates is not all: a heap cut up by small blocks among large ones can hold 8 N^2 bytes, 650 to
    # 950 MB here. It does so at some sizes and not at others, hence five of them. The tables of tiles with tiles are
    # 2 (N/16)^2 entries, or 1.5 (N/8)^2 in the fused version: 23 MB; those of the narrow window 3 * 16^2 a tile, or
    # 5 * 96, twice while they grow: 11 MB. Chunks of 2^20 entries are 8 MB, of which a handful live at once.
    done = subprocess.run([sys.executable, "-c", LONG_AXIS, axis], capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) <= 100


def test_lazy_allocates_no_square_on_a_sphere() -> None:
    grid = Grid((Sphere.fibonacci(30_000),))
    with Largest() as largest:
        K = Lazy(grid, epsilon_of(grid))
        for b in (*hard(grid), INPUTS["moves 20 nodes"](grid)):
            K.log_apply(b)
    # Chunks hold 2^18 pairs and 3 coordinates of each, 26 N; the pairs that are kept at most 16 N, as 2 ranges of 2
    # numbers each. N^2 would be 30,000 N.
    assert largest.entries <= max(3 << 18, 2 * 16 * grid.size)


# --------------------------------------------------------------------------------------------------------------- costs


@pytest.mark.parametrize("cost", [case for case in COSTS if case not in {"euclidean", "per factor", "cone"}])
@pytest.mark.parametrize("grid", ["circle", "signed sphere"])
def test_costs_on_directions_are_those_of_the_angle(grid: str, cost: str) -> None:
    nodes = next(f for f in GRIDS[grid]().factors if not isinstance(f, Sheets)).nodes
    c = COSTS[cost].make(GRIDS[grid]())
    product = nodes @ nodes.T
    # The arc cosine loses half the digits at 0 and at pi: those pairs are held below.
    clear = product.abs() < 0.99
    omega = product.clamp(-1, 1).acos()
    out = c(nodes[:, None], nodes[None])
    if isinstance(c, HellingerKantorovich):
        theta = (c.speed * omega).clamp(max=math.pi / 2)
        expected = -2 * theta.cos().clamp(min=1e-8).log()
        clear &= theta < 1.5  # nearer to the cut, the cost itself is ill-conditioned: see below
    else:
        expected = omega**2 / 2
    # acos there loses 1/sqrt(1 - .99^2) = 7 roundings, tan(1.5) = 14 more.
    assert ((out - expected).abs() / (1 + expected))[clear].max() <= 1e-13
    assert torch.equal(out, out.T)
    assert (out.diagonal() == 0).all()
    assert (out[~torch.eye(len(nodes), dtype=torch.bool)] > 0).all()


@pytest.mark.parametrize("cost", [SquaredArc(), HellingerKantorovich(), HellingerKantorovich(1.0)], ids=repr)
def test_costs_keep_their_digits_near_the_diagonal(cost: SquaredArc | HellingerKantorovich, dtype: torch.dtype) -> None:
    speed = getattr(cost, "speed", 1.0)
    for angle in 10.0 ** torch.arange(-3, 0, dtype=torch.float64):
        x = torch.tensor([1.0, 0.0], dtype=dtype)
        y = torch.stack([angle.cos(), angle.sin()]).to(dtype)
        omega = torch.atan2(y[1].double(), y[0].double())  # of the rounded input
        theta = speed * omega
        expected = omega**2 / 2 if isinstance(cost, SquaredArc) else -torch.log1p(-(theta.sin() ** 2))
        # y is rounded off the circle by u, which turns 2 atan2(|x - y|, |x + y|) by up to u/omega of itself squared;
        # ten roundings besides.
        u = torch.finfo(dtype).eps
        assert float((cost(x, y).double() - expected).abs() / expected) <= u * (10 + 2 / float(omega))


@pytest.mark.parametrize("digits", range(1, 8))
def test_the_cone_cost_keeps_its_digits_near_the_cut(digits: int, dtype: torch.dtype) -> None:
    """On angles as they are rounded: the cosine is what they leave of pi/2, which has 6.1e-17 beyond float64."""
    angle = (torch.tensor(math.pi / 2, dtype=torch.float64) - 10.0**-digits).to(dtype)
    left = math.pi / 2 - angle.double() + 6.123233995736766e-17
    if not 1e-7 < left < 1:  # float32 has rounded it to the cut, or beyond
        return
    expected = -2 * left.sin().log()
    assert float(HellingerKantorovich(1.0)._at(angle).double() / expected - 1) == pytest.approx(
        0, abs=4 * torch.finfo(dtype).eps
    )


def test_the_cone_cost_beyond_the_cut_is_one_large_number() -> None:
    cost = HellingerKantorovich(1.0)
    x = torch.tensor([1.0, 0.0], dtype=torch.float64)
    # Below the cut it rises to there without a jump back.
    angles = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    values = cost(x, torch.stack([angles.cos(), angles.sin()], dim=1))
    assert (values.diff() >= 0).all()
    beyond = values[angles > math.pi / 2 + 1e-6]
    assert (beyond == values.max()).all()
    assert float(values.max()) == pytest.approx(36.8, abs=0.1)


def test_a_cost_per_factor_is_their_sum() -> None:
    grid = Grid((sinh_axis(4), Sheets.of([1.0, -1.0]), Circle.uniform(5)))
    cost = geodesic(grid)
    assert isinstance(cost, PerFactor)
    assert cost.per_factor(grid) == (SquaredEuclidean(), None, SquaredArc())
    points = grid.points(sheets=False)
    expected = SquaredEuclidean()(points[:, None, :1], points[None, :, :1]) + SquaredArc()(
        points[:, None, 1:], points[None, :, 1:]
    )
    assert torch.equal(cost(points[:, None], points[None]), expected)
