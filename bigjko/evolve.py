"""The one loop: a stepper, a start and an end time give a flow. It names no stepper."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from .errors import StepError
from .flow import Flow
from .measure import GridMeasure, ParticleMeasure
from .neurons.base import Neurons
from .status import FlowError, FlowInterrupted, Status
from .stepper import Step, Stepper

M = TypeVar("M", GridMeasure, ParticleMeasure)
Callback = Callable[[float, Step[Any, Any]], None]


def evolve(
    stepper: Stepper[M, Any],
    start: M,
    t_end: float,
    *,
    save_at: Iterable[float] = (),
    record: int = 1,
    callbacks: Iterable[Callback] = (),
    progress: Callback | None = None,
    throw: bool = True,
) -> Flow:
    """Repeat a stepper's step from time 0 to t_end.

    Steps end at k tau (not summed), at every time of save_at exactly, and at t_end.

    Args:
        stepper: JKO, GradientDescent, GradientFlow, ...
        start: the measure at time 0, of the kind the stepper takes.
        t_end: physical time.
        save_at: times at which measures are kept; by default the first and the last.
        record: outputs, risks, masses and stats are kept at 0, after every `record`-th step, and at t_end.
        callbacks: each is called with the time and the Step after every step.
        progress: one more of them, for showing where the flow is.
        throw: whether a step that fails raises; else the flow ends there and its status says why.

    Raises:
        FlowError: when a step fails; it carries the flow so far.
        FlowInterrupted: on Ctrl-C; it carries the flow so far.
        StepError: for times that are not usable.
    """
    save_at = [float(t) for t in save_at]  # arrays, tensors and generators alike
    targets = _targets(t_end, save_at)
    countable(stepper.tau, t_end)
    if record < 1:
        raise StepError(f"received record = {record}, need at least 1")
    state = stepper.init(start)
    tape = _Tape(stepper.name, stepper.neurons)
    heard = [*callbacks, *([progress] if progress else [])]
    measure, time, steps = start, 0.0, 0
    tape.begin(start, stepper, 0.0 in targets or not save_at)
    status, step = Status.ok, None
    try:
        while time < t_end and status is Status.ok:
            until = _next(time, stepper.tau, targets)
            step = stepper.step(measure, state, until - time)
            status = step.status
            if status is not Status.ok:
                break
            reached = until if step.dt >= until - time else time + step.dt
            measure, state, time, steps = step.measure, step.state, reached, steps + 1  # at once: Ctrl-C comes any time
            ended = time >= t_end
            if steps % record == 0 or ended:
                tape.record(time, step)
            if (save_at and time in targets and (time < t_end or t_end in save_at)) or (ended and not save_at):
                tape.save(time, measure)
            for callback in heard:
                callback(time, step)
    except KeyboardInterrupt:
        raise FlowInterrupted(tape.flow(Status.interrupted, time, measure)) from None
    flow = tape.flow(status, time, measure)
    if status is not Status.ok and throw:
        raise FlowError(f"the {stepper.name} step from t = {time:.6g} failed: {status.value}", status, flow)
    return flow


def _targets(t_end: float, save_at: Sequence[float]) -> list[float]:
    if not (math.isfinite(t_end) and t_end > 0):
        raise StepError(f"received t_end = {t_end}, need a positive finite time")
    wrong = [t for t in save_at if not 0 <= t <= t_end]
    if wrong:
        raise StepError(f"received save_at times {wrong}, need all within [0, {t_end}]")
    return sorted({*map(float, save_at), float(t_end)})


def countable(tau: float, t_end: float) -> None:
    """Raise StepError for more steps than would ever end: beyond 2^53 of them time would stand still, too."""
    if t_end / tau > _STEPS:
        raise StepError(
            f"received t_end = {t_end:g} and tau = {tau:g}, which are {t_end / tau:.3g} steps, need at most "
            f"{_STEPS:g}: take a larger tau"
        )


_STEPS = 1e9  # hours of the cheapest there are


def _next(time: float, tau: float, targets: list[float]) -> float:
    """The next multiple of tau, or the next target where that comes first; a sliver of a step is never taken."""
    k = math.floor(time / tau * (1 + 1e-12) + 1e-9) + 1
    target = next(t for t in targets if t > time)
    return target if k * tau >= target - 1e-9 * tau else k * tau


@dataclass
class _Tape:
    """What has been recorded so far."""

    name: str
    neurons: Neurons | None
    # One append a row: Ctrl-C between two lists would leave them of different lengths.
    rows: list[tuple[float, Tensor, Tensor, Tensor, dict[str, float]]] = field(default_factory=list)
    saved: list[tuple[float, GridMeasure | ParticleMeasure]] = field(default_factory=list)

    def begin(self, start: M, stepper: Stepper[M, Any], keep: bool) -> None:
        nodes = start.grid if isinstance(start, GridMeasure) else start
        energy = stepper.energy.on(nodes)
        outputs = energy.outputs(start.masses)
        self._append(0.0, outputs, energy.value(start.masses, outputs), start.mass, {})
        if keep:
            self.save(0.0, start)

    def record(self, time: float, step: Step[Any, Any]) -> None:
        self._append(time, step.outputs, step.risk, step.measure.mass, step.stats)

    def save(self, time: float, measure: GridMeasure | ParticleMeasure) -> None:
        self.saved.append((time, measure))

    def _append(self, time: float, outputs: Tensor, risk: Tensor, mass: Tensor, stats: dict[str, float]) -> None:
        self.rows.append((time, outputs.detach(), risk.detach(), mass.detach(), stats))

    def flow(self, status: Status, time: float, measure: GridMeasure | ParticleMeasure) -> Flow:
        """The flow so far; one that ended early keeps the measure it had reached."""
        if status is not Status.ok and (not self.saved or self.saved[-1][0] < time):
            self.save(time, measure)
        times, outputs, risks, masses, stats = zip(*self.rows, strict=True)
        names = sorted({name for row in stats for name in row})
        return Flow(
            self.name,
            self.neurons,
            torch.tensor(times, dtype=torch.float64),
            torch.stack(outputs).cpu(),
            torch.stack(risks).double().cpu(),
            torch.stack(masses).cpu(),
            {k: torch.tensor([row.get(k, math.nan) for row in stats], dtype=torch.float64) for k in names},
            status,
            torch.tensor([t for t, _ in self.saved], dtype=torch.float64),
            tuple(m for _, m in self.saved),
        )
