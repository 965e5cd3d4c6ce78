"""An experiment as a TOML file: what may stand in it, and one clear sentence for what may not.

dtype = "float64"            # at the top level, with device and weight_decay
[data]                       # name, or file and target, or X and y
[loss]                       # name, scale
[time]                       # t_end, save_at
[[runs]]                     # one or several: way, grid, start, jko, particles, and a time of their own
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from .complaint import meant, several, shown
from .data import DATASETS
from .files import digest, kind_of
from .sections import ConfigError as ConfigError
from .sections import Numbers, Positive, Section, read
from .sections import dump as dump
from .ways import WAYS, GridChoice, Start


def _name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name) or len(name) > _LONGEST:
        raise ValueError(
            f"received name = {shown(name)}, need at most {_LONGEST} letters, digits, '-', '_' and '.': rename it"
        )
    if name.partition(".")[0].upper() in _RESERVED or name.endswith((".", ".json")):
        raise ValueError(f"received name = {name!r}, which cannot be a folder's everywhere, need another: rename it")
    return name


def known_way(name: str) -> str:
    """The name, or ValueError where no way has it."""
    if name not in WAYS:
        raise ValueError(
            f"received the unknown way {shown(name)}, need one of {', '.join(WAYS)}"
            f"{meant(name, WAYS) or ': correct it'}"
        )
    return name


_LONGEST = 100
_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{k}" for port in ("COM", "LPT") for k in range(10))}  # on Windows

Name = Annotated[str, AfterValidator(_name)]
WayName = Annotated[str, AfterValidator(known_way)]


class Data(Section):
    """A known data set, a file of data, or rows and labels in the file itself."""

    name: str | None = Field(
        default=None, examples=["diabetes"], description=f"one of the data sets {', '.join(sorted(DATASETS))}"
    )
    X: list[Numbers] | None = Field(
        default=None,
        examples=[[[1.0, 0.2], [-0.4, 0.9], [0.3, -0.8]]],
        description="rows of finite numbers, one a data point",
    )
    y: Numbers | None = Field(
        default=None, title="labels", examples=[[0.8, -0.4, 0.5]], description="finite numbers, one a data point"
    )
    file: str | None = Field(
        default=None, examples=["mine.csv"], description="the path of a .csv, .npz or .parquet file"
    )
    target: str | None = Field(
        default=None,
        examples=["price"],
        description="the name of the column of labels, or of the array in .npz",
    )
    features: str | Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None,
        examples=[["size", "age"]],
        description="names of columns, one or more, or the name of the array in .npz",
    )
    sha256: str | None = Field(
        default=None,
        examples=["9f86d081..."],
        validate_default=True,
        description="that of the file's bytes; where it is given they must agree",
    )
    components: int | None = Field(
        default=None, ge=1, examples=[2], description="a whole number of principal components, at least 1"
    )
    standardise: bool = Field(default=False, description="true or false: columns to mean 0 and standard deviation 1")
    standardise_labels: bool = Field(
        default=False, description="true or false: labels to mean 0 and standard deviation 1"
    )

    @field_validator("file")
    @classmethod
    def _from_the_folder_of_the_file(cls, path: str | None, info: Any) -> str | None:
        """Absolute, so that the configuration a run leaves names the same file."""
        if path is None:
            return None
        if not path.isprintable() or not path.strip():
            raise ValueError(f"received file = {shown(path)}, need a path: correct it")
        kind_of(path)
        return str(Path((info.context or {}).get("folder", "."), path).absolute())

    @field_validator("sha256")
    @classmethod
    def _of_the_bytes(cls, expected: str | None, info: Any) -> str | None:
        path = info.data.get("file")
        return digest(path) if expected is None and path is not None else expected

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        rows = self.X is not None or self.y is not None
        if (self.name is not None) + (self.file is not None) + rows > 1:
            raise ValueError(
                "received more than one of a data set's name, a file, and X or y, need one source: leave the others out"
            )
        if self.file is not None:
            return self
        if (self.target, self.features, self.sha256) != (None, None, None):
            raise ValueError("received target, features or sha256 without a file, need none: leave them out")
        if self.name is not None:
            if self.name not in DATASETS:
                raise ValueError(
                    f"received the unknown data set {shown(self.name)}, need one of {', '.join(sorted(DATASETS))}, "
                    f"a file, or X and y{meant(self.name, DATASETS) or ': correct the name'}"
                )
            return self
        if not self.X or not self.y:
            raise ValueError("received no data, need a name, a file, or X and y with one point or more: add them")
        widths = sorted({len(row) for row in self.X})
        if len(widths) > 1 or widths[0] == 0:
            raise ValueError(f"received rows of X with {widths} entries, need as many in every row: complete them")
        if len(self.X) != len(self.y):
            raise ValueError(
                f"received {len(self.X)} rows of X and {len(self.y)} labels y, need one label a row: complete them"
            )
        return self


class LossChoice(Section):
    """The loss g; 'mean' is a scale of 1/n."""

    name: Literal["squared", "logistic", "huber"] = Field(
        examples=["squared"], description="'squared', 'logistic' or 'huber'"
    )
    scale: Positive | Literal["mean"] = Field(
        default=1.0, title="factor of the sum over data", description="a positive number, or 'mean' for 1/n"
    )
    delta: Positive | None = Field(
        default=None,
        title="for 'huber'",
        examples=[0.5],
        description="a positive number, from which residuals are outliers",
    )

    @model_validator(mode="after")
    def _delta_of_huber(self) -> "LossChoice":
        if (self.name == "huber") != (self.delta is not None):
            raise ValueError(f"received delta = {self.delta} for name = '{self.name}', need it for 'huber' alone")
        return self


class Time(Section):
    """Physical time; the measures at 0 and t_end are always kept."""

    t_end: Positive = Field(title="when both flows end", examples=[1.0], description="a positive physical time")
    save_at: Numbers = Field(
        default=[], examples=[[0.5]], description="times at which measures are kept, within [0, t_end]"
    )


class TimeOfRun(Section):
    """What a run has of its own; the rest is the experiment's."""

    t_end: Positive | None = Field(default=None, examples=[0.5], description="a positive physical time")
    save_at: Numbers | None = Field(
        default=None, examples=[[0.25]], description="times at which measures are kept, within [0, t_end]"
    )


