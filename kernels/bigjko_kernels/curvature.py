"""An n x n matrix as quasi-Newton methods use it: compiled where it is small (curvature.cpp), else by torch."""

import functools
import math
from ctypes import c_double, c_long, c_void_p
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from . import compiler

_SMALL = 128  # from here on LAPACK gains what its calls cost
_LEAST = 1e-14  # of |move| |change|: below it their product is rounding


@functools.cache
def load(march: str = "native") -> Any:
    """The compiled functions, or None where they cannot be had."""
    library = compiler.load("curvature.cpp", march)
    if library is None:
        return None
    library.bigjko_newton.argtypes, library.bigjko_newton.restype = (*(4 * [c_void_p]), c_long), c_long
    library.bigjko_learn.argtypes, library.bigjko_learn.restype = (*(4 * [c_void_p]), c_long, c_double), None
    return library


def _compiled(B: Tensor, *vectors: Tensor) -> Any:
    n = B.shape[0]
    fits = B.dtype == torch.float64 and n <= _SMALL and all(x.shape == (n,) for x in vectors)
    return load() if fits and compiler.takes(B, *vectors) else None


def newton(
    B: Float[Tensor, "n n"], diagonal: Float[Tensor, " n"], gradient: Float[Tensor, " n"]
) -> Float[Tensor, " n"] | None:
    """(B + diag(diagonal))^-1 gradient, B symmetric; None where that is singular."""
    if (library := _compiled(B, diagonal, gradient)) is not None:
        move = torch.empty_like(gradient)
        if library.bigjko_newton(*(x.data_ptr() for x in (B, diagonal, gradient, move)), B.shape[0]):
            return move
    move, singular = torch.linalg.solve_ex(B + torch.diag(diagonal), gradient)
    return None if bool(singular) else move


def learn(B: Float[Tensor, "n n"], move: Float[Tensor, " n"], change: Float[Tensor, " n"]) -> Float[Tensor, "n n"]:
    """The BFGS update of B for B move = change; where change is 0, B loses its curvature along move."""
    if (library := _compiled(B, move, change)) is not None:
        out = torch.empty_like(B)
        library.bigjko_learn(*(x.data_ptr() for x in (B, move, change, out)), B.shape[0], _LEAST)
        return out
    return learn_by_torch(B, move, change)


def learn_by_torch(B: Tensor, move: Tensor, change: Tensor) -> Tensor:
    """The same by torch."""
    image = B @ move
    pairs = torch.stack([move, change, image])
    (length2, push, pull), (_, change2, _), _ = (pairs @ pairs.T).tolist()
    if pull > 0:
        B = B.addr(image, image, alpha=-1 / pull)
    if push > _LEAST * math.sqrt(length2 * change2):
        B = B.addr(change, change, alpha=1 / push)
    return B
