"""What is timed: potentials, data and measures that several tables share."""

import torch
from torch import Tensor

import bigjko as bj
from bigjko_kernels import LOG_ZERO, Grid

D = torch.float64


def box(shape: tuple[int, ...], dtype: torch.dtype = D, device: torch.device | str = "cpu") -> Grid:
    """[-3, 3] on every axis."""
    return Grid.uniform([-3.0] * len(shape), [3.0] * len(shape), shape, dtype=dtype, device=device)


def sloped(grid: Grid) -> Tensor:
    """-tau V / epsilon at epsilon = .75 h^2 and tau = h, so that mass moves |grad V| nodes whatever the grid.

    V is risk-like: quadratic, with a kink on w_1 = 0; |grad V| reaches 7. Axis by axis: no array of N points.
    """
    x = [grid.along(k, f.nodes[:, 0]) for k, f in enumerate(grid.factors)]
    total = torch.zeros(grid.shape, dtype=grid.dtype, device=grid.device)
    for part in x:
        total += part**2 / 2
    total += 0.75 * x[0].relu() * x[1]
    return total.mul_(-1 / (0.75 * grid.spacing))


def risk(n: int, d: int, dtype: torch.dtype = D, device: torch.device | str = "cpu") -> bj.Risk:
    """n Gaussian data in R^d with Gaussian labels, by Lifted; the loss is the mean, so that n does not stiffen it."""
    generator = torch.Generator().manual_seed(n + 1000 * d)
    X = torch.randn(n, d, dtype=D, generator=generator)
    y = torch.randn(n, dtype=D, generator=generator)
    loss = bj.losses.Squared(scale=1 / n)
    return bj.Risk(X.to(device, dtype), y.to(device, dtype), loss=loss)


def four_points() -> bj.Risk:
    """The four data in R that the two solvers are compared on, with the seed's sum of squares."""
    X = torch.tensor([[1.0], [-0.7], [0.5], [0.3]], dtype=D)
    return bj.Risk(X, torch.tensor([1.0, -0.5, 0.2, 0.6], dtype=D))


def ball(grid: Grid, share: float) -> bj.GridMeasure:
    """A Gaussian cut to the ball around (.5, ...) that holds this share of the nodes: exact zeros outside."""
    square = torch.zeros(grid.shape, dtype=grid.dtype, device=grid.device)
    for k, f in enumerate(grid.factors):
        square = square + (grid.along(k, f.nodes[:, 0]) - 0.5) ** 2
    rank = max(1, int(share * grid.size))
    radius2 = float(square.reshape(-1).kthvalue(rank).values)
    log_masses = torch.where(square <= radius2, -4.5 * square / radius2, LOG_ZERO)
    return bj.GridMeasure(grid, log_masses - torch.logsumexp(log_masses.reshape(-1), 0))
