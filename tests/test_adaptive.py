"""Adaptive: errors in proportion to rtol, times met exactly, refused steps counted, and failures that are data."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

import bigjko as bj
from bigjko.stepper import Step

D = torch.float64


def network(d: int = 2, m: int = 40) -> tuple[bj.Risk, bj.ParticleMeasure]:
    risk = bj.Risk(torch.randn(4, d, dtype=D), torch.randn(4, dtype=D), loss=bj.losses.Squared(0.25))
    return risk, bj.ParticleMeasure.from_network(torch.randn(m, d, dtype=D), torch.randn(m, dtype=D))


@pytest.mark.parametrize("kind", [bj.GradientDescent, bj.ImplicitGradientDescent])
def test_errors_are_in_proportion_to_rtol(kind: Any) -> None:
    """A decade: the gap over rtol stays within a factor of 2."""
    risk, start = network()
    exact = bj.evolve(bj.SlidingFlow(risk, 0.01), start, 1.0).outputs[-1]  # two decades below the smallest gap
    gaps = []
    for rtol in (0.1, 0.03, 0.01):
        flow = bj.evolve(bj.Adaptive(kind(risk, 0.5), rtol=rtol), start, 1.0)
        gaps.append(float((flow.outputs[-1] - exact).abs().max()) / rtol)
        assert float(flow.stats["error"][1:].max()) <= 1
    assert max(gaps) <= 2 * min(gaps), gaps


@pytest.mark.filterwarnings("ignore::bigjko.NarrowMeasureWarning")
@pytest.mark.slow
def test_jko_steps_are_chosen_like_any() -> None:
    """On a grid in d = 1: halving rtol halves the distance to a flow of far smaller steps."""
    one = torch.ones(1, dtype=D)
    risk, grid = bj.Risk(one[:, None], one), bj.neurons.Lifted().grid(61, 1, radius=2.5)
    start = bj.GridMeasure.gaussian(grid, torch.tensor([0.9, 0.2], dtype=D), 0.22)
    fine = bj.evolve(bj.JKO(risk, grid, 0.005), start, 0.5, record=1000)
    gaps = []
    for rtol in (0.05, 0.025):  # at .1 one step of all the time is within its tolerance
        flow = bj.evolve(bj.Adaptive(bj.JKO(risk, grid, 0.5), rtol=rtol), start, 0.5)
        gaps.append(float((flow.outputs[-1] - fine.outputs[-1]).abs().max()))
        assert len(flow.times) > 3
    assert 1.4 <= gaps[0] / gaps[1] <= 3, gaps


def test_times_are_met_exactly_and_refused_steps_are_counted() -> None:
    """save_at falls anywhere; a tau far too long costs refusals at the start only."""
    risk, start = network()
    stepper = replace_first(bj.Adaptive(bj.GradientDescent(risk, 1.0), rtol=0.01), 1.0)
    flow = bj.evolve(stepper, start, 1.0, save_at=[0.3, 1 / 3, 1.0])
    assert flow.saved_times.tolist() == [0.3, 1 / 3, 1.0]
    assert float(flow.times[-1]) == 1.0
    assert bool((flow.times.diff() > 0).all())
    assert torch.allclose(flow.stats["dt"][1:], flow.times.diff(), rtol=1e-9)
    assert flow.stats["rejected"][1] >= 1
    assert flow.stats["steps"][1] == 3 * (1 + flow.stats["rejected"][1])
    assert float(flow.stats["rejected"][5:].sum()) <= len(flow.times) / 10


def replace_first(stepper: Any, dt: float) -> Any:
    """The same stepper, made to try dt first."""

    class Eager(type(stepper)):  # type: ignore[misc]
        def init(self, measure: Any) -> Any:
            return replace(super().init(measure), dt=dt)

    return Eager(stepper.stepper, stepper.rtol)


def test_steps_into_a_datum_that_wakes_up_are_refused() -> None:
    """A neuron turns to where it sees the second datum, whose slope is 25 times the first's; after that, rest."""
    X, y = torch.tensor([[1.0, 0.5], [0.0, 5.0]], dtype=D), torch.tensor([3.0, -20.0], dtype=D)
    start = bj.ParticleMeasure.from_network(torch.tensor([[1.0, -0.3]], dtype=D), torch.ones(1, dtype=D))
    flow = bj.evolve(bj.Adaptive(bj.GradientDescent(bj.Risk(X, y), 0.2), rtol=0.03), start, 5.0)
    rejected, dt = flow.stats["rejected"], flow.stats["dt"]
    woken = int((flow.outputs[:, 1] > 0).nonzero()[0, 0])
    assert float(rejected[woken : woken + 3].sum()) >= 1
    assert float(dt[woken : woken + 3].min()) <= 0.1 * float(dt[1:woken].min())
    assert bool((flow.stats["steps"][1:] == 3 * (1 + rejected[1:])).all())
    assert float(flow.stats["error"][1:].max()) <= 1
    assert float(rejected[flow.times > 1].sum()) == 0
    assert dt[-5:].tolist() == pytest.approx([0.2] * 5)


