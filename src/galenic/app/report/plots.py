"""Plots as small SVG texts; colours come from the page's CSS variables, so both themes work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

Point = tuple[float, float]
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 360, 270, 54, 40, 14, 14
# Of a name in a plot, in the units of its box.
LETTER, LINE = 5.8, 11.0


def lines(
    series: Sequence[tuple[str, Sequence[Point]]],
    *,
    x: str,
    y: str,
    label: str,
    diagonal: bool = False,
    unit: bool = True,
) -> Markup:
    """Curves over the unit square, or over their own range.

    Args:
        series: Name and points of each curve.
        x: Name of the horizontal axis.
        y: Name of the vertical axis.
        label: What the picture shows, for those who cannot see it.
        diagonal: Draw the line of chance or of perfect calibration.
        unit: Whether both axes go from 0 to 1.
    """
    points = [p for _, curve in series for p in curve if _finite(p)]
    if not points:
        return Markup("")
    box = (0.0, 1.0, 0.0, 1.0) if unit else _bounds(points)
    parts = [_axes(box, x, y)]
    if diagonal:
        (x0, y0), (x1, y1) = _place((0, 0), box), _place((1, 1), box)
        parts.append(f'<line class="guide" x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}"/>')
    for number, (_, curve) in enumerate(series):
        places = " ".join(f"{a},{b}" for a, b in (_place(p, box) for p in curve if _finite(p)))
        parts.append(f'<polyline class="line s{number % 6}" points="{places}"/>')
        if not unit or (diagonal and len(curve) <= 20):
            parts += [
                f'<circle class="dot s{number % 6}" cx="{a}" cy="{b}" r="2.5"/>'
                for a, b in (_place(p, box) for p in curve if _finite(p))
            ]
    legend = [name for name, _ in series] if len(series) > 1 else []
    return _figure("".join(parts), label, legend)


def intervals(
    series: Sequence[tuple[str, Sequence[dict[str, Any]]]],
    ticks: Sequence[tuple[float, str]],
    *,
    x: str,
    y: str,
    label: str,
    joined: bool,
) -> Markup:
    """Figures with their intervals; a point holds its place `at`, value, low and high.

    Low and high are None where there is no interval. Behind six series, colours come again, dashed.

    Args:
        series: Name and points of each recipe.
        ticks: Places on the first axis, and what they are called.
        x: Name of the first axis.
        y: Name of the metric.
        label: What the picture shows.
        joined: Whether a line runs through the points of a series.
    """
    every = [point for _, points in series for point in points]
    ends = [(p["at"], p[k]) for p in every for k in ("low", "value", "high") if p[k] is not None]
    if not ends:
        return Markup("")
    box = _bounds(ends)
    parts = [_axes(box, x, y, ticks)]
    for number, (_, points) in enumerate(series):
        colour = _colour(number)
        # Side by side, so that whiskers of recipes that are alike can be told apart.
        aside = 4.0 * (number - (len(series) - 1) / 2)
        places = []
        for point in points:
            if point["value"] is None:
                continue
            a = round(_place((point["at"], 0), box)[0] + aside, 1)
            middle = _place((point["at"], point["value"]), box)[1]
            places.append((a, middle))
            if point["low"] is not None and point["high"] is not None:
                low, high = (_place((point["at"], point[k]), box)[1] for k in ("low", "high"))
                parts.append(
                    f'<line class="line {colour}" x1="{a}" y1="{low}" x2="{a}" y2="{high}"/>'
                )
            parts.append(f'<circle class="dot {colour}" cx="{a}" cy="{middle}" r="2.5"/>')
        if joined:
            path = " ".join(f"{a},{b}" for a, b in places)
            parts.append(f'<polyline class="line {colour}" points="{path}"/>')
    return _figure("".join(parts), label, [name for name, _ in series])


def cost(rows: Sequence[dict[str, Any]], *, x: str, y: str, label: str, log: bool) -> Markup:
    """Quality with its interval against a cost; rows hold name, x, value, low, high, pareto.

    Args:
        rows: One arm each.
        x: Name of the cost.
        y: Name of the metric.
        label: What the picture shows.
        log: Whether the cost spans orders of magnitude.
    """
    rows = [row for row in rows if row["x"] is not None and row["value"] is not None]
    if not rows:
        return Markup("")
    positive = [row["x"] for row in rows if row["x"] > 0]
    floor = min(positive, default=1.0) / 10

    def shift(value: float) -> float:
        return math.log10(max(value, floor)) if log else value

    highs = [v for row in rows for v in (row["low"], row["high"], row["value"]) if v is not None]
    xs = [shift(row["x"]) for row in rows]
    box = _bounds([(a, b) for a in xs for b in highs])
    ticks: list[tuple[float, str]] | None = None
    if log:
        ticks = [(v, _power(v)) for v in range(math.ceil(box[0]), math.floor(box[1]) + 1)]
        if any(row["x"] <= 0 for row in rows):
            # Nothing has no logarithm: it stands apart, under its own name.
            nothing = math.log10(floor)
            ticks = [(nothing, "0"), *(tick for tick in ticks if tick[0] > nothing + 0.5)]
    parts = [_axes(box, x, y, ticks)]
    places = [_place((at, row["value"]), box) for row, at in zip(rows, xs, strict=True)]
    names = _names([str(row["name"]) for row in rows], places)
    for row, at, (a, b), name in zip(rows, xs, places, names, strict=True):
        if row["low"] is not None and row["high"] is not None:
            low, high = _place((at, row["low"]), box)[1], _place((at, row["high"]), box)[1]
            parts.append(f'<line class="whisker" x1="{a}" y1="{low}" x2="{a}" y2="{high}"/>')
        kind = "pareto" if row["pareto"] else "plain"
        parts.append(f'<circle class="mark {kind}" cx="{a}" cy="{b}" r="4.5"/>')
        parts.append(f'<text class="name" x="{name[0]}" y="{name[1]}">{escape(row["name"])}</text>')
    return _figure("".join(parts), label, [])


def _names(names: Sequence[str], places: Sequence[Point]) -> list[Point]:
    """Where each name starts, beside its mark, so that none covers another."""
    taken: list[tuple[float, float, float, float]] = []
    found = []
    for name, (a, b) in zip(names, places, strict=True):
        width = LETTER * len(name)
        options = [
            (x, b + drop)
            for drop in (-6.0, 14.0, -18.0, 26.0, -30.0, 38.0, -42.0, 50.0)
            for x in (a + 7, a - 7 - width)
            if LEFT <= x <= WIDTH - width
        ]
        spot = next(
            (p for p in options if not any(_overlap((*p, width, LINE), other) for other in taken)),
            options[0] if options else (LEFT, b - 6),
        )
        taken.append((*spot, width, LINE))
        found.append((round(spot[0], 1), round(spot[1], 1)))
    return found


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return abs(a[1] - b[1]) < LINE and a[0] < b[0] + b[2] and b[0] < a[0] + a[2]


def interval(
    low: float | None, value: float | None, high: float | None, left: float, right: float
) -> Markup:
    """A dot with whiskers between `left` and `right`, for a table cell; nothing without a value."""
    if value is None:
        return Markup("")
    span = max(right - left, 1e-9)

    def place(number: float) -> float:
        return round(4 + 112 * min(max((number - left) / span, 0), 1), 1)

    whisker = ""
    if low is not None and high is not None:
        whisker = f'<line class="whisker" x1="{place(low)}" y1="8" x2="{place(high)}" y2="8"/>'
    dot = f'<circle class="mark plain" cx="{place(value)}" cy="8" r="3.5"/>'
    return Markup(
        f'<svg class="spark" viewBox="0 0 120 16" aria-hidden="true">{whisker}{dot}</svg>'
    )


def _colour(number: int) -> str:
    return f"s{number % 6}" if number < 6 else f"s{number % 6} again"


def _finite(point: Point) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])


def _bounds(points: Sequence[Point]) -> tuple[float, float, float, float]:
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    dx, dy = (max(xs) - min(xs)) or 1.0, (max(ys) - min(ys)) or 0.1
    return min(xs) - 0.08 * dx, max(xs) + 0.08 * dx, min(ys) - 0.08 * dy, max(ys) + 0.1 * dy


def _place(point: Point, box: tuple[float, float, float, float]) -> tuple[float, float]:
    x0, x1, y0, y1 = box
    a = LEFT + (WIDTH - LEFT - RIGHT) * (point[0] - x0) / (x1 - x0)
    b = HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (point[1] - y0) / (y1 - y0)
    return round(a, 1), round(b, 1)


def _axes(
    box: tuple[float, float, float, float],
    x: str,
    y: str,
    ticks: Sequence[tuple[float, str]] | None = None,
) -> str:
    x0, x1, y0, y1 = box
    parts = []
    for value in _ticks(y0, y1):
        height = _place((x0, value), box)[1]
        parts.append(
            f'<line class="grid" x1="{LEFT}" y1="{height}" x2="{WIDTH - RIGHT}" y2="{height}"/>'
        )
        parts.append(
            f'<text class="tick" text-anchor="end" x="{LEFT - 5}" y="{height + 3.5}">{_short(value)}</text>'
        )
    for value, name in ticks or [(value, _short(value)) for value in _ticks(x0, x1)]:
        place = _place((value, y0), box)[0]
        parts.append(
            f'<text class="tick" text-anchor="middle" x="{place}" y="{HEIGHT - BOTTOM + 15}">{escape(name)}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="axis" text-anchor="middle" x="{middle}" y="{HEIGHT - 6}">{escape(x)}</text>'
    )
    up = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="axis" text-anchor="middle" transform="rotate(-90 11 {up})" x="11" y="{up}">'
        f"{escape(y)}</text>"
    )
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    span = high - low
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(f for f in (1, 2, 5, 10) if span / (step * f) <= 6)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    return f"{value:g}"


def _power(value: float) -> str:
    share = 10.0**value
    return f"{share:.0%}" if share >= 0.01 else f"{share * 100:g}%"


def _figure(body: str, label: str, legend: Sequence[str]) -> Markup:
    keys = "".join(
        f'<li><span class="key {_colour(number)}"></span>{escape(name)}</li>'
        for number, name in enumerate(legend)
    )
    keys = f'<ul class="legend">{keys}</ul>' if keys else ""
    return Markup(
        f'<figure class="plot"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">{body}</svg>{keys}<figcaption>{escape(label)}</figcaption></figure>'
    )
