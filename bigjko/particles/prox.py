"""Proximal points of neurons: argmin a S(w) + beta (|w|^2 + a^2) + |theta - theta_0|^2 / (2 tau), kinks included.

S(w) = sum_j z_j relu(w . x_j). With shares s_j in [0, 1] (1 where w . x_j > 0, 0 where it is < 0, between on a kink)
and G = sum_j s_j z_j x_j, a stationary point has w = w0 - t a G, a = a0 - t w . G, where t = tau / (1 + 2 tau beta) and
(w0, a0) = theta_0 / (1 + 2 tau beta). What is asked for are the shares.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Placed:
    """Neurons at their proximal points.

    Attributes:
        positions: (m, d + 1).
        pattern: (m, n) shares s.
        heights: (m, n) relu(w . x_j), exactly 0 on a kink that holds the neuron.
        held: neurons on a kink, with a share between 0 and 1.
        slopes: (m, d) G without the kinks that hold.
        bend: t max|G|: below 1 the problem is convex between kinks.
    """

    positions: Float[Tensor, "m k"]
    pattern: Float[Tensor, "m n"]
    heights: Float[Tensor, "m n"]
    held: Bool[Tensor, " m"]
    slopes: Float[Tensor, "m d"]
    bend: float

    def outputs(self, masses: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
        """M theta+."""
        return (masses * self.positions[:, -1]) @ self.heights


class NeuronProx:
    """The proximal map of neurons from one start, for any z.

    Args:
        X: (n, d) data, float64 like the rest.
        start: (m, d + 1) neurons.
        tau: the time step.
        decay: beta.
        free: whether the second layer moves, too.
    """

    def __init__(
        self, X: Float[Tensor, "n d"], start: Float[Tensor, "m k"], tau: float, decay: float, *, free: bool
    ) -> None:
        shrink = 1 + 2 * tau * decay
        self.X, self.t, self.free = X, tau / shrink, free
        self.w0, self.a0 = start[:, :-1] / shrink, start[:, -1] / (shrink if free else 1.0)
        self.pattern = (self.w0 @ X.T > 0).to(X)

    def place(self, z: Float[Tensor, " n"], pattern: Float[Tensor, "m n"]) -> Placed | None:
        """The proximal points near a pattern; None where one of the problems is not convex, or finds no answer."""
        s, w, a = pattern.clone(), torch.empty_like(self.w0), torch.empty_like(self.a0)
        G = torch.empty_like(self.w0)
        left = torch.arange(len(s), device=s.device)
        for _ in range(_SWEEPS):
            few = s[left]
            on = (few > 0) & (few < 1)
            found = self._solve(z, few, on, left)
            if found is None:
                return None
            w[left], a[left], G[left], few, done = found
            s[left] = few
            left, on = left[~done], on[~done]
            if not left.numel():
                break
            s[left] = self._sweep(z, s[left], left)
        else:
            return None
        on = (s > 0) & (s < 1)
        heights = (w @ self.X.T).clamp(min=0.0).masked_fill(on, 0.0)
        bend = self.t * float(((s * z) @ self.X).norm(dim=1).max())
        positions = torch.cat([w, a[:, None]], dim=1)
        return Placed(positions, s, heights, on.any(1), G, bend)

    def _tangent(self, v: Tensor, on: Bool[Tensor, "m n"]) -> Tensor:
        """v without its part along the data whose kinks hold."""
        held = on.any(1)
        if not bool(held.any()):
            return v
        out, rows = v.clone(), self.X * on[held][:, :, None]
        out[held] = v[held] - (torch.linalg.pinv(rows) @ (rows @ v[held][:, :, None]))[:, :, 0]
        return out

    def _solve(
        self, z: Tensor, s: Tensor, on: Bool[Tensor, "m n"], who: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None:
        """(w, a, G, s, done) for known shares off the kinks that hold: those shares follow, and tell if they do hold.

        In the kinks' tangent space w = P (w0 - t a G) and a = a0 - t w . G: two equations, linear in a.
        """
        t, w0, a0 = self.t, self.w0[who], self.a0[who]
        G = (s.masked_fill(on, 0.0) * z) @ self.X
        PG, Pw = self._tangent(G, on), self._tangent(w0, on)
        a = a0
        if self.free:
            convex = 1 - t * t * (PG * PG).sum(1)
            if not bool((convex > 0).all()):
                return None
            a = (a0 - t * (Pw * G).sum(1)) / convex
        w = Pw - t * a[:, None] * PG
        h = w @ self.X.T
        size = _EXACT * (w0.norm(dim=1) + w.norm(dim=1))[:, None] * self.X.norm(dim=1)
        wrong = (((s == 1) & (h < -size)) | ((s == 0) & (h > size))).any(1)
        held = on.any(1)
        if bool(held.any()):
            # What is missing along the kinks is t a sum s_j z_j x_j over them; the shares nearest to the old ones.
            pull = (t * a[held][:, None] * z)[:, :, None] * self.X * on[held][:, :, None]
            missing = w0[held] - t * a[held][:, None] * G[held] - w[held]
            missing = missing - (s[held][:, None, :] @ pull)[:, 0]
            shares = s[held] + (missing[:, None, :] @ torch.linalg.pinv(pull))[:, 0]
            fits = (shares > -_SLACK) & (shares < 1 + _SLACK)
            wrong[held] |= (on[held] & ~fits).any(1)
            s = s.clone()
            s[held] = torch.where(on[held] & fits, shares.clamp(_INNER, 1 - _INNER), s[held])
        return w, a, G, s, ~wrong

    def _sweep(self, z: Tensor, s: Tensor, who: Tensor) -> Tensor:
        """Each kink in turn: a convex one (a z_j > 0) gets the share that solves it, a concave one is crossed."""
        t, s = self.t, s.clone()
        G = (s * z) @ self.X
        w0, a = self.w0[who], self.a0[who]
        if self.free:
            a = (a - t * (w0 * G).sum(1)) / (1 - t * t * (G * G).sum(1)).clamp(min=_FLAT)
        w = w0 - t * a[:, None] * G
        for j, x in enumerate(self.X):
            h, c = w @ x, t * a * z[j] * (x @ x)
            crossed = torch.where(h == 0, s[:, j], (h > 0).to(s))
            new = torch.where(c > 0, (s[:, j] + h / c.clamp(min=1e-300)).clamp(0, 1), crossed)
            w = w - (t * a * z[j] * (new - s[:, j]))[:, None] * x
            s[:, j] = new
        return s

    def curvature(self, placed: Placed, masses: Float[Tensor, " m"]) -> Float[Tensor, "n n"]:
        """-d M theta+ / dz = sum_i p_i J (1/t + Hess V)^-1 J^T in the tangent space of the kinks that hold."""
        t, X = self.t, self.X
        on = (placed.pattern > 0) & (placed.pattern < 1)
        s, a = placed.pattern.masked_fill(on, 0.0), placed.positions[:, -1]
        PG = self._tangent(placed.slopes, on)
        weight = (t * masses * a * a)[:, None] * s
        B = (weight.T @ s) * (X @ X.T)
        held = placed.held
        if bool(held.any()):  # the part along the kinks is not free
            rows = X * on[held][:, :, None]
            inner = X @ (torch.linalg.pinv(rows) @ rows) @ X.T
            B = B - torch.einsum("mi,mij,mj->ij", weight[held], inner, s[held])
        if self.free:
            rise = placed.heights - t * (a[:, None] * s) * (PG @ X.T)
            B = B + rise.T @ (rise * (t * masses / (1 - t * t * (PG * PG).sum(1)))[:, None])
        return B


_SWEEPS = 100
_EXACT = 1e-13  # of |w| |x|: a height below this is 0
_SLACK = 1e-12  # a share that is 0 or 1 up to rounding still holds
_INNER = 1e-15  # and is kept between them: this is how a kink that holds is known
_FLAT = 0.1  # a sweep only needs a rough second layer
