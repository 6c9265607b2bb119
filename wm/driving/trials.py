"""A trial: one controller on one track. Workers play trials for the evolution, the selection and the final score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wm.contracts import Policy, Workers
from wm.driving.loading import Models
from wm.driving.policies import Driven
from wm.driving.rollout import Outcome, play_episode


@dataclass(frozen=True)
class Trial:
    """One rollout to play.

    Attributes:
        theta: f[N], flat weights of C.
        seed: The track's seed.
        max_steps: Maximum length in steps.
        cut_after: End it after this many steps without a positive reward; 0: never.
        disturb: Probability per step that a burst of brownian actions begins.
    """

    theta: NDArray[np.floating]
    seed: int
    max_steps: int
    cut_after: int = 0
    disturb: float = 0.0


def make_player(models: Models, train: bool = True) -> Callable[[Trial], Outcome]:
    """Builds a worker that plays trials: it makes the environment, V and M once.

    Args:
        models: The task, V, M and C's layout.
        train: Play the environment to train on, or the one to score on.

    Returns:
        A function that plays a trial.
    """
    env, agents = models.task.make(train), models.agents()

    def play(trial: Trial) -> Outcome:
        agent = agents(trial.theta)
        policy: Policy = Driven(env.action_space, agent, trial.disturb) if trial.disturb else agent
        # The track's seed fixes the bursts, so that all candidates of a generation get the same ones.
        rng = np.random.default_rng(trial.seed)
        return play_episode(env, policy, seed=trial.seed, max_steps=trial.max_steps, cut_after=trial.cut_after, rng=rng)

    return play


def fitness(outcome: Outcome, max_steps: int, step_cost: float) -> float:
    """Fitness of a trial: its return, minus `step_cost` for each step that a cut trial did not drive."""
    return outcome.ret - (step_cost * (max_steps - outcome.steps) if outcome.cut else 0.0)


def select(
    workers: Workers, theta: NDArray[np.floating], tracks: Sequence[int], max_steps: int
) -> tuple[NDArray[np.float64], int]:
    """Plays one controller on each of the tracks, uncut: returns f64[tracks], and the number of steps."""
    outcomes = dict(workers.run([Trial(theta, track, max_steps) for track in tracks]))
    returns = np.array([outcomes[i].ret for i in range(len(tracks))])
    return returns, sum(outcome.steps for outcome in outcomes.values())
