"""Measures: masses on the nodes of a grid, or particles that are neurons."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from bigjko_kernels import LOG_ZERO, Circle, Factor, GibbsKernel, Grid, GridError, Line, Separable, passes
from bigjko_kernels.html import table
from bigjko_kernels.pages import empty
from bigjko_kernels.sums import parts, sum64

from .errors import MeasureError
from .memory import check as check_memory

if TYPE_CHECKING:
    import matplotlib.figure

    from .neurons.base import Neurons


@dataclass(frozen=True, eq=False)
class GridMeasure:
    """Masses (not densities) on the nodes of a grid, kept as logarithms.

    Attributes:
        grid: the nodes.
        log_masses: logarithms of the masses, of the grid's shape; LOG_ZERO (-inf) where there is none.

    Raises:
        MeasureError: for NaN, +inf, or no mass at all.
        GridError: for a shape, dtype or device that is not the grid's.
    """

    grid: Grid
    log_masses: Float[Tensor, "*grid"]

    def __post_init__(self) -> None:
        self.grid.check(self.log_masses, "log_masses")
        top = float(self.log_masses.detach().max())  # NaN wins a max, so one number tells all
        if math.isnan(top) or top == math.inf:
            raise MeasureError(f"received log masses with {top} among them, need finite numbers, or -inf for no mass")
        if top == LOG_ZERO:
            raise MeasureError("received a measure without mass, need at least one node with a finite log mass")

    @classmethod
    def from_density(
        cls, grid: Grid, density: Callable[[Float[Tensor, "N k"]], Float[Tensor, " N"]], *, mass: float = 1.0
    ) -> "GridMeasure":
        """The measure of a density: its value at the nodes times cell volume, normalised to `mass`.

        Args:
            grid: the nodes.
            density: maps coordinates (N, k) to values (N,), not negative; need not be normalised.
            mass: total mass.
        """
        _room(grid, 4 + sum(f.nodes.shape[1] for f in grid.factors))
        values = density(grid.points())
        if values.shape != (grid.size,):
            raise MeasureError(
                f"received density values of shape {tuple(values.shape)}, need ({grid.size},): one a node"
            )
        if values.dtype != grid.dtype:
            raise MeasureError(f"received density values in {values.dtype}, need the grid's {grid.dtype}: convert them")
        if not bool(((values >= 0) & torch.isfinite(values)).all()):
            raise MeasureError("received a density with negative, infinite or NaN values, need finite values >= 0")
        return cls._normalised(grid, values.log().reshape(grid.shape) + grid.log_weights, mass)

    @classmethod
    def gaussian(
        cls, grid: Grid, mean: float | Float[Tensor, " k"], std: float | Float[Tensor, " k"], *, mass: float = 1.0
    ) -> "GridMeasure":
        """An axis-parallel Gaussian on a grid of lines, normalised on the box.

        Args:
            grid: lines only.
            mean, std: one number, or one per axis.
            mass: total mass.
        """
        if not all(isinstance(f, Line) for f in grid.factors):
            raise MeasureError(f"received {grid!r}, need lines only: on directions use the way's own .measure")
        k = len(grid.factors)
        centre = torch.as_tensor(mean, dtype=grid.dtype, device=grid.device)
        spread = torch.as_tensor(std, dtype=grid.dtype, device=grid.device)
        if not {tuple(centre.shape), tuple(spread.shape)} <= {(), (k,)}:
            raise MeasureError(
                f"received a mean of shape {tuple(centre.shape)} and a std of {tuple(spread.shape)}, "
                f"need one number each, or one per axis: ({k},)"
            )
        centre, spread = centre.expand(k), spread.expand(k)
        if not bool((spread > 0).all()) or not bool(torch.isfinite(centre).all() & torch.isfinite(spread).all()):
            raise MeasureError(f"received mean {mean} and std {std}, need finite numbers and std > 0")
        _room(grid, 2)
        log_masses = empty(grid.shape, grid.dtype, grid.device).copy_(grid.log_weights)
        for axis, f in enumerate(grid.factors):
            log_masses -= grid.along(axis, ((f.nodes[:, 0] - centre[axis]) / spread[axis]) ** 2 / 2)
        return cls._normalised(grid, log_masses, mass)

    @classmethod
    def uniform(cls, grid: Grid, *, mass: float = 1.0) -> "GridMeasure":
        """Mass spread evenly over Theta: proportional to cell volume, alike on every sheet."""
        _room(grid, 2)
        return cls._normalised(grid, grid.log_weights.clone(memory_format=torch.contiguous_format), mass)

    @classmethod
    def from_particles(cls, grid: Grid, particles: "ParticleMeasure", *, width: float = 3.0) -> "GridMeasure":
        """Particles spread over a grid of lines on (w, a): each becomes a Gaussian of std width * h.

        See `deposit` for what that does to the measure.
        """
        return deposit(grid, particles.positions, particles.masses, width=width)

    @classmethod
    def _normalised(cls, grid: Grid, log_masses: Tensor, mass: float) -> "GridMeasure":
        """In place, unless gradients are asked for."""
        if not (math.isfinite(mass) and mass > 0):
            raise MeasureError(f"received a total mass of {mass}, need a positive finite number")
        plain = log_masses.detach()
        top = float(plain.max())
        if top == LOG_ZERO:
            raise MeasureError("received a density without mass, need a positive value at one node at least")
        total = sum(float((x.double() - top).exp().sum()) for (x,) in parts(plain))
        if log_masses.requires_grad:
            raised = log_masses.double() - top
            return cls(grid, (raised - torch.logsumexp(raised.reshape(-1), 0) + math.log(mass)).to(grid.dtype))
        shift = math.log(mass) - math.log(total)
        for (x,) in parts(log_masses):  # the top first: beside -1e30, the sum of a shift with it would be lost
            x.copy_((x.double() - top) + shift)
        return cls(grid, log_masses)

    @classmethod
    def known(cls, grid: Grid, log_masses: Float[Tensor, "*grid"], masses: Float[Tensor, "*grid"]) -> "GridMeasure":
        """A measure whose masses, exp(log_masses), have been computed already; nothing is checked."""
        measure = object.__new__(cls)
        # Where a frozen dataclass keeps its fields, and cached_property its values.
        measure.__dict__.update(grid=grid, log_masses=log_masses, masses=masses)
        return measure

    @cached_property
    def masses(self) -> Float[Tensor, "*grid"]:
        """exp(log_masses)."""
        return passes.masses(self.log_masses)

    @cached_property
    def _look(self) -> passes.Look:
        factors = self.grid.factors
        rising = [k for k, f in enumerate(factors) if f.size > 1 and isinstance(f, Line | Circle)]
        return passes.look(self.masses, [f.cut for f in factors], rising)

    @property
    def profiles(self) -> list[Float[Tensor, " k"]]:
        """For each axis the mass of each of its nodes, in float64: of a single one perhaps `masses` itself."""
        return self._look.profiles

    @property
    def mass(self) -> Float[Tensor, ""]:
        """Total mass, summed in float64."""
        return self._look.mass

    @cached_property
    def boundary_mass(self) -> Float[Tensor, ""]:
        """The share of the mass that sits on an artificial edge of the box."""
        return self._look.edge / self.mass

    @cached_property
    def width(self) -> Float[Tensor, ""]:
        """The smallest width over lines and circles, in nodes: 1 / sqrt of the Fisher information along the axis.

        For a Gaussian it is std / h; for mass on one node .35; features that hold a share f of the mass and are
        s wide show as s / sqrt(f). Infinite where no axis has neighbours (sheets, spheres).
        """
        rises = []
        for k, rise in zip(self._look.rising, self._look.rises, strict=True):
            if isinstance(self.grid.factors[k], Circle):  # whose ends are neighbours
                first, last = (self.masses.select(k, end).double().sqrt() for end in (0, -1))
                rise = rise + (first - last).square().sum()
            rises.append(rise)
        return (4 * torch.stack(rises).amax() / self.mass).rsqrt() if rises else self.mass * math.inf

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "GridMeasure":
        """The same measure on another device or in another dtype."""
        return GridMeasure(self.grid.to(device=device, dtype=dtype), self.log_masses.to(device=device, dtype=dtype))

    def to_particles(self, *, drop: float = 1e-12) -> "ParticleMeasure":
        """Particles on the grid's own nodes with the grid's own masses: no sampling error.

        Args:
            drop: nodes that hold less than this share of the largest node's mass are left out; the others are
                scaled up so that the total mass is kept.

        Raises:
            MeasureError: on circles, spheres or sheets, where the way's own `particles(measure)` knows the neurons.
        """
        if not all(isinstance(f, Line) for f in self.grid.factors):
            raise MeasureError(f"received {self.grid!r}, whose nodes are no (w, a): use neurons.particles(measure)")
        positions, masses = heavy_nodes(self, drop)
        return ParticleMeasure(positions, masses)

    def plot(
        self, neurons: "Neurons | None" = None, X: Float[Tensor, "n d"] | None = None
    ) -> "matplotlib.figure.Figure":
        """Densities: a curve for every coordinate and a map for every pair, or a map of the sphere, sheet by sheet.

        Args:
            neurons: the way the measure is seen by, by default the first that takes the grid.
            X: data whose kinks w . x = 0 are drawn on directions, where they are few.

        Raises:
            MeasureError: for a grid that is not the way's, or that of none.
        """
        from .show.pictures import plot_measure

        return plot_measure(self, neurons, X)

    def __repr__(self) -> str:
        return f"GridMeasure(mass={float(self.mass):.6g}, width={float(self.width):.3g} nodes, {self.grid!r})"

    def _repr_html_(self) -> str:
        boxed = any(bool(f.edge.any()) for f in self.grid.factors)
        rows = [("mass", f"{float(self.mass):.6g}"), ("narrowest feature", f"{float(self.width):.3g} nodes")]
        edge = [("share at the edge of the box", f"{float(self.boundary_mass):.3g}")] if boxed else []
        return table("GridMeasure", [*rows, *edge, *self.grid.facts()])


@dataclass(frozen=True, eq=False)
class ParticleMeasure:
    """Neurons with masses: sum_i masses_i delta_(w_i, a_i).

    Attributes:
        positions: (m, d + 1), the first layer w and then the second layer a.
        masses: (m,), not negative.

    Raises:
        MeasureError: for NaN or inf, shapes that disagree, a dtype or device mixture, or no mass.
    """

    positions: Float[Tensor, "m k"]
    masses: Float[Tensor, " m"]

    def __post_init__(self) -> None:
        if self.positions.ndim != 2 or self.masses.shape != self.positions.shape[:1]:
            raise MeasureError(
                f"received positions {tuple(self.positions.shape)} and masses {tuple(self.masses.shape)}, "
                "need (m, d + 1) and (m,)"
            )
        if not self.positions.is_floating_point():
            raise MeasureError(f"received positions in {self.positions.dtype}, need floating point: convert them")
        if self.positions.dtype != self.masses.dtype or self.positions.device != self.masses.device:
            raise MeasureError(
                f"received positions in {self.positions.dtype} on {self.positions.device} and masses in "
                f"{self.masses.dtype} on {self.masses.device}, need the same: convert one with .to()"
            )
        low, high = _range(self.masses)
        if not all(map(math.isfinite, (low, high, *_range(self.positions)))):
            raise MeasureError("received positions or masses with NaN or inf among them, need finite numbers")
        if not 0 <= low <= high or high == 0:
            raise MeasureError("received masses that are negative or all zero, need masses >= 0 with some mass")

    @classmethod
    def from_network(cls, W: Float[Tensor, "m d"], a: Float[Tensor, " m"]) -> "ParticleMeasure":
        """The network (1/m) sum_i relu(w_i . x) a_i: every neuron has mass 1/m."""
        if W.ndim != 2 or a.shape != W.shape[:1] or not a.numel():
            raise MeasureError(f"received W {tuple(W.shape)} and a {tuple(a.shape)}, need (m, d) and (m,), m >= 1")
        if not W.is_floating_point():
            raise MeasureError(f"received W in {W.dtype}, need floating point: convert it")
        if W.dtype != a.dtype or W.device != a.device:
            raise MeasureError(f"received W in {W.dtype} on {W.device} and a in {a.dtype} on {a.device}, need the same")
        positions = torch.cat([W, a[:, None]], dim=1)
        return cls(positions, torch.full_like(a, 1 / a.numel()))

    @property
    def w(self) -> Float[Tensor, "m d"]:
        """First layer."""
        return self.positions[:, :-1]

    @property
    def a(self) -> Float[Tensor, " m"]:
        """Second layer."""
        return self.positions[:, -1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of values on the nodes: (m,)."""
        return tuple(self.masses.shape)

    @cached_property
    def mass(self) -> Float[Tensor, ""]:
        """Total mass, summed in float64."""
        return sum64(self.masses)

    def balanced(self) -> "ParticleMeasure":
        """The same network from neurons with |w| = |a|: each is scaled by sqrt(|a| / |w|) in w and its inverse in a."""
        norm, a = self.w.norm(dim=1, keepdim=True), self.a[:, None]
        root = (norm * a.abs()).sqrt()
        w = torch.where(norm > 0, self.w / norm, 0.0) * root
        return ParticleMeasure(torch.cat([w, a.sign() * root], dim=1), self.masses)

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "ParticleMeasure":
        """The same particles on another device or in another dtype."""
        return ParticleMeasure(
            self.positions.to(device=device, dtype=dtype), self.masses.to(device=device, dtype=dtype)
        )

    def plot(
        self, neurons: "Neurons | None" = None, X: Float[Tensor, "n d"] | None = None
    ) -> "matplotlib.figure.Figure":
        """Densities: a curve for every coordinate and a map for every pair, or a map of the sphere, sheet by sheet.

        Args:
            neurons: the way the measure is seen by, Lifted by default.
            X: data whose kinks w . x = 0 are drawn on directions, where they are few.
        """
        from .show.pictures import plot_measure

        return plot_measure(self, neurons, X)

    def __repr__(self) -> str:
        m, k = self.positions.shape
        return f"ParticleMeasure({m:,} neurons in R^{k}, mass={float(self.mass):.6g}, {self.positions.dtype})"

    def _repr_html_(self) -> str:
        rows = [
            ("neurons (w, a)", f"{len(self.positions):,} in R^{self.positions.shape[1]}"),
            ("mass", f"{float(self.mass):.6g}"),
            ("largest |w|", f"{float(self.w.norm(dim=1).max()):.4g}"),
            ("a", f"{float(self.a.min()):.4g} to {float(self.a.max()):.4g}"),
            ("numbers", f"{str(self.positions.dtype).removeprefix('torch.')} on {self.positions.device}"),
        ]
        return table("ParticleMeasure", rows)


