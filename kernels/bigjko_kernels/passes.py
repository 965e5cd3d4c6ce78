"""What a step does to arrays of N between applications of the kernel: one pass each (passes.cpp), or by torch."""

import ctypes
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from . import compiler
from .errors import KernelError
from .pages import empty_like
from .sums import inner, parts, profile, rows_at_once, sum64


class _Scaling(ctypes.Structure):
    _fields_ = [
        ("x", ctypes.c_void_p),
        ("by", ctypes.c_double),
        ("out", ctypes.c_void_p),
        ("single", ctypes.c_long),
    ]


class _Division(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_void_p) for name in ("q", "log_q", "log_k", "sums")), ("single", ctypes.c_long)]


class _Reciprocal(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("make", "what", "at", "shift")),
        ("eps", ctypes.c_double),
        ("least", ctypes.c_void_p),
        ("single", ctypes.c_long),
    ]


class _Damped(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("log_q", "shift", "log_k")),
        ("eps", ctypes.c_double),
        ("sums", ctypes.c_void_p),
        ("single", ctypes.c_long),
    ]


class _Combination(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "y")),
        *((name, ctypes.c_double) for name in ("a", "b")),
        ("out", ctypes.c_void_p),
        *((name, ctypes.c_long) for name in ("n", "single", "threads")),
        ("then", ctypes.c_void_p),
    ]


class _Fitting(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("log_p", "log_k", "d", "out")),
        *((name, ctypes.c_long) for name in ("n", "single")),
        *((name, ctypes.c_double) for name in ("weight", "rate", "eps", "least")),
        *((name, ctypes.c_long) for name in ("told", "threads")),
        ("result", ctypes.c_void_p),
    ]


class _Lead(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("n", "stride", "low", "high", "rising")]


Used = TypeVar("Used")

_NOT_YET = -1.0  # which no mass is
_SHARE = 1 << 14  # nodes, as in passes.cpp
_RING = 1 << 19  # roots that a thread keeps until their neighbours come: 4 MiB


@functools.cache
def load(march: str = "native") -> Any:
    """The compiled passes, or None where they cannot be had."""
    library = compiler.load("passes.cpp", march)
    if library is None:
        return None
    place, number = ctypes.c_void_p, ctypes.c_long
    kinds = {
        "bigjko_masses": (None, place, place, number, number, number),
        "bigjko_whole": (None, place, place, number, number),
        "bigjko_look": (
            *(None, place, number, number, ctypes.POINTER(_Lead), number, number, number),
            *(place, place, place, number, number),
        ),
        "bigjko_fit": (None, place, number, number, number),
    }
    for name, (result, *arguments) in kinds.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _compiled(*arrays: Tensor) -> Any:
    """The library, if it takes these arrays."""
    return load() if compiler.takes(*arrays) else None


def _how(x: Tensor) -> tuple[bool, int]:
    """Whether an array is float32, and on how many threads it is worked on."""
    return x.dtype == torch.float32, compiler.threads(x.numel())


class Parts(ctypes.Structure):
    """A C function (what, share, from, to) that makes nodes [from, to) of an array, and what it needs to know."""

    _fields_ = [("make", ctypes.c_void_p), ("what", ctypes.c_void_p)]
    known: ctypes.Structure

    @classmethod
    def of(cls, function: Any, known: ctypes.Structure) -> "Parts":
        """Of a library's function; what is known is kept as long as this is."""
        parts = cls(ctypes.c_void_p.from_buffer(function), ctypes.addressof(known))  # a function is its address
        parts.known = known
        return parts


