"""The transport term of a step, with mass kept or growing: the only file that knows which.

Both terms are entropic, T_eps(p, q) = min over couplings of <c, pi> + eps KL(pi | K) + marginal terms, and answer one
question: min over p of T_eps(p, q) + <h - d, p>, for a linear h (tau times the potential) and a debiasing potential d.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from bigjko_kernels import GibbsKernel
from bigjko_kernels.ascent import Evaluation
from bigjko_kernels.gibbs import Twice
from bigjko_kernels.pages import empty_like
from bigjko_kernels.passes import Combination, Damped, Division, Feed, Multiple, Reciprocal, Rule, Used
from bigjko_kernels.sums import sum64

from .errors import StepError

OnGrid = Float[Tensor, "*grid"]
Tilt = Callable[[OnGrid, float, float, OnGrid], Feed]
"""A linear h, by what it does: (base, scale, alpha, out) -> what writes scale base + alpha h into out, not base.

h is as it is when that writes.
"""


@dataclass(frozen=True, eq=False)
class Response:
    """The answer: the smallest value, and the p that reaches it.

    Attributes:
        value: of the minimum; a number, or a tensor, which off the CPU nobody has waited for.
        log_p: of `respond`.
        rest: what has still to be added to it, of `responding`: by whoever sums p, in the same pass.
    """

    value: float | Float[Tensor, ""]
    log_p: OnGrid
    rest: OnGrid


class Respond(ABC):
    """Responds to what h is by now, as often as it is called.

    No cycle of references may hold its arrays: memory is used again as soon as a step lets go of it.
    """

    @abstractmethod
    def __call__(self) -> Response | None:
        """The response; None where the minimum is not finite."""

    def through(self, use: Callable[[Evaluation], Used]) -> Used | None:
        """What `use` makes of it as compiled code, which it may call while it runs; None where no code does it."""
        return None


class Transport(ABC):
    """T_eps on one kernel; final classes Balanced, Scaled and WassersteinFisherRao.

    Attributes:
        conserves_mass: the law of mass.
        dearest: the kernel's cost and epsilon count at most this many times.
    """

    conserves_mass: bool
    dearest: float = 1.0

    def __init__(self, kernel: GibbsKernel) -> None:
        self.kernel = kernel

    @property
    def epsilon(self) -> float:
        """Entropic temperature."""
        return self.kernel.epsilon

    def fitted(self, log_q: OnGrid) -> "Transport":
        """The same transport with its kernel fitted to one step from q."""
        kernel = self.kernel.fitted(log_q)
        return self if kernel is self.kernel else type(self)(kernel)

    @abstractmethod
    def neutral(self) -> OnGrid:
        """The d of a plain step: none, but for the cell volumes that entropy is relative to."""

    def respond(self, log_q: OnGrid, h: OnGrid, d: OnGrid) -> Response:
        """min over p of T_eps(p, q) + <h - d, p>; `feasible(h, d)` must hold. Two applications."""

        def tilt(base: OnGrid, scale: float, alpha: float, out: OnGrid) -> Feed:
            return Feed(lambda: torch.mul(base, scale, out=out).add_(h, alpha=alpha))

        found = self.responding(log_q, log_q.exp(), tilt, d, 1.0, torch.empty_like(d), torch.empty_like(d))()
        if found is None:
            raise StepError("received an h with exp(-d) + h <= 0 somewhere, need feasible(h, d)")
        return Response(found.value, found.log_p + found.rest, torch.zeros_like(d))

    @abstractmethod
    def responding(
        self,
        log_q: OnGrid,
        q: OnGrid,
        tilt: Tilt,
        d: OnGrid,
        tau: float,
        work: OnGrid,
        out: OnGrid,
        then: Feed | None = None,
    ) -> Respond:
        """What responds to tau h as often as it is called, without a new array: log_p in out, the rest in work.

        then: to be done when they are there.
        """

    @abstractmethod
    def feasible(self, h: OnGrid, d: OnGrid) -> bool:
        """Whether that minimum is finite."""

    def debias(self, d: OnGrid, log_p: OnGrid) -> OnGrid:
        """One averaged fixed-point step towards the d whose T_eps(p, p)/2 has derivative d at p. One application."""
        return d + self.refitting(0.0).rate * (log_p - self.reproduced(d, torch.empty_like(d)))

    def reproduced(self, d: OnGrid, out: OnGrid) -> OnGrid:
        """log r, r the measure that d debiases: T_eps(r, r)/2 has derivative d at r. Into out. One application."""
        return self.blurred(d, out).add_(d, alpha=self.refitting(0.0).weight)

    @abstractmethod
    def blurred(self, d: OnGrid, out: OnGrid, then: Feed | None = None) -> OnGrid:
        """log of what the kernel makes of exp(d / eps). Into out. One application. then: to be done afterwards."""

    @abstractmethod
    def refitting(self, share: float) -> Rule:
        """How d moves towards the d that debiases a p, from `blurred`: by half a Sinkhorn update.

        But not below the potential of `share` of what the kernel makes of exp(d / eps), scaled so that it blurs the
        uniform measure into itself; 0: no such floor.
        """


class Balanced(Transport):
    """Mass is kept: <c, pi> + eps sum pi (log pi - 1) over couplings of p and q.

    With b = exp((d - h)/eps): value -eps sum q log(K b) + const, p = b K(q / (K b)) (mathematics.md 2).
    """

    conserves_mass = True

    def neutral(self) -> OnGrid:
        """eps log(cell volume)."""
        return self.epsilon * self.kernel.grid.log_weights

    @cached_property
    def _scale(self) -> float:
        """log of cell volume over that of the kernel's row, the least of all nodes: rows at the edge of a box lack."""
        weights = self.kernel.grid.log_weights
        row = weights.clone(memory_format=torch.contiguous_format)
        return -float(self.kernel.log_apply(row, out=row).sub_(weights).max())

    def responding(
        self,
        log_q: OnGrid,
        q: OnGrid,
        tilt: Tilt,
        d: OnGrid,
        tau: float,
        work: OnGrid,
        out: OnGrid,
        then: Feed | None = None,
    ) -> Respond:
        """See Transport."""
        eps, kernel = self.epsilon, self.kernel
        tilted, over = tilt(d, 1 / eps, -tau / eps, work), Division(q, log_q, out)

        return _Balanced(kernel.twice(work, out, tilted, over, then), over, -eps, out, work)

    def feasible(self, h: OnGrid, d: OnGrid) -> bool:
        """Always."""
        return True

    def blurred(self, d: OnGrid, out: OnGrid, then: Feed | None = None) -> OnGrid:
        """K b, b = exp(d / eps)."""
        return self.kernel.log_apply(out, out=out, feed=Multiple(d, 1 / self.epsilon, out), then=then)

    def refitting(self, share: float) -> Rule:
        """r = b K b; half a Sinkhorn update is eps / 2. Reference: Janati, Cuturi and Gramfort 2020."""
        eps = self.epsilon
        free = Rule(1 / eps, eps / 2)
        return free._replace(eps=eps, least=eps * (self._scale + math.log(share))) if share else free


