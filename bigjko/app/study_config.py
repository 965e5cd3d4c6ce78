"""A study as a TOML file: every way on every grid at every tau, held against its references.

[[problems]]                 # name, data, loss, time, weight_decay
[[ways]]                     # name, way, grids, start, taus, jko, references, widths, and the problems it is for
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from .complaint import several, shown
from .config import MethodChoice, Name, Question, StepChoice, WayName
from .sections import Positive, Section, read
from .ways import WAYS, GridChoice, Start


class Problem(Question):
    """Data, a loss and a time, under a name."""

    name: Name = Field(description="a name of letters, digits, '-', '_' and '.'")

    @model_validator(mode="after")
    def _no_measures(self) -> "Problem":
        if self.time.save_at:
            raise ValueError(
                f"received save_at = {shown(self.time.save_at)}, need t_end alone: a study looks at measures at "
                "t_end only; leave it out"
            )
        return self


class Reference(MethodChoice):
    """Particles that JKO is held against, from the same start: run at tau and at tau / 2, and the second counts."""

    dynamics: Literal["own", "free", "balanced"] = Field(
        default="own", description="'own' (the way's), 'free' (both layers move) or 'balanced' (so, from |w| = |a|)"
    )

    @property
    def label(self) -> str:
        """What tables call it."""
        return self.method if self.dynamics == "own" else f"{self.method} {self.dynamics}"


class Widths(Section):
    """Networks of m neurons drawn from the start, descending by GD, held against JKO on the last grid and tau."""

    m: list[Annotated[int, Field(ge=1)]] = Field(min_length=1, description="whole numbers of neurons, at least 1")
    seeds: int = Field(ge=1, description="a whole number of networks of each width, at least 1")
    tau: Positive = Field(description="a positive time step, of gradient descent")
    blur: Positive = Field(description="a positive length: the Sinkhorn divergence does not look below it")
    exact: int = Field(
        default=0, ge=0, description="a whole number: up to this width W2 is computed exactly as well, for 5 seeds"
    )


class WayStudy(Section):
    """One way to use a measure: the grids and taus of its product, and what it is held against."""

    name: Name = Field(description="a name of letters, digits, '-', '_' and '.'")
    way: WayName = Field(description=f"one of {', '.join(WAYS)}")
    problems: list[str] = Field(default=[], description="names of problems; all of them where it is left out")
    grids: list[GridChoice] = Field(min_length=1, description="one table or more, as `grid` in an experiment")
    start: Start = Field(description="a table with kind and what that kind needs")
    taus: list[Positive] = Field(
        min_length=1, description="positive time steps; extrapolated to 0 where one is half of another"
    )
    jko: StepChoice = Field(default=StepChoice(), description="a table with epsilon, entropy, passes or rtol")
    references: list[Reference] = Field(min_length=1, description="one table or more with method and tau")
    blur: Positive | None = Field(default=None, description="a positive length, for the transport distance")
    widths: Widths | None = Field(default=None, description="a table with m, seeds, tau and blur")

    @model_validator(mode="after")
    def _fits(self) -> "WayStudy":
        for grid in self.grids:
            WAYS[self.way].check(self.way, grid, self.start)
        labels = [reference.label for reference in self.references]
        for what, values in (("taus", self.taus), ("references", labels), ("grids", self.grids)):
            if any(value in values[:k] for k, value in enumerate(values)):
                raise ValueError(f"received {what} with one of them twice, need each once: leave one out")
        return self


class Study(Section):
    """Everything in the file."""

    dtype: Literal["float64", "float32"] = Field(default="float64", description="'float64' or 'float32'")
    device: str = Field(default="cpu", description="the name of a device, such as 'cpu' or 'cuda:0'")
    problems: list[Problem] = Field(min_length=1, description="one table [[problems]] or more")
    ways: list[WayStudy] = Field(min_length=1, description="one table [[ways]] or more")

    @model_validator(mode="after")
    def _fits(self) -> "Study":
        known = [problem.name for problem in self.problems]
        for what, names in (("problems", known), ("ways", [way.name for way in self.ways])):
            if len(set(names)) < len(names):
                raise ValueError(f"received {what} named {several(names)}, need every name once: rename one")
        for way in self.ways:
            unknown = [name for name in way.problems if name not in known]
            if unknown:
                raise ValueError(
                    f"received the problem {shown(unknown[0])} for the way '{way.name}', need one of {several(known)}: "
                    "correct the name, or add [[problems]]"
                )
        return self

    def pairs(self) -> list[tuple[Problem, WayStudy]]:
        """Every problem with every way that is for it."""
        return [(p, way) for way in self.ways for p in self.problems if not way.problems or p.name in way.problems]


def load_study(path: Path) -> Study:
    """Read and check a study.

    Raises:
        ConfigError: for a file that cannot be read, is no TOML, or does not say what a study needs.
    """
    return read(path, Study)
