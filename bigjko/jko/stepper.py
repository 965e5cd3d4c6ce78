"""The entropic JKO step."""

import math
import warnings
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from bigjko_kernels import GibbsKernel, Grid, geodesic, gibbs
from bigjko_kernels.pages import Pool

from ..energy import Composite, Energy, restricted
from ..errors import BoundaryMassWarning, NarrowMeasureWarning, StepError
from ..measure import GridMeasure
from ..memory import check as check_memory
from ..risk import Risk
from ..status import Status
from ..stepper import Step, Stepper
from ..transport import Balanced, Transport
from .box import DualBox
from .dual import DualSolver, foreseen
from .entropy import Debiased, Entropy, Refit, epsilon_of
from .problem import Room, Solution, StepProblem, StepSolver
from .scheme import FirstOrder, Scheme
from .size import step_memory
from .stage import Box, Stage, continued, part, support


@dataclass(frozen=True, eq=False)
class JKOState:
    """What a step hands to the next.

    Attributes:
        z: (n,) the dual point, grad g(M q).
        d: the debiasing potential that fits q, on the nodes of `box`.
        missed: how far the first pass ended from where it was foreseen; None where it was foreseen from an old
            curvature. (n,) of the last step and of the one before, which tell what the next will be, if it is as long.
        drift: likewise, how far z went from there to the end of the last pass: what refitting d does to it.
        dt: the length of those steps.
        curvature: (n, n) the NTK as the last step's solver left it, where a fresh one would cost more than it spares.
        margin: nodes around the mass that the next step's box begins with.
        box: the nodes that the last step worked on; None for all.
        old: the potential of the whole grid before there was this box.
    """

    z: Float[Tensor, " n"]
    d: Tensor
    missed: tuple[Float[Tensor, " n"], ...] | None = None
    drift: tuple[Float[Tensor, " n"], ...] | None = None
    dt: float = 0.0
    curvature: Float[Tensor, "n n"] | None = None
    margin: int = 4
    box: Box | None = None
    old: Float[Tensor, "*grid"] | None = None

    def whole_d(self, transport: Transport) -> Float[Tensor, "*grid"]:
        """d on the whole grid, whose transport it is given."""
        return self.d if self.box is None or self.old is None else continued(self.d, self.box, self.old, transport)


