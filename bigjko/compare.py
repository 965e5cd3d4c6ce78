"""Two flows held against each other: how far apart are their outputs, their risks and their measures?"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from geomloss import SamplesLoss
from jaxtyping import Float, Int
from torch import Tensor

from bigjko_kernels import Grid, Sheets
from bigjko_kernels.html import curve, table

from .flow import Flow
from .measure import GridMeasure, Measure
from .neurons.base import Neurons
from .optional import need

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas

_SAME_TIME = 1e-9  # relative above t = 1: times are k tau in both flows, or what the user asked for in both
_SCALING = 0.9  # GeomLoss' own .5 anneals too fast: distances end up to 7% short, divergences negative
_BLUR = 0.05  # of the clouds' radius: a debiased Gaussian is then right to about 1e-5 of its size
# Barycentres are Diracs: what is finer than their cells is seen as mass that jumps from one to the next, and a small
# shift looks up to 40% too long. A blur of two cell radii hides it: 1.5% is left (Gaussians in 1 to 3 dimensions).
_BLUR_OF_CELLS = 2.0
_LARGEST = 1e150  # its square is a number
_SPLIT = 0.25  # cells with this share of the largest spread or more are halved together: a dozen rounds in all
_ATOM = 1e-20  # of the clouds' own spread: below it a cell is one point, up to rounding


class ComparisonError(ValueError):
    """Two flows that cannot be held against each other."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """How far the first flow is from the second, which is the reference. Tensors are float64, on the CPU.

    Attributes:
        first, second: the flows.
        times: (T,) the first flow's.
        output_gap: (T,) max_j |u_j - v_j|, in units of y; v is interpolated linearly in time.
        risk_gap: (T,) the first flow's risk minus the second's: positive where the first lags behind.
        largest_output_change: max_j |v_j(t) - v_j(0)| of the second flow over the first's times.
        transport_times: (S,) times at which both flows kept a measure.
        transport: (S,) sqrt(sum_s m_s d_s^2) over the sheets s that hold mass in both measures: d_s is the distance on
            the sheet, both masses scaled to 1, and m_s the mean of the two measures' shares of mass there. In units
            of the coordinates that `neurons.clouds` gives: (w, a) for Lifted, unit directions (chords) for Projected.
        thinning: (S,) |W2 of the thinned clouds - W2 of the measures| is at most this.
        blur: (S,) the length below which the distance does not look; see `compare`.
        sheets: names of the K sheets.
        sheet_transport: (S, K) d_s; NaN where one of the two has no mass on the sheet, 0 where neither has.
        sheet_masses: (S, K, 2) masses of the first and of the second, as they are.
    """

    first: Flow = field(repr=False)
    second: Flow = field(repr=False)
    times: Float[Tensor, " T"]
    output_gap: Float[Tensor, " T"]
    risk_gap: Float[Tensor, " T"]
    largest_output_change: float
    transport_times: Float[Tensor, " S"]
    transport: Float[Tensor, " S"]
    thinning: Float[Tensor, " S"]
    blur: Float[Tensor, " S"]
    sheets: tuple[str, ...]
    sheet_transport: Float[Tensor, "S K"]
    sheet_masses: Float[Tensor, "S K 2"]

    @property
    def sup_output_gap(self) -> float:
        """The largest output gap over time."""
        return float(self.output_gap.max())

    @property
    def relative_output_gap(self) -> float:
        """The largest output gap over the largest output change; NaN or inf where the reference does not move."""
        return float(self.output_gap.max() / torch.tensor(self.largest_output_change, dtype=torch.float64))

    @property
    def mass_gap(self) -> Float[Tensor, "S K"]:
        """Masses of the first minus those of the second, sheet by sheet."""
        return self.sheet_masses[..., 0] - self.sheet_masses[..., 1]

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row a time: the gaps, and NaN for transport at times at which no measure was kept."""
        pd = need("pandas", "Comparison.to_dataframe")
        gaps = {"output_gap": self.output_gap.numpy(), "risk_gap": self.risk_gap.numpy()}
        columns = {"transport": self.transport, "thinning": self.thinning, "blur": self.blur}
        for k, sheet in enumerate(self.sheets):
            columns[f"transport_{sheet}"] = self.sheet_transport[:, k]
            columns[f"mass_gap_{sheet}"] = self.mass_gap[:, k]
        kept = {name: column.numpy() for name, column in columns.items()}
        index = [pd.Index(times.numpy(), name="time") for times in (self.times, self.transport_times)]
        return pd.DataFrame(gaps, index=index[0]).join(pd.DataFrame(kept, index=index[1]), how="outer")

    def plot(self) -> "matplotlib.figure.Figure":
        """Risks, outputs, gaps and distances over time."""
        from .show.plots import plot_comparison

        return plot_comparison(self)

    def __repr__(self) -> str:
        last = f", transport {float(self.transport[-1]):.4g} at the last" if len(self.transport) else ""
        return (
            f"Comparison({self.first.name} with {self.second.name}, t = {float(self.times[0]):.4g} to "
            f"{float(self.times[-1]):.4g}, output gap <= {self.sup_output_gap:.4g} "
            f"({self.relative_output_gap:.3%} of the largest change){last})"
        )

    def _repr_html_(self) -> str:
        worst = float(self.times[int(self.output_gap.argmax())])
        rows: list[tuple[str, object]] = [
            ("first", repr(self.first)),
            ("reference", repr(self.second)),
            ("largest output gap", f"{self.sup_output_gap:.4g} at t = {worst:.4g}"),
            ("of the largest change", f"{self.relative_output_gap:.3%} of {self.largest_output_change:.4g}"),
            ("difference of risks at the end", f"{float(self.risk_gap[-1]):.4g}"),
        ]
        if len(self.transport):
            said = f"{float(self.transport[-1]):.4g} at t = {float(self.transport_times[-1]):.4g}"
            rows.append(("transport distance", f"{said}, at a blur of {float(self.blur[-1]):.3g}"))
        return table("Comparison", rows, curve(self.times.tolist(), self.output_gap.tolist(), "output gap"))


