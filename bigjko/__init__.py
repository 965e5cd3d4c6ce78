"""bigjko: the mean-field limit of two-layer ReLU networks on a grid, by entropic JKO steps, held against GD."""

from bigjko_kernels import Circle as Circle
from bigjko_kernels import Grid as Grid
from bigjko_kernels import GridError as GridError
from bigjko_kernels import KernelError as KernelError
from bigjko_kernels import Line as Line
from bigjko_kernels import Sheets as Sheets
from bigjko_kernels import Sphere as Sphere

from . import kernels as kernels
from . import losses as losses
from . import neurons as neurons
from .compare import Comparison as Comparison
from .compare import compare as compare
from .control import Adaptive as Adaptive
from .control import Widening as Widening
from .energy import Potential as Potential
from .errors import BoundaryMassWarning as BoundaryMassWarning
from .errors import MeasureError as MeasureError
from .errors import NarrowMeasureWarning as NarrowMeasureWarning
from .errors import OtherVersionsWarning as OtherVersionsWarning
from .errors import RiskError as RiskError
from .errors import StepError as StepError
from .evolve import evolve as evolve
from .extrapolate import extrapolate as extrapolate
from .flow import Flow as Flow
from .jko import JKO as JKO
from .jko import Debiased as Debiased
from .jko import DualSolver as DualSolver
from .jko import FirstOrder as FirstOrder
from .jko import Plain as Plain
from .jko import ScalingSolver as ScalingSolver
from .jko import SecondOrder as SecondOrder
from .measure import GridMeasure as GridMeasure
from .measure import ParticleMeasure as ParticleMeasure
from .particles import GradientDescent as GradientDescent
from .particles import GradientFlow as GradientFlow
from .particles import ImplicitGradientDescent as ImplicitGradientDescent
from .particles import SlidingFlow as SlidingFlow
from .risk import Risk as Risk
from .status import FlowError as FlowError
from .status import FlowInterrupted as FlowInterrupted
from .status import Status as Status
from .store import Checkpoint as Checkpoint
from .store import StoreError as StoreError

__version__ = "0.1.0"
