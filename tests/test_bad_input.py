"""Bad input gets the right error, which says what was received and what is needed, and nothing is lost.

The shape checks of the test runs are switched off here: users do not have them, and the packages' own must do.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from bigjko import (
    JKO,
    GradientDescent,
    GradientFlow,
    GridMeasure,
    NarrowMeasureWarning,
    ParticleMeasure,
    Potential,
    Risk,
    evolve,
)
from bigjko.errors import MeasureError, RiskError, StepError
from bigjko.losses import Logistic
from bigjko.neurons import Lifted, Projected
from bigjko_kernels import (
    Circle,
    Cost,
    Dense,
    GibbsKernel,
    Grid,
    GridError,
    HellingerKantorovich,
    KernelError,
    Lazy,
    Line,
    PerFactor,
    Separable,
    Sheets,
    Sphere,
    SquaredArc,
    SquaredEuclidean,
    Sum,
    Tiled,
)

from .registry import GENERAL, KERNELS

F64, F32 = torch.float64, torch.float32


@pytest.fixture(autouse=True)
def _as_users_have_it() -> Iterator[None]:
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(5, 2, dtype=F64), torch.randn(5, dtype=F64)


def risk(**options: Any) -> Risk:
    return Risk(*data(), **options)


def grid(dtype: torch.dtype = F64) -> Grid:
    """A grid of Lifted for data in R^2."""
    return Grid.uniform([-2.0] * 3, [2.0] * 3, [9] * 3, dtype=dtype)


def start(dtype: torch.dtype = F64) -> GridMeasure:
    return GridMeasure.gaussian(grid(dtype), 0.0, 0.8)


def particles(dtype: torch.dtype = F64) -> ParticleMeasure:
    return ParticleMeasure.from_network(torch.randn(4, 2, dtype=dtype), torch.randn(4, dtype=dtype))


def with_entry(x: Tensor, value: float) -> Tensor:
    """One entry replaced."""
    x = x.clone()
    x.reshape(-1)[0] = value
    return x


Errors = type[Exception] | tuple[type[Exception], ...]
Case = tuple[Callable[[], object], Errors, str]


def refused(cases: dict[str, Case]) -> pytest.MarkDecorator:
    """Parametrise by name over calls that must raise."""
    return pytest.mark.parametrize(("call", "error", "text"), cases.values(), ids=cases)


# ---------------------------------------------------------------------------------------------------------------- data

RISKS: dict[str, Case] = {
    "NaN in X": (
        lambda: Risk(with_entry(data()[0], math.nan), data()[1]),
        RiskError,
        r"1 entries .* NaN or inf, the first of them X\[\d, \d\]",
    ),
    "inf in y": (lambda: Risk(data()[0], with_entry(data()[1], math.inf)), RiskError, "NaN or inf.*clean them"),
    "fewer labels": (
        lambda: Risk(data()[0], data()[1][:4]),
        RiskError,
        r"X \(5, 2\) and y \(4,\), need \(n, d\) and \(n,\)",
    ),
    "labels in a column": (lambda: Risk(data()[0], data()[1][:, None]), RiskError, r"y \(5, 1\), .* y.squeeze\(1\)"),
    "a class of ways": (
        lambda: Risk(*data(), neurons=Projected),  # type: ignore[arg-type]
        RiskError,
        r"the class Projected as neurons, need an instance of Neurons: write Projected\(...\)",
    ),
    "the name of a loss": (
        lambda: Risk(*data(), loss="huber"),  # type: ignore[arg-type]
        RiskError,
        "'huber' as loss, need an instance of Loss: take one of bj.losses",
    ),
    "X without a second axis": (lambda: Risk(data()[1], data()[1]), RiskError, r"X \(5,\) and y \(5,\)"),
    "no data": (lambda: Risk(data()[0][:0], data()[1][:0]), RiskError, "n >= 1"),
    "dtypes mixed": (lambda: Risk(data()[0], data()[1].float()), RiskError, "float64 on cpu and y in torch.float32"),
    "devices mixed": (
        lambda: Risk(data()[0].to("meta"), data()[1]),
        RiskError,
        "on meta and y in torch.float64 on cpu",
    ),
    "whole numbers": (
        lambda: Risk(data()[0].long(), data()[1].long()),
        RiskError,
        r"X in torch.int64 .*need floating point: convert",
    ),
    "negative weight decay": (lambda: risk(weight_decay=-0.1), RiskError, "weight decay of -0.1, need .* >= 0"),
    "NaN weight decay": (lambda: risk(weight_decay=math.nan), RiskError, "weight decay of nan"),
    "labels 0 and 1 for logistic": (
        lambda: Risk(data()[0], torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0], dtype=F64), loss=Logistic()),
        RiskError,
        r"labels from 0 to 1, need -1 and \+1 for Logistic: map them",
    ),
    "a grid of another dtype": (
        lambda: risk().on(grid(F32)),
        RiskError,
        "nodes in torch.float32 .* data in torch.float64",
    ),
    "a measure of another dtype": (
        lambda: risk().value(start(F32)),
        RiskError,
        r"convert the risk or the nodes with .to",
    ),
    "particles of another dtype": (lambda: risk().value(particles(F32)), RiskError, "nodes in torch.float32"),
    "outputs of another dtype": (lambda: risk().outputs(start(F32)), (RiskError, GridError), "float32"),
    "outputs of particles of another dtype": (
        lambda: risk().outputs(particles(F32)),
        (RiskError, GridError),
        "float32",
    ),
    "outputs at data of another dtype": (
        lambda: risk().outputs(start(), X=data()[0].float()),
        (RiskError, GridError),
        "float32",
    ),
    "outputs at data of another dimension": (
        lambda: risk().outputs(start(), X=torch.zeros(3, 4, dtype=F64)),
        (RiskError, GridError),
        r"R\^4",
    ),
    "particles of another dimension": (
        lambda: risk().outputs(ParticleMeasure.from_network(torch.zeros(4, 3, dtype=F64), torch.ones(4, dtype=F64))),
        GridError,
        r"directions in R\^3 and data in R\^2, need the same",
    ),
    "a grid of another dimension": (
        lambda: risk().value(GridMeasure.uniform(Grid.uniform([0.0], [1.0], [3]))),
        GridError,
        r"data in R\^2, need 3 lines for Lifted",
    ),
    "a grid of another way": (
        lambda: risk(neurons=Projected()).value(start()),
        GridError,
        r"data in R\^2, need Projected\(\).grid\(nodes, dim=2\)",
    ),
    "NaN in a potential": (
        lambda: Potential(lambda x: x[:, 0] * math.nan).on(grid()),
        RiskError,
        "V values with NaN or inf",
    ),
    "a potential of another shape": (
        lambda: Potential(lambda x: x).on(grid()),
        RiskError,
        r"V values of shape \(729, 3\), need \(729,\): one a node",
    ),
    "a potential of another dtype": (
        lambda: Potential(lambda x: x[:, 0].float()).on(grid()),
        RiskError,
        "float32",
    ),
    "no features": (lambda: Sum([]), GridError, "no features to add, need one or more"),
    "directions of another dimension": (
        lambda: Tiled(torch.zeros(4, 2), torch.zeros(5, 3)),
        GridError,
        r"directions in R\^2 and data in R\^3, need the same",
    ),
    "directions of another dtype": (
        lambda: Tiled(torch.zeros(4, 2), torch.zeros(5, 2, dtype=F64)),
        GridError,
        "float32",
    ),
}


@refused(RISKS)
def test_data_is_checked(call: Callable[[], object], error: Errors, text: str) -> None:
    with pytest.raises(error, match=text):
        call()


# ------------------------------------------------------------------------------------------------------------ measures


def zeros() -> Tensor:
    return torch.zeros(9, 9, 9, dtype=F64)


def network() -> tuple[Tensor, Tensor]:
    W = torch.tensor([[0.5, 0.5], [-0.5, 0.25]], dtype=F64)
    return W, W.norm(dim=1)


def density(values: Callable[[Tensor], Tensor], **options: Any) -> Callable[[], GridMeasure]:
    return lambda: GridMeasure.from_density(grid(), values, **options)


def lifted(**options: Any) -> Callable[[], GridMeasure]:
    return lambda: Lifted().measure(grid(), *network(), **options)


def projected(**options: Any) -> Callable[[], GridMeasure]:
    return lambda: Projected().measure(Projected().grid(32, 2), *network(), **options)


def cloud(positions: Tensor, masses: Tensor) -> Callable[[], ParticleMeasure]:
    return lambda: ParticleMeasure(positions, masses)


ONES = torch.ones(3, dtype=F64)
THREE = torch.zeros(3, 2, dtype=F64)

MEASURES: dict[str, Case] = {
    "NaN log mass": (lambda: GridMeasure(grid(), with_entry(zeros(), math.nan)), MeasureError, "log masses with nan"),
    "+inf log mass": (lambda: GridMeasure(grid(), with_entry(zeros(), math.inf)), MeasureError, "log masses with inf"),
    "no mass": (
        lambda: GridMeasure(grid(), zeros() - math.inf),
        MeasureError,
        "a measure without mass, need at least one",
    ),
    "another shape": (
        lambda: GridMeasure(grid(), zeros()[0]),
        GridError,
        r"shape \(9, 9\), need the grid's \(9, 9, 9\)",
    ),
    "another dtype": (
        lambda: GridMeasure(grid(), zeros().float()),
        GridError,
        r"float32, need the grid's torch.float64",
    ),
    "another device": (
        lambda: GridMeasure(grid(), zeros().to("meta")),
        GridError,
        "on meta, need the grid's cpu: move",
    ),
    "negative density": (density(lambda x: x[:, 0]), MeasureError, "negative.* or NaN values, need .*values >= 0"),
    "NaN density": (density(lambda x: x[:, 0] * math.nan), MeasureError, "negative.* or NaN values"),
    "infinite density": (density(lambda x: (x[:, 0] + 9) / 0), MeasureError, "infinite|inf|nan"),
    "zero density": (density(lambda x: 0 * x[:, 0]), MeasureError, "without mass"),
    "density of another shape": (density(lambda x: x**2), (MeasureError, GridError), r"shape \(729, 3\)"),
    "no total": (density(lambda x: x[:, 0] ** 2, mass=0.0), MeasureError, "total mass of 0.0, need a positive finite"),
    "NaN total": (density(lambda x: x[:, 0] ** 2, mass=math.nan), MeasureError, "total mass of nan"),
    "no width": (
        lambda: GridMeasure.gaussian(grid(), 0.0, 0.0),
        MeasureError,
        "std 0.0, need finite numbers and std > 0",
    ),
    "NaN mean": (lambda: GridMeasure.gaussian(grid(), math.nan, 1.0), MeasureError, "mean nan and std 1.0"),
    "infinite width": (lambda: GridMeasure.gaussian(grid(), 0.0, math.inf), MeasureError, "std inf"),
    "means of another length": (
        lambda: GridMeasure.gaussian(grid(), torch.zeros(2, dtype=F64), 1.0),
        MeasureError,
        r"mean of shape \(2,\)",
    ),
    "a Gaussian on a circle": (
        lambda: GridMeasure.gaussian(Grid((Circle.uniform(9),)), 0.0, 1.0),
        MeasureError,
        "need lines only: on directions use the way's own .measure",
    ),
    "NaN position": (cloud(with_entry(THREE, math.nan), ONES), MeasureError, "positions or masses with NaN or inf"),
    "infinite mass": (cloud(THREE, with_entry(ONES, math.inf)), MeasureError, "positions or masses with NaN or inf"),
    "negative mass": (cloud(THREE, with_entry(ONES, -1.0)), MeasureError, "masses that are negative or all zero"),
    "massless particles": (cloud(THREE, 0 * ONES), MeasureError, "masses that are negative or all zero"),
    "no particles": (cloud(THREE[:0], ONES[:0]), MeasureError, "negative or all zero, need masses >= 0 with some mass"),
    "masses of another length": (
        cloud(THREE, ONES[:2]),
        MeasureError,
        r"positions \(3, 2\) and masses \(2,\), need \(m, d \+ 1\) and \(m,\)",
    ),
    "positions in one row": (cloud(ONES, ONES), MeasureError, r"positions \(3,\)"),
    "masses of another dtype": (cloud(THREE, ONES.float()), MeasureError, r"convert one with .to\(\)"),
    "masses on another device": (cloud(THREE.to("meta"), ONES), MeasureError, "on meta and masses"),
    "a network of two sizes": (
        lambda: ParticleMeasure.from_network(THREE, ONES[:2]),
        MeasureError,
        r"W \(3, 2\) and a \(2,\), need \(m, d\) and \(m,\)",
    ),
    "a network of two dtypes": (
        lambda: ParticleMeasure.from_network(THREE, ONES.float()),
        MeasureError,
        "W in torch.float64 on cpu and a in torch.float32 on cpu, need the same",
    ),
    "NaN in a network": (
        lambda: Lifted().measure(grid(), with_entry(network()[0], math.nan), network()[1]),
        MeasureError,
        "NaN or inf",
    ),
    "a neuron outside the box": (
        lambda: Lifted().measure(grid(), 9 * network()[0], network()[1]),
        GridError,
        r"coordinate 4.5 on axis 0, need all within \[-2, 2\]: widen the grid",
    ),
    "a network on another way's grid": (
        lambda: Lifted().measure(Projected().grid(9, 2), *network()),
        GridError,
        "need 3 lines for Lifted",
    ),
    "a network of another dtype": (
        lambda: Lifted().measure(grid(F32), *network()),
        GridError,
        "points in torch.float64 .* need the grid's torch.float32",
    ),
    "a projected network of another dtype": (
        lambda: Projected().measure(Projected().grid(32, 2, dtype=F32), *network()),
        (GridError, MeasureError),
        "torch.float64 on cpu, need the grid's torch.float32",
    ),
    "lifted with NaN masses": (lifted(masses=torch.tensor([math.nan, 1.0], dtype=F64)), MeasureError, "NaN or inf|nan"),
    "lifted with negative masses": (lifted(masses=torch.tensor([-0.1, 1.0], dtype=F64)), MeasureError, "negative"),
    "lifted with too few masses": (lifted(masses=torch.ones(1, dtype=F64)), MeasureError, r"masses \(1,\)"),
    "lifted with too many masses": (lifted(masses=torch.ones(3, dtype=F64)), MeasureError, r"masses \(3,\)"),
    "lifted with float32 masses": (lifted(masses=torch.ones(2)), MeasureError, "float32"),
    "lifted without width": (lifted(width=0.0), GridError, "width of 0.0 nodes, need a positive"),
    "lifted with infinite width": (lifted(width=math.inf), GridError, "width of inf nodes, need a positive"),
    "projected with negative masses": (
        projected(masses=torch.tensor([-0.1, 1.0], dtype=F64)),
        MeasureError,
        "negative",
    ),
    "projected with too few masses": (projected(masses=torch.ones(1, dtype=F64)), MeasureError, r"masses \(1,\)"),
    "projected without width": (projected(width=0.0), (GridError, KernelError), "width of 0.0"),
    "projected with negative width": (projected(width=-1.0), (GridError, KernelError), "width of -1.0"),
    "projected with NaN width": (projected(width=math.nan), (GridError, KernelError), "width of nan"),
    "all nodes dropped": (lambda: start().to_particles(drop=1.0), MeasureError, "drop"),
    "NaN dropped": (lambda: start().to_particles(drop=math.nan), MeasureError, "drop"),
}


@refused(MEASURES)
def test_measures_are_checked(call: Callable[[], object], error: Errors, text: str) -> None:
    with pytest.raises(error, match=text):
        call()


# ------------------------------------------------------------------------------------------------------ grids, kernels

LINE, CIRCLE = Grid.uniform([-1.0], [1.0], [9]), Grid((Circle.uniform(9),))
SPHERE = Grid((Sphere.fibonacci(20),))
CYLINDER = Grid((Line.uniform(-1.0, 1.0, 5), Circle.uniform(9)))


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("kernel", GENERAL)
def test_kernels_need_a_positive_epsilon(kernel: str, epsilon: float) -> None:
    with pytest.raises(KernelError, match=rf"epsilon = {epsilon}, need a positive finite number: .75 h\^2 is"):
        KERNELS[kernel].make(LINE, epsilon, SquaredEuclidean())


@pytest.mark.parametrize("kernel", GENERAL)
def test_kernels_check_their_values(kernel: str) -> None:
    K = KERNELS[kernel].make(LINE, 0.1, SquaredEuclidean())
    with pytest.raises(GridError, match=r"log values of shape \(8,\), need the grid's \(9,\)"):
        K.log_apply(torch.zeros(8, dtype=F64))
    with pytest.raises(GridError, match=r"log values in torch.float32, need the grid's torch.float64"):
        K.log_apply(torch.zeros(9))
    with pytest.raises(GridError, match=r"log values on meta, need the grid's cpu"):
        K.log_apply(torch.zeros(9, dtype=F64, device="meta"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kernel", GENERAL)
def test_what_is_no_log_value_is_seen_in_the_answer(kernel: str, value: float) -> None:
    grid = Grid.uniform([-1.0], [1.0], [40])
    b = with_entry(torch.zeros(40, dtype=F64), value)
    out = KERNELS[kernel].make(grid, 0.1, SquaredEuclidean()).log_apply(b)
    assert not out[0].isfinite()  # a measure refuses it, whichever it is


COSTS: dict[str, tuple[Grid, Cost, str]] = {
    "chords on a circle": (
        CIRCLE,
        SquaredEuclidean(),
        "Circle for SquaredEuclidean, whose chords leave it: use SquaredArc",
    ),
    "chords on a sphere": (SPHERE, SquaredEuclidean(), "Sphere for SquaredEuclidean, whose chords leave it"),
    "arcs on a line": (LINE, SquaredArc(), "for SquaredArc, need one Circle or Sphere, with or without Sheets"),
    "arcs on a cylinder": (CYLINDER, SquaredArc(), "for SquaredArc, need one Circle or Sphere"),
    "a cone over a line": (LINE, HellingerKantorovich(), "for HellingerKantorovich, need one Circle or Sphere"),
    "one cost for two factors": (
        CYLINDER,
        PerFactor((SquaredEuclidean(),), (1,)),
        "1 costs for .*, need one per factor",
    ),
}


@pytest.mark.parametrize(("grid", "cost", "text"), COSTS.values(), ids=COSTS)
@pytest.mark.parametrize("kernel", GENERAL)
def test_kernels_refuse_costs_of_another_geometry(kernel: str, grid: Grid, cost: Cost, text: str) -> None:
    with pytest.raises(KernelError, match=text):
        KERNELS[kernel].make(grid, 0.1, cost)


def test_kernels_refuse_what_they_cannot_do() -> None:
    with pytest.raises(KernelError, match="which is no sum over factors: use kernels.Lazy"):
        Separable(SPHERE, 0.1)
    with pytest.raises(KernelError, match="8,193 nodes a sheet for the dense oracle, need at most 8,192"):
        Dense(Grid.uniform([0.0], [1.0], [8193]), 0.1)


@pytest.mark.parametrize("kind", [Dense, Separable, Lazy])
def test_sheets_alone_need_no_kernel(kind: type[GibbsKernel]) -> None:
    # Not bad input: nothing moves between sheets, so every kernel is the identity.
    sheets = Grid((Sheets.of([1.0, -1.0]),))
    b = torch.tensor([0.3, -2.0], dtype=F64)
    assert torch.equal(kind(sheets, 0.1, SquaredEuclidean()).log_apply(b), b)


# ------------------------------------------------------------------------------------------------------------ steppers


@pytest.mark.parametrize("tau", [0.0, -0.1, math.nan, math.inf])
def test_steppers_need_a_positive_tau(tau: float) -> None:
    for make in (
        lambda: JKO(risk(), grid(), tau=tau),
        lambda: GradientDescent(risk(), tau=tau),
        lambda: GradientFlow(risk(), tau=tau),
    ):
        with pytest.raises(StepError, match=f"tau = {tau}, need a positive finite time step"):
            make()


@pytest.mark.parametrize("epsilon", [0.0, -0.1, math.nan, math.inf])
def test_jko_needs_a_positive_epsilon(epsilon: float) -> None:
    with pytest.raises(StepError, match=f"epsilon = {epsilon}, need a positive finite number"):
        JKO(risk(), grid(), tau=0.1, epsilon=epsilon)


def test_jko_refuses_an_epsilon_that_pins_the_mass() -> None:
    h = grid().spacing
    with pytest.raises(
        StepError, match=r"= 0.24 h\^2, need at least .25 h\^2 = .*pins the mass to the nodes: refine the grid"
    ):
        JKO(risk(), grid(), tau=0.1, epsilon=0.24 * h**2)
    with pytest.warns(NarrowMeasureWarning, match=r"epsilon is 0.3 h\^2, below .5 h\^2: .* slow; use .75 h\^2"):
        JKO(risk(), grid(), tau=0.1, epsilon=0.3 * h**2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        JKO(risk(), grid(), tau=0.1, epsilon=0.5 * h**2)
    with pytest.raises(StepError, match=r"without neighbours, need an epsilon"):
        JKO(Potential(lambda x: x[:, 0]), Grid.uniform([0.0], [0.0], [1]), tau=0.1)
    # A kernel is no way round it.
    with pytest.raises(StepError, match=r"need at least .25 h\^2"):
        JKO(risk(), grid(), tau=0.1, kernel=Separable(grid(), 0.1 * h**2))


def test_jko_refuses_what_lives_elsewhere() -> None:
    jko = JKO(risk(), grid(), tau=0.1)
    other = Grid.uniform([-2.5] * 3, [2.5] * 3, [9] * 3)
    with pytest.raises(StepError, match=r"received a measure on Grid.*, need one on the stepper's own grid"):
        jko.init(GridMeasure.gaussian(other, 0.0, 0.8))
    with pytest.raises(StepError, match="a measure on Grid"):
        evolve(jko, GridMeasure.gaussian(grid().widened(1), 0.0, 0.8), t_end=0.1)
    with pytest.raises(StepError, match=r"received a kernel on Grid.*, need one on the stepper's own grid"):
        JKO(risk(), grid(), tau=0.1, kernel=Separable(other, 0.5))
    with pytest.raises(StepError, match="epsilon = 0.2 and a kernel with 0.5, need one of them or equals"):
        JKO(risk(), grid(), tau=0.1, epsilon=0.2, kernel=Separable(grid(), 0.5))
    with pytest.raises(RiskError, match="nodes in torch.float32 .* and data in torch.float64"):
        JKO(risk(), grid(F32), tau=0.1)
    with pytest.raises(GridError, match=r"need 3 lines for Lifted"):
        JKO(risk(), Projected().grid(9, 2), tau=0.1)
    with pytest.raises(RiskError, match="nodes in torch.float32"):
        GradientDescent(risk(), tau=0.1).init(particles(F32))


def test_jko_refuses_a_kernel_of_another_metric() -> None:
    way = Projected()
    nodes = way.grid(32, 2)
    with pytest.raises(StepError, match="SquaredArc.*HellingerKantorovich"):
        JKO(risk(neurons=way), nodes, tau=0.1, kernel=Separable(nodes, 0.1, SquaredArc()))


@pytest.mark.parametrize("t_end", [0.0, -1.0, math.nan, math.inf])
def test_evolve_needs_times(t_end: float) -> None:
    descent = GradientDescent(risk(), tau=0.1)
    with pytest.raises(StepError, match=f"t_end = {t_end}, need a positive finite time"):
        evolve(descent, particles(), t_end=t_end)


def test_evolve_checks_what_to_record() -> None:
    descent = GradientDescent(risk(), tau=0.1)
    with pytest.raises(StepError, match=r"save_at times \[2.0\], need all within \[0, 1.0\]"):
        evolve(descent, particles(), t_end=1.0, save_at=[0.5, 2.0])
    with pytest.raises(StepError, match="record = 0, need at least 1"):
        evolve(descent, particles(), t_end=1.0, record=0)


@pytest.mark.parametrize(
    ("stepper", "measure"),
    [(lambda: JKO(risk(), grid(), tau=0.1), particles), (lambda: GradientDescent(risk(), tau=0.1), start)],
    ids=["JKO on particles", "descent on a grid"],
)
def test_steppers_refuse_the_other_kind_of_measure(stepper: Any, measure: Any) -> None:
    with pytest.raises(StepError, match="need .*Measure"):
        evolve(stepper(), measure(), t_end=0.1)
