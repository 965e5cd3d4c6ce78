"""Implicit gradient descent: a stationary point, kinks included, below the start; order 1; the closed form in d = 1."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.optimize import brentq, lsq_linear, minimize
from torch import Tensor

import bigjko as bj
from bigjko.losses import Huber, Logistic, Loss, Squared
from bigjko.neurons.dynamics import FrozenOutputs, UnitDirections
from bigjko.status import Status

D = torch.float64
LOSSES: dict[str, Loss] = {"squared": Squared(0.2), "logistic": Logistic(0.2), "huber": Huber(0.3, scale=0.2)}


def problem(n: int, d: int, m: int, loss: Loss, decay: float = 0.01, size: float = 0.8) -> tuple[bj.Risk, Any]:
    X, y = torch.randn(n, d, dtype=D), torch.randn(n, dtype=D)
    risk = bj.Risk(X, y.sign() if isinstance(loss, Logistic) else y, loss=loss, weight_decay=decay)
    masses = torch.rand(m, dtype=D)
    return risk, bj.ParticleMeasure(size * torch.randn(m, d + 1, dtype=D), masses / masses.sum())


def energy(risk: bj.Risk, start: bj.ParticleMeasure, end: bj.ParticleMeasure, tau: float) -> float:
    """F + sum p |theta - theta_t|^2 / (2 tau)."""
    pulled = (start.masses @ (end.positions - start.positions).square()).sum() / (2 * tau)
    return float(risk.value(end) + pulled)


def unexplained(risk: bj.Risk, start: bj.ParticleMeasure, end: bj.ParticleMeasure, tau: float, *, free: bool) -> Tensor:
    """How far (theta_t - theta) / tau is from grad F'(theta), neuron by neuron; on kinks from its convex hull.

    The hull is reached through scipy's bounded least squares over the shares of the kinks (relative height 1e-9). Data
    on one line have one share: those on one side are on as far as those on the other are off.
    """
    z = risk.loss.gradient(risk.outputs(end), risk.y)
    w, a = end.w, end.a
    h = w @ risk.X.T
    size = risk.X.norm(dim=1)
    on = h.abs() < 1e-9 * (w.norm(dim=1) + start.w.norm(dim=1))[:, None] * size
    s = ((h > 0) & ~on).to(D)
    G = (s * z) @ risk.X
    pull = (start.positions - end.positions) / tau - 2 * risk.weight_decay * end.positions
    missing_w, missing_a = pull[:, :-1] - a[:, None] * G, pull[:, -1] - (w * G).sum(1)
    cosine = risk.X @ risk.X.T / (size[:, None] * size).clamp(min=1e-300)
    along, against = (((sign * cosine > 1 - 1e-12) * z) @ risk.X for sign in (1, -1))
    first = ~(cosine.abs() > 1 - 1e-12).tril(-1).any(1)
    for i in on.any(1).nonzero().reshape(-1).tolist():
        k = on[i] & first
        columns = (a[i] * (along - against)[k]).T.numpy()
        missing_w[i] -= a[i] * against[k].sum(0)
        found = lsq_linear(columns, missing_w[i].numpy(), bounds=(0.0, 1.0), method="bvls", tol=1e-15)
        missing_w[i] -= torch.from_numpy(columns @ found.x)
    return torch.cat([missing_w, missing_a[:, None]], dim=1) if free else missing_w


@pytest.mark.parametrize("tau", [0.02, 0.3])
@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("free", [True, False], ids=["free", "frozen outputs"])
def test_a_step_is_stationary_and_below_its_start(loss: str, d: int, tau: float, free: bool) -> None:
    risk, start = problem(6, d, 40, LOSSES[loss])
    check_steps(risk, start, tau, free=free)


def check_steps(risk: bj.Risk, start: bj.ParticleMeasure, tau: float, *, free: bool) -> None:
    """Optimality to 1e-9 at every neuron, those that end on a kink included; the energy of the step does not rise."""
    stepper = bj.ImplicitGradientDescent(risk, tau, dynamics=None if free else FrozenOutputs())
    for _ in range(2):
        taken = stepper.step(start, stepper.init(start), tau)
        assert taken.status is Status.ok
        assert taken.stats["residual"] <= 1e-10
        # Divided by tau: the rounding of positions, and the slack of shares that are 0 or 1.
        assert float(unexplained(risk, start, taken.measure, tau, free=free).abs().max()) <= 1e-9
        assert energy(risk, start, taken.measure, tau) <= energy(risk, start, start, tau)
        if not free:
            assert torch.equal(taken.measure.a, start.a)
        start = taken.measure


def test_kinks_hold_neurons() -> None:
    """Neurons end exactly on kinks, more of them from step to step: without these the test above would be smooth."""
    risk, start = problem(6, 2, 400, LOSSES["squared"])
    flow = bj.evolve(bj.ImplicitGradientDescent(risk, 0.2), start, 1.0)
    held = flow.stats["held"][1:]
    assert float(held[0]) > 0.01
    assert float(held[-1]) > float(held[0])


@pytest.mark.parametrize("tau", [0.05, 0.3])
def test_no_brute_force_does_better(tau: float) -> None:
    """L-BFGS on all positions: the same minimum to 1e-8 without kinks, and nothing lower with them."""
    risk, start = problem(4, 2, 8, Squared(0.3))
    X = risk.X
    smooth = replace(risk, X=torch.tensor([[1.0, 0.1], [0.8, -0.2], [1.1, 0.3], [0.9, 0.2]], dtype=D))
    away = bj.ParticleMeasure(start.positions.abs() * torch.tensor([1.0, 0.2, 1.0], dtype=D) + 0.5, start.masses)
    for energy_of, begin, exact in ((smooth, away, True), (replace(risk, X=X), start, False)):

        def value(flat: Any, risk: bj.Risk = energy_of, begin: bj.ParticleMeasure = begin) -> tuple[float, Any]:
            theta = torch.from_numpy(flat).reshape(begin.positions.shape).requires_grad_()
            u = begin.masses @ (theta[:, -1:] * torch.relu(theta[:, :-1] @ risk.X.T))
            decay = risk.weight_decay * (begin.masses @ theta.square()).sum()
            pulled = (begin.masses @ (theta - begin.positions).square()).sum() / (2 * tau)
            total = risk.loss.value(u, risk.y) + decay + pulled
            (slope,) = torch.autograd.grad(total, theta)
            return float(total.detach()), slope.reshape(-1).numpy()

        best = minimize(
            value, begin.positions.reshape(-1).numpy(), jac=True, method="L-BFGS-B",
            options={"ftol": 1e-16, "gtol": 1e-12, "maxiter": 5000, "maxfun": 20000},
        )  # fmt: skip
        stepper = bj.ImplicitGradientDescent(energy_of, tau)
        taken = stepper.step(begin, stepper.init(begin), tau)
        found, _ = value(taken.measure.positions.reshape(-1).numpy().copy())
        assert found <= best.fun + 1e-12
        if exact:
            difference = taken.measure.positions.reshape(-1) - torch.from_numpy(best.x)
            assert float(difference.abs().max()) <= 1e-6  # L-BFGS ends where the energy no longer falls: its root
            assert found >= best.fun - 1e-12


def test_one_datum_without_kinks_has_a_closed_form() -> None:
    """x = 1: w + a is divided by 1 + tau z and w - a by 1 - tau z, z = 2 (u+ - y): one equation in one unknown."""
    one, tau = torch.ones(1, dtype=D), 0.2
    risk = bj.Risk(one[:, None], one)
    positions = torch.tensor([[0.9, 0.2], [1.2, -0.3], [0.7, 0.6]], dtype=D)
    start = bj.ParticleMeasure(positions, torch.tensor([0.5, 0.2, 0.3], dtype=D))
    plus, minus = positions.sum(1), positions[:, 0] - positions[:, 1]

    def end(z: float) -> tuple[Tensor, Tensor]:
        return plus / (1 + tau * z), minus / (1 - tau * z)

    def missed(z: float) -> float:
        s, t = end(z)
        return 2 * (float(start.masses @ ((s + t) / 2 * (s - t) / 2)) - 1) - z

    s, t = end(float(brentq(missed, -2.0, 2.0, xtol=1e-15)))
    stepper = bj.ImplicitGradientDescent(risk, tau)
    taken = stepper.step(start, stepper.init(start), tau)
    assert float((taken.measure.positions - torch.stack([s + t, s - t], 1) / 2).abs().max()) <= 1e-12


def test_order_one_against_the_flow_with_kinks() -> None:
    """Slopes of the output error between 1/2 and 2 halvings of tau: 1 within .15."""
    risk, start = problem(5, 2, 60, Squared(0.2))
    exact = bj.evolve(bj.GradientDescent(risk, 2e-4), start, 0.5, record=2500)  # wrong by 1% of the smallest error
    errors = []
    for tau in (0.1, 0.05, 0.025):
        flow = bj.evolve(bj.ImplicitGradientDescent(risk, tau), start, 0.5)
        errors.append(float((flow.outputs[-1] - exact.outputs[-1]).abs().max()))
    slopes = [math.log2(errors[k] / errors[k + 1]) for k in range(2)]
    assert all(abs(slope - 1) <= 0.15 for slope in slopes), (errors, slopes)


def test_where_the_problem_is_not_convex_it_says_so() -> None:
    risk, start = problem(5, 2, 50, Squared(1.0), size=1.5)
    stepper = bj.ImplicitGradientDescent(risk, 5.0)
    taken = stepper.step(start, stepper.init(start), 5.0)
    assert taken.status is Status.implicit_stalled
    assert taken.measure is start
    with pytest.raises(bj.FlowError, match=r"take a smaller tau \(tau max\|G\| must stay below 1\)"):
        bj.evolve(stepper, start, 5.0)


def test_other_dynamics_and_bad_numbers_are_refused_by_name() -> None:
    risk, _ = problem(5, 2, 5, Squared(0.2))
    with pytest.raises(bj.StepError, match=r"received UnitDirections\(\), need Free\(\) or FrozenOutputs\(\)"):
        bj.ImplicitGradientDescent(risk, 0.1, dynamics=UnitDirections())
    with pytest.raises(bj.StepError, match="received rtol = 0.0 and max_iterations = 50"):
        bj.ImplicitGradientDescent(risk, 0.1, rtol=0.0)


def test_float32_neurons_stay_float32() -> None:
    risk, start = problem(5, 2, 50, Squared(0.2))
    small = bj.evolve(bj.ImplicitGradientDescent(risk.to(dtype=torch.float32), 0.1), start.to(dtype=torch.float32), 0.3)
    large = bj.evolve(bj.ImplicitGradientDescent(risk, 0.1), start, 0.3)
    assert isinstance(small.final, bj.ParticleMeasure)
    assert small.final.positions.dtype == torch.float32
    assert float((small.outputs - large.outputs).abs().max()) <= 1e-5


# ---------------------------------------------------------------------------------------------------- data on one line


def on_one_line(*rows: list[float]) -> bj.Risk:
    """Rows are x and y."""
    data = torch.tensor(rows, dtype=D)
    return bj.Risk(data[:, :-1], data[:, -1], weight_decay=0.01)


ON_ONE_LINE = {
    "d = 1": on_one_line([1.0, 1.0], [-0.7, -0.6]),
    "antipodal": on_one_line([1.0, 0.5, 1.0], [-1.0, -0.5, -1.0], [0.0, 1.0, -0.5]),
    "a row twice": on_one_line([1.0, 0.5, 2.8], [0.0, 1.0, 2.3], [1.0, 0.5, -1.2], [0.0, 1.0, -1.7]),
    "a zero": on_one_line([1.0, 0.5, 1.0], [-2.0, -1.0, -1.0], [0.0, 0.0, 0.3], [0.0, 1.0, -0.5]),
}


def neurons(d: int) -> bj.ParticleMeasure:
    return bj.ParticleMeasure(0.7 * torch.randn(40, d + 1, dtype=D), torch.full((40,), 1 / 40, dtype=D))


@pytest.mark.parametrize("tau", [0.02, 0.1])
@pytest.mark.parametrize("free", [True, False], ids=["free", "frozen outputs"])
@pytest.mark.parametrize("case", ON_ONE_LINE)
def test_data_on_one_line_have_one_kink(case: str, free: bool, tau: float) -> None:
    """Chosen datum by datum, shares meet the test above, but not one in which the data of a line turn together."""
    risk = ON_ONE_LINE[case]
    check_steps(risk, neurons(risk.X.shape[1]), tau, free=free)


@pytest.mark.parametrize("case", ON_ONE_LINE)
def test_the_gap_to_the_flow_halves_with_data_on_one_line(case: str) -> None:
    """Order 1, over two halvings: neurons cross the kinks that the flow crosses."""
    risk = ON_ONE_LINE[case]
    start = neurons(risk.X.shape[1])
    limit = bj.evolve(bj.SlidingFlow(risk, 0.005), start, 0.96, record=16)  # order 2: its error is far smaller
    gaps = []
    for k in (1, 2, 4):
        flow = bj.evolve(bj.ImplicitGradientDescent(risk, 0.08 / k), start, 0.96, record=k)
        gaps.append(float((flow.outputs - limit.outputs).abs().max()))
    assert all(1.6 <= gaps[k] / gaps[k + 1] <= 2.4 for k in range(2)), gaps


def test_data_that_were_met_twice_share_a_kink() -> None:
    """Every x with labels y + 2 and y - 2 is x with y under twice the loss: the same steps up to their tolerance."""
    twice, start = ON_ONE_LINE["a row twice"], neurons(2)
    once = replace(twice, X=twice.X[:2], y=(twice.y[:2] + twice.y[2:]) / 2, loss=Squared(2.0))
    one, two = (bj.evolve(bj.ImplicitGradientDescent(risk, 0.05), start, 1.0) for risk in (once, twice))
    # 20 steps, each to 1e-10 of a slope of order 10.
    assert float((two.outputs[:, :2] - one.outputs).abs().max()) <= 1e-8
