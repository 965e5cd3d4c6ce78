"""Mutated files, given to the readers: out come data, or the one documented error in one line, and soon.

    python -m tests.fuzz --count 100000 --seed 0          # a table of outcomes; 1 where something else came out
    python -m tests.fuzz --seed 0 --first 4711 --count 1  # one input again: it is made by its number alone

Experiments and studies are read, their data prepared and, for one in three, everything built that a run would start
from; no flow is run. Where a file was changed in a way that tells what must come out of it, that is what must.
"""

import argparse
import copy
import datetime
import io
import json
import math
import random
import re
import resource
import shutil
import signal
import tempfile
import time
import tomllib
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from pydantic import ValidationError

from bigjko.app import config, study, study_config
from bigjko.app.config import ConfigError, Data
from bigjko.app.prepare import build, data, points

SECONDS = 2.0  # an input may take
_HANG = 20  # seconds until a reader that does not come back is interrupted
_FREE = 1 << 25  # bytes that grids are told are free: larger ones are refused before they are there
_BUILT = 3  # every how many files everything is built
_TOLD = 10_000
_ROOM = 6 << 30  # of address space, so that what allocates without looking is seen

Random = random.Random

# ------------------------------------------------------------------------------------------------------------- seeds

EXPERIMENT = """
weight_decay = 0.1
dtype = "float64"
device = "cpu"
data = { X = [[1.0, 0.5], [-1.0, 2.0], [0.0, 1.0]], y = [1, 0, -1], standardise = true, components = 2 }
loss = { name = "huber", scale = "mean", delta = 0.5 }
time = { t_end = 0.3, save_at = [0.1] }
"""
_JKO = "jko = { tau = 0.1, entropy = 'debiased', passes = 2, epsilon = 1.0, rtol = 1e-6, record = 2, scheme = 'first' }"
RUNS = [
    "way = 'lifted', grid = { nodes = 9, radius = 2.0 }, start = { kind = 'gaussian', mean = 0.0, std = 0.5 }",
    "way = 'lifted', grid = { shape = [7, 8, 9], low = [-2, -2, -1.5], high = [2, 2.0, 1.5] }, "
    "start = { kind = 'network', neurons = 5, seed = 1, std = [0.4, 0.5, 0.3], width = 2.0 }",
    "way = 'signed', grid = { nodes = 9, radius = 2.0 }, start = { kind = 'gaussian', mean = 0.0, std = 0.5 }",
    "way = 'split', grid = { nodes = 9, radius = 2.0 }, start = { kind = 'gaussian', mean = [0, 0], std = 0.5 }",
    "way = 'scales', grid = { nodes = 7, radius = 2 }, start = { kind = 'network', neurons = 5, seed = 1, std = 0.3 }",
    "way = 'polar-cone', grid = { nodes = 12, radius = 2.0 }, start = { kind = 'shell', mean = 1.0, std = 0.3 }",
    "way = 'polar-flat', grid = { nodes = 12, radius = 2.0 }, start = { kind = 'shell', mean = 1.0, std = 0.3 }",
    "way = 'projected', grid = { nodes = 24, kinks = true }, start = { kind = 'uniform', radius = 0.5 }",
    "way = 'projected', grid = { nodes = 24 }, start = { kind = 'network', neurons = 5, seed = 1, radius = 0.5 }",
    "way = 'unbalanced', grid = { nodes = 40 }, start = { kind = 'gaussian', std = 0.5 }",
]
METHODS = [
    "{ method = 'gd', tau = 0.05, drop = 1e-9, record = 2 }",
    "{ method = 'flow', tau = 0.1, rtol = 1e-5, atol = 1e-7 }",
    "{ method = 'implicit', tau = 0.1 }",
    "{ method = 'sliding', tau = 0.1 }",
]
CSV = "a,price,b\n1.0,5,2\n-.5,-6,3e0\n0.25,7,-1\n1,1,1\n"


