"""The choice of a kernel, made once."""

from .costs import Cost, geodesic
from .gibbs import GibbsKernel
from .grid import Grid
from .lazy import Lazy
from .separable import Separable


def gibbs(grid: Grid, epsilon: float, cost: Cost | None = None) -> GibbsKernel:
    """The default kernel: Separable where the cost is a sum over factors, else Lazy.

    Args:
        grid: the nodes.
        epsilon: entropic temperature, in units of the cost.
        cost: ground cost; half the squared geodesic distance by default.
    """
    chosen = geodesic(grid) if cost is None else cost
    if chosen.per_factor(grid) is None:
        return Lazy(grid, epsilon, chosen)
    return Separable(grid, epsilon, chosen)
