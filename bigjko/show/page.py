"""One page for one run: curves, measures, the network, steps, and how it was made, in one file without a network."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from torch import Tensor

from ..compare import Comparison
from ..flow import Flow
from ..measure import GridMeasure
from ..optional import need
from ..risk import Risk
from ..status import Status
from .marginals import Pair, measure_blocks
from .network import network_blocks
from .panels import Block, Panel, few, line
from .plots import most_changed, names
from .steps import RECORDS, TIME, over_time, step_panels

_ROWS = 100  # of the table of steps at most
_TIMES = 12  # of the slider at most: a page stays below 8 MB
_SAME_TIME = 1e-9


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
    moving = network_blocks(risk, pairs, known)
    if jko.neurons is not None and pairs:
        moving += measure_blocks(jko.neurons, risk.X, pairs, known)
    still = [Block("Risk, outputs and gap", _thinned(jko, gd), _curves(gap, known))]
    steps = [Block("Every step of JKO", "", step_panels(jko))]
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
    kept = [kept[k] for k in few(len(kept), _TIMES)]
    times = [float(jko.saved_times[k]) for k in kept]
    pairs: list[Pair] = []
    for t, k in zip(times, kept, strict=True):
        near = ((gd.saved_times - t).abs() <= _SAME_TIME * max(1.0, t)).nonzero()
        measure = jko.measures[k]
        assert isinstance(measure, GridMeasure)
        pairs.append((measure, gd.measures[int(near[0, 0])] if len(near) else None))
    return times, pairs


def _thinned(*flows: Flow) -> str:
    longest = max(len(flow.times) for flow in flows)
    return f"At most {RECORDS} of {longest} records of a flow are drawn." if longest > RECORDS else ""


# -------------------------------------------------------------------------------------------------------------- curves


def _curves(gap: Comparison, known: tuple[str, str]) -> list[Panel]:
    jko, gd = gap.first, gap.second
    until = {"xaxis": TIME["xaxis"] | {"range": [0, float(jko.times[-1]) or 1.0]}}
    flows = [(gd, False, known[1]), (jko, True, known[0])]
    risks = [line(first, name=name, **over_time(flow.times, flow.risks)) for flow, first, name in flows]
    outputs = []
    changed = most_changed(gd).tolist()
    for colour, j in enumerate(changed):
        for flow, first, name in flows:
            more = {"name": name, "showlegend": colour == 0}
            outputs.append(line(first, colour, **more, **over_time(flow.times, flow.outputs[:, j])))
    labels = _labels({f"u{j}": float(jko.outputs[-1, j]) for j in changed}, jko.outputs[:, changed])
    gaps = [
        line(False, 0, name="largest |u − v|", **over_time(gap.times, gap.output_gap)),
        line(True, 1, name="difference of risks", **over_time(gap.times, gap.risk_gap)),
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
                        **over_time(gap.transport_times, column),
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


def _table(flow: Flow) -> tuple[list[str], list[list[str]], int]:
    """Header, evenly few of the recorded steps, and how many there are."""
    columns = {"t": flow.times, "risk": flow.risks, "mass": flow.masses} | flow.stats
    rows = [[f"{float(column[k]):.4g}" for column in columns.values()] for k in few(len(flow.times), _ROWS)]
    return list(columns), [["–" if x == "nan" else x for x in row] for row in rows], len(flow.times)
