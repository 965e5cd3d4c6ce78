"""Where mass ends: on the kinks w . x_j = 0. How near JKO on the circle comes to the flow, and what brings it nearer.

Two problems in d = 2, uniform starts, T = 2: five points (mathematics.md 3) and the orthogonal pair. The reference is
SlidingFlow on the grid's own nodes, whose own error (by halving its step) is printed with it. Gaps are the largest
output gap over time, over max|y|; `masses` is the largest difference, in share of the total mass, of the mass within
.1 rad of a kink or between those windows, sheet by sheet, at T. Takes about two minutes on one core.
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


warnings.simplefilter("ignore", bj.NarrowMeasureWarning)
for name, risk in (("five points", five_points()), ("orthogonal pair", orthogonal_pair())):
    print(f"\n{name}: sup output gap / max|y|, T = 2")
    print("  nodes  kinks on nodes  reference   " + "  ".join(f"tau={t:<6g}" for t in TAUS), end="  ")
    print("extrapolated  second order   masses")
    for nodes in (128, 256, 512, 1024, 2048, 4096):
        for kinks in (None, risk.X):
            grid = way.grid(nodes, 2, kinks=kinks)
            start = way.uniform(grid, radius=math.sqrt(0.5))
            particles = way.particles(start)
            rough, half = (
                bj.evolve(bj.SlidingFlow(risk, 0.05 / k), particles, 2.0, record=k, save_at=[2.0]) for k in (4, 8)
            )
            reference = bj.extrapolate(rough, half, order=2)
            flows = [
                bj.evolve(bj.JKO(risk, grid, tau), start, 2.0, record=round(TAUS[0] / tau), save_at=[2.0])
                for tau in TAUS
            ]
            second = bj.evolve(bj.JKO(risk, grid, TAUS[0], scheme=bj.SecondOrder()), start, 2.0)
            row = [gap(flow, reference, risk) for flow in (*flows, bj.extrapolate(*flows), second)]
            apart = (windows(flows[-1].final, risk.X) - windows(half.final, risk.X)).abs().max()
            print(
                f"  {nodes:5d}  {'no' if kinks is None else 'yes':>14}  {gap(half, reference, risk):9.1e}   "
                + "  ".join(f"{x:<10.1e}" for x in row[:2])
                + f"  {row[2]:<12.1e}  {row[3]:<12.1e}  {float(apart):8.1e}",
                flush=True,
            )
