"""Data from CSV, NPZ and Parquet files: read by the names of columns, and refused in one sentence."""

import io
import json
import pickle
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from bigjko.app import config, study_config
from bigjko.app.cli import app
from bigjko.app.config import ConfigError, Data
from bigjko.app.files import read_file
from bigjko.app.prepare import data, points
from bigjko.app.sections import dump

from .test_app import HEAD, LIFTED, TINY
from .test_study import TINY as STUDY

X = np.array([[1.0, 2.0], [-0.5, 3.0], [0.25, -1.0]])
Y = np.array([5.0, -6.0, 7.0])
CSV = "a,price,b\n1.0,5,2\n-.5,-6,3e0\n0.25,7,-1\n"
FROM_FILE = 'file = "mine.csv"\ntarget = "price"'


def npz(folder: Path, save: Callable[..., None] = np.savez, **arrays: Any) -> Path:
    save(folder / "mine.npz", **arrays)
    return folder / "mine.npz"


def parquet(folder: Path, **columns: Any) -> Path:
    arrow, files = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files.write_table(arrow.table(columns), folder / "mine.parquet")
    return folder / "mine.parquet"


def text(folder: Path, content: str | bytes) -> Path:
    file = folder / "mine.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def made(folder: Path, make: Callable[[Path], None]) -> Path:
    make(folder / "a.csv")
    return folder / "a.csv"


def columns(folder: Path) -> Path:
    return parquet(folder, a=X[:, 0], price=Y.astype(np.int32), b=X[:, 1])


# ----------------------------------------------------------------------------------------------------------- is read

READ: dict[str, tuple[Callable[[Path], Path], str | None, Any]] = {
    "CSV": (lambda folder: text(folder, CSV), "price", None),
    "CSV from Windows": (
        lambda folder: text(folder, b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode()),
        "price",
        None,
    ),
    "CSV, quoted, with blanks": (
        lambda folder: text(folder, CSV.replace(",price", ', "price"').replace("2\n", ' "2"\n\n')),
        "price",
        ["a", "b"],
    ),
    "CSV with words elsewhere": (
        lambda folder: text(folder, "".join(f"{line},é\n" for line in CSV.splitlines())),
        "price",
        ["a", "b"],
    ),
    "NPZ": (lambda folder: npz(folder, X=X, y=Y), None, None),
    "NPZ by names": (lambda folder: npz(folder, inputs=X.T.copy().T, price=Y.astype(np.int16)), "price", "inputs"),
    "NPZ, compressed": (
        lambda folder: npz(folder, np.savez_compressed, X=X, y=Y),
        None,
        None,
    ),
    "Parquet": (columns, "price", None),
    "Parquet by names": (columns, "price", ["a", "b"]),
}


@pytest.mark.parametrize(("make", "target", "features"), READ.values(), ids=READ)
def test_what_was_written_is_read(
    make: Callable[[Path], Path], target: str | None, features: Any, tmp_path: Path
) -> None:
    read_X, read_y, names = read_file(str(make(tmp_path)), target, features)
    assert torch.equal(read_X, torch.from_numpy(X))
    assert torch.equal(read_y, torch.from_numpy(Y))
    assert len(names) == 2


def test_features_keep_the_order_they_are_named_in(tmp_path: Path) -> None:
    read_X, _, names = read_file(str(text(tmp_path, CSV)), "price", ["b", "a"])
    assert torch.equal(read_X, torch.from_numpy(X[:, ::-1].copy()))
    assert names == ["b", "a"]


# -------------------------------------------------------------------------------------------------------- is refused


