"""Ways to use a measure: features against autograd in the way's metric, networks to measures and back."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from bigjko import GridMeasure, ParticleMeasure, Risk
from bigjko.errors import MeasureError
from bigjko.neurons import FrozenOutputs, Lifted, Projected, UnitDirections
from bigjko.transport import WassersteinFisherRao
from bigjko_kernels import Circle, Grid, GridError, Line, Sheets, Sphere, gibbs

from .registry import WAYS, WayCase, data, gap, written_neurons
from .test_features import check_written

WAYS_AND_DIMS = [pytest.param(case, dim, id=f"{name}-{dim}") for name, case in WAYS.items() for dim in case.dims]
every_way = pytest.mark.parametrize(("case", "dim"), WAYS_AND_DIMS)


def random_measure(grid: Grid) -> GridMeasure:
    return GridMeasure(grid, torch.randn(grid.shape, dtype=torch.float64).to(grid.dtype).to(grid.device))


def network_outputs(W: Tensor, a: Tensor, X: Tensor) -> Tensor:
    """(1/m) sum_i relu(w_i . x) a_i."""
    return torch.relu(X @ W.T) @ a / a.numel()


@every_way
def test_features_on_a_grid_are_those_written_out(case: WayCase, dim: int, device: torch.device) -> None:
    way, X = case.make(), data(dim).to(device)
    grid = way.grid(case.nodes, dim, device=device)
    p, z = torch.rand(grid.shape, dtype=torch.float64, device=device), torch.randn(len(X), dtype=torch.float64)
    features = way.features(grid, X)
    written = case.written(grid.points(), X)
    assert (written.phi == 0).any()
    check_written(features, written, p, z.to(device), grid.shape)  # type: ignore[arg-type]


@every_way
def test_features_on_particles_are_those_of_neurons(case: WayCase, dim: int) -> None:
    """Their slopes are what the way's dynamics leave of the gradient in (w, a)."""
    way, X = case.make(), data(dim)
    W, a = case.network(9, dim)
    particles = ParticleMeasure.from_network(W, a)
    p, z = torch.rand(9, dtype=torch.float64), torch.randn(len(X), dtype=torch.float64)
    settled = ParticleMeasure(way.dynamics.settle(particles.positions), particles.masses)
    written = written_neurons(settled.positions, X)
    if isinstance(way.dynamics, FrozenOutputs):
        written.slopes[..., -1] = 0.0
    elif isinstance(way.dynamics, UnitDirections):
        slopes, w = written.slopes[..., :-1], settled.w[:, None]
        slopes -= (slopes * w).sum(-1, keepdim=True) * w
    check_written(way.features(settled, X), written, p, z, (9,))  # type: ignore[arg-type]
    # d + 1 terms, added in another order
    assert way.squared_norm(particles).numpy() == pytest.approx(case.decay(W, a).numpy(), rel=1e-15 * (dim + 1))


@every_way
def test_grids_are_the_ways_own(case: WayCase, dim: int, dtype: torch.dtype, device: torch.device) -> None:
    way = case.make()
    grid = way.grid(case.nodes, dim, dtype=dtype, device=device)
    assert (grid.dtype, grid.device) == (dtype, device)
    way.check(grid, dim)
    way.check(grid.widened(2), dim)
    assert way.cost.per_factor(grid) is None or len(way.cost.per_factor(grid) or ()) == len(grid.factors)
    kernel = gibbs(grid, 0.75 * way.spacing(grid) ** 2, way.cost)
    transport = way.transport(kernel)
    assert isinstance(transport, WassersteinFisherRao) is not case.keeps_mass
    assert transport.conserves_mass is way.conserves_mass is case.keeps_mass
    for other in WAYS.values():
        foreign = other.make().grid(8, other.dims[-1], dtype=dtype, device=device)
        if [type(f) for f in foreign.factors] == [type(f) for f in grid.factors]:
            continue  # Theta is the same, whatever a node stands for
        with pytest.raises(GridError, match=rf"received Grid.* for data in R\^{dim}, need .*{case.kind.__name__}"):
            way.check(foreign, dim)
    with pytest.raises(GridError, match="need"):
        way.check(grid, dim + 1)


