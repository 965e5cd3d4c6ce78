"""P4: the cone of balanced neurons and the seed's flat metric; the kernel on a circle times a line."""

import math
import warnings

import pytest
import torch
from torch import Tensor

import bigjko as bj
from bigjko.errors import MeasureError
from bigjko.neurons import Free, Polar, PolarCone, PolarFlat, UnitDirections
from bigjko.particles import velocity
from bigjko_kernels import LOG_ZERO, Circle, Circulant, Cone, Dense, Grid, GridError, Lazy, Line, gibbs

from .registry import GRIDS, data, gap
from .test_flows import five_points, sup_gap

D = torch.float64


def directions(m: int, dim: int) -> Tensor:
    return torch.nn.functional.normalize(
        torch.randn(m, dim, dtype=D, generator=torch.Generator().manual_seed(2)), dim=1
    )


# ------------------------------------------------------------------------------------------------------------ the cost


@pytest.mark.parametrize("dim", [2, 3])
def test_the_cone_is_the_distance_of_balanced_neurons(dim: int) -> None:
    """D^2 / 2 between neighbours is |dw|^2 + |da|^2, halved, to third order in their distance."""
    d, r = directions(50, dim), 0.5 + torch.rand(50, 1, dtype=D)
    for small in (1e-2, 1e-3):
        near = torch.nn.functional.normalize(d + small * directions(50, dim).roll(1, 0), dim=1)
        longer = r * (1 + small)
        c = Cone()(torch.cat([d, r], 1), torch.cat([near, longer], 1))
        straight = ((r * d - longer * near) ** 2).sum(1) / 2 + ((r - longer) ** 2).sum(1) / 2
        assert ((c - straight).abs() / straight).max() <= 2 * small


def test_the_cone_agrees_with_its_closed_form() -> None:
    """r1^2 + r2^2 - 2 r1 r2 cos(Omega / sqrt 2); at the apex all directions are one point."""
    first, omega = 2 * math.pi * torch.rand(40, dtype=D), torch.linspace(0, math.pi, 40, dtype=D)
    x, y = (torch.stack([angle.cos(), angle.sin()], 1) for angle in (first, first + omega))
    r1, r2 = torch.rand(2, 40, 1, dtype=D).unbind(0)
    expected = (r1**2 + r2**2 - 2 * r1 * r2 * (omega[:, None] / math.sqrt(2)).cos())[:, 0]
    assert gap(Cone()(torch.cat([x, r1], 1), torch.cat([y, r2], 1)), expected) <= 1e-14
    apex = torch.zeros(40, 1, dtype=D)
    assert gap(Cone()(torch.cat([x, apex], 1), torch.cat([y, r2], 1)), r2[:, 0] ** 2) <= 1e-15


# ---------------------------------------------------------------------------------------------------------- its kernel


def test_the_default_kernel_of_a_cone() -> None:
    for name, kind in (("signed cone", Circulant), ("uneven cone", Dense), ("cone over a sphere", Dense)):
        assert type(gibbs(GRIDS[name](), 0.1, Cone())) is kind
    assert type(gibbs(GRIDS["signed cone"]().to(dtype=torch.float32), 0.1, Cone())) is Dense
    many = Grid((Circle.uniform(64), Line.uniform(0.5, 2.0, 32)))
    assert type(gibbs(many.to(dtype=torch.float32), 0.1, Cone())) is Lazy


def test_circulant_has_the_gradient_of_the_dense_kernel() -> None:
    grid = GRIDS["signed cone"]()
    b = torch.randn(grid.shape, dtype=D, generator=torch.Generator().manual_seed(1))
    b[0, 3] = LOG_ZERO
    weights = torch.randn(grid.shape, dtype=D, generator=torch.Generator().manual_seed(2))
    found = []
    for kernel in (Circulant(grid, 0.01, Cone()), Dense(grid, 0.01, Cone())):
        c = b.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((weights * kernel.log_apply(c)).sum(), c)
        found.append(gradient)
    # Two adjoint applications, each right to 1e-14 of numbers of order 1.
    assert gap(*found) <= 1e-12


