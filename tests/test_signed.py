"""Signed and Split: the gradient descent that they follow, and pairs against their marginals."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import bigjko as bj
from bigjko.errors import MeasureError
from bigjko.neurons import FrozenOutputs, Pairs, Signed, Split
from bigjko_kernels import Circle, Grid, GridError, Line, Sheets

from .registry import data

D = torch.float64


def network(m: int, dim: int) -> tuple[Tensor, Tensor]:
    """Both signs, |a| away from 0: GD on W is taken with step gamma / |a|."""
    generator = torch.Generator().manual_seed(11)
    W = torch.randn(m, dim, generator=generator, dtype=D)
    a = 0.2 + torch.rand(m, generator=generator, dtype=D)
    return W, a * torch.where(torch.arange(m) % 3 == 0, -1.0, 1.0)


def test_signed_follows_descent_on_the_first_layer_with_step_gamma_over_a() -> None:
    """Autograd's GD on W of sum_j ((1/m) sum_i relu(w_i . x_j) a_i - y_j)^2, a frozen, against the way's own."""
    X, gamma = data(2), 0.01
    y = torch.linspace(-1.0, 1.0, len(X), dtype=D)
    W, a = network(12, 2)
    risk = bj.Risk(X, y, neurons=Signed())
    neurons = Signed().with_unit_outputs(bj.ParticleMeasure.from_network(W, a))
    flow = bj.evolve(bj.GradientDescent(risk, tau=gamma), neurons, 20 * gamma)
    for _ in range(20):
        W = W.detach().requires_grad_()
        loss = ((torch.relu(X @ W.T) @ a / a.numel() - y) ** 2).sum()
        (slope,) = torch.autograd.grad(loss, W)
        W = W - gamma / a.abs()[:, None] * a.numel() * slope  # m: the network is a mean (mathematics.md 1)
    final = flow.final
    assert isinstance(final, bj.ParticleMeasure)
    # 20 steps of rounding on numbers of size 3.
    assert (final.w - W).abs().max() <= 1e-13
    assert torch.equal(final.a, a.sign())
    assert (W - network(12, 2)[0]).abs().max() > 0.1  # it has moved


def test_weight_decay_of_signed_is_that_of_unit_outputs() -> None:
    """w' = -2 beta w where the data are silent: the neurons (w, s) of the measure decay, not those of the network."""
    X, beta, tau = torch.zeros(1, 2, dtype=D), 0.3, 0.1
    W, a = network(7, 2)
    risk = bj.Risk(X, torch.ones(1, dtype=D), neurons=Signed(), weight_decay=beta)
    neurons = Signed().with_unit_outputs(bj.ParticleMeasure.from_network(W, a))
    final = bj.evolve(bj.GradientDescent(risk, tau=tau), neurons, tau).final
    assert isinstance(final, bj.ParticleMeasure)
    assert (final.w - (1 - 2 * beta * tau) * W).abs().max() <= 1e-14
    grid = Signed().grid(31, 2)
    start = Signed().measure(grid, W, a)
    decay = float((start.masses * Signed().squared_norm(grid)).sum())
    # |a| (|w|^2 + 1), and a blur of (3 h)^2 + at most h^2 / 4 on both axes.
    exact, spread = float((a.abs() * ((W**2).sum(1) + 1)).mean()), 2 * float(a.abs().mean()) * grid.spacing**2
    assert exact + 8.9 * spread <= decay <= exact + 9.25 * spread


def test_split_keeps_the_network_and_gives_each_sheet_mass_one() -> None:
    W, a = network(12, 2)
    masses = torch.linspace(0.5, 2.0, 12, dtype=D)
    particles = bj.ParticleMeasure(torch.cat([W, a[:, None]], 1), masses)
    split = Split().with_unit_outputs(particles)
    risk = bj.Risk(data(2), torch.zeros(6, dtype=D), neurons=Split())
    assert (risk.outputs(split) - risk.outputs(particles)).abs().max() <= 1e-13
    assert torch.equal(split.a, a.sign())
    start = Split().measure(Split().grid(41, 2, radius=60.0), W, a, masses=masses)
    assert (start.masses.sum((1, 2)) - 1).abs().max() <= 1e-13
    for way in (Split(), Pairs()):
        with pytest.raises(MeasureError, match="of one sign only, need a > 0 and a < 0 for Split: use Signed"):
            way.measure(way.grid(9, 2, radius=60.0), W, a.abs())


