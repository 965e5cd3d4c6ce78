"""What every stepper owes: its order, its law of mass, a falling risk, purity, and resuming from its state."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import bigjko as bj
from bigjko.particles.descent import ParticleState, velocity
from bigjko.status import Status

from .registry import STEPPERS
from .test_kernels import Largest

pytestmark = [
    pytest.mark.filterwarnings("ignore::bigjko.NarrowMeasureWarning"),  # small grids: what is tested is the step
    pytest.mark.filterwarnings("ignore::bigjko.BoundaryMassWarning"),
]


def masses(measure: bj.GridMeasure | bj.ParticleMeasure) -> Tensor:
    return measure.masses.reshape(-1)


@pytest.mark.parametrize("name", [name for name, case in STEPPERS.items() if case.order is not None])
def test_the_output_error_has_the_order_that_is_promised(name: str) -> None:
    """Against particle descent with steps 10 and 20 times finer, extrapolated: slopes within .15."""
    case = STEPPERS[name]
    errors = []
    for tau in (0.1, 0.05, 0.025):
        stepper, start = case.make(tau)
        flow = bj.evolve(stepper, start, 0.5)
        neurons = stepper.neurons
        assert neurons is not None
        particles = neurons.particles(start) if isinstance(start, bj.GridMeasure) else start
        assert isinstance(stepper.energy, bj.Risk)
        fine, finer = (
            bj.evolve(bj.GradientDescent(stepper.energy, tau=tau / k), particles, 0.5, record=k).outputs
            for k in (10, 20)
        )
        errors.append(float((flow.outputs - (2 * finer - fine)).abs().max()))
    slopes = [math.log2(errors[k] / errors[k + 1]) for k in range(2)]
    assert case.order is not None
    assert all(abs(slope - case.order) <= 0.15 for slope in slopes), (errors, slopes)


@pytest.mark.parametrize("name", STEPPERS)
def test_mass_follows_its_law_and_the_risk_falls(name: str) -> None:
    """Kept to 1e-12 a step, or grown; never negative. Plain steps may blur the risk upwards near its minimum only."""
    case = STEPPERS[name]
    stepper, start = case.make(0.1)
    flow = bj.evolve(stepper, start, 0.5)
    if case.keeps_mass:
        # The scaling iteration ends with masses that are right to its tolerance, not to rounding.
        tolerance = 1e-6 if name == "jko, scaling" else 1e-12
        assert float((flow.masses.diff() / flow.masses[0]).abs().max()) <= tolerance
    else:
        assert float((flow.masses / flow.masses[0] - 1).abs().max()) > 1e-3
    assert bool((masses(flow.final) >= 0).all())
    assert bool((flow.risks.diff() < 0).all())


@pytest.mark.parametrize("name", STEPPERS)
def test_a_step_is_pure_and_resumes_from_its_state(name: str) -> None:
    """The same measure and state give the same step, bit by bit; and a flow is nothing but its steps."""
    stepper, start = STEPPERS[name].make(0.1)
    before = masses(start).clone()
    state = stepper.init(start)
    first, again = stepper.step(start, state, 0.1), stepper.step(start, state, 0.1)
    assert torch.equal(masses(first.measure), masses(again.measure))
    assert torch.equal(first.outputs, again.outputs)
    assert torch.equal(masses(start), before)
    second = stepper.step(first.measure, first.state, 0.1)
    flow = bj.evolve(stepper, start, 0.2)
    assert torch.equal(flow.outputs[1:], torch.stack([first.outputs, second.outputs]))
    assert set(first.stats) == set(second.stats)


@pytest.mark.parametrize("name", STEPPERS)
def test_what_a_step_reports_is_what_its_measure_gives(name: str) -> None:
    """Outputs and risk of the step are those of the measure, to the rounding of sums."""
    stepper, start = STEPPERS[name].make(0.1)
    step = stepper.step(start, stepper.init(start), 0.07)
    assert isinstance(stepper.energy, bj.Risk)
    assert step.dt == 0.07
    assert torch.allclose(step.outputs, stepper.energy.outputs(step.measure), rtol=1e-12, atol=1e-12)
    assert float(step.risk) == pytest.approx(float(stepper.energy.value(step.measure)), rel=1e-12)


def moved(stepper: Any, device: torch.device) -> Any:
    """The same stepper for measures on another device."""
    if isinstance(stepper, bj.Adaptive):
        return replace(stepper, stepper=moved(stepper.stepper, device))
    if isinstance(stepper, bj.Widening):
        return replace(stepper, jko=moved(stepper.jko, device))
    there = {"energy": stepper.energy.to(device=device)}
    return replace(stepper, **there | ({"grid": stepper.grid.to(device=device)} if isinstance(stepper, bj.JKO) else {}))


def in_space(tau: float) -> tuple[bj.JKO, bj.GridMeasure]:
    """40^3 nodes, twelve data, weight decay: windows of tiles on three axes."""
    X, y = torch.randn(12, 2).double(), torch.randn(12).double()
    grid = bj.neurons.Lifted().grid(40, 2, radius=2.5)
    return bj.JKO(bj.Risk(X, y, weight_decay=0.01), grid, tau=tau), bj.GridMeasure.gaussian(grid, 0.1, 0.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "make",
    [
        *(pytest.param(case.make, id=f"{name}-cuda") for name, case in STEPPERS.items()),
        pytest.param(in_space, id="cuda"),
    ],
)
def test_a_gpu_takes_the_steps_of_the_cpu(make: Callable[[float], tuple[Any, Any]]) -> None:
    """Three steps, to what the solvers' tolerances leave (1e-8 to 1e-6 in outputs of order 1)."""
    stepper, start = make(0.1)
    there = torch.empty(0, device="cuda").device
    here, far = bj.evolve(stepper, start, 0.3), bj.evolve(moved(stepper, there), start.to(device=there), 0.3)
    assert float((far.outputs.cpu() - here.outputs).abs().max()) <= 1e-6
    assert torch.allclose(far.masses.cpu(), here.masses, rtol=1e-6)


