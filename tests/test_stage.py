"""Steps on the box that holds the mass: the answer of the whole grid, at the cost of the box."""

import copy
import gc
import math
from collections.abc import Callable

import pytest
import torch

import bigjko as bj
from bigjko.jko.stage import BoxedMeasure, support
from bigjko.transport import Response, WassersteinFisherRao
from bigjko_kernels.passes import Feed

F64 = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore::bigjko.NarrowMeasureWarning")


def risk(d: int = 1) -> bj.Risk:
    X = torch.randn(6, d, dtype=F64, generator=torch.Generator().manual_seed(3))
    return bj.Risk(X, torch.linspace(-1.0, 1.0, 6, dtype=F64), weight_decay=0.05)


def concentrated(grid: bj.Grid, nodes: float = 2.5) -> bj.GridMeasure:
    return bj.GridMeasure.gaussian(grid, mean=0.6, std=nodes * grid.spacing)


@pytest.mark.parametrize("shape", [(144, 192), (96, 96, 96)], ids=["plane", "space"])
def test_a_step_on_its_box_is_the_step_on_the_grid(shape: tuple[int, ...]) -> None:
    """Each of eight steps that carry mass along: masses in L1, outputs, risk, boundary mass, and mass kept."""
    k = len(shape)
    grid = bj.Grid.uniform([-3.0] * k, [3.0] * k, shape)
    measure, F = concentrated(grid), risk(k - 1)
    on_box, on_all = bj.JKO(F, grid, tau=0.02), bj.JKO(F, grid, tau=0.02, idle=0.0)
    state = on_box.init(measure)
    for _ in range(8):
        boxed, whole = on_box.step(measure, state, 0.02), on_all.step(measure, state, 0.02)
        assert boxed.stats["stage"] <= 0.25
        assert whole.stats["stage"] == 1
        assert float((boxed.measure.masses - whole.measure.masses).abs().sum()) <= 1e-12
        assert float((boxed.outputs - whole.outputs).abs().max()) <= 1e-12
        assert float(boxed.risk) == pytest.approx(float(whole.risk), rel=1e-12)
        assert boxed.stats["width"] == pytest.approx(whole.stats["width"], rel=1e-12)
        assert abs(float(boxed.measure.boundary_mass - whole.measure.boundary_mass)) <= 1e-15
        assert abs(boxed.stats["mass_error"]) <= 1e-13
        measure, state = boxed.measure, boxed.state


def test_a_flow_forgets_less_by_its_boxes_than_by_rounding_of_its_start() -> None:
    """An expanding flow brings masses of 1e-16 to where its bulk will be, and they decide how d finds it there.

    So no restriction, and no change of the start that is rounding, leaves ten such steps as they were. Halving all that
    lies beyond 8 deviations, 1e-16 of the mass, must move the flow more than the boxes do.
    """
    grid = bj.Grid.uniform([-3.0, -3.0], [3.0, 3.0], [144, 192])
    start = concentrated(grid)
    thinned = start.log_masses - (start.log_masses < start.log_masses.max() - 32.0) * math.log(2.0)
    jko, whole = bj.JKO(risk(), grid, tau=0.05), bj.JKO(risk(), grid, tau=0.05, idle=0.0)
    exact = bj.evolve(whole, start, t_end=0.5).final.masses
    flow = bj.evolve(jko, start, t_end=0.5)
    assert float(flow.stats["stage"][1]) <= 0.25
    boxed = flow.final.masses
    rounded = bj.evolve(whole, bj.GridMeasure(grid, thinned), t_end=0.5).final.masses
    assert float((boxed - exact).abs().sum()) < 0.1 * float((rounded - exact).abs().sum())


def test_a_step_out_of_its_box_is_taken_again_on_a_wider_one() -> None:
    # A slope that moves all mass by eight nodes, twice as far as the first box reaches.
    grid = bj.Grid.uniform([-3.0, -3.0], [3.0, 3.0], [128, 128])
    start, h = concentrated(grid), grid.spacing
    field = bj.Potential(lambda x: -8 * h * x[:, 0] / 0.1)
    taken = {}
    for idle in (1e-15, 0.0):
        jko = bj.JKO(field, grid, tau=0.1, idle=idle)
        taken[idle] = jko.step(start, jko.init(start), 0.1)
    found = support(start, 1e-15, 4)
    assert found is not None
    first, _ = found
    small = math.prod(side.stop - side.start for side in first) / grid.size
    boxed, whole = taken[1e-15], taken[0.0]
    assert small < boxed.stats["stage"] <= 0.25
    assert float((boxed.measure.masses - whole.measure.masses).abs().sum()) <= 1e-13
    x = grid.factors[0].nodes[:, 0]
    shift = float((boxed.measure.masses - start.masses).sum(1) @ x)
    assert shift == pytest.approx(8 * h, rel=0.01)  # two passes of d fall about (eps / 2v)^2 = .4% short


