"""An experiment from its file to a folder: both flows of every run, what they say, and how they were made."""

import contextlib
import difflib
import importlib.metadata
import json
import math
import os
import platform
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from .. import __version__
from ..compare import Comparison, compare
from ..errors import BoundaryMassWarning, NarrowMeasureWarning, OtherVersionsWarning
from ..evolve import Callback, evolve
from ..flow import Flow
from ..risk import Risk
from ..show.page import page
from ..show.plots import plot_flows
from ..show.progress import Bars, JsonLog
from ..status import FlowError, FlowInterrupted
from ..stepper import Stepper
from ..store import Checkpoint
from .config import ConfigError, Experiment, dump, load
from .prepare import Prepared, build, data, risk_of
from .verdict import Numbers, facts, numbers, verdict

INTERRUPTED = 130  # what a shell reports of a program that Ctrl-C ended


class Stopped(Exception):  # noqa: N818 - an outcome, no error: Ctrl-C is what the user wanted
    """A flow that did not reach its end; what was recorded has been saved.

    Attributes:
        code: for the shell.
        flow: what was saved, where it is one flow.
    """

    def __init__(self, message: str, code: int, flow: Flow | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.flow = flow


def execute(
    experiment: Experiment,
    out: Path,
    console: Any,
    *,
    resume: bool = False,
    seconds: float = 60.0,
    log: JsonLog | None = None,
) -> dict[str, Numbers]:
    """Run everything in an experiment and leave a folder.

    One run writes `flow-jko.zarr`, `flow-gd.zarr`, `flows.png`, `report.html`, `summary.json`, `config.toml` and
    `versions.json` to `out`; several write each to a folder of its own, and a `summary.json` of all.

    Args:
        experiment: what to run.
        out: must not exist or be empty, unless resumed.
        console: rich's, for bars and notes.
        resume: go on in a folder where the same experiment stopped; flows that are complete are read.
        seconds: between two checkpoints of a flow.
        log: which hears of every flow, and of notes, what the console does.

    Returns:
        The numbers of every run, by name.

    Raises:
        ConfigError: for what the engine refuses, before anything is run, for a folder that exists, and for a folder of
            another experiment, with the difference.
        Stopped: for Ctrl-C and for a step that failed; all that was reached has been saved.
    """
    several = len(experiment.runs) > 1
    folders = {run.name: out / run.name if several else out for run in experiment.runs}
    configs = {run.name: dump(experiment.model_copy(update={"runs": [run]})) for run in experiment.runs}
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        if not resume:
            raise ConfigError(
                f"received the output folder {out}, which holds something, need a new one: choose another with --out, "
                "or go on in this one with --resume"
            )
        for path in (*out.glob("config.toml"), *out.glob("*/config.toml")):
            if path.parent not in folders.values():
                raise ConfigError(
                    f"received another experiment than {out} was begun with: it has no run for {path}, need the same "
                    "to go on: choose a new folder with --out, or undo the change"
                )
        for name, folder in folders.items():
            _check_same(folder / "config.toml", configs[name])
    with notes(console, log=log):
        X, y = data(experiment)
        runs = [build(experiment, run, X, y) for run in experiment.runs]
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Numbers] = {}
    try:
        for one in runs:
            name, folder = one.run.name, folders[one.run.name]
            folder.mkdir(exist_ok=True)
            if not (folder / "config.toml").exists():
                _write(folder / "versions.json", versions(experiment.device))
                _put(folder / "config.toml", configs[name])
            try:
                found[name] = _both(one, folder, f"{name}: " if several else "", console, resume, seconds, log)
            except Stopped as stopped:
                found[name] = {"status": str(stopped)}
                raise
            finally:
                if name in found:
                    _write(folder / "summary.json", _summary({name: found[name]}, experiment))
    finally:
        if several:
            _write(out / "summary.json", _summary(found, experiment))
    return found


def _check_same(path: Path, config: str) -> None:
    """Raise ConfigError unless a run that was begun has the config of the one that is asked for."""
    if not path.exists():  # it was stopped before this run began
        return
    begun = path.read_text("utf-8")
    if begun != config:
        lines = difflib.unified_diff(
            begun.splitlines(), config.splitlines(), "as begun", "as asked for", n=0, lineterm=""
        )
        raise ConfigError(
            f"received another experiment than {path.parent} was begun with, need the same to go on: choose a new "
            "folder with --out, or undo the change\n" + "\n".join(lines)
        )


