"""Whatever the public contract is handed, out comes a sane result or one of the library's own errors.

The shape checks of the test runs are switched off, as in test_bad_input.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jaxtyping
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import bigjko as bj
from bigjko.compare import ComparisonError

OURS = (bj.MeasureError, bj.RiskError, bj.StepError, bj.GridError, bj.KernelError, bj.FlowError, ComparisonError)
F64 = torch.float64
LARGE = 1e100  # from here on squares and products overflow, and what follows may be inf or NaN
T = TypeVar("T")


@pytest.fixture(autouse=True, scope="module")
def _as_users_have_it() -> Iterator[None]:
    jaxtyping.config.update("jaxtyping_disable", True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    jaxtyping.config.update("jaxtyping_disable", False)


def ours(call: Callable[[], T]) -> T | None:
    """What a call gives, or None where it refuses as it should: by an error of ours that says something."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call()
        except OURS as refused:
            said = str(refused)
    assert len(said) > 20
    return None


ODD = st.sampled_from([0.0, -0.0, -1.0, 1e-320, 1e-30, 1e30, 1e308, -1e308, math.inf, -math.inf, math.nan])
TAME = st.floats(-3, 3, allow_subnormal=False)
NUMBER = TAME | ODD | st.floats()
POSITIVE = st.floats(0.01, 3) | NUMBER
DTYPES = st.sampled_from([F64] * 6 + [torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64])


@st.composite
def tensors(draw: Any, *shape: int, lowest: float = -3.0) -> Tensor:
    """Mostly of a shape and tame; else of any shape, dtype and values."""
    if draw(st.integers(0, 3)) == 0:
        shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
    size = math.prod(shape)
    values = draw(st.lists(st.floats(lowest, 3, allow_subnormal=False), min_size=size, max_size=size))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1]))):
        if size:
            values[draw(st.integers(0, size - 1))] = draw(NUMBER)
    return torch.tensor(values, dtype=F64).reshape(shape).to(draw(DTYPES))


def grid(dtype: torch.dtype = F64) -> bj.Grid:
    """Of Lifted for data in R."""
    return bj.Grid.uniform([-2.0] * 2, [2.0] * 2, [9] * 2, dtype=dtype)


def tame(*tensors: Tensor) -> bool:
    return all(bool((x.abs() < LARGE).all()) for x in tensors)


# --------------------------------------------------------------------------------------------------------------- risk


@given(X=tensors(4, 1), y=tensors(4), decay=st.just(0.0) | POSITIVE, scale=st.just(1.0) | POSITIVE, at=tensors(3, 1))
def test_a_risk_refuses_or_has_values(X: Tensor, y: Tensor, decay: float, scale: float, at: Tensor) -> None:
    risk = ours(lambda: bj.Risk(X, y, loss=bj.losses.Squared(scale), weight_decay=decay))
    if risk is None:
        return
    assert X.ndim == 2
    assert y.shape == (len(X),) != (0,)
    assert decay >= 0
    assert scale > 0
    way = bj.neurons.Lifted()
    start = ours(lambda: bj.GridMeasure.gaussian(way.grid(5, X.shape[1], radius=1.0, dtype=X.dtype), 0.0, 0.5))
    value = ours(lambda: risk.value(start)) if start is not None and X.shape[1] < 4 else None
    if value is not None and tame(X, y) and max(decay, scale) < LARGE and X.dtype == F64:
        assert bool(value.isfinite())
        assert float(value) >= 0
    if start is not None and X.shape[1] < 4:
        outputs = ours(lambda: risk.outputs(start, X=at))
        assert outputs is None or outputs.shape == at.shape[:1]


# --------------------------------------------------------------------------------------------------- grids, measures

COUNTS = st.integers(1, 9) | st.sampled_from([0, -1, -(2**40), 1, 64])


@given(
    low=st.lists(NUMBER, max_size=3),
    high=st.lists(NUMBER, max_size=3),
    shape=st.lists(COUNTS, max_size=3),
    dtype=st.sampled_from([F64, torch.float32]),
)
def test_a_grid_refuses_or_has_finite_nodes(
    low: list[float], high: list[float], shape: list[int], dtype: torch.dtype
) -> None:
    made = ours(lambda: bj.Grid.uniform(low, high, shape, dtype=dtype))
    if made is None:
        return
    assert made.shape == tuple(shape)
    assert bool(made.points().isfinite().all())
    assert all(bool((f.nodes.diff(dim=0) > 0).all()) for f in made.factors)
    assert made.spacing >= 0


