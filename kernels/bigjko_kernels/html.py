"""What notebooks show of an object: a small table, and a curve without a library. All text is escaped."""

import html
import math
from collections.abc import Iterable, Sequence

_WIDTH, _HEIGHT, _ROOM = 220, 44, 2  # pixels, and what a line needs at the edges
_POINTS = 200  # of a curve at most


def table(title: str, rows: Iterable[tuple[str, object]], below: str = "") -> str:
    """A table with a title: label and value of what there is to say.

    Args:
        title: above the rows.
        rows: texts, or what becomes one.
        below: HTML that is put in as it is, such as a `curve`.
    """
    lines = "".join(
        f'<tr><th style="text-align:left">{html.escape(label)}</th>'
        f'<td style="text-align:left">{html.escape(str(value))}</td></tr>'
        for label, value in rows
    )
    return f"<div><b>{html.escape(title)}</b><table>{lines}</table>{below}</div>"


def curve(x: Sequence[float], y: Sequence[float], title: str) -> str:
    """A line from the lowest to the highest of its values, as inline SVG; nothing where there is none to draw."""
    step = max(1, math.ceil(len(x) / _POINTS))
    both = [*zip(x, y, strict=True)]
    points = [(a, b) for a, b in [*both[::step], *both[-1:]] if math.isfinite(a) and math.isfinite(b)]
    if len({a for a, _ in points}) < 2:
        return ""
    left, right = points[0][0], points[-1][0]
    low, high = min(b for _, b in points), max(b for _, b in points)
    across, up = (_WIDTH - 2 * _ROOM) / (right - left), (_HEIGHT - 2 * _ROOM) / (high - low or 1.0)
    path = " ".join(f"{_ROOM + (a - left) * across:.1f},{_HEIGHT - _ROOM - (b - low) * up:.1f}" for a, b in points)
    said = html.escape(f"{title}: {points[0][1]:.4g} to {points[-1][1]:.4g}, between {low:.4g} and {high:.4g}")
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{said}"><title>{said}</title>'
        f'<polyline points="{path}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
    )
