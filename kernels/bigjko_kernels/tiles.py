"""Nodes sorted into a tree of tiles, and the pairs of tiles that a log-sum-exp cannot do without.

With m_J the largest b in a tile J, and c_IJ^min and c_IJ^max bounds of the cost between the nodes of I and those of J,

    low_I = max(min_I b, max_J (m_J - c_IJ^max/eps))

is below every output in I, and no node of J adds more than exp(m_J - c_IJ^min/eps). So I can do without J where

    m_J - c_IJ^min/eps + log N + margin < low_I:

all that it does without is less than exp(-margin) of each of its outputs, whatever b is. The pairs are chosen anew for
every b, from the root of the tree down: a pair that is not left out gives way to its four pairs of halves.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .costs import Cost
from .gibbs import LOG_ZERO

_TILE = 12  # nodes at most in the smallest tiles
_PAIRS = 16  # pairs a node at most: input that needs more is left in larger tiles
_CHUNK = 1 << 18  # pairs looked at together
_ROUNDING = 1e-14  # of a centre and a distance, in units of the largest coordinate


@dataclass(frozen=True)
class Level:
    """The tiles of one level of the tree.

    Attributes:
        starts: tile I is the places starts[I] to starts[I + 1] of the tree's order.
        centres: (tiles, k) the middle of each.
        radii: (tiles, terms) the largest distance from there, in the coordinates of each term of the cost.
        low, high: (tiles,) the least and the greatest last coordinate, which scaled terms are multiplied by.
    """

    starts: Tensor
    centres: Tensor
    radii: Tensor
    low: Tensor
    high: Tensor

    def ranges(self, tiles: Tensor) -> Tensor:
        """(n, 2) where these tiles start and end."""
        return torch.stack([self.starts[tiles], self.starts[tiles + 1]], dim=1)


@dataclass(frozen=True)
class Pairs:
    """Pairs of ranges of the tree's order, each a tile: those with the same outputs follow one another.

    Attributes:
        outputs, inputs: (pairs, 2) where the tile starts and ends.
        chords: (pairs, terms) the squared chord that no two of their nodes exceed, for each term of the cost.
    """

    outputs: Tensor
    inputs: Tensor
    chords: Tensor

    @property
    def count(self) -> int:
        """How many pairs of nodes there are in these pairs of tiles."""
        return int((self.outputs.diff(dim=1) * self.inputs.diff(dim=1)).sum())

    def where(self, kept: Tensor) -> "Pairs":
        """Some of the pairs."""
        return Pairs(self.outputs[kept], self.inputs[kept], self.chords[kept])


class Tiles:
    """A binary tree over the nodes: every tile is cut in half across its longest side.

    Memory: N/3 centres and radii at most; `pairs` gives up to 16 pairs a node, 4 to 12 for the b of a step.

    Args:
        points: (N, k) nodes, in float64.
        cost: the cost to bound; where it has no terms there are no bounds, and the tree is its root.

    Attributes:
        order: (N,) the node at each place.
        levels: the tiles, from the root down.
    """

    def __init__(self, points: Tensor, cost: Cost) -> None:
        self.size = points.shape[0]
        self.terms = cost.terms(points.shape[1])
        self.widths = [term.width for term in self.terms]
        self.order = torch.arange(self.size, device=points.device)
        self.levels: list[Level] = []
        depth = max(0, math.ceil(math.log2(self.size / _TILE))) if self.terms else 0
        slack = _ROUNDING * float(points.abs().max())
        for k in range(depth + 1):
            # Halves of halves: floor(N 2i / 2^(k+1)) = floor(N i / 2^k), so that children end where parents do.
            starts = torch.arange(2**k + 1, device=points.device) * self.size // 2**k
            tile = torch.arange(2**k, device=points.device).repeat_interleave(starts.diff())
            x = points[self.order]
            low, high = (_by_tile(x, tile, 2**k, how) for how in ("amin", "amax"))
            centres = (low + high) / 2
            parts = (x - centres[tile]).split(self.widths, dim=1) if self.terms else ()
            radii = [_by_tile(part.norm(dim=1, keepdim=True), tile, 2**k, "amax") + slack for part in parts]
            stacked = torch.cat(radii, dim=1) if radii else x.new_zeros(2**k, 0)
            self.levels.append(Level(starts, centres, stacked, low[:, -1], high[:, -1]))
            if k < depth:
                sides = (high - low).split(self.widths, dim=1)
                scaled = [s * high[:, -1:] if t.scaled else s for t, s in zip(self.terms, sides, strict=True)]
                longest = torch.cat(scaled, dim=1).argmax(dim=1)
                across = x.gather(1, longest[tile][:, None])[:, 0].argsort(stable=True)
                self.order = self.order[across[tile[across].argsort(stable=True)]]
        smallest = self.levels[-1].starts
        widest = int(smallest.diff().max())
        place = smallest[:-1, None] + torch.arange(widest, device=points.device)
        self._leaves = torch.minimum(place, smallest[1:, None] - 1)  # a shorter tile names its last node twice

    def bounds(self, level: Level, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The least and the greatest cost between tiles i and j, and their greatest squared chords."""
        apart = (level.centres[i] - level.centres[j]).split(self.widths, dim=1) if self.terms else ()
        least = greatest = level.centres.new_zeros(i.shape)
        chords = level.radii.new_zeros(i.shape[0], len(self.terms))
        if not self.terms:
            return least - math.inf, greatest + math.inf, chords
        for k, (term, part) in enumerate(zip(self.terms, apart, strict=True)):
            distance, both = part.norm(dim=1), level.radii[i, k] + level.radii[j, k]
            closest, farthest = (distance - both).clamp(min=0) ** 2, (distance + both) ** 2
            chords[:, k] = farthest.clamp(max=4.0) if term.unit else farthest
            near, far = term.of(closest), term.of(chords[:, k])
            if term.scaled:
                near, far = near * level.low[i] * level.low[j], far * level.high[i] * level.high[j]
            least, greatest = least + near, greatest + far
        return least, greatest, chords

    def pairs(self, b: Tensor, epsilon: float, margin: float) -> Pairs:
        """The pairs of tiles that the outputs of b need, but for exp(-margin) of each.

        Args:
            b: (N,) log values in the tree's order; a tile of LOG_ZERO alone is in no pair.
            epsilon: entropic temperature.
            margin: how far below an output everything that it does without is.
        """
        found = list(self._descend(b, epsilon, margin + math.log(self.size)))
        return Pairs(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def _descend(self, b: Tensor, epsilon: float, margin: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        tops, lows = ([extreme] for extreme in (b[self._leaves].amax(dim=1), b[self._leaves].amin(dim=1)))
        for _ in self.levels[1:]:
            tops.insert(0, tops[0].reshape(-1, 2).amax(dim=1))
            lows.insert(0, lows[0].reshape(-1, 2).amin(dim=1))
        root = torch.zeros(1, dtype=torch.long, device=b.device)
        stack = [(0, root, root, root, lows[0])]  # level, output tiles, pairs of them, what is below their outputs
        while stack:
            k, own, i, j, low = stack.pop()
            level, top = self.levels[k], tops[k][j]
            least, greatest, chords = self.bounds(level, i, j)
            low = low.scatter_reduce(0, i - own[0], top - greatest / epsilon, "amax")
            # Not the opposite comparison: where b is NaN, nothing is left out.
            kept = ~(top - least / epsilon + margin < low[i - own[0]]) & (top != LOG_ZERO)
            i, j = i[kept], j[kept]
            nodes = int(level.starts[own[-1] + 1] - level.starts[own[0]])
            if k + 1 == len(self.levels) or 4 * i.shape[0] > _PAIRS * nodes:
                together = i.argsort(stable=True)
                i, j = i[together], j[together]
                yield level.ranges(i), level.ranges(j), chords[kept][together]
                continue
            half = torch.arange(2, device=b.device)
            i = (2 * i[:, None, None] + half[:, None]).expand(-1, 2, 2).reshape(-1)
            j = (2 * j[:, None, None] + half).expand(-1, 2, 2).reshape(-1)
            own = (2 * own[:, None] + half).reshape(-1)
            low = torch.maximum(low.repeat_interleave(2), lows[k + 1][own])
            parts = 2 if i.shape[0] > _CHUNK and own.shape[0] > 1 else 1
            for part in reversed(own.chunk(parts)):
                mine = (i >= part[0]) & (i <= part[-1])
                stack.append((k + 1, part, i[mine], j[mine], low[part - own[0]]))


def _by_tile(x: Tensor, tile: Tensor, tiles: int, how: str) -> Tensor:
    empty = x.new_zeros(tiles, x.shape[1])
    return empty.scatter_reduce(0, tile[:, None].expand_as(x), x, how, include_self=False)
