"""Mass on a sphere, in a map that keeps areas."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bigjko_kernels import Sphere

from ..optional import need
from .panels import BOTH, DOTTED, Block, Cloud, Trace, heat, numbers, where

_NEAREST = 4  # nodes among which a mass is shared
_PIXELS = (96, 48)
_TURN = 2 * math.pi


def sphere_blocks(
    clouds: Iterable[Cloud], times: int, sphere: Sphere, X: Float[Tensor, "n d"], names: tuple[str, str]
) -> list[Block]:
    """Mass per unit of area in an equal-area (Mollweide) map, whatever the scales, sheet by sheet.

    Args:
        clouds: of both flows, in order; directions first, of any length.
        times: how many.
        sphere: in R^3; its nodes are the cells.
        X: data whose kinks are drawn.
        names: of the flows.
    """
    nodes = sphere.nodes.cpu().double()
    tree = need("scipy.spatial", "a map of a sphere").cKDTree(nodes.numpy())
    x, y, pixel = _mollweide(tree)
    held: dict[str, Tensor] = {}
    for t, flow, sheet, points, masses in clouds:
        near, found = tree.query(torch.nn.functional.normalize(points[:, :3]).numpy(), k=_NEAREST)
        distance, index = torch.from_numpy(near), torch.from_numpy(found)
        # The farthest of the four gets next to nothing; particles on nodes, and the grid's own, give most to theirs.
        share = 1 - distance / (distance[:, -1:] * (1 + 1e-9)).clamp(min=1e-300)
        share = share / share.sum(1, keepdim=True)
        mass = torch.bincount(index.reshape(-1), (share * masses[:, None]).reshape(-1), minlength=len(nodes))
        rows = held.setdefault(sheet, torch.full((times, 2, *pixel.shape), math.nan, dtype=torch.float64))
        rows[t, flow] = torch.where(pixel >= 0, (mass * len(nodes) / (2 * _TURN))[pixel], math.nan)
    whole = sphere.nodes.shape[1] == X.shape[1]
    axis = {"visible": False}
    layout = {"xaxis": axis | {"constrain": "domain"}, "yaxis": axis | {"scaleanchor": "x", "constrain": "domain"}}
    about = (
        f"Mass per unit of area over the directions of {'w' if whole else '(w, a)'}, in a Mollweide map, which keeps "
        f"areas: the third axis is up, the first in the middle.{BOTH}" + (DOTTED if whole and len(X) else "")
    )
    over = _outlines(X if whole else X[:0])
    return [
        Block(f"Directions{where(sheet)}", about, heat(x, y, rows, list(names), layout, over))
        for sheet, rows in held.items()
    ]


def _outlines(X: Float[Tensor, "n d"]) -> list[Trace]:
    """The rim of the map, and the great circles w . x = 0."""
    turn = torch.linspace(0, _TURN, 181, dtype=torch.float64)
    thin = {"mode": "lines", "type": "scatter", "hoverinfo": "skip", "showlegend": False, "meta": "soft"}
    found = [thin | {"x": numbers(2 * turn.cos()), "y": numbers(turn.sin()), "line": {"width": 1}}]
    theta = torch.linspace(-math.pi / 2, math.pi / 2, 1001, dtype=torch.float64)
    heights = (2 * theta + (2 * theta).sin()) / math.pi
    for x in X[X.norm(dim=1) > 0]:
        plane = torch.linalg.svd(x[None]).Vh[1:]
        points = turn.cos()[:, None] * plane[0] + turn.sin()[:, None] * plane[1]
        longitude = torch.atan2(points[:, 1], points[:, 0])
        at = theta[torch.searchsorted(heights, points[:, 2].contiguous()).clamp(max=len(theta) - 1)]
        across = 2 / math.pi * longitude * at.cos()
        across[1:][longitude.diff().abs() > math.pi] = math.nan  # where the map is cut
        found.append(thin | {"x": numbers(across), "y": numbers(at.sin()), "line": {"width": 1.2, "dash": "dot"}})
    return found


def _mollweide(tree: Any) -> tuple[Tensor, Tensor, Int[Tensor, "h w"]]:
    """Pixel centres, and the nearest node of each pixel; -1 off the map."""
    across, up = _PIXELS
    x = (torch.arange(across, dtype=torch.float64) + 0.5) / across * 4 - 2
    y = (torch.arange(up, dtype=torch.float64) + 0.5) / up * 2 - 1
    theta = y.asin()[:, None]
    z = ((2 * theta + (2 * theta).sin()) / math.pi).expand(up, across)
    longitude = math.pi / 2 * x / theta.cos()
    ring = (1 - z**2).sqrt()
    points = torch.stack([ring * longitude.cos(), ring * longitude.sin(), z], dim=2)
    nearest = torch.from_numpy(tree.query(points.reshape(-1, 3).numpy())[1]).reshape(up, across)
    return x, y, torch.where(longitude.abs() <= math.pi, nearest, -1)
