"""What a step needs is known before it is there, and refused where there is not as much."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import bigjko as bj
from bigjko import memory
from bigjko.jko import step_memory

F64 = torch.float64

# A peak of what is asked for: glibc keeps freed blocks below 32 MB, by which peaks of one case have differed by 40%.
RETURNED = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}

# In a process of its own, whose peak is the step's: VmHWM is reset after everything a step needs once was loaded.
PEAK = """
import re, sys, warnings
import torch, bigjko as bj
warnings.simplefilter("ignore")
torch.set_num_threads(1)
torch.manual_seed(0)
shape, dtype, n, decay = eval(sys.argv[1]), getattr(torch, sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
def resident(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
CONE = len(shape) == 1
X = torch.randn(n, 2 if CONE else len(shape) - 1, dtype=dtype)
way = bj.neurons.Polar() if CONE else bj.neurons.Lifted()
risk = bj.Risk(X, torch.randn(n, dtype=dtype), neurons=way, loss=bj.losses.Squared(scale=1 / n), weight_decay=decay)
def step(shape):
    if CONE:
        grid = risk.neurons.grid(shape[0], 2)
        start = bj.GridMeasure.from_density(grid, lambda points: torch.exp(-((points[:, -1] - 1) ** 2) * 5))
    else:
        grid = bj.Grid.uniform([-3.0] * len(shape), [3.0] * len(shape), shape, dtype=dtype)
        start = bj.GridMeasure.gaussian(grid, 0.0, 0.8)
    jko = bj.JKO(risk, grid, tau=0.01)
    state = jko.init(start)
    return jko.memory, jko.step(start, state, 0.01), start, state
step([16] * len(shape))
before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
estimate = step(shape)[0]
print(estimate, resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="a peak is read from /proc")
@pytest.mark.parametrize(
    ("shape", "dtype", "n", "decay"),
    [
        ((128, 128, 128), "float64", 20, 0.0),
        ((144, 144, 144), "float32", 20, 0.01),
        ((112, 112, 112), "float64", 200, 0.01),
        ((1600, 1600), "float64", 50, 0.0),
        ((2000, 2000), "float32", 10, 0.0),
        ((768,), "float64", 20, 0.0),  # directions, times the radii of PolarCone's own grid
    ],
    ids=str,
)
def test_the_estimate_is_within_a_quarter_of_the_peak(
    shape: tuple[int, ...], dtype: str, n: int, decay: float, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PEAK, str(shape), dtype, str(n), str(decay)], capture_output=True, text=True, check=True,
        env=RETURNED,
    )  # fmt: skip
    estimate, peak = map(int, ran.stdout.split())
    with capsys.disabled():
        print(f"\n  {shape} {dtype} n={n}: estimate {memory.gib(estimate)}, peak {memory.gib(peak)}", end="")  # noqa: T201
    assert abs(estimate - peak) <= 0.25 * peak


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("shape", "dtype", "n"),
    [
        ((128, 128, 128), torch.float64, 20),
        ((256, 256, 256), torch.float32, 50),
        ((112, 112, 112), torch.float64, 200),
        ((2000, 2000), torch.float64, 50),
        ((4096, 4096), torch.float32, 10),
    ],
    ids=lambda case: f"{case}-cuda",
)
def test_the_estimate_on_a_gpu_is_within_a_quarter_of_the_peak(
    shape: tuple[int, ...], dtype: torch.dtype, n: int, capsys: pytest.CaptureFixture[str]
) -> None:
    device = torch.device("cuda")
    X, y = (torch.randn(*size, dtype=dtype, device=device) for size in ((n, len(shape) - 1), (n,)))
    risk = bj.Risk(X, y, loss=bj.losses.Squared(scale=1 / n))

    def step(shape: tuple[int, ...]) -> int:
        grid = bj.Grid.uniform([-3.0] * len(shape), [3.0] * len(shape), shape, dtype=dtype, device=device)
        start, jko = bj.GridMeasure.gaussian(grid, 0.0, 0.8), bj.JKO(risk, grid, tau=0.01)
        jko.step(start, jko.init(start), 0.01)
        return jko.memory

    step((32,) * len(shape))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    estimate = step(shape)
    peak = torch.cuda.max_memory_allocated() - before
    with capsys.disabled():
        print(f"\n  {shape} {dtype} n={n}: estimate {memory.gib(estimate)}, peak {memory.gib(peak)}", end="")  # noqa: T201
    assert abs(estimate - peak) <= 0.25 * peak


