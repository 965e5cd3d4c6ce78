"""What bigjko finds on this machine, and what is in its way: versions, devices, compiler, KeOps, caches."""

import contextlib
import importlib.metadata
import platform
import shutil
import subprocess
import sys
import tempfile
import time as clock
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from bigjko_kernels import Dense, Grid, Keops, Line, Separable, Tiled, compiler, fused
from bigjko_kernels import keops as keops_here

from ..memory import available, gib
from .run import versions

Facts = dict[str, Any]


def facts(check: bool = False) -> Facts:
    """Everything, as JSON takes it; sizes in bytes, times in seconds.

    Args:
        check: also compile what is not compiled yet, run one formula of KeOps and one fused kernel, and say how long.
    """
    found: Facts = {
        "versions": versions("cpu") | _more_versions(),
        "devices": _devices(),
        "compiler": _compiler(),
        "keops": _keops(),
    }
    if check:
        found["checks"] = _checks()
        found["compiler"], found["keops"] = _compiler(), _keops()
    found["hints"] = _hints(found)
    return found


def _more_versions() -> Facts:
    found: Facts = {}
    for name in ("pandas", "pyarrow", "pydantic", "typer"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _devices() -> list[Facts]:
    """Free is what can still be had: on the CPU within the limits of the control group, too."""
    cpu = torch.device("cpu")
    total = int(psutil.virtual_memory().total)
    found = [
        {
            "device": "cpu",
            "name": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
            "free": available(cpu),
            "total": total,
        }
    ]
    for k in range(torch.cuda.device_count()):
        device = torch.device("cuda", k)
        name, total = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory
        found.append({"device": str(device), "name": name, "free": available(device), "total": int(total)})
    return found


def _compiler() -> Facts:
    """Looked up, and nothing compiled."""
    place = shutil.which(compiler.command())
    said = ""
    if place is not None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run([place, "--version"], capture_output=True, text=True, check=False, timeout=10)
            said = (done.stdout.splitlines() or [""])[0]
    try:
        folder: Path | None = compiler.cache()
        built = {source.name: compiler.library(source).exists() for source in compiler.sources()}
    except RuntimeError:  # no home folder
        folder, built = None, {source.name: False for source in compiler.sources()}
    return {
        "command": compiler.command(),
        "path": place,
        "version": said,
        "folder": None if folder is None else str(folder),
        "size": _size(folder),
        "compiled": built,
    }


def _keops() -> Facts:
    state = keops_here.state()
    others = []
    if state.folder is not None and state.folder.parent.is_dir():
        others = [path for path in state.folder.parent.iterdir() if path.is_dir() and path != state.folder]
    return {
        "version": state.version,
        "runs_on": None if state.version is None else "gpu" if state.gpu else "cpu",
        "reason": state.reason,
        "folder": None if state.folder is None else str(state.folder),
        "size": _size(state.folder),
        "formulas": 0 if state.folder is None else len(list(state.folder.glob("pykeops_cpp_*.so"))),
        "other_folders": len(others),
    }


def _size(folder: Path | None) -> int:
    if folder is None or not folder.is_dir():
        return 0
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ----------------------------------------------------------------------------------------------------------- checks


def _checks() -> list[Facts]:
    checks: dict[str, Callable[[], float]] = {"C++ compiles": _compiles, "fused kernel on cpu": _fused}
    for device in ("cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))):
        checks[f"KeOps on {device}"] = partial(_formula, device)
    return [_timed(what, run) for what, run in checks.items()]


def _timed(what: str, run: Callable[[], float]) -> Facts:
    """How long it took, and how far it is from the same sums by torch; or why it failed."""
    began = clock.perf_counter()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # KeOps tells what it compiles
            error = run()
    except Exception as failed:  # noqa: BLE001 - whatever is in the way is what is asked for
        return {
            "what": what,
            "ok": False,
            "seconds": clock.perf_counter() - began,
            "said": " ".join(str(failed).split()),
        }
    seconds = clock.perf_counter() - began
    ok = error < _ROUNDING
    return {"what": what, "ok": ok, "seconds": seconds, "said": f"within {error:.1e} of torch"}


def _compiles() -> float:
    with tempfile.TemporaryDirectory() as folder:  # whatever the cache holds
        compiler.build(compiler.sources()[0], folder=Path(folder))
    return 0.0


def _fused() -> float:
    if fused.load() is None:
        raise OSError("there is no compiled library, and torch computes instead")
    grid = Grid((Line.uniform(-1.0, 1.0, 40),))
    b = torch.linspace(-3, 3, 40, dtype=grid.dtype)
    return float((Separable(grid, 0.01).log_apply(b) - Dense(grid, 0.01).log_apply(b)).abs().max())


def _formula(device: str) -> float:
    W = torch.arange(12.0, dtype=torch.float64, device=device).reshape(4, 3) - 5
    X, z = torch.eye(3, dtype=torch.float64, device=device), torch.ones(3, dtype=torch.float64, device=device)
    return float((Keops(W, X).slopes(z) - Tiled(W, X).slopes(z)).abs().max())


# ------------------------------------------------------------------------------------------------------------ hints


def _hints(found: Facts) -> list[str]:
    """What is in the way, and what to do."""
    hints = []
    machine, keops = found["compiler"], found["keops"]
    if machine["path"] is None:
        hints.append(
            f"there is no compiler {machine['command']}: kernels run in torch, several times slower, and KeOps needs "
            "one, too; install g++, or name a compiler in CXX"
        )
    if machine["folder"] is None:
        hints.append("there is no home folder for compiled kernels: set BIGJKO_CACHE_FOLDER")
    if keops["version"] is None:
        hints.append(keops["reason"])
    elif keops["runs_on"] == "cpu" and len(found["devices"]) > 1:
        hints.append(
            f"KeOps works on the CPU alone ({keops['reason']}), though there is a GPU: put libcuda, libnvrtc and "
            "cuda.h where the linker finds them (LD_LIBRARY_PATH, CUDA_PATH)"
        )
    if keops["other_folders"]:
        hints.append(
            f"beside this host's folder of KeOps there are {keops['other_folders']} of other hosts or Pythons: it "
            "keeps formulas by host name, so give a container a fixed one, and a KEOPS_CACHE_FOLDER that outlives it"
        )
    return hints


# ------------------------------------------------------------------------------------------------------------ shown


def lines(found: Facts) -> list[tuple[str, str]]:
    """The same for people: what, and how it is."""
    said = [(key, str(value)) for key, value in found["versions"].items() if key != "device"]
    said += [
        (one["device"], f"{one['name']}, {gib(one['free'])} free of {gib(one['total'])}") for one in found["devices"]
    ]
    machine, keops = found["compiler"], found["keops"]
    said.append(("compiler", f"{machine['path']}, {machine['version']}" if machine["path"] else "none"))
    built = (f"{name} {'compiled' if there else 'on first use'}" for name, there in machine["compiled"].items())
    said.append(("kernels", ", ".join(built)))
    said.append(("their cache", f"{machine['folder']}, {gib(machine['size'])}"))
    where = {"gpu": "on the GPU", "cpu": f"on the CPU: {keops['reason']}", None: "cannot be used"}[keops["runs_on"]]
    said.append(("KeOps runs", where))
    if keops["folder"] is not None:
        said.append(("its cache", f"{keops['folder']}, {keops['formulas']} formulas, {gib(keops['size'])}"))
    for one in found.get("checks", []):
        said.append((one["what"], f"{'ok' if one['ok'] else 'failed'} in {one['seconds']:.2g} s, {one['said']}"))
    return said + [("hint", hint) for hint in found["hints"]]


_ROUNDING = 1e-10