def _shares(size: int) -> int:
    return max(1, -(-size // _SHARE))


def _all(made: Parts, size: int) -> None:
    """Every share of an array."""
    load().bigjko_whole(made.make, made.what, size, compiler.threads(size))


class Feed:
    """What makes an array, at once or part by part.

    Args:
        whole: does so at once.
    """

    def __init__(self, whole: Callable[[], object]) -> None:
        self._whole = whole

    def whole(self) -> None:
        """At once."""
        self._whole()

    def parts(self, shares: int, nodes: int) -> Parts | None:
        """For a kernel that reads the array on the CPU in so many shares, each of which it asks for once; or None.

        Args:
            shares: how many.
            nodes: of a share; the last may have fewer.
        """
        return None


class Weighing(Feed):
    """What a network gives for masses that a kernel has just made.

    Args:
        weigh: gives the outputs, at once.
    """

    def __init__(self, weigh: Callable[[], Tensor]) -> None:
        self._weigh, self._outputs = weigh, None  # no method of its own as `whole`: a cycle would hold its arrays

    _outputs: Tensor | None

    def whole(self) -> None:
        """See Feed."""
        self._outputs = self._weigh()

    @property
    def outputs(self) -> Float[Tensor, " n"]:
        """Afterwards, M p in float64, until it weighs again."""
        if self._outputs is None:
            raise KernelError("received nothing to weigh yet, need whole() or a kernel that takes parts() first")
        return self._outputs


def masses(log_p: Float[Tensor, "*grid"], out: Tensor | None = None) -> Float[Tensor, "*grid"]:
    """exp(log_p), to 4 ulp, with the very bits that `fit` gives; differentiable by torch, if asked for."""
    if log_p.requires_grad or (library := _compiled(log_p, *(() if out is None else (out,)))) is None:
        return torch.exp(log_p, out=out)
    out = empty_like(log_p) if out is None else out
    library.bigjko_masses(log_p.data_ptr(), out.data_ptr(), log_p.numel(), *_how(log_p))
    return out


class Multiple(Feed):
    """Writes `by` x into out."""

    def __init__(self, x: Float[Tensor, "*grid"], by: float, out: Float[Tensor, "*grid"]) -> None:
        self._x, self._by, self._out = x, by, out

    def whole(self) -> None:
        """See Feed."""
        torch.mul(self._x, self._by, out=self._out)

    def parts(self, shares: int, nodes: int) -> Parts | None:
        """See Feed."""
        if (library := _compiled(self._x, self._out)) is None:
            return None
        scaling = _Scaling(self._x.data_ptr(), self._by, self._out.data_ptr(), self._x.dtype == torch.float32)
        return Parts.of(library.bigjko_scale, scaling)


class Combination(Feed):
    """Writes a x + b y into out, which may be either; then: to be done afterwards."""

    def __init__(
        self,
        x: Float[Tensor, "*grid"],
        a: float,
        y: Float[Tensor, "*grid"],
        b: float,
        out: Float[Tensor, "*grid"],
        then: Feed | None = None,
    ) -> None:
        self._x, self._a, self._y, self._b, self._out, self._then = x, a, y, b, out, then
        self._made: tuple[tuple[Parts | None, bool], Parts] | None = None

    def whole(self) -> None:
        """See Feed."""
        if (library := _compiled(self._x, self._y, self._out)) is not None:
            _all(Parts.of(library.bigjko_combine, self._known(None)), self._out.numel())
        elif self._out is self._x:
            self._x.mul_(self._a).add_(self._y, alpha=self._b)
        else:
            torch.mul(self._y, self._b, out=self._out).add_(self._x, alpha=self._a)
        if self._then is not None:
            self._then.whole()

    def _known(self, follows: Parts | None) -> _Combination:
        x, y, out = (t.data_ptr() for t in (self._x, self._y, self._out))
        next_ = None if follows is None else ctypes.addressof(follows)
        return _Combination(x, y, self._a, self._b, out, self._out.numel(), *_how(self._out), next_)

    def parts(self, shares: int, nodes: int) -> Parts | None:
        """See Feed. With what follows, in one share alone."""
        library, then = _compiled(self._x, self._y, self._out), self._then
        follows = None if then is None or shares > 1 else then.parts(1, self._out.numel())
        if library is None or (then is not None and follows is None):
            return None
        if self._made is None or self._made[0] != (follows, shares == 1):
            function = library.bigjko_combine_all if shares == 1 else library.bigjko_combine
            self._made = (follows, shares == 1), Parts.of(function, self._known(follows))
        return self._made[1]


class Reciprocal(Feed):
    """Writes shift - log(1 + x) / eps over x, which another feed makes; NaN where x <= -1."""

    def __init__(self, made: Feed, x: Float[Tensor, "*grid"], shift: Float[Tensor, "*grid"], eps: float) -> None:
        self._feed, self._x, self._shift, self._eps = made, x, shift, eps
        self._least: Tensor | None = None  # asked for last
        self._made: tuple[Parts, Tensor, Parts] | None = None

    @property
    def finite(self) -> bool:
        """Afterwards, whether it is on all nodes."""
        if self._least is None:
            raise KernelError("received no x yet, need whole() or a kernel that takes parts() first")
        return bool(self._least.min() > -1)

    def whole(self) -> None:
        """See Feed."""
        self._feed.whole()
        if (library := _compiled(self._x, self._shift)) is not None:
            size = self._x.numel()
            self._least = torch.empty(_shares(size), dtype=torch.float64)
            _all(Parts.of(library.bigjko_reciprocal, self._known(None, self._least)), size)
            return
        self._least = self._x.min().reshape(1)
        torch.sub(self._shift, self._x.log1p_(), alpha=1 / self._eps, out=self._x)

    def _known(self, made: Parts | None, least: Tensor) -> _Reciprocal:
        function = (None, None) if made is None else (made.make, made.what)
        places = (self._x.data_ptr(), self._shift.data_ptr(), self._eps, least.data_ptr())
        return _Reciprocal(*function, *places, self._x.dtype == torch.float32)

    def parts(self, shares: int, nodes: int) -> Parts | None:
        """See Feed."""
        library, made = _compiled(self._x, self._shift), self._feed.parts(shares, nodes)
        if library is None or made is None:
            return None
        if self._made is None or self._made[0] is not made or len(self._made[1]) != shares:
            least = torch.empty(shares, dtype=torch.float64)
            self._made = made, least, Parts.of(library.bigjko_reciprocal, self._known(made, least))
        _, self._least, parts = self._made
        return parts


class Quotient(Feed, ABC):
    """Remakes a log_k in place, and sums something of it as it was."""

    _sums: Tensor | None = None  # those asked for last

    def __init__(self, log_k: Float[Tensor, "*grid"]) -> None:
        self._log_k = log_k
        self._made: dict[int, tuple[Parts, Tensor]] = {}

    @property
    def sums(self) -> Float[Tensor, " shares"]:
        """Afterwards, what adds up to `total`."""
        if self._sums is None:
            raise KernelError("received no quotient yet, need whole() or a kernel that takes parts() first")
        return self._sums

    @property
    def total(self) -> float | Float[Tensor, ""]:
        """Afterwards, the sum, in float64; off the CPU a tensor, which nobody has waited for."""
        total = self.sums.sum()
        return float(total) if total.is_cpu else total

    def whole(self) -> None:
        """See Feed."""
        size = self._log_k.numel()
        if (made := self.parts(_shares(size), _SHARE)) is not None:
            _all(made, size)
        else:
            self._sums = self._by_torch().reshape(1)

    def parts(self, shares: int, nodes: int) -> Parts | None:
        """See Feed."""
        if shares not in self._made:
            sums = torch.empty(shares, dtype=torch.float64)
            if (made := self._by_library(sums)) is None:
                return None
            self._made[shares] = made, sums
        made, self._sums = self._made[shares]
        return made

    @abstractmethod
    def _by_torch(self) -> Tensor:
        """All of it; returns the sum."""

    @abstractmethod
    def _by_library(self, sums: Tensor) -> Parts | None:
        """What does a share and puts its sum where it belongs."""


class Division(Quotient):
    """Writes log_q - log_k over log_k; sums q log_k."""

    def __init__(self, q: Float[Tensor, "*grid"], log_q: Float[Tensor, "*grid"], log_k: Float[Tensor, "*grid"]) -> None:
        super().__init__(log_k)
        self._q, self._log_q = q, log_q

    def _by_torch(self) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=self._q.device)
        for q, log_q, log_k in parts(self._q, self._log_q, self._log_k):  # both in the cache
            total += inner(q, log_k)
            torch.sub(log_q, log_k, out=log_k)
        return total

    def _by_library(self, sums: Tensor) -> Parts | None:
        arrays = (self._q, self._log_q, self._log_k)
        if (library := _compiled(*arrays)) is None:
            return None
        places = (x.data_ptr() for x in (*arrays, sums))
        return Parts.of(library.bigjko_divide, _Division(*places, self._q.dtype == torch.float32))


class Damped(Quotient):
    """Writes shift + (log_q - k) / (1 + eps) over log_k, k = log_k + shift; sums exp((log_q + eps k) / (1 + eps))."""

    def __init__(
        self, log_q: Float[Tensor, "*grid"], shift: Float[Tensor, "*grid"], log_k: Float[Tensor, "*grid"], eps: float
    ) -> None:
        super().__init__(log_k)
        self._log_q, self._shift, self._eps = log_q, shift, eps

    def _by_torch(self) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=self._log_k.device)
        by = 1 / (1 + self._eps)
        for log_q, shift, log_k in parts(self._log_q, self._shift, self._log_k):
            log_k.add_(shift)
            total += sum64(torch.add(log_q, log_k, alpha=self._eps).mul_(by).exp_())
            torch.sub(log_q, log_k, out=log_k).mul_(by).add_(shift)
        return total

    def _by_library(self, sums: Tensor) -> Parts | None:
        if (library := _compiled(self._log_q, self._shift, self._log_k)) is None:
            return None
        log_q, shift, log_k, places = (x.data_ptr() for x in (self._log_q, self._shift, self._log_k, sums))
        known = _Damped(log_q, shift, log_k, self._eps, places, self._log_k.dtype == torch.float32)
        return Parts.of(library.bigjko_damp, known)


