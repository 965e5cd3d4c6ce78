"""A study from its file to a folder: a table, fitted orders, a figure, the file as run, the versions."""

import dataclasses
import json
import math
import time as clock
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bigjko_kernels import Circle, Sphere

from ..compare import compare
from ..evolve import countable, evolve
from ..extrapolate import extrapolate
from ..flow import Flow
from ..jko import epsilon_of
from ..measure import GridMeasure, ParticleMeasure
from ..neurons import Free, Neurons
from ..optional import need
from ..show.progress import Bars, JsonLog
from ..status import FlowError
from ..stepper import Stepper
from .config import ConfigError
from .orders import write_orders
from .prepare import METHODS, Place, Points, jko_of, out_of_memory, place, points, refusals
from .run import INTERRUPTED, Stopped, logged, notes, versions
from .sections import dump
from .study_config import Problem, Reference, Study, WayStudy, Widths
from .study_plot import plot_study
from .table import Row, Table
from .ways import GridChoice

_POINTS = 300  # thinned to, for transport: a tenth of the time of compare's own 1000, and 3e-4 off (circle of 512)
_WINDOWS = {2: 16, 3: 32}  # by dimension
_REACH = {2: 1.0, 3: 1.5}  # of a hat, in distances of neighbours
_AT_ONCE = 1 << 16  # neurons
_TRUST = 10  # times that a reference's own error must be below the gap
_EXACT_SEEDS = 5
_ORDERS = {"first": 1, "second": 2}  # of what extrapolation cancels, in tau
_NEEDED = "a flow that it needs failed"
_SAME = 1e-9  # what rounding makes of a tau twice another


def execute_study(study: Study, out: Path, console: Any, log: JsonLog | None = None) -> list[Row]:
    """Run every row of a study that its folder does not hold yet.

    Leaves `study.csv` (a row a comparison, written as it comes), `orders.csv`, `study.png`, `study.toml` and
    `versions.json`. A flow that fails is a row that says so. Started again with the same file, it goes on where it was,
    and tries what failed once more. A log hears of every flow.

    Raises:
        ConfigError: for what the engine refuses, before anything is run, and for a folder of something else.
        Stopped: for Ctrl-C; the rows so far, their orders and their figure are kept.
    """
    known = {p.name: points(p.data, study.dtype, study.device) for p in study.problems}
    with notes(console, log=log):
        _refuse_early(study, known)
        table = _opened(study, out)
        stopped = False
        try:
            with Bars(console) as bars:
                for problem, way in study.pairs():
                    _Pair(problem, way, known[problem.name], table, bars, log).run()
        except KeyboardInterrupt:
            stopped = True
    fitted = write_orders(table.rows, out / "orders.csv")
    if table.rows:
        plot_study(table.rows, fitted, out / "study.png")
    if stopped:
        raise Stopped(
            f"interrupted: {len(table.rows)} rows are in {table.path}; the same command with --out {out} goes on",
            INTERRUPTED,
        )
    return table.rows


def _refuse_early(study: Study, known: dict[str, Points]) -> None:
    for problem, way in study.pairs():
        for choice in way.grids:
            with refusals(f"in the way '{way.name}' for the problem '{problem.name}'"):
                here = place(problem, way.way, choice, way.start, known[problem.name])
                jko_of(here, way.jko, way.taus[0])
                for tau in (*way.taus, *(one.tau / 2 for one in way.references)):
                    countable(tau, problem.time.t_end)
                for reference in way.references:
                    stepper, start = _reference_of(here, reference, reference.tau)
                    stepper.init(start)


def _opened(study: Study, out: Path) -> Table:
    """The folder's table, if the folder is new or holds this very study."""
    text, file = dump(study), out / "study.toml"
    if out.exists() or out.is_symlink():
        if not file.is_file() or file.read_text("utf-8") != text:
            raise ConfigError(
                f"received the output folder {out}, which exists and holds no part of this study as it is written "
                "now, need a new one, or the one it left: choose another with --out"
            )
    else:
        out.mkdir(parents=True)
        file.write_text(text, "utf-8")
    (out / "versions.json").write_text(json.dumps(versions(study.device), indent=2) + "\n", "utf-8")
    return Table(out / "study.csv")


@dataclasses.dataclass(frozen=True, eq=False)
class _Held:
    """A reference, what its halved step still changed, or why there is none."""

    flow: Flow | None
    error: float
    status: str


