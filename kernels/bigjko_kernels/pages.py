"""New arrays on large pages."""

import ctypes
import functools
import mmap
import sys
from typing import Any

import torch
from torch import Tensor

_LARGE = 1 << 22


@functools.cache
def _advise() -> Any:
    """madvise of the C library, or None where there is none."""
    if not (sys.platform.startswith("linux") and hasattr(mmap, "MADV_HUGEPAGE")):
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return advise


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """torch.empty, asking Linux for large pages: touching 134 MB of new small ones takes as long as 7 copies of it."""
    array = torch.empty(shape, dtype=dtype, device=device)
    size = array.numel() * array.element_size()
    advise = _advise() if device.type == "cpu" and size >= _LARGE else None
    if advise is not None:  # whole pages only; a refusal costs nothing but time
        start = -(-array.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (array.data_ptr() + size) // mmap.PAGESIZE * mmap.PAGESIZE
        advise(start, end - start, mmap.MADV_HUGEPAGE)
    return array


def empty_like(x: Tensor) -> Tensor:
    """An array of x's shape, dtype and device."""
    return empty(tuple(x.shape), x.dtype, x.device)
