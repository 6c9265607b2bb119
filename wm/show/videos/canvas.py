"""The layout of a replay's frames: pictures with captions, action bars, readings and growing curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Pane:
    """One picture of a frame.

    Attributes:
        caption: What it shows, a few words.
        image: u8[H, W, 3], RGB; None leaves the place dark.
        source: What it was made from, as a second, smaller line; may be "".
    """

    caption: str
    image: Image | None
    source: str = ""


@dataclass(frozen=True)
class Curves:
    """A small plot over the seconds of the video.

    Attributes:
        title: The quantity and its unit.
        lines: By name, its values so far, one a frame; they grow from moment to moment.
        seconds: Length of the whole axis.
        rate: Frames per second.
    """

    title: str
    lines: Mapping[str, Sequence[float]]
    seconds: float
    rate: float


@dataclass(frozen=True)
class Bar:
    """A value as a bar.

    Attributes:
        text: What it is, such as "power +0.25".
        value: Between `low` and `high`.
        low: Lower end of its axis.
        high: Upper end of its axis.
    """

    text: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Moment:
    """The content of a replay at one step.

    Attributes:
        panes: The pictures, the most important one first.
        bars: The action.
        readings: Up to four short texts, such as "score 812"; they stand in two columns, each filled first.
        curves: Plots below the pictures.
        aspect: Width by height of what V sees, as it lies in the world. Pictures side by side all have it.
    """

    panes: tuple[Pane, ...]
    bars: tuple[Bar, ...]
    readings: tuple[str, ...]
    curves: tuple[Curves, ...] = ()
    aspect: float = 1.0


GAP = 12
"""Gap in pixels."""
GROUND = 24
"""Background grey."""
INK: Colour = (235, 235, 235)
FAINT: Colour = (150, 150, 150)
LINES: tuple[Colour, ...] = ((255, 170, 60), (150, 150, 150), (90, 170, 255))
"""Colours of a plot's lines, in their order."""
COLOURS: tuple[Colour, ...] = ((90, 170, 255), (110, 220, 110), (255, 100, 90), (255, 170, 60), (200, 140, 255))
"""Colours of the bars, in their order; further ones begin anew."""

CAMERA = (720, 480)
"""Width and height of the place of a lone large camera."""
SMALL = 216
"""Longer side of the pictures beside it."""
PANE = (400, 400)
"""Maximum width and height of a picture among equals."""
HEADER, FOOTER, PLOT = 68, 96, 200
"""Heights of the captions, of the bars and readings, and of the plots."""
WIDEST = 1440
"""Pixels across a grid of episodes."""
SEAM, CELL_TEXT, CELL_PLOT = 4, 60, 150
"""In a cell of a grid: pixels between its pictures, and the heights of its two lines of text and of its plots."""
LEAST_PLOT = 450
"""Pixels across that a plot needs: narrow cells show the first one only."""
MOST_CELLS = 36
"""Episodes in a grid; the text of more of them could not be read."""
READINGS_FROM = 570
"""Column in which the readings begin; in a narrow frame at 7/10 of its width."""


