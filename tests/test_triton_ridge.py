"""The sums by Triton: any size and layout, NaN and inf, gradients; on a GPU where there is one, else interpreted.

That they are the sums written out is also test_features.py's matrix.
"""

import math
import pickle

import pytest
import torch
from torch import Tensor

from bigjko_kernels import GridError, KernelError, Stream, Tiled, stream
from bigjko_kernels.trial import trusted
from bigjko_kernels.triton_ridge import TritonStream

from .test_kernels import Largest
from .test_ridge import all_sums, inputs, written

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda:0" if GPU else "cpu")
# The interpreter computes with NumPy, which warns of what is not finite.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value", "ignore:All-NaN slice")


def placed(*values: Tensor) -> tuple[Tensor, ...]:
    """Where kernels run; a view stays a view."""
    return tuple(
        torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=DEVICE).copy_(t) if GPU else t for t in values
    )


def check(W: Tensor, X: Tensor, weights: Tensor, z: Tensor) -> None:
    found, expected = all_sums(TritonStream(W, X), weights, z), written(W, X, weights, z)
    expected[-1] = expected[-1].cpu()
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12, equal_nan=True)


# A program takes stripes of 64 directions, 8 at once or fewer, from d = 7, 13 and 25 on.
@pytest.mark.parametrize(
    ("N", "n", "d"),
    [(N, n, 2) for N in (0, 1, 8, 9, 300) for n in (0, 1, 9, 130)]
    + [(70, 17, d) for d in (1, 3, 6, 7, 12, 13, 25, 47)],
)
def test_any_number_of_directions_and_data(N: int, n: int, d: int) -> None:
    W, X, weights, z = inputs(N, n, d)
    check(*placed(W / math.sqrt(d), X, weights, z))


def test_directions_may_lie_in_memory_in_any_way(dtype: torch.dtype) -> None:
    W, X, weights, z = (t.to(dtype=dtype, device=DEVICE) for t in inputs(20, 11, 3))
    strided = torch.cat([W, W], dim=1)[:, 1:4]
    expected = all_sums(TritonStream(strided.contiguous(), X), weights, z)
    wide = torch.stack([weights, z.new_zeros(20)], dim=1)[:, 0]
    for other in (strided, strided.T.contiguous().T):
        assert all(map(torch.equal, all_sums(TritonStream(other, X.T.contiguous().T), wide, z), expected))
    one, same = strided[:1].expand(20, 3), weights[:1].expand(20)  # as the masses of equal neurons are
    expected = all_sums(TritonStream(one.clone(), X), same.clone(), z)
    assert all(map(torch.equal, all_sums(TritonStream(one, X), same, z), expected))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", range(4), ids=["directions", "data", "weights", "z"])
@pytest.mark.parametrize("N", [8, 20])
def test_nan_and_inf_go_where_they_go_in_torch(bad: float, where: int, N: int) -> None:
    given = inputs(N, 9, 2)
    given[where][3] = bad
    check(*placed(*given))


def test_float32_is_summed_in_float64() -> None:
    many = 3000
    W, X = torch.ones(many, 1, device=DEVICE), torch.ones(1, 1, device=DEVICE)
    p = torch.full((many,), 0.1, device=DEVICE)
    expected = pytest.approx(many * float(p[0]), rel=1e-12)
    assert float(TritonStream(W, X).outputs(p)) == expected
    z = torch.zeros(1, dtype=torch.float64, device=DEVICE)
    assert float(TritonStream(W, X).descend(p, torch.ones_like(p), z, 1.0, 0.0).outputs) == expected


def test_dt_and_decay_are_doubles() -> None:
    W, X, weights, z = placed(*inputs(5, 3, 2))
    near = [TritonStream(W, X).descend(weights, weights, z, 0.1 * s, 0.1 * s).positions for s in (1.0, 1.0 + 1e-12)]
    assert not torch.equal(*near)


def test_only_what_is_handed_out_has_many_numbers() -> None:
    W, X, weights, z = placed(*inputs(300, 130, 2))
    with Largest() as largest:
        all_sums(TritonStream(W, X), weights, z)
    assert largest.entries <= 8 * 3 * 300  # the new positions, whose bytes the interpreter copies


@pytest.mark.parametrize("where", range(4), ids=["directions", "data", "weights", "z"])
def test_gradients_are_those_of_torch(where: int) -> None:
    given = placed(*inputs(6, 5, 2))
    tracked = given[where].requires_grad_()
    W, X, weights, z = given
    gradients: list[Tensor] = []
    for kind in (TritonStream, Tiled):
        sums = kind(W, X)
        total = (sums.outputs(weights) ** 2).sum() + (sums.potential(z) ** 2).sum() + (sums.slopes(z) ** 2).sum()
        moved = sums.descend(weights, weights.detach().abs(), z, 0.1, 0.2)
        gradients += torch.autograd.grad(total + (moved.positions**2).sum() + moved.outputs.sum(), tracked)
    assert torch.equal(*gradients)
    with torch.no_grad():
        check(W, X, weights, z)


def test_values_of_another_size_are_refused() -> None:
    W, X, weights, z = placed(*inputs(6, 5, 2))
    sums = TritonStream(W, X)
    for call in (
        lambda: sums.outputs(weights[:5]),
        lambda: sums.potential(z[:1]),
        lambda: sums.slopes(torch.cat([z, z])),
        lambda: sums.descend(weights[:5], weights, z, 0.1, 0.0),
        lambda: sums.descend(weights, weights[:5], z, 0.1, 0.0),
    ):
        with pytest.raises(GridError, match=r"values of shape \(\d+,\) on .*, need \([56],\) on"):
            call()
    with pytest.raises(KernelError, match="bfloat16 on .*, need float32 or float64 on a GPU: use Tiled"):
        TritonStream(W.bfloat16(), X.bfloat16())


def test_a_stream_can_be_pickled() -> None:
    W, X, weights, _ = placed(*inputs(6, 5, 2))
    sums = TritonStream(W, X)
    assert torch.equal(pickle.loads(pickle.dumps(sums)).outputs(weights), sums.outputs(weights))


# ---------------------------------------------------------------------------------------------------------- the choice


@pytest.mark.skipif(not GPU, reason="the default on a GPU")
def test_low_dimensions_on_a_gpu_are_triton_s(dtype: torch.dtype) -> None:
    def chosen(d: int, dtype: torch.dtype = dtype) -> type[Stream]:
        return type(stream(*(torch.zeros(k, d, dtype=dtype, device=DEVICE) for k in (3, 2))))

    assert (chosen(2), chosen(784), chosen(2, torch.bfloat16)) == (TritonStream, Tiled, Tiled)


def test_what_fails_its_trial_is_said_and_not_taken() -> None:
    assert trusted(lambda: ("it", 1e-15), DEVICE) == "it"
    for gap in (1e-3, math.nan):
        with pytest.warns(UserWarning, match=r"sums that are off by .* from Triton on .*: torch does its work"):
            assert trusted(lambda gap=gap: ("it", gap), DEVICE) is None  # type: ignore[misc]

    def raises() -> tuple[str, float]:
        raise RuntimeError("no driver")

    with pytest.warns(UserWarning, match=r"received RuntimeError\('no driver'\) from Triton"):
        assert trusted(raises, DEVICE) is None

    def full() -> tuple[str, float]:
        raise torch.cuda.OutOfMemoryError

    with pytest.raises(torch.cuda.OutOfMemoryError):
        trusted(full, DEVICE)
