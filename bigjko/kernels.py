"""The kernels, under the name users know: `bj.kernels.Separable(grid, epsilon)`."""

from bigjko_kernels import Circulant as Circulant
from bigjko_kernels import Compiled as Compiled
from bigjko_kernels import Cone as Cone
from bigjko_kernels import Dense as Dense
from bigjko_kernels import GibbsKernel as GibbsKernel
from bigjko_kernels import HellingerKantorovich as HellingerKantorovich
from bigjko_kernels import Keops as Keops
from bigjko_kernels import Lazy as Lazy
from bigjko_kernels import Separable as Separable
from bigjko_kernels import SquaredArc as SquaredArc
from bigjko_kernels import SquaredEuclidean as SquaredEuclidean
from bigjko_kernels import Tiled as Tiled
from bigjko_kernels import gibbs as gibbs
from bigjko_kernels import stream as stream
