"""Full-batch gradient descent on the neurons."""

import math
from abc import abstractmethod
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from ..energy import Composite
from ..errors import MeasureError, StepError
from ..measure import ParticleMeasure
from ..memory import available, gib
from ..neurons.dynamics import Dynamics
from ..risk import Risk
from ..status import Status
from ..stepper import Step, Stepper


@dataclass(frozen=True, eq=False)
class ParticleState:
    """The network's outputs (n,) at the current positions: they spare the next step a pass over the neurons."""

    outputs: Float[Tensor, " n"]


def velocity(risk: Risk, particles: ParticleMeasure, dynamics: Dynamics | None = None) -> Tensor:
    """-grad F'(mu)(theta_i) for every neuron: shape (m, d + 1). Masses do not enter it (mathematics.md 1).

    In the dynamics of the risk's way, unless others are given. relu'(0) = 0. Two passes over the neurons.
    """
    stream = risk.neurons.stream(particles.w, risk.X)
    u = stream.outputs(particles.masses * particles.a)
    slopes = stream.slopes(risk.loss.gradient(u, risk.y.double()).to(particles.a.dtype))
    dynamics = risk.neurons.dynamics if dynamics is None else dynamics
    return dynamics.velocity(particles.w, particles.a, slopes, risk.weight_decay)


@dataclass(frozen=True, eq=False)
class Move:
    """Positions after a step, what to record, how it went, and the outputs there where they are known."""

    positions: Tensor
    stats: dict[str, float]
    status: Status = Status.ok
    outputs: Tensor | None = None


class ParticleStepper(Stepper[ParticleMeasure, ParticleState]):
    """What the particle steppers share: they start and finish a step alike, and move in between."""

    energy: Risk
    dynamics: Dynamics | None = None

    @property
    def moving(self) -> Dynamics:
        """The dynamics asked for, or those of the way."""
        return self.energy.neurons.dynamics if self.dynamics is None else self.dynamics

    def memory_of(self, m: int, n: int, d: int) -> int:
        """Bytes that a step needs for m neurons and n data in R^d."""
        return 32 * m * (d + 1)

    def init(self, measure: ParticleMeasure) -> ParticleState:
        """The outputs at the start; refuses more neurons than there is memory for."""
        if not isinstance(measure, ParticleMeasure):
            raise StepError(
                f"received a {type(measure).__name__}, need a ParticleMeasure: use neurons.particles(measure)"
            )
        if not isinstance(self.energy, Risk):
            raise StepError(f"received a {type(self.energy).__name__}, need a Risk: particles are neurons; use JKO")
        m, (n, d) = len(measure.masses), self.energy.X.shape
        needed, free = self.memory_of(m, n, d), available(measure.masses.device)
        if needed > free:
            raise StepError(
                f"received {m:,} neurons and {n:,} data, whose steps of {self.name} take {gib(needed)}, need at most "
                f"the {gib(free)} that are free: take fewer neurons (drop= of neurons.particles), or GradientDescent, "
                "which needs least"
            )
        return ParticleState(self.energy.on(measure).outputs(measure.masses))

    def step(self, measure: ParticleMeasure, state: ParticleState, dt: float) -> Step[ParticleMeasure, ParticleState]:
        """One step of physical time dt."""
        move = self._move(measure, state, dt)
        status = move.status
        if status is Status.ok:
            try:
                new = ParticleMeasure(move.positions, measure.masses)
            except MeasureError:  # the masses are the old ones: only the positions can be at fault
                status = Status.not_finite
        if status is not Status.ok:
            return Step(measure, state, dt, state.outputs, measure.mass * math.nan, move.stats, status)
        composite: Composite = self.energy.on(new)
        outputs = composite.outputs(new.masses) if move.outputs is None else move.outputs
        return Step(new, ParticleState(outputs), dt, outputs, composite.value(new.masses, outputs), move.stats)

    @abstractmethod
    def _move(self, measure: ParticleMeasure, state: ParticleState, dt: float) -> Move:
        """Where dt leads."""


def check_tau(tau: float) -> None:
    """Raise StepError unless tau is a positive finite number."""
    if not (math.isfinite(tau) and tau > 0):
        raise StepError(f"received tau = {tau}, need a positive finite time step")


@dataclass(frozen=True, eq=False)
class GradientDescent(ParticleStepper):
    """theta <- theta - tau grad F'(mu)(theta): the seed's GD on sqrt(m) theta, on the flow's own clock.

    Order 1; stable while tau lambda_max(NTK) stays below 1 for the squared loss. One pass over the neurons a step: each
    is moved and its new output added at once. O(m + n) memory (other dynamics than Free take three passes).

    Args:
        energy: a Risk.
        tau: the time step.
        dynamics: how neurons move; those of the risk's way by default, which follow the flow of its measure.
    """

    energy: Risk
    tau: float
    dynamics: Dynamics | None = None
    name: str = field(default="gd", init=False)

    def __post_init__(self) -> None:
        check_tau(self.tau)

    def _move(self, measure: ParticleMeasure, state: ParticleState, dt: float) -> Move:
        risk = self.energy
        z = risk.loss.gradient(state.outputs, risk.y.double())
        stream = risk.neurons.stream(measure.w, risk.X)
        moved = self.moving.descend(stream, measure.a, measure.masses, z, dt, risk.weight_decay)
        return Move(moved.positions, {"speed": moved.fastest}, outputs=moved.outputs)
