"""Mass on the kinks of relu: a reference that slides along them, nodes that lie on them, and outputs extrapolated."""

import math
import warnings

import pytest
import torch
from torch import Tensor

import bigjko as bj

from .test_flows import five_points, sup_gap

D = torch.float64


def tensor(*rows: list[float] | float) -> Tensor:
    return torch.tensor(rows, dtype=D)


# ------------------------------------------------------------------------------------------------------ sliding flow


def sliding_neuron(X: Tensor, h0: float) -> tuple[bj.Risk, bj.ParticleMeasure, float]:
    """A neuron on the kinks of all data but the last, which it is pulled by: others hold it there with labels of -3.

    With e the unit vector along the kinks and c = e . x_last, the balanced neuron r e, r follows r' = -z c r, and its
    output h = c r^2 the logistic h' = 4 c (y - h) h.
    """
    e = torch.linalg.svd(X[:-1])[2][-1]
    e = e * (e @ X[-1]).sign()
    c = float(e @ X[-1])
    y = torch.full((len(X),), -3.0, dtype=D)
    y[-1] = 1.0
    r = math.sqrt(h0 / c)
    return bj.Risk(X, y), bj.ParticleMeasure(torch.cat([r * e, tensor(r)])[None], torch.ones(1, dtype=D)), c


@pytest.mark.parametrize(
    "X", [tensor([1.0, 0.5], [0.0, 1.0]), tensor([1.0, 0.2, 0.4], [0.1, 1.0, 0.3], [0.2, 0.1, 1.0])], ids=["one", "two"]
)
def test_a_neuron_slides_along_kinks_as_its_closed_form_says(X: Tensor) -> None:
    """Along one hyperplane in the plane and along the line where two meet in space: order 2, and never off the kink."""
    risk, neuron, c = sliding_neuron(X, h0=0.1)
    exact = 1 / (1 + 9 * math.exp(-4 * c))
    errors = []
    for tau in (0.05, 0.025):
        flow = bj.evolve(bj.SlidingFlow(risk, tau), neuron, 1.0)
        errors.append(abs(float(flow.outputs[-1, -1]) - exact))
        assert isinstance(flow.final, bj.ParticleMeasure)
        assert float((flow.final.w @ X[:-1].T).abs().max()) <= 1e-12  # of data of order 1, over 40 steps
    assert 3.6 <= errors[0] / errors[1] <= 4.4
    assert errors[1] <= 1e-3


def test_neurons_that_reach_a_kink_stop_there_and_unpushed_ones_cross() -> None:
    """A falling neuron ends on w . x = 0 for good, a rising one with a < 0 leaves it; |w|^2 - a^2 is kept."""
    X, y = tensor([1.0, 0.0], [0.3, 1.0]), tensor(-2.0, 1.5)
    positions = tensor([0.1, 0.8, 0.9], [0.0, 0.7, -0.7], [0.05, -0.4, -0.6])
    start = bj.ParticleMeasure(positions, tensor(0.3, 0.4, 0.3))
    flow = bj.evolve(bj.SlidingFlow(bj.Risk(X, y), 0.02), start, 0.6)
    assert isinstance(flow.final, bj.ParticleMeasure)
    kept = flow.final.w.square().sum(1) - flow.final.a.square()
    assert torch.allclose(kept, start.w.square().sum(1) - start.a.square(), rtol=0, atol=1e-12)
    assert float(flow.final.w[0, 0].abs()) <= 1e-15
    descent = bj.evolve(bj.GradientDescent(bj.Risk(X, y), 0.6 / 1024), start, 0.6, record=1024)
    # Explicit steps chatter about the kink within tau |G|: first order, |G| of order 10.
    assert isinstance(descent.final, bj.ParticleMeasure)
    assert float((flow.final.positions - descent.final.positions).abs().max()) <= 5e-3


def test_the_reference_keeps_its_order_with_mass_on_kinks() -> None:
    """Five points on the circle, T = 2: order 2, where descent has order 1; and descent's own limit is the same."""
    way = bj.neurons.Projected()
    risk, grid = five_points(way), way.grid(128, 2)
    start = way.particles(way.uniform(grid, radius=math.sqrt(0.5)))
    flows = [bj.evolve(bj.SlidingFlow(risk, 0.1 / k), start, 2.0, record=k) for k in (1, 2, 4)]
    first, second = (sup_gap(one, two) for one, two in zip(flows, flows[1:], strict=False))
    assert 3.2 <= first / second <= 5.0
    limit = bj.extrapolate(*flows[1:], order=2)
    descents = [bj.evolve(bj.GradientDescent(risk, 0.1 / k), start, 2.0, record=k) for k in (32, 64)]
    gaps = [sup_gap(descent, limit) for descent in descents]
    assert 1.8 <= gaps[0] / gaps[1] <= 2.2
    assert gaps[1] <= 4e-4  # 2.5e-4 at 512 nodes, halving with the step


