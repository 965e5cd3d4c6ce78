"""What has been recorded of a flow so far, and where it stands."""

import math
import time as clock
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .flow import Flow
from .measure import GridMeasure, ParticleMeasure
from .neurons.base import Neurons
from .status import Status
from .stepper import Step, Stepper

Row = tuple[float, Tensor, Tensor, Tensor, dict[str, float]]  # time, outputs, risk, mass, stats


@dataclass(frozen=True, eq=False)
class Reached:
    """Where a flow stands between two steps: all it takes to go on.

    Attributes:
        time: physical time.
        steps: taken so far.
        measure, state: to hand to the next step.
        rows, saved: how much of the record, and how many measures, belong to it.
    """

    time: float
    steps: int
    measure: Any  # of the stepper's own kind
    state: Any
    rows: int
    saved: int


@dataclass
class Tape:
    """The record of a flow in memory. `reached` is set last, and at once: Ctrl-C may come at any time."""

    name: str
    neurons: Neurons | None
    # One append a row: Ctrl-C between two lists would leave them of different lengths.
    rows: list[Row] = field(default_factory=list)
    saved: list[tuple[float, GridMeasure | ParticleMeasure | None]] = field(default_factory=list)
    reached: Reached = field(init=False)
    attributes: dict[str, Any] = field(default_factory=dict)
    _began: float = field(default_factory=clock.perf_counter, init=False)

    @staticmethod
    def first_row(start: GridMeasure | ParticleMeasure, stepper: Stepper[Any, Any]) -> Row:
        """Of time 0."""
        energy = stepper.energy.on(start.grid if isinstance(start, GridMeasure) else start)
        outputs = energy.outputs(start.masses)
        return 0.0, outputs.detach(), energy.value(start.masses, outputs).detach(), start.mass.detach(), {}

    def begin(self, start: GridMeasure | ParticleMeasure, state: Any, first: Row, keep: bool) -> None:
        """At time 0."""
        self.rows.append(first)
        if keep:
            self.save(0.0, start)
        self.reached = Reached(0.0, 0, start, state, 1, len(self.saved))

    def step(self, time: float, step: Step[Any, Any], *, record: bool, keep: bool) -> None:
        """After a step."""
        if record:
            self.rows.append((time, step.outputs.detach(), step.risk.detach(), step.measure.mass.detach(), step.stats))
        if keep:
            self.save(time, step.measure)
        steps = self.reached.steps + 1
        self.reached = Reached(time, steps, step.measure, step.state, len(self.rows), len(self.saved))

    def save(self, time: float, measure: GridMeasure | ParticleMeasure) -> None:
        """Keep a measure."""
        self.saved.append((time, measure))

    def end(self, status: Status) -> Flow:
        """The flow so far; one that ended early keeps the measure it had reached."""
        self._cut()
        reached = self.reached
        if status is not Status.ok and (not self.saved or self.saved[-1][0] < reached.time):
            self.save(reached.time, reached.measure)
        return self.flow(status)

    def flow(self, status: Status) -> Flow:
        """The record as a flow."""
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
            self._measures(),
            {**self.attributes, "seconds": self.seconds},
        )

    @property
    def seconds(self) -> float:
        """That the flow has taken."""
        return clock.perf_counter() - self._began

    def _cut(self) -> None:
        """Drop what a step that was broken off has left."""
        del self.rows[self.reached.rows :], self.saved[self.reached.saved :]

    def _measures(self) -> Sequence[GridMeasure | ParticleMeasure]:
        return tuple(measure for _, measure in self.saved if measure is not None)

    # What a tape on disk does besides.

    def __enter__(self) -> "Tape":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        return None

    def resumed(self, state: Any, first: Row) -> Flow | None:
        """Set `reached` to where an earlier run stood, if there was one; the flow, if that had come to its end.

        Args:
            state: of the first step: what kind of state the stepper has.
            first: the row of time 0, which is what tells energies apart that hold code.
        """
        return None

    def rest(self) -> None:
        """Between two steps."""
