"""`bigjko study`: what it leaves, the orders it fits, what it refuses, and how it stops and goes on."""

import csv
import dataclasses
import json
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import bigjko as bj
from bigjko.app import orders, prepare, study, study_config, table
from bigjko.app.cli import app
from bigjko.app.config import ConfigError
from bigjko.app.markdown import filled, gaps_table
from bigjko.app.sections import dump
from bigjko.app.study_plot import plot_study
from bigjko.app.ways import WAYS, GridChoice, Start
from bigjko.show import Bars

D = torch.float64
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("study-*.toml"))

TINY = """
[[problems]]
name = "pair"
data = { name = "orthogonal" }
loss = { name = "squared", scale = "mean" }
time = { t_end = 0.2 }

[[ways]]
name = "circle"
way = "projected"
grids = [{ nodes = 24 }, { nodes = 48 }]
start = { kind = "uniform", radius = 0.7 }
taus = [0.05, 0.1]
references = [{ method = "gd", tau = 0.02 }]
"""
WIDTHS = "widths = { m = [4, 16], seeds = 2, tau = 0.05, blur = 0.3 }\n"
LEFT = {"study.csv", "orders.csv", "study.png", "study.toml", "versions.json"}

pytestmark = pytest.mark.filterwarnings("ignore::bigjko.NarrowMeasureWarning")


def invoke(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app(), list(map(str, arguments)))


def written(folder: Path, text: str) -> Path:
    file = folder / "study.toml"
    file.write_text(text, "utf-8")
    return file


def test_a_study_leaves_a_folder_and_goes_on_where_it_was(tmp_path: Path) -> None:
    file, out = written(tmp_path, TINY + WIDTHS), tmp_path / "out"
    done = invoke("study", file, "--out", out)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"15 rows: all of it is in {out}\n"
    assert {path.name for path in out.iterdir()} == LEFT
    assert (out / "study.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "versions.json").read_text("utf-8"))["bigjko"] == bj.__version__
    assert study_config.load_study(out / "study.toml") == study_config.load_study(file)
    rows = table.load(out / "study.csv")
    kinds = [row["kind"] for row in rows]
    # 2 grids x 2 taus, an extrapolation a grid, 2 widths x 2 seeds against two flows, and those against each other.
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "jko": 4,
        "extrapolated": 2,
        "floor": 1,
        "width": 4,
        "limit": 4,
    }
    assert {row["status"] for row in rows} == {"ok"}
    first = rows[0]
    assert (first["tau"], first["shape"], first["nodes"], first["steps"]) == (0.1, "2x24", 48, 2)
    assert first["epsilon"] == pytest.approx(0.75 * first["h"] ** 2)
    assert first["gap_share"] == pytest.approx(first["gap"])  # max |y| = 1
    with (out / "orders.csv").open(encoding="utf-8") as lines:
        fits = list(csv.DictReader(lines))
    assert {(fit["kind"], fit["in"]) for fit in fits} >= {("jko", "tau"), ("jko", "h"), ("width", "m"), ("limit", "m")}

    # The same command finds every row there; one that is missing is computed again, and is the same.
    text = (out / "study.csv").read_text("utf-8")
    assert invoke("study", file, "--out", out).exit_code == 0
    assert (out / "study.csv").read_text("utf-8") == text
    lines_of = text.splitlines(keepends=True)
    lost = next(line for line in lines_of if line.startswith("extrapolated"))
    (out / "study.csv").write_text("".join(line for line in lines_of if line != lost), "utf-8")
    assert invoke("study", file, "--out", out).exit_code == 0
    assert sorted((out / "study.csv").read_text("utf-8").splitlines()) == sorted(text.splitlines())


