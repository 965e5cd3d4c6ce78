"""What every stepper is: frozen parameters, a state of tensors and numbers, and one step down an energy."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from jaxtyping import Float
from torch import Tensor

from .energy import Energy
from .measure import GridMeasure, ParticleMeasure
from .neurons.base import Neurons
from .risk import Risk
from .status import Status

M = TypeVar("M", GridMeasure, ParticleMeasure)
S = TypeVar("S")


@dataclass(frozen=True, eq=False)
class Step(Generic[M, S]):
    """One step taken.

    Attributes:
        measure: where it led.
        state: to hand to the next step.
        dt: the time it took, at most what was asked for.
        outputs: (n,) outputs of the network there, float64.
        risk: F there.
        stats: numbers about the step; every step of a stepper has the same names.
        status: ok, or why the step cannot be trusted.
    """

    measure: M
    state: S
    dt: float
    outputs: Float[Tensor, " n"]
    risk: Float[Tensor, ""]
    stats: dict[str, float] = field(default_factory=dict)
    status: Status = Status.ok


class Stepper(ABC, Generic[M, S]):
    """A way down an energy. Pure: all that changes is in the measure and the state.

    Attributes:
        name: what tables and files call it.
        energy: what it goes down.
        tau: its time step, in physical time.
    """

    name: str
    energy: Energy
    tau: float

    @abstractmethod
    def init(self, measure: M) -> S:
        """The state before the first step; refuses a measure the stepper cannot take."""

    @abstractmethod
    def step(self, measure: M, state: S, dt: float) -> Step[M, S]:
        """One step of physical time dt or less."""

    @property
    def neurons(self) -> Neurons | None:
        """The way to use a measure, where the energy is a network's risk."""
        return self.energy.neurons if isinstance(self.energy, Risk) else None
