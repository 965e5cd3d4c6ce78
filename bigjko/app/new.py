"""An experiment to begin with, as a TOML file that says what every key is; made from the sections themselves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from .config import Data, Experiment, JKOChoice, LossChoice, ParticlesChoice, Run, Time, TimeOfRun, known_way
from .sections import ConfigError, Section, toml
from .ways import WAYS, GridChoice, Start

_HEAD = """# An experiment of bigjko: JKO on a grid against gradient descent on particles, both from one start.
#
#     bigjko run {file} --out runs/first
#
# What stands behind a # is set when the # is taken away: "default" has the value that holds without, "optional" one
# that could be given.
"""
_RUN = """# A file may have several runs, each with a [[runs]] and tables of its own.
[[runs]]"""
_LINE = 120
_COLUMN = 34  # from which on comments stand, where they can


def write(file: Path, way: str) -> None:
    """Write the file, which must not exist.

    Raises:
        ConfigError: for an unknown way, and a file that exists or cannot be written.
    """
    try:
        content = text(way, file.name)
    except ValueError as unknown:
        raise ConfigError(str(unknown)) from None
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(content)
    except FileExistsError:
        raise ConfigError(f"received {file}, which exists, need a new file: choose another name") from None
    except OSError as refused:
        raise ConfigError(
            f"received {file}, which cannot be written ({refused.strerror}), need a file in a folder that exists: "
            "choose another"
        ) from None


def text(way: str, file: str = "experiment.toml") -> str:
    """The file for a way: what is needed is set, and all else is there as a comment.

    Args:
        way: one of WAYS.
        file: the name that its first lines use.
    """
    known = WAYS[known_way(way)]
    grid, start = known.first
    chosen = known.starts[start["kind"]]
    kinds = ", ".join(f"'{kind}'" for kind in known.starts)
    parts = [
        _HEAD.format(file=file),
        *_keys(Experiment),
        *_table("[data]", "one source: X and y, or name, or file"),
        *_keys(Data, _examples(Data, "X", "y")),
        *_table("[loss]"),
        *_keys(LossChoice, _examples(LossChoice, "name") | {"scale": "mean"}),
        *_table("[time]"),
        *_keys(Time, _examples(Time, "t_end", "save_at")),
        "",
        _RUN,
        *_keys(Run, {"name": way, "way": way}),
        *_table("# [runs.time]", "of this run alone, where it differs from [time]"),
        *_keys(TimeOfRun),
        *_table("[runs.grid]", f"given by {', or by '.join(map(_and, known.grids))}"),
        *_keys(GridChoice, grid, {key for keys in known.grids for key in keys}),
        *_table("[runs.start]", f"of one of the kinds {kinds}"),
        *_keys(Start, start, {"kind", *chosen.needed, *chosen.optional}),
    ]
    for kind, made in known.starts.items():
        if kind != start["kind"]:
            parts += _line(f"# kind = {toml(kind)}", f"instead, with {_and(made.needed)}")
            parts += _keys(Start, {}, {*made.needed, *made.optional} - set(start))
    parts += [
        *_table("[runs.jko]", "the steps on the grid"),
        *_keys(JKOChoice, _examples(JKOChoice, "tau")),
        *_table("[runs.particles]", "the steps of the neurons themselves"),
        *_keys(ParticlesChoice, _examples(ParticlesChoice, "method", "tau")),
    ]
    return "\n".join(parts) + "\n"


def _table(header: str, about: str = "") -> list[str]:
    return ["", *(_line(header, about) if about else [header])]


def _keys(section: type[Section], values: dict[str, Any] | None = None, only: set[str] | None = None) -> list[str]:
    """A line for every key of a section, or for some, that is no table: set to a value, or a comment."""
    lines, values = [], values or {}
    for name, field in section.model_fields.items():
        if (only is not None and name not in only) or (section, name) in _TABLES:
            continue
        meaning = ": ".join(filter(None, (field.title, field.description)))
        if name in values:
            lines += _line(f"{name} = {toml(values[name])}", meaning)
        elif field.default is None or field.default == []:
            lines += _line(f"# {name} = {toml(_example(field))}", f"optional; {meaning}")
        else:
            lines += _line(f"# {name} = {toml(field.default)}", f"default; {meaning}")
    return lines


def _line(key: str, meaning: str) -> list[str]:
    """The comment behind the key, or above it where both are long."""
    line = f"{key.ljust(_COLUMN)}# {meaning}" if len(key) < _COLUMN else f"{key}  # {meaning}"
    return [line] if len(line) <= _LINE else [f"# {meaning}:", key]


def _examples(section: type[Section], *names: str) -> dict[str, Any]:
    return {name: _example(section.model_fields[name]) for name in names}


def _example(field: FieldInfo) -> Any:
    assert field.examples, f"{field} needs examples"
    return field.examples[0]


def _and(words: Sequence[str]) -> str:
    return " and ".join(words)


# Keys that are tables of their own.
_TABLES = {(Experiment, name) for name in ("data", "loss", "time", "runs")} | {
    (Run, name) for name in ("time", "grid", "start", "jko", "particles")
}