class Trap:
    """Whoever opens the pickle runs this."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was opened",)


def objects(folder: Path) -> Path:
    trapped = np.empty(3, dtype=object)
    trapped[:] = [Trap()] * 3
    return npz(folder, X=trapped, y=Y)


def pickled(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "mine.npz", "w") as archive:
        archive.writestr("X.npy", pickle.dumps(Trap()))
    return folder / "mine.npz"


def declared(folder: Path, shape: str, compression: int = zipfile.ZIP_DEFLATED, *, honest: bool = False) -> Path:
    """An array that says it has a shape, and has three numbers."""
    content = io.BytesIO()
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    content.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + Y.tobytes())
    with zipfile.ZipFile(folder / "mine.npz", "w", compression) as archive:
        archive.writestr("X.npy", content.getvalue())
    if honest:  # the archive says so, too: its two entries of 4 bytes are where it keeps the size
        size, said = len(content.getvalue()), 10 + len(header) + 8 * 2**28
        whole = (folder / "mine.npz").read_bytes()
        (folder / "mine.npz").write_bytes(whole.replace(size.to_bytes(4, "little"), said.to_bytes(4, "little")))
    return folder / "mine.npz"


def unpacked(folder: Path, content: bytes, name: str = "mine.npz") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


REFUSED: dict[str, tuple[Callable[[Path], Path], str | None, Any, str]] = {
    "no file": (lambda folder: folder / "no.csv", "price", None, "cannot be read .No such file or directory.: correct"),
    "a folder": (lambda folder: made(folder, lambda file: file.mkdir()), "price", None, "folder or a device"),
    "a device": (
        lambda folder: made(folder, lambda file: file.symlink_to("/dev/zero")),
        "price",
        None,
        "device",
    ),
    "another kind": (lambda folder: folder / "a.xls", "price", None, "need a name that ends in .csv, .npz, .parquet"),
    "empty": (lambda folder: text(folder, ""), "price", None, "which is empty, need data"),
    "one header": (lambda folder: text(folder, "a,price\n"), "price", None, "received no rows, need one or more"),
    "no target": (lambda folder: text(folder, CSV), None, None, "received no target, need .*one of 'a', 'price', 'b'"),
    "no such target": (
        lambda folder: text(folder, CSV),
        "prise",
        None,
        "the column 'prise', need one of 'a', 'price', 'b': did you mean 'price'[?]",
    ),
    "no such feature": (lambda folder: text(folder, CSV), "price", ["a", "x"], "the column 'x', need one of"),
    "the target a feature": (lambda folder: text(folder, CSV), "price", ["a", "price"], "need every column once"),
    "a feature twice": (lambda folder: text(folder, CSV), "price", ["a", "a"], "need every column once"),
    "the target alone": (lambda folder: text(folder, "price\n1\n"), "price", None, "alone, need features beside it"),
    "names twice": (lambda folder: text(folder, "a,a,price\n1,2,3"), "price", None, "'a' as the name of several"),
    "no name": (lambda folder: text(folder, ",a,price\n0,2,3"), "price", None, "a column without a name, need one"),
    "a word": (
        lambda folder: text(folder, CSV.replace("-.5", "low")),
        "price",
        None,
        "received 'low' in the column 'a' on line 3, need finite numbers",
    ),
    "a decimal comma": (lambda folder: text(folder, CSV.replace("-.5", '"-,5"')), "price", None, "'-,5' in .* line 3"),
    "an underscore": (lambda folder: text(folder, CSV.replace("-.5", "1_0")), "price", None, "'1_0' in .* line 3"),
    "an infinity": (lambda folder: text(folder, CSV.replace("-.5", "inf")), "price", None, "'inf' in .* line 3"),
    "beyond doubles": (lambda folder: text(folder, CSV.replace("-.5", "1e999")), "price", None, "'1e999' in"),
    "a missing value": (
        lambda folder: text(folder, CSV.replace("-.5", "").replace("0.25", " NA")),
        "price",
        None,
        "received 2 missing values in the column 'a', the first on line 3",
    ),
    "a short row": (lambda folder: text(folder, CSV.replace(",3e0", "")), "price", None, "2 values on line 3, need 3"),
    "semicolons": (lambda folder: text(folder, CSV.replace(",", ";")), "price", None, "need commas between columns"),
    "Latin-1": (lambda folder: text(folder, b"a,price\xe9\n1,2\n"), "price", None, "the byte 0xe9 at 7, need UTF-8"),
    "UTF-16": (lambda folder: text(folder, CSV.encode("utf-16")), "price", None, "the byte 0xff at 0, need UTF-8"),
    "an open quote": (lambda folder: text(folder, CSV + '"'), "price", None, "no .csv file .*unexpected end of data"),
    "a huge field": (lambda folder: text(folder, CSV + "9" * 200_000), "price", None, "no .csv file .*field larger"),
    "no such array": (
        lambda folder: npz(folder, X=X, z=Y),
        None,
        None,
        "no array of the name 'y', need one of 'X', 'z'",
    ),
    "no archive": (lambda folder: unpacked(folder, b"\x00junk"), None, None, "no .npz file that can be read"),
    "a torn archive": (
        lambda folder: unpacked(folder, npz(folder, X=X, y=Y).read_bytes()[:300]),
        None,
        None,
        "no .npz file",
    ),
    "names of columns in NPZ": (lambda folder: npz(folder, X=X, y=Y), None, ["X"], "a list of features, need the name"),
    "a vector X": (lambda folder: npz(folder, X=Y, y=Y), None, None, r"X \(3,\) and y \(3,\), need \(n, d\)"),
    "a column y": (lambda folder: npz(folder, X=X, y=Y[:, None]), None, None, r"X \(3, 2\) and y \(3, 1\)"),
    "other lengths": (lambda folder: npz(folder, X=X, y=Y[:2]), None, None, r"X \(3, 2\) and y \(2,\)"),
    "no entries": (lambda folder: npz(folder, X=X[:0], y=Y[:0]), None, None, r"X \(0, 2\)"),
    "NaN": (
        lambda folder: npz(folder, X=X * np.nan, y=Y),
        None,
        None,
        r"6 NaN or infinite .* 'X', the first at \[0, 0\]",
    ),
    "objects": (objects, None, None, "'X' of type object, which only a pickle could hold, need plain numbers"),
    "a pickle": (pickled, None, None, "no .npz file"),
    "words": (lambda folder: npz(folder, X=X.astype(str), y=Y), None, None, "'X' of type <U32, need plain numbers"),
    "truths": (lambda folder: npz(folder, X=X > 0, y=Y), None, None, "'X' of type bool, need plain numbers"),
    "complex": (lambda folder: npz(folder, X=X + 0j, y=Y), None, None, "'X' of type complex128"),
    "long doubles": (
        lambda folder: npz(folder, X=X.astype(np.longdouble) * np.longdouble("1e4000"), y=Y),
        None,
        None,
        "NaN or infinite|no .npz",
    ),
    "a shape too large": (lambda folder: declared(folder, "(2**40,)"), None, None, "no .npz file|and other bytes"),
    "a shape of 8 TB": (lambda folder: declared(folder, f"({2**40},)"), None, None, "shape .*, and other bytes"),
    "a shape below 0": (lambda folder: declared(folder, "(-3, -1)"), None, None, "no .npz file"),
    "a deep header": (lambda folder: declared(folder, "(" * 400 + ")" * 400), None, None, "no .npz file"),
    "another compression": (
        lambda folder: declared(folder, "(3,)", zipfile.ZIP_LZMA),
        None,
        None,
        "another compression",
    ),
    "no Parquet": (lambda folder: unpacked(folder, b"PAR1junkPAR1", "a.parquet"), "price", None, "no .parquet file"),
    "no such column in Parquet": (columns, "prise", None, "the column 'prise', .*did you mean 'price'[?]"),
    "words in Parquet": (
        lambda folder: parquet(folder, a=["x", "y"], price=[1.0, 2.0]),
        "price",
        None,
        "values of type string in the column 'a', need numbers",
    ),
    "none in Parquet": (
        lambda folder: parquet(folder, a=[1, None, None], price=[1.0, 2.0, 3.0]),
        "price",
        None,
        "2 missing values in the column 'a', the first in row 2",
    ),
    "infinities in Parquet": (
        lambda folder: parquet(folder, a=[1.0, float("-inf")], price=[1.0, 2.0]),
        "price",
        None,
        "received -inf in the column 'a' in row 2",
    ),
}


@pytest.mark.parametrize(("make", "target", "features", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_data_is_refused(
    make: Callable[[Path], Path], target: str | None, features: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        read_file(str(make(tmp_path)), target, features)
    assert "\n" not in str(refused.value)


def test_what_would_not_fit_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 GiB that header and archive agree upon, in a file of 300 bytes; and a file that is larger than memory."""
    file = declared(tmp_path, f"({2**28},)", honest=True)
    monkeypatch.setattr("bigjko.app.files.available", lambda device: 2**30)
    with pytest.raises(ConfigError, match="received the array 'X', which takes 8 GiB, need at most the 1 GiB that are"):
        read_file(str(file), None, None)
    with (tmp_path / "mine.csv").open("wb") as sparse:
        sparse.truncate(2**30)
    with pytest.raises(ConfigError, match="mine.csv, which takes 4 GiB, need at most the 1 GiB"):
        read_file(str(tmp_path / "mine.csv"), "price", None)


