"""Draws charts as inline SVG: `line_chart` (curves over steps or ranks) and `agreement_chart` (distance by agreement).

Colors, fonts and line widths are in `page.css`, which also defines the light, dark and print styles. Charts have a size
of 480 x 300 and scale with their column. Lines are labeled at their end or start instead of in a legend.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH, HEIGHT = 480.0, 300.0
TOP, BOTTOM = 16.0, 44.0
LABEL_GAP = 16.0


@dataclass(frozen=True)
class Line:
    """A curve of points (x, y) with finite y. `faint` lines are in the background and have no label."""

    label: str
    points: Sequence[tuple[float, float]]
    color: str
    dashed: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Frame:
    """The plotting area, and the mapping of data to it."""

    left: float
    right: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log_x: bool = False

    def x(self, value: float) -> float:
        """Returns the horizontal position of a value."""
        low, high, value = (math.log(v) if self.log_x else v for v in (*self.x_range, value))
        return self.left + (self.right - self.left) * (value - low) / ((high - low) or 1.0)

    def y(self, value: float) -> float:
        """Returns the vertical position of a value."""
        low, high = self.y_range
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (value - low) / ((high - low) or 1.0)


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    percent: bool = False,
    log_x: bool = False,
    label_start: bool = False,
    dots: bool = False,
) -> str:
    """Draw curves.

    Args:
        lines: the curves, with at least one point; x > 0 if `log_x`.
        title: description of the figure for screen readers.
        x_label: name and unit of the horizontal axis.
        percent: y is a share in [0, 1], or a correlation, on an axis from 0 to 100 %.
        log_x: use a logarithmic horizontal axis.
        label_start: write the names at the start of the lines, on the left, instead of at the end.
        dots: mark the points, with their values as tooltips.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    y_ticks = nice_ticks(min(0.0, *ys), max(1.0, *ys) if percent else max(ys))
    if percent:
        y_ticks = [tick for tick in y_ticks if tick <= 1.0]
    room = 14 + 7.4 * max((len(_short(line.label)) for line in lines if not line.faint), default=0)
    left, right = (room, WIDTH - 46) if label_start else (46.0, WIDTH - room)
    frame = Frame(left, right, (min(xs), max(xs)), (y_ticks[0], y_ticks[-1]), log_x)
    x_ticks = log_ticks(*frame.x_range) if log_x else nice_ticks(*frame.x_range)
    number = _percent if percent else _plain
    parts = [
        *_y_axis(frame, y_ticks, number, at_right=label_start),
        *_x_axis(frame, [tick for tick in x_ticks if min(xs) <= tick <= max(xs)], x_label),
    ]
    parts += [_polyline(frame, line) for line in lines]
    if dots:
        parts += [_dot(frame, line, point, x_label, number) for line in lines for point in line.points]
    named = [line for line in lines if line.points and not line.faint]
    ends = [frame.y(line.points[0 if label_start else -1][1]) for line in named]
    for line, y in zip(named, spread(ends, LABEL_GAP, TOP, HEIGHT - BOTTOM), strict=True):
        x, anchor = (left - 9, "end") if label_start else (right + 9, "start")
        parts.append(_text(x, y + 4.5, _short(line.label), "name", anchor, style=f"fill:{line.color}"))
    return _svg(parts, title)


