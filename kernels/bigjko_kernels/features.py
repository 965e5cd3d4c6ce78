"""The network's outputs as sums over nodes: M, its adjoint, its Gram matrix and its slopes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import GridError
from .passes import Feed, Weighing
from .ridge import Compiled, Network
from .streams import Stream, Tiled
from .sums import rows_at_once


class Features(ABC):
    """M on one node set: (M p)_j = sum_i p_i phi(theta_i; x_j). Values on nodes have the node set's shape."""

    @abstractmethod
    def outputs(self, p: Float[Tensor, "*nodes"]) -> Float[Tensor, " n"]:
        """M p: the network's outputs, in float64."""

    @abstractmethod
    def potential(self, z: Float[Tensor, " n"]) -> Float[Tensor, "*nodes"]:
        """M^T z, in the nodes' dtype."""

    def feed(
        self,
        base: Float[Tensor, "*nodes"],
        scale: float,
        V: Float[Tensor, "*nodes"] | None,
        alpha: float,
        z: Float[Tensor, " n"],
        out: Float[Tensor, "*nodes"],
    ) -> Feed:
        """What writes scale base + alpha (V + M^T z) into out, which is neither base nor V; no V is V = 0.

        All are read when it is made, as often as it is.
        """

        def whole() -> None:
            self._add_potential(z.to(out.dtype), alpha, torch.mul(base, scale, out=out))
            if V is not None:
                out.add_(V, alpha=alpha)

        return Feed(whole)

    def _add_potential(self, z: Tensor, alpha: float, out: Tensor) -> None:
        """Adds alpha M^T z to out."""
        out.add_(self.potential(z), alpha=alpha)

    def weighing(self, log_p: Float[Tensor, "*nodes"], rest: Float[Tensor, "*nodes"]) -> Weighing:
        """M p of log p = log_p + rest, which is written into log_p when it is done; rest is overwritten."""
        return Weighing(lambda: self.outputs(torch.exp(log_p.add_(rest), out=rest)))

    @abstractmethod
    def gram(self, p: Float[Tensor, "*nodes"]) -> Float[Tensor, "n n"]:
        """sum_k p_k grad phi_i . grad phi_j in the way's own metric (the NTK), growth of mass included; float64."""

    @abstractmethod
    def slope2(self, z: Float[Tensor, " n"]) -> Float[Tensor, "*nodes"]:
        """|grad V_z|^2 in the same metric."""

    @property
    @abstractmethod
    def gram_work(self) -> int:
        """Multiplications in one `gram`: what a solver weighs against a kernel application."""


