"""The kernel for costs that do not separate: KeOps reductions over the pairs of tiles that matter, sheet by sheet."""

import torch
from torch import Tensor

from .costs import Cost, geodesic
from .factors import Sheets
from .gibbs import LOG_ZERO, GibbsKernel
from .grid import Grid
from .keops import LazyTensor, block_sparse, covered, fitting_threads, lazy_tensor, memory_told
from .series import Series
from .tiles import Pairs, Tiles

_KEOPS_ZERO = -1e30  # one -inf at KeOps' first node makes a row NaN, so it is handed a finite log-zero
_MARGINS = {torch.float64: 37.0, torch.float32: 20.0}  # exp(-37) = 8.5e-17 and exp(-20) = 2e-9: below half an ulp of 1
# Terms of a series: on a sphere 12 reach an angle of .5 to .8 and cost 12 ns a pair, 24 reach 1.1 to 1.6 and cost 22.
# KeOps repeats a subformula wherever it is used, so that HellingerKantorovich itself, atan2 and all, costs 240.
_LENGTHS = (12, 24)


class Lazy(GibbsKernel):
    """Any cost, by KeOps log-sum-exps over the pairs of tiles of a sheet that b needs; tiles.py says which and why.

    Cost: N times the nodes within reach of one, 400 to 900 on a sphere at epsilon = .75 h^2; O(N^2) where b needs all
    pairs or the cost has no terms. Memory O(N), 600 bytes a node. KeOps compiles up to three formulas (about 2 s each),
    then finds them in its cache; on the CPU it runs on one thread unless tiles are large.
    Distances are float64 whatever the dtype: an angle between float32 unit vectors has lost more than 4 ulp of out.
    Reference: Charlier et al. 2021, Kernel operations on the GPU, with autodiff, without memory overflows.
    """

    def __init__(self, grid: Grid, epsilon: float, cost: Cost | None = None) -> None:
        super().__init__(grid, epsilon, geodesic(grid) if cost is None else cost)
        self._sheet_axes = [k for k, f in enumerate(grid.factors) if isinstance(f, Sheets)]
        other = tuple(f for f in grid.factors if not isinstance(f, Sheets))
        self._sheet = _Sheet(Grid(other).points().double(), self.epsilon, self.cost) if other else None

    def on(self, grid: Grid) -> "Lazy":
        """See GibbsKernel."""
        return Lazy(grid, self.epsilon, self.cost)

    def _log_apply(self, b: Tensor, out: Tensor) -> Tensor:
        if self._sheet is None:
            return out.copy_(b)
        lead = len(self._sheet_axes)
        moved = b.movedim(self._sheet_axes, list(range(lead)))
        rows = moved.reshape(-1, self._sheet.points.shape[0])
        applied = torch.stack([self._sheet.log_apply(row) for row in rows.unbind(0)])
        return out.copy_(applied.reshape(moved.shape).movedim(list(range(lead)), self._sheet_axes))


class _Sheet:
    """The kernel on one sheet, its nodes in the order of its tiles."""

    def __init__(self, points: Tensor, epsilon: float, cost: Cost) -> None:
        terms = cost.terms(points.shape[1])
        self.terms = terms
        if terms:  # rounded to float32 the nodes are off the sphere by 1e-7, where chords are no function of angles
            parts = points.split([term.width for term in terms], dim=1)
            on = [x / x.norm(dim=1, keepdim=True) if t.unit else x for x, t in zip(parts, terms, strict=True)]
            points = torch.cat(on, dim=1)
        self.tiles = Tiles(points, cost)
        self.points = points[self.tiles.order].contiguous()
        self.epsilon, self.cost = epsilon, cost
        diameters = ((2 * self.tiles.levels[0].radii[0]) ** 2).tolist()
        largest = [min(d, 4.0) if t.unit else d for t, d in zip(terms, diameters, strict=True)]
        self.series = [[Series.of(t, n, s) for t, s in zip(terms, largest, strict=True)] for n in _LENGTHS if terms]

    def log_apply(self, b: Tensor) -> Tensor:
        """The kernel on (N,) values; each series does the pairs that it reaches, the cost's own formula the rest."""
        if bool((b == LOG_ZERO).all()):
            return b.clone()
        values = b.double()[self.tiles.order]
        pairs = self.tiles.pairs(values, self.epsilon, _MARGINS[b.dtype])
        total = torch.full_like(values, LOG_ZERO)
        for series in self.series:
            reached = (pairs.chords <= pairs.chords.new_tensor([one.reach for one in series])).all(dim=1)
            total = torch.logaddexp(total, self.reduce(values, pairs.where(reached), series))
            pairs = pairs.where(~reached)
        total = torch.logaddexp(total, self.reduce(values, pairs, None))
        out = torch.empty_like(total)
        out[self.tiles.order] = total
        return out.to(b.dtype)

    def reduce(self, b: Tensor, pairs: Pairs, series: list[Series] | None) -> Tensor:
        """The log-sum-exp over these pairs of tiles, by a series for each term or by the cost's own formula."""
        if pairs.count == 0:
            return torch.full_like(b, LOG_ZERO)
        x, y = lazy_tensor(self.points[:, None, :]), lazy_tensor(self.points[None, :, :])
        b_k = lazy_tensor(b.clamp(min=_KEOPS_ZERO)[None, :, None])
        cost = self.cost(x, y) if series is None else self._by_series(x, y, series)
        ranges = block_sparse(pairs.outputs, pairs.inputs)
        with fitting_threads(pairs.outputs), memory_told(b.device):
            out: Tensor = (b_k - cost / self.epsilon).logsumexp(dim=1, ranges=ranges).reshape(-1)
        return out.masked_fill_(~covered(pairs.outputs, out.shape[0]) | (out < _KEOPS_ZERO / 2), LOG_ZERO)

    def _by_series(self, x: LazyTensor, y: LazyTensor, series: list[Series]) -> LazyTensor:
        total = start = 0
        for term, one in zip(self.terms, series, strict=True):
            part = (slice(None), slice(None), slice(start, start + term.width))
            s = ((x[part] - y[part]) ** 2).sum(-1)
            u = s - one.middle
            a = lazy_tensor(one.coefficients.to(self.points.device)[None, None, :])  # not numbers: each is a formula
            powers = a.elem(len(one.coefficients) - 1)
            for k in range(len(one.coefficients) - 2, -1, -1):
                powers = powers * u + a.elem(k)
            total = total + s * powers * (x.elem(x.shape[-1] - 1) * y.elem(x.shape[-1] - 1) if term.scaled else 1)
            start += term.width
        return total
