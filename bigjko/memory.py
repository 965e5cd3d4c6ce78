"""Memory, looked at before it is needed."""

from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from bigjko_kernels import Grid, Sheets

from .errors import StepError


def available(device: torch.device) -> int:
    """Bytes that can still be had on a device; on the CPU within the limits of the process' control group, too."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    for limit, used in _CGROUPS:
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # not there, or "max": no limit
            continue
    return max(0, free)


def check(grid: Grid, need: Callable[[tuple[int, ...]], int], what: str) -> None:
    """Raise StepError where `need`, in bytes for a shape, is more than there is, and name the shape that would fit."""
    needed, free = need(grid.shape), available(grid.device)
    if needed <= free:
        return
    share, fits = 1.0, grid.shape
    while need(fits) > free and share > _SMALLEST:
        share *= 0.98
        fits = tuple(
            n if isinstance(f, Sheets) else max(1, int(n * share))
            for n, f in zip(grid.shape, grid.factors, strict=True)
        )
    advice = f"{' x '.join(map(str, fits))} nodes would fit" if need(fits) <= free else "no such grid would fit"
    raise StepError(
        f"received a grid of {' x '.join(map(str, grid.shape))} nodes in {str(grid.dtype).removeprefix('torch.')}, "
        f"whose {what} take {gib(needed)}, need at most the {gib(free)} that are free: {advice}"
    )


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB"


_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
_SMALLEST = 1e-3
