"""A flow as a zarr 3 store: `/records` is an xarray Dataset, `/measures/0`, `/measures/1`, ... the saved measures.

All is arrays and JSON: nothing is pickled, so a store opens without bigjko too, and loading one runs no foreign code.
Time is the first dimension of every record and a measure has a group of its own, so that both can be appended to.
"""

import json
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bigjko_kernels import Circle, Factor, Grid, Line, Sheets, Sphere

from .. import neurons
from ..flow import Flow
from ..measure import GridMeasure, Measure, ParticleMeasure
from ..neurons.base import Neurons
from ..optional import need
from ..status import Status

if TYPE_CHECKING:
    import xarray

FORMAT = "bigjko-flow"
FORMAT_VERSION = 1
_ROWS = 1024  # times a chunk: 4 MB at n = 500, and appending one row rewrites no more than that
_STAT = "stat_"  # keeps a stepper's names apart from the record's own
_FACTORS: dict[str, type[Factor]] = {kind.__name__: kind for kind in (Line, Circle, Sphere, Sheets)}


class StoreError(OSError):
    """A store that cannot be written, or that is no flow of this bigjko."""


# ---------------------------------------------------------------------------------------------------------- records


def to_xarray(flow: Flow) -> "xarray.Dataset":
    """The record of a flow; its measures are left out.

    Dimensions are `time` and `datum`; variables are `outputs` (time, datum), `risks`, `masses` and, for every stat,
    `stat_<name>` (time). Attributes: `format`, `format_version`, `bigjko` (the version that wrote it), `name`, `status`
    and its text, `neurons` and `attributes` as JSON.

    Raises:
        StoreError: for attributes that JSON cannot hold.
    """
    xr = need("xarray", "Flow.to_xarray")
    from .. import __version__

    along = ("time",)
    variables = {
        "outputs": (("time", "datum"), _array(flow.outputs), {"units": "units of y"}),
        "risks": (along, _array(flow.risks), {"units": "units of the loss"}),
        "masses": (along, _array(flow.masses), {"units": "mass"}),
        **{_STAT + name: (along, _array(values), {"stat": name}) for name, values in flow.stats.items()},
    }
    coordinates = {
        "time": (along, _array(flow.times), {"units": "time of the flow"}),
        "datum": (("datum",), torch.arange(flow.outputs.shape[1]).numpy(), {"long_name": "row of X and y"}),
    }
    attributes = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "bigjko": __version__,
        "name": flow.name,
        "status": flow.status.name,
        "status_text": flow.status.value,
        "neurons": json.dumps(None if flow.neurons is None else flow.neurons.to_dict()),
        "attributes": _json(flow.attributes),
    }
    dataset: xarray.Dataset = xr.Dataset(variables, coordinates, attributes)
    return dataset


def _array(x: Tensor) -> Any:
    return x.detach().cpu().contiguous().numpy()


def _json(attributes: dict[str, Any]) -> str:
    for key, value in attributes.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as unfit:
            raise StoreError(
                f"received the flow attribute {key!r} of type {type(value).__name__}, need what JSON can hold (text, "
                "numbers, lists, dicts): convert it, or take it out of flow.attributes"
            ) from unfit
    return json.dumps(attributes)


# ----------------------------------------------------------------------------------------------------------- writing


