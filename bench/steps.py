"""One JKO step: the two solvers and Peyré's iteration at equal accuracy, and where a step's time goes."""

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from harness import Bar, Contender, Run, Setup, Table, measure, once, synchronise
from peers import OttKernel, peyre
from problems import D, box, four_points, risk
from torch import Tensor

import bigjko as bj
from bigjko_kernels import GibbsKernel, Grid, Separable, gibbs
from bigjko_kernels.passes import Feed

DUAL, SCALING = "dual solver (default)", "scaling solver, our kernel"
GOAL = 1e-8


def tables(setup: Setup) -> Iterator[Table]:
    """Solvers at two temperatures, then the anatomy of default steps."""
    side = 24 if setup.quick else 64
    yield solvers(setup, side, tau=0.2, epsilon=0.07 if setup.quick else 0.01, bar=20.0)
    yield solvers(setup, side, tau=0.05, epsilon=0.04 if setup.quick else 0.02)
    if not setup.quick:
        yield solvers(setup, 96, tau=0.2, epsilon=0.0025, ott=False)  # a minute for OTT, whose answer is known
    yield anatomy(setup)


def solvers(setup: Setup, side: int, tau: float, epsilon: float, bar: float | None = None, ott: bool = True) -> Table:
    """One plain step, n = 4, each solver to an L1 error of 1e-8 where it gets there."""
    grid, problem = box((side, side)), four_points()
    start = bj.GridMeasure.gaussian(grid, mean=0.1, std=0.5)

    def stepping(solver: bj.DualSolver | bj.ScalingSolver, kernel: GibbsKernel | None = None) -> Callable[[], object]:
        chosen = gibbs(grid, epsilon, problem.neurons.cost) if kernel is None else kernel
        jko = bj.JKO(problem, grid, tau=tau, entropy=bj.Plain(), solver=solver, kernel=chosen)
        state = jko.init(start)
        return lambda: jko.step(start, state, tau)

    best = stepping(bj.DualSolver(rtol=1e-12))()
    assert isinstance(best, bj.stepper.Step)
    truth = best.measure.masses

    def error(out: object) -> float:
        if isinstance(out, tuple):
            return float((out[0] - truth).abs().sum())
        assert isinstance(out, bj.stepper.Step)
        return float((out.measure.masses - truth).abs().sum())

    @functools.cache
    def loosest() -> float:
        """The tolerance that ends within the goal, looked for on our kernel; the smallest where none does."""
        tried = (1e-8, 1e-9, 1e-10, 1e-11, 1e-12)
        reached = (t for t in tried if error(stepping(bj.ScalingSolver(tolerance=t))()) <= GOAL)
        return next(reached, tried[-1])

    def scaling(kernel: Callable[[], GibbsKernel] | None = None) -> Callable[[], Run]:
        def build() -> Run:
            return stepping(bj.ScalingSolver(tolerance=loosest()), None if kernel is None else kernel())

        return build

    def iterations(out: object) -> str:
        if isinstance(out, tuple):
            return f"{4 * out[1]} kernel applications; his own stopping rule, 1e-6 or 500 iterations"
        assert isinstance(out, bj.stepper.Step)
        return f"{out.stats['applications']:.0f} kernel applications, {out.status.name}"

    theirs = Contender(
        "scaling solver, OTT's kernel (log mode)",
        scaling(lambda: OttKernel(grid, epsilon)),
        error,
        iterations,
        peer=True,
        slow=True,
    )
    table = measure(
        setup,
        f"One plain step, {side}^2, n = 4, tau = {tau}, epsilon = {epsilon}, float64, CPU",
        DUAL,
        [
            Contender(DUAL, lambda: stepping(bj.DualSolver()), error, iterations, ours=True),
            Contender(SCALING, scaling(), error, iterations, slow=bar is None),
            *([theirs] if ott else []),
            Contender(
                "Peyré's iteration, exponential domain", lambda: peyre(problem, start, tau, epsilon), error, iterations
            ),
        ],
        judged=f"L1 distance to the step's own limit, goal {GOAL:g}",
    )
    if bar is not None:
        text = f"times faster than the scaling solver, tau = {tau}, epsilon = {epsilon}, {side}^2"
        table.bars.append(Bar(text, table.over(SCALING, DUAL), bar, at_least=True))
    return table


# ------------------------------------------------------------------------------------------------------------ anatomy


FEW = ": what no grid changes"
_REFITS = 2  # a step, by default


@dataclass
class Clock:
    """Seconds inside `log_apply`, of whatever kernel, and calls."""

    seconds: float = 0.0
    calls: int = 0


