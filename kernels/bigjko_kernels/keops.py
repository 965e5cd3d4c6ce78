"""KeOps, imported in one place: quiet on a machine that has no GPU to miss, outspoken on one that has."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("KEOPS_VERBOSE", "0")  # read once, when pykeops is first imported

from pykeops.torch import LazyTensor as LazyTensor  # noqa: E402


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
