"""Geometry and sums over nodes: grids, costs, log-domain Gibbs kernels and network features."""

from .costs import Cost as Cost
from .costs import HellingerKantorovich as HellingerKantorovich
from .costs import PerFactor as PerFactor
from .costs import SquaredArc as SquaredArc
from .costs import SquaredEuclidean as SquaredEuclidean
from .costs import geodesic as geodesic
from .dense import Dense as Dense
from .errors import GridError as GridError
from .errors import KernelError as KernelError
from .factors import Circle as Circle
from .factors import Factor as Factor
from .factors import Line as Line
from .factors import Sheets as Sheets
from .factors import Sphere as Sphere
from .features import Features as Features
from .features import Keops as Keops
from .features import Ridge as Ridge
from .features import Stream as Stream
from .features import Sum as Sum
from .features import Tiled as Tiled
from .gibbs import LOG_ZERO as LOG_ZERO
from .gibbs import GibbsKernel as GibbsKernel
from .grid import Grid as Grid
from .lazy import Lazy as Lazy
from .select import gibbs as gibbs
from .separable import Separable as Separable
