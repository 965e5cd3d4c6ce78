"""The examples run, small, and find what they say that they find."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def main(name: str) -> Callable[..., Any]:
    """What an example does when it is run as a program."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[..., Any] = module.main
    return found


@pytest.mark.slow
def test_large_grid_says_where_it_ran(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("gpu_large_grid")(nodes=48, steps=2) < 0.05
    said = capsys.readouterr().out
    assert "110,592 nodes" in said
    assert "s a step" in said


def test_diabetes_comes_nearer_on_the_finer_grid() -> None:
    coarse, _, _, fine = main("diabetes")(nodes=30, t_end=0.2)
    assert fine < coarse
    assert fine < 0.05


def test_digits_are_told_apart_as_by_gradient_descent() -> None:
    found = main("digits_3_vs_8")(directions=128, t_end=15.0)
    assert found["JKO"] > 0.85
    assert abs(found["JKO"] - found["gradient descent"]) < 0.03


@pytest.mark.slow
def test_a_loop_of_ones_own_learns_data_that_arrive() -> None:
    ends = main("engine")(nodes=128)
    assert len(ends) == 5
    assert max(ends) < 1e-3
