"""The log kernel on S^2, where costs do not separate: ours against KeOps over all pairs."""

from collections.abc import Iterator

import torch
from harness import Bar, Contender, Run, Setup, Table, measure
from torch import Tensor

from bigjko_kernels import Grid, Lazy, Sphere, SquaredArc
from bigjko_kernels.keops import LazyTensor

OURS = "bigjko Lazy"


def tables(setup: Setup) -> Iterator[Table]:
    """A few and many nodes."""
    for nodes in (500,) if setup.quick else (10_000, 100_000):
        yield sphere(setup, nodes)


def sphere(setup: Setup, nodes: int) -> Table:
    """One application at epsilon = .75 h^2, of a risk-like b that moves mass a few nodes.

    Over all pairs only a share of the outputs is computed, since time is linear in them; the row's time is scaled up.
    """
    grid = Grid((Sphere.fibonacci(nodes, device=setup.device),))
    h = grid.spacing
    epsilon, points = 0.75 * h * h, grid.factors[0].nodes
    data = torch.nn.functional.normalize(torch.tensor([[1.0, 0.2, 0.1], [-0.3, 1.0, 0.4], [0.2, -0.5, 1.0]]).double())
    V = (points @ data.T.to(points)).relu() @ torch.tensor([3.0, -2.0, 2.5], dtype=torch.float64, device=points.device)
    b = -h * V / epsilon
    every = max(1, nodes // 2000)
    rows = points[::every].contiguous()
    cost = SquaredArc()

    def dense(x: Tensor, y: Tensor, values: Tensor) -> Tensor:
        log_k = -cost(LazyTensor(x[:, None]), LazyTensor(y[None])) / epsilon
        out: Tensor = (log_k + LazyTensor(values[None, :, None].contiguous())).logsumexp(dim=1)
        return out.reshape(-1)

    def build() -> Run:
        dense(points[:2], points[:2], b[:2])  # compiles
        return lambda: dense(rows, points, b)

    def ours() -> Run:
        small = Grid((Sphere.fibonacci(8, device=setup.device),))
        Lazy(small, epsilon).log_apply(torch.zeros(8, dtype=torch.float64, device=setup.device))  # compiles
        kernel = Lazy(grid, epsilon)
        return lambda: kernel.log_apply(b)

    arcs = 2 * torch.atan2(torch.cdist(rows, points), torch.cdist(rows, -points))
    truth = torch.logsumexp(b - arcs**2 / (2 * epsilon), 1)

    def error(out: object) -> float:
        assert isinstance(out, Tensor)
        shown = out if out.shape[0] == rows.shape[0] else out[::every]
        return float(((shown - truth).abs() / (1 + truth.abs())).max())

    share = nodes / rows.shape[0]
    name = f"KeOps dense, {rows.shape[0]:,} outputs of {nodes:,}, time x {share:.3g}"
    table = measure(
        setup,
        f"Log kernel on S^2, {nodes:,} nodes, float64, epsilon = .75 h^2, tau = h",
        OURS,
        [Contender(OURS, ours, error, ours=True), Contender(name, build, error)],
        array=8 * nodes,
        judged="relative to 1 + abs(out)",
    )
    table.row(name).times = [seconds * share for seconds in table.row(name).times]
    if nodes >= 100_000 or setup.quick:
        table.bars.append(
            Bar(f"times faster than KeOps dense on S^2, {nodes:,} nodes", table.over(name, OURS), 20.0, at_least=True)
        )
    return table