def sane(measure: Any, mass: float | None = None) -> None:
    masses = measure.masses
    assert bool((masses >= 0).all())
    assert not bool(masses.isnan().any())
    if mass is not None and 1e-200 < mass < 1e200:
        assert float(measure.mass) == pytest.approx(mass, rel=1e-6)


@given(log_masses=tensors(9, 9))
def test_log_masses_are_refused_or_a_measure(log_masses: Tensor) -> None:
    made = ours(lambda: bj.GridMeasure(grid(), log_masses))
    if made is not None:
        sane(made)


AXES = POSITIVE | tensors(2) | tensors(2, lowest=0.1)


@given(mean=st.just(0.0) | AXES, std=AXES, mass=st.just(1.0) | POSITIVE)
def test_a_gaussian_is_refused_or_a_measure(mean: Any, std: Any, mass: float) -> None:
    made = ours(lambda: bj.GridMeasure.gaussian(grid(), mean, std, mass=mass))
    if made is not None:
        sane(made, mass)


@given(values=tensors(81, lowest=0.0), mass=st.just(1.0) | POSITIVE)
def test_a_density_is_refused_or_a_measure(values: Tensor, mass: float) -> None:
    made = ours(lambda: bj.GridMeasure.from_density(grid(), lambda points: values, mass=mass))
    if made is not None:
        sane(made, mass)
    even = ours(lambda: bj.GridMeasure.uniform(grid(), mass=mass))
    if even is not None:
        sane(even, mass)


@given(positions=tensors(3, 2), masses=tensors(3, lowest=0.0), width=st.just(2.0) | POSITIVE, drop=NUMBER)
def test_particles_are_refused_or_a_measure(positions: Tensor, masses: Tensor, width: float, drop: float) -> None:
    made = ours(lambda: bj.ParticleMeasure(positions, masses))
    if made is None:
        return
    sane(made)
    spread = ours(lambda: bj.GridMeasure.from_particles(grid(made.positions.dtype), made, width=width))
    if spread is None:
        return
    sane(spread, float(made.mass))
    back = ours(lambda: spread.to_particles(drop=drop))
    if back is not None:
        sane(back)
        assert 0 <= drop < 1


@given(
    W=tensors(3, 1),
    a=tensors(3),
    masses=st.none() | tensors(3, lowest=0.0),
    way=st.sampled_from(["Lifted", "Projected"]),
)
def test_a_network_is_refused_or_a_measure(W: Tensor, a: Tensor, masses: Tensor | None, way: str) -> None:
    cloud = ours(lambda: bj.ParticleMeasure.from_network(W, a))
    if cloud is not None:
        sane(cloud)
        assert cloud.positions.shape == (len(a), W.shape[1] + 1)
    lifted = way == "Lifted"
    neurons: Any = bj.neurons.Lifted() if lifted else bj.neurons.Projected(balanced=False)
    made = ours(lambda: neurons.measure(grid() if lifted else neurons.grid(32, 1), W, a, masses=masses))
    if made is not None:
        sane(made)


# ------------------------------------------------------------------------------------------------------ steps, flows

RISK = bj.Risk(torch.tensor([[1.0], [-0.5], [2.0]], dtype=F64), torch.tensor([1.0, 0.5, -1.0], dtype=F64))
START = bj.GridMeasure.gaussian(grid(), 0.0, 0.6)


def told(flow: bj.Flow | None, t_end: float) -> None:
    """Times that rise to the end, and numbers at all of them."""
    if flow is None:
        return
    assert float(flow.times[-1]) == t_end
    assert bool((flow.times.diff() > 0).all())
    assert bool(flow.outputs.isfinite().all())
    assert bool(flow.risks.isfinite().all())
    sane(flow.final)


