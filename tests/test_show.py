from collections.abc import Iterable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from wm.envs.action import Action
from wm.show.plots.curves import plot_curve, plot_score
from wm.show.videos.canvas import (
    FOOTER,
    GROUND,
    HEADER,
    LINES,
    MOST_CELLS,
    PANE,
    PLOT,
    READINGS_FROM,
    Bar,
    Curves,
    Image,
    Moment,
    Pane,
    featured,
    grid,
    side_by_side,
)
from wm.show.videos.video import Preview, write_video
from wm.show.videos.views import bars


def test_video_is_h264_at_real_speed_with_true_colours(tmp_path: Path) -> None:
    red = np.full((64, 96, 3), (200, 30, 30), np.uint8)
    assert write_video(tmp_path / "a.mp4", (red for _ in range(10)), FPS) == 10
    with av.open(str(tmp_path / "a.mp4")) as video:
        stream = video.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == FPS
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 10
    assert np.abs(frames[5].astype(int) - red).max() < 12


def test_a_video_can_be_thinned(tmp_path: Path) -> None:
    grey = np.full((64, 96, 3), 100, np.uint8)
    assert write_video(tmp_path / "a.mp4", (grey for _ in range(11)), FPS, every=2) == 11
    with av.open(str(tmp_path / "a.mp4")) as video:
        assert video.streams.video[0].average_rate == FPS / 2
        assert len(list(video.decode(video=0))) == 6


def watched(frames: Iterable[Image], path: Path) -> tuple[int, cv2.Animation]:
    """The preview of some frames: its size in bytes, and what is in it."""
    preview = Preview(FPS)
    for _ in preview.watch(frames):
        pass
    preview.write(path)
    done, animation = cv2.imreadanimation(str(path))
    assert done
    return path.stat().st_size, animation


def test_a_preview_is_the_first_ten_seconds_in_true_colours(tmp_path: Path) -> None:
    def frames() -> Iterable[Image]:
        for number in range(700):
            yield np.full((100, 200, 3), (200, 30, 30) if number < 250 else (30, 30, 200), np.uint8)

    _, animation = watched(frames(), tmp_path / "a.webp")
    assert sum(animation.durations) == 10_000 or len(animation.frames) < 125  # equal frames are stored once
    first, last = (cv2.cvtColor(animation.frames[k][..., :3], cv2.COLOR_BGR2RGB) for k in (0, -1))
    assert first.shape == (100, 200, 3)
    assert np.abs(first.astype(int) - (200, 30, 30)).max() < 12
    assert np.abs(last.astype(int) - (30, 30, 200)).max() < 12


def test_a_preview_that_weighs_too_much_is_made_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wm.show.videos.video.PREVIEW_BYTES", 120_000)
    rng = np.random.default_rng(0)
    frames = (rng.integers(0, 256, (240, 720, 3)).astype(np.uint8) for _ in range(40))
    size, animation = watched(frames, tmp_path / "a.webp")
    assert size <= 120_000
    assert len(animation.frames) == 10
    assert animation.frames[0].shape[1] < 720


def one_colour(*colour: int, size: tuple[int, int] = (64, 64)) -> Image:
    return np.full((*size, 3), colour, np.uint8)


FPS = 50
RED, GREEN, BLUE = (200, 10, 10), (10, 200, 10), (10, 10, 200)
STILL = (Bar("power +0.00", 0.0, 0.0, 1.0),)


def moment(bars: tuple[Bar, ...] = STILL, curves: tuple[Curves, ...] = ()) -> Moment:
    camera = one_colour(*GREEN, size=(400, 600))
    panes = (Pane("camera", camera), Pane("V sees", one_colour(*RED)), Pane("V reconstructs", one_colour(*BLUE)))
    return Moment(panes, bars, ("score 123", "step 56", "speed 12 m/s"), curves, aspect=10 / 7)


def test_a_featured_frame_shows_all_parts_in_their_places() -> None:
    frame = featured(moment())
    assert frame.shape == (576, 972, 3)
    assert (frame[200, 300] == GREEN).all()
    assert (frame[130, 850] == RED).all()
    assert (frame[380, 850] == BLUE).all()
    assert (frame[500:, 560:700] > 200).any()  # the readings


