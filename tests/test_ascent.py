"""Newton moves, BFGS updates and climbs on R^n: compiled code against torch, and against answers in closed form."""

import ctypes
import math

import pytest
import torch
from torch import Tensor

from bigjko_kernels import ascent
from bigjko_kernels.passes import Parts

F64 = torch.float64
pytestmark = pytest.mark.skipif(ascent.load() is None, reason="there is no compiler")
SIZES = [1, 2, 7, 50, 128, 129]  # the last by torch


def problem(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """A symmetric matrix whose eigenvalues span 1e6, a diagonal and a vector."""
    generator = torch.Generator().manual_seed(n)
    q, _ = torch.linalg.qr(torch.randn(n, n, dtype=F64, generator=generator))
    B = q @ torch.diag(torch.logspace(-3, 3, n, dtype=F64)) @ q.T
    return (B + B.T) / 2, torch.rand(n, dtype=F64, generator=generator), torch.randn(n, dtype=F64, generator=generator)


@pytest.mark.parametrize("n", SIZES)
def test_a_newton_move_solves_its_system(n: int) -> None:
    B, diagonal, gradient = problem(n)
    kept = B.clone()
    move = ascent.newton(B, diagonal, gradient)
    assert move is not None
    H = B + torch.diag(diagonal)
    assert torch.equal(B, kept)
    # Backward stable, like LAPACK: the residual is n ulp of |H| |move|.
    assert (H @ move - gradient).abs().max() <= 4 * n * torch.finfo(F64).eps * H.norm() * move.norm()


@pytest.mark.parametrize("n", [2, 7, 50])
def test_a_matrix_that_is_not_positive_is_still_solved(n: int) -> None:
    B, diagonal, gradient = problem(n)
    B[0, 0] = -5.0
    move = ascent.newton(B, diagonal, gradient)
    assert move is not None
    torch.testing.assert_close(move, torch.linalg.solve(B + torch.diag(diagonal), gradient), rtol=1e-9, atol=1e-9)


def test_a_singular_matrix_is_none() -> None:
    zero = torch.zeros(3, 3, dtype=F64)
    assert ascent.newton(zero, zero[0], torch.ones(3, dtype=F64)) is None
    nan = torch.full((3, 3), torch.nan, dtype=F64)
    move = ascent.newton(nan, zero[0], torch.ones(3, dtype=F64))
    assert move is None or bool(move.isnan().all())


@pytest.mark.parametrize("n", SIZES)
def test_an_update_takes_the_pair_and_is_that_of_torch(n: int) -> None:
    B, change, move = problem(n)
    change = change * move.sign()  # positive along the move
    kept = B.clone()
    learned = ascent.learn(B, move, change)
    assert torch.equal(B, kept)
    scale = float(B.norm() + change.norm() ** 2 / (change @ move))
    assert (learned @ move - change).abs().max() <= 1e-13 * scale * float(move.norm())
    assert (learned - ascent.learn_by_torch(B, move, change)).abs().max() <= 1e-14 * n * scale
    assert (learned - learned.T).abs().max() <= 1e-15 * n * scale


@pytest.mark.parametrize("n", SIZES)
def test_what_does_not_answer_is_forgotten(n: int) -> None:
    B, _, move = problem(n)
    zero = torch.zeros_like(move)
    learned = ascent.learn(B, move, zero)
    assert (learned @ move).abs().max() <= 1e-13 * B.norm() * move.norm()
    assert torch.equal(ascent.learn(B, zero, zero), B)


# ----------------------------------------------------------------------------------------------------------- climbing


class Slope:
    """A dual -tau |z - z0|_A^2 / 2 - tau g*(z), as compiled code would be given it: M p = A (z0 - z), g a quadratic.

    Args:
        A: what M p answers to -z, positive definite.
        bent: adds that much of a cubic to the answer, which no B knows.
        broken: the evaluation, from 1, that does not go through.
        lies: the evaluation from which on values are less by a thousand.
    """

    def __init__(self, A: Tensor, bent: float = 0.0, broken: int = 0, lies: int = 0) -> None:
        n = len(A)
        self.A, self.z0, self.bent, self.broken, self.lies = (
            A,
            torch.linspace(1.0, 2.0, n, dtype=F64),
            bent,
            broken,
            lies,
        )
        self.scale, self.centre, self.least, self.tau = 0.7, torch.linspace(-1.0, 1.0, n, dtype=F64), 3.0, 0.3
        self.z, self.u, self.sums = torch.zeros(n, dtype=F64), torch.empty(n, dtype=F64), torch.zeros(2, dtype=F64)
        self.applied, self.seen = ctypes.c_long(), list[Tensor]()
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_long, ctypes.c_long, ctypes.c_long)

        class Known(ctypes.Structure):
            _fields_ = [("nothing", ctypes.c_long)]

        self._function = kind(lambda *_: self._evaluate())
        self._parts = Parts.of(self._function, Known())

    def answer(self, z: Tensor) -> Tensor:
        """M p."""
        return self.A @ (self.z0 - z) + self.bent * (self.z0 - z) ** 3

    def _evaluate(self) -> None:
        self.seen.append(self.z.clone())
        count = len(self.seen)
        self.applied.value = 1 if count == self.broken else 2
        away = self.z0 - self.z
        self.u.copy_(self.answer(self.z))
        value = -self.tau * float(away @ self.A @ away / 2 + self.bent * (away**4).sum() / 4)
        self.sums[0], self.sums[1] = 4 * value, -4e3 if self.lies and count >= self.lies else 0.0

    def climb(self, B: Tensor, **rules: float) -> ascent.Climbed | None:
        """With B for A."""
        known = {"tolerance": 1e-9, "good": 1e-9, "far": math.inf, "noise": 1e-9, "force": 1.0, "budget": 9, "turns": 8}
        said = ascent.Rules(**(known | rules))  # type: ignore[arg-type]
        at = ascent.Evaluation(self._parts, ctypes.addressof(self.applied), self.sums, 0.25)
        return ascent.climb(at, self.z, self.u, (self.scale, self.centre, self.least), self.tau, B, said)

    def top(self) -> Tensor:
        """Where A (z0 - z) = c + z / (2 scale), without a bend."""
        H = self.A + torch.eye(len(self.A), dtype=F64) / (2 * self.scale)
        top: Tensor = torch.linalg.solve(H, self.A @ self.z0 - self.centre)
        return top

    def gradient(self, z: Tensor) -> Tensor:
        """Over tau."""
        return self.answer(z) - self.centre - z / (2 * self.scale)


