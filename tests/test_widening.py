"""Widening: the box grows where mass arrives, before it is met; state and measure are carried over as they are."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import bigjko as bj
from bigjko.measure import GridMeasure
from bigjko_kernels import GibbsKernel

D = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore::bigjko.NarrowMeasureWarning")


def moving(nodes: int = 41, **options: Any) -> tuple[bj.JKO, bj.GridMeasure]:
    """A line on which mass is pushed to the right at speed 1."""
    grid = bj.Grid.uniform([-1.5], [1.5], [nodes])
    start = bj.GridMeasure.gaussian(grid, mean=0.0, std=0.3)
    # Two passes leave the mean 1.6e-3 behind, in a wide box just as here; six leave 5e-6.
    options = {"entropy": bj.Debiased(passes=6), **options}
    return bj.JKO(bj.Potential(lambda x: -x[:, 0]), grid, tau=0.1, **options), start


def mean(measure: Any) -> float:
    return float((measure.masses * measure.grid.points()[:, 0]).sum() / measure.mass)


def test_the_box_grows_on_the_side_that_mass_reaches() -> None:
    """Two units to the right, beyond the first box; the left end stays, the spacing and every old node too."""
    jko, start = moving()
    flow = bj.evolve(bj.Widening(jko), start, 2.0)
    assert isinstance(flow.final, GridMeasure)
    grid, final = jko.grid, flow.final.grid
    x = final.factors[0].nodes[:, 0]
    assert torch.equal(x[: grid.size], grid.factors[0].nodes[:, 0])
    # Where a node of N(2, .3^2) holds the tolerance of 1e-4: h / (.3 sqrt(2 pi)) exp(-s^2 / 2) = 1e-4 at s = 3.72.
    assert float(x[-1]) >= 2 + 0.3 * math.sqrt(2 * math.log(grid.spacing / (0.3 * math.sqrt(2 * math.pi) * 1e-4)))
    assert final.spacing == grid.spacing
    assert mean(flow.final) == pytest.approx(2.0, abs=1e-3)
    assert float(flow.final.boundary_mass) <= 1e-4
    assert int(flow.stats["widened"][1:].sum()) >= 2
    assert flow.stats["nodes"][-1] == final.size
    assert float((flow.masses - 1).abs().max()) <= 1e-12
    # In the first box the mass heaps up at the edge.
    with pytest.warns(bj.BoundaryMassWarning):
        stuck = bj.evolve(jko, start, 2.0)
    assert mean(stuck.final) < 1.6


def test_it_goes_as_in_a_box_that_was_wide_from_the_start() -> None:
    """The same flow up to what is cut off: nodes that are new have no mass, and what had been there is on the others.

    N(m, .3^2) holds Q = 8e-7 beyond the end where its node would hold the tolerance of 1e-6 (4.8 std), so means agree
    to 4 widenings x Q x 1.5 = 5e-6. Masses feel d, too, which a few percent of misfit at the new nodes bends by
    exp(d / eps): parabolas from the very end, where d has nothing beyond it to fit, cost 2e-3 in L1.
    """
    jko, start = moving()
    wide = jko.grid.widened([(0, 60)])
    roomy = bj.evolve(replace(jko, grid=wide), bj.GridMeasure.gaussian(wide, mean=0.0, std=0.3), 2.0)
    flow = bj.evolve(bj.Widening(jko, tolerance=1e-6), start, 2.0)
    assert mean(flow.final) == pytest.approx(mean(roomy.final), abs=5e-6)
    assert isinstance(flow.final, GridMeasure)
    assert isinstance(roomy.final, GridMeasure)
    n = min(flow.final.grid.size, wide.size)
    assert float((flow.final.masses[:n] - roomy.final.masses[:n]).abs().sum()) <= 1e-3  # a third of it measured


def test_measures_keep_the_grids_they_had(tmp_path: Any) -> None:
    """Each saved measure has its own grid; stores and comparisons take them as they are."""
    jko, start = moving()
    flow = bj.evolve(bj.Widening(jko), start, 2.0, save_at=[0.0, 1.0, 2.0])
    sizes = [m.grid.size for m in flow.measures if isinstance(m, GridMeasure)]
    assert sizes[0] == 41
    assert sizes[0] < sizes[1] < sizes[2]
    flow.save(tmp_path / "flow.zarr")
    again = bj.Flow.load(tmp_path / "flow.zarr")
    for one, two in zip(flow.measures, again.measures, strict=True):
        assert isinstance(one, GridMeasure)
        assert isinstance(two, GridMeasure)
        assert one.grid.matches(two.grid)
        assert torch.equal(one.log_masses, two.log_masses)
    other = bj.evolve(bj.Widening(jko, share=0.5), start, 2.0, save_at=[0.0, 1.0, 2.0])
    assert float(bj.compare(flow, other).transport.max()) <= jko.grid.spacing / 4


def test_a_step_can_be_taken_again_from_its_state() -> None:
    """Pure: the measure's grid, not the stepper's memory of it, decides; a fresh stepper goes on alike."""
    jko, start = moving()
    one, two = bj.Widening(jko), bj.Widening(jko)
    step = one.step(start, one.init(start), 0.1)
    for _ in range(10):
        step = one.step(step.measure, step.state, 0.1)
    assert step.measure.grid.size > 41
    a, b = (s.step(step.measure, step.state, 0.1) for s in (one, two))
    assert torch.equal(a.measure.masses, b.measure.masses)
    c = one.step(start, one.init(start), 0.1)
    assert c.measure.grid.size == 41


def test_a_capped_box_warns_and_goes_on() -> None:
    jko, start = moving()
    with pytest.warns(bj.BoundaryMassWarning, match="are more than max_nodes = 50 or than fit in memory"):
        flow = bj.evolve(bj.Widening(jko, max_nodes=50), start, 2.0)
    assert flow.status is bj.Status.ok
    assert flow.stats["nodes"][-1] <= 50
    assert flow.stats["capped"][-1] == 1
    assert float(flow.stats["at_edge"][-1]) > 1e-4


def test_memory_caps_like_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    jko, start = moving()
    stepper = bj.Widening(jko)
    monkeypatch.setattr("bigjko.control.widening.available", lambda device: jko.memory)
    with pytest.warns(bj.BoundaryMassWarning, match="than fit in memory"):
        flow = bj.evolve(stepper, start, 1.5)
    assert flow.stats["nodes"][-1] == 41


def test_edges_are_weighed_by_what_they_can_do_to_outputs() -> None:
    """sum p |theta|^2 / 2 max|x| over a face, in units of max|y|: against the nodes written out."""
    X, y = torch.tensor([[1.0], [-3.0]], dtype=D), torch.tensor([0.5, -0.25], dtype=D)
    grid = bj.neurons.Lifted().grid(21, 1, radius=2.0)
    start = bj.GridMeasure.gaussian(grid, mean=torch.tensor([0.2, 0.0], dtype=D), std=0.4)
    jko = bj.JKO(bj.Risk(X, y), grid, tau=0.01)
    taken = bj.Widening(jko, tolerance=1e3).step(start, bj.Widening(jko).init(start), 0.01)

    def face(k: int, i: int) -> Tensor:
        kept = grid.points().reshape(21, 21, 2).select(k, i)
        return (taken.measure.masses.select(k, i) * kept.square().sum(1)).sum() / 2 * 3.0 / 0.5

    worst = max(float(face(k, i)) for k in (0, 1) for i in (0, -1))
    assert taken.stats["at_edge"] == pytest.approx(worst, rel=1e-12)


def test_an_adaptive_flow_may_widen() -> None:
    risk = bj.Risk(torch.ones(1, 1, dtype=D), 3 * torch.ones(1, dtype=D))
    grid = bj.neurons.Lifted().grid(41, 1, radius=2.0)
    start = bj.GridMeasure.gaussian(grid, torch.tensor([0.9, 0.2], dtype=D), 0.22)
    flow = bj.evolve(bj.Adaptive(bj.Widening(bj.JKO(risk, grid, 0.2)), rtol=0.1), start, 0.5)
    assert flow.name == "adaptive widening jko"
    assert flow.stats["nodes"][-1] > 41**2
    wide = bj.Grid.uniform([-2.0, -2.0], [4.0, 4.0], [61, 61])
    fixed = bj.GridMeasure.gaussian(wide, torch.tensor([0.9, 0.2], dtype=D), 0.22)
    reference = bj.evolve(bj.Adaptive(bj.JKO(risk, wide, 0.2), rtol=0.1), fixed, 0.5)
    assert float((flow.outputs[-1] - reference.outputs[-1]).abs().max()) <= 0.05


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_labels_that_are_all_zero_leave_the_mass_to_tell(dtype: torch.dtype) -> None:
    """Outputs have no unit then: an end with less than the tolerance's share of the mass stays."""
    grid = bj.neurons.Lifted().grid(31, 1, radius=2.0, dtype=dtype)
    risk = bj.Risk(torch.ones(1, 1, dtype=dtype), torch.zeros(1, dtype=dtype))
    jko = bj.JKO(risk, grid, 0.05)
    start = bj.GridMeasure.gaussian(grid, 0.0, 0.3)
    step = bj.Widening(jko).step(start, bj.Widening(jko).init(start), 0.05)
    assert step.measure.grid.matches(grid)
    edges = [step.measure.masses.select(k, i).sum() for k in (0, 1) for i in (0, -1)]
    assert step.stats["at_edge"] == pytest.approx(float(max(edges)), rel=1e-5)