@contextmanager
def kernel_clock() -> Iterator[Clock]:
    """Time every application in the block: on the base class, since a step may build kernels of its own.

    What an application is fed with is made before its time begins, and what follows it after that has ended.
    """
    clock, plain = Clock(), GibbsKernel.log_apply

    def timed(
        self: GibbsKernel, b: Tensor, *, feed: Feed | None = None, then: Feed | None = None, **where: Tensor | None
    ) -> Tensor:
        if feed is not None:
            feed.whole()
        synchronise()
        began = time.perf_counter()
        out = plain(self, b, **where)
        synchronise()
        clock.seconds += time.perf_counter() - began
        clock.calls += 1
        if then is not None:
            then.whole()
        return out

    twice = Separable.twice
    GibbsKernel.log_apply = timed  # type: ignore[method-assign]
    Separable.twice = GibbsKernel.twice  # type: ignore[method-assign]
    try:
        yield clock
    finally:
        GibbsKernel.log_apply, Separable.twice = plain, twice  # type: ignore[method-assign]


def anatomy(setup: Setup) -> Table:
    """Debiased steps at default settings: how many applications, and the share of the time outside the kernel.

    That is a step's time less that of its applications alone, in a step that makes what feeds them at a time of its
    own: medians of steps in turn. Steps on grids of a few nodes show what is outside whatever the grid: the
    interpreter, and sums over data. With that, by the number of applications, and nothing but the passes that no step
    can do without, at torch's speed on the same nodes (an exponential a node for M p in every evaluation and two for
    the last refit, a copy for what feeds each application and for each refit), the share would be the least: an
    estimate.
    """
    lifted, projected, device = bj.neurons.Lifted(), bj.neurons.Projected(), setup.device
    small = setup.quick
    cases: list[tuple[str, bj.Risk, Grid]] = []
    for side, d, n in (
        (32 if small else 256, 1, 16),
        (48 if small else 1024, 1, 50),
        (12 if small else 64, 2, 50),
        (16 if small else 128, 2, 50),
    ):
        cases.append((f"Lifted, {side}^{d + 1}, n = {n}", risk(n, d, D, device), lifted.grid(side, d, device=device)))
    plane = risk(16, 2, D, device)
    on_circle = bj.Risk(plane.X, plane.y, neurons=projected, loss=plane.loss)
    cases.append(("Projected, 2 x 1024, n = 16", on_circle, projected.grid(1024, 2, device=device)))
    line = risk(16, 1, D, device)
    cases.append((f"Lifted, 16^2, n = 16{FEW}", line, lifted.grid(16, 1, device=device)))
    cases.append((f"Projected, 2 x 16, n = 16{FEW}", on_circle, projected.grid(16, 2, device=device)))
    steps: dict[str, Run] = {}

    def build(name: str, problem: bj.Risk, grid: Grid) -> Callable[[], Run]:
        def run() -> Run:
            jko = bj.JKO(problem, grid, tau=0.05)
            if isinstance(problem.neurons, bj.neurons.Lifted):
                start = bj.GridMeasure.gaussian(grid, mean=0.1, std=0.5)
            else:
                start = bj.GridMeasure.uniform(grid, mass=0.5)
            first = jko.step(start, jko.init(start), 0.05)
            steps[name] = lambda: jko.step(first.measure, first.state, 0.05)
            return steps[name]

        return run

    contenders = [Contender(name, build(name, problem, grid), ours=True) for name, problem, grid in cases]
    table = measure(setup, "Second debiased JKO step at default settings, tau = .05, float64", cases[0][0], contenders)
    floors: dict[str, float] = {}  # seconds an application
    for row in reversed(table.rows):  # what no grid changes first
        if row.failure:
            continue
        calls, inside, whole = 0, list[float](), list[float]()
        for _ in range(3 if small else 25):
            whole.append(once(steps[row.name])[1])
            with kernel_clock() as clock:
                steps[row.name]()
            calls = clock.calls
            inside.append(clock.seconds)
        applied = statistics.median(inside)
        spent = statistics.median(whole) - applied
        outside = spent / statistics.median(whole)
        row.note = f"{calls} kernel applications, {100 * outside:.0f}% of the time outside them: {1e3 * spent:.2g} ms"
        way = row.name.split(",")[0]
        if row.name.endswith(FEW):
            floors[way] = spent / calls
            continue
        said = ""
        if way in floors:
            exp, copy = _passes(next(grid for name, _, grid in cases if name == row.name))
            evaluations = (calls - _REFITS) // 2
            floor = floors[way] * calls + (evaluations + 2) * exp + (calls + _REFITS) * copy
            said = f" (the least would be {floor / (floor + applied):.3g})"
            row.note += said
        table.bars.append(Bar(f"kernel applications of a debiased step, {row.name}", calls, 30.0))
        text = f"share of a debiased step's time outside the kernel, {row.name}{said}"
        table.bars.append(Bar(text, outside, 0.25))
    return table


def _passes(grid: Grid) -> tuple[float, float]:
    """Seconds of a torch.exp and of a copy on the nodes of a grid, into an array that is there: medians of 15."""
    x = -torch.rand(grid.shape, dtype=grid.dtype, device=grid.device)
    out = torch.empty_like(x)
    times = [(once(lambda: torch.exp(x, out=out))[1], once(lambda: out.copy_(x))[1]) for _ in range(16)][1:]
    exp, copy = (statistics.median(column) for column in zip(*times, strict=True))
    return exp, copy
