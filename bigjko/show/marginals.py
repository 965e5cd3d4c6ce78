"""Where the mass of two flows is: a grid's measure and particles on the same cells, a frame for every time."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bigjko_kernels import Circle, Factor, Grid, Line, Sphere

from ..measure import GridMeasure, Measure, ParticleMeasure
from ..neurons.base import Neurons
from .panels import AREA, AXIS, BOTH, DOTTED, SHARED, Block, Cloud, Panel, heat, line, numbers, where
from .sphere import sphere_blocks

Pair = tuple[GridMeasure, Measure | None]  # of the grid and of particles at one time; None where those kept none
AnyPair = tuple[Measure, Measure | None]  # of any two flows, or of one alone
Key = tuple[int, ...]  # coordinates that are drawn together

_MANY = 100_000  # points, of which those with less than _TRACE of the heaviest's mass are left out: most of 128^3
_TRACE = 1e-4
_SEEN = 2e-3  # of the largest density: axes end where neither flow ever has more
_EVEN = 48  # cells of an axis on which the grid has no nodes of its own
_PARTICLES = 28  # the same without a grid: particles begin on nodes, which finer cells would beat against
_CELLS = 256  # an axis at most; finer grids are read on every second node, or third, ...
_PIXELS = 64  # an axis of a map at most, each the mean of whole cells, so that nothing beats against the grid
_MAPS = 3  # coordinates at most for which every pair has a map
_KINKS = 12  # data at most whose kinks are drawn
_TURN = 2 * math.pi
_DEGREES = 360 / _TURN


def measure_blocks(
    way: Neurons,
    X: Float[Tensor, "n d"],
    pairs: Sequence[AnyPair],
    names: tuple[str, str],
    directions: Grid | None = None,
) -> list[Block]:
    """Densities of both flows: a curve for every coordinate and a map for every pair of them, sheet by sheet.

    Args:
        way: whose `clouds` are the coordinates that grids and particles share.
        X: the data, whose kinks are drawn where they are few.
        pairs: the measures at the times of the slider.
        names: of the flows.
        directions: whose nodes are looked at where the first flow has no grid; without, coordinates alone.
    """
    final, dim = pairs[-1][0], X.shape[1]
    factors = final.grid.factors if isinstance(final, GridMeasure) else directions.factors if directions else ()
    X = X.detach().cpu().double()[: len(X) if len(X) <= _KINKS else 0]
    sphere = next((f for f in factors if isinstance(f, Sphere) and f.nodes.shape[1] == 3), None)
    if sphere is not None:
        return sphere_blocks(_clouds(way, pairs), len(pairs), sphere, X, names)
    axes = _axes(dim, factors, _seen(way, pairs), _EVEN if isinstance(final, GridMeasure) else _PARTICLES)
    keys: list[Key] = [(k,) for k in range(len(axes))]
    keys += combinations(range(len(axes)), 2) if len(axes) <= _MAPS else []
    held: dict[str, dict[Key, Tensor]] = {}  # by sheet and coordinates: times x flows x cells
    beyond = 0.0
    for t, flow, sheet, points, masses in _clouds(way, pairs):
        empty = {key: torch.full((len(pairs), 2, *(len(axes[k].at) for k in key)), math.nan) for key in keys}
        x = _coordinates(factors, points)
        places = [axis.places(x[:, k]) for k, axis in enumerate(axes)]
        inside = torch.stack([inside for *_, inside in places]).all(0)
        beyond = max(beyond, 1 - float(masses[inside].sum() / masses.sum())) if len(masses) else beyond
        for key, cells in held.setdefault(sheet, empty).items():
            cells[t, flow] = _shared([places[k] for k in key], [axes[k] for k in key], masses * inside)
    note = f" Up to {beyond:.2%} of the mass is outside these axes." if beyond > 1e-4 else ""
    kinks = _kink_angles(X) if axes[0].turns and dim == 2 else []
    blocks = []
    for sheet, by_key in held.items():
        windows = [_window(axis, [rows[(k,)] for rows in held.values()]) for k, axis in enumerate(axes)]
        curves = [_marginal(axis, windows[k], by_key[(k,)], names, kinks) for k, axis in enumerate(axes)]
        maps = [
            panel
            for key in keys
            if len(key) == 2
            for panel in _maps([axes[k] for k in key], [windows[k] for k in key], by_key[key], names)
        ]
        about = f"{AXIS}{SHARED}{note}{DOTTED if kinks else ''}"
        blocks.append(Block(f"Marginals{where(sheet)}", about, curves, 3 if len(curves) == 3 else 2))
        if maps:
            blocks.append(Block(f"Pairs of coordinates{where(sheet)}", f"{AREA}{BOTH}", maps))
    if len(axes) > 1 or len(held) == 1:
        return blocks
    panels = [
        replace(panel, title=f"{panel.title}{where(sheet)}")
        for sheet, block in zip(held, blocks, strict=True)
        for panel in block.panels
    ]
    return [Block("Marginals", blocks[0].about, panels)]


def _seen(way: Neurons, pairs: Sequence[AnyPair]) -> Float[Tensor, "m k"]:
    """The points that axes have to cover: of a grid its last nodes, of particles all places they have been in."""
    final = pairs[-1][0]
    measures = [final] if isinstance(final, GridMeasure) else [one for one, _ in pairs]
    ends = []
    for measure in measures:
        for points, masses in way.clouds(measure).values():
            held = points[masses > 0] if isinstance(measure, ParticleMeasure) else points
            ends += [end.detach().cpu().double() for end in held.aminmax(dim=0)] if len(held) else []
    return torch.stack(ends)


def _clouds(way: Neurons, pairs: Sequence[AnyPair]) -> Iterator[Cloud]:
    """In float64 on the CPU, one measure at a time in memory."""
    for t, both in enumerate(pairs):
        for flow, measure in enumerate(both):
            for sheet, (points, masses) in (way.clouds(measure) if measure is not None else {}).items():
                kept = masses > (_TRACE * masses.max() if len(masses) > _MANY else 0)
                yield t, flow, sheet, points[kept].detach().cpu().double(), masses[kept].detach().cpu().double()


# -------------------------------------------------------------------------------------- lines, circles and their pairs


@dataclass(frozen=True)
class _Axis:
    """A coordinate and where it is looked at; a circle's starts again after a turn."""

    name: str
    at: Float[Tensor, " n"]
    turns: bool = False
    box: bool = True  # whether a unit is as long as on the other axes

    @property
    def ends(self) -> Float[Tensor, " m"]:
        return torch.cat([self.at, self.at[:1] + _TURN]) if self.turns else self.at

    @property
    def cells(self) -> Float[Tensor, " n"]:
        """Lengths, in degrees on a circle: half way to the neighbours."""
        gaps = self.ends.diff()
        if self.turns:
            return (gaps + gaps.roll(1)) / 2 * _DEGREES
        return torch.cat([gaps[:1], gaps[1:] + gaps[:-1], gaps[-1:]]) / 2

    def places(self, x: Float[Tensor, " m"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The nodes on either side, the right one's share, and whether x is on the axis at all."""
        ends = self.ends
        if self.turns:
            x = (x - ends[0]) % _TURN + ends[0]
        left = (torch.searchsorted(ends, x.contiguous(), right=True) - 1).clamp(0, len(ends) - 2)
        share = (x - ends[left]) / (ends[left + 1] - ends[left])
        slack = 1e-9 * (ends[-1] - ends[0])  # rounding of nodes on the ends
        inside = (x >= ends[0] - slack) & (x <= ends[-1] + slack)
        return left, (left + 1) % len(self.at), share.clamp(0, 1), inside


def _axes(dim: int, factors: Sequence[Factor], points: Float[Tensor, "m k"], even: int) -> list[_Axis]:
    """On the grid's nodes where the coordinates are its lines or its circle; evenly over the last measure if not."""
    circle = next((f for f in factors if isinstance(f, Circle)), None)
    lines = [f.nodes[:, 0].cpu().double() for f in factors if isinstance(f, Line)]
    if circle is not None:
        angles = torch.atan2(circle.nodes[:, 1], circle.nodes[:, 0]).cpu().double() % _TURN
        of = "w" if dim == 2 else "(w, a)"
        found = [_Axis(f"angle of {of}", _few(angles.sort().values, turns=True), turns=True, box=False)]
        scale = [_Axis("r" if bool((x >= 0).all()) else "s", _few(x), box=False) for x in lines]
        return found + scale
    names = [f"w{k + 1}" for k in range(dim)] + ["a"] * (points.shape[1] == dim + 1)
    found = []
    for k in range(points.shape[1]):
        low, high = (float(x) for x in points[:, k].aminmax())
        x = lines[k] if k < len(lines) else points.new_zeros(0)
        if not len(x) or low < float(x[0]) or high > float(x[-1]):
            x = torch.linspace(low, high, even, dtype=torch.float64)
        found.append(_Axis(names[k] if k < len(names) else f"x{k + 1}", _few(x)))
    return [axis for axis in found if len(axis.at) > 1 and float(axis.at[-1]) > float(axis.at[0])]


def _few(x: Float[Tensor, " n"], turns: bool = False) -> Float[Tensor, " m"]:
    """Every so-manieth node, and the last one of a line."""
    step = math.ceil(len(x) / _CELLS)
    return x[::step] if turns or (len(x) - 1) % step == 0 else torch.cat([x[::step], x[-1:]])


def _coordinates(factors: Sequence[Factor], points: Float[Tensor, "m k"]) -> Float[Tensor, "m c"]:
    """Angles and scales on a circle, the points' own elsewhere."""
    if not any(isinstance(f, Circle) for f in factors):
        return points
    columns = [torch.atan2(points[:, 1], points[:, 0])]
    for f in factors:
        if isinstance(f, Line):  # a cone's radius r stands as a = +r and -r on its sheets
            columns.append(points[:, -1].abs() if bool((f.nodes >= 0).all()) else points[:, -1])
    return torch.stack(columns, dim=1)


def _shared(places: list[Any], axes: list[_Axis], masses: Float[Tensor, " m"]) -> Tensor:
    """Density at the nodes: each mass is shared by those around it, in proportion to nearness."""
    size = math.prod(len(axis.at) for axis in axes)
    total = torch.zeros(size, dtype=torch.float64)
    for corner in range(2 ** len(axes)):
        index, part = torch.zeros(len(masses), dtype=torch.long), masses
        for k, (left, right, share, _) in enumerate(places):
            high = corner >> k & 1
            index = index * len(axes[k].at) + (right if high else left)
            part = part * (share if high else 1 - share)
        total += torch.bincount(index, part, minlength=size)
    volume = axes[0].cells
    for axis in axes[1:]:
        volume = volume[:, None] * axis.cells
    return total.reshape(volume.shape) / volume


def _window(axis: _Axis, densities: list[Tensor]) -> slice:
    """Where one of the flows has something to see at some time; all of a circle."""
    if axis.turns:
        return slice(None)
    seen = torch.zeros(len(axis.at), dtype=torch.bool)
    for rows in densities:
        seen |= (rows > _SEEN * rows.amax(2, keepdim=True)).any(0).any(0)
    where = seen.nonzero()[:, 0]
    return slice(max(int(where[0]) - 1, 0), int(where[-1]) + 2) if len(where) else slice(None)


def _marginal(
    axis: _Axis, window: slice, rows: Float[Tensor, "T 2 n"], names: tuple[str, str], kinks: list[float]
) -> Panel:
    """Both flows over one coordinate."""
    layout: dict[str, Any] = {"xaxis": {"title": axis.name}, "yaxis": {"title": "mass per unit"}}
    at, title, rows = axis.at[window], f"Density of {axis.name}", rows[..., window]
    if axis.turns:
        at, rows = axis.ends * _DEGREES, torch.cat([rows, rows[..., :1]], dim=2)
        title = f"Density over the {axis.name}"
        layout = {
            "xaxis": {"title": f"{axis.name} (degrees)", "range": [0, 360], "dtick": 60},
            "yaxis": {"title": "mass per degree"},
            "shapes": [{"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper"} for x in kinks],
        }
    data = [line(flow == 0, name=names[flow], x=numbers(at)) for flow in (1, 0)]
    frames = [[{"y": numbers(row[1])}, {"y": numbers(row[0])}] for row in rows]
    return Panel(title, data, layout, frames, log=True)


def _kink_angles(X: Float[Tensor, "n 2"]) -> list[float]:
    """Directions w with w . x = 0, in degrees."""
    x = X[X.norm(dim=1) > 0]
    angle = torch.atan2(x[:, 1], x[:, 0]) * _DEGREES
    return [float(a) for a in numbers(torch.cat([angle + 90, angle - 90]) % 360)]


def _maps(
    axes: list[_Axis], windows: list[slice], rows: Float[Tensor, "T 2 n m"], names: tuple[str, str]
) -> list[Panel]:
    """The two flows beside one another, over a pair of coordinates."""
    cells = rows[..., windows[0], windows[1]]
    at = [axis.at[window] * (_DEGREES if axis.turns else 1) for axis, window in zip(axes, windows, strict=True)]
    for k in (0, 1):
        step = math.ceil(len(at[k]) / _PIXELS)
        at[k] = torch.stack([few.mean() for few in at[k].split(step)])
        cells = torch.stack([few.mean(k + 2) for few in cells.split(step, dim=k + 2)], dim=k + 2)
    titles = [axis.name + (" (degrees)" if axis.turns else "") for axis in axes]
    layout: dict[str, Any] = {"xaxis": {"title": titles[0]}, "yaxis": {"title": titles[1]}}
    if all(axis.box for axis in axes):
        layout["xaxis"]["constrain"] = "domain"
        layout["yaxis"] |= {"scaleanchor": "x", "constrain": "domain"}
    return heat(
        at[0], at[1], cells.transpose(2, 3), [f"{name}: {axes[0].name}, {axes[1].name}" for name in names], layout
    )
