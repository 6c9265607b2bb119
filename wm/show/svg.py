"""Plots as inline SVG for the report. They use the page's colours, follow its theme, and need no script.

Every plot is one <svg role="img"> with a title and a description for screen readers. Colours come from the page's
stylesheet by the classes line-0 to line-5; lines also differ in their dashes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

WIDTH, HEIGHT = 480, 300
"""Size in the plot's own units; on a phone a unit is about 0.75 pixels."""
LEFT, RIGHT, TOP, BOTTOM = 80, 24, 10, 46
"""Margins for labels."""
MOST_POINTS = 400
"""Maximum number of points of a line; longer lines are averaged."""
STYLES = 6
"""Number of line styles in the stylesheet."""
MOST_BINS = 25
"""Bins of a histogram, about."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """A line of a plot.

    Attributes:
        name: Name in the legend.
        x: Ascending values.
        y: Values, as many as x.
        spread: Draws a band y ± spread, if given.
        dots: Marks each point.
        joined: Draws the line; else only the points.
        low: With `high`, draws an area from low to high, if given.
        high: Upper end of the area.
        style: Number of the line style; default: its place among the lines.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None
    dots: bool = False
    joined: bool = True
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    style: int | None = None


def bin_edges(values: Sequence[float]) -> list[float]:
    """Edges of about 25 bins or fewer around values, at multiples of 1, 2 or 5 times a power of ten."""
    low, high = min(values), max(values)
    least = (high - low) / MOST_BINS or 1.0
    power = 10.0 ** math.floor(math.log10(least))
    width = next(step * power for step in (1, 2, 5, 10) if least <= step * power)
    return [i * width for i in range(math.floor(low / width), math.floor(high / width) + 2)]


