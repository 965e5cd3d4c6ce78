"""How a debiasing potential fits a measure, in one pass (fit.cpp), or by torch."""

import ctypes
import functools
import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from . import compiler
from .sums import parts

_DTYPES = (torch.float32, torch.float64)
_ALONE = 1 << 15  # nodes: below, a second thread costs what it saves


class Floor(NamedTuple):
    """A new potential is at least `least` + eps log r - slope d."""

    eps: float
    slope: float
    least: float


_NONE = Floor(0.0, 0.0, -math.inf)


class Fit(NamedTuple):
    """Of p and of r, which a potential reproduces; all NaN where a log(p/r) is.

    Attributes:
        mass, reproduced, missed: the sums of p, r and |p - r|, in float64.
        worst: the largest log(p/r).
        top: the largest value of the new potential.
    """

    mass: float
    reproduced: float
    missed: float
    worst: float
    top: float


@functools.cache
def load(march: str = "native") -> Any:
    """The compiled function, or None where it cannot be had."""
    library = compiler.load("fit.cpp", march)
    if library is None:
        return None
    place, number = ctypes.c_void_p, ctypes.c_long
    library.bigjko_fit.argtypes = (place, place, place, place, number, number, place, number, place)
    library.bigjko_fit.restype = None
    return library.bigjko_fit


def fit(
    log_p: Float[Tensor, "*grid"],
    log_r: Float[Tensor, "*grid"],
    d: Float[Tensor, "*grid"],
    rate: float,
    out: Tensor,
    floor: Floor = _NONE,
) -> Fit:
    """Writes d + rate log(p/r), or the floor where that is larger, into out, which may be d; how p and r differ."""
    arrays = (log_p, log_r, d, out)
    plain = all(x.device.type == "cpu" and x.is_contiguous() and x.dtype == log_p.dtype for x in arrays)
    if not (plain and log_p.dtype in _DTYPES and load() is not None):
        return by_torch(log_p, log_r, d, rate, out, floor)
    rule = (ctypes.c_double * 4)(rate, *floor)
    found = (ctypes.c_double * 5)()
    threads = torch.get_num_threads() if log_p.numel() > _ALONE else 1
    load()(*(x.data_ptr() for x in arrays), log_p.numel(), log_p.dtype == torch.float32, rule, threads, found)
    return Fit(*found)


def by_torch(log_p: Tensor, log_r: Tensor, d: Tensor, rate: float, out: Tensor, floor: Floor = _NONE) -> Fit:
    """The same by torch, a few nodes at a time; log_r is overwritten."""
    mass, reproduced, missed = torch.zeros(3, dtype=torch.float64, device=d.device)
    worst = top = d.new_full((), -math.inf)
    for log_p_i, log_r_i, d_i, new in parts(log_p, log_r, d, out):
        log_ratio = log_p_i - log_r_i
        lowest = torch.add(floor.eps * log_r_i, d_i, alpha=-floor.slope).add_(floor.least)
        torch.fmax(torch.add(d_i, log_ratio, alpha=rate), lowest.masked_fill_(log_ratio.isnan(), math.nan), out=new)
        worst, top = torch.maximum(worst, log_ratio.max()), torch.maximum(top, new.max())
        p, r = log_p_i.exp(), log_r_i.exp_()
        mass += p.sum(dtype=torch.float64)
        reproduced += r.sum(dtype=torch.float64)
        missed += p.sub_(r).abs_().sum(dtype=torch.float64)
    found = Fit(*torch.stack([mass, reproduced, missed, worst.double(), top.double()]).tolist())
    return Fit(*[math.nan] * 5) if math.isnan(found.top) else found