Measure = GridMeasure | ParticleMeasure


def _room(grid: Grid, arrays: int) -> None:
    """Raise MeasureError unless so many arrays of N fit into memory."""
    check_memory(grid, lambda shape: 8 * arrays * math.prod(shape), "measures", error=MeasureError)


def _range(values: Tensor) -> tuple[float, float]:
    """Lowest and highest, both NaN where one is: a pass without a temporary, five times faster than isfinite."""
    if not values.numel():
        return 0.0, 0.0
    low, high = values.detach().aminmax()
    return float(low), float(high)


def heavy_nodes(measure: GridMeasure, drop: float) -> tuple[Float[Tensor, "m k"], Float[Tensor, " m"]]:
    """Coordinates and masses of the nodes above `drop` times the largest, the total mass kept."""
    if not 0 <= drop < 1:
        raise MeasureError(f"received drop = {drop}, need a share in [0, 1) of the heaviest node's mass")
    masses = measure.masses.reshape(-1)
    kept = (masses > drop * masses.max()).nonzero().reshape(-1)
    chosen = masses[kept]
    scale = measure.mass / chosen.sum(dtype=torch.float64)
    index = torch.unravel_index(kept, measure.grid.shape)
    columns = [f.nodes[i] for f, i in zip(measure.grid.factors, index, strict=True)]
    return torch.cat(columns, dim=1), (chosen.double() * scale).to(chosen.dtype)


