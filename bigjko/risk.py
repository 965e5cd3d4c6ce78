"""The risk of a two-layer network, as an energy of the measure that stands for it."""

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from bigjko_kernels import Grid
from bigjko_kernels.html import table

from .energy import Composite
from .errors import RiskError
from .losses import Loss, Squared
from .measure import GridMeasure, ParticleMeasure
from .neurons.base import Neurons
from .neurons.lifted import Lifted


@dataclass(frozen=True, eq=False)
class Risk:
    """F(p) = g(M p) + <beta (|w|^2 + a^2), p>, with (M p)_j the network's output at x_j.

    Args:
        X: (n, d) data.
        y: (n,) labels.
        neurons: the way to use a measure.
        loss: g; the seed's sum of squares by default.
        weight_decay: beta.

    Raises:
        RiskError: for NaN or inf, shapes, dtypes or devices that disagree, or a negative beta.
    """

    X: Float[Tensor, "n d"]
    y: Float[Tensor, " n"]
    neurons: Neurons = field(default_factory=Lifted)
    loss: Loss = field(default_factory=Squared)
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        X, y = self.X, self.y
        if not (isinstance(X, Tensor) and isinstance(y, Tensor)):
            raise RiskError(
                f"received X as {type(X).__name__} and y as {type(y).__name__}, need tensors: use torch.as_tensor"
            )
        if X.ndim != 2 or y.shape != X.shape[:1] or X.shape[0] == 0:
            flat = ": flatten y with y.squeeze(1)" if y.ndim == 2 and y.shape[1] == 1 else ""
            raise RiskError(
                f"received X {tuple(X.shape)} and y {tuple(y.shape)}, need (n, d) and (n,) with n >= 1{flat}"
            )
        if not (X.is_floating_point() and y.is_floating_point()):
            raise RiskError(f"received X in {X.dtype} and y in {y.dtype}, need floating point: convert them")
        if X.dtype != y.dtype or X.device != y.device:
            raise RiskError(f"received X in {X.dtype} on {X.device} and y in {y.dtype} on {y.device}, need the same")
        if not bool(torch.isfinite(X).all() & torch.isfinite(y).all()):
            bad = (~torch.isfinite(torch.cat([X, y[:, None]], dim=1))).nonzero()
            i, j = bad[0].tolist()
            first = f"y[{i}]" if j == X.shape[1] else f"X[{i}, {j}]"
            raise RiskError(
                f"received X and y with {len(bad)} entries that are NaN or inf, the first of them {first}, need finite "
                "numbers: clean them"
            )
        for name, given, kind in (("neurons", self.neurons, Neurons), ("loss", self.loss, Loss)):
            if not isinstance(given, kind):
                what, do = (
                    (f"the class {given.__name__}", f"write {given.__name__}(...)")
                    if isinstance(given, type)
                    else (f"{given!r}", f"take one of bj.{kind.__module__.split('.')[1]}")
                )
                raise RiskError(f"received {what} as {name}, need an instance of {kind.__name__}: {do}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise RiskError(f"received a weight decay of {self.weight_decay}, need a finite number >= 0")
        self.loss.check(y)

    def on(self, nodes: Grid | ParticleMeasure) -> Composite:
        """The risk on a grid of the way's Theta, or on particles, which are always neurons (w, a).

        Raises:
            RiskError: for nodes of another dtype or device than the data's.
        """
        dtype, device = (nodes.dtype, nodes.device) if isinstance(nodes, Grid) else _kind(nodes)
        if dtype != self.X.dtype or device != self.X.device:
            raise RiskError(
                f"received nodes in {dtype} on {device} and data in {self.X.dtype} on {self.X.device}, "
                "need the same: convert the risk or the nodes with .to()"
            )
        features = self.neurons.features(nodes, self.X)
        if self.weight_decay:
            potential = self.weight_decay * self.neurons.squared_norm(nodes)
        else:
            potential = torch.zeros((), dtype=dtype, device=device).expand(nodes.shape)
        slope2 = partial(self.neurons.slope2, nodes, features, decay=self.weight_decay)
        return Composite(features, self.loss, self.y.double(), potential, slope2)

    def outputs(self, measure: GridMeasure | ParticleMeasure, X: Float[Tensor, "k d"] | None = None) -> Tensor:
        """The network's outputs at X (k, d), by default at the data: (k,) in float64."""
        if X is not None and X.ndim != 2:
            raise RiskError(f"received X {tuple(X.shape)}, need (k, d): one row a point")
        nodes, p = _nodes_and_masses(measure)
        return self.neurons.features(nodes, self.X if X is None else X).outputs(p)

    def value(self, measure: GridMeasure | ParticleMeasure) -> Float[Tensor, ""]:
        """F(measure), in float64."""
        nodes, p = _nodes_and_masses(measure)
        return self.on(nodes).value(p)

    def potential(
        self, measure: GridMeasure | ParticleMeasure, at: Grid | ParticleMeasure | None = None
    ) -> Float[Tensor, "*nodes"]:
        """The first variation F'(measure) = M^T grad g(M p) + V_reg, on its own nodes or on those of `at`."""
        nodes, p = _nodes_and_masses(measure)
        here = self.on(nodes)
        z = self.loss.gradient(here.outputs(p), here.targets)
        return (here if at is None else self.on(at)).at(z)

    def network_loss(self, W: Float[Tensor, "m d"], a: Float[Tensor, " m"]) -> Float[Tensor, ""]:
        """The seed's own L(W, a) = g(sum_i relu(w_i . x) a_i) + beta sum_i (|w_i|^2 + a_i^2), without the 1/m.

        Equal to F at the measure of the neurons sqrt(m) (w_i, a_i), on the same clock (mathematics.md 1).
        """
        m = a.numel()
        return self.value(ParticleMeasure.from_network(math.sqrt(m) * W, math.sqrt(m) * a))

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Risk":
        """The same risk on another device or in another dtype."""
        X, y = self.X.to(device=device, dtype=dtype), self.y.to(device=device, dtype=dtype)
        return Risk(X, y, self.neurons, self.loss, self.weight_decay)

    def __repr__(self) -> str:
        n, d = self.X.shape
        return f"Risk(n={n}, d={d}, {self.neurons!r}, {self.loss!r}, weight_decay={self.weight_decay:g})"

    def _repr_html_(self) -> str:
        n, d = self.X.shape
        return table(
            "Risk",
            [
                ("data", f"{n:,} points in R^{d}"),
                ("labels", f"{float(self.y.min()):.4g} to {float(self.y.max()):.4g}"),
                ("way", repr(self.neurons)),
                ("loss", repr(self.loss)),
                ("weight decay", f"{self.weight_decay:g}"),
                ("numbers", f"{str(self.X.dtype).removeprefix('torch.')} on {self.X.device}"),
            ],
        )


def _kind(particles: ParticleMeasure) -> tuple[torch.dtype, torch.device]:
    return particles.positions.dtype, particles.positions.device


def _nodes_and_masses(measure: GridMeasure | ParticleMeasure) -> tuple[Grid | ParticleMeasure, Tensor]:
    nodes = measure.grid if isinstance(measure, GridMeasure) else measure
    return nodes, measure.masses