def matrix(n: int) -> Tensor:
    B, _, _ = problem(n)
    return B / 50 + torch.eye(n, dtype=F64)


@pytest.mark.parametrize("n", [1, 7, 50, 128])
def test_a_climb_that_knows_its_curvature_is_there_in_one_move(n: int) -> None:
    slope = Slope(matrix(n))
    B = slope.A.clone()
    found = slope.climb(B)
    assert found is not None
    assert found.evaluations == len(slope.seen) == 2
    assert (found.stale, len(found.pairs)) == (False, 1)
    assert torch.equal(B, slope.A)
    here = found.point
    assert (here.z - slope.top()).abs().max() <= 1e-12 * (1 + slope.top().abs().max())
    assert torch.equal(here.z, slope.seen[-1])
    assert torch.equal(here.outputs, slope.answer(here.z))
    torch.testing.assert_close(here.gradient, slope.gradient(here.z), rtol=0.0, atol=1e-13)
    conjugate = here.z @ (slope.centre + here.z / (4 * slope.scale)) - slope.least
    assert here.value == pytest.approx(float(slope.sums.sum() / 4 - slope.tau * conjugate), rel=1e-14)
    assert here.residual <= 1e-9


@pytest.mark.parametrize("n", [2, 20])
def test_a_climb_learns_what_it_did_not_know(n: int) -> None:
    slope = Slope(matrix(n), bent=0.05)
    start = 0.7 * slope.A
    found = slope.climb(start, budget=60, turns=59)
    assert found is not None
    here, expected = found.point, start
    assert found.evaluations == len(found.pairs) + 1
    assert here.residual <= 1e-9
    missed = here.z - 2 * slope.scale * (here.outputs - slope.centre)
    size = max(1.0, float(here.z.abs().max()))
    assert here.residual == pytest.approx(float(missed.abs().max()) / size, rel=1e-4)  # of numbers 1e9 times as large
    assert here.gap == pytest.approx(slope.tau * slope.scale * float(slope.gradient(here.z).square().sum()), rel=1e-4)
    for (move, change), (z, onward) in zip(found.pairs, zip(slope.seen, slope.seen[1:], strict=False), strict=True):
        torch.testing.assert_close(move, onward - z, rtol=0.0, atol=0.0)
        torch.testing.assert_close(change, slope.answer(z) - slope.answer(onward), rtol=0.0, atol=0.0)
        expected = ascent.learn(expected, move, change)
    torch.testing.assert_close(found.B, expected, rtol=0.0, atol=0.0)