def compare(
    first: Flow, second: Flow, *, blur: float | None = None, max_points: int = 1000, transport: bool = True
) -> Comparison:
    """Hold a flow against a reference.

    The distance of two measures is sqrt(2 S), S being GeomLoss' debiased Sinkhorn divergence for |x - y|^2 / 2: W2 at
    the resolution `blur`. It is exact for translations whatever the blur; on scattered clouds of 150 points GeomLoss'
    annealing ends up to 1% short.

    Clouds of more than max_points points are thinned first: both are cut into at most max_points boxes, the same for
    both, each halved where it adds most to the error, and a box's mass moves to its barycentre. Moving it is a
    coupling, so W2 changes by at most `thinning`: the sum over both clouds of sqrt(sum p |x - barycentre|^2). Since
    both are moved alike, much less of it shows. Light tails stay in a few large boxes: nothing is left out. 10^6 nodes
    take seconds and O(N) memory; GeomLoss adds a few arrays of max_points^2.

    Args:
        first: its times are the comparison's.
        second: the reference, interpolated linearly in time (an error of dt^2 / 8 times its second derivative).
        blur: a length in the units of the clouds. By default, at every time, the largest over sheets of .05 times the
            clouds' radius (root mean square distance from their common mean) and of twice the coarser cloud's
            sqrt(sum p |x - barycentre|^2), below which boxes would be seen as separate points.
        max_points: largest cloud handed to GeomLoss; time grows with its square (1000: 3 s of a CPU core, 2000: 15 s).
        transport: whether to measure distances at all.

    Raises:
        ComparisonError: for flows on other data, a second flow that does not cover the first's times, measures that
            have no common coordinates, or a blur or max_points that cannot be used.
    """
    if blur is not None and not 1 / _LARGEST <= blur <= _LARGEST:
        raise ComparisonError(f"received blur = {blur}, need a positive finite length, or None for the clouds' own")
    if max_points < 2:
        raise ComparisonError(f"received max_points = {max_points}, need at least 2: 1000 is the default")
    outputs, risks = _interpolated(first, second)
    gap, change = _largest(first.outputs - outputs), _largest(outputs - outputs[0])
    both = _both_kept(first, second) if transport else []
    way = _way(first, second) if both else None
    pairs = ((_clouds(first.measures[i], way), _clouds(second.measures[j], way)) for i, j in both)
    rows = [_distance(one, two, blur, max_points) for one, two in pairs]  # one pair of clouds at a time in memory
    none = torch.zeros(0, 0, 2, dtype=torch.float64)
    return Comparison(
        first,
        second,
        first.times,
        gap,
        first.risks - risks,
        float(change.max()),
        first.saved_times[[i for i, _ in both]],
        torch.tensor([row.distance for row in rows], dtype=torch.float64),
        torch.tensor([row.thinning for row in rows], dtype=torch.float64),
        torch.tensor([row.blur for row in rows], dtype=torch.float64),
        rows[0].sheets if rows else (),
        torch.stack([row.by_sheet for row in rows]) if rows else none[..., 0],
        torch.stack([row.masses for row in rows]) if rows else none,
    )


