"""What every step says of itself: evaluations, certificate, mass, the edge of the box, the narrowest feature."""

import math
from typing import Any

from torch import Tensor

from ..flow import Flow
from .panels import Panel, few, line, numbers

EDGE = 1e-3  # share of the mass at the edge of the box from which JKO warns
TIME = {"xaxis": {"title": "t (physical time)"}}
RECORDS = 600  # of a curve at most, about one for two pixels


def step_panels(flow: Flow) -> list[Panel]:
    """A chart for each of the numbers that the steps of a flow gave."""
    wanted: list[tuple[str, str, dict[str, str], bool]] = [
        (
            "Evaluations of the dual" if "gap_z" in flow.stats else "Evaluations",
            "a step",
            {"evaluations": "evaluations", "applications": "kernel applications"},
            False,
        ),
        ("Certificate", "of the step's objective", {"gap_z": "duality gap", "gap_d": "debiasing, worst node"}, True),
        ("Mass", "total mass", {"masses": "total mass"}, False),
        ("Mass at the edge of the box", "share", {"boundary_mass": "at the edge"}, True),
        ("Narrowest feature", "nodes (h)", {"width": "width"}, False),
    ]
    found = []
    for title, unit, columns, log in wanted:
        values = {name: flow.masses if of == "masses" else flow.stats.get(of) for of, name in columns.items()}
        data = [
            line(True, k, name=name, **over_time(flow.times, y.masked_fill(y <= 0, math.nan) if log else y))
            | {"line": {"width": 2, "dash": "solid" if k == 0 else "dash"}, "showlegend": len(columns) > 1}
            for k, (name, y) in enumerate(values.items())
            if y is not None and bool((y.isfinite() & (y > 0)).any())
        ]
        key = next(iter(columns))
        level = {"boundary_mass": EDGE, "width": 2.0}.get(key)
        if data and level is not None:
            ends = numbers(flow.times[[0, -1]])
            mark = {"x": ends, "y": [level, level], "name": "level of the warning", "showlegend": True}
            data.append(line(True, 3, **mark) | {"line": {"width": 1.5, "dash": "dot"}})
        if data:
            known = [y for trace in data for y in trace["y"] if y is not None]
            shape: dict[str, Any] = {"title": unit, "rangemode": "tozero"}
            if log:
                shape = {"title": unit, "type": "log"}
                # Whole decades, where there are some and not too many; plotly's own ticks are for fewer or more.
                shape |= {"dtick": 1} if 20 < max(known) / min(known) < 1e6 else {}
            found.append(Panel(title, data, TIME | {"yaxis": shape}, log=key == "masses"))
    return found


def over_time(times: Tensor, y: Tensor) -> dict[str, Any]:
    """x and y of a curve, thinned to what a screen can show."""
    kept = few(len(times), RECORDS)
    return {"x": numbers(times[kept]), "y": numbers(y[kept])}
