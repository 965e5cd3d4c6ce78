"""The style of every figure, and a chart of the page drawn by matplotlib."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .panels import STEPS, Panel, Trace

# Okabe and Ito's colours, which colour-blind readers can tell apart. The reference is a broad pale line and the first
# flow a thin dashed one on top, so that both are seen where they agree, and without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), "-.", ":")
FIRST: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1.6}
SECOND: dict[str, Any] = {"linestyle": "-", "linewidth": 4.0, "alpha": 0.35}
GREY = "#555555"
_DENSITY = "Blues"  # from white on, dark where there is most: read without colour
_BAR = 0.55  # of the height, beside a map that is twice as wide as high
_RANGE = 30.0  # where the tops of a curve differ by more over time, its axis is logarithmic
_DECADES = 1e-4  # of the smallest top: where such an axis ends
_SYMBOLS = {"a": "$a$  (second layer)", "r": "$r$  (|w| = |a|)", "s": "$s$  (a |w|)"}


def style(ax: Any) -> None:
    """A pale grid, and no frame where there is no axis."""
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def legend(ax: Any, columns: int) -> None:
    """Above the axes, where it hides nothing."""
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.01),
        borderaxespad=0,
        borderpad=0.2,
        ncols=columns,
        frameon=False,
        fontsize=9,
        handlelength=2.6,
    )


def paint(ax: Any, panel: Panel) -> Callable[[int], None]:
    """Draw a chart. What comes back moves it to a time, by its number; it is at the last one."""
    moves: list[Callable[[int], None]] = []
    for k, trace in enumerate(panel.data):
        frames = [frame[k] for frame in panel.frames if k < len(frame)]
        if trace["type"] == "heatmap":
            moves.append(_map(ax, trace, frames, _BAR if "visible" in panel.layout.get("xaxis", {}) else 1.0))
        elif frames or "y" in trace:
            moves.append(_curve(ax, trace, frames))
    _axes(ax, panel)
    if panel.frames and all(trace["type"] != "heatmap" for trace in panel.data):
        _heights(ax, panel)

    def show(time: int) -> None:
        for move in moves:
            move(time)

    show(-1)
    return show


def drawn(panel: Panel) -> bool:
    """Whether there is anything to see, at any time: a flow that kept no measure leaves its charts empty."""
    return any(_known(frame[0]["z"] if "z" in frame[0] else frame[-1]["y"]) for frame in panel.frames if frame)


def _known(values: Any) -> bool:
    return bool(np.isfinite(_array(values)).any())


def _array(values: Any) -> Any:
    """None, which stands for what is not finite, as NaN."""
    return np.asarray(values, dtype=float)


def _still(time: int) -> None:
    """What does not move."""


def _curve(ax: Any, trace: Trace, frames: list[Trace]) -> Callable[[int], None]:
    """A line; with frames, its heights follow the time."""
    first = trace["line"].get("dash", "solid") != "solid"
    # Kinks over a map are seen on white and on dark blue.
    colour = (COLOURS[1] if first else GREY) if trace["meta"] == "soft" else COLOURS[int(trace["meta"][1:])]
    how: dict[str, Any] = {"linewidth": 1.2 if first else 0.8, "linestyle": ":" if first else "-"}
    if trace["meta"] != "soft":
        broad = trace["line"]["width"] > 3
        how = SECOND if broad else FIRST if trace["line"].get("dash") == "6px,3px" else {}
        how = how or {"linewidth": 1.6, "linestyle": {"dash": "--", "dot": ":"}.get(trace["line"].get("dash"), "-")}
    every = [frame["y"] for frame in frames] or [trace["y"]]
    if not any(map(_known, every)):
        return _still
    name = trace.get("name") if trace.get("showlegend", True) else None
    (drawn,) = ax.plot(_array(trace["x"]), _array(every[-1]), color=colour, label=name, **how)
    if not frames:
        return _still
    return lambda time: drawn.set_ydata(_array(every[time]))


def _map(ax: Any, trace: Trace, frames: list[Trace], shrink: float) -> Callable[[int], None]:
    """A density, whose scale follows the time."""
    x, y = _array(trace["x"]), _array(trace["y"])
    tops = [frame["zmax"] for frame in frames]
    rows = [np.ma.masked_invalid(_array(frame["z"]) * (frame["zmax"] / STEPS)) for frame in frames]
    mesh = ax.pcolormesh(x, y, rows[-1], shading="nearest", cmap=_DENSITY, vmin=0, vmax=tops[-1] or 1, rasterized=True)
    bar = ax.figure.colorbar(mesh, ax=ax, fraction=0.05, pad=0.02, aspect=18 * shrink, shrink=shrink)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    bar.set_label("mass per unit of area", fontsize=8)

    def show(time: int) -> None:
        mesh.set_array(rows[time])
        mesh.set_clim(0, tops[time] or 1)

    return show


def _axes(ax: Any, panel: Panel) -> None:
    """Labels, ranges and what stands on the axes."""
    for which, axis in (("x", panel.layout.get("xaxis", {})), ("y", panel.layout.get("yaxis", {}))):
        if axis.get("visible") is False:
            ax.set_axis_off()
        if "title" in axis:
            getattr(ax, f"set_{which}label")(_symbols(axis["title"]))
        if axis.get("type") == "log":
            getattr(ax, f"set_{which}scale")("log")
        elif axis.get("rangemode") == "tozero":
            getattr(ax, f"set_{which}lim")((0, None))
        if "range" in axis:
            getattr(ax, f"set_{which}lim")(axis["range"])
            getattr(ax, f"set_{which}ticks")(np.arange(axis["range"][0], axis["range"][1] + 1, axis["dtick"]))
    if "scaleanchor" in panel.layout.get("yaxis", {}):
        ax.set_aspect("equal")
    for mark in panel.layout.get("shapes", []):
        ax.axvline(mark["x0"], color=GREY, linewidth=0.8, linestyle=":")
    if ax.get_ylabel() == "mass per unit":
        ax.set_ylabel(f"mass per unit of {_symbols(panel.layout['xaxis']['title'], short=True)}")
    if panel.title:
        ax.set_title(_symbols(panel.title, short=True), loc="left", fontsize=10)


def _heights(ax: Any, panel: Panel) -> None:
    """One vertical axis for all times."""
    every = [np.nanmax(_array(part["y"])) for frame in panel.frames for part in frame if _known(part["y"])]
    tops = [float(top) for top in every if top > 0]
    if not tops:
        return
    if max(tops) > _RANGE * min(tops):
        ax.set_yscale("log")
        ax.set_ylim(_DECADES * min(tops), 2 * max(tops))
    else:
        ax.set_ylim(0, 1.05 * max(tops))


def _symbols(text: str, short: bool = False) -> str:
    """Names of coordinates as symbols; on an axis with what they are."""
    if text in _SYMBOLS:
        return _SYMBOLS[text].partition("  ")[0] if short else _SYMBOLS[text]
    layer = "" if short else "  (first layer)"
    text = re.sub(r"(?<=[ ,])([ars])(?=$|,)", r"$\1$", text)
    return re.sub(r"\bw(\d+)\b", lambda found: f"$w_{{{found[1]}}}${layer}", text)
