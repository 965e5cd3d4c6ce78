"""KeOps, imported in one place: quiet on a machine that has no GPU to miss, outspoken on one that has.

Its formulas are compiled with a binding of our own (keops.h), in an eighth of the time, and by one process at a time.
"""

import atexit
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from .errors import KernelError

if not torch.cuda.is_available():
    os.environ.setdefault("KEOPS_VERBOSE", "0")  # read once, when pykeops is first imported

_trouble: str | None = None  # why KeOps cannot be used, which is said when it is
try:
    import pykeops
    from pykeops.torch import LazyTensor as LazyTensor
except OSError as error:  # its cache is made when it is imported; all that needs no KeOps works on
    LazyTensor = Any
    _trouble = (
        f"received a cache of KeOps in {error.filename} that cannot be written ({error.strerror}), need a folder that "
        "can: set KEOPS_CACHE_FOLDER to one"
    )

_KNOWN = ("2.2.3", "2.3")  # releases whose loaders are as `_hasten` takes them; others keep their own ways


def _hasten() -> None:
    """Compile formulas with keops.h, each in one process while others that need it wait.

    KeOps looks whether a file is there, and then writes it: a second process would find half of it. What it knows of
    its formulas it writes at exit, over what others wrote: that is left out, finding a formula again takes .03 s.
    """
    from keopscore.get_keops_dll import get_keops_dll
    from pykeops.common.keops_io import LoadKeOps_cpp as on_cpu
    from pykeops.common.keops_io import keops_binder

    def binding(loader: Any) -> str:
        tag, real = loader.params.tag, on_cpu.cpp_dtype[loader.params.dtype]
        return f"""#include "{loader.params.source_name}"
#define FORMULA launch_keops_cpu_{tag}
#define REAL {real}
#define INIT PyInit_pykeops_cpp_{tag}
#include "{Path(__file__).with_name("keops.h")}"
"""

    def alone(load: Callable[..., Any]) -> Callable[..., Any]:
        def loader(*formula: Any, **options: Any) -> Any:
            name = hashlib.sha256(repr(formula).encode()).hexdigest()[:16]
            folder = Path(on_cpu.get_build_folder())
            try:
                with FileLock(folder / f"{name}.lock"):
                    return load(*formula, **options)
            except (ImportError, OSError) as error:  # KeOps looks at no exit code: what it compiled is not there
                raise KernelError(
                    f"received a formula of KeOps that could not be compiled and loaded in {folder} ({error}), need "
                    f"{_needs()}: install it or name it in CXX, and empty that folder; bigjko info --check tries it"
                ) from error

        return loader

    for cache in (get_keops_dll, *keops_binder.values()):
        atexit.unregister(cache.save_cache)
    for cache in keops_binder.values():
        cache.cls = alone(cache.cls)  # called once a formula and process
    on_cpu.LoadKeOps_cpp_class.get_pybind11_code = binding


def _needs() -> str:
    on_gpu = ", and cuda.h and nvrtc.h where CUDA_PATH points" if state().gpu else ""
    return f"a C++ compiler and Python's headers{on_gpu}"


if _trouble is None and pykeops.__version__ in _KNOWN:
    _hasten()


def lazy_tensor(x: Tensor) -> LazyTensor:
    """A tensor as KeOps takes it.

    Raises:
        KernelError: where KeOps cannot be used, or lacks what it needs on the tensor's device: it would be handed
            addresses on a GPU to read on the CPU.
    """
    if _trouble is not None:
        raise KernelError(_trouble)
    if x.device.type == "cuda" and not state().gpu:
        raise KernelError(
            f"received values on {x.device} for a KeOps that works on the CPU alone ({state().reason}), need libcuda, "
            "libnvrtc and cuda.h where the linker finds them: set LD_LIBRARY_PATH and CUDA_PATH, or move to the CPU"
        )
    return LazyTensor(x)


@contextmanager
def memory_told(device: torch.device) -> Iterator[None]:
    """A reduction that finds no memory on a GPU, as torch's own error: KeOps says 'Cuda error', whatever it is.

    KeOps allocates outside torch's allocator, which may hold what it lacks.
    """
    try:
        yield
    except RuntimeError as error:
        if device.type != "cuda" or isinstance(error, torch.OutOfMemoryError) or "Cuda error" not in str(error):
            raise
        held = (torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)) / 2**30
        raise torch.OutOfMemoryError(
            f"received {error} from KeOps on {device}, which most often finds no memory there: torch keeps {held:.3g} "
            "GiB that it does not use; call torch.cuda.empty_cache(), or take fewer nodes"
        ) from error


@dataclass(frozen=True)
class State:
    """What there is of KeOps here.

    Attributes:
        version: its release, None where it cannot be used.
        gpu: whether it computes on GPUs.
        reason: why not, in words; empty where it does.
        folder: where compiled formulas are kept, by this host and Python.
    """

    version: str | None
    gpu: bool
    reason: str
    folder: Path | None


def state() -> State:
    """See State."""
    if _trouble is not None:
        return State(None, False, _trouble, None)
    gpu = bool(pykeops.config.gpu_available)
    lacks = [f"lib{name}" for name in ("cuda", "nvrtc") if find_library(name) is None]
    lacking = f"{' and '.join(lacks)} not found by the linker" if lacks else pykeops.config.pykeops_cuda.cuda_message
    reason = "" if gpu else "torch sees no GPU" if not torch.cuda.is_available() else str(lacking)
    return State(pykeops.__version__, gpu, reason, Path(pykeops.get_build_folder()))


def block_sparse(outputs: Tensor, inputs: Tensor) -> tuple[Tensor, ...]:
    """KeOps' `ranges` for a reduction over inputs: (n, 2) ranges of places, equal outputs following one another."""
    first = torch.cat([outputs.new_ones(1, dtype=torch.bool), (outputs.diff(dim=0) != 0).any(dim=1)])
    starts = first.nonzero()[:, 0]
    ends = torch.cat([starts[1:], starts.new_tensor([outputs.shape[0]])])
    tables = (outputs[starts].contiguous(), ends, inputs.contiguous())
    return (*tables, *tables)  # the second three would serve the reduction over outputs


def covered(outputs: Tensor, size: int) -> Tensor:
    """(size,) which outputs lie in one of these ranges: on a GPU a reduction leaves the others as memory was."""
    steps = outputs.new_zeros(size + 1)
    steps.index_add_(0, outputs[:, 0], outputs.new_ones(outputs.shape[0]))
    steps.index_add_(0, outputs[:, 1], outputs.new_full((outputs.shape[0],), -1))
    return steps[:-1].cumsum(0) > 0


_ROWS = 1024  # 6 ms of work on a sphere: enough for many threads to share


@contextmanager
def fitting_threads(outputs: Tensor) -> Iterator[None]:
    """On the CPU, one thread while ranges of outputs are small: KeOps' threads meet after every range.

    A thread that spins where another program holds its core made 10 s of .2 s, in 2048 ranges of 10 nodes. KeOps asks
    the OpenMP that torch sets the number of threads of.
    """
    threads = torch.get_num_threads()
    small = outputs.device.type == "cpu" and threads > 1 and int(outputs.diff(dim=1).min()) < _ROWS
    if small:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if small:
            torch.set_num_threads(threads)
