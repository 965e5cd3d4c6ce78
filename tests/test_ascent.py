"""Newton moves and BFGS updates on R^n: compiled code against torch."""

import pytest
import torch
from torch import Tensor

from bigjko_kernels import ascent

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
