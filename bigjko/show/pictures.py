"""A measure as a picture, and a flow's measures as a moving one: the charts of the page, drawn by matplotlib."""

import contextlib
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from bigjko_kernels import Circle, Grid, GridError, Sphere

from ..errors import MeasureError, StepError
from ..flow import Flow
from ..measure import GridMeasure, Measure
from ..neurons import Lifted, Neurons, Pairs, PolarCone, PolarFlat, Projected, Scales, Signed
from ..optional import need
from .marginals import AnyPair, measure_blocks
from .paint import GREY, drawn, paint, style
from .panels import AREA, AXIS, BOTH, KINKS, SHARED, Block, Panel, few
from .plots import names

if TYPE_CHECKING:
    import matplotlib.figure

# In the order in which a bare grid is read: what two ways share (lines, sheets of lines) is taken for the first.
_WAYS: tuple[Callable[[], Neurons], ...] = (
    Lifted,
    Projected,
    lambda: Projected(balanced=False),
    Signed,
    PolarCone,
    PolarFlat,
    Scales,
    Pairs,
)
_DIMENSIONS = range(1, 33)  # of data, that are tried
_FEWEST, _MOST, _SPHERE = 36, 180, 1000  # nodes of a circle, and of a sphere, among which particles are shared
_FRAMES = 100  # of an animation at most
_DPI = 100
_WIDE = 3  # charts in a row at most
_LETTERS = 14  # of a note in an inch
_WHOLE = KINKS.replace(" ", "\N{NO-BREAK SPACE}")
_SAME_TIME = 1e-9


def plot_measure(
    measure: Measure, neurons: Neurons | None = None, X: Float[Tensor, "n d"] | None = None
) -> "matplotlib.figure.Figure":
    """Densities of a measure: a curve for every coordinate and a map for every pair, or a map of the sphere.

    Args:
        measure: on a grid, or particles.
        neurons: the way it is seen by; for a grid by default the first that its factors fit, for particles Lifted.
        X: data whose kinks w . x = 0 are drawn, where they are few.

    Raises:
        MeasureError: for a grid that is not the way's, or no known way's.
    """
    way, dim = _way(measure, neurons, X)
    figure, _ = _figure(way, dim, X, [(measure, None)], ("", ""))
    return figure


def animate(
    flow: Flow, path: str | Path, other: Flow | None = None, *, X: Float[Tensor, "n d"] | None = None, fps: float = 5.0
) -> None:
    """The saved measures of a flow as a GIF or MP4, one frame a measure; see `Flow.animate`."""
    path = Path(path)
    writer = _writer(path, fps)
    kept = few(len(flow.measures), _FRAMES)
    if len(kept) < 2:
        raise StepError(
            f"received a flow with {len(kept)} saved measures ({flow.name}), need at least 2 to see them move: evolve "
            "it with save_at"
        )
    times = [float(flow.saved_times[k]) for k in kept]
    pairs: list[AnyPair] = [(flow.measures[k], _at(other, t)) for k, t in zip(kept, times, strict=True)]
    if other is not None and all(second is None for _, second in pairs):
        raise StepError(
            f"received a reference ({other.name}) that kept no measure at the flow's saved times, need one at some of "
            f"them: evolve it with save_at = {[float(f'{t:.6g}') for t in times[:4]]}, ..."
        )
    way, dim = _way(flow.measures[kept[-1]], flow.neurons, X)
    known = names(flow, other) if other is not None else names(flow, flow)
    figure, show = _figure(way, dim, X, pairs, known)
    title = figure.suptitle(_time(times[-1]), fontsize=12)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # where everything is from now on: nothing jumps
    with writer.saving(figure, str(path), _DPI):
        for k, t in enumerate(times):
            show(k)
            title.set_text(_time(t))
            writer.grab_frame()


def _time(t: float) -> str:
    return f"t = {t:.4g}"


def _writer(path: Path, fps: float) -> Any:
    """Pillow's for GIF, ffmpeg's for MP4."""
    if not (math.isfinite(fps) and fps > 0):
        raise StepError(f"received fps = {fps}, need a positive number of frames a second")
    writers = need("matplotlib.animation", "an animation")
    if path.suffix.lower() == ".gif":
        return writers.PillowWriter(fps=fps)
    if path.suffix.lower() != ".mp4":
        raise StepError(f"received {path.name!r} for an animation, need a name that ends in .gif or .mp4: rename it")
    if not writers.FFMpegWriter.isAvailable():
        raise StepError(
            f"received {path.name!r} on a machine without ffmpeg, need it for .mp4: install ffmpeg, or take .gif"
        )
    # Players want even numbers of pixels and this format.
    return writers.FFMpegWriter(fps=fps, extra_args=["-pix_fmt", "yuv420p", "-vf", "crop=trunc(iw/2)*2:trunc(ih/2)*2"])


def _at(flow: Flow | None, time: float) -> Measure | None:
    """The measure a flow kept at a time, if it did."""
    if flow is None:
        return None
    near = ((flow.saved_times - time).abs() <= _SAME_TIME * max(1.0, time)).nonzero()
    return flow.measures[int(near[0, 0])] if len(near) and len(flow.measures) else None


# ------------------------------------------------------------------------------------------------------------- places


