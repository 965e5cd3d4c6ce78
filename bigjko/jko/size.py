"""What a step needs in memory, before any of it is there."""

import math

from bigjko_kernels import Circulant, Grid, Line, Sheets, geodesic

from ..energy import Energy
from ..risk import Risk


def step_memory(energy: Energy, grid: Grid, shape: tuple[int, ...]) -> int:
    """Bytes at the peak of a step and of the flow around it, measure and state included.

    On lines, and on a cone over a circle of 768 directions or more, within 25% (tested).

    Seven arrays of N: log q and q, d, the step's two, and d of two passes; one for V where there is any; and in float64
    whatever the dtype the kernel's own, where it has two axes or more. Mass that grows needs four more. On a GPU
    (within 25%, too) the kernel keeps the costs of each axis and what is greatest in every tile of 16, and temporaries
    are large.

    Args:
        energy: its data, whether V is not zero, whether mass is kept, and the cost, which decides on the kernel.
        grid: factors, dtype and device.
        shape: nodes per factor, the grid's own or another.
    """
    way = energy.neurons if isinstance(energy, Risk) else None
    n, potential = (len(energy.y), energy.weight_decay > 0) if isinstance(energy, Risk) else (0, True)
    cost = geodesic(grid) if way is None else way.cost
    N, item = math.prod(shape), grid.dtype.itemsize
    axes = [
        k for k, (f, size) in enumerate(zip(grid.factors, shape, strict=True)) if size > 1 and type(f) is not Sheets
    ]
    lines = all(isinstance(grid.factors[k], Line) for k in axes)
    arrays = 7 + potential + (0 if way is None or way.conserves_mass else 4)
    if cost.per_factor(grid) is None:
        sheet = [size for f, size in zip(grid.factors, shape, strict=True) if type(f) is not Sheets]
        tables = _bands(sheet[0], sheet[1], N) if Circulant.takes(grid, cost) else _TILES * N
    elif grid.device.type == "cuda":
        tops = max((8 * N // shape[k] * (shape[k] // 16 + 1) for k in axes), default=0)
        slabs = 8 * min(N, _SLAB_ON_GPUS) if len(axes) > 2 else 0
        tables = sum(_table_on_gpus(shape[k], N) for k in axes) + tops + max(slabs, 3 * item * min(N, _PART_ON_GPUS))
    else:
        tables = sum(_table(shape[k], N) for k in axes)
    return N * (arrays * item + (8 if len(axes) > 1 or not lines else 0)) + tables + 8 * _MATRICES * n**2 + _FIXED


def _table(n: int, N: int) -> int:
    """Bounds between all tiles of an axis: 15 bytes for two of 8 nodes, 16 for two of 16 where that is too much."""
    return 15 * (n // 8 + 1) ** 2 if n**2 // 64 <= max(256 * n, N) else 16 * (n // 16 + 1) ** 2


def _table_on_gpus(n: int, N: int) -> int:
    """All costs of an axis twice, or the bounds where that is too much."""
    return 16 * n**2 if n**2 <= max(512 * n, N) else 16 * (n // 16 + 1) ** 2


def _bands(n: int, m: int, N: int) -> int:
    """Circulant's: some 46 pairs of tiles of 32 KiB a band, values by tiles, and bounds between runs of angles."""
    bands = m // 8 + 1
    return (46 * 32 << 10) * bands + 8 * (6 * N + 3 * N // (n * m) * (n // 8) ** 2 * bands)


_TILES = 600  # bytes a node for the pairs of tiles of a sphere, or where a cost is joint
_MATRICES = 8  # n x n: the curvature, its update, a factorisation and their temporaries
_FIXED = 8 << 20  # slabs of a kernel, parts of a sum, tiles of features
_SLAB_ON_GPUS = 1 << 23  # nodes between two axes of three
_PART_ON_GPUS = 1 << 22  # nodes of which a refit has three temporaries
