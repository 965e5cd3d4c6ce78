"""P4: a probability measure on directions and scales, on the cone of balanced neurons or in the seed's flat metric.

Both stand for the same networks. Which metric is put on them decides what their Wasserstein flow is: on the cone it is
gradient descent on (W, a), in the flat product metric it is not, whatever the grid and the step (mathematics.md 1, P4).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from bigjko_kernels import (
    Circle,
    Cone,
    Cost,
    Factor,
    Features,
    GibbsKernel,
    Grid,
    GridError,
    Line,
    PerFactor,
    Ridge,
    Sheets,
    Sphere,
    SquaredArc,
    SquaredEuclidean,
    gibbs,
)

from ..errors import MeasureError
from ..measure import GridMeasure, ParticleMeasure, between, heavy_nodes, spread
from ..transport import Balanced, Transport
from .base import Neurons
from .directions import check_balance, network_for, shared
from .dynamics import UnitDirections

_DIRECTIONS = {2: Circle, 3: Sphere}


def Polar(metric: str = "cone") -> "PolarCone | PolarFlat":
    """P4 with a metric: "cone", whose flow is gradient descent, or "flat", the seed's own, whose flow is not."""
    if metric not in ("cone", "flat"):
        raise GridError(f"received the metric {metric!r}, need one of ['cone', 'flat']")
    return PolarCone() if metric == "cone" else PolarFlat()