def _way(measure: Measure, neurons: Neurons | None, X: Float[Tensor, "n d"] | None) -> tuple[Neurons, int]:
    """The way a measure is seen by, and the dimension of its data."""
    if not isinstance(measure, GridMeasure):
        return neurons or Lifted(), measure.positions.shape[1] - 1
    dims = _DIMENSIONS if X is None else [X.shape[1]]
    for way in [neurons] if neurons is not None else [make() for make in _WAYS]:
        for dim in dims:
            with contextlib.suppress(GridError):
                way.check(measure.grid, dim)
                return way, dim
    of = "no known way's" if neurons is None else f"not one of {neurons!r}"
    more = "" if X is None else f" for data in R^{X.shape[1]}"
    raise MeasureError(f"received {measure.grid!r}, which is {of}{more}, need a grid of the way's: plot(neurons=...)")


def _directions(way: Neurons, dim: int, measures: Sequence[Measure]) -> Grid | None:
    """The nodes among which particles are shared, where the way looks at directions."""
    reach = max(float(cloud[0][:, -1].abs().max()) for one in measures for cloud in _held(way, one))
    count = max(len(one.masses) for one in measures)
    around = min(max(_FEWEST, round(2 * count ** (1 / 3))), _MOST)  # Rice's rule: finer cells show single particles
    for nodes, kind in ((around, Circle), (_SPHERE, Sphere)):
        with contextlib.suppress(GridError):
            grid = way.grid(nodes, dim, radius=reach or 1.0)
            if any(isinstance(f, kind) for f in grid.factors):
                return grid
    return None


def _held(way: Neurons, measure: Measure) -> Iterator[tuple[Tensor, Tensor]]:
    return (cloud for cloud in way.clouds(measure).values() if len(cloud[0]))


# ------------------------------------------------------------------------------------------------------------ drawing


def _figure(
    way: Neurons, dim: int, X: Float[Tensor, "n d"] | None, pairs: list[AnyPair], known: tuple[str, str]
) -> "tuple[matplotlib.figure.Figure, Callable[[int], None]]":
    """All charts, and what moves them to a time."""
    directions = None if isinstance(pairs[-1][0], GridMeasure) else _directions(way, dim, [one for one, _ in pairs])
    lone = all(second is None for _, second in pairs)
    blocks = measure_blocks(way, torch.zeros(0, dim) if X is None else X, pairs, known, directions)
    rows = _packed([row for block in blocks for row in _rows(block)])
    if lone:
        rows = [[_alone(panel) for panel in row] for row in rows]
    columns = max(map(len, rows))
    width = max(4.0 * columns, 6.0)
    abouts = dict.fromkeys(_lone(block.about) if lone else block.about for block in blocks)
    notes = [textwrap.fill(about.replace(KINKS, _WHOLE), int(_LETTERS * width)) for about in abouts if about]
    size = (width, 3.1 * len(rows) + 0.2 * sum(note.count("\n") + 1 for note in notes) + 0.3)
    figure: matplotlib.figure.Figure = need("matplotlib.figure", "a plot").Figure(size, layout="constrained")
    moves: list[Callable[[int], None]] = []
    handles: list[Any] = []
    for k, row in enumerate(rows):
        for j, panel in enumerate(row):
            ax = figure.add_subplot(len(rows), columns, k * columns + j + 1)
            if all(trace["type"] != "heatmap" for trace in panel.data):
                style(ax)
            moves.append(paint(ax, panel))
            handles = handles or ax.get_legend_handles_labels()[0]
    if not lone and handles:
        figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False, fontsize=9, handlelength=2.6)
    figure.supxlabel("\n".join(notes), fontsize=8, color=GREY)

    def show(time: int) -> None:
        for move in moves:
            move(time)

    return figure, show


def _lone(about: str) -> str:
    """Without what compares two flows, and what the labels of axes say."""
    for sentence in (AXIS, AREA, SHARED, BOTH):
        about = about.replace(sentence, "")
    return about.strip()


def _alone(panel: Panel) -> Panel:
    """Of one measure: a whole line, and no name of a flow."""
    data = [
        trace | {"line": {"width": 1.6, "dash": "solid"}} if str(trace["meta"]).startswith("c") else trace
        for trace in panel.data
    ]
    return replace(panel, title=panel.title.lstrip(":, "), data=data)


def _rows(block: Block) -> list[list[Panel]]:
    """Maps of the first flow above those of the second, or beside it where it is one; curves beside one another."""
    _, comma, sheet = block.title.partition(", sheet")
    named = [
        panel if sheet in panel.title else replace(panel, title=f"{panel.title}{comma}{sheet}")
        for panel in block.panels
    ]
    maps = any(trace["type"] == "heatmap" for panel in named for trace in panel.data)
    rows = [named[0::2], named[1::2]] if maps and len(named) > 2 else [named]
    found = []
    for row in rows:
        shown = [panel for panel in row if drawn(panel)]
        wide = 2 if len(shown) == 4 else _WIDE
        found += [shown[k : k + wide] for k in range(0, len(shown), wide)]
    return found


def _packed(rows: list[list[Panel]]) -> list[list[Panel]]:
    """Short rows that follow one another in one."""
    found: list[list[Panel]] = []
    for row in rows:
        if found and len(found[-1]) + len(row) <= _WIDE:
            found[-1] += row
        else:
            found.append([*row])
    return found
