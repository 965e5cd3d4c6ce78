"""Atoms: all mass on one node, which the debiasing potential must let go, and must not spread."""

import math

import pytest
import torch
from torch import Tensor

import bigjko as bj

D = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore::bigjko.NarrowMeasureWarning")


def atom(grid: bj.Grid, *node: int) -> bj.GridMeasure:
    """All but exp(-60) a node of the mass on one."""
    log = torch.full(grid.shape, -60.0, dtype=D)
    log[node] = 0.0
    return bj.GridMeasure(grid, log - torch.logsumexp(log.reshape(-1), 0))


def moments(grid: bj.Grid, masses: Tensor) -> tuple[float, float]:
    """Mean and standard deviation along the first axis."""
    x, p = grid.points()[:, 0], masses.reshape(-1) / masses.sum()
    mean = float(x @ p)
    return mean, math.sqrt(float((x - mean).square() @ p))


@pytest.mark.parametrize("epsilon", [0.75, 1.5])
@pytest.mark.parametrize(("dim", "nodes_a_step"), [(1, 0.1), (1, 0.5), (2, 0.5)])
def test_an_atom_moves_at_its_speed_whatever_tau(dim: int, nodes_a_step: float, epsilon: float) -> None:
    """V = -x, h = 1: once under way at no less than .85 of its speed, which is that of a measure 1 to 1.5 nodes wide
    (mathematics.md 3, ii); without the floor it has not left its node.
    """
    grid = bj.Grid.uniform([0.0] * dim, [32.0] + [10.0] * (dim - 1), (33,) + (11,) * (dim - 1))
    start = atom(grid, 5, *(5,) * (dim - 1))
    at: dict[float, list[float]] = {}
    for floor in (0.03, 0.0):
        energy = bj.Potential(lambda x: -x[:, 0])
        jko = bj.JKO(energy, grid, nodes_a_step, epsilon=epsilon, entropy=bj.Debiased(floor=floor))
        flow = bj.evolve(jko, start, 20.0, save_at=[10.0, 20.0])
        at[floor] = [moments(grid, m.masses)[0] for m in flow.measures]
    assert 0.85 <= (at[0.03][1] - at[0.03][0]) / 10 <= 1.02
    assert at[0.0][0] - 5 <= 0.1


@pytest.mark.parametrize(("epsilon", "width"), [(0.75, 0.10), (1.5, 0.14)])
def test_an_atom_that_nothing_pulls_at_does_not_spread(epsilon: float, width: float) -> None:
    """What its neighbours are taken to hold they come to hold, and no more: not a diffusion, however many steps."""
    grid = bj.Grid.uniform([0.0], [20.0], (21,))
    jko = bj.JKO(bj.Potential(lambda x: torch.zeros_like(x[:, 0])), grid, 1.0, epsilon=epsilon)
    flow = bj.evolve(jko, atom(grid, 10), 300.0, save_at=[10.0, 300.0])
    early, late = (moments(grid, m.masses)[1] for m in flow.measures)
    assert late == pytest.approx(early, abs=1e-9)
    assert late <= width


@pytest.mark.parametrize("std", [1.0, 1.5, 3.0])
def test_measures_of_a_node_and_more_do_not_meet_the_floor(std: float) -> None:
    """f = 0: the measure stays what it is, floor or not; at one node its far tails alone are held up."""
    grid = bj.Grid.uniform([-20.0], [20.0], (41,))
    start = bj.GridMeasure.gaussian(grid, mean=0.0, std=std)
    jko = bj.JKO(bj.Potential(lambda x: torch.zeros_like(x[:, 0])), grid, 1.0)
    flow = bj.evolve(jko, start, 20.0)
    assert isinstance(flow.final, bj.GridMeasure)
    assert float((flow.final.masses - start.masses).abs().sum()) <= (1e-10 if std > 1 else 1e-4)
