"""An experiment as a TOML file: what may stand in it, and one clear sentence for what may not.

dtype = "float64"            # at the top level, with device and weight_decay
[data]                       # name, or X and y
[loss]                       # name, scale
[time]                       # t_end, save_at
[[runs]]                     # one or several: way, grid, start, jko, particles, and a time of their own
"""

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .complaint import meant, sentence
from .data import DATASETS


class ConfigError(ValueError):
    """An experiment that cannot be run as it is written."""


class _Section(BaseModel):
    """Keys of a section; every description says what is needed there, and errors quote it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Numbers = list[float]
Positive = Annotated[float, Field(gt=0)]


class Data(_Section):
    """A known data set, or rows and labels in the file itself."""

    name: str | None = Field(default=None, description=f"one of the data sets {', '.join(sorted(DATASETS))}")
    X: list[Numbers] | None = Field(default=None, description="rows of finite numbers, one a data point")
    y: Numbers | None = Field(default=None, description="finite numbers, one a data point")
    components: int | None = Field(default=None, ge=1, description="a whole number of principal components, at least 1")
    standardise: bool = Field(default=False, description="true or false: columns to mean 0 and standard deviation 1")
    standardise_labels: bool = Field(
        default=False, description="true or false: labels to mean 0 and standard deviation 1"
    )

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        if self.name is not None:
            if self.X is not None or self.y is not None:
                raise ValueError("received both a data set's name and X or y, need one source: leave one out")
            if self.name not in DATASETS:
                raise ValueError(
                    f"received the unknown data set {self.name!r}, need one of {', '.join(sorted(DATASETS))}, "
                    f"or X and y{meant(self.name, DATASETS) or ': correct the name'}"
                )
            return self
        if not self.X or not self.y:
            raise ValueError("received no data, need a name, or X and y with one point or more: add them")
        widths = sorted({len(row) for row in self.X})
        if len(widths) > 1 or widths[0] == 0:
            raise ValueError(f"received rows of X with {widths} entries, need as many in every row: complete them")
        if len(self.X) != len(self.y):
            raise ValueError(
                f"received {len(self.X)} rows of X and {len(self.y)} labels y, need one label a row: complete them"
            )
        return self


class LossChoice(_Section):
    """The loss g; 'mean' is a scale of 1/n."""

    name: Literal["squared", "logistic"] = Field(description="'squared' or 'logistic'")
    scale: Positive | Literal["mean"] = Field(default=1.0, description="a positive number, or 'mean' for 1/n")


class Time(_Section):
    """Physical time; the measures at 0 and t_end are always kept."""

    t_end: Positive = Field(description="a positive physical time")
    save_at: Numbers = Field(default=[], description="times at which measures are kept, within [0, t_end]")


class TimeOfRun(_Section):
    """What a run has of its own; the rest is the experiment's."""

    t_end: Positive | None = Field(default=None, description="a positive physical time")
    save_at: Numbers | None = Field(default=None, description="times at which measures are kept, within [0, t_end]")


class GridChoice(_Section):
    """Lifted: nodes and radius, or shape, low and high. Projected: nodes."""

    nodes: int | None = Field(default=None, ge=3, description="a whole number of nodes an axis or circle, at least 3")
    radius: Positive | None = Field(default=None, description="a positive number: every axis is [-radius, radius]")
    shape: list[Annotated[int, Field(ge=1)]] | None = Field(
        default=None, description="whole numbers of nodes, one an axis"
    )
    low: Numbers | None = Field(default=None, description="numbers, one an axis of (w, a)")
    high: Numbers | None = Field(default=None, description="numbers, one an axis of (w, a)")


class Start(_Section):
    """The measure at time 0, which the grid and the particles share."""

    kind: Literal["gaussian", "uniform", "network"] = Field(description="'gaussian', 'uniform' or 'network'")
    mean: float | Numbers | None = Field(default=None, description="a number, or one an axis of (w, a)")
    std: Positive | list[Positive] | None = Field(
        default=None, description="a positive number, or one an axis of (w, a)"
    )
    radius: Positive | None = Field(default=None, description="a positive number, the norm of every neuron's w and a")
    neurons: int | None = Field(default=None, ge=1, description="a whole number of random neurons, at least 1")
    seed: int | None = Field(default=None, ge=0, description="a whole number, at least 0")
    width: Positive | None = Field(
        default=None, description="a positive number of nodes: each neuron is spread that wide"
    )


class JKOChoice(_Section):
    """The steps on the grid."""

    tau: Positive = Field(description="a positive time step")
    epsilon: Positive = Field(default=0.75, description="a positive number, in units of h^2; .75 is the default")
    entropy: Literal["plain", "debiased"] = Field(default="debiased", description="'plain' or 'debiased'")
    passes: int | None = Field(default=None, ge=1, description="a whole number of passes, at least 1; 2 is the default")
    rtol: Annotated[float, Field(gt=0, lt=1)] = Field(default=1e-8, description="a number between 0 and 1")
    record: int = Field(default=1, ge=1, description="a whole number: every how many steps are recorded")


class ParticlesChoice(_Section):
    """The steps of the neurons themselves."""

    method: Literal["gd", "flow"] = Field(description="'gd' (gradient descent) or 'flow' (its ODE, by Dormand-Prince)")
    tau: Positive = Field(description="a positive time step (of 'flow': between records)")
    drop: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=1e-12, description="a share in [0, 1): nodes lighter than that of the heaviest carry no particle"
    )
    rtol: Positive | None = Field(default=None, description="a positive number, for 'flow'")
    atol: Positive | None = Field(default=None, description="a positive number, for 'flow'")
    record: int = Field(default=1, ge=1, description="a whole number: every how many steps are recorded")


