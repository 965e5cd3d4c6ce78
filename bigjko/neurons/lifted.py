"""P1: a probability measure on (w, a), the way of Chizat and Bach."""

import torch
from jaxtyping import Float
from torch import Tensor

from bigjko_kernels import Cost, Features, GibbsKernel, Grid, GridError, Line, Ridge, SquaredEuclidean

from ..measure import GridMeasure, ParticleMeasure, heavy_nodes
from ..transport import Balanced, Transport
from .base import Neurons


class Lifted(Neurons):
    """Theta = R^d x R, phi = relu(w . x) a; mass is kept.

    The Wasserstein flow equals gradient descent on (W, a), always. Grid dimension d + 1, so d <= 2 in practice; the
    box must hold the fastest neuron (mathematics.md 1). Reference: Chizat and Bach 2018.
    """

    name = "lifted"

    @property
    def cost(self) -> Cost:
        """Half the squared distance on (w, a)."""
        return SquaredEuclidean()

    def grid(
        self,
        nodes: int,
        dim: int,
        *,
        radius: float = 3.0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Grid:
        """A cube of nodes^(dim + 1) in [-radius, radius]."""
        k = dim + 1
        return Grid.uniform([-radius] * k, [radius] * k, [nodes] * k, dtype=dtype, device=device)

    def check(self, grid: Grid, dim: int) -> None:
        """One line per coordinate of (w, a)."""
        if len(grid.factors) != dim + 1 or not all(isinstance(f, Line) for f in grid.factors):
            raise GridError(f"received {grid!r} for data in R^{dim}, need {dim + 1} lines for Lifted: w, then a")

    def transport(self, kernel: GibbsKernel) -> Transport:
        """Mass is kept."""
        return Balanced(kernel)

    def on_grid(self, grid: Grid, X: Float[Tensor, "n d"]) -> Features:
        """See Neurons: directions are all w, the rest is a."""
        d = X.shape[1]
        directions = Grid(grid.factors[:d]).points()
        a = grid.along(d, grid.factors[d].nodes[:, 0])
        return Ridge(self.stream(directions, X), grid.shape, range(d), a, a**2, torch.ones_like(a[..., :1]))

    def squared_norm_on_grid(self, grid: Grid) -> Float[Tensor, "*grid"]:
        """See Neurons."""
        total = torch.zeros(grid.shape, dtype=grid.dtype, device=grid.device)
        for k, f in enumerate(grid.factors):
            total = total + grid.along(k, f.nodes[:, 0] ** 2)
        return total

    def measure(
        self,
        grid: Grid,
        W: Float[Tensor, "m d"],
        a: Float[Tensor, " m"],
        *,
        masses: Float[Tensor, " m"] | None = None,
        width: float = 3.0,
    ) -> GridMeasure:
        """See Neurons."""
        network = ParticleMeasure.from_network(W, a)
        self.check(grid, W.shape[1])
        weighed = network if masses is None else ParticleMeasure(network.positions, masses)
        return GridMeasure.from_particles(grid, weighed, width=width)

    def particles(self, measure: GridMeasure, *, drop: float = 1e-12) -> ParticleMeasure:
        """See Neurons: a node is its neuron."""
        return ParticleMeasure(*heavy_nodes(measure, drop))

    def clouds(self, measure: GridMeasure | ParticleMeasure) -> dict[str, tuple[Tensor, Tensor]]:
        """One sheet, in R^{d+1}."""
        if isinstance(measure, GridMeasure):
            return {"all": heavy_nodes(measure, 0.0)}
        return {"all": (measure.positions, measure.masses)}
