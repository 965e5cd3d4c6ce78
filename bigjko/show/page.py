"""One page for one run: curves, measures, the network, steps, and how it was made, in one file without a network."""

import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..compare import Comparison
from ..flow import Flow
from ..measure import GridMeasure
from ..optional import need
from ..risk import Risk
from ..status import Status
from .plots import EDGE, most_changed, names
from .views import Block, Pair, Panel, line, measure_blocks, numbers

_RECORDS = 600  # of a curve at most, about one for two pixels
_ROWS = 100  # of the table of steps at most
_TIMES = 12  # of the slider at most: a page stays below 8 MB
_DATA = 1000  # points that are drawn at most
_ANGLES = 180
_PIXELS = 48  # an axis of the network's map
_SAME_TIME = 1e-9
_TIME = {"xaxis": {"title": "t (physical time)"}}


def page(
    gap: Comparison,
    risk: Risk,
    *,
    title: str,
    verdict: str = "",
    facts: Sequence[tuple[str, str]] = (),
    config: str = "",
    versions: Mapping[str, object] | None = None,
) -> str:
    """The page of a run as HTML. All text is escaped.

    Args:
        gap: a JKO flow held against particles; both may have been cut short.
        risk: what both went down.
        title: the run's name.
        verdict: the answer in a sentence.
        facts: label and value of what there is to say at a glance.
        config: the file as run.
        versions: of libraries and hardware.
    """
    jko, gd = gap.first, gap.second
    known = names(jko, gd)
    times, pairs = _shown(jko, gd)
    moving = _network(risk, pairs, known)
    if jko.neurons is not None and pairs:
        moving += measure_blocks(jko.neurons, risk.X, pairs, known)
    still = [Block("Risk, outputs and gap", _thinned(jko, gd), _curves(gap, known))]
    steps = [Block("Every step of JKO", "", _steps(jko))]
    sections = {"curves": still, "measures": moving, "steps": steps}
    panels = [panel for blocks in sections.values() for block in blocks for panel in block.panels]
    engine = need("jinja2", "a page").Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    engine.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    template = engine.from_string(files(__package__).joinpath("page.html").read_text("utf-8"))
    cut = [(name, flow.status) for name, flow in zip(known, (jko, gd), strict=True) if flow.status is not Status.ok]
    html: str = template.render(
        title=title,
        verdict=verdict,
        cut=[f"{name}: {status.value}." for name, status in cut],
        facts=facts,
        config=config,
        versions=versions or {},
        sections=sections,
        times=[float(f"{t:.6g}") for t in times],
        kept=len(jko.saved_times),
        charts=[vars(panel) for panel in panels],
        tables=[(name, *_table(flow)) for name, flow in zip(known, (jko, gd), strict=True)],
        plotly=need("plotly.offline", "a page").get_plotlyjs(),
    )
    return html


def _shown(jko: Flow, gd: Flow) -> tuple[list[float], list[Pair]]:
    """Times at which the grid's measure was kept, evenly few, and the measures of both then."""
    kept = [k for k, measure in enumerate(jko.measures) if isinstance(measure, GridMeasure)]
    kept = [kept[k] for k in _few(len(kept), _TIMES)]
    times = [float(jko.saved_times[k]) for k in kept]
    pairs: list[Pair] = []
    for t, k in zip(times, kept, strict=True):
        near = ((gd.saved_times - t).abs() <= _SAME_TIME * max(1.0, t)).nonzero()
        measure = jko.measures[k]
        assert isinstance(measure, GridMeasure)
        pairs.append((measure, gd.measures[int(near[0, 0])] if len(near) else None))
    return times, pairs


def _few(size: int, most: int) -> list[int]:
    """At most so many of the indices below size, the first and the last among them."""
    step = max(1, math.ceil((size - 1) / (most - 1)))
    return sorted({*range(0, size, step), *([size - 1] if size else [])})


