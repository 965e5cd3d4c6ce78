"""The kernel for costs that do not separate: KeOps reductions over the pairs of tiles that matter, sheet by sheet."""

import math

import torch
from torch import Tensor

from .costs import Cost, geodesic
from .factors import Sheets
from .gibbs import LOG_ZERO, GibbsKernel
from .grid import Grid
from .keops import LazyTensor, block_sparse
from .series import Series
from .tiles import Pairs, Tiles

_KEOPS_ZERO = -1e30  # one -inf at KeOps' first node makes a row NaN, so it is handed a finite log-zero
_MARGINS = {torch.float64: 37.0, torch.float32: 20.0}  # exp(-37) = 8.5e-17 and exp(-20) = 2e-9 are below half an ulp


class Lazy(GibbsKernel):
    """Any cost, by a KeOps log-sum-exp over the pairs of tiles of a sheet that b needs; see tiles.py for the bounds.

    Cost: nodes within reach of a node, times N; O(N^2) for a cost without `terms`, or a b that needs all pairs.
    Memory O(N). KeOps compiles each formula once (about 9 s), then finds it in its cache. Distances are float64
    whatever the grid's dtype: the angle between float32 unit vectors has lost more digits than 4 ulp of out.
    Reference: Charlier et al. 2021, Kernel operations on the GPU, with autodiff, without memory overflows.
    """

    def __init__(self, grid: Grid, epsilon: float, cost: Cost | None = None) -> None:
        super().__init__(grid, epsilon, geodesic(grid) if cost is None else cost)
        self._sheet_axes = [k for k, f in enumerate(grid.factors) if isinstance(f, Sheets)]
        other = tuple(f for f in grid.factors if not isinstance(f, Sheets))
        self._points = None
        if not other:
            return
        points = Grid(other).points().double()
        terms = self.cost.terms(points.shape[1])
        if terms:  # a chord is an angle only between unit vectors, which those in float32 are not to 1e-16
            parts = points.split([term.width for term in terms], dim=1)
            units = [x / x.norm(dim=1, keepdim=True) if t.unit else x for x, t in zip(parts, terms, strict=True)]
            points = torch.cat(units, dim=1)
        self._tiles = Tiles(points, self.cost)
        self._points = points[self._tiles.order].contiguous()
        diameters = (2 * self._tiles.levels[0].radii[0]) ** 2
        self._series = [
            Series.of(t, min(float(d), 4.0) if t.unit else float(d)) for t, d in zip(terms, diameters, strict=True)
        ]

    def _log_apply(self, b: Tensor) -> Tensor:
        if self._points is None:
            return b.clone()
        lead = len(self._sheet_axes)
        moved = b.movedim(self._sheet_axes, list(range(lead)))
        rows = moved.reshape(-1, self._points.shape[0])
        out = torch.stack([self._one_sheet(row) for row in rows.unbind(0)])
        return out.reshape(moved.shape).movedim(list(range(lead)), self._sheet_axes).contiguous()

    def _one_sheet(self, b: Tensor) -> Tensor:
        if bool((b == LOG_ZERO).all()):
            return b.clone()
        values = b.double()[self._tiles.order]
        pairs = self._tiles.pairs(values, self.epsilon, _MARGINS[b.dtype])
        reach = pairs.chords.new_tensor([series.reach for series in self._series])
        near = (pairs.chords <= reach).all(dim=1) if self._series else pairs.chords.new_zeros(len(pairs.chords)).bool()
        sums = [
            self._reduce(values, pairs.where(chosen), short)
            for chosen, short in ((near, True), (~near, False))
            if bool(chosen.any())
        ]
        total = sums[0] if len(sums) == 1 else torch.logaddexp(*sums)
        out = torch.empty_like(total)
        out[self._tiles.order] = total
        return out.to(b.dtype)

    def _reduce(self, b: Tensor, pairs: Pairs, short: bool) -> Tensor:
        """The log-sum-exp over these pairs of tiles, by the series or by the cost's own formula."""
        points = self._points
        assert points is not None
        x, y = LazyTensor(points[:, None, :]), LazyTensor(points[None, :, :])
        b_k = LazyTensor(b.clamp(min=_KEOPS_ZERO)[None, :, None])
        cost = self._by_series(x, y) if short else self.cost(x, y)
        out: Tensor = (b_k - cost / self.epsilon).logsumexp(dim=1, ranges=block_sparse(pairs.outputs, pairs.inputs))
        out = out.reshape(-1)
        return out.masked_fill(out < _KEOPS_ZERO / 2, LOG_ZERO)

    def _by_series(self, x: LazyTensor, y: LazyTensor) -> LazyTensor:
        total = start = 0
        for width, series in zip(self._tiles.widths, self._series, strict=True):
            part = (slice(None), slice(None), slice(start, start + width))
            s = ((x[part] - y[part]) ** 2).sum(-1)
            a = LazyTensor(series.coefficients.to(self.grid.device)[None, None, :])
            powers = a.elem(len(series.coefficients) - 1)
            for k in range(len(series.coefficients) - 2, -1, -1):
                powers = powers * s + a.elem(k)
            total = total + s * powers
            start += width
        return total
