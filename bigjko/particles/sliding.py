"""The gradient flow event by event: neurons that reach a kink of relu cross it, or slide along it."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import StepError
from ..measure import ParticleMeasure
from ..neurons.dynamics import Free
from ..risk import Risk
from ..status import Status
from .descent import Move, ParticleState, ParticleStepper, check_tau
from .lines import Lines


@dataclass(frozen=True, eq=False)
class SlidingFlow(ParticleStepper):
    """theta' = -(the least subgradient of F' at theta), the flow that gradient descent tends to where neurons slide.

    The midpoint rule in z = grad g; for a fixed z every neuron moves exactly, from kink to kink: with c = |G| and
    p = w . G / c, p and a turn hyperbolically. On a kink where a z_j > 0 the gate of x_j takes the value in [0, 1]
    that makes the velocity least (Filippov): inside, w slides along w . x_j = 0. mathematics.md 3, hazard iv.

    Order 2, kinks and all, where explicit steps have order 1. About 20 m n flops a step and event, memory O(m n).
    Needs neurons that move freely.

    Args:
        energy: a Risk.
        tau: the time step.
    """

    energy: Risk
    tau: float
    name: str = field(default="sliding", init=False)

    def __post_init__(self) -> None:
        check_tau(self.tau)
        if isinstance(self.energy, Risk) and self.moving != Free():
            raise StepError(
                f"received neurons that move by {self.moving!r}, need Free() for SlidingFlow: use GradientFlow"
            )

    def memory_of(self, m: int, n: int, d: int) -> int:
        """See ParticleStepper; measured."""
        return 128 * m * n

    def _move(self, measure: ParticleMeasure, state: ParticleState, dt: float) -> Move:
        risk = self.energy
        z = risk.loss.gradient(state.outputs, risk.y.double())
        half, events = slide(measure.positions, risk.X, z, dt / 2, risk.weight_decay)
        if not bool(torch.isfinite(half).all()):
            return Move(half, {"events": float(events)}, Status.not_finite)
        u = risk.on(ParticleMeasure(half, measure.masses)).outputs(measure.masses)
        z = risk.loss.gradient(u, risk.y.double())
        new, events = slide(measure.positions, risk.X, z, dt, risk.weight_decay)
        status = Status.ok if events < _EVENTS else Status.flow_stalled
        return Move(new, {"events": float(events)}, status)


def slide(
    positions: Float[Tensor, "m k"], X: Float[Tensor, "n d"], z: Float[Tensor, " n"], dt: float, decay: float
) -> tuple[Float[Tensor, "m k"], int]:
    """Every neuron after time dt in the potential a sum_j z_j relu(w . x_j) + decay |theta|^2 of a fixed z.

    Returns:
        the positions, and the largest number of events of a neuron.
    """
    w, a = positions[:, :-1], positions[:, -1]
    tiny, still = _ON_KINK * torch.finfo(a.dtype).eps, torch.finfo(a.dtype).tiny
    lines = Lines.of(X, torch.finfo(a.dtype).eps)
    X, (z, tilt) = lines.e, lines.slopes(z.to(a.dtype))
    left, events = torch.full_like(a, dt), 0
    if not len(X):
        left.zero_()
    while events < _EVENTS and bool((left > 0).any()):
        events += 1
        height = w @ X.T
        kink = height.abs() <= tiny * w.norm(dim=1, keepdim=True)
        gates = _gates(height > 0, kink, a, X, z, tilt)
        G = tilt + (gates * z) @ X
        c = G.norm(dim=1)
        unit = G / c.clamp(min=still)[:, None]
        p, g = (w * unit).sum(1), unit @ X.T
        # Between events p(t) = A e^(ct) + B e^(-ct) and a(t) = B e^(-ct) - A e^(ct); at the next event y = e^(ct) > 1
        # solves A y^2 - (p - height / g) y + B = 0.
        A, B = ((p - a) / 2)[:, None], ((p + a) / 2)[:, None]
        b = p[:, None] - height / torch.where(g.abs() > tiny, g, math.nan)
        root = (b * b - 4 * A * B).sqrt()
        big = (b + torch.where(b < 0, -root, root)) / 2
        found = torch.stack([big / A, B / big])
        # A neuron on a kink leaves it, or stays: it may meet it again at the other root alone.
        met = torch.where(kink, torch.where(gates * (1 - gates) == 0, B / A, math.nan), found)
        y = torch.where(met > 1 + 4 * tiny, met, math.inf).amin(0)
        first, j = y.min(1)
        wait = torch.where(c > still, first.log() / c.clamp(min=still), math.inf)
        t = torch.minimum(left, wait)
        grown, shrunk = A[:, 0] * (c * t).exp(), B[:, 0] * (-c * t).exp()
        w = w + (grown + shrunk - p)[:, None] * unit
        a = torch.where(c > still, shrunk - grown, a)
        hit = wait <= left
        w = w - torch.where(hit, (w * X[j]).sum(1), 0.0)[:, None] * X[j]
        left = left - t
    return torch.cat([w, a[:, None]], dim=1) * math.exp(-2 * decay * dt), events


def _gates(active: Tensor, kink: Tensor, a: Tensor, X: Tensor, z: Tensor, tilt: Tensor) -> Float[Tensor, "m n"]:
    """1 or 0 off the kinks; on one where a z_j > 0 what makes |G| least, else 1 only where both sides lead up."""
    gates = (active & ~kink).to(a.dtype)
    columns = kink.any(0).nonzero()[:, 0].tolist()
    for _ in range(_SWEEPS if bool((kink.sum(1) > 1).any()) else 1):
        for j in columns:
            # How fast height_j rises with the gate off; on, it rises by a z_j |x_j|^2 less.
            rise = -a * ((tilt + (gates * z) @ X - gates[:, j : j + 1] * z[j] * X[j]) @ X[j])
            drop = a * z[j] * (X[j] @ X[j])
            share = torch.where(drop > 0, (rise / drop).clamp(0.0, 1.0), (rise > 0).to(a.dtype))
            gates[:, j] = torch.where(kink[:, j], share, gates[:, j])
    return gates


_ON_KINK = 64.0  # ulps of |w| |x_j| within which a neuron is on the kink
_EVENTS = 100
_SWEEPS = 30  # of Gauss-Seidel over the gates of a neuron on several kinks
