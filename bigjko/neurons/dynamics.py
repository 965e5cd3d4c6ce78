"""How a neuron moves: which of its coordinates gradient descent changes, and on what surface they stay."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from bigjko_kernels import Moved, Stream


class Dynamics(ABC):
    """What a neuron (w, a) does with the slope of the potential; final classes Free, FrozenOutputs, UnitDirections.

    With G = sum_j z_j 1{w . x_j > 0} x_j the gradient of V = a relu(w . x_j) z_j summed is (a G, w . G).
    """

    @abstractmethod
    def velocity(
        self, w: Float[Tensor, "m d"], a: Float[Tensor, " m"], slopes: Float[Tensor, "m d"], decay: float
    ) -> Float[Tensor, "m k"]:
        """(w', a') of every neuron, k = d + 1.

        Args:
            w, a: the neurons.
            slopes: G.
            decay: beta, the weight of |w|^2 + a^2.
        """

    @abstractmethod
    def squares(self, a: Float[Tensor, " m"]) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        """alpha and beta of |(w', a')|^2 = alpha |G|^2 + beta (w . G)^2 without weight decay: (m,), or one for all."""

    def settle(self, positions: Float[Tensor, "m k"]) -> Float[Tensor, "m k"]:
        """Positions after a step along the velocity, back on the surface that they may not leave."""
        return positions

    def descend(
        self,
        stream: Stream,
        a: Float[Tensor, " m"],
        masses: Float[Tensor, " m"],
        z: Float[Tensor, " n"],
        dt: float,
        decay: float,
    ) -> Moved:
        """One explicit step of length dt from the neurons (stream.directions, a), and the outputs there."""
        w = stream.directions
        velocity = self.velocity(w, a, stream.slopes(z.to(a.dtype)), decay)
        new = self.settle(torch.cat([w, a[:, None]], dim=1) + dt * velocity)
        outputs = type(stream)(new[:, :-1].contiguous(), stream.X).outputs(masses * new[:, -1])
        return Moved(new, outputs, float(velocity.norm(dim=1).max()))

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Free(Dynamics):
    """Both layers move: w' = -(a G + 2 beta w), a' = -(w . G + 2 beta a). Gradient descent as everybody knows it."""

    def squares(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """See Dynamics."""
        return a**2, a.new_ones(())

    def velocity(self, w: Tensor, a: Tensor, slopes: Tensor, decay: float) -> Tensor:
        """See Dynamics."""
        down = torch.cat([a[:, None] * slopes, (w * slopes).sum(1, keepdim=True)], dim=1)
        if decay:
            down = down + 2 * decay * torch.cat([w, a[:, None]], dim=1)
        return -down

    def descend(self, stream: Stream, a: Tensor, masses: Tensor, z: Tensor, dt: float, decay: float) -> Moved:
        """In one pass over the neurons: see Stream.descend."""
        return stream.descend(a, masses, z, dt, decay)


class FrozenOutputs(Dynamics):
    """The second layer stays: w' = -(a G + 2 beta w), a' = 0."""

    def squares(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """See Dynamics."""
        return a**2, a.new_zeros(())

    def velocity(self, w: Tensor, a: Tensor, slopes: Tensor, decay: float) -> Tensor:
        """See Dynamics."""
        return torch.cat([-(a[:, None] * slopes + 2 * decay * w), torch.zeros_like(a)[:, None]], dim=1)


class UnitDirections(Dynamics):
    """Directions of norm 1 and free second layers, in the flat product metric of S^{d-1} x R.

    w' = -a (G - (w . G) w), a' = -(w . G + 2 beta sign a), and w back to norm 1 after a step: Riemannian gradient
    descent of (1/m) sum_i a_i relu(w_i . x) with |w_i| = 1. The weight decay is that of the balanced neuron of the
    same output, 2 beta |a|.
    """

    def squares(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """See Dynamics."""
        return a**2, 1 - a**2

    def velocity(self, w: Tensor, a: Tensor, slopes: Tensor, decay: float) -> Tensor:
        """See Dynamics."""
        height = (w * slopes).sum(1, keepdim=True)
        turn = a[:, None] * (slopes - height * w)
        return -torch.cat([turn, height + 2 * decay * a.sign()[:, None]], dim=1)

    def settle(self, positions: Tensor) -> Tensor:
        """Directions of norm 1."""
        w, a = positions[:, :-1], positions[:, -1:]
        return torch.cat([w / w.norm(dim=1, keepdim=True), a], dim=1)