class Plotter:
    """Draws plots. All plots of one plotter have different identifiers, so that they can share a page."""

    def __init__(self) -> None:
        self._ids = count(1)

    def lines(
        self,
        title: str,
        x_label: str,
        y_label: str,
        lines: Sequence[Line],
        *,
        levels: Sequence[tuple[str, float]] = (),
        log: bool = False,
        settle: float = 0.0,
    ) -> Markup:
        """A line chart with its legend.

        Args:
            title: What is shown, a few words.
            x_label: Quantity and unit along the bottom.
            y_label: Quantity and unit along the side.
            lines: At least one, each of at least one point.
            levels: Named values that are drawn right across.
            log: Logarithmic vertical axis, if any value is above 0.
            settle: Share of the horizontal axis, from its start, that does not count for the height of the vertical
                one: losses fall from so high at first that nothing else could be seen.
        """
        x_low, x_high = min(min(line.x) for line in lines), max(max(line.x) for line in lines)
        first = x_low + settle * (x_high - x_low)
        values = [
            y for line in lines for x, y in zip(line.x, _reach(line), strict=True) if x >= first or len(line.x) == 1
        ]
        flat = [v for pair in values for v in pair] + [level for _, level in levels]
        margin = 0.03 if any(line.dots for line in lines) else 0.0  # dots are wider than their points
        flat = [value for value in flat if value > 0 or not log] or flat
        log = log and max(flat) > 0
        frame = _Frame(*_widened(x_low, x_high, margin), min(flat), max(flat), log)
        styles = [i if line.style is None else line.style for i, line in enumerate(lines)]
        styles += range(len(lines), len(lines) + len(levels))
        inner = []
        for line, style in zip(lines, styles, strict=False):
            inner += _drawn(frame, line, style)
        for (_, level), i in zip(levels, styles[len(lines) :], strict=True):
            inner.append(f'<path class="line-{i % STYLES}" d="M0 {frame.y(level):.1f}H{frame.width}"/>')
        described = [_describe(line) for line in lines] + [
            f"{name}: {number(level)} throughout" for name, level in levels
        ]
        names = [line.name for line in lines] + [name for name, _ in levels]
        return self._svg(title, x_label, y_label, frame, inner, described) + legend(
            dict(zip(names, styles, strict=True))
        )

    def histogram(
        self,
        title: str,
        x_label: str,
        y_label: str,
        edges: Sequence[float],
        counts: Sequence[float],
        *,
        marks: Sequence[tuple[str, float]] = (),
    ) -> Markup:
        """Bars between `edges` (one more than `counts`), and named vertical lines."""
        frame = _Frame(edges[0], edges[-1], 0.0, max([*counts, 1]), log=False)
        inner = []
        for low, high, n in zip(edges, edges[1:], counts, strict=False):
            x, y = frame.x(low), frame.y(n)
            inner.append(
                f'<rect class="bar" x="{x + 0.5:.1f}" y="{y:.1f}" '
                f'width="{max(frame.x(high) - x - 1, 0.5):.1f}" height="{frame.y(0) - y:.1f}"/>'
            )
        for i, (_, value) in enumerate(marks, start=1):
            inner.append(f'<path class="line-{i % STYLES}" d="M{frame.x(value):.1f} 0V{frame.height}"/>')
        described = [
            f"{number(n)} from {number(low)} to {number(high)}"
            for low, high, n in zip(edges, edges[1:], counts, strict=False)
            if n
        ]
        described += [f"{name} at {number(value)}" for name, value in marks]
        svg = self._svg(title, x_label, y_label, frame, inner, described)
        return svg + legend({name: i for i, (name, _) in enumerate(marks, start=1)})

    def bars(self, title: str, x_label: str, y_label: str, values: Sequence[float]) -> Markup:
        """One bar per value, numbered from 0."""
        edges = [i - 0.5 for i in range(len(values) + 1)]
        return self.histogram(title, x_label, y_label, edges, values)

    def matrix(self, title: str, weights: Array, scale: float, columns: int) -> Markup:
        """A picture of weights: squares in two colours for the two signs, stronger for larger values.

        Args:
            title: What is shown.
            weights: f64[N], row by row.
            scale: The size that has the full colour.
            columns: Numbers in a row.
        """
        rows = math.ceil(len(weights) / columns)
        squares = []
        for i, weight in enumerate(weights.tolist()):
            strength = min(abs(weight) / scale, 1.0)
            if strength >= 0.01:
                sign = "plus" if weight > 0 else "minus"
                squares.append(
                    f'<rect class="{sign}" opacity="{strength:.2f}" x="{i % columns}" y="{i // columns}" '
                    'width=".92" height=".92"/>'
                )
        described = [f"{len(weights)} weights from {number(weights.min())} to {number(weights.max())}"]
        return self._open(title, described, f"0 0 {columns} {rows}", "matrix") + Markup("".join(squares) + "</svg>")

    def _svg(
        self, title: str, x_label: str, y_label: str, frame: _Frame, inner: Iterable[str], described: Sequence[str]
    ) -> Markup:
        about = [f"Horizontal: {x_label}. Vertical: {y_label}", *described]
        parts: list[str] = [self._open(title, about, f"0 0 {WIDTH} {HEIGHT}", "plot")]
        for value in frame.x_ticks():
            x = LEFT + frame.x(value)
            parts.append(f'<path class="tick" d="M{x:.1f} {TOP}v{frame.height}"/>')
            parts.append(f'<text class="x" x="{x:.1f}" y="{TOP + frame.height + 17}">{number(value)}</text>')
        for value in frame.y_ticks():
            y = TOP + frame.y(value)
            parts.append(f'<path class="tick" d="M{LEFT} {y:.1f}h{frame.width}"/>')
            parts.append(f'<text class="y" x="{LEFT - 6}" y="{y + 4.5:.1f}">{number(value)}</text>')
        # A nested <svg> clips to the axes.
        parts.append(f'<svg x="{LEFT}" y="{TOP}" width="{frame.width}" height="{frame.height}">{"".join(inner)}</svg>')
        parts.append(f'<path class="axis" d="M{LEFT} {TOP}v{frame.height}h{frame.width}"/>')
        parts.append(f'<text class="x" x="{LEFT + frame.width / 2}" y="{HEIGHT - 6}">{escape(x_label)}</text>')
        middle = TOP + frame.height / 2
        parts.append(f'<text class="x" transform="translate(14 {middle}) rotate(-90)">{escape(y_label)}</text></svg>')
        return Markup("".join(parts))

    def _open(self, title: str, described: Sequence[str], view_box: str, kind: str) -> Markup:
        name = f"plot-{next(self._ids)}"
        return Markup(
            f'<svg class="{kind}" role="img" viewBox="{view_box}" aria-labelledby="{name}-t {name}-d">'
            f'<title id="{name}-t">{escape(title)}</title>'
            f'<desc id="{name}-d">{escape("; ".join(described))}.</desc>'
        )


def legend(styles: Mapping[str, int]) -> Markup:
    """The legend: names with samples of their line styles; "" for a single line."""
    if not styles:
        return Markup("")
    key = '<svg class="key" viewBox="0 0 30 8" aria-hidden="true"><path class="line-{}" d="M0 4H30"/></svg>'
    items = (f"<li>{key.format(i % STYLES)} {escape(name)}</li>" for name, i in styles.items())
    return Markup(f'<ul class="legend">{"".join(items)}</ul>')


