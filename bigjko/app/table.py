"""The tidy table of a study: a row a comparison, written as it comes, read again by a study that goes on."""

import csv
import io
import math
from pathlib import Path
from typing import Any

from .sections import ConfigError

Row = dict[str, Any]

# What tells one row from another.
KEY = ("kind", "problem", "way", "grid", "tau", "reference", "m", "seed")
_TEXTS = ("kind", "problem", "way", "shape", "reference", "status")
_WHOLE = ("grid", "nodes", "m", "seed", "steps", "evaluations")
COLUMNS = (
    # jko; extrapolated, from tau and the one before; width: m neurons against JKO; limit: against GD on all nodes;
    # floor: JKO against that
    "kind",
    "problem",
    "way",
    "grid",  # which of the way's grids in the file, from 1: two may have one shape and h
    "shape",
    "nodes",
    "h",
    "tau",
    "epsilon",
    "reference",
    "m",
    "seed",
    "gap",  # sup over times and data of the output gap
    "gap_share",  # over max |y|
    "risk_gap",  # at T
    "transport",  # between the final measures, at `blur`
    "blur",
    "thinning",
    "exact",  # W2 between m neurons and as many drawn from the other measure
    "windows",  # sup over signs and windows of angle, over the reference's whole mass
    "reference_error",  # sup output gap between the reference at tau and at tau / 2
    "trusted",  # 1 where that is ten times smaller than the gap
    "boundary_mass",
    "width",
    "steps",
    "evaluations",
    "seconds",
    "status",
)


class Table:
    """Rows of `study.csv`, appended and flushed one by one; those that failed before are taken out, to be run again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        begun = path.exists() and path.stat().st_size > 0
        known = load(path) if begun else []
        self.rows = [row for row in known if row["status"] == "ok"]
        self._keys = {_key(row) for row in self.rows}
        if not begun or len(self.rows) < len(known):
            whole = path.with_suffix(".new")  # moved in whole: no row is lost to Ctrl-C
            with whole.open("w", encoding="utf-8", newline="") as file:
                table = csv.writer(file, lineterminator="\n")
                table.writerow(COLUMNS)
                table.writerows([_written(row[name]) for name in COLUMNS] for row in self.rows)
            whole.replace(path)

    def has(self, row: Row) -> bool:
        """Whether a row of that key is there."""
        return _key(row) in self._keys

    def add(self, row: Row) -> None:
        """Write a row; what it lacks stays empty."""
        whole = {name: row.get(name) for name in COLUMNS}
        assert not row.keys() - set(COLUMNS), row.keys()
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow([_written(value) for value in whole.values()])
        # As they will be read: rows of one grid must not differ in h because some were there before.
        self.rows.append({name: _read(name, _written(value)) for name, value in whole.items()})
        self._keys.add(_key(whole))


def load(path: Path) -> list[Row]:
    """The rows of a table; None where a cell is empty.

    Raises:
        ConfigError: for a table that is not as a study writes it, naming the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"received {path}, which is not UTF-8 text, need what a study wrote: {_START}") from None
    lines = csv.reader(io.StringIO(text, newline=""))
    if tuple(next(lines, ())) != COLUMNS:
        raise ConfigError(f"received {path} with other columns, need what this version's studies write: {_START}")
    rows = []
    try:
        for cells in lines:
            rows.append({name: _read(name, cell) for name, cell in zip(COLUMNS, cells, strict=True)})
        if not text.endswith("\n"):  # a number there may have lost its last digits
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"received {path}, whose line {lines.line_num} is broken, need {len(COLUMNS)} cells and an end: delete "
            "that line, and its row will be run again"
        ) from None
    return rows


_START = "keep it elsewhere, and choose a new folder with --out"


def _key(row: Row) -> tuple[str, ...]:
    return tuple(_written(row.get(name)) for name in KEY)


def _written(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def _read(name: str, cell: str) -> Any:
    if cell == "":
        return None
    if name in _TEXTS:
        return cell
    return int(cell) if name in _WHOLE else float(cell)