class Run(_Section):
    """One way to use a measure, with its grid, its start and both steppers."""

    name: str = Field(description="a name of letters, digits, '-', '_' and '.': it becomes a folder")
    way: Literal["lifted", "projected"] = Field(description="'lifted' or 'projected'")
    time: TimeOfRun = Field(default=TimeOfRun(), description="t_end or save_at where they differ from [time]")
    grid: GridChoice = Field(description="a table with nodes, and for lifted radius (or shape, low and high)")
    start: Start = Field(description="a table with kind and what that kind needs")
    jko: JKOChoice = Field(description="a table with tau")
    particles: ParticlesChoice = Field(description="a table with method and tau")

    @model_validator(mode="after")
    def _fits(self) -> "Run":
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", self.name):
            raise ValueError(f"received name = {self.name!r}, need letters, digits, '-', '_' and '.': rename the run")
        if self.jko.entropy == "plain" and self.jko.passes is not None:
            raise ValueError("received passes for entropy = 'plain', need none: leave them out, or take 'debiased'")
        if self.particles.method == "gd" and (self.particles.rtol, self.particles.atol) != (None, None):
            raise ValueError("received rtol or atol for method = 'gd', need none: leave them out, or take 'flow'")
        _given("grid", self.grid, _GRIDS[self.way], ())
        kinds, kind = _STARTS[self.way], self.start.kind
        if kind not in kinds:
            raise ValueError(
                f"received kind = '{kind}' for way = '{self.way}', need {' or '.join(map(repr, kinds))}: "
                "change one of them"
            )
        needed, optional = kinds[kind]
        _given(f"start of kind '{kind}'", self.start, (needed,), ("kind", *optional))
        return self


class Experiment(_Section):
    """Everything in the file."""

    dtype: Literal["float64", "float32"] = Field(default="float64", description="'float64' or 'float32'")
    device: str = Field(default="cpu", description="the name of a device, such as 'cpu' or 'cuda:0'")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.0, description="a number, at least 0")
    data: Data = Field(description="a table with name, or with X and y")
    loss: LossChoice = Field(description="a table with name")
    time: Time = Field(description="a table with t_end")
    runs: list[Run] = Field(min_length=1, description="one table [[runs]] or more")

    @model_validator(mode="after")
    def _fits(self) -> "Experiment":
        names = [run.name for run in self.runs]
        if len(set(names)) < len(names):
            raise ValueError(f"received runs named {', '.join(names)}, need every name once: rename one")
        for run in self.runs:
            time = self.time_of(run)
            beyond = [t for t in time.save_at if not 0 <= t <= time.t_end]
            if beyond:
                raise ValueError(
                    f"received save_at = {beyond} for the run '{run.name}', need times within [0, {time.t_end:g}]: "
                    "leave them out, or give the run a time of its own"
                )
        return self

    def time_of(self, run: Run) -> Time:
        """The run's time: its own where it has one."""
        return Time(
            t_end=self.time.t_end if run.time.t_end is None else run.time.t_end,
            save_at=self.time.save_at if run.time.save_at is None else run.time.save_at,
        )


_GRIDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "lifted": (("nodes", "radius"), ("shape", "radius"), ("nodes", "low", "high"), ("shape", "low", "high")),
    "projected": (("nodes",),),
}
# What each kind of start needs, and what it may have besides.
_STARTS: dict[str, dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "lifted": {"gaussian": (("mean", "std"), ()), "network": (("neurons", "seed", "std"), ("width",))},
    "projected": {"uniform": (("radius",), ()), "network": (("neurons", "seed", "radius"), ("width",))},
}


def load(path: Path) -> Experiment:
    """Read and check an experiment.

    Raises:
        ConfigError: for a file that cannot be read, is no TOML, or does not say what an experiment needs.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"received {path}, which cannot be read ({reason}), need a TOML file: check it") from None
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"received {path}, which is no TOML ({error}), need a TOML file: correct it there") from None
    try:
        return Experiment.model_validate(raw)
    except ValidationError as error:
        details = error.errors()
        # An unknown key is often why another is missing.
        first = next((d for d in details if d["type"] == "extra_forbidden"), details[0])
        raise ConfigError(f"{path}, {sentence(first, Experiment)}") from None


def dump(experiment: Experiment) -> str:
    """The experiment as TOML, every default written out; `load` reads it back."""
    raw = experiment.model_dump(exclude_none=True)
    lines = [f"{key} = {_toml(value)}" for key, value in raw.items() if not isinstance(value, dict) and key != "runs"]
    for key, value in raw.items():
        if isinstance(value, dict):
            lines += ["", f"[{key}]", *(f"{k} = {_toml(v)}" for k, v in value.items())]
    for run in raw["runs"]:
        lines += ["", "[[runs]]", *(f"{k} = {_toml(v)}" for k, v in run.items() if v != {})]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value)


def _given(what: str, section: _Section, choices: tuple[tuple[str, ...], ...], optional: tuple[str, ...]) -> None:
    """Raise unless the keys given in a section are one of the choices, whatever optional ones stand beside them."""
    given = {key for key, value in section if value is not None} - set(optional)
    if any(given == set(choice) for choice in choices):
        return
    spare = sorted(given - set(choices[0])) if given > set(choices[0]) else []
    raise ValueError(
        f"received a {what} with {_and(sorted(given)) or 'nothing'}, need {', or '.join(map(_and, choices))}: "
        f"{'leave out ' + _and(spare) if spare else 'give those'}"
    )


def _and(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)
