"""The factors of neuron space: Theta is a product of lines, circles, spheres and sheets.

A factor knows its nodes, the size of each node's cell, how coarse it is and which of its edges are artificial.
It knows no cost and no epsilon: a cost decides which metric is put on it.
"""

import math
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .errors import GridError


@dataclass(frozen=True, eq=False)
class Factor(ABC):
    """One factor of Theta, as nodes in R^k with cells around them.

    Attributes:
        nodes: (n, k) coordinates; unit vectors on a circle or a sphere.
        log_weights: (n,) logarithm of each node's cell size (length, angle, area; 1 on a sheet).
        edge: (n,) true where the axis was cut by choice, so that mass on it is a warning.
        spacing: the largest distance between neighbours, 0 where there are none.
    """

    nodes: Float[Tensor, "n k"]
    log_weights: Float[Tensor, " n"]
    edge: Bool[Tensor, " n"]
    spacing: float

    @property
    def size(self) -> int:
        """Number of nodes n."""
        return self.nodes.shape[0]

    @cached_property
    def cut(self) -> tuple[int, int]:
        """The first node that is no artificial edge, and the first beyond them that is: edges are ends."""
        inner = (~self.edge).nonzero()[:, 0].tolist()
        return (inner[0], inner[-1] + 1) if inner else (self.size, self.size)

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Factor":
        """The same factor on another device or in another dtype."""
        return replace(
            self,
            nodes=self.nodes.to(device=device, dtype=dtype),
            log_weights=self.log_weights.to(device=device, dtype=dtype),
            edge=self.edge.to(device=device),
        )