class Look:
    """What is summed of masses on a grid, all in float64: by torch, each sum when it is first asked for.

    Args:
        p: masses.
        inside: for each axis the nodes [low, high) that are not on an artificial edge.
        rising: axes along which nodes are neighbours.
    """

    def __init__(self, p: Float[Tensor, "*grid"], inside: Sequence[tuple[int, int]], rising: Sequence[int]) -> None:
        self._p, self._inside, self.rising = p, inside, rising

    @functools.cached_property
    def mass(self) -> Float[Tensor, ""]:
        """The sum."""
        return sum64(self._p)

    @functools.cached_property
    def profiles(self) -> list[Float[Tensor, " k"]]:
        """For each axis the sums over all others; of a single one perhaps p itself."""
        return [profile(self._p, k) for k in range(self._p.ndim)]

    @functools.cached_property
    def edge(self) -> Float[Tensor, ""]:
        """The sum over nodes that are not inside along some axis."""
        found, rest = [self._p.new_zeros((), dtype=torch.float64)], self._p
        for k, (low, high) in enumerate(self._inside):  # what no earlier axis has counted
            found += [sum64(rest.narrow(k, i, n)) for i, n in ((0, low), (high, rest.shape[k] - high)) if n]
            rest = rest.narrow(k, low, high - low)
        return torch.stack(found).sum()

    @functools.cached_property
    def rises(self) -> list[Float[Tensor, ""]]:
        """For each rising axis the sum of (sqrt(p') - sqrt(p))^2 over neighbours along it."""
        return [_rises(self._p, axis) for axis in self.rising]