@every_way
def test_particles_are_the_measure_in_neurons(case: WayCase, dim: int, dtype: torch.dtype) -> None:
    way, X = case.make(), data(dim).to(dtype)
    measure = random_measure(way.grid(case.nodes, dim, dtype=dtype))
    particles = way.particles(measure, drop=0.0)
    assert particles.positions.shape == (case.neurons * measure.grid.size, dim + 1)
    assert particles.positions.dtype == particles.masses.dtype == dtype
    risk = Risk(X, torch.zeros(len(X), dtype=dtype), way, weight_decay=0.1)
    # Outputs, mass in the way's own sense and weight decay: the same sums over other numbers, of N terms.
    tolerance = 50 * torch.finfo(dtype).eps
    size = float(risk.on(measure.grid).features.outputs(measure.masses).abs().max()) + float(measure.mass)
    assert (risk.outputs(particles) - risk.outputs(measure)).abs().max() <= tolerance * 10 * size
    decay = [
        float(risk.on(nodes).value(m.masses, torch.zeros(len(X), dtype=torch.float64)))
        for nodes, m in ((measure.grid, measure), (particles, particles))
    ]
    assert decay[0] == pytest.approx(decay[1], rel=tolerance)
    # Their clouds are the same, sheet by sheet and point by point.
    ours, theirs = way.clouds(measure), way.clouds(particles)
    assert ours.keys() == theirs.keys()
    for name, (points, masses) in ours.items():
        assert (theirs[name][0] - points).abs().max() <= tolerance * 10
        assert ((theirs[name][1] - masses).abs() <= tolerance * masses.abs().max()).all()
    total = sum(float(m.sum()) for _, m in ours.values())
    assert total == pytest.approx(case.neurons * float(measure.mass), rel=tolerance)


@every_way
def test_light_nodes_are_left_out_and_their_mass_shared(case: WayCase, dim: int) -> None:
    way, X = case.make(), data(dim)
    measure = random_measure(way.grid(case.nodes, dim))
    cut = measure.log_masses.clone()
    few = torch.rand(cut.shape) < 0.3
    cut[few] -= 40  # lighter than 1e-12 of the heaviest
    light = GridMeasure(measure.grid, cut)
    particles = way.particles(light)
    assert particles.positions.shape[0] == case.neurons * int((~few).sum())
    total = sum(float(m.sum()) for _, m in way.clouds(particles).values())
    assert total == pytest.approx(case.neurons * float(light.mass), rel=1e-13)  # some hundred terms
    risk = Risk(X, torch.zeros(len(X), dtype=torch.float64), way)
    # What was left out is a share of N 1e-12.
    size = float(light.mass) * float(X.norm(dim=1).max()) * 10
    assert (risk.outputs(particles) - risk.outputs(light)).abs().max() <= light.grid.size * 1e-12 * size


@every_way
@pytest.mark.parametrize("width", [1.0, 3.0])
def test_a_deposited_network_keeps_its_outputs_up_to_the_blur(case: WayCase, dim: int, width: float) -> None:
    way, X = case.make(), data(dim)
    W, a = case.network(40, dim)
    grid = way.grid(case.fine, dim)
    measure = way.measure(grid, W, a, width=width)
    expected = network_outputs(W, a, X)
    assert (W.norm(dim=1) <= 1).all()
    bound = case.reach(W, a) * X.norm(dim=1) * (width + 1) * way.spacing(grid)
    assert ((way.features(grid, X).outputs(measure.masses) - expected).abs() <= bound).all()
    assert float(measure.mass) == pytest.approx(case.mass(W, a), rel=1e-12)
    # No node is locked empty, but for sheets that no neuron belongs to.
    sheets = measure.log_masses if isinstance(grid.factors[0], Sheets) else measure.log_masses[None]
    held = [sheet for sheet in sheets if bool((sheet > -math.inf).any())]
    assert held
    assert all(bool(torch.isfinite(sheet).all()) for sheet in held)


