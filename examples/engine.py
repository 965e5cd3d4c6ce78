"""bigjko as an engine inside a loop of your own: steps by hand, data that arrive on the way, a stop of your own.

`evolve` is one such loop. A stepper is pure: `init` gives a state, `step` a measure, a state and numbers; nothing else
changes. Here a network learns five points that come one at a time: every new datum makes a new risk and stepper, and
the measure goes on from where it is. The loop ends each stage itself, once the risk is below 1e-3.

    python examples/engine.py
"""

import math
import warnings

import torch

import bigjko as bj

ANGLES, RADII = (0.1, 0.9, 2.0, 3.3, 4.6), (1.0, 0.7, 1.1, 0.8, 1.0)
LABELS = (0.8, -0.4, 0.5, -0.6, 0.3)
ENOUGH = 1e-3
warnings.simplefilter("ignore", bj.NarrowMeasureWarning)  # mass condenses on the kinks, where there are nodes for it


def main(nodes: int = 256, tau: float = 0.1, patience: int = 80) -> list[float]:
    """The risk at the end of every stage, on the data seen so far."""
    way = bj.neurons.Projected()
    points = [[r * math.cos(angle), r * math.sin(angle)] for angle, r in zip(ANGLES, RADII, strict=True)]
    X, y = torch.tensor(points, dtype=torch.float64), torch.tensor(LABELS, dtype=torch.float64)
    grid = way.grid(nodes, dim=2, kinks=X)
    measure, time, ends = way.uniform(grid, radius=0.5), 0.0, []
    for seen in range(1, len(y) + 1):
        risk = bj.Risk(X[:seen], y[:seen], neurons=way)
        stepper = bj.JKO(risk, grid, tau, epsilon=0.75 * grid.spacing**2)
        state = stepper.init(measure)
        steps = 0
        while steps < patience:
            step = stepper.step(measure, state, stepper.tau)
            if step.status is not bj.Status.ok:
                raise RuntimeError(step.status.value)
            measure, state, time, steps = step.measure, step.state, time + step.dt, steps + 1
            if step.risk < ENOUGH:
                break
        ends.append(float(step.risk))
        print(f"t = {time:4.1f}: {seen} data, {steps:2} steps, risk {ends[-1]:.1e}, mass {float(measure.mass):.2f}")
    neurons = way.particles(measure, drop=1e-6)  # back to a network of your own
    outputs = torch.relu(X @ neurons.w.T) @ (neurons.masses * neurons.a)
    print("outputs", [f"{u:.2f}" for u in outputs.tolist()], "for labels", [f"{label:.2f}" for label in LABELS])
    return ends


if __name__ == "__main__":
    main()