def number(value: float) -> str:
    """A number in a few digits: 1,200,000; 0.0453; -72."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{digits}f}" if digits < 8 else f"{value:.2e}"
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def thinned(line: Line) -> Line:
    """The line with at most `MOST_POINTS` points: means of equally many neighbours."""
    size = math.ceil(len(line.x) / MOST_POINTS)
    if size == 1:
        return line

    def means(values: Sequence[float]) -> list[float]:
        return [float(np.mean(values[i : i + size])) for i in range(0, len(values), size)]

    def maybe(values: Sequence[float] | None) -> list[float] | None:
        return None if values is None else means(values)

    return replace(
        line, x=means(line.x), y=means(line.y), spread=maybe(line.spread), low=maybe(line.low), high=maybe(line.high)
    )


def _reach(line: Line) -> list[tuple[float, float]]:
    """Lowest and highest drawn value at each point."""
    low, high = line.low or line.y, line.high or line.y
    if line.spread is not None:
        return [(y - s, y + s) for y, s in zip(line.y, line.spread, strict=True)]
    return list(zip(low, high, strict=True))


def _describe(line: Line) -> str:
    if len(line.y) == 1:
        return f"{line.name}: {number(line.y[0])} at {number(line.x[0])}"
    names = {"from": 0, "to": len(line.y) - 1, "lowest": int(np.argmin(line.y)), "highest": int(np.argmax(line.y))}
    return f"{line.name}: " + ", ".join(
        f"{name} {number(line.y[i])} at {number(line.x[i])}" for name, i in names.items()
    )


def _drawn(frame: _Frame, line: Line, style: int) -> list[str]:
    line, style = thinned(line), style % STYLES
    parts = []
    x = [frame.x(value) for value in line.x]
    if line.low is not None and line.high is not None:
        there = list(zip(x, line.high, strict=True))
        back = list(zip(x, line.low, strict=True))[::-1]
        parts.append(f'<path class="area-{style}" d="{_path(frame, there + back)}Z"/>')
    for at, y, spread in zip(x, line.y, line.spread or [], strict=False):
        parts.append(
            f'<path class="whisker-{style}" d="M{at:.1f} {frame.y(y - spread):.1f}V{frame.y(y + spread):.1f}"/>'
        )
    if line.joined:
        parts.append(f'<path class="line-{style}" d="{_path(frame, list(zip(x, line.y, strict=True)))}"/>')
    if line.dots or len(x) == 1:
        parts += [
            f'<circle class="dot-{style}" r="3" cx="{at:.1f}" cy="{frame.y(y):.1f}"/>'
            for at, y in zip(x, line.y, strict=True)
        ]
    return parts


def _path(frame: _Frame, points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {frame.y(y):.1f}" for x, y in points)


class _Frame:
    """The axes: mapping of values to the plot's units, and the ticks."""

    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def __init__(self, x_low: float, x_high: float, y_low: float, y_high: float, log: bool) -> None:
        self._log = log
        self._x = _widened(x_low, x_high, 0.0)
        if log:
            self._y = _widened(math.log10(y_low), math.log10(y_high), 0.04)
        else:
            self._y = _widened(y_low, y_high, 0.0 if y_low == 0 else 0.04)
            if y_low == 0:
                self._y = (0.0, self._y[1] * 1.05)

    def x(self, value: float) -> float:
        low, high = self._x
        return (value - low) / (high - low) * self.width

    def y(self, value: float) -> float:
        """Downwards; values without a logarithm lie below the axis."""
        low, high = self._y
        if self._log:
            value = math.log10(value) if value > 0 else low - 1
        return float(np.clip((high - value) / (high - low), -1, 2)) * self.height

    def x_ticks(self) -> list[float]:
        return _ticks(*self._x, most=6)

    def y_ticks(self) -> list[float]:
        if not self._log:
            return _ticks(*self._y, most=6)
        low, high = self._y
        wanted = (1, 2, 5) if high - low < 2 else (1,)
        powers = range(math.floor(low), math.ceil(high) + 1)
        ticks = [m * 10.0**p for p in powers for m in wanted if low <= math.log10(m) + p <= high]
        return ticks if len(ticks) > 2 else [tick for tick in _ticks(10**low, 10**high, most=6) if tick > 0]


def _widened(low: float, high: float, by: float) -> tuple[float, float]:
    """An interval of nonzero length around low to high, extended by the fraction `by` at each end."""
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-300):
        middle = abs(low) or 1.0
        return low - 0.5 * middle, high + 0.5 * middle
    return low - by * (high - low), high + by * (high - low)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` + 1 round numbers in an interval, at distances of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if rough <= m * power * (1 + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]
