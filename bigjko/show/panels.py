"""Charts as data: what plotly.js is to draw, and how a chart moves with time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

Trace = dict[str, Any]
Cloud = tuple[int, int, str, Tensor, Tensor]  # time, flow, sheet, points (m, k) and masses (m,)

KINKS = "w · x = 0"
DOTTED = f" Dotted: the kinks {KINKS} of the data."
AXIS = "Mass per unit of the axis."
AREA = "Mass per unit of area."
SHARED = " Nodes and particles are shared among the same cells."
BOTH = " Both flows on one scale, which follows the time."

STEPS = 1000  # page.html knows it too: in which a map counts its density, up to the largest: half the bytes of decimals


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


def numbers(values: Any) -> list[Any]:
    """A tensor as nested lists with four digits; None for what is not finite, which JSON does not know."""
    rows = values.tolist() if isinstance(values, Tensor) else values
    return [numbers(x) if isinstance(x, list) else _number(float(x)) for x in rows]


def _number(x: float) -> int | float | None:
    if not math.isfinite(x):
        return None
    short = float(f"{x:.4g}")
    return int(short) if short.is_integer() else short  # 0 and not 0.0: half the bytes of a map


def line(first: bool, colour: int = 0, **more: Any) -> Trace:
    """The first flow is thin and dashed, on top of the reference, broad and pale: told apart without colour."""
    style = {"width": 1.8, "dash": "6px,3px"} if first else {"width": 5}
    opacity = 1.0 if first else 0.5
    return {"type": "scatter", "mode": "lines", "line": style, "opacity": opacity, "meta": f"c{colour}", **more}


def heat(
    x: Tensor,
    y: Tensor,
    rows: Float[Tensor, "T 2 y x"],
    titles: list[str],
    layout: dict[str, Any],
    over: Sequence[Trace] = (),
) -> list[Panel]:
    """A map for each flow, in thousandths of the largest density of both at that time, and what is drawn over both."""
    frames: list[list[list[Trace]]] = [[], []]
    for row in rows:
        top = float(row.nan_to_num().max())
        for k in (0, 1):
            frames[k].append([{"z": numbers((row[k] / top * STEPS).round()), "zmax": top}])
    data = [{"type": "heatmap", "x": numbers(x), "y": numbers(y), "zmin": 0, "meta": "density"}, *over]
    return [Panel(title, data, layout, frames[k]) for k, title in enumerate(titles)]


def where(sheet: str) -> str:
    """What titles add for a sheet; nothing where there is one only."""
    return "" if sheet == "all" else f", sheet {sheet.replace('-', '−')}"


def few(size: int, most: int) -> list[int]:
    """At most so many of the indices below size, the first and the last among them."""
    step = max(1, math.ceil((size - 1) / (most - 1)))
    return sorted({*range(0, size, step), *([size - 1] if size else [])})
