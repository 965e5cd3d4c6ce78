"""End to end: the time in which a flow comes within a given output gap of gradient descent."""

import math
from collections.abc import Callable, Iterator

import torch
from harness import Contender, Run, Setup, Table, measure
from problems import D, four_points

import bigjko as bj

_TAUS = (0.2, 0.1, 0.05, 0.025, 0.0125)
_REFERENCE = 16.0  # the reference's step is this much below the smallest that is tried


def tables(setup: Setup) -> Iterator[Table]:
    """Treatments of entropy, solvers and grids for one Lifted flow; then Lifted against Projected."""
    yield treatments(setup)
    yield ways(setup)


class NotReached(RuntimeError):
    """No step that was tried comes within the gap."""


def gap(flow: bj.Flow, reference: bj.Flow) -> float:
    """The largest over time and data."""
    return bj.compare(flow, reference, transport=False).sup_output_gap


def reaching(
    goal: float, flow: Callable[[float], bj.Flow], reference: bj.Flow, taus: tuple[float, ...] = _TAUS
) -> Callable[[], Run]:
    """Build: the largest step that comes within the goal; run: the flow at that step, the stepper made anew."""

    def build() -> Run:
        found: dict[float, float] = {}
        for tau in taus:
            found[tau] = gap(flow(tau), reference)
            if found[tau] <= goal:
                return lambda: flow(tau)
        best = min(found, key=found.__getitem__)
        raise NotReached(f"closest {found[best]:.2g}, at tau = {best:g}")

    return build


def _note(out: object) -> str:
    assert isinstance(out, bj.Flow)
    applications = out.stats.get("applications")
    text = f"{len(out.times) - 1} steps"
    return text if applications is None else f"{text}, {float(applications.nansum()):.0f} kernel applications"


def _table(
    setup: Setup,
    title: str,
    reference: bj.Flow,
    goal: float,
    floor: str,
    rows: list[tuple[str, Callable[[], Run], bool]],
) -> Table:
    def error(out: object) -> float:
        assert isinstance(out, bj.Flow)
        return gap(out, reference)

    contenders = [Contender(name, build, error, _note, ours=True, slow=slow) for name, build, slow in rows]
    change = float((reference.outputs - reference.outputs[0]).abs().max())
    title = f"{title}; output gap <= {goal:g}, {100 * goal / change:.2g}% of the largest change"
    return measure(setup, title, floor, contenders, judged="output gap to gradient descent with a fine step")


def treatments(setup: Setup) -> Table:
    """Four data in R, Lifted from N(.1, .5^2 I) on [-4, 4]^2, to t = 1."""
    problem, t_end, goal = four_points(), 0.4 if setup.quick else 1.0, 0.02 if setup.quick else 0.01
    sides = (40, 56) if setup.quick else (96, 192)
    grids = [bj.Grid.uniform([-4.0] * 2, [4.0] * 2, [side] * 2) for side in sides]
    starts = [bj.GridMeasure.gaussian(grid, mean=0.1, std=0.5) for grid in grids]
    nodes = starts[1].to_particles(drop=1e-8)

    def descent(tau: float) -> bj.Flow:
        return bj.evolve(bj.GradientDescent(problem, tau=tau), nodes, t_end)

    reference = descent(_TAUS[-1] / _REFERENCE)

    def jko(k: int, entropy: bj.jko.entropy.Entropy, solver: bj.DualSolver | bj.ScalingSolver) -> Callable[[], Run]:
        def flow(tau: float) -> bj.Flow:
            stepper = bj.JKO(problem, grids[k], tau=tau, entropy=entropy, solver=solver)
            return bj.evolve(stepper, starts[k], t_end)

        return reaching(goal, flow, reference)

    plain, debiased, dual, scaling = bj.Plain(), bj.Debiased(), bj.DualSolver(), bj.ScalingSolver(tolerance=1e-8)
    floor = f"debiased, dual, {sides[0]}^2"
    rows = [
        (floor, jko(0, debiased, dual), False),
        (f"debiased, scaling solver (1e-8), {sides[0]}^2", jko(0, debiased, scaling), True),
        (f"plain, dual, {sides[0]}^2", jko(0, plain, dual), False),
        (f"debiased, dual, {sides[1]}^2", jko(1, debiased, dual), False),
        (f"plain, dual, {sides[1]}^2", jko(1, plain, dual), False),
        (f"gradient descent, {nodes.shape[0]:,} particles", reaching(goal, descent, reference), False),
    ]
    return _table(setup, f"Lifted, d = 1, n = 4, to t = {t_end:g}, float64", reference, goal, floor, rows)


def ways(setup: Setup) -> Table:
    """Five data on circles, from one balanced network: every direction, |w| = |a|, both signs."""
    angle = torch.tensor([0.1, 0.9, 2.0, 3.3, 4.6], dtype=D)
    radius = torch.tensor([1.0, 0.7, 1.1, 0.8, 1.0], dtype=D)
    X, y = (
        torch.stack([angle.cos(), angle.sin()], 1) * radius[:, None],
        torch.tensor([0.8, -0.4, 0.5, -0.6, 0.3], dtype=D),
    )
    t_end, goal = 0.2 if setup.quick else 1.0, 0.01
    projected, lifted = bj.neurons.Projected(), bj.neurons.Lifted()
    problem = {way.name: bj.Risk(X, y, neurons=way) for way in (projected, lifted)}
    fine = projected.grid(256 if setup.quick else 1024, 2)
    network = projected.particles(projected.uniform(fine, radius=math.sqrt(0.5)))

    def descent(tau: float) -> bj.Flow:
        return bj.evolve(bj.GradientDescent(problem["lifted"], tau=tau), network, t_end)

    reference = descent(_TAUS[-1] / _REFERENCE)

    def on(grid: bj.Grid, start: bj.GridMeasure, name: str, taus: tuple[float, ...]) -> Callable[[], Run]:
        def flow(tau: float) -> bj.Flow:
            return bj.evolve(bj.JKO(problem[name], grid, tau=tau), start, t_end)

        return reaching(goal, flow, reference, taus)

    rows: list[tuple[str, Callable[[], Run], bool]] = []
    for nodes in (64, 128) if setup.quick else (128, 512):
        grid = projected.grid(nodes, 2)
        start = projected.uniform(grid, radius=math.sqrt(0.5))
        rows.append((f"Projected, 2 x {nodes} nodes", on(grid, start, "projected", _TAUS), False))
    # Lifted cannot hold a start on the cone |w| = |a|: one node wide it moves at the wrong speed, wider it is another.
    for side, width in ((16, 1.0),) if setup.quick else ((48, 1.0), (64, 2.0)):
        box = lifted.grid(side, 2, radius=3.0)
        start = lifted.measure(box, network.w, network.a, masses=network.masses, width=width)
        name = f"Lifted, {side}^3 nodes, start blurred by a std of {width:g} nodes"
        rows.append((name, on(box, start, "lifted", _TAUS[:4]), not setup.quick))
    rows.append((f"gradient descent, {network.shape[0]:,} particles", reaching(goal, descent, reference), False))
    title = f"Projected and Lifted from one balanced network, d = 2, n = 5, to t = {t_end:g}, float64"
    return _table(setup, title, reference, goal, rows[0][0], rows)
