"""The layout of a replay's frames: pictures with captions, action bars, readings and growing curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]

FPS = 50
"""Frames per second, the same as CarRacing's, so that videos play in real time."""


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
    """

    title: str
    lines: Mapping[str, Sequence[float]]
    seconds: float


@dataclass(frozen=True)
class Moment:
    """The content of a replay at one step.

    Attributes:
        panes: The pictures, the most important one first.
        action: f32[3]: steering in [-1, 1], gas and brake in [0, 1].
        readings: Up to four short texts, such as "score 812"; they stand in two columns, each filled first.
        curves: Plots below the pictures.
    """

    panes: tuple[Pane, ...]
    action: NDArray[np.float32]
    readings: tuple[str, ...]
    curves: tuple[Curves, ...] = ()


GAP = 12
"""Gap in pixels."""
GROUND = 24
"""Background grey."""
INK: Colour = (235, 235, 235)
FAINT: Colour = (150, 150, 150)
LINES: tuple[Colour, ...] = ((255, 170, 60), (150, 150, 150), (90, 170, 255))
"""Colours of a plot's lines, in their order."""
BARS: tuple[tuple[str, float, Colour], ...] = (
    ("steer", -1.0, (90, 170, 255)),
    ("gas", 0.0, (110, 220, 110)),
    ("brake", 0.0, (255, 100, 90)),
)
"""Name, lowest value and colour of each action."""

CAMERA = (720, 480)
"""Width and height of a lone large camera: CarRacing's own 3:2."""
SMALL = 216
"""Side of the pictures beside it."""
PANE = (400, 280)
"""Width and height of a picture among equals: the shape of what V sees, 10:7, as it lies in the world."""
HEADER, FOOTER, PLOT = 68, 96, 200
"""Heights of the captions, of the bars and readings, and of the plots."""
WIDEST = 1440
"""Pixels across a grid of tracks."""
SEAM, TILE_TEXT, TILE_PLOT = 4, 60, 150
"""In a tile: pixels between its pictures, and the heights of its two lines of text and of its plots."""
LEAST_PLOT = 450
"""Pixels across that a plot needs: narrow tiles show the first one only."""
MOST_TILES = 36
"""Tracks in a grid; the text of more of them could not be read."""


def featured(moment: Moment) -> Image:
    """The first picture large, the others small beside it: u8[576, 972, 3]."""
    width, height = CAMERA
    canvas = _canvas(width + 24 + SMALL + GAP, height + FOOTER)
    first, *others = moment.panes
    _paste(canvas, first.image, 0, 0, CAMERA)
    left = width + 24
    for i, pane in enumerate(others):
        top = 30 + i * (SMALL + 36)
        _write(canvas, pane.caption, left, top - 9, 0.55)
        _paste(canvas, pane.image, left, top, (SMALL, SMALL), cv2.INTER_NEAREST)
    _foot(canvas, moment, height)
    return canvas


def side_by_side(moment: Moment) -> Image:
    """All pictures in one row at one size, the plots below: u8[H, W, 3], H and W the same for equal parts."""
    width, height = PANE
    bottom = HEADER + height
    canvas = _canvas(len(moment.panes) * (width + GAP) + GAP, bottom + (PLOT if moment.curves else 0) + FOOTER)
    for i, pane in enumerate(moment.panes):
        left = GAP + i * (width + GAP)
        _write(canvas, pane.caption, left, 28, 0.75)
        _write(canvas, pane.source, left, 54, 0.55, FAINT)
        _paste(canvas, pane.image, left, HEADER, PANE)
    for i, curves in enumerate(moment.curves):
        across = (canvas.shape[1] - GAP) // len(moment.curves)
        _plot(canvas[bottom : bottom + PLOT, GAP + i * across : (i + 1) * across], curves)
    _foot(canvas, moment, canvas.shape[0] - FOOTER)
    return canvas


def tiled(moments: Mapping[str, Moment]) -> Image:
    """Several drives at once, a tile each: its pictures with their captions, its label, two readings, its plots.

    Args:
        moments: 1 to 36 by label, with equally many pictures and plots each.

    Returns:
        u8[H, W, 3], H and W even, W at most 1440.
    """
    first = next(iter(moments.values()))
    panes, below = len(first.panes), TILE_TEXT + (TILE_PLOT if first.curves else 0)
    columns = _columns(len(moments), panes * PANE[0] / (PANE[1] + below))
    rows = math.ceil(len(moments) / columns)
    width = min(PANE[0], ((WIDEST - GAP) // columns - GAP) // panes)
    size = (width - SEAM * (panes > 1), round(width * PANE[1] / PANE[0]))
    across, down = panes * width + GAP, size[1] + below
    canvas = _canvas(columns * across + GAP, rows * down + GAP)
    for i, (label, moment) in enumerate(moments.items()):
        left, top = GAP + i % columns * across, GAP + i // columns * down
        upper, lower, bottom = top + size[1] + 20, top + size[1] + 42, top + size[1] + TILE_TEXT
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
            _plot(canvas[bottom : bottom + TILE_PLOT - GAP, left + k * wide : left + (k + 1) * wide], curves)
    return canvas


def _columns(count: int, aspect: float) -> int:
    """How many tiles of this width by height go side by side, for the largest tiles on a screen of 16:9."""

    def size(columns: int) -> float:
        return min(16 / (columns * aspect), 9 / math.ceil(count / columns))

    return max(range(1, count + 1), key=size)


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
    """Bars of the action and the readings, in the lowest 96 rows from `top` on."""
    for i, (name, low, colour) in enumerate(BARS):
        _bar(canvas, name, float(moment.action[i]), low, colour, left=20 + i * 180, top=top + 20)
    column = min(170, (canvas.shape[1] - 570) // 2)
    for i, reading in enumerate(moment.readings):
        _write(canvas, reading, 570 + i // 2 * column, top + 42 + i % 2 * 34, 0.7, within=column - 6)


def _bar(canvas: Image, name: str, value: float, low: float, colour: Colour, left: int, top: int) -> None:
    """A bar from 0 to `value` on an axis from `low` to 1."""
    width, height = 160, 18
    x = [left + round((v - low) / (1 - low) * width) for v in (0.0, value)]
    _write(canvas, f"{name} {value:+.2f}", left, top + 10, 0.55)
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
        x = left + (right - left) * np.arange(len(values)) / (curves.seconds * FPS)
        y = bottom - (bottom - top) * np.asarray(values) / scale
        points = np.stack([x, y], axis=1).round().astype(np.int32)
        cv2.polylines(area, [points[:, None]], isClosed=False, color=colour, thickness=2, lineType=cv2.LINE_AA)


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, ... and their fractions, at least 0.1."""
    power = 10.0 ** math.floor(math.log10(max(value, 0.1)))
    return next(step * power for step in (1, 2, 5, 10) if value <= step * power)
