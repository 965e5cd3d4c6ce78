"""`bigjko run` and `bigjko compare`: what they leave, what they print, what they refuse, and how they stop."""

import dataclasses
import functools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import bigjko as bj
from bigjko.app import config, run
from bigjko.app.cli import app, main
from bigjko.app.config import ConfigError
from bigjko.app.data import DATASETS, prepared
from bigjko.app.prepare import build, data
from bigjko.app.verdict import verdict
from bigjko.app.ways import WAYS, GridChoice, grid_of, outline
from bigjko.show import Bars

EXAMPLES = Path(__file__).parents[1] / "examples"

HEAD = """
weight_decay = 0.0
[data]
name = "orthogonal"
[loss]
name = "squared"
scale = "mean"
[time]
t_end = 0.3
"""
LIFTED = """
[[runs]]
name = "lifted"
way = "lifted"
grid = { nodes = 23, radius = 4.4 }
start = { kind = "gaussian", mean = 0.0, std = 1.0 }
jko = { tau = 0.1 }
particles = { method = "gd", tau = 0.05 }
"""
PROJECTED = """
[[runs]]
name = "projected"
way = "projected"
time = { t_end = 0.5, save_at = [0.25] }
grid = { nodes = 48 }
start = { kind = "uniform", radius = 0.5 }
jko = { tau = 0.1 }
particles = { method = "flow", tau = 0.1 }
"""
TINY = HEAD + LIFTED
LEFT = {"flow-jko.zarr", "flow-gd.zarr", "flows.png", "report.html", "summary.json", "config.toml", "versions.json"}


@pytest.fixture
def few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transport between 100 points: between a run's own 1000 it takes three times what both flows do."""
    monkeypatch.setattr(run, "compare", functools.partial(bj.compare, max_points=100))


def invoke(*arguments: object) -> Result:
    # Wide enough that no sentence is broken over lines.
    return CliRunner(env={"COLUMNS": "200"}).invoke(app(), list(map(str, arguments)))


def written(folder: Path, text: str) -> Path:
    file = folder / "experiment.toml"
    file.write_text(text, "utf-8")
    return file


def changed(old: str, new: str) -> str:
    assert old in TINY
    return TINY.replace(old, new, 1)