class _Seen(Look):
    """All of it in one pass, compiled."""

    def __init__(
        self, library: Any, p: Float[Tensor, "*grid"], inside: Sequence[tuple[int, int]], rising: Sequence[int]
    ) -> None:
        super().__init__(p, inside, rising)
        *lead, length = p.shape
        strides = [math.prod(lead[k + 1 :]) for k in range(len(lead))]
        self._seen = [k for k in rising if k < len(lead) and strides[k] * length <= _RING]
        rows, some = math.prod(lead), len(lead)
        by_row = torch.empty(lead, dtype=torch.float64)
        by_column, found = (torch.empty(size, dtype=torch.float64) for size in (length, some + 2))
        leads = (_Lead * some)(
            *(_Lead(lead[k], strides[k], *inside[k], k in self._seen) for k in range(some)),
        )
        places = (x.data_ptr() for x in (by_row, by_column, found))
        library.bigjko_look(p.data_ptr(), rows, length, leads, some, *inside[-1], *places, *_how(p))
        self.edge, *self._found = found.unbind(0)
        self.mass = by_row.sum()
        axes = range(some)
        leading = [by_row.sum([j for j in axes if j != k]) if some > 1 else by_row for k in axes]
        self.profiles = [*leading, by_column]

    @functools.cached_property
    def rises(self) -> list[Float[Tensor, ""]]:
        """See Look."""
        last = self._p.ndim - 1
        return [self._found[k] if k == last or k in self._seen else _rises(self._p, k) for k in self.rising]


def look(p: Float[Tensor, "*grid"], inside: Sequence[tuple[int, int]], rising: Sequence[int]) -> Look:
    """See Look: by torch, or compiled at once where that can be."""
    library = _compiled(p) if p.ndim and p.numel() else None
    return Look(p, inside, rising) if library is None else _Seen(library, p, inside, rising)


