"""The scale problem: three data whose fastest neuron leaves the box, and a box that grows with it.

Gaps of Lifted JKO flows to gradient descent from the same nodes and masses, sup over time: in the fixed box
[-2.5, 2.5]^3, and in one that Widening lets grow. What is left there is the step's own error, which falls with tau,
and a floor that falls with h: 7e-3 from 42^3. The last line extrapolates the outputs of two steps to tau = 0, 4.5e-3
from 72^3 with tau = .0125 (quarter of an hour). Still finer steps are held to their nodes at the end. The reference's
own error is the gap between two of its steps.

    python examples/scale.py [nodes per axis of the first box] [tau, halved once]
"""

import sys
import warnings

import torch

import bigjko as bj

F64 = torch.float64
nodes = int(sys.argv[1]) if len(sys.argv) > 1 else 42
tau = float(sys.argv[2]) if len(sys.argv) > 2 else 0.025
X = torch.tensor([[-0.5, 1.0], [2.0, 1.0], [0.6, -1.0]], dtype=F64)
y = torch.tensor([-1.0, 1.0, 0.5], dtype=F64)
risk = bj.Risk(X, y)
grid = bj.Grid.uniform([-2.5] * 3, [2.5] * 3, [nodes] * 3)
start = bj.GridMeasure.gaussian(grid, mean=0.0, std=0.5)
particles = start.to_particles(drop=1e-9)
fine, coarse = (bj.evolve(bj.GradientDescent(risk, tau=tau), particles, 1.0) for tau in (5e-4, 1e-3))
own = bj.compare(coarse, fine, transport=False).sup_output_gap
fastest = fine.final.positions.abs().max(0).values.tolist()
print(
    f"h = {grid.spacing:.3g}, {len(particles.masses):,} neurons; reference's own error {own:.1e}; it ends at", end=" "
)
print(", ".join(f"{x:.2f}" for x in fastest), "along w1, w2, a", flush=True)

warnings.simplefilter("ignore", bj.NarrowMeasureWarning)
jkos = [bj.JKO(risk, grid, tau=step, entropy=bj.Debiased(passes=6)) for step in (tau, tau / 2)]  # two passes lag
flows = []
for stepper in (jkos[0], *map(bj.Widening, jkos)):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bj.BoundaryMassWarning)  # the fixed box is here to show what it does
        flow = bj.evolve(stepper, start, 1.0)
    flows.append(flow)
    final = flow.final
    assert isinstance(final, bj.GridMeasure)
    gap = bj.compare(flow, fine, transport=False)
    box = " x ".join(f"[{float(f.nodes[0, 0]):.2f}, {float(f.nodes[-1, 0]):.2f}]" for f in final.grid.factors)
    times = int(flow.stats["widened"][1:].sum()) if "widened" in flow.stats else 0
    print(
        f"{stepper.name:13s} tau = {stepper.tau:g}: gap {gap.sup_output_gap:.2e} (at the end "
        f"{float(gap.output_gap[-1]):.2e}; max|y| = 1), mass on the edge {float(flow.stats['boundary_mass'][-1]):.1e}, "
        f"{final.grid.size:,} nodes after {times} widenings: {box}",
        flush=True,
    )
_, long, short = flows
limit = bj.extrapolate(long, short)
print(f"extrapolated in tau: gap {bj.compare(limit, fine, transport=False).sup_output_gap:.2e}")