def test_weight_decay_shrinks_sliding_neurons() -> None:
    """Against descent, which has it in its velocity: the gap halves with descent's step."""
    way = bj.neurons.Projected()
    risk = five_points(way)
    risk = bj.Risk(risk.X, risk.y, way, weight_decay=0.2)
    start = way.particles(way.uniform(way.grid(64, 2), radius=0.7))
    limit = bj.evolve(bj.SlidingFlow(risk, 0.0125), start, 1.0, record=8)
    gaps = [sup_gap(bj.evolve(bj.GradientDescent(risk, 0.1 / k), start, 1.0, record=k), limit) for k in (32, 64)]
    assert 1.7 <= gaps[0] / gaps[1] <= 2.3


def neurons(d: int, m: int = 40) -> bj.ParticleMeasure:
    return bj.ParticleMeasure(0.7 * torch.randn(m, d + 1, dtype=D), torch.full((m,), 1 / m, dtype=D))


def test_data_that_were_met_twice_share_a_kink() -> None:
    """Every x with labels y + 2 and y - 2 is x with y under twice the loss: the same flow up to rounding.

    The two slopes of a pair have opposite signs: gates chosen each for itself would hold neurons that should leave.
    """
    X, y, start = tensor([1.0, 0.5], [0.0, 1.0], [-0.7, 0.4]), tensor(0.8, 0.3, -0.5), neurons(2)
    twice = bj.Risk(torch.cat([X, X]), torch.cat([y + 2, y - 2]))
    one = bj.evolve(bj.SlidingFlow(bj.Risk(X, y, loss=bj.losses.Squared(2.0)), 0.05), start, 2.0)
    two = bj.evolve(bj.SlidingFlow(twice, 0.05), start, 2.0)
    assert float((two.outputs[:, :3] - one.outputs).abs().max()) <= 1e-11


@pytest.mark.parametrize(
    ("X", "y"),
    [
        (tensor([1.0], [-1.0], [0.5]), tensor(1.0, -0.6, 0.2)),
        (tensor([1.0, 0.5], [-1.0, -0.5], [0.0, 1.0]), tensor(1.5, -1.0, 0.4)),
        (tensor([1.0, 0.5], [-2.0, -1.0], [0.5, 0.25]), tensor(-0.5, 1.0, 1.0)),
    ],
    ids=["d = 1", "antipodal", "on one line"],
)
def test_data_on_one_line_have_one_kink(X: Tensor, y: Tensor) -> None:
    """One side's gate opens where the other's shuts: descent tends to this flow, its gap halving with its step."""
    risk, start = bj.Risk(X, y), neurons(X.shape[1])
    limit = bj.evolve(bj.SlidingFlow(risk, 0.0025), start, 1.0, record=8)
    gaps = [sup_gap(bj.evolve(bj.GradientDescent(risk, 0.02 / k), start, 1.0, record=k), limit) for k in (16, 32)]
    assert 1.7 <= gaps[0] / gaps[1] <= 2.3


def test_data_that_are_zero_change_nothing() -> None:
    X, y, start = tensor([1.0, 0.5], [0.0, 1.0]), tensor(1.0, -0.5), neurons(2)
    more = bj.Risk(torch.cat([X, torch.zeros(1, 2, dtype=D)]), torch.cat([y, tensor(0.3)]))
    one = bj.evolve(bj.SlidingFlow(bj.Risk(X, y), 0.05), start, 1.0)
    two = bj.evolve(bj.SlidingFlow(more, 0.05), start, 1.0)
    assert torch.equal(two.outputs[:, :2], one.outputs)
    assert not two.outputs[:, 2].any()
    none = bj.Risk(torch.zeros(1, 2, dtype=D), tensor(0.3))
    still = bj.evolve(bj.SlidingFlow(none, 0.05), start, 1.0)
    assert torch.equal(still.final.positions, start.positions)  # type: ignore[union-attr]


