"""The peers, each driven as its own documentation has it, and Peyré's iteration as published."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

import bigjko as bj
from bigjko.jko import scaling
from bigjko.jko.box import DualBox
from bigjko.jko.problem import Room, StepProblem
from bigjko.transport import Balanced
from bigjko_kernels import GibbsKernel, Grid, SquaredEuclidean
from bigjko_kernels.keops import LazyTensor
from bigjko_kernels.pages import Pool

D = torch.float64


def per_axis(grid: Grid, epsilon: float, b: Tensor) -> Callable[[], Tensor]:
    """The plain way: torch's log-sum-exp an axis, in slabs that the heap hands out again and again."""

    def run() -> Tensor:
        out = b
        for k, f in enumerate(grid.factors):
            x = f.nodes[:, 0]
            log_k = -((x[:, None] - x[None]) ** 2) / (2 * epsilon)
            lines = out.movedim(k, -1)
            rows = lines.reshape(-1, f.size)
            slab = max(1, (1 << 20) // f.size**2)
            done = torch.empty_like(rows)  # filled in place: results kept among large temporaries cut the heap up
            for part, into in zip(rows.split(slab), done.split(slab), strict=True):
                torch.logsumexp(log_k[None] + part[:, None], -1, out=into)
            out = done.reshape(lines.shape).movedim(-1, k)
        return out

    return run


def keops_dense(
    grid: Grid, epsilon: float, b: Tensor, cost: Callable[..., object] | None = None
) -> Callable[[], Tensor]:
    """KeOps over all pairs; the formula is compiled here, on a few nodes."""
    points = grid.points().contiguous()
    cost = SquaredEuclidean() if cost is None else cost

    def reduce(x: Tensor, y: Tensor, values: Tensor) -> Tensor:
        log_k = -cost(LazyTensor(x[:, None]), LazyTensor(y[None])) / epsilon  # type: ignore[operator]
        out: Tensor = (log_k + LazyTensor(values[None, :, None].contiguous())).logsumexp(dim=1)
        return out

    flat = b.reshape(-1)
    reduce(points[:2], points[:2], flat[:2])
    return lambda: reduce(points, points, flat).reshape(b.shape)


def geomloss_grid(grid: Grid, epsilon: float, b: Tensor) -> Callable[[], Tensor]:
    """GeomLoss' softmin on images: equal axes only, on its own unit interval, by KeOps line by line."""
    from geomloss._legacy.utils import softmin_grid

    (n,) = set(grid.shape)
    theirs = epsilon / (n * grid.spacing) ** 2

    def run(values: Tensor) -> Tensor:
        out: Tensor = softmin_grid(theirs, 2, values[None, None])
        return out[0, 0] / -theirs

    run(b[tuple(slice(0, 2) for _ in grid.shape)].contiguous())  # compiles
    return lambda: run(b)


def ott_kernel(grid: Grid, epsilon: float, b: Tensor, *, log_mode: bool) -> Callable[[], Tensor]:
    """OTT-JAX's Grid, whose cost is |x - y|^2 (its epsilon is twice ours); compiled here, waited for in every run.

    The result is handed over as a torch tensor that shares its memory. In scaling mode the exponentials of b are taken
    beforehand, which is for OTT, and the logarithm of the result is not timed either.
    """
    jax, jnp, geometry = _ott(grid, epsilon, b.dtype == D)
    if b.device.type == "cuda" and jax.default_backend() == "cpu":
        raise RuntimeError("jax sees no GPU: pip install 'jax[cuda12]'")
    if log_mode:
        values = jnp.asarray((b * (2 * epsilon)).reshape(-1).cpu().numpy())
        zero = jnp.zeros_like(values)
        # axis = 1: out_i = eps log sum_k exp((f_i + g_k - c_ik) / eps) - f_i
        lowered = jax.jit(lambda v: geometry.apply_lse_kernel(zero, v, 2 * epsilon, axis=1)[0]).lower(values)
    else:
        values = jnp.asarray((b - b.max()).exp().reshape(-1).cpu().numpy())
        lowered = jax.jit(lambda v: geometry.apply_kernel(v, 2 * epsilon)).lower(values)
    apply = lowered.compile()
    return lambda: from_dlpack(apply(values).block_until_ready())


def ott_result(grid: Grid, epsilon: float, b: Tensor, out: Tensor, *, log_mode: bool) -> Tensor:
    """What OTT's run gave, as our logarithms."""
    out = out.reshape(grid.shape)
    return out / (2 * epsilon) if log_mode else out.log() + b.max()


def _ott(grid: Grid, epsilon: float, double: bool) -> tuple[Any, Any, Any]:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or it takes three quarters of a GPU
    import jax

    jax.config.update("jax_enable_x64", double)  # type: ignore[no-untyped-call]
    import jax.numpy as jnp
    from ott.geometry.grid import Grid as OttGrid

    nodes = [jnp.asarray(f.nodes[:, 0].cpu().numpy()) for f in grid.factors]
    return jax, jnp, OttGrid(x=nodes, epsilon=2 * epsilon)


class OttKernel(GibbsKernel):
    """OTT's log mode behind our contract, so that our scaling solver can run on it."""

    def __init__(self, grid: Grid, epsilon: float) -> None:
        super().__init__(grid, epsilon, SquaredEuclidean())
        jax, self._jnp, geometry = _ott(grid, epsilon, grid.dtype == D)
        self._apply = jax.jit(lambda g: geometry.apply_lse_kernel(self._jnp.zeros_like(g), g, 2 * epsilon, axis=1)[0])

    def _log_apply(self, b: Tensor, out: Tensor) -> Tensor:
        scale = 2 * self.epsilon
        applied = self._apply(self._jnp.asarray((b * scale).reshape(-1).numpy())).block_until_ready()
        return torch.div(from_dlpack(applied).reshape(b.shape), scale, out=out)


class Underflow(RuntimeError):
    """Numbers that left floating point: 0 / 0 or inf in the exponential domain."""


def peyre(risk: bj.Risk, start: bj.GridMeasure, tau: float, epsilon: float) -> Callable[[], tuple[Tensor, int]]:
    """One plain step as Gabriel Peyré's code takes it; returns p and the number of iterations.

    Follows `perform_jko_stepping.m` of gpeyre/2015-SIIMS-wasserstein-jko (the code of "Entropic approximation of
    Wasserstein gradient flows", SIIMS 2015): Dykstra's algorithm on scalings a, b in the exponential domain, two
    call-backs (K, and the KL prox of the energy at tau / gamma), started from ones at every step; at most 500
    iterations, ended once both marginal constraints hold to 1e-6 in relative L2. His gamma is our epsilon.

    K is a product of Gaussian matrices, one an axis. The prox is the Newton that our scaling solver uses, so that
    what differs is the iteration.
    """
    grid = start.grid
    energy = risk.on(grid)
    q = start.masses
    transport = Balanced(_Unused(grid, epsilon, SquaredEuclidean()))
    problem = StepProblem(
        transport,
        energy,
        DualBox(energy.loss, energy.targets),
        start.log_masses,
        q,
        torch.zeros_like(q),
        tau,
        Room(q, Pool()),
    )
    axes = [f.nodes[:, 0] for f in grid.factors]
    matrices = [(-((x[:, None] - x[None]) ** 2) / (2 * epsilon)).exp() for x in axes]

    def K(v: Tensor) -> Tensor:
        for k, matrix in enumerate(matrices):
            v = torch.tensordot(matrix, v, dims=([1], [k])).movedim(0, k)
        return v

    def run() -> tuple[Tensor, int]:
        one = torch.ones_like(q)
        a, b, u, u1, v, v1, p = one, one, one, one, one, one, q
        z = torch.zeros_like(energy.targets)
        scale = q.norm()
        for iteration in range(1, 501):
            errors = []
            for move_p in (True, False):
                a1, b1 = a, b
                u2, u1, v2, v1 = u1, u, v1, v
                if move_p:
                    b = b1 * v2
                    kb = K(b)
                    log_p, z = scaling._prox(problem, (a1 * u2 * kb).log(), z)
                    p = log_p.exp()
                    a = p / kb
                    errors.append(float((b * K(a) - q).norm() / scale))
                else:
                    a = a1 * u2
                    b = q / K(a)
                    errors.append(float((a * K(b) - p).norm() / scale))
                u, v = u2 * a1 / a, v2 * b1 / b
            if not all(map(_finite, errors)):
                raise Underflow(f"0 / 0 in the exponential domain in iteration {iteration}")
            if max(errors) < 1e-6:
                break
        return p, iteration

    return run


def _finite(x: float) -> bool:
    return x == x and abs(x) != float("inf")


class _Unused(GibbsKernel):
    """A StepProblem wants a kernel; the prox never applies it."""

    def _log_apply(self, b: Tensor, out: Tensor) -> Tensor:
        raise NotImplementedError


def autograd_descent(X: Tensor, y: Tensor, scale: float, W: Tensor, a: Tensor, tau: float) -> Callable[[], Tensor]:
    """A step of gradient descent on (W, a) as one writes it in torch; the step is m tau, on the flow's clock."""
    m = a.numel()

    def run() -> Tensor:
        w, s = W.clone().requires_grad_(), a.clone().requires_grad_()
        loss = scale * (((w @ X.T).relu() * s[:, None]).mean(0) - y).square().sum()
        gw, gs = torch.autograd.grad(loss, (w, s))
        with torch.no_grad():
            return torch.cat([w - tau * m * gw, (s - tau * m * gs)[:, None]], 1)

    return run
