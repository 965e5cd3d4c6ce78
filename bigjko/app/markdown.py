"""The tables of docs/verdict.md, from the tables of studies: nothing between its markers is written by hand.

<!-- study: NAME -->   a table of every problem, way and reference of docs/studies/NAME/
<!-- widths: NAME -->  the slopes in m of that study
<!-- end -->
"""

import re
from pathlib import Path

from .orders import fitted, mean_over_seeds, widest
from .study_plot import reference_name
from .table import Row, load

_BLOCK = re.compile(r"(<!-- (study|widths): (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, studies: Path) -> str:
    """The text with every block between markers made again from the studies of that folder."""

    def block(found: re.Match[str]) -> str:
        path = studies / found[3] / "study.csv"
        if not path.exists():
            return f"{found[1]}\nNot run yet: `bigjko study examples/{found[3]}.toml`.\n\n{found[4]}"
        rows = load(path)
        table = gaps_table(rows) if found[2] == "study" else widths_table(rows)
        return f"{found[1]}\n{table}\n\n{found[4]}"

    return _BLOCK.sub(block, text)


def gaps_table(rows: list[Row]) -> str:
    """A line a problem, way and reference: the gaps on the finest grid at the smallest tau, and the orders."""
    fits = fitted(rows)
    lines = [
        "| way, problem | against | nodes, tau | sup gap / max\\|y\\| | extrapolated | reference's own error "
        "| risk gap at T | transport (blur) | windows | order in tau (on) | order in h at tau -> 0 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    steps = [r for r in rows if r["kind"] == "jko"]
    for problem, way, reference in dict.fromkeys((r["problem"], r["way"], r["reference"]) for r in steps):
        mine = widest([r for r in rows if (r["problem"], r["way"], r["reference"]) == (problem, way, reference)])
        of_jko = [r for r in mine if r["kind"] == "jko"]
        finest, least = min(r["h"] for r in of_jko), min(r["tau"] for r in of_jko)
        last = {r["kind"]: r for r in mine if (r["h"], r["tau"]) == (finest, least)}
        jko, beyond = last["jko"], last.get("extrapolated", {"gap_share": None})
        head = f"| {way}, {problem} | {reference_name(reference)} | {jko['shape'].replace('x', ' x ')}, {least:g} |"
        if jko["gap"] is None:
            lines.append(f"{head} {jko['status']} | | | | | | | |")
            continue
        order = {
            (f["kind"], f["in"]): f
            for f in fits
            if (f["problem"], f["way"], f["reference"]) == (problem, way, reference)
        }
        scale = jko["gap"] / jko["gap_share"]
        in_tau, in_h = order.get(("jko", "tau")), order.get(("extrapolated", "h"))
        cells = (
            _n(jko["gap_share"]) + ("" if jko["trusted"] else "*"),
            _n(beyond["gap_share"]),
            _n(jko["reference_error"] / scale),
            _n(jko["risk_gap"], "+.1e"),
            f"{_n(jko['transport'])} ({_n(jko['blur'], '.2g')})",
            _n(jko["windows"]),
            "-" if in_tau is None else f"{_n(in_tau['order'], '.2f')} ({in_tau['used'].replace(' ', ', ') or 'none'})",
            "-" if in_h is None else _n(in_h["order"], ".2f"),
        )
        lines.append(f"{head} {' | '.join(cells)} |")
    return "\n".join(lines)


def widths_table(rows: list[Row]) -> str:
    """A line a way and quantity: its slope in m, on which widths, and its means at both ends."""
    lines = [
        "| way | what | slope in m (on m) | at the smallest m | at the largest | floor |",
        "|---|---|---|---|---|---|",
    ]
    for fit in (f for f in fitted(rows) if f["in"] == "m"):
        mine = [r for r in rows if (r["way"], r["problem"], r["kind"]) == (fit["way"], fit["problem"], fit["kind"])]
        means = mean_over_seeds(mine, fit["quantity"])
        what = _WHAT[fit["kind"], fit["quantity"]]
        if fit["quantity"] == "transport":
            what += f" at blur {mine[0]['blur']:g}"
        used = fit["used"].split()
        ends = [f"{mean:.2e} ± {spread:.0e} (m = {m:,.0f})" for m, mean, spread in (means[0], means[-1])]
        floor = _n(fit["floor"])
        lines.append(
            f"| {fit['way']}, {fit['problem']} | {what} | {_n(fit['order'], '.2f')} ({used[0]} to {used[-1]}) "
            f"| {ends[0]} | {ends[1]} | {floor} |"
            if used
            else f"| {fit['way']}, {fit['problem']} | {what} | - | {ends[0]} | {ends[1]} | {floor} |"
        )
    return "\n".join(lines)


_WHAT = {
    ("width", "gap"): "output gap of m neurons to JKO",
    ("width", "transport"): "root of the Sinkhorn divergence to JKO's measure",
    ("width", "exact"): "W2 to as many neurons drawn from JKO's measure",
    ("limit", "gap"): "output gap of m neurons to GD on all nodes",
}


def _n(x: float | None, form: str = ".1e") -> str:
    return "-" if x is None or x != x else format(x, form)
