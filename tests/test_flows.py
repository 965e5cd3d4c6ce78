"""Is JKO similar to GD? Orders, floors and gaps of whole flows."""

import math
import warnings

import pytest
import torch
from torch import Tensor

import bigjko as bj
from bigjko.app.data import prepared

D = torch.float64


def sup_gap(flow: bj.Flow, reference: bj.Flow) -> float:
    """Largest output gap at the flow's times, which the reference has among its own."""
    index = [int((reference.times - t).abs().argmin()) for t in flow.times]
    assert float((reference.times[index] - flow.times).abs().max()) < 1e-9
    return float((flow.outputs - reference.outputs[index]).abs().max())


def five_points(way: bj.neurons.Neurons) -> bj.Risk:
    """The circle example of mathematics.md 3."""
    angle = torch.tensor([0.1, 0.9, 2.0, 3.3, 4.6], dtype=D)
    radius = torch.tensor([1.0, 0.7, 1.1, 0.8, 1.0], dtype=D)
    X = torch.stack([angle.cos(), angle.sin()], 1) * radius[:, None]
    return bj.Risk(X, torch.tensor([0.8, -0.4, 0.5, -0.6, 0.3], dtype=D), neurons=way)


@pytest.mark.slow
def test_lifted_converges_to_the_gradient_flow_at_first_order() -> None:
    """d = 1, x = y = 1, F = (h - 1)^2: halving tau divides the output gap by 1.9 to 2.1, to at most .0065 at .025."""
    risk = bj.Risk(torch.ones(1, 1, dtype=D), torch.ones(1, dtype=D))
    grid = bj.Grid.uniform([-3.0, -3.0], [3.0, 3.0], [241, 241])
    start = bj.GridMeasure.gaussian(grid, mean=torch.tensor([0.5, 0.2], dtype=D), std=0.3)
    reference = bj.evolve(bj.GradientFlow(risk, tau=0.025), start.to_particles(), 1.0)
    gaps = [sup_gap(bj.evolve(bj.JKO(risk, grid, tau=tau), start, 1.0), reference) for tau in (0.1, 0.05, 0.025)]
    assert 1.9 <= gaps[0] / gaps[1] <= 2.1
    assert 1.9 <= gaps[1] / gaps[2] <= 2.1
    assert gaps[2] <= 0.0065


