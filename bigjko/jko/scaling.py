"""The step by Dykstra / generalised Sinkhorn scaling: the reference, and why the dual is used instead."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from bigjko_kernels import LOG_ZERO

from ..errors import StepError
from ..status import Status
from ..transport import Balanced
from .box import DualBox
from .problem import Solution, StepProblem, StepSolver


@dataclass(frozen=True)
class ScalingSolver(StepSolver):
    """a = prox(K b) / (K b), b = q / (K a), in logs; the prox is an n-dimensional Newton without K.

    Args:
        tolerance: on the L1 change of p between iterations, over its mass.
        max_iterations: 13 to more than 1,000 are needed, growing with tau and 1/eps.

    Balanced transport only. Reference: Peyre 2015; Chizat, Peyre, Schmitzer and Vialard 2018.
    """

    tolerance: float = 1e-10
    max_iterations: int = 5000

    def __post_init__(self) -> None:
        if not self.tolerance > 0 or self.max_iterations < 1:
            raise StepError(
                f"received tolerance = {self.tolerance} and max_iterations = {self.max_iterations}, need both positive"
            )

    def solve(
        self, problem: StepProblem, z0: Float[Tensor, " n"], curvature: Float[Tensor, "n n"], rtol: float = 0.0
    ) -> Solution:
        """See StepSolver; rtol does not matter.

        Raises:
            StepError: for a transport in which mass grows.
        """
        transport, energy = problem.transport, problem.energy
        if not isinstance(transport, Balanced):
            raise StepError(f"received {type(transport).__name__}, need Balanced for ScalingSolver: use DualSolver")
        kernel, grid = transport.kernel, transport.kernel.grid
        # a = 1 and z = 0 to begin with: from the dual's z0 the first prox would start at masses like exp(tau V / eps).
        log_b = _over(problem.log_q, kernel.log_apply(torch.zeros_like(problem.log_q)))
        problem = replace(problem, box=DualBox(energy.loss, energy.targets))  # where z0 lies
        z = problem.box.inside(torch.zeros_like(z0))
        log_p, status = problem.log_q, Status.scaling_stalled
        iterations = 0
        for _ in range(self.max_iterations):
            iterations += 1
            log_s = kernel.log_apply(log_b)
            last, (log_p, z) = log_p, _prox(problem, log_s, z)
            log_a = log_p - log_s
            log_b = _over(problem.log_q, kernel.log_apply(log_a))
            change = float(grid.sum((log_p.exp() - last.exp()).abs()) / grid.sum(log_p.exp()))
            if not math.isfinite(change):
                status = Status.not_finite
                break
            if change <= self.tolerance:
                status = Status.ok
                break
        outputs, y = energy.outputs(log_p.exp()), energy.targets
        residual = problem.box.residual(z, outputs)
        gap = problem.tau * float(energy.loss.gap(outputs, z, y))
        return Solution(log_p, outputs, z, z, curvature, iterations, residual, gap, status)


def _over(log_x: Tensor, log_y: Tensor) -> Tensor:
    return torch.where(log_x == LOG_ZERO, LOG_ZERO, log_x - log_y)


def _prox(problem: StepProblem, log_s: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """argmin over p of eps KL(p | s) + tau F(p) - <d, p>, as p = s exp((d - tau (V + M^T z)) / eps): (log p, z)."""
    energy, eps, tau = problem.energy, problem.transport.epsilon, problem.tau
    loss, y, box = energy.loss, energy.targets, problem.box

    def respond(z: Tensor) -> tuple[Tensor, Tensor]:
        log_p = log_s + (problem.d - tau * energy.at(z)) / eps
        return log_p, energy.outputs(log_p.exp()) - loss.conjugate_gradient(z, y)

    log_p, gradient = respond(z)
    for _ in range(_NEWTON):
        if y.numel() == 0 or float(box.free(gradient, z).abs().max()) <= _PROX * (1 + float(y.abs().max())):
            break
        p = log_p.exp()
        columns = [energy.outputs(p * energy.features.potential(e.to(p.dtype))) for e in torch.eye(len(y)).to(y)]
        B = tau / eps * torch.stack(columns)
        direction, alpha = box.newton_move(B, loss.conjugate_curvature(z, y), gradient, z), 1.0
        while alpha > 1e-8:
            new = box.inside(z + alpha * direction, z)
            log_new, found = respond(new)
            move = new - z
            last = float(move @ found)
            if math.isfinite(last) and last >= -float(move @ gradient) / 2:  # not finite: masses that overflowed
                break
            alpha /= 2
        z, log_p, gradient = new, log_new, found
    return log_p, z


_NEWTON = 50
_PROX = 1e-12
