"""The environment loop: collection, evolution, selection, evaluation and replays all use `play`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from wm.contracts import Policy

Observation = Any
Action = Any


class Step(NamedTuple):
    """One environment step.

    Attributes:
        number: Number of the step, 1 for the first of the episode.
        observation: The observation before the action.
        action: The action.
        reward: The reward of the action.
        terminated: The environment's rules ended the episode.
        truncated: A time limit ended it, the environment's or `max_steps`.
        cut: It was ended after `cut_after` steps without a positive reward.
        following: The observation after the action.
    """

    number: int
    observation: Observation
    action: Action
    reward: float
    terminated: bool
    truncated: bool
    cut: bool
    following: Observation


@dataclass(frozen=True)
class Outcome:
    """The outcome of an episode.

    Attributes:
        ret: The return, the sum of rewards.
        steps: Number of environment steps.
        cut: Whether it was cut after `cut_after` steps without a positive reward.
    """

    ret: float
    steps: int
    cut: bool


def play(
    env: gym.Env[Any, Any],
    policy: Policy,
    *,
    seed: int,
    max_steps: int,
    rng: np.random.Generator | None = None,
    cut_after: int = 0,
) -> Iterator[Step]:
    """Plays one episode and yields its steps; the last one is terminated, truncated or cut.

    Args:
        env: The environment; it is reset with `seed`.
        policy: The policy; it is reset with `rng`.
        seed: The environment's seed, which fixes the episode, such as its track.
        max_steps: Maximum length of the episode, >= 1.
        rng: The policy's source of randomness.
        cut_after: End the episode after this many steps in a row without a positive reward; 0: never.
    """
    observation, _ = env.reset(seed=seed)
    policy.reset(rng)
    rewarded = 0
    for number in range(1, max_steps + 1):
        action = policy.act(observation)
        following, given, terminated, truncated, _ = env.step(action)
        reward = float(given)
        if reward > 0:
            rewarded = number
        truncated = not terminated and (truncated or number == max_steps)
        cut = not (terminated or truncated) and 0 < cut_after <= number - rewarded
        yield Step(number, observation, action, reward, terminated, truncated, cut, following)
        if terminated or truncated or cut:
            return
        observation = following


def play_episode(
    env: gym.Env[Any, Any],
    policy: Policy,
    *,
    seed: int,
    max_steps: int,
    cut_after: int = 0,
    rng: np.random.Generator | None = None,
) -> Outcome:
    """Plays one episode as `play` does and returns its outcome."""
    ret = 0.0
    for step in play(env, policy, seed=seed, max_steps=max_steps, rng=rng, cut_after=cut_after):
        ret += step.reward
    return Outcome(ret, step.number, step.cut)
