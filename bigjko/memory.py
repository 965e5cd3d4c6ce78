"""Memory, looked at before it is needed."""

from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from bigjko_kernels import Grid, Line, Sheets

from .errors import StepError


def available(device: torch.device) -> int:
    """Bytes that can still be had on a device; on the CPU within the limits of the process' control group, too."""
    if device.type == "cuda":  # what torch keeps for reuse is free, too
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    free = int(psutil.virtual_memory().available)
    for limit, used, told, cache in _CGROUPS:
        try:
            numbers = dict(line.split() for line in Path(told).read_text().splitlines())
            in_use = int(Path(used).read_text()) - int(numbers[cache])  # files read lately make way
            free = min(free, int(Path(limit).read_text()) - in_use)
        except (OSError, ValueError, KeyError):  # not there, or "max": no limit
            continue
    return max(0, free)


def check(
    grid: Grid,
    need: Callable[[tuple[int, ...]], int],
    what: str,
    shape: tuple[int, ...] | None = None,
    error: type[ValueError] = StepError,
) -> None:
    """Raise StepError where `need`, in bytes for a shape, is more than there is, and name the shape that would fit.

    Args:
        grid: factors, dtype and device.
        need: bytes for a shape.
        what: takes them.
        shape: the grid's own unless another is given, of a grid of the same factors that is not there yet.
        error: to raise in its place.
    """
    shape = grid.shape if shape is None else shape
    needed, free = need(shape), available(grid.device)
    if needed <= free:
        return
    share, fits = 1.0, shape
    while need(fits) > free and share > _SMALLEST:
        share *= 0.98
        fits = tuple(
            n if isinstance(f, Sheets) else max(1, int(n * share)) for n, f in zip(shape, grid.factors, strict=True)
        )
    advice = f"{' x '.join(map(str, fits))} nodes would fit" if need(fits) <= free else "no such grid would fit"
    lines = [n for n, f in zip(fits, grid.factors, strict=True) if isinstance(f, Line)]
    if min(lines, default=_FEW) < _FEW:
        advice += (
            "; lines of so few nodes resolve no measure: take Projected, which has two dimensions fewer, or particles"
        )
    raise error(
        f"received a grid of {' x '.join(map(str, shape))} nodes in {str(grid.dtype).removeprefix('torch.')}, "
        f"whose {what} take {gib(needed)}, need at most the {gib(free)} that are free: {advice}"
    )


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB"


_V2, _V1 = "/sys/fs/cgroup/memory.", "/sys/fs/cgroup/memory/memory."
_CGROUPS = (
    (f"{_V2}max", f"{_V2}current", f"{_V2}stat", "inactive_file"),
    (f"{_V1}limit_in_bytes", f"{_V1}usage_in_bytes", f"{_V1}stat", "total_inactive_file"),
)
_SMALLEST = 1e-9
_FEW = 12  # nodes of a line
