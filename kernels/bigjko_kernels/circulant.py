"""The kernel on a circle times a line whose cost is joint, as on a cone: matrix products that all angles share.

Nodes lie in tiles of 8 angles x 8 places on the line; R is a band of 8 places, A a run of 8 angles. A rotation leaves
the cost alone, so the kernel between (R, A) and (R', A + k) depends on R, R' and k only, and one product does a band:

    out_i = s_I + log sum_J w_IJ sum_{k in J} exp(-(c_ik - c_IJ)/eps) exp(b_k - m_J),   w_IJ = exp(m_J - c_IJ/eps - s_I)

with m_J the largest b in J, c_IJ the smallest cost between the tiles and s_I the largest m_J - c_IJ/eps. Only tiles
with c_IJ/eps below a reach enter. Nothing is dropped in silence: max_J (m_J - c_IJ/eps) + log N bounds what all others
could add, and an output which that bound reaches, or whose sum underflowed, is computed again by a true log-sum-exp.
Where such outputs of a band are many its reach grows.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .costs import Cost
from .errors import KernelError
from .factors import Circle, Line, Sheets
from .gibbs import LOG_ZERO, GibbsKernel
from .grid import Grid

_T = 8  # nodes on a tile's side
_MARGIN = 40.0  # exp(-40) = 4e-18: what is left out is below half an ulp
_REACH = 60.0  # margin, log N, and room for a drift of a node or two
_WIDER = 1.5
_ENTRIES = 1 << 22  # of a band's table, 32 MiB: its reach grows no further
_REPAIRS = 1e-3  # share of outputs that is cheaper mended than spared by a longer reach
_TINY = 1e-280  # a sum below it may have lost terms to underflow
_CHUNK = 1 << 21  # elements of a temporary


@dataclass(frozen=True)
class _Table:
    """What one band's product takes; replaced as a whole, since threads may share a kernel.

    Attributes:
        reach: tiles with c_IJ/eps up to it are there.
        bands, runs: R' and k of each.
        kernel: (tile, angle in, place in) x (angle out, place out), relative to the tile's c_IJ.
    """

    reach: float
    bands: Tensor
    runs: Tensor
    kernel: Tensor


class Circulant(GibbsKernel):
    """A cost of chords on a uniform circle times a line, with or without sheets: joint, exact for any input.

    Cost: 2 x 64 multiplications a node and pair of tiles within reach, 25 to 50 pairs at epsilon = .75 h^2; one exp a
    node. Memory: tables of 32 KiB for every pair of tiles that a band meets, 20 to 100 MB, and O(N).
    Conditions: float64, the angles a multiple of 8.
    """

    def __init__(self, grid: Grid, epsilon: float, cost: Cost) -> None:
        super().__init__(grid, epsilon, cost)
        if not self.takes(grid, cost):
            raise KernelError(
                f"received {cost!r} on {grid!r}, need a joint cost of chords on a uniform circle of 8 k nodes times a "
                "line in float64: use kernels.Lazy"
            )
        self._sheet_axes = [k for k, f in enumerate(grid.factors) if isinstance(f, Sheets)]
        circle, line = (f for f in grid.factors if not isinstance(f, Sheets))
        self.n, self.m = circle.size, line.size
        self.runs, self.bands = self.n // _T, -(-self.m // _T)
        place = torch.arange(self.bands * _T, device=grid.device).clamp(max=self.m - 1)
        self._circle, self._line = circle.nodes, line.nodes[place]
        around = torch.arange(self.runs, device=grid.device)
        self._turned = (around[:, None] + around) % self.runs  # run A + k
        self._near = torch.stack([self._nearest(band) for band in range(self.bands)])
        self._tables = [self._table(band, _REACH) for band in range(self.bands)]

    @property
    def reach(self) -> list[float]:
        """The largest c/eps between tiles that enters, band by band."""
        return [table.reach for table in self._tables]

    @staticmethod
    def takes(grid: Grid, cost: Cost) -> bool:
        """Whether the grid and the cost are such."""
        factors = [f for f in grid.factors if not isinstance(f, Sheets)]
        if [type(f) for f in factors] != [Circle, Line] or grid.dtype != torch.float64 or cost.per_factor(grid):
            return False
        n = factors[0].size
        even = math.isclose(factors[0].spacing * n, 2 * math.pi, rel_tol=1e-12)
        return even and n % _T == 0 and bool(cost.terms(3))

    def on(self, grid: Grid) -> "Circulant":
        """See GibbsKernel."""
        return Circulant(grid, self.epsilon, self.cost)

    def _costs(self, band: int, other: int) -> Tensor:
        """c/eps between a band's 8 places at angle 0 and the other's at all: (8, 8, n)."""
        own, others = (self._line[k * _T : (k + 1) * _T] for k in (band, other))
        x = torch.cat([self._circle[0].expand(_T, 1, 1, 2), own[:, None, None]], dim=-1)
        y = torch.cat([self._circle.expand(_T, self.n, 2), others[:, None].expand(_T, self.n, 1)], dim=-1)
        costs: Tensor = self.cost(x, y[None]) / self.epsilon
        return costs

    def _nearest(self, band: int) -> Tensor:
        """The smallest c/eps between tiles, per band and run: (bands, runs)."""
        each = [self._costs(band, other).amin(dim=(0, 1)) for other in range(self.bands)]
        least = torch.stack(each).reshape(self.bands, self.runs, _T)
        # Runs k apart meet at angles 8 k - 7 to 8 k + 7: those of run k, and of run k - 1 all but its first.
        return torch.minimum(least.amin(2), least[:, :, 1:].amin(2).roll(1, dims=1))

    def _table(self, band: int, reach: float) -> "_Table":
        near = self._near[band]
        bands, runs = (near <= reach).nonzero(as_tuple=True)
        kernel = near.new_empty(len(bands), _T, _T, _T, _T)
        node = torch.arange(_T, device=near.device)
        for other in bands.unique().tolist():
            here = bands == other
            angle = (_T * runs[here][:, None, None] + node[:, None] - node) % self.n  # (tile, angle in, angle out)
            costs = self._costs(band, other)[:, :, angle]  # (place out, place in, and those)
            kernel[here] = costs.sub_(near[other, runs[here]][:, None, None]).neg_().exp_().permute(2, 3, 1, 4, 0)
        return _Table(reach, bands, runs, kernel.reshape(-1, _T * _T))

    def _log_apply(self, b: Tensor, out: Tensor) -> Tensor:
        lead = list(range(len(self._sheet_axes)))
        moved = b.movedim(self._sheet_axes, lead)
        done = self._sheets(moved.reshape(-1, self.n, self.m))
        return out.copy_(done.reshape(moved.shape).movedim(lead, self._sheet_axes))

    def _sheets(self, b: Tensor) -> Tensor:
        """The sums on (sheets, n, m) values."""
        sheets = b.shape[0]
        padded = torch.nn.functional.pad(b, (0, self.bands * _T - self.m), value=LOG_ZERO)
        tiles = padded.reshape(sheets, self.runs, _T, self.bands, _T).transpose(2, 3).flatten(3)
        top = tiles.amax(dim=3)  # m_J: (sheets, runs, bands)
        scaled = (tiles - top.masked_fill(top == LOG_ZERO, 0.0)[..., None]).exp()
        turned = top[:, self._turned]  # of run A + k: (sheets, runs, runs, bands)
        out, wrong = torch.empty_like(tiles), torch.empty_like(tiles, dtype=torch.bool)
        for band in range(self.bands):
            while True:
                out[:, :, band], wrong[:, :, band] = self._product(band, scaled, turned)
                few = int(wrong[:, :, band].sum()) <= _REPAIRS * wrong[:, :, band].numel()
                if few or not self._widen(band):
                    break
        shape, whole = (sheets, self.runs, self.bands, _T, _T), (sheets, self.n, self.bands * _T)
        out, wrong = (x.reshape(shape).transpose(2, 3).reshape(whole)[:, :, : self.m] for x in (out, wrong))
        if bool(wrong.any()):
            self._repair(out, b, wrong)
        return out

    def _product(self, band: int, scaled: Tensor, turned: Tensor) -> tuple[Tensor, Tensor]:
        """A band's outputs (sheets, runs, 64), and which of them are not to be trusted."""
        table, near = self._tables[band], self._near[band]
        bands, runs = table.bands, table.runs
        reached = turned[:, :, runs, bands] - near[bands, runs]  # m_J - c_IJ/eps
        shift = reached.amax(dim=2)[..., None]  # s_I
        finite = shift.masked_fill(shift == LOG_ZERO, 0.0)
        weights, turns = (reached - finite).exp(), self._turned[:, runs]
        sums = torch.empty_like(scaled[:, :, 0])
        for few in torch.arange(self.runs, device=sums.device).split(
            max(1, _CHUNK // (sums[:, 0].numel() * len(runs)))
        ):
            terms = scaled[:, turns[few], bands].mul_(weights[:, few, :, None])  # (sheets, few, tiles, 64)
            sums[:, few] = (terms.flatten(0, 1).flatten(1) @ table.kernel).reshape(-1, len(few), _T * _T)
        out = sums.log() + finite
        outside = near.masked_fill(near <= table.reach, math.inf).T
        beyond = (turned - outside).amax(dim=(2, 3))[..., None] + (_MARGIN + math.log(self.n * self.m))
        return out, (sums < _TINY) & (shift != LOG_ZERO) | (out < beyond) & (beyond != LOG_ZERO)

    def _widen(self, band: int) -> bool:
        """A longer reach, if there is more to be reached and room for it."""
        table = self._tables[band]
        room = table.kernel.numel() * _WIDER**2 <= _ENTRIES
        if not room or bool((self._near[band] <= table.reach).all()):
            return False
        self._tables[band] = self._table(band, table.reach * _WIDER)
        return True

    def _repair(self, out: Tensor, b: Tensor, wrong: Tensor) -> None:
        """A true log-sum-exp over the whole sheet for the outputs that need one."""
        where = wrong.nonzero()
        y = torch.cat(
            [self._circle[:, None].expand(-1, self.m, -1), self._line[None, : self.m].expand(self.n, -1, -1)], 2
        )
        for few in where.split(max(1, _CHUNK // (self.n * self.m))):
            sheet, angle, place = few.unbind(1)
            x = y[angle, place][:, None, None]
            out[sheet, angle, place] = torch.logsumexp(
                (b[sheet] - self.cost(x, y[None]) / self.epsilon).flatten(1), dim=1
            )
