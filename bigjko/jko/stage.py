"""The nodes a step works on: all of them, or the box outside which there is no mass to speak of."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, takewhile

import torch
from torch import Tensor

from bigjko_kernels import Grid, Line
from bigjko_kernels.pages import empty_like
from bigjko_kernels.sums import sum64

from ..energy import Composite
from ..measure import GridMeasure
from ..transport import Transport
from .box import DualBox

Box = tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class Stage:
    """A grid, or a box of a larger one, with everything a step needs on it.

    Attributes:
        box: nodes of the whole grid, factor by factor; None for all.
        grid: their grid.
        composite: the energy on it.
        transport: T_eps on it.
    """

    box: Box | None
    grid: Grid
    composite: Composite
    transport: Transport

    @cached_property
    def dual_box(self) -> DualBox:
        """That of the energy's loss and labels, on the host."""
        return DualBox(self.composite.loss, self.composite.targets.cpu())

    def cut(self, x: Tensor) -> Tensor:
        """The values of the whole grid that lie on the stage."""
        return x if self.box is None else x[self.box].contiguous()

    def measure(self, measure: GridMeasure) -> tuple[Tensor, Tensor]:
        """Log masses and masses on the stage."""
        if isinstance(measure, BoxedMeasure) and measure.box == self.box:
            return measure.on_box.log_masses, measure.on_box.masses
        return self.cut(measure.log_masses), self.cut(measure.masses)

    def moved(self, measure: GridMeasure, outside: float, new: GridMeasure) -> GridMeasure:
        """The measure with what lies on the stage replaced by another; `outside` is the mass of the rest."""
        if self.box is None:
            return new
        if isinstance(measure, BoxedMeasure) and measure.box == self.box:
            return BoxedMeasure(measure.before, self.box, new, outside, measure.edge)
        old = GridMeasure.known(self.grid, measure.log_masses[self.box], measure.masses[self.box])
        edge = float(measure.boundary_mass * measure.mass - old.boundary_mass * old.mass)
        before = GridMeasure.known(measure.grid, measure.log_masses, measure.masses)  # no chain of boxes
        return BoxedMeasure(before, self.box, new, outside, max(0.0, edge))

    def leaving(self, masses: Tensor, whole: Grid) -> float:
        """Mass on the layers where the box cuts the whole grid: more would lie beyond it."""
        if self.box is None:
            return 0.0
        total = 0.0
        for k, (side, f) in enumerate(zip(self.box, whole.factors, strict=True)):
            ends = [i for i, cut in ((0, side.start > 0), (-1, side.stop < f.size)) if cut]
            total += sum(float(masses.select(k, i).sum(dtype=torch.float64)) for i in ends)
        return total


class BoxedMeasure(GridMeasure):
    """A measure that a step left as it was outside a box: put together when it is first asked for its values.

    So that steps cost what their boxes do, and no passes over the grid.

    Attributes:
        before: the measure that it is outside the box.
        box: nodes.
        on_box: the measure on them.
        outside, edge: mass beyond the box, and how much of it is on an artificial edge.
    """

    def __init__(self, before: GridMeasure, box: Box, on_box: GridMeasure, outside: float, edge: float) -> None:
        # Where a frozen dataclass keeps its fields, and cached_property its values.
        self.__dict__.update(grid=before.grid, before=before, box=box, on_box=on_box, outside=outside, edge=edge)

    before: GridMeasure
    box: Box
    on_box: GridMeasure
    outside: float
    edge: float

    def _together(self, whole: Tensor, part: Tensor) -> Tensor:
        out = empty_like(whole).copy_(whole)
        out[self.box] = part
        return out

    @cached_property
    def log_masses(self) -> Tensor:
        """See GridMeasure."""
        return self._together(self.before.log_masses, self.on_box.log_masses)

    @cached_property
    def masses(self) -> Tensor:
        """See GridMeasure."""
        return self._together(self.before.masses, self.on_box.masses)

    @cached_property
    def mass(self) -> Tensor:
        """See GridMeasure."""
        return self.on_box.mass + self.outside

    @cached_property
    def boundary_mass(self) -> Tensor:
        """See GridMeasure."""
        return (self.on_box.boundary_mass * self.on_box.mass + self.edge) / self.mass