def test_the_box_holds_the_mass() -> None:
    grid = bj.Grid.uniform([-3.0, -3.0, -3.0], [3.0, 3.0, 3.0], [64, 72, 64])
    measure = concentrated(grid, 1.5)
    for idle in (1e-15, 1e-9):
        found = support(measure, idle, 4)
        assert found is not None
        box, outside = found
        assert all(side.start % 4 == 0 for side in box)
        lost = measure.masses.clone()
        lost[box] = 0.0
        assert outside == pytest.approx(float(lost.sum()), rel=1e-9)
        assert outside <= idle
    assert support(measure, 0.0, 4) is None
    assert support(bj.GridMeasure.gaussian(grid, 0.0, 1.0), 1e-15, 4) is None  # more than a quarter of the nodes


def test_directions_are_never_cut() -> None:
    way = bj.neurons.Projected()
    grid = way.grid(nodes=128, dim=2)
    log_masses = torch.full(grid.shape, -60.0, dtype=F64)
    log_masses[0, 5:20] = 0.0
    assert support(bj.GridMeasure(grid, log_masses), 1e-15, 4) is None


def test_mass_outside_the_box_stays_to_the_last_bit() -> None:
    grid = bj.Grid.uniform([-3.0, -3.0], [3.0, 3.0], [144, 144])
    start = concentrated(grid)
    jko = bj.JKO(risk(), grid, tau=0.05)
    step = jko.step(start, jko.init(start), 0.05)
    assert torch.equal(step.measure.log_masses[0], start.log_masses[0])
    assert torch.equal(step.measure.masses, bj.GridMeasure(grid, step.measure.log_masses).masses)
    again = jko.step(start, jko.init(start), 0.05)  # on the stage that is kept
    assert torch.equal(again.measure.log_masses, step.measure.log_masses)


def test_steps_on_one_box_touch_no_array_of_the_whole_grid() -> None:
    """Until someone asks for the whole measure, which is then that of its box and of the start around it."""
    grid = bj.Grid.uniform([-3.0, -3.0], [3.0, 3.0], [144, 144])
    start = concentrated(grid)
    jko = bj.JKO(bj.Potential(lambda x: 0.01 * x[:, 0]), grid, tau=0.01)
    first = jko.step(start, jko.init(start), 0.01)
    second = jko.step(first.measure, first.state, 0.01)
    measure = second.measure
    assert isinstance(measure, BoxedMeasure)
    assert not {"masses", "log_masses"} & (vars(first.measure).keys() | vars(measure).keys())
    assert second.state.old is first.state.old
    plain = bj.GridMeasure(grid, measure.log_masses)
    assert torch.equal(measure.masses, plain.masses)
    assert float(measure.mass) == pytest.approx(float(plain.mass), abs=1e-15)
    assert abs(float(measure.boundary_mass - plain.boundary_mass)) <= 1e-15
    assert second.state.whole_d(jko.transport).shape == grid.shape


@pytest.mark.parametrize("idle", [-1e-9, 1e-3, math.nan])
def test_an_idle_share_that_would_show_is_refused(idle: float) -> None:
    grid = bj.Grid.uniform([-3.0, -3.0], [3.0, 3.0], [32, 32])
    with pytest.raises(bj.StepError, match=r"received idle = .*, need a share of the mass in \[0, 1e-6\)"):
        bj.JKO(risk(), grid, tau=0.05, idle=idle)


def test_a_plain_flow_on_an_irregular_axis_is_as_exact_on_its_box() -> None:
    # d holds the cell volumes there: they go on as they are, not as a tail.
    t = torch.linspace(-18.0, 18.0, 601, dtype=F64)
    grid = bj.Grid((bj.Line.at(t + 0.5 * t.sin()),))
    start = bj.GridMeasure.gaussian(grid, -4.0, 0.35)
    field = bj.Potential(lambda x: -2 * x[:, 0])
    found = []
    for idle in (1e-15, 0.0):
        jko = bj.JKO(field, grid, tau=0.1, entropy=bj.Plain(), idle=idle)
        flow = bj.evolve(jko, start, t_end=1.0)
        found.append(flow.final.masses)
        assert (float(flow.stats["stage"][1]) <= 0.25) == (idle > 0)
    assert float((found[0] - found[1]).abs().sum()) <= 1e-12


