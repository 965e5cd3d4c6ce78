"""How cost grows: with the number of nodes N, with the number of data n, and with how much of the grid carries mass."""

import math
import statistics
from collections.abc import Callable, Iterator
from functools import partial

import torch
from harness import Bar, Contender, Row, Run, Setup, Table, measure
from problems import D, ball, box, risk, sloped

import bigjko as bj
from bigjko_kernels import Separable


def tables(setup: Setup) -> Iterator[Table]:
    """The kernel and the step against N, the step against n, and the step against the share of nodes with mass."""
    quick = setup.quick
    yield kernel(setup, 2, (32, 64, 128) if quick else (256, 512, 1024, 2048, 4096), D)
    yield kernel(setup, 3, (8, 16, 24) if quick else (32, 64, 128, 256), D)
    yield kernel(setup, 3, (8, 16, 24) if quick else (64, 128, 256, 512), torch.float32)
    yield steps_in_N(setup, (24, 32, 48) if quick else (128, 256, 512, 1024))
    yield steps_in_n(setup, (32, 32) if quick else (256, 256), (4, 16) if quick else (4, 16, 64, 256))
    yield steps_in_n(setup, (12, 12, 12) if quick else (64, 64, 64), (4, 16) if quick else (4, 16, 64, 256))
    yield concentrated(setup, (48, 48) if quick else (1024, 1024))
    yield concentrated(setup, (16, 16, 16) if quick else (128, 128, 128))


def _exponent(table: Table, sizes: list[int]) -> float:
    """Of the least-squares line through the logarithms of size and median."""
    kept = [(size, row.median) for size, row in zip(sizes, table.rows, strict=True) if row.times]
    if len(kept) < 2:
        return float("nan")
    logs = [(math.log(size), math.log(median)) for size, median in kept]
    return statistics.linear_regression(*zip(*logs, strict=True)).slope


def kernel(setup: Setup, dim: int, sides: tuple[int, ...], dtype: torch.dtype) -> Table:
    """One application at fixed epsilon / h^2 and fixed displacement in nodes."""

    def build(side: int) -> Callable[[], Run]:
        def run() -> Run:
            grid = box((side,) * dim, dtype, setup.device)
            b, separable = sloped(grid), Separable(grid, 0.75 * grid.spacing**2)
            out = torch.empty_like(b)
            return lambda: separable.log_apply(b, out=out)

        return run

    size = 4 if dtype == torch.float32 else 8
    contenders = [
        Contender(f"{side}^{dim}", build(side), ours=True, needs=8.0 * size * side**dim, slow=side**dim > 5e6)
        for side in sides
    ]
    name = str(dtype)[6:]
    table = measure(
        setup, f"Log kernel against N, {dim}-D, {name}, epsilon = .75 h^2, tau = h", f"{sides[0]}^{dim}", contenders
    )

    def arrays(row: Row) -> float:
        """What an application adds, the float64 array that its kernel keeps, and the result."""
        return row.peak / (size * int(row.name.split("^")[0]) ** dim) + 8 / size + 1

    measured = [row for row in table.rows if row.times]
    for row in measured:
        row.note = f"{arrays(row):.3g} arrays of N"
    slope = _exponent(table, [int(row.name.split("^")[0]) ** dim for row in table.rows])
    table.bars.append(Bar(f"exponent of the kernel's time in N, {dim}-D, {name}", slope, 1.1))
    if measured:
        largest = measured[-1]
        text = f"arrays of N of one application, the kernel's own and the result included, {largest.name} {name}"
        table.bars.append(Bar(text, arrays(largest), 4.0))
    return table


def _applications(out: object) -> str:
    assert isinstance(out, bj.stepper.Step)
    return f"{out.stats.get('applications', float('nan')):.0f} kernel applications"


