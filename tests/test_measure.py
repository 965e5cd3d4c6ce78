"""Measures: moments, deposits, widths, boundary mass, conversions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bigjko import GridMeasure, ParticleMeasure
from bigjko.errors import MeasureError
from bigjko.measure import deposit
from bigjko_kernels import LOG_ZERO, Circle, Grid, GridError, Line, Sheets, Sphere

from .registry import GRIDS, sinh_axis


def moments(measure: GridMeasure) -> tuple[Tensor, Tensor]:
    """Mean and variance per coordinate."""
    x, p = measure.grid.points().double(), measure.masses.double().reshape(-1, 1)
    p = p / p.sum()
    mean = (p * x).sum(0)
    return mean, (p * (x - mean) ** 2).sum(0)


def test_a_gaussian_has_its_moments(dtype: torch.dtype, device: torch.device) -> None:
    grid = Grid.uniform([-3.0, -2.0], [3.0, 2.0], [121, 101], dtype=dtype, device=device)
    mean = torch.tensor([0.3, -0.2], dtype=dtype, device=device)
    std = torch.tensor([0.3, 0.15], dtype=dtype, device=device)  # 6 and 3.75 nodes, 9 and 12 deviations of room
    measure = GridMeasure.gaussian(grid, mean, std, mass=0.7)
    assert (measure.log_masses.dtype, measure.log_masses.device) == (dtype, device)
    got_mean, got_var = moments(measure)
    # The trapezoidal rule is exact to exp(-2 pi^2 (std/h)^2) < 1e-100; what is left is rounding of log masses up to
    # 100 (float32: an ulp of 7.6e-6).
    tolerance = 1e-14 if dtype == torch.float64 else 1e-5
    assert (got_mean - mean.double()).abs().max() <= tolerance
    assert (got_var - std.double() ** 2).abs().max() <= tolerance
    assert float(measure.mass) == pytest.approx(0.7, rel=10 * torch.finfo(dtype).eps)


def test_one_number_serves_every_axis() -> None:
    grid = GRIDS["plane"]()
    same = GridMeasure.gaussian(grid, *torch.tensor([[0.1, 0.1], [0.4, 0.4]], dtype=torch.float64))
    assert (GridMeasure.gaussian(grid, 0.1, 0.4).log_masses - same.log_masses).abs().max() <= 1e-15 * 100


def test_a_density_becomes_masses_by_cell_volume() -> None:
    # Uneven cells: a density of nodes is not one of masses.
    grid = Grid((sinh_axis(201),))
    x = grid.points()[:, 0]
    direct = GridMeasure.gaussian(grid, 0.2, 0.5)
    measure = GridMeasure.from_density(grid, lambda points: 7 * (-((points[:, 0] - 0.2) ** 2) / 0.5).exp())
    assert (measure.masses - direct.masses).abs().max() <= 1e-15
    mean, variance = moments(measure)
    # The midpoint rule on cells that grow by a ratio 1 + g: second order, h^2/12 of curvature with h <= .06.
    assert float(mean[0]) == pytest.approx(0.2, abs=0.06**2)
    assert float(variance[0]) == pytest.approx(0.25, abs=0.06**2)
    assert torch.allclose(measure.masses, (-((x - 0.2) ** 2) / 0.5).exp() * grid.log_weights.exp() / 1.2533, rtol=1e-3)
    half = GridMeasure.from_density(grid, lambda points: (points[:, 0] > 0).double(), mass=2.0)
    assert (half.log_masses[x <= 0] == LOG_ZERO).all()
    assert float(half.mass) == pytest.approx(2.0, rel=1e-14)


@pytest.mark.parametrize("grid", GRIDS)
def test_uniform_is_proportional_to_the_cells(grid: str) -> None:
    g = GRIDS[grid]()
    measure = GridMeasure.uniform(g, mass=3.0)
    assert float(measure.mass) == pytest.approx(3.0, rel=1e-13)
    ratio = measure.log_masses - g.log_weights
    assert ratio.max() - ratio.min() <= 1e-14 * 20


def test_boundary_mass_is_the_share_on_the_edge() -> None:
    grid = Grid((Sheets.of([1.0, -1.0]), Line.uniform(0.0, 1.0, 4), Circle.uniform(5)))
    measure = GridMeasure(grid, torch.zeros(grid.shape, dtype=torch.float64))
    assert float(measure.boundary_mass) == pytest.approx(0.5, rel=1e-15)  # two of four nodes on the line
    assert float(GridMeasure.uniform(Grid((Circle.uniform(5),))).boundary_mass) == 0.0
    assert float(GridMeasure.uniform(GRIDS["point"]()).boundary_mass) == 0.0


# --------------------------------------------------------------------------------------------------------------- width


@pytest.mark.parametrize("nodes", [2.0, 3.0, 7.3, 20.0])
def test_the_width_of_a_gaussian_is_its_deviation_in_nodes(nodes: float, dtype: torch.dtype) -> None:
    # 4 sum (sqrt p_k+1 - sqrt p_k)^2 = 8 (1 - exp(-h^2 / (8 s^2))): s/h up to h^2/(16 s^2) / 2 = .8% at 2 nodes.
    grid = Grid.uniform([-1.0], [1.0], [401], dtype=dtype)
    measure = GridMeasure.gaussian(grid, 0.013, nodes * grid.spacing)
    assert float(measure.width) == pytest.approx(nodes, rel=0.01)
    exact = 1 / math.sqrt(8 * (1 - math.exp(-1 / (8 * nodes**2))))
    assert float(measure.width) == pytest.approx(exact, rel=1e-10 if dtype == torch.float64 else 1e-4)


def test_the_width_of_one_node_is_a_third() -> None:
    for grid in (Grid.uniform([-1.0], [1.0], [41]), Grid((Circle.uniform(41),))):
        b = torch.full(grid.shape, LOG_ZERO, dtype=torch.float64)
        b[17] = 0.3
        assert float(GridMeasure(grid, b).width) == pytest.approx(1 / math.sqrt(8), rel=1e-14)


def test_the_smallest_width_over_the_axes_counts() -> None:
    grid = Grid((Sheets.of([1.0, -1.0]), Line.uniform(-1.0, 1.0, 201), Circle.uniform(100), Line.uniform(0.0, 1.0, 1)))
    x = grid.factors[1].nodes[:, 0]
    angle = torch.arange(100, dtype=torch.float64) - 50
    b = grid.along(1, -(x**2) / (2 * 0.05**2)) + grid.along(2, -(angle**2) / (2 * 3.0**2))  # 5 and 3 nodes
    measure = GridMeasure(grid, b.expand(grid.shape).contiguous())
    assert float(measure.width) == pytest.approx(3.0, rel=0.01)
    # Periodic: the same bump across the seam.
    turned = GridMeasure(grid, measure.log_masses.roll(50, dims=2))
    assert float(turned.width) == pytest.approx(float(measure.width), rel=1e-12)
    assert float(GridMeasure.uniform(Grid((Sphere.fibonacci(20),))).width) == math.inf
    # A feature that holds a share f of the mass shows as s / sqrt(f).
    line = Grid.uniform([-1.0], [1.0], [401])
    wide, narrow = GridMeasure.gaussian(line, -0.5, 0.1), GridMeasure.gaussian(line, 0.5, 0.01, mass=0.25)
    both = GridMeasure(line, (wide.masses + narrow.masses).log())
    assert float(both.width) == pytest.approx(1 / math.sqrt(0.2 / 2.0**2 + 0.8 / 20**2), rel=0.02)


# ------------------------------------------------------------------------------------------------------------- deposit


def point(*x: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([x], dtype=dtype)


@given(x=st.floats(-0.5, 0.5), y=st.floats(-0.5, 0.5), width=st.sampled_from([1.0, 3.0]))
def test_a_deposited_point_keeps_mass_and_mean(x: float, y: float, width: float) -> None:
    grid = Grid.uniform([-2.0, -1.5], [2.0, 1.5], [161, 151])
    measure = deposit(grid, point(x, y), torch.tensor([0.7], dtype=torch.float64), width=width)
    assert float(measure.mass) == pytest.approx(0.7, rel=1e-12)
    mean, variance = moments(measure)
    # The box begins 13 deviations away: the mean is off by rounding alone. A Gaussian of `width` nodes on nodes has
    # variance width^2 h^2 up to 4 pi^2 exp(-2 pi^2 width^2) = 1e-7 of it for one node; the sharing adds t (1 - t) h^2.
    assert (mean - torch.tensor([x, y], dtype=torch.float64)).abs().max() <= 1e-13
    for axis, at in enumerate((x, y)):
        h = grid.factors[axis].spacing
        t = (at - float(grid.factors[axis].nodes[0])) / h % 1
        added = float(variance[axis]) / h**2
        assert added == pytest.approx(width**2 + t * (1 - t), abs=1e-6)
        assert width**2 - 1e-6 <= added <= width**2 + 0.25 + 1e-6


def test_deposits_in_float32_keep_their_mass() -> None:
    grid = Grid.uniform([-2.0, -2.0], [2.0, 2.0], [81, 81], dtype=torch.float32)
    measure = deposit(grid, point(0.21, -0.4, dtype=torch.float32), torch.tensor([0.7]))
    # Log masses down to -1000 are rounded to float32, those that count (above -20) by 1e-6 each, at random.
    assert float(measure.mass) == pytest.approx(0.7, rel=1e-5)
    assert (moments(measure)[0] - torch.tensor([0.21, -0.4], dtype=torch.float64)).abs().max() <= 1e-5


def test_deposits_on_uneven_axes_keep_mass_and_nearly_the_mean() -> None:
    grid = Grid((sinh_axis(301), Line.uniform(-1.0, 1.0, 81)))
    h = grid.factors[0].spacing
    measure = deposit(grid, point(0.3, 0.11), torch.ones(1, dtype=torch.float64))
    assert float(measure.mass) == pytest.approx(1.0, rel=1e-12)
    mean, variance = moments(measure)
    # Cells of the blur's nodes vary smoothly: their sum is an integral to second order in h there, of a blur of 3 h.
    assert float(mean[0]) == pytest.approx(0.3, abs=h**2)
    assert float(mean[1]) == pytest.approx(0.11, abs=1e-13)
    assert 9 * (1 - h) <= float(variance[0]) / h**2 <= 9.25 * (1 + h)


def test_points_on_nodes_and_at_the_edge_are_taken() -> None:
    grid = Grid.uniform([-1.0, 0.0], [1.0, 0.0], [81, 1])
    for x in (-1.0, 0.5, 1.0):
        measure = deposit(grid, point(x, 0.0), torch.ones(1, dtype=torch.float64))
        assert float(measure.mass) == pytest.approx(1.0, rel=1e-12)
    corners = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    both = deposit(grid, corners, torch.tensor([0.25, 0.5], dtype=torch.float64))
    assert (both.masses - both.masses.flip(0) / 2).abs()[:30].max() <= 1e-12  # mirror images


def test_points_outside_the_box_are_refused() -> None:
    grid = Grid.uniform([-1.0, -1.0], [1.0, 1.0], [9, 9])
    one = torch.ones(1, dtype=torch.float64)
    with pytest.raises(GridError, match=r"coordinate 1.5 on axis 1, need all within \[-1, 1\]: widen the grid"):
        deposit(grid, point(0.0, 1.5), one)
    with pytest.raises(GridError, match=r"points in R\^3 for .*, need a grid of as many lines"):
        deposit(grid, point(0.0, 0.0, 0.0), one)
    with pytest.raises(GridError, match="as many lines"):
        deposit(Grid((Circle.uniform(5),)), point(0.0), one)
    with pytest.raises(GridError, match=r"points in torch.float32 .* need the grid's torch.float64"):
        deposit(grid, point(0.0, 0.0, dtype=torch.float32), one)
    for width in (0.0, -1.0, math.nan):
        with pytest.raises(GridError, match=f"width of {width} nodes, need a positive"):
            deposit(grid, point(0.0, 0.0), one, width=width)


def test_from_particles_adds_up_deposits() -> None:
    grid = Grid.uniform([-1.0, -1.0], [1.0, 1.0], [41, 41])
    particles = ParticleMeasure(
        torch.tensor([[0.1, 0.2], [-0.3, 0.3]], dtype=torch.float64), torch.tensor([0.3, 0.6], dtype=torch.float64)
    )
    measure = GridMeasure.from_particles(grid, particles)
    parts = [deposit(grid, x[None], m[None]).masses for x, m in zip(particles.positions, particles.masses, strict=True)]
    assert (measure.masses - parts[0] - parts[1]).abs().max() <= 1e-15
    assert (measure.masses > 0).all()


# --------------------------------------------------------------------------------------------------------- conversions


@pytest.mark.parametrize("drop", [0.0, 1e-12, 1e-2])
def test_particles_sit_on_the_nodes_with_their_masses(drop: float) -> None:
    measure = GridMeasure.gaussian(Grid.uniform([-3.0, -3.0], [3.0, 3.0], [41, 37]), 0.2, 0.5, mass=0.7)
    particles = measure.to_particles(drop=drop)
    kept = measure.masses.reshape(-1) > drop * measure.masses.max()
    assert torch.equal(particles.positions, measure.grid.points()[kept])
    assert float(particles.mass) == pytest.approx(0.7, rel=1e-13)
    share = particles.masses / measure.masses.reshape(-1)[kept]
    assert share.max() / share.min() - 1 <= 1e-14  # all scaled up alike
    if drop == 0.0:
        assert (share - 1).abs().max() <= 1e-14


def test_to_particles_needs_lines() -> None:
    for grid in (Grid((Circle.uniform(5),)), Grid((Sheets.of([1.0, -1.0]), Line.uniform(0.0, 1.0, 3)))):
        with pytest.raises(MeasureError, match=r"whose nodes are no \(w, a\): use neurons.particles\(measure\)"):
            GridMeasure.uniform(grid).to_particles()
    with pytest.raises(MeasureError, match="need lines only: on directions use"):
        GridMeasure.gaussian(Grid((Circle.uniform(5),)), 0.0, 1.0)


def test_there_and_back_in_another_dtype() -> None:
    measure = GridMeasure.gaussian(GRIDS["plane"](), 0.2, 0.5)
    low = measure.to(dtype=torch.float32)
    assert low.log_masses.dtype == low.grid.dtype == torch.float32
    assert float(low.mass) == pytest.approx(1.0, rel=1e-6)
    particles = measure.to_particles().to(dtype=torch.float32)
    assert particles.positions.dtype == particles.masses.dtype == torch.float32
    assert torch.equal(particles.positions.double(), measure.to_particles().positions.float().double())


def test_a_network_is_a_measure_of_mass_one() -> None:
    W, a = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    particles = ParticleMeasure.from_network(W, a)
    assert torch.equal(particles.w, W)
    assert torch.equal(particles.a, a)
    assert particles.shape == (5,)
    assert float(particles.mass) == pytest.approx(1.0, rel=1e-15)
    assert torch.equal(particles.masses, torch.full_like(a, 0.2))
