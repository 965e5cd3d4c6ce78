"""The tables of RESULTS.md: `make bench`, or `python bench/tables.py [section ...]`.

Every claim in README's performance section is a row here.
"""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from harness import Contender, Table, header, measure
from torch import Tensor

import bigjko as bj
from bigjko_kernels import Grid, Keops, Separable, Tiled

D = torch.float64


def potential(grid: Grid) -> Tensor:
    """A risk-like potential: quadratic, with a kink, slopes up to 10."""
    x = grid.points().reshape(*grid.shape, -1)
    return (x**2).sum(-1) / 2 + 3 * x[..., 0].relu() * x[..., 1] / 4


def per_axis(grid: Grid, epsilon: float, b: Tensor) -> Tensor:
    """The plain way: torch's log-sum-exp an axis, in slabs that fit."""
    for k, f in enumerate(grid.factors):
        x = f.nodes[:, 0]
        log_k = -((x[:, None] - x[None]) ** 2) / (2 * epsilon)
        lines = b.movedim(k, -1)
        rows = lines.reshape(-1, f.size)
        slab = max(1, (1 << 24) // f.size**2)
        out = torch.cat([torch.logsumexp(log_k[None] + part[:, None], -1) for part in rows.split(slab)])
        b = out.reshape(lines.shape).movedim(-1, k)
    return b


def ott_kernel(grid: Grid, epsilon: float, b: Tensor, log_mode: bool) -> Callable[[], object]:
    """OTT-JAX's Grid, whose cost is |x - y|^2 (its epsilon is twice ours); compiled, and waited for."""
    import jax

    jax.config.update("jax_enable_x64", b.dtype == D)
    import jax.numpy as jnp
    from ott.geometry.grid import Grid as OttGrid

    geometry = OttGrid(x=[jnp.asarray(f.nodes[:, 0].numpy()) for f in grid.factors], epsilon=2 * epsilon)
    values = jnp.asarray(b.reshape(-1).numpy())
    if log_mode:
        apply = jax.jit(lambda v: geometry.apply_lse_kernel(jnp.zeros_like(v), v, 2 * epsilon)[0])
        return lambda: apply(values * 2 * epsilon).block_until_ready()
    scaled = jnp.exp(values - values.max())
    apply = jax.jit(lambda v: geometry.apply_kernel(v, 2 * epsilon))
    return lambda: apply(scaled).block_until_ready()


def kernels() -> list[Table]:
    """One application of the log kernel against its floor and its peers."""
    shapes = ((128, 128, 128), (1024, 1024))
    return [_kernels(shape, dtype) for shape in shapes for dtype in (torch.float64, torch.float32)]


def _kernels(shape: tuple[int, ...], dtype: torch.dtype) -> Table:
    grid = Grid.uniform([-3.0] * len(shape), [3.0] * len(shape), shape, dtype=dtype)
    h = grid.spacing
    epsilon = 0.75 * h * h
    b = (-h * potential(grid) / epsilon).contiguous()  # tau = h: a displacement of nodes, whatever the grid
    kernel = Separable(grid, epsilon)
    truth = Separable(grid.to(dtype=D), epsilon).log_apply(b.double())

    def error(out: object) -> float:
        assert isinstance(out, Tensor)
        return float(((out.double() - truth).abs() / (1 + truth.abs())).max())

    contenders = [
        Contender("one torch.exp pass", lambda: torch.exp(b), repeats=9),
        Contender("one copy", lambda: b.clone(), repeats=9),
        Contender("bigjko Separable", lambda: kernel.log_apply(b), error, repeats=9),
        Contender("plain torch log-sum-exp an axis", lambda: per_axis(grid, epsilon, b), error, repeats=1),
    ]
    for name, log_mode, repeats in (("OTT scaling mode (no log domain)", False, 5), ("OTT log mode", True, 1)):
        try:
            contenders.append(Contender(name, ott_kernel(grid, epsilon, b, log_mode), repeats=repeats))
        except ImportError:
            contenders.append(Contender(name, _missing))
    name = f"log kernel, {' x '.join(map(str, shape))}, {str(dtype)[6:]}, epsilon = .75 h^2, tau = h"
    return measure(name, "one torch.exp pass", contenders)


def _missing() -> object:
    raise ImportError("not installed: pip install 'bigjko[bench]'")


def growth() -> list[Table]:
    """Time against N at fixed epsilon / h^2 and fixed displacement in nodes."""
    tables = []
    for dim, sizes in ((2, (256, 512, 1024, 2048)), (3, (32, 64, 128))):
        contenders = []
        for n in sizes:
            grid = Grid.uniform([-3.0] * dim, [3.0] * dim, [n] * dim)
            h = grid.spacing
            b = (-h * potential(grid) / (0.75 * h * h)).contiguous()
            kernel = Separable(grid, 0.75 * h * h)
            contenders.append(Contender(f"{n}^{dim}", lambda k=kernel, b=b: k.log_apply(b)))
        table = measure(f"log kernel against N, {dim}-D, float64", f"{sizes[0]}^{dim}", contenders)
        slope, _ = np.polyfit([dim * np.log(n) for n in sizes], [np.log(row.median) for row in table.rows], 1)
        table.title += f": time grows like N^{slope:.2f}"
        tables.append(table)
    return tables


def steps() -> list[Table]:
    """One plain step at tau = .2, epsilon = .01 on 64^2, n = 4, to an L1 accuracy of 1e-8."""
    torch.manual_seed(0)
    grid = Grid.uniform([-3.0, -3.0], [3.0, 3.0], [64, 64])
    X = torch.tensor([[1.0], [-0.7], [0.5], [0.3]], dtype=D)
    risk = bj.Risk(X, torch.tensor([1.0, -0.5, 0.2, 0.6], dtype=D))
    start = bj.GridMeasure.gaussian(grid, mean=0.1, std=0.5)

    def stepping(solver: bj.DualSolver | bj.ScalingSolver) -> Callable[[], object]:
        jko = bj.JKO(risk, grid, tau=0.2, epsilon=0.01, entropy=bj.Plain(), solver=solver)
        state = jko.init(start)
        return lambda: jko.step(start, state, 0.2).measure.masses

    truth = stepping(bj.DualSolver(rtol=1e-12))()

    def error(p: object) -> float:
        assert isinstance(p, Tensor)
        assert isinstance(truth, Tensor)
        return float((p - truth).abs().sum())

    return [
        measure(
            "one plain step, 64^2, tau = .2, epsilon = .01, L1 error to the step's own limit",
            "dual solver",
            [
                Contender("dual solver", stepping(bj.DualSolver()), error),
                Contender("scaling solver, tolerance 1e-10", stepping(bj.ScalingSolver(tolerance=1e-10)), error, 1),
                Contender("scaling solver, tolerance 1e-8", stepping(bj.ScalingSolver(tolerance=1e-8)), error, 1),
            ],
        )
    ]


def particles() -> list[Table]:
    """Outputs and a step of gradient descent at n = 100 against plain torch."""
    tables = []
    X, y = torch.randn(100, 2, dtype=D), torch.randn(100, dtype=D)
    risk = bj.Risk(X, y, loss=bj.losses.Squared(scale=0.01))
    descent = bj.GradientDescent(risk, tau=1e-3)
    for m in (10**4, 10**5, 10**6):
        W, a = torch.randn(m, 2, dtype=D), torch.randn(m, dtype=D)
        network = bj.ParticleMeasure.from_network(W, a)
        state = descent.init(network)
        want = descent.step(network, state, 1e-3).measure.positions

        def autograd(W: Tensor = W, a: Tensor = a, m: int = m) -> object:
            w, s = W.clone().requires_grad_(), a.clone().requires_grad_()
            loss = 0.01 * (((w @ X.T).relu() * s[:, None]).mean(0) - y).square().sum()
            loss.backward()
            assert w.grad is not None
            assert s.grad is not None
            return torch.cat([W - 1e-3 * m * w.grad, (a - 1e-3 * m * s.grad)[:, None]], 1)

        def error(out: object, want: Tensor = want) -> float:
            got = out if isinstance(out, Tensor) else out.measure.positions  # type: ignore[attr-defined]
            return float((got - want).abs().max())

        tables.append(
            measure(
                f"a step of gradient descent, {m:,} particles, n = 100, d = 2, outputs afterwards included for ours",
                "bigjko GradientDescent",
                [
                    Contender("bigjko GradientDescent", lambda n=network, s=state: descent.step(n, s, 1e-3), error),
                    Contender("torch autograd", autograd, error, repeats=3),
                ],
            )
        )
        p = torch.full((m,), 1 / m, dtype=D)
        plain = ((W @ X.T).relu() * a[:, None]).mean(0)

        def off(u: object, plain: Tensor = plain) -> float:
            assert isinstance(u, Tensor)
            return float((u - plain).abs().max())

        tables.append(
            measure(
                f"outputs of {m:,} particles, n = 100, d = 2",
                "bigjko Tiled",
                [
                    Contender("bigjko Tiled", lambda W=W, v=p * a: Tiled(W, X).outputs(v), off),
                    Contender("bigjko Keops", lambda W=W, v=p * a: Keops(W, X).outputs(v), off),
                    Contender("plain torch", lambda W=W, v=p * a: v @ (W @ X.T).relu(), off),
                ],
            )
        )
    return tables


SECTIONS: dict[str, Callable[[], list[Table]]] = {
    "kernels": kernels,
    "growth": growth,
    "steps": steps,
    "particles": particles,
}


def main() -> None:
    """Run the sections named on the command line, all by default, and write RESULTS.md."""
    warnings.simplefilter("ignore")
    chosen = sys.argv[1:] or list(SECTIONS)
    parts = ["# Results", "", header(), ""]
    for name in chosen:
        for table in SECTIONS[name]():
            print(table.markdown(), flush=True)
            parts.append(table.markdown())
    if not sys.argv[1:]:
        (Path(__file__).parent / "RESULTS.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
