"""The grid over neuron space: a product of factors, and sums over its nodes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .errors import GridError
from .factors import Circle, Factor, Line, Sheets, Sphere
from .html import table
from .sums import sum64


@dataclass(frozen=True, eq=False)
class Grid:
    """A product of factors. Values on it are tensors of shape `grid.shape`, masses rather than densities.

    Attributes:
        factors: the factors of Theta, in the order of the tensor axes.

    Raises:
        GridError: for no factors, or factors of different dtype or device.
    """

    factors: tuple[Factor, ...]

    def __post_init__(self) -> None:
        if not self.factors:
            raise GridError("received no factors, need at least one Line, Circle, Sphere or Sheets")
        kinds = {(f.nodes.dtype, f.nodes.device) for f in self.factors}
        if len(kinds) > 1:
            raise GridError(
                f"received factors of dtypes and devices {sorted(map(str, kinds))}, need one of each: call .to() first"
            )

    @classmethod
    def uniform(
        cls,
        low: Sequence[float],
        high: Sequence[float],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> "Grid":
        """A box of equally spaced nodes; both ends of every axis are nodes.

        Args:
            low, high: one coordinate an axis.
            shape: nodes an axis.
            dtype, device: of every tensor on the grid.

        Raises:
            GridError: if the lengths differ, or an axis is empty or reversed.
        """
        if not len(low) == len(high) == len(shape):
            raise GridError(
                f"received {len(low)} lows, {len(high)} highs and a shape of {len(shape)} axes, need as many of each"
            )
        return cls(
            tuple(
                Line.uniform(lo, hi, n, dtype=dtype, device=device) for lo, hi, n in zip(low, high, shape, strict=True)
            )
        )

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Nodes per factor."""
        return tuple(f.size for f in self.factors)

    @property
    def size(self) -> int:
        """Number of nodes N."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of every value on the grid."""
        return self.factors[0].nodes.dtype

    @property
    def device(self) -> torch.device:
        """The device of every value on the grid."""
        return self.factors[0].nodes.device

    @cached_property
    def spacing(self) -> float:
        """h: the largest distance between neighbours over all factors."""
        return max(f.spacing for f in self.factors)

    @cached_property
    def uniform_weights(self) -> bool:
        """Whether all cells have the same volume, so that volumes drop out of the entropic step."""
        return all(bool((f.log_weights == f.log_weights[0]).all()) for f in self.factors)

    @cached_property
    def log_weights(self) -> Float[Tensor, "*grid"]:
        """Logarithm of each node's cell volume, of the grid's shape; one number, expanded, where all are equal."""
        if self.uniform_weights:
            return torch.stack([f.log_weights[0] for f in self.factors]).sum().expand(self.shape)
        total = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        for k, f in enumerate(self.factors):
            total = total + self.along(k, f.log_weights)
        return total

    @cached_property
    def edge(self) -> Bool[Tensor, "*grid"]:
        """True on the artificial boundary of the box."""
        total = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        for k, f in enumerate(self.factors):
            total = total | self.along(k, f.edge)
        return total

    def along(self, k: int, values: Tensor) -> Tensor:
        """Values of factor k, viewed so that they broadcast over the grid."""
        return values.reshape([-1 if j == k else 1 for j in range(len(self.factors))])

    def sum(self, x: Float[Tensor, "*grid"]) -> Float[Tensor, ""]:
        """Sum over all nodes, accumulated in float64 whatever the grid's dtype."""
        return sum64(x)

    def points(self, *, sheets: bool = True) -> Float[Tensor, "N k"]:
        """Coordinates of every node, one row a node: memory N k. Without sheets, those labels are left out."""
        columns = []
        for k, f in enumerate(self.factors):
            if isinstance(f, Sheets) and not sheets:
                continue
            columns += [self.along(k, column).expand(self.shape).reshape(-1) for column in f.nodes.unbind(1)]
        if not columns:
            return torch.zeros(self.size, 0, dtype=self.dtype, device=self.device)
        return torch.stack(columns, dim=1)

    def widened(self, nodes: int | Sequence[tuple[int, int]]) -> "Grid":
        """The same grid with more nodes at the ends of its Lines: same end spacing, old nodes kept.

        Args:
            nodes: how many at both ends of every Line, or a pair (below, above) for each factor; none on others.
                Radii, whose first node is no artificial edge, grow outwards only, whatever is asked for below.
        """
        pairs = [(nodes, nodes)] * len(self.factors) if isinstance(nodes, int) else list(nodes)
        if len(pairs) != len(self.factors):
            raise GridError(f"received {len(pairs)} pairs of nodes to add, need one a factor: {len(self.factors)}")
        if min(map(min, pairs)) < 0:
            raise GridError(f"received {nodes} nodes to add, need 0 or more")
        return Grid(
            tuple(_widened(f, *pair) if isinstance(f, Line) else f for f, pair in zip(self.factors, pairs, strict=True))
        )

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Grid":
        """The same grid on another device or in another dtype."""
        return Grid(tuple(f.to(device=device, dtype=dtype) for f in self.factors))

    def matches(self, other: "Grid") -> bool:
        """Whether both have the same factors with the same nodes, dtype and device."""
        return self is other or (
            self.shape == other.shape
            and (self.dtype, self.device) == (other.dtype, other.device)
            and all(
                type(f) is type(g) and torch.equal(f.nodes, g.nodes)
                for f, g in zip(self.factors, other.factors, strict=True)
            )
        )

    def check(self, x: Tensor, name: str) -> None:
        """Raise GridError unless x has this grid's shape, dtype and device."""
        if tuple(x.shape) != self.shape:
            raise GridError(f"received {name} of shape {tuple(x.shape)}, need the grid's {self.shape}")
        if x.dtype != self.dtype:
            raise GridError(f"received {name} in {x.dtype}, need the grid's {self.dtype}: convert one with .to(dtype=)")
        if x.device != self.device:
            raise GridError(f"received {name} on {x.device}, need the grid's {self.device}: move one with .to(device=)")

    def __repr__(self) -> str:
        kinds = " x ".join(f"{type(f).__name__}({f.size})" for f in self.factors)
        return f"Grid({kinds}, N={self.size:,}, h={self.spacing:.4g}, {self.dtype}, {self.device})"

    def _repr_html_(self) -> str:
        return table("Grid", self.facts())

    def facts(self) -> list[tuple[str, str]]:
        """Label and value of what notebooks show."""
        rows = [(f"axis {k}", _described(f)) for k, f in enumerate(self.factors)]
        return [
            *rows,
            ("nodes N", f"{self.size:,}"),
            ("largest spacing h", f"{self.spacing:.4g}"),
            ("numbers", f"{str(self.dtype).removeprefix('torch.')} on {self.device}"),
        ]