@dataclass(frozen=True, eq=False)
class JKO(Stepper[GridMeasure, JKOState]):
    """p+ = argmin over p of T_eps(p, q) + tau F(p), the transport being the way's own.

    Args:
        energy: F: a Risk, or a Potential.
        grid: nodes on Theta.
        tau: time step, in physical time (with cost |x - y|^2 / 2 it is the flow's own time).
        epsilon: entropic temperature, absolute, in units of the cost (files give it in h^2): the variance of a kernel
            whose cost is |x - y|^2 / 2 nearby, `cost.curvature` times it for another. A variance of .75 h^2 by default.
            Below .5 h^2 mass moves visibly slow (a warning), below .25 h^2 it is pinned to the nodes (refused); above
            half the start's narrowest variance entropy decides instead of the flow (a warning).
        entropy: Debiased() or Plain().
        scheme: FirstOrder(), or SecondOrder() for smooth problems.
        solver: DualSolver(), or ScalingSolver() for reference.
        kernel: the Gibbs kernel; `gibbs(grid, epsilon, way's cost)` by default.
        idle: share of the mass that a step may leave where it is. On lines it works in the box that holds the rest, if
            that is less than a quarter of the grid, widened until no more than this share reaches its sides. 0: on all
            nodes, always.

    Raises:
        StepError: for a tau that is not positive, an epsilon below .25 h^2, a kernel of another grid, or a grid whose
            steps need more memory than there is.

    Stats of a step: `evaluations` and `applications` (of the kernel), `passes`; `gap_z`, the largest of its passes; of
    the last pass `residual`, `gap_d` and `misfit` (gap_z + gap_d bounds the step's suboptimality, mathematics.md 2);
    `mass_error` (balanced) or `growth`, `boundary_mass`, `width` (nodes), `stage` (the share of the grid worked on).
    """

    energy: Energy
    grid: Grid
    tau: float
    epsilon: float | None = None
    entropy: Entropy = field(default_factory=Debiased)
    scheme: Scheme = field(default_factory=FirstOrder)
    solver: StepSolver = field(default_factory=DualSolver)
    kernel: GibbsKernel | None = None
    idle: float = 1e-15

    name = "jko"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tau) and self.tau > 0):
            raise StepError(f"received tau = {self.tau}, need a positive finite time step")
        if not 0 <= self.idle < 1e-6:
            raise StepError(f"received idle = {self.idle}, need a share of the mass in [0, 1e-6): 0 works on all nodes")
        if isinstance(self.energy, Risk):
            self.energy.neurons.check(self.grid, self.energy.X.shape[1])
        h = self.spacing
        if self.kernel is not None and not self.kernel.grid.matches(self.grid):
            raise StepError(f"received a kernel on {self.kernel.grid!r}, need one on the stepper's own grid")
        if self.kernel is not None and self.epsilon is not None and self.kernel.epsilon != self.epsilon:
            raise StepError(
                f"received epsilon = {self.epsilon} and a kernel with {self.kernel.epsilon}, need one of them or equals"
            )
        neurons = self.neurons
        cost = geodesic(self.grid) if neurons is None else neurons.cost
        if self.kernel is not None and neurons is not None and self.kernel.cost != cost:
            raise StepError(f"received a kernel of {self.kernel.cost!r}, need the way's own {cost!r}")
        epsilon = self.epsilon if self.kernel is None else self.kernel.epsilon
        if epsilon is None:
            if h == 0:
                raise StepError("received a grid without neighbours, need an epsilon: .75 h^2 has no h here")
            epsilon = epsilon_of(0.75, h, cost)
        if not (math.isfinite(epsilon) and epsilon > 0):
            raise StepError(f"received epsilon = {epsilon}, need a positive finite number: .75 h^2 is the default")
        least, share = epsilon_of(PINNED, h, cost), epsilon / cost.curvature / (h * h) if h else math.inf
        if epsilon < least:
            raise StepError(
                f"received epsilon = {epsilon:.4g}, variance = {share:.3g} h^2, need at least .25 h^2 = "
                f"{0.25 * h * h:.4g}, which is epsilon = {least:.4g}: less pins the mass to the nodes: refine the grid"
            )
        if share < 0.5:
            warnings.warn(
                f"the variance of epsilon is {share:.3g} h^2, below .5 h^2: mass moves up to 14% slow; use .75 h^2",
                NarrowMeasureWarning,
                stacklevel=3,
            )
        object.__setattr__(self, "epsilon", float(epsilon))
        check_memory(self.grid, self.memory_of, "JKO steps")
        object.__setattr__(self, "composite", self.energy.on(self.grid))
        kernel = gibbs(self.grid, epsilon, cost) if self.kernel is None else self.kernel
        object.__setattr__(self, "transport", Balanced(kernel) if neurons is None else neurons.transport(kernel))

    _last: list[Stage] = field(default_factory=list, init=False, repr=False)
    _pool: Pool = field(default_factory=Pool, init=False, repr=False)
    composite: Composite = field(init=False, repr=False)
    transport: Transport = field(init=False, repr=False)

    @property
    def spacing(self) -> float:
        """h in the metric of the way."""
        return self.grid.spacing if self.neurons is None else self.neurons.spacing(self.grid)

    def memory_of(self, shape: tuple[int, ...]) -> int:
        """Bytes that a flow would need with so many nodes per factor."""
        return step_memory(self.energy, self.grid, shape)

    @property
    def memory(self) -> int:
        """Bytes that a flow needs on this grid, measure and state included; more than there are is refused."""
        return self.memory_of(self.grid.shape)

    @torch.no_grad()
    def init(self, measure: GridMeasure) -> JKOState:
        """The dual point and the debiasing potential that belong to the measure.

        Raises:
            StepError: if the measure lives on another grid.
        """
        if not isinstance(measure, GridMeasure):
            raise StepError(f"received a {type(measure).__name__}, need a GridMeasure for JKO: use neurons.measure")
        if not measure.grid.matches(self.grid):
            raise StepError(f"received a measure on {measure.grid!r}, need one on the stepper's own grid")
        epsilon, h = self.transport.epsilon, self.spacing
        variance, narrowest = epsilon / self.transport.kernel.cost.curvature, (float(measure.width) * h) ** 2
        if variance > narrowest / 2:
            warnings.warn(
                f"epsilon is {epsilon:.3g} ({variance / h**2:.3g} h^2), more than half the narrowest variance of the "
                f"start, {narrowest:.3g}: entropy, and not the flow, decides at that scale; epsilon is in units of the "
                "cost, and .75 h^2 is the default",
                NarrowMeasureWarning,
                stacklevel=3,
            )
        z = self.composite.loss.gradient(self.composite.outputs(measure.masses), self.composite.targets)
        return JKOState(z, self.entropy.init(self.transport, measure.log_masses))

    @torch.no_grad()
    def step(self, measure: GridMeasure, state: JKOState, dt: float) -> Step[GridMeasure, JKOState]:
        """One step of physical time dt. No gradient passes through it."""
        margin, evaluations, passes = state.margin, 0, 0
        while True:
            box, outside = support(measure, self.idle, margin) or (None, 0.0)
            stage = self._stage(box)
            taken = self._on(stage, measure, state, dt)
            evaluations, passes = evaluations + taken.evaluations, passes + taken.passes
            leaving, allowed = stage.leaving(taken.refit.masses, self.grid), self.idle * float(measure.mass)
            if taken.last.status is not Status.ok or leaving <= allowed:
                break
            del taken
            margin *= 2  # the step carries mass out of the box
        d, log_p, status = taken.refit.d, taken.last.log_p, taken.last.status
        if status not in (Status.ok, Status.dual_stalled, Status.scaling_stalled):
            return Step(measure, state, dt, taken.last.outputs, measure.mass * math.nan, {}, status)
        on_stage = GridMeasure.known(stage.grid, log_p, taken.refit.masses)
        new = stage.moved(measure, outside, on_stage)
        if not 0 < float(new.mass) < math.inf:  # NaN, or it shrank below the smallest number
            return Step(measure, state, dt, taken.last.outputs, measure.mass * math.nan, {}, Status.not_finite)
        change = float(new.mass / measure.mass) - 1
        conserves = self.transport.conserves_mass
        stats = {
            "evaluations": float(evaluations),
            "applications": float(2 * evaluations + (passes if isinstance(self.entropy, Debiased) else 0)),
            "passes": float(passes),
            "residual": taken.last.residual,
            "gap_z": taken.gap_z,
            "gap_d": taken.refit.gap if conserves else math.nan,
            "misfit": taken.refit.misfit,
            "mass_error" if conserves else "growth": change,
            "boundary_mass": float(new.boundary_mass),
            "width": float(on_stage.width),
            "stage": stage.grid.size / self.grid.size,
        }
        _warn(stats)
        risk = stage.composite.value(taken.refit.masses, taken.last.outputs)
        z = stage.composite.loss.gradient(taken.last.outputs, stage.composite.targets)  # a scheme's own z is another
        # A learned curvature serves the next step as well as a fresh NTK, until a step was hard.
        costly = self.composite.features.gram_work > max(_FREE * self.grid.size, _SMALL)
        learned = taken.last.curvature / dt if costly and taken.evaluations <= _EASY * taken.passes else None
        if leaving <= _ROOMY * allowed:  # at least two nodes more than it took
            margin = max(JKOState.margin, margin - 1)
        old = None if stage.box is None else state.old if stage.box == state.box else state.whole_d(self.transport)
        after = JKOState(z, d, taken.missed, taken.drift, dt, learned, margin, stage.box, old)
        return Step(new, after, dt, taken.last.outputs, risk, stats, status)

    @cached_property
    def _whole(self) -> Stage:
        return Stage(None, self.grid, self.composite, self.transport)

    def _stage(self, box: Box | None) -> Stage:
        """The stage of a box; the last one is kept, since a flow seldom needs another."""
        if box is None:
            return self._whole
        stage = next((known for known in self._last if known.box == box), None)
        if stage is None:
            grid = part(self.grid, box)
            kernel, neurons = self.transport.kernel.on(grid), self.neurons
            if kernel is None:
                return self._whole
            transport = Balanced(kernel) if neurons is None else neurons.transport(kernel)
            stage = Stage(box, grid, restricted(self.energy, self.composite, grid, box), transport)
        self._last[:] = [stage]  # at once: another thread may share the stepper
        return stage

    def _on(self, stage: Stage, measure: GridMeasure, state: JKOState, dt: float) -> "_Taken":
        """The passes of a step on its stage."""
        log_q, q = stage.measure(measure)
        d = state.d if stage.box == state.box else stage.cut(state.whole_d(self.transport))
        transport = stage.transport.fitted(log_q)
        energy = self.scheme.model(stage.composite, q, dt)
        fresh, as_long = state.curvature is None, abs(dt - state.dt) <= _AS_LONG * dt
        missed, drift = (state.missed, state.drift) if as_long else (None, None)
        curvature = dt * (energy.features.gram(q) if state.curvature is None else state.curvature)
        box = stage.dual_box if energy is stage.composite else DualBox(energy.loss, energy.targets.cpu())
        start = foreseen(box, state.z.cpu(), curvature.cpu()).to(state.z.device) if state.z.numel() else state.z
        z = start + _coming(missed) if fresh else start
        evaluations, passes, gap_z, room, new_d = 0, 0, 0.0, Room(log_q, self._pool), self._pool.empty_like(log_q)
        if self.entropy.passes > 1:  # which all work on one array
            d = new_d.copy_(d)
        solve = self.solver.solving(StepProblem(transport, energy, box, log_q, q, d, dt, room))
        for left in range(self.entropy.passes - 1, -1, -1):
            rtol = _ROUGH if left and not self.entropy.tolerance else 0.0  # not the last: it only moves d
            solution = solve(z, curvature, rtol)
            z, curvature = solution.onward, solution.curvature
            told = not left or solution.status is not Status.ok or self.entropy.tolerance > 0
            refit = self.entropy.refit(transport, d, solution.log_p, room.work, new_d, told)
            d, passes, evaluations = refit.d, passes + 1, evaluations + solution.evaluations
            gap_z = max(gap_z, solution.gap)
            if passes == 1:
                missed = _kept(z - start, missed) if fresh else None
                start, z = z, z + _coming(drift)
            if solution.status is not Status.ok or (self.entropy.tolerance and refit.misfit <= self.entropy.tolerance):
                break
        drift = _kept(solution.z - start, drift) if passes > 1 else None
        return _Taken(solution, refit, gap_z, evaluations, passes, missed, drift)


