"""Proximal points of neurons: argmin a S(w) + beta (|w|^2 + a^2) + |theta - theta_0|^2 / (2 tau), kinks included.

S(w) = sum_j z_j relu(w . x_j) = w . tilt + sum_k z_k relu(w . e_k) over the lines through 0 that the data are on
(`Lines`). With shares s_k in [0, 1] (1 where w . e_k > 0, 0 where it is < 0, between on a kink) and
G = tilt + sum_k s_k z_k e_k, a stationary point has w = w0 - t a G, a = a0 - t w . G, where t = tau / (1 + 2 tau beta)
and (w0, a0) = theta_0 / (1 + 2 tau beta). What is asked for are the shares.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .lines import Lines


@dataclass(frozen=True, eq=False)
class Placed:
    """Neurons at their proximal points.

    Attributes:
        positions: (m, d + 1).
        pattern: (m, l) shares of the l lines s.
        heights: (m, n) relu(w . x_j), exactly 0 on a kink that holds the neuron.
        held: neurons on a kink, with a share between 0 and 1.
        slopes: (m, d) G without the kinks that hold.
        bend: t max|G|: below 1 the problem is convex between kinks.
    """

    positions: Float[Tensor, "m k"]
    pattern: Float[Tensor, "m l"]
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
        X: (n, d) data; what is on one line up to their rounding is on one line.
        start: (m, d + 1) neurons, float64 like the rest.
        tau: the time step.
        decay: beta.
        free: whether the second layer moves, too.
    """

    def __init__(
        self, X: Float[Tensor, "n d"], start: Float[Tensor, "m k"], tau: float, decay: float, *, free: bool
    ) -> None:
        shrink = 1 + 2 * tau * decay
        self.X, self.t, self.free = X.to(start), tau / shrink, free
        self.lines = Lines.of(self.X, torch.finfo(X.dtype).eps)
        self.w0, self.a0 = start[:, :-1] / shrink, start[:, -1] / (shrink if free else 1.0)
        self.pattern = (self.w0 @ self.lines.e.T > 0).to(start)

    def place(self, z: Float[Tensor, " n"], pattern: Float[Tensor, "m l"]) -> Placed | None:
        """The proximal points near a pattern; None where one of the problems is not convex, or finds no answer."""
        z, tilt = self.lines.slopes(z)
        s, w, a = pattern.clone(), torch.empty_like(self.w0), torch.empty_like(self.a0)
        G = torch.empty_like(self.w0)
        left = torch.arange(len(s), device=s.device)
        for _ in range(_SWEEPS):
            few = s[left]
            on = (few > 0) & (few < 1)
            found = self._solve(z, tilt, few, on, left)
            if found is None:
                return None
            w[left], a[left], G[left], few, done = found
            s[left] = few
            left, on = left[~done], on[~done]
            if not left.numel():
                break
            s[left] = self._sweep(z, tilt, s[left], left)
        else:
            return None
        on = (s > 0) & (s < 1)
        gates = self.lines.gates(s)
        heights = (w @ self.X.T).clamp(min=0.0).masked_fill((gates > 0) & (gates < 1), 0.0)
        bend = self.t * float((tilt + (s * z) @ self.lines.e).norm(dim=1).max())
        positions = torch.cat([w, a[:, None]], dim=1)
        return Placed(positions, s, heights, on.any(1), G, bend)

    def _tangent(self, v: Tensor, on: Bool[Tensor, "m l"]) -> Tensor:
        """v without its part along the lines whose kinks hold."""
        held = on.any(1)
        if not bool(held.any()):
            return v
        out, rows = v.clone(), self.lines.e * on[held][:, :, None]
        out[held] = v[held] - (torch.linalg.pinv(rows) @ (rows @ v[held][:, :, None]))[:, :, 0]
        return out

    def _solve(
        self, z: Tensor, tilt: Tensor, s: Tensor, on: Bool[Tensor, "m l"], who: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None:
        """(w, a, G, s, done) for known shares off the kinks that hold: those shares follow, and tell if they do hold.

        In the kinks' tangent space w = P (w0 - t a G) and a = a0 - t w . G: two equations, linear in a.
        """
        t, e, w0, a0 = self.t, self.lines.e, self.w0[who], self.a0[who]
        G = tilt + (s.masked_fill(on, 0.0) * z) @ e
        PG, Pw = self._tangent(G, on), self._tangent(w0, on)
        a = a0
        if self.free:
            convex = 1 - t * t * (PG * PG).sum(1)
            if not bool((convex > 0).all()):
                return None
            a = (a0 - t * (Pw * G).sum(1)) / convex
        w = Pw - t * a[:, None] * PG
        h = w @ e.T
        size = _EXACT * (w0.norm(dim=1) + w.norm(dim=1))[:, None]
        wrong = (((s == 1) & (h < -size)) | ((s == 0) & (h > size))).any(1)
        held = on.any(1)
        if bool(held.any()):
            # What is missing along the kinks is t a sum s_k z_k e_k over them; the shares nearest to the old ones.
            pull = (t * a[held][:, None] * z)[:, :, None] * e * on[held][:, :, None]
            missing = w0[held] - t * a[held][:, None] * G[held] - w[held]
            missing = missing - (s[held][:, None, :] @ pull)[:, 0]
            shares = s[held] + (missing[:, None, :] @ torch.linalg.pinv(pull))[:, 0]
            fits = (shares > -_SLACK) & (shares < 1 + _SLACK)
            fits &= a[held][:, None] * z > 0
            wrong[held] |= (on[held] & ~fits).any(1)
            s = s.clone()
            s[held] = torch.where(on[held] & fits, shares.clamp(_INNER, 1 - _INNER), s[held])
        return w, a, G, s, ~wrong

    def _sweep(self, z: Tensor, tilt: Tensor, s: Tensor, who: Tensor) -> Tensor:
        """Each kink in turn: a convex one (a z_k > 0) gets the share that solves it, a concave one is crossed."""
        t, s = self.t, s.clone()
        G = tilt + (s * z) @ self.lines.e
        w0, a = self.w0[who], self.a0[who]
        if self.free:
            a = (a - t * (w0 * G).sum(1)) / (1 - t * t * (G * G).sum(1)).clamp(min=_FLAT)
        w = w0 - t * a[:, None] * G
        for k, e in enumerate(self.lines.e):
            h, c = w @ e, t * a * z[k]
            crossed = torch.where(h == 0, s[:, k].round(), (h > 0).to(s))
            new = torch.where(c > 0, (s[:, k] + h / c.clamp(min=1e-300)).clamp(0, 1), crossed)
            w = w - (c * (new - s[:, k]))[:, None] * e
            s[:, k] = new
        return s

    def curvature(self, placed: Placed, masses: Float[Tensor, " m"]) -> Float[Tensor, "n n"]:
        """-d M theta+ / dz = sum_i p_i J (1/t + Hess V)^-1 J^T in the tangent space of the kinks that hold."""
        t, X = self.t, self.X
        on = (placed.pattern > 0) & (placed.pattern < 1)
        s, a = self.lines.gates(placed.pattern), placed.positions[:, -1]
        s = s.masked_fill((s > 0) & (s < 1), 0.0)
        PG = self._tangent(placed.slopes, on)
        weight = (t * masses * a * a)[:, None] * s
        B = (weight.T @ s) * (X @ X.T)
        held = placed.held
        if bool(held.any()):  # the part along the kinks is not free
            rows = self.lines.e * on[held][:, :, None]
            inner = X @ (torch.linalg.pinv(rows) @ rows) @ X.T
            B = B - torch.einsum("mi,mij,mj->ij", weight[held], inner, s[held])
        if self.free:
            rise = placed.heights - t * (a[:, None] * s) * (PG @ X.T)
            B = B + rise.T @ (rise * (t * masses / (1 - t * t * (PG * PG).sum(1)))[:, None])
        return B


_SWEEPS = 100
_EXACT = 1e-13  # of |w|: a height below this is 0
_SLACK = 1e-12  # a share that is 0 or 1 up to rounding still holds
_INNER = 1e-15  # and is kept between them: this is how a kink that holds is known
_FLAT = 0.1  # a sweep only needs a rough second layer