def reload(folder: Path, console: Any = None) -> tuple[dict[str, Numbers], list[str]]:
    """The numbers of every run in or below a folder that `execute` left, from the flows themselves.

    Args:
        folder: of a run, or of many.
        console: rich's, where `flows.png` and `report.html` are to be made anew; for notes.

    Returns:
        The numbers by run (a run below the folder goes by its path), and a line for every run that lacks a flow.

    Raises:
        ConfigError: for a folder without two flows to compare, and where figures are to be made, for one whose
            config.toml or data are not there any more.
    """
    runs = sorted({path.parent for path in folder.rglob("flow-*.zarr")}) if folder.is_dir() else []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a folder of several runs knows their order
        order = list(json.loads((folder / "summary.json").read_text("utf-8"))["runs"])
        runs.sort(key=lambda path: order.index(path.name) if path.name in order else len(order))
    found, skipped = {}, []
    for path in runs:
        lacks = [kind for kind in ("jko", "gd") if not (path / f"flow-{kind}.zarr").exists()]
        if lacks:
            skipped.append(
                f"{path} has no flow-{lacks[0]}.zarr: that flow never started, or was killed before it was saved"
            )
            continue
        jko, gd = Flow.load(path / "flow-jko.zarr"), Flow.load(path / "flow-gd.zarr")
        name = jko.attributes.get("run", path.name) if path == folder else str(path.relative_to(folder))
        held = compare(jko, gd)
        found[name] = numbers(held)
        if console is not None:
            experiment = load(path / "config.toml")
            (one,) = experiment.runs
            _pictures(risk_of(experiment, one.way, data(experiment)), path, held, console)
    if not found:
        raise ConfigError(
            "; ".join(skipped)
            or f"received {folder}, which holds no run with both flow-jko.zarr and flow-gd.zarr, need a folder that "
            "bigjko run left: check the path"
        )
    return found, skipped


# ---------------------------------------------------------------------------------------------------------- running


def _both(
    one: Prepared, folder: Path, title: str, console: Any, resume: bool, seconds: float, log: JsonLog | None
) -> Numbers:
    """Gradient descent first, so that the bar of JKO can show the gap to it."""
    facts = {"run": one.run.name, "dtype": str(one.start.grid.dtype)[6:], "device": _device_name(one.start.grid.device)}
    about = {
        "tau": one.jko.tau,
        "epsilon": one.jko.transport.epsilon,
        "epsilon_h2": one.run.jko.epsilon,
        "entropy": one.run.jko.entropy,
        "passes": one.jko.entropy.passes,
    }
    t_end = one.time.t_end
    save_at = sorted({0.0, *one.time.save_at, t_end})
    with notes(console, title, log), Bars(console) as bars:

        def flow(
            kind: str, stepper: Stepper[Any, Any], start: Any, record: int, about: dict[str, Any], other: Flow | None
        ) -> Flow:
            path = folder / f"flow-{kind}.zarr"
            checkpoint = Checkpoint(path, seconds, facts | about)
            bar = bars.add(f"{title}{kind.upper()}", t_end, reference=other)
            goes_on = resume and path.exists()

            def run() -> Flow:
                with logged(log, kind, t_end, run=one.run.name, reference=other, resumed=goes_on) as heard:
                    return evolve(
                        stepper, start, t_end,
                        save_at=save_at, record=record, callbacks=heard,
                        checkpoint=checkpoint, resume=resume, progress=bar,
                    )  # fmt: skip

            return _told(run, path, t_end)

        particles = {"tau": one.descent.tau, "drop": one.run.particles.drop}
        gd = flow("gd", one.descent, one.particles, one.run.particles.record, particles, None)
        try:
            jko = flow("jko", one.jko, one.start, one.run.jko.record, about, gd)
        except Stopped as stopped:
            if stopped.flow is not None:
                _report(one.risk, folder, compare(stopped.flow, gd, transport=False), console, log)
            raise
    held = compare(jko, gd)
    _pictures(one.risk, folder, held, console, log)
    return numbers(held)


@contextlib.contextmanager
def logged(log: JsonLog | None, name: str, t_end: float, **about: Any) -> Iterator[list[Callback]]:
    """The callbacks by which a log hears of a flow (see `JsonLog.flow`); none where there is no log."""
    if log is None:
        yield []
        return
    with log.flow(name, t_end, **about) as heard:
        yield [heard]


