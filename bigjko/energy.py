"""Energies F(p) = g(M p) + <V, p>: what a stepper goes down."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from bigjko_kernels import Circle, Features, Grid, Sheets, Sphere
from bigjko_kernels.passes import Feed, Weighing
from bigjko_kernels.sums import inner

from .errors import RiskError
from .losses import Loss, Squared
from .measure import ParticleMeasure


@dataclass(frozen=True, eq=False)
class Composite:
    """An energy on one node set: F(p) = g(M p) + <V, p>.

    Attributes:
        features: M.
        loss, targets: g, and the labels (n,) it is bound to, in float64: everything in R^n is.
        potential: V on the nodes, in the nodes' dtype.
        slope2: z -> |grad (V + M^T z)|^2 in the metric of the node set, growth of mass included.
    """

    features: Features
    loss: Loss
    targets: Float[Tensor, " n"]
    potential: Tensor
    slope2: Callable[[Float[Tensor, " n"]], Tensor]

    def outputs(self, p: Tensor) -> Float[Tensor, " n"]:
        """M p, in float64."""
        return self.features.outputs(p)

    def value(self, p: Tensor, outputs: Float[Tensor, " n"] | None = None) -> Float[Tensor, ""]:
        """F(p), in float64; outputs spare a pass over the nodes."""
        u = self.outputs(p) if outputs is None else outputs
        value = self.loss.value(u, self.targets)
        return value if self._V is None else value + inner(p, self._V.expand(p.shape))

    def at(self, z: Float[Tensor, " n"]) -> Tensor:
        """V + M^T z: the first variation of F where z = grad g(M p)."""
        return self.potential + self.features.potential(z.to(self.potential.dtype))

    def feed(self, base: Tensor, scale: float, alpha: float, z: Float[Tensor, " n"], out: Tensor) -> Feed:
        """What writes scale base + alpha (V + M^T z) into out, which is not base, for z as it is then."""
        return self.features.feed(base, scale, self._V, alpha, z, out)

    def weighing(self, log_p: Tensor, rest: Tensor) -> Weighing:
        """M p of log p = log_p + rest, which is written into log_p; rest is overwritten."""
        return self.features.weighing(log_p, rest)

    @cached_property
    def _V(self) -> Tensor | None:
        """V as an array, or None where it is one 0 for all nodes."""
        constant = not any(self.potential.stride())
        return None if constant and not bool(self.potential.any()) else self.potential.contiguous()


@runtime_checkable
class Energy(Protocol):
    """Anything that can be put on a node set."""

    def on(self, nodes: Grid | ParticleMeasure) -> Composite:
        """The energy on these nodes."""
        ...


class _None(Features):
    """No data: n = 0."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device

    def outputs(self, p: Tensor) -> Tensor:
        return torch.zeros(0, dtype=torch.float64, device=self.device)

    def potential(self, z: Tensor) -> Tensor:
        return torch.zeros((), dtype=self.dtype, device=self.device).expand(self.shape)

    def gram(self, p: Tensor) -> Tensor:
        return torch.zeros(0, 0, dtype=torch.float64, device=self.device)

    @property
    def gram_work(self) -> int:
        return 0

    def slope2(self, z: Tensor) -> Tensor:
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class Potential:
    """F(p) = <V, p>, the case without data: Ornstein-Uhlenbeck, translations, learned energies.

    Args:
        V: maps coordinates (N, k) to values (N,). Its gradient is autograd's, where a step asks for it.
    """

    V: Callable[[Float[Tensor, "N k"]], Float[Tensor, " N"]]

    def on(self, nodes: Grid | ParticleMeasure) -> Composite:
        """V at the nodes.

        Raises:
            RiskError: if V gives NaN or inf, or a wrong shape.
        """
        points = nodes.points() if isinstance(nodes, Grid) else nodes.positions
        values = self.V(points)
        if values.shape != points.shape[:1]:
            raise RiskError(f"received V values of shape {tuple(values.shape)}, need ({points.shape[0]},): one a node")
        if values.dtype != points.dtype or values.device != points.device:
            raise RiskError(
                f"received V values in {values.dtype} on {values.device}, "
                f"need the nodes' {points.dtype} on {points.device}"
            )
        if not bool(torch.isfinite(values).all()):
            raise RiskError("received V values with NaN or inf among them, need finite numbers on every node")
        targets = torch.zeros(0, dtype=torch.float64, device=points.device)
        features = _None(nodes.shape, points.dtype, points.device)
        return Composite(features, Squared(), targets, values.reshape(nodes.shape), lambda z: self._slope2(nodes))

    @torch.enable_grad()
    def _slope2(self, nodes: Grid | ParticleMeasure) -> Tensor:
        """|grad V|^2: along the tangent of circles and spheres, and not between sheets."""
        points = (nodes.points() if isinstance(nodes, Grid) else nodes.positions).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.V(points).sum(), points)
        if not isinstance(nodes, Grid):
            return gradient.square().sum(1)
        total, start = torch.zeros(points.shape[0], dtype=points.dtype, device=points.device), 0
        for f in nodes.factors:
            k = f.nodes.shape[1]
            x, g = points.detach()[:, start : start + k], gradient[:, start : start + k]
            if isinstance(f, Circle | Sphere):
                g = g - (g * x).sum(1, keepdim=True) * x
            if not isinstance(f, Sheets):
                total += g.square().sum(1)
            start += k
        return total.reshape(nodes.shape)


def restricted(energy: Energy, whole: Composite, grid: Grid, box: tuple[slice, ...]) -> Composite:
    """The energy on the nodes of a box: V as it is on the whole grid, which it may have been normalised over."""
    V = whole.potential[box] if whole.potential.ndim else whole.potential
    if isinstance(energy, Potential):
        features = _None(grid.shape, grid.dtype, grid.device)
        return replace(whole, features=features, potential=V, slope2=lambda z: whole.slope2(z)[box])
    return replace(energy.on(grid), potential=V)
