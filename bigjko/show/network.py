"""The network itself: its function against the data, or its outputs against the labels."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..risk import Risk
from .marginals import Pair
from .panels import Block, Panel, few, line, numbers

Values = list[Tensor | None]  # at every time; None where no measure was kept

_DATA = 1000  # points that are drawn at most
_ANGLES = 180
_PIXELS = 48  # an axis of the map
_DEGREES = 180 / math.pi


def network_blocks(risk: Risk, pairs: list[Pair], known: tuple[str, str]) -> list[Block]:
    """Over the line where one column of X varies, over the plane where X has two, else output against label.

    Args:
        risk: whose data are drawn.
        pairs: the measures at the times of the slider.
        known: names of the flows.
    """
    X, y = (x.detach().cpu().double() for x in (risk.X, risk.y))
    some = few(len(y), _DATA)
    X, y = X[some], y[some]
    note = f" {len(some)} of {len(risk.y)} data are drawn." if len(some) < len(risk.y) else ""
    vary = [k for k in range(X.shape[1]) if bool(X[:, k].max() > X[:, k].min())]
    if X.shape[1] == 1 or len(vary) == 1:
        axis = vary[0] if vary else 0
        at = _line(X, axis)
        panel = _function(at[:, axis], _both(risk, pairs, at), known, ("x", "f(x)"), X[:, axis], y)
        still = ", ".join(f"{float(X[0, k]):.4g}" for k in range(X.shape[1]) if k != axis)
        about = f"The network's function and the data{f', whose other entry is {still}' if still else ''}."
        return [Block("Network", about + note, [panel], 1)]
    if X.shape[1] == 2:
        about = (
            "f(r x) = r f(x) for r > 0, since the network has no bias: its values on the circle are all there is to "
            "know. Data are drawn at y / |x|, and in the plane in the colour of their label: they vanish where f fits."
        )
        return [Block("Network", about + note, _plane(X, y, risk, pairs, known))]
    return [Block("Network", "Outputs against labels." + note, [_labels(X, y, risk, pairs, known)], 1)]


def _both(risk: Risk, pairs: list[Pair], at: Float[Tensor, "k d"]) -> tuple[Values, Values]:
    """The networks of both flows at points, the first flow's first."""
    at = at.to(risk.X)
    first, second = (
        [None if measure is None else risk.outputs(measure, at).detach().cpu() for measure in kept]
        for kept in zip(*pairs, strict=True)
    )
    return first, second


def _line(X: Float[Tensor, "n d"], axis: int) -> Float[Tensor, "k d"]:
    """Points along one axis, past the data and 0, where f has its kink."""
    low, high = min(float(X[:, axis].min()), 0.0), max(float(X[:, axis].max()), 0.0)
    room = 0.1 * (high - low) or 1.0
    at = X[:1].expand(241, -1).clone()
    at[:, axis] = torch.linspace(low - room, high + room, 241)
    return at


def _function(
    x: Tensor,
    values: tuple[Values, Values],
    known: tuple[str, str],
    titles: tuple[str, str],
    at: Tensor,
    labels: Tensor,
) -> Panel:
    """Both flows' networks over a line, and the data."""
    mark = {"marker": {"symbol": "diamond-open", "size": 8}, "opacity": 1.0 if len(at) < 100 else 0.6}
    data = [
        line(True, 1, name="data", x=numbers(at), y=numbers(labels), mode="markers") | mark,
        line(False, name=known[1], x=numbers(x)),
        line(True, name=known[0], x=numbers(x)),
    ]
    frames = [[{}, {"y": _values(second)}, {"y": _values(first)}] for first, second in zip(*values, strict=True)]
    return Panel("Network and data", data, {"xaxis": {"title": titles[0]}, "yaxis": {"title": titles[1]}}, frames)


def _values(u: Tensor | None) -> list[Any]:
    return [] if u is None else numbers(u)


def _plane(X: Tensor, y: Tensor, risk: Risk, pairs: list[Pair], known: tuple[str, str]) -> list[Panel]:
    """Both networks on the circle, and the first over the plane."""
    angle = torch.linspace(0, 2 * math.pi, _ANGLES + 1, dtype=torch.float64)
    values = _both(risk, pairs, torch.stack([angle.cos(), angle.sin()], dim=1))
    norm = X.norm(dim=1)
    away = norm > 0.1 * norm.max()  # y / |x| says nothing near the origin, where f is 0
    at, labels = torch.atan2(X[away, 1], X[away, 0]) * _DEGREES % 360, y[away] / norm[away]
    around = _function(angle * _DEGREES, values, known, ("direction of x (degrees)", "f(x) / |x|"), at, labels)
    around.layout["xaxis"] |= {"range": [0, 360], "dtick": 60}
    return [around, _map(X, y, angle, values[0], known[0])]


def _labels(X: Tensor, y: Tensor, risk: Risk, pairs: list[Pair], known: tuple[str, str]) -> Panel:
    """Outputs against labels; on the diagonal the network fits."""
    data = []
    for flow, symbol in ((1, "circle-open"), (0, "x-thin-open")):
        mark = {"marker": {"symbol": symbol, "size": 9}, "opacity": 0.8}
        data.append(line(flow == 0, flow, name=known[flow], x=numbers(y), mode="markers") | mark)
    ends = numbers(torch.stack([y.min(), y.max()]))
    data.append(line(True, 3, x=ends, y=ends, name="output = label") | {"line": {"width": 1, "dash": "dot"}})
    values = _both(risk, pairs, X)
    frames = [[{"y": _values(second)}, {"y": _values(first)}, {}] for first, second in zip(*values, strict=True)]
    return Panel("Outputs", data, {"xaxis": {"title": "label y"}, "yaxis": {"title": "output u"}}, frames)


def _map(X: Tensor, y: Tensor, angle: Tensor, values: list[Tensor | None], name: str) -> Panel:
    """The network over the plane, from its values on the circle."""
    low, high = X.amin(0), X.amax(0)
    low, high = torch.minimum(low, low.new_zeros(2)), torch.maximum(high, high.new_zeros(2))
    room = 0.08 * (high - low).max()
    x0, x1 = (torch.linspace(float(low[k] - room), float(high[k] + room), _PIXELS, dtype=torch.float64) for k in (0, 1))
    radius, turn = torch.hypot(x0, x1[:, None]), torch.atan2(x1[:, None], x0) % (2 * math.pi)
    place = turn / (2 * math.pi) * _ANGLES
    left = place.long().clamp(max=_ANGLES - 1)
    maps = [None if u is None else radius * torch.lerp(u[left], u[left + 1], place - left) for u in values]
    top = max(float(y.abs().max()), *(float(z.abs().max()) for z in maps if z is not None)) or 1.0
    scale = {"meta": "signed"}
    data: list[dict[str, Any]] = [
        {"type": "heatmap", "x": numbers(x0), "y": numbers(x1), "zmin": -top, "zmax": top, **scale},
        {
            "type": "scatter",
            "mode": "markers",
            "x": numbers(X[:, 0]),
            "y": numbers(X[:, 1]),
            "showlegend": False,
            "marker": {"color": numbers(y), "cmin": -top, "cmax": top, "size": 8 if len(y) < 100 else 6},
            **scale,
        },
    ]
    frames: list[list[dict[str, Any]]] = [[{"z": [] if z is None else numbers(z)}, {}] for z in maps]
    square = {"title": "x2", "scaleanchor": "x", "constrain": "domain"}
    return Panel(
        f"{name}: the network over the plane",
        data,
        {"xaxis": {"title": "x1", "constrain": "domain"}, "yaxis": square},
        frames,
    )
