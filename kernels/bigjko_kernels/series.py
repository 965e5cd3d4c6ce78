"""A term of a cost as a short power series of the squared chord: an exact formula without atan2, sin or log."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .costs import Term

_SAMPLES = 64
_NOISE = 1e-15  # of the samples: coefficients below it, relative to the first, are zero


@dataclass(frozen=True)
class Series:
    """c(s) = s (a_0 + a_1 u + a_2 u^2 + ...) with u = s - middle, for squared chords s up to `reach`.

    To a few roundings of c, however small: powers of u are well conditioned, and the factor s is exact.

    Attributes:
        coefficients: a single one where c is a multiple of s.
        middle: half the reach.
        reach: 0 where so short a series is nowhere good enough.
    """

    coefficients: Tensor
    middle: float
    reach: float

    @classmethod
    def of(cls, term: Term, length: int, largest: float) -> "Series":
        """The series of this length that reaches farthest, up to s = `largest`.

        Interpolated at Chebyshev nodes; its error is a geometric tail, which the last coefficient bounds.
        """
        reach = largest
        angle = (torch.arange(_SAMPLES, dtype=torch.float64) + 0.5) * (math.pi / _SAMPLES)
        modes = (torch.arange(length, dtype=torch.float64)[:, None] * angle).cos() * (2 / _SAMPLES)
        modes[0] /= 2
        for _ in range(48):  # to 2e-5 of it
            s = reach * (1 + angle.cos()) / 2
            chebyshev = modes @ (term.of(s) / s)
            if not bool(torch.isfinite(chebyshev).all()):
                break
            degree = max((chebyshev.abs() > _NOISE * chebyshev[0].abs()).nonzero()[:, 0].tolist(), default=0)
            if degree < length - 1:
                powers = np.polynomial.chebyshev.cheb2poly(chebyshev[: degree + 1].numpy())
                a = torch.zeros(1 if degree == 0 else length, dtype=torch.float64)
                a[: degree + 1] = torch.from_numpy(powers * (2 / reach) ** np.arange(degree + 1))
                return cls(a, reach / 2, reach)
            reach *= 0.8
        return cls(torch.zeros(length, dtype=torch.float64), 0.0, 0.0)
