"""The command `bigjko`."""

import contextlib
import json
import shlex
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from .. import __version__
from ..optional import need

if TYPE_CHECKING:
    import typer

_BAD_INPUT = 2


# What `bigjko --help` ends with, and the help of `bigjko study`; \b keeps the lines of a paragraph as they are.
_FIRST = """\b
To begin with:
  bigjko new mine.toml             an experiment that runs, every key explained
  bigjko run mine.toml --out mine  a table, a verdict, figures and a page, mine/report.html
  bigjko compare mine              the same numbers again, from the flows that were kept

\b
`bigjko COMMAND --help` says more of each; README.md and docs/ say what JKO is and when to trust it.
"""

_STUDY = """Run ways on grids x taus x widths; fit orders.

Each against its references; leaves a table, the orders and a figure.

A file has tables [[problems]] (name, data, loss, time, weight_decay) and [[ways]] (name, way, problems, grids,
start, taus, jko, references, blur, widths); leave one out, and the message says what it needs. A way is one of
lifted, signed, split, pairs, scales, polar-cone, polar-flat, projected (from balanced starts) and unbalanced
(projected, from any start). This file runs:

\b
[[problems]]
name = "mine"
data = { X = [[1.0, 0.2], [-0.4, 0.9], [0.3, -0.8]], y = [0.8, -0.4, 0.5] }
loss = { name = "squared", scale = "mean" }
time = { t_end = 0.4 }

\b
[[ways]]
name = "circle"
way = "projected"
grids = [{ nodes = 128 }, { nodes = 256 }]
start = { kind = "uniform", radius = 0.7 }
taus = [0.1, 0.05, 0.025]
references = [{ method = "gd", tau = 0.005 }]

It leaves study.csv (a row a comparison: gap is the largest difference of outputs over times and data, in units
of y, gap_share that over max |y|, trusted = 1 where the reference's own error is ten times smaller), orders.csv
(slopes of the gap in tau, h and m, with the points each was fitted on), study.png, study.toml and
versions.json. Started again on its folder it runs what is not there, and once more what failed.
"""


def main() -> None:
    """Run the command; without the libraries of the extra, say which are missing."""
    try:
        commands = app()
    except ImportError as missing:
        sys.stderr.write(f"error: {missing}\n")
        raise SystemExit(_BAD_INPUT) from None
    commands()


