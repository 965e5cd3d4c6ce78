"""Timing that can be trusted: alternating runs, medians, spread, peak memory, errors beside times, failures as rows.

Time: every contender is built (imports, conversions, compilation) and run once; then all of them run in turns, so that
noise meets them alike. What took longer than LONG seconds is not run again: its row says "one run".
Memory: the growth of the process' peak resident set (VmHWM, reset before the run) over what was resident before it, or
of torch's peak on CUDA. Tables that were kept from an earlier run of the same contender do not count.
"""

import gc
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from ctypes import CDLL
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import bigjko

LONG, OURS_LONG = 5.0, 30.0  # seconds: a run that takes longer is the only one; ours are given more
BUDGET = 4.0  # seconds of repeated runs, about, for each contender
PAUSE = 0.03  # seconds between contenders: OpenMP threads of the last one spin that long at most
UNSTEADY = 1.0  # a middle half wider than the median: such a row decides nothing
GIB = 1024.0**3


@dataclass(frozen=True)
class Setup:
    """How the tables are run.

    Attributes:
        device: where ours runs, and the peers that can.
        quick: small sizes, few runs: shows that the scripts work, measures nothing.
        peers: whether other packages run beside ours.
        slow: whether contenders marked slow run.
        cap: bytes that one contender may need, by its own estimate.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    quick: bool = False
    peers: bool = True
    slow: bool = True
    cap: float = 10 * GIB


Run = Callable[[], object]


@dataclass
class Contender:
    """Something to be timed.

    Attributes:
        name: of the row.
        build: does once what need not be timed, and returns what is run; the run returns what `error` judges.
        error: how far the result is from the truth, or None where there is nothing to judge.
        note: what else there is to say of the result.
        ours: whether it is this project's, so that its ratios are kept for `make bench-check`.
        peer: whether it is another package, so that `--no-peers` leaves it out.
        slow: whether quick runs and checks leave it out.
        needs: bytes it is known to need; more than the cap is a row, not a run.
    """

    name: str
    build: Callable[[], Run]
    error: Callable[[object], float] | None = None
    note: Callable[[object], str] | None = None
    ours: bool = False
    peer: bool = False
    slow: bool = False
    needs: float = 0.0


@dataclass
class Row:
    """What was measured of a contender."""

    name: str
    ours: bool = False
    times: list[float] = field(default_factory=list)
    peak: float = math.nan  # bytes
    error: float | None = None
    note: str = ""
    failure: str = ""

    @property
    def median(self) -> float:
        """Seconds; NaN where it failed."""
        return statistics.median(self.times) if self.times else math.nan

    @property
    def spread(self) -> str:
        """The middle half of the runs, over the median: one run that was disturbed does not set it."""
        if len(self.times) < 2:
            return "one run"
        return f"{100 * self.width:.0f}%, {len(self.times)} runs"

    @property
    def width(self) -> float:
        """Of the middle half of the runs, over the median; 0 for one run."""
        if len(self.times) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.times, n=4, method="inclusive")
        return (third - first) / self.median


@dataclass(frozen=True)
class Bar:
    """A number that was set before it was measured."""

    text: str
    value: float
    bound: float
    at_least: bool = False

    def __str__(self) -> str:
        shown = float(f"{self.value:.3g}")  # what is printed decides
        if math.isnan(shown):
            verdict = "not decided"
        else:
            verdict = "met" if (shown >= self.bound if self.at_least else shown <= self.bound) else "MISSED"
        return f"**{verdict}**: {self.text}: {shown:.3g}, bar {'>=' if self.at_least else '<='} {self.bound:g}"


@dataclass
class Table:
    """Rows of one comparison.

    Attributes:
        title: what is compared, with dtype and sizes.
        floor: the row that ratios are taken to.
        rows: in the order of the contenders.
        array: bytes of one array of N, the unit of memory; 0 for MiB.
        judged: what the errors are.
        bars: what the table decides.
    """

    title: str
    floor: str
    rows: list[Row] = field(default_factory=list)
    array: int = 0
    judged: str = ""
    bars: list[Bar] = field(default_factory=list)

    def row(self, name: str) -> Row:
        """By name; an empty one for a contender that did not run."""
        return next((row for row in self.rows if row.name == name), Row(name))

    def over(self, name: str, other: str) -> float:
        """Median of a row over another's; NaN where one is missing, or so unsteady that its median says nothing."""
        one, two = self.row(name), self.row(other)
        return one.median / two.median if max(one.width, two.width) <= UNSTEADY else math.nan

    def ratios(self) -> dict[str, float]:
        """Ours over the floor and over every row that is not ours."""
        pairs = [(a.name, b.name) for a in self.rows for b in self.rows if a.ours and a is not b]
        kept = {(a, b) for a, b in pairs if b == self.floor or not self.row(b).ours}
        found = {f"{a} / {b}": self.over(a, b) for a, b in pairs if (a, b) in kept}
        return {name: ratio for name, ratio in found.items() if math.isfinite(ratio)}

    def markdown(self) -> str:
        """The table as text; failures are rows."""
        memory = "peak, arrays of N" if self.array else "peak, MiB"
        judged = f"error: {self.judged}" if self.judged else "error"
        head = f"| | median | spread | over {self.floor} | {memory} | {judged} | |"
        lines = [f"### {self.title}", "", head, "|---" * 7 + "|"]
        for row in self.rows:
            if row.failure:
                lines.append(f"| {row.name} | {row.failure} | | | | | {row.note} |")
                continue
            error = "" if row.error is None else f"{row.error:.1e}"
            peak = "" if math.isnan(row.peak) else f"{row.peak / (self.array or 2**20):.3g}"
            ratio = f"{self.over(row.name, self.floor):.3g}".replace("nan", "unsteady")
            lines.append(
                f"| {row.name} | {row.median:.4g} s | {row.spread} | {ratio} | {peak} | {error} | {row.note} |"
            )
        if self.bars:
            lines += ["", *(f"- {bar}" for bar in self.bars)]
        return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------------------- memory

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _kib(name: str) -> float:
    lines = [line for line in _STATUS.read_text().splitlines() if line.startswith(name)]
    return float(lines[0].split()[1]) if lines else math.nan


