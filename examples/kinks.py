"""Where mass ends: on the kinks w . x_j = 0. How near JKO on the circle comes to the flow, and what brings it nearer.

Two problems in d = 2, uniform starts, T = 2: five points (mathematics.md 3) and the orthogonal pair. The reference is
SlidingFlow on the grid's own nodes, whose own error (by halving its step) is printed with it. Gaps are the largest
output gap over time, over max|y|; `masses` is the largest difference, in share of the total mass, of the mass within
.1 rad of a kink or between those windows, sheet by sheet, at T. Then the orders in tau of steps and of extrapolated
outputs, on finer and finer grids. Takes about fifteen minutes on one core.
"""

import math
import warnings

import torch
from torch import Tensor

import bigjko as bj

D = torch.float64
TAUS = (0.05, 0.025)
way = bj.neurons.Projected()


def five_points() -> bj.Risk:
    """Angles .1 .9 2. 3.3 4.6, radii 1 .7 1.1 .8 1."""
    angle = torch.tensor([0.1, 0.9, 2.0, 3.3, 4.6], dtype=D)
    radius = torch.tensor([1.0, 0.7, 1.1, 0.8, 1.0], dtype=D)
    X = torch.stack([angle.cos(), angle.sin()], 1) * radius[:, None]
    return bj.Risk(X, torch.tensor([0.8, -0.4, 0.5, -0.6, 0.3], dtype=D), way)


def orthogonal_pair() -> bj.Risk:
    """Boursier, Pillaud-Vivien and Flammarion 2022, from a wide start."""
    X, y = torch.tensor([[-0.5, 1.0], [2.0, 1.0]], dtype=D), torch.tensor([-1.0, 1.0], dtype=D)
    return bj.Risk(X, y, way, bj.losses.Squared(scale=0.5))


def windows(measure: bj.GridMeasure | bj.ParticleMeasure, X: Tensor) -> Tensor:
    """Mass near each kink and between two of them, sheet by sheet, over the total."""
    angle = torch.atan2(X[:, 1], X[:, 0])
    kinks = torch.cat([angle + math.pi / 2, angle - math.pi / 2]) % (2 * math.pi)
    ends = torch.cat([kinks - 0.1, kinks + 0.1]).remainder(2 * math.pi).sort().values
    rows = []
    for points, masses in way.clouds(measure).values():
        at = torch.atan2(points[:, 1], points[:, 0]).remainder(2 * math.pi)
        cell = torch.searchsorted(ends, at) % len(ends)
        rows.append(torch.zeros(len(ends), dtype=D).index_add_(0, cell, masses))
    total = torch.stack(rows)
    return total / total.sum()


def gap(flow: bj.Flow, reference: bj.Flow, risk: bj.Risk) -> float:
    """Largest output gap over max|y|; the reference has the flow's times."""
    return bj.compare(flow, reference, transport=False).sup_output_gap / float(risk.y.abs().max())


def row(risk: bj.Risk, nodes: int, on_nodes: bool) -> str:
    """One line of a table."""
    grid = way.grid(nodes, 2, kinks=risk.X if on_nodes else None)
    start = way.uniform(grid, radius=math.sqrt(0.5))
    particles = way.particles(start)
    rough, half = (
        bj.evolve(bj.SlidingFlow(risk, TAUS[0] / k), particles, 2.0, record=k, save_at=[2.0]) for k in (4, 8)
    )
    reference = bj.extrapolate(rough, half, order=2)
    flows = [bj.evolve(bj.JKO(risk, grid, tau), start, 2.0, record=round(TAUS[0] / tau), save_at=[2.0]) for tau in TAUS]
    second = bj.evolve(bj.JKO(risk, grid, TAUS[0], scheme=bj.SecondOrder()), start, 2.0)
    gaps = [gap(flow, reference, risk) for flow in (half, *flows, bj.extrapolate(*flows), second)]
    apart = (windows(flows[-1].final, risk.X) - windows(half.final, risk.X)).abs().max()
    return f"  {nodes:5d}  {'yes' if on_nodes else 'no':>14}" + "".join(f"{x:14.1e}" for x in (*gaps, float(apart)))


def orders(risk: bj.Risk, nodes: int) -> None:
    """Gaps of steps, and of extrapolated pairs of them, at the times .2, .4, ... that all share; and their orders."""
    grid = way.grid(nodes, 2, kinks=risk.X)
    start = way.uniform(grid, radius=math.sqrt(0.5))
    rough, half = (
        bj.evolve(bj.SlidingFlow(risk, 0.0125 / k), way.particles(start), 2.0, record=16 * k) for k in (1, 2)
    )
    reference = bj.extrapolate(rough, half, order=2)
    flows = [bj.evolve(bj.JKO(risk, grid, 0.2 / k), start, 2.0, record=k, save_at=[2.0]) for k in (1, 2, 4, 8, 16)]
    pairs = [bj.extrapolate(coarse, fine) for coarse, fine in zip(flows, flows[1:], strict=False)]
    for name, those in (("steps", flows), ("extrapolated", pairs)):
        gaps = [gap(flow, reference, risk) for flow in those]
        falls = [math.log2(a / b) for a, b in zip(gaps, gaps[1:], strict=False)]
        print(f"  {nodes:5d}  {name:12s}", *(f"{x:9.2e}" for x in gaps), "  orders", *(f"{x:5.2f}" for x in falls))
    print(f"  {nodes:5d}  reference's own error {gap(half, reference, risk):.1e}", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore", bj.NarrowMeasureWarning)
    uneven = [(nodes, on_nodes) for nodes in (128, 256, 512, 1024, 2048) for on_nodes in (False, True)]
    columns = ("reference", *(f"tau={tau:g}" for tau in TAUS), "extrapolated", "second order", "masses")
    for name, risk, cases in (
        ("five points", five_points(), [*uneven, (4096, True)]),
        ("orthogonal pair", orthogonal_pair(), [(512, True), (2048, True)]),
    ):
        print(f"\n{name}: sup output gap / max|y|\n  nodes  kinks on nodes" + "".join(f"{c:>14}" for c in columns))
        for nodes, on_nodes in cases:
            print(row(risk, nodes, on_nodes), flush=True)
    for name, risk in (("five points", five_points()), ("orthogonal pair", orthogonal_pair())):
        print(f"\n{name}: gaps at common times, tau = .2, .1, .05, .025, .0125; extrapolated from .1 on")
        for nodes in (1024, 2048, 4096, 8192):
            orders(risk, nodes)