def _thinned(*flows: Flow) -> str:
    longest = max(len(flow.times) for flow in flows)
    return f"At most {_RECORDS} of {longest} records of a flow are drawn." if longest > _RECORDS else ""


# -------------------------------------------------------------------------------------------------------------- curves


def _over_time(times: Tensor, y: Tensor) -> dict[str, Any]:
    """x and y of a curve, thinned to what a screen can show."""
    kept = _few(len(times), _RECORDS)
    return {"x": numbers(times[kept]), "y": numbers(y[kept])}


def _curves(gap: Comparison, known: tuple[str, str]) -> list[Panel]:
    jko, gd = gap.first, gap.second
    until = {"xaxis": _TIME["xaxis"] | {"range": [0, float(jko.times[-1]) or 1.0]}}
    flows = [(gd, False, known[1]), (jko, True, known[0])]
    risks = [line(first, name=name, **_over_time(flow.times, flow.risks)) for flow, first, name in flows]
    outputs = []
    changed = most_changed(gd).tolist()
    for colour, j in enumerate(changed):
        for flow, first, name in flows:
            more = {"name": name, "showlegend": colour == 0}
            outputs.append(line(first, colour, **more, **_over_time(flow.times, flow.outputs[:, j])))
    labels = _labels({f"u{j}": float(jko.outputs[-1, j]) for j in changed}, jko.outputs[:, changed])
    gaps = [
        line(False, 0, name="largest |u − v|", **_over_time(gap.times, gap.output_gap)),
        line(True, 1, name="difference of risks", **_over_time(gap.times, gap.risk_gap)),
    ]
    found = [
        Panel("Risk", risks, until | {"yaxis": {"title": "F"}}, log=True),
        Panel(
            "Outputs that change the most",
            outputs,
            until | {"yaxis": {"title": "u (units of y)"}, "annotations": labels, "margin": {"r": 72}},
        ),
        Panel("Gap", gaps, until | {"yaxis": {"title": "units of y; of F"}}, log=True),
    ]
    if len(gap.transport_times) > 1:
        columns = {"distance": gap.transport, "thinning": gap.thinning, "blur": gap.blur}
        marks = ("circle", "square", "triangle-up")
        found.append(
            Panel(
                "Transport distance of the measures",
                [
                    line(
                        True,
                        k,
                        name=name,
                        **_over_time(gap.transport_times, column),
                        mode="lines+markers",
                        cliponaxis=False,
                    )
                    | {
                        "marker": {"symbol": mark, "size": 8},
                        "line": {"width": 1.5, "dash": ("solid", "dash", "dot")[k]},
                    }
                    for k, ((name, column), mark) in enumerate(zip(columns.items(), marks, strict=True))
                ],
                until | {"yaxis": {"title": "W (neurons' coordinates)", "rangemode": "tozero"}},
            )
        )
    return found


def _labels(ends: dict[str, float], shown: Tensor) -> list[dict[str, Any]]:
    """Names at the right ends of curves; those that would overlap share a line."""
    near = 0.07 * float(shown.max() - shown.min()) if shown.numel() else 0.0
    found: list[dict[str, Any]] = []
    for name, end in sorted(ends.items(), key=lambda item: item[1]):
        if found and end - found[-1]["y"] < near:
            found[-1]["text"] += f", {name}"
        else:
            found.append({"x": 1, "xref": "paper", "y": end, "text": name, "xanchor": "left", "showarrow": False})
    return found


