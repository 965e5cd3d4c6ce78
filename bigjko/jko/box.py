"""The dual box: g* is finite on it alone, so that no dual point may leave it.

A steep g* (Logistic) has infinite slope on its walls: no answer lies there, and steps stop short of them. One that is
not (Huber) has answers on its walls, one coordinate for every outlier that pulls with all its force.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from bigjko_kernels.ascent import newton

from ..losses import Loss


class DualBox:
    """The dual box of a loss and its labels (n,), and what is done within it.

    Attributes:
        bounded: whether it has a wall.
        quadratic: the loss as one, if it is.
        force: max |grad g(0)|, which residuals are relative to, or to max |z| if that is larger.
    """

    def __init__(self, loss: Loss, y: Float[Tensor, " n"]) -> None:
        self.loss, self.y = loss, y
        self.low, self.high = loss.dual_box(y)
        self.bounded = bool((torch.isfinite(self.low) | torch.isfinite(self.high)).any())
        self.quadratic = loss.quadratic(y)
        self.force = float(loss.gradient(torch.zeros_like(y), y).abs().max()) if y.numel() else 0.0

    def inside(self, z: Float[Tensor, " n"], start: Float[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """z pulled into the box; where g* is steep the open one, and from a start at most 99% of the way to a wall."""
        if not self.bounded:
            return z
        low, high = self.low, self.high
        if self.loss.steep:
            width = (high - low).masked_fill(torch.isinf(high - low), 0.0)
            if start is not None:
                low, high = start - 0.99 * (start - low), start + 0.99 * (high - start)
                low = torch.maximum(low, self.low + _ROUNDING * width)
                high = torch.minimum(high, self.high - _ROUNDING * width)
            else:
                low, high = low + _WALL * width, high - _WALL * width
        return torch.minimum(torch.maximum(z, low), high)

    def newton_move(
        self,
        B: Float[Tensor, "n n"],
        diagonal: Float[Tensor, " n"],
        gradient: Float[Tensor, " n"],
        z: Float[Tensor, " n"],
    ) -> Float[Tensor, " n"]:
        """argmax over v of gradient.v - v.H v/2, with z + v in the closed box where the answer may lie on its walls.

        H is B + diag(diagonal).

        A Newton move that is cut off at the walls need not lead upwards; the maximum within them does. By the
        primal-dual active set method (Hintermueller, Ito and Kunisch 2002), a few solves; should it cycle, or H be
        singular, a move along the gradient.
        """
        if self.loss.steep or not self.bounded:
            found = newton(B, diagonal, gradient)
            return gradient / (B + torch.diag(diagonal)).abs().sum(1).max() if found is None else found
        H = B + torch.diag(diagonal)
        low, high, n = self.low - z, self.high - z, len(z)
        move: Tensor
        below = above = torch.zeros(n, dtype=torch.bool, device=z.device)
        for _ in range(_TURNS + n):
            fixed = below | above
            rows = torch.where(fixed[:, None], torch.eye(n, dtype=H.dtype, device=H.device), H)
            sides = torch.where(below, low, torch.where(above, high, gradient))
            move, singular = torch.linalg.solve_ex(rows, sides)
            if bool(singular):
                break
            push = gradient - H @ move  # of the walls: outwards where a coordinate leans on one
            new = (move < low) | (below & (push < 0)), (move > high) | (above & (push > 0))
            if torch.equal(new[0], below) and torch.equal(new[1], above):
                return move
            below, above = new
        return torch.minimum(torch.maximum(gradient / H.abs().sum(1).max(), low), high)

    def free(self, gradient: Float[Tensor, " n"], z: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The gradient without what points out of the box at its walls: 0 at the answer."""
        return gradient.masked_fill(((z >= self.high) & (gradient > 0)) | ((z <= self.low) & (gradient < 0)), 0.0)

    def residual(self, z: Float[Tensor, " n"], outputs: Float[Tensor, " n"]) -> float:
        """max |z - grad g(u)| over the larger of max |z| and max |grad g(0)|; 0 without data."""
        if self.y.numel() == 0:
            return 0.0
        return largest(z - self.loss.gradient(outputs, self.y)) / max(largest(z), self.force, 1e-300)


def largest(x: Float[Tensor, " n"]) -> float:
    """max |x|; NaN where one is."""
    return float(torch.linalg.vector_norm(x, math.inf))


_ROUNDING = 1e-14  # share of the dual box that no step may enter: there a steep g* is infinite in floating point
_WALL = 1e-6  # share of the dual box kept free of the start: a steep g* is infinite in slope on the wall
_TURNS = 20
