"""The dense oracle: the only place where an N x N array exists."""

import torch
from torch import Tensor

from .costs import Cost, geodesic
from .errors import KernelError
from .factors import Sheets
from .gibbs import GibbsKernel
from .grid import Grid

_LARGEST = 8192  # 512 MiB in float64


class Dense(GibbsKernel):
    """The kernel written out, in float64: the oracle for the others.

    Cost and memory O(N^2); refuses more than 8192 nodes.
    """

    def __init__(self, grid: Grid, epsilon: float, cost: Cost | None = None) -> None:
        super().__init__(grid, epsilon, geodesic(grid) if cost is None else cost)
        if grid.size > _LARGEST:
            raise KernelError(
                f"received {grid.size:,} nodes for the dense oracle, need at most {_LARGEST:,}: use kernels.gibbs"
            )
        x = grid.points(sheets=False).double()
        log_k = -self.cost(x[:, None], x[None]) / epsilon
        for k, f in enumerate(grid.factors):
            if isinstance(f, Sheets):
                label = grid.along(k, torch.arange(f.size, device=grid.device)).expand(grid.shape).reshape(-1)
                log_k = log_k.masked_fill(label[:, None] != label[None], -torch.inf)
        self.log_kernel = log_k

    def on(self, grid: Grid) -> "Dense":
        """See GibbsKernel."""
        return Dense(grid, self.epsilon, self.cost)

    def _log_apply(self, b: Tensor, out: Tensor) -> Tensor:
        return out.copy_(torch.logsumexp(self.log_kernel + b.reshape(1, -1).double(), dim=1).reshape(b.shape))