class PolarCone(Neurons):
    """Theta = {+, -} x S^{d-1} x (0, R], phi = s r^2 relu(direction . x): neurons r (direction, s), |w| = |a| = r.

    In the metric 2 dr^2 + r^2 dOmega^2, which is dw^2 + da^2 there, the flow equals gradient descent on (W, a) from a
    balanced start. Mass is kept on each sheet, since gradient descent changes no sign of a. Grid dimension d; d = 2
    (circle) and d = 3 (sphere). The cost does not separate: Circulant on a uniform circle, else Lazy.
    A node's neighbours are at most `spacing(grid)` away in that metric, at the rim; R must hold the fastest neuron.
    """

    name = "polar-cone"

    @property
    def cost(self) -> Cost:
        """r1^2 + r2^2 - 2 r1 r2 cos(Omega / sqrt 2)."""
        return Cone()

    def grid(
        self,
        nodes: int,
        dim: int,
        *,
        radius: float = 3.0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Grid:
        """Two sheets of `nodes` directions, and radii up to `radius` as close as directions are at the rim."""
        around = _directions(nodes, dim, "PolarCone").to(dtype=dtype, device=device)
        radii = math.ceil(math.sqrt(2) / around.spacing + 0.5)
        line = Line.radii(radius, radii, dim - 1, dtype=dtype, device=device)
        return Grid((Sheets.of([1.0, -1.0], dtype=dtype, device=device), around, line))

    def check(self, grid: Grid, dim: int) -> None:
        """Sheets +1 and -1 times a circle (d = 2) or a sphere (d = 3) times radii r >= 0."""
        kinds = [type(f) for f in grid.factors]
        ok = kinds == [Sheets, _DIRECTIONS.get(dim), Line] and grid.factors[0].nodes[:, 0].tolist() == [1.0, -1.0]
        if not (ok and bool((grid.factors[2].nodes >= 0).all())):
            raise GridError(f"received {grid!r} for data in R^{dim}, need PolarCone().grid(nodes, dim={dim})")

    def spacing(self, grid: Grid) -> float:
        """The larger of sqrt 2 dr and r dOmega at the rim."""
        self.check(grid, 3 if any(isinstance(f, Sphere) for f in grid.factors) else 2)
        _, around, radii = grid.factors
        return max(math.sqrt(2) * radii.spacing, float(radii.nodes[-1, 0]) * around.spacing)

    def transport(self, kernel: GibbsKernel) -> Transport:
        """Mass is kept."""
        return Balanced(kernel)

    def on_grid(self, grid: Grid, X: Float[Tensor, "n d"]) -> Features:
        """See Neurons: alpha = beta = r^2, since |grad phi|^2 = (d phi / dr)^2 / 2 + |grad_S phi|^2 / r^2."""
        signs, r2 = grid.along(0, grid.factors[0].nodes[:, 0]), grid.along(2, grid.factors[2].nodes[:, 0] ** 2)
        return Ridge(self.stream(grid.factors[1].nodes, X), grid.shape, (1,), signs * r2, r2, r2)

    def squared_norm_on_grid(self, grid: Grid) -> Float[Tensor, "*grid"]:
        """See Neurons: 2 r^2."""
        return grid.along(2, 2 * grid.factors[2].nodes[:, 0] ** 2).expand(grid.shape).contiguous()

    def measure(
        self,
        grid: Grid,
        W: Float[Tensor, "m d"],
        a: Float[Tensor, " m"],
        *,
        masses: Float[Tensor, " m"] | None = None,
        width: float = 3.0,
    ) -> GridMeasure:
        """See Neurons. Every neuron becomes a Gaussian of `width` spacings on the cone; zero neurons are left out.

        Raises:
            MeasureError: for zero neurons only, or a network that is not balanced, whose |w| / |a| would be lost and
                with it its flow.
            GridError: for a neuron beyond the last radius.
        """
        network = network_for(grid, W, a, masses, width)
        self.check(grid, W.shape[1])
        check_balance(network, "PolarCone", "Lifted")
        norm = W.norm(dim=1)
        r = (norm * a.abs()).sqrt()
        held = [_shared(grid, W[kept] / norm[kept, None], r[kept], network.masses[kept]) for kept in (a > 0, a < 0)]
        std = width * self.spacing(grid)
        blur = gibbs(grid, std * std, self.cost)  # inf where std**2 raises
        return GridMeasure(grid, spread(blur, torch.stack(held).log().to(grid.dtype)))

    def particles(self, measure: GridMeasure, *, drop: float = 1e-12) -> ParticleMeasure:
        """See Neurons: a node is r (direction, s), so they are balanced."""
        points, masses = heavy_nodes(measure, drop)
        sign, direction, r = points[:, :1], points[:, 1:-1], points[:, -1:]
        return ParticleMeasure(torch.cat([r * direction, r * sign], dim=1), masses)

    def clouds(self, measure: GridMeasure | ParticleMeasure) -> dict[str, tuple[Tensor, Tensor]]:
        """Sheets + and -, neurons in R^{d+1}: to first order their distances are those of the cone."""
        neurons = self.particles(measure, drop=0.0) if isinstance(measure, GridMeasure) else measure
        kept = {"+": neurons.a > 0, "-": neurons.a < 0}
        return {name: (neurons.positions[of], neurons.masses[of]) for name, of in kept.items()}


class PolarFlat(Neurons):
    """Theta = S^{d-1} x R, phi = s relu(direction . x), s = a |w|, in the flat metric dOmega^2 + ds^2: the seed's P4.

    Mass is kept. The flow is s' = -V, direction' = -s grad_S V: gradient descent of (1/m) sum_i a_i relu(w_i . x) with
    |w_i| = 1 (`dynamics`), and not gradient descent on (W, a); `particles(measure).balanced()` with Free() is that.
    Any network is taken: |w| / |a| is lost, and its output kept. Grid dimension d; d = 2 (circle) and d = 3 (sphere).
    """

    name = "polar-flat"
    dynamics = UnitDirections()

    @property
    def cost(self) -> Cost:
        """Omega^2 / 2 + (s1 - s2)^2 / 2."""
        return PerFactor((SquaredArc(), SquaredEuclidean()), (None, 1))

    def grid(
        self,
        nodes: int,
        dim: int,
        *,
        radius: float = 3.0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Grid:
        """`nodes` directions, and s in [-radius, radius] as close as they are."""
        around = _directions(nodes, dim, "PolarFlat").to(dtype=dtype, device=device)
        if not 0 < 2 * radius / around.spacing < _MOST:
            raise GridError(
                f"received radius = {radius} for {nodes} directions, need a positive one below "
                f"{_MOST * around.spacing / 2:.3g}, or the line has more than {_MOST:.0e} nodes: take a smaller one"
            )
        line = math.ceil(2 * radius / around.spacing) + 1
        return Grid((around, Line.uniform(-radius, radius, line, dtype=dtype, device=device)))

    def check(self, grid: Grid, dim: int) -> None:
        """A circle (d = 2) or a sphere (d = 3) times a line."""
        if [type(f) for f in grid.factors] != [_DIRECTIONS.get(dim), Line]:
            raise GridError(f"received {grid!r} for data in R^{dim}, need PolarFlat().grid(nodes, dim={dim})")

    def transport(self, kernel: GibbsKernel) -> Transport:
        """Mass is kept."""
        return Balanced(kernel)

    def on_grid(self, grid: Grid, X: Float[Tensor, "n d"]) -> Features:
        """See Neurons: alpha = s^2, beta = 1 - s^2, since |grad phi|^2 = S^2 + s^2 (|G|^2 - S^2)."""
        s = grid.along(1, grid.factors[1].nodes[:, 0])
        return Ridge(self.stream(grid.factors[0].nodes, X), grid.shape, (0,), s, s**2, 1 - s**2)

    def squared_norm_on_grid(self, grid: Grid) -> Float[Tensor, "*grid"]:
        """See Neurons: 2 |s|, that of the balanced neuron."""
        return grid.along(1, 2 * grid.factors[1].nodes[:, 0].abs()).expand(grid.shape).contiguous()

    def squared_norm(self, nodes: Grid | ParticleMeasure) -> Float[Tensor, "*nodes"]:
        """That of the balanced neuron of the same output, 2 |w| |a|: neurons are known up to |w| / |a|."""
        if isinstance(nodes, Grid):
            return self.squared_norm_on_grid(nodes)
        norm: Tensor = nodes.w.norm(dim=1)
        return 2 * norm * nodes.a.abs()

    def measure(
        self,
        grid: Grid,
        W: Float[Tensor, "m d"],
        a: Float[Tensor, " m"],
        *,
        masses: Float[Tensor, " m"] | None = None,
        width: float = 3.0,
    ) -> GridMeasure:
        """See Neurons. Every neuron becomes a Gaussian of `width` spacings.

        Raises:
            MeasureError: for a neuron with w = 0, which has no direction.
            GridError: for a neuron beyond the line's ends.
        """
        network = network_for(grid, W, a, masses, width)
        self.check(grid, W.shape[1])
        norm = W.norm(dim=1)
        if not bool((norm > 0).all()):
            raise MeasureError("received a neuron with w = 0, need a direction for each: leave it out")
        held = _shared(grid, W / norm[:, None], a * norm, network.masses)
        std = width * self.spacing(grid)
        blur = gibbs(grid, std * std, self.cost)  # inf where std**2 raises
        return GridMeasure(grid, spread(blur, held.log().to(grid.dtype)))

    def particles(self, measure: GridMeasure, *, drop: float = 1e-12) -> ParticleMeasure:
        """See Neurons: a node is (direction, s); `.balanced()` gives the same network to gradient descent."""
        return ParticleMeasure(*heavy_nodes(measure, drop))

    def clouds(self, measure: GridMeasure | ParticleMeasure) -> dict[str, tuple[Tensor, Tensor]]:
        """One sheet, (direction, s)."""
        if isinstance(measure, GridMeasure):
            return {"all": heavy_nodes(measure, 0.0)}
        norm = measure.w.norm(dim=1, keepdim=True)
        direction = torch.where(norm > 0, measure.w / norm, 0.0)
        return {"all": (torch.cat([direction, measure.a[:, None] * norm], dim=1), measure.masses)}


_MOST = 1e7  # nodes of a line that are allocated to learn what a grid would take


def _directions(nodes: int, dim: int, way: str) -> Factor:
    if dim not in _DIRECTIONS:
        raise GridError(f"received data in R^{dim}, need R^2 or R^3 for {way}: reduce it, or use particles")
    return Circle.uniform(nodes) if dim == 2 else Sphere.fibonacci(nodes)


def _shared(grid: Grid, directions: Tensor, x: Tensor, masses: Tensor) -> Tensor:
    """Masses on the last two factors of a grid, each shared by two directions and two nodes of the line around it."""
    around, line = grid.factors[-2:]
    left, right, share = between(line, x, len(grid.factors) - 1)
    columns, shares = torch.stack([left, right], dim=1), torch.stack([1 - share, share], dim=1)
    return shared(around.nodes, directions, masses, columns, shares, line.size)