@pytest.mark.parametrize("kind", [bj.GradientDescent, bj.ImplicitGradientDescent])
def test_a_flow_comes_to_rest_with_the_longest_steps(kind: Any) -> None:
    risk = bj.Risk(torch.eye(2, dtype=D), torch.tensor([1.0, -0.5], dtype=D), loss=bj.losses.Squared(0.5))
    start = bj.ParticleMeasure.from_network(torch.randn(40, 2, dtype=D), torch.randn(40, dtype=D))
    flow = bj.evolve(bj.Adaptive(kind(risk, 0.2), rtol=0.03), start, 12.0)
    assert float((flow.outputs[-1] - risk.y).abs().max()) < 1e-4
    assert float(flow.stats["dt"][1]) <= 0.1
    assert flow.stats["dt"][-5:].tolist() == pytest.approx([0.2] * 5)


@pytest.mark.parametrize("rtol", [0.01, 0.003])
def test_a_saddle_is_left_at_the_right_time(rtol: float) -> None:
    """Outputs from 1e-12: their relative error counts, so the half-time is late by its accepted errors and no more.

    d = 1, one datum, w = a = r: u' = f(u) = 4 u (1 - u), u(t) = 1 / (1 + (1/u0 - 1) exp(-4 t)). Along an autonomous
    scalar flow a local error e at u shifts all that follows by e / f(u) in time, and explicit steps are all late: the
    shifts add up. What an accepted step has is error times rtol (|du| + rtol u), to O(dt) = 2%; without an atol, which
    u0 = 1e-12 max|y| is the default of. At most |du| / f = dt, and so rtol (1 + rtol / (4 dt)) of the time in all.
    """
    one = torch.ones(1, dtype=D)
    r = 1e-6 * one
    start = bj.ParticleMeasure.from_network(r[:, None], r)
    stepper = bj.Adaptive(bj.GradientDescent(bj.Risk(one[:, None], one), 0.5), rtol=rtol, atol=0.0)
    flow = bj.evolve(stepper, start, 7.5)
    k = int((flow.outputs[:, 0] > 0.5).nonzero()[0, 0])
    u, dt = flow.outputs[: k + 1, 0], flow.times[: k + 1].diff()
    half = float(flow.times[k - 1] + (0.5 - u[-2]) / (u[-1] - u[-2]) * dt[-1])
    allowed = rtol * (u.diff() + rtol * u[1:])
    late = float((flow.stats["error"][1 : k + 1] * allowed / (4 * u[1:] * (1 - u[1:]))).sum())
    exact = math.log(1e12 - 1) / 4
    assert half - exact == pytest.approx(late, rel=0.05)
    assert 0 < half - exact <= rtol * (1 + rtol / (4 * float(dt.median()))) * exact


@dataclass(frozen=True, eq=False)
class _Fragile(bj.GradientDescent):
    """Fails for steps longer than .02."""

    def step(self, measure: Any, state: Any, dt: float) -> Step[Any, Any]:
        taken = super().step(measure, state, dt)
        return taken if dt <= self.longest else replace(taken, status=bj.Status.not_finite)

    longest = 0.02


def test_a_step_that_the_stepper_cannot_take_is_made_shorter() -> None:
    risk, start = network()
    flow = bj.evolve(bj.Adaptive(_Fragile(risk, 0.1), rtol=0.5), start, 0.2)
    assert flow.status is bj.Status.ok
    assert float(flow.stats["dt"][1:].max()) <= 0.02 * (1 + 1e-9)


def test_what_cannot_be_met_ends_with_a_status() -> None:
    """Steps below the smallest: the status tells which tolerance to loosen. Not a rejection for ever."""
    risk, start = network()
    stepper = bj.Adaptive(bj.GradientDescent(risk, 0.5), rtol=1e-6, smallest=0.01)
    with pytest.raises(bj.FlowError, match="loosen rtol or atol of Adaptive"):
        bj.evolve(stepper, start, 1.0)


def test_neurons_that_slide_cost_no_steps() -> None:
    """One of thirty chatters about a kink, by O(dt) a step, back and forth: errors and steps are as without it.

    Against the flow that meets every kink, at every step: within rtol of the path, and steps grow like 1 / rtol.
    """
    torch.manual_seed(0)
    risk = bj.Risk(torch.randn(4, 2, dtype=D), torch.randn(4, dtype=D))
    start = bj.ParticleMeasure.from_network(torch.randn(30, 2, dtype=D), torch.randn(30, dtype=D))
    flows = {r: bj.evolve(bj.Adaptive(bj.GradientDescent(risk, 0.3), rtol=r), start, 2.0) for r in (0.1, 0.04, 0.016)}
    times = {t for flow in flows.values() for t in flow.times[1:].tolist()}
    exact = bj.evolve(bj.SlidingFlow(risk, 0.05), start, 2.0, save_at=times)
    path = float(exact.outputs.diff(dim=0).abs().sum(0).max())
    work = []
    for rtol, flow in flows.items():
        there = exact.outputs[torch.isin(exact.times, flow.times)]
        assert float((flow.outputs - there).abs().max()) <= rtol * path
        work.append(float(flow.stats["steps"][1:].sum()) * rtol)
    assert max(work) <= 1.5 * min(work), work


def test_energies_without_outputs_and_bad_numbers_are_refused() -> None:
    risk, _ = network()
    grid = bj.Grid.uniform([-1.0], [1.0], [21])
    with pytest.raises(bj.StepError, match="received a stepper down a Potential, need one down a Risk for Adaptive"):
        bj.Adaptive(bj.JKO(bj.Potential(lambda x: x[:, 0]), grid, 0.1))
    with pytest.raises(bj.StepError, match="need 0 < rtol < 1"):
        bj.Adaptive(bj.GradientDescent(risk, 0.1), rtol=0.0)
