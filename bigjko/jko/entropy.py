"""What is done about entropic blur: nothing, or the debiasing potential of a Sinkhorn divergence."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from bigjko_kernels import Cost
from bigjko_kernels.pages import empty_like
from bigjko_kernels.passes import Fitting, masses

from ..errors import StepError
from ..transport import OnGrid, Transport


@dataclass(frozen=True, eq=False)
class Refit:
    """A debiasing potential moved towards a measure, and how well the old one fitted it.

    Attributes:
        d: the new potential.
        misfit: L1 distance between p and the mass the old d reproduces, over the mass of p.
        gap: eps mass max log(p / r), r rescaled to p's mass: what the misfit can cost the step (mathematics.md 2).
        masses: those of the measure.
    """

    d: OnGrid
    misfit: float
    gap: float
    masses: OnGrid


class Entropy(ABC):
    """How many passes a step takes, and the potential d each is given; final classes Plain and Debiased."""

    passes: int
    tolerance: float

    @abstractmethod
    def init(self, transport: Transport, log_q: OnGrid) -> OnGrid:
        """The potential before the first step."""

    @abstractmethod
    def refit(
        self, transport: Transport, d: OnGrid, log_p: OnGrid, work: OnGrid, out: OnGrid, told: bool = True
    ) -> Refit:
        """The potential after a pass that led to p, written into out, which may be d; the masses of p in `work`.

        Not told, between passes, of the refit d alone means something.
        """


@dataclass(frozen=True)
class Plain(Entropy):
    """W_eps as it is: every step blurs by a variance of eps per axis, so it gets worse as tau falls.

    One pass. The scheme of Peyre 2015; the error is a diffusion of eps / (2 tau).
    """

    passes = 1
    tolerance = 0.0

    def init(self, transport: Transport, log_q: OnGrid) -> OnGrid:
        """Cell volumes only."""
        return transport.neutral()

    def refit(
        self, transport: Transport, d: OnGrid, log_p: OnGrid, work: OnGrid, out: OnGrid, told: bool = True
    ) -> Refit:
        """Nothing to fit."""
        return Refit(d, math.nan, math.nan, masses(log_p, work))


@dataclass(frozen=True)
class Debiased(Entropy):
    """W_eps(p, q) - W_eps(p, p) / 2: no blur, an error of eps^2 / (8 v^2) on Gaussians of variance v, no 1/tau.

    Each pass solves the step for a fixed potential d, then moves d once towards its new measure; d is kept across
    steps. A warm d lags by about (eps / 2v)^passes of the step, v the variance of the narrowest feature.

    Args:
        passes: at most; 2 are enough for smooth measures.
        tolerance: stop earlier once |p - d . K d|_1 is below this share of the mass. 0 takes all passes.
        floor: d takes every node for one that holds at least this share of what the kernel brings there from others.
            An atom with empty nodes around it would else be pinned: a pass multiplies what a neighbour holds by
            exp(-tau dV / eps), which takes dozens of steps from exp(-25) of the mass, where a d that fits moves it in
            one (mathematics.md 3). Measures wider than a node never meet it. 0: as Janati, Cuturi and Gramfort.

    Reference: Janati, Cuturi and Gramfort 2020.
    """

    passes: int = 2
    tolerance: float = 0.0
    floor: float = 0.03

    def __post_init__(self) -> None:
        if self.passes < 1 or not self.tolerance >= 0 or not 0 <= self.floor < 1:
            raise StepError(
                f"received passes = {self.passes}, tolerance = {self.tolerance} and floor = {self.floor}, "
                "need passes >= 1, tolerance >= 0 and 0 <= floor < 1"
            )

    def init(self, transport: Transport, log_q: OnGrid) -> OnGrid:
        """The d that fits q, iterated to rounding."""
        d, last = transport.neutral().contiguous(), math.inf
        work, out = empty_like(log_q), empty_like(log_q)
        nearly = max(_NEARLY, 32 * torch.finfo(log_q.dtype).eps)
        for _ in range(_FITTING):
            refit = self._moved(transport, d, log_q, work, out, 0.0)
            # Rounding in log q ends the descent above a tolerance that forgets it: stop where it no longer falls.
            if refit.misfit <= _FITTED or (refit.misfit <= nearly and refit.misfit > last / 2):
                break
            d, last = refit.d, refit.misfit
        return d

    def refit(
        self, transport: Transport, d: OnGrid, log_p: OnGrid, work: OnGrid, out: OnGrid, told: bool = True
    ) -> Refit:
        """One averaged Sinkhorn update; its own move tells how well the old d fitted."""
        return self._moved(transport, d, log_p, work, out, self.floor, told)

    def _moved(
        self, transport: Transport, d: OnGrid, log_p: OnGrid, work: OnGrid, out: OnGrid, share: float, told: bool = True
    ) -> Refit:
        fitting = Fitting(log_p, work, d, transport.refitting(share), out, told)
        transport.blurred(d, work, fitting)
        found = fitting.found
        # Where there is no mass to speak of, log d would sink for ever: tails sharpen without bound in a flow that
        # contracts, and every kernel works ever harder on nodes that hold exp(-1000). The floor costs masses of
        # exp(-100), and keeps log d finite where p is 0.
        least = found.top - _DEPTH * transport.epsilon
        if not found.low >= least:
            out.clamp_(min=least)
        if not (told and found.mass > 0 and found.reproduced > 0):
            return Refit(out, math.nan, math.nan, work)
        worst = max(0.0, found.worst + math.log(found.reproduced / found.mass))
        gap = transport.dearest * transport.epsilon * found.mass * worst
        return Refit(out, found.missed / found.mass, gap, work)


_FITTING = 1000  # updates before the first step, at most: narrow measures converge slowly
_DEPTH = 100.0  # log d is kept within this of its largest value: exp(-100) = 4e-44
_FITTED = 1e-13  # misfit that is rounding in float64
_NEARLY = 1e-9  # from here, or from 32 ulp (float32), a descent that stops falling is rounding


def epsilon_of(nodes2: float, h: float, cost: Cost) -> float:
    """The temperature at which the kernel has a variance of nodes2 h^2 per axis."""
    return nodes2 * cost.curvature * h * h  # not h**2, which raises where this is inf
