"""P4 against gradient descent: on the cone the gap falls with tau, in the seed's flat metric it does not.

`python examples/polar.py [five|orthogonal] [cone|flat]`: all by default, some minutes each. Both metrics start from the
same balanced neurons |w| = |a| = r: all directions alike, half of each sign, r of density exp(-((r - mean) / width)^4).
References start from the grid's own nodes and masses. Gaps are the largest over data and times, over max |y|.
"""

import math
import sys
import warnings
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

import bigjko as bj
from bigjko.neurons import Free, Polar

D = torch.float64
ENTROPY = bj.Debiased(passes=6)  # with 2 the potential lags behind condensing mass, and so does the flow
WINDOWS = 16  # whose edges lie half way between nodes


@dataclass
class Problem:
    """Data; the start's mean r and width; the end time; how far the cone's grid reaches in r, and the flat one in s."""

    X: Tensor
    y: Tensor
    loss: bj.losses.Loss
    mean: float
    width: float
    t_end: float
    radius: float
    scale: float

    def bump(self, r: Tensor) -> Tensor:
        """The density of r, not normalised: wide for its nodes, and short of tails that a grid must hold."""
        return torch.exp(-(((r - self.mean) / self.width) ** 4))


def five() -> Problem:
    """Five points in d = 2 (docs/mathematics.md)."""
    angle = torch.tensor([0.1, 0.9, 2.0, 3.3, 4.6], dtype=D)
    radius = torch.tensor([1.0, 0.7, 1.1, 0.8, 1.0], dtype=D)
    X = torch.stack([angle.cos(), angle.sin()], 1) * radius[:, None]
    return Problem(X, torch.tensor([0.8, -0.4, 0.5, -0.6, 0.3], dtype=D), bj.losses.Squared(), 1.4, 0.55, 1.0, 4.5, 7.0)


def orthogonal() -> Problem:
    """The pair of Boursier et al. 2022 (orthogonal.toml)."""
    X = torch.tensor([[-0.5, 1.0], [2.0, 1.0]], dtype=D)
    return Problem(X, torch.tensor([-1.0, 1.0], dtype=D), bj.losses.Squared(scale=0.5), 1.0, 0.45, 1.0, 3.8, 6.0)


def at(flow: bj.Flow, times: Tensor) -> Tensor:
    """Outputs at some of a flow's own times."""
    index = [int((flow.times - t).abs().argmin()) for t in times]
    assert float((flow.times[index] - times).abs().max()) < 1e-9
    return flow.outputs[index]


def windows(neurons: bj.ParticleMeasure, nodes: int) -> Tensor:
    """Mass in windows of angle, of each sign."""
    angle = (torch.atan2(neurons.w[:, 1], neurons.w[:, 0]) + math.pi / nodes) % (2 * math.pi)
    place = (angle * (WINDOWS / (2 * math.pi))).long().clamp(max=WINDOWS - 1) + WINDOWS * (neurons.a > 0)
    return torch.zeros(2 * WINDOWS, dtype=D).index_add_(0, place, neurons.masses)


def descend(risk: bj.Risk, start: bj.ParticleMeasure, tau: float, steps: int, t_end: float, free: bool) -> bj.Flow:
    """GD at tau / steps, recorded at multiples of tau."""
    stepper = bj.GradientDescent(risk, tau / steps, dynamics=Free() if free else None)
    return bj.evolve(stepper, start, t_end, record=steps)


def compare(name: str, flows: dict[float, bj.Flow], fine: bj.Flow, coarse: bj.Flow, size: float) -> None:
    """Gaps, their order in tau, and those of Richardson's extrapolated outputs; the reference's own error."""
    own = float((coarse.outputs - fine.outputs).abs().max()) / size
    gaps, rich, last = {}, {}, None
    for tau, flow in flows.items():
        gaps[tau] = float((flow.outputs - at(fine, flow.times)).abs().max()) / size
        if last is not None:
            doubled = 2 * at(flow, last.times) - last.outputs
            rich[tau] = float((doubled - at(fine, last.times)).abs().max()) / size
        last = flow
    values = list(gaps.values())
    orders = [math.log2(a / b) for a, b in pairwise(values)]
    print(f"  {name} (its own error {own:.1e}): " + ", ".join(f"tau {t:g}: {g:.2e}" for t, g in gaps.items()))
    print(
        f"    orders {[round(o, 2) for o in orders]}; Richardson "
        + ", ".join(f"{t:g}: {g:.2e}" for t, g in rich.items())
    )


