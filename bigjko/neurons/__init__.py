"""The ways to turn a network into a measure."""

from .base import Neurons as Neurons
from .dynamics import Dynamics as Dynamics
from .dynamics import Free as Free
from .dynamics import FrozenOutputs as FrozenOutputs
from .dynamics import UnitDirections as UnitDirections
from .lifted import Lifted as Lifted
from .polar import Polar as Polar
from .polar import PolarCone as PolarCone
from .polar import PolarFlat as PolarFlat
from .projected import Projected as Projected
from .scales import Scales as Scales
from .signed import Signed as Signed
from .split import Pairs as Pairs
from .split import Split as Split
