"""Flows that are written as they go: stopped at any moment, in any way, they go on as if nothing had happened."""

import contextlib
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr as zarr_library
from torch import Tensor

import bigjko as bj
import bigjko_kernels.costs
from bigjko.neurons.dynamics import Free
from bigjko.stepper import Step, Stepper
from bigjko.store import zarr
from bigjko.store.checkpoint import versions
from bigjko.store.identity import describe
from bigjko.store.seal import seal
from bigjko.store.seal import undisturbed as undisturbed_by_signals
from bigjko.store.state import pack, unpack
from bigjko.tape import Row, Tape

from .registry import STEPPERS
from .test_store import same, same_measure

pytestmark = [
    pytest.mark.filterwarnings("ignore::bigjko.NarrowMeasureWarning"),  # small grids: what is tested is the store
    pytest.mark.filterwarnings("ignore::bigjko.BoundaryMassWarning"),
]

D = torch.float64
T_END, SAVE_AT = 0.5, (0.0, 0.15, 0.5)


def toy(tau: float = 0.05) -> tuple[bj.JKO, bj.GridMeasure]:
    """Quick, and it moves in a box of its grid."""
    risk = bj.Risk(torch.ones(1, 1, dtype=D), torch.ones(1, dtype=D))
    grid = bj.Grid.uniform([-4.0, -4.0], [4.0, 4.0], [101, 101])
    return bj.JKO(risk, grid, tau=tau), bj.GridMeasure.gaussian(grid, torch.tensor([0.9, 0.2], dtype=D), 0.25)


def stopping(after: int, error: type[BaseException] = KeyboardInterrupt) -> Callable[[float, Step[Any, Any]], None]:
    """A callback that stops a flow after so many steps."""
    heard = 0

    def stop(time: float, step: Step[Any, Any]) -> None:
        nonlocal heard
        heard += 1
        if heard >= after:
            raise error

    return stop


def stopped(path: Path, after: int = 4, seconds: float = 0.0, **options: Any) -> None:
    """Leave a flow that was interrupted."""
    stepper, start = toy()
    with pytest.raises(bj.FlowInterrupted):
        bj.evolve(stepper, start, T_END, save_at=SAVE_AT, callbacks=[stopping(after)],
                  checkpoint=bj.Checkpoint(path, seconds), **options)  # fmt: skip


def resumed(path: Path, **options: Any) -> bj.Flow:
    stepper, start = toy()
    return bj.evolve(stepper, start, T_END, save_at=SAVE_AT, checkpoint=path, resume=True, **options)


def undisturbed() -> bj.Flow:
    stepper, start = toy()
    return bj.evolve(stepper, start, T_END, save_at=SAVE_AT)


def assert_same(one: bj.Flow, two: bj.Flow) -> None:
    """Bit by bit."""
    assert (one.name, one.status) == (two.name, two.status)
    for name in ("times", "outputs", "risks", "masses", "saved_times"):
        assert same(getattr(one, name), getattr(two, name)), name
    assert sorted(one.stats) == sorted(two.stats)
    assert all(same(one.stats[name], two.stats[name]) for name in one.stats)
    assert len(one.measures) == len(two.measures)
    assert all(same_measure(*pair) for pair in zip(one.measures, two.measures, strict=True))


# ------------------------------------------------------------------------------------------------------------ resuming


@pytest.mark.parametrize("name", STEPPERS)
def test_a_flow_that_was_stopped_goes_on_bit_by_bit(name: str, tmp_path: Path) -> None:
    """Twice, with a new stepper each time, as a new process has it."""
    make = STEPPERS[name].make
    stepper, start = make(0.1)
    expected = bj.evolve(stepper, start, T_END, save_at=SAVE_AT)
    for _ in range(2):
        stepper, start = make(0.1)
        with pytest.raises(bj.FlowInterrupted) as caught:
            bj.evolve(stepper, start, T_END, save_at=SAVE_AT, checkpoint=tmp_path / "flow.zarr", resume=True,
                      callbacks=[stopping(2)])  # fmt: skip
        assert isinstance(caught.value.flow, bj.Flow)
        assert caught.value.flow.status is bj.Status.interrupted
    stepper, start = make(0.1)
    flow = bj.evolve(stepper, start, T_END, save_at=SAVE_AT, checkpoint=tmp_path / "flow.zarr", resume=True)
    assert_same(flow, expected)
    assert_same(bj.Flow.load(tmp_path / "flow.zarr"), expected)