def test_a_json_log_hears_of_every_flow_of_a_study(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert invoke("study", written(tmp_path, TINY), "--out", out, "--json-log", tmp_path / "log").exit_code == 0
    found = [json.loads(line) for line in (tmp_path / "log").read_text("utf-8").splitlines()]
    ends = [(one["run"], one["flow"]) for one in found if one["event"] == "end"]
    # On each of two grids GD at its tau and at half of it, and JKO at two.
    assert len(ends) == len(set(ends)) + 2 == 8
    assert {run for run, _ in ends} == {"pair circle"}
    assert {"2x24 tau = 0.1 JKO", "2x48 tau = 0.05 JKO"} <= {flow for _, flow in ends}
    assert all(one["time"] == 0.2 for one in found if one["event"] == "step" and one["time"] >= 0.2)


def test_a_row_says_what_the_flows_say(tmp_path: Path) -> None:
    """Gap, risk gap and the reference's own error, from flows made by hand."""
    rows = study.execute_study(study_config.load_study(written(tmp_path, TINY)), tmp_path / "out", None)
    row = next(r for r in rows if (r["kind"], r["shape"], r["tau"]) == ("jko", "2x48", 0.05))
    way = bj.neurons.Projected()
    X, y = torch.tensor([[-0.5, 1.0], [2.0, 1.0]], dtype=D), torch.tensor([-1.0, 1.0], dtype=D)
    risk = bj.Risk(X, y, neurons=way, loss=bj.losses.Squared(0.5))
    grid = way.grid(nodes=48, dim=2)
    start = way.uniform(grid, radius=0.7)
    jko = bj.evolve(bj.JKO(risk, grid, tau=0.05), start, 0.2)
    coarse, fine = (bj.evolve(bj.GradientDescent(risk, tau=t), way.particles(start), 0.2) for t in (0.02, 0.01))
    held = bj.compare(jko, fine, transport=False)
    # Eight digits are written, and a row says what was written.
    assert row["gap"] == pytest.approx(held.sup_output_gap, rel=1e-7)
    assert row["risk_gap"] == pytest.approx(float(held.risk_gap[-1]), rel=1e-7)
    error = bj.compare(coarse, fine, transport=False).sup_output_gap
    assert row["reference_error"] == pytest.approx(error, rel=1e-7)
    assert row["trusted"] == int(10 * error <= row["gap"])


# --------------------------------------------------------------------------------------------------------- every way

GRIDS = {"nodes": 24, "radius": 3.0}
STARTS: dict[str, dict[str, Any]] = {
    "gaussian": {"mean": 0.0, "std": 0.5},
    "uniform": {"radius": 0.7},
    "shell": {"mean": 1.2, "std": 0.2},
    "network": {"neurons": 9, "seed": 1, "std": 0.4, "radius": 1.1, "width": 1.0},
}


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, way in WAYS.items() for kind in way.starts])
def test_every_way_has_its_starts(name: str, kind: str) -> None:
    """What the registry says a start needs is enough; particles share it, it favours no sign, and a shell is one."""
    way = WAYS[name]
    keys = (*way.starts[kind].needed, "kind")
    start = Start.model_validate({key: value for key, value in STARTS[kind].items() if key in keys} | {"kind": kind})
    nodes = GRIDS | ({"nodes": 64} if kind == "shell" else {})  # radii .2 apart, as wide as the shell's std
    grid = GridChoice.model_validate({key: nodes[key] for key in way.grids[0]})
    way.check(name, grid, start)
    question = study_config.Study.model_validate(tomllib.loads(TINY)).problems[0]
    here = prepare.place(question, name, grid, start, prepare.points(question.data, "float64", "cpu"))
    neurons = here.risk.neurons.particles(here.start)
    torch.testing.assert_close(here.risk.outputs(neurons), here.risk.outputs(here.start), rtol=0, atol=1e-9)
    if kind != "network":
        assert float(here.risk.outputs(here.start).abs().max()) < 0.05  # both signs alike
    if kind == "shell":
        r = (neurons.w.norm(dim=1) * neurons.a.abs()).sqrt()
        assert float((neurons.masses * r).sum() / neurons.mass) == pytest.approx(1.2, abs=0.02)