def test_neurons_without_output_are_lost() -> None:
    W, a = network(6, 1)
    a[2] = 0.0
    for way in (Signed(), Split()):
        particles = way.with_unit_outputs(bj.ParticleMeasure.from_network(W, a))
        assert torch.equal(particles.w[:, 0], W[a != 0, 0]) or isinstance(way, Split)
        assert particles.shape == (5,)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_signed_with_one_sheet_empty_flows(sign: float) -> None:
    """The other sheet stays empty, and the flow does not see it: the same as on one sheet with the sign put in y."""
    way = Signed()
    X, y = torch.tensor([[1.0, 0.2], [-0.3, 1.0]], dtype=D), torch.tensor([1.0, 0.6], dtype=D)
    W, _ = network(5, 2)
    grid = way.grid(41, 2, radius=4.0)
    start = way.measure(grid, W, sign * torch.ones(5, dtype=D))
    flow = bj.evolve(bj.JKO(bj.Risk(X, sign * y, neurons=way), grid, tau=0.05), start, 0.2)
    assert isinstance(flow.final, bj.GridMeasure)
    here, other = (0, 1) if sign > 0 else (1, 0)
    assert float(flow.final.masses[other].sum()) == 0.0
    mirror = way.measure(grid, W, torch.ones(5, dtype=D))
    expected = bj.evolve(bj.JKO(bj.Risk(X, y, neurons=way), grid, tau=0.05), mirror, 0.2)
    assert (flow.outputs - sign * expected.outputs).abs().max() <= 1e-12
    assert float(flow.final.masses[here].sum()) == pytest.approx(1.0, abs=1e-12)


def test_a_box_of_sheets_and_lines_serves_as_well_as_the_grid() -> None:
    """A step works in the box that holds the mass (idle = 1e-15): outputs as on all nodes."""
    way = Signed()
    grid = way.grid(321, 1, radius=12.0)

    def density(theta: Tensor) -> Tensor:
        s, w = theta.unbind(1)
        return torch.exp(-((w - 0.4 * s) ** 2) / 0.08)

    start = bj.GridMeasure.from_density(grid, density)
    risk = bj.Risk(torch.ones(1, 1, dtype=D), torch.ones(1, dtype=D), neurons=way)
    boxed = bj.evolve(bj.JKO(risk, grid, tau=0.05), start, 0.5)
    whole = bj.evolve(bj.JKO(risk, grid, tau=0.05, idle=0.0), start, 0.5)
    assert float(boxed.stats["stage"][1:].max()) < 0.5
    assert float(whole.stats["stage"][1:].min()) == 1.0
    assert (boxed.outputs - whole.outputs).abs().max() <= 1e-8


