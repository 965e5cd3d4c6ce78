"""The step by its n-dimensional dual: whatever the grid, n unknowns and two kernel applications an evaluation.

    D(z) = -tau g*(z) + min over p of [T_eps(p, q) + <tau (V + M^T z) - d, p>],   grad D = tau (M p_z - grad g*(z))

concave, and -Hess D / tau = Hess g*(z) + B with B near tau NTK(p_z) (mathematics.md 2). Hess g* is known exactly, so a
structured BFGS learns B alone, from the pairs (dz, -d M p_z), on NTK(q); far from the answer, where an NTK costs less
than the kernel, from all pairs of the pass on a fresh NTK(p_z). Near it most passes are moves that are taken as they
are: where the loss is quadratic and all of an evaluation is compiled, those are too (`climb`).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bigjko_kernels.ascent import Climbed, Evaluation, Point, Rules, climb, learn
from bigjko_kernels.passes import Feed, Parts, Weighing
from bigjko_kernels.sums import parts

from ..errors import StepError
from ..status import Status
from .box import DualBox, largest
from .problem import Solution, Solve, StepProblem, StepSolver


def foreseen(box: DualBox, z: Float[Tensor, " n"], B: Float[Tensor, "n n"]) -> Float[Tensor, " n"]:
    """The dual point after a step in which M p answers linearly, M p = M q - B z: no kernel application.

    From z = grad g(M q), Newton on g*(z') - <M q, z'> + <z', B z'>/2; exact in one turn for a quadratic loss. It lands
    at the linearised implicit step, where the plain warm start z lands at the explicit one.
    """
    loss, y, start = box.loss, box.y, box.inside(z)
    guess, gradient = start, -(B @ start)
    for _ in range(_FORESIGHT):
        move = box.newton_move(B, loss.conjugate_curvature(guess, y), gradient, guess)
        guess, first = box.inside(guess + move, guess), gradient
        if box.quadratic is not None:
            break
        gradient = loss.conjugate_gradient(start, y) - loss.conjugate_gradient(guess, y) - B @ guess
        if not largest(gradient) > _SEEN * largest(first):
            break
    return guess if math.isfinite(largest(guess)) else start


@dataclass(frozen=True)
class DualSolver(StepSolver):
    """NTK-preconditioned quasi-Newton on the dual, with a line search, kept inside the loss's dual box.

    Args:
        rtol: of the residual max |z - grad g(M p)|, relative to the larger of max |z| and max |grad g(0)|: p is then
            right to about ten times as much in L1. Where the dtype cannot reach it (float32), rounding of the log
            masses takes its place.
        max_evaluations: per pass.

    Cost: 3 to 16 evaluations a pass, two kernel applications each, whatever eps and h, while tau max|G| <= 1/2, where
    G = sum_j z_j 1{w.x_j > 0} x_j; several times that beyond. One n x n factorisation each.
    """

    rtol: float = 1e-9
    max_evaluations: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.rtol < 1 or self.max_evaluations < 1:
            raise StepError(
                f"received rtol = {self.rtol} and max_evaluations = {self.max_evaluations}, "
                "need 0 < rtol < 1 and at least one evaluation"
            )

    def solve(
        self, problem: StepProblem, z0: Float[Tensor, " n"], curvature: Float[Tensor, "n n"], rtol: float = 0.0
    ) -> Solution:
        """See StepSolver. What is in R^n is kept on the host: the device is waited for once an evaluation."""
        return self.solving(problem)(z0, curvature, rtol)

    def solving(self, problem: StepProblem) -> Solve:
        """See StepSolver."""
        dual = _Dual(problem, self.rtol)
        return lambda z0, curvature, rtol: self._solve(dual, z0, curvature, max(self.rtol, rtol))

    def _solve(self, dual: "_Dual", z0: Tensor, curvature: Tensor, rtol: float) -> Solution:
        problem = dual.problem
        box, device = problem.box, problem.q.device
        z, curvature = box.inside(z0.cpu()), curvature.cpu()
        cheap = problem.energy.features.gram_work <= _CHEAP * problem.q.numel()
        rules = Rules(
            tolerance=rtol,
            good=self.rtol,
            far=_FAR_OFF if cheap else math.inf,
            noise=_NOISE,
            force=box.force,
            budget=self.max_evaluations,
            turns=_PATIENCE,
        )
        begun = dual.begun(z, curvature, rules)
        if begun is None:
            return _failed(problem, z.to(device), curvature.to(device))
        point, evaluations, B, pairs, stale, _ = begun
        while True:
            residual, tolerance = point.residual, max(rtol, point.rounding)
            if not (math.isfinite(residual) and math.isfinite(point.value)):
                status = Status.not_finite
                break
            if residual <= tolerance:
                status = Status.ok
                break
            refresh = cheap and (residual > _FAR_OFF or len(pairs) >= _PATIENCE)
            if refresh:
                p = torch.exp(problem.room.log_p, out=problem.room.work)
                curvature = problem.tau * problem.energy.features.gram(p).cpu()
                B = curvature
                for pair in pairs:
                    B = learn(B, *pair)
            direction = self._newton(box, B, point)
            if float(direction @ point.gradient) <= 0:  # pairs from far away have cost B its sign: start it afresh
                pairs.clear()
                B, refresh = curvature, False
                direction = self._newton(box, B, point)
            found, spent = self._search(dual, box, point, direction, self.max_evaluations - evaluations)
            evaluations += spent
            if found is None:
                status = Status.dual_stalled
                if spent or stale:  # the search has left another p in the room
                    dual.at(point.z)
                    evaluations += 1
                break
            # Where M p has not answered at all, B loses its curvature along the move. That happens once all mass has
            # gone where it can: with an NTK left in B, a step is a few percent of Newton's.
            pairs.append((found.z - point.z, point.outputs - found.outputs))
            B = B if refresh else learn(B, *pairs[-1])
            point, stale = found, False
        u, z = point.outputs, point.z
        gap = problem.tau * float(box.loss.gap(u, z, box.y)) if point.gap is None else point.gap
        onward = z if point.onward is None else point.onward
        if point.onward is None and status is Status.ok and residual > max(self.rtol, point.rounding):
            move = self._newton(box, B, point)
            if 0 < float(move @ point.gradient) < math.inf:
                onward = box.inside(z + move, z)
        u, z, onward, B = (x.to(device) for x in (u, z, onward, B))
        return Solution(problem.room.log_p, u, z, onward, B, evaluations, residual, gap, status)

    def _newton(self, box: DualBox, B: Tensor, point: Point) -> Tensor:
        """The move at a point, with B for what transport adds to the dual's curvature."""
        return box.newton_move(B, box.loss.conjugate_curvature(point.z, box.y), point.gradient, point.z)

    def _search(
        self, dual: "_Dual", box: DualBox, point: Point, direction: Tensor, budget: int
    ) -> tuple[Point | None, int]:
        """A step along which D has not yet turned down by more than half its first slope.

        The test is on slopes: near the top, values of D differ by less than their rounding, slopes do not.
        """
        alpha = 1.0
        for spent in range(1, budget + 1):
            z = box.inside(point.z.add(direction, alpha=alpha), point.z)
            while (found := dual.at(z)) is None:  # growing mass has a wall: half way to it, no nearer
                alpha /= 2
                if alpha < _SHORTEST:
                    return None, spent
                z = box.inside(point.z.add(direction, alpha=alpha), point.z)
            move = z - point.z
            first, last = float(move @ point.gradient), float(move @ found.gradient)
            noise = max(_NOISE, point.rounding) * (1 + abs(point.value))
            if first <= 0:
                return None, spent
            if last >= -first / 2 and found.value >= point.value - noise:
                return found, spent
            alpha *= max(0.1, min(0.5, first / (first - last)))
            if alpha < _SHORTEST:
                return None, spent
        return None, budget


class _Dual:
    """D on one problem: what all its evaluations share."""

    def __init__(self, problem: StepProblem, rtol: float) -> None:
        energy, room, q = problem.energy, problem.room, problem.q
        self.problem = problem
        self._box, self._tau, self._torn = problem.box, problem.tau, False
        self._z = z = torch.empty(problem.box.y.shape, dtype=torch.float64, device=q.device)
        self._weighed = _Weighed(problem, rtol, energy.weighing(room.log_p, room.work))

        def tilt(base: Tensor, scale: float, alpha: float, out: Tensor) -> Feed:
            return energy.feed(base, scale, alpha, z, out)

        self._respond = problem.transport.responding(
            problem.log_q, q, tilt, problem.d, problem.tau, room.work, room.log_p, self._weighed
        )

    def at(self, z: Tensor) -> Point | None:
        """D and its gradient at z, or None where the growing mass makes it infinite. Its log p fills the room."""
        self._z.copy_(z)
        response = self._respond()
        if response is None:
            return None
        loss, y, u, value = self._box.loss, self._box.y, self._weighed.sums.outputs, response.value
        if u.device == z.device:
            outputs = u.clone()
        else:  # together: the device is waited for
            outputs, value = torch.cat([u, torch.as_tensor(value).reshape(1)]).to(z.device).split([len(y), 1])
        value = float(value) - self._tau * float(loss.conjugate(z, y))
        residual, rounding = self._box.residual(z, outputs), self._weighed.rounding
        return Point(z, outputs, outputs - loss.conjugate_gradient(z, y), value, residual, rounding)

    def begun(self, z: Tensor, B: Tensor, rules: Rules) -> Climbed | None:
        """From z as far as a climb gets; where there is none, the first point at which D is finite, or None.

        A move that a climb could not take is evaluated again by whoever shortens it.
        """
        climbed = self._climb(z, B, rules)
        if climbed is not None:
            return climbed
        for _ in range(_HALVINGS):  # growing mass bounds the dual: shrink the start until it is feasible
            point = self.at(z)
            if point is not None:
                return Climbed(point, 1, B, [], False)
            z = self._box.inside(z / 2)
        return None

    def _climb(self, z: Tensor, B: Tensor, rules: Rules) -> Climbed | None:
        """As far as compiled code gets up from z by whole moves; None where there is none, or no way from z.

        What an evaluation lacks that does not go through is there afterwards, and the climb begins again: the steps
        that are taken must not depend on what a kernel has done before. Where it is stopped twice nothing climbs.
        """
        quadratic = self._box.quadratic
        stopped = list[Tensor]()
        if quadratic is None or self._weighed.matters or self._torn:
            return None

        def use(evaluation: Evaluation) -> Climbed | None:
            self._z.copy_(z)
            return climb(evaluation, self._z, self._weighed.sums.outputs, quadratic, self._tau, B, rules)

        for _ in range(rules.turns + 2):  # it has no more points
            climbed = self._respond.through(use)
            if climbed is None:
                return None
            if not climbed.torn:
                return climbed if climbed.evaluations else None
            if any(torch.equal(self._z, known) for known in stopped):
                break
            stopped.append(self._z.clone())
            if self.at(stopped[-1]) is None:  # infeasible, which goes through, as NaN, where a kernel lacks nothing
                return climbed._replace(evaluations=climbed.evaluations + 1) if climbed.evaluations else None
        self._torn = True
        return None


class _Weighed(Feed):
    """M p, and before it, where the dtype may matter, what rounding leaves uncertain in log p."""

    def __init__(self, problem: StepProblem, rtol: float, sums: Weighing) -> None:
        self._problem, self.sums, self.rounding = problem, sums, 0.0
        self._ulp = torch.finfo(problem.log_q.dtype).eps
        self.matters = rtol < _FAR * self._ulp

    def whole(self) -> None:
        """See Feed."""
        if self.matters:
            self.rounding = 4 * self._ulp * self._largest()
        self.sums.whole()

    def parts(self, shares: int, nodes: int) -> Parts | None:
        """See Feed."""
        return None if self.matters else self.sums.parts(shares, nodes)

    def _largest(self) -> float:
        """The largest |log b| + |log p| at nodes that carry mass."""
        room, log_q = self._problem.room, self._problem.log_q
        largest, least = log_q.new_zeros(()), log_q.max() - _LIGHT
        for log_k, q, b in parts(room.log_p, log_q, room.work):
            p = log_k + b
            light = torch.minimum(p, q) < least
            largest = torch.maximum(largest, (p.abs_() + b.abs()).masked_fill_(light, 0.0).max())
        return float(largest)


def _failed(problem: StepProblem, z: Tensor, curvature: Tensor) -> Solution:
    outputs = problem.energy.outputs(problem.log_q.exp())
    return Solution(problem.log_q, outputs, z, z, curvature, _HALVINGS, math.nan, math.nan, Status.infeasible)


_HALVINGS = 40
_NOISE = 1e-9  # a drop of D below this share of 1 + |D| may be rounding; in float32 that of the exponents is larger
_SHORTEST = 1e-8
_LIGHT = 30.0  # nodes lighter than exp(-30) of the heaviest do not move M p
_FAR = 1e6  # ulps: where |log p| stays below 1e5 no rounding reaches a tolerance of more than this
_FAR_OFF = (
    0.03  # residual above which an NTK is made afresh: ordinary steps start below it, those of tau max|G| > .5 not
)
_PATIENCE = 3  # pairs after which one is made anyway
_CHEAP = 100  # multiplications of a gram per node: a kernel application on three axes costs more
_FORESIGHT = 10
_SEEN = 1e-3
