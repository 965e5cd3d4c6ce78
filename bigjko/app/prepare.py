"""What a file asks for, built: nothing in it can be refused any more."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bigjko_kernels import Grid, GridError, KernelError

from ..errors import MeasureError, RiskError, StepError
from ..evolve import countable
from ..jko import JKO, Debiased, DualSolver, FirstOrder, Plain, SecondOrder, epsilon_of, step_memory
from ..losses import Huber, Logistic, Loss, Squared
from ..measure import GridMeasure, ParticleMeasure
from ..memory import check as check_memory
from ..neurons.dynamics import Dynamics
from ..particles import GradientDescent, GradientFlow, ImplicitGradientDescent, SlidingFlow
from ..risk import Risk
from ..stepper import Stepper
from .complaint import shown
from .config import ConfigError, Data, Experiment, LossChoice, MethodChoice, Question, Run, StepChoice, Time
from .data import DATASETS, prepared
from .files import read_file
from .ways import WAYS, GridChoice, Start, grid_of, outline

Points = tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]


@dataclass(frozen=True, eq=False)
class Place:
    """A risk, a grid of its way, and a measure on it: where both kinds of flow begin."""

    risk: Risk
    grid: Grid
    start: GridMeasure


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run with everything built: nothing in it can be refused any more."""

    run: Run
    time: Time
    risk: Risk
    jko: JKO
    start: GridMeasure
    descent: Stepper[ParticleMeasure, Any]
    particles: ParticleMeasure


def data(experiment: Experiment) -> Points:
    """X and y as the flows see them, in the experiment's dtype on its device.

    Raises:
        ConfigError: for a device that is not there, or data that cannot be reduced or standardised.
    """
    return points(experiment.data, experiment.dtype, experiment.device)


def points(choice: Data, dtype: str, device: str) -> Points:
    """X and y as the flows see them; see `data`."""
    names = None
    try:
        if choice.name is not None:
            X, y = DATASETS[choice.name]()
        elif choice.file is not None:
            X, y, names = read_file(choice.file, choice.target, choice.features, choice.sha256)
        else:
            X, y = torch.tensor(choice.X, dtype=torch.float64), torch.tensor(choice.y, dtype=torch.float64)
        X, y = prepared(X, y, choice.components, choice.standardise, choice.standardise_labels, names)
    except (ConfigError, RiskError) as refused:
        raise ConfigError(f"in [data]: {refused}") from refused
    kind = {"dtype": getattr(torch, dtype), "device": _device(device)}
    return X.to(**kind), y.to(**kind)


def _device(name: str) -> torch.device:
    try:
        here = torch.zeros(1, device=name)
        here.item()  # which meta, a device without numbers, cannot
        return here.device  # cuda:0 rather than cuda, as tensors say
    except (RuntimeError, AssertionError, NotImplementedError) as missing:
        known = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
        reason = str(missing).splitlines()[0].rstrip(".")[:_LONG]
        raise ConfigError(
            f"received device = {shown(name)}, which cannot be used here ({reason}), need one of {', '.join(known)}: "
            "choose it with --device"
        ) from missing


def build(experiment: Experiment, run: Run, X: Float[Tensor, "n d"], y: Float[Tensor, " n"]) -> Prepared:
    """Build a run.

    Raises:
        ConfigError: for what the engine refuses, naming the run.
    """
    with refusals(f"in the run '{run.name}'"):
        here = place(experiment, run.way, run.grid, run.start, (X, y))
        jko = jko_of(here, run.jko, run.jko.tau)
        descent = METHODS[run.particles.method](here.risk, run.particles, run.particles.tau)
        particles = here.risk.neurons.particles(here.start, drop=run.particles.drop)
        time = experiment.time_of(run)
        for stepper in (jko, descent):
            countable(stepper.tau, time.t_end)
        return Prepared(run, time, here.risk, jko, here.start, descent, particles)


@contextlib.contextmanager
def refusals(where: str) -> Iterator[None]:
    """What the engine refuses, as what is wrong in the file."""
    try:
        yield
    except (GridError, KernelError, MeasureError, RiskError, StepError) as refused:
        raise ConfigError(f"{where}: {refused}") from refused


def risk_of(question: Question, way: str, known: Points) -> Risk:
    """The risk of a way on the data."""
    scale = 1 / len(known[1]) if question.loss.scale == "mean" else float(question.loss.scale)
    return Risk(*known, WAYS[way].build(), LOSSES[question.loss.name](scale, question.loss), question.weight_decay)


def place(question: Question, way: str, grid: GridChoice, start: Start, known: Points) -> Place:
    """The risk of a way, its grid and its start.

    Raises:
        StepError: where the steps would need more memory than there is, before any of it is taken.
    """
    risk, X = risk_of(question, way, known), known[0]
    small, shape = outline(risk.neurons, grid, X)
    check_memory(small, partial(step_memory, risk, small), "JKO steps", shape)
    nodes = grid_of(risk.neurons, grid, X)
    risk.neurons.check(nodes, X.shape[1])
    return Place(risk, nodes, WAYS[way].starts[start.kind].make(risk.neurons, nodes, start, X.shape[1]))


def jko_of(here: Place, choice: StepChoice, tau: float) -> JKO:
    """The steps on the grid."""
    way = here.risk.neurons
    return JKO(
        here.risk,
        here.grid,
        tau,
        epsilon=epsilon_of(choice.epsilon, way.spacing(here.grid), way.cost),
        entropy=Plain() if choice.entropy == "plain" else Debiased(choice.passes or 2),
        scheme=FirstOrder() if choice.scheme == "first" else SecondOrder(),
        solver=DualSolver(rtol=choice.rtol),
    )


def _descent(risk: Risk, choice: MethodChoice, tau: float, dynamics: Dynamics | None = None) -> GradientDescent:
    return GradientDescent(risk, tau, dynamics)


def _implicit(
    risk: Risk, choice: MethodChoice, tau: float, dynamics: Dynamics | None = None
) -> ImplicitGradientDescent:
    return ImplicitGradientDescent(risk, tau, dynamics=dynamics)


def _sliding(risk: Risk, choice: MethodChoice, tau: float, dynamics: Dynamics | None = None) -> SlidingFlow:
    return SlidingFlow(risk, tau)


def _flow(risk: Risk, choice: MethodChoice, tau: float, dynamics: Dynamics | None = None) -> GradientFlow:
    own = {key: value for key in ("rtol", "atol") if (value := getattr(choice, key)) is not None}
    return GradientFlow(risk, tau, **own, dynamics=dynamics)


LOSSES: dict[str, Callable[[float, LossChoice], Loss]] = {
    "squared": lambda scale, choice: Squared(scale),
    "logistic": lambda scale, choice: Logistic(scale),
    "huber": lambda scale, choice: Huber(choice.delta or 0.0, scale),
}
METHODS: dict[str, Callable[..., Stepper[ParticleMeasure, Any]]] = {
    "gd": _descent,
    "implicit": _implicit,
    "flow": _flow,
    "sliding": _sliding,
}


_LONG = 100  # characters of what torch says


def out_of_memory(error: BaseException) -> bool:
    """CUDA has a type for it, the CPU's allocator only a text."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
