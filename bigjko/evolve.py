"""The one loop: a stepper, a start and an end time give a flow. It names no stepper."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import StepError
from .flow import Flow
from .measure import GridMeasure, ParticleMeasure
from .status import FlowError, FlowInterrupted, Status
from .stepper import Step, Stepper
from .tape import Tape

if TYPE_CHECKING:
    from .store.checkpoint import Checkpoint

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
    checkpoint: "Checkpoint | str | Path | None" = None,
    resume: bool = False,
    progress: Callback | None = None,
    throw: bool = True,
) -> Flow:
    """Repeat a stepper's step from time 0 to t_end.

    Steps end at k tau (not summed), at every time of save_at exactly, and at t_end.

    With a checkpoint the flow is written as it goes: measures when they are reached, all that it takes to go on once a
    minute (`Checkpoint(path, seconds)` sets that), and on Ctrl-C or an error. What `kill -9` leaves can be loaded, and
    resumed: on the CPU the result is bit by bit that of a flow that was left alone. Memory then holds the record, but
    no measures: `flow.measures` reads them when they are asked for.

    Args:
        stepper: JKO, GradientDescent, GradientFlow, ...
        start: the measure at time 0, of the kind the stepper takes.
        t_end: physical time.
        save_at: times at which measures are kept; by default the first and the last.
        record: outputs, risks, masses and stats are kept at 0, after every `record`-th step, and at t_end.
        callbacks: each is called with the time and the Step after every step. One that raises StopIteration ends the
            flow there, its status being `stopped`.
        checkpoint: where the flow is written, a store that `Flow.load` reads; must not exist, unless resumed.
        resume: go on where a flow with the same checkpoint stopped. Starts anew where there is none; a flow that had
            come to its end is loaded.
        progress: one more of the callbacks, for showing where the flow is.
        throw: whether a step that fails raises; else the flow ends there and its status says why.

    Raises:
        FlowError: when a step fails; it carries the flow so far.
        FlowInterrupted: on Ctrl-C; it carries the flow so far.
        StepError: for times that are not usable, or resume without a checkpoint.
        StoreError: for a checkpoint that cannot be written, that exists, that another process is writing, or that is of
            another flow, with the differences.
    """
    save_at = [float(t) for t in save_at]  # arrays, tensors and generators alike
    targets = _targets(t_end, save_at)
    kept = set(save_at or (0.0, float(t_end)))
    countable(stepper.tau, t_end)
    if record < 1:
        raise StepError(f"received record = {record}, need at least 1")
    state = stepper.init(start)
    first = Tape.first_row(start, stepper)
    heard = [*callbacks, *([progress] if progress else [])]
    asked = {"t_end": float(t_end), "save_at": sorted(set(save_at)), "record": record}
    with _tape(stepper, start, asked, checkpoint, resume) as tape:
        flow = tape.resumed(state, first)
        if flow is None:
            if not tape.rows:
                tape.begin(start, state, first, keep=0.0 in kept)
            status = Status.ok
            try:
                while tape.reached.time < t_end and status is Status.ok:
                    now = tape.reached
                    until = _next(now.time, stepper.tau, targets)
                    step = stepper.step(now.measure, now.state, until - now.time)
                    status = step.status
                    if status is not Status.ok:
                        break
                    time = until if step.dt >= until - now.time else now.time + step.dt
                    ended = time >= t_end
                    tape.step(time, step, record=(now.steps + 1) % record == 0 or ended, keep=time in kept)
                    tape.rest()
                    if not _told(heard, time, step) and not ended:
                        status = Status.stopped
            except KeyboardInterrupt:
                raise FlowInterrupted(tape.end(Status.interrupted)) from None
            flow = tape.end(status)
    if flow.status not in (Status.ok, Status.stopped) and throw:
        reached = float(flow.saved_times[-1])
        raise FlowError(
            f"the {stepper.name} step from t = {reached:.6g} failed: {flow.status.value}", flow.status, flow
        )
    return flow


def _told(heard: Iterable[Callback], time: float, step: Step[Any, Any]) -> bool:
    """Tell all callbacks; whether none of them stops the flow."""
    goes_on = True
    for callback in heard:
        try:
            callback(time, step)
        except StopIteration:
            goes_on = False
    return goes_on


def _tape(
    stepper: Stepper[Any, Any],
    start: GridMeasure | ParticleMeasure,
    asked: dict[str, Any],
    checkpoint: "Checkpoint | str | Path | None",
    resume: bool,
) -> Tape:
    """In memory, or on disk."""
    if checkpoint is None:
        if resume:
            raise StepError("received resume = True without a checkpoint, need the one to go on from: checkpoint=path")
        return Tape(stepper.name, stepper.neurons)
    from .store.checkpoint import Checkpoint

    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint(checkpoint)
    return checkpoint.tape(stepper, start, asked, resume)


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
