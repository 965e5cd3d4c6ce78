"""Data on one line through 0 have one kink, w . e = 0, between two sides: the data along e and those against it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Lines:
    """sum_j z_j relu(w . x_j) = w . tilt + sum_k z_k relu(w . e_k), no two of the unit e_k on one line.

    Chosen datum by datum, gates would hold neurons on kinks, or let them pass, where the data only have one together.
    P relu(h) + Q relu(-h) = (P + Q) relu(h) - Q h: the kink is convex where a (P + Q) > 0. Zeros have none.

    Attributes:
        e: (k, d) units.
        data: (q,) which data are not zero.
        line: (q,) the k of each.
        reach: (q,) its x . e_k, negative against e_k.
        size: n.
    """

    e: Float[Tensor, "k d"]
    data: Int[Tensor, " q"]
    line: Int[Tensor, " q"]
    reach: Float[Tensor, " q"]
    size: int

    @classmethod
    def of(cls, X: Float[Tensor, "n d"], eps: float) -> "Lines":
        """The lines of data that were rounded to eps."""
        norm = X.norm(dim=1)
        data = norm.nonzero()[:, 0]
        norm, unit = norm[data], X[data] / norm[data, None]
        if not len(unit):
            return cls(unit, data, data, norm, len(X))
        apart = [torch.cdist(unit, e, compute_mode="donot_use_mm_for_euclid_dist") for e in (unit, -unit)]
        first = (torch.minimum(*apart) <= _ON_LINE * eps).int().argmax(1)
        against = (apart[1] < apart[0]).gather(1, first[:, None])[:, 0]
        kept, line = first.unique(return_inverse=True)
        return cls(unit[kept], data, line, torch.where(against, -norm, norm), len(X))

    def slopes(self, z: Float[Tensor, " n"]) -> tuple[Float[Tensor, " k"], Float[Tensor, " d"]]:
        """(z_k, tilt)."""
        z = z[self.data]
        jumps = z.new_zeros(len(self.e)).index_add(0, self.line, z * self.reach.abs())
        return jumps, (z * self.reach.clamp(max=0.0)) @ self.e[self.line]

    def gates(self, shares: Float[Tensor, "m k"]) -> Float[Tensor, "m n"]:
        """The data's gates: a line's share for those along it, the rest of 1 for those against it, 0 for zeros."""
        gates, shares = shares.new_zeros(len(shares), self.size), shares[:, self.line]
        gates[:, self.data] = torch.where(self.reach > 0, shares, 1 - shares)
        return gates


_ON_LINE = 64.0  # ulps between units