@every_way
def test_masses_weigh_the_neurons(case: WayCase, dim: int) -> None:
    way = case.make()
    W, a = case.network(4, dim)
    grid = way.grid(21 if case.keeps_mass else case.fine, dim)
    masses = torch.tensor([0.0, 0.3, 0.0, 0.1], dtype=torch.float64)
    both = way.measure(grid, W, a, masses=masses)
    alone = way.measure(grid, W[[1, 3]], a[[1, 3]], masses=masses[[1, 3]])
    assert (both.masses - alone.masses).abs().max() <= 1e-14 * both.masses.max()
    plain = way.measure(grid, W, a)
    equal = way.measure(grid, W, a, masses=torch.full((4,), 0.25, dtype=torch.float64))
    assert torch.equal(plain.log_masses, equal.log_masses)


@every_way
def test_ways_are_remembered_by_name(case: WayCase, dim: int) -> None:
    way = case.make()
    assert way.to_dict() == {"name": way.name, **case.options}
    assert repr(way) == f"{case.kind.__name__}({', '.join(f'{k}={v}' for k, v in case.options.items())})"


# ----------------------------------------------------------------------------------------------------------- projected


def test_projected_outputs_of_neurons_on_nodes_are_exact(dtype: torch.dtype) -> None:
    # Neurons on the nodes and a blur far below h: nothing moves, so nothing is lost but rounding.
    way, X = Projected(), data(2).to(dtype)
    grid = way.grid(64, 2, dtype=dtype)
    W = grid.factors[1].nodes[::3] * 0.7
    a = torch.where(torch.arange(len(W)) % 2 == 0, 1.0, -1.0).to(dtype) * W.norm(dim=1)
    measure = way.measure(grid, W, a, width=0.02)
    out = way.features(grid, X).outputs(measure.masses)
    assert gap(out, network_outputs(W.double(), a.double(), X.double())) <= 20 * torch.finfo(dtype).eps


def test_projected_tells_close_directions_apart_in_float32() -> None:
    # Half way between nodes 4e-4 apart, both products are exactly 1 in float32: an arc cosine of them says 0.
    fine, coarse = 4e-4 * torch.arange(500, dtype=torch.float64), torch.linspace(0.3, 6.2, 60, dtype=torch.float64)
    grid = Grid((Sheets.of([1.0, -1.0]), Circle.at(torch.cat([fine, coarse])))).to(dtype=torch.float32)
    angle = torch.tensor([100.5, 300.5], dtype=torch.float64) * 4e-4
    W = torch.stack([angle.cos(), angle.sin()], dim=1).float()
    a = W.norm(dim=1) * torch.tensor([1.0, -0.5])
    W[1] /= 2
    measure = Projected().measure(grid, W, a, width=4e-5 / grid.spacing)  # a blur of a tenth of a node
    X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    out = Projected().features(grid, X).outputs(measure.masses)
    # The shares keep the mean angle up to float32's 6e-8 in the positions of nodes and neurons.
    assert gap(out, network_outputs(W.double(), a.double(), X.double())) <= 1e-6


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_projected_directions_keep_their_mean(sign: float) -> None:
    # One neuron between two nodes of a circle: after the blur its mean angle is still its own, but for the chord
    # between the two nodes: t (1 - t) (1 - 2t) h^3 / 6, at most h^3 / 60.
    way, grid = Projected(), Projected().grid(256, 2)
    angle = 1.234
    W = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    measure = way.measure(grid, W, torch.tensor([sign], dtype=torch.float64))
    here, other = (0, 1) if sign > 0 else (1, 0)
    assert (measure.masses[other] < 1e-300).all()
    first = measure.masses[here] @ grid.factors[1].nodes
    assert float(torch.atan2(first[1], first[0])) == pytest.approx(angle, abs=grid.spacing**3 / 60)
    # The blur and the sharing turn cos by exp(-s^2/2): variance (3 h)^2 and at most h^2/4.
    variance = -2 * math.log(float(first.norm()))
    assert 9 - 1e-3 <= variance / grid.spacing**2 <= 9.25 + 1e-3


