"""Flows on disk: every bit comes back, nothing half written stays, and what is no flow is refused with advice."""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray
import zarr
from torch import Tensor

import bigjko as bj
import bigjko.store
from bigjko.measure import Measure
from bigjko.neurons import Lifted, Neurons, Projected
from bigjko.store import StoreError
from bigjko.store.seal import seal

RISK = bj.Risk(torch.tensor([[1.0], [-0.7], [0.4]]).double(), torch.tensor([1.0, 0.5, -0.2]).double())


def flow(*measures: Measure, neurons: Neurons | None = None, status: bj.Status = bj.Status.ok, n: int = 3) -> bj.Flow:
    """A flow of random records, with the numbers that files like to lose: NaN, inf, the smallest, the last bit."""
    generator = torch.Generator().manual_seed(1)
    times = torch.arange(5, dtype=torch.float64) * 0.1
    residual = torch.tensor([math.nan, 5e-324, -0.0, math.inf, 1 / 3], dtype=torch.float64)
    return bj.Flow(
        name="jko",
        neurons=neurons,
        times=times,
        outputs=torch.randn(5, n, generator=generator, dtype=torch.float64),
        risks=torch.rand(5, generator=generator, dtype=torch.float64),
        masses=torch.rand(5, generator=generator, dtype=torch.float64),
        stats={"residual": residual, "masses": torch.full((5,), math.nan, dtype=torch.float64)},
        status=status,
        saved_times=torch.tensor([0.0, 0.1 + 0.2, 0.7], dtype=torch.float64)[: len(measures)],
        measures=measures,
        attributes={"tau": 0.05, "data": "toy", "shape": [3, 1], "more": {"é": None}},
    )


def on(grid: bj.Grid) -> bj.GridMeasure:
    """Random masses, a third of the nodes empty."""
    generator = torch.Generator().manual_seed(2)
    log_masses = torch.randn(grid.shape, generator=generator, dtype=torch.float64).to(grid.dtype)
    return bj.GridMeasure(grid, log_masses.masked_fill(torch.rand(grid.shape, generator=generator) < 0.3, -math.inf))


def particles(dtype: torch.dtype = torch.float64) -> bj.ParticleMeasure:
    return bj.ParticleMeasure(torch.randn(7, 3, dtype=dtype), torch.rand(7, dtype=dtype))


def widening() -> bj.Flow:
    """Every measure has a grid of its own."""
    grid = Lifted().grid(6, dim=2)
    return flow(on(grid), on(grid.widened(1)), neurons=Lifted())


def uneven() -> bj.Flow:
    axes = (bj.Line.at(torch.linspace(-1, 1, 9).double() ** 3), bj.Line.uniform(0.3, 0.3, 1))
    return flow(on(bj.Grid(axes)))


def mixed() -> bj.Flow:
    return flow(on(bj.Grid((bj.Line.uniform(-1.0, 1.0, 3), bj.Sheets.of([0.5, 2.0, 7.0])))), particles())


def descent() -> bj.Flow:
    start = bj.ParticleMeasure.from_network(torch.randn(4, 1).double(), torch.randn(4).double())
    return bj.evolve(bj.GradientDescent(RISK, tau=0.1), start, 0.5)


def interrupted() -> bj.Flow:
    def stop(time: float, step: object) -> None:
        if time > 0.05:
            raise KeyboardInterrupt

    start = bj.GridMeasure.gaussian(Lifted().grid(64, dim=1), mean=0.0, std=0.6)
    with pytest.raises(bj.FlowInterrupted) as caught:
        bj.evolve(bj.JKO(RISK, start.grid, tau=0.02), start, 1.0, callbacks=[stop])
    assert isinstance(caught.value.flow, bj.Flow)
    return caught.value.flow


FLOWS: dict[str, Callable[[], bj.Flow]] = {
    "lifted, widening": widening,
    "projected, any start": lambda: flow(
        on(Projected(balanced=False).grid(20, dim=3)), neurons=Projected(balanced=False)
    ),
    "projected circle": lambda: flow(on(Projected().grid(12, dim=2)), neurons=Projected()),
    "projected sphere, float32": lambda: flow(
        on(Projected().grid(20, dim=3, dtype=torch.float32)), neurons=Projected()
    ),
    "uneven axes": uneven,
    "sheets and particles": mixed,
    "particles, float32": lambda: flow(particles(torch.float32), neurons=Lifted()),
    "no data, no measure": lambda: flow(n=0),
    "failed": lambda: flow(particles(), status=bj.Status.not_finite),
    "descent": descent,
    "interrupted": interrupted,
}


def same(x: Tensor, y: Tensor) -> bool:
    """Bit by bit up to the sign of 0, NaN where NaN was."""
    nan = x.isnan()
    return (
        (x.dtype, x.shape, x.device) == (y.dtype, y.shape, y.device)
        and torch.equal(nan, y.isnan())
        and torch.equal(x[~nan], y[~nan])
    )


