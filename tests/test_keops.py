"""KeOps as it is bound here: processes that share a cache, and formulas that compile without pybind11."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bigjko_kernels import Keops, Tiled

D = torch.float64

ONE = """
import sys, torch
from bigjko_kernels import Keops, Tiled
W, X = torch.arange(12.0).reshape(4, 3) - 5, torch.eye(3)
print(float((Keops(W, X).slopes(torch.ones(3)) - Tiled(W, X).slopes(torch.ones(3))).abs().max()))
"""


def test_processes_that_share_a_cache_compile_a_formula_once(tmp_path: Path) -> None:
    """Four that start at once, in an empty folder: each has the sums, and what is left can be read by a fifth."""
    environment = {**os.environ, "KEOPS_CACHE_FOLDER": str(tmp_path)}

    def started() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", ONE], env=environment, stdout=subprocess.PIPE, text=True)

    several = [started() for _ in range(4)]
    said = [process.communicate()[0].splitlines() for process in several]
    assert [lines[-1] for lines in said] == ["0.0"] * 4
    assert sum("Compiling" in line for lines in said for line in lines) == 1
    assert [process.returncode for process in several] == [0] * 4
    assert started().communicate()[0] == "0.0\n"
    (bound,) = tmp_path.glob("*/pykeops_cpp_*.cpp")
    assert "keops.h" in bound.read_text()


@pytest.mark.parametrize("wrong", [0, 8], ids=["a number", "a sequence"])
def test_what_a_formula_cannot_be_called_with_is_refused(wrong: int) -> None:
    """By a Python error, and not by reading from what is no address."""
    W, X = torch.ones(3, 2, dtype=D), torch.ones(4, 2, dtype=D)
    assert torch.equal(Keops(W, X).potential(torch.ones(4, dtype=D)), Tiled(W, X).potential(torch.ones(4, dtype=D)))
    module = next(m for name, m in sys.modules.items() if name.startswith("pykeops_cpp_"))
    numbers: list[object] = [1, 1, 1, 0, 0, 0, 1, 0, (), (), (), 1, (), (), (), (), (), 0, (), ()]
    numbers[wrong] = "one"
    with pytest.raises(TypeError):
        module.launch_pykeops_cpu(*numbers)
