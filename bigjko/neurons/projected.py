"""P5: directions alone, with mass that grows: no radius, so no box and no scale."""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bigjko_kernels import (
    Circle,
    Cost,
    Factor,
    Features,
    GibbsKernel,
    Grid,
    GridError,
    HellingerKantorovich,
    Ridge,
    Sheets,
    Sphere,
    SquaredArc,
    Stream,
    gibbs,
)

from ..errors import MeasureError
from ..measure import GridMeasure, ParticleMeasure, heavy_nodes, spread
from ..transport import Transport, WassersteinFisherRao
from .base import Neurons
from .directions import check_balance, network_for, shared

Clouds = dict[str, tuple[Tensor, Tensor]]


class Projected(Neurons):
    """Where neurons point, and m = the integral of |theta|^2 / 2 over those that point there.

    relu(w . x) a is 2-homogeneous, so F depends on m only, and so does its flow (mathematics.md 1, P5). Mass grows and
    shrinks, and no radius is left. theta = sqrt(2) r n with r^2 = m has |dtheta|^2 / 2 = dr^2 + r^2 |dn|^2: that is the
    Hellinger-Kantorovich metric without a factor, and tau is physical time.

    Balanced: Theta = {+, -} x S^{d-1}, signs of a and directions of w, for neurons with |w| = |a|, which stay so. Then
    m = |w| |a|, phi = s relu(direction . x), and angles count 1 / sqrt 2. Grid dimension d - 1, for d = 2, 3 and 4.
    Not balanced: Theta = S^d of n = (w, a) / |(w, a)|, phi = 2 a relu(w . x) there. With Psi = phi.z / 2 the flow is
    dm/dt = div(m grad Psi) - 4 Psi m, exact for any start. Grid dimension d, for d = 1, 2 and 3.
    What is lost in both: how m is split into masses and |theta|^2, which no output sees.

    Args:
        balanced: whether every neuron of the start has |w| = |a|.
    """

    name = "projected"
    conserves_mass = False

    def __init__(self, balanced: bool = True) -> None:
        self.balanced = balanced
        self._theta: _Theta = _Signed() if balanced else _Whole()

    @property
    def cost(self) -> Cost:
        """-2 log cos(min(speed Omega, pi / 2)): speed 1 / sqrt 2 for balanced neurons, 1 without."""
        return HellingerKantorovich(self._theta.speed)

    def grid(
        self,
        nodes: int,
        dim: int,
        *,
        radius: float = 3.0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        kinks: Float[Tensor, "n d"] | None = None,
    ) -> Grid:
        """`nodes` directions (on each of two sheets if balanced); there is no radius.

        Args:
            nodes, dim, radius, dtype, device: see Neurons.
            kinks: data X in R^2 whose kinks w . x_j = 0, where balanced mass ends, are to lie on nodes (mathematics.md
                3, iii).
        """
        ambient = dim + self._theta.raised
        if kinks is not None:
            if ambient != 2 or not self.balanced:
                raise GridError(
                    f"received kinks for {self!r} and data in R^{dim}, need balanced neurons and R^2: on a sphere "
                    "kinks are curves, along which there are no nodes"
                )
            X = kinks[kinks.norm(dim=1) > 0].double()
            normal = torch.atan2(X[:, 0], -X[:, 1])  # a quarter turn on
            both = torch.cat([normal, normal + math.pi])
            sphere: Factor = Circle.through(nodes, both, dtype=dtype, device=device)
        elif ambient == 2:
            sphere = Circle.uniform(nodes, dtype=dtype, device=device)
        elif ambient in (3, 4):
            sphere = Sphere.fibonacci(nodes, dim=ambient - 1, dtype=dtype, device=device)
        else:
            known = [f"R^{k - self._theta.raised}" for k in (2, 3, 4)]
            raise GridError(
                f"received data in R^{dim}, need {', '.join(known[:2])} or {known[2]} for {self!r}: reduce it, or use "
                "particles"
            )
        return self._theta.grid(sphere)

    def check(self, grid: Grid, dim: int) -> None:
        """Sheets +1 and -1 if balanced, times a circle or sphere of unit vectors in R^d, R^{d+1} without."""
        sphere = grid.factors[-1]
        round_ = isinstance(sphere, Circle | Sphere) and sphere.nodes.shape[1] == dim + self._theta.raised
        if not round_ or not grid.matches(self._theta.grid(sphere)):
            raise GridError(f"received {grid!r} for data in R^{dim}, need {self!r}.grid(nodes, dim={dim})")

    def transport(self, kernel: GibbsKernel) -> Transport:
        """Mass grows."""
        return WassersteinFisherRao(kernel)

    def on_grid(self, grid: Grid, X: Float[Tensor, "n d"]) -> Features:
        """See Neurons: phi and the gram per unit of m, growth included, are those of a neuron with |theta|^2 = 2."""
        nodes = grid.factors[-1].nodes
        return self._theta.ridge(grid, self.stream(nodes[:, : X.shape[1]].contiguous(), X))

    def squared_norm_on_grid(self, grid: Grid) -> Float[Tensor, "*grid"]:
        """See Neurons: 2, by the definition of m."""
        return torch.full(grid.shape, 2.0, dtype=grid.dtype, device=grid.device)

    def measure(
        self,
        grid: Grid,
        W: Float[Tensor, "m d"],
        a: Float[Tensor, " m"],
        *,
        masses: Float[Tensor, " m"] | None = None,
        width: float = 3.0,
    ) -> GridMeasure:
        """See Neurons. Directions are blurred by an angular Gaussian of `width` nodes; zero neurons count for nothing.

        Raises:
            MeasureError: for a network of zero neurons only, or where balance is needed one without.
        """
        network = network_for(grid, W, a, masses, width)
        self.check(grid, W.shape[1])
        if self.balanced:
            check_balance(network, "Projected", "Projected(balanced=False)")
        nodes = grid.factors[-1].nodes
        sheets = [shared(nodes, points, weights)[:, 0] for points, weights in self.clouds(network).values()]
        held = torch.stack(sheets).reshape(grid.shape)
        if not bool((held > 0).any()):
            raise MeasureError("received a network whose neurons are all zero, need one with a direction")
        std = width * grid.spacing
        blur = gibbs(grid, std * std, SquaredArc())
        return GridMeasure(grid, spread(blur, held.log().to(grid.dtype)))

    def particles(self, measure: GridMeasure, *, drop: float = 1e-12) -> ParticleMeasure:
        """See Neurons: all with |theta|^2 / 2 = the total of m, in proportion to the nodes' share of it."""
        points, masses = heavy_nodes(measure, drop)
        total = masses.sum(dtype=torch.float64)
        positions = self._theta.neurons(points) * total.sqrt().to(points.dtype)
        return ParticleMeasure(positions, (masses.double() / total).to(masses.dtype))

    def clouds(self, measure: GridMeasure | ParticleMeasure) -> Clouds:
        """Unit vectors and m: sheets + and - in R^d if balanced, one in R^{d+1} without."""
        if isinstance(measure, GridMeasure):
            nodes = measure.grid.factors[-1].nodes
            return {
                name: (nodes, row)
                for name, row in zip(self._theta.sheets, measure.masses.view(-1, len(nodes)), strict=True)
            }
        return self._theta.clouds(measure)

    def uniform(self, grid: Grid, *, radius: float) -> GridMeasure:
        """m = radius^2 in all, alike in every direction.

        Balanced: |w| = |a| = radius, half of each sign. Without: a centred Gaussian of w and a, whose std is
        radius sqrt(2 / (d + 1)).
        """
        if not (math.isfinite(radius) and radius > 0):
            raise MeasureError(f"received a radius of {radius}, need a positive finite number")
        return GridMeasure.uniform(grid, mass=radius * radius)  # inf where radius**2 raises

    def to_dict(self) -> dict[str, Any]:
        """See Neurons."""
        return {"name": self.name} if self.balanced else {"name": self.name, "balanced": False}

    def __repr__(self) -> str:
        return "Projected()" if self.balanced else "Projected(balanced=False)"