def test_circulant_mends_and_widens_what_its_reach_misses() -> None:
    """Mass far from most outputs: nothing within reach, so it must look farther, and mend what is left."""
    grid = Grid((Circle.uniform(48), Line.radii(3.0, 20, 1)))
    b = torch.full(grid.shape, LOG_ZERO, dtype=D)
    b[5, 18] = 0.3
    epsilon = 0.75 * 0.2**2
    kernel = Circulant(grid, epsilon, Cone())
    reach = kernel.reach
    expected = Dense(grid, epsilon, Cone()).log_apply(b)
    out = kernel.log_apply(b)
    assert max(kernel.reach) > max(reach)
    assert ((out - expected).abs() / (1 + expected.abs())).max() <= 1e-12


# ------------------------------------------------------------------------------------------------------------- the ways


def test_polar_chooses_its_metric() -> None:
    assert type(Polar()) is type(Polar(metric="cone")) is PolarCone
    assert type(Polar(metric="flat")) is PolarFlat
    with pytest.raises(GridError, match=r"received the metric 'round', need one of \['cone', 'flat'\]"):
        Polar(metric="round")


@pytest.mark.parametrize("way", [PolarCone(), PolarFlat()], ids=repr)
def test_polar_grids_are_as_fine_along_as_around(way: bj.neurons.Neurons) -> None:
    for dim in (2, 3):
        grid = way.grid(64, dim, radius=2.0)
        around, line = grid.factors[-2:]
        rim = 2.0 if isinstance(way, PolarCone) else 1.0
        stretch = math.sqrt(2) if isinstance(way, PolarCone) else 1.0
        assert way.spacing(grid) == pytest.approx(rim * around.spacing, rel=1e-12)
        assert 0.8 * rim * around.spacing <= stretch * line.spacing <= rim * around.spacing * (1 + 1e-12)
        assert way.grid(64, dim, radius=2.0).edge.any()
    with pytest.raises(GridError, match=r"data in R\^4, need R\^2 or R\^3 for Polar"):
        way.grid(64, 4)


def test_the_apex_is_no_edge_and_radii_grow_outwards_only() -> None:
    line = PolarCone().grid(32, 2, radius=1.0).factors[2]
    assert line.edge.tolist() == [False] * (line.size - 1) + [True]
    wide = Grid((line,)).widened(3).factors[0]
    more = Line.radii(float(line.nodes[-1]) + 3 * line.spacing, line.size + 3, 1)
    assert gap(wide.nodes, more.nodes) <= 1e-15
    assert gap(wide.log_weights, more.log_weights) <= 1e-14
    assert torch.equal(wide.edge, more.edge)


def test_polar_cone_refuses_unbalanced_networks_and_neurons_outside() -> None:
    way = PolarCone()
    grid = way.grid(32, 2, radius=1.0)
    W, a = directions(3, 2) / 2, torch.tensor([0.5, -0.5, 0.25], dtype=D)
    with pytest.raises(MeasureError, match=r"up to 0.5 apart \(relative\), need \|w\| = \|a\| for PolarCone"):
        way.measure(grid, W, a)
    with pytest.raises(GridError, match="received a neuron with coordinate 1.5"):
        way.measure(grid, 3 * W, 3 * W.norm(dim=1))
    with pytest.raises(MeasureError, match="received a neuron with w = 0, need a direction"):
        PolarFlat().measure(PolarFlat().grid(32, 2), 0 * W, a)


def test_polar_cone_keeps_each_signs_mass() -> None:
    way, X = PolarCone(), data(2)
    risk = bj.Risk(X, torch.linspace(-1, 1, len(X), dtype=D), neurons=way)
    grid = way.grid(48, 2, radius=2.0)
    start = bj.GridMeasure.from_density(grid, lambda p: (2 + p[:, 0]) * torch.exp(-((p[:, 3] - 1) ** 2) / 0.05))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a coarse grid
        flow = bj.evolve(bj.JKO(risk, grid, tau=0.05), start, 0.2)
    before, after = (m.masses.sum((1, 2)) for m in flow.measures)
    assert float(before[0] / before[1]) == pytest.approx(3.0, rel=1e-12)
    assert gap(before, after) <= 1e-14