def test_a_climb_ends_where_its_rules_say() -> None:
    def ended(**rules: float) -> tuple[ascent.Climbed, Slope]:
        slope = Slope(matrix(5), bent=0.05)
        found = slope.climb(0.7 * slope.A, **rules)
        assert found is not None
        assert not found.stale
        return found, slope

    assert ended(budget=1)[0].evaluations == 1
    assert ended(budget=3)[0].evaluations == 3
    assert len(ended(turns=2)[0].pairs) == 2
    assert ended(far=1e-3)[0].evaluations == 1
    rough, slope = ended(tolerance=1e-2)
    assert 1e-9 < rough.point.residual <= 1e-2
    move = ascent.newton(rough.B, torch.full((5,), 1 / (2 * slope.scale), dtype=F64), rough.point.gradient)
    assert move is not None
    assert rough.point.onward is not None
    torch.testing.assert_close(rough.point.onward, rough.point.z + move, rtol=1e-14, atol=1e-14)
    settled, _ = ended(tolerance=1e-2, good=1e-2)
    assert settled.point.onward is not None
    assert torch.equal(settled.point.onward, settled.point.z)


def test_a_climb_leaves_to_others_what_is_not_ordinary() -> None:
    """A move that goes too far, values that fall, evaluations that do not go through, and a B that is none."""
    slope = Slope(matrix(5))
    far = slope.climb(torch.zeros(5, 5, dtype=F64))  # a move of grad g* alone
    assert far is not None
    assert (far.evaluations, far.stale, far.pairs) == (2, True, [])
    assert torch.equal(far.point.z, slope.seen[0])
    assert torch.equal(far.point.outputs, slope.answer(slope.seen[0]))

    fallen = (slope := Slope(matrix(5), lies=2)).climb(slope.A)
    assert fallen is not None
    assert (fallen.evaluations, fallen.stale) == (2, True)

    nowhere = Slope(matrix(5), broken=1).climb(matrix(5))
    assert nowhere is not None
    assert (nowhere.evaluations, nowhere.torn) == (0, True)
    broken = (slope := Slope(matrix(5), bent=0.05, broken=3)).climb(0.7 * slope.A)
    assert broken is not None
    assert (broken.evaluations, broken.stale, broken.torn, len(broken.pairs)) == (2, True, True, 1)
    assert torch.equal(broken.point.z, slope.seen[1])
    assert torch.equal(slope.z, slope.seen[2])

    for B in (-10 * matrix(5), torch.full((5, 5), math.nan, dtype=F64)):
        none = Slope(matrix(5)).climb(B)
        assert none is not None
        assert (none.evaluations, none.stale) == (1, False)
    flat = Slope(matrix(5))  # at its top, where z and grad g(0) are 0
    flat.z0.zero_()
    flat.centre.zero_()
    level = flat.climb(flat.A, force=0.0)
    assert level is not None
    assert level.point.residual == 0.0

    nan = (slope := Slope(matrix(5), bent=math.nan)).climb(slope.A)
    assert nan is not None
    assert (nan.evaluations, nan.torn) == (0, False)
    assert Slope(matrix(129)).climb(matrix(129)) is None  # by torch
