"""Network sums over nodes: every stream against sums written out, adjoints, kinks, contractions, memory."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from bigjko_kernels import Compiled, Keops, KernelError, Ridge, Stream, Sum, Tiled
from bigjko_kernels.triton_ridge import TritonStream

from .registry import STREAMS, Written, written_neurons
from .test_kernels import Largest

# Every KeOps formula is compiled once for each dtype, about 2 s each: float32 waits for the slow tests.
STREAMS_AND_DTYPES = [
    pytest.param(
        kind,
        dtype,
        id=f"{name}-{str(dtype).removeprefix('torch.')}",
        marks=[pytest.mark.slow] if kind is Keops and dtype == torch.float32 else [],
    )
    for name, kind in STREAMS.items()
    for dtype in (torch.float64, torch.float32)
]
both = pytest.mark.parametrize(("kind", "dtype"), STREAMS_AND_DTYPES)

N, n = 150, 11


def directions_and_data(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """In R^2, rounded to the dtype; the first rows meet at kinks w . x = 0 exactly, w = 0 among them."""
    W = torch.randn(N, 2, dtype=torch.float64)
    X = torch.randn(n, 2, dtype=torch.float64)
    W[:5] = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, -2.0], [1.0, -1.0], [-3.0, 1.5]])
    X[:4] = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5], [1.0, 2.0]])
    return W.to(dtype).to(device), X.to(dtype).to(device)


def made(kind: type[Stream], W: Tensor, X: Tensor) -> Stream:
    """A stream, on a device that it is for."""
    if kind is Compiled and W.device.type != "cpu":
        with pytest.raises(KernelError, match="on the CPU and a C\\+\\+ compiler: use Tiled"):
            kind(W, X)
        pytest.skip("compiled sums are the CPU's")
    if kind is TritonStream and torch.cuda.is_available() and W.device.type == "cpu":
        with pytest.raises(KernelError, match="on a GPU: use Tiled"):
            kind(W, X)
        pytest.skip("kernels are interpreted where there is no GPU")
    return kind(W, X)


def sum_tolerance(terms: int, dtype: torch.dtype) -> float:
    """Rounding of a sum of that many terms in the dtype, relative to the sum of their sizes, two products included."""
    return (terms + 4) * torch.finfo(dtype).eps


@both
def test_streams_are_the_sums_written_out(kind: type[Stream], dtype: torch.dtype, device: torch.device) -> None:
    W, X = directions_and_data(dtype, device)
    weights = torch.rand(N, dtype=dtype, device=device)
    z = torch.randn(n, dtype=dtype, device=device)
    stream = made(kind, W, X)

    act = (W.double()[:, None] * X.double()[None]).sum(-1)
    height, gate = act.relu(), (act > 0).double()
    outputs, potential, slopes = stream.outputs(weights), stream.potential(z), stream.slopes(z)

    assert (outputs.dtype, potential.dtype, slopes.dtype) == (torch.float64, dtype, dtype)
    assert (outputs.shape, potential.shape, slopes.shape) == ((n,), (N,), (N, 2))
    products = (W.double()[:, None].abs() * X.double()[None].abs()).sum(-1)  # what the activations round
    expected, size = weights.double() @ height, weights.double() @ products
    assert ((outputs - expected).abs() <= sum_tolerance(N, dtype) * size).all()
    expected, size = height @ z.double(), products @ z.double().abs()
    assert ((potential - expected).abs() <= sum_tolerance(n, dtype) * size).all()
    expected, size = gate @ (z[:, None] * X).double(), gate @ (z[:, None] * X).double().abs()
    # No activation is within rounding of a kink but those that are 0 exactly.
    assert act[act != 0].abs().min() > 1e-5
    assert ((slopes - expected).abs() <= sum_tolerance(n, dtype) * size).all()


@both
def test_potential_is_the_adjoint_of_outputs(kind: type[Stream], dtype: torch.dtype, device: torch.device) -> None:
    W, X = directions_and_data(dtype, device)
    stream, p = made(kind, W, X), torch.rand(N, dtype=dtype, device=device)
    z = torch.randn(n, dtype=dtype, device=device)
    left, right = stream.outputs(p) @ z.double(), p.double() @ stream.potential(z).double()
    size = p.double() @ (W.double().abs() @ X.double().abs().T) @ z.double().abs()
    assert (left - right).abs() <= sum_tolerance(N + n, dtype) * size


@both
def test_the_slope_at_a_kink_is_zero(kind: type[Stream], dtype: torch.dtype, device: torch.device) -> None:
    # relu'(0) = 0: a datum on the kink, or the neuron at the origin, adds nothing at all to the slope.
    W = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [2.0, -1.0], [0.0, 1.0]], dtype=dtype, device=device)
    X = torch.tensor([[0.0, 1.0], [0.0, -3.0], [1.0, 2.0], [0.0, 0.0]], dtype=dtype, device=device)
    z = torch.ones(4, dtype=dtype, device=device)
    expected = torch.tensor(
        # The origin meets nothing; e_1 meets (1, 2) alone; -e_1 nothing; (2, -1) is on the kink of (1, 2) and meets
        # (0, -3); e_2 meets (0, 1) and (1, 2).
        [[0.0, 0.0], [1.0, 2.0], [0.0, 0.0], [0.0, -3.0], [1.0, 3.0]],
        dtype=dtype,
        device=device,
    )
    stream = made(kind, W, X)
    assert torch.equal(stream.slopes(z), expected)
    assert torch.equal(stream.potential(z), (expected * W).sum(1))
    # The Gram matrix counts the same gates.
    one = torch.ones(1, dtype=dtype, device=device)
    gram = Ridge(stream, (5,), (0,), one, one, 0 * one).gram(torch.ones(5, dtype=dtype, device=device))
    gates = (expected.double().new_tensor([[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0]])).T
    assert torch.equal(gram, (gates @ gates.T) * (X.double() @ X.double().T))


@both
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_a_descent_is_the_velocity_and_the_outputs_where_it_leads(
    kind: type[Stream], dtype: torch.dtype, decay: float, device: torch.device
) -> None:
    W, X = directions_and_data(dtype, device)
    a, masses = torch.randn(N, dtype=dtype, device=device), torch.rand(N, dtype=dtype, device=device)
    z, dt = torch.randn(n, dtype=torch.float64, device=device), 0.1
    moved = made(kind, W, X).descend(a, masses, z, dt, decay)

    w, a_i, x, m = W.double(), a.double()[:, None], X.double(), masses.double()
    theta = torch.cat([w, a_i], dim=1)
    slopes = (w @ x.T > 0).double() @ (z[:, None] * x)
    velocity = -torch.cat([a_i * slopes, (w * slopes).sum(1, keepdim=True)], dim=1) - 2 * decay * theta
    assert (moved.positions.dtype, moved.outputs.dtype) == (dtype, torch.float64)
    size = theta.norm(dim=1, keepdim=True) * (1 + float(z.abs() @ x.norm(dim=1)))  # of a velocity, dt being below 1
    assert ((moved.positions.double() - theta - dt * velocity).abs() <= sum_tolerance(n, dtype) * size).all()
    assert moved.fastest == pytest.approx(float(velocity.norm(dim=1).max()), rel=sum_tolerance(n, dtype))
    # The outputs are those of the positions as they are stored, summed in float64.
    new = moved.positions.double()
    act = new[:, :2] @ x.T
    size = (m * new[:, 2].abs()) @ (new[:, :2].abs() @ x.abs().T)
    assert ((moved.outputs - (m * new[:, 2]) @ act.relu()).abs() <= sum_tolerance(N, dtype) * size).all()


def test_streams_agree(device: torch.device) -> None:
    W, X = directions_and_data(torch.float64, device)
    p, z = torch.rand(N, dtype=torch.float64, device=device), torch.randn(n, dtype=torch.float64, device=device)
    tiled, keops = Tiled(W, X), Keops(W, X)
    assert (tiled.outputs(p) - keops.outputs(p)).abs().max() <= 1e-12
    assert (tiled.potential(z) - keops.potential(z)).abs().max() <= 1e-12
    assert (tiled.slopes(z) - keops.slopes(z)).abs().max() <= 1e-12


@pytest.mark.parametrize("kind", [Tiled, Compiled])
def test_float32_outputs_are_summed_in_float64(kind: type[Stream]) -> None:
    # 10^6 neurons that agree: a float32 sum of them is wrong by 1e-3 and more, one of float64 keeps each product.
    many = 1_000_000
    W = torch.ones(many, 1, dtype=torch.float32)
    X = torch.tensor([[1.0]], dtype=torch.float32)
    p = torch.full((many,), 0.1, dtype=torch.float32)
    assert float(kind(W, X).outputs(p)) == pytest.approx(many * float(p[0]), rel=1e-12)
    moved = kind(W, X).descend(p, torch.ones(many), torch.zeros(1, dtype=torch.float64), 1.0, 0.0)
    assert float(moved.outputs) == pytest.approx(many * float(p[0]), rel=1e-12)


# --------------------------------------------------------------------------------------------------------------- ridge

# Shape of the nodes, axes of the directions, axes on which the amplitude and the slopes' factors live: every way the
# rest can be contracted.
CONTRACTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "directions alone": ((12,), (0,), (0,)),
    "one number": ((12, 3), (0,), ()),
    "one axis after": ((12, 3), (0,), (1,)),
    "one axis before": ((3, 12), (1,), (0,)),
    "one axis between": ((4, 3, 3), (0, 2), (1,)),
    "two axes, factor on one": ((3, 12, 2), (1,), (2,)),
    "two axes, factor on both": ((3, 12, 2), (1,), (0, 2)),
}


@pytest.mark.parametrize(("shape", "direction_axes", "on"), CONTRACTIONS.values(), ids=CONTRACTIONS)
def test_ridge_contracts_the_rest(
    shape: tuple[int, ...], direction_axes: tuple[int, ...], on: tuple[int, ...], device: torch.device
) -> None:
    f64 = {"dtype": torch.float64, "device": device}
    W, X = torch.randn(12, 2, **f64), torch.randn(5, 2, **f64)  # type: ignore[call-overload]
    X[0], W[3] = torch.tensor([1.0, -1.0]), torch.tensor([2.0, 2.0])  # a kink
    factors = [torch.rand([s if k in on else 1 for k, s in enumerate(shape)], **f64) for _ in range(3)]  # type: ignore[call-overload]
    amplitude, alpha, beta = factors
    p, z = torch.rand(shape, **f64), torch.randn(5, **f64)  # type: ignore[call-overload]
    ridge = Ridge(Tiled(W, X), shape, direction_axes, amplitude, alpha, beta)

    # Node by node: (12 directions) laid along their axes, the rest broadcast.
    act = (W @ X.T).reshape([*(s if k in direction_axes else 1 for k, s in enumerate(shape)), 5])
    phi = amplitude[..., None] * act.relu()
    assert (ridge.outputs(p) - (p[..., None] * phi).reshape(-1, 5).sum(0)).abs().max() <= 1e-13
    assert ridge.potential(z).shape == ridge.slope2(z).shape == shape
    assert ((ridge.potential(z) - phi @ z).abs() <= 1e-13).all()

    gate, height = (act > 0).double(), act.relu()
    gram = torch.einsum("...,...i,...j->ij", p * alpha, gate.expand(*shape, 5), gate.expand(*shape, 5)) * (X @ X.T)
    gram += torch.einsum("...,...i,...j->ij", p * beta, height.expand(*shape, 5), height.expand(*shape, 5))
    assert (ridge.gram(p) - gram).abs().max() <= 1e-12
    G, S = gate @ (z[:, None] * X), height @ z
    assert (ridge.slope2(z) - (alpha * (G**2).sum(-1) + beta * S**2)).abs().max() <= 1e-12
    assert ridge.gram_work == 2 * 5**2 * 12


def test_sum_of_two_ridges_is_the_difference_of_two_networks() -> None:
    # Split, P3: phi = relu(w+ . x) - relu(w- . x) on pairs; the slopes live on different factors.
    plus, minus, X = torch.randn(4, 2), torch.randn(6, 2), torch.randn(5, 2)
    plus, minus, X = plus.double(), minus.double(), X.double()
    one, nothing = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    total = Sum(
        [
            Ridge(Tiled(plus, X), (4, 6), (0,), one, one, nothing),
            Ridge(Tiled(minus, X), (4, 6), (1,), -one, one, nothing),
        ]
    )
    p, z = torch.rand(4, 6, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    act = (plus @ X.T)[:, None], (minus @ X.T)[None]
    phi = act[0].relu() - act[1].relu()
    assert (total.outputs(p) - torch.einsum("ab,abj->j", p, phi)).abs().max() <= 1e-13
    assert (total.potential(z) - phi @ z).abs().max() <= 1e-13
    slopes = torch.cat(
        [((act[0] > 0)[..., None] * X).expand(4, 6, 5, 2), -((act[1] > 0)[..., None] * X).expand(4, 6, 5, 2)], dim=-1
    )
    assert (total.gram(p) - torch.einsum("ab,abik,abjk->ij", p, slopes, slopes)).abs().max() <= 1e-12
    assert (total.slope2(z) - (torch.einsum("abik,i->abk", slopes, z) ** 2).sum(-1)).abs().max() <= 1e-12
    assert total.gram_work == sum(part.gram_work for part in total.parts)


@pytest.mark.parametrize("kind", STREAMS.values(), ids=STREAMS)
def test_ridge_on_particles_is_their_gradient(kind: type[Stream]) -> None:
    theta = torch.randn(20, 3, dtype=torch.float64)
    theta[0, :2], theta[1, 2] = 0.0, 0.0  # neurons at a kink, and without second layer
    X, p = torch.randn(5, 2, dtype=torch.float64), torch.rand(20, dtype=torch.float64)
    z = torch.randn(5, dtype=torch.float64)
    w, a = theta[:, :2], theta[:, 2]
    ridge = Ridge(made(kind, w, X), (20,), (0,), a, a**2, torch.ones_like(a[:1]))
    check_written(ridge, written_neurons(theta, X), p, z, (20,))


def check_written(features: Ridge | Sum, written: Written, p: Tensor, z: Tensor, shape: Sequence[int]) -> None:
    """Outputs, potential, gram and slope2 against the features written out; terms of order 1, 1e-13 of rounding."""
    flat = p.reshape(-1)
    assert features.potential(z).shape == features.slope2(z).shape == tuple(shape)
    assert (features.outputs(p) - flat @ written.phi).abs().max() <= 1e-12
    assert (features.potential(z) - (written.phi @ z).reshape(shape)).abs().max() <= 1e-12
    gram = torch.einsum("k,kia,kja->ij", flat, written.slopes, written.slopes)
    assert (features.gram(p) - gram).abs().max() <= 1e-12 * (1 + gram.abs().max())
    slope2 = (torch.einsum("kia,i->ka", written.slopes, z) ** 2).sum(1).reshape(shape)
    assert (features.slope2(z) - slope2).abs().max() <= 1e-12 * (1 + slope2.max())


# --------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("kind", "nodes"),
    # A second size for Keops would show nothing more, and take seconds.
    [(Tiled, (40, 40, 40)), (Tiled, (90, 90, 90)), (Keops, (40, 40, 40)), (Compiled, (40, 40, 40))],
    ids=["tiled, N < 2^17", "tiled, N > 2^17", "keops", "compiled"],
)
def test_ridge_holds_one_tile_at_a_time(kind: type[Stream], nodes: tuple[int, int, int]) -> None:
    side, _, rest = nodes
    W = torch.cartesian_prod(*[torch.linspace(-1, 1, side, dtype=torch.float64)] * 2)
    X = torch.randn(442, 2, dtype=torch.float64)
    a = torch.linspace(-1, 1, rest, dtype=torch.float64)
    ridge = Ridge(kind(W, X), nodes, (0, 1), a, a**2, torch.ones(1, 1, 1, dtype=torch.float64))
    p, z = torch.rand(nodes, dtype=torch.float64), torch.randn(442, dtype=torch.float64)
    size = math.prod(nodes)
    assert 442 * side**2 > max(size, 1 << 17)  # all activations at once would be seen
    with Largest() as largest:
        ridge.outputs(p)
        ridge.potential(z)
        ridge.gram(p)
        ridge.slope2(z)
    assert largest.entries <= max(size, 1 << 17, 442**2)  # the Gram matrix itself is n x n


@pytest.mark.parametrize("kind", [Tiled, Compiled])
def test_a_descent_holds_the_positions_and_one_tile(kind: type[Stream]) -> None:
    many = 200_000
    W, X = torch.randn(many, 2, dtype=torch.float64), torch.randn(100, 2, dtype=torch.float64)
    a, masses, z = W[:, 0] * 2, torch.ones(many, dtype=torch.float64), torch.randn(100, dtype=torch.float64)
    with Largest() as largest:
        kind(W, X).descend(a, masses, z, 0.1, 0.1)
    assert largest.entries == 3 * many  # the new positions