def experiment(rng: Random) -> dict[str, Any]:
    runs = [
        f"{{ name = 'r{k}', {rng.choice(RUNS)}, {_JKO}, particles = {rng.choice(METHODS)} }}"
        for k in range(rng.choice([1, 1, 2]))
    ]
    tree = tomllib.loads(f"{EXPERIMENT}runs = [{', '.join(runs)}]")
    if rng.random() < 0.3:
        tree["data"] = {"file": "mine.csv", "target": "price", "features": ["a", "b"], "standardise": True}
    elif rng.random() < 0.3:
        tree["data"] = {"name": rng.choice(["five", "orthogonal", "twenty"]), "standardise_labels": True}
    return tree


def a_study(rng: Random) -> dict[str, Any]:
    whole = experiment(rng)
    problem = {key: whole[key] for key in ("data", "loss", "weight_decay")} | {"name": "p", "time": {"t_end": 0.3}}
    way = {key: whole["runs"][0][key] for key in ("name", "way", "start")}
    way |= {"grids": [whole["runs"][0]["grid"]], "taus": [0.1, 0.05], "problems": ["p"], "blur": 0.1}
    jko = {key: value for key, value in whole["runs"][0]["jko"].items() if key not in ("tau", "record")}
    reference = {key: value for key, value in whole["runs"][0]["particles"].items() if key != "record"}
    way |= {"jko": jko, "references": [reference | {"dynamics": "own"}]}
    way |= {"widths": {"m": [2, 4], "seeds": 2, "tau": 0.1, "blur": 0.1, "exact": 2}}
    return {"dtype": "float64", "device": "cpu", "problems": [problem], "ways": [way]}


# --------------------------------------------------------------------------------------------------------- mutations


def hostile(rng: Random) -> Any:
    deep: Any = 1.0
    for _ in range(rng.choice([3, 40, 120])):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return rng.choice(
        [
            *(0, -1, 1, 2, 3, 17, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**30, 10**400, 1 << 20_000),
            *(0.0, -0.0, math.nan, math.inf, -math.inf, 1e-320, 1e-30, 1e30, 1e308, -1e308, 0.1),
            *(
                True,
                False,
                "",
                " ",
                "mean",
                "cpu",
                "meta",
                "cuda",
                "cpu:7",
                "é\u202e\U0001f600",
                "\0",
                "a\nb",
                "../../etc",
            ),
            *(
                "/dev/zero",
                "mine.csv",
                "x" * 20_000,
                "nan",
                "1",
                [],
                {},
                [[]],
                [{}],
                [1, "a"],
                [1.0] * 2000,
                [None],
                deep,
            ),
            *(datetime.date(2020, 1, 1), datetime.time(1, 2), {"nodes": 9}, ["a"] * 50, [[1.0], [2.0, 3.0]]),
        ]
    )


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with every key or index in it."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from places(tree[key])


def mutated(tree: dict[str, Any], rng: Random) -> None:
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        spots = list(places(tree))
        if not spots:
            return
        where, key = rng.choice(spots)
        value, kind = where[key], rng.randrange(12)
        if kind == 0:
            del where[key]
        elif kind == 1:
            other, name = rng.choice(spots)
            where[key] = copy.deepcopy(other[name])
        elif kind == 2 and isinstance(where, dict):
            where[rng.choice([f"{key}s", f"{key}s", "file", "name", "X", "radius", "é", "", "x" * 300])] = value
        elif kind > 5 and type(value) in (int, float) and not abs(value) > 1e300:  # most of it is still valid
            near = [-value, value * 1000, value * 10**9, value + 1, value + 0.5, value * 1e-6, value / 3]
            where[key] = rng.choice([*near, 0, 1e-300, 1e300, [value]])
        elif kind > 5 and isinstance(where, list):
            where.insert(key, value)
        else:
            where[key] = hostile(rng)


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k, ensure_ascii=False)} = {toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, int) and abs(value) >= 1 << 10_000:
        return hex(value)
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else repr(value)