class Peak:
    """A context that measures how far memory rises above what is in use when it is entered.

    Attributes:
        bytes: the rise; NaN on a machine that cannot tell.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.bytes = math.nan
        self.before = math.nan

    def __enter__(self) -> "Peak":
        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return self
        with suppress(OSError, AttributeError):
            CDLL("libc.so.6").malloc_trim(0)  # what was freed is no longer resident
            _CLEAR.write_text("5")  # VmHWM starts again
            self.before = _kib("VmRSS:") * 1024
        return self

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            self.bytes = torch.cuda.max_memory_allocated() - self.before
        elif math.isfinite(self.before):
            self.bytes = max(0.0, _kib("VmHWM:") * 1024 - self.before)


# --------------------------------------------------------------------------------------------------------------- time


def synchronise() -> None:
    """Wait for every device there is."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def once(run: Run) -> tuple[object, float]:
    """One run and its seconds."""
    synchronise()
    began = time.perf_counter()
    result = run()
    synchronise()
    return result, time.perf_counter() - began


def measure(
    setup: Setup, title: str, floor: str, contenders: list[Contender], *, array: int = 0, judged: str = ""
) -> Table:
    """Build and judge every contender once, then run them in turns."""
    table = Table(title, floor, array=array, judged=judged)
    alive: dict[str, tuple[Run, int]] = {}
    brief: set[str] = set()  # so short that threads that still sleep would matter
    for contender in contenders:
        if (contender.slow and not setup.slow) or (contender.peer and not setup.peers):
            continue
        row = Row(contender.name, contender.ours)
        table.rows.append(row)
        if contender.needs > setup.cap:
            row.failure = f"not run: needs {contender.needs / GIB:.3g} GiB, more than {setup.cap / GIB:.3g}"
            continue
        print(f"  {contender.name} ...", end="", flush=True)
        try:
            run = contender.build()
            with Peak(setup.device) as peak:
                result, seconds = once(run)
            row.error = None if contender.error is None else contender.error(result)
            row.note = "" if contender.note is None else contender.note(result)
        # Whatever a peer raises is its row: several wrap their own errors in classes of their own.
        except Exception as failure:  # noqa: BLE001
            row.failure = told(failure)
            print(f" {row.failure}", flush=True)
            continue
        del result
        print(f" {seconds:.3g} s", flush=True)
        if seconds > (OURS_LONG if contender.ours else LONG):
            row.times, row.peak = [seconds], peak.bytes
        else:
            least = 3 if setup.quick or seconds > 1 else 5
            brief |= {contender.name} if seconds < 10 * _WARM and setup.device.type == "cpu" else set()
            alive[contender.name] = run, least if setup.quick else max(least, min(15, int(BUDGET / seconds)))
    for name, (run, _) in alive.items():  # not timed: memory that was given back to the system is slow to come again
        with Peak(setup.device) as peak:
            run()
            synchronise()
        table.row(name).peak = peak.bytes
    for turn in range(max((repeats for _, repeats in alive.values()), default=0)):
        for name, (run, repeats) in alive.items():
            if turn < repeats:
                if name in brief:
                    warm(run)
                table.row(name).times.append(once(run)[1])
    return table