# The same for particles.
NEURONS = """
import re, sys
import torch, bigjko as bj
torch.set_num_threads(1)
torch.manual_seed(0)
kind, m, n, d = getattr(bj, sys.argv[1]), *map(int, sys.argv[2:])
def resident(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
def step(m, n):
    X, y = torch.randn(n, d).double(), torch.randn(n).double()
    stepper = kind(bj.Risk(X, y, loss=bj.losses.Squared(scale=1 / n)), tau=0.02)
    start = bj.ParticleMeasure.from_network(torch.randn(m, d).double(), torch.randn(m).double())
    stepper.step(start, stepper.init(start), 0.02)
    return stepper.memory_of(m, n, d)
step(500, 20)
before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
estimate = step(m, n)
print(estimate, resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="a peak is read from /proc")
@pytest.mark.parametrize(
    ("kind", "m", "n", "d"),
    [
        ("ImplicitGradientDescent", 20_000, 200, 2),
        ("ImplicitGradientDescent", 20_000, 200, 10),
        ("SlidingFlow", 3_000, 200, 2),
        ("SlidingFlow", 6_000, 100, 5),
        ("GradientFlow", 500_000, 20, 2),
        ("GradientFlow", 200_000, 20, 10),
    ],
)
def test_the_estimate_of_particles_is_within_a_quarter_of_the_peak(
    kind: str, m: int, n: int, d: int, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", NEURONS, kind, str(m), str(n), str(d)], capture_output=True, text=True, check=True,
        env=RETURNED,
    )  # fmt: skip
    estimate, peak = map(int, ran.stdout.split())
    with capsys.disabled():
        print(f"\n  {kind} m={m} n={n}: estimate {memory.gib(estimate)}, peak {memory.gib(peak)}", end="")  # noqa: T201
    assert abs(estimate - peak) <= 0.25 * peak


@pytest.mark.parametrize("kind", [bj.GradientDescent, bj.GradientFlow, bj.ImplicitGradientDescent, bj.SlidingFlow])
def test_more_neurons_than_fit_are_refused(kind: type[bj.GradientDescent], monkeypatch: pytest.MonkeyPatch) -> None:
    stepper = kind(bj.Risk(torch.ones(2, 2, dtype=F64), torch.ones(2, dtype=F64)), tau=0.1)
    start = bj.ParticleMeasure.from_network(torch.ones(1000, 2, dtype=F64), torch.ones(1000, dtype=F64))
    stepper.init(start)
    monkeypatch.setattr("bigjko.particles.descent.available", lambda device: 50_000)
    with pytest.raises(bj.StepError, match=r"received 1,000 neurons and 2 data, whose steps of .* take .* take fewer"):
        stepper.init(start)


def test_ten_dimensions_on_a_grid_are_refused_with_what_to_take() -> None:
    way = bj.neurons.Lifted()
    grid = way.grid(8, dim=10)
    advice = "resolve no measure: take Projected, which has two dimensions fewer, or particles"
    with pytest.raises(bj.StepError, match=advice):
        bj.JKO(bj.Risk(torch.ones(3, 10, dtype=F64), torch.ones(3, dtype=F64)), grid, tau=0.1)
    network = torch.ones(2, 10, dtype=F64), torch.ones(2, dtype=F64)
    makers: tuple[Callable[[], bj.GridMeasure], ...] = (
        lambda: bj.GridMeasure.gaussian(grid, 0.0, 0.5),
        lambda: bj.GridMeasure.uniform(grid),
        lambda: bj.GridMeasure.from_density(grid, lambda points: points[:, 0].exp()),
        lambda: way.measure(grid, *network),
    )
    for make in makers:
        with pytest.raises(bj.MeasureError, match=f"whose measures take .* {advice}"):
            make()


def jko(shape: tuple[int, ...], dtype: torch.dtype = F64) -> bj.JKO:
    X = torch.ones(3, len(shape) - 1, dtype=dtype)
    grid = bj.Grid.uniform([-3.0] * len(shape), [3.0] * len(shape), shape, dtype=dtype)
    return bj.JKO(bj.Risk(X, torch.ones(3, dtype=dtype)), grid, tau=0.05)


def test_a_grid_that_does_not_fit_is_refused_with_one_that_does() -> None:
    with pytest.raises(bj.StepError) as refused:
        jko((4000, 4000, 4000))
    text = str(refused.value)
    found = re.fullmatch(
        r"received a grid of 4000 x 4000 x 4000 nodes in float64, whose JKO steps take ([\d.e+]+) GiB, need at most "
        r"the ([\d.]+) GiB that are free: (\d+) x \3 x \3 nodes would fit",
        text,
    )
    assert found is not None, text
    assert float(found[1]) > float(found[2])
    side = int(found[3])
    fits, more = (8 * 8 * n**3 / 2**30 for n in (side, 1.1 * side))
    assert fits <= float(found[2]) < more  # seven arrays and the kernel's


def test_one_axis_is_bounded_by_its_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 8 << 30)
    grid = bj.Grid.uniform([-3.0], [3.0], [1_500_000])  # its tiles' bounds take 490 GiB
    with pytest.raises(bj.StepError, match="nodes would fit"):
        bj.JKO(bj.Potential(lambda x: x[:, 0]), grid, tau=0.05)


def test_a_gpu_keeps_the_costs_of_short_axes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    circle, plane = bj.neurons.Projected().grid(512, 2), bj.Grid.uniform([-1.0] * 2, [1.0] * 2, [64, 64])
    energy = bj.Potential(lambda x: x[:, 0])
    here = step_memory(energy, circle, (2, 300_000)), step_memory(energy, plane, (512, 512))
    monkeypatch.setattr(bj.Grid, "device", property(lambda self: torch.device("cuda")))
    there = step_memory(energy, circle, (2, 300_000)), step_memory(energy, plane, (512, 512))
    assert there[0] < here[0] + (300 << 20)
    assert there[1] - here[1] >= 2 * 16 * 512**2 - 2 * 15 * 65**2


def test_nothing_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    with pytest.raises(bj.StepError, match="no such grid would fit"):
        jko((64, 64))


def test_the_limit_of_a_control_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "max").write_text("3000000\n")
    (tmp_path / "used").write_text("1500000\n")
    (tmp_path / "stat").write_text("anon 1000000\ninactive_file 500000\n")  # files read lately make way
    cpu = torch.device("cpu")
    unlimited = memory.available(cpu)
    monkeypatch.setattr(
        memory, "_CGROUPS", ((*(str(tmp_path / name) for name in ("max", "used", "stat")), "inactive_file"),)
    )
    assert memory.available(cpu) == 2_000_000
    (tmp_path / "max").write_text("max\n")
    assert memory.available(cpu) == pytest.approx(unlimited, rel=0.2)


def test_float32_takes_little_more_than_half() -> None:
    double, single = jko((300, 300)).memory, jko((300, 300), torch.float32).memory
    assert 0.5 < single / double < 1