class Line(Factor):
    """Nodes on an axis, uniform or not; a node's cell reaches half way to its neighbours."""

    @classmethod
    def at(cls, x: Float[Tensor, " n"]) -> "Line":
        """A line through strictly increasing coordinates; the end cells are as wide as their neighbour gap."""
        if x.numel() == 0 or not bool(torch.isfinite(x).all()):
            raise GridError("received an axis that is empty or not finite, need at least one finite coordinate")
        if x.numel() == 1:
            return cls(x[:, None], torch.zeros_like(x), torch.zeros(1, dtype=torch.bool, device=x.device), 0.0)
        gaps = x.diff()
        if not bool((gaps > 0).all()):
            raise GridError("received coordinates that do not increase strictly, need x[0] < x[1] < ...: sort them")
        cells = torch.cat([gaps[:1], (gaps[:-1] + gaps[1:]) / 2, gaps[-1:]])
        edge = torch.zeros(x.numel(), dtype=torch.bool, device=x.device)
        edge[0] = edge[-1] = True
        return cls(x[:, None], cells.log(), edge, float(gaps.max()))

    @classmethod
    def uniform(
        cls,
        low: float,
        high: float,
        nodes: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> "Line":
        """Equally spaced nodes from low to high; both ends are nodes."""
        if nodes < 1 or not (math.isfinite(low) and math.isfinite(high)) or (nodes > 1 and not low < high):
            raise GridError(f"received an axis from {low} to {high} with {nodes} nodes, need low < high and nodes >= 1")
        most = _LONGEST[dtype.itemsize == 4]
        if max(abs(low), abs(high)) > most or (nodes > 1 and (high - low) / (nodes - 1) < 1 / most):
            raise GridError(
                f"received an axis from {low} to {high} with {nodes} nodes in {dtype}, need coordinates up to {most:g} "
                f"and nodes {1 / most:g} apart, so that squares of lengths are numbers: change the unit"
            )
        x = torch.linspace(low, high, nodes, dtype=torch.float64)
        line = cls.at(x)
        # Cells are equal by construction; rounding of linspace must not make them differ.
        if nodes > 1:
            h = (high - low) / (nodes - 1)
            line = replace(line, log_weights=torch.full_like(x, math.log(h)), spacing=h)
        return cls(line.nodes, line.log_weights, line.edge, line.spacing).to(device=device, dtype=dtype)  # type: ignore[return-value]

    @classmethod
    def radii(
        cls,
        high: float,
        nodes: int,
        power: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> "Line":
        """Radii (i + 1/2) h up to `high`, with cells of size r^power h, as on a cone over a sphere of that dimension.

        Half a step off the apex, which all directions share; the axis ends there by nature and not by choice.
        """
        if nodes < 1 or not 0 < high < math.inf:
            raise GridError(f"received {nodes} radii up to {high}, need at least 1 and a positive finite radius")
        h = high / (nodes - 0.5)
        r = (torch.arange(nodes, dtype=torch.float64) + 0.5) * h
        edge = torch.arange(nodes) == nodes - 1
        return cls(r[:, None], power * r.log() + math.log(h), edge, h).to(device=device, dtype=dtype)  # type: ignore[return-value]


class Circle(Factor):
    """Unit vectors in R^2: a periodic factor, with no edge."""

    @classmethod
    def uniform(cls, nodes: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> "Circle":
        """Equally spaced directions, the first at angle 0."""
        if nodes < 3:
            raise GridError(f"received a circle of {nodes} nodes, need at least 3")
        return cls.at(torch.arange(nodes, dtype=torch.float64) * (2 * math.pi / nodes)).to(device=device, dtype=dtype)  # type: ignore[return-value]

    @classmethod
    def at(cls, angles: Float[Tensor, " n"]) -> "Circle":
        """Directions at increasing angles within one turn."""
        gaps = torch.cat([angles.diff(), angles[:1] + 2 * math.pi - angles[-1:]])
        if angles.numel() < 3 or not bool((gaps > 0).all()):
            raise GridError("received angles that do not increase strictly within one turn, need 3 or more that do")
        cells = (gaps + gaps.roll(1)) / 2
        nodes = torch.stack([angles.cos(), angles.sin()], dim=1)
        return cls(
            nodes, cells.log(), torch.zeros(angles.numel(), dtype=torch.bool, device=angles.device), float(gaps.max())
        )

    @classmethod
    def through(
        cls,
        nodes: int,
        angles: Float[Tensor, " k"],
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> "Circle":
        """A node at every given angle, the others spread evenly between them so that the largest gap is least.

        Angles nearer than an even gap to the one before are left out: they have a node within a gap. Gaps are even up
        to one part in the nodes between two angles.

        Raises:
            GridError: for fewer than 3 nodes, or angles that are not finite.
        """
        turn, angles = 2 * math.pi, angles.to(device="cpu", dtype=torch.float64)
        if nodes < 3:
            raise GridError(f"received a circle of {nodes} nodes, need at least 3")
        if not bool(torch.isfinite(angles).all()):
            raise GridError("received angles with NaN or inf among them, need finite numbers")
        kept: list[float] = []
        for angle in sorted((angles % turn).tolist()):
            if not kept or (angle - kept[-1] >= turn / nodes and kept[0] + turn - angle >= turn / nodes):
                kept.append(angle)
        if not kept:
            return cls.uniform(nodes, dtype=dtype, device=device)
        ends = torch.tensor([*kept, kept[0] + turn], dtype=torch.float64)
        arcs = ends.diff()
        counts = torch.ones(len(kept), dtype=torch.long)
        counts += (arcs * ((nodes - len(kept)) / turn)).long()
        for _ in range(nodes - int(counts.sum())):
            counts[(arcs / counts).argmax()] += 1
        steps = [
            start + arc / n * torch.arange(n, dtype=torch.float64)
            for start, arc, n in zip(ends.tolist(), arcs.tolist(), counts.tolist(), strict=False)
        ]
        return cls.at(torch.cat(steps)).to(device=device, dtype=dtype)  # type: ignore[return-value]


class Sphere(Factor):
    """Unit vectors in R^3 or R^4, nearly uniform, all cells of the same size."""

    @classmethod
    def fibonacci(
        cls, nodes: int, *, dim: int = 2, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> "Sphere":
        """Nodes on a spiral of irrational turns: the golden one on S^2, two on S^3.

        Each has area 4 pi / n (volume 2 pi^2 / n), and the spacing is the root of that. Reference for S^3: Alexa 2022,
        Super-Fibonacci spirals.
        """
        if nodes < 6 or dim not in (2, 3):
            raise GridError(f"received a sphere S^{dim} of {nodes} nodes, need S^2 or S^3 and at least 6")
        k = torch.arange(nodes, dtype=torch.float64)
        share = (k + 0.5) / nodes  # of the volume that lies before the node
        if dim == 2:
            points = _rings((4 * share * (1 - share)).sqrt(), k * (math.pi * (3 - math.sqrt(5))), 1 - 2 * share)
            cell = 4 * math.pi / nodes
        else:
            turn = 2 * math.pi * (k + 0.5)
            first, second = turn / math.sqrt(2), turn / _PSI
            points = _rings(share.sqrt(), first, (1 - share).sqrt() * second.cos(), (1 - share).sqrt() * second.sin())
            cell = 2 * math.pi**2 / nodes
        return cls(
            points,
            torch.full((nodes,), math.log(cell), dtype=torch.float64),
            torch.zeros(nodes, dtype=torch.bool),
            cell ** (1 / dim),
        ).to(device=device, dtype=dtype)  # type: ignore[return-value]


_LONGEST = (1e150, 1e18)  # the second in float32
_PSI = 1.533751168755204288118041  # the root of psi^4 = psi + 4, as sqrt 2 chosen by search (Alexa 2022)


def _rings(radius: Tensor, turn: Tensor, *rest: Tensor) -> Tensor:
    return torch.stack([radius * turn.cos(), radius * turn.sin(), *rest], dim=1)


class Sheets(Factor):
    """Labels with infinite cost between them (signs, scales): mass never crosses from one sheet to another."""

    @classmethod
    def of(
        cls, values: Sequence[float], *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> "Sheets":
        """One sheet a value."""
        if len(values) == 0 or len(set(values)) != len(values):
            raise GridError(f"received the sheets {tuple(values)}, need one or more distinct values")
        n = len(values)
        nodes = torch.tensor([[float(v)] for v in values], dtype=dtype, device=device)
        return cls(
            nodes,
            torch.zeros(n, dtype=dtype, device=device),
            torch.zeros(n, dtype=torch.bool, device=device),
            0.0,
        )
