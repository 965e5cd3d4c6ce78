"""The C++ beside this file, compiled on first use by the machine's compiler and kept in a cache."""

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor

_FOLDER = Path(__file__).parent
_FLAGS = ("-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread")
_ALONE = 1 << 15  # nodes: below, a second thread costs what it saves


def _cpu() -> str:
    """What -march=native depends on."""
    try:
        told = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        known = [line for line in told if line.startswith(("model", "flags", "Features", "CPU part"))]
    except OSError:
        known = []
    return "\n".join([platform.machine(), platform.processor(), *known])


def cache() -> Path:
    """Where compiled libraries are kept: $BIGJKO_CACHE_FOLDER, or ~/.cache/bigjko.

    Raises:
        RuntimeError: where there is no home folder.
    """
    named = os.environ.get("BIGJKO_CACHE_FOLDER")
    return Path(named) if named else Path.home() / ".cache" / "bigjko"


def command() -> str:
    """The compiler: $CXX, or g++."""
    return os.environ.get("CXX", "g++")


def library(source: Path, march: str = "native", folder: Path | None = None) -> Path:
    """Where the shared library of a source and the headers beside it lies, or will lie: in the cache by default."""
    text = source.read_text()
    headers = (source.with_name(name).read_text() for name in re.findall(r'^#include "(.+)"', text, re.MULTILINE))
    parts = (text, *headers, command(), *_FLAGS, march, _cpu())
    return (folder or cache()) / f"{source.stem}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"


def build(source: Path, march: str = "native", folder: Path | None = None) -> Path:
    """The shared library of a source, from the cache (or another folder) or compiled into it.

    Raises:
        OSError: where there is no compiler, or it fails.
    """
    there = library(source, march, folder)
    if not there.exists():
        if shutil.which(command()) is None:
            raise OSError(f"there is no compiler {command()}")
        there.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=there.parent
        ) as scratch:  # moved in whole: two processes may build at once
            built = Path(scratch) / there.name
            line = [command(), *_FLAGS, f"-march={march}", str(source), "-o", str(built)]
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            if done.returncode:
                raise OSError(f"{' '.join(line)} failed: {done.stderr.strip()[:500]}")
            built.replace(there)
    return there


def sources() -> list[Path]:
    """Every source that is compiled on first use."""
    return sorted(_FOLDER.glob("*.cpp"))


def takes(*arrays: Tensor) -> bool:
    """Whether C++ can read and write these arrays as they lie in memory."""
    dtype = arrays[0].dtype
    for x in arrays:  # no generator: this is asked dozens of times a step
        if not x.is_cpu or x.dtype != dtype or not x.is_contiguous() or x.requires_grad:
            return False
    return dtype in (torch.float32, torch.float64)


def threads(nodes: int) -> int:
    """How many work on a pass over so many nodes."""
    return torch.get_num_threads() if nodes > _ALONE else 1


@functools.cache
def load(name: str, march: str = "native") -> ctypes.CDLL | None:
    """The library of the source of that name, or None where it cannot be had, with one warning."""
    try:
        return ctypes.CDLL(str(build(_FOLDER / name, march)))
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        warnings.warn(
            f"{name} could not be compiled, its torch version, several times slower, runs instead: {error}. "
            "Install g++, or name a compiler in CXX.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
