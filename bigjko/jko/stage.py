"""The nodes a step works on: all of them, or the box outside which there is no mass to speak of."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bigjko_kernels import Grid, Line
from bigjko_kernels.pages import empty_like
from bigjko_kernels.sums import profile

from ..energy import Composite
from ..measure import GridMeasure
from ..transport import Transport

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

    def cut(self, x: Tensor) -> Tensor:
        """The values of the whole grid that lie on the stage."""
        return x if self.box is None else x[self.box].contiguous()

    def paste(self, part: Tensor, whole: Tensor) -> Tensor:
        """The whole grid's values with those on the stage replaced."""
        if self.box is None:
            return part
        out = empty_like(whole).copy_(whole)
        out[self.box] = part
        return out

    def continued(self, d: Tensor, old: Tensor, whole: Transport) -> Tensor:
        """The potential on the whole grid: outside the box the old one, or where it is larger a parabola that falls.

        There is no mass there that could tell, but the next steps may bring some, and by then the old d would be wrong
        by factors of exp(70): in a step on the whole grid d follows the tails of its measure. The old one fits the mass
        that stays where it is.
        """
        if self.box is None:
            return d
        return continued(d, self.box, old, whole)

    def leaving(self, masses: Tensor, whole: Grid) -> float:
        """Mass on the layers where the box cuts the whole grid: more would lie beyond it."""
        if self.box is None:
            return 0.0
        total = 0.0
        for k, (side, f) in enumerate(zip(self.box, whole.factors, strict=True)):
            ends = [i for i, cut in ((0, side.start > 0), (-1, side.stop < f.size)) if cut]
            total += sum(float(masses.select(k, i).sum(dtype=torch.float64)) for i in ends)
        return total


def support(measure: GridMeasure, idle: float, margin: int) -> Box | None:
    """The box that holds all mass but a share `idle`, and `margin` nodes more; None where it is no saving.

    Lines alone are cut; ends lie on multiples of 4 nodes, so that a flow seldom needs another box.
    """
    grid = measure.grid
    lines = [k for k, f in enumerate(grid.factors) if isinstance(f, Line) and f.size > 2 * _ROUND]
    if not lines or idle == 0:
        return None
    box = [slice(0, f.size) for f in grid.factors]
    spare = idle * float(measure.mass) / (2 * len(lines))
    masses = measure.masses
    while lines:  # the leading axis first: the sums that follow have less left to add
        k = lines.pop(0)
        held, size = profile(masses, k).cpu(), grid.shape[k]
        low = int((held.cumsum(0) <= spare).sum())
        high = size - int((held.flip(0).cumsum(0) <= spare).sum())
        start = max(0, (low - margin) // _ROUND * _ROUND)
        stop = min(size, -(-(high + margin) // _ROUND) * _ROUND)
        box[k] = slice(start, stop)
        masses = masses.narrow(k, start, stop - start)
    return tuple(box) if math.prod(s.stop - s.start for s in box) <= _SAVING * grid.size else None


def continued(d: Tensor, box: Box, old: Tensor, whole: Transport) -> Tensor:
    """See Stage.continued; an old one of -inf is the parabola alone."""
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
