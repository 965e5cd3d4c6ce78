"""How a flow ended, as data: the text of a status is the cause and what to do."""

from enum import Enum


class Status(Enum):
    """The outcome of a step or a flow; `ok` and `stopped` are the good ones."""

    ok = "nothing is wrong, and a flow reached its end"
    stopped = "one of the flow's callbacks stopped it (StopIteration); resume = True continues from here"
    interrupted = "the flow was stopped by the user; what was recorded is kept"
    unfinished = "the flow has not reached its end: it goes on, or was killed; resume = True continues from here"
    dual_stalled = (
        "the dual of the step stopped short of its tolerance: take a smaller tau, or loosen rtol of the DualSolver"
    )
    scaling_stalled = (
        "the scaling iteration ran out of iterations: use the DualSolver, a larger epsilon, or raise max_iterations"
    )
    flow_stalled = (
        "the gradient flow's own solver can no longer advance: loosen its rtol and atol, or check the scale of the data"
    )
    implicit_stalled = (
        "the proximal point step found no minimum below its start: take a smaller tau (tau max|G| must stay below 1)"
    )
    step_too_small = (
        "no step that is long enough meets the tolerance: loosen rtol or atol of Adaptive, or tighten the inner solver"
    )
    infeasible = "no feasible dual point was found for the growing mass: take a smaller tau"
    not_finite = "the step produced values that are not finite: take a smaller tau, or check the scale of the data"


class FlowError(RuntimeError):
    """A flow that failed; `.status` says how, `.flow` holds what was recorded until then."""

    def __init__(self, message: str, status: Status, flow: object) -> None:
        super().__init__(message)
        self.status = status
        self.flow = flow


class FlowInterrupted(KeyboardInterrupt):
    """Ctrl-C during a flow; `.flow` holds what was recorded until then."""

    def __init__(self, flow: object) -> None:
        super().__init__("the flow was interrupted; its record so far is in .flow")
        self.flow = flow
