"""One axis by Triton: on a GPU where there is one (then Separable is this, too), else by Triton's interpreter."""

import pytest
import torch
from torch import Tensor

from bigjko_kernels import LOG_ZERO, Circle, Grid, Line, Separable
from bigjko_kernels.tritons import TritonAxis

from .registry import COSTS, GRIDS, INPUTS, log_tolerance, sinh_axis, uneven_circle
from .test_kernels import assert_close, epsilon_of, exact

GPU = torch.cuda.is_available()
# The interpreter computes with NumPy, which warns of log 0.
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")

DEVICE = torch.device("cuda:0" if GPU else "cpu")
CASES = [
    # An interpreted sum over 700 nodes where sums underflow takes half a minute.
    pytest.param(grid, cost, values, marks=[pytest.mark.slow] if "line" in grid and values != "smooth" else [])
    for grid, make in GRIDS.items()
    for cost, case in COSTS.items()
    if case.fits(make()) and case.make(make()).per_factor(make()) is not None
    for values in INPUTS
]


@pytest.mark.parametrize(("grid", "cost", "values"), CASES)
def test_the_sums_agree_with_the_oracle(grid: str, cost: str, values: str) -> None:
    # In float32 on cylinders alone: the same sums, rounded at the end.
    dtype = torch.float32 if grid == "cylinder" else torch.float64
    nodes = GRIDS[grid]().to(dtype=dtype, device=DEVICE)
    b = INPUTS[values](GRIDS[grid]()).to(dtype=dtype, device=DEVICE)
    kernel = Separable(nodes, epsilon_of(GRIDS[grid]()), COSTS[cost].make(nodes), axis=TritonAxis)
    out = kernel.log_apply(b)
    assert (out.shape, out.dtype, out.device) == (b.shape, dtype, b.device)
    expected = exact(grid, cost, 0.75, values, dtype)
    assert_close(out.cpu(), expected, log_tolerance(expected, dtype))


AXES = {
    "line": Line.uniform(-3.0, 3.0, 70),
    "sinh": sinh_axis(50),
    "circle": Circle.uniform(72),
    "uneven": uneven_circle(50),
}


@pytest.mark.parametrize("times", [0.25, 10.0])
@pytest.mark.parametrize("slope", [0.0, 3.0, 20.0])
@pytest.mark.parametrize("lay", [(1, 1), (70, 1), (2, 3), (1, 70)], ids=str)
@pytest.mark.parametrize("name", AXES)
def test_a_cut_that_is_too_near_is_moved(name: str, lay: tuple[int, int], slope: float, times: float) -> None:
    # Values that mass leaves by many nodes, at temperatures far from .75 h^2; lines laid in every way there is.
    factor = AXES[name].to(device=DEVICE)
    epsilon = epsilon_of(Grid((AXES[name],)), times)
    generator = torch.Generator().manual_seed(5)
    b = torch.randn(lay[0], factor.size, lay[1], generator=generator, dtype=torch.float64)
    b = (b + slope * torch.arange(factor.size, dtype=torch.float64)[:, None]).to(DEVICE)
    b[0, factor.size // 2] = LOG_ZERO
    (cost,) = Separable(Grid((factor,)), epsilon).cost.per_factor(Grid((factor,))) or ()
    assert cost is not None
    out = torch.full_like(b, torch.nan)
    TritonAxis(factor, cost, epsilon, b.numel())(b, out)
    log_k = -cost(factor.nodes[:, None], factor.nodes[None]) / epsilon
    expected = torch.logsumexp(log_k[None, :, :, None] + b[:, None], 2)
    assert_close(out.cpu(), expected.cpu(), log_tolerance(expected.cpu(), torch.float64))


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_what_is_not_finite_does_not_hide(bad: float) -> None:
    b = torch.zeros(2, 40, 3, dtype=torch.float64, device=DEVICE)
    b[1, 7, 2] = bad
    grid = Grid((Line.uniform(-1.0, 1.0, 2), Line.uniform(-1.0, 1.0, 40), Line.uniform(-1.0, 1.0, 3)))
    out: Tensor = Separable(grid.to(device=DEVICE), 0.01, axis=TritonAxis).log_apply(b)
    assert not out.isfinite().any()


def test_an_axis_longer_than_the_grid_has_room_for_goes_to_torch() -> None:
    factor = Line.uniform(0.0, 1.0, 600).to(device=DEVICE)
    assert not TritonAxis.takes(factor, 600)
    assert TritonAxis.takes(factor, 600 * 600) is GPU
