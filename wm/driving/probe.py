"""The probe: a linear map from C's features to the true state in the simulator, as the task's truth tells it.

A controller drives with random bursts of brownian actions. Each step records C's input and the true state. Ridge
regression is fitted to some of the episodes and tested on the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from wm.config.earlier import LEFT_OUT
from wm.config.seeds import PROBE_SEEDS, track_seeds
from wm.config.vmc import CollectConfig, ProbeConfig
from wm.contracts import Policy
from wm.driving.agent import Agent
from wm.driving.loading import Models
from wm.driving.policies import Driven
from wm.driving.rollout import play_episode
from wm.envs.task import Task, Truth
from wm.run.errors import UserError
from wm.run.schema import NUMBER, Schema

Array = NDArray[np.float64]

FLAT = 1e-6
"""Standard deviation below which a target counts as constant, so that its R² is undefined."""


class Record(NamedTuple):
    """An episode: `features` f32[T,F], C's inputs, and `states` f64[T,K] at the same moments."""

    features: NDArray[np.float32]
    states: Array


class Recorder:
    """Wraps a policy and records at each step the agent's features and the true state."""

    def __init__(self, env: gym.Env[Any, Any], truth: Truth, policy: Policy, agent: Agent) -> None:
        """Takes the environment, its truth, the policy that drives, and the agent in it whose features are recorded."""
        self._env, self._truth, self._policy, self._agent = env, truth, policy, agent

    def reset(self, rng: np.random.Generator | None = None) -> None:
        """Starts an episode; the environment has begun it."""
        self._policy.reset(rng)
        self._state = self._truth.watch(self._env)
        self._features: list[NDArray[np.float32]] = []
        self._states: list[Array] = []

    def act(self, observation: Any) -> Any:
        """The policy's action."""
        action = self._policy.act(observation)
        self._features.append(self._agent.features.copy())
        self._states.append(self._state())
        return action

    def record(self) -> Record:
        """The episode so far."""
        return Record(np.array(self._features), np.array(self._states))


def make_prober(models: Models, theta: NDArray[np.floating], max_steps: int, seed: int) -> Callable[[int], Record]:
    """Builds a worker that drives probe tracks.

    Args:
        models: The task, V and M, as `wm.driving.loading.load_acting` gives them with `theta`.
        theta: C's weights.
        max_steps: Maximum length of an episode.
        seed: The run's seed.

    Returns:
        A function that drives the episode of an index. Seed and index determine the track and the bursts.
    """
    env, agent = models.task.make(), models.agents()(theta)
    recorder = Recorder(env, truth_of(models.task), Driven(env.action_space, agent, CollectConfig.bursts), agent)
    tracks = track_seeds(PROBE_SEEDS, seed)

    def work(index: int) -> Record:
        track = tracks[index]
        play_episode(env, recorder, seed=track, max_steps=max_steps, rng=np.random.default_rng(track))
        return recorder.record()

    return work


def truth_of(task: Task) -> Truth:
    """The task's truth; UserError when it has none."""
    if task.truth is None:
        raise UserError(f"{task.title} has no true state to probe: probe another environment.")
    return task.truth


def ridge(x: Array, y: Array, penalty: float) -> tuple[Array, Array]:
    """Ridge regression of y f64[N,K] on x f64[N,F]: weights w f64[F,K] and biases b f64[K], with y ≈ x @ w + b.

    It minimises the squared error summed over the N rows plus `penalty` times the squared weights of the features
    standardised to mean 0 and variance 1. Biases are not penalised.
    """
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6  # a unit of h may be constant
    standard = (x - mean) / scale
    gram = standard.T @ standard + penalty * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, standard.T @ (y - y.mean(axis=0))) / scale[:, None]
    return weights, y.mean(axis=0) - mean @ weights


def split(episodes: int, share: float) -> int:
    """Number of episodes to fit, of at least two: all but the fraction `share`, with at least one on each side."""
    return min(max(round(episodes * (1 - share)), 1), episodes - 1)


def counting(states: Array, truth: Truth, config: ProbeConfig) -> NDArray[np.bool_]:
    """Mask bool[T] of the steps to fit or test: those that count, after the first ones."""
    counts = truth.counts(states)
    counts[: config.start_after] = False
    return counts


