"""The C++ on other instruction sets than this machine's own, and what a library in the cache depends on."""

import ctypes
import functools
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bigjko_kernels import Compiled, compiler, fused, ridge

from . import test_features, test_fused, test_kernels, test_ridge
from .registry import INPUTS

CPU = torch.device("cpu")
CAN = {"x86-64": {"DEFAULT", "AVX2", "AVX512"}, "haswell": {"AVX2", "AVX512"}}  # by torch.backends.cpu


@pytest.fixture(params=CAN)
def march(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """SSE2 and AVX2 in place of what -march=native gives."""
    name: str = request.param
    if platform.machine() != "x86_64" or torch.backends.cpu.get_cpu_capability() not in CAN[name]:
        pytest.skip(f"this CPU cannot run {name}")
    for module in (fused, ridge):
        monkeypatch.setattr(module, "load", functools.partial(module.load, name))
        assert module.load() is not None
    return name


@pytest.mark.slow  # each source is compiled twice, 3 s each
def test_separable_agrees_with_the_oracle_on_any_instruction_set(march: str) -> None:
    for grid, cost, kernel in test_kernels.TRIPLES:
        for values in INPUTS if kernel == "separable" else ():
            for dtype in (torch.float64, torch.float32):
                test_kernels.test_log_apply_agrees_with_the_oracle(grid, cost, kernel, values, dtype, CPU)
    test_fused.test_lines_may_lie_in_memory_in_any_way()
    test_fused.test_threads_and_history_do_not_change_a_bit()


@pytest.mark.slow
def test_ridge_sums_are_those_written_out_on_any_instruction_set(march: str) -> None:
    for dtype in (torch.float64, torch.float32):
        test_features.test_streams_are_the_sums_written_out(Compiled, dtype, CPU)
        test_features.test_the_slope_at_a_kink_is_zero(Compiled, dtype, CPU)
        test_features.test_a_descent_is_the_velocity_and_the_outputs_where_it_leads(Compiled, dtype, 0.3, CPU)
    for d in (1, 2, 3, 4):
        for N, n in ((0, 9), (1, 1), (9, 7), (20, 600)):
            test_ridge.test_any_number_of_directions_and_data(N, n, d)
    for bad in (float("nan"), float("inf")):
        for where in range(4):
            test_ridge.test_nan_and_inf_go_where_they_go_in_torch(bad, where, 9)
    test_ridge.test_any_dimension()
    test_ridge.test_bits_do_not_depend_on_threads()


def test_a_header_that_changes_makes_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGJKO_CACHE_FOLDER", str(tmp_path / "cache"))
    source, header = tmp_path / "one.cpp", tmp_path / "one.h"
    source.write_text('#include "one.h"\nextern "C" int one() { return ONE; }\n')
    header.write_text("#define ONE 1\n")
    first = compiler.build(source, "native")
    assert compiler.build(source, "native") == first
    header.write_text("#define ONE 2\n")
    assert compiler.build(source, "native") != first
    assert len(list((tmp_path / "cache").iterdir())) == 2


ALONE = r"""
#include <atomic>
#include <cstdio>
#include "threads.h"
int main() {
    std::atomic<int> calls{0};
    auto work = [&] { ++calls; };
    on_threads(4, work);
    std::printf("%d %d", GOMP_parallel != nullptr, calls.load());
}
"""


def test_threads_are_torchs_own_where_it_has_them_and_ours_elsewhere(tmp_path: Path) -> None:
    """In a program without torch four threads are started; in this process torch's are visible to compiled code."""
    source, program = tmp_path / "alone.cpp", tmp_path / "alone"
    source.write_text(ALONE)
    folder = Path(compiler.__file__).parent
    command = [os.environ.get("CXX", "g++"), "-std=c++17", "-pthread", f"-I{folder}", str(source), "-o", str(program)]
    subprocess.run(command, check=True)
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == "0 4"
    if sys.platform == "linux" and "omp_get_max_threads" in torch.__config__.parallel_info():
        assert hasattr(ctypes.CDLL(None), "GOMP_parallel")
