"""The one environment loop, on a small environment whose every number is known."""

from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import pytest

from wm.driving.rollout import Step, play, play_episode


class Count(gymnasium.Env[int, int]):
    """Observes 100 seed + the number of steps; rewards at some steps; ends where it is told to."""

    def __init__(self, rewarded: tuple[int, ...] = (), terminates: int = 0, truncates: int = 0) -> None:
        self._rewarded, self._terminates, self._truncates = rewarded, terminates, truncates
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        assert seed is not None
        self._first = 100 * seed
        self._t = 0
        return self._first, {}

    def step(self, action: int) -> tuple[int, Any, bool, bool, dict[str, Any]]:
        self._t += 1
        self.steps += 1
        reward = np.float64(10.0 if self._t in self._rewarded else -0.5)
        return self._first + self._t, reward, self._t == self._terminates, self._t == self._truncates, {}


class Echo:
    """Acts with its observation plus one; keeps what it was reset with."""

    def __init__(self) -> None:
        self.resets: list[np.random.Generator | None] = []

    def reset(self, rng: np.random.Generator | None = None) -> None:
        self.resets.append(rng)

    def act(self, observation: int) -> int:
        return observation + 1


def steps(env: Count, **options: Any) -> list[Step]:
    return list(play(env, Echo(), seed=3, **options))


def test_observation_action_and_reward_belong_together() -> None:
    found = steps(Count(rewarded=(2,)), max_steps=3)
    assert found == [
        Step(1, 300, 301, -0.5, False, False, False, 301),
        Step(2, 301, 302, 10.0, False, False, False, 302),
        Step(3, 302, 303, -0.5, False, True, False, 303),
    ]
    assert {type(step.reward) for step in found} == {float}


def test_resets_the_policy_with_the_episodes_randomness() -> None:
    policy, rng = Echo(), np.random.default_rng(0)
    list(play(Count(), policy, seed=0, max_steps=2, rng=rng))
    assert policy.resets == [rng]


@pytest.mark.parametrize("max_steps", [5, 6, 100])
def test_termination(max_steps: int) -> None:
    found = steps(Count(terminates=5), max_steps=max_steps)
    assert len(found) == 5
    assert [step.terminated for step in found] == [False] * 4 + [True]
    assert not any(step.truncated or step.cut for step in found)  # terminated, even if it is the last step allowed


@pytest.mark.parametrize(("env", "max_steps"), [(Count(truncates=5), 100), (Count(), 5), (Count(truncates=5), 5)])
def test_truncation_by_the_environment_or_the_limit(env: Count, max_steps: int) -> None:
    found = steps(env, max_steps=max_steps)
    assert len(found) == 5
    assert [step.truncated for step in found] == [False] * 4 + [True]
    assert not any(step.terminated for step in found)
    assert env.steps == 5  # not one more


@pytest.mark.parametrize(
    ("rewarded", "length"),
    [((), 10), ((1,), 11), ((10,), 20), ((11,), 10), ((5, 15, 25), 35), (tuple(range(1, 95)), 100)],
)
def test_cut_after_so_many_steps_without_a_reward(rewarded: tuple[int, ...], length: int) -> None:
    found = steps(Count(rewarded=rewarded), max_steps=100, cut_after=10)
    assert len(found) == length
    assert [step.cut for step in found] == [False] * (length - 1) + [length < 100]
    assert found[-1].truncated == (length == 100)


def test_an_episode_that_ends_by_itself_is_not_cut() -> None:
    assert steps(Count(terminates=10), max_steps=100, cut_after=10)[-1][4:7] == (True, False, False)
    assert steps(Count(), max_steps=10, cut_after=10)[-1][4:7] == (False, True, False)


def test_score_is_what_play_adds_up_to() -> None:
    for cut_after in (0, 10):
        options = {"max_steps": 50, "cut_after": cut_after}
        env = Count(rewarded=(3, 7))
        found = steps(env, **options)
        outcome = play_episode(Count(rewarded=(3, 7)), Echo(), seed=3, max_steps=50, cut_after=cut_after)
        assert outcome.ret == sum(step.reward for step in found)
        assert outcome.steps == len(found)
        assert outcome.cut == found[-1].cut == (cut_after > 0)


def test_plays_again_from_the_seed() -> None:
    env = gymnasium.make("CartPole-v1")

    class Constant:
        def reset(self, rng: np.random.Generator | None = None) -> None: ...

        def act(self, observation: Any) -> int:
            return int(observation[2] > 0)

    first, second = (list(play(env, Constant(), seed=4, max_steps=60)) for _ in range(2))
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.following, b.following)
        np.testing.assert_array_equal(a.observation, b.observation)
    for a, b in pairwise(first):
        np.testing.assert_array_equal(a.following, b.observation)
