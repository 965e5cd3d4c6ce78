"""Two flows in one picture. Figures are made without pyplot: no global state, no window, no backend is chosen."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..compare import Comparison, compare
from ..flow import Flow
from ..optional import need

if TYPE_CHECKING:
    import matplotlib.figure

# Okabe and Ito's colours, which colour-blind readers can tell apart. The reference is a broad pale line and the first
# flow a thin dashed one on top, so that both are seen where they agree, and without colour.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_FIRST: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1.6}
_SECOND: dict[str, Any] = {"linestyle": "-", "linewidth": 4.0, "alpha": 0.35}
_GREY = "#555555"
_NAMES = {"jko": "JKO", "gd": "gradient descent", "flow": "gradient flow"}
EDGE = 1e-3  # share of the mass at the edge of the box from which JKO warns
_TRACE = 1e-12  # share of the mass that is drawn at least: the tails of a Gaussian start reach far below
_DPI = 150


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


def _page() -> "tuple[matplotlib.figure.Figure, Any]":
    figure: matplotlib.figure.Figure = need("matplotlib.figure", "a plot").Figure((10, 7.2), layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    for ax in axes:
        ax.set_xlabel("t  (physical time)")
        ax.grid(color="#dddddd", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def names(first: Flow, second: Flow) -> tuple[str, str]:
    """What the two are called, told apart."""
    one, two = (_NAMES.get(flow.name, flow.name) for flow in (first, second))
    return (one, two) if one != two else (f"{one} (first)", f"{two} (second)")


def _legend(ax: Any, columns: int) -> None:
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


def _risks(ax: Any, first: Flow, second: Flow) -> None:
    one, two = names(first, second)
    ax.plot(second.times, second.risks, color=_COLOURS[0], label=two, **_SECOND)
    ax.plot(first.times, first.risks, color=_COLOURS[0], label=one, **_FIRST)
    _until(ax, first)
    ax.set_ylabel("F  (risk)")
    _legend(ax, 2)


def _outputs(ax: Any, first: Flow, second: Flow) -> None:
    for colour, j in zip(_COLOURS, most_changed(second).tolist(), strict=False):
        ax.plot(second.times, second.outputs[:, j], color=colour, **_SECOND)
        ax.plot(first.times, first.outputs[:, j], color=colour, label=f"$u_{{{j}}}$", **_FIRST)
    _until(ax, first)
    ax.set_ylabel("$u_j$  (outputs, units of y)")
    _legend(ax, 4)


def _gap(ax: Any, held: Comparison) -> None:
    ax.plot(held.times, held.output_gap, color=_COLOURS[0], linewidth=1.6, label="largest $|u_j - v_j|$")
    ax.plot(held.times, held.risk_gap, color=_COLOURS[1], linewidth=1.6, linestyle="-.", label="difference of F")
    ax.axhline(0.0, color=_GREY, linewidth=0.8)
    _until(ax, held.first)
    ax.set_ylabel("gap  (units of y; of F)")
    _legend(ax, 2)


def _mass(ax: Any, flow: Flow) -> None:
    edge = flow.stats.get("boundary_mass")
    if edge is not None and bool((edge > _TRACE).any()):
        ax.plot(
            flow.times,
            edge.masked_fill(edge < _TRACE, math.nan),
            color=_COLOURS[0],
            linewidth=1.6,
            label="at the box's edge",
        )
        ax.axhline(EDGE, color=_GREY, linestyle=":", linewidth=1.6, label="level of the warning")
        ax.set_ylabel("boundary mass  (share)")
    else:
        ax.plot(flow.times, flow.masses, color=_COLOURS[0], linewidth=1.6, label="mass of the measure")
        ax.set_ylabel("total mass  ($r^2$)")
    ax.set_yscale("log")
    _until(ax, flow)
    _legend(ax, 2)


def _transport(ax: Any, held: Comparison) -> None:
    style = {"linewidth": 1.2, "markersize": 5}
    ax.plot(held.transport_times, held.transport, color=_COLOURS[0], marker="o", label="distance", **style)
    ax.plot(held.transport_times, held.thinning, color=_COLOURS[1], marker="s", ls="--", label="thinning", **style)
    ax.plot(held.transport_times, held.blur, color=_COLOURS[2], marker="^", ls=":", label="blur", **style)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("W  (units of the neurons' coordinates)")
    _legend(ax, 3)


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