class _Balanced(Respond):
    """Two applications, and worth times what is summed between them for the value."""

    def __init__(self, twice: Twice, over: Division, worth: float, out: OnGrid, work: OnGrid) -> None:
        self._twice, self._over, self._worth, self._out, self._work = twice, over, worth, out, work

    def __call__(self) -> Response:
        """See Respond."""
        self._twice()
        return Response(self._worth * self._over.total, self._out, self._work)

    def through(self, use: Callable[[Evaluation], Used]) -> Used | None:
        """See Respond."""
        return self._twice.through(lambda call, done: use(Evaluation(call, done, self._over.sums, self._worth)))


class Scaled(Transport):
    """Mass is kept on every sheet, whose nodes v stand for theta = s v: sum over sheets of s^2 T_eps, T_eps Balanced.

    |theta - theta'|^2 is s^2 |v - v'|^2: with s^2 eps for its temperature a sheet's Gibbs kernel is that of any other,
    and b = exp(d / eps - h / (s^2 eps)). d is that of v, in which nothing of debiasing sees the scale. The scales s
    are the labels of the grid's first factor.
    """

    conserves_mass = True

    def __init__(self, kernel: GibbsKernel) -> None:
        super().__init__(kernel)
        self.unit = Balanced(kernel)
        self.squares = kernel.grid.along(0, kernel.grid.factors[0].nodes[:, 0].square())
        self.dearest = float(self.squares.max())

    def neutral(self) -> OnGrid:
        """eps log(cell volume)."""
        return self.unit.neutral()

    def responding(
        self,
        log_q: OnGrid,
        q: OnGrid,
        tilt: Tilt,
        d: OnGrid,
        tau: float,
        work: OnGrid,
        out: OnGrid,
        then: Feed | None = None,
    ) -> Respond:
        """See Transport. Of q itself Balanced sums its value and no more."""

        def shared(base: OnGrid, scale: float, alpha: float, out: OnGrid) -> Feed:
            own = tilt(base, 0.0, alpha, out)

            def whole() -> None:
                own.whole()
                out.div_(self.squares).add_(base, alpha=scale)

            return Feed(whole)

        return self.unit.responding(log_q, q * self.squares, shared, d, tau, work, out, then)

    def feasible(self, h: OnGrid, d: OnGrid) -> bool:
        """Always."""
        return True

    def blurred(self, d: OnGrid, out: OnGrid, then: Feed | None = None) -> OnGrid:
        """That of v."""
        return self.unit.blurred(d, out, then)

    def refitting(self, share: float) -> Rule:
        """That of v."""
        return self.unit.refitting(share)


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
        self._largest = float(weights.max())

    def neutral(self) -> OnGrid:
        """Zero."""
        return torch.zeros_like(self.scale)

    def responding(
        self,
        log_q: OnGrid,
        q: OnGrid,
        tilt: Tilt,
        d: OnGrid,
        tau: float,
        work: OnGrid,
        out: OnGrid,
        then: Feed | None = None,
    ) -> Respond:
        """See Transport."""
        return _Growing(self, log_q, q, tilt, d, tau, work, out, then)

    def feasible(self, h: OnGrid, d: OnGrid) -> bool:
        """exp(-d) + h > 0 everywhere."""
        return bool(((-d).exp() + h > 0).all())

    def blurred(self, d: OnGrid, out: OnGrid, then: Feed | None = None) -> OnGrid:
        """K b, b = exp(d / eps), cell volumes included."""
        feed = Combination(d, 1 / self.epsilon, self.scale, 1.0, out)
        return self.kernel.log_apply(out, out=out, feed=feed, then=Combination(out, 1.0, self.scale, 1.0, out, then))

    def refitting(self, share: float) -> Rule:
        """r = exp(d) b K b; half a Sinkhorn update is eps / (2 (1 + eps))."""
        eps = self.epsilon
        free = Rule(1 + 1 / eps, eps / (2 * (1 + eps)))
        return free._replace(eps=eps, least=eps * (math.log(share) - self._largest)) if share else free


