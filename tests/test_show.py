"""Pictures and progress."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import bigjko as bj
from bigjko.show import Bars, plot_comparison, plot_flows

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
    gd = bj.evolve(bj.GradientDescent(risk, tau=0.05), way.particles(start), t_end=0.6)
    return bj.evolve(bj.JKO(risk, grid, tau=0.1), start, t_end=0.5), gd


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
