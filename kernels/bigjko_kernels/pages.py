"""New arrays on large pages, and arrays that are used again: new pages cost more than most passes over them."""

import ctypes
import functools
import mmap
import sys
import weakref
from typing import Any

import torch
from torch import Tensor

_LARGE = 1 << 22
_SMALL = 1 << 20
_KEPT = 3  # what a step asks for while the last one's are still held


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


def _returned(idle: list[Tensor], memory: Tensor) -> None:
    if len(idle) < _KEPT:
        idle.append(memory)


class Pool:
    """Arrays on the CPU whose memory is used again as soon as nobody holds them; it goes with the pool.

    It keeps a few, of one size: an array that none of them fits lets them go.
    """

    def __init__(self) -> None:
        self._idle: list[Tensor] = []

    def __reduce__(self) -> tuple[type["Pool"], tuple[()]]:
        return Pool, ()  # a copy begins without any

    def empty_like(self, x: Tensor) -> Tensor:
        """An array of x's shape, dtype and device."""
        if x.device.type != "cpu" or x.numel() * x.element_size() < _SMALL:
            return empty_like(x)
        memory: Tensor | None = None
        while memory is None and self._idle:
            memory = self._idle.pop()  # at once: another thread may share the pool
            if memory.dtype != x.dtype or memory.numel() != x.numel():
                memory = None
        if memory is None:
            memory = empty((x.numel(),), x.dtype, x.device)
        lease = memory.numpy()  # an object of its own, which lives as long as the tensors on it
        weakref.finalize(lease, _returned, self._idle, memory).atexit = False
        return torch.from_numpy(lease).view(x.shape)
