"""Convex data losses g on R^n, with what the dual of a JKO step needs: gradient, conjugate and its derivatives."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import RiskError


class Quadratic(NamedTuple):
    """least + scale |u - centre|^2."""

    scale: float
    centre: Float[Tensor, " n"]
    least: float


class Loss(ABC):
    """g(u) = sum_j l(u_j, y_j), convex and smooth; g* is its conjugate in u, finite on `dual_box`.

    Attributes:
        steep: whether the slope of g* grows without bound towards the walls of the box, so that no z lies on them.
    """

    steep: bool = True

    @abstractmethod
    def check(self, y: Float[Tensor, " n"]) -> None:
        """Raise RiskError for labels the loss cannot take."""

    @abstractmethod
    def value(self, u: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """g(u)."""

    @abstractmethod
    def gradient(self, u: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """grad g(u): the dual point z that belongs to the outputs u."""

    @abstractmethod
    def conjugate(self, z: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """g*(z)."""

    @abstractmethod
    def conjugate_gradient(self, z: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """grad g*(z): the outputs u whose gradient is z; on a wall that is not steep the nearest of them."""

    @abstractmethod
    def conjugate_curvature(self, z: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The diagonal of Hess g*(z)."""

    @abstractmethod
    def dual_box(self, y: Float[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """The lowest and highest z at which g* is finite."""

    def gap(self, u: Float[Tensor, " n"], z: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """g(u) + g*(z) - <z, u>: not negative, and 0 where z = grad g(u)."""
        return self.value(u, y) + self.conjugate(z, y) - z @ u

    def quadratic(self, y: Float[Tensor, " n"]) -> Quadratic | None:
        """g as a quadratic, if it is one: its steps are solved faster."""
        return None


@dataclass(frozen=True)
class Squared(Loss):
    """scale * sum_j (u_j - y_j)^2. The seed's loss is scale = 1; the mean squared error is scale = 1/n.

    g*(z) = |z|^2 / (4 scale) + z.y.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise RiskError(f"received a scale of {self.scale}, need a positive finite number: 1.0 is the seed's sum")

    def check(self, y: Tensor) -> None:
        """Any finite label will do."""

    def value(self, u: Tensor, y: Tensor) -> Tensor:
        """See Loss."""
        r = u - y
        return self.scale * r.dot(r)

    def gradient(self, u: Tensor, y: Tensor) -> Tensor:
        """See Loss."""
        return 2 * self.scale * (u - y)

    def conjugate(self, z: Tensor, y: Tensor) -> Tensor:
        """See Loss."""
        return z.dot(y.add(z, alpha=1 / (4 * self.scale)))

    def conjugate_gradient(self, z: Tensor, y: Tensor) -> Tensor:
        """See Loss."""
        return y.add(z, alpha=1 / (2 * self.scale))

    def conjugate_curvature(self, z: Tensor, y: Tensor) -> Tensor:
        """See Loss."""
        return torch.full_like(z, 1 / (2 * self.scale))

    def dual_box(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """All of R^n."""
        return torch.full_like(y, -math.inf), torch.full_like(y, math.inf)

    def gap(self, u: Tensor, z: Tensor, y: Tensor) -> Tensor:
        """See Loss: scale |u - grad g*(z)|^2, without a difference of large numbers."""
        r = u - self.conjugate_gradient(z, y)
        return self.scale * r.dot(r)

    def quadratic(self, y: Tensor) -> Quadratic:
        """See Loss."""
        return Quadratic(self.scale, y, 0.0)


@dataclass(frozen=True)
class Logistic(Loss):
    """scale * sum_j log(1 + exp(-y_j u_j)) for labels -1 and +1.

    With z = -scale y t, 0 <= t <= 1: g*(z) = scale * sum_j (t log t + (1 - t) log(1 - t)).
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise RiskError(f"received a scale of {self.scale}, need a positive finite number")

    def check(self, y: Tensor) -> None:
        """Labels are -1 and +1."""
        if not bool((y.abs() == 1).all()):
            raise RiskError(
                f"received labels from {float(y.min()):g} to {float(y.max()):g}, need -1 and +1 for Logistic: map them"
            )

    def value(self, u: Tensor, y: Tensor) -> Tensor:
        """See Loss."""
        return -self.scale * torch.nn.functional.logsigmoid(y * u).sum()

    def gradient(self, u: Tensor, y: Tensor) -> Tensor:
        """See Loss."""
        return -self.scale * y * torch.sigmoid(-y * u)

    def _share(self, z: Tensor, y: Tensor) -> Tensor:
        return -z * y / self.scale

    def conjugate(self, z: Tensor, y: Tensor) -> Tensor:
        """See Loss."""
        t = self._share(z, y)
        return self.scale * (torch.xlogy(t, t) + torch.xlogy(1 - t, 1 - t)).sum()

    def conjugate_gradient(self, z: Tensor, y: Tensor) -> Tensor:
        """See Loss."""
        t = self._share(z, y)
        return -y * (t.log() - (-t).log1p())

    def conjugate_curvature(self, z: Tensor, y: Tensor) -> Tensor:
        """See Loss."""
        t = self._share(z, y)
        return 1 / (self.scale * t * (1 - t))

    def dual_box(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Between 0 and -scale y."""
        end = -self.scale * y
        return end.clamp(max=0.0), end.clamp(min=0.0)


@dataclass(frozen=True)
class Huber(Loss):
    """scale * sum_j r_j^2 for |r_j| <= delta and 2 delta |r_j| - delta^2 beyond, with r = u - y.

    Squared(scale) as delta -> inf; an outlier, |r_j| > delta, pulls with the same force 2 scale delta from anywhere.
    g*(z) = |z|^2 / (4 scale) + z.y on |z_j| <= 2 scale delta, and the z of an outlier lies on that wall.
    """

    delta: float
    scale: float = 1.0

    steep = False

    def __post_init__(self) -> None:
        for name, value in (("delta", self.delta), ("scale", self.scale)):
            if not (math.isfinite(value) and value > 0):
                raise RiskError(f"received a {name} of {value}, need a positive finite number")

    def check(self, y: Tensor) -> None:
        """Any finite label will do."""

    def value(self, u: Tensor, y: Tensor) -> Tensor:
        """See Loss."""
        r = u - y
        near = r.clamp(-self.delta, self.delta)
        return self.scale * (near * (2 * r - near)).sum()

    def gradient(self, u: Tensor, y: Tensor) -> Tensor:
        """See Loss."""
        return 2 * self.scale * (u - y).clamp(-self.delta, self.delta)

    def conjugate(self, z: Tensor, y: Tensor) -> Tensor:
        """See Loss."""
        outside = bool((z.abs() > 2 * self.scale * self.delta).any())
        return (z**2).sum() / (4 * self.scale) + (z * y).sum() + (math.inf if outside else 0.0)

    def conjugate_gradient(self, z: Tensor, y: Tensor) -> Tensor:
        """See Loss."""
        return y.add(z, alpha=1 / (2 * self.scale))

    def conjugate_curvature(self, z: Tensor, y: Tensor) -> Tensor:
        """See Loss."""
        return torch.full_like(z, 1 / (2 * self.scale))

    def dual_box(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """As far as an outlier pulls, either way."""
        wall = torch.full_like(y, 2 * self.scale * self.delta)
        return -wall, wall


@dataclass(frozen=True, eq=False)
class Averaged(Loss):
    """g(u)/2 + <z, u>/2: the loss whose gradient is the mean of grad g(u) and a fixed dual point z.

    A second-order step's (mathematics.md 3). Where z = grad g(v) the two agree at v, so that a dual point that is warm
    for g is warm for this. g*(2 zeta - z)/2, on the box half way from g's to z.

    Args:
        loss: g.
        z: (n,) the fixed dual point, in the dual box of g.
    """

    loss: Loss
    z: Float[Tensor, " n"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "steep", self.loss.steep)

    def check(self, y: Tensor) -> None:
        """Labels that g takes."""
        self.loss.check(y)

    def _own(self, zeta: Tensor, y: Tensor) -> Tensor:
        """The dual point of g that averages to zeta; from a wall of the box on g's own, which rounding would miss."""
        z = self.z.to(zeta)
        own = 2 * zeta - z
        walled = own.clamp(*self.loss.dual_box(y))
        rounding = 4 * torch.finfo(own.dtype).eps * (zeta.abs() + z.abs())
        return torch.where((own - walled).abs() <= rounding, walled, own)

    def value(self, u: Tensor, y: Tensor) -> Tensor:
        """See Loss."""
        return (self.loss.value(u, y) + (self.z.to(u) * u).sum()) / 2

    def gradient(self, u: Tensor, y: Tensor) -> Tensor:
        """See Loss."""
        return (self.loss.gradient(u, y) + self.z.to(u)) / 2

    def conjugate(self, z: Tensor, y: Tensor) -> Tensor:
        """See Loss."""
        return self.loss.conjugate(self._own(z, y), y) / 2

    def conjugate_gradient(self, z: Tensor, y: Tensor) -> Tensor:
        """See Loss."""
        return self.loss.conjugate_gradient(self._own(z, y), y)

    def conjugate_curvature(self, z: Tensor, y: Tensor) -> Tensor:
        """See Loss."""
        return 2 * self.loss.conjugate_curvature(self._own(z, y), y)

    def dual_box(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """See Loss."""
        low, high = self.loss.dual_box(y)
        return (low + self.z.to(low)) / 2, (high + self.z.to(high)) / 2

    def gap(self, u: Tensor, z: Tensor, y: Tensor) -> Tensor:
        """See Loss."""
        return self.loss.gap(u, self._own(z, y), y) / 2

    def quadratic(self, y: Tensor) -> Quadratic | None:
        """See Loss."""
        found = self.loss.quadratic(y)
        if found is None:
            return None
        shift = self.z.to(y) / (2 * found.scale)
        least = (found.least + found.scale * float(shift @ (2 * found.centre - shift))) / 2
        return Quadratic(found.scale / 2, found.centre - shift, least)