# --------------------------------------------------------------------------------------------------- the flat dynamics


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_the_flat_flow_of_particles_is_riemannian_descent(dim: int, decay: float) -> None:
    """-grad F in (direction, s), its part along the direction taken off, by autograd on the network itself."""
    way, X = PolarFlat(), data(dim)
    y = torch.linspace(-1, 1, len(X), dtype=D)
    d, s = directions(7, dim), torch.linspace(-1, 1.3, 7, dtype=D)
    masses = torch.linspace(0.1, 0.4, 7, dtype=D)
    found = velocity(
        bj.Risk(X, y, neurons=way, weight_decay=decay), bj.ParticleMeasure(torch.cat([d, s[:, None]], 1), masses)
    )
    theta = torch.cat([d, s[:, None]], 1).requires_grad_()
    outputs = torch.relu(X @ theta[:, :dim].T) @ (masses * theta[:, dim])
    F = ((outputs - y) ** 2).sum() + decay * (masses * 2 * theta[:, dim].abs()).sum()
    (slope,) = torch.autograd.grad(F, theta)
    slope = slope / masses[:, None]  # of the flow of the measure: no 1 / m
    turn = slope[:, :dim] - (slope[:, :dim] * d).sum(1, keepdim=True) * d
    assert gap(found, -torch.cat([turn, slope[:, dim:]], 1)) <= 1e-13


def test_flat_particles_stay_on_the_sphere_and_balanced_ones_are_the_same_network() -> None:
    way, X = PolarFlat(), data(2)
    risk = bj.Risk(X, torch.linspace(-1, 1, len(X), dtype=D), neurons=way)
    measure = way.measure(way.grid(48, 2), directions(5, 2), torch.linspace(-1, 1, 5, dtype=D))
    particles = way.particles(measure)
    assert risk.neurons.dynamics == UnitDirections()
    moved = bj.evolve(bj.GradientDescent(risk, tau=0.01), particles, 0.1).final
    assert isinstance(moved, bj.ParticleMeasure)
    assert gap(moved.w.norm(dim=1), torch.ones(moved.masses.numel(), dtype=D)) <= 1e-15
    balanced = particles.balanced()
    assert gap(balanced.w.norm(dim=1), balanced.a.abs()) <= 1e-15
    assert gap(risk.outputs(balanced), risk.outputs(particles)) <= 1e-14


# ----------------------------------------------------------------------------------------------------------- the flows


def bump(r: Tensor) -> Tensor:
    """A density of radii without long tails, so that a box of moderate size holds what it grows to."""
    return torch.exp(-(((r - 1.4) / 0.55) ** 4))


