"""The choice of a kernel and of a stream, made once."""

import math

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
    """The default sums: Compiled on the CPU in low dimension, where it can be built, else Tiled."""
    low = directions.shape[1] < _HIGH and Compiled.takes(directions)
    return (Compiled if low else Tiled)(directions, X)