# ------------------------------------------------------------------------------------------------------------ orders


def made(kind: str, gap: Callable[[float, float], float], **more: Any) -> list[table.Row]:
    """Rows of a table on three grids and four taus."""
    return [
        {name: None for name in table.COLUMNS}
        | {
            "kind": kind,
            "problem": "p",
            "way": "w",
            "reference": "gd",
            "status": "ok",
            "trusted": 1,
            "h": h,
            "tau": tau,
            "grid": number,
            "shape": f"{h:g}",
            "nodes": 9,
        }
        | {"gap": gap(tau, h)}
        | more
        for number, h in enumerate((0.4, 0.2, 0.1), 1)
        for tau in (0.8, 0.4, 0.2, 0.1)
        if kind == "jko" or tau < 0.8
    ]


def order(rows: list[table.Row], kind: str, variable: str, quantity: str = "gap") -> table.Row:
    (fit,) = [f for f in orders.fitted(rows) if (f["kind"], f["in"], f["quantity"]) == (kind, variable, quantity)]
    return fit


def test_orders_are_exact_on_power_laws() -> None:
    rows = made("jko", lambda tau, h: 3 * tau**1.25) + made("extrapolated", lambda tau, h: 0.01 * h**1.75)
    fit = order(rows, "jko", "tau")
    assert fit["order"] == pytest.approx(1.25, abs=1e-12)
    assert fit["used"] == "0.8 0.4 0.2 0.1"
    assert fit["pairs"] == "1.25 1.25 1.25"
    assert order(rows, "extrapolated", "h")["order"] == pytest.approx(1.75, abs=1e-12)


def test_gaps_that_the_grid_decides_and_references_that_are_not_better_do_not_count() -> None:
    """gap = tau + h^2: h = .1 and .2 differ by .03, a fifth of the gap from tau = .14 on."""
    rows = made("jko", lambda tau, h: tau + h**2) + made("extrapolated", lambda tau, h: h**2)
    fit = order(rows, "jko", "tau")
    assert fit["used"] == "0.8 0.4 0.2"
    assert fit["floor"] == pytest.approx(0.01)
    assert fit["order"] == pytest.approx(orders.slope([(0.8, 0.81), (0.4, 0.41), (0.2, 0.21)]))
    assert order([row for row in rows if row["h"] == 0.1], "jko", "tau")["used"] == "0.8 0.4 0.2 0.1"
    doubted = [row | {"trusted": int(row["tau"] > 0.3)} for row in rows]
    assert order(doubted, "jko", "tau")["used"] == "0.8 0.4"
    assert math.isnan(order([row | {"trusted": 0} for row in rows], "jko", "tau")["order"])


def test_boxes_of_one_spacing_are_one_grid_to_orders(tmp_path: Path) -> None:
    """Of grids with the same h the larger counts, of equals the last; the figure shows both."""
    rows = made("jko", lambda tau, h: tau + h**2) + made("extrapolated", lambda tau, h: h**2)
    finest = [row for row in rows if row["h"] == 0.1]
    smaller = [row | {"gap": 2 * row["gap"], "grid": 4, "shape": "small", "nodes": 4} for row in finest]
    before = [row | {"gap": 2 * row["gap"], "grid": 0} for row in finest]
    for every in (rows + smaller, smaller + rows, before + rows):
        for kind, variable in (("jko", "tau"), ("jko", "h"), ("extrapolated", "h")):
            assert order(every, kind, variable) == pytest.approx(order(rows, kind, variable), nan_ok=True)
    shown = [row | {"gap_share": row["gap"]} for row in smaller + rows]
    figure = plot_study(shown, orders.fitted(shown), tmp_path / "study.png")
    labels, legend = figure.axes[0].get_legend_handles_labels()[1], figure.axes[0].get_legend()
    assert legend is not None
    assert {"h = 0.1 (small)", "h = 0.1 (0.1)", "h = 0.2"} <= set(labels)
    alike = [row | {"gap_share": row["gap"]} for row in before + rows]
    labels = plot_study(alike, [], tmp_path / "alike.png").axes[0].get_legend_handles_labels()[1]
    assert {"h = 0.1 (0)", "h = 0.1 (3)"} <= set(labels)
    assert legend.get_title().get_text().endswith("= 0.8, 0.4, 0.2")  # the points that the order was fitted on


