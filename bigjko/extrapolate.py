"""Richardson extrapolation: a higher order from two flows, for what is linear in the measure."""

import torch

from .errors import StepError
from .flow import Flow
from .status import Status

_SAME_TIME = 1e-9  # relative above t = 1, as in compare


def extrapolate(coarse: Flow, fine: Flow, *, order: int = 1) -> Flow:
    """The flow that two of them point to: (2^order fine - coarse) / (2^order - 1), at the coarse one's times.

    Outputs, risks and masses only. A combination of measures with a negative weight is no measure: the result keeps
    none. mathematics.md 3.

    Order: one more than the flows' own where their errors have an expansion. With mass on kinks of relu none is
    certain: errors of first-order JKO on a circle with 2,048 nodes, its kinks among them, fall by a factor of ten
    (`examples/kinks.py`), and then meet the error that the grid makes, which extrapolation in tau cannot see.
    Cost: three times the coarse flow.

    Args:
        coarse: a flow with steps tau.
        fine: the same flow with steps tau / 2.
        order: of both.

    Raises:
        StepError: for flows on other data, of which one failed, or a fine one that lacks a time of the coarse one.
    """
    if order < 1:
        raise StepError(f"received order = {order}, need 1 or more: 1 for FirstOrder(), 2 for SecondOrder()")
    if coarse.outputs.shape[1] != fine.outputs.shape[1]:
        raise StepError(
            f"received flows with {coarse.outputs.shape[1]} and {fine.outputs.shape[1]} outputs, need the same data"
        )
    for flow in (coarse, fine):
        if flow.status is not Status.ok:
            raise StepError(f"received a flow that ended as {flow.status.name}, need two that reached their end")
    away = (fine.times[None] - coarse.times[:, None]).abs()
    near = away.argmin(1)
    late = (away.amin(1) > _SAME_TIME * coarse.times.clamp(min=1.0)).nonzero()
    if late.numel():
        raise StepError(
            f"received a fine flow without t = {float(coarse.times[late[0, 0]]):.6g}, need every time of the coarse "
            "one: record both at common times"
        )
    more = 2.0**order

    def limit(rough: torch.Tensor, close: torch.Tensor) -> torch.Tensor:
        return (more * close[near] - rough) / (more - 1)

    return Flow(
        f"{fine.name}, extrapolated",
        fine.neurons,
        coarse.times,
        limit(coarse.outputs, fine.outputs),
        limit(coarse.risks, fine.risks),
        limit(coarse.masses, fine.masses),
        {},
        Status.ok,
        torch.zeros(0, dtype=torch.float64),
        (),
        {"extrapolated_from": [coarse.name, fine.name]},
    )