def warm(run: Run) -> None:
    """Let the last contender's threads fall asleep and this one's wake up: a cold second core costs twice the time."""
    time.sleep(PAUSE)
    began = time.perf_counter()
    while time.perf_counter() - began < _WARM:
        _, seconds = once(run)
        if seconds > _WARM:
            break


_WARM = 0.05


def told(failure: Exception) -> str:
    """A failure in one cell: its kind, and the first line that says something, without paths."""
    text = next((line.strip() for line in str(failure).splitlines() if line.strip()), "")
    words = [word for word in text.replace("|", "/").split() if word == "/" or not word.lstrip("'\"(").startswith("/")]
    memory = isinstance(failure, MemoryError) or "allocate" in text or "out of memory" in text.lower()
    return f"{'out of memory' if memory else 'failed'}: {type(failure).__name__}: {' '.join(words)[:90]}"


# ------------------------------------------------------------------------------------------------------------- header


def header() -> str:
    """Hardware, versions and threads."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].split(":", 1)[1].strip() if lines else cpu
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    found = [f"bigjko {bigjko.__version__}"]
    for name in ("torch", "triton", "pykeops", "geomloss", "ott-jax", "jax", "numpy"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} missing")
    tuned = [f"{name}={os.environ[name]}" for name in ("THP_MEM_ALLOC_ENABLE", "GLIBC_TUNABLES") if name in os.environ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return (
        f"{cpu}, {os.cpu_count()} cores, {memory:.3g} GiB, {device}; {torch.get_num_threads()} torch threads, "
        f"OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'unset')} (jax: its own pool, a thread a core), "
        f"allocator {', '.join(tuned) or 'as it comes'}; "
        f"Python {platform.python_version()}, " + ", ".join(found)
    )


def commit() -> str:
    """The commit that is measured, and whether anything but the record itself was changed since."""

    def git(*words: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ":/", ":(exclude)RESULTS.md", ":(exclude)ratios.json")
        return f"commit {git('rev-parse', '--short', 'HEAD')}{' with changes' if changed else ''}"
    except (OSError, subprocess.CalledProcessError):
        return "unknown commit"


Section = Callable[[Setup], Iterator[Table]]
