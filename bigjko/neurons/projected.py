"""P5: directions and signs alone, the balanced flow with two dimensions less."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from bigjko_kernels import (
    Circle,
    Cost,
    Features,
    GibbsKernel,
    Grid,
    GridError,
    HellingerKantorovich,
    Ridge,
    Sheets,
    Sphere,
    SquaredArc,
    gibbs,
)

from ..errors import MeasureError
from ..measure import GridMeasure, ParticleMeasure, heavy_nodes, spread
from ..transport import Transport, WassersteinFisherRao
from .base import Neurons

_NEURONS = 256  # deposited at a time: the products with all directions are the only temporary
_UNBALANCED = 1e-6  # relative difference of |w| and |a| above which a network is not balanced


class Projected(Neurons):
    """Theta = {+, -} x S^{d-1}: nu_s(direction) = integral of r^2 over the neurons of sign s, r = |w| = |a|.

    Since relu(w . x) a is 2-homogeneous, the balanced flow closes on nu: it is the Wasserstein-Fisher-Rao flow of F
    with phi = s relu(direction . x) (mathematics.md 1, P5). Mass grows and shrinks; no radius, so no box and no scale.
    Needs a balanced start, |w| = |a| for every neuron. Grid dimension d - 1; d = 2 (circle) and d = 3 (sphere).
    """

    name = "projected"

    @property
    def cost(self) -> Cost:
        """-2 log cos(min(Omega / sqrt 2, pi / 2))."""
        return HellingerKantorovich()

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
        """Two sheets of `nodes` directions; there is no radius.

        Args:
            nodes, dim, radius, dtype, device: see Neurons.
            kinks: data X in R^2 whose kinks w . x_j = 0, where mass ends, are to lie on nodes (mathematics.md 3, iii).
        """
        signs = Sheets.of([1.0, -1.0], dtype=dtype, device=device)
        if kinks is not None:
            if dim != 2:
                raise GridError(f"received kinks for data in R^{dim}, need R^2: a sphere has no nodes along its kinks")
            X = kinks[kinks.norm(dim=1) > 0].double()
            normal = torch.atan2(X[:, 0], -X[:, 1])  # a quarter turn on
            circle = Circle.through(nodes, torch.cat([normal, normal + math.pi]), dtype=dtype, device=device)
            return Grid((signs, circle))
        if dim == 2:
            return Grid((signs, Circle.uniform(nodes, dtype=dtype, device=device)))
        if dim == 3:
            return Grid((signs, Sphere.fibonacci(nodes, dtype=dtype, device=device)))
        raise GridError(f"received data in R^{dim}, need R^2 or R^3 for Projected: reduce it, or use particles")

    def check(self, grid: Grid, dim: int) -> None:
        """Sheets +1 and -1 times a circle (d = 2) or a sphere (d = 3)."""
        kinds = {2: Circle, 3: Sphere}
        ok = len(grid.factors) == 2 and isinstance(grid.factors[0], Sheets) and dim in kinds
        if not (ok and isinstance(grid.factors[1], kinds[dim]) and grid.factors[0].nodes[:, 0].tolist() == [1.0, -1.0]):
            raise GridError(f"received {grid!r} for data in R^{dim}, need Projected().grid(nodes, dim={dim})")

    def transport(self, kernel: GibbsKernel) -> Transport:
        """Mass grows."""
        return WassersteinFisherRao(kernel)

    def on_grid(self, grid: Grid, X: Float[Tensor, "n d"]) -> Features:
        """See Neurons: alpha = beta = 1, since |G|^2 = |tangential gradient|^2 + S^2 on unit directions."""
        signs = grid.along(0, grid.factors[0].nodes[:, 0])
        one = torch.ones_like(signs[:1])
        return Ridge(self.stream(grid.factors[1].nodes, X), grid.shape, (1,), signs, one, one)

    def squared_norm_on_grid(self, grid: Grid) -> Float[Tensor, "*grid"]:
        """See Neurons: r^2 of mass is r^2 in |w|^2 and r^2 in a^2."""
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
        """See Neurons. Directions are blurred by an angular Gaussian of `width` nodes.

        Raises:
            MeasureError: for a network that is not balanced, or a neuron of zero weight.
        """
        network = ParticleMeasure.from_network(W, a)
        self.check(grid, W.shape[1])
        if W.dtype != grid.dtype or W.device != grid.device:
            raise GridError(f"received W in {W.dtype} on {W.device}, need the grid's {grid.dtype} on {grid.device}")
        if not (width > 0 and math.isfinite(width)):
            raise GridError(f"received a width of {width} nodes, need a positive finite number: 3 by default")
        sheets = self.clouds(network if masses is None else ParticleMeasure(network.positions, masses))
        norm = W.norm(dim=1)
        uneven = float(((norm - a.abs()).abs() / torch.maximum(norm, a.abs())).max())
        if not uneven <= _UNBALANCED:
            raise MeasureError(
                f"received neurons with |w| and |a| up to {uneven:.2g} apart (relative), need |w| = |a| for Projected: "
                "balance the start, or use Lifted"
            )
        nodes = grid.factors[1].nodes.double()
        held = torch.zeros(grid.shape, dtype=torch.float64, device=grid.device)
        for row, (points, weight) in zip(held, sheets.values(), strict=True):
            for few, mass in zip(points.split(_NEURONS), weight.split(_NEURONS), strict=True):
                if not few.shape[0]:
                    continue
                # Each neuron is shared by its two nearest nodes in proportion to nearness, then blurred.
                # In float64, by chords: an arc cosine of products loses half the digits, and in float32 the nodes.
                near = (few.double() @ nodes.T).topk(2, dim=1).indices
                angle = (2 * SquaredArc()(few.double()[:, None], nodes[near])).sqrt()
                share = (angle.flip(1) / angle.sum(1, keepdim=True)) * mass.double()[:, None]
                row.index_add_(0, near.reshape(-1), share.reshape(-1))
        blur = gibbs(grid, (width * grid.spacing) ** 2, SquaredArc())
        return GridMeasure(grid, spread(blur, held.log().to(grid.dtype)))

    def particles(self, measure: GridMeasure, *, drop: float = 1e-12) -> ParticleMeasure:
        """See Neurons: neurons r (direction, s), all with r^2 = the total mass, in proportion to the nodes' masses.

        The split between r^2 and mass is free: phi is 2-homogeneous, and the flow of nu does not see it.
        """
        points, masses = heavy_nodes(measure, drop)
        total = masses.sum(dtype=torch.float64)
        r = total.sqrt().to(points.dtype)
        positions = torch.cat([points[:, 1:], points[:, :1]], dim=1) * r
        return ParticleMeasure(positions, (masses.double() / total).to(masses.dtype))

    def clouds(self, measure: GridMeasure | ParticleMeasure) -> dict[str, tuple[Tensor, Tensor]]:
        """Sheets + and -, unit directions in R^d; a particle has mass times |w| |a|."""
        if isinstance(measure, GridMeasure):
            nodes = measure.grid.factors[1].nodes
            return {name: (nodes, row) for name, row in zip("+-", measure.masses.unbind(0), strict=True)}
        norm = measure.w.norm(dim=1)
        sheets = {}
        for name, sign in (("+", 1.0), ("-", -1.0)):
            kept = (sign * measure.a > 0) & (norm > 0)
            weight = (measure.masses * norm * measure.a.abs())[kept]
            sheets[name] = (measure.w[kept] / norm[kept][:, None], weight)
        return sheets

    def uniform(self, grid: Grid, *, radius: float) -> GridMeasure:
        """Neurons of norm |w| = |a| = radius in every direction, half of each sign: total mass radius^2."""
        if not (math.isfinite(radius) and radius > 0):
            raise MeasureError(f"received a radius of {radius}, need a positive finite number")
        return GridMeasure.uniform(grid, mass=radius**2)
