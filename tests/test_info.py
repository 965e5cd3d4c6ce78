"""`bigjko info`, and what KeOps does wrong in silence, said with what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from typer.testing import CliRunner

import bigjko as bj
from bigjko.app import info
from bigjko.app.cli import app
from bigjko_kernels import KernelError, compiler, keops


def told(*options: str, code: int = 0) -> str:
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app(), ["info", *options])
    assert done.exit_code == code, done.output
    return done.stdout


def test_info_tells_people_and_machines_and_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGJKO_CACHE_FOLDER", str(tmp_path / "cache"))
    found = json.loads(told("--json"))
    assert found["versions"]["bigjko"] == bj.__version__
    assert found["devices"][0]["device"] == "cpu"
    assert 0 < found["devices"][0]["free"] <= found["devices"][0]["total"]
    sources = ("ascent.cpp", "fused.cpp", "passes.cpp", "ridge.cpp")
    assert found["compiler"]["compiled"] == dict.fromkeys(sources, False)
    assert found["compiler"]["size"] == 0
    assert found["keops"]["runs_on"] == ("gpu" if torch.cuda.is_available() else "cpu")
    assert "checks" not in found
    assert not (tmp_path / "cache").exists()
    shown = told()
    for word in (torch.__version__, "free of", "fused.cpp on first use", str(tmp_path / "cache"), "KeOps runs"):
        assert word in shown


def test_info_checks_by_doing() -> None:
    found = json.loads(told("--json", "--check"))
    assert [one["ok"] for one in found["checks"]] == [True] * len(found["checks"])
    assert {"C++ compiles", "fused kernel on cpu", "KeOps on cpu"} <= {one["what"] for one in found["checks"]}
    assert all(one["seconds"] > 0 for one in found["checks"])
    assert found["compiler"]["compiled"]["fused.cpp"]
    assert found["keops"]["formulas"] > 0


def test_what_is_missing_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(info, "_checks", lambda: [info._timed("C++ compiles", info._compiles)])
    shown = told("--check", code=1)
    assert "there is no compiler no-such-compiler: kernels run in torch" in shown
    assert "failed in" in shown
    monkeypatch.delenv("CXX")

    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(compiler, "cache", homeless)
    assert "no home folder for compiled kernels: set BIGJKO_CACHE_FOLDER" in told()


def test_a_gpu_that_keops_cannot_use_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(keops, "find_library", lambda name: None)
    monkeypatch.setattr("pykeops.config.gpu_available", False)
    assert keops.state().reason == "libcuda and libnvrtc not found by the linker"
    found = info.facts() | {"devices": [{"device": "cpu"}, {"device": "cuda:0"}]}
    (hint,) = (hint for hint in info._hints(found) if "though there is a GPU" in hint)
    assert "libcuda and libnvrtc not found by the linker" in hint
    assert "LD_LIBRARY_PATH, CUDA_PATH" in hint
    with FakeTensorMode():
        values = torch.empty(3, 1, 2, device="cuda:0")
    with pytest.raises(KernelError, match=r"values on cuda:0 for a KeOps that works on the CPU alone .*: set LD_LIB"):
        keops.lazy_tensor(values)


def test_caches_of_other_hosts_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(keops, "state", lambda: keops.State("2.3", False, "torch sees no GPU", tmp_path / "here"))
    assert "there are 1 of other hosts or Pythons: it keeps formulas by host name" in told()


def test_memory_that_keops_lacks_is_an_error_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("memory_reserved", 3 << 30), ("memory_allocated", 1 << 30)):
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    gpu = torch.device("cuda:0")
    with pytest.raises(torch.OutOfMemoryError, match="keeps 2 GiB that it does not use"), keops.memory_told(gpu):
        raise RuntimeError("[KeOps] Cuda error.")
    for device, text in ((torch.device("cpu"), "Cuda error."), (gpu, "another")):
        with pytest.raises(RuntimeError, match=text) as other, keops.memory_told(device):
            raise RuntimeError(text)
        assert not isinstance(other.value, torch.OutOfMemoryError)


LAZY = """
import torch, bigjko as bj
grid = bj.Grid.uniform([-1.0], [1.0], [9])
b = torch.zeros(9, dtype=torch.float64)
assert bj.kernels.Separable(grid, 0.1).log_apply(b).isfinite().all()
try:
    bj.kernels.Lazy(grid, 0.1).log_apply(b)
except bj.KernelError as error:
    print(error)
"""


def apart(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_cache_of_keops_that_cannot_be_written_stops_keops_alone() -> None:
    """Importing the library does not need it, nor does info, which says what is wrong."""
    code = f"{LAZY}\nfrom bigjko.app.info import facts\nprint(facts()['hints'])"
    error, hints = apart(code, KEOPS_CACHE_FOLDER="/dev/null/none").splitlines()
    for said in (error, hints):
        assert "received a cache of KeOps in /dev/null/none that cannot be written (Not a directory)" in said
        assert "set KEOPS_CACHE_FOLDER" in said


def test_a_formula_that_does_not_compile_says_what_it_needs(tmp_path: Path) -> None:
    """KeOps itself looks at no exit code, and misses the module later."""
    said = apart(LAZY, KEOPS_CACHE_FOLDER=str(tmp_path), CXX="false")
    assert "received a formula of KeOps that could not be compiled and loaded in " in said
    assert "need a C++ compiler and Python's headers: install it or name it in CXX" in said
