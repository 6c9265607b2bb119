"""Videos of episodes: H.264 mp4 files that a browser plays, and small animated previews of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from wm.run.files import atomic
from wm.show.videos.canvas import Image

PREVIEW_SECONDS = 10
"""Length of a preview in seconds."""
PREVIEW_FPS = 12.5
"""Frames per second of a preview, about: it shows one of a whole number of frames."""
PREVIEW_BYTES = 2_000_000
"""Maximum size of a preview in bytes, since it loads with the page that shows it."""
PREVIEW_SIZES = ((800, 70), (800, 45), (640, 40), (480, 40), (480, 20), (320, 20), (240, 10))
"""Widths in pixels and qualities (0 to 100) of a preview, in order of preference."""


def write_video(path: Path, frames: Iterable[Image], fps: int, *, crf: int = 23, every: int = 1) -> int:
    """Encodes frames u8[H, W, 3] (RGB, H and W even) at real speed.

    Args:
        path: The mp4 to write.
        frames: The frames.
        fps: Frames per second.
        crf: H.264's quality, 0 (best) to 51.
        every: Encode one of this many frames.

    Returns:
        The number of frames before skipping.
    """
    count = 0
    with (
        atomic(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as file,
    ):
        stream = file.add_stream("libx264", rate=Fraction(fps, every), options={"crf": str(crf), "preset": "veryfast"})
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            if count == 0:
                stream.height, stream.width = frame.shape[:2]
            if count % every == 0:
                file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            count += 1
        file.mux(stream.encode())
    return count


class Preview:
    """A small animated WebP of the first ten seconds of a video: READMEs show pictures, not videos."""

    def __init__(self, fps: int) -> None:
        """Takes the frames per second of the video."""
        self._fps, self._every = fps, max(1, round(fps / PREVIEW_FPS))
        self._frames: list[Image] = []  # BGR, as OpenCV encodes
        self._seen = 0

    def watch(self, frames: Iterable[Image]) -> Iterator[Image]:
        """Yields frames u8[H, W, 3] unchanged, and stores those of the preview."""
        for frame in frames:
            if self._seen < PREVIEW_SECONDS * self._fps and self._seen % self._every == 0:
                self._frames.append(_shrink(frame[..., ::-1], PREVIEW_SIZES[0][0]))
            self._seen += 1
            yield frame

    def write(self, path: Path) -> None:
        """Writes the preview with the first of `PREVIEW_SIZES` that fits into 2 MB."""
        for width, quality in PREVIEW_SIZES:
            encoded = self._encode(width, quality)
            if len(encoded) <= PREVIEW_BYTES:
                break
        with atomic(path) as temporary:
            temporary.write_bytes(encoded)

    def _encode(self, width: int, quality: int) -> bytes:
        animation = cv2.Animation()
        animation.durations = [self._every * 1000 // self._fps] * len(self._frames)
        animation.frames = [_shrink(frame, width) for frame in self._frames]
        done, data = cv2.imencodeanimation(".webp", animation, [cv2.IMWRITE_WEBP_QUALITY, quality])
        assert done
        return bytes(data)


def _shrink(frame: Image, width: int) -> Image:
    """A frame at most `width` across."""
    scale = width / frame.shape[1]
    if scale >= 1:
        return np.ascontiguousarray(frame)
    small = cv2.resize(frame, (width, round(frame.shape[0] * scale)), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8)
