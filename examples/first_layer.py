"""Signed and Split against gradient descent with frozen output weights, from the same measure, in d = 2.

Prints the largest output gap over max |y|, the error of the reference itself (by halving its step), and how far masses
differ in windows. The gap is O(tau) and O(sqrt(epsilon)), epsilon = .75 h^2: at a kink w . x = 0 that mass leaves, an
implicit step takes along what lies within tau |G| / 2 of it, and blur about one h more; where mass arrives it piles up.
Nodes must not lie on kinks, where relu'(0) = 0 holds a particle for ever: lines of an even number of nodes avoid 0.

The orthogonal pair is solved on the axes of its data. There phi is a sum over axes, and K and the start are products,
so each sheet stays a product (as in Pairs), and the flow is two flows of one datum in d = 1, whose lines may be fine.
"""

import math
import time
import warnings

import torch
from torch import Tensor

import bigjko as bj

D = torch.float64
T_END = 1.0
warnings.simplefilter("ignore")  # mass ends on kinks, narrower than two nodes


def gaussian(way: bj.neurons.Neurons, grid: bj.Grid) -> bj.GridMeasure:
    """N(0, .5^2 I) on both sheets, of mass 1/2 each for Signed and 1 for Split."""
    mass = 2.0 if isinstance(way, bj.neurons.Split) else 1.0
    return bj.GridMeasure.from_density(grid, lambda t: torch.exp(-t[:, 1:].square().sum(1) / 0.5), mass=mass)


def descent(risk: bj.Risk, start: bj.GridMeasure, steps: int) -> bj.Flow:
    """Gradient descent with `steps` steps, a multiple of 160."""
    particles = risk.neurons.particles(start, drop=1e-9)
    return bj.evolve(bj.GradientDescent(risk, tau=T_END / steps), particles, T_END, record=steps // 160)


def windows(way: bj.neurons.Neurons, flow: bj.Flow) -> Tensor:
    """Masses of the final measure, of each sheet, in 12 angle windows, or on both sides of 0 where d = 1."""
    rows = []
    for points, masses in way.clouds(flow.final).values():
        if points.shape[1] == 1:
            index, count = (points[:, 0] > 0.1).long(), 2
        else:
            angle = torch.atan2(points[:, 1], points[:, 0]) % (2 * math.pi)
            index, count = (angle * (12 / (2 * math.pi))).long().clamp(max=11), 12
        rows.append(torch.zeros(count, dtype=D).index_add_(0, index, masses))
    return torch.cat(rows)


def study(name: str, risk: bj.Risk, runs: list[tuple[int, float]], radius: float, steps: int) -> None:
    """Gaps for grids of so many nodes a line, and steps tau."""
    way, largest = risk.neurons, float(risk.y.abs().max())
    references: dict[int, tuple[bj.GridMeasure, bj.Flow, float]] = {}
    for nodes, tau in runs:
        grid = way.grid(nodes, risk.X.shape[1], radius=radius)
        if nodes not in references:
            start = gaussian(way, grid)
            fine = descent(risk, start, 2 * steps)
            own = bj.compare(descent(risk, start, steps), fine, transport=False).sup_output_gap / largest
            references = {nodes: (start, fine, own)}
        start, fine, own = references[nodes]
        began = time.process_time()
        flow = bj.evolve(bj.JKO(risk, grid, tau=tau), start, T_END)
        cpu = time.process_time() - began
        gap = bj.compare(flow, fine, transport=False).sup_output_gap / largest
        moved = float((windows(way, flow) - windows(way, fine)).abs().max())
        print(
            f"{name}, {way}, {nodes} nodes a line (h = {grid.spacing:.2g}), tau = {tau}: gap {gap:.2e}, "
            f"reference's own {own:.1e}; masses in windows within {moved:.1e}; {cpu:.0f} s of CPU",
            flush=True,
        )


def main() -> None:
    """Both ways on both problems."""
    angle = torch.tensor([0.1, 0.9, 2.0, 3.3, 4.6], dtype=D)
    radius = torch.tensor([1.0, 0.7, 1.1, 0.8, 1.0], dtype=D)
    five = (
        torch.stack([angle.cos(), angle.sin()], dim=1) * radius[:, None],
        torch.tensor([0.8, -0.4, 0.5, -0.6, 0.3], dtype=D),
    )
    for way in (bj.neurons.Signed(), bj.neurons.Split()):
        for x, y in (((-0.5, 1.0), -1.0), ((2.0, 1.0), 1.0)):
            X, labels = torch.tensor([[math.hypot(*x)]], dtype=D), torch.tensor([y], dtype=D)
            risk = bj.Risk(X, labels, neurons=way, loss=bj.losses.Squared(0.5))  # a mean over two
            runs = [(512, 0.025), (1024, 0.0125), (2048, 0.00625), (2048, 0.025), (2048, 0.0125)]
            study(f"orthogonal, |x| = {math.hypot(*x):.3f}", risk, runs, 3.2, 1600)
        risk = bj.Risk(five[0], five[1], neurons=way)
        study("five points", risk, [(128, 0.05), (256, 0.025), (512, 0.0125), (512, 0.025), (512, 0.05)], 2.5, 480)


if __name__ == "__main__":
    main()