def summary(folder: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    content: dict[str, Any] = json.loads((folder / "summary.json").read_text("utf-8"), parse_constant=refuse)
    return content


def test_run_leaves_a_folder_that_can_be_read_again(tmp_path: Path) -> None:
    out = tmp_path / "a" / "new"  # the parent is made too
    done = invoke("run", written(tmp_path, TINY), "--out", out)
    assert done.exit_code == 0, done.output
    assert {path.name for path in out.iterdir()} == LEFT
    jko, gd = bj.Flow.load(out / "flow-jko.zarr"), bj.Flow.load(out / "flow-gd.zarr")
    assert float(jko.times[-1]) == float(gd.times[-1]) == 0.3
    assert (out / "flows.png").read_bytes().startswith(b"\x89PNG")
    # Both flows start from the very same measure.
    torch.testing.assert_close(jko.outputs[0], gd.outputs[0], rtol=0, atol=1e-14)
    assert "note" not in done.stderr

    content = summary(out)
    numbers = content["runs"]["lifted"]
    held = bj.compare(jko, gd)
    assert numbers["output_gap_sup"] == held.sup_output_gap
    assert numbers["output_gap_share"] == held.relative_output_gap
    assert numbers["transport_end"] == pytest.approx(float(held.transport[-1]))
    assert numbers["epsilon"] == pytest.approx(0.75 * numbers["spacing"] ** 2)
    assert numbers["mass_error_max"] <= 1e-12
    assert numbers["seconds_jko"] > 0
    assert content["versions"]["torch"] == torch.__version__
    assert content["verdict"] in " ".join(done.stdout.split())
    assert json.loads((out / "versions.json").read_text("utf-8"))["bigjko"] == bj.__version__
    # The configuration as run, defaults written out, gives the same experiment again.
    assert "epsilon = 0.75" in (out / "config.toml").read_text("utf-8")
    assert config.load(out / "config.toml") == config.load(tmp_path / "experiment.toml")

    again = invoke("compare", out)
    assert again.exit_code == 0, again.output
    shown, wrote = again.stdout.splitlines(), done.stdout.splitlines()
    assert shown == wrote[:-1]  # compare writes nothing, and does not say it did
    assert wrote[-1] == f"All of it is in {out}"
    for name in ("report.html", "flows.png"):
        (out / name).unlink()
    assert invoke("compare", out, "--report").stdout == again.stdout
    assert {path.name for path in out.iterdir()} == LEFT
    assert ">lifted<" in (out / "report.html").read_text("utf-8")
    (out / "config.toml").unlink()
    assert "config.toml" in refused("compare", out, "--report")


@pytest.mark.usefixtures("few_points")
def test_several_runs_get_a_folder_each_and_one_summary(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = invoke("run", written(tmp_path, HEAD + PROJECTED + LIFTED), "--out", out)
    assert done.exit_code == 0, done.output
    assert {path.name for path in out.iterdir()} == {"lifted", "projected", "summary.json"}
    for name in ("lifted", "projected"):
        assert {path.name for path in (out / name).iterdir()} == LEFT
        assert [one.name for one in config.load(out / name / "config.toml").runs] == [name]
    runs = summary(out)["runs"]
    assert (runs["lifted"]["t_end"], runs["projected"]["t_end"]) == (0.3, 0.5)  # a run may have a time of its own
    assert runs["projected"]["transport_times"] == [0.0, 0.25, 0.5]
    assert runs["projected"]["boundary_mass_max"] is None
    assert "no box" in done.stdout
    assert runs["projected"]["mass_end"] > runs["projected"]["mass_start"]
    again = invoke("compare", out)
    assert again.stdout.splitlines() == done.stdout.splitlines()[:-1]
    assert invoke("compare", out / "projected").exit_code == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('kind = "gaussian", mean = 0.0, std = 1.0', 'kind = "network", neurons = 20, seed = 1, std = 0.5'),
        ("mean = 0.0, std = 1.0", "mean = [0.1, 0, 0], std = [0.7, 0.8, 0.9]"),
        ("nodes = 23, radius = 4.4", "shape = [16, 17, 18], low = [-4, -4, -3.5], high = [4, 4, 3.5]"),
        ("jko = { tau = 0.1 }", 'jko = { tau = 0.1, entropy = "plain", epsilon = 1.0, rtol = 1e-6, record = 2 }'),
        ('method = "gd", tau = 0.05', 'method = "flow", tau = 0.1, rtol = 1e-5, atol = 1e-7, drop = 1e-4'),
        ('name = "squared"\nscale = "mean"', 'name = "logistic"\nscale = 0.5'),
        ('name = "squared"\nscale = "mean"', 'name = "huber"\ndelta = 0.5'),
        ("weight_decay = 0.0", 'weight_decay = 0.1\ndtype = "float32"'),
        ('name = "orthogonal"', "X = [[1.0, 0.5], [-1.0, 2.0], [0.0, 1.0]]\ny = [1, 0, -1]\nstandardise = true"),
    ],
)
@pytest.mark.usefixtures("few_points")
def test_every_choice_runs(old: str, new: str, tmp_path: Path) -> None:
    done = invoke("run", written(tmp_path, changed(old, new)), "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    (numbers,) = summary(tmp_path / "out")["runs"].values()
    assert numbers["output_gap_share"] < 0.35  # three coarse steps: it goes the same way, no more


def test_a_random_network_is_balanced_for_projected_and_the_same_for_a_seed(tmp_path: Path) -> None:
    text = (HEAD + PROJECTED).replace('kind = "uniform"', 'kind = "network", neurons = 7, seed = 3')
    experiment = config.load(written(tmp_path, text))
    one, two = (build(experiment, experiment.runs[0], *data(experiment)) for _ in range(2))
    assert torch.equal(one.start.log_masses, two.start.log_masses)
    assert float(one.start.mass) == pytest.approx(0.25)  # radius^2, whatever the directions


@pytest.mark.usefixtures("few_points")
def test_without_out_the_folder_is_named_after_file_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("run", written(tmp_path, TINY)).exit_code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("experiment-")
    assert {path.name for path in folder.iterdir()} == LEFT


@pytest.mark.usefixtures("few_points")
def test_warnings_are_notes_shown_once(tmp_path: Path) -> None:
    narrow = changed("std = 1.0", "std = 0.4")
    done = invoke("run", written(tmp_path, narrow), "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("note: the measure is narrower than 2 nodes") == 1
    assert "Warning" not in done.stderr
    assert "the measure shrank to" in " ".join(done.stdout.split())


@pytest.mark.usefixtures("few_points")
def test_a_json_log_hears_of_every_flow_and_note(tmp_path: Path) -> None:
    file = written(tmp_path, HEAD + PROJECTED + LIFTED.replace("std = 1.0", "std = 0.4"))
    assert invoke("run", file, "--out", tmp_path / "out", "--json-log", tmp_path / "log").exit_code == 0
    found = [json.loads(line) for line in (tmp_path / "log").read_text("utf-8").splitlines()]
    about = [(one["event"], one["run"], one["flow"]) for one in found if one["event"] in ("start", "end")]
    runs = [(run, flow) for run in ("projected", "lifted") for flow in ("gd", "jko")]
    assert about == [(event, *run) for run in runs for event in ("start", "end")]
    last = {(one["run"], one["flow"]): one for one in found if one["event"] == "step"}
    assert [last[run]["time"] for run in runs] == [0.5, 0.5, 0.3, 0.3]
    assert last["lifted", "jko"]["boundary_mass"] > 0
    assert last["lifted", "jko"]["gap"] > 0
    assert any(one["event"] == "note" and "narrower than 2 nodes" in one["message"] for one in found)
    # On standard error there is nothing else.
    again = invoke("run", file, "--out", tmp_path / "out", "--resume", "--json-log", "-")
    assert {json.loads(line)["event"] for line in again.stderr.splitlines()} == {"resumed", "end", "note"}
    refused("run", file, "--out", tmp_path / "out", "--json-log", tmp_path / "second")
    (event,) = [json.loads(line) for line in (tmp_path / "second").read_text("utf-8").splitlines()]
    assert (event["event"], event["flow"]) == ("failed", None)
    assert "which holds something, need a new one" in event["message"]
    assert "which cannot be written (No such file or directory)" in refused(
        "run", file, "--out", tmp_path / "new", "--json-log", tmp_path / "none" / "log"
    )
    assert not (tmp_path / "new").exists()


# --------------------------------------------------------------------------------------------------------- bad input

BAD = [
    ("jko = { tau", "jko = { taus", r"in \[runs.jko\] of \[\[runs\]\] 1: received the unknown key 'taus', .*'tau'\?"),
    ("[data]", "[dta]", r"at the top level: received the unknown key 'dta', .*did you mean 'data'\?"),
    ("t_end = 0.3", "t_end = 0.3\nweight_decay = 1", "unknown key 'weight_decay'.*: it belongs at the top level"),
    ("radius = 4.4 }", "radius = 4.4, zzz = 1 }", "unknown key 'zzz', need one of nodes, .*: leave it out"),
    (
        '"orthogonal"',
        '"diabetis"',
        r"unknown data set 'diabetis', need one of diabetes, five, orthogonal, twenty.*'diabetes'\?",
    ),
    ("jko = { tau = 0.1 }", "jko = { tau = -0.1 }", "received tau = -0.1, need a positive time step"),
    ("jko = { tau = 0.1 }", "jko = { tau = '0.1' }", 'received tau = "0.1", need a positive time step'),
    ("jko = { tau = 0.1 }", "jko = { tau = 0.1, epsilon = 0.2 }", r"run 'lifted'.*= 0.2 h\^2, need at least .25 h\^2"),
    ("jko = { tau = 0.1 }", "jko = { tau = 0.1, entropy = 'plain', passes = 2 }", "received passes for entropy"),
    ("jko = { tau = 0.1 }\n", "", r"in \[\[runs\]\] 1: received no jko, need a table with tau: add it"),
    ('name = "orthogonal"', "X = [[1.0, nan]]\ny = [1.0]", r"received X\[0\]\[1\] = NaN, need rows of finite numbers"),
    ('name = "orthogonal"', "X = [[1.0, 2.0], [1.0]]\ny = [1.0, 2.0]", r"rows of X with \[1, 2\] entries"),
    ('name = "orthogonal"', "X = [[1.0, 2.0]]\ny = [1.0, 2.0]", "received 1 rows of X and 2 labels y"),
    ('name = "orthogonal"', 'name = "orthogonal"\ny = [1.0]', "received more than one of a data set's name, a file"),
    ('name = "orthogonal"', 'name = "orthogonal"\ncomponents = 3', "received components = 3 .*need 1 to 2"),
    (
        'name = "orthogonal"',
        "X = [[1, 2], [1, 3]]\ny = [1, 2]\nstandardise = true",
        "received constant values in 'column 1'",
    ),
    ('name = "squared"', 'name = "cubic"', "received name = \"cubic\", need 'squared', 'logistic' or 'huber'"),
    ('name = "squared"', 'name = "huber"', "received delta = None for name = 'huber', need it for 'huber' alone"),
    ('name = "squared"', 'name = "squared"\ndelta = 1.0', "received delta = 1.0 for name = 'squared', need it for"),
    ('scale = "mean"', "scale = 0", "received scale = 0, need a positive number, or 'mean' for 1/n"),
    ("t_end = 0.3", "t_end = 0.3\nsave_at = [0.5]", r"received save_at = \[0.5\] for the run 'lifted'"),
    ("t_end = 0.3", "t_end = inf", "received t_end = Infinity, need a positive physical time"),
    ("nodes = 23, radius = 4.4", "nodes = 11", "received a grid with nodes, need nodes and radius, or"),
    (
        "nodes = 23, radius = 4.4",
        "shape = [9, 9], radius = 4.4",
        "run 'lifted': received 3 lows, 3 highs and a shape of 2",
    ),
    ("mean = 0.0", "mean = [0.0, 1.0]", "run 'lifted': received 2 numbers for the start, need 3"),
    ("std = 1.0", "std = 1.0, width = 3", "received a start of kind 'gaussian' with .*: leave out width"),
    ('"gaussian"', '"uniform"', "received kind = 'uniform' for way = 'lifted', need 'gaussian' or 'network'"),
    ('method = "gd"', 'method = "gd", rtol = 1e-3', "received rtol or atol for method = 'gd'"),
    ('name = "lifted"', 'name = "a/b"', "received name = 'a/b', need at most 100 letters"),
    ("[[runs]]", LIFTED + "[[runs]]", "received runs named 'lifted', 'lifted', need every name once"),
    ("[[runs]]", "[runs]", r"received runs = .*, need one table \[\[runs\]\] or more"),
    ("weight_decay = 0.0", "weight_decay = ", r"which is no TOML \(Invalid value \(at line 2, column 16\)\)"),
    ("weight_decay = 0.0", 'device = "gpu"', "received device = 'gpu', which cannot be used here .*need one of cpu"),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD)
def test_bad_input_is_refused_in_one_sentence(old: str, new: str, message: str, tmp_path: Path) -> None:
    file, out = written(tmp_path, changed(old, new)), tmp_path / "out"
    with pytest.raises(ConfigError, match=message) as refused:
        run.execute(config.load(file), out, None)
    assert "\n" not in str(refused.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ("run_", "nodes"), [(LIFTED, 20_000), (LIFTED, 2_000_000_000), (PROJECTED, 2_000_000), (PROJECTED, 2_000_000_000)]
)
def test_a_grid_that_does_not_fit_is_refused_before_any_of_it_is_there(run_: str, nodes: int, tmp_path: Path) -> None:
    """Its nodes alone would take 16 GB, or the start 64 TB, or what bounds so many nodes of a circle; nothing does."""
    file = written(tmp_path, HEAD + re.sub(r"nodes = \d+", f"nodes = {nodes}", run_))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shape = f"{nodes} x {nodes} x {nodes}" if run_ == LIFTED else f"2 x {nodes}"
    message = rf"run '\w+': received a grid of {shape} nodes in float64, whose JKO steps take .* nodes would fit"
    with pytest.raises(ConfigError, match=message):
        run.execute(config.load(file), tmp_path / "out", None)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize("name", WAYS)
def test_the_shape_of_a_grid_is_known_before_it_is_there(name: str) -> None:
    """To a node, which what is rounded up costs."""
    way = WAYS[name].build()
    X = torch.eye(2, dtype=torch.float64)
    for keys in WAYS[name].grids:
        given = {"nodes": 3000, "radius": 2.5, "shape": [1500, 30, 1200], "low": [-1.0] * 3, "high": [2.0] * 3}
        choice = GridChoice.model_validate({key: given.get(key, True) for key in keys})
        small, shape = outline(way, choice, X)
        there = grid_of(way, choice, X)
        assert [type(f) for f in small.factors] == [type(f) for f in there.factors]
        assert len(shape) == len(there.shape)
        assert max(abs(a - b) for a, b in zip(shape, there.shape, strict=True)) <= 1


def refused(*arguments: object, code: int = 2) -> str:
    done = invoke(*arguments)
    assert done.exit_code == code, done.output
    assert isinstance(done.exception, SystemExit), done.exc_info
    assert "Traceback" not in done.output
    assert "pydantic" not in done.output
    assert done.stdout == ""
    return str(done.stderr)


def test_the_command_shows_that_sentence_and_no_traceback(tmp_path: Path) -> None:
    said = refused("run", written(tmp_path, changed("jko = { tau", "jko = { taus")), "--out", tmp_path / "out")
    assert said.startswith(f"error: {tmp_path}")
    assert said.rstrip().endswith("did you mean 'tau'?")
    assert len(said.splitlines()) == 1


def test_an_output_folder_that_exists_is_refused_untouched(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("kept", "utf-8")
    assert "which holds something, need a new one: choose another with --out" in refused(
        "run", written(tmp_path, TINY), "--out", out
    )
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_cuda_without_a_gpu_is_refused(tmp_path: Path) -> None:
    said = refused("run", written(tmp_path, TINY), "--out", tmp_path / "out", "--device", "cuda")
    assert "received device = 'cuda', which cannot be used here" in said
    assert said.rstrip().endswith("need one of cpu: choose it with --device")


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in refused("run", tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert "it is not UTF-8 text" in refused("run", tmp_path / "binary.toml")
    (tmp_path / "file").write_text("in the way", "utf-8")
    said = refused("run", written(tmp_path, TINY), "--out", tmp_path / "file" / "out")
    assert "cannot be written" in said


def test_compare_refuses_what_run_did_not_leave(tmp_path: Path) -> None:
    assert "holds no run with both flow-jko.zarr and flow-gd.zarr" in refused("compare", tmp_path)
    assert "holds no run" in refused("compare", tmp_path / "none")


@pytest.mark.usefixtures("few_points")
def test_compare_leaves_no_run_out_in_silence(tmp_path: Path) -> None:
    """Two runs of one name below a folder, at any depth, are both shown; one that lacks a flow is named."""
    assert invoke("run", written(tmp_path, TINY), "--out", tmp_path / "runs/a").exit_code == 0
    for name in ("runs/deep/b", "runs/killed"):
        shutil.copytree(tmp_path / "runs/a", tmp_path / name)
    shutil.rmtree(tmp_path / "runs/killed/flow-jko.zarr")
    found, skipped = run.reload(tmp_path / "runs")
    assert set(found) == {"a", "deep/b"}
    assert len(skipped) == 1
    shown = invoke("compare", tmp_path / "runs")
    assert shown.exit_code == 0
    assert "killed has no flow-jko.zarr" in shown.stderr.replace("\n", "")
    assert "All of it is in" not in shown.stdout
    assert "has no flow-jko.zarr" in refused("compare", tmp_path / "runs/killed")


@pytest.mark.usefixtures("few_points")
def test_a_flow_that_was_cut_short_says_so_when_it_is_compared(tmp_path: Path) -> None:
    """Its status is in the table and the verdict; the transport distance at the start is not passed off as its own."""
    out = tmp_path / "out"
    assert invoke("run", written(tmp_path, TINY), "--out", out).exit_code == 0
    whole = bj.Flow.load(out / "flow-jko.zarr")
    cut = dataclasses.replace(
        whole, status=bj.Status.interrupted, saved_times=whole.saved_times[:1], measures=whole.measures[:1]
    )
    shutil.rmtree(out / "flow-jko.zarr")
    cut.save(out / "flow-jko.zarr")
    shown = invoke("compare", out).stdout
    assert "JKO interrupted" in shown
    assert "it did not reach its end" in " ".join(shown.split())
    assert run.reload(out)[0]["lifted"]["transport_end"] is None


def test_libraries_that_are_missing_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "without typer installed: pip install 'bigjko[all]'" in capsys.readouterr().err


def test_version() -> None:
    assert invoke("--version").stdout == f"bigjko {bj.__version__}\n"


# -------------------------------------------------------------------------------------------------- stopped half way


@pytest.mark.usefixtures("few_points")
def test_a_flow_that_fails_is_saved_up_to_there(tmp_path: Path) -> None:
    # Weight decay alone multiplies every neuron by 1 - 2 tau a step, and JKO is never reached.
    exploding = changed("t_end = 0.3", "t_end = 1e62").replace("weight_decay = 0.0", "weight_decay = 1.0")
    exploding = exploding.replace("tau = 0.05", "tau = 1e60").replace("tau = 0.1", "tau = 1e62")
    out = tmp_path / "out"
    said = refused("run", written(tmp_path, exploding), "--out", out, "--json-log", tmp_path / "log", code=1)
    event = json.loads((tmp_path / "log").read_text("utf-8").splitlines()[-1])
    assert (event["event"], event["flow"], event["t_end"]) == ("failed", "gd", 1e62)
    assert "take a smaller tau" in event["message"]
    assert "the gd step from t = " in said
    assert "take a smaller tau" in said
    assert bj.Flow.load(out / "flow-gd.zarr").status is bj.Status.not_finite
    assert "failed" in summary(out)["runs"]["lifted"]["status"]


@pytest.mark.parametrize(("kind", "kept"), [("GD", {"flow-gd.zarr"}), ("JKO", {"flow-gd.zarr", "flow-jko.zarr"})])
def test_an_interrupt_in_either_flow_keeps_what_there_is(
    kind: str, kept: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(bars: object, name: str, t_end: float, *, reference: bj.Flow | None = None) -> Callable[..., None]:
        def interrupt(time: float, step: object) -> None:
            if name.endswith(kind) and time > 0.12:
                raise KeyboardInterrupt

        return interrupt

    monkeypatch.setattr(Bars, "add", add)
    out = tmp_path / "out"
    said = refused("run", written(tmp_path, TINY), "--out", out, "--json-log", tmp_path / "log", code=130)
    event = json.loads((tmp_path / "log").read_text("utf-8").splitlines()[-1])
    assert (event["event"], event["flow"]) == ("interrupted", kind.lower())  # once
    assert len(said.splitlines()) == 1
    assert said.startswith("interrupted: ")
    assert {path.name for path in out.glob("*.zarr")} == kept
    last = bj.Flow.load(out / f"flow-{kind.lower()}.zarr")
    assert last.status is bj.Status.interrupted
    assert float(last.times[-1]) == pytest.approx({"GD": 0.15, "JKO": 0.2}[kind])
    assert "interrupted" in summary(out)["runs"]["lifted"]["status"]
    page = out / "report.html"
    assert page.exists() == (kind == "JKO")
    if kind == "JKO":
        assert f"JKO: {bj.Status.interrupted.value}." in page.read_text("utf-8")


@pytest.mark.usefixtures("few_points")
def test_a_page_that_cannot_be_written_costs_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> str:
        raise ValueError("no ink")

    monkeypatch.setattr(run, "page", broken)
    done = invoke("run", written(tmp_path, TINY), "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "note: no report.html was written" in done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == LEFT - {"report.html"}
    assert "output_gap_sup" in summary(tmp_path / "out")["runs"]["lifted"]


@pytest.mark.usefixtures("few_points")
def test_ctrl_c_while_a_page_is_written_is_heeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs follow; the flows are there, and the page is written by the command that goes on."""

    def interrupt(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    file, out = written(tmp_path, TINY), tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(run, "page", interrupt)
        assert f"--resume --out {out} goes on" in refused("run", file, "--out", out, code=130)
    assert {path.name for path in out.glob("*.zarr")} == {"flow-gd.zarr", "flow-jko.zarr"}
    assert invoke("run", file, "--out", out, "--resume").exit_code == 0
    assert {path.name for path in out.iterdir()} == LEFT


@pytest.mark.usefixtures("few_points")
def test_runs_that_are_no_longer_asked_for_are_told(tmp_path: Path) -> None:
    """One run lies in the folder itself, several in folders below: neither is silently begun beside the other."""
    file, out = written(tmp_path, TINY), tmp_path / "out"
    assert invoke("run", file, "--out", out).exit_code == 0
    begun = out / "config.toml"
    (out / "other").mkdir()
    begun.rename(out / "other" / "config.toml")
    said = refused("run", file, "--out", out, "--resume")
    assert f"it has no run for {out / 'other' / 'config.toml'}" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    """For real: Ctrl-C, SIGTERM (as of a cluster whose time is up) and kill -9 while JKO steps, then --resume."""
    long = changed("t_end = 0.3", "t_end = 4.0").replace("jko = { tau = 0.1 }", "jko = { tau = 0.02 }")
    file, out = written(tmp_path, long), tmp_path / "out"
    # A shell that starts tests in the background has them ignore SIGINT, which a child inherits: take it back.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from bigjko.app.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "run", str(file), "--out", str(out), "--checkpoint", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        patience = time.monotonic() + 120
        while not (out / "flow-jko.zarr" / "checkpoints" / "3").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < patience
            time.sleep(0.01)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    jko = bj.Flow.load(out / "flow-jko.zarr")
    assert 0 < float(jko.times[-1]) < 4
    assert float(jko.saved_times[-1]) == float(jko.times[-1])  # the measure reached can start a flow again
    assert isinstance(jko.final, bj.GridMeasure)
    if number == signal.SIGKILL:
        assert jko.status is bj.Status.unfinished
    else:
        assert process.returncode == 130, stderr
        assert "Traceback" not in stderr
        (line,) = [line for line in stderr.splitlines() if "interrupted" in line]
        assert f"bigjko compare {out} holds it against gradient descent" in line
        assert "--resume" in line
        assert jko.status is bj.Status.interrupted
        assert f"t = {float(jko.times[-1]):.6g} of 4" in line
    assert invoke("compare", out).exit_code == 0
    assert invoke("run", file, "--out", out, "--resume").exit_code == 0
    assert invoke("run", file, "--out", tmp_path / "whole").exit_code == 0
    one, two = (bj.Flow.load(folder / "flow-jko.zarr") for folder in (out, tmp_path / "whole"))
    assert torch.equal(one.outputs, two.outputs)
    assert torch.equal(one.final.masses, two.final.masses)
    said = refused("run", written(tmp_path, long.replace("tau = 0.02", "tau = 0.04")), "--out", out, "--resume")
    assert "received another experiment than" in said
    assert [line[0] for line in said.splitlines() if "jko = {" in line] == ["-", "+"]
    assert "tau = 0.04" in said
    assert "need the folder that was begun" in refused("run", file, "--resume")


# ----------------------------------------------------------------------------------------------- data and verdicts


def test_principal_components_are_those_of_the_svd() -> None:
    """With signs: the largest entry of every axis is positive."""
    pytest.importorskip("sklearn")
    X, y = DATASETS["diabetes"]()
    assert X.shape == (442, 10)
    Z, labels = prepared(X, y, 2, True, True)
    axes = torch.linalg.svd(X - X.mean(0), full_matrices=False)[2][:2]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    reference = (X - X.mean(0)) @ axes.T
    torch.testing.assert_close(Z, reference / reference.std(0, correction=0), rtol=0, atol=1e-10)
    for column in (*Z.T, labels):
        assert float(column.mean()) == pytest.approx(0, abs=1e-12)
        assert float((column**2).mean()) == pytest.approx(1)
    untouched = prepared(X, y)
    assert torch.equal(untouched[0], X)
    assert torch.equal(untouched[1], y)


@pytest.mark.parametrize(
    ("share", "edge", "width", "said"),
    [
        (0.001, 1e-6, 5.0, "? yes, over"),
        (0.05, 1e-6, 5.0, "? roughly, over"),
        (0.5, None, 5.0, "? no, over"),
        (
            0.001,
            0.02,
            1.0,
            "though up to 2.00% of the mass sat at the edge of the box and the measure shrank to 1 nodes.",
        ),
        (None, None, None, "it cannot be told, since gradient descent moves no output."),
    ],
)
def test_the_verdict_follows_the_numbers(
    share: float | None, edge: float | None, width: float | None, said: str
) -> None:
    numbers = {
        "output_gap_share": share,
        "output_gap_sup": 0.1,
        "output_gap_at": 1.0,
        "output_gap_end": 0.05,
        "risk_gap_end": -0.01,
        "t_end": 2.0,
        "boundary_mass_max": edge,
        "width_min": width,
        "status": {"jko": "ok", "gd": "ok"},
    }
    assert said in verdict({"a": numbers})
    assert verdict({"a": numbers, "b": numbers}).count("?") == 1


# ------------------------------------------------------------------------------------------------------- the examples


@pytest.mark.parametrize("name", ["orthogonal", "diabetes"])
def test_the_examples_are_what_they_say(name: str) -> None:
    experiment = config.load(EXAMPLES / f"{name}.toml")
    X, y = data(experiment)
    assert X.shape == {"orthogonal": (2, 2), "diabetes": (442, 2)}[name]
    assert float((y**2).mean()) == pytest.approx(1)
    assert experiment.loss.scale == "mean"


def certified(flow: bj.Flow, gap_d: float) -> None:
    """gap_z <= 1e-9 (1 + |F|) in every pass; balanced: mass to 1e-12 a step, gap_d below so many eps mass.

    gap_d is eps mass times the largest log(p / r) over all nodes: 1 where the measure is smooth on the grid, 12 where
    it starts 2.6 nodes wide.
    """
    assert bool((flow.stats["gap_z"][1:].abs() <= 1e-9 * (1 + flow.risks[1:].abs())).all())
    if "mass_error" in flow.stats:
        assert float(flow.stats["mass_error"][1:].abs().max()) <= 1e-12
        assert float(flow.stats["gap_d"][1:].max()) <= gap_d * flow.attributes["epsilon"]


@pytest.mark.slow
def test_the_demo_keeps_its_promises(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = invoke("run", EXAMPLES / "diabetes.toml", "--out", out)
    assert done.exit_code == 0, done.output
    (numbers,) = summary(out)["runs"].values()
    assert numbers["output_gap_share"] <= 0.02
    assert numbers["boundary_mass_max"] <= 1e-3
    assert numbers["width_min"] >= 2
    assert numbers["mass_error_max"] <= 1e-12
    certified(bj.Flow.load(out / "flow-jko.zarr"), gap_d=1)
    # The horizon: against gradient descent for five times as long, on a coarser cloud.
    experiment = config.load(EXAMPLES / "diabetes.toml")
    X, y = data(experiment)
    risk = bj.Risk(X, y, loss=bj.losses.Squared(1 / len(y)))
    grid = risk.neurons.grid(21, 2, radius=experiment.runs[0].grid.radius or 0.0)
    cloud = bj.GridMeasure.gaussian(grid, 0.0, 0.8).to_particles(drop=1e-4)
    t_end = experiment.time.t_end
    shed = bj.evolve(bj.GradientDescent(risk, tau=0.02), cloud, t_end=5 * t_end)
    start, here, there = (float(shed.risks[k]) for k in (0, round(t_end / 0.02), -1))
    assert (start - here) / (start - there) >= 0.8


@pytest.mark.slow
def test_both_ways_of_the_orthogonal_example_follow_gradient_descent(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = invoke("run", EXAMPLES / "orthogonal.toml", "--out", out)
    assert done.exit_code == 0, done.output
    runs = summary(out)["runs"]
    assert runs["projected"]["output_gap_share"] <= 0.04
    assert runs["lifted"]["output_gap_share"] <= 0.03
    assert runs["lifted"]["mass_error_max"] <= 1e-12
    # Boursier, Pillaud-Vivien and Flammarion: |theta|^2 = 2.68328 at the end, which is twice the mass; half-times.
    assert 2 * runs["projected"]["mass_end"] == pytest.approx(2.68328, rel=2e-3)
    jko = bj.Flow.load(out / "projected" / "flow-jko.zarr")
    certified(jko, gap_d=12)
    certified(bj.Flow.load(out / "lifted" / "flow-jko.zarr"), gap_d=12)
    half = [float(jko.times[(jko.outputs[:, j].abs() < 0.5).sum()]) for j in (1, 0)]
    assert half == pytest.approx([6.4063, 13.1424], abs=0.05)
