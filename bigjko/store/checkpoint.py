"""Flows that are written as they go, and go on where they stopped."""

import contextlib
import dataclasses
import json
import math
import os
import platform
import shutil
import signal
import time as clock
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock
import torch

from ..errors import OtherVersionsWarning, StepError
from ..flow import Flow
from ..measure import Measure
from ..optional import need
from ..status import Status
from ..stepper import Stepper
from ..tape import Reached, Row, Tape
from .identity import describe
from .measures import READING, StoredMeasures, damaged, put_measure, read_measure, write_measure
from .seal import DamageError, StoreError, check, seal, sweep, undisturbed, whole
from .state import pack, unpack
from .zarr import (
    as_json,
    begin,
    checkpoints,
    complete,
    load,
    opened,
    read_records,
    refuse_existing,
    write_records,
    writing,
)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where `evolve` writes a flow as it goes.

    A checkpoint has all that the next step reads: measure, duals, debiasing potential, time step, and the record so
    far; two are kept, the older in case the newer is damaged. One takes as long as writing the record and
    three arrays of N.

    Args:
        path: a store that `Flow.load` reads, at any time.
        seconds: between two checkpoints at least, of wall clock; 0 for one after every step.
        attributes: of the flow, what JSON can hold; the flow adds `seconds`, the time it has taken.
    """

    path: str | Path
    seconds: float = 60.0
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.seconds < math.inf:
            raise StepError(f"received seconds = {self.seconds} for a Checkpoint, need a number from 0: 60 by default")
        need("zarr", "Checkpoint")
        need("xarray", "Checkpoint")
        as_json(self.attributes)  # now, and not after hours of steps

    def tape(self, stepper: Stepper[Any, Any], start: Measure, asked: dict[str, Any], resume: bool) -> "StoredTape":
        """The record of a flow, on disk."""
        return StoredTape(
            stepper.name, stepper.neurons, attributes=dict(self.attributes), checkpoint=self, start=start,
            resume=resume, facts=describe({"stepper": stepper, "start": start, **asked}),
        )  # fmt: skip


@dataclasses.dataclass
class StoredTape(Tape):
    """The record of a flow in memory, and all of it on disk.

    Attributes:
        checkpoint: where and how often.
        start: the measure at time 0.
        resume: whether a flow that is there is gone on with.
        facts: what the flow is made of, to tell it from others.
    """

    checkpoint: Checkpoint = dataclasses.field(kw_only=True)
    start: Measure = dataclasses.field(kw_only=True)
    resume: bool = dataclasses.field(kw_only=True)
    facts: dict[str, Any] = dataclasses.field(kw_only=True)

    def __enter__(self) -> "StoredTape":
        self.path = Path(self.checkpoint.path).absolute()  # whatever a callback makes the working directory
        self._number, self._spent, self._last, self._ended = 0, 0.0, clock.monotonic(), False
        there = self.path.exists() or self.path.is_symlink()
        if there and not self.resume:
            refuse_existing(self.path)
        with writing(self.path):
            if there:
                opened(self.path)
            else:
                with whole(self.path) as folder:
                    begin(folder, {"made_of": self.facts})
            self._lock = filelock.FileLock(self.path / ".lock", timeout=0)
            try:
                self._lock.acquire()
            except filelock.Timeout:
                raise StoreError(
                    f"received the path {self.path}, which another process is writing, need one for this flow alone: "
                    "wait until that has ended, or choose another"
                ) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if error is not None and not self._ended and hasattr(self, "reached"):
                self._cut()
                with contextlib.suppress(Exception):  # what broke the flow is what is to be told
                    self._write(Status.unfinished)
        finally:
            (self.path / ".lock").unlink(missing_ok=True)
            self._lock.release()

    def resumed(self, state: Any, first: Row) -> Flow | None:
        """See Tape."""
        root = opened(self.path)
        if "made_of" not in root.attrs:
            raise StoreError(
                f"received the store {self.path} to resume, which Flow.save or an older bigjko wrote, need the "
                "checkpoint of a flow: choose another path, or load it"
            )
        try:
            check(self.path)
            self._same(dict(root.attrs["made_of"]))
            with writing(self.path):
                for folder in (self.path, self.path / "measures", self.path / "checkpoints"):
                    sweep(folder)
            if root.attrs["complete"]:
                self._ended = True
                shutil.rmtree(self.path / "checkpoints", ignore_errors=True)  # if killed just before it was removed
                return load(self.path, neurons=self.neurons)
            found = self._newest()
            if found is None:
                return None
            self._restore(found, state, first)
        except StoreError:
            raise
        except READING as damage:
            raise damaged(self.path, damage) from damage
        return None

    def save(self, time: float, measure: Measure) -> None:
        """Write a measure: none is kept in memory."""
        with writing(self.path):
            group = self.path / "measures" / str(len(self.saved))
            shutil.rmtree(group, ignore_errors=True)  # of a step that was broken off, or is taken again
            write_measure(group, time, measure)
        self.saved.append((time, None))

    def rest(self) -> None:
        """A checkpoint, if it is time for one."""
        if clock.monotonic() - self._last >= self.checkpoint.seconds:
            with undisturbed():
                self._write(Status.unfinished)

    def end(self, status: Status) -> Flow:
        """The flow, sealed; one that the user stopped as a checkpoint, from which it can go on."""
        again = signal.SIGINT if status is Status.interrupted else None  # a second Ctrl-C, from impatience
        with undisturbed(ignore=again):
            if status in (Status.interrupted, Status.stopped):
                self._cut()
                self._write(status)
                self._ended = True
                return load(self.path, neurons=self.neurons)
            flow = super().end(status)
            with writing(self.path):
                shutil.rmtree(self.path / "records", ignore_errors=True)
                complete(self.path, flow)
            self._ended = True
            return flow

    @property
    def seconds(self) -> float:
        """See Tape; those of earlier runs are counted."""
        return self._spent + super().seconds

    def _measures(self) -> Sequence[Measure]:
        return StoredMeasures(self.path, len(self.saved))

    # ------------------------------------------------------------------------------------------------- checkpoints

    def _write(self, status: Status) -> None:
        """A checkpoint of where the flow stands; then only the one before is kept beside it."""
        folders, reached = self.path / "checkpoints", self.reached
        with writing(self.path):
            with whole(folders / str(self._number)) as folder:
                group = need("zarr", "Checkpoint").create_group(folder, zarr_format=3)
                write_records(folder / "records", self.flow(status))
                measure = group.create_group("measure", attributes={"time": reached.time})
                put_measure(measure, reached.measure, exact=True)
                tree = pack(reached.state, group.create_group("state"), "state")
                numbers = {name: getattr(reached, name) for name in ("time", "steps", "rows", "saved")}
                numbers |= {"seconds": self.seconds, "versions": versions(self.start.masses.device)}
                group.attrs.update({"state": tree, **numbers})
                seal(folder)
                shutil.rmtree(folders / str(self._number), ignore_errors=True)  # damaged, or its measures are
            for old in folders.glob("[0-9]*"):
                if int(old.name) < self._number - 1:
                    shutil.rmtree(old, ignore_errors=True)
        self._number, self._last = self._number + 1, clock.monotonic()

    def _newest(self) -> Path | None:
        """The latest checkpoint that is whole, measures and all; None where none was ever written."""
        damage: DamageError | None = None
        for folder in checkpoints(self.path):
            try:
                check(folder)
                saved = json.loads((folder / "zarr.json").read_text("utf-8"))["attributes"]["saved"]
                for k in range(saved):
                    check(self.path / "measures" / str(k))
            except DamageError as broken:
                damage = damage or broken
                continue
            return folder
        if damage is not None:
            raise damage
        return None

    def _restore(self, folder: Path, state: Any, first: Row) -> None:
        group = need("zarr", "Checkpoint").open_group(folder, mode="r")
        numbers, flow = dict(group.attrs), read_records(folder / "records", self.path, self.neurons)
        device = first[1].device
        for k, time in enumerate(flow.times.tolist()):
            stats = {name: float(values[k]) for name, values in flow.stats.items()}
            columns = (x[k].to(device) for x in (flow.outputs, flow.risks, flow.masses))
            self.rows.append((time, *columns, stats))
        (_, *begun, _), (_, *asked, _) = self.rows[0], first
        # Rounding is another with other threads or another device, of which a warning is enough.
        near = torch.finfo(self.start.masses.dtype).eps ** 0.5
        pairs = [(x.double(), y.double()) for x, y in zip(begun, asked, strict=True)]
        if not all(x.shape == y.shape and torch.allclose(x, y, near, near, equal_nan=True) for x, y in pairs):
            raise StoreError(
                f"received the checkpoint {self.path} of a flow whose outputs, risk or mass at time 0 are others, need "
                "the same energy and the same start: choose another path, or take what it was begun with"
            )
        self.saved.extend((time, None) for time in flow.saved_times.tolist()[: numbers["saved"]])
        self.reached = Reached(
            numbers["time"], numbers["steps"], read_measure(folder / "measure", like=self.start),
            unpack(numbers["state"], group["state"], state, device), numbers["rows"], numbers["saved"],
        )  # fmt: skip
        self._number, self._spent = int(folder.name) + 1, numbers["seconds"]
        here, there = versions(self.start.masses.device), dict(numbers["versions"])
        if here != there:
            others = ", ".join(
                f"{name} {there.get(name)} -> {here[name]}" for name in here if here[name] != there.get(name)
            )
            warnings.warn(
                f"the flow goes on with other versions than it was begun with ({others}): last digits may differ from "
                "those of a flow that was left alone",
                OtherVersionsWarning,
                stacklevel=4,
            )

    def _same(self, there: dict[str, Any]) -> None:
        """Raise StoreError unless the flow on disk is the one that is asked for."""
        names = sorted({*there, *self.facts}, key=[*self.facts, *there].index)
        absent = object()
        apart = [
            "{}: {} there, {} here".format(name, *_apart(there.get(name, "nothing"), self.facts.get(name, "nothing")))
            for name in names
            if there.get(name, absent) != self.facts.get(name, absent)
        ]
        if apart:
            more = f"; and {len(apart) - _SHOWN} more" if len(apart) > _SHOWN else ""
            raise StoreError(
                f"received the checkpoint {self.path} of another flow ({'; '.join(apart[:_SHOWN])}{more}), need one of "
                "the flow that is asked for: choose another path, or ask for what was begun"
            )


def versions(device: torch.device) -> dict[str, str]:
    """What decides on the last digits of a flow."""
    from .. import __version__

    return {
        "bigjko": __version__,
        "torch": str(torch.__version__),
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
        "device": device.type,
    }


def _apart(one: str, two: str) -> tuple[str, str]:
    """Two texts, or where they are long what is about their first difference."""
    if max(len(one), len(two)) <= _LONG:
        return one, two
    first = max(0, len(os.path.commonprefix((one, two))) - _LONG // 4)
    return f"...{one[first : first + _LONG]}...", f"...{two[first : first + _LONG]}..."


_LONG = 80  # characters: a save_at may have any number of times
_SHOWN = 5  # differences
