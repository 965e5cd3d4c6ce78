"""Quasi-Newton ascent of a dual on R^n: compiled where n is small (ascent.cpp), else its parts by torch."""

import functools
import math
from ctypes import POINTER, Structure, byref, c_double, c_long, c_void_p
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from . import compiler
from .passes import Parts

_SMALL = 128  # from here on LAPACK gains what its calls cost
_LEAST = 1e-14  # of |move| |change|: below it their product is rounding


class _Climb(Structure):
    _fields_ = [
        ("evaluate", Parts),
        *((name, c_void_p) for name in ("applied", "z", "outputs", "sums")),
        ("shares", c_long),
        *((name, c_double) for name in ("worth", "constant", "scale", "lowest")),
        ("centre", c_void_p),
        *((name, c_double) for name in ("tau", "tolerance", "good", "far", "noise", "force", "least")),
        *((name, c_long) for name in ("n", "budget", "turns")),
        *((name, c_void_p) for name in ("B", "point", "pairs")),
        *((name, c_double) for name in ("value", "residual", "gap")),
        *((name, c_long) for name in ("evaluations", "learned", "stale", "torn")),
    ]


@functools.cache
def load(march: str = "native") -> Any:
    """The compiled functions, or None where they cannot be had."""
    library = compiler.load("ascent.cpp", march)
    if library is None:
        return None
    library.bigjko_newton.argtypes, library.bigjko_newton.restype = (*(4 * [c_void_p]), c_long), c_long
    library.bigjko_learn.argtypes, library.bigjko_learn.restype = (*(4 * [c_void_p]), c_long, c_double), None
    library.bigjko_climb.argtypes, library.bigjko_climb.restype = (POINTER(_Climb),), None
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


class Evaluation(NamedTuple):
    """The smallest value over p of what a dual is made of, as compiled code that leaves what it finds in its places.

    Attributes:
        call: evaluates.
        applied: the address of a number that is 2 afterwards if it could.
        sums: float64, for which constant + worth times their sum is the value; NaN where there is no smallest.
        worth, constant: see there.
    """

    call: Parts
    applied: int
    sums: Float[Tensor, " shares"]
    worth: float
    constant: float = 0.0


class Rules(NamedTuple):
    """When to go on climbing.

    Attributes:
        tolerance: of the residual: done.
        good: of the residual: at or below it no Newton move further is looked for.
        far: of the residual: beyond, B is not worth a move.
        noise: of values, relative to 1 and their own size.
        force: the residual is relative to the larger of this and max |z|.
        budget: evaluations, at most.
        turns: moves, at most.
    """

    tolerance: float
    good: float
    far: float
    noise: float
    force: float
    budget: int
    turns: int


class Point(NamedTuple):
    """The dual at z.

    Attributes:
        z, outputs: the point, and M p there.
        gradient: of the dual over tau, M p - grad g*(z).
        value: of the dual.
        residual: max |z - grad g(M p)|, relative.
        rounding: what the dtype leaves uncertain in log p, which no residual gets below.
        gap: tau [g(M p) + g*(z) - <z, M p>], where it is known.
        onward: where it is known, the point a Newton move further, or z where the residual leaves none to take.
    """

    z: Float[Tensor, " n"]
    outputs: Float[Tensor, " n"]
    gradient: Float[Tensor, " n"]
    value: float
    residual: float
    rounding: float = 0.0
    gap: float | None = None
    onward: Float[Tensor, " n"] | None = None


class Climbed(NamedTuple):
    """Where a climb ended.

    Attributes:
        point: there, if there is any.
        evaluations: that went through; none where the first did not, or has no number for a value.
        B: with what was learned.
        pairs: what it learned from: moves, and the changes of -M p.
        stale: whether what the last evaluation left is that of another point.
        torn: whether it did not go through.
    """

    point: Point
    evaluations: int
    B: Float[Tensor, "n n"]
    pairs: list[tuple[Float[Tensor, " n"], Float[Tensor, " n"]]]
    stale: bool
    torn: bool = False


def climb(
    at: Evaluation,
    z: Float[Tensor, " n"],
    outputs: Float[Tensor, " n"],
    g: tuple[float, Float[Tensor, " n"], float],
    tau: float,
    B: Float[Tensor, "n n"],
    rules: Rules,
) -> Climbed | None:
    """Newton moves up -tau g*(z) + min over p, g(u) = least + scale |u - centre|^2, as long as each is as it comes.

    It ends where the rules say, and before a move that would have to be shortened, or an evaluation that does not go
    through: from there the caller goes on. All of it is one call: on grids of 10^5 nodes what is done in Python
    between evaluations takes as long as one of the applications.

    Args:
        at: evaluates.
        z: where it begins; what an evaluation reads, and afterwards that of the last.
        outputs: where it leaves M p.
        g: its scale, centre and least value.
        tau: the time step.
        B: near -d M p / d z.
        rules: see there.

    Returns:
        None where no code is compiled for so many z.
    """
    n, (scale, centre, lowest) = len(z), g
    if (library := _compiled(B, z, outputs, centre)) is None:
        return None
    B, point, pairs = B.clone(), torch.empty(4, n, dtype=B.dtype), torch.empty(rules.turns, 2, n, dtype=B.dtype)
    known = _Climb(
        *(
            at.call,
            at.applied,
            z.data_ptr(),
            outputs.data_ptr(),
            at.sums.data_ptr(),
            len(at.sums),
            at.worth,
            at.constant,
        ),
        *(
            scale,
            lowest,
            centre.data_ptr(),
            tau,
            rules.tolerance,
            rules.good,
            rules.far,
            rules.noise,
            rules.force,
            _LEAST,
        ),
        *(n, rules.budget, rules.turns, B.data_ptr(), point.data_ptr(), pairs.data_ptr()),
    )
    library.bigjko_climb(byref(known))
    taken = [(pairs[k, 0], pairs[k, 1]) for k in range(known.learned)]
    z, outputs, gradient, onward = point.unbind()
    here = Point(z, outputs, gradient, known.value, known.residual, 0.0, known.gap, onward)
    return Climbed(here, known.evaluations, B, taken, bool(known.stale), bool(known.torn))