class _Pair:
    """One way on one problem."""

    def __init__(
        self, problem: Problem, way: WayStudy, known: Points, table: Table, bars: Bars, log: JsonLog | None
    ) -> None:
        self.problem, self.way, self.known, self.table, self.bars, self.log = problem, way, known, table, bars, log
        self.t_end = problem.time.t_end
        self.largest = float(known[1].abs().max())
        self.taus = sorted(way.taus, reverse=True)

    def run(self) -> None:
        for number, choice in enumerate(self.way.grids, 1):
            self._grid(number, choice)
        if self.way.widths is not None:
            self._widths(self.way.widths)

    def _place(self, choice: GridChoice) -> Place:
        return place(self.problem, self.way.way, choice, self.way.start, self.known)

    # ------------------------------------------------------------------------------------------------ grids x taus

    def _grid(self, number: int, choice: GridChoice) -> None:
        here = self._place(choice)
        lacking = [row for row in self._rows(number, here) if not self.table.has(row)]
        if not lacking:
            return
        held = {r.label: self._reference(here, r) for r in self.way.references if _asks(lacking, r.label)}
        both = {"extrapolated": 2, "jko": 1}  # how many flows a row needs: its own tau's, and the one before
        needed = {self.taus[self.taus.index(r["tau"]) - k] for r in lacking for k in range(both[r["kind"]])}
        last: Flow | None = None
        for tau in self.taus:
            if tau not in needed:
                last = None
                continue
            flow, facts = self._jko(here, tau)
            for row in lacking:
                if _is(row, "jko", tau):
                    self.table.add(row | facts | self._gaps(here, flow, held[row["reference"]]))
                elif _is(row, "extrapolated", tau):
                    pair = (
                        None
                        if last is None or flow is None
                        else extrapolate(last, flow, order=_ORDERS[self.way.jko.scheme])
                    )
                    status = {"status": "ok" if pair is not None else _NEEDED}
                    self.table.add(row | status | self._output_gaps(pair, held[row["reference"]]))
            last = flow

    def _rows(self, number: int, here: Place) -> Iterator[Row]:
        """The rows that a grid should have, by what tells them apart."""
        for k, tau in enumerate(self.taus):
            for reference in self.way.references:
                row = self._facts(number, here, tau) | {"reference": reference.label}
                yield row | {"kind": "jko"}
                if k and abs(self.taus[k - 1] / tau - 2) < _SAME:
                    yield row | {"kind": "extrapolated"}

    def _facts(self, number: int, here: Place, tau: float) -> Row:
        grid, way = here.grid, here.risk.neurons
        return {
            "problem": self.problem.name,
            "way": self.way.name,
            "grid": number,
            "shape": "x".join(map(str, grid.shape)),
            "nodes": grid.size,
            "h": way.spacing(grid),
            "tau": tau,
            "epsilon": epsilon_of(self.way.jko.epsilon, way.spacing(grid), way.cost),
        }

    def _jko(self, here: Place, tau: float) -> tuple[Flow | None, Row]:
        """A flow, and what a row says of it; None where it failed."""
        began = clock.perf_counter()
        jko = jko_of(here, self.way.jko, tau)
        flow, status = self._evolved(jko, here.start, f"{'x'.join(map(str, here.grid.shape))} tau = {tau:g} JKO")
        facts: Row = {"seconds": clock.perf_counter() - began, "status": status}
        if flow is not None:
            stats = flow.stats
            facts["steps"] = len(flow.times) - 1
            if facts["steps"]:  # else the first of them failed
                facts["evaluations"] = round(float(stats["evaluations"][1:].sum()))
                facts["width"] = float(stats["width"][1:].min())
            if facts["steps"] and bool(here.grid.edge.any()):
                facts["boundary_mass"] = float(stats["boundary_mass"][1:].max())
        return (flow if status == "ok" else None), facts

    def _evolved(self, stepper: Any, start: Any, title: str) -> tuple[Flow | None, str]:
        """A flow and how it ended; failures are told, Ctrl-C is not caught."""
        name = f"{self.problem.name} {self.way.name}"
        bar = self.bars.add(f"{name} {title}", self.t_end)
        try:
            with logged(self.log, title, self.t_end, run=name) as heard:
                return evolve(stepper, start, self.t_end, save_at=[self.t_end], callbacks=heard, progress=bar), "ok"
        except FlowError as error:
            flow = error.flow
            assert isinstance(flow, Flow)
            return flow, f"{error.status.name} at t = {float(flow.times[-1]):.6g}"
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            return None, "out of memory"

    def _reference(self, here: Place, choice: Reference) -> _Held:
        """Particles at tau and at tau / 2 (an ODE's tolerances a quarter): the second is the reference."""
        flows = []
        for part in (1, 2):
            tighter = {k: v / 4 for k in ("rtol", "atol") if part == 2 and (v := _tolerance(choice, k))}
            one = choice.model_copy(update=tighter)
            flow, status = self._evolved(
                *_reference_of(here, one, choice.tau / part), f"{choice.label} tau = {choice.tau / part:g}"
            )
            if flow is None or status != "ok":
                return _Held(None, math.nan, f"reference {choice.label}: {status}")
            flows.append(flow)
        return _Held(flows[1], compare(flows[0], flows[1], transport=False).sup_output_gap, "ok")

    def _gaps(self, here: Place, flow: Flow | None, held: _Held) -> Row:
        """What a row says of JKO against a reference."""
        if flow is None or held.flow is None:
            return self._output_gaps(flow, held)
        gaps = compare(flow, held.flow, blur=self.way.blur, max_points=_POINTS)
        return self._output_gaps(flow, held) | {
            "transport": float(gaps.transport[-1]),
            "blur": float(gaps.blur[-1]),
            "thinning": float(gaps.thinning[-1]),
            "windows": window_gap(here.risk.neurons, flow.final, held.flow.final),
        }

    def _output_gaps(self, flow: Flow | None, held: _Held) -> Row:
        if held.flow is None:
            return {"status": held.status}
        if flow is None:
            return {}
        gaps = compare(flow, held.flow, transport=False)
        gap = gaps.sup_output_gap
        return {
            "gap": gap,
            "gap_share": gap / self.largest,
            "risk_gap": float(gaps.risk_gap[-1]),
            "reference_error": held.error,
            "trusted": int(_TRUST * held.error <= gap),
        }

    # ------------------------------------------------------------------------------------------------------ widths

    def _widths(self, widths: Widths) -> None:
        """Networks drawn from the start's own nodes: what they tend to is the GD of all nodes, to the last bit."""
        here = self._place(self.way.grids[-1])
        tau = self.taus[-1]
        facts = self._facts(len(self.way.grids), here, tau) | {"reference": "gd"}
        asked = [(m, seed) for m in widths.m for seed in range(widths.seeds)]
        kinds = ("width", "limit")
        lacking = [
            (m, seed)
            for m, seed in asked
            if not all(self.table.has(facts | {"kind": kind, "m": m, "seed": seed}) for kind in kinds)
        ]
        if not lacking:
            return
        jko, _ = self._jko(here, tau)
        gd = Reference(method="gd", tau=widths.tau)
        limit = self._reference(here, gd)
        if jko is None or limit.flow is None:
            for m, seed in lacking:
                for kind in kinds:
                    self.table.add(facts | {"kind": kind, "m": m, "seed": seed, "status": _NEEDED})
            return
        floor = facts | {"kind": "floor", "status": "ok"}
        if not self.table.has(floor):
            gaps = compare(jko, limit.flow, blur=widths.blur, max_points=_POINTS)
            row = self._output_gaps(jko, limit) | {"transport": float(gaps.transport[-1]), "blur": float(gaps.blur[-1])}
            self.table.add(floor | row)
        everyone = here.risk.neurons.particles(here.start)
        for m, seed in lacking:
            descent = METHODS["gd"](here.risk, gd, widths.tau / 2)  # the limit's own step
            began = clock.perf_counter()
            flow, status = self._evolved(descent, drawn(everyone, m, seed), f"m = {m} seed {seed}")
            row = facts | {"m": m, "seed": seed, "status": status, "seconds": clock.perf_counter() - began}
            for kind, other in (("width", jko), ("limit", limit.flow)):
                if self.table.has(row | {"kind": kind}):
                    continue
                found: Row = {}
                if status == "ok" and flow is not None:
                    found = self._sampled(here, flow, other, limit.error, widths, kind, m, seed)
                self.table.add(row | {"kind": kind} | found)

    def _sampled(
        self, here: Place, flow: Flow, other: Flow, error: float, widths: Widths, kind: str, m: int, seed: int
    ) -> Row:
        gaps = compare(other, flow, blur=widths.blur, max_points=_POINTS, transport=kind == "width")
        row: Row = {
            "gap": gaps.sup_output_gap,
            "gap_share": gaps.sup_output_gap / self.largest,
            "risk_gap": -float(gaps.risk_gap[-1]),
            "reference_error": error,
            "trusted": int(_TRUST * error <= gaps.sup_output_gap),
        }
        if kind == "width":
            row |= {"transport": float(gaps.transport[-1]), "blur": float(gaps.blur[-1])}
            row["thinning"] = float(gaps.thinning[-1])
            if m <= widths.exact and seed < _EXACT_SEEDS:
                row["exact"] = exact_distance(here.risk.neurons, flow.final, other.final, m, seed)
        return row