def test_float32_neurons_that_no_datum_reaches_stay() -> None:
    risk = bj.Risk(tensor([1.0, 0.5], [0.0, 1.0]), tensor(1.0, -0.5)).to(dtype=torch.float32)
    start = bj.ParticleMeasure(tensor([-1.0, -1.0, 0.5], [0.5, 0.5, 0.5]), tensor(0.5, 0.5)).to(dtype=torch.float32)
    flow = bj.evolve(bj.SlidingFlow(risk, 0.05), start, 1.0)
    assert isinstance(flow.final, bj.ParticleMeasure)
    assert flow.final.positions.dtype == torch.float32
    assert torch.equal(flow.final.positions[0], start.positions[0])


def test_a_sliding_flow_that_blows_up_ends_with_a_status() -> None:
    flow = bj.evolve(bj.SlidingFlow(bj.Risk(tensor([1.0]), tensor(1e6)), 10.0), neurons(1), 10.0, throw=False)
    assert flow.status is bj.Status.not_finite


# --------------------------------------------------------------------------------------------------- nodes on kinks


@pytest.mark.parametrize("nodes", [64, 257, 2048])
def test_kinks_lie_on_nodes_and_gaps_stay_even(nodes: int) -> None:
    """Every datum's two kinks are met by a node up to rounding; the largest gap is a few percent above the even one."""
    way = bj.neurons.Projected()
    X = five_points(way).X
    grid = way.grid(nodes, 2, kinks=X)
    circle = grid.factors[1]
    assert circle.size == nodes
    missed = (circle.nodes @ X.T).abs() / X.norm(dim=1)
    nearest = torch.cat([missed.topk(2, dim=0, largest=False).values]).amax(0)
    even = 2 * math.pi / nodes
    # Two pairs of kinks are .058 apart, and at 64 nodes share a node each: the second datum of both pairs goes short.
    assert int((nearest <= 1e-15).sum()) == (5 if nodes > 64 else 4)
    assert bool((nearest <= even).all())
    assert circle.spacing <= even * (1 + 10 / nodes * 5)
    assert float(circle.log_weights.exp().sum()) == pytest.approx(2 * math.pi, rel=1e-14)


def test_a_circle_through_no_angle_is_uniform_and_bad_ones_are_refused() -> None:
    assert torch.equal(bj.Circle.through(9, torch.zeros(0, dtype=D)).nodes, bj.Circle.uniform(9).nodes)
    with pytest.raises(bj.GridError, match="a circle of 2 nodes, need at least 3"):
        bj.Circle.through(2, tensor(0.1))
    with pytest.raises(bj.GridError, match="angles with NaN or inf among them"):
        bj.Circle.through(9, tensor(math.nan))
    with pytest.raises(bj.GridError, match=r"data in R\^3, need balanced neurons and R\^2"):
        bj.neurons.Projected().grid(64, 3, kinks=torch.ones(2, 3, dtype=D))


def test_more_kinks_than_nodes_are_met_within_a_gap() -> None:
    X = torch.randn(300, 2, dtype=D, generator=torch.Generator().manual_seed(0))
    circle = bj.neurons.Projected().grid(100, 2, kinks=X).factors[1]
    assert circle.size == 100
    assert circle.spacing <= 2 * 2 * math.pi / 100
    assert float(((circle.nodes @ X.T).abs() / X.norm(dim=1)).amin(0).max()) <= 2 * math.pi / 100


# ---------------------------------------------------------------------------------------------------- extrapolation


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::bigjko.NarrowMeasureWarning")  # mass ends on kinks: that is the point
def test_extrapolated_outputs_beat_a_first_order_flow_with_mass_on_kinks() -> None:
    """Five points, 1,024 nodes with the kinks among them: 1e-2 -> 1.5e-3 of max|y|."""
    way = bj.neurons.Projected()
    risk = five_points(way)
    grid = way.grid(1024, 2, kinks=risk.X)
    start = way.uniform(grid, radius=math.sqrt(0.5))
    reference = bj.evolve(bj.SlidingFlow(risk, 0.0125), way.particles(start), 2.0, record=8)
    flows = [bj.evolve(bj.JKO(risk, grid, tau), start, 2.0, record=k) for k, tau in ((1, 0.1), (2, 0.05))]
    both = bj.extrapolate(*flows)
    gaps = [sup_gap(flow, reference) / 0.8 for flow in (*flows, both)]
    assert gaps[1] <= 1e-2
    assert gaps[2] <= 1.5e-3
    assert 0.95 <= math.log2(gaps[0] / gaps[1]) <= 1.1


