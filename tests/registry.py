"""The one list of what the shared tests run over. A new class is tested by being listed here.

`test_registry.py` walks the subclasses of every family and fails while one is missing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bigjko import (
    JKO,
    Adaptive,
    Debiased,
    DualSolver,
    GradientDescent,
    GradientFlow,
    GridMeasure,
    ImplicitGradientDescent,
    Plain,
    Risk,
    ScalingSolver,
    SecondOrder,
    SlidingFlow,
    Widening,
)
from bigjko.losses import Averaged, Huber, Logistic, Loss, Squared
from bigjko.measure import ParticleMeasure
from bigjko.neurons import Lifted, Neurons, Pairs, PolarCone, PolarFlat, Projected, Scales, Signed, Split
from bigjko.stepper import Stepper
from bigjko_kernels import (
    LOG_ZERO,
    Circle,
    Circulant,
    Compiled,
    Cone,
    Cost,
    Dense,
    Factor,
    Features,
    GibbsKernel,
    Grid,
    HellingerKantorovich,
    Keops,
    Lazy,
    Line,
    PerFactor,
    Ridge,
    Separable,
    Sheets,
    Sphere,
    SquaredArc,
    SquaredEuclidean,
    Stream,
    Sum,
    Tiled,
    geodesic,
)
from bigjko_kernels.separable import TorchAxis
from bigjko_kernels.triton_ridge import TritonStream

# ------------------------------------------------------------------------------------------------- factors and grids


def sinh_axis(nodes: int, *, radius: float = 3.0, stretch: float = 2.0) -> Line:
    """A line that is fine at 0 and coarse at its ends."""
    u = torch.linspace(-stretch, stretch, nodes, dtype=torch.float64)
    return Line.at(u.sinh() * (radius / math.sinh(stretch)))


def uneven_circle(nodes: int) -> Circle:
    """Directions that grow sparser on the way round: the largest gap is 2 nodes times the mean one."""
    u = torch.arange(nodes, dtype=torch.float64) / nodes
    return Circle.at(2 * math.pi * u * (0.3 + 0.7 * u))


def signs() -> Sheets:
    """The two sheets of Projected."""
    return Sheets.of([1.0, -1.0])


@dataclass(frozen=True)
class FactorCase:
    """A small factor, and what is known of it: total cell size, nodes on an artificial edge, largest gap."""

    make: Callable[[], Factor]
    volume: float
    edges: int
    spacing: float


_SINH_GAPS = sinh_axis(41).nodes[:, 0].diff()
_UNEVEN = 2 * math.pi * (0.3 + 0.7) - 2 * math.pi * (29 / 30) * (0.3 + 0.7 * 29 / 30)  # its last gap, back to angle 0

FACTORS: dict[str, FactorCase] = {
    # n cells of width h, by convention: the end cells are whole, and reach h/2 beyond the box.
    "line": FactorCase(lambda: Line.uniform(-3.0, 3.0, 61), 61 * 0.1, 2, 0.1),
    "sinh line": FactorCase(
        lambda: sinh_axis(41), 6.0 + float(_SINH_GAPS[0] + _SINH_GAPS[-1]) / 2, 2, float(_SINH_GAPS.max())
    ),
    # Cells of r dr at r = .2, .6, ..., 1.8: the last ends at 2, and midpoints integrate r exactly.
    "radii": FactorCase(lambda: Line.radii(1.8, 5, 1), 2.0, 1, 0.4),
    "single node": FactorCase(lambda: Line.uniform(0.3, 0.3, 1), 1.0, 0, 0.0),
    "circle": FactorCase(lambda: Circle.uniform(30), 2 * math.pi, 0, 2 * math.pi / 30),
    "uneven circle": FactorCase(lambda: uneven_circle(30), 2 * math.pi, 0, _UNEVEN),
    "sphere": FactorCase(lambda: Sphere.fibonacci(50), 4 * math.pi, 0, math.sqrt(4 * math.pi / 50)),
    "3-sphere": FactorCase(lambda: Sphere.fibonacci(50, dim=3), 2 * math.pi**2, 0, (2 * math.pi**2 / 50) ** (1 / 3)),
    "sheets": FactorCase(lambda: Sheets.of([1.0, -1.0, 2.0]), 3.0, 0, 0.0),
}


def _lines(*axes: tuple[float, float, int]) -> Grid:
    low, high, shape = zip(*axes, strict=True)
    return Grid.uniform(low, high, shape)


# Float64, on the CPU; tests move them. Small enough for the dense oracle, long enough (line, circle) that the widest
# window of Separable, 17 tiles of 16 nodes, is not the whole axis.
GRIDS: dict[str, Callable[[], Grid]] = {
    "line": lambda: _lines((-3.0, 3.0, 700)),
    "sinh line": lambda: Grid((sinh_axis(400),)),
    "plane": lambda: _lines((-3.0, 3.0, 40), (-2.0, 2.0, 33)),
    "mixed plane": lambda: Grid((Line.uniform(-3.0, 3.0, 30), sinh_axis(41))),
    "box": lambda: _lines((-1.0, 1.0, 11), (-1.0, 1.0, 9), (-1.0, 1.0, 13)),
    "thin box": lambda: _lines((0.0, 0.0, 1), (-1.0, 1.0, 50), (0.5, 0.5, 1)),
    "point": lambda: _lines((0.0, 0.0, 1)),
    "circle": lambda: Grid((Circle.uniform(320),)),
    "uneven circle": lambda: Grid((uneven_circle(200),)),
    "signed circle": lambda: Grid((signs(), Circle.uniform(150))),
    "signed sphere": lambda: Grid((signs(), Sphere.fibonacci(200))),
    "3-sphere": lambda: Grid((Sphere.fibonacci(300, dim=3),)),
    "cylinder": lambda: Grid((Line.uniform(-1.0, 1.0, 20), Circle.uniform(48))),
    "signed cone": lambda: Grid((signs(), Circle.uniform(48), Line.radii(1.5, 12, 1))),
    "uneven cone": lambda: Grid((uneven_circle(37), Line.radii(1.5, 11, 1))),
    "cone over a sphere": lambda: Grid((Sphere.fibonacci(60), Line.radii(1.5, 9, 2))),
}


def coordinate(factor: Factor) -> Tensor:
    """One number a node along which a factor is walked: x, the angle, the height, the label."""
    if isinstance(factor, Circle):
        return torch.atan2(factor.nodes[:, 1], factor.nodes[:, 0]) % (2 * math.pi)
    return factor.nodes[:, -1]


# ---------------------------------------------------------------------------------------------------- adversarial input


def _uniform(grid: Grid) -> Tensor:
    return torch.rand(grid.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def _slope(grid: Grid) -> Tensor:
    # With eps = .75 h^2 the mass moves eps * 27/h = 20 h. Opposite signs on neighbouring factors: axis by axis the
    # values rise and fall again by as much, so that what is rounded in between is larger than the answer.
    total = torch.zeros(grid.shape, dtype=torch.float64)
    for k, f in enumerate(grid.factors):
        steep = 27 / f.spacing if f.spacing else 27.0
        total = total + grid.along(k, coordinate(f) * (steep * (-1) ** k))
    return total


def _holes(grid: Grid) -> Tensor:
    kept = torch.rand(grid.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64) < 0.1
    return (100 * (_uniform(grid) - 0.5)).masked_fill(~kept, LOG_ZERO)


def _spike(grid: Grid) -> Tensor:
    b = torch.full((grid.size,), LOG_ZERO, dtype=torch.float64)
    b[grid.size // 3] = 0.7
    return b.reshape(grid.shape)


def _smooth(grid: Grid) -> Tensor:
    total = torch.zeros(grid.shape, dtype=torch.float64)
    for k, f in enumerate(grid.factors):
        total = total - grid.along(k, 2 * (coordinate(f) - 0.1) ** 2)
    return total


# Log values on a float64 grid; tests move and round them.
INPUTS: dict[str, Callable[[Grid], Tensor]] = {
    "spans 1e4": lambda grid: 1e4 * (_uniform(grid) - 0.5),
    "moves 20 nodes": _slope,
    "90% empty": _holes,
    "one spike": _spike,
    "all empty": lambda grid: torch.full(grid.shape, LOG_ZERO, dtype=torch.float64),
    "smooth": _smooth,
}

# ---------------------------------------------------------------------------------------------------- costs and kernels


def _curved(grid: Grid) -> list[Factor]:
    return [f for f in grid.factors if not isinstance(f, Sheets)]


def _flat(grid: Grid) -> bool:
    return all(isinstance(f, Line) for f in _curved(grid))


def _round(grid: Grid) -> bool:
    return len(_curved(grid)) == 1 and isinstance(_curved(grid)[0], Circle | Sphere)


def _conical(grid: Grid) -> bool:
    kinds = [type(f) for f in _curved(grid)]
    return kinds in ([Circle, Line], [Sphere, Line]) and bool((_curved(grid)[1].nodes > 0).all())


@dataclass(frozen=True)
class CostCase:
    """A cost, and the grids that it is meant for."""

    kind: type[Cost]
    make: Callable[[Grid], Cost]
    fits: Callable[[Grid], bool]


COSTS: dict[str, CostCase] = {
    "euclidean": CostCase(SquaredEuclidean, lambda grid: SquaredEuclidean(), _flat),
    "arc": CostCase(SquaredArc, lambda grid: SquaredArc(), _round),
    "cone of the balanced projection": CostCase(
        HellingerKantorovich, lambda grid: HellingerKantorovich(1 / math.sqrt(2)), _round
    ),
    "cone of any start": CostCase(HellingerKantorovich, lambda grid: HellingerKantorovich(1.0), _round),
    "per factor": CostCase(PerFactor, geodesic, lambda grid: not _flat(grid) and not _round(grid)),
    "cone": CostCase(Cone, lambda grid: Cone(), _conical),
}


def gap(found: Tensor, expected: Tensor) -> float:
    """The largest difference; inf where one is NaN."""
    return float((found - expected).abs().nan_to_num(math.inf, math.inf, math.inf).max())


def ulp(x: Tensor) -> Tensor:
    """The distance from |x| to the next float32, in float64."""
    return 2.0 ** (x.abs().double().log2().floor() - 23)


def log_tolerance(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """How far log_apply may be from the float64 oracle on the same rounded input.

    float64: c/eps and b are rounded to 1e-16 of their own size, which is up to 1e4 times that of the difference which
    decides: 1e-12, relative to what comes out. float32: the sums themselves run in float64, so what is left is the
    rounding of the result: half an ulp, and 1e-5 for a float32 product within one shift (mathematics.md 4).
    """
    if dtype == torch.float64:
        return 1e-12 * (1 + exact.abs())
    return 1e-5 + 4 * ulp(exact.abs().clamp(min=1.0))


@dataclass(frozen=True)
class KernelCase:
    """A kernel, how it is made, the costs it takes, and how far it may be from the oracle (None for the oracle)."""

    kind: type[GibbsKernel]
    make: Callable[[Grid, float, Cost], GibbsKernel]
    takes: Callable[[Grid, Cost], bool]
    tolerance: Callable[[Tensor, torch.dtype], Tensor] | None


def _separates(grid: Grid, cost: Cost) -> bool:
    return cost.per_factor(grid) is not None


KERNELS: dict[str, KernelCase] = {
    "dense": KernelCase(Dense, Dense, lambda grid, cost: True, None),
    "separable": KernelCase(Separable, Separable, _separates, log_tolerance),  # fused on the CPU: test_fused.py
    "separable in torch": KernelCase(Separable, partial(Separable, axis=TorchAxis), _separates, log_tolerance),
    "circulant": KernelCase(Circulant, Circulant, lambda grid, cost: Circulant.takes(grid, cost), log_tolerance),
    "lazy": KernelCase(Lazy, Lazy, lambda grid, cost: True, log_tolerance),
}

# Those that take every grid of lines and every circle; the others have gradients and bad input tested on their own.
GENERAL = [name for name in KERNELS if name != "circulant"]

# --------------------------------------------------------------------------------------------------------------- losses


@dataclass(frozen=True)
class LossCase:
    """A loss, and labels that it takes."""

    kind: type[Loss]
    make: Callable[[], Loss]
    labels: Callable[[int], Tensor]


def _real_labels(n: int) -> Tensor:
    return torch.linspace(-1.5, 2.0, n, dtype=torch.float64)


def _sign_labels(n: int) -> Tensor:
    return torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64).repeat(n)[:n]


def _averaged(loss: Loss, labels: Callable[[int], Tensor]) -> Loss:
    """Of six, as the tests of losses have them."""
    y = labels(6)
    return Averaged(loss, loss.gradient(torch.linspace(-1.0, 1.5, 6, dtype=torch.float64), y))


LOSSES: dict[str, LossCase] = {
    "squared": LossCase(Squared, Squared, _real_labels),
    "mean squared": LossCase(Squared, lambda: Squared(scale=1 / 6), _real_labels),
    "logistic": LossCase(Logistic, Logistic, _sign_labels),
    "mean logistic": LossCase(Logistic, lambda: Logistic(scale=1 / 6), _sign_labels),
    "huber": LossCase(Huber, lambda: Huber(delta=1.5), _real_labels),
    "mean huber": LossCase(Huber, lambda: Huber(delta=0.3, scale=1 / 6), _real_labels),
    "averaged": LossCase(Averaged, lambda: _averaged(Squared(), _real_labels), _real_labels),
    "averaged logistic": LossCase(Averaged, lambda: _averaged(Logistic(), _sign_labels), _sign_labels),
}

# ------------------------------------------------------------------------------------------------ features and neurons


STREAMS: dict[str, type[Stream]] = {"tiled": Tiled, "keops": Keops, "compiled": Compiled, "triton": TritonStream}

FEATURES: dict[str, type[Features]] = {"ridge": Ridge, "sum": Sum}


def data(dim: int) -> Tensor:
    """Six points in R^dim: the unit vectors put kinks w . x = 0 exactly on nodes."""
    X = torch.randn(6, dim, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    X[:dim] = torch.eye(dim, dtype=torch.float64)
    return X


@dataclass(frozen=True)
class Written:
    """Features written out, node by node.

    Attributes:
        phi: (N, n) outputs of the nodes.
        slopes: (N, n, k), so that gram_ij = sum_k p_k slopes_ki . slopes_kj and slope2 = |sum_j z_j slopes_j|^2.
    """

    phi: Tensor
    slopes: Tensor


def _gradients(phi: Callable[[Tensor], Tensor], theta: Tensor) -> tuple[Tensor, Tensor]:
    theta = theta.detach().clone().requires_grad_()
    values = phi(theta)
    columns = [torch.autograd.grad(column.sum(), theta, retain_graph=True)[0] for column in values.unbind(1)]
    return values.detach(), torch.stack(columns, dim=1)


def written_neurons(theta: Tensor, X: Tensor) -> Written:
    """Nodes (w, a) in R^{d+1}, phi = relu(w . x) a: slopes are the gradient in (w, a). torch's own relu'(0) is 0."""
    return Written(*_gradients(lambda t: torch.relu(t[:, :-1] @ X.T) * t[:, -1:], theta))


def written_directions(theta: Tensor, X: Tensor) -> Written:
    """Nodes (s, direction), phi = s relu(direction . x), in the metric of growing mass.

    dnu = -div(v nu) + g nu costs |v|^2 + g^2/2, so the slopes are grad_S phi and sqrt(2) phi (mathematics.md 1, P5;
    their Gram matrix is 2 phi phi^T + grad phi grad phi^T, mathematics.md 3).
    """
    phi, full = _gradients(lambda t: torch.relu(t[:, 1:] @ X.T) * t[:, :1], theta)
    tangential = _tangential(full[:, :, 1:], theta[:, None, 1:])
    return Written(phi, torch.cat([tangential, math.sqrt(2) * phi[:, :, None]], dim=2))


def written_first_layers(theta: Tensor, X: Tensor) -> Written:
    """Nodes (s, w), phi = s relu(w . x), of which w alone moves."""
    phi, full = _gradients(lambda t: torch.relu(t[:, 1:] @ X.T) * t[:, :1], theta)
    return Written(phi, full[:, :, 1:])


def written_pairs(theta: Tensor, X: Tensor) -> Written:
    """Nodes (w+, w-) in R^{2d}, phi = relu(w+ . x) - relu(w- . x): slopes are the gradient in both."""
    d = X.shape[1]
    return Written(*_gradients(lambda t: torch.relu(t[:, :d] @ X.T) - torch.relu(t[:, d:] @ X.T), theta))


def written_spheres(theta: Tensor, X: Tensor) -> Written:
    """Nodes (w, a) on S^d, phi = 2 a relu(w . x) per unit of |theta|^2 / 2.

    dm = -div(v m) + g m costs 2 |v|^2 + g^2/2, so the slopes are grad_S phi / sqrt(2) and sqrt(2) phi.
    """
    phi, full = _gradients(lambda t: 2 * torch.relu(t[:, :-1] @ X.T) * t[:, -1:], theta)
    tangential = full - (full * theta[:, None]).sum(-1, keepdim=True) * theta[:, None]
    return Written(phi, torch.cat([tangential / math.sqrt(2), math.sqrt(2) * phi[:, :, None]], dim=2))


def _tangential(gradient: Tensor, direction: Tensor) -> Tensor:
    return gradient - (gradient * direction).sum(-1, keepdim=True) * direction


def written_cone(theta: Tensor, X: Tensor) -> Written:
    """Nodes (s, direction, r), phi = s r^2 relu(direction . x), metric 2 dr^2 + r^2 dOmega^2."""
    phi, full = _gradients(lambda t: torch.relu(t[:, 1:-1] @ X.T) * t[:, :1] * t[:, -1:] ** 2, theta)
    direction, r = theta[:, None, 1:-1], theta[:, None, -1:]
    turn = _tangential(full[:, :, 1:-1], direction) / r
    return Written(phi, torch.cat([turn, full[:, :, -1:] / math.sqrt(2)], dim=2))


def written_flat(theta: Tensor, X: Tensor) -> Written:
    """Nodes (direction, s), phi = s relu(direction . x), metric dOmega^2 + ds^2."""
    phi, full = _gradients(lambda t: torch.relu(t[:, :-1] @ X.T) * t[:, -1:], theta)
    return Written(phi, torch.cat([_tangential(full[:, :, :-1], theta[:, None, :-1]), full[:, :, -1:]], dim=2))


def written_scales(theta: Tensor, X: Tensor) -> Written:
    """Nodes (s, v) that are neurons s v."""
    return written_neurons(theta[:, :1] * theta[:, 1:], X)


def _any_network(m: int, dim: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    W = torch.rand(m, dim, generator=generator, dtype=torch.float64) - 0.5
    return W, torch.rand(m, generator=generator, dtype=torch.float64) - 0.5


def _balanced_network(m: int, dim: int) -> tuple[Tensor, Tensor]:
    W, a = _any_network(m, dim)
    return W, W.norm(dim=1) * a.sign()


def _network_of_both_signs(m: int, dim: int) -> tuple[Tensor, Tensor]:
    W, a = _any_network(m, dim)
    return W, a.abs() * torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64).repeat(m)[:m]


def _mean_output_weight(W: Tensor, a: Tensor) -> float:
    return float(a.abs().mean())


def _mean_half_square(W: Tensor, a: Tensor) -> float:
    return float((W.square().sum(1) + a.square()).mean()) / 2


@dataclass(frozen=True)
class WayCase:
    """A way to use a measure.

    Attributes:
        kind: the class.
        dims: dimensions of the data it is tested with.
        nodes: `grid(nodes, dim)` stays small, and has nodes on kinks of `data(dim)`.
        fine: `grid(fine, dim)` is fine enough for a deposited network.
        written: its features, written out.
        network: W and a that it takes.
        keeps_mass: its law of mass; growing mass is |theta|^2 / 2 a neuron.
        mass: of a network of that kind, in the way's own sense.
        reach: an output of a network moves by at most this many times |x| (width + 1) h when it is deposited.
        neurons: how many a node stands for.
        options: what the class is built with.
        decay: |w|^2 + a^2 of neurons as the way counts it.
    """

    kind: type[Neurons]
    dims: tuple[int, ...]
    nodes: int
    fine: int
    written: Callable[[Tensor, Tensor], Written]
    network: Callable[[int, int], tuple[Tensor, Tensor]]
    keeps_mass: bool
    mass: Callable[[Tensor, Tensor], float]
    reach: Callable[[Tensor, Tensor], float]
    neurons: int = 1
    decay: Callable[[Tensor, Tensor], Tensor] = lambda W, a: (W**2).sum(1) + a**2
    options: dict[str, Any] = field(default_factory=dict)

    def make(self) -> Neurons:
        """The way."""
        return self.kind(**self.options)


# A neuron is spread with mean zero over a distance s, in root mean square along any x, and relu(. x) is |x|-Lipschitz.
# On lines s <= sqrt(width^2 + 1/4) h for every coordinate, independently of the others (a too, where it is one). So an
# output moves by at most |x| s times the sum of masses |a| over the deposited neurons.
WAYS: dict[str, WayCase] = {
    # 7 nodes in [-3, 3]: whole numbers, so that w = 0 and w . e_1 = 0 are met exactly.
    "lifted": WayCase(
        Lifted, (1, 2), 7, 61, written_neurons, _any_network, True, lambda W, a: 1.0, _mean_output_weight
    ),
    "signed": WayCase(
        Signed,
        (1, 2, 3),
        7,
        61,
        written_first_layers,
        _any_network,
        True,
        _mean_output_weight,
        _mean_output_weight,
    ),
    # The sheet of scale 1 holds all of it.
    "scales": WayCase(Scales, (1, 2), 7, 61, written_scales, _any_network, True, lambda W, a: 1.0, _mean_output_weight),
    # Two sheets of mass 1, of neurons with |a| = 1.
    "split": WayCase(
        Split,
        (1, 2),
        7,
        61,
        written_first_layers,
        _network_of_both_signs,
        True,
        lambda W, a: 2.0,
        lambda W, a: 2.0,
    ),
    "pairs": WayCase(
        Pairs,
        (1, 2),
        7,
        25,
        written_pairs,
        _network_of_both_signs,
        True,
        lambda W, a: 1.0,
        lambda W, a: 2.0,
        neurons=2,
    ),
    # On the largest sphere, S^3, a tangent vector has three coordinates: sqrt 3. A direction's m stands for its |a|.
    # Without balance 2 a relu(w . x) is 2 |x|-Lipschitz.
    "projected": WayCase(
        Projected,
        (2, 3, 4),
        32,
        1024,
        written_directions,
        _balanced_network,
        False,
        _mean_half_square,
        lambda W, a: math.sqrt(3) * _mean_half_square(W, a),
    ),
    "projected, any start": WayCase(
        Projected,
        (1, 2, 3),
        32,
        1024,
        written_spheres,
        _any_network,
        False,
        _mean_half_square,
        lambda W, a: 2 * math.sqrt(3) * _mean_half_square(W, a),
        options={"balanced": False},
    ),
    # Two coordinates of a direction and one of the line, h in the way's own metric; the output is r^2, or s.
    "polar, cone": WayCase(
        PolarCone,
        (2, 3),
        32,
        96,
        written_cone,
        _balanced_network,
        True,
        lambda W, a: 1.0,
        lambda W, a: math.sqrt(3) * _mean_output_weight(W, a),
    ),
    "polar, flat": WayCase(
        PolarFlat,
        (2, 3),
        32,
        96,
        written_flat,
        _any_network,
        True,
        lambda W, a: 1.0,
        lambda W, a: math.sqrt(3) * _mean_output_weight(W, a),
        decay=lambda W, a: 2 * W.norm(dim=1) * a.abs(),  # of the balanced neuron of the same output
    ),
}

# ------------------------------------------------------------------------------------------------------------- steppers


@dataclass(frozen=True)
class StepperCase:
    """A stepper on a small problem.

    Attributes:
        make: the stepper for a time step, and a start.
        order: of its error in tau against the particles' flow; None where none is promised (Plain adds a blur of
            eps / tau, the flow is a reference itself).
        keeps_mass: its law of mass.
    """

    make: Callable[[float], tuple[Stepper[Any, Any], GridMeasure | ParticleMeasure]]
    order: int | None
    keeps_mass: bool


def _smooth_problem(nodes: int = 101) -> tuple[Risk, Grid, GridMeasure]:
    """d = 1, one datum, mass on one side of the kink: w + a grows, w - a shrinks."""
    one = torch.ones(1, dtype=torch.float64)
    grid = Lifted().grid(nodes, 1, radius=2.5)
    start = GridMeasure.gaussian(grid, torch.tensor([0.9, 0.2], dtype=torch.float64), 0.22)
    return Risk(one[:, None], one), grid, start


def _jko_lifted(
    nodes: int = 101, **options: Any
) -> Callable[[float], tuple[Stepper[Any, Any], GridMeasure | ParticleMeasure]]:
    def make(tau: float) -> tuple[Stepper[Any, Any], GridMeasure]:
        risk, grid, start = _smooth_problem(nodes)
        return JKO(risk, grid, tau=tau, **options), start

    return make


def _jko_signed(tau: float) -> tuple[Stepper[Any, Any], GridMeasure]:
    way, one = Signed(), torch.ones(1, dtype=torch.float64)
    grid = way.grid(121, 1)
    start = GridMeasure.from_density(grid, lambda t: torch.exp(-((t[:, 1] - 1.5) ** 2) / 0.1))
    return JKO(Risk(one[:, None], one, neurons=way), grid, tau=tau), start


def _jko_scales(tau: float) -> tuple[Stepper[Any, Any], GridMeasure]:
    """The smooth problem with half its mass on each of two scales."""
    risk, _, _ = _smooth_problem()
    way = Scales()
    grid = way.grid(71, 1, radius=2.0, scales=(1.0, 1.5))

    def density(t: Tensor) -> Tensor:
        theta = t[:, :1] * t[:, 1:] - torch.tensor([0.9, 0.2], dtype=torch.float64)
        return torch.exp(-theta.square().sum(1) / (2 * 0.22**2)) * t[:, 0] ** 2

    start = GridMeasure.from_density(grid, density)
    return JKO(Risk(risk.X, risk.y, neurons=way), grid, tau=tau, entropy=Debiased(passes=4)), start


def _jko_projected(tau: float) -> tuple[Stepper[Any, Any], GridMeasure]:
    way = Projected()
    X = torch.tensor([[1.0, 0.1], [-0.4, 0.8], [0.2, -0.7]], dtype=torch.float64)
    grid = way.grid(256, 2)
    risk = Risk(X, torch.tensor([0.8, -0.4, 0.5], dtype=torch.float64), neurons=way)
    return JKO(risk, grid, tau=tau), way.uniform(grid, radius=0.7)


def _jko_projected_smooth(tau: float) -> tuple[Stepper[Any, Any], GridMeasure]:
    """Two bundles of neurons, .15 wide, that stay 9 widths from every kink; weight decay is part of the slope."""
    way = Projected()
    X = torch.tensor([[1.0, 0.1], [0.4, 0.8], [0.9, 0.5]], dtype=torch.float64)
    grid = way.grid(512, 2)
    risk = Risk(X, torch.tensor([0.8, 0.4, 0.5], dtype=torch.float64), neurons=way, weight_decay=0.1)
    W = torch.tensor([[0.6, 0.3], [0.2, 0.5]], dtype=torch.float64)
    a = W.norm(dim=1) * torch.tensor([1.0, -1.0], dtype=torch.float64)
    return JKO(risk, grid, tau=tau, scheme=SecondOrder()), way.measure(grid, W, a, width=0.15 / grid.spacing)


def _jko_any_start(tau: float) -> tuple[Stepper[Any, Any], GridMeasure]:
    way = Projected(balanced=False)
    one = torch.ones(1, dtype=torch.float64)
    grid = way.grid(256, 1)
    W, a = torch.tensor([[0.9], [0.5]], dtype=torch.float64), torch.tensor([0.2, -0.1], dtype=torch.float64)
    start = way.measure(grid, W, a, width=15.0)  # smooth: narrower features are as far off as the nodes make them
    return JKO(Risk(one[:, None], one, neurons=way), grid, tau=tau), start


def _particles(
    kind: type[GradientDescent | GradientFlow | ImplicitGradientDescent | SlidingFlow],
) -> Callable[[float], tuple[Any, ParticleMeasure]]:
    def make(tau: float) -> tuple[Any, ParticleMeasure]:
        risk, _, start = _smooth_problem()
        return kind(risk, tau), start.to_particles()

    return make


def _around(
    wrap: Callable[[Any], Stepper[Any, Any]],
    make: Callable[[float], tuple[Any, GridMeasure | ParticleMeasure]],
) -> Callable[[float], tuple[Stepper[Any, Any], GridMeasure | ParticleMeasure]]:
    """A stepper around a stepper, from the same start."""

    def wrapped(tau: float) -> tuple[Stepper[Any, Any], GridMeasure | ParticleMeasure]:
        stepper, start = make(tau)
        return wrap(stepper), start

    return wrapped


# So loose a tolerance that the steps are those asked for: two halves each. What it chooses: test_adaptive.py.
_loose = partial(Adaptive, rtol=0.9)

STEPPERS: dict[str, StepperCase] = {
    "jko": StepperCase(_jko_lifted(entropy=Debiased(passes=4)), 1, True),
    "jko, plain": StepperCase(_jko_lifted(entropy=Plain()), None, True),
    "jko, scaling": StepperCase(_jko_lifted(31, entropy=Plain(), solver=ScalingSolver(tolerance=1e-8)), None, True),
    "jko, dual": StepperCase(_jko_lifted(solver=DualSolver(rtol=1e-10)), 1, True),
    "jko, second order": StepperCase(_jko_lifted(entropy=Debiased(passes=4), scheme=SecondOrder()), 2, True),
    "jko, second order, projected": StepperCase(_jko_projected_smooth, 2, False),
    "jko, signed": StepperCase(_jko_signed, 1, True),
    "jko, scales": StepperCase(_jko_scales, 1, True),
    "jko, projected": StepperCase(_jko_projected, 1, False),
    "jko, any start": StepperCase(_jko_any_start, 1, False),
    "gradient descent": StepperCase(_particles(GradientDescent), 1, True),
    "implicit gradient descent": StepperCase(_particles(ImplicitGradientDescent), 1, True),
    "adaptive jko": StepperCase(_around(_loose, _jko_lifted(61)), None, True),
    "adaptive descent": StepperCase(_around(_loose, _particles(GradientDescent)), 1, True),
    "widening jko": StepperCase(_around(Widening, _jko_lifted(entropy=Debiased(passes=4))), 1, True),
    "sliding flow": StepperCase(_particles(SlidingFlow), 2, True),
    "gradient flow": StepperCase(_particles(GradientFlow), None, True),
}
