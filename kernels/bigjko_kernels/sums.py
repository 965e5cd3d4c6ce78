"""Sums over large arrays, in float64 whatever their dtype, without a temporary of their size."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

# Entries at a time: 2 MiB in float64 stays in a CPU's cache, 32 MiB keep a GPU busy.
_PART, _PART_OFF_CPU = 1 << 18, 1 << 22


def _part(x: Tensor) -> int:
    return _PART if x.device.type == "cpu" else _PART_OFF_CPU


def parts(*arrays: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same entries of arrays of one shape, a few at a time."""
    yield from zip(*(x.reshape(-1).split(_part(x)) for x in arrays), strict=True)


def sum64(x: Float[Tensor, "*nodes"]) -> Float[Tensor, ""]:
    """sum_i x_i."""
    if x.dtype == torch.float64 or x.ndim == 0:
        return x.sum(dtype=torch.float64)
    return torch.stack([part.sum(dtype=torch.float64) for part in x.split(rows_at_once(x))]).sum()


def profile(x: Float[Tensor, "*nodes"], axis: int) -> Float[Tensor, " k"]:
    """The sums over all axes but one."""
    others = [k for k in range(x.ndim) if k != axis]
    if not others:
        return x.double()
    found = [part.sum(others, dtype=torch.float64) for part in x.split(rows_at_once(x))]
    return torch.cat(found) if axis == 0 else torch.stack(found).sum(0)


def inner(x: Float[Tensor, "*nodes"], y: Float[Tensor, "*nodes"]) -> Float[Tensor, ""]:
    """sum_i x_i y_i."""
    if x.dtype == torch.float64 and x.is_contiguous() and y.is_contiguous():
        return torch.dot(x.view(-1), y.view(-1))
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    size = rows_at_once(x)
    for a, b in zip(x.split(size), y.split(size), strict=True):  # by rows: y may be an expanded view
        total += (a.double() * b).sum()
    return total


def rows_at_once(x: Tensor) -> int:
    """How many rows of x to convert or to work on at a time."""
    rows = max(1, x.shape[0])
    return max(1, min(rows, _part(x) * rows // max(1, x.numel())))