def test_a_row_of_pictures_with_curves() -> None:
    rising = Curves("distance", {"dream": [0.0, 1.0, 2.0, 3.0], "start kept": [0.0] * 4}, seconds=0.08, rate=FPS)
    frame = side_by_side(moment(curves=(rising, rising)))
    assert frame.shape[0] % 2 == frame.shape[1] % 2 == 0
    for x, colour in ((200, GREEN), (620, RED), (1030, BLUE)):
        assert (frame[HEADER + 140, x] == colour).all()
    bottom = HEADER + 280
    for left in (0, frame.shape[1] // 2):
        plot = frame[bottom + 58 : bottom + PLOT, left : left + frame.shape[1] // 2]
        rows, columns = np.nonzero((plot == LINES[0]).all(axis=-1))
        assert rows[columns.argmin()] > rows[columns.argmax()] + 30  # it rises to the right
    assert side_by_side(moment()).shape[0] == frame.shape[0] - PLOT


def test_readings_stay_within_the_frame() -> None:
    narrow = Moment(moment().panes[:2], STILL, ("score 912", "step 1000", "speed 100 m/s"))
    bright = np.asarray((side_by_side(narrow)[-FOOTER:] > 180).all(axis=-1))
    assert bright[:, 700:].any()  # the speed
    assert not bright[:, -4:].any()


def test_readings_stay_within_a_frame_of_two_narrow_pictures() -> None:
    narrow = Moment(moment().panes[:2], (), ("score 912", "step 1000", "speed 100 m/s"), aspect=0.5)
    frame = side_by_side(narrow)
    assert frame.shape[1] < READINGS_FROM
    bright = np.asarray((frame[-FOOTER:] > 100).all(axis=-1))
    assert bright.any()
    assert not bright[:, -4:].any()
    bars = side_by_side(Moment(narrow.panes, STILL, (), aspect=0.5))[-FOOTER:]
    columns = np.flatnonzero((bars > GROUND + 12).any(axis=(0, 2)))
    assert columns.max() < np.flatnonzero(bright.any(axis=0)).min()


def test_a_missing_picture_leaves_its_place_dark() -> None:
    empty = Moment((Pane("none", None),), STILL, ("step 1",))
    assert side_by_side(empty)[HEADER : HEADER + PANE[1], 30:300].max() < 60


@pytest.mark.parametrize(("count", "columns"), [(2, 2), (4, 2), (7, 4), (9, 3), (MOST_CELLS, 8)])
def test_a_grid_shows_every_track(count: int, columns: int) -> None:
    colours = [(5 * i, 255 - 5 * i, 40) for i in range(count)]
    moments = {
        f"track {i}": Moment(
            (Pane("camera", one_colour(*c, size=(400, 600))),), STILL, ("score 1", "step 2"), aspect=10 / 7
        )
        for i, c in enumerate(colours)
    }
    frame = grid(moments)
    assert frame.shape[0] % 2 == frame.shape[1] % 2 == 0
    assert frame.shape[1] <= 1440
    left = set()
    for colour in colours:
        rows, across = np.nonzero((frame == colour).all(axis=-1))
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(across) + 1) > 10_000
        left.add(int(across.min()))
    assert len(left) == columns


@pytest.mark.parametrize("count", [2, 4, 9, MOST_CELLS])
def test_a_grid_of_several_pictures_says_which_is_which_and_show_their_curves(count: int) -> None:
    """Pictures of grass that touch each other look like one; and what a comparison is about are its curves."""
    rising = Curves(
        "distance of z from the real z, in 18 dimensions", {"dream": [0.0, 1.0, 2.0]}, seconds=0.06, rate=FPS
    )
    frame = grid({f"track {i}": moment(curves=(rising, rising)) for i in range(count)})
    assert frame.shape[1] <= 1440
    bright = np.asarray((frame > 180).all(axis=-1))  # letters
    line = np.asarray((frame == LINES[0]).all(axis=-1))
    rows, columns = (sorted(set(found.tolist())) for found in np.nonzero((frame == RED).all(axis=-1)))
    tops = [row for row in rows if row - 1 not in rows]
    lefts = [column for column in columns if column - 1 not in columns]
    wide, high = columns.index(lefts[1]) if len(lefts) > 1 else len(columns), rows[-1] + 1 - tops[-1]
    assert len(tops) * len(lefts) >= count
    down = tops[1] - tops[0] if len(tops) > 1 else frame.shape[0]
    for i in range(count):
        top, left = tops[i // len(lefts)], lefts[i % len(lefts)]
        for neighbour in (left - 2, left + wide + 1):
            assert (frame[top : top + high, neighbour] < 60).all()  # dark between the pictures
        for picture in (left - wide, left, left + wide):
            assert bright[top + high : top + high + 25, picture : picture + wide].any()  # its caption
        found = line[top + high : top + down, left - wide : left + 2 * wide]
        y, x = np.nonzero(found)
        assert y[x.argmin()] > y[x.argmax()] + 20  # it rises to the right
    assert not bright[:, -4:].any()  # nothing runs out of the frame


def test_bars_grow_from_zero_to_the_value() -> None:
    def blue(value: float, low: float = -1.0, others: int = 2) -> NDArray[np.intp]:
        bars = (Bar("turn", value, low, 1.0), *[Bar("other", 0.0, 0.0, 1.0)] * others)
        frame = featured(moment(bars))[480:, :560].astype(int)
        return np.flatnonzero((frame[..., 2] - frame[..., 0] > 100).any(axis=0))

    left, right = blue(-1.0), blue(1.0)
    assert left.max() <= right.min() + 1
    assert abs(len(left) - len(right)) <= 2
    assert abs(len(blue(0.5)) - len(right) / 2) <= 2
    assert len(blue(1.0, low=0.25)) == len(blue(1.0, low=0.0)) > len(right)  # 0 is not on its axis
    assert len(blue(1.0, others=17)) < len(right) / 4  # there is room for many


def test_an_action_is_a_bar_a_value_or_a_bar_a_choice() -> None:
    box = Action(("turn", "power"), ("tanh", "half"), (-2.0, 0.0), (2.0, 1.0))
    assert bars(box, np.array([-1, 0.5], np.float32)) == (
        Bar("turn -1.00", -1.0, -2.0, 2.0),
        Bar("power +0.50", 0.5, 0.0, 1.0),
    )
    assert bars(Action(("stay", "go"), first=1), 2) == (Bar("stay", 0.0, 0.0, 1.0), Bar("go", 1.0, 0.0, 1.0))


def test_plots_are_readable_pngs(tmp_path: Path) -> None:
    rows = [
        {"step": g, "env_steps": g * 1000, "seconds": g * 2.0, "best": 10 + g, "mean": g, "worst": -g, "sigma": 0.1}
        | ({"select": 5.0 + g, "select_std": 2.0} if g % 2 == 0 else {})
        for g in range(1, 8)
    ]
    plot_curve(tmp_path / "plots" / "curve.png", rows)
    plot_score(tmp_path / "plots" / "score.png", [900.0, -20.0, 850.0], "a title")
    for name in ("curve", "score"):
        image = cv2.imread(str(tmp_path / "plots" / f"{name}.png"))
        assert image is not None
        assert image.std() > 5