class Ridge(Features):
    """phi = amplitude(theta) relu(direction(theta) . x), its squared slopes alpha |G|^2 + beta S^2.

    With G = sum_j z_j 1{w . x_j > 0} x_j and S = w . G. The nodes are directions times the rest (sheets, a, r): the
    rest is contracted first, so that every sum streams N_w directions and not N nodes: cost O(N + n N_w), gram
    O(N + n^2 N_w), memory one tile.

    Args:
        stream: the directions (N_w, d) with the data.
        shape: shape of values on the nodes.
        direction_axes: axes of that shape which make up the directions, in order; the others are the rest.
        amplitude, alpha, beta: broadcast over the shape, constant along the direction axes.
    """

    def __init__(
        self,
        stream: Stream,
        shape: Sequence[int],
        direction_axes: Sequence[int],
        amplitude: Tensor,
        alpha: Tensor,
        beta: Tensor,
    ) -> None:
        self.stream, self.shape = stream, tuple(shape)
        self.direction_axes = tuple(direction_axes)
        self.rest_axes = tuple(k for k in range(len(self.shape)) if k not in self.direction_axes)
        self.amplitude, self.alpha, self.beta = amplitude, alpha, beta
        self._compiled: tuple[Compiled, Network, Network, Network] | None = None
        if isinstance(stream, Compiled):
            on, moved, grown = (Network.of(self.shape, self.direction_axes, x) for x in (amplitude, alpha, beta))
            if on is not None and moved is not None and grown is not None:
                self._compiled = stream, on, moved, grown

    def _contracted(self, p: Tensor, *factors: Tensor) -> tuple[Tensor, ...]:
        """sum over the rest of p * factor, one value a direction, in float64; for each factor."""
        if not self.rest_axes:
            return tuple((p * factor).reshape(-1) for factor in factors)
        if self.rest_axes == (len(self.shape) - 1,):  # innermost: one matrix product, no temporary of size N
            rows = p.reshape(-1, self.shape[-1])
            columns = torch.stack([f.double().reshape(-1).expand(self.shape[-1]) for f in factors])
            found = [columns @ part.double().T for part in rows.split(rows_at_once(rows))]  # twice as fast as the other
            return torch.cat(found, dim=1).unbind(0)  # way around
        return tuple((p * f).sum(self.rest_axes, dtype=torch.float64).reshape(-1) for f in factors)

    def _spread(self, values: Tensor) -> Tensor:
        """Values per direction, viewed so that they broadcast over the nodes."""
        return values.reshape([s if k in self.direction_axes else 1 for k, s in enumerate(self.shape)])

    def outputs(self, p: Float[Tensor, "*nodes"]) -> Float[Tensor, " n"]:
        """See Features."""
        (weights,) = self._contracted(p, self.amplitude)
        return self.stream.outputs(weights)

    def potential(self, z: Float[Tensor, " n"]) -> Float[Tensor, "*nodes"]:
        """See Features."""
        return (self.amplitude * self._spread(self.stream.potential(z))).expand(self.shape)

    def feed(
        self,
        base: Float[Tensor, "*nodes"],
        scale: float,
        V: Float[Tensor, "*nodes"] | None,
        alpha: float,
        z: Float[Tensor, " n"],
        out: Float[Tensor, "*nodes"],
    ) -> Feed:
        """See Features."""
        found: Feed | None = None
        if self._compiled is not None:
            stream, on, *_ = self._compiled
            found = stream.blend(on, base, scale, V, alpha, z, out)
        return super().feed(base, scale, V, alpha, z, out) if found is None else found

    def _add_potential(self, z: Tensor, alpha: float, out: Tensor) -> None:
        """Without an array for M^T z."""
        out.addcmul_(self.amplitude, self._spread(self.stream.potential(z)), value=alpha)

    def weighing(self, log_p: Float[Tensor, "*nodes"], rest: Float[Tensor, "*nodes"]) -> Weighing:
        """See Features."""
        found: Weighing | None = None
        if self._compiled is not None:
            stream, on, *_ = self._compiled
            found = stream.weighing(on, log_p, rest)
        return super().weighing(log_p, rest) if found is None else found

    def gram(self, p: Float[Tensor, "*nodes"]) -> Float[Tensor, "n n"]:
        """See Features."""
        if self._compiled is not None:
            stream, _, alpha, beta = self._compiled
            if (found := stream.gram(alpha, beta, p)) is not None:
                return found
        moved, grown = self._contracted(p, self.alpha, self.beta)
        X = self.stream.X
        gates = torch.zeros(X.shape[0], X.shape[0], dtype=torch.float64, device=X.device)
        heights = torch.zeros_like(gates)
        for part, act in Tiled(self.stream.directions, X).tiles():
            gate = (act > 0).double()
            gates += gate.T @ (gate * moved[part].double()[:, None])
            height = act.relu_().double()
            heights += height.T @ (height * grown[part].double()[:, None])
        double = X.double()
        return gates * (double @ double.T) + heights

    @property
    def gram_work(self) -> int:
        """2 n^2 N_w."""
        return 2 * self.stream.X.shape[0] ** 2 * self.stream.directions.shape[0]

    def slope2(self, z: Float[Tensor, " n"]) -> Float[Tensor, "*nodes"]:
        """See Features."""
        slopes = self.stream.slopes(z)
        height = (slopes * self.stream.directions).sum(1)
        total = self.alpha * self._spread((slopes**2).sum(1)) + self.beta * self._spread(height**2)
        return total.expand(self.shape)


class Sum(Features):
    """A sum of features over the same nodes, whose slopes are orthogonal (they live on different factors)."""

    def __init__(self, parts: Sequence[Features]) -> None:
        if not parts:
            raise GridError("received no features to add, need one or more")
        self.parts = tuple(parts)

    def outputs(self, p: Float[Tensor, "*nodes"]) -> Float[Tensor, " n"]:
        """See Features."""
        return torch.stack([part.outputs(p) for part in self.parts]).sum(0)

    def potential(self, z: Float[Tensor, " n"]) -> Float[Tensor, "*nodes"]:
        """See Features."""
        first, *rest = [part.potential(z) for part in self.parts]
        for other in rest:
            first = first + other
        return first

    def gram(self, p: Float[Tensor, "*nodes"]) -> Float[Tensor, "n n"]:
        """See Features."""
        return torch.stack([part.gram(p) for part in self.parts]).sum(0)

    @property
    def gram_work(self) -> int:
        """The parts' together."""
        return sum(part.gram_work for part in self.parts)

    def slope2(self, z: Float[Tensor, " n"]) -> Float[Tensor, "*nodes"]:
        """See Features."""
        first, *rest = [part.slope2(z) for part in self.parts]
        for other in rest:
            first = first + other
        return first