def test_a_box_that_has_grown_is_gone_on_with(tmp_path: Path) -> None:
    """Measures on grids of their own: Widening's state belongs to the last of them."""

    def make() -> tuple[Stepper[bj.GridMeasure, Any], bj.GridMeasure]:
        risk = bj.Risk(torch.ones(1, 1, dtype=D), torch.full((1,), 4.0, dtype=D))
        grid = bj.Grid.uniform([-1.6, -1.6], [1.6, 1.6], [49, 49])
        return bj.Widening(bj.JKO(risk, grid, tau=0.05)), bj.GridMeasure.gaussian(grid, 0.3, 0.3)

    stepper, start = make()
    expected = bj.evolve(stepper, start, T_END)
    assert bool((expected.stats["widened"][1:5] > 0).any())
    for after in (4, 3):
        stepper, start = make()
        with pytest.raises(bj.FlowInterrupted):
            bj.evolve(stepper, start, T_END, checkpoint=tmp_path / "f", resume=True, callbacks=[stopping(after)])
    stepper, start = make()
    assert_same(bj.evolve(stepper, start, T_END, checkpoint=tmp_path / "f", resume=True), expected)


def test_a_flow_that_was_left_alone_is_written_as_the_same(tmp_path: Path) -> None:
    """Its store is complete, and has neither checkpoints nor a lock."""
    stepper, start = toy()
    flow = bj.evolve(
        stepper, start, T_END, save_at=SAVE_AT, checkpoint=bj.Checkpoint(tmp_path / "f", 0.0, {"by": "me"})
    )
    assert_same(flow, undisturbed())
    assert {path.name for path in (tmp_path / "f").iterdir()} == {"zarr.json", "records", "measures"}
    loaded = bj.Flow.load(tmp_path / "f")
    assert_same(loaded, flow)
    assert loaded.attributes == flow.attributes
    assert loaded.attributes["by"] == "me"
    assert_same(resumed(tmp_path / "f"), flow)  # nothing is left to be done


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    stopped(tmp_path / "f", after=5)
    assert {path.name for path in (tmp_path / "f" / "checkpoints").glob("[0-9]*")} == {"4", "5"}


def test_the_time_it_took_is_that_of_all_lives(tmp_path: Path) -> None:
    def rest(*_: object) -> None:
        time.sleep(0.05)

    stepper, start = toy()
    with pytest.raises(bj.FlowInterrupted):
        bj.evolve(stepper, start, T_END, save_at=SAVE_AT, callbacks=[rest, stopping(4)], checkpoint=tmp_path / "f")
    before = bj.Flow.load(tmp_path / "f").attributes["seconds"]
    assert before >= 0.2
    assert resumed(tmp_path / "f", callbacks=[rest]).attributes["seconds"] >= before + 0.3


def test_what_cannot_be_gone_on_with_is_refused(tmp_path: Path) -> None:
    """With what is apart; what is there stays."""
    stopped(tmp_path / "f")
    other, start = toy(tau=0.02)
    with pytest.raises(
        bj.StoreError, match=r"of another flow \(stepper.tau: 0.05 there, 0.02 here; t_end: 0.5 there, 0.6"
    ):
        bj.evolve(other, start, 0.6, save_at=SAVE_AT, checkpoint=tmp_path / "f", resume=True)
    stepper, start = toy()
    risk = bj.Risk(torch.ones(1, 1, dtype=D), torch.full((1,), 0.9, dtype=D))
    with pytest.raises(bj.StoreError, match=r"stepper.energy.y: float64 \[1\] \w+ there, float64 \[1\] \w+ here"):
        bj.evolve(bj.JKO(risk, stepper.grid, tau=0.05), start, T_END, save_at=SAVE_AT, checkpoint=tmp_path / "f",
                  resume=True)  # fmt: skip
    with pytest.raises(bj.StoreError, match="which exists, need a new one"):
        bj.evolve(stepper, start, T_END, save_at=SAVE_AT, checkpoint=tmp_path / "f")
    with pytest.raises(bj.StepError, match="resume = True without a checkpoint"):
        bj.evolve(stepper, start, T_END, resume=True)
    with pytest.raises(bj.StepError, match="received seconds = -1"):
        bj.Checkpoint(tmp_path / "f", seconds=-1.0)
    assert_same(resumed(tmp_path / "f"), undisturbed())


