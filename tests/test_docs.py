"""Every code block of the README and of the site runs, and prints what the page says that it prints.

A page is run from top to bottom, its blocks sharing names, in a folder of its own that sees the examples:

- ```python: run;
- ```text right after it (or after ```sh): what it must have printed, "..." standing for anything;
- ```toml: written to experiment.toml;
- ```sh: lines that begin with bigjko or python are run, others (pip, git, make) are not.
"""

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from sybil import Document, Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.example import SybilFailure
from sybil.parsers.markdown import CodeBlockParser

from bigjko import BoundaryMassWarning, NarrowMeasureWarning

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))]
SLOW = {"README.md", "docs/extending.md", "docs/tour.md"}
# Warnings that a page is meant to show; each must really come, and no other.
WARNS: dict[str, list[type[Warning]]] = {
    "docs/derivations.md": [NarrowMeasureWarning],  # an atom moves
    "README.md": [NarrowMeasureWarning],
    "docs/faq.md": [BoundaryMassWarning, NarrowMeasureWarning],  # two of its answers are about what they say
    "docs/ways/unbalanced.md": [NarrowMeasureWarning],
}


class Blocks(CodeBlockParser):
    """Fenced blocks of the four languages, in Markdown."""

    def __init__(self, language: str) -> None:
        super().__init__(language)
        self.python = PythonEvaluator()

    def evaluate(self, example: Example) -> str | None:
        """None where the block did what it should, else what is wrong."""
        text, kept = str(example.parsed), example.namespace
        if self.language == "toml":
            Path("experiment.toml").write_text(text, "utf-8")
        elif self.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as said:
                self.python(example)
            kept["_said"] = said.getvalue()
        elif self.language == "sh":
            kept["_said"] = "".join(run(line) for line in text.splitlines() if re.match(r"(bigjko|python) ", line))
        elif (said := kept.pop("_said", None)) is not None and not printed(text, said):
            return f"the page says\n{text}\nand it was\n{said}"
        return None


def printed(wanted: str, said: str) -> bool:
    """Up to white space and dots."""
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(wanted.strip() + "\n", said.strip() + "\n", options)


def run(line: str) -> str:
    """One command, with the packages that this process runs."""
    program, *arguments = line.split()
    start = (
        [sys.executable, "-c", "from bigjko.app.cli import main; main()"] if program == "bigjko" else [sys.executable]
    )
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "COLUMNS": "100"}
    done = subprocess.run([*start, *arguments], env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{line} gave {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


SYBIL = Sybil(parsers=[Blocks(language) for language in ("python", "text", "toml", "sh")])


def has_code(page: str) -> bool:
    return re.search(r"^\s*```(python|sh|toml)$", (ROOT / page).read_text("utf-8"), flags=re.M) is not None


def marked(page: str) -> Any:
    return pytest.param(page, marks=[pytest.mark.slow] if page in SLOW else [])


@pytest.mark.parametrize("page", [marked(page) for page in PAGES if has_code(page)])
def test_blocks_of_a_page_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    document: Document = SYBIL.parse(ROOT / page)
    document.namespace["__name__"] = "page"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        for kind in WARNS.get(page, []):
            warnings.simplefilter("always", kind)
        for example in document.examples():
            example.evaluate()
    assert {w.category for w in caught} == set(WARNS.get(page, []))


def test_no_block_is_forgotten() -> None:
    languages: dict[str, Any] = {}
    for page in PAGES:
        for fence in re.findall(r"^\s*```(\S+)$", (ROOT / page).read_text("utf-8"), flags=re.M):
            languages.setdefault(fence, page)
    known = {"python", "text", "toml", "sh", "{toctree}", "{eval-rst}", "{include}", "{literalinclude}"}
    assert set(languages) <= known, languages


def test_a_page_that_prints_something_else_is_caught(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    blocks = [("python", "print(1.25)"), ("text", "1.2..."), ("python", "print(2)"), ("text", "3")]
    page.write_text("\n\n".join(f"```{language}\n{code}\n```" for language, code in blocks))
    *right, wrong = SYBIL.parse(page).examples()
    for example in right:
        example.evaluate()
    with pytest.raises(SybilFailure, match="the page says"):
        wrong.evaluate()


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#here">1</a><a href="b.html#there">2</a><img src="c.png">')
    (tmp_path / "b.html").write_text('<p id="here"><a href="https://example.org">asks no network</a></p>')
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "links.py", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["a.html: b.html#there", "a.html: c.png"]
