"""Steps on grids that fill a good part of the memory, each in a process of its own, and what they took.

`python bench/large.py 256 256 256 --n 50 --dtype float32` is one of these processes: it prints a line of JSON.
Memory is all that the process holds for the flow (grid, energy, kernel, measures, state, temporaries): its peak during
a part, less what was resident before the grid was made.
"""

import argparse
import json
import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from harness import GIB, Bar, Peak, Row, Setup, Table, once, told
from problems import box, risk

import bigjko as bj

START, STEP = "grid, energy, kernel and state", "a step, measure to measure"
_PATIENCE = 900.0  # seconds for one process
_TAU = 0.05
_MEASURED = 30.0  # seconds: a step that takes longer is measured once


def tables(setup: Setup) -> Iterator[Table]:
    """Time and peak memory of debiased Lifted steps."""
    cases: tuple[tuple[tuple[int, ...], int, str, float], ...] = (((24, 24, 24), 8, "float32", 1e6),)
    if setup.device.type == "cuda":
        cases = (((256, 256, 256), 50, "float64", 12.0), ((512, 512, 512), 50, "float32", 12.0))
    elif not setup.quick:
        cases = (
            ((100, 100, 100), 442, "float64", 16.0),
            ((3000, 3000), 50, "float64", 16.0),
            ((256, 256, 256), 50, "float32", 12.0),
            ((256, 256, 256), 50, "float64", 12.0),
        )
    for case in cases:
        yield large(setup, *case)


def large(setup: Setup, shape: tuple[int, ...], n: int, dtype: str, bar: float) -> Table:
    """A row for what precedes the flow, and one for its second step."""
    where = f"{shape[0]}^{len(shape)}, n = {n}, {dtype}"
    array = math.prod(shape) * (4 if dtype == "float32" else 8)
    table = Table(f"Debiased Lifted step, {where}, tau = {_TAU}", STEP, array=array)
    table.rows = [Row(START), Row(STEP, ours=True)]
    print(f"  {where} ...", end="", flush=True)
    command = [sys.executable, __file__, *map(str, shape), "--n", str(n), "--dtype", dtype]
    command += ["--device", str(setup.device), "--cap", str(setup.cap)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        last = (done.stdout.strip().splitlines() or ["{}"])[-1]
        found: dict[str, Any] = json.loads(last) if done.returncode == 0 else {}
        failure = found.get("failure", "" if found else f"failed: the process ended with {done.returncode}")
    except subprocess.TimeoutExpired:
        found, failure = {}, f"not done after {_PATIENCE:.0f} s"
    for row in table.rows:
        row.failure = failure
        if not failure:
            row.times, row.peak, row.note = (found[row.name][key] for key in ("times", "peak", "note"))
    print(f" {failure or f'{table.row(STEP).median:.3g} s'}", flush=True)
    peak = table.row(STEP).peak / array
    table.bars.append(Bar(f"arrays of N at the peak of a debiased Lifted step, {where}", peak, bar))
    return table


# ---------------------------------------------------------------------------------------------------- in the process


def _flow(shape: tuple[int, ...], n: int, dtype: torch.dtype, device: str, held: "_Held") -> dict[str, Any]:
    def begin() -> object:
        grid = box(shape, dtype, device)
        jko = bj.JKO(risk(n, len(shape) - 1, dtype, device), grid, tau=_TAU)
        start = bj.GridMeasure.gaussian(grid, mean=0.1, std=0.5)
        return jko, start, jko.init(start)

    (jko, measure, state), seconds, peak = held.measured(begin)
    found = {START: {"times": [seconds], "peak": peak, "note": ""}}
    step = jko.step(measure, state, _TAU)
    times: list[float] = []
    while len(times) < 3 and sum(times) < _MEASURED:
        measure, state = step.measure, step.state
        del step
        step, seconds, peak = held.measured(partial(jko.step, measure, state, _TAU))
        times.append(seconds)
    applications = step.stats.get("applications", math.nan)
    note = f"{applications:.0f} kernel applications, {step.status.name}, certified to {step.stats['gap_z']:.1e}"
    found[STEP] = {"times": times, "peak": peak, "note": note}
    return found


class _Held:
    """Peaks over what the process held when this was made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with Peak(device) as peak:
            pass
        self.before = peak.before

    def measured(self, run: Callable[[], Any]) -> tuple[Any, float, float]:
        """The result, its seconds, and the peak."""
        with Peak(self.device) as peak:
            result, seconds = once(run)
        return result, seconds, peak.bytes + peak.before - self.before


def main() -> None:
    """One process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("shape", nargs="+", type=int)
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cap", type=float, default=10 * GIB)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    device, dtype = torch.device(asked.device), getattr(torch, asked.dtype)
    # A small step first: what libraries take once is not the flow's.
    _flow((12,) * len(asked.shape), 4, dtype, asked.device, _Held(device))
    held = _Held(device)
    if device.type == "cpu" and sys.platform == "linux":
        _limit(asked.cap)
    try:
        found = _flow(tuple(asked.shape), asked.n, dtype, asked.device, held)
    except (RuntimeError, MemoryError) as failure:
        found = {"failure": told(failure)}
    print(json.dumps(found))


def _limit(more: float) -> None:
    """Let allocations fail, rather than the machine, beyond so many bytes more than now."""
    import resource

    with open("/proc/self/statm", encoding="ascii") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + int(more), resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
