"""Ground costs, one per metric. A cost knows no epsilon and never builds an N x N array by itself.

A cost is called on coordinates whose last axis is the point, tensors and KeOps LazyTensors alike; sheets are left out,
since transport between them is forbidden and every kernel works sheet by sheet.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .errors import KernelError
from .factors import Circle, Factor, Line, Sheets, Sphere
from .grid import Grid


@dataclass(frozen=True)
class Term:
    """One term of a cost, a function of the chord between some of the coordinates of x and y.

    Attributes:
        width: how many coordinates.
        of: the term where |x - y|^2 is s: zero at s = 0 and nondecreasing.
        unit: whether these coordinates are unit vectors.
        scaled: whether the term is multiplied by the last coordinates of x and y, which are radii >= 0.
    """

    width: int
    of: Callable[[torch.Tensor], torch.Tensor]
    unit: bool
    scaled: bool = False


class Cost(ABC):
    """c(x, y) on Theta: symmetric, zero on the diagonal."""

    @property
    def curvature(self) -> float:
        """c is this times |x - y|^2 / 2 near the diagonal: exp(-c/epsilon) has the variance epsilon / curvature."""
        return 1.0

    @abstractmethod
    def __call__(self, x: Any, y: Any) -> Any:
        """c on the last axis of x and y: Tensors give a Tensor, LazyTensors a LazyTensor."""

    @abstractmethod
    def per_factor(self, grid: Grid) -> "tuple[Cost | None, ...] | None":
        """One cost per factor where c is their sum (None for Sheets), or None where c does not separate."""

    def terms(self, width: int) -> tuple[Term, ...]:
        """The terms whose sum c is, in the order of the `width` coordinates; none where it is no such sum.

        They bound c between two sets of nodes, which is how Lazy knows what cannot matter.
        """
        return ()


def _curved(grid: Grid) -> list[Factor]:
    return [f for f in grid.factors if not isinstance(f, Sheets)]


@dataclass(frozen=True)
class SquaredEuclidean(Cost):
    """|x - y|^2 / 2: with epsilon, exp(-c/epsilon) is a Gaussian of variance epsilon per axis."""

    def __call__(self, x: Any, y: Any) -> Any:
        """Half the squared distance."""
        return ((x - y) ** 2).sum(-1) / 2

    def terms(self, width: int) -> tuple[Term, ...]:
        """Half the squared chord."""
        return (Term(width, lambda s: s / 2, unit=False),)

    def per_factor(self, grid: Grid) -> "tuple[Cost | None, ...] | None":
        """The same cost on every line.

        Raises:
            KernelError: on a circle or sphere, where the chord is not the distance.
        """
        for f in grid.factors:
            if isinstance(f, Circle | Sphere):
                raise KernelError(
                    f"received a {type(f).__name__} for SquaredEuclidean, whose chords leave it: use SquaredArc"
                )
        return tuple(None if isinstance(f, Sheets) else self for f in grid.factors)


def _angle(x: Any, y: Any) -> Any:
    """Angle between unit vectors, accurate at 0 and at pi (an arc cosine of the product is not)."""
    if isinstance(x, torch.Tensor):
        return 2 * torch.atan2(((x - y) ** 2).sum(-1).sqrt(), ((x + y) ** 2).sum(-1).sqrt())
    return 2 * ((x - y) ** 2).sum(-1).sqrt().atan2(((x + y) ** 2).sum(-1).sqrt())


def _angle_of(s: torch.Tensor) -> torch.Tensor:
    """Angle between unit vectors with |x - y|^2 = s, accurate at both ends again: |x + y|^2 = 4 - s."""
    return 2 * torch.atan2(s.sqrt(), (4 - s).clamp(min=0).sqrt())


def _one_round_factor(cost: Cost, grid: Grid) -> "tuple[Cost | None, ...] | None":
    curved = _curved(grid)
    if len(curved) != 1 or not isinstance(curved[0], Circle | Sphere):
        raise KernelError(
            f"received {grid!r} for {type(cost).__name__}, need one Circle or Sphere, with or without Sheets"
        )
    if isinstance(curved[0], Sphere):
        return None  # a great-circle distance does not separate: Lazy, which also spares the (n, n) tables
    return tuple(None if isinstance(f, Sheets) else cost for f in grid.factors)


@dataclass(frozen=True)
class SquaredArc(Cost):
    """Omega^2 / 2 on unit vectors, Omega the angle between them."""

    def __call__(self, x: Any, y: Any) -> Any:
        """Half the squared angle."""
        return _angle(x, y) ** 2 / 2

    def terms(self, width: int) -> tuple[Term, ...]:
        """Half the squared angle of a chord."""
        return (Term(width, lambda s: _angle_of(s) ** 2 / 2, unit=True),)

    def per_factor(self, grid: Grid) -> "tuple[Cost | None, ...] | None":
        """Itself on a circle; None on a sphere."""
        return _one_round_factor(self, grid)


_SMALL = 0.2  # below it, seven terms of log(1 + t) = 2 atanh(t / (2 + t)) reach 2e-16
_FLOOR = 1e-16  # cos^2 there: beyond the cut angle the cost is 36.8, which is infinite for every epsilon < 1


@dataclass(frozen=True)
class HellingerKantorovich(Cost):
    """-2 log cos(min(speed * Omega, pi/2)) on unit vectors: transport or growth, whichever is cheaper.

    The cone over a sphere of angles `speed * Omega`. mathematics.md 1, P5: speed = 1/sqrt(2) for the balanced
    projection, whose radius moves sqrt(2) times as fast as its angle; speed = 1 on S^d for any start.
    Written as log(1 + tan^2), with a series where tan^2 is small: float32 keeps its digits near the diagonal, and both
    dtypes theirs near the cut, where 1 - sin^2 cancels.
    Beyond the cut angle the value is 36.8 rather than infinity, so that no kernel sees inf - inf.
    """

    speed: float = 1 / math.sqrt(2)

    @property
    def curvature(self) -> float:
        """2 speed^2: 1 for the balanced projection, 2 on S^d."""
        return 2 * self.speed**2

    def __call__(self, x: Any, y: Any) -> Any:
        """The cost of carrying unit mass from x to y on the cone."""
        return self._at(_angle(x, y))

    def _at(self, angle: Any) -> Any:
        x = (angle * self.speed).clamp(0, math.pi / 2)
        t = (x.sin() / x.cos().clamp(math.sqrt(_FLOOR), 1)) ** 2
        small = t.clamp(0, _SMALL)
        u = small / (2 + small)
        u2, series = u**2, 1 / 13
        for k in (11, 9, 7, 5, 3, 1):
            series = u2 * series + 1 / k
        return 2 * u * series + (1 + (t - small) / (1 + small)).log()

    def terms(self, width: int) -> tuple[Term, ...]:
        """The cost at the angle of a chord."""
        return (Term(width, lambda s: self._at(_angle_of(s)), unit=True),)

    def per_factor(self, grid: Grid) -> "tuple[Cost | None, ...] | None":
        """Itself on a circle; None on a sphere."""
        return _one_round_factor(self, grid)


@dataclass(frozen=True)
class Cone(Cost):
    """D^2 / 2 on (unit vector, radius r >= 0), for the metric 2 dr^2 + r^2 dOmega^2 of balanced neurons |w| = |a| = r.

    D is the distance on the cone of radii sqrt(2) r and angles phi = Omega / sqrt(2) (mathematics.md 1, P4):
    D^2 / 2 = r1^2 + r2^2 - 2 r1 r2 cos phi. No path through the apex is ever shorter, since phi <= pi / sqrt(2) < pi.
    Written as (r1 - r2)^2 + 4 r1 r2 sin^2(phi / 2), which keeps its digits near the diagonal.
    """

    def __call__(self, x: Any, y: Any) -> Any:
        """Half the squared distance."""
        lead, d = (slice(None),) * (len(x.shape) - 1), x.shape[-1] - 1  # KeOps takes no Ellipsis
        way, r = (*lead, slice(0, d)), (*lead, slice(d, d + 1))
        turn = self._turn(_angle(x[way], y[way]))
        return ((x[r] - y[r]) ** 2).sum(-1) + (x[r] * y[r]).sum(-1) * turn

    def _turn(self, angle: Any) -> Any:
        """The cost of an angle at radius 1."""
        return 4 * (angle * math.sqrt(1 / 8)).sin() ** 2

    def terms(self, width: int) -> tuple[Term, ...]:
        """The angle's, times both radii, and the radius's own."""
        turn = Term(width - 1, lambda s: self._turn(_angle_of(s)), unit=True, scaled=True)
        return (turn, Term(1, lambda s: s, unit=False))

    def per_factor(self, grid: Grid) -> "tuple[Cost | None, ...] | None":
        """None: it does not separate.

        Raises:
            KernelError: unless the grid is a Circle or a Sphere times a Line of radii, with or without Sheets.
        """
        curved = _curved(grid)
        cone = len(curved) == 2 and isinstance(curved[0], Circle | Sphere) and isinstance(curved[1], Line)
        if not (cone and bool((curved[1].nodes >= 0).all())):
            raise KernelError(f"received {grid!r} for Cone, need a Circle or a Sphere times a Line of radii r >= 0")
        return None


@dataclass(frozen=True)
class PerFactor(Cost):
    """A sum over factors, each with a cost of its own (None on Sheets)."""

    costs: tuple[Cost | None, ...]
    widths: tuple[int | None, ...]  # coordinates of the factors that have a cost; None once, for what the others leave

    def _widths(self, width: int) -> list[int]:
        left = width - sum(w for w in self.widths if w is not None)
        return [left if w is None else w for w in self.widths]

    def __call__(self, x: Any, y: Any) -> Any:
        """The sum of the factors' costs, on coordinates joined along the last axis."""
        total: Any = 0
        start = 0
        lead = (slice(None),) * (len(x.shape) - 1)  # KeOps takes no Ellipsis
        widths = self._widths(x.shape[-1])
        for cost, width in zip((c for c in self.costs if c is not None), widths, strict=True):
            part = (*lead, slice(start, start + width))
            total = total + cost(x[part], y[part])
            start += width
        return total

    def terms(self, width: int) -> tuple[Term, ...]:
        """Those of the factors; none if one factor has none."""
        costs = (c for c in self.costs if c is not None)
        parts = [c.terms(w) for c, w in zip(costs, self._widths(width), strict=True)]
        return tuple(term for part in parts for term in part) if all(parts) else ()

    def per_factor(self, grid: Grid) -> "tuple[Cost | None, ...] | None":
        """The costs as given; None if one of them lives on a sphere."""
        if len(self.costs) != len(grid.factors):
            raise KernelError(f"received {len(self.costs)} costs for {grid!r}, need one per factor")
        return None if any(isinstance(f, Sphere) for f in grid.factors) else self.costs


def geodesic(grid: Grid) -> Cost:
    """The grid's own cost: half the squared geodesic distance, summed over its factors."""
    curved = _curved(grid)
    if all(isinstance(f, Line) for f in curved):
        return SquaredEuclidean()
    if len(curved) == 1:
        return SquaredArc()
    costs = tuple(
        None if isinstance(f, Sheets) else SquaredEuclidean() if isinstance(f, Line) else SquaredArc()
        for f in grid.factors
    )
    return PerFactor(costs, tuple(f.nodes.shape[1] for f in curved))
