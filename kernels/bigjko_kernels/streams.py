"""Sums over directions and data of relu(w . x), by matrix products and by KeOps.

ridge.py has them compiled for the CPU, triton_ridge.py for a GPU.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import GridError
from .keops import LazyTensor, lazy_tensor, memory_told

# Entries of one tile of directions x data: 1 MiB in float64 stays in a CPU's cache (6 times faster at 10^6).
_TILE, _TILE_OFF_CPU = 1 << 17, 1 << 22
_PART, _PART_OFF_CPU = 1 << 14, 1 << 20  # neurons that descend together: what they move by stays in a CPU's cache


@dataclass(frozen=True, eq=False)
class Moved:
    """Neurons after a step of gradient descent.

    Attributes:
        positions: (N, d + 1), the directions and then the second layer.
        outputs: (n,) of the network there, in float64.
        fastest: the largest speed.
    """

    positions: Float[Tensor, "N k"]
    outputs: Float[Tensor, " n"]
    fastest: float


class Stream(ABC):
    """Sums over directions of relu(w . x_j): the only code that sees directions and data together."""

    def __init__(self, directions: Float[Tensor, "N d"], X: Float[Tensor, "n d"]) -> None:
        if directions.shape[1] != X.shape[1]:
            raise GridError(f"received directions in R^{directions.shape[1]} and data in R^{X.shape[1]}, need the same")
        if directions.dtype != X.dtype or directions.device != X.device:
            raise GridError(
                f"received directions in {directions.dtype} on {directions.device} and data in {X.dtype} on "
                f"{X.device}, need the same: convert one with .to()"
            )
        self.directions, self.X = directions, X

    def _tracked(self, *values: Tensor) -> bool:
        return torch.is_grad_enabled() and any(t.requires_grad for t in (*values, self.directions, self.X))

    @abstractmethod
    def outputs(self, weights: Float[Tensor, " N"]) -> Float[Tensor, " n"]:
        """sum_w weights relu(w . x_j), in float64."""

    @abstractmethod
    def potential(self, z: Float[Tensor, " n"]) -> Float[Tensor, " N"]:
        """S = sum_j z_j relu(w . x_j)."""

    @abstractmethod
    def slopes(self, z: Float[Tensor, " n"]) -> Float[Tensor, "N d"]:
        """G = sum_j z_j 1{w . x_j > 0} x_j: then S = w . G."""

    def descend(
        self, a: Float[Tensor, " N"], masses: Float[Tensor, " N"], z: Float[Tensor, " n"], dt: float, decay: float
    ) -> Moved:
        """One step of gradient descent on neurons (w, a), in one pass.

        Args:
            a: second layer.
            masses: of the neurons.
            z: gradient of the loss at their outputs.
            dt: how far they go along their velocity -(a G + 2 decay w, w . G + 2 decay a).
            decay: weight of |w|^2 + a^2.
        """
        N, d = self.directions.shape
        moved = torch.empty(N, d + 1, dtype=a.dtype, device=a.device)
        outputs = torch.zeros(self.X.shape[0], dtype=torch.float64, device=a.device)
        fastest = torch.zeros((), dtype=a.dtype, device=a.device)
        size = _PART if a.device.type == "cpu" else _PART_OFF_CPU
        for start in range(0, N, size):
            part = slice(start, min(N, start + size))
            w, a_i = self.directions[part], a[part, None]
            slopes = type(self)(w, self.X).slopes(z.to(a.dtype))
            theta = torch.cat([w, a_i], dim=1)
            down = torch.cat([a_i * slopes, (w * slopes).sum(1, keepdim=True)], dim=1) + 2 * decay * theta
            new = theta - dt * down
            outputs = outputs + type(self)(new[:, :d], self.X).outputs(masses[part] * new[:, d])
            fastest = torch.maximum(fastest, down.detach().norm(dim=1).max())
            moved[part] = new
        return Moved(moved, outputs, float(fastest))


class Tiled(Stream):
    """Tiles of directions by matrix products, one at a time: of 2^17 entries (2^22 off the CPU), or one direction."""

    def tiles(self) -> Iterator[tuple[slice, Tensor]]:
        """Slices of directions with their pre-activations w . x_j."""
        N, n = self.directions.shape[0], self.X.shape[0]
        rows = max(1, (_TILE if self.X.device.type == "cpu" else _TILE_OFF_CPU) // max(n, 1))
        for start in range(0, N, rows):
            part = slice(start, min(N, start + rows))
            yield part, self.directions[part] @ self.X.T

    def outputs(self, weights: Tensor) -> Tensor:
        """See Stream."""
        total = torch.zeros(self.X.shape[0], dtype=torch.float64, device=self.X.device)
        for part, act in self.tiles():
            total += weights[part].double() @ act.relu_().double()
        return total

    def potential(self, z: Tensor) -> Tensor:
        """See Stream."""
        if self._tracked(z):
            return torch.cat([act.relu_() @ z for _, act in self.tiles()])
        # Filled in place: small results kept among large temporaries cut the heap up, to 68 numbers a direction.
        out = self.directions.new_empty(self.directions.shape[0])
        for part, act in self.tiles():
            torch.mv(act.relu_(), z, out=out[part])
        return out

    def slopes(self, z: Tensor) -> Tensor:
        """See Stream."""
        scaled = (z[:, None] * self.X).T.contiguous()
        # The gate is written over its own tile, and the product has the long side last: 2.6 times faster than
        # (act > 0).to(dtype) @ scaled.T.
        if self._tracked(z):
            return torch.cat([(scaled @ act.gt_(0).T).T for _, act in self.tiles()])
        out = self.directions.new_empty(self.directions.shape)
        for part, act in self.tiles():
            out[part] = (scaled @ act.gt_(0).T).T
        return out


class Keops(Stream):
    """The same sums by KeOps: O(N + n) memory."""

    def _act(self) -> tuple[LazyTensor, LazyTensor]:
        w, x = lazy_tensor(self.directions[:, None].contiguous()), lazy_tensor(self.X[None].contiguous())
        return (w * x).sum(-1), x

    def outputs(self, weights: Tensor) -> Tensor:
        """See Stream."""
        act, _ = self._act()
        scaled = act.relu() * lazy_tensor(weights.to(self.X.dtype)[:, None, None].contiguous())
        with memory_told(self.X.device):
            out: Tensor = scaled.sum(dim=0, dtype_acc="float64").reshape(-1)
        return out.double()

    def potential(self, z: Tensor) -> Tensor:
        """See Stream."""
        act, _ = self._act()
        scaled = act.relu() * lazy_tensor(z[None, :, None].contiguous())
        with memory_told(self.X.device):
            out: Tensor = scaled.sum(dim=1).reshape(-1)
        return out

    def slopes(self, z: Tensor) -> Tensor:
        """See Stream."""
        act, x = self._act()
        # KeOps' step is 1 at 0; relu'(0) = 0 asks for 1 - step(-act).
        gate = 1 - (-act).step()
        scaled = gate * lazy_tensor(z[None, :, None].contiguous()) * x
        with memory_told(self.X.device):
            out: Tensor = scaled.sum(dim=1)
        return out