# ------------------------------------------------------------------------------------------------- outputs in time


def _interpolated(first: Flow, second: Flow) -> tuple[Float[Tensor, "T n"], Float[Tensor, " T"]]:
    """Outputs and risks of the second flow at the first's times."""
    n, m = first.outputs.shape[1], second.outputs.shape[1]
    if n != m:
        raise ComparisonError(f"received flows with {n} and {m} outputs, need the same data: give both risks one X")
    t, s = first.times, second.times
    slack = _SAME_TIME * max(1.0, float(t[-1]))
    if float(s[0]) > float(t[0]) + slack or float(s[-1]) < float(t[-1]) - slack:
        raise ComparisonError(
            f"received a second flow from t = {float(s[0]):.6g} to {float(s[-1]):.6g}, need it to cover the first's "
            f"times from {float(t[0]):.6g} to {float(t[-1]):.6g}: evolve it for longer, or exchange the two"
        )
    left = (torch.searchsorted(s, t, right=True) - 1).clamp(0, max(len(s) - 2, 0))
    right = (left + 1).clamp(max=len(s) - 1)
    # lerp is exact at both ends, so equal records have a gap of exactly 0.
    share = ((t - s[left]) / (s[right] - s[left]).masked_fill(right == left, 1.0)).clamp(0, 1)
    outputs = torch.lerp(second.outputs[left], second.outputs[right], share[:, None])
    return outputs, torch.lerp(second.risks[left], second.risks[right], share)


def _largest(x: Float[Tensor, "T n"]) -> Float[Tensor, " T"]:
    """max_j |x_j|; 0 where there are no data."""
    return x.abs().amax(1) if x.shape[1] else torch.zeros(x.shape[0], dtype=x.dtype)


# ----------------------------------------------------------------------------------------------- measures as clouds

Cloud = tuple[Float[Tensor, "_ _"], Float[Tensor, " _"]]  # points (m, k) and masses (m,)


def _both_kept(first: Flow, second: Flow) -> list[tuple[int, int]]:
    """Indices of the measures that both flows kept at the same time."""
    t, s = first.saved_times, second.saved_times
    near = (t[:, None] - s).abs() <= _SAME_TIME * t[:, None].clamp(min=1)
    return [(i, int(near[i].nonzero()[0, 0])) for i in range(len(t)) if bool(near[i].any())]


def _way(first: Flow, second: Flow) -> Neurons | None:
    """The way whose coordinates hold both measures: particles can be seen by any, a grid by its own only."""
    flows = [flow for flow in (first, second) if any(isinstance(m, GridMeasure) for m in flow.measures)]
    ways = [flow.neurons for flow in flows or (first, second)]
    names = ["none" if way is None else way.name for way in ways]
    if len(set(names)) > 1:
        raise ComparisonError(
            f"received measures of the ways {names[0]} and {names[1]}, which live in different spaces, need one way "
            "for a distance: compare with transport=False"
        )
    return ways[0]


def _clouds(measure: Measure, way: Neurons | None) -> dict[str, Cloud]:
    """Points and masses of each sheet; nodes as they are, where no way says what they stand for."""
    if way is not None:
        return way.clouds(measure)
    if not isinstance(measure, GridMeasure):
        return {"all": (measure.positions, measure.masses)}
    factors = measure.grid.factors
    labels = [k for k, f in enumerate(factors) if isinstance(f, Sheets)]
    if not labels:
        return {"all": (measure.grid.points(), measure.masses.reshape(-1))}
    points = Grid(tuple(f for f in factors if not isinstance(f, Sheets))).points()
    rows = measure.masses.movedim(labels, list(range(len(labels)))).reshape(-1, points.shape[0])
    values = torch.cartesian_prod(*[factors[k].nodes[:, 0] for k in labels]).reshape(len(rows), -1).tolist()
    return {", ".join(f"{v:g}" for v in value): (points, row) for value, row in zip(values, rows, strict=True)}


# --------------------------------------------------------------------------------------------------------- distance