@pytest.mark.parametrize("kind", ["table", "normalised"])
def test_a_potential_is_that_of_the_whole_grid_on_a_box(kind: str) -> None:
    grid = bj.Grid.uniform([-9.0, -9.0], [9.0, 9.0], [144, 144])
    start = bj.GridMeasure.gaussian(grid, -2.0, 0.3)
    table = grid.points().sum(1)
    fields: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "table": lambda x: table,
        "normalised": lambda x: 3 * x.sum(1) / x.abs().max(),
    }
    boxed, whole = (
        bj.evolve(bj.JKO(bj.Potential(fields[kind]), grid, tau=0.05, idle=idle), start, t_end=0.2)
        for idle in (1e-15, 0.0)
    )
    assert float(boxed.stats["stage"][1:].max()) <= 0.25
    assert float((boxed.final.masses - whole.final.masses).abs().sum()) <= 1e-10


def test_a_kernel_that_cannot_be_cut_works_on_the_whole_grid() -> None:
    grid = bj.Grid.uniform([-6.0, -6.0], [6.0, 6.0], [144, 144])

    class Mine(bj.kernels.GibbsKernel):
        def __init__(self, grid: bj.Grid) -> None:
            super().__init__(grid, 0.75 * grid.spacing**2, bj.kernels.SquaredEuclidean())
            self.inner = bj.kernels.Separable(grid, self.epsilon)

        def _log_apply(self, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
            return self.inner.log_apply(b, out=out)

    start = concentrated(grid)
    jko = bj.JKO(risk(), grid, tau=0.05, kernel=Mine(grid))
    assert jko.step(start, jko.init(start), 0.05).stats["stage"] == 1
    ours = bj.JKO(risk(), grid, tau=0.05)
    assert ours.step(start, ours.init(start), 0.05).stats["stage"] <= 0.25


def test_a_learned_potential_keeps_its_gradient_to_itself() -> None:
    grid = bj.Grid.uniform([-3.0, -3.0], [3.0, 3.0], [32, 32])
    net = torch.nn.Linear(2, 1, dtype=F64)
    start = bj.GridMeasure.gaussian(grid, 0.0, 0.6)
    jko = bj.JKO(bj.Potential(lambda x: net(x)[:, 0]), grid, tau=0.05)
    assert not jko.step(start, jko.init(start), 0.05).measure.log_masses.requires_grad
    mean = torch.zeros(2, dtype=F64, requires_grad=True)
    bj.GridMeasure.gaussian(grid, mean, 0.5).masses[:16].sum().backward()
    assert mean.grad is not None
    assert float(mean.grad[0]) < 0


def test_a_stepper_can_be_copied() -> None:
    grid = bj.Grid.uniform([-3.0, -3.0], [3.0, 3.0], [32, 32])
    start = bj.GridMeasure.gaussian(grid, 0.0, 0.6)
    copied = copy.deepcopy(bj.JKO(risk(), grid, tau=0.05))
    assert copied.step(start, copied.init(start), 0.05).status is bj.Status.ok


def test_the_margin_that_a_step_needed_is_the_next_ones_first() -> None:
    grid = bj.Grid.uniform([-3.0, -3.0], [3.0, 3.0], [128, 128])
    start, h = concentrated(grid), grid.spacing
    jko = bj.JKO(bj.Potential(lambda x: -8 * h * x[:, 0] / 0.1), grid, tau=0.1)
    first = jko.step(start, jko.init(start), 0.1)
    second = jko.step(first.measure, first.state, 0.1)
    assert first.stats["passes"] > second.stats["passes"] == 2


def test_a_step_changes_nothing_it_was_given() -> None:
    grid = bj.Grid.uniform([-3.0, -3.0], [3.0, 3.0], [144, 144])
    for start in (concentrated(grid), bj.GridMeasure.gaussian(grid, 0.0, 0.8)):
        jko = bj.JKO(risk(), grid, tau=0.05)
        state = jko.init(start)
        before = [x.clone() for x in (start.log_masses, start.masses, state.d)]
        step = jko.step(start, state, 0.05)
        assert (step.stats["stage"] < 1) == (start.width < 3)
        kept = [x.clone() for x in (step.measure.log_masses, step.measure.masses, step.state.d)]
        jko.step(step.measure, step.state, 0.05)
        assert all(map(torch.equal, before, (start.log_masses, start.masses, state.d)))
        assert all(map(torch.equal, kept, (step.measure.log_masses, step.measure.masses, step.state.d)))
        assert torch.equal(step.measure.masses, bj.GridMeasure(grid, step.measure.log_masses).masses)


@pytest.mark.parametrize("d", [1, 2], ids=["balanced", "growing"])
def test_the_contract_of_a_transport(d: int) -> None:
    """respond and debias, which allocate, are what a step does without allocating."""
    way = bj.neurons.Lifted() if d == 1 else bj.neurons.Projected()
    grid = way.grid(24, 1) if d == 1 else way.grid(64, 2)
    data = bj.Risk(torch.ones(1, d, dtype=F64), torch.ones(1, dtype=F64), way)
    transport = bj.JKO(data, grid, tau=0.1).transport
    q = bj.GridMeasure.uniform(grid).log_masses
    fit = transport.neutral().clone()
    h = 0.01 * torch.rand(grid.shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    assert transport.feasible(h, fit)
    told = transport.respond(q, h, fit)

    # mathematics.md 2 and 3, application by application.
    eps, apply = transport.epsilon, transport.kernel.log_apply
    if isinstance(transport, WassersteinFisherRao):
        shift = transport.scale
        log_a = -torch.log1p(torch.expm1(-fit) + h) / eps
        log_b = (q - apply(log_a + shift) - shift) / (1 + eps)
        log_p = (1 + eps) * log_a + apply(log_b + shift) + shift
        blurred = apply(fit / eps + shift) + shift
    else:
        b = (fit - h) / eps
        log_p, blurred = b + apply(q - apply(b)), apply(fit / eps)
    assert torch.allclose(told.log_p, log_p, rtol=0.0, atol=1e-12)
    assert torch.allclose(transport.blurred(fit, torch.empty_like(fit)), blurred, rtol=0.0, atol=1e-12)

    def into(h: torch.Tensor) -> Response | None:
        def tilt(base: torch.Tensor, scale: float, alpha: float, out: torch.Tensor) -> Feed:
            return Feed(lambda: torch.add(scale * base, h, alpha=alpha, out=out))

        return transport.responding(q, q.exp(), tilt, fit, 0.1, torch.empty_like(fit), torch.empty_like(fit))()

    found = into(10 * h)
    assert found is not None
    assert torch.allclose(told.log_p, found.log_p + found.rest, atol=1e-12)
    assert float(told.value) == pytest.approx(float(found.value), rel=1e-12)
    if transport.conserves_mass:
        assert float(told.log_p.exp().sum()) == pytest.approx(1, abs=1e-12)
    else:
        assert not transport.feasible(h - 5, fit)
        assert into(10 * (h - 5)) is None
        with pytest.raises(bj.StepError, match="need feasible"):
            transport.respond(q, h - 5, fit)
    for _ in range(60):
        fit = transport.debias(fit, q)
    assert float((transport.reproduced(fit, torch.empty_like(fit)) - q).abs().max()) <= 1e-9


@pytest.mark.filterwarnings("ignore::bigjko.BoundaryMassWarning")  # a small box
@pytest.mark.parametrize("name", ["lifted", "logistic", "projected", "plain", "potential", "float32"])
def test_a_step_lets_go_of_its_arrays_without_the_garbage_collector(name: str) -> None:
    """Which sees no sizes, and seldom runs: in cycles of references arrays of N would pile up, one set a step."""
    way = bj.neurons.Projected() if name == "projected" else bj.neurons.Lifted()
    X, y = torch.tensor([[1.0, 0.5], [-0.5, 1.0]], dtype=F64), torch.tensor([1.0, -1.0], dtype=F64)
    if name == "potential":
        energy: bj.energy.Energy = bj.Potential(lambda x: x.square().sum(1) / 2)
    else:
        energy = bj.Risk(X, y, way, loss=bj.losses.Logistic() if name == "logistic" else bj.losses.Squared())
    grid = way.grid(64, 2) if name == "projected" else way.grid(16, 2)
    if name == "float32":
        grid = grid.to(dtype=torch.float32)
        energy = bj.Risk(X.float(), y.float(), way)
    jko = bj.JKO(energy, grid, tau=0.05, entropy=bj.Plain() if name == "plain" else bj.Debiased())
    start = bj.GridMeasure.uniform(grid) if name == "projected" else bj.GridMeasure.gaussian(grid, mean=0.0, std=0.6)
    measure, state = start, jko.init(start)
    for _ in range(2):  # what is kept from step to step is there
        taken = jko.step(measure, state, 0.05)
        measure, state = taken.measure, taken.state
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(3):
            taken = jko.step(measure, state, 0.05)
            measure, state = taken.measure, taken.state
        gc.collect()
        left = [tuple(x.shape) for x in gc.garbage if isinstance(x, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert left == []