def test_an_extrapolated_flow_has_outputs_and_no_measure() -> None:
    risk = bj.Risk(torch.ones(1, 1, dtype=D), torch.ones(1, dtype=D))
    start = bj.ParticleMeasure(tensor([0.5, 0.4], [-0.2, 0.1]), tensor(0.5, 0.5))
    flows = [bj.evolve(bj.GradientDescent(risk, tau), start, 1.0) for tau in (0.1, 0.05, 0.0005)]
    both = bj.extrapolate(*flows[:2])
    assert torch.equal(both.times, flows[0].times)
    assert torch.equal(both.outputs, 2 * flows[1].outputs[::2] - flows[0].outputs)
    assert sup_gap(both, flows[2]) <= sup_gap(flows[1], flows[2]) / 5
    assert bj.compare(both, flows[2]).transport.numel() == 0
    assert both.measures == ()
    with pytest.raises(bj.StepError, match="a flow without measures"):
        _ = both.final


def test_flows_that_cannot_be_extrapolated_are_refused() -> None:
    one = torch.ones(1, dtype=D)
    start = bj.ParticleMeasure(tensor([0.5, 0.4]), one)
    coarse = bj.evolve(bj.GradientDescent(bj.Risk(one[:, None], one), 0.1), start, 1.0)
    sparse = bj.evolve(bj.GradientDescent(bj.Risk(one[:, None], one), 0.05), start, 1.0, record=4)
    with pytest.raises(bj.StepError, match=r"a fine flow without t = 0\.1"):
        bj.extrapolate(coarse, sparse)
    other = bj.evolve(bj.GradientDescent(bj.Risk(tensor([1.0], [2.0]), tensor(1.0, 1.0)), 0.05), start, 1.0)
    with pytest.raises(bj.StepError, match="flows with 1 and 2 outputs"):
        bj.extrapolate(coarse, other)
    with pytest.raises(bj.StepError, match="order = 0"):
        bj.extrapolate(coarse, coarse, order=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        failed = bj.evolve(bj.GradientDescent(bj.Risk(one[:, None], one), 1e200), start, 1e201, throw=False)
    with pytest.raises(bj.StepError, match="a flow that ended as not_finite"):
        bj.extrapolate(failed, failed)


# ----------------------------------------------------------------------------------------------------------- pinning


def valley_speed(epsilon: float, passes: int) -> float:
    """Speed of mass in the valley |n . x|, which lies .4 rad off the axes and falls by 1/2 along it, over the exact."""
    along, across = tensor(math.cos(0.4), math.sin(0.4)), tensor(-math.sin(0.4), math.cos(0.4))
    grid = bj.Grid.uniform([-1.55, -1.55], [1.55, 1.55], [64, 64])
    start = bj.GridMeasure.from_density(grid, lambda x: torch.exp(-(x + 0.4 * along).square().sum(1) / 0.045))
    valley = bj.Potential(lambda x: (x @ across).abs() - (x @ along) / 2)
    jko = bj.JKO(valley, grid, 0.05, epsilon=epsilon * grid.spacing**2, entropy=bj.Debiased(passes=passes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bj.NarrowMeasureWarning)  # it ends .15 nodes wide
        flow = bj.evolve(jko, start, 1.0)
    assert isinstance(flow.final, bj.GridMeasure)
    moved = (flow.final.masses - start.masses).reshape(-1) @ (grid.points() @ along)
    return float(moved) / 0.5


def test_condensed_mass_is_pinned_by_a_small_epsilon_and_slides_with_a_larger_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Next to a Dirac on a node speeds are x / (e^x - 1) of the exact ones, x = h^2 / epsilon: .48, .70, .84."""
    speeds = {share: valley_speed(share, passes) for share, passes in ((0.75, 2), (1.5, 2), (3.0, 6))}
    with capsys.disabled():
        print("\n  speeds by epsilon / h^2:", *(f"{e:g}: {v:.3f}" for e, v in speeds.items()), end="")  # noqa: T201
    assert speeds[0.75] < 0.75 < 0.85 < speeds[1.5]
    for share, speed in speeds.items():
        assert 1 / share / math.expm1(1 / share) <= speed <= 1.01  # from there on, neighbours help
    assert abs(speeds[3.0] - 1) <= 0.05
