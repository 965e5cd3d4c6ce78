"""Numbers at the ends of what can be asked for: each is right, by a law that needs no reference, or refused."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import bigjko as bj

pytestmark = pytest.mark.filterwarnings("ignore::bigjko.NarrowMeasureWarning")  # coarse grids: what holds on them holds

D = torch.float64
X = torch.tensor([[1.0, 0.2], [-0.4, 0.9], [0.3, -0.8]], dtype=D)
Y = torch.tensor([0.8, -0.4, 0.5], dtype=D)


def lifted() -> tuple[bj.neurons.Neurons, bj.GridMeasure]:
    way = bj.neurons.Lifted()
    return way, bj.GridMeasure.gaussian(way.grid(21, dim=2), 0.0, 0.6)


def projected() -> tuple[bj.neurons.Neurons, bj.GridMeasure]:
    way = bj.neurons.Projected()
    return way, way.uniform(way.grid(128, dim=2), radius=0.7)


WAYS: dict[str, Callable[[], tuple[bj.neurons.Neurons, bj.GridMeasure]]] = {"lifted": lifted, "projected": projected}


def flow(
    make: str,
    X: Tensor = X,
    y: Tensor = Y,
    tau: float = 0.05,
    *,
    steps: int = 3,
    scale: float = 1.0,
    decay: float = 0.0,
    particles: bool = False,
) -> bj.Flow:
    way, start = WAYS[make]()
    risk = bj.Risk(X, y, neurons=way, loss=bj.losses.Squared(scale=scale), weight_decay=decay)
    if particles:
        return bj.evolve(bj.GradientDescent(risk, tau=tau), way.particles(start), steps * tau)
    return bj.evolve(bj.JKO(risk, start.grid, tau=tau), start, steps * tau)


@pytest.mark.parametrize("particles", [False, True])
@pytest.mark.parametrize("s", [1e-12, 1e-6, 1e-3, 1e3, 1e6, 1e12])
@pytest.mark.parametrize("make", WAYS)
def test_units_of_the_data_do_not_matter(make: str, s: float, particles: bool) -> None:
    """Data and labels times s make V times s^2, so tau / s^2 gives the same measures, and outputs times s."""
    one = flow(make, particles=particles)
    other = flow(make, s * X, s * Y, 0.05 / s**2, particles=particles)
    assert other.status is bj.Status.ok
    # The dual is solved to 1e-9, and its error in the measure is sqrt of what it leaves: 1e-7 with room.
    assert torch.allclose(other.outputs / s, one.outputs, rtol=0, atol=1e-7)
    assert torch.allclose(other.masses, one.masses, rtol=1e-7)


@pytest.mark.parametrize("make", WAYS)
def test_data_said_twenty_times_are_one(make: str) -> None:
    """The NTK has rank 3 of 60. A pass that is not the last is solved to 1e-4, by which two solutions may differ."""
    one, many = flow(make), flow(make, X.repeat(20, 1), Y.repeat(20), scale=1 / 20)
    apart = (many.outputs - one.outputs.repeat(1, 20)).abs().max()
    assert float(apart) <= 1e-4 * float(one.outputs.abs().max())


@pytest.mark.parametrize("make", WAYS)
def test_labels_that_contradict_each_other_move_nothing(make: str) -> None:
    """Nor do labels of 0 from outputs of 0, or data of 0."""
    both = flow(make, X[:1].repeat(2, 1), torch.tensor([1.0, -1.0], dtype=D))
    for still in (both, flow(make, y=0 * Y), flow(make, X=0 * X)):
        assert still.status is bj.Status.ok
        assert float((still.outputs - still.outputs[0]).abs().max()) <= 1e-14


@pytest.mark.parametrize("make", WAYS)
def test_steps_of_next_to_nothing_have_the_speed_of_small_ones(make: str) -> None:
    """tau = 1e-6 and 1e-10: the speeds agree to tau, and to the rounding of outputs near 1 over tau."""
    small, tiny = (flow(make, tau=tau, steps=1) for tau in (1e-6, 1e-10))
    speeds = [(f.outputs[1] - f.outputs[0]) / f.times[1] for f in (small, tiny)]
    assert torch.allclose(speeds[0], speeds[1], rtol=0, atol=1e-5)
    assert float(speeds[0].abs().max()) > 0.1


@pytest.mark.filterwarnings("ignore::bigjko.BoundaryMassWarning")
@pytest.mark.parametrize("tau", [1e2, 1e6])
@pytest.mark.parametrize("make", WAYS)
def test_steps_beyond_all_measure_end_at_the_minimum(make: str, tau: float) -> None:
    """An implicit step is stable for any tau: the risk is least, to what the transport still costs, O(1 / tau^2)."""
    far = flow(make, tau=tau, steps=2)
    assert far.status is bj.Status.ok
    assert float(far.risks[-1]) <= 100 / tau**2


@pytest.mark.parametrize("decay", [1e3, 1e8])
@pytest.mark.parametrize("make", WAYS)
def test_weight_decay_beyond_all_measure_leaves_no_network(make: str, decay: float) -> None:
    """Outputs of 0: what is left of the risk is that of the labels."""
    gone = flow(make, decay=decay)
    assert gone.status is bj.Status.ok
    assert float(gone.risks[-1]) == pytest.approx(float(Y.square().sum()), rel=1e-2)


def test_labels_of_a_million() -> None:
    """The circle has no box, and fits them; in a box of [-3, 3]^3 no network does, and the edge says so."""
    grown = flow("projected", y=1e6 * Y)
    assert grown.status is bj.Status.ok
    assert float((grown.outputs[-1] / 1e6 - Y).abs().max()) <= 1e-6
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        flow("lifted", y=1e6 * Y)
    assert any(issubclass(w.category, bj.BoundaryMassWarning) for w in said)


@pytest.mark.parametrize("make", WAYS)
def test_epsilon_from_too_small_to_too_large(make: str) -> None:
    """Below .25 h^2 it is refused, and where entropy decides it says so."""
    way, start = WAYS[make]()
    risk, h = bj.Risk(X, Y, neurons=way), way.spacing(start.grid)
    # The cost of Projected is 4 times as steep: .25 h^2 of variance is h^2 there, too, by the way's own spacing.
    unit = way.cost.curvature * h * h
    for share in (0.0, 1e-6, 0.2):
        with pytest.raises(bj.StepError, match="need"):
            bj.JKO(risk, start.grid, tau=0.05, epsilon=share * unit)
    for share in (1e4, 1e12):
        jko = bj.JKO(risk, start.grid, tau=0.05, epsilon=share * unit)
        if make == "projected":  # uniform on its circle: there is no width that entropy could exceed
            continue
        with pytest.warns(bj.NarrowMeasureWarning, match="entropy, and not the flow, decides"):
            jko.init(start)


def test_one_node() -> None:
    """A grid of one node has no h; mass has nowhere to go, and stays. A circle needs three."""
    grid = bj.Grid((bj.Line.uniform(0.3, 0.3, 1), bj.Line.uniform(0.2, 0.2, 1)))
    risk, start = bj.Risk(torch.ones(1, 1, dtype=D), torch.ones(1, dtype=D)), bj.GridMeasure.uniform(grid)
    with pytest.raises(bj.StepError, match=r"a grid without neighbours, need an epsilon"):
        bj.JKO(risk, grid, tau=0.1)
    still = bj.evolve(bj.JKO(risk, grid, tau=0.1, epsilon=0.1), start, 0.3)
    assert still.outputs.flatten().tolist() == pytest.approx([0.06] * 4, rel=1e-15)
    with pytest.raises(bj.GridError, match="a circle of 1 nodes, need at least 3"):
        bj.neurons.Projected().grid(1, dim=2)


@pytest.mark.slow
def test_five_thousand_data() -> None:
    """A step against ten of gradient descent: the first-order error of either."""
    many, labels = torch.randn(5000, 2, dtype=D), torch.randn(5000, dtype=D)
    way, _ = projected()
    start = way.uniform(way.grid(64, dim=2), radius=0.7)  # type: ignore[attr-defined]
    risk = bj.Risk(many, labels, neurons=way, loss=bj.losses.Squared(scale=1 / 5000))
    jko = bj.evolve(bj.JKO(risk, start.grid, tau=0.05), start, 0.05)
    descent = bj.evolve(bj.GradientDescent(risk, tau=0.005), way.particles(start), 0.05, record=10)
    change = float((descent.outputs[1] - descent.outputs[0]).abs().max())
    assert float((jko.outputs - descent.outputs).abs().max()) <= 0.05 * change