def save(flow: Flow, path: str | Path) -> None:
    """Write a flow to a zarr store, whole or not at all: it is built beside `path` and renamed when complete.

    Args:
        flow: any flow, finished or not.
        path: must not exist yet; missing parent folders are made.

    Raises:
        StoreError: if path exists or cannot be written, or for attributes that JSON cannot hold.
    """
    zarr = need("zarr", "Flow.save")
    path = Path(path)
    _refuse_existing(path)
    records = to_xarray(flow)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        unfinished.mkdir(parents=True)
        root = zarr.create_group(unfinished, attributes={"format": FORMAT, "format_version": FORMAT_VERSION})
        chunks = {
            name: {"chunks": (_ROWS, *(max(1, size) for size in variable.shape[1:]))}
            for name, variable in records.variables.items()
            if variable.dims[:1] == ("time",)
        }
        # Consolidated metadata is no part of zarr 3, and would have to be rewritten at every append.
        records.to_zarr(unfinished, group="records", encoding=chunks, zarr_format=3, consolidated=False)
        saved = root.create_group("measures")
        for k, (time, measure) in enumerate(zip(flow.saved_times.tolist(), flow.measures, strict=True)):
            _write_measure(saved.create_group(str(k)), time, measure)
        _refuse_existing(path)  # a rename replaces an empty folder without a word
        unfinished.rename(path)
    except OSError as refused:
        if isinstance(refused, StoreError):
            raise
        raise StoreError(
            f"received the path {path}, which cannot be written ({refused}): choose another folder, or make room"
        ) from refused
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _refuse_existing(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise StoreError(f"received the path {path}, which exists, need a new one: choose another, or remove it first")


def _write_measure(group: Any, time: float, measure: Measure) -> None:
    if isinstance(measure, ParticleMeasure):
        group.attrs.update({"time": time, "kind": "particles"})
        group.create_array("positions", data=_array(measure.positions))
        group.create_array("masses", data=_array(measure.masses))
        return
    group.attrs.update({"time": time, "kind": "grid"})
    group.create_array("log_masses", data=_array(measure.log_masses))
    factors = group.create_group("factors")
    for k, factor in enumerate(measure.grid.factors):
        attributes = {"kind": type(factor).__name__, "spacing": factor.spacing}
        one = factors.create_group(str(k), attributes=attributes)
        for name in ("nodes", "log_weights", "edge"):
            one.create_array(name, data=_array(getattr(factor, name)))


# ----------------------------------------------------------------------------------------------------------- reading


def load(path: str | Path, *, neurons: Neurons | None = None) -> Flow:
    """Read a flow that `save` wrote; tensors are on the CPU and have the bits and the dtype they were saved with.

    Args:
        path: the store.
        neurons: the way to use a measure, for a flow whose own way is not one of bigjko's.

    Raises:
        StoreError: if there is no store at path, it is no flow, a newer bigjko wrote it, or it is damaged.
    """
    zarr, xr = need("zarr", "Flow.load"), need("xarray", "Flow.load")
    path = Path(path)
    root = _opened(zarr, path)
    try:
        records = xr.open_dataset(
            path, group="records", engine="zarr", chunks=None, consolidated=False, decode_times=False
        ).load()
        facts = records.attrs
        saved = [root[f"measures/{k}"] for k in range(len(root["measures"]))]
        stats = {v.attrs["stat"]: _tensor(v) for v in records.data_vars.values() if "stat" in v.attrs}
        return Flow(
            name=facts["name"],
            neurons=_built(json.loads(facts["neurons"]), path) if neurons is None else neurons,
            times=_tensor(records["time"]),
            outputs=_tensor(records["outputs"]),
            risks=_tensor(records["risks"]),
            masses=_tensor(records["masses"]),
            stats=stats,
            status=_status(facts["status"], path),
            saved_times=torch.tensor([group.attrs["time"] for group in saved], dtype=torch.float64),
            measures=tuple(_read_measure(group) for group in saved),
            attributes=json.loads(facts["attributes"]),
        )
    except StoreError:
        raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as damage:
        raise StoreError(
            f"received the store {path}, which is a flow but is damaged ({type(damage).__name__}: {damage}), need a "
            "complete one: restore it from a copy, or run the flow again"
        ) from damage


def _opened(zarr: Any, path: Path) -> Any:
    """The root group of a flow's store."""
    if not path.exists():
        raise StoreError(f"received the path {path}, where there is nothing, need a store that Flow.save wrote")
    try:
        root = zarr.open_group(path, mode="r")
        found = f"a zarr group with the attributes {sorted(root.attrs)}"
    except (OSError, KeyError, ValueError, TypeError) as foreign:
        root, found = None, f"no zarr group ({type(foreign).__name__})"
    if root is None or root.attrs.get("format") != FORMAT:
        raise StoreError(f"received the path {path}, which is {found}, need a store that Flow.save wrote")
    version = root.attrs.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise StoreError(
            f"received the store {path} in format {version}, need format {FORMAT_VERSION} or older: "
            "upgrade bigjko (pip install --upgrade bigjko)"
        )
    return root


def _tensor(x: Any) -> Tensor:
    return torch.from_numpy(np.array(x))


def _read_measure(group: Any) -> Measure:
    if group.attrs["kind"] == "particles":
        return ParticleMeasure(_tensor(group["positions"]), _tensor(group["masses"]))
    factors = [group[f"factors/{k}"] for k in range(len(group["factors"]))]
    grid = Grid(tuple(_read_factor(one) for one in factors))
    return GridMeasure(grid, _tensor(group["log_masses"]))


def _read_factor(group: Any) -> Factor:
    kind = _FACTORS[group.attrs["kind"]]
    nodes, log_weights, edge = (_tensor(group[name]) for name in ("nodes", "log_weights", "edge"))
    return kind(nodes, log_weights, edge, group.attrs["spacing"])


def _built(facts: dict[str, Any] | None, path: Path) -> Neurons | None:
    """The way that `Neurons.to_dict` described: its name, and the arguments it is built with."""
    if facts is None:
        return None
    # Every way that bigjko.neurons exports is known here by its name.
    kinds = [x for x in vars(neurons).values() if isinstance(x, type) and issubclass(x, Neurons) and x is not Neurons]
    ways = {kind.name: kind for kind in kinds}
    name = facts["name"]
    if name not in ways:
        raise StoreError(
            f"received the store {path} of a flow in the way {name!r}, need one of {sorted(ways)}: upgrade bigjko, or "
            "hand your own with bigjko.store.load(path, neurons=...)"
        )
    return ways[name](**{key: value for key, value in facts.items() if key != "name"})


def _status(name: str, path: Path) -> Status:
    if name not in Status.__members__:
        raise StoreError(
            f"received the store {path} with the status {name!r}, need one of {sorted(Status.__members__)}: "
            "upgrade bigjko"
        )
    return Status[name]
