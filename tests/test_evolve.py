"""The loop: times, saved measures, records, call-backs, failures and Ctrl-C."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import bigjko as bj
from bigjko.stepper import Step, Stepper

D = torch.float64


def toy(**options: Any) -> tuple[bj.JKO, bj.GridMeasure]:
    grid = bj.Grid.uniform([-3.0], [3.0], [81])
    jko = bj.JKO(bj.Potential(lambda x: (x**2).sum(1) / 2), grid, **{"tau": 0.1, **options})
    return jko, bj.GridMeasure.gaussian(grid, mean=0.5, std=0.5)


def test_times_are_multiples_of_tau_and_the_last_step_is_shortened() -> None:
    """t_k = k tau, not a running sum: no drift."""
    jko, start = toy()
    flow = bj.evolve(jko, start, 1.05)
    assert flow.times.tolist() == [*(k * 0.1 for k in range(11)), 1.05]
    assert flow.status is bj.Status.ok


def test_an_end_that_is_a_multiple_up_to_rounding_takes_no_sliver_of_a_step() -> None:
    """3 x .1 is .30000000000000004: three steps to .3, not four."""
    jko, start = toy()
    assert bj.evolve(jko, start, 0.3).times.tolist() == [0.0, 0.1, 0.2, 0.3]
    assert len(bj.evolve(jko, start, 0.7).times) == 8


def test_saved_times_are_hit_exactly() -> None:
    """Between multiples of tau a step is shortened, and the multiples go on."""
    jko, start = toy()
    flow = bj.evolve(jko, start, 0.4, save_at=[0.0, 0.15, 0.3])
    assert flow.saved_times.tolist() == [0.0, 0.15, 0.3]
    assert flow.times.tolist() == pytest.approx([0.0, 0.1, 0.15, 0.2, 0.3, 0.4])
    assert 0.15 in flow.times.tolist()
    assert len(flow.measures) == 3
    default = bj.evolve(jko, start, 0.4)
    assert default.saved_times.tolist() == [0.0, 0.4]
    assert default.measures[0] is start


def test_every_recordth_step_and_the_last_are_recorded() -> None:
    """Outputs, risks, masses and stats; stats are NaN at time 0."""
    jko, start = toy()
    flow = bj.evolve(jko, start, 1.0, record=4)
    assert flow.times.tolist() == pytest.approx([0.0, 0.4, 0.8, 1.0])
    assert set(flow.stats) == {
        "evaluations", "applications", "passes", "residual", "gap_z", "gap_d", "misfit", "mass_error",
        "boundary_mass", "width", "stage",
    }  # fmt: skip
    for values in flow.stats.values():
        assert values.shape == (4,)
        assert math.isnan(values[0])
    assert flow.outputs.shape == (4, 0)
    assert bool((flow.risks.diff() < 0).all())
    assert torch.allclose(flow.masses, torch.ones(4, dtype=D), atol=1e-12)


def test_callbacks_hear_every_step() -> None:
    """Each is called with the time and the step."""
    jko, start = toy()
    heard: list[float] = []
    risks: list[float] = []

    def risk(_: float, step: Step[Any, Any]) -> None:
        risks.append(float(step.risk))

    flow = bj.evolve(jko, start, 0.5, record=5, callbacks=[lambda t, _: heard.append(t)], progress=risk)
    assert heard == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert risks[-1] == float(flow.risks[-1])


def test_ctrl_c_hands_over_what_was_recorded() -> None:
    """FlowInterrupted is a KeyboardInterrupt, and carries a flow with the measure it had reached."""
    jko, start = toy()

    def stop(time: float, _: Step[Any, Any]) -> None:
        if time > 0.35:
            raise KeyboardInterrupt

    with pytest.raises(bj.FlowInterrupted) as caught:
        bj.evolve(jko, start, 5.0, callbacks=[stop])
    flow = caught.value.flow
    assert isinstance(caught.value, KeyboardInterrupt)
    assert isinstance(flow, bj.Flow)
    assert flow.status is bj.Status.interrupted
    assert flow.times.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert flow.saved_times.tolist() == pytest.approx([0.0, 0.4])


def test_a_callback_that_raises_stop_iteration_ends_the_flow(tmp_path: Path) -> None:
    """No error; all callbacks hear of the last step, and a flow on disk goes on from there."""
    jko, start = toy()
    heard: list[float] = []

    def stop(time: float, _: Step[Any, Any]) -> None:
        if 0.35 < time < 0.45:
            raise StopIteration

    def run(path: Path | None, resume: bool) -> bj.Flow:
        asked = [stop, lambda t, _: heard.append(t)]
        return bj.evolve(jko, start, 0.6, callbacks=asked, checkpoint=path, resume=resume)

    for path in (None, tmp_path / "flow.zarr"):
        heard.clear()
        flow = run(path, resume=False)
        assert flow.status is bj.Status.stopped
        assert flow.times.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4]) == [0.0, *heard]
        assert flow.saved_times.tolist() == pytest.approx([0.0, 0.4])
    went_on = run(tmp_path / "flow.zarr", resume=True)
    assert went_on.status is bj.Status.ok
    assert torch.equal(went_on.outputs, bj.evolve(jko, start, 0.6).outputs)


@dataclass(frozen=True, eq=False)
class Stumbling(Stepper[bj.GridMeasure, None]):
    """Fails at its third step."""

    energy: bj.Potential
    tau: float
    name = "stumbling"

    def init(self, measure: bj.GridMeasure) -> None:
        return None

    def step(self, measure: bj.GridMeasure, state: None, dt: float) -> Step[bj.GridMeasure, None]:
        moved = bj.GridMeasure(measure.grid, measure.log_masses + 0.1)
        status = bj.Status.ok if float(moved.mass) < 1.3 else bj.Status.not_finite
        return Step(moved, None, dt, torch.zeros(0, dtype=D), moved.mass, {"height": 1.0}, status)


def test_a_step_that_fails_raises_with_its_status_and_the_flow_so_far() -> None:
    """The text of the status is cause and advice; throw=False returns the flow instead."""
    _, start = toy()
    stepper = Stumbling(bj.Potential(lambda x: 0 * x[:, 0]), 0.5)
    with pytest.raises(bj.FlowError, match=r"the stumbling step from t = 1 failed: .* take a smaller tau") as caught:
        bj.evolve(stepper, start, 3.0)
    assert caught.value.status is bj.Status.not_finite
    assert isinstance(caught.value.flow, bj.Flow)
    assert caught.value.flow.times.tolist() == [0.0, 0.5, 1.0]
    flow = bj.evolve(stepper, start, 3.0, throw=False)
    assert flow.status is bj.Status.not_finite
    assert flow.saved_times.tolist() == [0.0, 1.0]


def test_a_solver_that_runs_out_ends_the_flow() -> None:
    """A dual that may not take enough evaluations is reported as stalled, not passed on."""
    risk = bj.Risk(torch.ones(1, 1, dtype=D), torch.ones(1, dtype=D))
    grid = bj.Grid.uniform([-3.0, -3.0], [3.0, 3.0], [41, 41])
    start = bj.GridMeasure.gaussian(grid, mean=0.3, std=0.5)
    jko = bj.JKO(risk, grid, tau=0.3, solver=bj.DualSolver(rtol=1e-12, max_evaluations=2))
    with pytest.raises(bj.FlowError, match="dual of the step stopped short"):
        bj.evolve(jko, start, 1.0)


@pytest.mark.parametrize("t_end", [0.0, -1.0, math.nan, math.inf])
def test_an_end_time_must_be_positive(t_end: float) -> None:
    """Also refused: times to save at outside the flow, and a record of 0."""
    jko, start = toy()
    with pytest.raises(bj.StepError, match="need a positive finite time"):
        bj.evolve(jko, start, t_end)
    with pytest.raises(bj.StepError, match=r"received save_at times \[2.0\]"):
        bj.evolve(jko, start, 1.0, save_at=[2.0])
    with pytest.raises(bj.StepError, match="received record = 0"):
        bj.evolve(jko, start, 1.0, record=0)


def test_gradient_descent_and_flow_agree_as_the_step_falls() -> None:
    """GD is Euler on the flow: halving its step halves the distance to the flow's outputs."""
    X = torch.randn(5, 3, dtype=D)
    risk = bj.Risk(X, torch.randn(5, dtype=D), loss=bj.losses.Squared(scale=0.2), weight_decay=0.01)
    start = bj.ParticleMeasure.from_network(torch.randn(30, 3, dtype=D), torch.randn(30, dtype=D))
    exact = bj.evolve(bj.GradientFlow(risk, tau=0.1), start, 0.5)
    gaps = []
    for parts in (20, 40):
        descent = bj.evolve(bj.GradientDescent(risk, tau=0.1 / parts), start, 0.5, record=parts)
        gaps.append(float((descent.outputs - exact.outputs).abs().max()))
    assert 1.8 <= gaps[0] / gaps[1] <= 2.2
    assert float(exact.risks[-1]) < float(exact.risks[0])


