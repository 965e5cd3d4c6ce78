"""How far a flow that is under way has come: a bar for those who watch, and lines of JSON for machines."""

import bisect
import contextlib
import io
import json
import math
import sys
import time as clock
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..flow import Flow
from ..optional import need
from ..status import FlowInterrupted
from ..stepper import Step

_PAUSE = 0.1  # seconds between updates at least: each waits for the device to finish its step
_LINE = 1.0  # seconds between lines of a log at least
_GROWN = 1e-6  # share by which a mass has to change to be worth a word

Callback = Callable[[float, Step[Any, Any]], None]


class Watch:
    """What there is to say of a flow between two steps; the one source of bars and logs.

    Args:
        t_end: physical time at which the flow ends.
        reference: a flow that has run already, for the gap to its outputs.
    """

    def __init__(self, t_end: float, reference: Flow | None = None) -> None:
        self.t_end = t_end
        self._reference = reference
        self._times = [] if reference is None else reference.times.tolist()
        self._began, self._since = clock.monotonic(), math.inf
        self._evaluations: float | None = None

    def count(self, time: float, step: Step[Any, Any]) -> None:
        """Of every step; waits for nothing."""
        self._since = min(self._since, time - step.dt)  # a flow that goes on starts late
        if "evaluations" in step.stats:
            self._evaluations = (self._evaluations or 0.0) + step.stats["evaluations"]

    def facts(self, time: float, step: Step[Any, Any]) -> dict[str, float | None]:
        """Numbers after a step that has been counted, None for what it does not know; waits for the device.

        Evaluations are all that this process made, seconds those since the watch began, eta those that are left.
        """
        gap = None
        if self._reference is not None:
            gap = float((step.outputs.cpu() - _at(self._reference, self._times, time)).abs().max())
        seconds = clock.monotonic() - self._began
        eta = seconds * (self.t_end - time) / (time - self._since) if time > self._since else math.nan
        numbers = {
            "time": time,
            "t_end": self.t_end,
            "risk": float(step.risk),
            "gap": gap,
            "mass": float(step.measure.mass),
            "boundary_mass": step.stats.get("boundary_mass"),
            "evaluations": self._evaluations,
            "width": step.stats.get("width"),
            "seconds": round(seconds, 3),
            "eta": round(eta, 3) if math.isfinite(eta) else None,
        }
        return {name: x if x is None or math.isfinite(x) else None for name, x in numbers.items()}


class Bars:
    """One bar a flow, one below the other; a context within which `evolve(progress=...)` may draw.

    Nothing is shown, and nothing computed, where the console is no terminal.

        with Bars() as bars:
            gd = evolve(stepper, start, 2.0, progress=bars.add("gd", 2.0))
            jko = evolve(other, begin, 2.0, progress=bars.add("jko", 2.0, reference=gd))

    Args:
        console: rich's; one on standard error by default.
    """

    def __init__(self, console: Any = None) -> None:
        progress, column = need("rich.progress", "Bars"), need("rich.table", "Bars").Column
        self.console = need("rich.console", "Bars").Console(stderr=True) if console is None else console
        self.shown: bool = self.console.is_terminal and not self.console.quiet
        self._progress = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=16),
            # On a narrow terminal the facts take a second line, and the time that is left is not cut off.
            progress.TextColumn("{task.fields[facts]}", table_column=column(no_wrap=False)),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.fields[left]}"),
            console=self.console,
            disable=not self.shown,
        )

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def add(self, name: str, t_end: float, *, reference: Flow | None = None) -> Callable[[float, Step[Any, Any]], None]:
        """A bar, as a callback for `evolve(progress=...)`.

        Args:
            name: what stands before the bar.
            t_end: physical time at which it is full.
            reference: a flow that has run already; the gap to its outputs is shown.
        """
        if not self.shown:
            return lambda time, step: None
        task = self._progress.add_task(name, total=t_end, facts="", left="")
        watch, last, start = Watch(t_end, reference), 0.0, math.nan

        def update(time: float, step: Step[Any, Any]) -> None:
            nonlocal last, start
            watch.count(time, step)
            now = clock.monotonic()
            if now - last < _PAUSE and time < t_end:
                return
            last = now
            known = watch.facts(time, step)
            mass = _number(known["mass"])
            start = mass if math.isnan(start) else start
            facts = f"t = {time:.4g} of {t_end:g}  risk {_number(known['risk']):.4g}"
            if known["gap"] is not None:
                facts += f"  gap {known['gap']:.2g}"
            if abs(mass - start) > _GROWN * start:
                facts += f"  mass {mass:.3g}"
            if known["evaluations"] is not None:
                facts += f"  {known['evaluations']:,.0f} evaluations"
            left = f"{_clock(_number(known['eta']))} left" if time < t_end and known["eta"] is not None else ""
            self._progress.update(task, completed=time, facts=facts, left=left)

        return update


