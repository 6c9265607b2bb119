"""Videos of episodes: H.264 mp4 files that a browser plays, and the frames they are made of."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from wm.run import atomic

Image = NDArray[np.uint8]

FPS = 50
"""CarRacing's own: a second of the video is a second of the drive."""

CAMERA_SIZE = (720, 480)
PANE_SIZE = 216
CANVAS = (480 + 96, 720 + 24 + 216 + 12)
"""Height and width of a frame; both even, as yuv420p wants them."""
INK, FAINT = (235, 235, 235), (120, 120, 120)
BARS = (("steer", -1.0, (90, 170, 255)), ("gas", 0.0, (110, 220, 110)), ("brake", 0.0, (255, 100, 90)))
"""Name, lowest value and colour of each action."""


def write_video(path: Path, frames: Iterable[Image]) -> int:
    """Encodes frames u8[H, W, 3] (RGB, H and W even) at 50 a second; returns how many there were."""
    count = 0
    with atomic(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "23", "preset": "veryfast"})
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            if count == 0:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            count += 1
        container.mux(stream.encode())
    return count


def compose(
    camera: Image, seen: Image, reconstruction: Image, action: NDArray[np.float32], score: float, step: int
) -> Image:
    """Draws one frame of a replay.

    Args:
        camera: u8[H, W, 3], what a spectator sees, at CarRacing's 3:2.
        seen: u8[64, 64, 3], what V is given.
        reconstruction: u8[64, 64, 3], what V makes of it.
        action: f32[3], steering in [-1, 1], gas and brake in [0, 1].
        score: Sum of rewards so far.
        step: Number of the step.

    Returns:
        u8[576, 972, 3], RGB.
    """
    canvas = np.full((*CANVAS, 3), 24, np.uint8)
    width, height = CAMERA_SIZE
    canvas[:height, :width] = cv2.resize(camera, CAMERA_SIZE, interpolation=cv2.INTER_AREA)
    left = width + 24
    for top, name, image in ((30, "V sees", seen), (30 + PANE_SIZE + 36, "V reconstructs", reconstruction)):
        _write(canvas, name, left, top - 9, 0.55)
        canvas[top : top + PANE_SIZE, left : left + PANE_SIZE] = cv2.resize(
            image, (PANE_SIZE, PANE_SIZE), interpolation=cv2.INTER_NEAREST
        )
    for i, (name, low, colour) in enumerate(BARS):
        _draw_bar(canvas, name, float(action[i]), low, colour, left=20 + i * 180, top=height + 20)
    _write(canvas, f"score {score:6.0f}", 570, height + 42, 0.7)
    _write(canvas, f"step {step:7d}", 570, height + 76, 0.7)
    return canvas


def _write(canvas: Image, text: str, x: int, y: int, size: float, colour: tuple[int, int, int] = INK) -> None:
    cv2.putText(canvas, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)


def _draw_bar(
    canvas: Image, name: str, value: float, low: float, colour: tuple[int, int, int], left: int, top: int
) -> None:
    """A bar from 0 to `value` on an axis from `low` to 1."""
    width, height = 160, 18
    x = [left + round((v - low) / (1 - low) * width) for v in (0.0, value)]
    _write(canvas, f"{name} {value:+.2f}", left, top + 10, 0.5)
    cv2.rectangle(canvas, (left, top + 22), (left + width, top + 22 + height), FAINT, 1)
    cv2.rectangle(canvas, (min(x), top + 22), (max(x), top + 22 + height), colour, -1)