def scrambled(content: bytes, rng: Random) -> bytes:
    """Bytes changed, taken out, put in, repeated, or cut off."""
    raw = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(raw) + 1)
        end = min(len(raw), at + rng.choice([1, 1, 4, 40]))
        kind = rng.randrange(6)
        if kind == 0:
            raw[at:end] = rng.randbytes(end - at)
        elif kind == 1 and at < len(raw):
            raw[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del raw[at:end]
        elif kind == 3:
            raw[at:at] = rng.choice(
                [b"\0", b"\n", b'"', b"'", b"[", b"{", b"[" * 5000, b"=", b",", b"\xff\xfe", b"nan", b"1e999", b"\r"]
            )
        elif kind == 4:
            raw[at:at] = raw[at:end] * rng.choice([1, 3, 200])
        elif rng.random() < 0.3:
            del raw[at:]
    return bytes(raw)


# ------------------------------------------------------------------------------------------------------------ inputs
#
# Each writes a file, and returns what reads it and says how it went; what that raises is judged by `once`.

Reader = Callable[[], None]


def toml_experiment(rng: Random, folder: Path) -> Reader:
    file = _written(rng, folder, experiment(rng))
    every = rng.randrange(_BUILT) == 0

    def read() -> None:
        asked = config.load(file)
        left = folder / "left.toml"
        left.write_text(config.dump(asked), "utf-8")
        assert config.load(left) == asked, "what a run would leave says something else"
        known = data(asked)
        _sane(*known)
        if every:
            for run in asked.runs:
                build(asked, run, *known)

    return read


def toml_study(rng: Random, folder: Path) -> Reader:
    file = _written(rng, folder, a_study(rng))
    every = rng.randrange(_BUILT) == 0

    def read() -> None:
        asked = study_config.load_study(file)
        left = folder / "left.toml"
        left.write_text(config.dump(asked), "utf-8")
        assert study_config.load_study(left) == asked, "what a study would leave says something else"
        known = {p.name: points(p.data, asked.dtype, asked.device) for p in asked.problems}
        for X, y in known.values():
            _sane(X, y)
        if every:
            study._refuse_early(asked, known)

    return read


def _written(rng: Random, folder: Path, tree: dict[str, Any]) -> Path:
    (folder / "mine.csv").write_text(CSV, "utf-8")
    kind = rng.random()
    if kind < 0.8:
        mutated(tree, rng)
    content = "\n".join(f"{json.dumps(key)} = {toml(value)}" for key, value in tree.items()).encode()
    if kind > 0.7:
        content = scrambled(content, rng)
    (folder / "file.toml").write_bytes(content)
    return folder / "file.toml"


CELLS = [
    "",
    " ",
    "NA",
    "nan",
    "-inf",
    "1e999",
    "1_0",
    "0x10",
    "1,5",
    "1 5",
    "+1.5e-3",
    " 7",
    "٣",
    "é",
    '"',
    "\0",
    "1e-400",
    "True",
]
NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")


def csv_cells(rng: Random, folder: Path) -> Reader:
    """A table of cells, some of which are no numbers: known is whether it must be refused, and what must be read."""
    names = rng.sample(["a", "price", "b", "c d", "é", ""], rng.randint(2, 5))
    rows = [[repr(rng.gauss(0, 10 ** rng.randint(-3, 9))) for _ in names] for _ in range(rng.randint(1, 6))]
    for _ in range(rng.choice([0, 0, 1, 2])):
        rng.choice(rows)[rng.randrange(len(names))] = rng.choice(CELLS)
    target, *others = names
    wanted = others if rng.random() < 0.5 else rng.sample(others, rng.randint(1, len(others)))
    order = rng.sample(range(len(names)), len(names))
    quoted = [
        [f'"{cell}"'.replace('"""', '""""') if set(cell) & set(',"') else cell for cell in row]
        for row in [names, *rows]
    ]
    end = rng.choice(["\n", "\r\n"])
    text = end.join(",".join(row[k] for k in order) for row in quoted) + end
    (folder / "mine.csv").write_text(text, "utf-8", newline="")
    choice: dict[str, Any] = {"file": str(folder / "mine.csv"), "target": target}
    if wanted is not others or rng.random() < 0.5:
        choice |= {"features": wanted}
    else:
        wanted = [names[k] for k in order if k]
    cells = [[row[names.index(name)] for name in [*wanted, target]] for row in rows]
    good = "" not in wanted and all(NUMBER.fullmatch(c) and math.isfinite(float(c)) for row in cells for c in row)

    def read() -> None:
        try:
            X, y = points(Data.model_validate(choice), "float64", "cpu")
        except ConfigError:
            assert not good, "a good file was refused"
            raise
        assert good, "a bad file was read"
        known = torch.tensor([[float(c) for c in row] for row in cells], dtype=torch.float64)
        assert torch.equal(torch.cat([X, y[:, None]], 1), known), "other numbers were read"

    return read


def csv_bytes(rng: Random, folder: Path) -> Reader:
    content = (
        CSV + CSV[10:] * rng.choice([0, 0, 50])
        if rng.random() < 0.9
        else rng.randbytes(rng.choice([1, 10, 1000])).decode("latin-1")
    )
    (folder / "mine.csv").write_bytes(
        scrambled(content.encode(rng.choice(["utf-8"] * 8 + ["utf-16", "latin-1"]), "replace"), rng)
    )
    return _read(
        rng,
        str(folder / "mine.csv"),
        rng.choice(["price", "price", "price", "b", "x" * 1000]),
        [None, ["a"], ["b", "a"]],
    )


def npz_arrays(rng: Random, folder: Path) -> Reader:
    """Arrays of any kind: known is whether they must be refused, and what must be read."""
    shapes = [(3, 2), (3, 2), (3, 2), (3, 1), (0, 2), (3, 0), (3,), (), (2, 2), (1, 3, 2)]
    kinds = ["f8", "f8", "f4", "i8", "u1", "f2", ">f8", "c16", "U3", "S3", "?", "M8[s]", "V4", "O", "g", "i4,f8"]
    arrays = {}
    for name, allowed in (("X", shapes), ("y", [(3,), (3,), (3,), (2,), (3, 1), (), (0,)])):
        values = np.asarray(
            np.random.Generator(np.random.PCG64(rng.randrange(1 << 30))).integers(0, 9, rng.choice(allowed))
        )
        arrays[name] = np.asfortranarray(values.astype(rng.choice(kinds) if rng.random() < 0.4 else "f8"))
        if rng.random() < 0.1 and arrays[name].dtype.kind == "f" and arrays[name].size:
            arrays[name].flat[0] = rng.choice([np.nan, np.inf])
    save: Any = rng.choice([np.savez, np.savez_compressed])
    save(folder / "mine.npz", **arrays)
    X, y = arrays["X"], arrays["y"]
    good = X.ndim == 2 and y.ndim == 1 and len(X) == len(y) and X.size > 0
    good &= all(a.dtype.kind in "iuf" and bool(np.isfinite(a).all()) for a in arrays.values())

    def read() -> None:
        try:
            read_X, read_y = points(Data(file=str(folder / "mine.npz")), "float64", "cpu")
        except ConfigError:
            assert not good, "a good file was refused"
            raise
        assert good, "a bad file was read"
        assert np.array_equal(read_X.numpy(), X.astype("f8")), "other numbers were read"
        assert np.array_equal(read_y.numpy(), y.astype("f8")), "other numbers were read"

    return read


def npz_bytes(rng: Random, folder: Path) -> Reader:
    """An archive changed: what is read all the same is what was in it, for its checks say so."""
    X, y = np.arange(6.0).reshape(3, 2), np.arange(3.0)
    content = io.BytesIO()
    (np.savez if rng.random() < 0.5 else np.savez_compressed)(content, X=X, y=y)
    (folder / "mine.npz").write_bytes(scrambled(content.getvalue(), rng))

    def read() -> None:
        read_X, read_y = points(Data(file=str(folder / "mine.npz")), "float64", "cpu")
        assert np.array_equal(read_X.numpy(), X), "other numbers were read"
        assert np.array_equal(read_y.numpy(), y), "other numbers were read"

    return read


SHAPES = ["(3, 2)", "(3,)", "(-1,)", "(10**9, 10**9)", f"({10**30},)", "(True, 2)", "'a'", "[3]", "(3.0,)", "(2, 3)"]
DESCR = ["'<i8'", "'>f8'", "'|O'", "'<f80'", "[('a', '<f8')]", "'<U999999999'", "''", "None", "'<f8', 3", "{}"]
ORDERS = ["True", "1", "None"]
VERSIONS = [(2, 0), (3, 0), (9, 9), (0, 0)]


def npz_headers(rng: Random, folder: Path) -> Reader:
    """A sound archive of arrays whose own headers were changed."""

    def one(right: Any, others: list[Any]) -> Any:
        return right if rng.random() < 0.8 else rng.choice(others)

    with zipfile.ZipFile(folder / "mine.npz", "w") as archive:
        for name, values in (("X", np.arange(6.0).reshape(3, 2)), ("y", np.arange(3.0))):
            shape, descr, order = one(str(values.shape), SHAPES), one("'<f8'", DESCR), one("False", ORDERS)
            header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
            version = one((1, 0), VERSIONS)
            start = b"\x93NUMPY" + bytes(version) + len(header).to_bytes(2 if version[0] == 1 else 4, "little") + header
            if rng.random() < 0.2:
                start = scrambled(start, rng)
            archive.writestr(f"{name}.npy", start + values.tobytes())
    return _read(rng, str(folder / "mine.npz"), rng.choice([None, "y"]), [None, "X"])


def parquet_bytes(rng: Random, folder: Path) -> Reader:
    import pyarrow
    import pyarrow.parquet

    content = io.BytesIO()
    columns = {"a": [1.0, -0.5, 0.25], "price": [5, -6, 7], "b": [2.0, 3.0, None if rng.random() < 0.2 else 1.0]}
    pyarrow.parquet.write_table(pyarrow.table(columns), content)
    (folder / "mine.parquet").write_bytes(scrambled(content.getvalue(), rng))
    return _read(rng, str(folder / "mine.parquet"), "price", [None, ["a"], ["b", "a"]])


def _read(rng: Random, file: str, target: str | None, features: list[Any]) -> Reader:
    choice = {"file": file, "target": target, "features": rng.choice(features)}
    choice |= {"components": rng.choice([None, None, 1, 2, 10]), "standardise": rng.random() < 0.3}

    def read() -> None:
        _sane(*points(Data.model_validate(choice | {"standardise_labels": rng.random() < 0.3}), "float64", "cpu"))

    return read


def _sane(X: torch.Tensor, y: torch.Tensor) -> None:
    assert X.ndim == 2, "X has no rows and columns"
    assert y.shape == X.shape[:1], "labels and rows differ"
    assert X.numel(), "no data came out"
    if X.dtype == torch.float64:  # float32 may overflow, which the risk refuses
        assert bool(X.isfinite().all() & y.isfinite().all()), "values are not finite"


INPUTS: dict[str, tuple[float, Callable[[Random, Path], Reader]]] = {  # with their shares
    "TOML, an experiment": (0.3, toml_experiment),
    "TOML, a study": (0.2, toml_study),
    "CSV, cells": (0.15, csv_cells),
    "CSV, bytes": (0.1, csv_bytes),
    "NPZ, arrays": (0.08, npz_arrays),
    "NPZ, bytes": (0.08, npz_bytes),
    "NPZ, headers": (0.06, npz_headers),
    "Parquet, bytes": (0.03, parquet_bytes),
}


# ----------------------------------------------------------------------------------------------------------- judging


class Hang(BaseException):
    """A reader that does not come back."""


@contextmanager
def _patience() -> Iterator[None]:
    """Seconds of this process' own, since others may hold the cores; and of the clock, since a wait takes none."""

    def ring(*_: object) -> None:
        raise Hang

    before = [signal.signal(kind, ring) for kind in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, _HANG)
    signal.setitimer(signal.ITIMER_REAL, 20 * _HANG)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for kind, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(kind, handler)


def once(seed: int, number: int, folder: Path, kind: str | None = None) -> tuple[str, str, str]:
    """The kind of an input, 'read', 'refused' or 'wrong', and what was wrong."""
    rng = Random(f"{seed} {number}")
    drawn = rng.choices(list(INPUTS), [share for share, _ in INPUTS.values()])[0]
    kind = kind or drawn
    try:
        read = INPUTS[kind][1](rng, folder)
    except Exception as error:  # noqa: BLE001 - of the fuzzer itself, whose other inputs are worth having
        return kind, "wrong", f"not made: {type(error).__name__}: {error}"
    for _ in range(2):  # what is slow once may have been imported or compiled
        began = time.process_time()
        outcome, wrong = _judged(read, kind)
        seconds = time.process_time() - began
        if seconds <= SECONDS:
            break
        wrong = wrong or f"it takes {seconds:.1f} s"
    return kind, "wrong" if wrong else outcome, wrong


def _judged(read: Reader, kind: str) -> tuple[str, str]:
    try:
        with _patience():
            read()
    except KeyboardInterrupt:
        raise
    except Hang:
        return "", "it hangs"
    except ValidationError as error:  # by Data without a TOML file: pydantic's own, which quotes ours
        return "refused", f"ValidationError: {error}" if kind.startswith("TOML") else ""
    except ConfigError as error:
        said = str(error)
        fine = "\n" not in said and len(said) < 4000
        return "refused", "" if fine else f"a message of {len(said)} characters: {said[:100]}"
    except BaseException as error:  # noqa: BLE001 - whatever else comes out is what is looked for
        return "", f"{type(error).__name__}: {error}"
    return "read", ""


def fuzz(
    count: int, seed: int, tell: Callable[[str], None], first: int = 0, kind: str | None = None
) -> Counter[tuple[str, str]]:
    """How many inputs of every kind had which outcome; what was wrong is told."""
    found: Counter[tuple[str, str]] = Counter()
    with (
        tempfile.TemporaryDirectory() as name,
        warnings.catch_warnings(),
        mock.patch("bigjko.memory.available", return_value=_FREE),
        mock.patch("bigjko.app.ways.available", return_value=_FREE),
        suppress(KeyboardInterrupt),  # what has been found until then is told
    ):
        warnings.simplefilter("ignore")
        _warm()
        for number in range(first, first + count):
            folder = Path(name) / "inputs"
            folder.mkdir()
            what, outcome, wrong = once(seed, number, folder, kind)
            shutil.rmtree(folder)
            found[what, outcome] += 1
            if wrong:
                tell(f"{number}: {what}: {wrong[:300]}")
            if (number + 1) % _TOLD == 0:
                print(f"{number + 1} at {time.process_time():.0f} s", flush=True)
    return found


def _warm() -> None:
    """Import and compile what the first input would be charged with."""
    tree = tomllib.loads(EXPERIMENT)
    for k, run in enumerate(RUNS):
        tree["runs"] = [tomllib.loads(f"run = {{ name = 'r{k}', {run}, {_JKO}, particles = {METHODS[k % 4]} }}")["run"]]
        asked = config.Experiment.model_validate(tree)
        with suppress(ConfigError):  # not every method is for every way
            build(asked, asked.runs[0], *data(asked))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first input")
    parser.add_argument("--kind", choices=INPUTS, help="that kind of input alone")
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (_ROOM, _ROOM))
    torch.set_num_threads(1)
    began = time.perf_counter()
    found = fuzz(asked.count, asked.seed, lambda line: print(line, flush=True), asked.first, asked.kind)
    print(f"{'':20} {'inputs':>8} {'read':>8} {'refused':>8} {'wrong':>8}")
    for kind in [*INPUTS, "all"]:
        counts = [
            sum(n for (k, o), n in found.items() if kind in (k, "all") and o == one)
            for one in ("read", "refused", "wrong")
        ]
        print(f"{kind:20} {sum(counts):8} {counts[0]:8} {counts[1]:8} {counts[2]:8}")
    print(f"{time.perf_counter() - began:.0f} s")
    return int(any(outcome == "wrong" for _, outcome in found))


if __name__ == "__main__":
    raise SystemExit(main())