@dataclass(frozen=True, eq=False)
class _Row:
    """One time's distance; see Comparison."""

    sheets: tuple[str, ...]
    distance: float
    thinning: float
    blur: float
    by_sheet: Float[Tensor, " K"]
    masses: Float[Tensor, "K 2"]


def _distance(one: dict[str, Cloud], two: dict[str, Cloud], blur: float | None, max_points: int) -> _Row:
    """Thin, choose the blur, and measure every sheet."""
    shapes = [{name: points.shape[1] for name, (points, _) in clouds.items()} for clouds in (one, two)]
    if shapes[0] != shapes[1]:
        raise ComparisonError(
            f"received measures with coordinates per sheet {shapes[0]} and {shapes[1]}, need the same: start both "
            "flows from one measure, or compare with transport=False"
        )
    masses = torch.tensor([[float(c[name][1].sum(dtype=torch.float64)) for c in (one, two)] for name in one]).double()
    shared = [k for k, name in enumerate(one) if bool((masses[k] > 0).all())]
    names = tuple(one)
    thin = {k: _thinned(*_normalised(one[names[k]], two[names[k]]), max_points) for k in shared}
    if blur is None:
        # No mass on any common sheet: no length is known, and none is used.
        blur = max((max(_BLUR * t.radius, _BLUR_OF_CELLS * max(t.moved)) for t in thin.values()), default=math.nan)
    by_sheet = torch.where((masses > 0).any(1), math.nan, 0.0).double()
    for k, t in thin.items():
        by_sheet[k] = _sinkhorn(t.first, t.second, blur)
    share = (masses / masses.sum(0)).mean(1)[shared]
    bounds = torch.tensor([sum(t.moved) for t in thin.values()], dtype=torch.float64)
    total = [float((share * x**2).sum().sqrt()) for x in (by_sheet[shared], bounds)] if shared else [math.nan] * 2
    return _Row(names, total[0], total[1], blur, by_sheet, masses)


def _normalised(one: Cloud, two: Cloud) -> tuple[Cloud, Cloud]:
    """Both clouds in float64 on the first's device, masses summing to 1, nodes without mass left out."""
    kept = []
    for points, masses in (one, two):
        held = masses.detach().to(one[1].device, torch.float64)
        some = held > 0
        kept.append((points.detach().to(one[1].device, torch.float64)[some], held[some] / held.sum()))
    return kept[0], kept[1]


def _sinkhorn(one: Cloud, two: Cloud, blur: float) -> float:
    """sqrt(2 S) of two clouds of mass 1."""
    every = torch.cat([one[0], two[0]])
    if _equal(one, two) or bool((every == every[0]).all()):
        return 0.0  # spares the time, and GeomLoss a logarithm of a diameter of 0
    if not float(every.abs().max()) <= _LARGEST:
        raise ComparisonError(
            f"received neurons as far out as {float(every.abs().max()):.3g}, need at most {_LARGEST:g} for a distance: "
            "compare with transport=False"
        )
    loss = SamplesLoss("sinkhorn", p=2, blur=blur, scaling=_SCALING, debias=True, backend="tensorized")
    with torch.no_grad():
        divergence = float(loss(one[1], one[0], two[1], two[0]))
    return math.sqrt(2 * max(divergence, 0.0))  # negative by rounding only


def _equal(one: Cloud, two: Cloud) -> bool:
    return all(torch.equal(x, y) for x, y in zip(one, two, strict=True))


# --------------------------------------------------------------------------------------------------------- thinning


@dataclass(frozen=True, eq=False)
class _Thinned:
    """Two clouds on a common set of boxes: how far each was moved (root mean square), and their common radius."""

    first: Cloud
    second: Cloud
    moved: tuple[float, float]
    radius: float


def _thinned(one: Cloud, two: Cloud, max_points: int) -> _Thinned:
    """Both clouds in at most max_points boxes, a box's mass at its own cloud's barycentre.

    Clouds of at most max_points points each, and equal ones, stay as they are.
    """
    x, y = one[0].T.contiguous(), two[0].T.contiguous()
    p, q = one[1], two[1]
    centre = ((x * p).sum(1, keepdim=True) + (y * q).sum(1, keepdim=True)) / 2
    radius = math.sqrt(float(((x - centre) ** 2 * p).sum() + ((y - centre) ** 2 * q).sum()) / 2)
    if max(len(p), len(q)) <= max_points or _equal(one, two):
        return _Thinned(one, two, (0.0, 0.0), radius)
    box, other, count = _boxes(x, p, y, q, max_points)
    (a, s), (b, t) = _barycentres(x, p, box, count), _barycentres(y, q, other, count)
    return _Thinned(a, b, (s, t), radius)