def test_a_constant_column_is_named(tmp_path: Path) -> None:
    text(tmp_path, "a,b,price\n1,2,3\n1,3,4\n")
    choice = Data(file=str(tmp_path / "mine.csv"), target="price", standardise=True)
    with pytest.raises(ConfigError, match=r"in \[data\]: received constant values in 'a', need a spread"):
        points(choice, "float64", "cpu")


# ---------------------------------------------------------------------------------------------------- from a TOML file


def written(folder: Path, data: str) -> Path:
    file = folder / "experiment.toml"
    file.write_text(TINY.replace('name = "orthogonal"', data, 1), "utf-8")
    return file


def test_a_file_is_found_beside_the_experiment_and_known_by_its_bytes(tmp_path: Path) -> None:
    source = text(tmp_path, CSV)
    experiment = config.load(written(tmp_path, FROM_FILE + '\nfeatures = ["b", "a"]'))
    assert experiment.data.file == str(source)
    read_X, read_y = data(experiment)
    assert torch.equal(read_X, torch.from_numpy(X[:, ::-1].copy()))
    assert torch.equal(read_y, torch.from_numpy(Y))
    # The configuration as run is read from anywhere, and holds the file to its bytes.
    (tmp_path / "elsewhere").mkdir()
    left = tmp_path / "elsewhere" / "config.toml"
    left.write_text(dump(experiment), "utf-8")
    assert config.load(left) == experiment
    source.write_text(CSV.replace("5", "6"), "utf-8")
    with pytest.raises(ConfigError, match="whose bytes are not those of sha256 = '[0-9a-f]{64}', need the file"):
        data(config.load(left))
    with pytest.raises(ConfigError, match="whose bytes are not those"):  # changed since it was loaded
        data(experiment)