WRONG: dict[str, Any] = {
    "no sheets": lambda: bj.Grid.uniform([-1.0] * 2, [1.0] * 2, [5] * 2),
    "signs the other way round": lambda: Grid((Sheets.of([-1.0, 1.0]), *Signed().grid(5, 2).factors[1:])),
    "three sheets": lambda: Grid((Sheets.of([1.0, -1.0, 2.0]), *Signed().grid(5, 2).factors[1:])),
    "a line too few": lambda: Signed().grid(5, 1),
    "a circle": lambda: Grid((Sheets.of([1.0, -1.0]), Circle.uniform(9), Line.uniform(0.0, 1.0, 9))),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("way", [Signed(), Split()], ids=["signed", "split"])
def test_sheets_of_lines_are_checked(make: Any, way: Signed | Split) -> None:
    with pytest.raises(GridError, match=rf"for data in R\^2, need {type(way).__name__}\(\).grid\(nodes, dim=2\)"):
        way.features(make(), data(2))


# ------------------------------------------------------------------------------------------------ pairs and marginals


# A tolerance that is never met: every pass is solved to rtol, where the first would stop at 1e-4 by default, at an
# evaluation that depends on how many nodes there are.
DEBIASED = bj.Debiased(passes=2, tolerance=1e-15)


def correlated(grid: Grid, rho: float, std: float = 0.5) -> bj.GridMeasure:
    """A Gaussian on pairs, every coordinate of w+ correlated with that of w-."""

    def density(theta: Tensor) -> Tensor:
        plus, minus = theta.tensor_split(2, dim=1)
        plus, minus = plus - 0.3, minus + 0.2
        square = plus**2 - 2 * rho * plus * minus + minus**2
        return torch.exp(-square.sum(1) / (2 * std**2 * (1 - rho**2)))

    return bj.GridMeasure.from_density(grid, density)


def marginals(joint: bj.GridMeasure) -> Tensor:
    """Of w+ and of w-, sheet by sheet."""
    d = len(joint.grid.shape) // 2
    axes = tuple(range(d))
    return torch.stack([joint.masses.sum(tuple(k + d for k in axes)), joint.masses.sum(axes)])


def both(
    dim: int, nodes: int, rho: float, entropy: bj.Plain | bj.Debiased, *, t_end: float = 0.4
) -> tuple[float, float]:
    """Largest differences of outputs and of marginals between pairs and their marginals, over a flow."""
    X = data(dim)[:4] * 0.8
    y = torch.tensor([0.9, -0.6, 0.4, -0.3], dtype=D)
    # idle = 0: the joint's box is not the marginals'.
    options: dict[str, Any] = {"entropy": entropy, "solver": bj.DualSolver(rtol=1e-11), "idle": 0.0}
    grid, sheets = Pairs().grid(nodes, dim, radius=2.5), Split().grid(nodes, dim, radius=2.5)
    start = correlated(grid, rho)
    split = bj.GridMeasure(sheets, marginals(start).log())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # coarse grids in d = 2, and mass at their edge
        joint = bj.evolve(bj.JKO(bj.Risk(X, y, neurons=Pairs()), grid, tau=0.1, **options), start, t_end)
        parts = bj.evolve(bj.JKO(bj.Risk(X, y, neurons=Split()), sheets, tau=0.1, **options), split, t_end)
    assert (joint.outputs[-1] - joint.outputs[0]).abs().max() > 0.1
    assert isinstance(joint.final, bj.GridMeasure)
    assert isinstance(parts.final, bj.GridMeasure)
    outputs = float((joint.outputs - parts.outputs).abs().max())
    return outputs, float((marginals(joint.final) - parts.final.masses).abs().max())


@pytest.mark.parametrize(("dim", "nodes"), [(1, 101), (2, 13)])
@pytest.mark.parametrize(("entropy", "rho"), [(bj.Plain(), 0.0), (bj.Plain(), 0.8), (DEBIASED, 0.0)])
def test_pairs_and_their_marginals_agree(dim: int, nodes: int, entropy: bj.Plain | bj.Debiased, rho: float) -> None:
    """Plain from any start, debiased from a product: proved beside Pairs, here to what the solver leaves (rtol)."""
    outputs, masses = both(dim, nodes, rho, entropy)
    assert outputs <= 1e-8
    assert masses <= 1e-8


def test_debiased_pairs_that_are_correlated_differ_from_their_marginals() -> None:
    outputs, _ = both(1, 101, 0.8, DEBIASED)
    assert outputs > 1e-5  # a thousand times what is left of a product


def test_pairs_given_are_kept_and_a_network_has_none() -> None:
    way, grid = Pairs(), Pairs().grid(61, 1)
    plus, minus = torch.tensor([[0.5], [2.0]], dtype=D), torch.tensor([[-1.0], [0.4]], dtype=D)
    paired = way.from_pairs(grid, plus, minus)
    both_signs = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=D)
    product = way.measure(grid, torch.cat([plus, minus]), 2 * both_signs)  # half the mass is of each sign: P |a| = 1
    assert (marginals(paired) - marginals(product)).abs().max() <= 1e-14
    assert math.isclose(float(product.mass), 1.0, rel_tol=1e-13)
    # Two pairs where the product has four.
    here = [int((grid.factors[0].nodes[:, 0] - w).abs().argmin()) for w in (0.5, 0.4)]
    assert float(paired.masses[here[0], here[1]]) < 1e-3 * float(product.masses[here[0], here[1]])
    with pytest.raises(GridError, match=r"data in R\^2, need 4 lines for Pairs: w\+, then w-"):
        way.features(grid, data(2))
    assert way.dynamics == FrozenOutputs()


