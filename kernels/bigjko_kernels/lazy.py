"""The kernel for costs that do not separate: KeOps reductions, sheet by sheet, nothing stored."""

import torch
from torch import Tensor

from .costs import Cost, geodesic
from .factors import Sheets
from .gibbs import LOG_ZERO, GibbsKernel
from .grid import Grid
from .keops import LazyTensor

_KEOPS_ZERO = -1e30  # one -inf at KeOps' first node makes a row NaN, so it is handed a finite log-zero


class Lazy(GibbsKernel):
    """Any cost, by a KeOps log-sum-exp over all pairs of nodes of a sheet.

    Cost O(N^2), memory O(N). KeOps compiles each formula once (about 9 s), then finds it in its cache. Distances are
    float64 whatever the grid's dtype: the angle between float32 unit vectors has lost more digits than 4 ulp of out.
    Reference: Charlier et al. 2021, Kernel operations on the GPU, with autodiff, without memory overflows.
    """

    def __init__(self, grid: Grid, epsilon: float, cost: Cost | None = None) -> None:
        super().__init__(grid, epsilon, geodesic(grid) if cost is None else cost)
        self._sheet_axes = [k for k, f in enumerate(grid.factors) if isinstance(f, Sheets)]
        other = tuple(f for f in grid.factors if not isinstance(f, Sheets))
        self._points = Grid(other).points().double().contiguous() if other else None

    def _log_apply(self, b: Tensor, out: Tensor) -> Tensor:
        if self._points is None:
            return out.copy_(b)
        lead = len(self._sheet_axes)
        moved = b.movedim(self._sheet_axes, list(range(lead)))
        rows = moved.reshape(-1, self._points.shape[0])
        applied = torch.stack([self._one_sheet(row.contiguous()) for row in rows.unbind(0)])
        return out.copy_(applied.reshape(moved.shape).movedim(list(range(lead)), self._sheet_axes))

    def _one_sheet(self, b: Tensor) -> Tensor:
        points = self._points
        if points is None or bool((b == LOG_ZERO).all()):
            return b.clone()
        x, y = LazyTensor(points[:, None, :]), LazyTensor(points[None, :, :])
        b_k = LazyTensor(b.double().clamp(min=_KEOPS_ZERO)[None, :, None])
        out: Tensor = (b_k - self.cost(x, y) / self.epsilon).logsumexp(dim=1).reshape(-1)
        return out.masked_fill(out < _KEOPS_ZERO / 2, LOG_ZERO).to(b.dtype)