def descent(m: int, dtype: torch.dtype = torch.float64) -> tuple[bj.GradientDescent, bj.ParticleMeasure]:
    """m neurons at ten data in the plane, with weight decay."""
    X, y = torch.randn(10, 2, dtype=dtype), torch.randn(10, dtype=dtype)
    risk = bj.Risk(X, y, loss=bj.losses.Squared(scale=0.1), weight_decay=0.1)
    masses = torch.rand(m, dtype=dtype) / m
    return bj.GradientDescent(risk, tau=0.1), bj.ParticleMeasure(torch.randn(m, 3, dtype=dtype), masses)


def test_a_descent_step_goes_along_the_velocity(dtype: torch.dtype) -> None:
    """Moved and summed in one pass, it is the velocity, the outputs and the risk taken one by one."""
    stepper, start = descent(1000, dtype)
    risk = stepper.energy
    step, speed = stepper.step(start, stepper.init(start), 0.07), velocity(risk, start)
    size = 20 * torch.finfo(dtype).eps  # of a sum of ten numbers of order 1
    assert float((step.measure.positions - start.positions - 0.07 * speed).abs().max()) <= 10 * size
    assert step.stats["speed"] == pytest.approx(float(speed.norm(dim=1).max()), rel=size)
    assert step.outputs is step.state.outputs
    assert torch.allclose(step.outputs, risk.outputs(step.measure), rtol=size, atol=size)
    assert float(step.risk) == pytest.approx(float(risk.value(step.measure)), rel=size)


def test_a_descent_step_holds_arrays_of_the_neurons() -> None:
    stepper, start = descent(100_000)
    state = stepper.init(start)
    with Largest() as largest:
        stepper.step(start, state, 0.1)
    assert largest.entries == start.positions.numel()


def test_a_descent_that_blows_up_says_so() -> None:
    stepper, start = descent(1000)
    state = stepper.init(start)
    step = stepper.step(start, state, 1e308)
    assert step.status is Status.not_finite
    assert step.measure is start
    assert step.state is state
    lost = ParticleState(state.outputs * math.nan)
    assert stepper.step(start, lost, 0.1).status is Status.not_finite