def test_a_floor_that_is_not_known_is_not_zero(tmp_path: Path) -> None:
    rows = made("jko", lambda tau, h: tau + h**2)
    assert math.isnan(order(rows, "jko", "tau")["floor"])
    orders.write_orders(rows, tmp_path / "orders.csv")
    with (tmp_path / "orders.csv").open(encoding="utf-8") as lines:
        assert {row["floor"] for row in csv.DictReader(lines)} == {""}


def test_orders_in_m_are_those_of_the_mean_over_seeds() -> None:
    rows = [
        {name: None for name in table.COLUMNS}
        | {"kind": "width", "problem": "p", "way": "w", "reference": "gd", "status": "ok", "m": m, "seed": seed}
        | {"gap": (0.5 + seed) * m**-0.5, "transport": m**-0.25}
        for m in (10, 100, 1000, 10_000)
        for seed in (0, 1)
    ]
    assert order(rows, "width", "m")["order"] == pytest.approx(-0.5, abs=1e-12)
    assert order(rows, "width", "m", "transport")["order"] == pytest.approx(-0.25, abs=1e-12)
    floor = rows[0] | {"kind": "floor", "m": None, "seed": None, "gap": 0.005}
    assert order([*rows, floor], "width", "m")["used"] == "10 100 1000"  # the mean at 10^4 is twice the floor


def test_extrapolation_is_of_the_order_of_the_scheme(tmp_path: Path) -> None:
    asked = TINY.replace(", { nodes = 48 }", "") + 'jko = { scheme = "second" }\n'
    rows = study.execute_study(study_config.load_study(written(tmp_path, asked)), tmp_path / "out", None)
    X, y = torch.tensor([[-0.5, 1.0], [2.0, 1.0]], dtype=D), torch.tensor([-1.0, 1.0], dtype=D)
    risk = bj.Risk(X, y, neurons=(way := bj.neurons.Projected()), loss=bj.losses.Squared(0.5))
    start = way.uniform(grid := way.grid(nodes=24, dim=2), radius=0.7)
    coarse, fine = (bj.evolve(bj.JKO(risk, grid, tau=t, scheme=bj.SecondOrder()), start, 0.2) for t in (0.1, 0.05))
    gd = bj.evolve(bj.GradientDescent(risk, tau=0.01), way.particles(start), 0.2)
    held = bj.compare(bj.extrapolate(coarse, fine, order=2), gd, transport=False)
    (row,) = (row for row in rows if row["kind"] == "extrapolated")
    assert row["gap"] == pytest.approx(held.sup_output_gap, rel=1e-7)


# ----------------------------------------------------------------------------------------------------- windows, draws


def test_window_gap_sees_mass_that_outputs_do_not_tell() -> None:
    way = bj.neurons.Lifted()
    turn = 2 * math.pi / 16

    def at(*angles: float) -> bj.ParticleMeasure:
        angle = torch.tensor(angles, dtype=D)
        return bj.ParticleMeasure.from_network(
            torch.stack([angle.cos(), angle.sin()], 1), torch.ones(len(angles), dtype=D)
        )

    assert study.window_gap(way, at(0.0), at(0.0)) == 0
    assert study.window_gap(way, at(0.0), at(turn)) == pytest.approx(1)
    assert study.window_gap(way, at(0.0), at(turn / 4)) == pytest.approx(0.25)  # a small move is a small gap
    assert study.window_gap(way, at(0.0, 0.0), at(0.0, 2.0)) == pytest.approx(0.5)
    for d in (1, 4):
        other = bj.ParticleMeasure.from_network(torch.ones(1, d, dtype=D), torch.ones(1, dtype=D))
        assert math.isnan(study.window_gap(way, other, other))


