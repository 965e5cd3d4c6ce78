"""Sums over neurons at 10^4 to 10^7 particles: outputs, potential and a step of gradient descent."""

from collections.abc import Callable, Iterator

import torch
from harness import Bar, Contender, Run, Setup, Table, measure
from peers import autograd_descent
from problems import D
from torch import Tensor

import bigjko as bj
from bigjko_kernels import Keops

OURS, KEOPS, TORCH = "bigjko, default stream", "KeOps", "plain torch"
GD, AUTOGRAD = "bigjko GradientDescent, outputs afterwards included", "torch autograd, without them"
_N, _D = 100, 2
_TRUTH = 2000  # the first particles, judged against float64 sums that are written out


def tables(setup: Setup) -> Iterator[Table]:
    """Sums and descent at every size, in float64; the sums in float32 at 10^6."""
    largest = (10**7,) if setup.slow else ()
    for m in (10**3,) if setup.quick else (10**4, 10**5, 10**6, *largest):
        yield outputs(setup, m, D)
        yield potential(setup, m, D)
        yield descent(setup, m)
    if not setup.quick:
        yield outputs(setup, 10**6, torch.float32)
        yield potential(setup, 10**6, torch.float32)


def _network(setup: Setup, m: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(*s, dtype=D, generator=generator) for s in ((_N, _D), (_N,), (m, _D), (m,))]
    X, y, W, a = (x.to(setup.device, dtype) for x in draw)
    return X, y, W, a


def _sums(
    setup: Setup, what: str, m: int, dtype: torch.dtype, runs: dict[str, Callable[[], Run]], truth: Tensor
) -> Table:
    """A table of ours, KeOps and plain torch, judged on what `truth` covers."""
    size, work = torch.finfo(dtype).bits // 8, m * _N

    def error(out: object) -> float:
        assert isinstance(out, Tensor)
        shown = out[: truth.shape[0]].double()
        return float((shown - truth).abs().max() / truth.abs().max())

    needs = {TORCH: 2.0 * size * work}  # the product and its relu
    contenders = [
        Contender(name, build, error, ours=name == OURS, needs=needs.get(name, 0.0), slow=m > 10**6)
        for name, build in runs.items()
        if setup.peers or name != KEOPS
    ]
    title = f"{what} of {m:,} particles, n = {_N}, d = {_D}, {str(dtype)[6:]}"
    table = measure(setup, title, OURS, contenders, array=size * m, judged="relative to the largest value")
    best = min((row.median for row in table.rows if row.name != OURS and row.times), default=float("nan"))
    where = f"{m:,} {str(dtype)[6:]}"
    table.bars.append(
        Bar(f"{what.lower()}: time over the best of plain torch and KeOps, {where}", table.row(OURS).median / best, 1.0)
    )
    return table


def outputs(setup: Setup, m: int, dtype: torch.dtype) -> Table:
    """sum_i v_i relu(w_i . x_j)."""
    X, _, W, a = _network(setup, m, dtype)
    v = a / m
    stream = bj.Risk(X, X[:, 0]).neurons.stream(W, X)
    truth = sum(
        v[part].double() @ (W[part].double() @ X.double().T).relu()
        for part in (slice(k, k + 10**5) for k in range(0, m, 10**5))
    )
    assert isinstance(truth, Tensor)
    runs: dict[str, Callable[[], Run]] = {
        OURS: lambda: lambda: stream.outputs(v),
        KEOPS: lambda: _warm(lambda: Keops(W[:2], X).outputs(v[:2]), lambda: Keops(W, X).outputs(v)),
        TORCH: lambda: lambda: v @ (W @ X.T).relu(),
    }
    return _sums(setup, "Outputs", m, dtype, runs, truth)


def potential(setup: Setup, m: int, dtype: torch.dtype) -> Table:
    """sum_j z_j relu(w_i . x_j)."""
    X, z, W, _ = _network(setup, m, dtype)
    stream = bj.Risk(X, z).neurons.stream(W, X)
    truth = (W[:_TRUTH].double() @ X.double().T).relu() @ z.double()
    runs: dict[str, Callable[[], Run]] = {
        OURS: lambda: lambda: stream.potential(z),
        KEOPS: lambda: _warm(lambda: Keops(W[:2], X).potential(z), lambda: Keops(W, X).potential(z)),
        TORCH: lambda: lambda: (W @ X.T).relu() @ z,
    }
    return _sums(setup, "Potential", m, dtype, runs, truth)


def _warm(small: Run, run: Run) -> Run:
    """KeOps compiles the formula on a small input first."""
    small()
    return run


def descent(setup: Setup, m: int) -> Table:
    """One step of gradient descent on the mean squared error."""
    X, y, W, a = _network(setup, m, D)
    problem = bj.Risk(X, y, loss=bj.losses.Squared(scale=1 / _N))
    gd = bj.GradientDescent(problem, tau=1e-3)

    def ours() -> Run:
        network = bj.ParticleMeasure.from_network(W, a)
        state = gd.init(network)
        return lambda: gd.step(network, state, gd.tau).measure.positions

    want = autograd_descent(X, y, 1 / _N, W, a, gd.tau)() if m <= 10**5 else None

    def error(out: object) -> float:
        assert isinstance(out, Tensor)
        return float("nan") if want is None else float((out - want).abs().max())

    judged = "largest difference to autograd" if want is not None else ""
    contenders = [
        Contender(GD, ours, None if want is None else error, ours=True, slow=m > 10**6),
        # Measured: 404 arrays of m at n = 100.
        Contender(
            AUTOGRAD,
            lambda: autograd_descent(X, y, 1 / _N, W, a, gd.tau),
            None if want is None else error,
            needs=4.0 * 8 * m * _N,
            slow=m > 10**6,
        ),
    ]
    title = f"A step of gradient descent, {m:,} particles, n = {_N}, d = {_D}, float64"
    table = measure(setup, title, GD, contenders, array=8 * m, judged=judged)
    if m == 10**6:
        table.bars.append(
            Bar("gradient descent step: times faster than autograd, 10^6", table.over(AUTOGRAD, GD), 3.0, at_least=True)
        )
        table.bars.append(
            Bar("gradient descent step: peak memory in arrays of m, 10^6", table.row(GD).peak / (8 * m), 16.0)
        )
    return table
