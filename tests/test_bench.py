"""The benchmark's scripts run, at their smallest sizes and without the peers; and its check tells a regression."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def run(*command: str) -> subprocess.CompletedProcess[str]:
    # The packages of this checkout, whichever are installed.
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))}
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, check=False, cwd=ROOT)


def test_every_table_is_measured_at_its_smallest_size() -> None:
    """All sections but `sphere`, whose formulas KeOps would compile first."""
    done = run("bench/tables.py", "--quick", "--no-peers", "kernel", "growth", "steps", "particles", "flows", "large")
    assert done.returncode == 0, done.stderr
    tables = done.stdout.split("\n### ")[1:]
    assert len(tables) > 20
    for table in tables:
        assert re.search(r"\| \S+ s \|", table), table
    failures = [line for line in done.stdout.splitlines() if "failed" in line and "NotReached" not in line]
    assert not failures
    assert "OTT" not in done.stdout, "a peer ran that was to be left out"


def test_gpu_example_says_where_it_runs() -> None:
    done = run("examples/gpu_benchmark.py", "large", "--quick")
    assert done.returncode == 0, done.stderr
    assert re.match("CUDA: |There is no CUDA device here", done.stdout)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "bench")
    return importlib.import_module("tables")


def test_check_tells_a_ratio_that_has_grown(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    harness = importlib.import_module("harness")

    def measured(title: str, *times: float) -> Any:
        rows = [harness.Row("floor", times=[1.0]), harness.Row("ours", ours=True, times=list(times))]
        return harness.Table(title, "floor", rows)

    table = measured("title: time grows like n^0.09", 1.9, 2.0, 2.0, 2.1, 9.0)
    assert table.ratios() == {"ours / floor": 2.0}
    assert measured("title", 1.0, 2.0, 9.0).ratios() == {}, "a row so unsteady decides nothing"
    monkeypatch.setattr(bench, "RATIOS", tmp_path / "ratios.json")
    assert bench._check([table], factor=1.5) == 1, "nothing to compare with is no success"
    bench.RATIOS.write_text(json.dumps({"title": {"ours / floor": 1.6}}))
    assert bench._check([table], factor=1.5) == 0
    bench.RATIOS.write_text(json.dumps({"title": {"ours / floor": 1.2}}))
    assert bench._check([table], factor=1.5) == 1
    again = measured("title: time grows like n^0.11", 1.7)
    assert bench._check([table, again], factor=1.5) == 0, "worse once and not again"


def test_recording_a_section_keeps_the_others(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    harness = importlib.import_module("harness")
    monkeypatch.setattr(bench, "HERE", tmp_path)
    monkeypatch.setattr(bench, "RATIOS", tmp_path / "ratios.json")

    def table(title: str, seconds: float) -> Any:
        row = harness.Row("ours", ours=True, times=[seconds])
        return harness.Table(title, "floor", [harness.Row("floor", times=[1.0]), row], bars=[harness.Bar(title, 3, 2)])

    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    bench._record("One JKO step", "first", [table("a step", 5.0)], cpu)
    bench._record("Log kernel", "second", [table("a kernel", 6.0)], cpu)
    bench._record("One JKO step", "third", [table("a step", 7.0)], cpu)
    bench._record("One JKO step", "fourth", [table("a step", 0.1)], gpu)
    assert "| 0.1 s |" in (tmp_path / "RESULTS-cuda.md").read_text()
    text = (tmp_path / "RESULTS.md").read_text()
    assert text.index("## Log kernel") < text.index("## One JKO step")
    assert "| 7 s |" in text
    assert "| 5 s |" not in text
    assert text.count("**MISSED**: a step: 3, bar <= 2") == 2, "in its table, and among the bars"
    assert json.loads(bench.RATIOS.read_text()) == {"a step": {"ours / floor": 7.0}, "a kernel": {"ours / floor": 6.0}}


def test_unknown_sections_are_named() -> None:
    done = run("bench/tables.py", "kernels")
    assert done.returncode == 2
    assert "received sections kernels, need some of kernel, growth" in done.stderr