def test_projected_refuses_unbalanced_networks() -> None:
    way, grid = Projected(), Projected().grid(64, 2)
    W = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    a = torch.tensor([1.0, -1.0], dtype=torch.float64)
    with pytest.raises(MeasureError, match=r"up to 0.5 apart \(relative\), need \|w\| = \|a\| for Projected: balance"):
        way.measure(grid, W, a)
    way.measure(grid, W, W.norm(dim=1) * (1 + 5e-7))  # rounding of a network is let through


def test_projected_uniform_is_a_network_of_one_radius() -> None:
    for dim in (2, 3, 4):
        way = Projected()
        grid = way.grid(60, dim)
        measure = way.uniform(grid, radius=0.3)
        assert float(measure.mass) == pytest.approx(0.09, rel=1e-13)
        # Both signs cancel: the network is 0.
        assert way.features(grid, data(dim)).outputs(measure.masses).abs().max() <= 1e-15
    for radius in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(MeasureError, match=f"radius of {radius}, need a positive finite number"):
            Projected().uniform(Projected().grid(60, 2), radius=radius)


@pytest.mark.parametrize("balanced", [True, False])
def test_projected_leaves_zero_neurons_out(balanced: bool) -> None:
    way = Projected(balanced)
    grid = way.grid(64, 2)
    W = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, -2.0]], dtype=torch.float64)
    a = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    masses = torch.full((3,), 1 / 3, dtype=torch.float64)
    kept = way.measure(grid, W[::2], a[::2], masses=masses[::2])
    assert torch.equal(way.measure(grid, W, a).log_masses, kept.log_masses)
    with pytest.raises(MeasureError, match="neurons are all zero, need one with a direction"):
        way.measure(grid, 0 * W, 0 * a)


def test_projected_takes_any_start_without_balance() -> None:
    # A first layer of zero with a second one is a direction too, though its output is 0.
    way = Projected(balanced=False)
    W, a = torch.zeros(1, 2, dtype=torch.float64), torch.full((1,), -2.0, dtype=torch.float64)
    measure = way.measure(way.grid(200, 2), W, a)
    assert float(measure.mass) == pytest.approx(2.0, rel=1e-12)
    points, masses = way.clouds(measure)["all"]
    assert points[masses.argmax()] @ torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64) > 0.98


def test_projected_grids_need_few_dimensions() -> None:
    for balanced, dims, text in ((True, (1, 5), "R^2, R^3 or R^4"), (False, (0, 4), "R^1, R^2 or R^3")):
        for dim in dims:
            with pytest.raises(GridError, match=re.escape(f"data in R^{dim}, need {text} for {Projected(balanced)!r}")):
                Projected(balanced).grid(10, dim)


WRONG: dict[str, Any] = {
    "no sheets": lambda: Grid((Circle.uniform(9),)),
    "signs the other way round": lambda: Grid((Sheets.of([-1.0, 1.0]), Circle.uniform(9))),
    "three sheets": lambda: Grid((Sheets.of([1.0, -1.0, 2.0]), Circle.uniform(9))),
    "a sphere": lambda: Grid((Sheets.of([1.0, -1.0]), Sphere.fibonacci(9))),
    "a line": lambda: Grid((Sheets.of([1.0, -1.0]), Line.uniform(0.0, 1.0, 9))),
    "lines": lambda: Lifted().grid(5, 2),
    "any start": lambda: Projected(balanced=False).grid(9, 2),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_projected_checks_its_grid(make: Any) -> None:
    with pytest.raises(GridError, match=r"for data in R\^2, need Projected\(\).grid\(nodes, dim=2\)"):
        Projected().features(make(), data(2))


# -------------------------------------------------------------------------------------------------------------- lifted


def test_lifted_checks_its_grid() -> None:
    for grid in (Lifted().grid(5, 1), Projected().grid(9, 2)):
        with pytest.raises(GridError, match=r"for data in R\^2, need 3 lines for Lifted: w, then a"):
            Lifted().features(grid, data(2))


def test_lifted_clouds_are_neurons() -> None:
    grid = Lifted().grid(5, 1)
    measure = random_measure(grid)
    points, masses = Lifted().clouds(measure)["all"]
    assert torch.equal(points, grid.points())
    assert (masses - measure.masses.reshape(-1)).abs().max() <= 1e-15 * measure.masses.max()
