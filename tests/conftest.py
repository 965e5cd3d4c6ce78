"""What every test shares: the devices present, a fixed seed, one thread."""

import os

# Before torch and KeOps load OpenMP: workers that each start a thread per core only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

if not torch.cuda.is_available():  # before kernels are defined: Triton's interpreter runs them
    os.environ["TRITON_INTERPRET"] = "1"

# The same examples in every run, and few of them: a failure is reproduced by running the test again.
settings.register_profile("small", max_examples=40, derandomize=True, deadline=None, database=None)
settings.register_profile("large", max_examples=2000, deadline=None, database=None)  # --hypothesis-profile=large
settings.load_profile("small")


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device there is."""
    return torch.empty(0, device=request.param).device  # cuda:0 rather than cuda, as tensors say


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Both dtypes that the packages promise."""
    chosen: torch.dtype = request.param
    return chosen


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(20240)
