"""SecondOrder: against the scalar ODE that d = 1 comes down to, and the slope that it adds to the potential."""

import math
import warnings

import pytest
import torch
from torch import Tensor

import bigjko as bj

from .registry import WAYS, data

D = torch.float64


def scalar_ode(mean: tuple[float, float], std: float, steps: int, nodes: int = 400) -> Tensor:
    """Outputs at T k / steps, T = 1, of the exact flow for x = y = 1 from a Gaussian, by quadrature: (steps + 1,).

    While w > 0 a neuron has w' = -z a, a' = -z w, so w + a -> e^s (w + a) and w - a -> e^-s (w - a) with one s for
    all, s' = -z = -2 (h - 1), and h(s) = E[w a; w > 0]. While h < 1 s rises, so that a neuron whose w has fallen to 0
    (w + a < 0) would go on falling: it rests there for good, as relu'(0) = 0 says, and its clamped w is 0.
    """
    x = torch.linspace(-8, 8, nodes + 1, dtype=D) * std
    w, a = (mean[0] + x)[:, None], (mean[1] + x)[None]
    p = torch.exp(-(x[:, None] ** 2 + x[None] ** 2) / (2 * std**2))
    p = torch.where(w > 0, p / p.sum(), 0.0)

    def h(s: float) -> float:
        up, down = math.exp(s) * (w + a), math.exp(-s) * (w - a)
        return float((p * ((up + down) / 2).clamp(min=0) * (up - down) / 2).sum())

    def slope(s: float) -> float:
        return -2 * (h(s) - 1)

    s, dt, outputs = 0.0, 1 / steps, [h(0.0)]
    for _ in range(steps):  # RK4: s is smooth
        k1 = slope(s)
        k2 = slope(s + dt / 2 * k1)
        k3 = slope(s + dt / 2 * k2)
        s += dt / 6 * (k1 + 2 * k2 + 2 * k3 + slope(s + dt * k3))
        outputs.append(h(s))
    assert max(outputs) < 1
    return torch.tensor(outputs, dtype=D)


@pytest.mark.slow
@pytest.mark.parametrize(("mean", "std"), [((0.5, 0.2), 0.3), ((0.9, 0.2), 0.22), ((0.8, -0.3), 0.2)])
def test_the_flow_follows_the_scalar_ode(mean: tuple[float, float], std: float) -> None:
    """mathematics.md 5.4: to 1e-3 at tau = .025, and with order 1.9 or more from .1 to .05, above the floor of h."""
    one = torch.ones(1, dtype=D)
    risk, grid = bj.Risk(one[:, None], one), bj.Grid.uniform([-3.0, -3.0], [3.0, 3.0], [241, 241])
    start = bj.GridMeasure.gaussian(grid, mean=torch.tensor(mean, dtype=D), std=std)
    exact = scalar_ode(mean, std, 40)
    gaps = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bj.NarrowMeasureWarning)  # w - a contracts
        for tau in (0.1, 0.05, 0.025):
            flow = bj.evolve(bj.JKO(risk, grid, tau, scheme=bj.SecondOrder()), start, 1.0)
            gaps.append(float((flow.outputs[:, 0] - exact[:: round(tau * 40)]).abs().max()))
    assert gaps[2] <= 1e-3, gaps
    assert math.log2(gaps[0] / gaps[1]) >= 1.9, gaps


def neuron_value(theta: Tensor, X: Tensor, z: Tensor, decay: float) -> Tensor:
    w, a = theta[:, :-1], theta[:, -1]
    return a * (torch.relu(w @ X.T) @ z) + decay * theta.square().sum(1)