def _rises(p: Tensor, axis: int) -> Tensor:
    total = torch.zeros((), dtype=torch.float64, device=p.device)
    size = rows_at_once(p)
    for start in range(0, p.shape[0], size):  # one row more, for the differences between slabs
        root = p[start : start + size + (axis == 0)].double().sqrt()
        rise = root.narrow(axis, 1, root.shape[axis] - 1) - root.narrow(axis, 0, root.shape[axis] - 1)
        total += inner(rise, rise)
    return total


class Rule(NamedTuple):
    """A potential d reproduces r = k exp(weight d), and moves to d + rate log(p/r), or to least + eps log k if larger.

    Attributes:
        eps: 0 for no floor.
    """

    weight: float
    rate: float
    eps: float = 0.0
    least: float = -math.inf


class Fit(NamedTuple):
    """Of p and of r, which a potential reproduces; all NaN where a log(p/r) is.

    Attributes:
        mass, reproduced, missed: the sums of p, r and |p - r|, in float64.
        worst: the largest log(p/r).
        top, low: the largest and the smallest value of the new potential.
    """

    mass: float
    reproduced: float
    missed: float
    worst: float
    top: float
    low: float


class Fitting(Feed):
    """Moves d by the rule, into out, which may be d; how p and r differ, if it is to be told, and p over log_k.

    Not told, no exponential is taken: log_k stays, and of the fit top and low alone mean something.
    """

    def __init__(
        self,
        log_p: Float[Tensor, "*grid"],
        log_k: Float[Tensor, "*grid"],
        d: Float[Tensor, "*grid"],
        rule: Rule,
        out: Float[Tensor, "*grid"],
        told: bool = True,
    ) -> None:
        self._given, self._numbers = (log_p, log_k, d, rule, out, told), (ctypes.c_double * 6)(_NOT_YET)

    @property
    def found(self) -> Fit:
        """Afterwards."""
        if self._numbers[0] == _NOT_YET:
            raise KernelError("received no fit yet, need whole() or a kernel that takes parts() first")
        return Fit(*self._numbers)

    def whole(self) -> None:
        """See Feed."""
        log_p = self._given[0]
        if (made := self.parts(1, log_p.numel())) is None:
            self._numbers[:] = list(fit_by_torch(*self._given))
        else:
            load().bigjko_fit(made.what, 0, 0, 0)

    def parts(self, shares: int, nodes: int) -> Parts | None:
        """See Feed. In one share alone."""
        log_p, log_k, d, rule, out, told = self._given
        if shares > 1 or (library := _compiled(log_p, log_k, d, out)) is None:
            return None
        places = (x.data_ptr() for x in (log_p, log_k, d, out))
        single, threads = _how(log_p)
        known = _Fitting(*places, log_p.numel(), single, *rule, told, threads, ctypes.addressof(self._numbers))
        return Parts.of(library.bigjko_fit, known)


def fit_by_torch(log_p: Tensor, log_k: Tensor, d: Tensor, rule: Rule, out: Tensor, told: bool = True) -> Fit:
    """The same by torch, a few nodes at a time."""
    mass, reproduced, missed = torch.zeros(3, dtype=torch.float64, device=d.device)
    worst, top, low = d.new_tensor([-math.inf, -math.inf, math.inf])
    for log_p_i, log_k_i, d_i, new in parts(log_p, log_k, d, out):
        log_r = torch.add(log_k_i, d_i, alpha=rule.weight)
        log_ratio = log_p_i - log_r
        lowest = (rule.eps * log_k_i).add_(rule.least).masked_fill_(log_ratio.isnan(), math.nan)
        torch.fmax(torch.add(d_i, log_ratio, alpha=rule.rate), lowest, out=new)
        top, low = torch.maximum(top, new.max()), low.minimum(new.min())
        if not told:
            continue
        worst = torch.maximum(worst, log_ratio.max())
        p, r = torch.exp(log_p_i, out=log_k_i), log_r.exp_()
        mass += p.sum(dtype=torch.float64)
        reproduced += r.sum(dtype=torch.float64)
        missed += r.sub_(p).abs_().sum(dtype=torch.float64)
    found = Fit(*torch.stack([mass, reproduced, missed, worst.double(), top.double(), low.double()]).tolist())
    return Fit(*[math.nan] * 6) if math.isnan(found.top) else found
