"""Implicit gradient descent: the proximal point step on the neurons, in n unknowns."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import StepError
from ..losses import Loss
from ..measure import ParticleMeasure
from ..neurons.dynamics import Dynamics, Free, FrozenOutputs
from ..risk import Risk
from ..status import Status
from .descent import Move, ParticleState, ParticleStepper, check_tau
from .prox import NeuronProx, Placed


@dataclass(frozen=True, eq=False)
class ImplicitGradientDescent(ParticleStepper):
    """theta+ = argmin F(mu_theta) + sum_i p_i |theta_i - theta_i^t|^2 / (2 tau): the seed's proximal point step.

    Given z = grad g(u), neurons decouple, and each goes to the proximal point of V_z = sum_j z_j a relu(w . x_j)
    exactly, kinks included (`NeuronProx`); what is left is u = M theta+(grad g(u)) in R^n, by Newton with the exact
    curvature. Implicit Euler where no kink is met (mathematics.md 5.7); on kinks stationary in Clarke's sense.

    Order 1, stable for any tau; F + |theta+ - theta|^2 / (2 tau) never rises (checked). Needs tau max|G| < 1, where
    V_z + |.|^2 / (2 tau) is convex between kinks; beyond it, the step ends with Status.implicit_stalled. Cost 3 to 10
    iterations of O(m n (n + d)); memory O(m n).

    Args:
        energy: a Risk.
        tau: the time step.
        rtol: of the residual max |grad g(u) - grad g(M theta+)|, relative to the larger of max |grad g(u)| and
            max |grad g(0)|.
        max_iterations: Newton steps at most.
        dynamics: Free() or FrozenOutputs(); those of the risk's way by default.

    Stats: `iterations`; `residual`; `held`, the share of the mass that ends on a kink; `bend`, tau max|G|.
    """

    energy: Risk
    tau: float
    rtol: float = 1e-10
    max_iterations: int = 50
    dynamics: Dynamics | None = None
    name: str = field(default="implicit gd", init=False)

    def __post_init__(self) -> None:
        check_tau(self.tau)
        if not 0 < self.rtol < 1 or self.max_iterations < 1:
            raise StepError(
                f"received rtol = {self.rtol} and max_iterations = {self.max_iterations}, "
                "need 0 < rtol < 1 and at least one iteration"
            )
        if isinstance(self.energy, Risk) and not isinstance(self.moving, Free | FrozenOutputs):
            raise StepError(
                f"received {self.moving!r}, need Free() or FrozenOutputs() for ImplicitGradientDescent: "
                "use GradientDescent"
            )

    def memory_of(self, m: int, n: int, d: int) -> int:
        """See ParticleStepper; measured."""
        return 68 * m * n + 568 * m * (d + 1)

    @torch.no_grad()
    def _move(self, measure: ParticleMeasure, state: ParticleState, dt: float) -> Move:
        risk, y = self.energy, self.energy.y.double()
        start, masses = measure.positions.double(), measure.masses.double()
        prox = NeuronProx(risk.X, start, dt, risk.weight_decay, free=isinstance(self.moving, Free))
        u, iterations, status = state.outputs, 0, Status.implicit_stalled
        here = self._place(prox, u, prox.pattern, y, masses)
        while here is not None:
            if here.residual <= self.rtol:
                status = Status.ok
                break
            if iterations >= self.max_iterations:
                break
            B = prox.curvature(here.placed, masses)
            steepness = _curvature(risk.loss, here.u, y)
            # d/du of M theta+(grad g(u)) - u is -(B Hess g + 1).
            newton, _ = torch.linalg.solve_ex(torch.eye(len(y)).to(B) + B * steepness, here.missed)
            found, alpha = None, 1.0
            while alpha > _SHORTEST:
                iterations += 1
                found = self._place(prox, here.u + alpha * newton, here.placed.pattern, y, masses)
                if found is not None and found.missed.norm() <= (1 - alpha / 4) * here.missed.norm():
                    break
                found, alpha = None, alpha / 2
            here = found
        if here is None or status is not Status.ok:
            return Move(measure.positions, dict.fromkeys(_STATS, math.nan), status)
        positions = here.placed.positions
        pulled = float((masses @ (positions - start).square()).sum()) / (2 * dt)
        before, after = (self._risk(x, v, masses, y) for x, v in ((start, state.outputs), (positions, here.outputs)))
        if not after + pulled <= before + _ROUNDING * (abs(before) + 1):
            status = Status.implicit_stalled  # another stationary point than the one below the start
        held = float(masses[here.placed.held].sum() / masses.sum())
        stats = dict(zip(_STATS, (float(iterations), here.residual, held, here.placed.bend), strict=True))
        return Move(positions.to(measure.positions.dtype), stats, status)

    def _risk(self, positions: Tensor, outputs: Tensor, masses: Tensor, y: Tensor) -> float:
        decay = self.energy.weight_decay * float((masses @ positions.square()).sum())
        return float(self.energy.loss.value(outputs, y)) + decay

    def _place(self, prox: NeuronProx, u: Tensor, pattern: Tensor, y: Tensor, masses: Tensor) -> "_Trial | None":
        """The neurons' answer to outputs u; None where one of them has none."""
        loss = self.energy.loss
        z = loss.gradient(u, y)
        placed = prox.place(z, pattern)
        if placed is None:
            return None
        outputs = placed.outputs(masses)
        scale = torch.maximum(z.abs().max(), loss.gradient(torch.zeros_like(y), y).abs().max()).clamp(min=1e-300)
        residual = float((loss.gradient(outputs, y) - z).abs().max() / scale)
        return _Trial(u, placed, outputs, residual) if math.isfinite(residual) else None


@dataclass(frozen=True, eq=False)
class _Trial:
    """Outputs that were guessed, where the neurons went, and what their outputs are there."""

    u: Tensor
    placed: Placed
    outputs: Tensor
    residual: float

    @property
    def missed(self) -> Tensor:
        return self.outputs - self.u


def _curvature(loss: Loss, u: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The diagonal of Hess g(u); where the slope of an outlier is constant, 0."""
    with torch.enable_grad():
        at = u.detach().requires_grad_()
        (diagonal,) = torch.autograd.grad(loss.gradient(at, y).sum(), at)
    return torch.as_tensor(diagonal)


_STATS = ("iterations", "residual", "held", "bend")
_SHORTEST = 1e-3  # of a Newton step: shorter ones have met a jump, not a slope
_ROUNDING = 1e-12
