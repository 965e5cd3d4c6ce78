"""One flow, or two in one picture. Figures are made without pyplot: no global state, no window, no backend."""

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..compare import Comparison, compare
from ..flow import Flow
from ..optional import need
from .paint import COLOURS, DASHES, FIRST, GREY, SECOND, legend, paint, style
from .steps import EDGE, step_panels

if TYPE_CHECKING:
    import matplotlib.figure

_NAMES = {"jko": "JKO", "gd": "gradient descent", "flow": "gradient flow"}
_TRACE = 1e-12  # share of the mass that is drawn at least: the tails of a Gaussian start reach far below
_MASS = "total mass  ($r^2$)"
_DPI = 150
_KEPT = 1e-6  # mass that changes by less, as a share, is drawn nowhere


def plot_flows(jko: Flow, gd: Flow, path: str | Path | None = None) -> "matplotlib.figure.Figure":
    """Risks, the outputs that change the most, the gap, and mass at the edge (or total mass, where it grows).

    Args:
        jko: on a grid.
        gd: the reference, over at least the same times.
        path: of the image to write, by its ending; none by default.
    """
    held = compare(jko, gd, transport=False)
    figure, axes = _page()
    _risks(axes[0], jko, gd)
    _outputs(axes[1], jko, gd)
    _gap(axes[2], held)
    _mass(axes[3], jko)
    if path is not None:
        figure.savefig(path, dpi=_DPI)
    return figure


def plot_comparison(comparison: Comparison) -> "matplotlib.figure.Figure":
    """Risks, the outputs that change the most, the gap, and the distance of the measures that both flows kept."""
    figure, axes = _page()
    _risks(axes[0], comparison.first, comparison.second)
    _outputs(axes[1], comparison.first, comparison.second)
    _gap(axes[2], comparison)
    _transport(axes[3], comparison)
    return figure


def plot_flow(flow: Flow) -> "matplotlib.figure.Figure":
    """Risk, the outputs that change the most, and what the steps say of themselves, as far as the flow knows it."""
    panels = [panel for panel in step_panels(flow) if panel.title != "Mass" or _grows(flow)]
    figure, axes = _page(2 + len(panels))
    _risks(axes[0], flow)
    _outputs(axes[1], flow)
    for ax, panel in zip(axes[2:], panels, strict=True):
        paint(ax, replace(panel, title=""))
        unit = str(panel.layout["yaxis"]["title"]).replace(" (", ", ").rstrip(")")
        ax.set_ylabel(f"{panel.title[0].lower()}{panel.title[1:]}  ({unit})" if panel.title != "Mass" else _MASS)
        _until(ax, flow)
        if len(panel.data) > 1:
            legend(ax, 2)
    return figure


def _grows(flow: Flow) -> bool:
    """Whether the mass changes by more than rounding."""
    return bool(((flow.masses / flow.masses[0] - 1).abs() > _KEPT).any())


def _page(count: int = 4) -> "tuple[matplotlib.figure.Figure, Any]":
    columns = 2 if count in (2, 4) else 3
    rows = math.ceil(count / columns)
    size = (5.0 * columns, 3.6 * rows)
    figure: matplotlib.figure.Figure = need("matplotlib.figure", "a plot").Figure(size, layout="constrained")
    axes = figure.subplots(rows, columns).ravel()
    for ax in axes[count:]:
        ax.remove()
    for ax in axes[:count]:
        ax.set_xlabel("t  (physical time)")
        style(ax)
    return figure, axes[:count]


def names(first: Flow, second: Flow) -> tuple[str, str]:
    """What the two are called, told apart."""
    one, two = (_NAMES.get(flow.name, flow.name) for flow in (first, second))
    return (one, two) if one != two else (f"{one} (first)", f"{two} (second)")


def _risks(ax: Any, first: Flow, second: Flow | None = None) -> None:
    if second is None:
        ax.plot(first.times, first.risks, color=COLOURS[0], linewidth=1.6)
    else:
        one, two = names(first, second)
        ax.plot(second.times, second.risks, color=COLOURS[0], label=two, **SECOND)
        ax.plot(first.times, first.risks, color=COLOURS[0], label=one, **FIRST)
        legend(ax, 2)
    _until(ax, first)
    ax.set_ylabel("F  (risk)")


def _outputs(ax: Any, first: Flow, second: Flow | None = None) -> None:
    changed = most_changed(first if second is None else second).tolist()
    for k, (colour, j) in enumerate(zip(COLOURS, changed, strict=False)):
        if second is not None:
            ax.plot(second.times, second.outputs[:, j], color=colour, **SECOND)
        how = FIRST if second is not None else {"linestyle": DASHES[k], "linewidth": 1.6}
        ax.plot(first.times, first.outputs[:, j], color=colour, label=f"$u_{{{j}}}$", **how)
    _until(ax, first)
    ax.set_ylabel("$u_j$  (outputs, units of y)")
    legend(ax, 4)


def _gap(ax: Any, held: Comparison) -> None:
    ax.plot(held.times, held.output_gap, color=COLOURS[0], linewidth=1.6, label="largest $|u_j - v_j|$")
    ax.plot(held.times, held.risk_gap, color=COLOURS[1], linewidth=1.6, linestyle="-.", label="difference of F")
    ax.axhline(0.0, color=GREY, linewidth=0.8)
    _until(ax, held.first)
    ax.set_ylabel("gap  (units of y; of F)")
    legend(ax, 2)


def _mass(ax: Any, flow: Flow) -> None:
    edge = flow.stats.get("boundary_mass")
    if edge is not None and bool((edge > _TRACE).any()):
        ax.plot(
            flow.times,
            edge.masked_fill(edge < _TRACE, math.nan),
            color=COLOURS[0],
            linewidth=1.6,
            label="at the box's edge",
        )
        ax.axhline(EDGE, color=GREY, linestyle=":", linewidth=1.6, label="level of the warning")
        ax.set_ylabel("boundary mass  (share)")
    else:
        ax.plot(flow.times, flow.masses, color=COLOURS[0], linewidth=1.6, label="mass of the measure")
        ax.set_ylabel(_MASS)
    ax.set_yscale("log")
    _until(ax, flow)
    legend(ax, 2)


def _transport(ax: Any, held: Comparison) -> None:
    style = {"linewidth": 1.2, "markersize": 5}
    ax.plot(held.transport_times, held.transport, color=COLOURS[0], marker="o", label="distance", **style)
    ax.plot(held.transport_times, held.thinning, color=COLOURS[1], marker="s", ls="--", label="thinning", **style)
    ax.plot(held.transport_times, held.blur, color=COLOURS[2], marker="^", ls=":", label="blur", **style)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("W  (units of the neurons' coordinates)")
    legend(ax, 3)


def _until(ax: Any, flow: Flow) -> None:
    """The first flow's times: the reference may go on for longer."""
    end = float(flow.times[-1])
    if end > 0:
        ax.set_xlim(0, end)


def most_changed(flow: Flow) -> Int[Tensor, " _"]:
    """The data points whose outputs rise or fall the most, two each way where there are as many; increasing."""
    change: Float[Tensor, " n"] = flow.outputs[-1] - flow.outputs[0]
    order = change.argsort()
    ends = torch.cat([order[:2], order[-2:]])
    chosen: Int[Tensor, " _"] = ends.unique()
    return chosen
