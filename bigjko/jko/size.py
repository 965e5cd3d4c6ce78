"""What a step needs in memory, before any of it is there."""

import math

from bigjko_kernels import Grid, Line, Sheets, Sphere


def step_memory(grid: Grid, shape: tuple[int, ...], n: int, *, potential: bool) -> int:
    """Bytes at the peak of a step and of the flow around it, measure and state included; on lines within 25% (tested).

    Seven arrays of N: log q and q, d, the step's two, and d of two passes; one for V where there is any; and in float64
    whatever the dtype the kernel's own, where it has two axes or more. Growing mass, on directions, needs four more.

    Args:
        grid: factors, dtype and device.
        shape: nodes per factor, the grid's own or another.
        n: data.
        potential: whether V is not zero.
    """
    N, item = math.prod(shape), grid.dtype.itemsize
    axes = [
        k for k, (f, size) in enumerate(zip(grid.factors, shape, strict=True)) if size > 1 and type(f) is not Sheets
    ]
    lines = all(isinstance(grid.factors[k], Line) for k in axes)
    arrays = 7 + potential + (0 if lines else 4)
    if any(isinstance(grid.factors[k], Sphere) for k in axes):
        tables = _TILES * N
    else:
        tables = sum(_table(shape[k], N) for k in axes)
    return N * (arrays * item + (8 if len(axes) > 1 or not lines else 0)) + tables + 8 * _MATRICES * n**2 + _FIXED


def _table(n: int, N: int) -> int:
    """Bounds between all tiles of an axis: 15 bytes for two of 8 nodes, 16 for two of 16 where that is too much."""
    return 15 * (n // 8 + 1) ** 2 if n**2 // 64 <= max(256 * n, N) else 16 * (n // 16 + 1) ** 2


_TILES = 600  # bytes a node for the pairs of tiles of a sphere
_MATRICES = 8  # n x n: the curvature, its update, a factorisation and their temporaries
_FIXED = 24 << 20  # slabs of a kernel, parts of a sum, tiles of features
