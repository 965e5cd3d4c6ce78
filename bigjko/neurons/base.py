"""A way to use a measure: what a node stands for, how it moves and whether mass grows."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bigjko_kernels import Cost, Features, GibbsKernel, Grid, Ridge, Stream, stream

from ..errors import RiskError
from ..measure import GridMeasure, ParticleMeasure
from ..transport import Transport
from .dynamics import Dynamics, Free


class Neurons(ABC):
    """Owns Theta, its metric and the law of mass. Particles are neurons (w, a) whatever the way.

    Attributes:
        name: what files call the way.
        cost: the ground cost of its metric.
        conserves_mass: the law of mass, that of its transport.
        stream: how directions and data meet: the default `stream`, or `Compiled`, `Tiled` or `Keops` always.
        dynamics: how particles move if they are to follow the flow of the measure.
    """

    name: str
    conserves_mass: bool = True
    stream: Callable[[Tensor, Tensor], Stream] = staticmethod(stream)
    dynamics: Dynamics = Free()

    @property
    @abstractmethod
    def cost(self) -> Cost:
        """The ground cost of the way's metric."""

    @abstractmethod
    def grid(
        self,
        nodes: int,
        dim: int,
        *,
        radius: float = 3.0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Grid:
        """A grid over Theta for data in R^dim: `nodes` per line, circle or sphere, lines within [-radius, radius]."""

    @abstractmethod
    def check(self, grid: Grid, dim: int) -> None:
        """Raise GridError unless the grid is one of this way's, for data in R^dim."""

    def spacing(self, grid: Grid) -> float:
        """h in the way's own metric, which epsilon = .75 h^2 is measured in: the grid's, where coordinates are it."""
        return grid.spacing

    @abstractmethod
    def transport(self, kernel: GibbsKernel) -> Transport:
        """The transport term of a step in the way's metric."""

    @abstractmethod
    def measure(
        self,
        grid: Grid,
        W: Float[Tensor, "m d"],
        a: Float[Tensor, " m"],
        *,
        masses: Float[Tensor, " m"] | None = None,
        width: float = 3.0,
    ) -> GridMeasure:
        """The measure of the network (1/m) sum_i relu(w_i . x) a_i, every neuron a Gaussian of `width` nodes."""

    @abstractmethod
    def particles(self, measure: GridMeasure, *, drop: float = 1e-12) -> ParticleMeasure:
        """Neurons whose network is the measure's, on its own nodes; light nodes below `drop` are left out."""

    @abstractmethod
    def clouds(self, measure: GridMeasure | ParticleMeasure) -> dict[str, tuple[Tensor, Tensor]]:
        """Points (m, k) and masses (m,) of each sheet, in coordinates common to grids and particles."""

    @abstractmethod
    def on_grid(self, grid: Grid, X: Float[Tensor, "n d"]) -> Features:
        """The features on a grid."""

    @abstractmethod
    def squared_norm_on_grid(self, grid: Grid) -> Float[Tensor, "*grid"]:
        """|w|^2 + a^2 per unit of the measure's mass, on a grid."""

    def features(self, nodes: Grid | ParticleMeasure, X: Float[Tensor, "n d"]) -> Features:
        """M on a grid of the way's Theta, or on particles, whose slopes are those of the way's dynamics."""
        if isinstance(nodes, Grid):
            self.check(nodes, X.shape[1])
            return self.on_grid(nodes, X)
        return Ridge(self.stream(nodes.w, X), nodes.shape, (0,), nodes.a, *self.dynamics.squares(nodes.a))

    def squared_norm(self, nodes: Grid | ParticleMeasure) -> Float[Tensor, "*nodes"]:
        """|w|^2 + a^2 of a node's neurons, per unit of mass."""
        if isinstance(nodes, Grid):
            return self.squared_norm_on_grid(nodes)
        ones = nodes.positions.new_ones(nodes.positions.shape[1])
        return nodes.positions.square() @ ones  # seven times faster than a sum over so short an axis

    def slope2(
        self, nodes: Grid | ParticleMeasure, features: Features, z: Float[Tensor, " n"], decay: float
    ) -> Float[Tensor, "*nodes"]:
        """|grad (M^T z + beta R)|^2 in the way's metric, R = |w|^2 + a^2, for a weight decay of beta.

        phi is 2-homogeneous in (w, a), so Euler gives <grad R, grad phi> = 4 phi and |grad R|^2 = 4 R where both move.

        Raises:
            RiskError: for weight decay on neurons that move otherwise.
        """
        z = z.to(nodes.dtype if isinstance(nodes, Grid) else nodes.a.dtype)
        slope2 = features.slope2(z)
        if not decay:
            return slope2
        if self.dynamics != Free():
            raise RiskError(f"received weight decay with {self!r}, need neurons that move freely: use FirstOrder()")
        return slope2 + 8 * decay * features.potential(z) + 4 * decay**2 * self.squared_norm(nodes)

    def to_dict(self) -> dict[str, Any]:
        """What a file needs to build the way again."""
        return {"name": self.name}

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