def test_neurons_are_drawn_in_proportion_to_their_masses() -> None:
    everyone = bj.ParticleMeasure(torch.arange(6, dtype=D).reshape(3, 2), torch.tensor([0.2, 0.0, 0.6], dtype=D))
    some = study.drawn(everyone, 4000, seed=1)
    assert float(some.mass) == pytest.approx(0.8)
    share = float((some.positions[:, 0] == 0).double().mean())
    assert share == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 4000))
    assert not bool((some.positions[:, 0] == 2).any())
    assert torch.equal(some.positions, study.drawn(everyone, 4000, seed=1).positions)
    assert not torch.equal(some.positions, study.drawn(everyone, 4000, seed=2).positions)


def test_the_exact_distance_is_that_of_a_translation() -> None:
    way = bj.neurons.Lifted()
    one = bj.ParticleMeasure(torch.zeros(1, 2, dtype=D), torch.ones(1, dtype=D))
    other = bj.ParticleMeasure(torch.tensor([[3.0, 4.0]], dtype=D), torch.ones(1, dtype=D))
    assert study.exact_distance(way, study.drawn(one, 5, 0), other, 5, 0) == pytest.approx(5)


# --------------------------------------------------------------------------------------------------------- bad input

BAD = [
    ("taus = [0.05, 0.1]", "tau = [0.05]", r"in \[\[ways\]\] 1: received the unknown key 'tau', .*did you mean 'taus'"),
    ("taus = [0.05, 0.1]", "taus = [0.1, 0.1]", r"in \[\[ways\]\] 1: received taus with one of them twice"),
    ("taus = [0.05, 0.1]", "taus = []", "received taus = .*need positive time steps"),
    ('way = "projected"', 'way = "projcted"', r"unknown way 'projcted', need one of .*did you mean 'projected'\?"),
    ("{ nodes = 48 }", "{ nodes = 1 }", r"in \[ways.grids 2\] of \[\[ways\]\] 1: received nodes = 1, need a whole"),
    (
        "{ nodes = 48 }",
        "{ nodes = 48, radius = 2.0 }",
        "received a grid with nodes and radius, need nodes, or nodes and kinks",
    ),
    ("t_end = 0.2", "t_end = 0.2, save_at = [0.1]", r"in \[\[problems\]\] 1: received save_at = \[0.1\], need t_end"),
    ('"gd"', '"dg"', r"in \[ways.references 1\] of \[\[ways\]\] 1: received method = \"dg\", need"),
    ('"uniform"', '"gaussian"', "received kind = 'gaussian' for way = 'projected'"),
    ("taus", 'problems = ["pear"]\ntaus', "received the problem 'pear' for the way 'circle', need one of 'pair'"),
    (
        "[[ways]]",
        "[[problems]]\n" + TINY.split("[[ways]]")[0].split("[[problems]]")[1] + "[[ways]]",
        "named 'pair', 'pair'",
    ),
    ('"orthogonal"', '"orthgonal"', r"in \[problems.data\] of \[\[problems\]\] 1: received the unknown data set"),
    ("taus", "jko = { epsilon = 0.1 }\ntaus", r"in the way 'circle' for the problem 'pair': .*need at least .25 h\^2"),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD)
