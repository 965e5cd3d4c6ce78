"""Micro benchmarks by pytest-benchmark, for comparing two commits on one machine: `make bench-micro`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import box, risk, sloped

import bigjko as bj
from bigjko_kernels import Separable

Benchmark = Callable[[Callable[[], Any]], Any]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("shape", [(512, 512), (64, 64, 64)], ids=["512^2", "64^3"])
def test_log_kernel(benchmark: Benchmark, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    grid = box(shape, dtype)
    b, kernel = sloped(grid), Separable(grid, 0.75 * grid.spacing**2)
    assert bool(torch.isfinite(benchmark(lambda: kernel.log_apply(b))).all())


@pytest.mark.parametrize("part", ["outputs", "potential", "slopes"])
def test_sums_over_neurons(benchmark: Benchmark, part: str) -> None:
    problem = risk(100, 2)
    W = torch.randn(10**5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stream = problem.neurons.stream(W, problem.X)
    argument = W[:, 0].contiguous() if part == "outputs" else problem.y
    assert bool(torch.isfinite(benchmark(lambda: getattr(stream, part)(argument))).all())


@pytest.mark.parametrize("entropy", [bj.Plain(), bj.Debiased()], ids=["plain", "debiased"])
def test_jko_step(benchmark: Benchmark, entropy: bj.Plain | bj.Debiased) -> None:
    grid = box((128, 128))
    jko = bj.JKO(risk(16, 1), grid, tau=0.05, entropy=entropy)
    start = bj.GridMeasure.gaussian(grid, mean=0.1, std=0.5)
    state = jko.init(start)
    assert benchmark(lambda: jko.step(start, state, 0.05)).status is bj.Status.ok


def test_gradient_descent_step(benchmark: Benchmark) -> None:
    draw = torch.randn(10**5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = bj.ParticleMeasure.from_network(draw[:, :2], draw[:, 2])
    descent = bj.GradientDescent(risk(100, 2), tau=0.01)
    state = descent.init(start)
    assert benchmark(lambda: descent.step(start, state, 0.01)).status is bj.Status.ok