def _reference_of(here: Place, choice: Reference, tau: float) -> tuple[Stepper[ParticleMeasure, Any], ParticleMeasure]:
    """The particles of a reference, and how they move."""
    start = here.risk.neurons.particles(here.start, drop=choice.drop)
    if choice.dynamics == "balanced":
        start = start.balanced()
    dynamics = None if choice.dynamics == "own" else Free()
    return METHODS[choice.method](here.risk, choice, tau, dynamics), start


def _asks(rows: Iterable[Row], label: str) -> bool:
    return label in {row["reference"] for row in rows}


def _is(row: Row, kind: str, tau: float | None) -> bool:
    return (row["kind"], row["tau"]) == (kind, tau)


def _tolerance(choice: Reference, name: str) -> float | None:
    """A flow's tolerance, its own default where the file names none."""
    if choice.method != "flow":
        return None
    from ..particles import GradientFlow

    given: float | None = getattr(choice, name)
    return given if given is not None else float(getattr(GradientFlow, name))


def window_gap(way: Neurons, one: GridMeasure | ParticleMeasure, two: GridMeasure | ParticleMeasure) -> float:
    """The largest difference of mass |w| |a| in a window of directions and a sign, over the second's whole mass.

    In the plane and in space; NaN elsewhere. Windows are overlapping hats that sum to 1, 16 of them on a circle and 32
    on a sphere: mass on an edge is in its neighbours, too, and no node's place tells.
    """
    first, second = _windows(way, one), _windows(way, two)
    if first is None or second is None:
        return math.nan
    return float((first - second).abs().max() / second.sum())


