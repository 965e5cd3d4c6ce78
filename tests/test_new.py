"""`bigjko new`: a file that runs as it is and says what every key means; and what `bigjko --help` begins with."""

import functools
import re
from pathlib import Path

import pytest

import bigjko as bj
from bigjko.app import config, run
from bigjko.app.config import Data, Experiment, JKOChoice, LossChoice, ParticlesChoice, Run, Time
from bigjko.app.new import text
from bigjko.app.prepare import build, data
from bigjko.app.ways import WAYS

from .test_app import invoke, refused


def loaded(folder: Path, content: str) -> Experiment:
    (folder / "new.toml").write_text(content, "utf-8")
    return config.load(folder / "new.toml")


@pytest.mark.parametrize("way", WAYS)
def test_the_file_of_every_way_can_be_run(way: str, tmp_path: Path) -> None:
    experiment = loaded(tmp_path, text(way))
    (one,) = experiment.runs
    assert one.way == way
    built = build(experiment, one, *data(experiment))
    assert built.start.grid.size <= 200_000
    assert float(built.start.width) >= 1.4  # nodes


@pytest.mark.parametrize("way", WAYS)
def test_every_key_is_there_and_every_default_is_the_default(way: str, tmp_path: Path) -> None:
    content = text(way)
    assert all(len(line) <= 120 for line in content.splitlines())
    for section in (Experiment, Data, LossChoice, Time, Run, JKOChoice, ParticlesChoice):
        for key in section.model_fields:
            assert re.search(rf"^(# )?\[*(runs\.)?{key}\b", content, re.MULTILINE), key
    for keys in WAYS[way].grids + tuple(kind.needed + kind.optional for kind in WAYS[way].starts.values()):
        for key in keys:
            assert re.search(rf"^(# )?{key} = ", content, re.MULTILINE), key
    # The comments of defaults say what holds without them.
    spoken = re.sub(r"^# (\w+ = [^#]+# default;)", r"\1", content, flags=re.MULTILINE)
    assert spoken != content
    assert loaded(tmp_path, spoken) == loaded(tmp_path, content)


def test_other_starts_and_options_run_when_their_sign_is_taken_away(tmp_path: Path) -> None:
    content = text("lifted")
    for key in ("neurons", "seed", "width", "kind", "passes"):
        content = re.sub(rf"^# ({key} = )", r"\1", content, flags=re.MULTILINE)
    content = re.sub(r"^(kind = .gaussian|mean = )", r"# \1", content, flags=re.MULTILINE)
    experiment = loaded(tmp_path, content)
    assert experiment.runs[0].start.kind == "network"
    assert experiment.runs[0].jko.passes == 6
    build(experiment, experiment.runs[0], *data(experiment))


def test_new_writes_once_and_what_it_wrote_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "compare", functools.partial(bj.compare, max_points=100))
    monkeypatch.chdir(tmp_path)
    wrote = invoke("new", "mine.toml", "--way", "projected")
    assert wrote.stdout == "mine.toml is written. It runs as it is: bigjko run mine.toml\n"
    before = (tmp_path / "mine.toml").read_bytes()
    assert "received mine.toml, which exists, need a new file" in refused("new", "mine.toml")
    assert (tmp_path / "mine.toml").read_bytes() == before
    done = invoke("run", "mine.toml", "--out", "out")
    assert done.exit_code == 0, done.output
    assert "Is JKO similar to GD? yes" in " ".join(done.stdout.split())


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    said = refused("new", tmp_path / "a.toml", "--way", "lifte")
    assert "received the unknown way 'lifte', need one of lifted" in said
    assert "did you mean 'lifted'?" in said
    said = refused("new", tmp_path / "none" / "a.toml")
    assert "cannot be written (No such file or directory), need a file in a folder that exists" in said
    assert not list(tmp_path.iterdir())


def test_help_teaches() -> None:
    said = invoke("--help").stdout
    for command in ("bigjko new mine.toml", "bigjko run mine.toml --out mine", "bigjko compare mine"):
        assert command in said
    assert "--install-completion" in said
    assert "docs/" in said
