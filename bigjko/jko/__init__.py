"""Entropic JKO steps on a grid."""

from .dual import DualSolver as DualSolver
from .entropy import Debiased as Debiased
from .entropy import Entropy as Entropy
from .entropy import Plain as Plain
from .entropy import epsilon_of as epsilon_of
from .problem import StepSolver as StepSolver
from .scaling import ScalingSolver as ScalingSolver
from .scheme import FirstOrder as FirstOrder
from .scheme import Scheme as Scheme
from .scheme import SecondOrder as SecondOrder
from .size import step_memory as step_memory
from .stepper import JKO as JKO
