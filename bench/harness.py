"""Timing that can be trusted: alternating runs, medians with their spread, errors beside times, failures as rows."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


@dataclass
class Contender:
    """Something to be timed.

    Attributes:
        name: of the row.
        run: does the work and returns what `error` judges.
        error: how far the result is from the truth, or None where there is nothing to judge.
        repeats: runs; slow peers get fewer.
    """

    name: str
    run: Callable[[], object]
    error: Callable[[object], float] | None = None
    repeats: int = 5


@dataclass
class Row:
    """What was measured of a contender."""

    name: str
    median: float = float("nan")
    spread: float = float("nan")  # (largest - smallest) / median
    error: float | None = None
    failure: str = ""


@dataclass
class Table:
    """Rows of one comparison, in seconds; `floor` names the row that ratios are taken to."""

    title: str
    floor: str
    rows: list[Row] = field(default_factory=list)

    def ratio(self, name: str) -> float:
        """Median of a row over that of the floor."""
        times = {row.name: row.median for row in self.rows}
        return times[name] / times[self.floor]

    def markdown(self) -> str:
        """The table as text; failures are rows."""
        lines = [f"### {self.title}", "", f"| | median | spread | over {self.floor} | error |", "|---|---|---|---|---|"]
        for row in self.rows:
            if row.failure:
                lines.append(f"| {row.name} | {row.failure} | | | |")
                continue
            error = "" if row.error is None else f"{row.error:.1e}"
            times = f"{row.median:.4g} s | {100 * row.spread:.0f}%"
            lines.append(f"| {row.name} | {times} | {self.ratio(row.name):.3g} | {error} |")
        return "\n".join(lines) + "\n"


def synchronise() -> None:
    """Wait for every device there is."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(title: str, floor: str, contenders: list[Contender]) -> Table:
    """Warm up and judge every contender once, then run them in turns: noise meets all of them alike."""
    table = Table(title, floor)
    rows = {contender.name: Row(contender.name) for contender in contenders}
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    alive = []
    for contender in contenders:
        row = rows[contender.name]
        try:
            result = contender.run()
            row.error = None if contender.error is None else contender.error(result)
            alive.append(contender)
        except (RuntimeError, ValueError, MemoryError, ImportError, NotImplementedError) as failure:
            row.failure = f"failed: {str(failure).splitlines()[0][:80]}"
    for turn in range(max((c.repeats for c in alive), default=0)):
        for contender in alive:
            if turn < contender.repeats:
                synchronise()
                began = time.perf_counter()
                contender.run()
                synchronise()
                times[contender.name].append(time.perf_counter() - began)
    for name, row in rows.items():
        if times[name]:
            row.median = statistics.median(times[name])
            row.spread = (max(times[name]) - min(times[name])) / row.median
    table.rows = list(rows.values())
    return table


def header() -> str:
    """Hardware, versions and threads."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].split(":", 1)[1].strip() if lines else cpu
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    found = []
    for name in ("bigjko", "torch", "pykeops", "geomloss", "ott-jax", "jax", "numpy"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} missing")
    return (
        f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads, {device}; "
        f"Python {platform.python_version()}, " + ", ".join(found)
    )