def _windows(way: Neurons, measure: GridMeasure | ParticleMeasure) -> Float[Tensor, "2 k"] | None:
    neurons = way.particles(measure, drop=0.0) if isinstance(measure, GridMeasure) else measure
    w, a, d = neurons.w.double(), neurons.a.double(), neurons.w.shape[1]
    if d not in _WINDOWS:
        return None
    windows = Circle.uniform(_WINDOWS[d]) if d == 2 else Sphere.fibonacci(_WINDOWS[d])
    centres, radius = windows.nodes.to(w), _REACH[d] * windows.spacing
    held = torch.zeros(2, _WINDOWS[d], dtype=torch.float64, device=w.device)
    for v, b, masses in zip(*(x.split(_AT_ONCE) for x in (w, a, neurons.masses.double())), strict=True):
        norm = v.norm(dim=1)
        angle = ((v / norm.clamp(min=1e-300)[:, None]) @ centres.T).clamp(-1, 1).acos()
        hats = (1 - angle / radius).clamp(min=0)
        mass = (masses * norm * b.abs() / hats.sum(1).clamp(min=1e-300))[:, None] * hats
        held[0] += mass[b >= 0].sum(0)
        held[1] += mass[b < 0].sum(0)
    return held.cpu()


def drawn(everyone: ParticleMeasure, m: int, seed: int) -> ParticleMeasure:
    """m neurons of equal mass, each drawn from the particles in proportion to their masses."""
    generator = torch.Generator().manual_seed(seed)
    # A sorted search, since torch's own multinomial takes no more than 2^24 nodes.
    steps = everyone.masses.double().cumsum(0).cpu()
    at = torch.rand(m, generator=generator, dtype=torch.float64) * steps[-1]
    chosen = torch.searchsorted(steps, at).clamp(max=len(steps) - 1).to(everyone.masses.device)
    masses = torch.full((m,), float(everyone.mass) / m, dtype=everyone.masses.dtype, device=everyone.masses.device)
    return ParticleMeasure(everyone.positions[chosen].contiguous(), masses)


def exact_distance(way: Neurons, neurons: Any, measure: Any, m: int, seed: int) -> float:
    """W2 between m neurons and m drawn from the other measure, by assignment; NaN where the way has sheets."""
    one, two = way.clouds(neurons), way.clouds(measure)
    if len(one) > 1:
        return math.nan
    (points, _), (nodes, masses) = one["all"], two["all"]
    other = drawn(ParticleMeasure(nodes.double(), masses.double()), m, seed + 10_000).positions
    cost = torch.cdist(points.double(), other).square().cpu().numpy()
    assignment: Callable[..., Any] = need("scipy.optimize", "W2 of networks").linear_sum_assignment
    rows, columns = assignment(cost)
    return math.sqrt(float(cost[rows, columns].mean()))