def featured(moment: Moment) -> Image:
    """The first picture large, the others small beside it: u8[576, 972, 3]."""
    width, height = CAMERA
    canvas = _canvas(width + 24 + SMALL + GAP, height + FOOTER)
    first, *others = moment.panes
    if first.image is not None:
        place = _within(CAMERA, first.image.shape[1] / first.image.shape[0])
        _paste(canvas, first.image, (width - place[0]) // 2, (height - place[1]) // 2, place)
    left = width + 24
    for i, pane in enumerate(others):
        top = 30 + i * (SMALL + 36)
        _write(canvas, pane.caption, left, top - 9, 0.55)
        shape = (1, 1) if pane.image is None else pane.image.shape
        _paste(canvas, pane.image, left, top, _within((SMALL, SMALL), shape[1] / shape[0]), cv2.INTER_NEAREST)
    _foot(canvas, moment, height)
    return canvas


def camera_only(moment: Moment) -> Moment:
    """The moment with its first picture alone, in that picture's own shape."""
    camera = moment.panes[0]
    shape = (1, 1) if camera.image is None else camera.image.shape
    return replace(moment, panes=(camera,), aspect=shape[1] / shape[0])


def side_by_side(moment: Moment) -> Image:
    """All pictures in one row at one size, the plots below: u8[H, W, 3], H and W the same for equal parts."""
    width, height = _within(PANE, moment.aspect)
    bottom = HEADER + height
    canvas = _canvas(len(moment.panes) * (width + GAP) + GAP, bottom + (PLOT if moment.curves else 0) + FOOTER)
    for i, pane in enumerate(moment.panes):
        left = GAP + i * (width + GAP)
        _write(canvas, pane.caption, left, 28, 0.75)
        _write(canvas, pane.source, left, 54, 0.55, FAINT)
        _paste(canvas, pane.image, left, HEADER, (width, height))
    for i, curves in enumerate(moment.curves):
        across = (canvas.shape[1] - GAP) // len(moment.curves)
        _plot(canvas[bottom : bottom + PLOT, GAP + i * across : (i + 1) * across], curves)
    _foot(canvas, moment, canvas.shape[0] - FOOTER)
    return canvas


def grid(moments: Mapping[str, Moment]) -> Image:
    """Several episodes at once, a cell each: its pictures with their captions, its label, two readings, its plots.

    Args:
        moments: 1 to 36 by label, with equally many pictures and plots each.

    Returns:
        u8[H, W, 3], H and W even, W at most 1440.
    """
    first = next(iter(moments.values()))
    panes, below = len(first.panes), CELL_TEXT + (CELL_PLOT if first.curves else 0)
    most = _within(PANE, first.aspect)
    columns = _columns(len(moments), panes * most[0] / (most[1] + below))
    rows = math.ceil(len(moments) / columns)
    width = min(most[0], ((WIDEST - GAP) // columns - GAP) // panes)
    size = (width - SEAM * (panes > 1), round(width * most[1] / most[0]))
    across, down = panes * width + GAP, size[1] + below
    canvas = _canvas(columns * across + GAP, rows * down + GAP)
    for i, (label, moment) in enumerate(moments.items()):
        left, top = GAP + i % columns * across, GAP + i // columns * down
        upper, lower, bottom = top + size[1] + 20, top + size[1] + 42, top + size[1] + CELL_TEXT
        for k, pane in enumerate(moment.panes):
            _paste(canvas, pane.image, left + k * width, top, size)
            if panes > 1:
                _write(canvas, pane.caption, left + k * width, upper, 0.5, within=size[0])
        readings = "  ".join(moment.readings[:2])
        if panes > 1:
            _write(canvas, label, left, lower, 0.5, FAINT)
            _write(canvas, readings, left + _length(label, 0.5) + 2 * GAP, lower, 0.55)
        else:
            _write(canvas, label, left, upper, 0.5, FAINT)
            _write(canvas, readings, left, lower, 0.55)
        plots = moment.curves[: max(1, panes * width // LEAST_PLOT)]
        for k, curves in enumerate(plots):
            wide = panes * width // len(plots)
            _plot(canvas[bottom : bottom + CELL_PLOT - GAP, left + k * wide : left + (k + 1) * wide], curves)
    return canvas


def _columns(count: int, aspect: float) -> int:
    """How many cells of this width by height go side by side, for the largest cells on a screen of 16:9."""

    def size(columns: int) -> float:
        return min(16 / (columns * aspect), 9 / math.ceil(count / columns))

    return max(range(1, count + 1), key=size)


def _within(size: tuple[int, int], aspect: float) -> tuple[int, int]:
    """The largest width and height of an aspect, width by height, within a size."""
    width, height = size
    return min(width, round(height * aspect)), min(height, round(width / aspect))


def _canvas(width: int, height: int) -> Image:
    """An empty frame; both sides even, as yuv420p wants them."""
    return np.full((height + height % 2, width + width % 2, 3), GROUND, np.uint8)


def _paste(
    canvas: Image, image: Image | None, left: int, top: int, size: tuple[int, int], enlarge: int = cv2.INTER_CUBIC
) -> None:
    """Puts an image at a place in a size of (width, height); averages when it shrinks."""
    width, height = size
    place = canvas[top : top + height, left : left + width]
    if image is None:
        place[:] = GROUND + 12
        return
    shrinks = image.shape[1] > width
    place[:] = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else enlarge)


def _write(
    canvas: Image, text: str, x: int, y: int, size: float, colour: Colour = INK, within: int | None = None
) -> None:
    """Writes from (x, y) on; smaller, if it would be longer than `within` pixels."""
    if within is not None:
        size *= min(1, within / max(1, _length(text, size)))
    cv2.putText(canvas, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)


def _length(text: str, size: float) -> int:
    """Pixels across that a text takes."""
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)[0][0])


def _foot(canvas: Image, moment: Moment, top: int) -> None:
    """Bars of the action and the readings, in the lowest `FOOTER` rows from `top` on."""
    begin = min(READINGS_FROM, canvas.shape[1] * 7 // 10)
    pitch = min(180, (begin - 30) // max(1, len(moment.bars)))
    for i, bar in enumerate(moment.bars):
        _bar(canvas, bar, COLOURS[i % len(COLOURS)], left=20 + i * pitch, top=top + 20, width=pitch * 8 // 9)
    column = min(170, (canvas.shape[1] - begin) // 2)
    for i, reading in enumerate(moment.readings):
        _write(canvas, reading, begin + i // 2 * column, top + 42 + i % 2 * 34, 0.7, within=column - 6)


def _bar(canvas: Image, bar: Bar, colour: Colour, left: int, top: int, width: int) -> None:
    """A bar from 0, or the end of its axis that is nearest to 0, to its value."""
    height, zero = 18, min(max(0.0, bar.low), bar.high)
    x = [left + round((v - bar.low) / (bar.high - bar.low) * width) for v in (zero, bar.value)]
    _write(canvas, bar.text, left, top + 10, 0.55, within=width)
    cv2.rectangle(canvas, (left, top + 22), (left + width, top + 22 + height), FAINT, 1)
    cv2.rectangle(canvas, (min(x), top + 22), (max(x), top + 22 + height), colour, -1)


def _plot(area: Image, curves: Curves) -> None:
    """Draws the curves so far into a part of the canvas; the upper end of the axis grows with them."""
    height, width = area.shape[:2]
    left, right, top, bottom = 58, width - 30, 58, height - 26
    _write(area, curves.title, left, 26, 0.6, within=right - left)
    highest = max((value for values in curves.lines.values() for value in values), default=0.0)
    scale = _round_up(highest)
    cv2.rectangle(area, (left, top), (right, bottom), FAINT, 1)
    for y, value in ((top + 8, scale), (bottom, 0.0)):
        _write(area, f"{value:g}".rjust(5), 4, y, 0.5)
    _write(area, "0 s", left, height - 6, 0.5)
    _write(area, f"{curves.seconds:g} s", right - 30, height - 6, 0.5)
    x_of_name = left
    for (name, values), colour in zip(curves.lines.items(), LINES, strict=False):
        _write(area, name, x_of_name, 48, 0.55, colour)
        x_of_name += _length(name, 0.55) + 24
        x = left + (right - left) * np.arange(len(values)) / (curves.seconds * curves.rate)
        y = bottom - (bottom - top) * np.asarray(values) / scale
        points = np.stack([x, y], axis=1).round().astype(np.int32)
        cv2.polylines(area, [points[:, None]], isClosed=False, color=colour, thickness=2, lineType=cv2.LINE_AA)


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, ... and their fractions, at least 0.1."""
    power = 10.0 ** math.floor(math.log10(max(value, 0.1)))
    return next(step * power for step in (1, 2, 5, 10) if value <= step * power)