class Slow(Free):
    """Dynamics of a user's own, which say nothing of the start."""

    def __init__(self, share: float) -> None:
        self.share = share

    def velocity(self, w: Tensor, a: Tensor, slopes: Tensor, decay: float) -> Tensor:
        return self.share * super().velocity(w, a, slopes, decay)


def test_what_objects_and_scalars_of_others_say_is_compared(tmp_path: Path) -> None:
    """Of a kernel its cost, of an object its public numbers, of NumPy's scalars their values."""
    grid = bj.Grid.uniform([-1.0], [1.0], [9])

    class Steep(bigjko_kernels.costs.SquaredEuclidean):
        pass

    plain = describe(bj.kernels.Dense(grid, 0.5), "kernel")
    assert plain == {"kernel": "Dense", "kernel.epsilon": "0.5", "kernel.cost": "SquaredEuclidean"}
    assert describe(bj.kernels.Dense(grid, 0.5, Steep()), "kernel")["kernel.cost"] == "Steep"
    assert describe({"rtol": np.float32(0.5)}) == describe({"rtol": 0.5})
    risk = bj.Risk(torch.ones(1, 1, dtype=D), torch.ones(1, dtype=D))
    start = bj.ParticleMeasure.from_network(torch.ones(2, 1, dtype=D), torch.ones(2, dtype=D))
    with pytest.raises(bj.FlowInterrupted):
        bj.evolve(bj.GradientDescent(risk, tau=0.1, dynamics=Slow(0.5)), start, 1.0, checkpoint=tmp_path / "f",
                  callbacks=[stopping(3)])  # fmt: skip
    with pytest.raises(bj.StoreError, match=r"stepper.dynamics.share: 0.5 there, 0.25 here"):
        bj.evolve(bj.GradientDescent(risk, tau=0.1, dynamics=Slow(0.25)), start, 1.0, checkpoint=tmp_path / "f",
                  resume=True)  # fmt: skip


def test_a_difference_of_long_lists_is_told_in_short(tmp_path: Path) -> None:
    stepper, start = toy()
    times = [T_END * k / 2000 for k in range(2001)]
    with pytest.raises(bj.FlowInterrupted):
        bj.evolve(stepper, start, T_END, save_at=times, checkpoint=tmp_path / "f", callbacks=[stopping(1)])
    times[1000] += 1e-5
    with pytest.raises(bj.StoreError, match=r"save_at: .*, 0.25, .* there, .*, 0.25001, .* here") as caught:
        bj.evolve(stepper, start, T_END, save_at=times, checkpoint=tmp_path / "f", resume=True)
    assert len(str(caught.value)) < 600


def test_rounding_that_is_another_is_no_other_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over nodes round otherwise with other threads: a warning, and the flow goes on."""
    stopped(tmp_path / "f")
    exact, expected = Tape.first_row, undisturbed()

    def rounded(*of: Any) -> Row:
        time, outputs, risk, mass, stats = exact(*of)
        return time, outputs * (1 + 1e-14), risk * (1 - 1e-14), mass, stats

    monkeypatch.setattr(Tape, "first_row", rounded)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    with pytest.warns(bj.OtherVersionsWarning, match="threads .* -> 99"):
        assert_same(resumed(tmp_path / "f"), expected)


def test_a_store_that_no_flow_was_writing_is_not_called_damaged(tmp_path: Path) -> None:
    undisturbed().save(tmp_path / "f")
    with pytest.raises(bj.StoreError, match="which Flow.save or an older bigjko wrote, need the checkpoint of a flow"):
        resumed(tmp_path / "f")


def test_a_working_directory_that_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is meant where the flow was begun, or loaded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    stepper, start = toy()
    flow = bj.evolve(stepper, start, T_END, save_at=SAVE_AT, checkpoint=bj.Checkpoint("f", 0.0),
                     callbacks=[lambda *_: os.chdir("/")])  # fmt: skip
    assert_same(flow, undisturbed())
    os.chdir(tmp_path)
    loaded = bj.Flow.load("f")
    os.chdir("/")
    assert_same(loaded, flow)


def test_a_flow_that_has_gone_on_since_it_was_read_says_so(tmp_path: Path) -> None:
    stopped(tmp_path / "f")
    before = bj.Flow.load(tmp_path / "f")
    resumed(tmp_path / "f")
    with pytest.raises(bj.StoreError, match="whose flow has gone on since it was read.*: load it again"):
        before.measures[:]


def test_a_flow_that_goes_on_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is being read may be removed: then what is there instead is read."""
    stopped(tmp_path / "f")
    real = zarr.read_records

    def slow(*of: Any, **more: Any) -> bj.Flow:
        monkeypatch.undo()
        resumed(tmp_path / "f")
        return real(*of, **more)

    monkeypatch.setattr(zarr, "read_records", slow)
    assert bj.Flow.load(tmp_path / "f").status is bj.Status.ok


