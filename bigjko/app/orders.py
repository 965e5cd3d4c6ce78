"""Observed orders: slopes of log gap against log tau, log h or log m, fitted where nothing else decides."""

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .table import Row

_SAYS = 0.2  # share of a gap that the next coarser grid may change
_ABOVE = 3.0  # times its floor that a gap must be in m: a third of it may then be the floor's

COLUMNS = ("problem", "way", "reference", "kind", "quantity", "in", "order", "used", "pairs", "floor")


def write_orders(rows: list[Row], path: Path) -> list[Row]:
    """Fit every order that the rows of a study allow, and write them beside it."""
    found = fitted(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for row in found:
            table.writerow([_cell(row[c]) for c in COLUMNS])
    return found


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(value)


def fitted(rows: list[Row]) -> list[Row]:
    """Orders in tau (finest grid), in h (smallest tau) and in m, each with the points it was fitted on.

    In tau, gaps count that the grid has no say in: the next coarser one changes them by less than a fifth (all of them,
    where there is one grid only); and only against references whose own error is ten times smaller. The floor beside
    them is the gap left at the two smallest taus after Richardson's extrapolation to tau = 0, NaN where there is none.
    In h, all grids count, of those with the same h the one with most nodes; of the extrapolated gap the slope is that
    at tau = 0. In m, means over seeds count that are at least three times the
    gap between JKO and the particles on all nodes. A slope without two points is NaN.
    """
    found = []
    good = [row for row in rows if row["status"] == "ok" and row["gap"]]
    for problem, way, reference in _unique((r["problem"], r["way"], r["reference"]) for r in good):
        mine = [r for r in good if (r["problem"], r["way"], r["reference"]) == (problem, way, reference)]
        where: Row = {"problem": problem, "way": way, "reference": reference}
        for kind in ("jko", "extrapolated"):
            found += [where | {"kind": kind} | row for row in _steps([r for r in mine if r["kind"] == kind], mine)]
        for kind in ("width", "limit"):
            found += [where | {"kind": kind} | row for row in _widths([r for r in mine if r["kind"] == kind], mine)]
    return found


def _steps(rows: list[Row], every: list[Row]) -> list[Row]:
    """In tau on the finest grid, and in h at the smallest tau."""
    if not rows:
        return []
    rows = widest(rows)
    grids, least = sorted({r["h"] for r in rows}), min(r["tau"] for r in rows)
    left = [r["gap"] for r in widest(every) if (r["kind"], r["h"], r["tau"]) == ("extrapolated", grids[0], least)]
    floor = left[0] if left and rows[0]["kind"] == "jko" else math.nan
    coarser = {r["tau"]: r["gap"] for r in rows if r["h"] == grids[min(1, len(grids) - 1)]}
    in_tau = [
        (r["tau"], r["gap"])
        for r in rows
        if r["h"] == grids[0] and r["trusted"] and abs(coarser.get(r["tau"], math.inf) - r["gap"]) <= _SAYS * r["gap"]
    ]
    in_h = [(r["h"], r["gap"]) for r in rows if r["tau"] == least]
    found = [_order("tau", "gap", in_tau, floor)] if len({r["tau"] for r in rows}) > 1 else []
    return found + ([_order("h", "gap", in_h, math.nan)] if len({r["h"] for r in rows}) > 1 else [])


def _widths(rows: list[Row], every: list[Row]) -> list[Row]:
    found = []
    for quantity in ("gap", "transport", "exact"):
        means = mean_over_seeds(rows, quantity)
        if len(means) < 2:
            continue
        ends = [r[quantity] for r in every if r["kind"] == "floor" and r[quantity]]
        floor = ends[0] if ends and rows[0]["kind"] == "width" else math.nan
        found.append(_order("m", quantity, [(m, mean) for m, mean, _ in means if not mean < _ABOVE * floor], floor))
    return found


def widest(rows: list[Row]) -> list[Row]:
    """The rows that orders are fitted on: of grids with the same h, those of the one with most nodes, or the last.

    With no more than a grid an h, all rows.
    """
    most = {h: max((r["nodes"], r["grid"]) for r in rows if r["h"] == h) for h in {r["h"] for r in rows}}
    return [r for r in rows if (r["nodes"], r["grid"]) == most[r["h"]]]


def mean_over_seeds(rows: list[Row], quantity: str) -> list[tuple[float, float, float]]:
    """(m, mean, standard deviation) by width."""
    found = []
    for m in sorted({r["m"] for r in rows}):
        values = [r[quantity] for r in rows if r["m"] == m and r[quantity] is not None]
        if values:
            mean = sum(values) / len(values)
            found.append((float(m), mean, math.sqrt(sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1))))
    return found


def slope(points: list[tuple[float, float]]) -> float:
    """The least-squares slope of log y against log x; NaN for fewer than two points."""
    if len(points) < 2:
        return math.nan
    x, y = ([math.log(p[k]) for p in points] for k in (0, 1))
    centre, level = sum(x) / len(x), sum(y) / len(y)
    return sum((a - centre) * (b - level) for a, b in zip(x, y, strict=True)) / sum((a - centre) ** 2 for a in x)


def _order(name: str, quantity: str, points: list[tuple[float, float]], floor: float) -> Row:
    points = sorted(points, reverse=name != "m")
    pairs = [slope([one, two]) for one, two in zip(points, points[1:], strict=False)]
    return {
        "quantity": quantity,
        "in": name,
        "order": slope(points),
        "used": " ".join(f"{x:.4g}" for x, _ in points),
        "pairs": " ".join(f"{p:.2f}" for p in pairs),
        "floor": floor,
    }


def _unique(values: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return list(dict.fromkeys(values))