@dataclass(frozen=True, eq=False)
class _Taken:
    """What the passes of a step led to: the last of them, and the largest gap and the work of all."""

    last: Solution
    refit: Refit
    gap_z: float
    evaluations: int
    passes: int
    missed: "_Known | None"
    drift: "_Known | None"


_Known = tuple[Float[Tensor, " n"], ...]


def _coming(known: _Known | None) -> Float[Tensor, " n"] | float:
    """What was known of the last two steps, continued in a straight line."""
    if known is None:
        return 0.0
    return known[0] if len(known) == 1 else torch.lerp(known[1], known[0], 2.0)


def _kept(new: Float[Tensor, " n"], known: _Known | None) -> _Known:
    return (new,) if known is None else (new, known[0])


def _warn(stats: dict[str, float]) -> None:
    if stats["width"] < _NARROW:
        warnings.warn(
            f"the measure is narrower than {_NARROW:g} nodes, where flows of ReLU networks end and mass is slow: "
            "halve tau once, and where the gap to gradient descent does not fall take nodes on the "
            "kinks of a circle (kinks=X), else epsilon = 1.5 h^2",
            NarrowMeasureWarning,
            stacklevel=4,
        )
    if stats["boundary_mass"] > _BOUNDARY:
        warnings.warn(
            f"more than {_BOUNDARY:.0e} of the mass has reached the edge of the box, which now bends the flow: "
            "widen the grid",
            BoundaryMassWarning,
            stacklevel=4,
        )


PINNED = 0.25  # h^2: with less variance mass does not leave its node
_FREE = 10  # multiplications a node: a step's kernel takes hundreds
_AS_LONG = 1e-3  # of a step: times are sums, and no two differences of them the same
_SMALL = 1 << 20  # multiplications: a tenth of a millisecond
_EASY = 3  # evaluations a pass
_ROOMY = 1e-6
_ROUGH = 1e-4  # of a pass that is not the last: its p moves d by (eps / 2v) of its own error
_NARROW = 2.0
_BOUNDARY = 1e-3
