"""One pass of a step as a problem, and its solution."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from torch import Tensor

from bigjko_kernels.pages import Pool

from ..energy import Composite
from ..status import Status
from ..transport import Transport
from .box import DualBox


class Room:
    """Two arrays of the grid's shape for all passes of a step: on large grids new pages cost as much as arithmetic.

    Attributes:
        work: scratch: the logarithm of the factor on p's side in an evaluation.
        log_p: of the evaluation made last, and at the end the solution's.
    """

    def __init__(self, like: Float[Tensor, "*grid"], pool: Pool) -> None:
        self.work, self.log_p = pool.empty_like(like), pool.empty_like(like)


@dataclass(frozen=True, eq=False)
class StepProblem:
    """min over p of T_eps(p, q) - <d, p> + tau F(p).

    Attributes:
        transport: T_eps.
        energy: F.
        box: the dual box of its loss and labels, on the host.
        log_q, q: the current measure, as logarithms and as masses.
        d: the debiasing potential.
        tau: the time step.
        room: what an evaluation works in.
    """

    transport: Transport
    energy: Composite
    box: DualBox
    log_q: Float[Tensor, "*grid"]
    q: Float[Tensor, "*grid"]
    d: Float[Tensor, "*grid"]
    tau: float
    room: Room


@dataclass(frozen=True, eq=False)
class Solution:
    """What a solver found.

    Attributes:
        log_p: the new measure; in the problem's room, until the next solve.
        outputs: (n,) M p.
        z: (n,) the dual point, grad g(M p) up to the residual.
        onward: (n,) where the next pass should begin: a Newton step further, where the residual leaves one to take.
        curvature: (n, n) what was learned of the dual's curvature, for the next pass.
        evaluations: of the dual, or iterations of the scaling solver: two kernel applications each.
        residual: max |z - grad g(M p)| over the larger of max |z| and max |grad g(0)|.
        gap: primal minus dual, tau [g(u) + g*(z) - <z, u>]: certifies z, not d, the kernel or the mass.
        status: ok, or why not.
    """

    log_p: Float[Tensor, "*grid"]
    outputs: Float[Tensor, " n"]
    z: Float[Tensor, " n"]
    onward: Float[Tensor, " n"]
    curvature: Float[Tensor, "n n"]
    evaluations: int
    residual: float
    gap: float
    status: Status


Solve = Callable[[Float[Tensor, " n"], Float[Tensor, "n n"], float], Solution]
"""(z0, curvature, rtol) -> what `StepSolver.solve` finds."""


class StepSolver(ABC):
    """Solves one pass; final classes DualSolver and ScalingSolver."""

    @abstractmethod
    def solve(
        self, problem: StepProblem, z0: Float[Tensor, " n"], curvature: Float[Tensor, "n n"], rtol: float = 0.0
    ) -> Solution:
        """From a dual point z0 and a guess of the curvature that the transport adds to the dual.

        rtol: no solver need do better: more than 0 where p serves only to move d.
        """

    def solving(self, problem: StepProblem) -> Solve:
        """`solve` on one problem, as often as it is called: each time with what d holds by then."""
        return partial(self.solve, problem)