def test_attributes_that_json_cannot_hold_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(bj.StoreError, match="the flow attribute 'by' of type object, need what JSON can hold"):
        bj.Checkpoint(tmp_path / "f", attributes={"by": object()})


def test_code_that_has_changed_is_seen_by_what_it_says_of_the_start(tmp_path: Path) -> None:
    """A potential is code, of which the store knows the name alone."""
    grid = bj.Grid.uniform([-3.0], [3.0], [61])
    start = bj.GridMeasure.gaussian(grid, 0.5, 0.5)

    def jko(steep: float) -> bj.JKO:
        return bj.JKO(bj.Potential(lambda x: steep * (x**2).sum(1)), grid, tau=0.1)

    with pytest.raises(bj.FlowInterrupted):
        bj.evolve(jko(1.0), start, 1.0, checkpoint=tmp_path / "f", callbacks=[stopping(3)])
    with pytest.raises(bj.StoreError, match="whose outputs, risk or mass at time 0 are others"):
        bj.evolve(jko(1.1), start, 1.0, checkpoint=tmp_path / "f", resume=True)
    assert_same(
        bj.evolve(jko(1.0), start, 1.0, checkpoint=tmp_path / "f", resume=True), bj.evolve(jko(1.0), start, 1.0)
    )


def test_other_versions_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(tmp_path / "f")
    monkeypatch.setattr(bj, "__version__", "99.0")
    with pytest.warns(bj.OtherVersionsWarning, match=r"bigjko .* -> 99.0.*last digits may differ"):
        resumed(tmp_path / "f")
    assert versions(torch.device("cuda")) == {**versions(torch.device("cpu")), "device": "cuda"}


@dataclass(frozen=True, eq=False)
class Opaque(Stepper[bj.GridMeasure, object]):
    """A stepper whose state no store can hold."""

    energy: bj.Potential
    tau: float
    name = "opaque"

    def init(self, measure: bj.GridMeasure) -> object:
        return object()

    def step(self, measure: bj.GridMeasure, state: object, dt: float) -> Step[bj.GridMeasure, object]:
        return Step(measure, state, dt, torch.zeros(0, dtype=D), measure.mass)


def test_a_state_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    _, start = toy()
    stepper = Opaque(bj.Potential(lambda x: 0 * x[:, 0]), 0.5)
    with pytest.raises(bj.StoreError, match="whose state holds a object, need tensors, numbers"):
        bj.evolve(stepper, start, 3.0, checkpoint=bj.Checkpoint(tmp_path / "f", 0.0))


@dataclass(frozen=True)
class Part:
    x: Tensor


def test_a_state_in_a_tuple_comes_back(tmp_path: Path) -> None:
    group = zarr_library.create_group(tmp_path / "state")
    state = (Part(torch.tensor([-0.0, math.nan])), -0.0, (Part(torch.zeros(0, 2)), None))
    tree = json.loads(json.dumps(pack(state, group, "state")))
    back = unpack(tree, group, state, torch.device("cpu"))
    assert repr(back) == repr(state)


# -------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.slow
def test_kill_9_at_fifty_random_moments() -> None:
    """tests/killed.py says what is looked at after every one of them."""
    script = Path(__file__).with_name("killed.py")
    run = subprocess.run(
        [sys.executable, str(script), "50"], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}, timeout=1200,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    ends = json.loads(run.stdout)
    assert ends["killed"] == 50
    assert ends["whole"] >= 1
    assert ends["wrong"] == 0, run.stderr


def flipped(file: Path, generator: random.Random) -> None:
    """One bit of a file."""
    content = bytearray(file.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    file.write_bytes(content)


def truncated(file: Path, generator: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: generator.randrange(len(content))])


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


