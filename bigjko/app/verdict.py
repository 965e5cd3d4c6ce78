"""The answer of an experiment: every number of a run, a table of them, and one sentence."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..compare import Comparison
from ..flow import Flow
from ..measure import GridMeasure
from ..optional import need

Numbers = dict[str, Any]

# Shares of the largest output change. 2% is about what first-order steps leave at tau = .05 in the bundled examples.
_YES = 0.02
_ROUGHLY = 0.1
_EDGE = 1e-3  # share of the mass at the edge of the box from which the box, and not the flow, decides
_NARROW = 2.0  # nodes


def numbers(held: Comparison) -> Numbers:
    """What there is to say of a run, as JSON can hold it; None where a flow does not know.

    Args:
        held: a JKO flow against particles. What the steppers were told is read from the flows' attributes.
    """
    jko, gd = held.first, held.second
    facts, other = jko.attributes, gd.attributes
    grid = jko.final.grid if isinstance(jko.final, GridMeasure) else None
    worst = int(held.output_gap.argmax())
    boxed = grid is not None and bool(grid.edge.any())
    edge, width = _stat(jko, "boundary_mass"), _stat(jko, "width")
    error = _stat(jko, "mass_error")
    kept = len(held.transport_times) > 0 and float(held.transport_times[-1]) > 0  # at 0 both are the start
    return {
        "way": None if jko.neurons is None else jko.neurons.name,
        "status": {"jko": jko.status.name, "gd": gd.status.name},
        "data": jko.outputs.shape[1],
        "t_end": float(held.times[-1]),
        "shape": None if grid is None else list(grid.shape),
        "nodes": None if grid is None else grid.size,
        "spacing": None if grid is None else grid.spacing,
        "particles": gd.final.shape[0] if not isinstance(gd.final, GridMeasure) else None,
        "tau_jko": facts.get("tau"),
        "epsilon": facts.get("epsilon"),
        "epsilon_h2": facts.get("epsilon_h2"),
        "entropy": facts.get("entropy"),
        "passes": facts.get("passes"),
        "method": gd.name,
        "tau_gd": other.get("tau"),
        "output_gap_sup": held.sup_output_gap,
        "output_gap_at": float(held.times[worst]),
        "output_gap_end": float(held.output_gap[-1]),
        "largest_output_change": held.largest_output_change,
        "output_gap_share": _finite(held.relative_output_gap),
        "risk_start": float(jko.risks[0]),
        "risk_end_jko": float(jko.risks[-1]),
        "risk_end_gd": float(jko.risks[-1] - held.risk_gap[-1]),
        "risk_gap_end": float(held.risk_gap[-1]),
        "risk_gap_sup": float(held.risk_gap.abs().max()),
        "transport_times": held.transport_times.tolist(),
        "transport": held.transport.tolist(),
        "transport_blur": held.blur.tolist(),
        "transport_thinning": held.thinning.tolist(),
        "transport_end": _finite(float(held.transport[-1])) if kept else None,
        "boundary_mass_max": float(edge.max()) if boxed and len(edge) else None,
        "boundary_mass_end": float(edge[-1]) if boxed and len(edge) else None,
        "width_min": _finite(float(width.min())) if len(width) else None,
        "applications_per_step": _mean(_stat(jko, "applications")),
        "evaluations_per_step": _mean(_stat(jko, "evaluations")),
        "mass_error_max": float(error.abs().max()) if len(error) else None,
        "mass_start": float(jko.masses[0]),
        "mass_end": float(jko.masses[-1]),
        "steps_recorded": len(jko.times) - 1,
        "seconds_jko": facts.get("seconds"),
        "seconds_gd": other.get("seconds"),
        "device": facts.get("device"),
        "dtype": facts.get("dtype"),
    }


def _stat(flow: Flow, name: str) -> Float[Tensor, " _"]:
    """A stat at the steps that have it: time 0 has none."""
    values = flow.stats.get(name, torch.zeros(0, dtype=torch.float64))
    return values[~values.isnan()]


def _mean(values: Float[Tensor, " _"]) -> float | None:
    return float(values.mean()) if len(values) else None


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


# ------------------------------------------------------------------------------------------------------------- table


def table(runs: dict[str, Numbers]) -> Any:
    """The numbers of all runs side by side, as rich's Table."""
    chart = need("rich.table", "the verdict table").Table(title="JKO against gradient descent", title_justify="left")
    chart.add_column("")
    for name in runs:
        chart.add_column(name, overflow="fold")
    for label, write in _ROWS:
        chart.add_row(label, *(write(run) for run in runs.values()))
    return chart


def _n(x: float | int | None, form: str = ".3g") -> str:
    return "-" if x is None else format(x, form)


def _grid(run: Numbers) -> str:
    if run["shape"] is None:
        return "-"
    return f"{' x '.join(map(str, run['shape']))} = {run['nodes']:,} nodes, h = {_n(run['spacing'])}"


