"""Losses: gradient, conjugate and its derivatives, against autograd and against Fenchel's equality."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bigjko.errors import RiskError
from bigjko.losses import Averaged, Huber, Logistic, Loss, Squared

from .registry import LOSSES, LossCase

N = 6
EPS = 2.3e-16

every_loss = pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES)
seeds = st.integers(0, 10**6)


def outputs(seed: int, size: float = 2.0) -> Tensor:
    return size * torch.randn(N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def within(case: LossCase, seed: int) -> Tensor:
    """A dual point inside the box, or anywhere where there is none."""
    low, high = case.make().dual_box(case.labels(N))
    share = torch.rand(N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.where(torch.isinf(high), 6 * (share - 0.5), low + (high - low) * share)


@every_loss
@given(seed=seeds)
def test_gradient_is_the_derivative(case: LossCase, seed: int) -> None:
    loss, y, u = case.make(), case.labels(N), outputs(seed).requires_grad_()
    (expected,) = torch.autograd.grad(loss.value(u, y), u)
    # Both round u - y, or a sigmoid: a few eps of the entries, which are of order 1.
    assert (loss.gradient(u.detach(), y) - expected).abs().max() <= 10 * EPS * (1 + expected.abs().max())


@every_loss
@given(seed=seeds)
def test_fenchel_equality_at_the_gradient(case: LossCase, seed: int) -> None:
    loss, y, u = case.make(), case.labels(N), outputs(seed)
    z = loss.gradient(u, y)
    gap = loss.value(u, y) + loss.conjugate(z, y) - u @ z
    # Sums of a few dozen terms, none larger than those added here; exact otherwise.
    size = loss.value(u, y).abs() + loss.conjugate(z, y).abs() + (u * z).abs().sum() + 1
    assert gap.abs() <= 30 * EPS * size


@every_loss
@given(first=seeds, second=seeds)
def test_fenchel_inequality_elsewhere(case: LossCase, first: int, second: int) -> None:
    loss, y, u, z = case.make(), case.labels(N), outputs(first), within(case, second)
    gap = loss.value(u, y) + loss.conjugate(z, y) - u @ z
    assert gap >= -30 * EPS * (1 + loss.value(u, y) + loss.conjugate(z, y).abs() + (u * z).abs().sum())


@every_loss
@given(first=seeds, second=seeds)
def test_the_gap_is_what_is_missing_to_fenchels_equality(case: LossCase, first: int, second: int) -> None:
    loss, y, u, z = case.make(), case.labels(N), outputs(first), within(case, second)
    parts = loss.value(u, y), loss.conjugate(z, y), -(u @ z)
    assert abs(loss.gap(u, z, y) - sum(parts)) <= 30 * EPS * (1 + sum(x.abs() for x in parts) + (u * z).abs().sum())


@every_loss
@given(first=seeds, second=seeds)
def test_a_quadratic_loss_is_one(case: LossCase, first: int, second: int) -> None:
    """And no other says that it is."""
    loss, y, u, z = case.make(), case.labels(N), outputs(first), within(case, second)
    found = loss.quadratic(y)
    assert (found is not None) == isinstance(loss.loss if isinstance(loss, Averaged) else loss, Squared)
    if found is not None:
        parts = float(found.scale * (u - found.centre).square().sum()), found.least, -float(loss.value(u, y))
        assert abs(sum(parts)) <= 30 * EPS * (1 + sum(abs(x) for x in parts) + (u * z).abs().sum())
        conjugate = z @ (found.centre + z / (4 * found.scale))
        size = 1 + abs(conjugate) + abs(found.least) + (z * found.centre).abs().sum()
        assert abs(conjugate - found.least - loss.conjugate(z, y)) <= 50 * EPS * size


@every_loss
@given(seed=seeds)
def test_conjugate_derivatives_are_those_of_the_conjugate(case: LossCase, seed: int) -> None:
    loss, y = case.make(), case.labels(N)
    z = within(case, seed).requires_grad_()
    (gradient,) = torch.autograd.grad(loss.conjugate(z, y), z)
    found = loss.conjugate_gradient(z, y)
    (curvature,) = torch.autograd.grad(found.sum(), z)
    # Logistic: log t - log(1 - t) and 1/t + 1/(1 - t), differences of rounded t: relative to the curvature.
    tolerance = 20 * EPS * (1 + curvature.abs())
    assert ((found - gradient).abs() <= tolerance).all()
    assert ((loss.conjugate_curvature(z.detach(), y) - curvature).abs() <= tolerance * (1 + curvature.abs())).all()


@every_loss
@given(seed=seeds)
def test_conjugate_gradient_undoes_the_gradient(case: LossCase, seed: int) -> None:
    loss, y, u = case.make(), case.labels(N), outputs(seed)
    z = loss.gradient(u, y)
    # z is rounded, by eps |z| at least, and of its box near a wall: the curvature says what that does to u.
    slack = 10 * EPS * (z.abs() + loss.gradient(u, y).abs().max() + 1) * loss.conjugate_curvature(z, y)
    found, (low, high) = loss.conjugate_gradient(z, y), loss.dual_box(y)
    # On a wall that is not steep every u beyond the one found has the gradient z.
    beyond = (
        torch.zeros_like(u, dtype=torch.bool)
        if loss.steep
        else ((z == high) & (u > found)) | ((z == low) & (u < found))
    )
    assert (beyond | ((found - u).abs() <= slack + 10 * EPS * (1 + u.abs()))).all()
    # The other way round.
    w = within(case, seed)
    again = loss.gradient(loss.conjugate_gradient(w, y), y)
    assert (again - w).abs().max() <= 50 * EPS * (1 + w.abs().max())


@every_loss
def test_the_dual_box_is_where_the_conjugate_is_finite(case: LossCase) -> None:
    loss, y = case.make(), case.labels(N)
    low, high = loss.dual_box(y)
    assert (low < high).all()
    for seed in range(20):  # every gradient is in it
        z = loss.gradient(outputs(seed, size=20.0), y)
        assert ((low <= z) & (z <= high)).all()
    if torch.isfinite(low).all():
        for end in (low, high):
            assert torch.isfinite(loss.conjugate(end, y))
        for outside in (low - 1e-3 * (high - low), high + 1e-3 * (high - low)):
            assert not torch.isfinite(loss.conjugate(outside, y))
    else:
        assert torch.isinf(low).all()
        assert torch.isinf(high).all()
        assert torch.isfinite(loss.conjugate(1e100 * (y + 3), y))


@every_loss
def test_extreme_outputs_stay_finite(case: LossCase) -> None:
    loss, y = case.make(), case.labels(N)
    for u in (torch.full_like(y, 1e4), torch.full_like(y, -1e4), 1e4 * y):
        z = loss.gradient(u, y)
        assert torch.isfinite(loss.value(u, y))
        assert torch.isfinite(z).all()
        assert torch.isfinite(loss.conjugate(z, y))


def test_logistic_is_linear_far_on_the_wrong_side() -> None:
    y = torch.tensor([1.0, -1.0], dtype=torch.float64)
    u = -1e4 * y
    assert float(Logistic().value(u, y)) == pytest.approx(2e4, rel=1e-15)
    assert torch.equal(Logistic().gradient(u, y), -y)
    assert float(Logistic().value(-u, y)) == 0.0


def test_huber_is_the_squared_loss_until_it_is_linear() -> None:
    """Value and slope meet at |r| = delta; with a delta beyond every residual it is Squared, bit by bit."""
    u, y = outputs(3), outputs(4)
    assert torch.equal(Huber(1e3, 0.25).gradient(u, y), Squared(0.25).gradient(u, y))
    assert float(Huber(1e3, 0.25).value(u, y)) == pytest.approx(float(Squared(0.25).value(u, y)), rel=1e-15)
    far = torch.full_like(y, 100.0)
    assert float(Huber(0.5).value(y + far, y)) == pytest.approx(N * (2 * 0.5 * 100 - 0.25), rel=1e-13)
    assert torch.equal(Huber(0.5).gradient(y - far, y), torch.full_like(y, -1.0))
    with pytest.raises(RiskError, match="received a delta of 0.0, need a positive finite number"):
        Huber(0.0)


@pytest.mark.parametrize("kind", [Squared, Logistic, partial(Huber, 2.0)])
def test_scale_multiplies_the_sum(kind: Callable[..., Loss]) -> None:
    y = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    u, z = outputs(1)[:3], -0.5 * y
    s = 0.25  # a power of two: nothing is rounded
    assert torch.equal(kind(scale=s).value(u, y), s * kind().value(u, y))
    assert torch.equal(kind(scale=s).gradient(u, y), s * kind().gradient(u, y))
    assert torch.allclose(kind(scale=s).conjugate(s * z, y), s * kind().conjugate(z, y), rtol=1e-15, atol=0)
    for low_high, scaled in zip(kind().dual_box(y), kind(scale=s).dual_box(y), strict=True):
        assert torch.equal(s * low_high, scaled)


def test_the_default_is_the_seeds_sum() -> None:
    u, y = outputs(1), outputs(2)
    expected = sum((a - b) ** 2 for a, b in zip(u.tolist(), y.tolist(), strict=True))
    assert float(Squared().value(u, y)) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("kind", [Squared, Logistic, partial(Huber, 2.0)])
@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_scales_that_are_not_positive_are_refused(kind: Callable[..., Loss], scale: float) -> None:
    with pytest.raises(RiskError, match=f"scale of {scale}, need a positive finite number"):
        kind(scale=scale)


def test_labels_are_checked() -> None:
    Squared().check(torch.tensor([0.3, 7.0]))
    Logistic().check(torch.tensor([1.0, -1.0]))
    with pytest.raises(RiskError, match=r"labels from 0 to 1, need -1 and \+1 for Logistic: map them"):
        Logistic().check(torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("loss", [Huber(0.3, scale=0.7), Huber(1.3), Logistic(0.7)], ids=str)
def test_the_walls_of_an_averaged_box_belong_to_it(loss: Loss) -> None:
    """Where an outlier's dual point lies: half way from z to g's own wall and back is that wall, rounding or not."""
    y = torch.randn(1000, dtype=torch.float64)
    y = y.sign() if isinstance(loss, Logistic) else y
    z = loss.gradient(3 * torch.randn(1000, dtype=torch.float64), y)
    both = Averaged(loss, z)
    for wall, own in zip(both.dual_box(y), loss.dual_box(y), strict=True):
        # A thousand terms t log t with t an ulp of 1 off the wall.
        assert float(both.conjugate(wall, y)) == pytest.approx(float(loss.conjugate(own, y)) / 2, rel=1e-13, abs=1e-11)