def deposit(
    grid: Grid, points: Float[Tensor, "m k"], masses: Float[Tensor, " m"], *, width: float = 3.0
) -> GridMeasure:
    """Point masses on a grid of lines: shared among the 2^k nodes around each point, then spread by a Gaussian.

    The Gaussian has std `width` nodes on every axis (h the axis' largest spacing), so no node is left empty and
    nothing is locked (mathematics.md 3, hazard i). Total mass is kept; the mean moves only where a Gaussian meets the
    edge of the box; the variance grows by (width h)^2 + at most h^2/4 per axis. Cost: one kernel application.

    Raises:
        GridError: for points outside the box, or a grid that is not of lines.
    """
    if not all(isinstance(f, Line) for f in grid.factors) or points.shape[1] != len(grid.factors):
        raise GridError(f"received points in R^{points.shape[1]} for {grid!r}, need a grid of as many lines")
    if points.dtype != grid.dtype or points.device != grid.device:
        raise GridError(
            f"received points in {points.dtype} on {points.device}, need the grid's {grid.dtype} on {grid.device}"
        )
    if not 1 / _WIDEST <= width <= _WIDEST:  # beyond, squares of distances in widths overflow, or nodes fall together
        raise GridError(
            f"received a width of {width} nodes, need a positive number from {1 / _WIDEST:g} to {_WIDEST:g}: 3 is the "
            "default"
        )
    _room(grid, 4)
    shared = torch.zeros(grid.size, dtype=torch.float64, device=grid.device)
    lower, upper = [], []  # per axis: (node, share)
    for k, f in enumerate(grid.factors):
        left, right, share = between(f, points[:, k], k)
        lower.append((left, 1 - share))
        upper.append((right, share))
    strides = [math.prod(grid.shape[k + 1 :]) for k in range(len(grid.factors))]
    for corner in range(2 ** len(grid.factors)):
        node = torch.zeros_like(masses, dtype=torch.long)
        share = masses.double()
        for k, stride in enumerate(strides):
            index, part = (upper if corner >> k & 1 else lower)[k]
            node, share = node + index * stride, share * part
        shared.index_add_(0, node, share)
    log_shared = shared.reshape(grid.shape).log().to(grid.dtype)
    # Axes are measured in units of their own width, so that one epsilon blurs them all.
    lines = [f if f.size == 1 else Line.at(f.nodes[:, 0] / (width * f.spacing)) for f in grid.factors]
    cells = tuple(Line(x.nodes, f.log_weights, f.edge, x.spacing) for x, f in zip(lines, grid.factors, strict=True))
    return GridMeasure(grid, spread(Separable(Grid(cells), 1.0), log_shared))


