"""Pictures, tables in notebooks, and progress for people and machines."""

import dataclasses
import io
import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

import bigjko as bj
from bigjko.neurons.base import Neurons
from bigjko.show import Bars, JsonLog, plot_comparison, plot_flows

pytestmark = [
    pytest.mark.filterwarnings("ignore::bigjko.NarrowMeasureWarning"),
    pytest.mark.filterwarnings("ignore::bigjko.BoundaryMassWarning"),
]


@pytest.fixture(scope="module", params=["lifted", "projected"])
def flows(request: pytest.FixtureRequest) -> tuple[bj.Flow, bj.Flow]:
    """JKO and gradient descent on a small grid."""
    X = torch.tensor([[-0.5, 1.0], [2.0, 1.0], [0.3, -1.0]], dtype=torch.float64)
    y = torch.tensor([-1.0, 1.0, 0.5], dtype=torch.float64)
    way = bj.neurons.Lifted() if request.param == "lifted" else bj.neurons.Projected()
    risk = bj.Risk(X, y, way, bj.losses.Squared(1 / 3))
    grid = way.grid(11 if request.param == "lifted" else 40, 2)
    start = (
        bj.GridMeasure.gaussian(grid, 0.0, 0.8) if isinstance(way, bj.neurons.Lifted) else way.uniform(grid, radius=0.5)
    )
    times = [0.0, 0.3, 0.5]
    gd = bj.evolve(bj.GradientDescent(risk, tau=0.05), way.particles(start), t_end=0.6, save_at=[*times, 0.6])
    return bj.evolve(bj.JKO(risk, grid, tau=0.1), start, t_end=0.5, save_at=times), gd


def drawn(figure: Any) -> list[Any]:
    """The axes after a draw, with every text in its final place."""
    figure.canvas.draw()
    return list(figure.axes)


def test_a_picture_is_written_without_pyplot(flows: tuple[bj.Flow, bj.Flow], tmp_path: Path) -> None:
    before = "matplotlib.pyplot" in sys.modules
    plot_flows(*flows, tmp_path / "flows.png")
    assert (tmp_path / "flows.png").read_bytes().startswith(b"\x89PNG")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_axes_are_named_and_legends_hide_nothing(flows: tuple[bj.Flow, bj.Flow]) -> None:
    for figure in (plot_flows(*flows), plot_comparison(bj.compare(*flows))):
        axes = drawn(figure)
        assert len(axes) == 4
        for ax in axes:
            assert "t  (physical time)" in ax.get_xlabel()
            assert "(" in ax.get_ylabel()  # a symbol and its unit
            legend = ax.get_legend().get_window_extent()
            assert legend.y0 >= ax.get_window_extent().y1 - 1
            assert legend.x1 <= figure.bbox.x1
            assert legend.y1 <= figure.bbox.y1


def test_flows_can_be_told_apart_without_colour(flows: tuple[bj.Flow, bj.Flow]) -> None:
    risks, outputs, *_ = drawn(plot_flows(*flows))
    second, first = risks.get_lines()
    assert second.get_linestyle() == "-"
    assert first.get_linestyle() != "-"
    assert [text.get_text() for text in risks.get_legend().get_texts()] == ["gradient descent", "JKO"]
    assert len(outputs.get_lines()) == 2 * 3  # every data point where there are so few
    assert risks.get_xlim() == (0, 0.5)  # where both are known


def test_the_last_panel_shows_the_edge_of_a_box_or_the_mass_that_grows(flows: tuple[bj.Flow, bj.Flow]) -> None:
    label = drawn(plot_flows(*flows))[3].get_ylabel()
    assert label.startswith("boundary mass" if isinstance(flows[0].neurons, bj.neurons.Lifted) else "total mass")


def test_a_comparison_draws_itself_two_equal_names_apart(flows: tuple[bj.Flow, bj.Flow]) -> None:
    figure = bj.compare(flows[0], flows[0], transport=False).plot()
    names = [text.get_text() for text in drawn(figure)[0].get_legend().get_texts()]
    assert names == ["JKO (second)", "JKO (first)"]


