"""Measures as zarr groups."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from bigjko_kernels import Circle, Factor, Grid, Line, Sheets, Sphere

from ..jko.stage import BoxedMeasure, part
from ..measure import GridMeasure, Measure, ParticleMeasure
from ..optional import need
from .seal import DamageError, StoreError, check, seal, whole

_FACTORS: dict[str, type[Factor]] = {kind.__name__: kind for kind in (Line, Circle, Sphere, Sheets)}


class StoredMeasures(Sequence[Measure]):
    """The measures of a store, read and checked when they are asked for; the last one is kept.

    Args:
        store: the flow's.
        number: of measures, those in `measures/0` and so on.
        latest: the group of one more, which a flow that has not ended has reached.
        sealed: whether measures carry sums, as they do since format 2.
    """

    def __init__(self, store: Path, number: int, latest: Path | None = None, *, sealed: bool = True) -> None:
        self._store, self._sealed, self._latest = store, sealed, latest
        self._groups = [store / "measures" / str(k) for k in range(number)] + ([] if latest is None else [latest])
        self._kept: tuple[int, Measure] | None = None

    def __len__(self) -> int:
        return len(self._groups)

    @overload
    def __getitem__(self, k: int) -> Measure: ...
    @overload
    def __getitem__(self, k: slice) -> tuple[Measure, ...]: ...
    def __getitem__(self, k: int | slice) -> Measure | tuple[Measure, ...]:
        """Raise StoreError for a measure that is damaged."""
        if isinstance(k, slice):
            return tuple(self[i] for i in range(*k.indices(len(self))))
        k = range(len(self))[k]
        if self._kept is None or self._kept[0] != k:
            group = self._groups[k]
            if group == self._latest and not group.exists():
                raise StoreError(
                    f"received the store {self._store}, whose flow has gone on since it was read, need the measure "
                    "that it has reached by now: load it again"
                )
            try:
                if self._sealed and group.parent.name == "measures":  # the latest is part of a checkpoint
                    check(group)
                self._kept = k, read_measure(group)
            except READING as damage:
                raise damaged(self._store, damage) from damage
        return self._kept[1]


READING = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError)  # what damage leads to


def damaged(store: Path, damage: Exception) -> StoreError:
    """What is said of a store that is a flow but cannot be read."""
    cause = str(damage) if isinstance(damage, DamageError) else f"{type(damage).__name__}: {damage}"
    return StoreError(
        f"received the store {store}, which is a flow but is damaged ({cause}), need a complete one: restore it from a "
        "copy, or run the flow again"
    )


def write_measure(path: Path, time: float, measure: Measure) -> None:
    """A group of its own, whole or not at all."""
    zarr = need("zarr", "Flow.save")
    with whole(path) as folder:
        put_measure(zarr.create_group(folder, zarr_format=3, attributes={"time": time}), measure)
        seal(folder)


def put_measure(group: Any, measure: Measure, *, exact: bool = False) -> None:
    """Fill a group.

    Args:
        group: zarr's.
        measure: what to put there.
        exact: keep all that the next step reads, so that it comes out the same to the last bit: masses, too, which
            exp(log_masses) gives up to rounding, and the box that the last step worked on.
    """
    if isinstance(measure, ParticleMeasure):
        group.attrs["kind"] = "particles"
        group.create_array("positions", data=array(measure.positions))
        group.create_array("masses", data=array(measure.masses))
        return
    group.attrs["kind"] = "grid"
    group.create_array("log_masses", data=array(measure.log_masses))
    if exact:
        group.create_array("masses", data=array(measure.masses))
        if isinstance(measure, BoxedMeasure):
            box = [[side.start, side.stop] for side in measure.box]
            group.attrs.update({"box": box, "outside": measure.outside, "edge": measure.edge})
    factors = group.create_group("factors")
    for k, factor in enumerate(measure.grid.factors):
        attributes = {"kind": type(factor).__name__, "spacing": factor.spacing}
        one = factors.create_group(str(k), attributes=attributes)
        for name in ("nodes", "log_weights", "edge"):
            one.create_array(name, data=array(getattr(factor, name)))


def read_measure(path: Path, *, like: Measure | None = None) -> Measure:
    """The measure of a group, on the CPU; or on the device of another, whose grid it shares where that is the same."""
    group = need("zarr", "Flow.load").open_group(path, mode="r")
    if group.attrs["kind"] == "particles":
        particles = ParticleMeasure(tensor(group["positions"]), tensor(group["masses"]))
        return particles.to(device=like.masses.device) if isinstance(like, ParticleMeasure) else particles
    factors = [group[f"factors/{k}"] for k in range(len(group["factors"]))]
    grid, log_masses = Grid(tuple(_read_factor(one) for one in factors)), tensor(group["log_masses"])
    if not isinstance(like, GridMeasure):
        return GridMeasure(grid, log_masses)
    device = like.grid.device
    grid, log_masses = grid.to(device=device), log_masses.to(device)
    grid = like.grid if grid.matches(like.grid) else grid
    measure = GridMeasure.known(grid, log_masses, tensor(group["masses"]).to(device))
    if "box" not in group.attrs:
        return measure
    box = tuple(slice(*ends) for ends in group.attrs["box"])
    on_box = GridMeasure.known(part(grid, box), log_masses[box].contiguous(), measure.masses[box].contiguous())
    return BoxedMeasure(measure, box, on_box, group.attrs["outside"], group.attrs["edge"])


def _read_factor(group: Any) -> Factor:
    kind = _FACTORS[group.attrs["kind"]]
    nodes, log_weights, edge = (tensor(group[name]) for name in ("nodes", "log_weights", "edge"))
    return kind(nodes, log_weights, edge, group.attrs["spacing"])


def array(x: Tensor) -> Any:
    """For zarr and xarray."""
    return x.detach().cpu().contiguous().numpy()


def tensor(x: Any) -> Tensor:
    """Of an array of theirs."""
    return torch.from_numpy(np.array(x))