def _steps(jko: Flow) -> list[Panel]:
    """What every step says of itself."""
    wanted: list[tuple[str, str, dict[str, str], bool]] = [
        (
            "Evaluations of the dual",
            "a step",
            {"evaluations": "evaluations", "applications": "kernel applications"},
            False,
        ),
        ("Certificate", "of the step's objective", {"gap_z": "duality gap", "gap_d": "debiasing, worst node"}, True),
        ("Mass", "mass", {"masses": "total mass"}, False),
        ("Mass at the edge of the box", "share", {"boundary_mass": "at the edge"}, True),
        ("Narrowest feature", "nodes (h)", {"width": "width"}, False),
    ]
    found = []
    for title, unit, columns, log in wanted:
        values = {name: jko.masses if key == "masses" else jko.stats.get(key) for key, name in columns.items()}
        data = [
            line(True, k, name=name, **_over_time(jko.times, y.masked_fill(y <= 0, math.nan) if log else y))
            | {"line": {"width": 2, "dash": "solid" if k == 0 else "dash"}, "showlegend": len(columns) > 1}
            for k, (name, y) in enumerate(values.items())
            if y is not None and bool((y.isfinite() & (y > 0)).any())
        ]
        level = {"boundary_mass": EDGE, "width": 2.0}.get(next(iter(columns)))
        if data and level is not None:
            ends = numbers(jko.times[[0, -1]])
            mark = {"x": ends, "y": [level, level], "name": "level of the warning", "showlegend": True}
            data.append(line(True, 3, **mark) | {"line": {"width": 1.5, "dash": "dot"}})
        if data:
            shape = (
                {"title": unit, "type": "log", "exponentformat": "power"}
                if log
                else {"title": unit, "rangemode": "tozero"}
            )
            found.append(Panel(title, data, _TIME | {"yaxis": shape}))
    return found


def _table(flow: Flow) -> tuple[list[str], list[list[str]], int]:
    """Header, evenly few of the recorded steps, and how many there are."""
    columns = {"t": flow.times, "risk": flow.risks, "mass": flow.masses} | flow.stats
    rows = [[f"{float(column[k]):.4g}" for column in columns.values()] for k in _few(len(flow.times), _ROWS)]
    return list(columns), [["–" if x == "nan" else x for x in row] for row in rows], len(flow.times)


# ------------------------------------------------------------------------------------------------------------- network


def _network(risk: Risk, pairs: list[Pair], known: tuple[str, str]) -> list[Block]:
    """f against data: over the one column that varies, over the plane, or output against label."""
    X, y = (x.detach().cpu().double() for x in (risk.X, risk.y))
    some = _few(len(y), _DATA)
    X, y = X[some], y[some]
    note = f" {len(some)} of {len(risk.y)} data are drawn." if len(some) < len(risk.y) else ""

    def f(at: Float[Tensor, "k d"], flow: int) -> list[Tensor | None]:
        """The network at every time; None where no measure was kept."""
        at = at.to(risk.X)
        return [None if (m := both[flow]) is None else risk.outputs(m, at).detach().cpu() for both in pairs]

    free = (X.amax(0) > X.amin(0)).nonzero()[:, 0].tolist()
    if X.shape[1] == 1 or len(free) == 1:
        axis = free[0] if free else 0
        low, high = float(X[:, axis].min()), float(X[:, axis].max())
        room = 0.1 * (high - low) or 1.0
        at = X[:1].expand(241, -1).clone()
        at[:, axis] = torch.linspace(min(low, 0.0) - room, max(high, 0.0) + room, 241)
        panel = _function(at[:, axis], f(at, 1), f(at, 0), known, "x", "f(x)", X[:, axis], y)
        return [Block("Network", f"The network's function and the data.{note}", [panel], 1)]
    if X.shape[1] != 2:
        data = [
            line(flow == 0, flow, name=known[flow], x=numbers(y), mode="markers")
            | {"opacity": 0.8}
            | {"marker": {"symbol": "x-thin-open" if flow == 0 else "circle-open", "size": 9}}
            for flow in (1, 0)
        ]
        ends = numbers(torch.stack([y.min(), y.max()]))
        data.append(line(True, 3, x=ends, y=ends, name="output = label") | {"line": {"width": 1, "dash": "dot"}})
        both = zip(f(X, 1), f(X, 0), strict=True)
        frames = [[{"y": [] if u is None else numbers(u)} for u in row] + [{}] for row in both]
        layout = {"xaxis": {"title": "label y"}, "yaxis": {"title": "output u"}}
        return [Block("Network", f"Outputs against labels.{note}", [Panel("Outputs", data, layout, frames)], 1)]
    angle = torch.linspace(0, 2 * math.pi, _ANGLES + 1, dtype=torch.float64)
    around = torch.stack([angle.cos(), angle.sin()], dim=1)
    second, first = f(around, 1), f(around, 0)
    norm = X.norm(dim=1)
    away = norm > 0.1 * norm.max()  # y / |x| says nothing near the origin, where f is 0
    degrees = angle * (180 / math.pi)
    at, labels = torch.atan2(X[away, 1], X[away, 0]) * (180 / math.pi) % 360, y[away] / norm[away]
    panel = _function(degrees, second, first, known, "direction of x (degrees)", "f(x) / |x|", at, labels)
    panel.layout["xaxis"] |= {"range": [0, 360], "dtick": 60}
    about = (
        "f(r x) = r f(x) for r > 0, since the network has no bias: its values on the circle are all there is to know. "
        f"Data are drawn at y / |x|, and in the plane in the colour of their label: they vanish where f fits.{note}"
    )
    return [Block("Network", about, [panel, _plane(X, y, angle, first, known[0])])]


