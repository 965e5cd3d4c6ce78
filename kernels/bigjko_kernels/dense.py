"""The dense oracle: the only place where an N x N array exists, for the N nodes of a sheet."""

import math

import torch
from torch import Tensor

from .costs import Cost, geodesic
from .errors import KernelError
from .factors import Sheets
from .gibbs import GibbsKernel
from .grid import Grid

_LARGEST = 8192  # 512 MiB in float64


class Dense(GibbsKernel):
    """The kernel of a sheet written out, in float64: the oracle for the others, and the fastest on few nodes.

    Cost and memory O(N^2), N the nodes of a sheet; refuses more than 8192 of them.
    """

    def __init__(self, grid: Grid, epsilon: float, cost: Cost | None = None) -> None:
        super().__init__(grid, epsilon, geodesic(grid) if cost is None else cost)
        self._sheets = [k for k, f in enumerate(grid.factors) if isinstance(f, Sheets)]
        other = tuple(f for f in grid.factors if not isinstance(f, Sheets))
        size = math.prod(f.size for f in other)
        if size > _LARGEST:
            raise KernelError(
                f"received {size:,} nodes a sheet for the dense oracle, need at most {_LARGEST:,}: use kernels.gibbs"
            )
        self.log_kernel = torch.zeros(1, 1, dtype=torch.float64, device=grid.device)
        if other:
            x = Grid(other).points().double()
            self.log_kernel = -self.cost(x[:, None], x[None]) / epsilon

    def on(self, grid: Grid) -> "Dense":
        """See GibbsKernel."""
        return Dense(grid, self.epsilon, self.cost)

    def _log_apply(self, b: Tensor, out: Tensor) -> Tensor:
        lead = list(range(len(self._sheets)))
        moved = b.movedim(self._sheets, lead)
        rows = moved.reshape(-1, self.log_kernel.shape[0]).double()
        applied = torch.stack([torch.logsumexp(self.log_kernel + row, dim=1) for row in rows.unbind(0)])
        return out.copy_(applied.reshape(moved.shape).movedim(lead, self._sheets))
