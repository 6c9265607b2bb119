from pathlib import Path

import av
import cv2
import numpy as np

from wm.show.plots import plot_curve, plot_score
from wm.show.video import CANVAS, FPS, compose, write_video


def test_video_is_h264_at_real_speed_with_true_colours(tmp_path: Path) -> None:
    red = np.full((64, 96, 3), (200, 30, 30), np.uint8)
    assert write_video(tmp_path / "a.mp4", (red for _ in range(10))) == 10
    with av.open(str(tmp_path / "a.mp4")) as video:
        stream = video.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == FPS
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 10
    assert np.abs(frames[5].astype(int) - red).max() < 12


def test_a_composed_frame_shows_all_parts_in_their_places() -> None:
    camera = np.full((400, 600, 3), (10, 200, 10), np.uint8)
    seen = np.full((64, 64, 3), (200, 10, 10), np.uint8)
    made = np.full((64, 64, 3), (10, 10, 200), np.uint8)
    frame = compose(camera, seen, made, np.array([-1, 1, 0], np.float32), 123.4, 56)
    assert frame.shape == (*CANVAS, 3)
    assert frame.shape[0] % 2 == frame.shape[1] % 2 == 0
    assert (frame[200, 300] == (10, 200, 10)).all()
    assert (frame[130, 850] == (200, 10, 10)).all()
    assert (frame[380, 850] == (10, 10, 200)).all()


def test_action_bars_grow_from_zero_to_the_value() -> None:
    blank = np.zeros((64, 64, 3), np.uint8)

    def blue(steer: float) -> np.ndarray:
        action = np.array([steer, 0, 0], np.float32)
        frame = compose(np.zeros((400, 600, 3), np.uint8), blank, blank, action, 0, 0).astype(int)
        columns = np.flatnonzero((frame[480:, :, 2] - frame[480:, :, 0] > 100).any(axis=0))
        return columns

    left, right = blue(-1.0), blue(1.0)
    assert left.max() <= right.min() + 1
    assert abs(len(left) - len(right)) <= 2
    assert abs(len(blue(0.5)) - len(right) / 2) <= 2


def test_plots_are_readable_pngs(tmp_path: Path) -> None:
    rows = [
        {
            "step": g,
            "env_steps": g * 1000,
            "seconds": g * 2.0,
            "best": 10 + g,
            "mean": g,
            "worst": -g,
            "sigma": 0.1,
        }
        | ({"select": 5.0 + g, "select_std": 2.0} if g % 2 == 0 else {})
        for g in range(1, 8)
    ]
    plot_curve(tmp_path / "plots" / "curve.png", rows)
    plot_score(tmp_path / "plots" / "score.png", [900.0, -20.0, 850.0], "a title")
    for name in ("curve", "score"):
        image = cv2.imread(str(tmp_path / "plots" / f"{name}.png"))
        assert image is not None
        assert image.std() > 5