def same_measure(one: Measure, two: Measure) -> bool:
    if isinstance(one, bj.ParticleMeasure) or isinstance(two, bj.ParticleMeasure):
        assert isinstance(one, bj.ParticleMeasure)
        assert isinstance(two, bj.ParticleMeasure)
        return same(one.positions, two.positions) and same(one.masses, two.masses)
    assert one.grid.matches(two.grid)
    for f, g in zip(one.grid.factors, two.grid.factors, strict=True):
        assert f.spacing == g.spacing
        assert same(f.log_weights, g.log_weights)
        assert torch.equal(f.edge, g.edge)
    return same(one.log_masses, two.log_masses)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A store that loads, for tests that spoil it."""
    path = tmp_path / "flow.zarr"
    flow(on(Lifted().grid(4, dim=1)), particles(), neurons=Lifted()).save(path)
    bj.Flow.load(path)
    return path


def change(path: Path, group: str, **attributes: Any) -> None:
    file = path / group / "zarr.json"
    content = json.loads(file.read_text())
    content["attributes"].update(attributes)
    file.write_text(json.dumps(content))
    seal(path, ("records", "measures/zarr.json", "measures/*/zarr.json"))


# ------------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("case", FLOWS)
def test_everything_comes_back_as_it_was(case: str, tmp_path: Path) -> None:
    before = FLOWS[case]()
    before.save(tmp_path / "flow.zarr")
    after = bj.Flow.load(tmp_path / "flow.zarr")
    assert (after.name, after.status, after.attributes) == (before.name, before.status, before.attributes)
    assert type(after.neurons) is type(before.neurons)
    for name in ("times", "outputs", "risks", "masses", "saved_times"):
        assert same(getattr(before, name), getattr(after, name)), name
    assert sorted(after.stats) == sorted(before.stats)
    assert all(same(before.stats[name], after.stats[name]) for name in before.stats)
    assert len(after.measures) == len(before.measures)
    assert all(same_measure(*pair) for pair in zip(before.measures, after.measures, strict=True))


def test_an_interrupted_flow_is_one_of_them(tmp_path: Path) -> None:
    interrupted().save(tmp_path / "flow.zarr")
    after = bj.Flow.load(tmp_path / "flow.zarr")
    assert after.status is bj.Status.interrupted
    assert len(after.times) == 4  # 0 and three steps
    assert float(after.saved_times[-1]) == float(after.times[-1])


def test_a_loaded_flow_goes_on(tmp_path: Path) -> None:
    interrupted().save(tmp_path / "flow.zarr")
    after = bj.Flow.load(tmp_path / "flow.zarr")
    final = after.final
    assert isinstance(final, bj.GridMeasure)
    assert float(RISK.value(final)) == pytest.approx(float(after.risks[-1]), rel=1e-12)
    assert bj.evolve(bj.JKO(RISK, final.grid, tau=0.02), final, 0.02).status is bj.Status.ok


def test_measures_of_any_device_are_loaded_on_the_cpu(device: torch.device, tmp_path: Path) -> None:
    before = flow(on(Lifted().grid(5, dim=1)).to(device=device), particles().to(device=device))
    before.save(tmp_path / "flow.zarr")
    after = bj.Flow.load(tmp_path / "flow.zarr")
    assert all(same_measure(m.to(device="cpu"), n) for m, n in zip(before.measures, after.measures, strict=True))


# --------------------------------------------------------------------------------------------------- what is in there


def test_records_are_a_dataset_with_names_and_units() -> None:
    before = flow(particles(), neurons=Projected(), status=bj.Status.dual_stalled)
    records = before.to_xarray()
    assert dict(records.sizes) == {"time": 5, "datum": 3}
    assert records["outputs"].dims == ("time", "datum")
    assert set(records.data_vars) == {"outputs", "risks", "masses", "stat_residual", "stat_masses"}
    assert all(variable.dims[0] == "time" for variable in records.data_vars.values())  # what grows comes first
    assert records["outputs"].attrs["units"] == "units of y"
    assert records["risks"].sel(time=0.2).item() == before.risks[2].item()
    assert records.attrs["format_version"] == 2
    assert records.attrs["bigjko"] == bj.__version__
    assert records.attrs["status"] == "dual_stalled"
    assert "take a smaller tau" in records.attrs["status_text"]
    assert json.loads(records.attrs["neurons"]) == {"name": "projected"}
    assert json.loads(records.attrs["attributes"]) == before.attributes


def test_a_store_opens_without_bigjko_and_holds_numbers_and_json_alone(stored: Path) -> None:
    xarray.testing.assert_identical(
        xarray.open_dataset(stored, group="records", engine="zarr", consolidated=False).load(),
        flow(on(Lifted().grid(4, dim=1)), particles(), neurons=Lifted()).to_xarray(),
    )
    root = zarr.open_group(stored, mode="r")
    assert root.metadata.zarr_format == 3
    arrays = {name: array for name, array in root.members(max_depth=None) if isinstance(array, zarr.Array)}
    assert {array.dtype.kind for array in arrays.values()} <= set("fib")  # no object that could hold code
    assert {"measures/0/log_masses", "measures/0/factors/1/edge", "measures/1/positions"} <= set(arrays)
    # Chunks hold many times and are not cut to the flow's length, so that rows can be added.
    assert {arrays[f"records/{name}"].chunks[0] for name in ("time", "outputs", "risks", "stat_residual")} == {1024}


# ------------------------------------------------------------------------------------------------------ whole or not


@pytest.mark.parametrize("kind", ["folder", "file", "store", "dangling link"])
def test_what_exists_is_neither_replaced_nor_changed(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "flow.zarr"
    if kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.write_text("mine")
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        flow(n=1).save(path)
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*") if p.exists())
    with pytest.raises(StoreError, match=re.escape(f"received the path {path}, which exists, need a new one: choose")):
        flow(n=2).save(path)
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*") if p.exists()) == before


def test_writing_that_is_broken_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        assert list(tmp_path.rglob("zarr.json"))
        raise KeyboardInterrupt

    monkeypatch.setattr("bigjko.store.zarr.write_measure", stop)
    with pytest.raises(KeyboardInterrupt):
        flow(particles()).save(tmp_path / "flow.zarr")
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match=r"which cannot be written \(.*\): choose another folder, or make room"):
        flow().save(tmp_path / "file" / "flow.zarr")


def test_missing_folders_are_made(tmp_path: Path) -> None:
    flow().save(tmp_path / "new" / "one" / "flow.zarr")
    assert [p.name for p in (tmp_path / "new" / "one").iterdir()] == ["flow.zarr"]


def test_attributes_that_json_cannot_hold_are_named(tmp_path: Path) -> None:
    odd = replace(flow(), attributes={"tau": 0.1, "grid": object()})
    with pytest.raises(StoreError, match="received the flow attribute 'grid' of type object, need what JSON can hold"):
        odd.save(tmp_path / "flow.zarr")
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------------- refusals


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="where there is nothing, need a store that Flow.save wrote"):
        bj.Flow.load(tmp_path / "flow.zarr")


def test_foreign_things_are_refused_by_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("text")
    zarr.create_group(tmp_path / "group", attributes={"author": "someone"})
    zarr.create_array(tmp_path / "array", shape=(3,), dtype="f8")
    found = {"folder": "no zarr group", "file": "no zarr group", "array": "no zarr group", "group": "['author']"}
    for name, text in found.items():
        with pytest.raises(StoreError, match=re.escape(text) + r".*, need a store that Flow\.save wrote"):
            bj.Flow.load(tmp_path / name)


def test_a_newer_format_is_refused_before_it_is_read(stored: Path) -> None:
    change(stored, ".", format_version=3)
    shutil.rmtree(stored / "records")
    with pytest.raises(StoreError, match="in format 3, need format 2 or older: upgrade bigjko"):
        bj.Flow.load(stored)


@pytest.mark.parametrize("lost", ["records", "records/risks", "measures", "measures/0", "measures/0/factors/0/nodes"])
def test_a_damaged_store_is_said_to_be_one(lost: str, stored: Path) -> None:
    shutil.rmtree(stored / lost)
    with pytest.raises(StoreError, match="(?s)is a flow but is damaged .* restore it from a copy, or run the flow"):
        bj.Flow.load(stored).measures[:]


def test_stores_of_format_1_are_read(stored: Path) -> None:
    """They have no sums, and keep the times of measures with these."""
    after = bj.Flow.load(stored)
    measures = after.measures[:]
    for group in (".", *(f"measures/{k}" for k in range(2))):
        content = json.loads((stored / group / "zarr.json").read_text())
        for name in ("sha256", "seal", "complete"):
            content["attributes"].pop(name, None)
        if group == ".":
            content["attributes"]["format_version"] = 1
        (stored / group / "zarr.json").write_text(json.dumps(content))
    records = json.loads((stored / "records" / "zarr.json").read_text())
    del records["attributes"]["saved_times"]
    (stored / "records" / "zarr.json").write_text(json.dumps(records))
    old = bj.Flow.load(stored)
    assert same(old.outputs, after.outputs)
    assert same(old.saved_times, after.saved_times)
    assert all(same_measure(*pair) for pair in zip(old.measures, measures, strict=True))


def test_a_way_that_is_not_known_can_be_handed_in(stored: Path) -> None:
    change(stored, "records", neurons=json.dumps({"name": "folded"}))
    with pytest.raises(StoreError, match=r"in the way 'folded', need one of \['lifted', .*'projected'.*\]: upgrade"):
        bj.Flow.load(stored)
    way = Lifted()
    assert bigjko.store.load(stored, neurons=way).neurons is way


def test_a_status_that_is_not_known_is_refused(stored: Path) -> None:
    change(stored, "records", status="evaporated")
    with pytest.raises(StoreError, match="with the status 'evaporated', need one of .*'ok'.*: upgrade bigjko"):
        bj.Flow.load(stored)
