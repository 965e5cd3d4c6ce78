"""A flow as a zarr 3 store: `/records` is an xarray Dataset, `/measures/0`, `/measures/1`, ... the saved measures.

All is arrays and JSON: nothing is pickled, so a store opens without bigjko too, and loading one runs no foreign code.
Every file has its SHA-256 in the store (`seal`). One that a flow is still writing, or stopped writing, has
`/checkpoints` in place of records: each with the records so far and all that it takes to go on (`checkpoint`).
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import neurons
from ..flow import Flow
from ..neurons.base import Neurons
from ..optional import need
from ..status import Status
from .measures import READING, StoredMeasures, array, damaged, tensor, write_measure
from .seal import DamageError, StoreError, check, seal, whole

if TYPE_CHECKING:
    import xarray

FORMAT = "bigjko-flow"
FORMAT_VERSION = 2  # 1 had no sums and no checkpoints
_ROWS = 1024  # times a chunk: 4 MB at n = 500, and appending one row rewrites no more than that
_STAT = "stat_"  # keeps a stepper's names apart from the record's own


# ---------------------------------------------------------------------------------------------------------- records


def to_xarray(flow: Flow) -> "xarray.Dataset":
    """The record of a flow; its measures are left out.

    Dimensions are `time` and `datum`; variables are `outputs` (time, datum), `risks`, `masses` and, for every stat,
    `stat_<name>` (time). Attributes: `format`, `format_version`, `bigjko` (the version that wrote it), `name`, `status`
    and its text, `saved_times` of the measures, `neurons` and `attributes` as JSON.

    Raises:
        StoreError: for attributes that JSON cannot hold.
    """
    xr = need("xarray", "Flow.to_xarray")
    from .. import __version__

    along = ("time",)
    variables = {
        "outputs": (("time", "datum"), array(flow.outputs), {"units": "units of y"}),
        "risks": (along, array(flow.risks), {"units": "units of the loss"}),
        "masses": (along, array(flow.masses), {"units": "mass"}),
        **{_STAT + name: (along, array(values), {"stat": name}) for name, values in flow.stats.items()},
    }
    coordinates = {
        "time": (along, array(flow.times), {"units": "time of the flow"}),
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
        "saved_times": flow.saved_times.tolist(),
        "attributes": as_json(flow.attributes),
    }
    dataset: xarray.Dataset = xr.Dataset(variables, coordinates, attributes)
    return dataset


def as_json(attributes: dict[str, Any]) -> str:
    """The attributes of a flow; raise StoreError for what JSON cannot hold."""
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
    need("zarr", "Flow.save")
    path = Path(path)
    refuse_existing(path)
    with writing(path), whole(path) as store:
        begin(store)
        for k, time in enumerate(flow.saved_times.tolist()):
            write_measure(store / "measures" / str(k), time, flow.measures[k])
        complete(store, flow)
        refuse_existing(path)  # a rename replaces an empty folder without a word


def begin(store: Path, attributes: dict[str, Any] | None = None) -> None:
    """A store without records, in a folder that is there."""
    facts = {"format": FORMAT, "format_version": FORMAT_VERSION, "complete": False, **(attributes or {})}
    root = need("zarr", "Flow.save").create_group(store, zarr_format=3, attributes=facts)
    for name in ("measures", "checkpoints"):
        root.create_group(name)
    seal(store, ())


def complete(store: Path, flow: Flow) -> None:
    """Add the records to a store that has the measures, and seal it."""
    with whole(store / "records") as folder:
        write_records(folder, flow)
    seal(store, ("records", "measures/zarr.json", "measures/[0-9]*/zarr.json"), complete=True)
    shutil.rmtree(store / "checkpoints", ignore_errors=True)


def write_records(folder: Path, flow: Flow) -> None:
    """The records of a flow, as a zarr group of their own."""
    records = to_xarray(flow)
    chunks = {
        name: {"chunks": (_ROWS, *(max(1, size) for size in variable.shape[1:]))}
        for name, variable in records.variables.items()
        if variable.dims[:1] == ("time",)
    }
    # Consolidated metadata is no part of zarr 3.
    records.to_zarr(folder, encoding=chunks, zarr_format=3, consolidated=False)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses, as a StoreError."""
    try:
        yield
    except StoreError:
        raise
    except OSError as refused:
        raise StoreError(
            f"received the path {path}, which cannot be written ({refused}): choose another folder, or make room"
        ) from refused