class _Theta(ABC):
    """What the nodes of Projected stand for, and how neurons find theirs.

    Attributes:
        speed: of the cone's angle over the sphere's.
        raised: by how much directions have more coordinates than data.
        sheets: names of the rows of a measure.
    """

    speed: float
    raised: int
    sheets: tuple[str, ...]

    @abstractmethod
    def grid(self, sphere: Factor) -> Grid:
        """Theta over these directions."""

    @abstractmethod
    def ridge(self, grid: Grid, stream: Stream) -> Ridge:
        """Features of neurons with |theta|^2 = 2."""

    @abstractmethod
    def neurons(self, points: Float[Tensor, "m k"]) -> Float[Tensor, "m l"]:
        """(w, a) with |theta|^2 = 2 at coordinates of the grid."""

    @abstractmethod
    def clouds(self, particles: ParticleMeasure) -> Clouds:
        """Directions and m of particles, sheet by sheet."""


class _Signed(_Theta):
    """{+, -} x S^{d-1}: theta = r (direction, s); angles change |theta| by r dOmega, radii by sqrt(2) dr."""

    speed = 1 / math.sqrt(2)
    raised = 0
    sheets = ("+", "-")

    def grid(self, sphere: Factor) -> Grid:
        signs = Sheets.of([1.0, -1.0], dtype=sphere.nodes.dtype, device=sphere.nodes.device)
        return Grid((signs, sphere))

    def ridge(self, grid: Grid, stream: Stream) -> Ridge:
        # alpha = beta = 1, since |G|^2 = |tangential gradient|^2 + S^2 on unit directions
        signs = grid.along(0, grid.factors[0].nodes[:, 0])
        one = torch.ones_like(signs[:1])
        return Ridge(stream, grid.shape, (1,), signs, one, one)

    def neurons(self, points: Tensor) -> Tensor:
        return torch.cat([points[:, 1:], points[:, :1]], dim=1)

    def clouds(self, particles: ParticleMeasure) -> Clouds:
        norm = particles.w.norm(dim=1)
        found = {}
        for name, sign in zip(self.sheets, (1.0, -1.0), strict=True):
            kept = (sign * particles.a > 0) & (norm > 0)
            weight = (particles.masses * norm * particles.a.abs())[kept]
            found[name] = (particles.w[kept] / norm[kept][:, None], weight)
        return found


class _Whole(_Theta):
    """S^d: theta = sqrt(2) r n."""

    speed = 1.0
    raised = 1
    sheets = ("all",)

    def grid(self, sphere: Factor) -> Grid:
        return Grid((sphere,))

    def ridge(self, grid: Grid, stream: Stream) -> Ridge:
        a = grid.factors[0].nodes[:, -1]
        return Ridge(stream, grid.shape, (0,), 2 * a, 2 * a**2, torch.full_like(a[:1], 2.0))

    def neurons(self, points: Tensor) -> Tensor:
        return math.sqrt(2) * points

    def clouds(self, particles: ParticleMeasure) -> Clouds:
        norm = particles.positions.norm(dim=1)
        kept = norm > 0
        weight = (particles.masses * norm**2 / 2)[kept]
        return {"all": (particles.positions[kept] / norm[kept][:, None], weight)}
