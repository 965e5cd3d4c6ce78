"""Time discretisations: which energy a step minimises."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..energy import Composite
from ..losses import Averaged


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


@dataclass(frozen=True)
class SecondOrder(Scheme):
    """The midpoint rule as one convex step: its first variation is the mean of both ends', plus (tau/4) |grad V_q|^2.

        (1/2) g(M p) + (1/2) <grad g(M q), M p> + <V + (tau/4) |grad (V + M^T grad g(M q))|^2, p>

    Error O(tau^2) while |grad V_q| is smooth where mass moves; the cost is FirstOrder's, one M and one |grad V|^2 more.
    Where mass crosses kinks of relu the slope jumps, and so does mass: `extrapolate` two first-order flows instead.
    F may rise. mathematics.md 3.
    """

    def model(self, energy: Composite, q: Tensor, tau: float) -> Composite:
        """The energy with the mean gradient."""
        z = energy.loss.gradient(energy.outputs(q), energy.targets)
        potential = torch.add(energy.potential, energy.slope2(z), alpha=tau / 4)
        return replace(energy, loss=Averaged(energy.loss, z), potential=potential)
