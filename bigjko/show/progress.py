"""A bar for a flow that is under way: time, risk, gap to the other flow, time left."""

import bisect
import math
import time as clock
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..flow import Flow
from ..optional import need
from ..stepper import Step

_PAUSE = 0.1  # seconds between updates at least: each waits for the device to finish its step


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
        progress = need("rich.progress", "Bars")
        self.console = need("rich.console", "Bars").Console(stderr=True) if console is None else console
        self.shown: bool = self.console.is_terminal
        self._progress = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=24),
            progress.TextColumn("{task.fields[facts]}"),
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
        times = [] if reference is None else reference.times.tolist()
        began, last, since = clock.monotonic(), 0.0, math.inf

        def update(time: float, step: Step[Any, Any]) -> None:
            nonlocal last, since
            now, since = clock.monotonic(), min(since, time - step.dt)  # a flow that goes on starts late
            if now - last < _PAUSE and time < t_end:
                return
            last = now
            facts = f"t = {time:.4g} of {t_end:g}  risk {float(step.risk):.4g}"
            if reference is not None:
                gap = (step.outputs.cpu() - _at(reference, times, time)).abs().max()
                facts += f"  gap {float(gap):.2g}"
            left = (now - began) * (t_end - time) / (time - since)
            self._progress.update(
                task, completed=time, facts=facts, left=f"{_clock(left)} left" if time < t_end else ""
            )

        return update


def _at(flow: Flow, times: list[float], time: float) -> Float[Tensor, " n"]:
    """The flow's outputs at a time, between its records."""
    right = min(max(bisect.bisect_left(times, time), 1), len(times) - 1)
    left = right - 1
    share = min((time - times[left]) / (times[right] - times[left]), 1.0)
    return torch.lerp(flow.outputs[left], flow.outputs[right], share)


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