def test_balanced_neurons_keep_sign_and_balance() -> None:
    """GD conserves |w|^2 - a^2 up to O(tau) over a run, and sign(a) (mathematics.md 1)."""
    risk = bj.Risk(torch.randn(6, 2, dtype=D), torch.randn(6, dtype=D))
    W = torch.randn(40, 2, dtype=D)
    a = W.norm(dim=1) * torch.randn(40, dtype=D).sign()
    drifts = []
    for tau in (2e-3, 1e-3):
        flow = bj.evolve(bj.GradientDescent(risk, tau=tau), bj.ParticleMeasure.from_network(W, a), 1.0)
        final = flow.final
        assert isinstance(final, bj.ParticleMeasure)
        assert bool((final.a.sign() == a.sign()).all())
        drifts.append(float(((final.w**2).sum(1) - final.a**2).abs().max()))
    assert 1.7 <= drifts[0] / drifts[1] <= 2.3


@pytest.mark.filterwarnings("ignore::bigjko.NarrowMeasureWarning")  # coarse on purpose: it is quick
def test_everything_runs_in_float32_without_changing_dtype() -> None:
    """The dtype of the grid rules; outputs, risks and masses are float64 sums."""
    X = torch.tensor([[1.0, 0.2], [-0.4, 1.0]], dtype=torch.float32)
    y = torch.tensor([0.5, -0.5], dtype=torch.float32)
    for way in (bj.neurons.Lifted(), bj.neurons.Projected()):
        outputs = {}
        for dtype in (torch.float32, torch.float64):
            risk = bj.Risk(X.to(dtype), y.to(dtype), neurons=way)
            grid = way.grid(nodes=25 if way.name == "lifted" else 128, dim=2, dtype=dtype)
            start = (
                bj.GridMeasure.gaussian(grid, mean=0.0, std=0.6)
                if isinstance(way, bj.neurons.Lifted)
                else way.uniform(grid, radius=0.7)
            )
            flow = bj.evolve(bj.JKO(risk, grid, tau=0.1), start, 0.3)
            assert isinstance(flow.final, bj.GridMeasure)
            assert flow.final.log_masses.dtype == dtype
            assert flow.outputs.dtype == flow.masses.dtype == D
            outputs[dtype] = flow.outputs
        # An ulp of the potentials (|b| < 300 here) is a relative mass error of 2e-5 (mathematics.md 4).
        assert float((outputs[torch.float32] - outputs[D]).abs().max()) <= 1e-4


def test_save_at_takes_any_iterable() -> None:
    """A generator is read once, an array has no truth value: neither loses a measure."""
    jko, start = toy()
    for times in ((t for t in (0.1, 0.2)), torch.tensor([0.1, 0.2], dtype=D).numpy()):
        assert bj.evolve(jko, start, 0.3, save_at=times).saved_times.tolist() == [0.1, 0.2]


def test_a_gradient_flow_that_cannot_advance_ends_with_a_status() -> None:
    """torchdiffeq asserts; the flow so far is kept all the same."""
    risk = bj.Risk(torch.ones(1, 1, dtype=D), torch.full((1,), 1e200, dtype=D))
    start = bj.ParticleMeasure.from_network(torch.ones(2, 1, dtype=D), torch.ones(2, dtype=D))
    flow = bj.evolve(bj.GradientFlow(risk, tau=0.1), start, 0.2, throw=False)
    assert flow.status is bj.Status.flow_stalled
    assert flow.measures[-1] is start