def refuse_existing(path: Path) -> None:
    """Raise StoreError if there is anything at path."""
    if path.exists() or path.is_symlink():
        raise StoreError(f"received the path {path}, which exists, need a new one: choose another, or remove it first")


# ----------------------------------------------------------------------------------------------------------- reading


def load(path: str | Path, *, neurons: Neurons | None = None) -> Flow:
    """Read a flow; tensors are on the CPU and have the bits and the dtype they were saved with.

    Measures are read when they are asked for. Of a flow that has not ended the latest checkpoint is read, or the one
    before where that is damaged; the measure it had reached is the last.

    Args:
        path: the store.
        neurons: the way to use a measure, for a flow whose own way is not one of bigjko's.

    Raises:
        StoreError: if there is no store at path, it is no flow, a newer bigjko wrote it, or it is damaged.
    """
    need("xarray", "Flow.load")
    path = Path(path).absolute()  # measures are read later, from wherever that is then
    while True:
        before = _stage(path)
        try:
            return _load(path, neurons)
        except StoreError:
            if _stage(path) == before:
                raise  # else the flow has gone on, and removed what was being read


def _stage(path: Path) -> tuple[list[Path], bytes]:
    """What changes whenever a flow that is being written removes something."""
    try:
        return checkpoints(path), (path / "zarr.json").read_bytes()
    except (OSError, ValueError):
        return [], b""


def _load(path: Path, neurons: Neurons | None) -> Flow:
    root = opened(path)
    sealed = root.attrs["format_version"] > 1
    try:
        if sealed:
            check(path)
        if not sealed or root.attrs["complete"]:
            return read_records(path / "records", path, neurons, sealed=sealed)
        damage: DamageError | None = None
        for found in checkpoints(path):
            try:
                check(found)
            except DamageError as broken:
                damage = damage or broken
            else:
                return read_records(found / "records", path, neurons, latest=found / "measure")
    except StoreError:
        raise
    except READING as broken:
        raise damaged(path, broken) from broken
    if damage is not None:
        raise damaged(path, damage)
    raise StoreError(
        f"received the store {path} of a flow that has no checkpoint yet, need one: wait for it, or run the flow again"
    )


def checkpoints(store: Path) -> list[Path]:
    """Folders, the latest first."""
    return sorted((store / "checkpoints").glob("[0-9]*"), key=lambda folder: int(folder.name), reverse=True)


def read_records(
    folder: Path, store: Path, neurons: Neurons | None = None, *, latest: Path | None = None, sealed: bool = True
) -> Flow:
    """The flow whose records lie in a folder, with the measures of a store and a latest one that may lie elsewhere."""
    xr = need("xarray", "Flow.load")
    records = xr.open_dataset(folder, engine="zarr", chunks=None, consolidated=False, decode_times=False).load()
    facts = records.attrs
    times = list(facts["saved_times"]) if sealed else _times(store)
    number = len(times)
    if latest is not None:
        reached = json.loads((latest / "zarr.json").read_text("utf-8"))["attributes"]["time"]
        if times and reached <= times[-1]:
            latest = None
        else:
            times.append(reached)
    return Flow(
        name=facts["name"],
        neurons=_built(json.loads(facts["neurons"]), store) if neurons is None else neurons,
        times=tensor(records["time"]),
        outputs=tensor(records["outputs"]),
        risks=tensor(records["risks"]),
        masses=tensor(records["masses"]),
        stats={v.attrs["stat"]: tensor(v) for v in records.data_vars.values() if "stat" in v.attrs},
        status=_status(facts["status"], store),
        saved_times=torch.tensor(times, dtype=torch.float64),
        measures=StoredMeasures(store, number, latest, sealed=sealed),
        attributes=json.loads(facts["attributes"]),
    )


def _times(store: Path) -> list[float]:
    """Of the measures, in a store of format 1."""
    measures = need("zarr", "Flow.load").open_group(store, mode="r")["measures"]
    return [measures[str(k)].attrs["time"] for k in range(len(measures))]


def opened(path: Path) -> Any:
    """The root group of a flow's store."""
    zarr = need("zarr", "Flow.load")
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
