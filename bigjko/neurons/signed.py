"""P2: a signed measure on w alone, its positive and negative part on a sheet each; only the first layer moves."""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from bigjko_kernels import Cost, Features, GibbsKernel, Grid, GridError, Line, Ridge, Sheets, SquaredEuclidean

from ..measure import GridMeasure, ParticleMeasure, deposit, heavy_nodes
from ..transport import Balanced, Transport
from .base import Neurons
from .dynamics import FrozenOutputs


class SignedLines(Neurons):
    """Theta = {+, -} x R^d, phi = s relu(w . x), mass kept on each sheet: what Signed and Split share.

    The Wasserstein flow moves w' = -s G alone. Particles are neurons (w, s) with the node's mass, which stay so in
    gradient descent with frozen outputs; |w|^2 + a^2 is |w|^2 + 1 for them, whose 1 is a constant.
    """

    dynamics = FrozenOutputs()

    @abstractmethod
    def with_unit_outputs(self, network: ParticleMeasure) -> ParticleMeasure:
        """The same network from neurons (w, s), s = sign a: what the measure holds, and gradient descent can follow.

        Neurons with a = 0 are left out.
        """

    @property
    def cost(self) -> Cost:
        """Half the squared distance of w."""
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
        """Two sheets of a cube of nodes^dim in [-radius, radius]."""
        box = Grid.uniform([-radius] * dim, [radius] * dim, [nodes] * dim, dtype=dtype, device=device)
        return Grid((Sheets.of([1.0, -1.0], dtype=dtype, device=device), *box.factors))

    def check(self, grid: Grid, dim: int) -> None:
        """Sheets +1 and -1, then one line per coordinate of w."""
        first, *lines = grid.factors
        signs = isinstance(first, Sheets) and first.nodes[:, 0].tolist() == [1.0, -1.0]
        if not signs or len(lines) != dim or not all(isinstance(f, Line) for f in lines):
            name = type(self).__name__
            raise GridError(f"received {grid!r} for data in R^{dim}, need {name}().grid(nodes, dim={dim})")

    def transport(self, kernel: GibbsKernel) -> Transport:
        """Mass is kept, on each sheet."""
        return Balanced(kernel)

    def on_grid(self, grid: Grid, X: Float[Tensor, "n d"]) -> Features:
        """See Neurons: alpha = 1 and beta = 0, since w alone moves and s^2 = 1."""
        signs = grid.along(0, grid.factors[0].nodes[:, 0])
        one = torch.ones_like(signs[:1])
        stream = self.stream(Grid(grid.factors[1:]).points(), X)
        return Ridge(stream, grid.shape, range(1, len(grid.shape)), signs, one, torch.zeros_like(one))

    def squared_norm_on_grid(self, grid: Grid) -> Float[Tensor, "*grid"]:
        """|w|^2 + 1."""
        total = torch.ones(grid.shape, dtype=grid.dtype, device=grid.device)
        for k, f in enumerate(grid.factors[1:], start=1):
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
        """See Neurons. A sheet without neurons stays empty."""
        network = ParticleMeasure.from_network(W, a)
        self.check(grid, W.shape[1])
        weighed = network if masses is None else ParticleMeasure(network.positions, masses)
        box = Grid(grid.factors[1:])
        log_masses = torch.full(grid.shape, -torch.inf, dtype=grid.dtype, device=grid.device)
        for row, (points, weights) in zip(
            log_masses, self.clouds(self.with_unit_outputs(weighed)).values(), strict=True
        ):
            if bool((weights > 0).any()):
                row.copy_(deposit(box, points, weights, width=width).log_masses)
        return GridMeasure(grid, log_masses)

    def particles(self, measure: GridMeasure, *, drop: float = 1e-12) -> ParticleMeasure:
        """See Neurons: a node is its neuron (w, s)."""
        points, masses = heavy_nodes(measure, drop)
        return ParticleMeasure(torch.cat([points[:, 1:], points[:, :1]], dim=1), masses)

    def clouds(self, measure: GridMeasure | ParticleMeasure) -> dict[str, tuple[Tensor, Tensor]]:
        """Sheets + and -, points w in R^d; a particle has mass times |a|."""
        if isinstance(measure, GridMeasure):
            points = Grid(measure.grid.factors[1:]).points()
            return {name: (points, row.reshape(-1)) for name, row in zip("+-", measure.masses.unbind(0), strict=True)}
        sheets = {}
        for name, sign in (("+", 1.0), ("-", -1.0)):
            kept = sign * measure.a > 0
            sheets[name] = (measure.w[kept], (measure.masses * measure.a.abs())[kept])
        return sheets


class Signed(SignedLines):
    """P2: the signed measure (1/m) sum a_i delta_{w_i}, as two sheets of masses |a_i| / m, phi = s relu(w . x).

    Its flow equals gradient descent on W alone, a frozen, with step gamma / |a_i| (`FrozenOutputs` on neurons
    (w_i, sign a_i) of mass |a_i| / m), not on (W, a). Grid dimension d: d <= 3 in practice. The box must hold the
    fastest w.
    Lost on the way from (W, a): neurons with a = 0, and how |a_i| and a neuron's mass share their product, hence its
    own weight decay: a neuron's |w|^2 + a^2 becomes |a| (|w|^2 + 1). mathematics.md 1, P2.
    """

    name = "signed"

    def with_unit_outputs(self, network: ParticleMeasure) -> ParticleMeasure:
        """At w, with masses |a| times theirs."""
        some = network.a != 0
        w, a, masses = network.w[some], network.a[some], network.masses[some]
        return ParticleMeasure(torch.cat([w, a.sign()[:, None]], dim=1), masses * a.abs())
