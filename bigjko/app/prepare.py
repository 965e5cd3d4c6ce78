"""What a file asks for, built: nothing in it can be refused any more."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bigjko_kernels import Grid, GridError, KernelError

from ..errors import MeasureError, RiskError, StepError
from ..jko import JKO, Debiased, DualSolver, Plain
from ..losses import Logistic, Loss, Squared
from ..measure import GridMeasure, ParticleMeasure
from ..neurons import Lifted, Projected
from ..particles import GradientDescent, GradientFlow
from ..risk import Risk
from ..stepper import Stepper
from .config import ConfigError, Experiment, Run, Start, Time
from .data import DATASETS, prepared


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run with everything built: nothing in it can be refused any more."""

    run: Run
    time: Time
    jko: JKO
    start: GridMeasure
    descent: Stepper[ParticleMeasure, Any]
    particles: ParticleMeasure


def data(experiment: Experiment) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
    """X and y as the flows see them, in the experiment's dtype on its device.

    Raises:
        ConfigError: for a device that is not there, or data that cannot be reduced or standardised.
    """
    choice = experiment.data
    if choice.name is not None:
        X, y = DATASETS[choice.name]()
    else:
        X, y = torch.tensor(choice.X, dtype=torch.float64), torch.tensor(choice.y, dtype=torch.float64)
    try:
        X, y = prepared(X, y, choice.components, choice.standardise, choice.standardise_labels)
    except RiskError as refused:
        raise ConfigError(f"in [data]: {refused}") from refused
    kind = {"dtype": getattr(torch, experiment.dtype), "device": _device(experiment.device)}
    return X.to(**kind), y.to(**kind)


def _device(name: str) -> torch.device:
    try:
        return torch.empty(1, device=name).device  # cuda:0 rather than cuda, as tensors say
    except (RuntimeError, AssertionError, NotImplementedError) as missing:
        here = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
        reason = str(missing).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"received device = '{name}', which cannot be used here ({reason}), need one of {', '.join(here)}: "
            "choose it with --device"
        ) from missing


def build(experiment: Experiment, run: Run, X: Float[Tensor, "n d"], y: Float[Tensor, " n"]) -> Prepared:
    """Build a run.

    Raises:
        ConfigError: for what the engine refuses, naming the run.
    """
    scale = 1 / len(y) if experiment.loss.scale == "mean" else float(experiment.loss.scale)
    loss: Loss = {"squared": Squared, "logistic": Logistic}[experiment.loss.name](scale)
    try:
        way: Lifted | Projected = Lifted() if run.way == "lifted" else Projected()
        risk = Risk(X, y, way, loss, experiment.weight_decay)
        grid = _grid(run, way, X)
        way.check(grid, X.shape[1])
        start = _start(run.start, way, grid, X.shape[1])
        jko = JKO(
            risk,
            grid,
            run.jko.tau,
            epsilon=run.jko.epsilon * grid.spacing**2,
            entropy=Plain() if run.jko.entropy == "plain" else Debiased(run.jko.passes or 2),
            solver=DualSolver(rtol=run.jko.rtol),
        )
        descent = _descent(run, risk)
        return Prepared(
            run, experiment.time_of(run), jko, start, descent, way.particles(start, drop=run.particles.drop)
        )
    except (GridError, KernelError, MeasureError, RiskError, StepError) as refused:
        raise ConfigError(f"in the run '{run.name}': {refused}") from refused


def _grid(run: Run, way: Lifted | Projected, X: Float[Tensor, "n d"]) -> Grid:
    choice, dim = run.grid, X.shape[1]
    kind: dict[str, Any] = {"dtype": X.dtype, "device": X.device}
    if isinstance(way, Projected):
        assert choice.nodes is not None
        return way.grid(choice.nodes, dim, **kind)
    if choice.nodes is not None and choice.radius is not None:
        return way.grid(choice.nodes, dim, radius=choice.radius, **kind)
    axes = dim + 1
    shape = choice.shape or [choice.nodes or 0] * axes
    low = choice.low or [-(choice.radius or 0.0)] * axes
    high = choice.high or [choice.radius or 0.0] * axes
    return Grid.uniform(low, high, shape, **kind)


def _start(choice: Start, way: Lifted | Projected, grid: Grid, dim: int) -> GridMeasure:
    if choice.kind == "gaussian":
        mean, std = (_per_axis(value, grid, dim + 1) for value in (choice.mean, choice.std))
        return GridMeasure.gaussian(grid, mean, std)
    if choice.kind == "uniform":
        assert isinstance(way, Projected)
        assert choice.radius is not None
        return way.uniform(grid, radius=choice.radius)
    assert choice.seed is not None
    generator = torch.Generator().manual_seed(choice.seed)
    drawn = torch.randn(choice.neurons or 0, dim + 1, generator=generator, dtype=torch.float64).to(grid.device)
    if isinstance(way, Projected):  # balanced neurons: |w| = |a| = radius
        W = drawn[:, :dim] / drawn[:, :dim].norm(dim=1, keepdim=True)
        neurons = torch.cat([W, drawn[:, dim:].sign()], dim=1) * (choice.radius or 0.0)
    else:
        neurons = drawn * _per_axis(choice.std, grid, dim + 1)
    neurons = neurons.to(grid.dtype)
    return way.measure(grid, neurons[:, :dim], neurons[:, dim], width=choice.width or 3.0)


def _per_axis(value: float | list[float] | None, grid: Grid, axes: int) -> Float[Tensor, " k"]:
    numbers = value if isinstance(value, list) else [value] * axes
    if len(numbers) != axes:
        raise MeasureError(f"received {len(numbers)} numbers for the start, need {axes}, one an axis, or one for all")
    return torch.tensor(numbers, dtype=grid.dtype, device=grid.device)


def _descent(run: Run, risk: Risk) -> Stepper[ParticleMeasure, Any]:
    choice = run.particles
    if choice.method == "gd":
        return GradientDescent(risk, choice.tau)
    own = {key: value for key in ("rtol", "atol") if (value := getattr(choice, key)) is not None}
    return GradientFlow(risk, choice.tau, **own)