# ------------------------------------------------------------------------------------------------------ whole flows


def axis_gap(way: Signed | Split, nodes: int, tau: float) -> float:
    """Sup output gap to GD with frozen outputs, one datum of the orthogonal pair on its own axis, T = 1, |y| = 1."""
    risk = bj.Risk(torch.full((1, 1), math.sqrt(5), dtype=D), torch.ones(1, dtype=D), way, bj.losses.Squared(0.5))
    grid = way.grid(nodes, 1, radius=3.2)  # an even number: no node on the kink w = 0
    start = bj.GridMeasure.from_density(
        grid, lambda t: torch.exp(-(t[:, 1] ** 2) / 0.5), mass=2.0 if isinstance(way, Split) else 1.0
    )
    flow = bj.evolve(bj.JKO(risk, grid, tau=tau), start, 1.0)
    # Its own error, first order where particles meet the kink, is 9e-5 at 1600 steps.
    descent = bj.evolve(bj.GradientDescent(risk, tau=1 / 1600), way.particles(start), 1.0, record=10)
    return bj.compare(flow, descent, transport=False).sup_output_gap


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::bigjko.NarrowMeasureWarning")  # mass ends on the kink
@pytest.mark.parametrize("way", [Signed(), Split()], ids=["signed", "split"])
def test_the_flow_is_descent_with_frozen_outputs_up_to_tau_and_h(way: Signed | Split) -> None:
    """h and tau halved together: the gap, O(tau) + O(sqrt epsilon) at the kink, falls by 1.6 or more, to 5e-3.

    First order would be 2; 1.65 to 2.13 were measured. Below 3e-3 at 2048 nodes: examples/study-first-layer.toml.
    """
    gaps = [axis_gap(way, nodes, tau) for nodes, tau in ((256, 0.05), (512, 0.025), (1024, 0.0125))]
    assert gaps[0] / gaps[1] >= 1.6
    assert gaps[1] / gaps[2] >= 1.6
    assert gaps[2] <= 5e-3


def test_a_sheet_of_orthogonal_data_is_a_product_of_flows_on_its_axes() -> None:
    """On the axes of two orthogonal data the flow in d = 2 is two flows of one datum in d = 1."""
    way, norms = Signed(), torch.tensor([1.2, 0.9], dtype=D)
    y, loss = torch.tensor([-1.0, 0.8], dtype=D), bj.losses.Squared(0.5)
    options: dict[str, Any] = {"tau": 0.1, "entropy": DEBIASED, "solver": bj.DualSolver(rtol=1e-11), "idle": 0.0}

    def flow(X: Tensor, labels: Tensor) -> bj.Flow:
        grid = way.grid(40, X.shape[1])
        start = bj.GridMeasure.from_density(grid, lambda t: torch.exp(-t[:, 1:].square().sum(1) / 0.5))
        return bj.evolve(bj.JKO(bj.Risk(X, labels, way, loss), grid, **options), start, 0.5)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bj.NarrowMeasureWarning)
        plane = flow(torch.diag(norms), y)
        axes = [flow(norms[k : k + 1, None], y[k : k + 1]) for k in range(2)]
    assert (plane.outputs - torch.cat([axis.outputs for axis in axes], dim=1)).abs().max() <= 1e-8
