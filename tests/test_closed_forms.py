"""The JKO step against flows known in closed form: Ornstein-Uhlenbeck, translation, nothing at all, one Gaussian."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import bigjko as bj

STEPS = 10


def moments(measure: bj.GridMeasure) -> tuple[Tensor, Tensor]:
    """Mean and variance along every axis."""
    x = measure.grid.points().double()
    p = measure.masses.double().reshape(-1, 1) / measure.mass
    mean = (p * x).sum(0)
    return mean, (p * (x - mean) ** 2).sum(0)


def sinh_line(nodes: int) -> bj.Line:
    """Fine in the middle, coarse outside: cells differ by a factor of 7."""
    return bj.Line.at(torch.sinh(torch.linspace(-2.6, 2.6, nodes, dtype=torch.float64)))


LINES: dict[str, Callable[[], bj.Line]] = {
    "uniform": lambda: bj.Line.uniform(-6.0, 6.0, 601),
    "irregular": lambda: sinh_line(601),
    "irregular, coarse": lambda: sinh_line(201),
}


@pytest.mark.filterwarnings("ignore::bigjko.NarrowMeasureWarning")  # at tau = .5 it ends 1.3 nodes wide, and is right
@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("cells", [0.75, 1.0, 2.0])
@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_plain_ornstein_uhlenbeck_follows_its_entropic_closed_form(line: str, cells: float, tau: float) -> None:
    """mathematics.md 3: m+ = m/(1 + tau k), v+ = v/(1 + tau k)^2 + eps/(1 + tau k), on any axis, cell volumes in."""
    grid = bj.Grid((LINES[line](),))
    epsilon = cells * grid.spacing**2
    start = bj.GridMeasure.gaussian(grid, mean=1.0, std=0.5)
    mean, variance = moments(start)
    jko = bj.JKO(bj.Potential(lambda x: (x**2).sum(1) / 2), grid, tau=tau, epsilon=epsilon, entropy=bj.Plain())
    flow = bj.evolve(jko, start, STEPS * tau)
    for _ in range(STEPS):
        mean = mean / (1 + tau)
        variance = variance / (1 + tau) ** 2 + epsilon / (1 + tau)
    assert isinstance(flow.final, bj.GridMeasure)
    got = moments(flow.final)
    assert abs(float(got[0] - mean)) <= 1e-6
    assert abs(float(got[1] - variance)) <= 1e-6


def test_debiased_without_energy_stays_where_it_is() -> None:
    """F = 0: p = q to 1e-10 in L1 after ten steps, a lopsided start on an irregular axis included."""
    grid = bj.Grid((bj.Line.uniform(-3.0, 3.0, 61), sinh_line(81)))

    def two_hills(x: Tensor) -> Tensor:
        return (-((x - 0.4) ** 2).sum(1) / 0.3).exp() + 0.3 * (-((x + 0.8) ** 2).sum(1) / 0.8).exp()

    start = bj.GridMeasure.from_density(grid, two_hills)
    flow = bj.evolve(bj.JKO(bj.Potential(lambda x: 0 * x[:, 0]), grid, tau=0.1), start, 1.0)
    assert isinstance(flow.final, bj.GridMeasure)
    assert float((flow.final.masses - start.masses).abs().sum()) <= 1e-10


@pytest.mark.parametrize("entropy", [bj.Plain(), bj.Debiased(passes=60, tolerance=1e-12)], ids=["plain", "debiased"])
@pytest.mark.parametrize("nodes", [(201,), (101, 101)], ids=["line", "plane"])
def test_a_linear_potential_translates(entropy: bj.Plain | bj.Debiased, nodes: tuple[int, ...]) -> None:
    """V = c.x moves any measure by -tau c: within 1e-5 h a step (mathematics.md 3 gives 3.5e-6 h at eps = .75 h^2).

    The variance grows by eps a step (plain) or stays (debiased).
    """
    k = len(nodes)
    c = torch.tensor([0.7, 0.3], dtype=torch.float64)[:k]
    grid = bj.Grid.uniform([-3.0] * k, [3.0] * k, nodes)
    start = bj.GridMeasure.gaussian(grid, mean=0.0, std=0.3)
    jko = bj.JKO(bj.Potential(lambda x: x @ c), grid, tau=0.05, entropy=entropy)
    flow = bj.evolve(jko, start, STEPS * 0.05)
    assert isinstance(flow.final, bj.GridMeasure)
    mean, variance = moments(flow.final)
    shift = moments(start)[0] - STEPS * 0.05 * c
    assert float((mean - shift).abs().max()) <= 1e-5 * grid.spacing * STEPS
    assert jko.epsilon is not None
    blur = STEPS * jko.epsilon if isinstance(entropy, bj.Plain) else 0.0
    # The variance is locked to the grid like the mean: 3.5e-6 h of the deviation a step, 2 h std in the variance.
    assert float((variance - moments(start)[1] - blur).abs().max()) <= 2 * 0.3 * 1e-5 * grid.spacing * STEPS


@pytest.mark.filterwarnings("ignore::bigjko.NarrowMeasureWarning")  # epsilon = 1 = v is the point
@pytest.mark.parametrize(
    ("epsilon", "debiased", "plain"),
    [(0.05, 0.826384, 0.871901), (0.2, 0.825449, 1.008264), (1.0, 0.802815, 1.735537)],
)
def test_one_step_of_a_gaussian_matches_the_closed_form(epsilon: float, debiased: float, plain: float) -> None:
    """mathematics.md 3: v = 1, tau k = .1, passes run to convergence."""
    grid = bj.Grid.uniform([-8.0], [8.0], [801])
    start = bj.GridMeasure.gaussian(grid, mean=0.0, std=1.0)
    for entropy, want in ((bj.Debiased(passes=300, tolerance=1e-13), debiased), (bj.Plain(), plain)):
        jko = bj.JKO(bj.Potential(lambda x: (x**2).sum(1) / 2), grid, tau=0.1, epsilon=epsilon, entropy=entropy)
        flow = bj.evolve(jko, start, 0.1)
        assert isinstance(flow.final, bj.GridMeasure)
        assert abs(float(moments(flow.final)[1]) - want) <= 1e-5


def test_debiasing_undoes_the_blur_of_a_long_flow() -> None:
    """mathematics.md 3: N(1, .09) under V = x^2/2 to T = 1, tau = .1, eps = .002.

    The variance is .02230 plain, .01336 debiased with d converged, .01338 exact JKO, .01218 exact flow.
    """
    grid = bj.Grid.uniform([-3.0], [3.0], [401])
    start = bj.GridMeasure.gaussian(grid, mean=1.0, std=0.3)
    found = {}
    # With two passes d lags: .01353 after ten steps; three give .01338, four .01336, and more no other digit.
    for name, entropy in (("plain", bj.Plain()), ("debiased", bj.Debiased(passes=60, tolerance=1e-12))):
        energy = bj.Potential(lambda x: (x**2).sum(1) / 2)
        flow = bj.evolve(bj.JKO(energy, grid, tau=0.1, epsilon=0.002, entropy=entropy), start, 1.0)
        assert isinstance(flow.final, bj.GridMeasure)
        found[name] = float(moments(flow.final)[1])
    exact_jko, exact_flow = 0.09 / 1.1**20, 0.09 * math.exp(-2.0)
    assert found["plain"] == pytest.approx(0.02230, abs=1e-5)
    assert found["debiased"] == pytest.approx(0.01336, abs=1e-5)
    assert exact_jko == pytest.approx(0.01338, abs=1e-5)
    assert exact_flow == pytest.approx(0.01218, abs=1e-5)