_WIDEST = 1e6


def between(line: Factor, t: Float[Tensor, " m"], axis: int) -> tuple[Tensor, Tensor, Float[Tensor, " m"]]:
    """The nodes on either side of each coordinate, and the right one's share of a mass there, in float64.

    Raises:
        GridError: for coordinates beyond an end that is an artificial edge.
    """
    x, t = line.nodes[:, 0].contiguous(), t.contiguous()
    if bool(((t < x[0]) & line.edge[0]).any() | ((t > x[-1]) & line.edge[-1]).any()):
        worst = float(t.abs().max())
        raise GridError(
            f"received a neuron with coordinate {worst:.4g} on axis {axis}, need all within "
            f"[{float(x[0]):.4g}, {float(x[-1]):.4g}]: widen the grid"
        )
    left = (torch.searchsorted(x, t, right=True) - 1).clamp(0, max(line.size - 2, 0))
    right = (left + 1).clamp(max=line.size - 1)
    gap = (x[right] - x[left]).masked_fill(right == left, 1.0)
    return left, right, ((t - x[left]) / gap).clamp(0, 1).double()


def spread(kernel: GibbsKernel, log_masses: Float[Tensor, "*grid"]) -> Float[Tensor, "*grid"]:
    """Blur masses by a kernel's shape over the cells: every node's share is normalised, so the mass is kept exactly."""
    weights = kernel.grid.log_weights
    return kernel.log_apply(log_masses - kernel.log_apply(weights)) + weights
