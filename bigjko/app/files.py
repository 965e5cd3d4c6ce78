"""X and y from a file of data by the names of its columns: CSV, NPZ, Parquet.

Nothing that is read is executed, no pickle is opened, and a size that a file declares is checked before it is taken.
"""

import contextlib
import csv
import hashlib
import io
import math
import zipfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..memory import available, gib
from ..optional import need
from .complaint import meant, several, shown
from .sections import ConfigError

Names = str | list[str] | None
Found = tuple[Any, Any, list[str]]  # X (n, d), y (n,), and what the columns of X are called


def read_file(
    path: str, target: str | None, features: Names, sha256: str | None = None
) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"], list[str]]:
    """The data of a file, in float64, and the names of the columns of X.

    Args:
        path: a .csv (UTF-8, commas, one header), .npz or .parquet file.
        target: the column of labels; in .npz the array y (n,), "y" by default.
        features: the columns of X, all others by default; in .npz the array X (n, d), "X" by default.
        sha256: of the bytes that are expected, where they must be those.

    Raises:
        ConfigError: for a file that cannot be read, has no such columns, or holds anything but finite numbers there.
        ImportError: for a .parquet file where pyarrow is missing.
    """
    kind = kind_of(path)
    content = _content(path)
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise ConfigError(
            f"received {path}, whose bytes are not those of sha256 = '{sha256}', need the file that the configuration "
            "was made with: restore it, or leave sha256 out"
        )
    if not content:
        raise ConfigError(f"received {path}, which is empty, need data in it: check the path")
    with _decoding(path, kind):
        X, y, names = _READERS[kind](content, target, features)
    return torch.from_numpy(X), torch.from_numpy(y), names


def kind_of(path: str) -> str:
    """The kind of a file, by the end of its name."""
    kind = Path(path).suffix.lower()
    if kind not in _READERS:
        raise ConfigError(
            f"received the file {shown(path)}, need a name that ends in {', '.join(_READERS)}: convert it"
        )
    return kind


def digest(path: str) -> str:
    """The SHA-256 of a file's bytes."""
    return hashlib.sha256(_content(path)).hexdigest()


def _content(path: str) -> bytes:
    try:
        place = Path(path)
        size = place.stat().st_size
        if not place.is_file():  # a pipe might never end
            raise ConfigError(f"received {path}, which is a folder or a device, need a file: correct the path")
        _fits(size * _ROOM, f"the file {path}, which takes")
        return place.read_bytes()
    except OSError as error:
        raise ConfigError(f"received {path}, which cannot be read ({error.strerror}): correct the path") from None


def _fits(size: int, what: str) -> None:
    free = available(torch.device("cpu"))
    if size > free:
        raise ConfigError(f"received {what} {gib(size)}, need at most the {gib(free)} that are free: take less of it")