def cone(problem: Problem, nodes: int, taus: tuple[float, ...], steps: int = 16) -> None:
    """JKO on the cone against GD."""
    way = Polar(metric="cone")
    risk = bj.Risk(problem.X, problem.y, neurons=way, loss=problem.loss)
    grid = way.grid(nodes, 2, radius=problem.radius)
    start = bj.GridMeasure.from_density(grid, lambda p: problem.bump(p[:, 3]) / p[:, 3])  # cells are r dr
    neurons = way.particles(start, drop=1e-10)
    print(f"cone, {grid!r}, h in its metric {way.spacing(grid):.3g}")
    flows = {tau: bj.evolve(bj.JKO(risk, grid, tau=tau, entropy=ENTROPY), start, problem.t_end) for tau in taus}
    coarse, fine = (descend(risk, neurons, taus[-1], k, problem.t_end, free=True) for k in (steps // 2, steps))
    compare("to GD", flows, fine, coarse, float(problem.y.abs().max()))
    finest = flows[taus[-1]]
    share = windows(fine.final, nodes)
    apart = windows(way.particles(finest.final), nodes) - share
    print(
        f"    masses in {WINDOWS} windows and 2 signs: largest difference {float(apart.abs().max()):.2e}, in all "
        f"{float(apart.abs().sum()):.2e}; heaviest {float(share.max()):.3f}; "
        f"r reaches {float(fine.final.a.abs().max()):.2f}"
    )
    stats = {k: float(v[1:].max()) for k, v in finest.stats.items() if k in ("misfit", "gap_d", "boundary_mass")}
    print(f"    at tau {taus[-1]:g}: {stats}, narrowest {float(finest.stats['width'][1:].min()):.2f} nodes")


def flat(problem: Problem, nodes: int, taus: tuple[float, ...], steps: int = 16) -> None:
    """JKO in the flat metric against GD, and against the flat flow of its particles."""
    way = Polar(metric="flat")
    risk = bj.Risk(problem.X, problem.y, neurons=way, loss=problem.loss)
    grid = way.grid(nodes, 2, radius=problem.scale)

    def density(p: Tensor) -> Tensor:
        r = p[:, 2].abs().clamp(min=1e-9).sqrt()
        return problem.bump(r) / r

    start = bj.GridMeasure.from_density(grid, density)
    neurons = way.particles(start, drop=1e-10)
    print(f"flat, {grid!r}")
    flows = {tau: bj.evolve(bj.JKO(risk, grid, tau=tau, entropy=ENTROPY), start, problem.t_end) for tau in taus}
    for name, free, first in (("to GD", True, neurons.balanced()), ("to its own flow", False, neurons)):
        coarse, fine = (descend(risk, first, taus[-1], k, problem.t_end, free) for k in (steps // 2, steps))
        compare(name, flows, fine, coarse, float(problem.y.abs().max()))


if __name__ == "__main__":
    warnings.simplefilter("ignore", bj.NarrowMeasureWarning)  # mass condenses on kinks
    problems = {"five": five, "orthogonal": orthogonal}
    chosen = [name for name in problems if name in sys.argv] or list(problems)
    metrics = [name for name in ("cone", "flat") if name in sys.argv] or ["cone", "flat"]
    for name in chosen:
        print(name)
        if "flat" in metrics:
            for nodes, taus in ((64, (0.1, 0.05)), (128, (0.1, 0.05, 0.025)), (256, (0.1, 0.05, 0.025, 0.0125))):
                flat(problems[name](), nodes, taus)
        if "cone" in metrics:
            for nodes, taus in ((128, (0.1, 0.05, 0.025)), (256, (0.1, 0.05, 0.025, 0.0125))):
                cone(problems[name](), nodes, taus)