class JsonLog:
    """Lines of JSON on flows under way: events, and at most once a second the numbers of a step; a context.

    Every line has `event` and `at` (seconds since 1970). `start`, `resumed`, `end`, `interrupted` and `failed` are
    events of a flow, the last two of none where an error comes between flows; `step` has its `Watch.facts`, `note` a
    message. What is not known, or not finite, is null. Each line is flushed when it is written. A log that can no
    longer be written (a full disk, a closed pipe) ends there, and stops no flow.

        with JsonLog("flow.jsonl") as log, log.flow("jko", 2.0) as heard:
            evolve(stepper, start, 2.0, callbacks=[heard])

    Args:
        file: a path, which is appended to; "-" for standard error; or an open stream, which stays open.
        pause: seconds between two lines on steps at least; the last step always has one.

    Raises:
        OSError: for a file that cannot be opened.
    """

    def __init__(self, file: str | Path | io.TextIOBase, *, pause: float = _LINE) -> None:
        self._pause = pause
        self._own = not isinstance(file, io.TextIOBase) and str(file) != "-"
        self._told = False  # that the last flow ended early
        self._stream: Any = sys.stderr
        if isinstance(file, io.TextIOBase):
            self._stream = file
        elif self._own:
            self._stream = Path(file).open("a", encoding="utf-8")  # noqa: SIM115 - __exit__ closes it

    def __enter__(self) -> "JsonLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not self._told:  # between two flows
            self._ended(error, run=None, flow=None)
        if self._own and self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.close()
        self._stream = None

    def event(self, event: str, **facts: Any) -> None:
        """Write a line."""
        if self._stream is None:
            return
        line = json.dumps({"event": event, "at": round(clock.time(), 3), **facts}, allow_nan=False, ensure_ascii=False)
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # ValueError of a stream that is closed
            self._stream = None

    @contextlib.contextmanager
    def flow(
        self,
        name: str,
        t_end: float,
        *,
        run: str | None = None,
        reference: Flow | None = None,
        resumed: bool = False,
    ) -> Iterator[Callback]:
        """A flow from start to end; gives the callback for `evolve(callbacks=[...])`.

        Args:
            name: of the flow.
            t_end: physical time at which it ends.
            run: the experiment's name for it all.
            reference: a flow that has run already, for the gap to its outputs.
            resumed: whether it goes on where another process stopped.
        """
        about = {"run": run, "flow": name}
        watch, last = Watch(t_end, reference), -math.inf
        reached: float | None = None

        def heard(time: float, step: Step[Any, Any]) -> None:
            nonlocal last, reached
            watch.count(time, step)
            now, reached = clock.monotonic(), time
            if now - last >= self._pause or time >= t_end:
                last = now
                self.event("step", **about, **watch.facts(time, step))

        self.event("resumed" if resumed else "start", **about, t_end=t_end)
        self._told = False
        try:
            yield heard
        except BaseException as error:
            self._ended(error, **about, t_end=t_end, time=reached)
            raise
        self.event("end", **about, t_end=t_end)

    def _ended(self, error: BaseException, **facts: Any) -> None:
        """Of what ended early."""
        stopped = isinstance(error, FlowInterrupted | KeyboardInterrupt)
        self.event("interrupted" if stopped else "failed", **facts, message=str(error) or type(error).__name__)
        self._told = True


def _at(flow: Flow, times: list[float], time: float) -> Float[Tensor, " n"]:
    """The flow's outputs at a time, between its records."""
    right = min(max(bisect.bisect_left(times, time), 1), len(times) - 1)
    left = right - 1
    share = min((time - times[left]) / (times[right] - times[left]), 1.0)
    return torch.lerp(flow.outputs[left], flow.outputs[right], share)


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _number(x: float | None) -> float:
    return math.nan if x is None else x
