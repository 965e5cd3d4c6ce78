"""A TOML file of sections: read, checked in one sentence, and written again."""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .complaint import sentence


class ConfigError(ValueError):
    """A file that cannot be run as it is written."""


class Section(BaseModel):
    """Keys of a section; every description says what is needed there, and errors quote it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Numbers = list[float]
Positive = Annotated[float, Field(gt=0)]
Whole = TypeVar("Whole", bound=Section)


def read(path: Path, kind: type[Whole]) -> Whole:
    """Read and check a file whose sections are those of `kind`.

    Raises:
        ConfigError: for a file that cannot be read, is no TOML, or does not say what `kind` needs.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"received {path}, which cannot be read ({reason}), need a TOML file: check it") from None
    try:
        raw = tomllib.loads(text)
        _refuse_long(raw)
    except (ValueError, RecursionError) as error:  # a plain ValueError for a number of thousands of digits
        raise ConfigError(f"received {path}, which is no TOML ({error}), need a TOML file: correct it there") from None
    for key, what, command in (("ways", "a study", "study"), ("runs", "an experiment", "run")):
        if key in raw and key not in kind.model_fields:
            raise ConfigError(f"received {path}, which is {what}, need another file here: bigjko {command} runs it")
    try:
        return kind.model_validate(raw, context={"folder": path.absolute().parent})
    except ValidationError as error:
        details = error.errors()
        # An unknown key is often why another is missing.
        first = next((d for d in details if d["type"] == "extra_forbidden"), details[0])
        raise ConfigError(f"{path}, {sentence(first, kind)}") from None


def _refuse_long(value: Any) -> None:
    """TOML's whole numbers have 64 bits, Python's any number of them."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _refuse_long(inner)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("a whole number has more than 64 bits")


def dump(whole: Section) -> str:
    """The file as TOML, every default written out; `read` reads it back."""
    raw = whole.model_dump(exclude_none=True)
    tables = {key: value for key, value in raw.items() if isinstance(value, dict)}
    arrays = {key: value for key, value in raw.items() if isinstance(value, list) and isinstance(value[0], dict)}
    lines = [f"{key} = {toml(value)}" for key, value in raw.items() if key not in tables | arrays]
    for key, table in tables.items():
        lines += ["", f"[{key}]", *(f"{k} = {toml(v)}" for k, v in table.items())]
    for key, array in arrays.items():
        for table in array:
            lines += ["", f"[[{key}]]", *(f"{k} = {toml(v)}" for k, v in table.items() if v != {})]
    return "\n".join(lines).lstrip() + "\n"


def toml(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # which TOML wants escaped, JSON not
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return repr(value)


def given(what: str, section: Section, choices: tuple[tuple[str, ...], ...], optional: tuple[str, ...]) -> None:
    """Raise unless the keys given in a section are one of the choices, whatever optional ones stand beside them."""
    found = {key for key, value in section if value is not None} - set(optional)
    if any(found == set(choice) for choice in choices):
        return
    spare = sorted(found - set(choices[0])) if found > set(choices[0]) else []
    raise ValueError(
        f"received a {what} with {_and(sorted(found)) or 'nothing'}, need {', or '.join(map(_and, choices))}: "
        f"{'leave out ' + _and(spare) if spare else 'give those'}"
    )


def _and(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)