@pytest.mark.parametrize("spoil", [flipped, truncated])
def test_a_checkpoint_that_is_damaged_is_not_used_but_the_one_before(
    spoil: Callable[[Path, random.Random], None], tmp_path: Path
) -> None:
    """Whichever of its files it is: 16 of them."""
    generator, expected = random.Random(3), undisturbed()
    stopped(tmp_path / "f")
    for k in generator.sample(range(len(files(tmp_path / "f" / "checkpoints" / "4"))), 16):
        shutil.copytree(tmp_path / "f", tmp_path / "g")
        spoil(files(tmp_path / "g" / "checkpoints" / "4")[k], generator)
        loaded = bj.Flow.load(tmp_path / "g")
        assert loaded.status is bj.Status.unfinished  # the one before is of the step; the newest, of Ctrl-C after it
        assert same(loaded.outputs, expected.outputs[:5])
        if k % 5 == 0:
            assert_same(resumed(tmp_path / "g"), expected)
        shutil.rmtree(tmp_path / "g")


def test_the_next_checkpoint_replaces_one_that_is_damaged(tmp_path: Path) -> None:
    stopped(tmp_path / "f")
    flipped(tmp_path / "f" / "checkpoints" / "4" / "zarr.json", random.Random(1))
    stepper, start = toy()
    checkpoint = bj.Checkpoint(tmp_path / "f", 0.0)
    assert_same(bj.evolve(stepper, start, T_END, save_at=SAVE_AT, checkpoint=checkpoint, resume=True), undisturbed())


def test_what_kill_9_leaves_unfinished_is_swept_away(tmp_path: Path) -> None:
    stopped(tmp_path / "f")
    for folder in ("measures", "checkpoints"):
        shutil.copytree(tmp_path / "f" / "measures" / "0", tmp_path / "f" / folder / ".1.0123abcd")
    (tmp_path / "f" / ".zarr.json.0123abcd").write_text("{")
    shutil.copytree(tmp_path / "f" / "checkpoints", tmp_path / "left")
    assert_same(resumed(tmp_path / "f"), undisturbed())
    assert not list((tmp_path / "f").rglob(".*"))
    (tmp_path / "left").rename(tmp_path / "f" / "checkpoints")  # killed after the seal
    assert_same(resumed(tmp_path / "f"), undisturbed())
    assert {path.name for path in (tmp_path / "f").iterdir()} == {"zarr.json", "records", "measures"}


def test_both_checkpoints_damaged_are_said_to_be(tmp_path: Path) -> None:
    stopped(tmp_path / "f")
    for k in (3, 4):
        flipped(tmp_path / "f" / "checkpoints" / str(k) / "zarr.json", random.Random(k))
    for read in (bj.Flow.load, resumed):
        with pytest.raises(
            bj.StoreError, match="is damaged .*checkpoints.* restore it from a copy, or run the flow again"
        ):
            read(tmp_path / "f")


@pytest.mark.parametrize("spoil", [flipped, truncated])
def test_no_damage_of_a_store_goes_unseen(spoil: Callable[[Path, random.Random], None], tmp_path: Path) -> None:
    """In 32 of its files: an error, when it is loaded or its measures are, or, of blanks in JSON, no change."""
    generator = random.Random(5)
    stepper, start = toy()
    flow = bj.evolve(stepper, start, 0.1, checkpoint=tmp_path / "f")
    seen, chosen = 0, generator.sample(range(len(files(tmp_path / "f"))), 32)
    for k in chosen:
        shutil.copytree(tmp_path / "f", tmp_path / "g")
        spoil(files(tmp_path / "g")[k], generator)
        try:
            assert_same(bj.Flow.load(tmp_path / "g"), flow)
        except bj.StoreError:
            seen += 1
        shutil.rmtree(tmp_path / "g")
    assert seen >= 30


def test_a_saved_measure_that_is_damaged_is_made_again(tmp_path: Path) -> None:
    """That of t = .15, from the checkpoint before it: with one that has it, the store would end without."""
    damaged = Path("measures", "1", "log_masses", "c", "0", "0")

    def copy(time: float, _: object) -> None:
        """What kill -9 would leave now."""
        if time == 0.15:
            shutil.copytree(tmp_path / "f", tmp_path / "killed")

    stepper, start = toy()
    checkpoint = bj.Checkpoint(tmp_path / "f", 0.0)
    with pytest.raises(bj.FlowInterrupted):
        bj.evolve(stepper, start, T_END, save_at=SAVE_AT, callbacks=[copy, stopping(6)], checkpoint=checkpoint)
    for path in ("killed", "f"):  # the latter has two checkpoints after t = .15
        flipped(tmp_path / path / damaged, random.Random(1))
    assert_same(resumed(tmp_path / "killed"), undisturbed())
    with pytest.raises(bj.StoreError, match="is damaged .*measures/1.* is not what was written"):
        resumed(tmp_path / "f")