class StepChoice(Section):
    """How a step on the grid is taken."""

    epsilon: Positive = Field(
        default=0.75, title="entropy", description="a positive number, in units of h^2; .75 is the default"
    )
    entropy: Literal["plain", "debiased"] = Field(
        default="debiased", title="its blur, left in or taken away", description="'plain' or 'debiased'"
    )
    passes: int | None = Field(
        default=None,
        ge=1,
        title="of debiasing",
        examples=[6],
        description="a whole number of passes, at least 1; 2 is the default",
    )
    rtol: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=1e-8, title="tolerance of a step's solver", description="a number between 0 and 1"
    )
    scheme: Literal["first", "second"] = Field(default="first", description="'first' or 'second' (order in tau)")

    @model_validator(mode="after")
    def _passes_of_debiased(self) -> "StepChoice":
        if self.entropy == "plain" and self.passes is not None:
            raise ValueError("received passes for entropy = 'plain', need none: leave them out, or take 'debiased'")
        return self


class JKOChoice(StepChoice):
    """The steps on the grid."""

    tau: Positive = Field(title="physical time", examples=[0.05], description="a positive time step")
    record: int = Field(default=1, ge=1, description="a whole number: every how many steps are recorded")


class MethodChoice(Section):
    """How the neurons themselves move."""

    method: Literal["gd", "implicit", "flow", "sliding"] = Field(
        examples=["gd"],
        description="'gd', 'implicit' (proximal point), 'flow' (the ODE, by Dormand-Prince) or 'sliding' (along kinks)",
    )
    tau: Positive = Field(
        title="physical time", examples=[0.01], description="a positive time step (of 'flow': between records)"
    )
    drop: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=1e-12, description="a share in [0, 1): nodes lighter than that of the heaviest carry no particle"
    )
    rtol: Positive | None = Field(
        default=None, title="relative tolerance", examples=[1e-6], description="a positive number, for 'flow'"
    )
    atol: Positive | None = Field(
        default=None, title="absolute tolerance", examples=[1e-9], description="a positive number, for 'flow'"
    )

    @model_validator(mode="after")
    def _tolerances_of_flow(self) -> "MethodChoice":
        if self.method != "flow" and (self.rtol, self.atol) != (None, None):
            raise ValueError(
                f"received rtol or atol for method = '{self.method}', need none: leave them out, or take 'flow'"
            )
        return self


class ParticlesChoice(MethodChoice):
    """The steps of the neurons themselves."""

    record: int = Field(default=1, ge=1, description="a whole number: every how many steps are recorded")


class Run(Section):
    """One way to use a measure, with its grid, its start and both steppers."""

    name: Name = Field(description="a name of letters, digits, '-', '_' and '.': it becomes a folder")
    way: WayName = Field(description=f"one of {', '.join(WAYS)}")
    time: TimeOfRun = Field(default=TimeOfRun(), description="t_end or save_at where they differ from [time]")
    grid: GridChoice = Field(
        description="a table with nodes, and radius (or shape, low and high) where the way has a box"
    )
    start: Start = Field(description="a table with kind and what that kind needs")
    jko: JKOChoice = Field(description="a table with tau")
    particles: ParticlesChoice = Field(description="a table with method and tau")

    @model_validator(mode="after")
    def _fits(self) -> "Run":
        WAYS[self.way].check(self.way, self.grid, self.start)
        return self


class Question(Section):
    """What a network is to learn, and for how long."""

    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=0.0, title="beta in F = g + beta (|w|^2 + a^2)", description="a number, at least 0"
    )
    data: Data = Field(description="a table with name, with file and target, or with X and y")
    loss: LossChoice = Field(description="a table with name")
    time: Time = Field(description="a table with t_end")


class Experiment(Question):
    """Everything in the file."""

    dtype: Literal["float64", "float32"] = Field(
        default="float64", title="of every number", description="'float64' or 'float32'"
    )
    device: str = Field(default="cpu", description="the name of a device, such as 'cpu' or 'cuda:0'")
    runs: list[Run] = Field(min_length=1, description="one table [[runs]] or more")

    @model_validator(mode="after")
    def _fits(self) -> "Experiment":
        names = [run.name for run in self.runs]
        if len({name.lower() for name in names}) < len(names):  # there are disks on which A and a are one folder
            raise ValueError(f"received runs named {several(names)}, need every name once: rename one")
        for run in self.runs:
            time = self.time_of(run)
            beyond = [t for t in time.save_at if not 0 <= t <= time.t_end]
            if beyond:
                raise ValueError(
                    f"received save_at = {shown(beyond)} for the run '{run.name}', need times within "
                    f"[0, {time.t_end:g}]: leave them out, or give the run a time of its own"
                )
        return self

    def time_of(self, run: Run) -> Time:
        """The run's time: its own where it has one."""
        return Time(
            t_end=self.time.t_end if run.time.t_end is None else run.time.t_end,
            save_at=self.time.save_at if run.time.save_at is None else run.time.save_at,
        )


def load(path: Path) -> Experiment:
    """Read and check an experiment.

    Raises:
        ConfigError: for a file that cannot be read, is no TOML, or does not say what an experiment needs.
    """
    return read(path, Experiment)
