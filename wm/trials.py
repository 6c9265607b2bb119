"""A trial: one controller on one track. What workers do in the evolution, in selection and for the final score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wm.agent import Agent
from wm.envs import make_env
from wm.memory.cell import LSTMCell
from wm.policies import Driven
from wm.rollout import Outcome, Policy, score
from wm.vision.encoder import Encoder
from wm.workers import Workers


@dataclass(frozen=True)
class Trial:
    """One rollout to make: flat weights of C, the track's seed, the limits, and the chance a step of a disturbance."""

    theta: NDArray[np.floating]
    seed: int
    max_steps: int
    cut_after: int = 0
    disturb: float = 0.0


def make_player(env_id: str, graph: bytes, cell: Mapping[str, NDArray[np.float32]]) -> Callable[[Trial], Outcome]:
    """Builds what a worker needs once: the environment, V and M.

    Args:
        env_id: Gymnasium id of a CarRacing.
        graph: V's encoder as `wm.vision.encoder.encoder_graph` makes it.
        cell: M's weights as `wm.memory.cell.LSTMCell` takes them.

    Returns:
        The function that plays a trial.
    """
    env = make_env(env_id)
    encoder, memory = Encoder(graph), LSTMCell(cell)

    def play(trial: Trial) -> Outcome:
        agent = Agent(encoder, memory, trial.theta)
        policy: Policy = Driven(env.action_space, agent, trial.disturb) if trial.disturb else agent
        # The bursts follow from the track: all candidates of a generation meet the same ones.
        rng = np.random.default_rng(trial.seed)
        return score(env, policy, seed=trial.seed, max_steps=trial.max_steps, cut_after=trial.cut_after, rng=rng)

    return play


def fitness(outcome: Outcome, max_steps: int, step_cost: float) -> float:
    """A trial's worth in the evolution: its return; a cut one is charged for the steps that it was not given."""
    return outcome.ret - (step_cost * (max_steps - outcome.steps) if outcome.cut else 0.0)


def select(
    workers: Workers, theta: NDArray[np.floating], tracks: Sequence[int], max_steps: int
) -> tuple[NDArray[np.float64], int]:
    """Plays one controller on each of the tracks, uncut: returns f64[tracks], and the steps it took."""
    outcomes = dict(workers.run([Trial(theta, track, max_steps) for track in tracks]))
    returns = np.array([outcomes[i].ret for i in range(len(tracks))])
    return returns, sum(outcome.steps for outcome in outcomes.values())
