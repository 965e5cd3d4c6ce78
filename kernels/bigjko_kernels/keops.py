"""KeOps, imported in one place: quiet on a machine that has no GPU to miss, outspoken on one that has."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("KEOPS_VERBOSE", "0")  # read once, when pykeops is first imported

from pykeops.torch import LazyTensor as LazyTensor  # noqa: E402
