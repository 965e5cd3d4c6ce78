"""An experiment from its file to a folder: both flows of every run, what they say, and how they were made."""

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import signal
import threading
import time as clock
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from .. import __version__
from ..compare import Comparison, compare
from ..errors import BoundaryMassWarning, NarrowMeasureWarning
from ..evolve import evolve
from ..flow import Flow
from ..show.page import page
from ..show.plots import plot_flows
from ..show.progress import Bars
from ..status import FlowError, FlowInterrupted
from .config import ConfigError, Experiment, dump
from .prepare import Prepared, build, data
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


def execute(experiment: Experiment, out: Path, console: Any) -> dict[str, Numbers]:
    """Run everything in an experiment and leave a folder.

    One run writes `flow-jko.zarr`, `flow-gd.zarr`, `flows.png`, `report.html`, `summary.json`, `config.toml` and
    `versions.json` to `out`; several write each to a folder of its own, and a `summary.json` of all.

    Args:
        experiment: what to run.
        out: must not exist.
        console: rich's, for bars and notes.

    Returns:
        The numbers of every run, by name.

    Raises:
        ConfigError: for what the engine refuses, before anything is run, and for a folder that exists.
        Stopped: for Ctrl-C and for a step that failed; all that was recorded has been saved.
    """
    if out.exists() or out.is_symlink():
        raise ConfigError(f"received the output folder {out}, which exists, need a new one: choose another with --out")
    with notes(console):
        X, y = data(experiment)
        runs = [build(experiment, run, X, y) for run in experiment.runs]
    out.mkdir(parents=True)
    several = len(runs) > 1
    found: dict[str, Numbers] = {}
    try:
        for one in runs:
            folder = out / one.run.name if several else out
            folder.mkdir(exist_ok=True)
            (folder / "config.toml").write_text(dump(experiment.model_copy(update={"runs": [one.run]})), "utf-8")
            _write(folder / "versions.json", versions(experiment.device))
            try:
                found[one.run.name] = _both(one, folder, f"{one.run.name}: " if several else "", console)
            except Stopped as stopped:
                found[one.run.name] = {"status": str(stopped)}
                raise
            finally:
                if one.run.name in found:
                    _write(folder / "summary.json", _summary({one.run.name: found[one.run.name]}, experiment))
    finally:
        if several:
            _write(out / "summary.json", _summary(found, experiment))
    return found


def reload(folder: Path) -> tuple[dict[str, Numbers], list[str]]:
    """The numbers of every run in or below a folder that `execute` left, from the flows themselves.

    Returns:
        The numbers by run (a run below the folder goes by its path), and a line for every run that lacks a flow.

    Raises:
        ConfigError: for a folder without two flows to compare.
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
        found[name] = numbers(compare(jko, gd))
    if not found:
        raise ConfigError(
            "; ".join(skipped)
            or f"received {folder}, which holds no run with both flow-jko.zarr and flow-gd.zarr, need a folder that "
            "bigjko run left: check the path"
        )
    return found, skipped


# ---------------------------------------------------------------------------------------------------------- running


def _both(one: Prepared, folder: Path, title: str, console: Any) -> Numbers:
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
    with notes(console, title), Bars(console) as bars:

        def flow(kind: str, run: Callable[..., Flow], about: dict[str, Any], reference: Flow | None = None) -> Flow:
            bar = bars.add(f"{title}{kind.upper()}", t_end, reference=reference)
            return _kept(lambda: run(bar), folder / f"flow-{kind}.zarr", t_end, facts | about)

        save_at = sorted({0.0, *one.time.save_at, t_end})
        every = one.run.particles.record
        gd = flow(
            "gd",
            lambda bar: evolve(one.descent, one.particles, t_end, save_at=save_at, record=every, progress=bar),
            {"tau": one.descent.tau, "drop": one.run.particles.drop},
        )
        often = one.run.jko.record
        try:
            jko = flow(
                "jko",
                lambda bar: evolve(one.jko, one.start, t_end, save_at=save_at, record=often, progress=bar),
                about,
                reference=gd,
            )
        except Stopped as stopped:
            if stopped.flow is not None:
                _report(one, folder, compare(stopped.flow, gd, transport=False), console)
            raise
    plot_flows(jko, gd, folder / "flows.png")
    held = compare(jko, gd)
    _report(one, folder, held, console)
    return numbers(held)


def _report(one: Prepared, folder: Path, held: Comparison, console: Any) -> None:
    """The page of a run, whose flows are saved already: whatever goes wrong here, they and their numbers stay."""
    try:
        known = numbers(held)
        text = page(
            held,
            one.risk,
            title=one.run.name,
            verdict=verdict({one.run.name: known}),
            facts=facts(known),
            config=(folder / "config.toml").read_text("utf-8"),
            versions=json.loads((folder / "versions.json").read_text("utf-8")),
        )
        (folder / "report.html").write_text(text, "utf-8")
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - hours of steps are not lost to their picture
        reason = f"{type(error).__name__}: {error}"
        console.print(f"note: no report.html was written ({reason})", style="yellow", markup=False, highlight=False)


def _kept(run: Callable[[], Flow], path: Path, t_end: float, facts: dict[str, Any]) -> Flow:
    """The flow, timed, and saved whether it reached its end or not."""
    began = clock.perf_counter()
    stop: FlowError | FlowInterrupted | None = None
    try:
        flow = run()
    except (FlowError, FlowInterrupted) as early:
        stop, reached = early, early.flow
        assert isinstance(reached, Flow)
        flow = reached
    flow = dataclasses.replace(flow, attributes=facts | {"seconds": clock.perf_counter() - began})
    with _undisturbed():
        flow.save(path)
    if stop is None:
        return flow
    kept = f"is saved up to t = {float(flow.times[-1]):.6g} of {t_end:g} in {path}"
    if (path.parent / "flow-gd.zarr").exists() and flow.name == "jko":
        kept += f"; bigjko compare {path.parent} holds it against gradient descent"
    if isinstance(stop, FlowInterrupted):
        raise Stopped(f"interrupted: {flow.name} {kept}", INTERRUPTED, flow) from None
    raise Stopped(f"{stop}; {flow.name} {kept}", 1, flow) from stop


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """No Ctrl-C while a flow is written: a second one, from impatience, would cost what the first has kept."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def notes(console: Any, title: str = "") -> Iterator[None]:
    """The engine's warnings as notes on the console, each once."""
    seen: set[str] = set()
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if not issubclass(category, NarrowMeasureWarning | BoundaryMassWarning):
            others(message, category, *where, **more)
        elif str(message) not in seen:
            seen.add(str(message))
            console.print(f"note: {title}{message}", style="yellow", markup=False, highlight=False)

    with warnings.catch_warnings():
        for category in (NarrowMeasureWarning, BoundaryMassWarning):
            warnings.simplefilter("always", category)
        warnings.showwarning = show
        yield


# ---------------------------------------------------------------------------------------------------------- records


def versions(device: str) -> dict[str, Any]:
    """What a run was made with."""
    libraries = (
        "pykeops",
        "geomloss",
        "numpy",
        "torchdiffeq",
        "scikit-learn",
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
    path.write_text(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n", "utf-8")


def _plain(value: Any) -> Any:
    """JSON knows no NaN and no inf."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