def _jko(run: Numbers) -> str:
    entropy = run["entropy"] or "-"
    passes = f", {run['passes']} passes" if entropy == "debiased" else ""
    return f"{_n(run['tau_jko'])}, {_n(run['epsilon_h2'])} h^2, {entropy}{passes}"


def _transport(run: Numbers) -> str:
    if run["transport_end"] is None:
        return "-"
    return (
        f"{_n(run['transport_end'])} at t = {run['transport_times'][-1]:.4g} "
        f"(blur {_n(run['transport_blur'][-1])}, thinning {_n(run['transport_thinning'][-1])})"
    )


def _boundary(run: Numbers) -> str:
    if run["boundary_mass_max"] is None:
        return "no box"
    matters = "it bends the flow: widen the grid" if _edge_matters(run) else "too little to matter"
    return f"{_n(run['boundary_mass_max'], '.1e')} at most, {_n(run['boundary_mass_end'], '.1e')} at the end: {matters}"


def _width(run: Numbers) -> str:
    if run["width_min"] is None:
        return "not measured (nor defined on spheres)"
    return f"{_n(run['width_min'])} nodes{': below 2 mass moves slowly' if _narrow(run) else ''}"


def _mass(run: Numbers) -> str:
    if run["mass_error_max"] is not None:
        return f"kept, error {_n(run['mass_error_max'], '.1e')} a step"
    return f"grew from {_n(run['mass_start'])} to {_n(run['mass_end'])}"


def _share(run: Numbers) -> str:
    return (
        "-"
        if run["output_gap_share"] is None
        else f"{run['output_gap_share']:.2%} of {run['largest_output_change']:.4g}"
    )


def _cut_short(run: Numbers) -> str:
    """Which flows did not reach their end, and how they ended."""
    return ", ".join(f"{kind.upper()} {status}" for kind, status in run["status"].items() if status != "ok")


_ROWS: tuple[tuple[str, Any], ...] = (
    ("status", lambda run: _cut_short(run) or "both flows reached their end"),
    ("way, data", lambda run: f"{run['way']}, n = {run['data']}, t = 0 to {run['t_end']:.4g}"),
    ("grid", _grid),
    ("JKO: tau, epsilon", _jko),
    ("GD: tau, particles", lambda run: f"{_n(run['tau_gd'])} ({run['method']}), {_n(run['particles'], ',')}"),
    ("largest output gap", lambda run: f"{_n(run['output_gap_sup'])} at t = {run['output_gap_at']:.4g}"),
    ("  of the largest change", _share),
    ("output gap at the end", lambda run: _n(run["output_gap_end"])),
    ("risk: JKO, GD", lambda run: f"{_n(run['risk_end_jko'], '.5g')}, {_n(run['risk_end_gd'], '.5g')} at the end"),
    ("risk gap at the end", lambda run: _n(run["risk_gap_end"], "+.2e")),
    ("transport distance", _transport),
    ("boundary mass", _boundary),
    ("smallest width", _width),
    ("kernel applications", lambda run: f"{_n(run['applications_per_step'], '.1f')} a step"),
    ("mass", _mass),
    ("seconds: JKO, GD", lambda run: f"{_n(run['seconds_jko'], '.1f')}, {_n(run['seconds_gd'], '.1f')}"),
)


def facts(run: Numbers) -> list[tuple[str, str]]:
    """The table's rows for one run."""
    return [(label.strip(), write(run)) for label, write in _ROWS]


def _edge_matters(run: Numbers) -> bool:
    return run["boundary_mass_max"] is not None and run["boundary_mass_max"] > _EDGE


def _narrow(run: Numbers) -> bool:
    return run["width_min"] is not None and run["width_min"] < _NARROW


# ---------------------------------------------------------------------------------------------------------- sentence


def verdict(runs: dict[str, Numbers]) -> str:
    """One sentence on whether JKO is similar to GD, with the numbers it rests on."""
    parts = [_answer(run) if len(runs) == 1 else f"{name}: {_answer(run)}" for name, run in runs.items()]
    return f"Is JKO similar to GD? {'; '.join(parts)}."


def _answer(run: Numbers) -> str:
    share = run["output_gap_share"]
    if share is None:
        return "it cannot be told, since gradient descent moves no output"
    word = "yes" if share <= _YES else "roughly" if share <= _ROUGHLY else "no"
    doubts = []
    if _cut_short(run):
        doubts.append(f"it did not reach its end ({_cut_short(run)})")
    if _edge_matters(run):
        doubts.append(f"up to {run['boundary_mass_max']:.2%} of the mass sat at the edge of the box")
    if _narrow(run):
        doubts.append(f"the measure shrank to {run['width_min']:.2g} nodes")
    return (
        f"{word}, over t = 0 to {run['t_end']:.4g} the outputs differ by at most {run['output_gap_sup']:.3g}, "
        f"{share:.2%} of the largest output change (at t = {run['output_gap_at']:.4g}; {run['output_gap_end']:.2g} at "
        f"the end), and the risks end {abs(run['risk_gap_end']):.2g} apart"
        + (", though " + " and ".join(doubts) if doubts else "")
    )