@pytest.mark.parametrize("name", ["lifted", "projected"])
def test_the_slope_has_weight_decay_in_it(name: str) -> None:
    """|grad V|^2 of V = M^T z + beta |theta|^2 by autograd in (w, a): the whole of it, per unit of mass."""
    case = WAYS[name]
    way, X = case.kind(), data(2)
    z = torch.randn(len(X), generator=torch.Generator().manual_seed(2), dtype=D)
    grid = way.grid(8, 2)
    points = grid.points()
    # A direction d with sign s is the neuron (d, s), r = 1, and dw^2 + da^2 = 2 dr^2 + r^2 dOmega^2 is the cone's own
    # metric, so that slopes in it are those of (w, a).
    theta = points if name == "lifted" else torch.cat([points[:, 1:], points[:, :1]], dim=1)
    theta = theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(neuron_value(theta, X, z, 0.3).sum(), theta)
    found = bj.Risk(X, torch.zeros(len(X), dtype=D), way, weight_decay=0.3).on(grid).slope2(z).reshape(-1)
    assert (found - gradient.square().sum(1)).abs().max() <= 1e-12 * (1 + float(found.max()))


def test_the_slope_of_a_potential_is_along_the_surface() -> None:
    """Lines, circles and sheets: d/d angle squared, and no slope between labels."""
    grid = bj.Grid((bj.Sheets.of([1.0, -1.0]), bj.Circle.uniform(12), bj.Line.uniform(-1.0, 1.0, 5)))

    def V(x: Tensor) -> Tensor:
        return 3 * x[:, 0] + x[:, 1] * x[:, 3] + x[:, 2] * 2

    found = bj.Potential(V).on(grid).slope2(torch.zeros(0, dtype=D))
    angle = 2 * math.pi * torch.arange(12, dtype=D)[:, None] / 12
    x = torch.linspace(-1, 1, 5, dtype=D)
    expected = (2 * angle.cos() - angle.sin() * x) ** 2 + angle.cos() ** 2
    assert (found - expected).abs().max() <= 1e-14


def test_ornstein_uhlenbeck_contracts_at_second_order() -> None:
    """V = |x|^2 / 2, F = <V, .> alone: the mean (exact for Plain) errs by tau^2 at T = 1."""
    grid = bj.Grid.uniform([-3.0], [3.0], [601])
    start = bj.GridMeasure.gaussian(grid, mean=1.0, std=0.2)
    errors = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bj.NarrowMeasureWarning)
        for tau in (0.2, 0.1):
            V = bj.Potential(lambda x: (x**2).sum(1) / 2)
            jko = bj.JKO(V, grid, tau, entropy=bj.Plain(), scheme=bj.SecondOrder())
            final = bj.evolve(jko, start, 1.0).final
            assert isinstance(final, bj.GridMeasure)
            mean = float((final.masses * grid.points()[:, 0]).sum())
            # theta+ = theta - tau (theta+ + tau/2 theta+): a factor 1 / (1 + tau + tau^2/2) a step.
            assert mean == pytest.approx((1 + tau + tau**2 / 2) ** -round(1 / tau), abs=1e-6)
            errors.append(abs(mean - math.exp(-1)))
    assert 3.6 <= errors[0] / errors[1] <= 4.4


@pytest.mark.filterwarnings("ignore::bigjko.NarrowMeasureWarning")  # the slope jumps at kinks, and so does mass
@pytest.mark.parametrize("loss", [bj.losses.Squared(), bj.losses.Logistic()], ids=["squared", "logistic"])
def test_a_step_is_the_mean_of_both_ends(loss: bj.losses.Loss) -> None:
    """The solver ends where z is the mean of grad g(M q) and grad g(M p); the state holds grad g(M p) itself."""
    way = bj.neurons.Projected()
    X = torch.tensor([[1.0, 0.1], [0.4, 0.8], [0.9, 0.5]], dtype=D)
    risk = bj.Risk(X, torch.tensor([1.0, -1.0, 1.0], dtype=D), way, loss)
    grid = way.grid(128, 2)
    start = way.uniform(grid, radius=0.7)
    jko = bj.JKO(risk, grid, 0.05, scheme=bj.SecondOrder())
    step = jko.step(start, jko.init(start), 0.05)
    assert step.status is bj.Status.ok
    assert step.stats["residual"] <= 1e-8
    assert step.stats["evaluations"] <= 8 * step.stats["passes"]
    assert torch.allclose(step.state.z, loss.gradient(risk.outputs(step.measure), risk.y), rtol=1e-12, atol=1e-12)