class _Growing(Respond):
    """Two applications where exp(-d) + h is positive, of what is scaled on both sides.

    g = exp(-d) - 1 + h, in place of 1 + g: both terms are small, and would round to ulp(1) / eps.
    """

    def __init__(
        self,
        transport: WassersteinFisherRao,
        log_q: OnGrid,
        q: OnGrid,
        tilt: Tilt,
        d: OnGrid,
        tau: float,
        work: OnGrid,
        out: OnGrid,
        then: Feed | None,
    ) -> None:
        eps, scale, kernel = transport.epsilon, transport.scale, transport.kernel
        self._d, self._base, self._out, self._work = d, empty_like(d), out, work
        self._total, self._worth = float(sum64(q)), -(1 + eps)
        self._powers = Reciprocal(tilt(self._base, 1.0, tau, work), work, scale, eps)
        self._over = Damped(log_q, scale, out, eps)
        rest = Combination(work, 1 + eps, scale, -eps, work, then)
        self._applied = kernel.twice(work, out, None, self._over, rest)
        self._at_once = kernel.twice(work, out, self._powers, self._over, rest)

    def __call__(self) -> Response | None:
        """See Respond."""
        self._begin()
        self._powers.whole()
        if not self._powers.finite:
            return None
        self._applied()
        return Response(self._total + self._worth * self._over.total, self._out, self._work)

    def through(self, use: Callable[[Evaluation], Used]) -> Used | None:
        """See Respond."""
        self._begin()
        return self._at_once.through(
            lambda call, done: use(Evaluation(call, done, self._over.sums, self._worth, self._total))
        )

    def _begin(self) -> None:
        torch.neg(self._d, out=self._base).expm1_()


_BALANCING = 60  # halvings of the log scale at most; a uniform circle needs one
_BALANCED = 1e-12
