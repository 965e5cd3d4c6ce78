"""The risk: against the seed's own network loss, the steps of both, and the first variation."""

import math

import pytest
import torch
from torch import Tensor

from bigjko import GradientDescent, GridMeasure, ParticleMeasure, Potential, Risk
from bigjko.losses import Logistic, Loss, Squared
from bigjko.neurons import Lifted, Neurons

from .registry import WAYS, WayCase, data, gap

n, d, m = 7, 3, 11
BETA = 0.05


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """X, y, W, a; one neuron exactly on a kink."""
    X, W = torch.randn(n, d, dtype=torch.float64), torch.randn(m, d, dtype=torch.float64)
    X[0], W[0] = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([2.0, 5.0, -2.0])
    return X, torch.randn(n, dtype=torch.float64), W, torch.randn(m, dtype=torch.float64)


def seed_loss(X: Tensor, y: Tensor, W: Tensor, a: Tensor, scale: float = 1.0, beta: float = BETA) -> Tensor:
    """L(W, a) = sum_j (sum_i relu(w_i . x_j) a_i - y_j)^2 + beta sum_i (|w_i|^2 + a_i^2), written out."""
    return scale * ((torch.relu(X @ W.T) @ a - y) ** 2).sum() + beta * ((W**2).sum() + (a**2).sum())


@pytest.mark.parametrize("scale", [1.0, 1 / n], ids=["sum", "mean"])
def test_network_loss_is_the_seeds(scale: float) -> None:
    X, y, W, a = problem()
    risk = Risk(X, y, loss=Squared(scale), weight_decay=BETA)
    # sqrt(m)^2 / m is 1 up to three roundings, in sums of a few dozen terms.
    assert float(risk.network_loss(W, a)) == pytest.approx(float(seed_loss(X, y, W, a, scale)), rel=1e-13)


def test_network_loss_takes_other_losses() -> None:
    X, y, W, a = problem()
    risk = Risk(X, y.sign(), loss=Logistic())
    expected = torch.log1p((-y.sign() * (torch.relu(X @ W.T) @ a)).exp()).sum()
    assert float(risk.network_loss(W, a)) == pytest.approx(float(expected), rel=1e-13)


@pytest.mark.parametrize("scale", [1.0, 1 / n], ids=["sum", "mean"])
def test_one_step_of_descent_is_one_step_of_the_weighted_flow(scale: float) -> None:
    # theta' = -grad L is th' = -grad F'(mu)(th) for th = sqrt(m) theta, on the same clock (mathematics.md 1).
    X, y, W, a = problem()
    tau = 1e-2
    W.requires_grad_()
    a.requires_grad_()
    by_W, by_a = torch.autograd.grad(seed_loss(X, y, W, a, scale), (W, a))  # torch's own relu'(0) is 0
    moved = torch.cat([W - tau * by_W, (a - tau * by_a)[:, None]], dim=1).detach()

    risk = Risk(X, y, loss=Squared(scale), weight_decay=BETA)
    start = ParticleMeasure.from_network(math.sqrt(m) * W.detach(), math.sqrt(m) * a.detach())
    descent = GradientDescent(risk, tau=tau)
    step = descent.step(start, descent.init(start), tau)
    assert gap(step.measure.positions, math.sqrt(m) * moved) <= 1e-12
    assert float(step.risk) == pytest.approx(float(seed_loss(X, y, moved[:, :d], moved[:, d], scale)), rel=1e-12)
    assert gap(step.outputs, torch.relu(X @ moved[:, :d].T) @ moved[:, d]) <= 1e-12


@pytest.mark.parametrize("loss", [Squared(), Squared(1 / 6), Logistic()], ids=repr)
@pytest.mark.parametrize("case", WAYS.values(), ids=WAYS)
def test_the_potential_is_the_first_variation(case: WayCase, loss: Loss) -> None:
    X = data(2)
    y = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    way = case.make()
    risk = Risk(X, y, way, loss, weight_decay=BETA)
    grid = way.grid(case.nodes, 2)
    p = torch.rand(grid.shape, dtype=torch.float64) / grid.size
    change = torch.randn(grid.shape, dtype=torch.float64) / grid.size
    measure = GridMeasure(grid, p.log())
    # F along p + t change, differentiated at t = 0: sums over N nodes of order 1.
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    energy = risk.on(grid)
    outputs = energy.outputs(p) + t * energy.outputs(change)
    value = loss.value(outputs, y) + ((p + t * change) * BETA * way.squared_norm(grid)).sum()
    (slope,) = torch.autograd.grad(value, t)
    assert float((risk.potential(measure) * change).sum()) == pytest.approx(float(slope), abs=1e-13)
    assert float(risk.value(measure)) == pytest.approx(float(value.detach()), rel=1e-13)


def test_the_potential_is_seen_from_elsewhere() -> None:
    X, y, W, a = problem()
    risk = Risk(X, y, weight_decay=BETA)
    here = ParticleMeasure.from_network(W, a)
    there = ParticleMeasure.from_network(torch.randn(4, d, dtype=torch.float64), torch.randn(4, dtype=torch.float64))
    z = 2 * (torch.relu(X @ W.T) @ a / m - y)
    expected = there.a * (torch.relu(there.w @ X.T) @ z) + BETA * (there.positions**2).sum(1)
    assert gap(risk.potential(here, at=there), expected) <= 1e-12
    assert gap(risk.outputs(here, X=2 * X[:2]), 2 * risk.outputs(here)[:2]) <= 1e-13


@pytest.mark.parametrize("case", WAYS.values(), ids=WAYS)
def test_weight_decay_counts_both_layers(case: WayCase) -> None:
    way: Neurons = case.make()
    W, a = case.network(5, 2)
    y = torch.zeros(6, dtype=torch.float64)
    plain, decayed = Risk(data(2), y, way), Risk(data(2), y, way, weight_decay=0.3)
    particles = ParticleMeasure.from_network(W, a)
    expected = 0.3 * case.decay(W, a).mean()
    assert float(decayed.value(particles) - plain.value(particles)) == pytest.approx(float(expected), rel=1e-12)


def test_a_risk_travels_to_another_dtype() -> None:
    X, y, W, a = problem()
    risk = Risk(X, y, Lifted(), Squared(), BETA)
    low = risk.to(dtype=torch.float32)
    assert low.X.dtype == low.y.dtype == torch.float32
    assert (low.neurons, low.loss, low.weight_decay) == (risk.neurons, risk.loss, BETA)
    # Everything in R^n is float64 still; n d m float32 products of order 1.
    out = low.outputs(ParticleMeasure.from_network(W.float(), a.float()))
    assert out.dtype == torch.float64
    assert gap(out, risk.outputs(ParticleMeasure.from_network(W, a))) <= 1e-5


def test_a_potential_is_an_energy_without_data() -> None:
    grid = Lifted().grid(7, 1)
    energy = Potential(lambda points: (points**2).sum(1) / 2).on(grid)
    p = torch.rand(grid.shape, dtype=torch.float64)
    assert float(energy.value(p)) == pytest.approx(float((grid.points() ** 2).sum(1) @ p.reshape(-1) / 2), rel=1e-14)
    nothing = torch.zeros(0, dtype=torch.float64)
    assert torch.equal(energy.at(nothing), energy.potential)
    assert energy.features.gram(p).shape == (0, 0)
