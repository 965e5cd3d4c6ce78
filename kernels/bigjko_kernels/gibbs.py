"""The Gibbs kernel exp(-c / epsilon), applied in the log domain and never stored."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .costs import Cost
from .errors import KernelError
from .grid import Grid
from .pages import empty_like
from .passes import Feed, Parts, Used

LOG_ZERO = -math.inf
"""The logarithm of no mass, at every interface. No kernel may compute inf - inf from it."""


class GibbsKernel(ABC):
    """K_ik = exp(-c(x_i, x_k) / epsilon) over the nodes of a grid; between sheets, 0. Symmetric.

    `log_apply` is exact for any input up to rounding: nothing that could matter is dropped, and `LOG_ZERO` is a
    value like any other. Differentiable once in its argument, by two more applications.

    Attributes:
        grid: the nodes.
        epsilon: entropic temperature, in units of the cost.
        cost: the ground cost, on coordinates without sheets.

    Raises:
        KernelError: for an epsilon that is not positive and finite, or values not on the grid.
    """

    def __init__(self, grid: Grid, epsilon: float, cost: Cost) -> None:
        if not (math.isfinite(epsilon) and epsilon > 0):
            raise KernelError(f"received epsilon = {epsilon}, need a positive finite number: .75 h^2 is the default")
        cost.per_factor(grid)  # refuses a grid of another geometry
        self.grid = grid
        self.epsilon = float(epsilon)
        self.cost = cost

    def log_apply(
        self,
        b: Float[Tensor, "*grid"],
        *,
        out: Float[Tensor, "*grid"] | None = None,
        feed: Feed | None = None,
        then: Feed | None = None,
    ) -> Float[Tensor, "*grid"]:
        """log sum_k exp(-c_ik / epsilon + b_k), on the grid's shape.

        Args:
            b: logarithms, LOG_ZERO where there is nothing; what +inf or NaN reaches is not finite.
            out: where the result goes, as in torch: contiguous, may be b itself; not with gradients. On large grids
                the pages of a new array cost as much as an axis.
            feed: what has still to make b, which a kernel may ask for part by part, in its own threads, so that every
                part is in the cache when it is read; not with gradients.
            then: to be done afterwards, in the same call of compiled code where there is one; only with a feed.
        """
        self.grid.check(b, "log values")
        wanted = b.requires_grad and torch.is_grad_enabled()
        if out is not None:
            self._check_out(out)
            if wanted:
                raise KernelError("received a b that requires gradients and an out, need one of them: leave out= away")
        if feed is not None:
            if wanted:
                raise KernelError("received a feed for a b that requires gradients, need one of them")
            return self._fed(feed, b, empty_like(b) if out is None else out, then)
        if then is not None:
            raise KernelError("received a then without a feed, need both: do it after log_apply")
        if out is not None:
            return self._log_apply(b, out)
        if wanted:
            result: Tensor = _LogApply.apply(b, self)  # type: ignore[no-untyped-call]
            return result
        return self._log_apply(b, empty_like(b))

    def _check_out(self, out: Tensor) -> None:
        self.grid.check(out, "out")
        if not out.is_contiguous():
            raise KernelError("received an out that is not contiguous, need one that is: leave out= away")

    def twice(
        self,
        b: Float[Tensor, "*grid"],
        out: Float[Tensor, "*grid"],
        feed: Feed | None,
        over: Feed,
        then: Feed | None = None,
    ) -> "Twice":
        """log_apply of b into out, and of out in place: what a response of entropic transport takes. No gradients.

        Args:
            b: what `feed` makes; without one as it is by then.
            out: contiguous, not b.
            feed: makes b.
            over: makes of the first result, in place, what the second application is of.
            then: to be done afterwards.
        """
        return Twice(self, b, out, feed, over, then)

    def on(self, grid: Grid) -> "GibbsKernel | None":
        """The same kernel on other nodes; None from a class that does not say how, whose steps use the whole grid."""
        return None

    def fitted(self, b: Float[Tensor, "*grid"]) -> "GibbsKernel":
        """The kernel to use for one step from b: itself, unless a subclass freezes a window for the step."""
        return self

    def _fed(
        self, feed: Feed, b: Float[Tensor, "*grid"], out: Float[Tensor, "*grid"], then: Feed | None
    ) -> Float[Tensor, "*grid"]:
        """The same for a b that is not yet made."""
        feed.whole()
        self._log_apply(b, out)
        if then is not None:
            then.whole()
        return out

    @abstractmethod
    def _log_apply(self, b: Float[Tensor, "*grid"], out: Float[Tensor, "*grid"]) -> Float[Tensor, "*grid"]:
        """Writes into out, which may be b, and returns it."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.grid!r}, epsilon={self.epsilon:.4g}, {self.cost!r})"


class Twice:
    """Does what `GibbsKernel.twice` says, as often as it is called."""

    def __init__(
        self, kernel: GibbsKernel, b: Tensor, out: Tensor, feed: Feed | None, over: Feed, then: Feed | None
    ) -> None:
        kernel.grid.check(b, "log values")
        kernel._check_out(out)
        self._kernel, self._b, self._out, self._feeds = kernel, b, out, (feed, over, then)

    def __call__(self) -> None:
        """Do it."""
        feed, over, then = self._feeds
        self._kernel.log_apply(self._b, out=self._out, feed=feed)
        self._kernel.log_apply(self._out, out=self._out, feed=over, then=then)

    def through(self, use: Callable[[Parts, int], Used]) -> Used | None:
        """What `use` makes of it as compiled code, which it may call while it runs; None where no code does it.

        Args:
            use: is given that, and the address of a number that is 2 afterwards if it went through.
        """
        return None


class _LogApply(torch.autograd.Function):
    """d out_i / d b_k = K_ik exp(b_k - out_i): the adjoint is K again, on the positive and negative parts apart."""

    @staticmethod
    def forward(ctx: Any, b: Tensor, kernel: GibbsKernel) -> Tensor:
        out = kernel._log_apply(b, empty_like(b))
        ctx.save_for_backward(b, out)
        ctx.kernel = kernel
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        b, out = ctx.saved_tensors
        dead = out == LOG_ZERO  # no mass reaches these nodes, so no gradient leaves them
        safe = out.masked_fill(dead, 0.0)
        total = torch.zeros_like(b)
        for sign in (1.0, -1.0):
            part = (sign * g).clamp(min=0.0).masked_fill(dead, 0.0)
            log_part = part.log() - safe
            total = total + sign * (b + ctx.kernel._log_apply(log_part, log_part)).exp()
        return total, None