def support(measure: GridMeasure, idle: float, margin: int) -> tuple[Box, float] | None:
    """The box that holds all mass but a share `idle`, and `margin` nodes more, with the mass outside it.

    None where it is no saving. Lines alone are cut; ends lie on multiples of 4 nodes, so that a flow seldom needs
    another box: what is outside the last one is looked at only once the mass inside asks for another.
    """
    if idle == 0:
        return None
    allowed = idle * float(measure.mass)
    if isinstance(measure, BoxedMeasure):
        box = _around(measure.on_box.profiles, measure.box, measure.grid, allowed - measure.outside, margin)
        if box == measure.box:
            return box, measure.outside
    everything = tuple(slice(0, size) for size in measure.grid.shape)
    along = measure.profiles
    box = _around(along, everything, measure.grid, allowed, margin)
    if math.prod(s.stop - s.start for s in box) > _SAVING * measure.grid.size:
        return None
    first = box[0]
    outside = along[0][: first.start].sum() + along[0][first.stop :].sum()
    rest = measure.masses[first]
    for k, s in enumerate(box[1:], 1):  # what lies outside along an axis, and not along an earlier one
        outside += sum64(rest.narrow(k, 0, s.start)) + sum64(rest.narrow(k, s.stop, rest.shape[k] - s.stop))
        rest = rest.narrow(k, s.start, s.stop - s.start)
    return box, float(outside)


def _around(along: list[Tensor], held: Box, grid: Grid, allowed: float, margin: int) -> Box:
    """The box that leaves out no more than is allowed of a mass with these profiles on the nodes `held`."""
    lines = [k for k, f in enumerate(grid.factors) if isinstance(f, Line) and f.size > 2 * _ROUND]
    box, spare = list(held), max(0.0, allowed) / (2 * max(1, len(lines)))
    for k in lines:
        mass = along[k].tolist()
        low, high = (_light(x, spare) for x in (mass, reversed(mass)))
        start = max(0, (held[k].start + low - margin) // _ROUND * _ROUND)
        stop = min(grid.shape[k], -(-(held[k].stop - high + margin) // _ROUND) * _ROUND)
        box[k] = slice(start, stop)
    return tuple(box)


def _light(masses: Iterable[float], spare: float) -> int:
    """How many of the first nodes hold no more than that together."""
    return sum(1 for _ in takewhile(spare.__ge__, accumulate(masses)))


def continued(d: Tensor, box: Box, old: Tensor, whole: Transport) -> Tensor:
    """A potential on the whole grid: outside the box the old one, or where it is larger a parabola that falls.

    There is no mass there that could tell, but the next steps may bring some, and by then the old d would be wrong by
    factors of exp(70): in a step on the whole grid d follows the tails of its measure. The old one fits the mass that
    stays where it is; an old one of -inf is the parabola alone.
    """
    if whole.kernel.grid.uniform_weights:
        return _continued(d, box, old)
    volumes = whole.neutral()  # which are no tail
    return _continued(d - volumes[box], box, old - volumes).add_(volumes)


def _continued(d: Tensor, box: Box, old: Tensor) -> Tensor:
    out, least = old.clone(), float(d.min())
    out[box] = d
    area = list(box)
    for k, size in enumerate(old.shape):
        start, stop = area[k].start, area[k].stop
        for edge, inwards, rim in ((start, 1, range(start)), (stop - 1, -1, range(stop, size))):
            side, next_, last, beyond = (
                out[(*area[:k], nodes, *area[k + 1 :])]
                for nodes in (
                    *(slice(i, i + 1) for i in (edge, edge + inwards, edge + 2 * inwards)),
                    slice(rim.start, rim.stop),
                )
            )
            fall, bend = (side - next_).clamp(max=0.0), (side - 2 * next_ + last).clamp(max=0.0) / 2
            steps = (torch.arange(rim.start, rim.stop, dtype=d.dtype, device=d.device) - edge).abs()
            steps = steps.reshape([-1 if j == k else 1 for j in range(d.ndim)])
            parabola = torch.addcmul(fall, bend, steps + 1).mul_(steps).add_(side)
            beyond.copy_(torch.maximum(beyond, parabola)).clamp_(min=least)
        area[k] = slice(0, size)
    return out


def part(grid: Grid, box: Box) -> Grid:
    """The grid of a box's nodes."""
    return Grid(
        tuple(
            f if side == slice(0, f.size) else Line(f.nodes[side], f.log_weights[side], f.edge[side], f.spacing)
            for f, side in zip(grid.factors, box, strict=True)
        )
    )


_ROUND = 4
_SAVING = (
    0.25  # the nodes that a widening box meets anew make gap_d twice as large: not for less than a factor of three
)