def _function(
    x: Tensor,
    second: list[Tensor | None],
    first: list[Tensor | None],
    known: tuple[str, str],
    across: str,
    up: str,
    at: Tensor,
    labels: Tensor,
) -> Panel:
    """Both flows' networks over a line, and the data."""
    data = [line(False, name=known[1], x=numbers(x)), line(True, name=known[0], x=numbers(x))]
    mark = {"symbol": "diamond-open", "size": 8}
    data.insert(
        0,
        line(True, 1, name="data", x=numbers(at), y=numbers(labels), mode="markers")
        | {"marker": mark, "opacity": 1.0 if len(at) < 100 else 0.6},
    )
    frames = [[{}, *({"y": [] if u is None else numbers(u)} for u in row)] for row in zip(second, first, strict=True)]
    return Panel("Network and data", data, {"xaxis": {"title": across}, "yaxis": {"title": up}}, frames)


def _plane(X: Tensor, y: Tensor, angle: Tensor, values: list[Tensor | None], name: str) -> Panel:
    """The network over the plane, from its values on the circle."""
    low, high = X.amin(0), X.amax(0)
    low, high = torch.minimum(low, low.new_zeros(2)), torch.maximum(high, high.new_zeros(2))
    room = 0.08 * (high - low).max()
    x0, x1 = (torch.linspace(float(low[k] - room), float(high[k] + room), _PIXELS, dtype=torch.float64) for k in (0, 1))
    radius, turn = torch.hypot(x0, x1[:, None]), torch.atan2(x1[:, None], x0) % (2 * math.pi)
    place = turn / (2 * math.pi) * _ANGLES
    left = place.long().clamp(max=_ANGLES - 1)
    maps = [None if u is None else radius * torch.lerp(u[left], u[left + 1], place - left) for u in values]
    top = max(float(y.abs().max()), *(float(z.abs().max()) for z in maps if z is not None)) or 1.0
    scale = {"meta": "signed"}
    data: list[dict[str, Any]] = [
        {"type": "heatmap", "x": numbers(x0), "y": numbers(x1), "zmin": -top, "zmax": top, **scale},
        {
            "type": "scatter",
            "mode": "markers",
            "x": numbers(X[:, 0]),
            "y": numbers(X[:, 1]),
            "showlegend": False,
            "marker": {"color": numbers(y), "cmin": -top, "cmax": top, "size": 8 if len(y) < 100 else 6},
            **scale,
        },
    ]
    frames: list[list[dict[str, Any]]] = [[{"z": [] if z is None else numbers(z, 3)}, {}] for z in maps]
    square = {"title": "x2", "scaleanchor": "x", "constrain": "domain"}
    return Panel(
        f"{name}: the network over the plane",
        data,
        {"xaxis": {"title": "x1", "constrain": "domain"}, "yaxis": square},
        frames,
    )
