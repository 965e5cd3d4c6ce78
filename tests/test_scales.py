"""The seed's scales: one sheet is Lifted on a larger box, and no mass changes sheet."""

import pytest
import torch
from torch import Tensor

import bigjko as bj
from bigjko.neurons import Lifted, Scales
from bigjko.transport import Balanced, Scaled
from bigjko_kernels import Grid, GridError, Sheets, gibbs

from .registry import data

D = torch.float64


@pytest.mark.filterwarnings("ignore::bigjko.BoundaryMassWarning", "ignore::bigjko.NarrowMeasureWarning")
@pytest.mark.parametrize("entropy", [bj.Plain(), bj.Debiased()])
@pytest.mark.parametrize("s", [0.5, 2.0])
def test_one_scale_is_lifted_on_a_box_as_many_times_as_large(s: float, entropy: bj.Plain | bj.Debiased) -> None:
    """epsilon of v is s^2 times that of theta: both flows are one, up to rounding of the nodes."""
    X, y = data(1)[:3], torch.tensor([0.8, -0.5, 0.3], dtype=D)
    large, small = Lifted().grid(81, 1, radius=2.4), Scales().grid(81, 1, radius=2.4 / s, scales=[s])
    start = bj.GridMeasure.gaussian(large, mean=0.1, std=0.4)
    options = {"tau": 0.1, "entropy": entropy}
    lifted = bj.evolve(bj.JKO(bj.Risk(X, y, weight_decay=0.02), large, **options), start, 0.5)  # type: ignore[arg-type]
    scaled = bj.evolve(
        bj.JKO(bj.Risk(X, y, neurons=Scales(), weight_decay=0.02), small, **options),  # type: ignore[arg-type]
        bj.GridMeasure(small, start.log_masses[None]),
        0.5,
    )
    assert (lifted.outputs[-1] - lifted.outputs[0]).abs().max() > 0.1
    # Each solves its dual to 1e-9 of y, in 5 steps; a first pass only to 1e-4, alike in both.
    assert (lifted.outputs - scaled.outputs).abs().max() <= 1e-8
    for stat in ("gap_z", "gap_d") if entropy.passes > 1 else ("gap_z",):
        assert scaled.stats[stat][1:] == pytest.approx(lifted.stats[stat][1:], rel=1e-3, abs=1e-14)


def test_scaled_is_the_smallest_value_sheet_by_sheet() -> None:
    """min over p of sum_s s^2 T_eps(p_s, q_s) + <h - d, p>, d in units of s^2: Balanced on each sheet alone."""
    grid = Scales().grid(9, 1, scales=(0.5, 3.0))
    kernel = gibbs(grid, 0.75 * grid.spacing**2)
    h, d = torch.randn(2, *grid.shape, dtype=D)
    log_q = torch.randn(grid.shape, dtype=D)
    found = Scaled(kernel).respond(log_q, h, d)
    alone = Balanced(gibbs(Grid(grid.factors[1:]), kernel.epsilon))
    value = 0.0
    for k, s in enumerate((0.5, 3.0)):
        response = alone.respond(log_q[k], h[k] / s**2, d[k])
        value += s**2 * float(response.value)
        assert (found.log_p[k] - response.log_p).abs().max() <= 1e-12
    assert float(found.value) == pytest.approx(value, rel=1e-13)
    assert (found.log_p.exp().sum((1, 2)) - log_q.exp().sum((1, 2))).abs().max() <= 1e-12


def test_no_mass_changes_its_scale() -> None:
    way = Scales()
    grid = way.grid(61, 1, radius=2.0, scales=(1.0, 3.0))
    W, a = torch.tensor([[0.4], [-0.3], [2.5]], dtype=D), torch.tensor([0.5, -0.6, 1.5], dtype=D)
    start = way.measure(grid, W, a)
    assert way.sheet_of(grid, torch.cat([W, a[:, None]], dim=1)).tolist() == [0, 0, 1]
    risk = bj.Risk(torch.ones(1, 1, dtype=D), torch.ones(1, dtype=D), neurons=way)
    final = bj.evolve(bj.JKO(risk, grid, tau=0.05), start, 0.2).final
    for measure in (start, final):
        assert isinstance(measure, bj.GridMeasure)
        assert (measure.masses.sum((1, 2)) - torch.tensor([2 / 3, 1 / 3], dtype=D)).abs().max() <= 1e-12


def test_a_neuron_goes_where_it_can_double() -> None:
    way, grid = Scales(), Scales().grid(5, 1, radius=2.0, scales=(0.5, 1.0, 4.0))
    theta = torch.tensor([[0.4, -0.5], [0.0, 0.51], [-1.0, 0.2], [1.01, 0.0], [0.0, 7.9]], dtype=D)
    assert way.sheet_of(grid, theta).tolist() == [0, 1, 1, 2, 2]
    with pytest.raises(GridError, match="widen the grid"):
        way.measure(grid, torch.tensor([[8.1]], dtype=D), torch.ones(1, dtype=D))


@pytest.mark.parametrize("labels", [[1.0, -1.0], [2.0, 1.0], [0.0, 1.0]])
def test_scales_are_positive_and_rise(labels: list[float]) -> None:
    grid = Grid((Sheets.of(labels), *Lifted().grid(5, 2).factors))
    with pytest.raises(GridError, match="need sheets of increasing positive scales and 3 lines for Scales"):
        Scales().features(grid, data(2))


def test_scales_have_the_clouds_of_their_neurons() -> None:
    way, grid = Scales(), Scales().grid(5, 1)
    measure = bj.GridMeasure(grid, torch.randn(grid.shape, dtype=D))
    points: Tensor = grid.points()
    assert torch.equal(way.clouds(measure)["all"][0], points[:, :1] * points[:, 1:])
