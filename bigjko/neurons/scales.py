"""The seed's own answer to the grid's scale: the same box at a small and at a very big one."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bigjko_kernels import Cost, Features, GibbsKernel, Grid, GridError, Line, Ridge, Sheets, SquaredEuclidean

from ..measure import GridMeasure, ParticleMeasure, deposit, heavy_nodes
from ..transport import Scaled, Transport
from .base import Neurons

_ROOM = 0.5  # of its box is where a neuron may start: it can double before it meets the edge


class Scales(Neurons):
    """Theta = {s_1 < s_2 < ...} x R^d x R: Lifted on boxes of several scales, a node v being the neuron (w, a) = s v.

    phi = s^2 relu(v_w . x) v_a, the metric s^2 |dv|^2; epsilon and radius are those of v, so s^2 epsilon and s radius
    those of neurons on sheet s: one Gibbs kernel serves all sheets. Mass never crosses: a neuron that outgrows its
    sheet is held at its edge, whatever larger scale there is; so a start must foresee growth. A neuron of a network
    goes to the smallest sheet in whose half-sized box it lies (see `sheet_of`).
    Grid dimension d + 1, one box a scale. Reference: the seed, 2.3.1.
    """

    name = "scales"

    @property
    def cost(self) -> Cost:
        """Half the squared distance of v; Scaled puts the s^2 to it."""
        return SquaredEuclidean()

    def grid(
        self,
        nodes: int,
        dim: int,
        *,
        radius: float = 3.0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        scales: Sequence[float] = (1.0, 4.0),
    ) -> Grid:
        """A cube of nodes^(dim + 1) in [-radius, radius], for every scale: neurons in [-s radius, s radius]."""
        k = dim + 1
        box = Grid.uniform([-radius] * k, [radius] * k, [nodes] * k, dtype=dtype, device=device)
        return Grid((Sheets.of(scales, dtype=dtype, device=device), *box.factors))

    def check(self, grid: Grid, dim: int) -> None:
        """Sheets of increasing positive scales, then one line per coordinate of v."""
        first, *lines = grid.factors
        labels = first.nodes[:, 0]
        rising = isinstance(first, Sheets) and bool((labels > 0).all()) and bool((labels.diff() > 0).all())
        if not rising or len(lines) != dim + 1 or not all(isinstance(f, Line) for f in lines):
            raise GridError(
                f"received {grid!r} for data in R^{dim}, need sheets of increasing positive scales and {dim + 1} lines "
                f"for Scales: Scales().grid(nodes, dim={dim})"
            )

    def transport(self, kernel: GibbsKernel) -> Transport:
        """Mass is kept, on each sheet."""
        return Scaled(kernel)

    def on_grid(self, grid: Grid, X: Float[Tensor, "n d"]) -> Features:
        """See Neurons: the slopes of a neuron are those of Lifted at s v."""
        d = X.shape[1]
        s, a = grid.along(0, grid.factors[0].nodes[:, 0]), grid.along(d + 1, grid.factors[d + 1].nodes[:, 0])
        stream = self.stream(Grid(grid.factors[1 : d + 1]).points(), X)
        return Ridge(stream, grid.shape, range(1, d + 1), s**2 * a, (s * a) ** 2, s**2)

    def squared_norm_on_grid(self, grid: Grid) -> Float[Tensor, "*grid"]:
        """s^2 |v|^2."""
        total = torch.zeros(grid.shape, dtype=grid.dtype, device=grid.device)
        for k, f in enumerate(grid.factors[1:], start=1):
            total = total + grid.along(k, f.nodes[:, 0] ** 2)
        return total * grid.along(0, grid.factors[0].nodes[:, 0] ** 2)

    def sheet_of(self, grid: Grid, theta: Float[Tensor, "m k"]) -> Int[Tensor, " m"]:
        """The sheet of every neuron: the smallest scale at which it can double within its box, else the largest."""
        scales = grid.factors[0].nodes[:, 0].contiguous()
        reach = torch.stack([torch.minimum(f.nodes[-1, 0], -f.nodes[0, 0]) for f in grid.factors[1:]])
        needed = (theta.abs() / (_ROOM * reach)).amax(1).contiguous()
        return torch.searchsorted(scales, needed).clamp(max=len(scales) - 1)

    def measure(
        self,
        grid: Grid,
        W: Float[Tensor, "m d"],
        a: Float[Tensor, " m"],
        *,
        masses: Float[Tensor, " m"] | None = None,
        width: float = 3.0,
    ) -> GridMeasure:
        """See Neurons. The Gaussian of a neuron on sheet s has a std of `width` nodes there, s times that in theta."""
        network = ParticleMeasure.from_network(W, a)
        self.check(grid, W.shape[1])
        weighed = network.masses if masses is None else ParticleMeasure(network.positions, masses).masses
        box, sheet = Grid(grid.factors[1:]), self.sheet_of(grid, network.positions)
        log_masses = torch.full(grid.shape, -torch.inf, dtype=grid.dtype, device=grid.device)
        for k, s in enumerate(grid.factors[0].nodes[:, 0]):
            kept = sheet == k
            if bool((weighed[kept] > 0).any()):
                log_masses[k] = deposit(box, network.positions[kept] / s, weighed[kept], width=width).log_masses
        return GridMeasure(grid, log_masses)

    def particles(self, measure: GridMeasure, *, drop: float = 1e-12) -> ParticleMeasure:
        """See Neurons: a node is the neuron s v."""
        points, masses = heavy_nodes(measure, drop)
        return ParticleMeasure(points[:, :1] * points[:, 1:], masses)

    def clouds(self, measure: GridMeasure | ParticleMeasure) -> dict[str, tuple[Tensor, Tensor]]:
        """One sheet, in R^{d+1}: a particle does not know the scale it started from."""
        known = self.particles(measure, drop=0.0) if isinstance(measure, GridMeasure) else measure
        return {"all": (known.positions, known.masses)}