def gaps(risk: bj.Risk, grid: Grid, start: bj.GridMeasure, reference: bj.Flow, taus: tuple[float, ...]) -> list[float]:
    """Sup gaps of the debiased flow / max |y|."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bj.NarrowMeasureWarning)  # mass condenses on kinks
        return [
            sup_gap(bj.evolve(bj.JKO(risk, grid, tau=tau, entropy=bj.Debiased(6)), start, 0.5), reference) / 0.8
            for tau in taus
        ]


@pytest.mark.slow
def test_on_the_cone_the_flow_is_gradient_descent_and_in_the_flat_metric_it_is_not() -> None:
    """Five points, the same start: on the cone the gap to GD falls with tau, in the flat metric it stays.

    The flat flow is close to its own particles' all the same. References are GD at tau / 8; their own error, at most
    their change when that step is doubled, is held ten times below the gaps that are compared.
    """
    cone, flat = PolarCone(), PolarFlat()
    risk = five_points(cone)
    grid = cone.grid(96, 2, radius=4.0)
    start = bj.GridMeasure.from_density(grid, lambda p: bump(p[:, 3]) / p[:, 3])
    fine, coarse = (
        bj.evolve(bj.GradientDescent(risk, tau=0.025 / k), cone.particles(start, drop=1e-8), 0.5, record=k)
        for k in (16, 8)
    )
    found = gaps(risk, grid, start, fine, (0.1, 0.05))
    assert sup_gap(coarse, fine) / 0.8 <= found[1] / 10
    assert found[0] / found[1] >= 1.6  # first order, above a floor of the nodes
    assert found[1] <= 0.03

    risk = five_points(flat)
    grid = flat.grid(64, 2, radius=6.0)
    start = bj.GridMeasure.from_density(
        grid, lambda p: bump(p[:, 2].abs().sqrt()) / p[:, 2].abs().clamp(min=1e-9).sqrt()
    )
    particles = flat.particles(start, drop=1e-8)
    descent = bj.GradientDescent(risk, tau=0.025 / 8, dynamics=Free())
    to_descent = gaps(risk, grid, start, bj.evolve(descent, particles.balanced(), 0.5, record=8), (0.1, 0.05))
    own = bj.evolve(bj.GradientDescent(risk, tau=0.025 / 8), particles, 0.5, record=8)
    to_own = gaps(risk, grid, start, own, (0.05,))
    assert min(to_descent) >= 0.15
    assert to_descent[0] / to_descent[1] <= 1.05  # it does not fall
    assert to_own[0] <= min(to_descent) / 10


@pytest.mark.slow
@pytest.mark.parametrize("way", [PolarCone(), PolarFlat()], ids=repr)
def test_polar_flows_over_a_sphere(way: bj.neurons.Neurons) -> None:
    """d = 3, a coarse grid, no sum of costs; outputs move as particles' do, within a fifth of how far they move."""
    X = torch.tensor([[1.0, 0.2, 0.0], [-0.3, 0.9, 0.4]], dtype=D)
    risk = bj.Risk(X, torch.tensor([0.6, -0.3], dtype=D), neurons=way)
    grid = way.grid(150, 3, radius=2.0)
    assert type(gibbs(grid, 0.1, way.cost)) in (Dense, Lazy)
    W = directions(12, 3) * 0.8
    start = way.measure(grid, W, W.norm(dim=1) * torch.tensor([1.0, -1.0], dtype=D).repeat(6), width=1.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such a grid is too coarse, and its box too small
        flow = bj.evolve(bj.JKO(risk, grid, tau=0.05), start, 0.2)
    particles = bj.evolve(bj.GradientDescent(risk, tau=0.0025), way.particles(start), 0.2, record=20)
    assert float(flow.final.mass) == pytest.approx(1.0, rel=1e-12)
    moved = (particles.outputs - particles.outputs[0]).abs().max()
    assert sup_gap(flow, particles) <= 0.2 * moved


def test_zero_neurons_are_left_out_of_a_cone() -> None:
    """Balanced, and no output sees them: the measure is that of the others with their own masses, not the mean's."""
    way = Polar("cone")
    grid = way.grid(16, 2, radius=1.0)
    W, a = torch.tensor([[0.5, 0.0], [0.0, 0.0], [0.3, 0.4]], dtype=D), torch.tensor([0.5, 0.0, -0.5], dtype=D)
    kept = torch.tensor([0, 2])
    others = way.measure(grid, W[kept], a[kept], masses=torch.full((2,), 1 / 3, dtype=D))
    assert torch.equal(way.measure(grid, W, a).masses, others.masses)
    with pytest.raises(bj.MeasureError, match="without mass"):
        way.measure(grid, W[1:2], a[1:2])


@pytest.mark.parametrize("metric", ["cone", "flat"])
@pytest.mark.parametrize("width", [-3.0, 0.0, float("nan")])
def test_a_width_that_is_none_is_refused(metric: str, width: float) -> None:
    way = Polar(metric)
    with pytest.raises(bj.GridError, match="need a positive finite number: 3 by default"):
        way.measure(way.grid(16, 2), torch.eye(2, dtype=D), torch.ones(2, dtype=D), width=width)
