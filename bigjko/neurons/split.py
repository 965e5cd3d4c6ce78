"""P3: a probability measure on pairs (w+, w-), by its two marginals or as it is; only the first layer moves."""

import torch
from jaxtyping import Float
from torch import Tensor

from bigjko_kernels import Cost, Features, GibbsKernel, Grid, GridError, Line, Ridge, SquaredEuclidean, Sum

from ..errors import MeasureError
from ..measure import GridMeasure, ParticleMeasure, deposit, heavy_nodes
from ..transport import Balanced, Transport
from .base import Neurons
from .dynamics import FrozenOutputs
from .signed import SignedLines


class Split(SignedLines):
    """P3 by marginals: those of w+ and w-, a sheet of mass 1 each, phi = s relu(w . x).

    F sees no more of a measure on pairs, and neither does its flow (see Pairs, which keeps them): it equals gradient
    descent on W with output weights frozen at +1 and -1. Grid dimension d, where the pairs have 2d.
    A network (W, a) goes to the neurons P_s |a_i| w_i of masses p_i / P_s, P_s the masses p_i of its own sign
    together: same outputs, but |a_i| is gone into w, which changes the flow unless |a_i| P_s = 1. Lost besides: neurons
    with a = 0. mathematics.md 1, P3.
    """

    name = "split"

    def with_unit_outputs(self, network: ParticleMeasure) -> ParticleMeasure:
        """At P_s |a| w, with masses p / P_s.

        Raises:
            MeasureError: for a sheet without neurons, which no probability measure can stand for.
        """
        total = torch.zeros_like(network.masses)
        for sheet in (network.a > 0, network.a < 0):
            total[sheet] = network.masses[sheet].sum(dtype=torch.float64).to(total.dtype)
            if not bool((total[sheet] > 0).any()):
                raise MeasureError("received neurons of one sign only, need a > 0 and a < 0 for Split: use Signed")
        some = total > 0
        w, a, total = network.w[some], network.a[some], total[some]
        return ParticleMeasure(
            torch.cat([w * (total * a.abs())[:, None], a.sign()[:, None]], dim=1), network.masses[some] / total
        )


class Pairs(Neurons):
    """P3 as the seed writes it: Theta = R^d x R^d, phi = relu(w+ . x) - relu(w- . x), a probability on pairs (w+, w-).

    Grid dimension 2d: d = 1, and d = 2 on small grids, as a check of Split, which gives the same outputs and marginals:
    plain from any start, debiased from a product of marginals (from a correlation of .8 in d = 1 outputs differ by 8e-5
    and marginals by 2e-3). Gradient descent as for Split. A network (W, a) goes to the product of Split's marginals,
    since it does not say whose pair is whose. mathematics.md 1, P3.
    """

    # Why Split gives the same. V = V+(w+) + V-(w-) makes b = exp(-tau V / eps) a product, and K = K+ K- is one. In the
    # plain step p = b K(q / (K b)) sum out w-: by symmetry of K- the sum of b- K-(., y-) is (K- b-)(y-), which cancels,
    # and p+ = b+ K+(q+ / (K+ b+)) is left: the step of the marginal, whatever ties w+ to w-. So M p_z, all that the
    # dual sees, is the same function of z. Debiasing multiplies b by exp(d / eps), D K D = q: D is a product where q
    # is one, by uniqueness, then p is one again; where q is not, nothing cancels.
    name = "pairs"
    dynamics = FrozenOutputs()

    @property
    def cost(self) -> Cost:
        """Half the squared distance of (w+, w-)."""
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
        """A cube of nodes^(2 dim) in [-radius, radius]."""
        k = 2 * dim
        return Grid.uniform([-radius] * k, [radius] * k, [nodes] * k, dtype=dtype, device=device)

    def check(self, grid: Grid, dim: int) -> None:
        """One line per coordinate of w+, then of w-."""
        if len(grid.factors) != 2 * dim or not all(isinstance(f, Line) for f in grid.factors):
            raise GridError(f"received {grid!r} for data in R^{dim}, need {2 * dim} lines for Pairs: w+, then w-")

    def transport(self, kernel: GibbsKernel) -> Transport:
        """Mass is kept."""
        return Balanced(kernel)

    def on_grid(self, grid: Grid, X: Float[Tensor, "n d"]) -> Features:
        """See Neurons: one ridge for w+ and one for w-."""
        d = X.shape[1]
        one = torch.ones([1] * (2 * d), dtype=grid.dtype, device=grid.device)
        ridges = []
        for sign, axes in ((1.0, range(d)), (-1.0, range(d, 2 * d))):
            stream = self.stream(Grid(tuple(grid.factors[k] for k in axes)).points(), X)
            ridges.append(Ridge(stream, grid.shape, axes, sign * one, one, torch.zeros_like(one)))
        return Sum(ridges)

    def squared_norm_on_grid(self, grid: Grid) -> Float[Tensor, "*grid"]:
        """|w+|^2 + 1 + |w-|^2 + 1, of two neurons."""
        total = torch.full(grid.shape, 2.0, dtype=grid.dtype, device=grid.device)
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
        """The product of Split's marginals, since a network has no pairs; `from_pairs` keeps those that are known."""
        network = ParticleMeasure.from_network(W, a)
        d = W.shape[1]
        self.check(grid, d)
        weighed = network if masses is None else ParticleMeasure(network.positions, masses)
        sheets = Split().clouds(Split().with_unit_outputs(weighed))
        halves = (Grid(grid.factors[:d]), Grid(grid.factors[d:]))
        plus, minus = (
            deposit(half, *cloud, width=width).log_masses for half, cloud in zip(halves, sheets.values(), strict=True)
        )
        return GridMeasure(grid, plus.reshape(*plus.shape, *[1] * d) + minus)

    def from_pairs(
        self,
        grid: Grid,
        plus: Float[Tensor, "m d"],
        minus: Float[Tensor, "m d"],
        *,
        masses: Float[Tensor, " m"] | None = None,
        width: float = 3.0,
    ) -> GridMeasure:
        """The measure of the network (1/m) sum_i relu(plus_i . x) - relu(minus_i . x), every pair a Gaussian."""
        self.check(grid, plus.shape[1])
        equal = plus.new_full(plus.shape[:1], 1 / plus.shape[0])
        return deposit(grid, torch.cat([plus, minus], dim=1), equal if masses is None else masses, width=width)

    def particles(self, measure: GridMeasure, *, drop: float = 1e-12) -> ParticleMeasure:
        """See Neurons: a node is two neurons, (w+, 1) and (w-, -1), of its mass each: first all w+, then all w-."""
        points, masses = heavy_nodes(measure, drop)
        one = torch.ones_like(masses)[:, None]
        plus, minus = points.tensor_split(2, dim=1)
        positions = torch.cat([torch.cat([plus, one], dim=1), torch.cat([minus, -one], dim=1)])
        return ParticleMeasure(positions, torch.cat([masses, masses]))

    def clouds(self, measure: GridMeasure | ParticleMeasure) -> dict[str, tuple[Tensor, Tensor]]:
        """Sheets + and -, w+ and w- in R^d: the marginals, a point for every node."""
        if isinstance(measure, ParticleMeasure):
            return Split().clouds(measure)
        points, masses = measure.grid.points(), measure.masses.reshape(-1)
        return {name: (half, masses) for name, half in zip("+-", points.tensor_split(2, dim=1), strict=True)}
