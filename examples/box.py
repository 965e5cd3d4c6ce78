"""Why the box matters: the same flow in two boxes of equal spacing, held against gradient descent, which knows none.

Prints the share of neurons that have left each box by t = 1, and the output gap of JKO in it. Takes about a minute.
"""

import warnings

import torch

import bigjko as bj

D = torch.float64
X = torch.tensor([[-0.5, 1.0], [2.0, 1.0], [0.6, -1.0]], dtype=D)
y = torch.tensor([-1.0, 1.0, 0.5], dtype=D)
risk = bj.Risk(X, y)
descent = bj.GradientDescent(risk, tau=0.0025)

drawn = 0.5 * torch.randn(200_000, 3, dtype=D, generator=torch.Generator().manual_seed(0))
free = bj.evolve(descent, bj.ParticleMeasure.from_network(drawn[:, :2], drawn[:, 2]), t_end=1.0, record=10).final

warnings.simplefilter("ignore")  # both flows warn, and of just this
for radius, nodes in ((2.5, 51), (3.5, 71)):
    grid = bj.Grid.uniform([-radius] * 3, [radius] * 3, [nodes] * 3)
    start = bj.GridMeasure.gaussian(grid, mean=0.0, std=0.5)
    reference = bj.evolve(descent, start.to_particles(drop=1e-6), t_end=1.0, record=10)
    flow = bj.evolve(bj.JKO(risk, grid, tau=0.025), start, t_end=1.0)
    left = float((free.positions.abs() > radius).any(1).double().mean())
    gap = float((flow.outputs - reference.outputs).abs().max())
    print(f"[-{radius}, {radius}]^3, h = {grid.spacing:.2g}: {left:.2%} of the neurons left it, output gap {gap:.2g}")
