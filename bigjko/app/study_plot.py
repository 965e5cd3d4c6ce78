"""The figure of a study: gaps against tau, against h and against m, on logarithmic axes with slopes to hold them to."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..optional import need
from .orders import mean_over_seeds, widest
from .table import Row

if TYPE_CHECKING:
    import matplotlib.figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's
_GREY = "#777777"
_MARKS = "osD^vP"
_DPI = 130
_NO_ORDER = "no order: h decides, or too few trusted"


def plot_study(rows: list[Row], orders: list[Row], path: Path) -> "matplotlib.figure.Figure":
    """A row of panels a problem and way: the gap against tau, a line a grid; against h; and against m where it ran."""
    good = [r for r in rows if r["status"] == "ok" and r["gap"]]
    pairs = list(dict.fromkeys((r["problem"], r["way"]) for r in good))
    wide = any(r["kind"] == "width" for r in good)
    columns = 3 if wide else 2
    figure: matplotlib.figure.Figure = need("matplotlib.figure", "a plot").Figure(
        (4.6 * columns, 0.3 + 4.2 * max(len(pairs), 1)), layout="constrained"
    )
    axes = figure.subplots(max(len(pairs), 1), columns, squeeze=False)
    for line, (problem, way) in zip(axes, pairs, strict=False):
        mine = [r for r in good if (r["problem"], r["way"]) == (problem, way)]
        fits = [r for r in orders if (r["problem"], r["way"]) == (problem, way)]
        _against_tau(line[0], mine, fits, f"{way}, {problem}")
        _against_h(line[1], mine)
        if wide:
            _against_m(line[2], mine, fits)
    figure.savefig(path, dpi=_DPI)
    return figure


def _against_tau(ax: Any, rows: list[Row], fits: list[Row], title: str) -> None:
    ax.set_title(title, loc="left", fontsize=10, fontweight="bold")
    steps = [r for r in rows if r["kind"] in ("jko", "extrapolated")]
    reference = steps[0]["reference"] if steps else ""
    grids = sorted({(r["h"], r["shape"], r["grid"]) for r in steps}, reverse=True)
    for k, grid in enumerate(grids):
        h, shape, number = grid
        for kind, style in (("jko", "-"), ("extrapolated", ":")):
            points = sorted(
                (r["tau"], r["gap_share"])
                for r in steps
                if (r["h"], r["shape"], r["grid"], r["kind"], r["reference"]) == (*grid, kind, reference)
            )
            if points:
                others = [other for other in grids if other[0] == h and other != grid]
                told = number if any(other[1] == shape for other in others) else shape
                label = f"h = {h:.3g}" + (f" ({told})" if others else "") if kind == "jko" else None
                mark = _MARKS[k % len(_MARKS)] if kind == "jko" else "."
                ax.plot(*zip(*points, strict=True), style, marker=mark, color=_COLOURS[k % 6], ms=4, label=label)
    if any(r["kind"] == "extrapolated" for r in steps):
        ax.plot([], [], ":", marker=".", color=_GREY, label="extrapolated")
    finest = [
        (r["tau"], r["gap_share"])
        for r in widest(steps)
        if r["kind"] == "jko" and grids and r["h"] == grids[-1][0] and r["reference"] == reference
    ]
    _guide(ax, finest, 1.0, "slope 1")
    said = ""
    for fit in fits:
        if (fit["kind"], fit["in"], fit["reference"]) == ("jko", "tau", reference):
            used = fit["used"].replace(" ", ", ")
            said = f"order {fit['order']:.2f} on " + rf"$\tau$ = {used}" if fit["order"] == fit["order"] else _NO_ORDER
    _finish(ax, r"$\tau$", f"sup gap to {reference_name(reference)} / max|y|", sorted({r["tau"] for r in steps}), said)


def _against_h(ax: Any, rows: list[Row]) -> None:
    steps = widest([r for r in rows if r["kind"] in ("jko", "extrapolated")])
    if len({r["h"] for r in steps}) < 2:  # one grid has no slope
        ax.set_axis_off()
        return
    least = min(r["tau"] for r in steps)
    drawn: list[tuple[float, float]] = []
    for k, reference in enumerate(dict.fromkeys(r["reference"] for r in steps)):
        for kind, style in (("jko", "-"), ("extrapolated", ":")):
            points = sorted(
                (r["h"], r["gap_share"])
                for r in steps
                if (r["tau"], r["kind"], r["reference"]) == (least, kind, reference)
            )
            if not points:
                continue
            label = reference_name(reference) if kind == "jko" else None
            mark = _MARKS[k % len(_MARKS)] if kind == "jko" else "."
            ax.plot(*zip(*points, strict=True), style, marker=mark, color=_COLOURS[k % 6], ms=4, label=label)
            drawn = points
    if any(r["kind"] == "extrapolated" for r in steps):
        ax.plot([], [], ":", marker=".", color=_GREY, label=r"$\tau \to 0$")
    _guide(ax, drawn, 2.0, "slope 2")
    _finish(ax, "h", rf"sup gap / max|y| at $\tau$ = {least:g}", sorted({r["h"] for r in steps}))


def _against_m(ax: Any, rows: list[Row], fits: list[Row]) -> None:
    lines = (
        ("width", "gap", "output gap to JKO"),
        ("limit", "gap", "output gap to GD on all nodes"),
        ("width", "transport", "Sinkhorn"),
        ("width", "exact", "$W_2$"),
    )
    first: list[tuple[float, float]] = []
    for k, (kind, quantity, label) in enumerate(lines):
        means = mean_over_seeds([r for r in rows if r["kind"] == kind], quantity)
        if not means:
            continue
        order = next((f["order"] for f in fits if (f["kind"], f["in"], f["quantity"]) == (kind, "m", quantity)), None)
        blur = next((r["blur"] for r in rows if r["kind"] == "width" and r["blur"]), None)
        more = f", blur {blur:g}" if quantity == "transport" and blur else ""
        slope = "" if order is None or order != order else f" ({order:.2f})"
        m, mean, spread = zip(*means, strict=True)
        down = [min(s, 0.95 * v) for s, v in zip(spread, mean, strict=True)]  # a logarithm has no room below 0
        ax.errorbar(
            m,
            mean,
            (down, spread),
            marker=_MARKS[k],
            color=_COLOURS[k],
            ms=4,
            capsize=2,
            lw=1.2,
            label=label + more + slope,
        )
        first = first or list(zip(m, mean, strict=True))
    if first:
        _guide(ax, first, -0.5, "slope $-1/2$")
        _finish(ax, "m  (neurons)", "mean over seeds, bars: one standard deviation", sorted({p[0] for p in first}))
    else:
        ax.set_axis_off()


def _guide(ax: Any, points: list[tuple[float, float]], order: float, label: str) -> None:
    """A line of a slope through the point at the large end, or the small one where it falls with x."""
    if len(points) < 2:
        return
    x, y = (min if order < 0 else max)(points)
    ends = [min(p[0] for p in points), max(p[0] for p in points)]
    ax.plot(ends, [1.3 * y * (e / x) ** order for e in ends], "--", color=_GREY, lw=1, label=label, zorder=0)


def _finish(ax: Any, x: str, y: str, ticks: list[float] | None = None, said: str = "") -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    if ticks:
        ax.set_xticks(ticks, [f"{t:.3g}" for t in ticks])
        ax.set_xticks([], minor=True)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    small = {"frameon": False, "fontsize": 8, "title": said, "title_fontsize": 8, "alignment": "left"}
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, borderaxespad=0, **small)


def reference_name(reference: str) -> str:
    """What a reference is called where there is room for it."""
    names = {"gd": "GD", "flow": "the gradient flow", "implicit": "implicit GD", "sliding": "the sliding flow"}
    word, _, rest = reference.partition(" ")
    return names.get(word, word) + (f" ({rest})" if rest else "")
