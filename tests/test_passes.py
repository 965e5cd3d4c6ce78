"""What a step does between applications of its kernel: compiled code against torch."""

import math
from functools import partial

import pytest
import torch

from bigjko_kernels import Compiled, Features, KernelError, Ridge, compiler, passes
from bigjko_kernels.streams import Tiled

F32, F64 = torch.float32, torch.float64
pytestmark = pytest.mark.skipif(passes.load() is None, reason="there is no compiler")


def fit(
    log_p: torch.Tensor, log_k: torch.Tensor, d: torch.Tensor, rule: passes.Rule, out: torch.Tensor, told: bool = True
) -> passes.Fit:
    """At once."""
    fitting = passes.Fitting(log_p, log_k, d, rule, out, told)
    with pytest.raises(KernelError, match="received no fit yet"):
        _ = fitting.found
    fitting.whole()
    return fitting.found


def values(n: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """log p, log k and d: bulk, tails that underflow, and nodes without mass."""
    generator = torch.Generator().manual_seed(n)
    log_p = -30 * torch.rand(n, dtype=F64, generator=generator)
    log_p[1::7] -= 900.0
    log_k = log_p + 0.3 * torch.randn(n, dtype=F64, generator=generator)
    log_p[2::11] = -math.inf
    return log_p.to(dtype), log_k.to(dtype), torch.randn(n, dtype=F64, generator=generator).to(dtype)


FREE, FLOORED = passes.Rule(1.5, 0.25), passes.Rule(1.5, 0.25, 0.5, -0.75)


@pytest.mark.parametrize("rule", [FREE, FLOORED], ids=["free", "floor"])
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("n", [1, 5, 64, 100_003])
def test_compiled_sums_are_those_of_torch(n: int, dtype: torch.dtype, rule: passes.Rule) -> None:
    log_p, log_k, d = values(n, dtype)
    out, plain, p, exact_p = torch.empty_like(d), torch.empty_like(d), log_k.clone(), log_k.double().clone()
    found = fit(log_p, p, d, rule, out)
    exact_d = torch.empty_like(exact_p)
    exact = passes.fit_by_torch(log_p.double(), exact_p, d.double(), rule, exact_d)
    passes.fit_by_torch(log_p, log_k.clone(), d, rule, plain)
    log_r = log_k + 1.5 * d
    lowest, moved = 0.5 * log_k - 0.75, d + 0.25 * (log_p - log_r)
    if rule is FLOORED and n > 5:
        assert 0.05 < (lowest > moved).double().mean() < 0.95
    rounding = torch.finfo(dtype).eps
    # In torch the logarithms are rounded before they are compared: the largest are 930.
    torch.testing.assert_close(plain, lowest.maximum(moved) if rule is FLOORED else moved, rtol=0, atol=930 * rounding)
    torch.testing.assert_close(out.double(), exact_d, rtol=8 * rounding, atol=8 * rounding)
    # The polynomials are right to 2e-16 in double and to 2e-9 in single; sums of n positive terms lose no more.
    loss = 1e-14 if dtype == F64 else 4e-9
    for name in ("mass", "reproduced", "missed"):
        assert getattr(found, name) == pytest.approx(getattr(exact, name), rel=loss, abs=loss * exact.mass + 1e-300)
    assert found.worst == pytest.approx(exact.worst, rel=8 * rounding)
    assert (found.top, found.low) == pytest.approx((float(out.max()), float(out.min())), rel=8 * rounding)
    torch.testing.assert_close(p.double(), exact_p, rtol=4 * rounding, atol=torch.finfo(dtype).tiny)
    assert torch.equal(p == 0, exact_p.to(dtype) == 0)
    assert torch.equal(p, passes.masses(log_p))
    for way in (fit, passes.fit_by_torch):
        silent, kept = torch.empty_like(d), log_k.clone()
        quick = way(log_p, kept, d, rule, silent, told=False)
        assert torch.equal(kept, log_k)
        assert torch.equal(silent, out if way is fit else plain)
        assert (quick.top, quick.low) == pytest.approx((float(silent.max()), float(silent.min())), rel=8 * rounding)


def test_bits_are_the_same_for_any_number_of_threads_and_in_place() -> None:
    log_p, log_k, d = values(300_001, F64)
    out, before = torch.empty_like(d), torch.get_num_threads()
    found = fit(log_p, log_k.clone(), d, FLOORED, out)
    try:
        torch.set_num_threads(before + 1)
        assert fit(log_p, log_k, d, FLOORED, d) == found
    finally:
        torch.set_num_threads(before)
    assert torch.equal(d, out)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_shows(wrong: float) -> None:
    log_p, log_k, d = values(50, F64)
    log_p[49] = log_k[49] = wrong  # whose ratio is NaN
    for way in (fit, passes.fit_by_torch):
        for rule in (FREE, FLOORED):
            p = log_k.clone()
            assert all(map(math.isnan, way(log_p, p, d, rule, torch.empty_like(d))))
            assert torch.equal(p.isnan(), log_p.isnan())
            assert torch.equal(p.isinf(), log_p == math.inf)


@pytest.mark.parametrize("value", [-708.5, -740.0, -745.5, -1e6, 709.5, 710.0], ids=str)
def test_masses_beyond_the_polynomial_are_those_of_exp(value: float) -> None:
    """Down to the smallest number that is one, and to 0 and inf beyond."""
    log_p = torch.tensor([-1.0, value, -2.0, value, -3.0, -4.0, value], dtype=F64)
    p = torch.zeros_like(log_p)
    fit(log_p, p, torch.zeros_like(p), FREE, torch.empty_like(p))
    torch.testing.assert_close(p, log_p.exp(), rtol=1e-15, atol=0.0)


# ------------------------------------------------------------------------------------------------------------ networks

# Shape, direction axes: of Lifted, Projected, PolarCone, the half circle, Signed; lengths that fill no register.
NODES = {
    "a line and a": ((7, 5), (0,)),
    "a plane and a": ((19, 23, 41), (0, 1)),
    "sheets": ((2, 1031), (1,)),
    "sheets and radii": ((2, 67, 13), (1,)),
    "sheets and a plane": ((2, 31, 37), (1, 2)),
    "directions alone": ((40_009,), (0,)),
    "one node": ((1, 1), (0,)),
}


def network(name: str, dtype: torch.dtype) -> tuple[Ridge, torch.Tensor]:
    """Features on nodes of that shape, and a dual point of their three data."""
    shape, axes = NODES[name]
    generator = torch.Generator().manual_seed(7)
    rest = [1 if k in axes else n for k, n in enumerate(shape)]
    directions = math.prod(shape[k] for k in axes)
    W, X = (torch.randn(k, 2, dtype=F64, generator=generator).to(dtype) for k in (directions, 3))
    amplitude = torch.randn(rest, dtype=F64, generator=generator).to(dtype)
    return Ridge(Compiled(W, X), shape, axes, amplitude, amplitude, amplitude), X @ X.new_tensor([1.0, -2.0])


@pytest.mark.parametrize("with_V", [False, True], ids=["V=0", "V"])
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("name", NODES)
def test_tilting_and_weighing_are_those_of_torch(name: str, dtype: torch.dtype, with_V: bool) -> None:
    ridge, z = network(name, dtype)
    assert ridge._compiled is not None
    generator = torch.Generator().manual_seed(1)
    base, V, log_p, rest = (torch.randn(ridge.shape, dtype=F64, generator=generator).to(dtype) for _ in range(4))
    log_p.view(-1)[::5] -= 2000.0  # no mass
    log_p.view(-1)[3::11] = -math.inf
    rounding = 8 * torch.finfo(dtype).eps
    found, by_torch, plain_feed = torch.empty_like(base), torch.empty_like(base), partial(Features.feed, ridge)
    feeds = [
        way(base, 0.5, V if with_V else None, -3.0, z, out)
        for way, out in ((ridge.feed, found), (plain_feed, by_torch))
    ]
    z *= -2.0  # which is read when they write
    for feed in feeds:
        feed.whole()
    wide = 0.5 * base.double() - 3.0 * (ridge.potential(z).double() + (V.double() if with_V else 0.0))
    torch.testing.assert_close(found.double(), wide, rtol=rounding, atol=10 * rounding)
    torch.testing.assert_close(found, by_torch, rtol=rounding, atol=10 * rounding)

    exact = ridge.outputs((log_p + rest).double().exp())
    kept, scratch = log_p.clone(), rest.clone()
    outputs = weighed(ridge, log_p, rest)
    assert torch.equal(log_p, kept + rest)
    size = ridge.outputs((kept + rest).double().exp() * ridge.amplitude.double().sign()).abs().max()
    assert float((outputs - exact).abs().max()) <= (1e-13 if dtype == F64 else 1e-8) * float(size) + 1e-300
    plain = Features.weighing(ridge, kept, scratch)
    plain.whole()
    torch.testing.assert_close(plain.outputs, exact, rtol=1e-5, atol=1e-5 * float(size) + 1e-300)


def weighed(ridge: Ridge, log_p: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """M p of log p = log_p + rest, at once."""
    sums = ridge.weighing(log_p, rest)
    sums.whole()
    return sums.outputs


@pytest.mark.parametrize("n", [1, 3, 50, 128])
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("name", NODES)
def test_gram_matrices_are_those_of_matrix_products(name: str, dtype: torch.dtype, n: int) -> None:
    plain, _ = network(name, dtype)
    generator = torch.Generator().manual_seed(n)
    X, p = (torch.rand(size, dtype=F64, generator=generator).to(dtype) for size in ((n, 2), plain.shape))
    rest = (plain.shape, plain.direction_axes, plain.amplitude, plain.amplitude.square(), plain.amplitude.abs())
    found, exact = (Ridge(kind(plain.stream.directions, X - 0.5), *rest).gram(p) for kind in (Compiled, Tiled))
    # Activations of the matrix products are in the grid's dtype, and so are their signs.
    rounding = 1e-13 if dtype == F64 else 1e-4
    torch.testing.assert_close(found, exact, rtol=0, atol=rounding * float(exact.abs().max()))
    assert torch.equal(found, found.T)


@pytest.mark.parametrize("name", ["a plane and a", "sheets"])
def test_outputs_of_what_is_no_number_are_none(name: str) -> None:
    ridge, _ = network(name, F64)
    for wrong in (math.nan, math.inf):
        log_p = torch.zeros(ridge.shape, dtype=F64)
        log_p.view(-1)[-1] = wrong
        assert weighed(ridge, log_p, torch.zeros_like(log_p)).isnan().any()


SHAPES = [(5,), (3, 4), (1, 9), (9, 1), (37, 91), (13, 17, 201), (150, 67, 11), (2, 3, 5, 7)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_dividing_is_that_of_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(len(shape))
    log_q, log_k = (torch.randn(shape, dtype=F64, generator=generator).to(dtype) for _ in range(2))
    q = log_q.exp()
    q.view(-1)[::7] = 0.0
    expected, kept = float((q.double() * log_k.double()).sum()), log_k.clone()
    size = float((q.double() * log_k.double()).abs().sum())
    over = passes.Division(q, log_q, log_k)
    over.whole()
    assert float(over.total) == pytest.approx(expected, abs=1e-14 * size)
    assert torch.equal(log_k, log_q - kept)


def by_parts(feed: passes.Feed, size: int) -> None:
    """In shares of the nodes, compiled."""
    made = feed.parts(-(-size // (1 << 14)), 1 << 14)
    assert made is not None
    passes.load().bigjko_whole(made.make, made.what, size, 2)


GROWTHS = [0.0, 1e-300, -1e-12, 1e-9, -1e-5, 0.3, 0.41421356, -0.29289, 0.5, -0.999999, 7.0, 1e12]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_powers_and_damped_quotients_are_those_of_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator, eps, ulp = torch.Generator().manual_seed(len(shape)), 1e-4, torch.finfo(dtype).eps
    x, shift, log_q, log_k = (torch.randn(shape, dtype=F64, generator=generator).to(dtype) for _ in range(4))
    x = 0.1 * x.clamp(-9, 9)
    some = min(x.numel(), len(GROWTHS))
    x.view(-1)[:some] = torch.tensor(GROWTHS[:some], dtype=F64).to(dtype)
    log_q.view(-1)[::5] = -math.inf
    out, exact = torch.empty_like(x), shift.double() - x.double().log1p() / eps
    power = passes.Reciprocal(passes.Multiple(x, 1.0, out), out, shift, eps)
    with pytest.raises(KernelError, match="received no x yet"):
        _ = power.finite
    for at_once in (True, False):
        power.whole() if at_once else by_parts(power, x.numel())
        # A few roundings of the logarithm, and one of each term.
        assert bool(((out - exact).abs() <= 4 * ulp * (exact.abs() + shift.abs())).all())
        assert power.finite

    k = log_k.double() + shift.double()
    remade, total = shift.double() + (log_q.double() - k) / (1 + eps), ((log_q.double() + eps * k) / (1 + eps)).exp()
    for strided in (False, True):  # which is left to torch
        log = log_k.unsqueeze(-1).repeat(*[1] * len(shape), 2)[..., 0] if strided else log_k.clone()
        over = passes.Damped(log_q, shift, log, eps)
        over.whole()
        finite = log_q != -math.inf
        size = (log_q.abs() + k.abs() + shift.abs())[finite]
        assert bool(((log - remade)[finite].abs() <= 4 * ulp * size).all())
        assert bool((log[~finite] == -math.inf).all())
        assert float(over.total) == pytest.approx(float(total.sum()), rel=20 * ulp)

    for a, b, in_place in ((0.3, 1.0, False), (1.1, -0.1, True)):
        exact, size = a * log_k.double() + b * shift.double(), a * log_k.abs() + abs(b) * shift.abs()
        for at_once in (True, False):
            out = log_k.clone()
            sum_ = passes.Combination(out if in_place else log_k, a, shift, b, out)
            sum_.whole() if at_once else by_parts(sum_, out.numel())
            assert bool(((out - exact).abs() <= 2 * ulp * size).all())


@pytest.mark.parametrize("bad", [-1.0, -3.0, -math.inf, math.nan])
def test_a_power_of_what_is_not_positive_is_no_number(bad: float) -> None:
    for n in (1, 7, 8, 9, 20_000):
        x, shift = torch.full((n,), 0.5, dtype=F64), torch.zeros(n, dtype=F64)
        x[n // 2] = bad
        out = torch.empty_like(x)
        power = passes.Reciprocal(passes.Multiple(x, 1.0, out), out, shift, 0.1)
        power.whole()
        assert not power.finite
        by_parts(power, n)
        assert not power.finite
        assert out.isnan().nonzero().flatten().tolist() == [n // 2]
        over = passes.Damped(out, shift, shift.clone(), 0.1)
        by_parts(over, n)
        assert math.isnan(float(over.total))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_a_look_is_the_sums_it_says(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    p = torch.rand(shape, dtype=F64, generator=torch.Generator().manual_seed(2)).to(dtype)
    p.view(-1)[::7] = 0.0
    strided = p.unsqueeze(-1).repeat(*[1] * len(shape), 2)[..., 0]  # which is left to torch
    root, axes = p.double().sqrt(), range(len(shape))
    whole = [(0, size) for size in shape]
    cut = [(min(1 + k, size), max(min(1 + k, size), size - 1 - k % 2)) for k, size in enumerate(shape)]
    for inside, rising in ((whole, [*axes]), (cut, [*axes][::-1]), (cut, [0]), (whole, [len(shape) - 1]), (cut, [])):
        within = torch.zeros(shape, dtype=torch.bool)
        within[tuple(slice(*ends) for ends in inside)] = True
        for found in (passes.look(p, inside, rising), passes.look(strided, inside, rising)):
            exact = [float(root.diff(dim=axis).square().sum()) for axis in rising]
            assert [float(x) for x in found.rises] == pytest.approx(exact, rel=1e-14)
            assert float(found.mass) == pytest.approx(float(p.double().sum()), rel=1e-14)
            assert float(found.edge) == pytest.approx(float(p.double()[~within].sum()), rel=1e-14)
            assert len(found.profiles) == len(shape)
            for k, along in enumerate(found.profiles):
                others = [j for j in axes if j != k]
                exact_along = p.double().sum(others) if others else p.double()
                torch.testing.assert_close(along.double(), exact_along, rtol=1e-14, atol=0.0)


def test_threads_change_no_bit_of_any_pass() -> None:
    ridge, z = network("a plane and a", F64)
    generator = torch.Generator().manual_seed(3)
    q, log_q, log_k = (torch.rand(1, 200_003, dtype=F64, generator=generator) for _ in range(3))
    base, rest = (torch.randn(ridge.shape, dtype=F64, generator=generator) for _ in range(2))
    before, found = torch.get_num_threads(), []
    big, V = base.repeat(9, 1, 1), rest.repeat(9, 1, 1)  # shared between threads
    wide = Ridge(
        Compiled(ridge.stream.directions.repeat(9, 1), ridge.stream.X), big.shape, (0, 1), *[ridge.amplitude] * 3
    )
    try:
        for threads in (before, before + 1):
            torch.set_num_threads(threads)
            log_p, over, tilted = big.clone(), log_k.clone(), torch.empty_like(big)
            wide.feed(big, 1.0, V, 2.0, z, tilted).whole()
            division = passes.Division(q, log_q, over)
            division.whole()
            found.append(
                [
                    tilted,
                    weighed(wide, log_p, V),
                    log_p,
                    torch.as_tensor(division.total),
                    over,
                    *(seen := passes.look(big.abs(), [(1, size) for size in big.shape], [0, 2])).rises,
                    *seen.profiles,
                    seen.edge,
                ]
            )
    finally:
        torch.set_num_threads(before)
    assert big.numel() > compiler._ALONE
    assert all(map(torch.equal, *found))
