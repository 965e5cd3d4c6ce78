"""The gradient flow itself: the limit of gradient descent as its step falls to zero."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import MeasureError, StepError
from ..measure import ParticleMeasure
from ..neurons.dynamics import Dynamics
from ..optional import need
from ..risk import Risk
from ..status import Status
from .descent import Move, ParticleState, ParticleStepper, check_tau, velocity


@dataclass(frozen=True, eq=False)
class GradientFlow(ParticleStepper):
    """theta' = -grad F'(mu)(theta), by torchdiffeq's adaptive Dormand-Prince.

    Kinks of relu that particles cross or slide along cost steps: the controller sees them, but its order does not
    survive them (mathematics.md 3, hazard iv), and its work grows like 1 / rtol. At the default the outputs of 6,253
    neurons that cross a kink were right to 1e-10, and at rtol = 1e-4 to 2e-8.

    Args:
        energy: a Risk.
        tau: the recording step; the solver takes as many of its own inside it as it needs.
        rtol, atol: of the solver, in units of the positions.
        dynamics: how neurons move; those of the risk's way by default, which follow the flow of its measure.
    """

    energy: Risk
    tau: float
    rtol: float = 1e-5
    atol: float = 1e-6
    dynamics: Dynamics | None = None
    name: str = field(default="flow", init=False)

    def __post_init__(self) -> None:
        check_tau(self.tau)
        if not (self.rtol > 0 and self.atol > 0):
            raise StepError(f"received rtol = {self.rtol} and atol = {self.atol}, need both positive")

    def memory_of(self, m: int, n: int, d: int) -> int:
        """See ParticleStepper; measured."""
        return 258 * m * (d + 1)

    def _move(self, measure: ParticleMeasure, state: ParticleState, dt: float) -> Move:
        odeint: Callable[..., Tensor] = need("torchdiffeq", "GradientFlow").odeint
        calls = 0

        def speed(_: Tensor, positions: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return velocity(self.energy, ParticleMeasure(positions, measure.masses), self.dynamics)

        times = torch.tensor([0.0, dt], dtype=torch.float64, device=measure.positions.device)
        try:
            path = odeint(speed, measure.positions, times, rtol=self.rtol, atol=self.atol, method="dopri5")
        except (AssertionError, MeasureError):  # torchdiffeq asserts that its step is not lost in t; NaN is no measure
            return Move(measure.positions, {"evaluations": float(calls)}, Status.flow_stalled)
        return Move(self.moving.settle(path[-1]), {"evaluations": float(calls)})