def app() -> "typer.Typer":
    """The commands, built when they are called: the core installs without what they need.

    Raises:
        ImportError: naming the command that installs what is missing.
    """
    for library in ("typer", "rich", "pydantic", "zarr", "xarray", "matplotlib", "plotly", "jinja2", "scipy"):
        need(library, "the bigjko command")
    import typer
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..show.progress import JsonLog
    from ..store import StoreError
    from .config import ConfigError, load
    from .info import facts, lines
    from .new import write
    from .prepare import out_of_memory
    from .run import INTERRUPTED, Stopped, execute, reload, terminated
    from .study import execute_study
    from .study_config import load_study
    from .ways import WAYS

    LogFile = Annotated[  # noqa: N806 - a type
        str | None,
        typer.Option(
            "--json-log", metavar="FILE", help="Append a line of JSON a second: a file, or - for standard error."
        ),
    ]

    commands = typer.Typer(
        no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None, epilog=_FIRST
    )

    def fail(message: object, code: int = _BAD_INPUT) -> NoReturn:
        console = Console(stderr=True)
        if code == _BAD_INPUT:
            message = f"error: {message}"
        console.print(str(message), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(code)

    @contextlib.contextmanager
    def logged(file: str | None) -> Iterator[JsonLog | None]:
        """The log that --json-log asks for."""
        if file is None:
            yield None
            return
        try:
            log = JsonLog(file)
        except OSError as refused:
            fail(f"received --json-log {file}, which cannot be written ({refused.strerror}): choose another file")
        with log:
            yield log

    @commands.callback(invoke_without_command=True)
    def about(version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False) -> None:
        """Entropic JKO flows of two-layer networks on a grid, held against gradient descent."""
        if version:
            Console().print(f"bigjko {__version__}", highlight=False)
            raise typer.Exit

    @commands.command()
    def new(
        file: Annotated[Path, typer.Argument(help="The file to write; it must not exist.")] = Path("experiment.toml"),
        way: Annotated[
            str, typer.Option(autocompletion=lambda: list(WAYS), help=f"How a measure is used: {', '.join(WAYS)}.")
        ] = "lifted",
    ) -> None:
        """Write an experiment to begin with, every key explained."""
        try:
            write(file, way)
        except ConfigError as refused:
            fail(refused)
        Console().print(
            f"{file} is written. It runs as it is: bigjko run {shlex.quote(str(file))}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    @commands.command()
    def run(
        file: Annotated[Path, typer.Argument(help="The experiment, a TOML file.")],
        out: Annotated[Path | None, typer.Option(help="A new folder; runs/<file>-<time> by default.")] = None,
        device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; the file's by default.")] = None,
        resume: Annotated[bool, typer.Option("--resume", help="Go on in the folder --out where this stopped.")] = False,
        checkpoint: Annotated[float, typer.Option(min=0, help="Seconds between two checkpoints.")] = 60.0,
        json_log: LogFile = None,
    ) -> None:
        """Run JKO and gradient descent from one start.

        Says how far apart they are, and leaves a folder. Killed, stopped or interrupted at any moment, it goes on with
        --resume as if nothing had happened.
        """
        if resume and out is None:
            fail("received --resume without --out, need the folder that was begun: --out FOLDER")
        folder = Path("runs") / f"{file.stem}-{datetime.now():%Y%m%d-%H%M%S}" if out is None else out
        try:
            experiment = load(file)
            if device is not None:
                experiment = experiment.model_copy(update={"device": device})
            # Where the lines go to standard error, bars and notes are left to them.
            console = Console(stderr=True, quiet=json_log == "-")
            with terminated(), logged(json_log) as log:
                found = execute(experiment, folder, console, resume=resume, seconds=checkpoint, log=log)
        except (ConfigError, ImportError, StoreError) as refused:
            fail(refused)
        except OSError as refused:
            fail(f"received the output folder {folder}, which cannot be written ({refused}): choose another with --out")
        except Stopped as stopped:
            fail(stopped, stopped.code)
        except KeyboardInterrupt:
            kept = (
                f"the same command with --resume --out {folder} goes on" if folder.exists() else "nothing had been run"
            )
            fail(f"interrupted between two flows: {kept}", INTERRUPTED)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            fail(f"received grids that do not fit into memory ({error}): take fewer nodes, or dtype = 'float32'")
        _show(found)
        Console().print(f"All of it is in {folder}", markup=False, highlight=False, soft_wrap=True)

    @commands.command()
    def compare(
        folder: Annotated[Path, typer.Argument(help="What bigjko run left: of one run, or of several.")],
        report: Annotated[
            bool, typer.Option("--report", help="Make report.html and flows.png of every run anew.")
        ] = False,
    ) -> None:
        """Hold the flows of a folder against each other again.

        Nothing is run, and without --report nothing is written.
        """
        try:
            found, skipped = reload(folder, Console(stderr=True) if report else None)
        except (ConfigError, ImportError, OSError, ValueError) as refused:
            fail(refused)
        except KeyboardInterrupt:
            fail("interrupted: the flows are as they were", INTERRUPTED)
        for line in skipped:
            Console(stderr=True).print(f"skipped: {line}", style="yellow", markup=False, highlight=False)
        _show(found)

    @commands.command()
    def info(
        as_json: Annotated[
            bool, typer.Option("--json", help="For machines: sizes in bytes, times in seconds.")
        ] = False,
        check: Annotated[bool, typer.Option("--check", help="Compile and run one formula and one kernel.")] = False,
    ) -> None:
        """Say what is here, and what is in its way.

        Versions, devices and their free memory, compiler, KeOps, caches.
        """
        found = facts(check)
        if as_json:
            typer.echo(json.dumps(found, indent=2))
        else:
            table = Table(box=None, show_header=False)
            table.add_column(style="bold", no_wrap=True)
            table.add_column(overflow="fold")
            for name, how in lines(found):
                table.add_row(name, Text(how))
            Console().print(table)
        if not all(one["ok"] for one in found.get("checks", [])):
            raise typer.Exit(1)

    @commands.command(help=_STUDY)
    def study(
        file: Annotated[Path, typer.Argument(help="The study, a TOML file.")],
        out: Annotated[
            Path | None, typer.Option(help="A new folder, or one this study left; studies/<file> by default.")
        ] = None,
        device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; the file's by default.")] = None,
        json_log: LogFile = None,
    ) -> None:
        """See _STUDY."""
        folder = Path("studies") / file.stem if out is None else out
        try:
            asked = load_study(file)
            if device is not None:
                asked = asked.model_copy(update={"device": device})
            with terminated(), logged(json_log) as log:
                rows = execute_study(asked, folder, Console(stderr=True, quiet=json_log == "-"), log)
        except (ConfigError, ImportError) as refused:
            fail(refused)
        except OSError as refused:
            fail(f"received the output folder {folder}, which cannot be written ({refused}): choose another with --out")
        except Stopped as stopped:
            fail(stopped, stopped.code)
        except KeyboardInterrupt:
            fail(f"interrupted between two flows: the same command with --out {folder} goes on", INTERRUPTED)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            fail(f"received grids that do not fit into memory ({error}): take fewer nodes, or dtype = 'float32'")
        failed = sum(row["status"] != "ok" for row in rows)
        Console().print(
            f"{len(rows)} rows{f', {failed} of them failed' if failed else ''}: all of it is in {folder}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    return commands


def _show(found: dict[str, dict[str, Any]]) -> None:
    """The table and the verdict."""
    from rich.console import Console

    from .verdict import table, verdict

    console = Console()
    console.print(table(found))
    console.print(verdict(found), style="bold", markup=False, highlight=False)
