"""The transport term of a step, with mass kept or growing: the only file that knows which.

Both terms are entropic, T_eps(p, q) = min over couplings of <c, pi> + eps KL(pi | K) + marginal terms, and answer one
question: min over p of T_eps(p, q) + <h - d, p>, for a linear h (tau times the potential) and a debiasing potential d.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bigjko_kernels import LOG_ZERO, GibbsKernel


@dataclass(frozen=True, eq=False)
class Response:
    """The answer: the smallest value, and the p that reaches it, computed when asked for (a second application)."""

    value: Float[Tensor, ""]
    log_p: Callable[[], Tensor]


class Transport(ABC):
    """T_eps on one kernel; final classes Balanced and WassersteinFisherRao."""

    conserves_mass: bool

    def __init__(self, kernel: GibbsKernel) -> None:
        self.kernel = kernel

    @property
    def epsilon(self) -> float:
        """Entropic temperature."""
        return self.kernel.epsilon

    def fitted(self, log_q: Float[Tensor, "*grid"]) -> "Transport":
        """The same transport with its kernel fitted to one step from q."""
        kernel = self.kernel.fitted(log_q)
        return self if kernel is self.kernel else type(self)(kernel)

    @abstractmethod
    def neutral(self) -> Float[Tensor, "*grid"]:
        """The d of a plain step: none, but for the cell volumes that entropy is relative to."""

    @abstractmethod
    def respond(self, log_q: Float[Tensor, "*grid"], h: Float[Tensor, "*grid"], d: Float[Tensor, "*grid"]) -> Response:
        """min over p of T_eps(p, q) + <h - d, p>; `feasible(h, d)` must hold."""

    @abstractmethod
    def feasible(self, h: Float[Tensor, "*grid"], d: Float[Tensor, "*grid"]) -> bool:
        """Whether that minimum is finite."""

    @abstractmethod
    def debias(self, d: Float[Tensor, "*grid"], log_p: Float[Tensor, "*grid"]) -> Float[Tensor, "*grid"]:
        """One averaged fixed-point step towards the d whose T_eps(p, p)/2 has derivative d at p. One application."""

    @property
    @abstractmethod
    def misfit_per_move(self) -> float:
        """The move of d in `debias` times this is log(p / r), r the mass that the old d reproduces."""


class Balanced(Transport):
    """Mass is kept: <c, pi> + eps sum pi (log pi - 1) over couplings of p and q.

    With b = exp((d - h)/eps): value -eps sum q log(K b) + const, p = b K(q / (K b)) (mathematics.md 2).
    """

    conserves_mass = True

    def neutral(self) -> Float[Tensor, "*grid"]:
        """eps log(cell volume)."""
        return self.epsilon * self.kernel.grid.log_weights

    def respond(self, log_q: Float[Tensor, "*grid"], h: Float[Tensor, "*grid"], d: Float[Tensor, "*grid"]) -> Response:
        """See Transport."""
        log_b = (d - h) / self.epsilon
        log_kb = self.kernel.log_apply(log_b)
        empty = log_q == LOG_ZERO
        q = log_q.exp()
        value = -self.epsilon * (q * log_kb.masked_fill(empty, 0.0)).sum(dtype=torch.float64)
        return Response(value, lambda: log_b + self.kernel.log_apply(_minus(log_q, log_kb)))

    def feasible(self, h: Float[Tensor, "*grid"], d: Float[Tensor, "*grid"]) -> bool:
        """Always."""
        return True

    def debias(self, d: Float[Tensor, "*grid"], log_p: Float[Tensor, "*grid"]) -> Float[Tensor, "*grid"]:
        """d <- sqrt(d p / (K d)), in logs. Reference: Janati, Cuturi and Gramfort 2020."""
        log_d = d / self.epsilon
        return self.epsilon / 2 * (log_d + _minus(log_p, self.kernel.log_apply(log_d)))

    @property
    def misfit_per_move(self) -> float:
        """2 / eps, for r = d . K d."""
        return 2 / self.epsilon


class WassersteinFisherRao(Transport):
    """Mass grows: <c, pi> + eps KL(pi | K) + KL(pi 1 | p) + KL(pi^T 1 | q), c the Hellinger-Kantorovich cost.

    a = (exp(-d) + h)^(-1/eps), b = (q / (K a))^(1/(1+eps)), p = a^(1+eps) K b; the value is
    |q| - (1 + eps) sum (q (K a)^eps)^(1/(1+eps)). mathematics.md 3. K is relative to cell volumes on both sides and
    scaled so that it blurs the uniform measure into itself: a kernel with another total creates or destroys mass.
    """

    conserves_mass = False

    def __init__(self, kernel: GibbsKernel) -> None:
        super().__init__(kernel)
        weights = kernel.grid.log_weights
        # One scale on both sides: exp(2 scale) sum_k K_ik w_k = 1, exactly on a uniform circle. Rows of a Fibonacci
        # sphere differ by a few percent at epsilon = .75 h^2, so they are balanced by a short symmetric Sinkhorn.
        scale = torch.zeros_like(weights)
        rounding = 4 * torch.finfo(weights.dtype).eps * max(1.0, float(weights.abs().max()))
        for _ in range(_BALANCING):
            last, scale = scale, (scale - kernel.log_apply(scale + weights)) / 2
            if float((scale - last).abs().max()) <= max(_BALANCED, rounding):
                break
        self.scale = scale + weights

    def _apply(self, b: Float[Tensor, "*grid"]) -> Float[Tensor, "*grid"]:
        return self.scale + self.kernel.log_apply(b + self.scale)

    def neutral(self) -> Float[Tensor, "*grid"]:
        """Zero."""
        return torch.zeros_like(self.scale)

    def respond(self, log_q: Float[Tensor, "*grid"], h: Float[Tensor, "*grid"], d: Float[Tensor, "*grid"]) -> Response:
        """See Transport."""
        eps = self.epsilon
        log_a = -((-d).expm1() + h).log1p() / eps  # both are small: exp(-d) + h would round to ulp(1) / eps
        log_ka = self._apply(log_a)
        log_s = (log_q + eps * log_ka) / (1 + eps)
        value = log_q.exp().sum(dtype=torch.float64) - (1 + eps) * log_s.exp().sum(dtype=torch.float64)
        return Response(value, lambda: (1 + eps) * log_a + self._apply((log_q - log_ka) / (1 + eps)))

    def feasible(self, h: Float[Tensor, "*grid"], d: Float[Tensor, "*grid"]) -> bool:
        """exp(-d) + h > 0 everywhere."""
        return bool(((-d).exp() + h > 0).all())

    def debias(self, d: Float[Tensor, "*grid"], log_p: Float[Tensor, "*grid"]) -> Float[Tensor, "*grid"]:
        """d <- (d + eps (log p - log K exp(d/eps)) / (1 + eps)) / 2."""
        eps = self.epsilon
        return (d + eps * _minus(log_p, self._apply(d / eps)) / (1 + eps)) / 2

    @property
    def misfit_per_move(self) -> float:
        """2 (1 + eps) / eps, for r = exp(d + d/eps) K exp(d/eps)."""
        return 2 * (1 + self.epsilon) / self.epsilon


_BALANCING = 60  # halvings of the log scale at most; a uniform circle needs one
_BALANCED = 1e-12


def _minus(log_x: Tensor, log_y: Tensor) -> Tensor:
    """log x - log y with 0 / 0 = 0: no mass stays no mass, whatever reaches it."""
    return torch.where(log_x == LOG_ZERO, log_x, log_x - log_y)
