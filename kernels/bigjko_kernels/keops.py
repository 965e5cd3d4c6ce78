"""KeOps, imported in one place: quiet on a machine that has no GPU to miss, outspoken on one that has."""

import os

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