def _boxes(
    x: Float[Tensor, "k m"], p: Float[Tensor, " m"], y: Float[Tensor, "k l"], q: Float[Tensor, " l"], max_points: int
) -> tuple[Int[Tensor, " m"], Int[Tensor, " l"], int]:
    """The number of every point's box: halve, across its widest axis, each box that adds most to the error.

    Rather than cubes of one size: those spend most of their number on the tails, and the bound is 2.5 times as large
    (a Gaussian of std .5 on [-3, 3]^3, 1000 boxes). Only boxes just halved are visited again, so light tails cost
    one round. Sums are taken cloud by cloud and then added, so that exchanging the clouds changes no bit.

    Returns:
        The boxes of x and of y, and how many there are.
    """
    k, device = x.shape[0], x.device
    mean, spread = torch.zeros(2, k, max_points, dtype=torch.float64, device=device).unbind(0)
    box, other = (torch.zeros(len(w), dtype=torch.long, device=device) for w in (p, q))
    here, there = torch.arange(len(p), device=device), torch.arange(len(q), device=device)
    count, atom = 1, -1.0
    while True:
        # Mass, mean, and spread (mass times variance, axis by axis) of the boxes that changed.
        parts = [(x[:, here], p[here], box[here]), (y[:, there], q[there], other[there])]
        mass = _added([_sums(w[None], b, max_points) for _, w, b in parts])
        mean = torch.where(mass > 0, _added([_sums(z * w, b, max_points) for z, w, b in parts]) / mass, mean)
        moments = [_sums((z - mean[:, b]) ** 2 * w, b, max_points) for z, w, b in parts]
        spread = torch.where(mass > 0, _added(moments), spread)
        widest = spread.max(0)
        largest = float(widest.values.max())
        atom = _ATOM * largest if atom < 0 else atom
        if count == max_points or largest <= atom:
            return box, other, count
        order = widest.values.topk(min(count, max_points - count))
        chosen = order.indices[order.values > max(_SPLIT * largest, atom)]
        fresh = torch.full((max_points,), -1, device=device)
        fresh[chosen] = torch.arange(count, count + len(chosen), device=device)
        spread[:, chosen] = 0.0  # summed again in the next round, or a half that rounding left empty
        count += len(chosen)
        here = _halve(x, box, fresh, mean, widest.indices)
        there = _halve(y, other, fresh, mean, widest.indices)


def _halve(
    x: Float[Tensor, "k m"],
    box: Int[Tensor, " m"],
    fresh: Int[Tensor, " c"],
    mean: Float[Tensor, "k c"],
    axis: Int[Tensor, " c"],
) -> Int[Tensor, " _"]:
    """Move points beyond the mean of their box, along its axis, to its fresh half, in place. Returns who was asked."""
    asked = (fresh[box] >= 0).nonzero().reshape(-1)
    old = box[asked]
    beyond = x[axis[old], asked] > mean[axis[old], old]
    box[asked] = torch.where(beyond, fresh[old], old)
    return asked


def _added(two: list[Tensor]) -> Tensor:
    """a + b, which is b + a to the last bit."""
    return two[0] + two[1]


def _sums(rows: Float[Tensor, "k m"], box: Int[Tensor, " m"], count: int) -> Float[Tensor, "k c"]:
    """Sums over the points of each of `count` boxes."""
    total = torch.zeros(rows.shape[0], count, dtype=rows.dtype, device=rows.device)
    return total.scatter_add_(1, box.expand(rows.shape[0], -1), rows)


def _barycentres(
    x: Float[Tensor, "k m"], p: Float[Tensor, " m"], box: Int[Tensor, " m"], count: int
) -> tuple[Cloud, float]:
    """The boxes that hold mass, as points at their barycentres; and sqrt(sum p |x - barycentre|^2)."""
    mass = _sums(p[None], box, count)[0]
    centre = _sums(x * p, box, count) / mass
    moved = math.sqrt(float(((x - centre[:, box]) ** 2 * p).sum()))
    some = mass > 0
    return (centre[:, some].T.contiguous(), mass[some]), moved