def _described(factor: Factor) -> str:
    """A factor in words."""
    said = f"{type(factor).__name__}, {factor.size:,} {'label' if isinstance(factor, Sheets) else 'node'}s"
    if isinstance(factor, Line):
        return f"{said} from {float(factor.nodes[0, 0]):.4g} to {float(factor.nodes[-1, 0]):.4g}"
    if isinstance(factor, Sheets):
        return f"{said} {', '.join(f'{x:g}' for x in factor.nodes[:_LABELS, 0].tolist())}"
    return f"{said} in R^{factor.nodes.shape[1]}"


_LABELS = 8  # that are written out


def _widened(line: Factor, below: int, above: int) -> Line:
    x = line.nodes[:, 0]
    if line.size == 1 or below == above == 0:
        return Line(line.nodes, line.log_weights, line.edge, line.spacing)
    below = below if bool(line.edge[0]) else 0  # radii begin where they do by nature
    low, high = (torch.arange(1, k + 1, dtype=x.dtype, device=x.device) for k in (below, above))
    wide = Line.at(torch.cat([x[0] - (x[1] - x[0]) * low.flip(0), x, x[-1] + (x[-1] - x[-2]) * high]))
    if not bool(line.edge[0]):  # cells of size r^power h
        power = (line.log_weights[-1] - line.log_weights[-2]) / (x[-1] / x[-2]).log()
        outer = line.log_weights[-1] + power * (wide.nodes[line.size :, 0] / x[-1]).log()
        edge = torch.arange(wide.size, device=x.device) == wide.size - 1
        return Line(wide.nodes, torch.cat([line.log_weights, outer]), edge, line.spacing)
    if bool((line.log_weights == line.log_weights[0]).all()):  # a uniform axis stays exactly uniform
        return Line(wide.nodes, line.log_weights[:1].expand(wide.size).clone(), wide.edge, line.spacing)
    return wide


__all__ = ["Circle", "Factor", "Grid", "Line", "Sheets", "Sphere"]