def test_a_flow_draws_what_it_knows(flows: tuple[bj.Flow, bj.Flow]) -> None:
    jko, gd = flows
    axes = drawn(jko.plot())
    last = "mass at the edge" if isinstance(jko.neurons, bj.neurons.Lifted) else "total mass"
    labels = [ax.get_ylabel() for ax in axes]
    wanted = ["F", "$u_j$", "evaluations of the dual", "certificate", last, "narrowest feature"]
    assert all(sum(label.startswith(word) for label in labels) == 1 for word in wanted), labels
    assert len(axes) == len(wanted)
    for ax in axes:
        assert "t  (physical time)" in ax.get_xlabel().replace("t (", "t  (")
        assert "(" in ax.get_ylabel()
    outputs = axes[1].get_lines()
    assert len({line.get_linestyle() for line in outputs}) == len(outputs)  # told apart without colour
    assert len(drawn(gd.plot())) == 2  # mass is kept, and a step of gradient descent says nothing of itself


WAYS: list[tuple[Neurons, int, int, int]] = [  # data in R^dim, nodes, and how many charts
    (bj.neurons.Lifted(), 2, 11, 6),
    (bj.neurons.Projected(), 2, 48, 2),
    (bj.neurons.Projected(), 3, 60, 2),
    (bj.neurons.PolarFlat(), 2, 24, 3),
    (bj.neurons.PolarCone(), 2, 24, 6),
    (bj.neurons.Signed(), 2, 15, 6),
]


@pytest.mark.parametrize(("way", "dim", "nodes", "charts"), WAYS, ids=lambda value: str(value))
def test_a_measure_and_its_particles_draw_themselves(way: Neurons, dim: int, nodes: int, charts: int) -> None:
    known = bj.ParticleMeasure.from_network(torch.randn(30, dim).double() * 0.4, torch.randn(30).double() * 0.4)
    start = way.measure(way.grid(nodes, dim), known.balanced().w, known.balanced().a)
    X = torch.randn(3, dim).double()
    for figure in (start.plot(), start.plot(way, X), way.particles(start).plot(way, X)):
        axes = [ax for ax in drawn(figure) if ax.get_label() != "<colorbar>"]
        assert len(axes) == charts
        assert all(ax.get_legend() is None for ax in axes)  # of one measure there is no name to tell
        for ax in axes:
            if ax.axison:
                assert ax.get_xlabel()
                assert ax.get_ylabel()


def test_the_curve_of_a_measure_holds_its_mass() -> None:
    way = bj.neurons.Lifted()
    start = bj.GridMeasure.gaussian(way.grid(41, 1), 0.2, 0.5, mass=0.7)
    for measure in (start, start.to_particles()):
        x, y = (torch.tensor(values) for values in drawn(measure.plot())[0].get_lines()[0].get_data())
        assert float(torch.trapezoid(y, x)) == pytest.approx(0.7, rel=0.01)
        assert float(x[y.argmax()]) == pytest.approx(0.2, abs=0.2)


def test_a_grid_of_no_way_is_refused() -> None:
    strange = bj.Grid((bj.Sheets.of([0.0, 1.0, 5.0]), bj.Circle.uniform(8)))
    with pytest.raises(bj.MeasureError, match="which is no known way's, need a grid of the way's"):
        bj.GridMeasure.uniform(strange).plot()
    lifted = bj.GridMeasure.uniform(bj.neurons.Lifted().grid(5, 2))
    with pytest.raises(bj.MeasureError, match=r"which is not one of Projected\(\), need"):
        lifted.plot(bj.neurons.Projected())
    with pytest.raises(bj.MeasureError, match=r"no known way's for data in R\^7"):
        lifted.plot(X=torch.zeros(2, 7).double())


