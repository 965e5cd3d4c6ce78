"""What files call a way to use a measure, how it is built, and which grids and starts it takes.

A way is one entry of `WAYS`, a kind of start one entry of that way's `starts`: everything else reads them here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from bigjko_kernels import Grid

from ..errors import MeasureError
from ..measure import GridMeasure
from ..memory import available, gib
from ..neurons import Lifted, Neurons, Pairs, PolarCone, PolarFlat, Projected, Scales, Signed, Split
from .sections import Numbers, Positive, Section, given

Keys = tuple[str, ...]


class GridChoice(Section):
    """Nodes alone for directions, nodes and radius for a box; for Lifted shape, low and high besides."""

    nodes: int | None = Field(
        default=None, ge=3, examples=[32], description="a whole number of nodes an axis or circle, at least 3"
    )
    radius: Positive | None = Field(
        default=None, examples=[4.0], description="a positive number: every axis is [-radius, radius]"
    )
    shape: list[Annotated[int, Field(ge=1)]] | None = Field(
        default=None, examples=[[24, 24, 32]], description="whole numbers of nodes, one an axis"
    )
    low: Numbers | None = Field(
        default=None, examples=[[-4.0, -4.0, -3.0]], description="numbers, one an axis of (w, a)"
    )
    high: Numbers | None = Field(default=None, examples=[[4.0, 4.0, 3.0]], description="numbers, one an axis of (w, a)")
    kinks: Literal[True] | None = Field(
        default=None, examples=[True], description="true: nodes on the kinks w . x_j = 0 of the data"
    )


class Start(Section):
    """The measure at time 0, which the grid and the particles share."""

    kind: Literal["gaussian", "uniform", "shell", "network"] = Field(
        description="'gaussian', 'uniform', 'shell' or 'network'"
    )
    mean: float | Numbers | None = Field(default=None, examples=[0.0], description="a number, or one an axis of (w, a)")
    std: Positive | list[Positive] | None = Field(
        default=None,
        title="standard deviation",
        examples=[0.8],
        description="a positive number, or one an axis of (w, a)",
    )
    radius: Positive | None = Field(
        default=None, examples=[0.5], description="a positive number, the norm of every neuron's w and a"
    )
    neurons: int | None = Field(
        default=None, ge=1, examples=[500], description="a whole number of random neurons, at least 1"
    )
    seed: int | None = Field(default=None, ge=0, examples=[0], description="a whole number, at least 0")
    width: Positive | None = Field(
        default=None, examples=[3.0], description="a positive number of nodes: each neuron is spread that wide"
    )


Begin = Callable[[Any, Grid, Start, int], GridMeasure]  # the way, its grid, what the file says, and d


@dataclass(frozen=True)
class StartKind:
    """What a kind of start needs, what it may have besides, and how it is made."""

    needed: Keys
    optional: Keys
    make: Begin


@dataclass(frozen=True)
class Way:
    """How a way is built, the sets of keys that a grid of it may be given by, and its kinds of start.

    `first` is the grid and the start of a first experiment, of seconds, for three data in the plane.
    """

    build: Callable[[], Neurons]
    grids: tuple[Keys, ...]
    starts: dict[str, StartKind]
    first: tuple[dict[str, Any], dict[str, Any]]

    def check(self, name: str, grid: GridChoice, start: Start) -> None:
        """Raise ValueError unless the keys of a grid and a start are such as the way takes."""
        given("grid", grid, self.grids, ())
        if start.kind not in self.starts:
            raise ValueError(
                f"received kind = '{start.kind}' for way = '{name}', need {' or '.join(map(repr, self.starts))}: "
                "change one of them"
            )
        kind = self.starts[start.kind]
        given(f"start of kind '{start.kind}'", start, (kind.needed,), ("kind", *kind.optional))


def grid_of(way: Neurons, choice: GridChoice, X: Float[Tensor, "n d"]) -> Grid:
    """The grid that a file asks for."""
    dim = X.shape[1]
    kind: dict[str, Any] = {"dtype": X.dtype, "device": X.device}
    if choice.nodes is not None and choice.low is None:
        if choice.radius is not None:
            kind["radius"] = choice.radius
        if choice.kinks:
            kind["kinks"] = X
        return way.grid(choice.nodes, dim, **kind)
    axes = dim + 1
    shape = choice.shape or [choice.nodes or 0] * axes
    low = choice.low or [-(choice.radius or 0.0)] * axes
    high = choice.high or [choice.radius or 0.0] * axes
    return Grid.uniform(low, high, shape, **kind)


def outline(way: Neurons, choice: GridChoice, X: Float[Tensor, "n d"]) -> tuple[Grid, tuple[int, ...]]:
    """A grid of few nodes of the same factors as the one that a file asks for, and the shape of the latter.

    What does not fit is known before it is there. An axis has a length of its own or grows as a power of nodes, which
    two small grids tell; one is rounded up (radii, on a cone), and may come out a node off.
    """
    if choice.shape is not None:
        few = [min(size, _FEW) for size in choice.shape]
        return grid_of(way, choice.model_copy(update={"shape": few}), X), tuple(choice.shape)
    nodes = choice.nodes or 0
    small = grid_of(way, choice.model_copy(update={"nodes": min(nodes, _FEW)}), X)
    if nodes <= _FEW:
        return small, small.shape
    double = grid_of(way, choice.model_copy(update={"nodes": 2 * _FEW}), X).shape
    doublings = math.log2(nodes / _FEW)
    return small, tuple(round(a * (b / a) ** doublings) for a, b in zip(small.shape, double, strict=True))


_FEW = 1024
_ROOM = 8  # copies of a network's neurons that depositing them takes


# ----------------------------------------------------------------------------------------------------------- starts


def _gaussian(way: Neurons, grid: Grid, choice: Start, dim: int) -> GridMeasure:
    mean, std = (_per_axis(value, grid, len(grid.factors)) for value in (choice.mean, choice.std))
    return GridMeasure.gaussian(grid, mean, std)


def _gaussian_sheets(way: Neurons, grid: Grid, choice: Start, dim: int) -> GridMeasure:
    """w alike on both sheets: masses 1/2 each for Signed, whose masses are |a|, and 1 each for Split."""
    mean, std = (_per_axis(value, grid, dim) for value in (choice.mean, choice.std))

    def density(points: Float[Tensor, "m k"]) -> Float[Tensor, " m"]:
        exponent: Tensor = -(((points[:, 1:] - mean) / std) ** 2).sum(1) / 2
        return exponent.exp()

    return GridMeasure.from_density(grid, density, mass=2.0 if isinstance(way, Split) else 1.0)


def _uniform(way: Projected, grid: Grid, choice: Start, dim: int) -> GridMeasure:
    assert choice.radius is not None
    return way.uniform(grid, radius=choice.radius)


def _gaussian_sphere(way: Projected, grid: Grid, choice: Start, dim: int) -> GridMeasure:
    """(w, a) ~ N(0, std^2 I): alike in every direction, with m = E |theta|^2 / 2."""
    if isinstance(choice.std, list):
        raise MeasureError("received several std for the start, need one: N(0, std^2 I) is alike in every direction")
    return way.uniform(grid, radius=(choice.std or 0.0) * math.sqrt((dim + 1) / 2))


def _shell(way: Neurons, grid: Grid, choice: Start, dim: int) -> GridMeasure:
    """Balanced neurons |w| = |a| = r of every direction, half of each sign, r ~ N(mean, std^2)."""
    mean, std = (_per_axis(value, grid, 1) for value in (choice.mean, choice.std))

    least = grid.factors[-1].spacing / 4  # the mean of |s| over the cell at s = 0, where the density over ds has a pole

    def density(points: Float[Tensor, "m k"]) -> Float[Tensor, " m"]:
        last = points[:, -1].abs().clamp(min=least)
        r, cell = (last, last ** (dim - 1)) if isinstance(way, PolarCone) else (last.sqrt(), last.sqrt())
        normal: Tensor = torch.exp(-(((r - mean) / std) ** 2) / 2) / cell
        return normal

    return GridMeasure.from_density(grid, density)


def _normal_network(way: Neurons, grid: Grid, choice: Start, dim: int) -> GridMeasure:
    neurons = _drawn(grid, choice, dim) * _per_axis(choice.std, grid, dim + 1)
    return _deposited(way, grid, choice, neurons)


def _balanced_network(way: Neurons, grid: Grid, choice: Start, dim: int) -> GridMeasure:
    """|w| = |a| = radius."""
    drawn = _drawn(grid, choice, dim)
    W = drawn[:, :dim] / drawn[:, :dim].norm(dim=1, keepdim=True)
    neurons = torch.cat([W, drawn[:, dim:].sign()], dim=1) * (choice.radius or 0.0)
    return _deposited(way, grid, choice, neurons)


def _drawn(grid: Grid, choice: Start, dim: int) -> Float[Tensor, "m k"]:
    assert choice.seed is not None
    needed, free = _ROOM * 8 * (dim + 1) * (choice.neurons or 0), available(grid.device)
    if needed > free:
        raise MeasureError(
            f"received {choice.neurons} neurons for the start, which take {gib(needed)}, need at most the {gib(free)} "
            "that are free: take fewer"
        )
    generator = torch.Generator().manual_seed(choice.seed)
    return torch.randn(choice.neurons or 0, dim + 1, generator=generator, dtype=torch.float64).to(grid.device)


def _deposited(way: Neurons, grid: Grid, choice: Start, neurons: Float[Tensor, "m k"]) -> GridMeasure:
    neurons = neurons.to(grid.dtype)
    return way.measure(grid, neurons[:, :-1], neurons[:, -1], width=choice.width or 3.0)


def _per_axis(value: float | list[float] | None, grid: Grid, axes: int) -> Float[Tensor, " k"]:
    numbers = value if isinstance(value, list) else [value] * axes
    if len(numbers) != axes:
        raise MeasureError(f"received {len(numbers)} numbers for the start, need {axes}, one an axis, or one for all")
    return torch.tensor(numbers, dtype=grid.dtype, device=grid.device)


_NORMAL = StartKind(("neurons", "seed", "std"), ("width",), _normal_network)
_BALANCED = StartKind(("neurons", "seed", "radius"), ("width",), _balanced_network)
_SHEETS = {"gaussian": StartKind(("mean", "std"), (), _gaussian_sheets), "network": _NORMAL}
_POLAR = {"shell": StartKind(("mean", "std"), (), _shell)}
_CUBE = (("nodes", "radius"),)
_BOX = (("nodes", "radius"), ("shape", "radius"), ("nodes", "low", "high"), ("shape", "low", "high"))

_WIDE: dict[str, Any] = {"kind": "gaussian", "mean": 0.0, "std": 0.8}
_RING: dict[str, Any] = {"kind": "shell", "mean": 0.8, "std": 0.25}
_NEURONS: dict[str, Any] = {"kind": "network", "neurons": 500, "seed": 0, "std": 0.8}

WAYS: dict[str, Way] = {
    "lifted": Way(
        Lifted,
        _BOX,
        {"gaussian": StartKind(("mean", "std"), (), _gaussian), "network": _NORMAL},
        ({"nodes": 32, "radius": 4.0}, _WIDE),
    ),
    "signed": Way(Signed, _CUBE, _SHEETS, ({"nodes": 64, "radius": 4.0}, _WIDE)),
    "split": Way(Split, _CUBE, _SHEETS, ({"nodes": 64, "radius": 4.0}, _WIDE)),
    "pairs": Way(
        Pairs,
        _CUBE,
        {"gaussian": StartKind(("mean", "std"), (), _gaussian), "network": _NORMAL},
        ({"nodes": 18, "radius": 4.0}, _WIDE | {"std": 1.0}),
    ),
    "scales": Way(Scales, _CUBE, {"network": _NORMAL}, ({"nodes": 24, "radius": 4.0}, _NEURONS | {"std": 0.5})),
    "polar-cone": Way(PolarCone, _CUBE, _POLAR | {"network": _BALANCED}, ({"nodes": 96, "radius": 2.5}, _RING)),
    "polar-flat": Way(PolarFlat, _CUBE, _POLAR | {"network": _NORMAL}, ({"nodes": 64, "radius": 4.0}, _RING)),
    "projected": Way(
        Projected,
        (("nodes",), ("nodes", "kinks")),
        {"uniform": StartKind(("radius",), (), _uniform), "network": _BALANCED},
        ({"nodes": 256}, {"kind": "uniform", "radius": 0.5}),
    ),
    "unbalanced": Way(
        lambda: Projected(balanced=False),
        (("nodes",),),
        {"gaussian": StartKind(("std",), (), _gaussian_sphere), "network": _NORMAL},
        ({"nodes": 400}, {"kind": "gaussian", "std": 0.5}),
    ),
}
