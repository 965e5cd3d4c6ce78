"""The time step from the step's own error."""

import math
from dataclasses import dataclass, field
from typing import Any, Generic

import torch
from jaxtyping import Float
from torch import Tensor

from bigjko_kernels import Tiled

from ..energy import Energy
from ..errors import StepError
from ..measure import GridMeasure, ParticleMeasure
from ..risk import Risk
from ..status import Status
from ..stepper import M, Step, Stepper


@dataclass(frozen=True, eq=False)
class AdaptiveState:
    """What a step hands to the next.

    Attributes:
        inner: the state of the stepper inside.
        outputs: (n,) of the network now.
        dt: the time step to try.
        error: of the last step accepted, as a share of its tolerance; 1 before the first.
    """

    inner: Any
    outputs: Float[Tensor, " n"]
    dt: float
    error: float = 1.0


@dataclass(frozen=True, eq=False)
class Adaptive(Stepper[M, AdaptiveState], Generic[M]):
    """Another stepper, its time step chosen so that outputs are right to a tolerance.

    One step of dt against two of dt/2: for a first-order stepper their difference is the error of the two, which are
    kept. It may be rtol of what the outputs moved, so that errors add up to rtol of the outputs' path and not to its
    square root, as they would against rtol of their size; or rtol^2 of their size where that is more, so that a flow
    at rest takes long steps:

        |u_j - v_j| <= atol + rtol (|u_j(t + dt) - u_j(t)| + rtol |u_j|)  for every j.

    Output by output and relative, so that the escape from a saddle is followed while its outputs are still 1e-12.

    Neurons that meet a kink on the way count apart: what whole and half steps differ by there is O(dt), once for one
    that crosses, and undone by the next step for one that slides. It does not add up, so it may be
    atol + rtol max_j |u_j| in all.

    Errors fall in proportion to rtol, as steps do. Cost: three steps of the stepper inside for one taken, half of which
    plain halving would have paid for; a step refused costs as much. PI control (Hairer and Wanner 1996, IV.2).

    Args:
        stepper: of first order: JKO, a particle stepper, or Widening. Its own tau is the longest step that is tried,
            and the first unless the outputs ask for less; evolve ends steps at its multiples.
        rtol: see above.
        atol: an error that no output is asked to fall below, in units of y. By default 1e-12 of max |y|; outputs that
            are small only because large ones cancel are known to the rounding of these, or to the inner solver's rtol.
        smallest: of tau; a step that needs less ends the flow with Status.step_too_small.

    Stats: those of the last inner step; `dt`; `error`, as a share of the tolerance; `rejected` steps before it;
    `steps`, inner ones in all.

    Raises:
        StepError: for an energy without outputs, or tolerances that are not usable.
    """

    stepper: Stepper[M, Any]
    rtol: float = 1e-3
    atol: float | None = None
    smallest: float = 1e-6
    name: str = field(init=False)
    energy: Energy = field(init=False, repr=False)
    tau: float = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.stepper.energy, Risk):
            raise StepError(
                f"received a stepper down a {type(self.stepper.energy).__name__}, need one down a Risk for Adaptive: "
                "outputs are what its error is measured in"
            )
        if not 0 < self.rtol < 1 or not (self.atol is None or 0 <= self.atol < math.inf) or not 0 < self.smallest < 1:
            raise StepError(
                f"received rtol = {self.rtol}, atol = {self.atol} and smallest = {self.smallest}, "
                "need 0 < rtol < 1, atol >= 0 and 0 < smallest < 1"
            )
        for name, value in (
            ("name", f"adaptive {self.stepper.name}"),
            ("energy", self.stepper.energy),
            ("tau", self.stepper.tau),
        ):
            object.__setattr__(self, name, value)

    def init(self, measure: M) -> AdaptiveState:
        """The inner state, and the step after which linearised outputs would miss by the tolerance.

        u' = -N z with z = grad g(u) and N the NTK, so an implicit step is wrong by dt^2 |u''| / 2, u'' near N g''(u) N
        z: of what it moves, dt |u''| / (2 |u'|), which may be rtol; four times as much is tried.
        """
        inner, risk = self.stepper.init(measure), self.stepper.energy
        assert isinstance(risk, Risk)
        here = risk.on(measure.grid if isinstance(measure, GridMeasure) else measure)
        u, y = here.outputs(measure.masses), here.targets
        N, z = here.features.gram(measure.masses), here.loss.gradient(u, y)
        speed = -(N @ z)
        change = here.loss.gradient(u + _NEAR * speed, y) - z
        bend = N @ change / _NEAR
        share = float(bend.abs().max() / (2 * speed.abs().max().clamp(min=1e-300)))
        first = _FIRST * self.rtol / share if share > 0 else math.inf
        return AdaptiveState(inner, u, min(self.tau, max(first, _SHY * self.tau)))

    def step(self, measure: M, state: AdaptiveState, dt: float) -> Step[M, AdaptiveState]:
        """One step of dt or less: in as many equal parts as the error asks for, so that dt is met exactly."""
        rejected, steps, h = 0, 0, min(state.dt, dt)
        while True:
            h = dt / math.ceil(dt / h * (1 - _SLIVER))
            whole = self.stepper.step(measure, state.inner, h)
            half = self.stepper.step(measure, state.inner, h / 2) if whole.status is Status.ok else whole
            halves = self.stepper.step(half.measure, half.state, h / 2) if half.status is Status.ok else half
            steps += 3 if whole.status is Status.ok else 1
            if halves.status is Status.ok:
                error = self._error(measure, half.measure, halves, whole, state.outputs)
                factor = _SAFETY * max(error, _TINY) ** -_I * max(state.error, _TINY) ** _P
            else:
                error, factor = math.inf, _FAILED
            factor = min(max(factor, _LEAST), _MOST)
            if error <= 1:
                break
            rejected += 1
            smaller = h * min(factor, _SAFETY)
            if smaller < self.smallest * self.tau:
                status = Status.step_too_small if halves.status is Status.ok else halves.status
                stats = {"dt": h, "error": error, "rejected": float(rejected), "steps": float(steps)}
                return Step(measure, state, h, state.outputs, measure.mass * math.nan, stats, status)
            h = smaller
        # A step cut short to end at dt says nothing against a longer one.
        planned = h * (min(factor, 1.0) if rejected else factor)
        following = planned if rejected or factor < 1 else max(planned, state.dt)
        after = AdaptiveState(halves.state, halves.outputs, min(following, self.tau), error)
        stats = {**halves.stats, "dt": h, "error": error, "rejected": float(rejected), "steps": float(steps)}
        return Step(halves.measure, after, h, halves.outputs, halves.risk, stats)

    def _error(self, before: M, half: M, halves: Step[M, Any], whole: Step[M, Any], u: Tensor) -> float:
        risk = self.stepper.energy
        assert isinstance(risk, Risk)
        atol = _ATOL * float(risk.y.abs().max()) if self.atol is None else self.atol
        size, missed = halves.outputs.abs(), whole.outputs - halves.outputs
        adds = atol + self.rtol * ((halves.outputs - u).abs() + self.rtol * size)
        stays = atol + self.rtol * size.max()
        at_kinks = torch.zeros_like(missed)
        if not isinstance(before, GridMeasure):
            at_kinks = _at_kinks(risk, before, half, halves.measure, whole.measure)
        shares = (missed - at_kinks).abs() / adds.clamp(min=1e-300), at_kinks.abs() / stays.clamp(min=1e-300)
        return float(torch.nan_to_num(torch.cat(shares).max(), nan=math.inf))


def _at_kinks(
    risk: Risk, before: ParticleMeasure, half: ParticleMeasure, halves: ParticleMeasure, whole: ParticleMeasure
) -> Float[Tensor, " n"]:
    """What neurons whose gates change on the way add to the outputs of `whole`, less what they add to `halves`'."""
    paths = (Tiled(measure.w, risk.X).tiles() for measure in (before, half, halves, whole))
    gates = (torch.stack([act > 0 for _, act in same]) for same in zip(*paths, strict=True))
    met = torch.cat([(some.any(0) & ~some.all(0)).any(1) for some in gates])
    one, two = (risk.neurons.stream(m.w[met], risk.X).outputs(m.masses[met] * m.a[met]) for m in (whole, halves))
    return one - two


_I, _P = 0.7, 0.3  # errors fall like dt to dt^2: damped for either
_SAFETY = 0.9
_LEAST, _MOST = 0.2, 3.0
_FAILED = 0.25  # of a step that the stepper inside could not take
_TINY = 1e-10
_FIRST = 8.0  # half the error of a whole step is seen, and the first factor is cheap to correct
_SHY = 1e-3
_NEAR = 1e-4  # for a difference quotient of grad g
_SLIVER = 1e-9
_ATOL = 1e-12
