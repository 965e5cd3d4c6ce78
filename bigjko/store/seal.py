"""Folders of a store that are whole or not there at all, and that tell when a bit of theirs has changed.

A sealed zarr group lists the SHA-256 of every file below it in its own attributes, and that of the rest of its
metadata. Sealing also waits until all of it is on the disk, so that a rename afterwards never shows half of it.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import threading
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_META = "zarr.json"
_SUMS, _SEAL = "sha256", "seal"


class StoreError(OSError):
    """A store that cannot be written, or that is no flow of this bigjko."""


class DamageError(ValueError):
    """A file that is not what was written."""


def seal(group: Path, parts: Iterable[str] = ("*",), **more: Any) -> None:
    """Write the sums of a group's files into its metadata, and all of it to the disk.

    Args:
        group: a folder with a zarr.json.
        parts: patterns of the files and folders below it that the seal covers.
        more: attributes to set at the same time.
    """
    files = sorted({file for part in parts for path in group.glob(part) for file in _files(path)} - {group / _META})
    content = json.loads((group / _META).read_text("utf-8"))
    attributes = content["attributes"]
    attributes.update(more)
    attributes[_SUMS] = {file.relative_to(group).as_posix(): _sum(file) for file in files}
    attributes.pop(_SEAL, None)
    attributes[_SEAL] = _own(content)
    new = group / f".{_META}.{uuid.uuid4().hex[:8]}"
    try:
        new.write_text(json.dumps(content, indent=2), "utf-8")
        for path in (new, *files, *{folder for file in files for folder in _up(file, group)}):
            _to_disk(path)
        new.rename(group / _META)
    finally:
        new.unlink(missing_ok=True)
    _to_disk(group)


def check(group: Path) -> None:
    """Raise DamageError unless a sealed group is as it was."""
    try:
        content = json.loads((group / _META).read_text("utf-8"))
        attributes = content["attributes"]
        found = attributes.pop(_SEAL)
        sums = dict(attributes[_SUMS])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as damage:
        raise DamageError(f"{group / _META} cannot be read: {type(damage).__name__}: {damage}") from damage
    if _own(content) != found:
        raise DamageError(f"{group / _META} is not what was written")
    for name, expected in sums.items():
        try:
            same = _sum(group / name) == expected
        except OSError as lost:
            raise DamageError(f"{group / name} cannot be read: {lost}") from lost
        if not same:
            raise DamageError(f"{group / name} is not what was written")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A new folder beside `path` that becomes it when the block ends well, and is gone when it does not."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        unfinished.rename(path)
        _to_disk(path.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what `whole` and `seal` leave in a folder when the process is killed; nobody may be writing there."""
    for left in folder.glob(".*.????????"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def undisturbed(*, ignore: int | None = None) -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block has ended, and are heeded then; all but one that is ignored."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    came: set[int] = set()

    def heed() -> None:
        for one in came - {ignore}:
            signal.raise_signal(one)

    with contextlib.ExitStack() as after:  # sets the second handler back even where a signal comes after the first
        after.callback(heed)
        for one in _SIGNALS:
            handler = signal.getsignal(one)
            if handler is not None:  # None is of another language, and could not be set back
                after.callback(signal.signal, one, handler)
                signal.signal(one, lambda number, _: came.add(number))
        yield


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def _up(file: Path, top: Path) -> list[Path]:
    return [folder for folder in file.parents if folder != top and top in folder.parents]


def _sum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _own(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
