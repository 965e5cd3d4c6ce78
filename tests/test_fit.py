"""How a potential fits a measure: compiled code against torch."""

import math

import pytest
import torch

from bigjko_kernels import fit as compiled

F32, F64 = torch.float32, torch.float64
pytestmark = pytest.mark.skipif(compiled.load() is None, reason="there is no compiler")


def values(n: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """log p, log r and d: bulk, tails that underflow, and nodes without mass."""
    generator = torch.Generator().manual_seed(n)
    log_p = -30 * torch.rand(n, dtype=F64, generator=generator)
    log_p[1::7] -= 900.0
    log_r = log_p + 0.3 * torch.randn(n, dtype=F64, generator=generator)
    log_p[2::11] = -math.inf
    return log_p.to(dtype), log_r.to(dtype), torch.randn(n, dtype=F64, generator=generator).to(dtype)


@pytest.mark.parametrize("floor", [(), (compiled.Floor(0.5, 1.5, -0.75),)], ids=["free", "floor"])
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("n", [1, 5, 64, 100_003])
def test_compiled_sums_are_those_of_torch(n: int, dtype: torch.dtype, floor: tuple[compiled.Floor, ...]) -> None:
    log_p, log_r, d = values(n, dtype)
    out = torch.empty_like(d)
    found = compiled.fit(log_p, log_r, d, 0.25, out, *floor)
    plain = torch.empty_like(d)
    exact = compiled.by_torch(log_p.double(), log_r.double().clone(), d.double(), 0.25, plain.double(), *floor)
    compiled.by_torch(log_p, log_r.clone(), d, 0.25, plain, *floor)
    lowest = 0.5 * log_r - 1.5 * d - 0.75
    moved = d + 0.25 * (log_p - log_r)
    if floor and n > 5:
        assert 0.05 < (lowest > moved).double().mean() < 0.95
    torch.testing.assert_close(plain, torch.maximum(moved, lowest) if floor else moved)
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(out, plain, rtol=8 * rounding, atol=8 * rounding)
    # The polynomials are right to 2e-16 in double and to 2e-9 in single; sums of n positive terms lose no more.
    loss = 1e-14 if dtype == F64 else 4e-9
    for name in ("mass", "reproduced", "missed"):
        assert getattr(found, name) == pytest.approx(getattr(exact, name), rel=loss, abs=loss * exact.mass + 1e-300)
    assert found.worst == pytest.approx(float((log_p.double() - log_r.double()).max()), rel=1e-15)
    assert found.top == pytest.approx(float(out.double().max()), rel=8 * rounding)


def test_bits_are_the_same_for_any_number_of_threads_and_in_place() -> None:
    log_p, log_r, d = values(300_001, F64)
    out, before = torch.empty_like(d), torch.get_num_threads()
    found = compiled.fit(log_p, log_r, d, 0.25, out)
    try:
        torch.set_num_threads(before + 1)
        assert compiled.fit(log_p, log_r, d, 0.25, d) == found
    finally:
        torch.set_num_threads(before)
    assert torch.equal(d, out)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_shows(wrong: float) -> None:
    log_p, log_r, d = values(50, F64)
    log_p[49] = log_r[49] = wrong  # whose ratio is NaN
    for way in (compiled.fit, compiled.by_torch):
        assert all(map(math.isnan, way(log_p, log_r.clone(), d, 0.25, torch.empty_like(d))))
        floored = way(log_p, log_r.clone(), d, 0.25, torch.empty_like(d), compiled.Floor(0.5, 1.5, 0.0))
        assert all(map(math.isnan, floored))