def test_names_survive_the_file_that_a_run_leaves(tmp_path: Path) -> None:
    odd = 'p "r\\i\x7f ce\t€'
    text(tmp_path, CSV.replace("price", '"' + odd.replace('"', '""') + '"'))
    choice = Data(file=str(tmp_path / "mine.csv"), target=odd)
    points(choice, "float64", "cpu")
    experiment = config.load(written(tmp_path, 'name = "five"')).model_copy(update={"data": choice})
    assert tomllib.loads(dump(experiment))["data"]["target"] == odd


def test_a_study_reads_files_too(tmp_path: Path) -> None:
    text(tmp_path, CSV)
    file = tmp_path / "study.toml"
    file.write_text(STUDY.replace('{ name = "orthogonal" }', '{ file = "mine.csv", target = "price" }'), "utf-8")
    study = study_config.load_study(file)
    assert points(study.problems[0].data, study.dtype, study.device)[0].shape == (3, 2)
    (tmp_path / "left.toml").write_text(dump(study), "utf-8")
    assert study_config.load_study(tmp_path / "left.toml") == study


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (FROM_FILE + '\nname = "five"', "received more than one of a data set's name, a file, and X or y"),
        (FROM_FILE + "\ny = [1.0]", "received more than one of"),
        ('name = "five"\ntarget = "price"', "received target, features or sha256 without a file"),
        ('target = "price"', "received target, features or sha256 without a file"),
        ('file = "no.csv"\ntarget = "price"', r"in \[data\]: received .*no.csv, which cannot be read \(No such file"),
        (
            'file = "mine.xlsx"',
            r"received the file 'mine.xlsx', need a name that ends in .csv, .npz, .parquet: convert",
        ),
        ('file = ""', "received file = '', need a path"),
        ('file = "a\\u0000.csv"', "need a path: correct it"),
        ("file = 3", r"in \[data\]: received file = 3, need the path of a .csv"),
        (FROM_FILE + "\nfeatures = []", r"received features = \[\], need names of columns"),
        (FROM_FILE + "\nfeatures = [1]", r"received features.* = \S+, need names of columns"),
        (FROM_FILE + '\nsha256 = "abc"', "whose bytes are not those of sha256 = 'abc'"),
        (FROM_FILE + "\ncomponents = 5", r"received components = 5 for data \(3, 2\), need 1 to 2"),
        ("X = [[1e200], [1.0]]\ny = [1.0, 2.0]\nstandardise = true", r"values up to 1e\+200, need at most 1e\+150"),
    ],
)
def test_data_of_a_file_is_checked(lines: str, message: str, tmp_path: Path) -> None:
    text(tmp_path, CSV)
    with pytest.raises(ConfigError, match=message) as refused:
        data(config.load(written(tmp_path, lines)))
    assert "\n" not in str(refused.value)


NAMES = [
    "..",
    ".",
    "../a",
    "/a",
    "a/b",
    "a\\\\b",
    ".hidden",
    "",
    "a.",
    "x" * 101,
    "CON",
    "nul.txt",
    "com1",
    "summary.json",
]


@pytest.mark.parametrize("name", [*NAMES, "a\\nb", "a\\u0000", "ä"])
def test_no_name_leads_out_of_the_output_folder(name: str, tmp_path: Path) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(TINY.replace('name = "lifted"', f'name = "{name}"', 1), "utf-8")
    with pytest.raises(ConfigError, match="received name = .*rename it"):
        config.load(file)


def test_names_that_some_disks_take_for_one_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text(HEAD + LIFTED + LIFTED.replace('"lifted"', '"Lifted"', 1), "utf-8")
    with pytest.raises(ConfigError, match="received runs named 'lifted', 'Lifted', need every name once"):
        config.load(file)


def test_a_run_writes_into_its_folder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text(tmp_path, CSV)
    file = written(tmp_path, FROM_FILE)
    before = {path.name for path in tmp_path.iterdir()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bigjko.app.run.compare", lambda jko, gd: __import__("bigjko").compare(jko, gd, max_points=50))
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app(), ["run", str(file), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert {path.name for path in tmp_path.iterdir()} == before | {"out"}
    left = tomllib.loads((tmp_path / "out" / "config.toml").read_text("utf-8"))["data"]
    assert left["file"] == str(tmp_path / "mine.csv")
    assert len(left["sha256"]) == 64
    assert json.loads((tmp_path / "out" / "summary.json").read_text("utf-8"))["runs"]