def probe(records: Sequence[Record], z: int, truth: Truth, config: ProbeConfig) -> dict[str, Any]:
    """Fits the regression to the first episodes and tests it on the last ones: on z, on h and on both.

    Args:
        records: At least two episodes.
        z: Z, size of z; the rest of the features is h.
        truth: What the states are, and which of them count.
        config: Which steps count, the split and the penalty.

    Returns:
        The fields `episodes`, `steps`, `left_out` and `targets` of probe.json as plain values (see docs/formats.md).

    Raises:
        UserError: No step of the fit or of the test counts.
    """
    fitted = split(len(records), config.validation)
    counts = [counting(record.states, truth, config) for record in records]
    sides = []
    for part in (slice(fitted), slice(fitted, None)):
        features, states = (
            np.concatenate([getattr(r, name)[c] for r, c in zip(records[part], counts[part], strict=True)])
            for name in Record._fields
        )
        if not len(features):
            raise UserError(
                f"no step is left to probe, since none counts ({truth.left_out}) or the episodes ended before step "
                f"{config.start_after}: give more --episodes, fewer --start-after or another --driver."
            )
        sides.append((features.astype(np.float64), states))
    (x, y), (test_x, test_y) = sides
    spread = test_y.std(axis=0)
    targets = [
        {"name": name, "unit": unit, "std": std, "r2": {}, "rmse": {}}
        for (name, unit), std in zip(truth.targets.items(), spread.tolist(), strict=True)
    ]
    for features_of, columns in {"z": slice(z), "h": slice(z, None), "[z; h]": slice(None)}.items():
        weights, bias = ridge(x[:, columns], y, config.penalty)
        square = np.square(test_y - test_x[:, columns] @ weights - bias).mean(axis=0)
        for target, error, std in zip(targets, square.tolist(), spread.tolist(), strict=True):
            target["r2"][features_of] = 1 - error / std**2 if std > FLAT else None
            target["rmse"][features_of] = math.sqrt(error)
    return {
        "episodes": {"fitted": fitted, "tested": len(records) - fitted},
        "steps": {"fitted": len(x), "tested": len(test_x), "left_out": sum(int((~c).sum()) for c in counts)},
        "left_out": truth.left_out,
        "targets": targets,
    }


PROBE: Schema = {
    "config": {"start_after": int},
    "left_out?": str,
    "episodes": {"fitted": int, "tested": int},
    "steps": {"fitted": int, "tested": int, "left_out": int},
    "targets": [
        {
            **{"name": str, "unit": str, "std": NUMBER},
            "r2": dict.fromkeys(("z", "h", "[z; h]"), (*NUMBER, type(None))),
            "rmse": dict.fromkeys(("z", "h", "[z; h]"), NUMBER),
        }
    ],
    "made_from": {...: str},
}
"""Schema of the fields of probe.json that are read again. Stage probe writes it."""

HEADER = ("what", "unit", "std", "R²: z", "h", "[z; h]", "error: z", "h", "[z; h]")
"""Header of the table of `rows`."""


def rows(found: dict[str, Any]) -> list[list[str]]:
    """The result of `probe` as a table: R² and root mean square error of each target; "-" where R² is undefined."""
    return [
        [
            *(target["name"], target["unit"], f"{target['std']:.3g}"),
            *("-" if r2 is None else f"{r2:.2f}" for r2 in target["r2"].values()),
            *(f"{error:.3g}" for error in target["rmse"].values()),
        ]
        for target in found["targets"]
    ]


def describe(found: dict[str, Any]) -> str:
    """The numbers of fitted, tested and left-out steps, in one sentence."""
    episodes, steps = found["episodes"], found["steps"]
    return (
        f"Fitted to {steps['fitted']:,} steps (episodes: {episodes['fitted']}), tested on {steps['tested']:,} (other "
        f"episodes: {episodes['tested']}); {steps['left_out']:,} steps are left out: the first "
        f"{found['config']['start_after']} of each episode, and those {found.get('left_out', LEFT_OUT)}."
    )