@contextlib.contextmanager
def _decoding(path: str, kind: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as refused:
        raise ConfigError(f"{path}: {refused}") from None
    except ImportError:
        raise
    except Exception as broken:  # noqa: BLE001 - for broken bytes zipfile, zlib, numpy and arrow raise what they like
        reason = (str(broken).splitlines() or [type(broken).__name__])[0][:_LONG]
        raise ConfigError(
            f"received {path}, which is no {kind} file that can be read ({reason}): repair it"
        ) from broken


# ---------------------------------------------------------------------------------------------------------- columns


def _columns(names: Sequence[str], target: str | None, features: Names) -> list[str]:
    """The columns that are wanted: features, and the target last."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigError(
            f"received {several(twice)} as the name of several columns, need every name once: rename them"
        )
    if target is None:
        raise ConfigError(f"received no target, need the column of labels, one of {several(names)}: add target")
    if features is None:
        chosen = [name for name in names if name != target]
    else:
        chosen = [features] if isinstance(features, str) else features
    known = set(names)
    for name in (target, *chosen):
        if name not in known:
            raise ConfigError(
                f"received the column {shown(name)}, need one of {several(names)}{meant(name, names) or ': correct it'}"
            )
    if "" in chosen:
        raise ConfigError("received a column without a name, need one: name it, or list the features that are wanted")
    if target in chosen or len(set(chosen)) < len(chosen):
        raise ConfigError(
            f"received the features {several(chosen)} for the target {shown(target)}, need every column once: "
            "leave one out"
        )
    if not chosen:
        raise ConfigError(f"received the column {shown(target)} alone, need features beside it: add a column")
    return [*chosen, target]


def _divided(values: Any, names: list[str]) -> Found:
    """Rows of numbers whose last is the label."""
    if not len(values):
        raise ConfigError("received no rows, need one or more: add them")
    return np.ascontiguousarray(values[:, :-1]), values[:, -1].copy(), names[:-1]


def _missing(name: str, count: int, first: str) -> ConfigError:
    return ConfigError(
        f"received {count} missing values in the column {shown(name)}, the first {first}, need a number in every row: "
        "fill them in, or leave those rows or the column out"
    )


# -------------------------------------------------------------------------------------------------------------- CSV


def _csv(content: bytes, target: str | None, features: Names) -> Found:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"received the byte {content[error.start]:#04x} at {error.start}, need UTF-8 text: save it as that"
        ) from None
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    header = [name.strip() for name in next(rows, [])]
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        raise ConfigError(f"received the header {shown(header[0])}, need commas between columns: save it with those")
    wanted = _columns(header, target, features)
    place = {name: k for k, name in enumerate(header)}
    picked = [(name, place[name]) for name in wanted]
    values, missing, first = array("d"), Counter[str](), dict[str, str]()
    for row in rows:
        if not row:
            continue
        where = f"on line {rows.line_num}"
        if len(row) != len(header):
            raise ConfigError(f"received {len(row)} values {where}, need {len(header)}, one a column: complete it")
        for name, k in picked:
            value = _number(row[k], name, where)
            values.append(value)
            if math.isnan(value):
                missing[name] += 1
                first.setdefault(name, where)
    for name, count in missing.items():
        raise _missing(name, count, first[name])
    return _divided(np.array(values).reshape(-1, len(wanted)), wanted)


def _number(cell: str, name: str, where: str) -> float:
    """NaN where a value is missing."""
    try:
        value = float(cell)
        if math.isfinite(value) and "_" not in cell:  # 1_000 is a number to Python, and to nobody else
            return value
    except ValueError:
        value = math.nan if cell.strip().lower() in _ABSENT else math.inf
    if math.isnan(value):
        return value
    raise ConfigError(
        f"received {shown(cell)} in the column {shown(name)} {where}, need finite numbers: correct it, or leave the "
        "column out of features"
    )


_ABSENT = ("", "na", "n/a", "nan", "null", "none")


# ---------------------------------------------------------------------------------------------------------- Parquet


def _parquet(content: bytes, target: str | None, features: Names) -> Found:
    arrow, parquet = (need(module, "data in Parquet") for module in ("pyarrow", "pyarrow.parquet"))
    file = parquet.ParquetFile(arrow.BufferReader(content), page_checksum_verification=True)
    schema, metadata = file.schema_arrow, file.metadata
    wanted = _columns(schema.names, target, features)
    for name in wanted:
        kind = schema.field(name).type
        if not (arrow.types.is_integer(kind) or arrow.types.is_floating(kind)):
            raise ConfigError(
                f"received values of type {kind} in the column {shown(name)}, need numbers: convert them, or leave "
                "the column out of features"
            )
    # Of groups, not of their columns: on a broken column arrow ends the process.
    declared = sum(metadata.row_group(k).total_byte_size for k in range(metadata.num_row_groups))
    _fits(max(declared, 8 * metadata.num_rows * len(wanted)) * _ROOM, "rows that take")
    table = file.read(columns=wanted, use_threads=False)
    values = np.empty((table.num_rows, len(wanted)))
    for k, name in enumerate(wanted):
        column = table.column(name)
        absent = column.is_null(nan_is_null=True).to_numpy()
        if absent.any():
            raise _missing(name, int(absent.sum()), f"in row {absent.argmax() + 1}")
        values[:, k] = column.to_numpy()
        if not np.isfinite(values[:, k]).all():
            row = int(np.argmin(np.isfinite(values[:, k])))
            raise ConfigError(
                f"received {values[row, k]} in the column {shown(name)} in row {row + 1}, need finite numbers: "
                "correct it, or leave the column out of features"
            )
    return _divided(values, wanted)


# -------------------------------------------------------------------------------------------------------------- NPZ


def _npz(content: bytes, target: str | None, features: Names) -> Found:
    if isinstance(features, list):
        raise ConfigError("received a list of features, need the name of one array (n, d) in .npz: name it")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        X, y = (_array(archive, "X" if features is None else features), _array(archive, target or "y"))
    if X.ndim != 2 or y.ndim != 1 or len(X) != len(y) or not X.size:
        raise ConfigError(
            f"received X {X.shape} and y {y.shape}, need (n, d) and (n,) with n >= 1 and d >= 1: reshape them"
        )
    return X, y, [f"column {k + 1}" for k in range(X.shape[1])]


def _array(archive: zipfile.ZipFile, name: str) -> Any:
    """One array, after what its header declares has been found true, plain and not too large."""
    members = [member.removesuffix(".npy") for member in archive.namelist()]
    if members.count(name) != 1:
        found = "no array" if name not in members else "several arrays"
        raise ConfigError(
            f"received {found} of the name {shown(name)}, need one of {several(members)}"
            f"{meant(name, members) or ': name another with target or features'}"
        )
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type not in (
        zipfile.ZIP_STORED,
        zipfile.ZIP_DEFLATED,
    ):  # others inflate beyond what they declare
        raise ConfigError("received an archive of another compression than numpy's, need numpy.savez: save it again")
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise ConfigError(f"received the array {shown(name)} in format {version}, need a plain one: save it again")
        shape, _, dtype = _HEADERS[version](stream)
        size = math.prod(shape) * dtype.itemsize
        if dtype.kind not in "iuf":
            pickled = ", which only a pickle could hold" if dtype.hasobject else ""
            raise ConfigError(
                f"received the array {shown(name)} of type {dtype}{pickled}, need plain numbers: convert it"
            )
        if stream.tell() + size != member.file_size:
            raise ConfigError(
                f"received the array {shown(name)} of shape {shape}, and other bytes, need both: save it again"
            )
    _fits(size * _ROOM, f"the array {shown(name)}, which takes")
    with archive.open(member) as stream:
        values = np.lib.format.read_array(stream, allow_pickle=False)
    with np.errstate(over="ignore"):  # long doubles
        values = values.astype(np.float64, order="C")
    wrong = ~np.isfinite(values)
    if wrong.any():
        first = np.unravel_index(int(wrong.argmax()), wrong.shape)
        raise ConfigError(
            f"received {int(wrong.sum())} NaN or infinite entries in the array {shown(name)}, the first at "
            f"[{', '.join(map(str, first))}], need finite numbers: clean them"
        )
    return values


_HEADERS: dict[Any, Callable[..., Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_READERS: dict[str, Callable[[bytes, str | None, Names], Found]] = {".csv": _csv, ".npz": _npz, ".parquet": _parquet}
_ROOM = 4  # copies of the data that reading it takes at most
_LONG = 100  # characters of what a library says
