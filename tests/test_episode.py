"""Episode: what it takes, what it refuses, and that its digest covers everything."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from wm.store.episode import Episode


def episode(**changed: Any) -> Episode:
    fields: dict[str, Any] = {
        "index": 3,
        "seed": 1003,
        "policy": "brownian",
        "env_id": "wm/CarRacing-v3",
        "env_version": "1.4.0",
        "observations": np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3),
        "actions": np.array([[0.0, 0.5, 0.25], [0.1, 0.5, 0.0], [-0.5, 1.0, 0.0]], np.float32),
        "rewards": np.array([-0.1, 3.4, -0.1], np.float32),
        "terminated": False,
        "truncated": True,
    }
    return Episode(**{**fields, **changed})


def test_length_and_return() -> None:
    assert episode().length == 3
    assert episode().ret == pytest.approx(3.2)


def test_the_return_is_summed_in_double_precision() -> None:
    steps = 100_000
    long = episode(
        observations=np.zeros((steps + 1, 1), np.uint8),
        actions=np.zeros((steps, 1), np.float32),
        rewards=np.full(steps, -0.1, np.float32),
    )
    assert long.ret == pytest.approx(steps * float(np.float32(-0.1)), rel=1e-12)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"observations": np.zeros((3, 2), np.uint8)}, "one observation more"),
        ({"observations": np.zeros((5, 2), np.uint8)}, "one observation more"),
        ({"actions": np.zeros((2, 3), np.float32)}, "as many actions"),
        ({"actions": np.full((3, 3), np.nan, np.float32)}, "actions hold a value that is not finite"),
        ({"rewards": np.array([0, np.inf, 0], np.float32)}, "rewards hold a value that is not finite"),
        ({"observations": np.full((4, 2), np.nan)}, "observations hold a value that is not finite"),
        ({"rewards": np.zeros(3, np.float64)}, "not float32"),
        ({"rewards": np.zeros((3, 1), np.float32)}, "not float32"),
        ({"actions": np.array(["left"] * 3)}, "not numeric"),
        ({"actions": np.array([None] * 3)}, "not numeric"),
        ({"index": -1}, "negative"),
        ({"seed": -1}, "negative"),
    ],
)
def test_refuses(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        episode(**changed)


def test_refuses_an_episode_without_steps() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        episode(
            observations=np.zeros((1, 2), np.uint8),
            actions=np.zeros((0, 3), np.float32),
            rewards=np.zeros(0, np.float32),
        )


def last_changed(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values.reshape(-1)[-1] += 1
    return values


@pytest.mark.parametrize(
    "changed",
    [
        {"index": 4},
        {"seed": 1004},
        {"policy": "uniform"},
        {"env_id": "CarRacing-v3"},
        {"env_version": "1.4.1"},
        {"terminated": True},
        {"truncated": False},
        {"observations": last_changed(episode().observations)},
        {"observations": episode().observations.astype(np.int8)},
        {"observations": episode().observations.reshape(4, 12)},
        {"actions": last_changed(episode().actions)},
        {"rewards": last_changed(episode().rewards)},
    ],
)
def test_the_digest_covers_everything(changed: dict[str, Any]) -> None:
    assert replace(episode(), **changed).digest() != episode().digest()


def test_the_digest_depends_on_the_content_only() -> None:
    backwards = episode().observations[::-1]
    same = episode(observations=np.ascontiguousarray(backwards)[::-1])
    assert not same.observations.flags.c_contiguous
    assert same.digest() == episode().digest()
