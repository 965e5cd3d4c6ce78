"""Where the mass of two flows is: a grid's measure and particles on the same cells, a frame for every time."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bigjko_kernels import Circle, Grid, Line, Sphere

from ..measure import GridMeasure, Measure
from ..neurons.base import Neurons
from ..optional import need

Trace = dict[str, Any]
Pair = tuple[GridMeasure, Measure | None]  # of the grid and of particles at one time; None where those kept none
Key = tuple[int, ...]  # coordinates that are drawn together

_MANY = 100_000  # points, of which those with less than _TRACE of the heaviest's mass are left out: most of 128^3
_TRACE = 1e-4
_SEEN = 2e-3  # of the largest density: axes end where neither flow ever has more
_CELLS = 256  # an axis at most; finer grids are read on every second node, or third, ...
_PIXELS = 48  # an axis of a map at most, each the mean of whole cells, so that nothing beats against the grid
_MAPS = 3  # coordinates at most for which every pair has a map
_NEAREST = 4  # nodes of a sphere among which a mass is shared
_MOLLWEIDE = (96, 48)  # pixels
_KINKS = 12  # data at most whose kinks are drawn
_TURN = 2 * math.pi
_DEGREES = 360 / _TURN


@dataclass(frozen=True)
class Panel:
    """One chart, as plotly.js takes it.

    Attributes:
        title: what is drawn.
        data: traces; `meta` names the colour of a line or the scale of a map, which follow the page's theme.
        layout: where it differs from the page's own.
        frames: for every time of the slider what changes in every trace; none for a chart that stands still.
        log: whether the page's switch makes the vertical axis logarithmic.
    """

    title: str
    data: list[Trace]
    layout: dict[str, Any] = field(default_factory=dict)
    frames: list[list[Trace]] = field(default_factory=list)
    log: bool = False


@dataclass(frozen=True)
class Block:
    """Panels that belong together, `columns` beside one another where there is room, and how to read them."""

    title: str
    about: str
    panels: list[Panel]
    columns: int = 2


def numbers(values: Any, digits: int = 4) -> list[Any]:
    """A tensor as nested lists with so many digits; None for what is not finite, which JSON does not know."""
    rows = values.tolist() if isinstance(values, Tensor) else values
    return [
        numbers(x, digits) if isinstance(x, list) else float(f"{x:.{digits}g}") if math.isfinite(x) else None
        for x in rows
    ]


def line(first: bool, colour: int = 0, **more: Any) -> Trace:
    """The first flow is thin and dashed, on top of the reference, broad and pale: told apart without colour."""
    style = {"width": 1.8, "dash": "6px,3px"} if first else {"width": 5}
    opacity = 1.0 if first else 0.4
    return {"type": "scatter", "mode": "lines", "line": style, "opacity": opacity, "meta": f"c{colour}", **more}


def measure_blocks(way: Neurons, X: Float[Tensor, "n d"], pairs: list[Pair], names: tuple[str, str]) -> list[Block]:
    """Densities of both flows: a curve for every coordinate and a map for every pair of them, sheet by sheet.

    Args:
        way: whose `clouds` are the coordinates that grids and particles share.
        X: the data, whose kinks are drawn where they are few.
        pairs: the measures at the times of the slider.
        names: of the flows.
    """
    grid, dim = pairs[-1][0].grid, X.shape[1]
    X = X.detach().cpu().double()[: len(X) if len(X) <= _KINKS else 0]
    sphere = next((f for f in grid.factors if isinstance(f, Sphere) and f.nodes.shape[1] == 3), None)
    if sphere is not None:
        return _on_sphere(way, sphere, X, pairs, names)
    axes = _axes(way, dim, pairs[-1][0])
    keys: list[Key] = [(k,) for k in range(len(axes))]
    keys += combinations(range(len(axes)), 2) if len(axes) <= _MAPS else []
    held: dict[str, dict[Key, Tensor]] = {}  # by sheet and coordinates: times x flows x cells
    beyond = 0.0
    for t, flow, sheet, points, masses in _clouds(way, pairs):
        empty = {key: torch.full((len(pairs), 2, *(len(axes[k].at) for k in key)), math.nan) for key in keys}
        x = _coordinates(grid, points)
        places = [axis.places(x[:, k]) for k, axis in enumerate(axes)]
        inside = torch.stack([inside for *_, inside in places]).all(0)
        beyond = max(beyond, 1 - float(masses[inside].sum() / masses.sum())) if len(masses) else beyond
        for key, cells in held.setdefault(sheet, empty).items():
            cells[t, flow] = _shared([places[k] for k in key], [axes[k] for k in key], masses * inside)
    note = f" Up to {beyond:.2%} of the mass is outside." if beyond > 1e-4 else ""
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
        about = f"Mass per unit of the axis, at the grid's own nodes.{note}" + (_DOTTED if kinks else "")
        blocks.append(Block(f"Marginals{_where(sheet)}", about, curves, 3 if len(curves) == 3 else 2))
        if maps:
            about = "Mass per unit of area; both flows on one scale, which follows the time."
            blocks.append(Block(f"Pairs of coordinates{_where(sheet)}", about, maps))
    if len(axes) > 1 or len(held) == 1:
        return blocks
    panels = [
        replace(panel, title=f"{panel.title}{_where(sheet)}")
        for sheet, block in zip(held, blocks, strict=True)
        for panel in block.panels
    ]
    return [Block("Marginals", blocks[0].about, panels)]


_DOTTED = " Dotted: the kinks w · x = 0 of the data."


def _where(sheet: str) -> str:
    return "" if sheet == "all" else f", sheet {sheet.replace('-', '−')}"


def _clouds(way: Neurons, pairs: list[Pair]) -> Iterator[tuple[int, int, str, Tensor, Tensor]]:
    """Time, flow, sheet, points (m, k) and masses (m,), in float64 on the CPU; one measure at a time in memory."""
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


def _axes(way: Neurons, dim: int, final: GridMeasure) -> list[_Axis]:
    """On the grid's nodes where the coordinates are its lines or its circle; evenly over the last measure if not."""
    circle = next((f for f in final.grid.factors if isinstance(f, Circle)), None)
    lines = [f.nodes[:, 0].cpu().double() for f in final.grid.factors if isinstance(f, Line)]
    if circle is not None:
        angles = torch.atan2(circle.nodes[:, 1], circle.nodes[:, 0]).cpu().double() % _TURN
        of = "w" if dim == 2 else "(w, a)"
        found = [_Axis(f"angle of {of}", _few(angles.sort().values, turns=True), turns=True, box=False)]
        scale = [_Axis("r" if bool((x >= 0).all()) else "s", _few(x), box=False) for x in lines]
        return found + scale
    points = next(iter(way.clouds(final).values()))[0].cpu().double()
    names = [f"w{k + 1}" for k in range(dim)] + ["a"] * (points.shape[1] == dim + 1)
    found = []
    for k in range(points.shape[1]):
        low, high = (float(x) for x in points[:, k].aminmax())
        x = lines[k] if k < len(lines) else points.new_zeros(0)
        if not len(x) or low < float(x[0]) or high > float(x[-1]):
            x = torch.linspace(low, high, _CELLS // 2, dtype=torch.float64)
        found.append(_Axis(names[k] if k < len(names) else f"x{k + 1}", _few(x)))
    return [axis for axis in found if len(axis.at) > 1 and float(axis.at[-1]) > float(axis.at[0])]


def _few(x: Float[Tensor, " n"], turns: bool = False) -> Float[Tensor, " m"]:
    """Every so-manieth node, and the last one of a line."""
    step = math.ceil(len(x) / _CELLS)
    return x[::step] if turns or (len(x) - 1) % step == 0 else torch.cat([x[::step], x[-1:]])


def _coordinates(grid: Grid, points: Float[Tensor, "m k"]) -> Float[Tensor, "m c"]:
    """Angles and scales on a circle, the points' own elsewhere."""
    if not any(isinstance(f, Circle) for f in grid.factors):
        return points
    columns = [torch.atan2(points[:, 1], points[:, 0])]
    for f in grid.factors:
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


def heat(
    x: Tensor,
    y: Tensor,
    rows: Float[Tensor, "T 2 y x"],
    titles: list[str],
    layout: dict[str, Any],
    over: Sequence[Trace] = (),
) -> list[Panel]:
    """A map for each flow, both on one scale at every time, and what is drawn over both."""
    tops = [float(row.nan_to_num().max()) for row in rows]
    data = [{"type": "heatmap", "x": numbers(x), "y": numbers(y), "zmin": 0, "meta": "density"}, *over]
    return [
        Panel(
            title, data, layout, [[{"z": numbers(row[k], 3), "zmax": top}] for row, top in zip(rows, tops, strict=True)]
        )
        for k, title in enumerate(titles)
    ]


# ------------------------------------------------------------------------------------------------------------- spheres


def _on_sphere(way: Neurons, sphere: Sphere, X: Tensor, pairs: list[Pair], names: tuple[str, str]) -> list[Block]:
    """Mass per unit of area in an equal-area (Mollweide) map, whatever the scales."""
    nodes = sphere.nodes.cpu().double()
    tree = need("scipy.spatial", "a map of a sphere").cKDTree(nodes.numpy())
    x, y, pixel = _mollweide(tree)
    held: dict[str, Tensor] = {}
    for t, flow, sheet, points, masses in _clouds(way, pairs):
        near, found = tree.query(points[:, :3].numpy(), k=_NEAREST)
        distance, index = torch.from_numpy(near), torch.from_numpy(found)
        # The farthest of the four gets nothing; particles on nodes, and the grid's own, give most to theirs.
        share = 1 - distance / distance[:, -1:].clamp(min=torch.finfo(distance.dtype).tiny)
        share = share / share.sum(1, keepdim=True)
        mass = torch.bincount(index.reshape(-1), (share * masses[:, None]).reshape(-1), minlength=len(nodes))
        rows = held.setdefault(sheet, torch.full((len(pairs), 2, *pixel.shape), math.nan, dtype=torch.float64))
        rows[t, flow] = torch.where(pixel >= 0, (mass * len(nodes) / (2 * _TURN))[pixel], math.nan)
    whole = sphere.nodes.shape[1] == X.shape[1]
    axis = {"visible": False}
    layout = {"xaxis": axis | {"constrain": "domain"}, "yaxis": axis | {"scaleanchor": "x", "constrain": "domain"}}
    about = (
        f"Mass per unit of area over the directions of {'w' if whole else '(w, a)'}, in a Mollweide map, which keeps "
        "areas: the third axis is up, the first in the middle. Both flows on one scale, which follows the time."
        + (_DOTTED if whole and len(X) else "")
    )
    over = _outlines(X if whole else X[:0])
    return [
        Block(f"Directions{_where(sheet)}", about, heat(x, y, rows, list(names), layout, over))
        for sheet, rows in held.items()
    ]


def _outlines(X: Float[Tensor, "n d"]) -> list[Trace]:
    """The rim of the map, and the great circles w . x = 0."""
    turn = torch.linspace(0, _TURN, 181, dtype=torch.float64)
    thin = {"mode": "lines", "type": "scatter", "hoverinfo": "skip", "showlegend": False, "meta": "soft"}
    found = [thin | {"x": numbers(2 * turn.cos()), "y": numbers(turn.sin()), "line": {"width": 1}}]
    theta = torch.linspace(-math.pi / 2, math.pi / 2, 1001, dtype=torch.float64)
    heights = (2 * theta + (2 * theta).sin()) / math.pi
    for x in X[X.norm(dim=1) > 0]:
        plane = torch.linalg.svd(x[None]).Vh[1:]
        points = turn.cos()[:, None] * plane[0] + turn.sin()[:, None] * plane[1]
        longitude = torch.atan2(points[:, 1], points[:, 0])
        at = theta[torch.searchsorted(heights, points[:, 2].contiguous()).clamp(max=len(theta) - 1)]
        across = 2 / math.pi * longitude * at.cos()
        across[1:][longitude.diff().abs() > math.pi] = math.nan  # where the map is cut
        found.append(thin | {"x": numbers(across), "y": numbers(at.sin()), "line": {"width": 1.2, "dash": "dot"}})
    return found


def _mollweide(tree: Any) -> tuple[Tensor, Tensor, Int[Tensor, "h w"]]:
    """Pixel centres, and the nearest node of each pixel; -1 off the map."""
    across, up = _MOLLWEIDE
    x = (torch.arange(across, dtype=torch.float64) + 0.5) / across * 4 - 2
    y = (torch.arange(up, dtype=torch.float64) + 0.5) / up * 2 - 1
    theta = y.asin()[:, None]
    z = ((2 * theta + (2 * theta).sin()) / math.pi).expand(up, across)
    longitude = math.pi / 2 * x / theta.cos()
    ring = (1 - z**2).sqrt()
    points = torch.stack([ring * longitude.cos(), ring * longitude.sin(), z], dim=2)
    nearest = torch.from_numpy(tree.query(points.reshape(-1, 3).numpy())[1]).reshape(up, across)
    return x, y, torch.where(longitude.abs() <= math.pi, nearest, -1)
