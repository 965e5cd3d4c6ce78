"""One application of the log kernel: against what the machine can do at best, and against the peers."""

from collections.abc import Iterator

import torch
from harness import Bar, Contender, Setup, Table, measure
from peers import geomloss_grid, keops_dense, ott_kernel, ott_result, per_axis
from problems import D, box, sloped
from torch import Tensor

from bigjko_kernels import Dense, Grid, Separable

EXP, FLOOR = "one torch.exp pass", "an exp, 24 products a node and a log, an axis, by torch"
OURS, SCALING, LOG = "bigjko Separable", "OTT scaling mode (no log domain)", "OTT log mode"
GEOMLOSS, KEOPS, TORCH = "GeomLoss softmin_grid", "KeOps dense", "plain torch log-sum-exp an axis"


def tables(setup: Setup) -> Iterator[Table]:
    """Two large grids in both dtypes, then two small ones on which dense sums end."""
    shapes = ((16, 16, 16), (64, 64)) if setup.quick else ((128, 128, 128), (1024, 1024))
    for shape in shapes:
        for dtype in (D, torch.float32):
            yield large(setup, shape, dtype)
    for shape in ((8, 8, 8), (32, 32)) if setup.quick else ((32, 32, 32), (128, 128)):
        yield small(setup, shape)


def normal(b: Tensor) -> Tensor:
    """b scaled to [-30, 0]: torch.exp is slower on values that underflow, which would flatter every ratio."""
    return (b - b.max()) * (30 / (b.max() - b.min()))


def relative(truth: Tensor, out: Tensor) -> float:
    """Largest |out - truth| / (1 + |truth|); NaN and inf count as inf."""
    gap = (out.double() - truth).abs() / (1 + truth.abs())
    return float(gap.nan_to_num(nan=torch.inf, posinf=torch.inf).max())


def _contenders(setup: Setup, grid: Grid, b: Tensor, truth: Tensor) -> list[Contender]:
    """What both kinds of table share."""
    epsilon = 0.75 * grid.spacing**2
    # Floors and ours write where they are told: pages of a new array cost more than an exponential, and vary with what
    # the process did before. Peers cannot.
    plain, room = normal(b), torch.empty_like(b)

    def error(out: object) -> float:
        assert isinstance(out, Tensor)
        return relative(truth, out)

    def ours() -> object:
        kernel = Separable(grid, epsilon)
        return lambda: kernel.log_apply(b, out=room)

    def floor() -> object:
        """What any log-domain kernel does at least, were its input one matrix: 24 nodes count to float64 rounding."""
        nodes, near = torch.rand(8, 24).to(b), torch.rand(24, b.numel() // 8).to(b)
        sums = torch.empty(8, b.numel() // 8).to(b)

        def run() -> object:
            for _ in grid.shape:
                torch.exp(plain, out=room)
                torch.mm(nodes, near, out=sums)
                torch.log(room, out=room)
            return room

        return run

    def ott(log_mode: bool) -> Contender:
        def judge(out: object) -> float:
            assert isinstance(out, Tensor)
            return error(ott_result(grid, epsilon, b.cpu(), out.cpu(), log_mode=log_mode).to(b.device))

        return Contender(
            LOG if log_mode else SCALING,
            lambda: ott_kernel(grid, epsilon, b, log_mode=log_mode),
            judge,
            peer=True,
            slow=log_mode,
            # XLA holds the sums of one axis at once: 131 to 133 arrays of N on 128^3.
            needs=1.1 * b.element_size() * grid.size * max(grid.shape) if log_mode else 0.0,
        )

    # Tens of seconds each: in float64 only.
    line_by_line = [
        Contender(GEOMLOSS, lambda: geomloss_grid(grid, epsilon, b), error, peer=True, slow=True),
        Contender(TORCH, lambda: per_axis(grid, epsilon, b), error, slow=not setup.quick),
    ]
    return [
        Contender(EXP, lambda: lambda: torch.exp(plain, out=room)),
        Contender("one copy", lambda: lambda: room.copy_(b)),
        Contender(FLOOR, floor),  # type: ignore[arg-type]
        Contender(OURS, ours, error, ours=True),  # type: ignore[arg-type]
        ott(False),
        ott(True),
        *([] if b.dtype == torch.float32 else line_by_line),
    ]


def large(setup: Setup, shape: tuple[int, ...], dtype: torch.dtype) -> Table:
    """Against the floor and whatever peer works axis by axis. The truth is ours in float64."""
    grid = box(shape, dtype, setup.device)
    b = sloped(grid)
    truth = Separable(grid.to(dtype=D), 0.75 * grid.spacing**2).log_apply(b.double())
    title = f"Log kernel, {_by(shape)}, {_name(dtype)}, epsilon = .75 h^2, tau = h"
    table = measure(
        setup,
        title,
        EXP,
        _contenders(setup, grid, b, truth),
        array=b.element_size() * grid.size,
        judged="relative to 1 + abs(out)",
    )
    where = f"{_by(shape)} {_name(dtype)}"
    table.bars += [
        Bar(f"torch.exp passes an axis, {where}", table.over(OURS, EXP) / len(shape), 8.0),
        Bar(f"time over OTT's scaling mode, {where}", table.over(OURS, SCALING), 1.0),
        Bar(f"times faster than OTT's log mode, {where}", table.over(LOG, OURS), 100.0, at_least=True),
    ]
    return table


def small(setup: Setup, shape: tuple[int, ...]) -> Table:
    """Grids on which all pairs can be summed; the truth is a sum over all pairs."""
    grid = box(shape, D, setup.device)
    b = sloped(grid)
    epsilon = 0.75 * grid.spacing**2
    truth = Dense(grid, epsilon).log_apply(b) if grid.size <= 4096 else keops_truth(grid, epsilon, b)

    def error(out: object) -> float:
        assert isinstance(out, Tensor)
        return relative(truth, out)

    dense = Contender(KEOPS, lambda: keops_dense(grid, epsilon, b), error, peer=True, slow=True)
    contenders = [*_contenders(setup, grid, b, truth), dense]
    title = f"Log kernel where all pairs can be summed, {_by(shape)}, float64, epsilon = .75 h^2, tau = h"
    return measure(setup, title, EXP, contenders, array=8 * grid.size, judged="relative to 1 + abs(out)")


def keops_truth(grid: Grid, epsilon: float, b: Tensor) -> Tensor:
    """A true log-sum-exp over all pairs, in slabs of rows."""
    points, flat = grid.points(), b.reshape(-1)
    rows = max(1, (1 << 24) // grid.size)
    square = (points**2).sum(1)
    parts = [
        torch.logsumexp(flat - (square + (x**2).sum(1, keepdim=True) - 2 * x @ points.T) / (2 * epsilon), 1)
        for x in points.split(rows)
    ]
    return torch.cat(parts).reshape(b.shape)


def _by(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}^{len(shape)}" if len(set(shape)) == 1 else " x ".join(map(str, shape))


def _name(dtype: torch.dtype) -> str:
    return str(dtype)[6:]