def test_projected_from_any_start_follows_the_gradient_flow_of_the_same_gaussian(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """d = 1, the problem of Lifted above, on a circle of 512 nodes: the same gaps, and the same order in tau.

    The Gaussian is off its centre, so neurons of every norm share a direction: the circle keeps |theta|^2 / 2 alone.
    """
    way = bj.neurons.Projected(balanced=False)
    risk = bj.Risk(torch.ones(1, 1, dtype=D), torch.ones(1, dtype=D), neurons=way)
    box = bj.Grid.uniform([-1.3, -1.6], [2.3, 2.0], [201, 201])
    neurons = bj.GridMeasure.gaussian(box, mean=torch.tensor([0.5, 0.2], dtype=D), std=0.3).to_particles(drop=1e-9)
    reference = bj.evolve(bj.SlidingFlow(risk, tau=0.0125), neurons, 1.0, record=2)  # 5e-5 off, six times faster
    grid = way.grid(nodes=512, dim=1)
    start = way.measure(grid, neurons.w, neurons.a, masses=neurons.masses, width=0.1)
    taus = (0.1, 0.05, 0.025)
    gaps = [sup_gap(bj.evolve(bj.JKO(risk, grid, tau=tau), start, 1.0), reference) for tau in taus]
    with capsys.disabled():
        print(f"\n  gaps {', '.join(f'{g:.4f}' for g in gaps)}", end="")  # noqa: T201 - for reading
    assert 1.9 <= gaps[0] / gaps[1] <= 2.1
    assert 1.9 <= gaps[1] / gaps[2] <= 2.1
    assert gaps[2] <= 0.0065


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::bigjko.NarrowMeasureWarning")  # mass ends on a kink: one node
def test_projected_grows_two_neurons_from_a_millionth(capsys: pytest.CaptureFixture[str]) -> None:
    """Boursier's toy (mathematics.md 5.3, 5.8) from radius 1e-6: a plateau of .5, then nothing left, at known times.

    The half-times are those of the outputs, u_j = y_j / 2. Gradient descent at steps of .002 and .001 extrapolates to
    6.4062 and 13.1425; implicit steps grow faster by a share tau * rate / 2 of the logarithm, 1.7% of it here.
    """
    way = bj.neurons.Projected()
    X = torch.tensor([[-0.5, 1.0], [2.0, 1.0]], dtype=D)
    risk = bj.Risk(X, torch.tensor([-1.0, 1.0], dtype=D), neurons=way, loss=bj.losses.Squared(scale=0.5))
    grid = way.grid(nodes=1024, dim=2)
    flow = bj.evolve(bj.JKO(risk, grid, tau=0.015), way.uniform(grid, radius=1e-6), 18.0)
    assert isinstance(flow.final, bj.GridMeasure)
    half = [crossing(flow.times, flow.outputs[:, 1], 0.5), crossing(flow.times, -flow.outputs[:, 0], 0.5)]
    plateau = flow.times[(flow.risks - 0.5).abs() <= 0.01]
    nodes, masses = grid.factors[1].nodes, flow.final.masses
    plus, minus = masses[0] @ nodes, -masses[1] @ nodes
    ends = ((plus, (0.4, 0.2)), (minus, (0.4, -0.8)))
    off = [float((u - torch.tensor(v, dtype=D)).norm() / torch.tensor(v, dtype=D).norm()) for u, v in ends]
    norm2 = float(risk.neurons.squared_norm(grid).flatten() @ masses.flatten())
    with capsys.disabled():
        print(  # noqa: T201 - for reading
            f"\n  half-times {half[0]:.4f}, {half[1]:.4f}; plateau {plateau[0]:.2f} to {plateau[-1]:.2f}; risk "
            f" {float(flow.risks[-1]):.1e}; |theta|^2 {norm2:.5f}; u+, u- off by {off[0]:.2%}, {off[1]:.2%}",
            end="",
        )
    assert float(flow.risks[0]) == pytest.approx(1.0, abs=1e-9)
    assert len(plateau) * 0.015 >= 2.0
    assert float((flow.risks[(flow.times >= plateau[0]) & (flow.times <= plateau[-1])] - 0.5).abs().max()) <= 0.01
    assert float(flow.risks[-1]) <= 1e-3
    assert half == pytest.approx([6.4063, 13.1424], rel=0.02)
    assert norm2 == pytest.approx(2.68328, rel=0.005)
    assert max(off) <= 0.01


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::bigjko.NarrowMeasureWarning")
def test_projected_ends_at_the_norms_of_orthogonal_data_in_space(capsys: pytest.CaptureFixture[str]) -> None:
    """mathematics.md 5.3 on S^2: |u_s| = sqrt(sum of y^2 / |x|^2 over sign s), reached from a small start.

    Large implicit steps, since the end alone is asked for. The norm is approached from above: mass m at angles o around
    a direction adds up to m <cos o> along it, so that m exceeds |u_s| by <o^2> / 2: h^2 where it is spread over h on
    either tangent axis.
    """
    way = bj.neurons.Projected()
    axes, _ = torch.linalg.qr(torch.randn(3, 3, dtype=D, generator=torch.Generator().manual_seed(2)))
    X = axes * torch.tensor([1.0, 0.8, 1.2], dtype=D)[:, None]
    y = torch.tensor([1.0, 0.7, -0.9], dtype=D)
    risk, grid = bj.Risk(X, y, neurons=way), way.grid(nodes=1000, dim=3)
    flow = bj.evolve(bj.JKO(risk, grid, tau=0.5), way.uniform(grid, radius=1e-2), 8.0)
    assert isinstance(flow.final, bj.GridMeasure)
    shares = (y / X.norm(dim=1)) ** 2
    expected = torch.stack([shares[y > 0].sum().sqrt(), shares[y < 0].sum().sqrt()])
    off = flow.final.masses.sum(1) / expected - 1
    with capsys.disabled():
        print(f"\n  norms off by {off[0]:.2%}, {off[1]:.2%}; risk {flow.risks[-1]:.1e}", end="")  # noqa: T201
    assert float(flow.risks[-1]) <= 1e-6
    assert float(off.abs().max()) <= 0.01
    along = torch.einsum("sk,kd->sd", flow.final.masses, grid.factors[1].nodes).norm(dim=1)
    assert float((along / expected - 1).abs().max()) <= 0.01


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::bigjko.NarrowMeasureWarning")
def test_projected_follows_twenty_points_in_space(capsys: pytest.CaptureFixture[str]) -> None:
    """d = 3, n = 20, mean squared loss, T = 2: sup gap / max|y| <= 5e-3 to GD from the same nodes at tau / 128.

    The reference's own error, by halving its step, must be ten times below the gap that is claimed. 800 directions
    are few (h = .125), which the floor is for: the order in tau cannot be seen above it.
    """
    generator = torch.Generator().manual_seed(11)
    X = torch.randn(20, 3, dtype=D, generator=generator)
    y = torch.randn(20, dtype=D, generator=generator)
    way, tau = bj.neurons.Projected(), 0.2
    risk = bj.Risk(X, y, neurons=way, loss=bj.losses.Squared(scale=1 / 20))
    grid = way.grid(nodes=800, dim=3)
    start = way.uniform(grid, radius=0.7)
    kernel = bj.kernels.Dense(grid, 0.75 * grid.spacing**2, way.cost)
    flow = bj.evolve(bj.JKO(risk, grid, tau=tau, kernel=kernel), start, 2.0)
    coarse, fine = (
        bj.evolve(bj.GradientDescent(risk, tau=tau / k), way.particles(start), 2.0, record=k) for k in (64, 128)
    )
    size = float(y.abs().max())
    found, own = sup_gap(flow, fine) / size, sup_gap(coarse, fine) / size
    with capsys.disabled():
        print(f"\n  gap / max|y| {found:.1e}, of the reference {own:.1e}", end="")  # noqa: T201 - for reading
    assert float((fine.outputs[-1] - fine.outputs[0]).abs().max()) >= 0.2 * size  # there is something to follow
    assert own <= found / 10
    assert found <= 5e-3


def crossing(times: Tensor, values: Tensor, level: float) -> float:
    """When rising values first pass a level, linear between two times."""
    k = int((values > level).nonzero()[0])
    share = (level - values[k - 1]) / (values[k] - values[k - 1])
    return float(times[k - 1] + share * (times[k] - times[k - 1]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::bigjko.NarrowMeasureWarning")  # the optimum is a few Diracs
def test_projected_with_weight_decay_ends_at_the_lasso_on_the_circle(capsys: pytest.CaptureFixture[str]) -> None:
    """mathematics.md 5.5 on the diabetes data: min (1/n) |h - y|^2 + 2 beta |nu|_1, by coordinate descent elsewhere.

    sklearn works on 1009 directions of its own; a dual point that is feasible on 40,001 shows how little it misses.
    The flow is run to stationarity, in large steps: JKO is implicit Euler.
    """
    datasets, linear = pytest.importorskip("sklearn.datasets"), pytest.importorskip("sklearn.linear_model")
    raw, labels = datasets.load_diabetes(return_X_y=True)
    X, y = prepared(torch.as_tensor(raw), torch.as_tensor(labels), 2, True, True)
    n, beta = len(y), 0.05

    def columns(directions: int) -> Tensor:
        angle = (torch.arange(directions, dtype=D) + 0.37) * (2 * math.pi / directions)
        return torch.relu(X @ torch.stack([angle.cos(), angle.sin()]))

    A = columns(1009)
    lasso = linear.Lasso(alpha=beta, fit_intercept=False, tol=1e-8, max_iter=100_000).fit(A.numpy(), y.numpy())
    weights = torch.as_tensor(lasso.coef_)
    rest = y - A @ weights
    least = float(rest @ rest / n + 2 * beta * weights.abs().sum())
    z = 2 * rest / n  # g*(-z) = n |z|^2 / 4 - z.y, and |A^T z| <= 2 beta is what the dual asks
    z = z * min(1.0, 2 * beta / float((columns(40_001).T @ z).abs().max()))
    bound = float(z @ y - n * (z @ z) / 4)
    assert 0 <= least - bound <= 1e-4 * least

    way = bj.neurons.Projected()
    risk = bj.Risk(X, y, neurons=way, loss=bj.losses.Squared(scale=1 / n), weight_decay=beta)
    grid = way.grid(nodes=512, dim=2)
    flow = bj.evolve(bj.JKO(risk, grid, tau=1.0), way.uniform(grid, radius=0.5), 40.0)
    excess = float(flow.risks[-1]) / least - 1
    with capsys.disabled():
        print(f"\n  LASSO {least:.6f} (at least {bound:.6f}), flow {excess:.1e} above", end="")  # noqa: T201
    assert float(flow.risks[-2] - flow.risks[-1]) <= 1e-5  # at rest
    assert float(flow.risks[-1]) >= bound
    assert excess <= 2e-3


@pytest.mark.slow
def test_projected_converges_to_particle_descent_until_its_floor(capsys: pytest.CaptureFixture[str]) -> None:
    """Five points in d = 2: sup gap / max|y| <= 1e-2 at tau = .05, falling with tau to a floor set by the nodes.

    The reference is GD at tau / 16, itself of first order where mass slides along kinks (mathematics.md 3, iv): its
    own error, by halving its step, must be ten times below the gap that is claimed.
    """
    way = bj.neurons.Projected()
    risk = five_points(way)
    floors = {}
    for nodes in (256, 512):
        grid = way.grid(nodes=nodes, dim=2)
        start = way.uniform(grid, radius=math.sqrt(0.5))
        fine = bj.evolve(bj.GradientDescent(risk, tau=0.0125 / 32), way.particles(start), 2.0, record=32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", bj.NarrowMeasureWarning)  # mass ends on kinks, narrower than two nodes
            flows = {tau: bj.evolve(bj.JKO(risk, grid, tau=tau), start, 2.0) for tau in (0.1, 0.05, 0.025, 0.0125)}
        gaps = {tau: sup_gap(flow, fine) / 0.8 for tau, flow in flows.items()}
        floors[nodes] = min(gaps.values())
        coarse = bj.evolve(bj.GradientDescent(risk, tau=0.0125 / 16), way.particles(start), 2.0, record=16)
        assert sup_gap(coarse, fine) / 0.8 <= gaps[0.05] / 10
        assert gaps[0.05] <= 1e-2
        assert gaps[0.1] > gaps[0.05] > gaps[0.025]
        with capsys.disabled():
            print(f"\n  {nodes} nodes: " + ", ".join(f"tau {t}: {g:.2e}" for t, g in gaps.items()), end="")  # noqa: T201
    assert floors[512] < floors[256]


def random_network(d: int, balanced: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    W = 0.6 * torch.randn(20, d, dtype=D, generator=generator)
    a = 0.6 * torch.randn(20, dtype=D, generator=generator)
    return W, (a.sign() * W.norm(dim=1) if balanced else a)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lifted", "projected"])
def test_twenty_random_neurons_move(name: str) -> None:
    """Neurons deposited with a width are not locked: within 5% of GD on the 20 neurons themselves, at T = 3."""
    if name == "lifted":
        way: bj.neurons.Neurons = bj.neurons.Lifted()
        X = torch.tensor([[1.0], [-0.7], [0.5]], dtype=D)
        risk = bj.Risk(X, torch.tensor([1.0, -0.5, 0.2], dtype=D), neurons=way)
        grid = way.grid(nodes=201, dim=1)
        W, a = random_network(1, balanced=False)
    else:
        way = bj.neurons.Projected()
        risk = five_points(way)
        grid = way.grid(nodes=512, dim=2)
        W, a = random_network(2, balanced=True)
    start = way.measure(grid, W, a)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flow = bj.evolve(bj.JKO(risk, grid, tau=0.05), start, 3.0)
    descent = bj.evolve(bj.GradientDescent(risk, tau=0.0025), bj.ParticleMeasure.from_network(W, a), 3.0, record=20)
    change = float((descent.outputs - descent.outputs[0]).abs().max())
    assert change > 0.3  # there is something to follow
    assert float((flow.outputs - descent.outputs).abs().max()) <= 0.05 * change


def test_a_narrow_measure_draws_the_warning() -> None:
    """Below two nodes mass moves at the wrong speed (mathematics.md 3, hazard ii)."""
    grid = bj.Grid.uniform([-3.0], [3.0], [61])
    start = bj.GridMeasure.gaussian(grid, mean=0.0, std=0.12)
    assert float(start.width) < 2
    with pytest.warns(bj.NarrowMeasureWarning, match="narrower than 2 nodes"):
        bj.evolve(bj.JKO(bj.Potential(lambda x: x[:, 0]), grid, tau=0.1), start, 0.1)


def test_an_epsilon_that_blurs_the_start_draws_a_warning() -> None:
    """.75 copied from a file, where it is in h^2, is 34 h^2 here: what it costs is far above the flow's own gap."""
    grid = bj.Grid.uniform([-3.0], [3.0], [61])
    start = bj.GridMeasure.gaussian(grid, mean=0.0, std=0.5)
    energy = bj.Potential(lambda x: x[:, 0])
    with pytest.warns(bj.NarrowMeasureWarning, match=r"epsilon is 0.75 \(75 h\^2\), more than half"):
        bj.JKO(energy, grid, tau=0.1, epsilon=0.75).init(start)
    bj.JKO(energy, grid, tau=0.1).init(start)  # warnings are errors here: the default draws none


def test_mass_at_the_edge_draws_the_warning() -> None:
    """A box that the flow runs into is reported, not suffered."""
    grid = bj.Grid.uniform([-1.0], [1.0], [61])
    start = bj.GridMeasure.gaussian(grid, mean=0.2, std=0.3)
    with pytest.warns(bj.BoundaryMassWarning, match="edge of the box"):
        bj.evolve(bj.JKO(bj.Potential(lambda x: -x[:, 0]), grid, tau=0.1), start, 0.1)


@pytest.mark.parametrize("passes", [1, 2, 4])
def test_the_debiased_step_never_raises_the_risk(passes: int) -> None:
    """mathematics.md 5.6: F does not rise, whatever the number of passes, as long as d fits q.

    d lags behind q after the first step: a rise of eps mass max log(q / r) / tau is allowed, which gap_d / tau is.
    """
    way = bj.neurons.Lifted()
    X = torch.tensor([[1.0], [-0.7], [0.5]], dtype=D)
    risk = bj.Risk(X, torch.tensor([1.0, -0.5, 0.2], dtype=D), neurons=way, weight_decay=0.01)
    grid = way.grid(nodes=81, dim=1)
    start = bj.GridMeasure.gaussian(grid, mean=0.1, std=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it ends narrow, and with mass at the edge: the risk must fall all the same
        flow = bj.evolve(bj.JKO(risk, grid, tau=0.1, entropy=bj.Debiased(passes=passes)), start, 2.0)
    slack = torch.cat([torch.zeros(2, dtype=D), flow.stats["gap_d"][1:-1]])[: len(flow.risks) - 1] / 0.1
    assert bool((flow.risks.diff() <= slack + 1e-12).all())
    assert float(flow.risks[-1]) < 0.5 * float(flow.risks[0])