@given(radius=NUMBER, width=st.just(3.0) | POSITIVE, mass=st.just(1.0) | POSITIVE, scale=st.just(1.0) | POSITIVE)
def test_lengths_whose_squares_are_no_numbers_are_refused(
    radius: float, width: float, mass: float, scale: float
) -> None:
    way = bj.neurons.Projected()
    circle = way.grid(24, 2)
    for polar in (bj.neurons.PolarCone(), bj.neurons.PolarFlat()):
        made_of = ours(lambda polar=polar: polar.grid(12, 2, radius=radius))  # type: ignore[misc]
        assert made_of is None or made_of.size < 2e8
    even = ours(lambda: way.uniform(circle, radius=radius))
    if even is not None:
        sane(even, radius * radius)
    W, a = torch.tensor([[0.6, 0.8]], dtype=F64) * scale, torch.ones(1, dtype=F64) * scale
    made = ours(lambda: way.measure(circle, W, a, width=width))
    if made is not None:
        sane(made)
    box = ours(lambda: bj.Grid.uniform([-scale] * 2, [scale] * 2, [9] * 2))
    jko = None if box is None else ours(lambda: bj.JKO(RISK, box, 0.1, epsilon=None if width == 3.0 else width))
    start = None if box is None else ours(lambda: bj.GridMeasure.gaussian(box, 0.0, 0.3 * scale, mass=mass))
    if jko is not None and start is not None:
        ours(lambda: jko.init(start))


@given(
    tau=st.floats(0.01, 0.5) | NUMBER,
    epsilon=st.none() | st.floats(0.1, 1) | NUMBER,
    rtol=st.just(1e-6) | NUMBER,
    passes=st.just(2) | st.integers(-1, 5),
    idle=st.just(1e-15) | NUMBER,
)
def test_a_jko_step_is_refused_or_taken(
    tau: float, epsilon: float | None, rtol: float, passes: int, idle: float
) -> None:
    jko = ours(
        lambda: bj.JKO(
            RISK,
            grid(),
            tau,
            epsilon=epsilon,
            entropy=bj.Debiased(passes),
            solver=bj.DualSolver(rtol=rtol),
            idle=idle,
        )
    )
    if jko is not None:
        start = bj.GridMeasure(jko.grid, START.log_masses)
        told(ours(lambda: bj.evolve(jko, start, t_end=tau)), tau)


DESCENTS = [bj.GradientDescent, bj.ImplicitGradientDescent, bj.GradientFlow, bj.SlidingFlow]


@given(
    kind=st.sampled_from(DESCENTS),
    tau=st.floats(0.01, 0.5) | NUMBER,
    t_end=st.floats(0.01, 0.5) | NUMBER,
    save_at=st.lists(st.floats(0, 0.5) | NUMBER, max_size=3),
    record=st.integers(-1, 5),
    W=tensors(3, 1),
    a=tensors(3),
)
def test_a_descent_is_refused_or_reaches_its_end(
    kind: Any, tau: float, t_end: float, save_at: list[float], record: int, W: Tensor, a: Tensor
) -> None:
    assume(not 1e3 < t_end / (tau or 1.0) < 1e9)  # a minute of steps, which are right to be taken
    start = ours(lambda: bj.ParticleMeasure.from_network(W, a))
    stepper = ours(lambda: kind(RISK, tau))
    if stepper is None or start is None:
        return
    told(ours(lambda: bj.evolve(stepper, start, t_end, save_at=save_at, record=record)), t_end)


@given(
    other=st.sampled_from([0.1, 0.2, 0.3]),
    blur=st.none() | POSITIVE,
    max_points=st.integers(-1, 50),
    X=tensors(3, 1),
    y=tensors(3),
)
def test_flows_are_compared_or_refused(other: float, blur: float | None, max_points: int, X: Tensor, y: Tensor) -> None:
    risk = ours(lambda: bj.Risk(X, y))
    if risk is None or not tame(X, y) or X.dtype != F64 or X.shape[1] != 1:
        return
    start = bj.ParticleMeasure.from_network(
        torch.tensor([[0.5], [-0.2]], dtype=F64), torch.tensor([0.3, 0.4], dtype=F64)
    )
    first = bj.evolve(bj.GradientDescent(RISK, 0.1), start, 0.2)
    second = ours(lambda: bj.evolve(bj.GradientDescent(risk, 0.1), start, other))
    if second is None:
        return
    gaps = ours(lambda: bj.compare(first, second, blur=blur, max_points=max_points))
    if gaps is not None:
        assert bool((gaps.output_gap >= 0).all())
        assert bool(gaps.transport.isfinite().all())
        assert gaps.times.shape == first.times.shape
