"""What is wrong in a file, in one sentence: where it stands, what was received, what is needed, what to do."""

import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

Section = type[BaseModel]


def sentence(error: ErrorDetails, root: Section) -> str:
    """One of pydantic's errors about a file of sections; the `description` of a field says what is needed there."""
    where, key, need, section = _place(error, root)
    if error["type"] == "value_error":
        return f"{where}: {error['ctx']['error']}"
    if error["type"] == "extra_forbidden":
        known = section.model_fields
        hint = meant(key, known) or _elsewhere(key, root) or ": leave it out"
        return f"{where}: received the unknown key {shown(key)}, need one of {', '.join(known)}{hint}"
    if error["type"] == "missing":
        return f"{where}: received no {key}, need {need}: add it"
    received = json.dumps(error["input"], ensure_ascii=False, default=str)
    return f"{where}: received {key} = {_short(received)}, need {need}: correct it"


def shown(value: object) -> str:
    """A value of a file as errors quote it."""
    return _short(repr(value))


def several(values: Sequence[object]) -> str:
    """Values of a file as errors list them."""
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return ", ".join(map(shown, values[:_SHOWN])) + more


def _short(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[:_LONG]} ..."


def meant(word: str, known: Iterable[str]) -> str:
    """The nearest known word, as a question; nothing where none is near."""
    short = [name for name in islice(known, _MANY) if len(name) <= _LONG]
    near = difflib.get_close_matches(word, short, n=1) if len(word) <= _LONG else []
    return f": did you mean {near[0]!r}?" if near else ""


def _place(error: ErrorDetails, root: Section) -> tuple[str, str, str, Section]:
    """The section an error stands in, in words; its key, what is needed there, and the section's model."""
    path: list[str] = []  # sections from the root down
    section, child = root, None  # child: the section that `key` names, where it names one
    row, key, need = "", "", ""
    for part in error["loc"]:
        if isinstance(part, int):
            if child is None:
                key += f"[{part}]"
            elif path:
                key += f" {part + 1}"  # of an array within a table
            else:
                row = f" {part + 1}"  # of an array of tables
        elif child is not None or not key:  # else the branch of a union, which nobody wrote
            if child is not None:
                section = child
                path.append(key)
            key = part
            field = section.model_fields.get(part)
            child, need = (_section(field.annotation), field.description or "") if field else (None, "")
    if child is not None and error["type"] == "value_error":  # of the section itself
        section = child
        path.append(key)
    if not path:
        where = "at the top level"
    elif not row:
        where = f"in [{'.'.join(path)}]"
    else:
        table = f"[[{path[0]}]]{row}"
        where = f"in {table}" if len(path) == 1 else f"in [{'.'.join(path)}] of {table}"
    return where, key, need, section


def _section(annotation: Any) -> Section | None:
    """The section in an annotation: itself, the items of a list, or one branch of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section(part))), None)


def _homes(section: Section, path: str) -> Iterator[tuple[str, Section]]:
    yield (f"in [{path}]" if path else "at the top level"), section
    for name, field in section.model_fields.items():
        child = _section(field.annotation)
        if child is not None:
            yield from _homes(child, f"{path}.{name}" if path else name)


def _elsewhere(key: str, root: Section) -> str:
    """Where a key would be known."""
    places = [place for place, section in _homes(root, "") if key in section.model_fields]
    return f": it belongs {' or '.join(places)}" if places else ""


_LONG = 60  # characters of a value that are quoted, and of a name that is compared with others
_SHOWN = 20  # values that are listed
_MANY = 1000  # names that are compared: more would take seconds
