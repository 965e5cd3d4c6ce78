"""The tools themselves: the type checker sees both packages, and the wheel carries both and runs on its own."""

import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow

RIGHT = """
import bigjko
import bigjko_kernels

grid: bigjko_kernels.Grid = bigjko_kernels.Grid.uniform(low=[-1.0], high=[1.0], shape=(9,))
start = bigjko.GridMeasure.gaussian(grid, mean=0.0, std=0.3)
assert start.log_masses.shape == (9,)
"""
# Wrong only to a checker that knows the signature in bigjko and the type in bigjko_kernels: were either package
# unseen (a missing py.typed, an editable install that hides one), both names would be Any and nothing would be said.
WRONG_LINE = "bigjko.GridMeasure.gaussian(3, mean=0.0, std=0.3)"
WRONG_TEXT = r'Argument 1 to "gaussian" of "GridMeasure" has incompatible type "int"; expected "Grid"'


def run(*command: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command with the repository out of reach: another folder, no PYTHONPATH, no MYPYPATH."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "MYPYPATH"}
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if check and done.returncode:
        pytest.fail(f"{' '.join(map(str, command))} gave {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


@pytest.mark.parametrize("config", [ROOT / "pyproject.toml", None], ids=["as in make check", "as a user has it"])
def test_mypy_sees_one_wrong_line_across_both_packages(config: Path | None, tmp_path: Path) -> None:
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(f"{RIGHT}{WRONG_LINE}\n")
    options = ["--config-file", config or os.devnull, "--strict", "--cache-dir", tmp_path / "cache", "--no-pretty"]
    done = run(sys.executable, "-m", "mypy", *options, "right.py", "wrong.py", cwd=tmp_path, check=False)
    *errors, total = done.stdout.splitlines()
    assert len(errors) == 1, done.stdout + done.stderr
    assert re.match(rf"wrong\.py:{RIGHT.count(chr(10)) + 1}: error: {WRONG_TEXT}", errors[0])
    assert total == "Found 1 error in 1 file (checked 2 source files)"
    assert done.returncode == 1


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_carries_both_packages_whole(wheel: Path) -> None:
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(package.parent).as_posix()
        for package in (ROOT / "bigjko", ROOT / "kernels" / "bigjko_kernels")
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"bigjko/py.typed", "bigjko_kernels/py.typed"} <= wanted
    assert shipped == wanted


def metadata(wheel: Path) -> importlib.metadata.Distribution:
    """What the wheel says of itself, rather than the editable install, which may be older."""
    (folder,) = (path for path in zipfile.Path(wheel).iterdir() if path.name.endswith(".dist-info"))
    return importlib.metadata.PathDistribution(folder)


def needed(distribution: importlib.metadata.Distribution, extra: str) -> dict[str, importlib.metadata.Distribution]:
    """Every installed distribution that this one draws in with an extra ("" for none), by name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(distribution, extra)]
    while waiting:
        parent, option = waiting.pop()
        for child in map(Requirement, parent.requires or ()):
            if child.marker is None or child.marker.evaluate({"extra": option}):
                found[child.name] = importlib.metadata.distribution(child.name)
                new = {(child.name, name) for name in ("", *child.extras)} - seen
                seen |= new
                waiting += [(found[child.name], name) for _, name in new]
    return found


def clean_environment(folder: Path, wheel: Path, extra: str) -> Path:
    """A new virtual environment that holds the wheel and what it says it needs, and nothing else: its interpreter.

    The dependencies are links to those installed here, which spares a download of torch; nothing of this environment's
    own site-packages is on the path, the editable install of the two packages least of all.
    """
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=folder).stdout.strip())
    for distribution in needed(metadata(wheel), extra).values():
        parts = {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
        # An old pip leaves the metadata of what it builds beside the files, and does not list it.
        beside = Path(str(distribution.locate_file(""))).glob(f"{distribution.metadata['Name']}-*.egg-info")
        for top in parts | {path.name for path in beside}:
            source = Path(str(distribution.locate_file(top))).resolve()
            if source.exists() and not (site / top).exists():  # some list files that they do not install
                (site / top).symlink_to(source)
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    run(*pip, "check", cwd=folder)
    return python


def test_wheel_runs_in_a_clean_environment_with_the_core_alone(wheel: Path, tmp_path: Path) -> None:
    python = clean_environment(tmp_path / "env", wheel, extra="")
    (tmp_path / "use.py").write_text(
        f"{RIGHT}\nprint(bigjko.__version__, bigjko.__file__, bigjko_kernels.__file__, sep='\\n')"
    )
    version, *files = run(python, "-I", "-W", "error", "use.py", cwd=tmp_path).stdout.splitlines()[-3:]
    assert version == metadata(wheel).version
    assert all(Path(file).is_relative_to(tmp_path / "env") for file in files), files
    absent = run(python, "-I", "-c", "import pandas", cwd=tmp_path, check=False)
    assert "No module named 'pandas'" in absent.stderr, "the clean environment is not clean"


def test_wheel_brings_the_command_with_all(wheel: Path, tmp_path: Path) -> None:
    clean_environment(tmp_path / "env", wheel, extra="all")
    shown = run(tmp_path / "env" / "bin" / "bigjko", "--help", cwd=tmp_path).stdout
    assert "run" in shown
    assert "compare" in shown
