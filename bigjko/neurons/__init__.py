"""The ways to turn a network into a measure."""

from .base import Neurons as Neurons
from .lifted import Lifted as Lifted
from .projected import Projected as Projected
