"""Factors and grids: cells, edges, order of nodes, sums, widening."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bigjko_kernels import Circle, Factor, Grid, GridError, Line, Sheets, Sphere

from .registry import FACTORS, GRIDS, FactorCase, signs, sinh_axis, ulp


@pytest.mark.parametrize("case", FACTORS.values(), ids=FACTORS)
def test_cells_edges_and_spacing_of_factors(case: FactorCase, dtype: torch.dtype, device: torch.device) -> None:
    factor = case.make().to(dtype=dtype, device=device)
    assert type(factor) is type(case.make())
    assert (factor.nodes.dtype, factor.log_weights.dtype, factor.edge.dtype) == (dtype, dtype, torch.bool)
    assert {t.device for t in (factor.nodes, factor.log_weights, factor.edge)} == {device}
    assert factor.nodes.shape[0] == factor.size == factor.log_weights.numel() == factor.edge.numel()
    # Each cell is off by rounding of its logarithm, at most |log| <= 5 of them.
    total = float(factor.log_weights.double().exp().sum())
    assert total == pytest.approx(case.volume, rel=8 * torch.finfo(dtype).eps)
    assert int(factor.edge.sum()) == case.edges
    assert factor.spacing == pytest.approx(case.spacing, rel=1e-12)


@pytest.mark.parametrize("case", FACTORS.values(), ids=FACTORS)
def test_nodes_on_circles_and_spheres_are_unit_vectors_and_distinct(case: FactorCase) -> None:
    factor = case.make()
    if isinstance(factor, Circle | Sphere):
        assert (factor.nodes.norm(dim=1) - 1).abs().max() <= 4e-16  # two roundings
    assert len({tuple(node) for node in factor.nodes.tolist()}) == factor.size


def test_line_cells_reach_half_way_to_the_neighbours() -> None:
    x = torch.tensor([0.0, 1.0, 3.0, 3.5], dtype=torch.float64)
    line = Line.at(x)
    assert line.log_weights.exp().tolist() == pytest.approx([1.0, 1.5, 1.25, 0.5], rel=1e-15)
    assert line.edge.tolist() == [True, False, False, True]
    assert line.spacing == 2.0


def test_uniform_lines_have_both_ends_and_equal_cells(dtype: torch.dtype) -> None:
    line = Line.uniform(-0.3, 1.1, 8, dtype=dtype)
    low, high = (float(torch.tensor(end, dtype=dtype)) for end in (-0.3, 1.1))  # as the dtype rounds them
    assert (float(line.nodes[0]), float(line.nodes[-1])) == (low, high)
    assert Grid((line,)).uniform_weights
    assert not Grid((sinh_axis(9),)).uniform_weights


def test_sphere_nodes_are_spread_evenly() -> None:
    nodes = Sphere.fibonacci(500).nodes
    # The lattice is centred, integrates x x^T as 1/3 and leaves no hole: a cap of two spacings holds a node.
    assert nodes.mean(0).abs().max() <= 1 / 500
    assert (nodes.T @ nodes / 500 - torch.eye(3, dtype=torch.float64) / 3).abs().max() <= 1 / 500
    directions = torch.nn.functional.normalize(torch.randn(1000, 3, dtype=torch.float64), dim=1)
    nearest = (directions @ nodes.T).amax(1).clamp(-1, 1).acos()
    assert nearest.max() <= 2 * math.sqrt(4 * math.pi / 500)


@pytest.mark.parametrize("nodes", [500, 2000])
def test_three_sphere_nodes_are_spread_evenly(nodes: int) -> None:
    """Harmonics up to degree 4 are integrated with an error of order 1/n; no hole, and no two nodes close."""
    factor = Sphere.fibonacci(nodes, dim=3)
    x, h = factor.nodes, factor.spacing
    products = x @ x.T
    angles = products.clamp(-1, 1).acos().fill_diagonal_(0.0)
    for k in range(1, 5):
        # The harmonics of degree k have the reproducing kernel (k + 1) sin((k + 1) t) / sin t: summed over all pairs it
        # is what they integrate to, squared and added; for n independent nodes n (k + 1)^2 on average.
        values = ((k + 1) * angles).sin() / angles.sin()
        values[angles.sin() < 1e-6] = k + 1.0
        assert float(values.sum()) / (nodes * (k + 1)) <= 20 / nodes
    nearest = products.fill_diagonal_(-1.0).amax(1).acos()
    assert float(nearest.min()) >= 0.5 * h
    directions = torch.nn.functional.normalize(torch.randn(2000, 4, dtype=torch.float64), dim=1)
    assert float((directions @ x.T).amax(1).acos().max()) <= 1.2 * h


# ---------------------------------------------------------------------------------------------------------------- grid


@pytest.mark.parametrize("grid", GRIDS)
def test_points_are_in_the_order_of_the_tensor(grid: str) -> None:
    g = GRIDS[grid]()
    points, bare = g.points(), g.points(sheets=False) if not isinstance(g.factors[-1], Sheets) else None
    assert points.shape == (g.size, sum(f.nodes.shape[1] for f in g.factors))
    for row, index in list(enumerate(itertools.product(*map(range, g.shape))))[:: max(1, g.size // 50)]:
        pieces = [f.nodes[i] for f, i in zip(g.factors, index, strict=True)]
        assert torch.equal(points[row], torch.cat(pieces))
        kept = [p for p, f in zip(pieces, g.factors, strict=True) if not isinstance(f, Sheets)]
        assert bare is not None
        assert torch.equal(bare[row], torch.cat(kept))


@pytest.mark.parametrize("grid", GRIDS)
def test_cells_of_a_grid_are_products_of_cells(grid: str) -> None:
    g = GRIDS[grid]()
    assert g.log_weights.shape == g.edge.shape == g.shape
    volume = math.prod(float(f.log_weights.exp().sum()) for f in g.factors)
    assert float(g.log_weights.exp().sum()) == pytest.approx(volume, rel=1e-13)  # 2000 terms
    inner = math.prod(int((~f.edge).sum()) for f in g.factors)
    assert int((~g.edge).sum()) == inner
    assert g.spacing == max(f.spacing for f in g.factors)
    assert g.size == math.prod(g.shape) == len(g.points())


def test_values_along_a_factor_broadcast() -> None:
    g = Grid((signs(), Line.uniform(0.0, 1.0, 4), Circle.uniform(5)))
    for k, n in enumerate(g.shape):
        values = torch.arange(float(n), dtype=torch.float64)
        spread = g.along(k, values).expand(g.shape)
        for index in itertools.product(*map(range, g.shape)):
            assert spread[index] == index[k]


def test_sums_are_float64_in_any_dtype(dtype: torch.dtype, device: torch.device) -> None:
    g = Grid.uniform([0.0, 0.0], [1.0, 1.0], [1000, 1000], dtype=dtype, device=device)
    x = torch.full(g.shape, 0.1, dtype=dtype, device=device)
    x[0, 0] = 1e6
    # A float32 sum is wrong by 1e-2 here. A float64 sum of N = 10^6 terms: pairwise, log2 N roundings.
    exact = 1e6 + (g.size - 1) * float(torch.tensor(0.1, dtype=dtype))
    assert g.sum(x).dtype == torch.float64
    assert float(g.sum(x)) == pytest.approx(exact, rel=20 * 2.3e-16)


def test_matches_tells_grids_apart(dtype: torch.dtype) -> None:
    def make(high: float = 1.0, nodes: int = 9, kind: torch.dtype = dtype) -> Grid:
        return Grid.uniform([-1.0, 0.0], [1.0, high], [5, nodes], dtype=kind)

    g = make()
    other = torch.float32 if dtype == torch.float64 else torch.float64
    assert g.matches(g)
    assert g.matches(make())
    assert not g.matches(make(high=1.001))
    assert not g.matches(make(nodes=10))
    assert not g.matches(make(kind=other))
    assert not g.matches(Grid(g.factors[::-1]))
    assert not g.matches(g.widened(1))
    assert not Grid((Circle.uniform(5),)).matches(Grid((Line.at(torch.arange(5, dtype=torch.float64)),)))


@pytest.mark.parametrize("grid", GRIDS)
def test_there_and_back_in_another_dtype(grid: str) -> None:
    g = GRIDS[grid]()
    low = g.to(dtype=torch.float32)
    assert low.dtype == low.log_weights.dtype == torch.float32
    assert low.to(dtype=torch.float32).matches(low)
    back = low.to(dtype=torch.float64)
    for f, f_back in zip(g.factors, back.factors, strict=True):
        assert ((f.nodes - f_back.nodes).abs() <= ulp(f.nodes.abs().clamp(min=2.0**-126)) / 2).all()
        assert f.spacing == f_back.spacing


# ------------------------------------------------------------------------------------------------------------- widened


@given(nodes=st.integers(2, 60), more=st.integers(0, 40), seed=st.integers(0, 10**6))
def test_widening_keeps_old_nodes_and_the_end_spacings(nodes: int, more: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (0.1 + torch.rand(nodes, generator=generator, dtype=torch.float64)).cumsum(0)
    wide = Grid((Line.at(x),)).widened(more).factors[0]
    y = wide.nodes[:, 0]
    assert y.numel() == nodes + 2 * more
    assert torch.equal(y[more : more + nodes], x)
    gaps = y.diff()
    # A new node is x_0 - k (x_1 - x_0): three roundings of |y|.
    slack = 4 * 2.3e-16 * float(y.abs().max())
    assert (gaps[:more] - (x[1] - x[0])).abs().max() <= slack if more else True
    assert (gaps[more + nodes - 1 :] - (x[-1] - x[-2])).abs().max() <= slack if more else True
    assert wide.edge.nonzero().reshape(-1).tolist() == [0, y.numel() - 1]


def test_a_widened_uniform_grid_stays_uniform(dtype: torch.dtype) -> None:
    g = Grid((signs().to(dtype=dtype), Line.uniform(-3.0, 3.0, 129, dtype=dtype), Circle.uniform(8, dtype=dtype)))
    wide = g.widened(30)
    assert wide.shape == (2, 189, 8)
    assert wide.uniform_weights
    assert wide.spacing == g.spacing
    assert torch.equal(wide.factors[1].nodes[30:159], g.factors[1].nodes)
    gaps = wide.factors[1].nodes[:, 0].double().diff()
    assert (gaps - g.factors[1].spacing).abs().max() <= 4 * torch.finfo(dtype).eps * 5  # nodes up to 4.4, rounded
    assert wide.factors[0] is g.factors[0]
    assert wide.factors[2] is g.factors[2]
    assert float(wide.log_weights.double().exp().sum()) == pytest.approx(
        float(g.log_weights.double().exp().sum()) * 189 / 129, rel=1e-6 if dtype == torch.float32 else 1e-13
    )


def test_widening_by_nothing_changes_nothing() -> None:
    for make in GRIDS.values():
        g = make()
        assert g.widened(0).matches(g)
        assert torch.equal(g.widened(0).log_weights, g.log_weights)
    point = GRIDS["point"]()
    assert point.widened(3).matches(point)  # one node has no spacing to go on with


# --------------------------------------------------------------------------------------------------------------- errors


def test_axes_that_are_none_are_refused() -> None:
    def line(*x: float) -> Factor:
        return Line.at(torch.tensor(x, dtype=torch.float64))

    with pytest.raises(GridError, match="empty or not finite"):
        line()
    with pytest.raises(GridError, match="empty or not finite"):
        line(0.0, math.nan)
    with pytest.raises(GridError, match="do not increase strictly.*sort them"):
        line(0.0, 1.0, 1.0)
    with pytest.raises(GridError, match="from 1.0 to -1.0 with 5 nodes, need low < high"):
        Line.uniform(1.0, -1.0, 5)
    with pytest.raises(GridError, match="with 0 nodes, need low < high and nodes >= 1"):
        Line.uniform(-1.0, 1.0, 0)
    with pytest.raises(GridError, match="from nan"):
        Line.uniform(math.nan, 1.0, 4)
    with pytest.raises(GridError, match="circle of 2 nodes, need at least 3"):
        Circle.uniform(2)
    for angles in ([0.0, 1.0], [0.0, 2.0, 1.0], [0.0, 1.0, 7.0], [0.0, 1.0, math.nan]):
        with pytest.raises(GridError, match="angles that do not increase strictly within one turn"):
            Circle.at(torch.tensor(angles, dtype=torch.float64))
    with pytest.raises(GridError, match=r"sphere S\^2 of 5 nodes, need S\^2 or S\^3 and at least 6"):
        Sphere.fibonacci(5)
    with pytest.raises(GridError, match=r"sphere S\^4 of 50 nodes, need S\^2 or S\^3"):
        Sphere.fibonacci(50, dim=4)
    for values in ([], [1.0, 1.0]):
        with pytest.raises(GridError, match="need one or more distinct values"):
            Sheets.of(values)


def test_grids_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(GridError, match="no factors, need at least one"):
        Grid(())
    with pytest.raises(GridError, match=r"dtypes and devices .*float32.*float64.*call \.to\(\) first"):
        Grid((Line.uniform(0.0, 1.0, 3), Line.uniform(0.0, 1.0, 3, dtype=torch.float32)))
    with pytest.raises(GridError, match="2 lows, 1 highs and a shape of 2 axes, need as many of each"):
        Grid.uniform([0.0, 0.0], [1.0], [3, 3])
    with pytest.raises(GridError, match="-1 nodes to add, need 0 or more"):
        GRIDS["line"]().widened(-1)


def test_values_of_another_grid_are_refused() -> None:
    g = GRIDS["plane"]()
    with pytest.raises(GridError, match=r"mass of shape \(3,\), need the grid's \(40, 33\)"):
        g.check(torch.zeros(3, dtype=torch.float64), "mass")
    with pytest.raises(GridError, match=r"float32, need the grid's torch.float64: convert one"):
        g.check(torch.zeros(g.shape, dtype=torch.float32), "mass")
    with pytest.raises(GridError, match=r"on meta, need the grid's cpu: move one"):
        g.check(torch.zeros(g.shape, dtype=torch.float64, device="meta"), "mass")
