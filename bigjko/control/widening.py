"""A box that grows with its measure."""

import math
import warnings
from dataclasses import dataclass, field, replace

import torch

from bigjko_kernels import LOG_ZERO, Grid, Line

from ..energy import Energy
from ..errors import BoundaryMassWarning, StepError
from ..jko import JKO
from ..jko.entropy import epsilon_of
from ..jko.stage import continued
from ..jko.stepper import PINNED, JKOState
from ..measure import GridMeasure
from ..memory import available
from ..risk import Risk
from ..status import Status
from ..stepper import Step, Stepper


@dataclass(frozen=True, eq=False)
class WideningState:
    """What a step hands to the next: the state of the step inside, on the measure's own grid."""

    inner: JKOState


@dataclass(frozen=True, eq=False)
class Widening(Stepper[GridMeasure, WideningState]):
    """JKO steps in a box that grows at the ends of its lines where mass arrives: same spacing, every old node kept.

    What arrives is weighed by what it can do to the outputs: |a relu(w . x)| <= |theta|^2 |x| / 2, so the mass on an
    end of an axis stands for at most sum p |theta|^2 / 2 max|x| of them. Once that passes the tolerance in a step, the
    end moves out by a share of the axis and the step is taken again, from the old measure: no mass has met the edge.
    Ends without mass stay. Where nodes or memory run out, or directions at the rim of a cone are too few for epsilon,
    the flow goes on in the box it has, with a BoundaryMassWarning; the stats tell how much is at stake.

    Args:
        jko: the stepper, on the first grid; its epsilon is kept as it is, its kernel made anew on each grid.
        tolerance: outputs that the mass on one end may stand for, as a share of max|y|; of the mass, without data or
            where all of them or of their labels are 0.
        max_nodes: a grid is never made larger.
        share: of the nodes of an axis that one widening adds at an end.

    Stats: those of the last JKO step; `widened`, times in this step; `nodes`; `at_edge`, what the mass on the worst end
    stands for, in the tolerance's units; `capped`, 1 where the box should have grown and could not.

    Raises:
        StepError: for a stepper that is not JKO, a grid without lines to widen, a kernel that cannot be made on another
            grid, or numbers that are not usable.
    """

    jko: JKO
    tolerance: float = 1e-4
    max_nodes: int = 10**8
    share: float = 0.125
    name: str = field(init=False)
    energy: Energy = field(init=False, repr=False)
    tau: float = field(init=False)
    _last: list[JKO] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        jko = self.jko
        if not isinstance(jko, JKO):
            raise StepError(f"received a {type(jko).__name__}, need JKO for Widening: put Adaptive around it")
        if not any(isinstance(f, Line) and f.size > 2 for f in jko.grid.factors):
            raise StepError(f"received {jko.grid!r}, need a grid with lines for Widening: directions have no edge")
        if jko.kernel is not None and jko.kernel.on(jko.grid) is None:
            raise StepError(
                f"received a {type(jko.kernel).__name__}, which does not say how it is made on another grid, "
                "need one that does for Widening: leave kernel= away"
            )
        if not (self.tolerance > 0 and 0 < self.share <= 1 and self.max_nodes >= jko.grid.size):
            raise StepError(
                f"received tolerance = {self.tolerance}, share = {self.share} and max_nodes = {self.max_nodes}, need a "
                f"positive tolerance, 0 < share <= 1 and at least the {jko.grid.size} nodes of the first grid"
            )
        for name, value in (("name", f"widening {jko.name}"), ("energy", jko.energy), ("tau", jko.tau)):
            object.__setattr__(self, name, value)
        self._last.append(jko)

    def init(self, measure: GridMeasure) -> WideningState:
        """The state on the measure's own grid, which may be a wider one than the stepper's."""
        if not isinstance(measure, GridMeasure):
            raise StepError(f"received a {type(measure).__name__}, need a GridMeasure for Widening")
        return WideningState(self._on(measure.grid).init(measure))

    @torch.no_grad()
    def step(self, measure: GridMeasure, state: WideningState, dt: float) -> Step[GridMeasure, WideningState]:
        """One step of dt, in a box wide enough for where it leads."""
        inner, widened = state.inner, 0
        while True:
            jko = self._on(measure.grid)
            with warnings.catch_warnings():  # its edge is looked at below, by another measure
                warnings.simplefilter("ignore", BoundaryMassWarning)
                taken = jko.step(measure, inner, dt)
            if taken.status is not Status.ok:
                break
            ends = self._ends(taken.measure)
            worst = max(max(pair) for pair in ends)
            if worst <= self.tolerance:
                capped = False
                break
            grid = self._wider(measure.grid, ends)
            reason = self._obstacle(jko, grid)
            capped = reason is not None
            if capped:
                warnings.warn(
                    f"mass that stands for {worst:.2g} of the outputs has reached the edge of the box, and {reason}: "
                    "the box, and no longer the flow, decides what happens there",
                    BoundaryMassWarning,
                    stacklevel=3,
                )
                break
            del taken
            measure, inner = self._moved(measure, inner, grid)
            widened += 1
        if taken.status is not Status.ok:
            return Step(measure, WideningState(inner), dt, taken.outputs, taken.risk, taken.stats, taken.status)
        stats = {
            "widened": float(widened),
            "nodes": float(measure.grid.size),
            "at_edge": worst,
            "capped": float(capped),
        }
        after = WideningState(taken.state)
        return Step(taken.measure, after, dt, taken.outputs, taken.risk, {**taken.stats, **stats})

    def _obstacle(self, jko: JKO, grid: Grid) -> str | None:
        """Why the box may not become this one; None where it may."""
        if grid.size > self.max_nodes or jko.memory_of(grid.shape) > available(grid.device):
            return f"{grid.size:,} nodes are more than max_nodes = {self.max_nodes:,} or than fit in memory"
        neurons, kernel = jko.neurons, jko.transport.kernel
        h = grid.spacing if neurons is None else neurons.spacing(grid)
        if kernel.epsilon < epsilon_of(PINNED, h, kernel.cost):
            return f"a longer one has h = {h:.3g} at its rim, where epsilon = {kernel.epsilon:.3g} pins the mass"
        return None

    def _on(self, grid: Grid) -> JKO:
        """The stepper on a grid; the last one made is kept."""
        jko = next((known for known in (*self._last, self.jko) if known.grid.matches(grid)), None)
        if jko is None:
            kernel = None if self.jko.kernel is None else self.jko.kernel.on(grid)
            jko = replace(self.jko, grid=grid, kernel=kernel)
        self._last[:] = [jko]
        return jko

    def _ends(self, measure: GridMeasure) -> list[tuple[float, float]]:
        """What the mass on the two ends of every factor stands for, in the tolerance's units."""
        grid, risk, unit, weighed = measure.grid, self.energy, float(measure.mass), False
        if isinstance(risk, Risk) and bool(risk.y.any()) and bool(risk.X.any()):
            unit, weighed = 2 * float(risk.y.abs().max()) / float(risk.X.norm(dim=1).max()), True
        ends = []
        for k, f in enumerate(grid.factors):
            pair = [0.0, 0.0]
            for i in (0, f.size - 1) if isinstance(f, Line) and f.size > 2 else ():
                mass = measure.masses.narrow(k, i, 1)
                if weighed and isinstance(risk, Risk):
                    node = Line(f.nodes[i : i + 1], f.log_weights[i : i + 1], f.edge[i : i + 1], 0.0)
                    mass = mass * risk.neurons.squared_norm(Grid((*grid.factors[:k], node, *grid.factors[k + 1 :])))
                pair[i > 0] = float(mass.sum(dtype=torch.float64)) / unit
            ends.append((pair[0], pair[1]))
        return ends

    def _wider(self, grid: Grid, ends: list[tuple[float, float]]) -> Grid:
        pairs = []
        for f, (below, above) in zip(grid.factors, ends, strict=True):
            more = max(_FEWEST, math.ceil(self.share * f.size))
            pairs.append((more * (below > self.tolerance), more * (above > self.tolerance)))
        return grid.widened(pairs)

    def _moved(self, measure: GridMeasure, state: JKOState, grid: Grid) -> tuple[GridMeasure, JKOState]:
        """Measure and state on a wider grid: no mass on its new nodes, d continued there by parabolas.

        From a few nodes within the old ends: at them d makes up for what the kernel had nothing to reach beyond.
        """
        box, inner = [], []
        for f, g in zip(measure.grid.factors, grid.factors, strict=True):
            low = int(torch.searchsorted(g.nodes[:, 0].contiguous(), f.nodes[0, 0])) if isinstance(f, Line) else 0
            rim = max(0, min(_RIM, (f.size - 3) // 2))  # a parabola takes three nodes
            box.append(slice(low, low + f.size))
            inner.append(slice(low + rim * (low > 0), low + f.size - rim * (low + f.size < g.size)))
        log_masses = torch.full(grid.shape, LOG_ZERO, dtype=grid.dtype, device=grid.device)
        log_masses[tuple(box)] = measure.log_masses
        old = torch.full_like(log_masses, LOG_ZERO)
        known = torch.empty_like(old)
        known[tuple(box)] = state.whole_d(self._on(measure.grid).transport)
        d = continued(known[tuple(inner)], tuple(inner), old, self._on(grid).transport)
        return GridMeasure(grid, log_masses), replace(state, d=d, box=None, old=None)


_FEWEST = 4  # nodes
_RIM = 4  # nodes: at epsilon = .75 h^2 the kernel has a std of .87, and 2e-6 of it is further away