def test_bad_input_is_refused_before_anything_is_run(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in TINY
    file = written(tmp_path, TINY.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as refused:
        study.execute_study(study_config.load_study(file), tmp_path / "out", None)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_reference_that_cannot_be_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    """Particles whose outputs are frozen slide along nothing."""
    asked = TINY.replace('"projected"', '"signed"').replace(
        "{ nodes = 24 }, { nodes = 48 }", "{ nodes = 24, radius = 3 }"
    )
    asked = asked.replace('"uniform", radius = 0.7', '"gaussian", mean = 0.0, std = 0.5').replace('"gd"', '"sliding"')
    with pytest.raises(
        ConfigError, match=r"in the way 'circle' for the problem 'pair': .*need Free\(\) for SlidingFlow"
    ):
        study.execute_study(study_config.load_study(written(tmp_path, asked)), tmp_path / "out", None)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_study_is_refused_untouched(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    other = dump(study_config.load_study(written(tmp_path, TINY.replace("0.7", "0.6"))))
    (out / "study.toml").write_text(other, "utf-8")
    done = invoke("study", written(tmp_path, TINY), "--out", out)
    assert done.exit_code == 2
    assert "holds no part of this study as it is written now" in done.stderr
    assert [path.name for path in out.iterdir()] == ["study.toml"]


BROKEN = [
    (lambda text: text[:-9], "study.csv, whose line 3 is broken, need 28 cells and an end: delete that line"),
    (lambda text: text[:-1], "study.csv, whose line 3 is broken"),  # the last number may be cut short
    (lambda text: text.replace("0.1,", "0.1;", 1), "study.csv, whose line 2 is broken"),
    (lambda text: text.replace(",", ";"), "study.csv with other columns, need what this version's studies write"),
]


@pytest.mark.parametrize(("harm", "message"), BROKEN)
def test_a_broken_table_is_refused_untouched(harm: Callable[[str], str], message: str, tmp_path: Path) -> None:
    file, path = written(tmp_path, TINY), tmp_path / "out" / "study.csv"
    path.parent.mkdir()
    (path.parent / "study.toml").write_text(dump(study_config.load_study(file)), "utf-8")
    whole = table.Table(path)
    for tau in (0.1, 0.05):
        whole.add({"kind": "jko", "problem": "pair", "way": "circle", "shape": "2x24", "tau": tau, "status": "ok"})
    harmed = harm(path.read_text("utf-8"))
    path.write_text(harmed, "utf-8")
    done = invoke("study", file, "--out", path.parent)
    assert done.exit_code == 2
    assert message in done.stderr
    assert path.read_text("utf-8") == harmed


def test_rows_are_what_will_be_read_again(tmp_path: Path) -> None:
    """Rows of a grid that were read and rows that were added must have the same h, or orders take them for two."""
    path = tmp_path / "study.csv"
    path.write_text("", "utf-8")  # stopped before its first line: begun again
    begun = table.Table(path)
    begun.add({"kind": "jko", "h": math.pi / 12, "tau": 1 / 3, "gap": math.nan, "m": 7, "status": "ok"})
    assert begun.rows == table.load(path)


@pytest.mark.parametrize("file", EXAMPLES, ids=[file.stem for file in EXAMPLES])
def test_the_study_files_can_be_read(file: Path) -> None:
    asked = study_config.load_study(file)
    assert study_config.Study.model_validate(asked.model_dump()) == asked


# -------------------------------------------------------------------------------------------------- failed, stopped


def test_a_flow_that_fails_is_a_row(tmp_path: Path) -> None:
    """GD explodes where tau times the NTK is far above 1: its rows say so, and the others are there."""
    two = 'references = [{ method = "gd", tau = 1e150 }, { method = "gd", tau = 1e150, dynamics = "free" }]'
    asked = TINY.replace('references = [{ method = "gd", tau = 0.02 }]', two).replace("t_end = 0.2", "t_end = 1e151")
    asked = asked.replace("[0.05, 0.1]", "[1e151]").replace(", { nodes = 48 }", "")
    done = invoke("study", written(tmp_path, asked), "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    rows = table.load(tmp_path / "out" / "study.csv")
    assert len(rows) == 2
    assert all(row["status"] != "ok" and row["gap"] is None for row in rows)
    assert "2 of them failed" in done.stdout


def test_a_step_that_fails_at_once_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **more: object) -> None:
        X, y = torch.ones(1, 1, dtype=D), torch.ones(1, dtype=D)
        start = bj.ParticleMeasure.from_network(torch.ones(1, 1, dtype=D), torch.ones(1, dtype=D))
        flow = bj.evolve(bj.GradientDescent(bj.Risk(X, y), tau=0.1), start, 0.1)
        stats = {name: torch.full((1,), math.nan, dtype=D) for name in ("evaluations", "width", "boundary_mass")}
        only = {name: getattr(flow, name)[:1] for name in ("times", "outputs", "risks", "masses")}
        raise bj.FlowError("stopped", bj.Status.infeasible, dataclasses.replace(flow, stats=stats, **only))

    monkeypatch.setattr(study, "evolve", fail)
    rows = study.execute_study(study_config.load_study(written(tmp_path, TINY)), tmp_path / "out", None)
    assert len(rows) == 6
    assert all(row["status"] != "ok" and row["gap"] is None for row in rows)


@pytest.mark.parametrize("failing", ["jko", "gd"])
def test_what_failed_is_run_again(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flows, and rows that stand on them or on a reference: the folder becomes that of a study without failures."""
    file, out = written(tmp_path, TINY), tmp_path / "out"
    evolve = bj.evolve

    def fail(stepper: Any, start: Any, *arguments: Any, **more: Any) -> bj.Flow:
        flow = evolve(stepper, start, *arguments, **more)
        if stepper.name == failing and stepper.tau in (0.1, 0.01):
            raise bj.FlowError("stopped", bj.Status.infeasible, flow)
        return flow

    with monkeypatch.context() as patch:
        patch.setattr(study, "evolve", fail)
        rows = study.execute_study(study_config.load_study(file), out, None)
    failed = [(row["kind"], row["tau"]) for row in rows if row["status"] != "ok"]
    assert len(rows) == 6
    assert len(failed) == (4 if failing == "jko" else 6)  # two grids
    assert all(row["gap"] is None for row in rows if row["status"] != "ok")
    again = study.execute_study(study_config.load_study(file), out, None)
    never = study.execute_study(study_config.load_study(file), tmp_path / "whole", None)

    def told(rows: list[table.Row]) -> list[table.Row]:
        return sorted(
            ({**row, "seconds": None} for row in rows), key=lambda row: (row["kind"], row["grid"], row["tau"])
        )

    assert told(again) == told(table.load(out / "study.csv")) == told(never)


def test_grids_of_one_shape_and_spacing_are_two(tmp_path: Path) -> None:
    """Nodes on kinks a quarter turn apart are those of the uniform circle, turned."""
    asked = TINY.replace("{ nodes = 24 }, { nodes = 48 }", "{ nodes = 24 }, { nodes = 24, kinks = true }")
    file, out = written(tmp_path, asked), tmp_path / "out"
    assert invoke("study", file, "--out", out).exit_code == 0
    rows = table.load(out / "study.csv")
    assert len({(row["shape"], row["h"]) for row in rows}) == 1
    for kind, tau in (("jko", 0.1), ("jko", 0.05), ("extrapolated", 0.05)):
        one, two = (row for row in rows if (row["kind"], row["tau"]) == (kind, tau))
        assert (one["grid"], two["grid"]) == (1, 2)
        assert one["gap"] != two["gap"]
    assert invoke("study", file, "--out", out).exit_code == 0
    assert table.load(out / "study.csv") == rows


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted between two flows: the same command with --out"),
        (MemoryError("8 GiB"), 2, r"error: received grids that do not fit into memory (8 GiB): take fewer nodes"),
    ],
)
def test_what_comes_between_flows(
    raised: BaseException, code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def harm(*arguments: object) -> None:
        raise raised

    monkeypatch.setattr(study, "place", harm)
    done = invoke("study", written(tmp_path, TINY), "--out", tmp_path / "out")
    assert done.exit_code == code
    assert done.stderr.startswith(message)


def test_the_help_has_a_study_that_can_be_read_and_every_way(tmp_path: Path) -> None:
    text = invoke("study", "--help").stdout
    example = "[[problems]]\n" + text.split("[[problems]]\n")[1].split("It leaves")[0]
    file = written(tmp_path, "\n".join(line.strip() for line in example.splitlines()))
    assert study_config.load_study(file).pairs()
    assert not [name for name in WAYS if name not in text]


def test_ctrl_c_keeps_the_rows_and_the_next_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, out = written(tmp_path, TINY), tmp_path / "out"

    def add(bars: object, name: str, t_end: float, *, reference: bj.Flow | None = None) -> Callable[..., None]:
        def interrupt(time: float, step: object) -> None:
            if "2x48 tau = 0.1 JKO" in name:
                raise KeyboardInterrupt

        return interrupt

    with monkeypatch.context() as patch:
        patch.setattr(Bars, "add", add)
        stopped = invoke("study", file, "--out", out)
    assert stopped.exit_code == 130
    assert stopped.stderr.splitlines()[-1].startswith("interrupted: 3 rows are in")
    assert len(table.load(out / "study.csv")) == 3
    assert {path.name for path in out.iterdir()} == LEFT
    assert invoke("study", file, "--out", out).exit_code == 0
    assert len(table.load(out / "study.csv")) == 6


def test_a_figure_of_nothing_is_empty(tmp_path: Path) -> None:
    plot_study([], [], tmp_path / "study.png")
    assert (tmp_path / "study.png").exists()


def test_the_verdict_holds_what_the_studies_say() -> None:
    """Tables between markers are made from docs/studies: nothing in them is written by hand."""
    docs = Path(__file__).parents[1] / "docs"
    text = (docs / "verdict.md").read_text("utf-8")
    assert filled(text, docs / "studies") == text
    for folder in (docs / "studies").iterdir():
        assert (docs / f"{folder.name}.png").exists()
        as_run, now = folder / "study.toml", docs.parent / "examples" / f"{folder.name}.toml"
        assert study_config.load_study(as_run) == study_config.load_study(now), f"run {now} again"
        fits = orders.fitted(table.load(folder / "study.csv"))
        with (folder / "orders.csv").open(encoding="utf-8") as lines:
            assert [row["used"] for row in csv.DictReader(lines)] == [fit["used"] for fit in fits]


def test_a_table_of_gaps_says_what_could_not_be_trusted() -> None:
    rows = made("jko", lambda tau, h: tau + h**2, shape="9x9", gap_share=0.5, reference_error=0.02, transport=0.1)
    rows = [row | {"risk_gap": -0.25, "blur": 0.03, "windows": None, "trusted": 0} for row in rows]
    (line,) = gaps_table(rows).splitlines()[2:]
    assert line.startswith("| w, p | GD | 9 x 9, 0.1 | 5.0e-01* | - |")
    assert "| -2.5e-01 | 1.0e-01 (0.03) | - | - (none) | - |" in line
    failed = rows[-1] | {"gap": None, "gap_share": None, "status": "infeasible at t = 0"}
    assert "infeasible at t = 0" in gaps_table([*rows[:-1], failed])


def test_windows_see_mass_that_moved_and_not_where_nodes_lie() -> None:
    """Half of the mass on another direction, or of another sign, shows; a turn by a thousandth is next to nothing."""
    way = bj.neurons.Lifted()
    for d in (2, 3):
        W = torch.eye(d, dtype=torch.float64)[:2]
        a = torch.ones(2, dtype=torch.float64)
        here = bj.ParticleMeasure.from_network(W, a)
        assert study.window_gap(way, here, here) == 0
        for moved in (bj.ParticleMeasure.from_network(W * a.new_tensor([[1.0], [-1.0]]), a),
                      bj.ParticleMeasure.from_network(W, a * a.new_tensor([1.0, -1.0]))):  # fmt: skip
            assert 0.1 <= study.window_gap(way, moved, here) <= 0.5
        turned = bj.ParticleMeasure.from_network(W + 1e-3, a)
        assert study.window_gap(way, turned, here) <= 5e-3