def _pictures(risk: Risk, folder: Path, held: Comparison, console: Any, log: JsonLog | None = None) -> None:
    """`flows.png` and `report.html`."""
    plot_flows(held.first, held.second, folder / "flows.png")
    _report(risk, folder, held, console, log)


def _report(risk: Risk, folder: Path, held: Comparison, console: Any, log: JsonLog | None) -> None:
    """The page of a run, whose flows are saved already: whatever goes wrong here, they and their numbers stay."""
    name = str(held.first.attributes["run"])
    try:
        known = numbers(held)
        text = page(
            held,
            risk,
            title=name,
            verdict=verdict({name: known}),
            facts=facts(known),
            config=(folder / "config.toml").read_text("utf-8"),
            versions=json.loads((folder / "versions.json").read_text("utf-8")),
        )
        (folder / "report.html").write_text(text, "utf-8")
    except Exception as error:  # noqa: BLE001 - hours of steps are not lost to their picture
        reason = f"{type(error).__name__}: {error}"
        _note(f"no report.html was written ({reason})", console, log)


def _told(run: Callable[[], Flow], path: Path, t_end: float) -> Flow:
    """The flow; of one that did not reach its end, what is saved and how to go on."""
    try:
        return run()
    except (FlowError, FlowInterrupted) as early:
        flow, stop = early.flow, early
    assert isinstance(flow, Flow)
    kept = f"is saved up to t = {float(flow.times[-1]):.6g} of {t_end:g} in {path}"
    if isinstance(stop, FlowInterrupted):
        kept += "; the same command with --resume and this folder as --out goes on"
    if (path.parent / "flow-gd.zarr").exists() and flow.name == "jko":
        kept += f"; bigjko compare {path.parent} holds it against gradient descent"
    if isinstance(stop, FlowInterrupted):
        raise Stopped(f"interrupted: {flow.name} {kept}", INTERRUPTED, flow) from None
    raise Stopped(f"{stop}; {flow.name} {kept}", 1, flow) from stop


@contextlib.contextmanager
def terminated() -> Iterator[None]:
    """SIGTERM as Ctrl-C: what a flow has reached is saved before the process ends."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def notes(console: Any, title: str = "", log: JsonLog | None = None) -> Iterator[None]:
    """The engine's warnings as notes on the console and in the log, each once."""
    seen: set[str] = set()
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if not issubclass(category, _NOTES):
            others(message, category, *where, **more)
        elif str(message) not in seen:
            seen.add(str(message))
            _note(f"{title}{message}", console, log)

    with warnings.catch_warnings():
        for category in _NOTES:
            warnings.simplefilter("always", category)
        warnings.showwarning = show
        yield


def _note(message: str, console: Any, log: JsonLog | None) -> None:
    console.print(f"note: {message}", style="yellow", markup=False, highlight=False)
    if log is not None:
        log.event("note", message=message)


# ---------------------------------------------------------------------------------------------------------- records


def versions(device: str) -> dict[str, Any]:
    """What a run was made with."""
    libraries = (
        "pykeops",
        "geomloss",
        "numpy",
        "torchdiffeq",
        "scikit-learn",
        "pyarrow",
        "xarray",
        "zarr",
        "matplotlib",
        "plotly",
    )
    found = {"torch": str(torch.__version__)}  # with its build, which the package's metadata may leave out
    for name in libraries:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return {
        "bigjko": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "memory": f"{psutil.virtual_memory().total / 2**30:.3g} GiB",
        "device": _device_name(torch.device(device)),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **found,
    }


def _processor() -> str:
    """Its model; Python knows it on few systems."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _summary(found: dict[str, Numbers], experiment: Experiment) -> dict[str, Any]:
    whole = {name: run for name, run in found.items() if "output_gap_sup" in run}
    return {"verdict": verdict(whole) if whole else None, "runs": found, "versions": versions(experiment.device)}


def _write(path: Path, content: dict[str, Any]) -> None:
    _put(path, json.dumps(_plain(content), indent=2, allow_nan=False) + "\n")


def _put(path: Path, text: str) -> None:
    """A file that is whole or not there."""
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _plain(value: Any) -> Any:
    """JSON knows no NaN and no inf."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_NOTES = (NarrowMeasureWarning, BoundaryMassWarning, OtherVersionsWarning)
