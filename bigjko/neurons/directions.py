"""What the ways with directions of their own ask of a network, and how they deposit its neurons."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bigjko_kernels import Grid, GridError, SquaredArc

from ..errors import MeasureError
from ..measure import ParticleMeasure

_NEURONS = 256  # deposited at a time: the products with all directions are the only temporary
_UNBALANCED = 1e-6  # relative difference of |w| and |a| above which a network is not balanced


def network_for(
    grid: Grid, W: Float[Tensor, "m d"], a: Float[Tensor, " m"], masses: Float[Tensor, " m"] | None, width: float
) -> ParticleMeasure:
    """The network (1/m) sum_i relu(w_i . x) a_i, or with masses instead of 1/m.

    Raises:
        GridError: for a network of another dtype or device than the grid's, or a width that is not usable.
    """
    network = ParticleMeasure.from_network(W, a)
    if W.dtype != grid.dtype or W.device != grid.device:
        raise GridError(f"received W in {W.dtype} on {W.device}, need the grid's {grid.dtype} on {grid.device}")
    if not (width > 0 and math.isfinite(width)):
        raise GridError(f"received a width of {width} nodes, need a positive finite number: 3 by default")
    return network if masses is None else ParticleMeasure(network.positions, masses)


def check_balance(network: ParticleMeasure, way: str, instead: str) -> None:
    """Raise MeasureError unless |w| = |a| for every neuron; those that are zero are."""
    norm, a = network.w.norm(dim=1), network.a.abs()
    largest = torch.maximum(norm, a)
    uneven = float(((norm - a).abs() / largest.masked_fill(largest == 0, 1.0)).max())
    if uneven > _UNBALANCED:
        raise MeasureError(
            f"received neurons with |w| and |a| up to {uneven:.2g} apart (relative), need |w| = |a| for {way}: "
            f"balance the start (ParticleMeasure.balanced), or use {instead}"
        )


def shared(
    nodes: Float[Tensor, "k d"],
    directions: Float[Tensor, "m d"],
    masses: Float[Tensor, " m"],
    columns: Int[Tensor, "m c"] | None = None,
    shares: Float[Tensor, "m c"] | None = None,
    size: int = 1,
) -> Float[Tensor, "k size"]:
    """Masses in float64, each shared by the two nearest nodes in proportion to nearness, to be blurred afterwards.

    Along another axis of `size` nodes a mass goes to its own columns, in these shares; to the only one by default.
    """
    if columns is None or shares is None:
        columns, shares = torch.zeros_like(masses, dtype=torch.long)[:, None], torch.ones_like(masses)[:, None]
    nodes = nodes.double()
    held = torch.zeros(len(nodes) * size, dtype=torch.float64, device=nodes.device)
    for few in torch.arange(len(masses), device=masses.device).split(_NEURONS):
        # In float64, by chords: an arc cosine of products loses half the digits, and in float32 the nodes.
        d = directions[few].double()
        near = (d @ nodes.T).topk(2, dim=1).indices
        angle = (2 * SquaredArc()(d[:, None], nodes[near])).sqrt()
        weight = (angle.flip(1) / angle.sum(1, keepdim=True)) * masses[few].double()[:, None]
        place = near[:, :, None] * size + columns[few][:, None]
        held.index_add_(0, place.reshape(-1), (weight[:, :, None] * shares[few][:, None]).reshape(-1))
    return held.reshape(len(nodes), size)