def steps_in_N(setup: Setup, sides: tuple[int, ...]) -> Table:
    """One debiased step at tau = h: the displacement stays the same in nodes."""
    problem = risk(16, 1, D, setup.device)

    def build(side: int) -> Callable[[], Run]:
        def run() -> Run:
            grid = box((side, side), D, setup.device)
            jko = bj.JKO(problem, grid, tau=grid.spacing)
            start = bj.GridMeasure.gaussian(grid, mean=0.1, std=0.5)
            state = jko.init(start)
            return lambda: jko.step(start, state, jko.tau)

        return run

    contenders = [Contender(f"{side}^2", build(side), note=_applications, ours=True, slow=side > 512) for side in sides]
    title = "Debiased JKO step against N, 2-D, n = 16, float64, tau = h, from N(.1, .5^2 I)"
    table = measure(setup, title, f"{sides[0]}^2", contenders)
    slope = _exponent(table, [int(row.name.split("^")[0]) ** 2 for row in table.rows])
    table.bars.append(Bar("exponent of the step's time in N, 2-D, float64", slope, 1.1))
    return table


def steps_in_n(setup: Setup, shape: tuple[int, ...], data: tuple[int, ...]) -> Table:
    """One debiased step with more and more data."""
    grid = box(shape, D, setup.device)
    start = bj.GridMeasure.gaussian(grid, mean=0.1, std=0.5)

    def build(n: int) -> Callable[[], Run]:
        def run() -> Run:
            jko = bj.JKO(risk(n, len(shape) - 1, D, setup.device), grid, tau=0.05)
            state = jko.init(start)
            return lambda: jko.step(start, state, 0.05)

        return run

    contenders = [Contender(f"n = {n}", build(n), note=_applications, ours=True) for n in data]
    title = f"Debiased JKO step against n, {shape[0]}^{len(shape)}, float64, tau = .05"
    table = measure(setup, title, f"n = {data[0]}", contenders, array=8 * grid.size)
    table.title += f": time grows like n^{_exponent(table, list(data)):.2f}"
    return table


WHOLE, CUT = "2% of the nodes hold all but 1e-15 of the mass, idle=0: all nodes", "the same measure, on its box"
NEXT = "the step after that, which need not look for the box"


_REACH = {
    2: 8.311,
    3: 8.541,
}  # deviations of a Gaussian within which it has all but 1e-15 of its mass: chi(k).isf(1e-15)


def concentrated(setup: Setup, shape: tuple[int, ...]) -> Table:
    """One debiased step from a measure on few nodes, on all of them and on the box that holds it: same tau, risk."""
    grid = box(shape, D, setup.device)
    problem = risk(16, len(shape) - 1, D, setup.device)
    gaussian = partial(bj.GridMeasure.gaussian, grid, mean=0.5, std=_radius(shape) / _REACH[len(shape)])
    cases = {
        WHOLE: (gaussian, 0.0, 0),
        CUT: (gaussian, 1e-15, 0),
        NEXT: (gaussian, 1e-15, 1),
        "a ball of 2% of the nodes, sharp, which the step widens by 8 nodes": (lambda: ball(grid, 0.02), 1e-15, 0),
        "mass on every node": (lambda: bj.GridMeasure.gaussian(grid, mean=0.1, std=1.5), 1e-15, 0),
    }

    def build(start: Callable[[], bj.GridMeasure], idle: float, before: int) -> Callable[[], Run]:
        def run() -> Run:
            jko = bj.JKO(problem, grid, tau=2 * grid.spacing, idle=idle)
            measure = start()
            state = jko.init(measure)
            for _ in range(before):
                step = jko.step(measure, state, jko.tau)
                measure, state = step.measure, step.state
            return lambda: jko.step(measure, state, jko.tau)

        return run

    contenders = [Contender(name, build(*case), note=_applications, ours=True) for name, case in cases.items()]
    where = f"{shape[0]}^{len(shape)}"
    title = f"Debiased JKO step against the share of nodes with mass, {where}, n = 16, float64, tau = 2 h"
    table = measure(setup, title, WHOLE, contenders, array=8 * grid.size)
    table.bars.append(Bar(f"share of the full step's time on 2% of the nodes, {where}", table.over(CUT, WHOLE), 0.1))
    return table


def _radius(shape: tuple[int, ...]) -> float:
    """Of a ball that holds 2% of a box of side 6."""
    volume = 0.02 * 6.0 ** len(shape)
    radius = (volume / math.pi) ** 0.5 if len(shape) == 2 else (volume * 3 / (4 * math.pi)) ** (1 / 3)
    return float(radius)
