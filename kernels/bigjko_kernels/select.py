"""The choice of a kernel and of a stream, made once."""

import functools
import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from .circulant import Circulant
from .costs import Cost, geodesic
from .dense import Dense
from .factors import Sheets
from .gibbs import GibbsKernel
from .grid import Grid
from .lazy import Lazy
from .ridge import Compiled
from .separable import Separable
from .streams import Stream, Tiled
from .trial import trusted

if TYPE_CHECKING:
    from .triton_ridge import TritonStream

_FEW = 1024  # nodes: all pairs take 2 to 20 ms on the CPU, Lazy's search 20 to 60, whatever it finds
_HIGH = 128  # from this dimension on float32 gains less than a tenth over matrix products; float64 gains up to 784


def gibbs(grid: Grid, epsilon: float, cost: Cost | None = None) -> GibbsKernel:
    """The default kernel: Separable where the cost is a sum over factors, Circulant where angles are alike, else Lazy.

    On sheets of few nodes Dense stands in for Lazy, whose search for the pairs that matter would cost more than all.

    Args:
        grid: the nodes.
        epsilon: entropic temperature, in units of the cost.
        cost: ground cost; half the squared geodesic distance by default.
    """
    chosen = geodesic(grid) if cost is None else cost
    if chosen.per_factor(grid) is not None:
        return Separable(grid, epsilon, chosen)
    if Circulant.takes(grid, chosen):
        return Circulant(grid, epsilon, chosen)
    few = math.prod(f.size for f in grid.factors if not isinstance(f, Sheets)) <= _FEW
    return (Dense if few else Lazy)(grid, epsilon, chosen)


def stream(directions: Float[Tensor, "N d"], X: Float[Tensor, "n d"]) -> Stream:
    """The default sums: in low dimension Compiled on the CPU, TritonStream on a GPU, where they can be; else Tiled."""
    if directions.shape[1] < _HIGH and Compiled.takes(directions):
        return Compiled(directions, X)
    by_triton = _by_triton(directions.device)
    if by_triton is not None and by_triton.takes(directions):
        return by_triton(directions, X)
    return Tiled(directions, X)


@functools.cache
def _by_triton(device: torch.device) -> "type[TritonStream] | None":
    """TritonStream if it works on a device, which is tried on a small step; torch for GPUs brings Triton on Linux."""
    if device.type != "cuda":
        return None

    def trial() -> "tuple[type[TritonStream], float]":
        from .triton_ridge import TritonStream

        theta = torch.linspace(-1, 1, 120, dtype=torch.float64, device=device).sin().view(40, 3)
        w, a, X, z = theta[:, :2], theta[:, 2], theta[:7, 1:], theta[:7, 0]
        ours, theirs = (kind(w, X).descend(a, a**2, z, 0.1, 0.1) for kind in (TritonStream, Tiled))
        gaps = ours.positions - theirs.positions, ours.outputs - theirs.outputs
        return TritonStream, max(float(gap.abs().max()) for gap in gaps)

    return trusted(trial, device)
