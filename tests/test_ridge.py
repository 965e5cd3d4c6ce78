"""The compiled sums: any size and layout, NaN and inf, threads, gradients, and where they cannot be had.

That they are the sums written out is also test_features.py's matrix.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bigjko.neurons import Lifted, Projected
from bigjko_kernels import Compiled, GridError, KernelError, Stream, Tiled, ridge, stream

D = torch.float64


def inputs(N: int, n: int, d: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Directions (a view of neurons), data, weights and z."""
    W, X = torch.randn(N, d + 1, dtype=D)[:, :-1], torch.randn(n, d, dtype=D)
    return W, X, torch.randn(N, dtype=D), torch.randn(n, dtype=D)


def all_sums(sums: Stream, weights: Tensor, z: Tensor) -> list[Tensor]:
    moved = sums.descend(weights, weights.abs(), z, 0.1, 0.2)
    fastest = torch.tensor(moved.fastest, dtype=D)
    return [sums.outputs(weights), sums.potential(z), sums.slopes(z), moved.positions, moved.outputs, fastest]


def written(W: Tensor, X: Tensor, weights: Tensor, z: Tensor) -> list[Tensor]:
    height, gate = (W @ X.T).relu(), (W @ X.T > 0).to(D)
    slopes = gate @ (z[:, None] * X)
    down = torch.cat([weights[:, None] * slopes + 0.4 * W, ((W * slopes).sum(1) + 0.4 * weights)[:, None]], dim=1)
    new = torch.cat([W, weights[:, None]], dim=1) - 0.1 * down
    outputs = (weights.abs() * new[:, -1]) @ (new[:, :-1] @ X.T).relu()
    fastest = down.norm(dim=1).max() if len(W) else torch.zeros((), dtype=D)
    return [weights @ height, height @ z, slopes, new, outputs, fastest]


def check(W: Tensor, X: Tensor, weights: Tensor, z: Tensor) -> None:
    """Sums of at most a thousand terms of order 1; NaN and inf in the same places."""
    found, expected = all_sums(Compiled(W, X), weights, z), written(W, X, weights, z)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12, equal_nan=True)


# Vectors hold 2, 4 or 8 data, groups 8 directions, tiles of gates 256 data; 1, 2 and 3 are the dimensions with loops of
# their own.
@pytest.mark.parametrize("d", [1, 2, 3, 4])
@pytest.mark.parametrize("N", [0, 1, 5, 8, 9])
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 600])
def test_any_number_of_directions_and_data(N: int, n: int, d: int) -> None:
    check(*inputs(N, n, d))


@given(seed=st.integers(0, 10**6), N=st.integers(0, 40), n=st.integers(0, 40), d=st.integers(1, 300))
def test_any_dimension(seed: int, N: int, n: int, d: int) -> None:
    torch.manual_seed(seed)
    W, X, weights, z = inputs(N, n, d)
    check(W / math.sqrt(d), X, weights, z)