def test_a_cone_widens_until_its_rim_is_too_coarse() -> None:
    """Directions are a fixed number: at a rim twice as long h is twice what epsilon was chosen for."""
    way = bj.neurons.Polar("cone")
    grid = way.grid(48, 2, radius=0.7)
    W = torch.tensor([[0.3, 0.1], [0.1, -0.3], [-0.2, 0.2]], dtype=D)
    start = way.measure(grid, W, W.norm(dim=1) * torch.tensor([1.0, -1.0, 1.0], dtype=D))
    risk = bj.Risk(torch.tensor([[1.0, 0.2], [-0.3, 1.0]], dtype=D), torch.tensor([3.0, -2.0], dtype=D), way)
    with (
        pytest.warns(bj.BoundaryMassWarning, match="pins the mass: the box, and no longer the flow"),
        pytest.warns(bj.NarrowMeasureWarning),
    ):
        flow = bj.evolve(bj.Widening(bj.JKO(risk, grid, 0.05)), start, 0.3)
    assert flow.status is bj.Status.ok
    assert flow.stats["capped"][-1] == 1
    final = flow.final
    assert isinstance(final, GridMeasure)
    assert final.grid.size > grid.size
    assert (way.spacing(final.grid) / way.spacing(grid)) ** 2 <= 3  # .75 h^2 has become .25 h^2 at most


class _Fixed(GibbsKernel):
    """A kernel that knows one grid."""

    def _log_apply(self, b: Tensor, out: Tensor) -> Tensor:
        return bj.kernels.Dense(self.grid, self.epsilon, self.cost)._log_apply(b, out)


def test_what_cannot_widen_is_refused_by_name() -> None:
    jko, _ = moving()
    risk = bj.Risk(torch.eye(2, dtype=D), torch.ones(2, dtype=D), neurons=bj.neurons.Projected())
    circle = bj.JKO(risk, bj.neurons.Projected().grid(64, 2), tau=0.1)
    with pytest.raises(bj.StepError, match="need a grid with lines for Widening"):
        bj.Widening(circle)
    with pytest.raises(bj.StepError, match="max_nodes = 3, need a positive tolerance"):
        bj.Widening(jko, max_nodes=3)
    dense = bj.kernels.Dense(jko.grid, jko.epsilon or 1.0)
    fixed = moving(kernel=_Fixed(jko.grid, dense.epsilon, dense.cost))[0]
    with pytest.raises(bj.StepError, match="received a _Fixed, which does not say how it is made on another grid"):
        bj.Widening(fixed)