def agreement_chart(
    rows: Sequence[Mapping[str, Any]],
    baseline: Sequence[Mapping[str, Any]],
    *,
    title: str,
    baseline_name: str = "untrained",
) -> str:
    """Draw the mean distance of pairs by number of agreeing labels, with a bar from p10 to p90 and the count.

    Args:
        rows: `by_agreement` of an evaluation; rows without pairs (mean None) are not drawn.
        baseline: the same for the network before training; may be empty.
        title: description of the figure for screen readers.
        baseline_name: what that network is called.
    """
    rows, baseline = ([row for row in some if row["mean"] is not None] for some in (rows, baseline))
    drawn = [*rows, *baseline]
    levels = sorted({row["agreement"] for row in drawn})
    y_ticks = nice_ticks(0.0, max(row["p90"] for row in drawn))
    frame = Frame(68.0, WIDTH - 12, (levels[0] - 0.5, levels[-1] + 0.5), (y_ticks[0], y_ticks[-1]))
    parts = _y_axis(frame, y_ticks, _plain)
    for below, name in ((18, "agreeing"), (36, "pairs")):
        parts.append(_text(frame.left - 8, HEIGHT - BOTTOM + below, name, "tick small", "end"))
    pairs = {row["agreement"]: row["pairs"] for row in rows}
    for level in levels:
        parts.append(_text(frame.x(level), HEIGHT - BOTTOM + 18, f"{level:g}", "tick", "middle"))
        count = compact(pairs.get(level, 0))
        parts.append(_text(frame.x(level), HEIGHT - BOTTOM + 36, count, "tick small", "middle"))
    shift = 13.0 if baseline else 0.0
    drawings = ((baseline, -shift, "untrained", baseline_name), (rows, shift, "trained", "trained"))
    for some, offset, kind, name in drawings:
        if not some:
            continue
        for row in some:
            x = frame.x(row["agreement"]) + offset
            low, high = frame.y(row["p10"]), frame.y(row["p90"])
            about = f"{row['agreement']:g} labels agree, {name}: mean {row['mean']:.3f}, " + (
                f"p10 {row['p10']:.3f}, p90 {row['p90']:.3f}, {row['pairs']:,} pairs"
            )
            parts.append(
                f'<g class="spread {kind}"><title>{escape(about)}</title>'
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
                f'<circle cx="{x:.1f}" cy="{frame.y(row["mean"]):.1f}" r="6"/></g>'
            )
            if kind == "trained":
                parts.append(_text(x + 14, frame.y(row["mean"]) + 4.5, f"{row['mean']:.2f}", "name"))
        path = " ".join(f"{frame.x(r['agreement']) + offset:.1f},{frame.y(r['mean']):.1f}" for r in some)
        parts.insert(len(y_ticks), f'<polyline class="path {kind}" points="{path}"/>')
    return _svg(parts, title)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return evenly spaced round numbers that enclose [low, high].

    Example:
        >>> nice_ticks(0.0, 0.83)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m * count >= span * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return the numbers 1, 2, 5, 10, 20, ... within [low, high].

    Example:
        >>> log_ticks(1, 72)
        [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]
    """
    decades = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    return [m * 10.0**d for d in decades for m in (1, 2, 5) if low <= m * 10.0**d <= high]


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions apart to a distance of `gap`, in their order, and within [low, high] if there is room.

    Example:
        >>> spread([10, 11, 50], 16, 0, 100)
        [10, 26, 50]
    """
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = list(positions)
    floor = low
    for i in order:
        placed[i] = floor = max(placed[i], floor)
        floor += gap
    ceiling = high
    for i in reversed(order):
        placed[i] = ceiling = min(placed[i], ceiling)
        ceiling -= gap
    return placed


def compact(count: int) -> str:
    """Format a count with about three digits.

    Example:
        >>> compact(950), compact(12345), compact(3_400_000)
        ('950', '12 k', '3.4 M')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.{1 if count < 9.95 * size else 0}f} {unit}"
    return str(count)


def _svg(parts: Iterable[str], title: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start", style: str = "") -> str:
    style = f' style="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}"{style}>{escape(text)}</text>'


def _y_axis(frame: Frame, ticks: Iterable[float], number: Any, *, at_right: bool = False) -> list[str]:
    x, anchor = (frame.right + 8, "start") if at_right else (frame.left - 8, "end")
    return [
        f'<line class="grid" x1="{frame.left:.1f}" x2="{frame.right:.1f}" y1="{frame.y(tick):.1f}" '
        f'y2="{frame.y(tick):.1f}"/>' + _text(x, frame.y(tick) + 4.5, number(tick), "tick", anchor)
        for tick in ticks
    ]


def _x_axis(frame: Frame, ticks: Iterable[float], label: str) -> list[str]:
    base = HEIGHT - BOTTOM
    marks = [_text(frame.x(tick), base + 18, f"{tick:,g}", "tick", "middle") for tick in ticks]
    return [*marks, _text((frame.left + frame.right) / 2, base + 37, label, "tick small", "middle")]


def _polyline(frame: Frame, line: Line) -> str:
    points = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in line.points)
    kind = "line faint" if line.faint else "line dashed" if line.dashed else "line"
    return f'<polyline class="{kind}" style="stroke:{line.color}" points="{points}"/>'


def _dot(frame: Frame, line: Line, point: tuple[float, float], x_label: str, number: Any) -> str:
    x, y = point
    about = f"{line.label}, {x_label} {x:,g}: {number(y)}"
    return (
        f'<circle class="dot" style="fill:{line.color}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3">'
        f"<title>{escape(about)}</title></circle>"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def _plain(value: float) -> str:
    return f"{value:.3g}"


def _short(label: str) -> str:
    return label if len(label) <= 16 else label[:15] + "…"