def test_directions_may_lie_in_memory_in_any_way(dtype: torch.dtype) -> None:
    W, X, weights, z = (t.to(dtype) for t in inputs(20, 11, 3))
    strided = torch.cat([W, W], dim=1)[:, 1:4]
    expected = all_sums(Compiled(strided.contiguous(), X), weights, z)
    wide = torch.stack([weights, z.new_zeros(20)], dim=1)[:, 0]
    for other in (strided, strided.T.contiguous().T, strided.flip(1).flip(1)):
        assert all(map(torch.equal, all_sums(Compiled(other, X.T.contiguous().T), wide, z), expected))
    one = strided[:1].expand(20, 3)
    assert all(map(torch.equal, all_sums(Compiled(one, X), weights, z), all_sums(Compiled(one.clone(), X), weights, z)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", range(4), ids=["directions", "data", "weights", "z"])
@pytest.mark.parametrize("n", [8, 9])
def test_nan_and_inf_go_where_they_go_in_torch(bad: float, where: int, n: int) -> None:
    given_values = inputs(20, n, 2)
    given_values[where][3] = bad
    check(*given_values)
    assert not math.isfinite(float(all_sums(Compiled(*given_values[:2]), *given_values[2:])[4].sum()))


def test_bits_do_not_depend_on_threads() -> None:
    W, X, weights, z = inputs(100_003, 30, 2)
    assert W.shape[0] * X.shape[0] >= ridge._ALONE
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            found.append(all_sums(Compiled(W, X), weights, z))
    finally:
        torch.set_num_threads(threads)
    assert all(all(map(torch.equal, sums, found[0])) for sums in found)


def test_outputs_of_chunks_are_added_up() -> None:
    # 64 chunks at most, of 1024 directions at least: fewer, as many, and chunks that are longer.
    for N in (3000, 65_536, 70_001):
        W, X, weights, _ = inputs(N, 5, 2)
        expected = weights @ (W @ X.T).relu()
        assert (Compiled(W, X).outputs(weights) - expected).abs().max() <= 1e-15 * N


@pytest.mark.parametrize("where", range(4), ids=["directions", "data", "weights", "z"])
def test_gradients_are_those_of_torch(where: int) -> None:
    given_values = inputs(6, 5, 2)
    tracked = given_values[where].requires_grad_()
    W, X, weights, z = given_values
    gradients: list[Tensor] = []
    for kind in (Compiled, Tiled):
        sums = kind(W, X)
        total = (sums.outputs(weights) ** 2).sum() + (sums.potential(z) ** 2).sum() + (sums.slopes(z) ** 2).sum()
        moved = sums.descend(weights, weights.detach().abs(), z, 0.1, 0.2)
        gradients += torch.autograd.grad(total + (moved.positions**2).sum() + moved.outputs.sum(), tracked)
    assert torch.equal(*gradients)
    with torch.no_grad():
        torch.testing.assert_close(all_sums(Compiled(W, X), weights, z), written(W, X, weights, z))


def test_values_of_another_size_are_refused() -> None:
    W, X, weights, z = inputs(6, 5, 2)
    sums = Compiled(W, X)
    for call in (
        lambda: sums.outputs(weights[:5]),
        lambda: sums.potential(z[:1]),
        lambda: sums.slopes(torch.cat([z, z])),
        lambda: sums.descend(weights[:5], weights, z, 0.1, 0.0),
        lambda: sums.descend(weights, weights[:5], z, 0.1, 0.0),
    ):
        with pytest.raises(GridError, match=r"values of shape \(\d+,\) on cpu, need \([56],\) on the CPU"):
            call()


# ---------------------------------------------------------------------------------------------------------- the choice


def test_low_dimensions_on_the_cpu_are_compiled(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    def chosen(d: int, dtype: torch.dtype = dtype) -> type[Stream]:
        return type(stream(torch.zeros(3, d, dtype=dtype), torch.zeros(2, d, dtype=dtype)))

    assert (chosen(2), chosen(784), chosen(2, torch.bfloat16)) == (Compiled, Tiled, Tiled)
    monkeypatch.setattr(ridge, "load", lambda: None)
    assert chosen(2) is Tiled
    with pytest.raises(KernelError, match=r"need float32 or float64 on the CPU and a C\+\+ compiler: use Tiled"):
        Compiled(torch.zeros(3, 2), torch.zeros(2, 2))


@pytest.mark.parametrize("way", [Lifted(), Projected()], ids=repr)
def test_ways_take_the_default_or_what_they_are_given(way: Lifted | Projected) -> None:
    W, X, _, _ = inputs(3, 2, 2)
    assert isinstance(way.stream(W, X), Compiled)

    class Plain(type(way)):  # type: ignore[misc]
        stream = Tiled

    assert isinstance(Plain().stream(W, X), Tiled)


USE = """
import torch
from bigjko_kernels import stream
W, X = torch.ones(3, 2), torch.ones(1, 2)
print(*(type(stream(W, X)).__name__ for _ in range(2)), float(stream(W, X).outputs(torch.ones(3))))
"""


def test_without_a_compiler_matrix_products_run_and_say_so(tmp_path: Path) -> None:
    env = {**os.environ, "BIGJKO_CACHE_FOLDER": str(tmp_path), "CXX": "no-such-compiler"}
    done = subprocess.run([sys.executable, "-c", USE], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "Tiled Tiled 6.0"
    assert done.stderr.count("RuntimeWarning: ridge.cpp could not be compiled, its torch version") == 1