def test_two_processes_on_one_folder(tmp_path: Path) -> None:
    """The second is refused; the first does not notice."""

    def second(*_: object) -> None:
        with pytest.raises(bj.StoreError, match="which another process is writing"):
            resumed(tmp_path / "f")

    stepper, start = toy()
    flow = bj.evolve(stepper, start, T_END, save_at=SAVE_AT, callbacks=[second], checkpoint=tmp_path / "f")
    assert_same(flow, undisturbed())


def test_a_lock_that_a_killed_process_left_holds_nobody_up(tmp_path: Path) -> None:
    stopped(tmp_path / "f")
    (tmp_path / "f" / ".lock").write_text("")
    assert_same(resumed(tmp_path / "f"), undisturbed())


def test_what_broke_a_flow_is_told_and_not_what_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without memory has none for the last checkpoint, either."""
    import bigjko.store.checkpoint as checkpoint

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory, again")

    monkeypatch.setattr(checkpoint, "put_measure", full)
    stepper, start = toy()
    with pytest.raises(ZeroDivisionError):
        bj.evolve(stepper, start, T_END, callbacks=[stopping(2, ZeroDivisionError)], checkpoint=tmp_path / "f")


@pytest.mark.parametrize("error", [MemoryError, RuntimeError, SystemExit])
def test_an_error_in_mid_flow_loses_nothing(error: type[BaseException], tmp_path: Path) -> None:
    """No memory, a mistake in a callback: a checkpoint is written on the way out, however rare they are."""
    stepper, start = toy()
    with pytest.raises(error):
        bj.evolve(stepper, start, T_END, save_at=SAVE_AT, callbacks=[stopping(4, error)], checkpoint=tmp_path / "f")
    there = bj.Flow.load(tmp_path / "f")
    assert there.status is bj.Status.unfinished
    assert len(there.times) == 5
    assert_same(resumed(tmp_path / "f"), undisturbed())


@contextlib.contextmanager
def no_room(size: int) -> Iterator[None]:
    """Files cannot grow beyond `size` bytes: what a full disk is to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_ends_the_flow_with_what_was_saved(tmp_path: Path) -> None:
    """The last checkpoint stays whole; with room again the flow goes on."""
    stepper, start = toy()
    with contextlib.ExitStack() as full:

        def fill(time: float, _: object) -> None:
            if time > 0.12:
                full.enter_context(no_room(2000))

        with pytest.raises(bj.StoreError, match="cannot be written .*File too large.* or make room"):
            bj.evolve(stepper, start, T_END, save_at=SAVE_AT, callbacks=[fill],
                      checkpoint=bj.Checkpoint(tmp_path / "f", 0.0))  # fmt: skip
    there = bj.Flow.load(tmp_path / "f")
    assert len(there.times) >= 4
    assert not [path for path in (tmp_path / "f").rglob("*") if path.name.startswith(".") and path.is_dir()]
    assert_same(resumed(tmp_path / "f"), undisturbed())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """By a user who may not: a child process, since root may."""
    script = (
        "import os, sys, torch, xarray, zarr, bigjko as bj\n"
        "risk = bj.Risk(torch.ones(1, 1), torch.ones(1))\n"
        "start = bj.ParticleMeasure.from_network(torch.ones(2, 1), torch.ones(2))\n"
        "if not os.geteuid(): os.setuid(65534)\n"
        "try: bj.evolve(bj.GradientDescent(risk, tau=.1), start, 1.0, checkpoint=sys.argv[1])\n"
        "except bj.StoreError as refused: print(refused)\n"
    )
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        folder = Path(parent) / "mine"
        folder.mkdir(mode=0o555)
        run = subprocess.run(
            [sys.executable, "-c", script, str(folder / "f")], capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "KEOPS_CACHE_FOLDER": parent},
        )  # fmt: skip
        assert "which cannot be written" in run.stdout, run.stderr
        assert "Permission denied" in run.stdout
        assert list(folder.iterdir()) == []


