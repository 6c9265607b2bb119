import cv2
import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wm.envs
from wm.envs.car_racing.preprocess import DASHBOARD_ROW, preprocess
from wm.envs.task import Preprocessed


def random_frame(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (96, 96, 3), np.uint8)


def test_shape_dtype_and_memory() -> None:
    frame = random_frame(0)
    before = frame.copy()
    small = preprocess(frame)
    assert small.shape == (64, 64, 3)
    assert small.dtype == np.uint8
    assert small.flags.c_contiguous
    assert not np.shares_memory(small, frame)
    np.testing.assert_array_equal(frame, before)


def test_transposed_frames_are_fine() -> None:
    # Stock's observation is a transposed view of pygame's memory.
    frame = random_frame(1)
    view = np.asfortranarray(frame.swapaxes(0, 1)).swapaxes(0, 1)
    np.testing.assert_array_equal(preprocess(view), preprocess(frame))


def test_the_dashboard_is_gone() -> None:
    frame, other = random_frame(2), random_frame(2)
    other[DASHBOARD_ROW:] = 0
    np.testing.assert_array_equal(preprocess(frame), preprocess(other))
    other[DASHBOARD_ROW - 1] = 0
    assert (preprocess(frame) != preprocess(other)).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 83), st.integers(0, 95))
def test_no_pixel_is_skipped(row: int, column: int) -> None:
    frame = np.zeros((96, 96, 3), np.uint8)
    frame[row, column] = 255
    share = preprocess(frame)[..., 0].sum() / 255 * (84 * 96) / (64 * 64)
    assert 0.5 < share < 1.7  # an area average would give 1


def test_plain_colours_stay_and_nothing_is_turned_over() -> None:
    frame = np.zeros((96, 96, 3), np.uint8)
    frame[:42, :, 0] = 200  # red above
    frame[:, :48, 2] = 100  # blue left
    small = preprocess(frame)
    np.testing.assert_array_equal(small[5, 5], [200, 0, 100])
    np.testing.assert_array_equal(small[5, 60], [200, 0, 0])
    np.testing.assert_array_equal(small[60, 5], [0, 0, 100])
    np.testing.assert_array_equal(small[60, 60], [0, 0, 0])


@pytest.mark.parametrize(
    ("frame", "named"),
    [
        (np.zeros((64, 64, 3), np.uint8), r"u8\[96, 96, 3\].*uint8\[64, 64, 3\]"),
        (np.zeros((3, 96, 96), np.uint8), r"uint8\[3, 96, 96\]"),
        (np.zeros((96, 96, 3), np.float32), r"float32\[96, 96, 3\]"),
        (np.zeros((1, 96, 96, 3), np.uint8), r"uint8\[1, 96, 96, 3\]"),
    ],
)
def test_bad_frames_are_named(frame: np.ndarray, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        preprocess(frame)


@pytest.mark.parametrize("env_id", ["wm/CarRacing-v3", "CarRacing-v3"])
def test_make_env_preprocesses_car_racing(env_id: str) -> None:
    env = wm.envs.make_env(env_id, max_episode_steps=3)
    assert isinstance(env, Preprocessed)
    assert env.observation_space == gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    frame, _ = env.reset(seed=0)
    assert env.observation_space.contains(frame)
    ends = []
    for _ in range(3):
        frame, _, _, truncated, _ = env.step(np.array([0, 1, 0], np.float32))
        assert env.observation_space.contains(frame)
        ends.append(truncated)
    assert ends == [False, False, True]
    env.close()


def test_make_env_passes_arguments_and_leaves_others_alone() -> None:
    assert isinstance(wm.envs.make_env("wm/CarRacing-v3", continuous=False).action_space, gymnasium.spaces.Discrete)
    env = wm.envs.make_env("CartPole-v1")
    assert env.observation_space.shape == (4,)
    assert env.reset(seed=0)[0].shape == (4,)


def test_the_dashboard_that_is_cropped_is_not_missed() -> None:
    whole = gymnasium.make("wm/CarRacing-v3")
    cropped = wm.envs.make_env("wm/CarRacing-v3")
    frame, small = whole.reset(seed=3)[0], cropped.reset(seed=3)[0]
    for step in range(120):
        np.testing.assert_array_equal(preprocess(frame), small)
        action = np.array([np.sin(step / 10), 0.3, 0], np.float32)
        (frame, reward, *_), (small, other, *_) = whole.step(action), cropped.step(action)
        assert reward == other
    assert frame[DASHBOARD_ROW:].any()
    assert not cropped.unwrapped.state[DASHBOARD_ROW:].any()  # type: ignore[attr-defined]


def test_the_picture_is_the_first_84_rows() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    np.testing.assert_array_equal(preprocess(frame), cv2.resize(frame[:84], (64, 64), interpolation=cv2.INTER_LINEAR))
