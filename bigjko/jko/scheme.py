"""Time discretisations: which energy a step minimises."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ..energy import Composite


class Scheme(ABC):
    """Turns the energy into the one that a step from q over tau minimises."""

    @abstractmethod
    def model(self, energy: Composite, q: Tensor, tau: float) -> Composite:
        """The energy of the step from the masses q."""


@dataclass(frozen=True)
class FirstOrder(Scheme):
    """The step of Jordan, Kinderlehrer and Otto: the energy itself. Error O(tau), and F never rises."""

    def model(self, energy: Composite, q: Tensor, tau: float) -> Composite:
        """The energy itself."""
        return energy