def test_ctrl_c_and_sigterm_while_a_checkpoint_is_written_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint is whole, and the flow stops after it."""
    import bigjko.store.checkpoint as checkpoint

    def disturbed(group: Path, *parts: Any, **more: Any) -> None:
        if group.parent.name == "checkpoints" and threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGINT)
        seal(group, *parts, **more)

    monkeypatch.setattr(checkpoint, "seal", disturbed)
    stepper, start = toy()
    with pytest.raises(bj.FlowInterrupted):
        bj.evolve(stepper, start, T_END, save_at=SAVE_AT, checkpoint=bj.Checkpoint(tmp_path / "f", 0.0))
    monkeypatch.undo()
    assert len(bj.Flow.load(tmp_path / "f").times) == 2
    assert_same(resumed(tmp_path / "f"), undisturbed())


@pytest.mark.parametrize(("number", "again"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True)])
def test_signals_while_a_flow_ends_are_heeded_after(
    number: signal.Signals, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once all of it is written. Only a second Ctrl-C is not."""
    import bigjko.store.checkpoint as checkpoint

    class Heeded(Exception):  # noqa: N818 - no error
        pass

    def heed(*_: object) -> None:
        raise Heeded

    def signalled(folder: Path, flow: bj.Flow) -> None:
        signal.raise_signal(number)
        if again:
            signal.raise_signal(signal.SIGINT)
        write_records(folder, flow)

    write_records = zarr.write_records
    monkeypatch.setattr(checkpoint if again else zarr, "write_records", signalled)
    before = signal.signal(number, heed)
    stepper, start = toy()
    try:
        with pytest.raises(Heeded):
            bj.evolve(stepper, start, T_END, save_at=SAVE_AT, checkpoint=tmp_path / "f",
                      callbacks=[stopping(2)] * again)  # fmt: skip
    finally:
        signal.signal(number, before)
    assert bj.Flow.load(tmp_path / "f").status is (bj.Status.interrupted if again else bj.Status.ok)
    monkeypatch.undo()
    assert_same(resumed(tmp_path / "f"), undisturbed())


def test_handlers_are_set_back_even_if_a_signal_comes_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    real, calls = signal.signal, []

    def late(number: int, handler: Any) -> Any:
        calls.append(real(number, handler))
        if len(calls) == 3:  # the first that is set back
            raise KeyboardInterrupt
        return calls[-1]

    monkeypatch.setattr(signal, "signal", late)
    with pytest.raises(KeyboardInterrupt), undisturbed_by_signals():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# -------------------------------------------------------------------------------------------------------------- memory


# In a process without the shape checks of tests, which keep something of every call.
SOAK = """
import ctypes, sys, warnings
import psutil, torch
import bigjko as bj
warnings.simplefilter("ignore")
torch.set_num_threads(1)
trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)  # what the allocator keeps is not held
one = torch.ones(1, dtype=torch.float64)
grid = bj.Grid.uniform([-4.0, -4.0], [4.0, 4.0], [101, 101])
start = bj.GridMeasure.gaussian(grid, torch.tensor([0.9, 0.2], dtype=torch.float64), 0.25)
process, steps, seen = psutil.Process(), 0, []
def look(time, step):
    global steps
    steps += 1
    if steps % 250 == 0:
        trim(0)
        seen.append(process.memory_info().rss >> 20)
bj.evolve(
    bj.JKO(bj.Risk(one[:, None], one), grid, tau=0.001), start, 2.0, save_at=[0.02 * k for k in range(101)],
    callbacks=[look], checkpoint=bj.Checkpoint(sys.argv[1], 1.0),
)
print(*seen)
"""


@pytest.mark.slow
def test_memory_stays_flat_over_two_thousand_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a checkpoint a second and 101 measures on disk. The record alone grows, by 4 KB a step; N numbers are 80."""
    ran = subprocess.run(
        [sys.executable, "-c", SOAK, str(tmp_path / "f")], capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    curve = list(map(int, ran.stdout.split()))
    with capsys.disabled():
        sys.stdout.write(f"\n  MiB after 250, 500, ..., 2000 steps: {curve}")
    assert len(curve) == 8
    assert curve[-1] - curve[1] <= 24  # where one array of N kept at every step would make 117
    assert len(bj.Flow.load(tmp_path / "f").measures) == 101
