"""KeOps, imported in one place: quiet on a machine that has no GPU to miss, outspoken on one that has.

Its formulas are compiled with a binding of our own (keops.h), in an eighth of the time, and by one process at a time.
"""

import atexit
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("KEOPS_VERBOSE", "0")  # read once, when pykeops is first imported

import pykeops  # noqa: E402
from pykeops.torch import LazyTensor as LazyTensor  # noqa: E402

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
            with FileLock(Path(on_cpu.get_build_folder()) / f"{name}.lock"):
                return load(*formula, **options)

        return loader

    for cache in (get_keops_dll, *keops_binder.values()):
        atexit.unregister(cache.save_cache)
    for cache in keops_binder.values():
        cache.cls = alone(cache.cls)  # called once a formula and process
    on_cpu.LoadKeOps_cpp_class.get_pybind11_code = binding


if pykeops.__version__ in _KNOWN:
    _hasten()


def block_sparse(outputs: Tensor, inputs: Tensor) -> tuple[Tensor, ...]:
    """KeOps' `ranges` for a reduction over inputs: (n, 2) ranges of places, equal outputs following one another."""
    first = torch.cat([outputs.new_ones(1, dtype=torch.bool), (outputs.diff(dim=0) != 0).any(dim=1)])
    starts = first.nonzero()[:, 0]
    ends = torch.cat([starts[1:], starts.new_tensor([outputs.shape[0]])])
    tables = (outputs[starts].contiguous(), ends, inputs.contiguous())
    return (*tables, *tables)  # the second three would serve the reduction over outputs


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