def test_an_animation_has_a_frame_for_every_measure(tmp_path: Path) -> None:
    jko, gd = grown([], save_at=[0.0, 0.2, 0.4]), grown([], save_at=[0.0, 0.1, 0.2, 0.4])
    before = "matplotlib.pyplot" in sys.modules
    jko.animate(tmp_path / "both.gif", gd, X=torch.eye(2).double())
    gd.animate(tmp_path / "one.GIF", fps=2.0)
    assert ("matplotlib.pyplot" in sys.modules) == before
    for name, frames in (("both.gif", 3), ("one.GIF", 4)):
        with Image.open(tmp_path / name) as picture:
            assert picture.n_frames == frames  # type: ignore[attr-defined]


def test_an_animation_that_cannot_be_made_is_refused(
    flows: tuple[bj.Flow, bj.Flow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jko, gd = flows
    alone = dataclasses.replace(jko, saved_times=jko.saved_times[:1], measures=jko.measures[:1])
    apart = dataclasses.replace(gd, saved_times=gd.saved_times + 0.01)
    with pytest.raises(bj.StepError, match=r"with 1 saved measures \(jko\), need at least 2.*evolve it with save_at"):
        alone.animate(tmp_path / "a.gif")
    with pytest.raises(bj.StepError, match=r"kept no measure at the flow's .*: evolve it with save_at = \[0.0, 0.3"):
        jko.animate(tmp_path / "a.gif", apart)
    with pytest.raises(bj.StepError, match=r"received 'a.png' for an animation, need a name that ends in .gif or .mp4"):
        jko.animate(tmp_path / "a.png")
    with pytest.raises(bj.StepError, match="received fps = 0.0, need a positive number"):
        jko.animate(tmp_path / "a.gif", fps=0.0)
    monkeypatch.setattr("matplotlib.animation.FFMpegWriter.isAvailable", lambda: False)
    with pytest.raises(bj.StepError, match="without ffmpeg, need it for .mp4: install ffmpeg, or take .gif"):
        jko.animate(tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


HOSTILE = "</td><script>alert(1)</script>"


def test_tables_in_notebooks_are_whole_and_what_users_wrote_is_text(flows: tuple[bj.Flow, bj.Flow]) -> None:
    jko, gd = (dataclasses.replace(flow, name=HOSTILE, attributes={HOSTILE: HOSTILE, "seconds": 1.5}) for flow in flows)
    assert isinstance(jko.final, bj.GridMeasure)
    assert isinstance(gd.final, bj.ParticleMeasure)
    risk = bj.Risk(torch.eye(2).double(), torch.ones(2).double())
    held = bj.compare(jko, gd, transport=False)
    for shown, said in (
        (jko.final.grid, f"{jko.final.grid.size:,}"),
        (risk, "2 points in R^2"),
        (jko.final, f"{float(jko.final.mass):.6g}"),
        (gd.final, f"{len(gd.final.positions):,} in R^3"),
        (jko, f"{float(jko.risks[-1]):.4g}"),
        (held, f"{held.sup_output_gap:.4g} at t"),
        (bj.compare(jko, gd, transport=True), "at a blur of"),
    ):
        html = shown._repr_html_()
        tree = ElementTree.fromstring(html)  # noqa: S314 - our own, and this tells whether it is whole
        assert said in "".join(tree.itertext())
        assert "<script" not in html
    assert HOSTILE in "".join(ElementTree.fromstring(jko._repr_html_()).itertext())
    assert "<svg" in jko._repr_html_()


def evolved(console: Console, reference: bj.Flow | None) -> bj.Flow:
    """One short flow behind a bar."""
    X, y = torch.tensor([[1.0, 1.0]]).double(), torch.tensor([1.0]).double()
    risk = bj.Risk(X, y)
    cloud = bj.ParticleMeasure.from_network(torch.tensor([[0.5, 0.5]]).double(), torch.tensor([0.5]).double())
    with Bars(console) as bars:
        bar = bars.add("GD", 0.5, reference=reference)
        return bj.evolve(bj.GradientDescent(risk, tau=0.1 if reference is None else 0.05), cloud, 0.5, progress=bar)


def test_a_bar_shows_time_risk_and_the_gap_to_the_reference() -> None:
    said = io.StringIO()
    console = Console(file=said, force_terminal=True, width=160, color_system=None)
    reference = evolved(console, None)
    assert "gap" not in said.getvalue()
    flow = evolved(console, reference)
    last = [line for line in said.getvalue().splitlines() if "t = " in line][-1]
    assert "t = 0.5 of 0.5" in last
    assert f"risk {float(flow.risks[-1]):.4g}" in last
    gap = float(bj.compare(flow, reference).output_gap[-1])
    assert gap > 0
    assert f"gap {gap:.2g}" in last


def test_a_bar_is_quiet_where_nobody_watches() -> None:
    said = io.StringIO()
    evolved(Console(file=said), evolved(Console(file=said), None))
    assert said.getvalue() == ""


def grown(callbacks: list[Any], progress: Any = None, save_at: Sequence[float] = ()) -> bj.Flow:
    """A short flow whose mass grows."""
    way = bj.neurons.Projected()
    risk = bj.Risk(torch.eye(2).double(), torch.tensor([1.0, -1.0]).double(), way)
    grid = way.grid(24, 2)
    return bj.evolve(
        bj.JKO(risk, grid, tau=0.1),
        way.uniform(grid, radius=0.3),
        0.4,
        callbacks=callbacks,
        progress=progress,
        save_at=save_at,
    )


def test_a_bar_shows_mass_that_grows_and_evaluations() -> None:
    said = io.StringIO()
    with Bars(Console(file=said, force_terminal=True, width=160, color_system=None)) as bars:
        flow = grown([], bars.add("JKO", 0.4))
    last = [line for line in said.getvalue().splitlines() if "t = " in line][-1]
    assert f"mass {float(flow.masses[-1]):.3g}" in last
    assert f"{int(flow.stats['evaluations'][1:].sum())} evaluations" in last


def lines(text: str) -> list[dict[str, Any]]:
    """Strict JSON."""

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_a_log_holds_every_step_as_json(tmp_path: Path) -> None:
    reference = grown([])
    for _ in range(2):  # a file is appended to
        with JsonLog(tmp_path / "log.jsonl", pause=0.0) as log, log.flow("jko", 0.4, reference=reference) as heard:
            flow = grown([heard])
            found = lines((tmp_path / "log.jsonl").read_text("utf-8"))  # flushed as it goes
    start, *steps, end = lines((tmp_path / "log.jsonl").read_text("utf-8"))[len(found) - 5 :]
    assert len(found) == 6 + 5
    assert (start["event"], end["event"]) == ("start", "end")
    assert [step["time"] for step in steps] == flow.times[1:].tolist()
    assert [step["risk"] for step in steps] == flow.risks[1:].tolist()
    assert [step["mass"] for step in steps] == flow.masses[1:].tolist()
    assert [step["evaluations"] for step in steps] == flow.stats["evaluations"][1:].cumsum(0).tolist()
    last = steps[-1]
    assert (last["gap"], last["eta"], last["t_end"], last["flow"], last["run"]) == (0.0, 0.0, 0.4, "jko", None)
    assert last["width"] > 0


def test_a_log_says_at_most_a_line_a_pause_and_how_a_flow_ended() -> None:
    said = io.StringIO()
    log = JsonLog(said, pause=1e9)
    with log.flow("jko", 0.4, run="a", resumed=True) as heard:
        grown([heard])
    first, one, last, end = lines(said.getvalue())
    assert [first["event"], one["event"], last["event"], end["event"]] == ["resumed", "step", "step", "end"]
    assert (one["time"], last["time"]) == (0.1, 0.4)
    said.truncate(0)
    said.seek(0)
    for error, event in ((KeyboardInterrupt(), "interrupted"), (ValueError("no ink"), "failed")):
        with pytest.raises(type(error)), log.flow("jko", 0.4):
            raise error
        found = lines(said.getvalue())[-1]
        assert (found["event"], found["message"]) == (event, str(error) or "KeyboardInterrupt")
        assert found["time"] is None  # no step was heard of


def test_a_log_that_cannot_be_written_stops_no_flow() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    log = JsonLog(Full(), pause=0.0)
    with log.flow("jko", 0.4) as heard:
        assert grown([heard]).status is bj.Status.ok
