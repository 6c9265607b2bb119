"""Collection of rollouts: the work of a worker, and the check of the episodes in a folder."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from wm.config.earlier import MEASURE
from wm.config.seeds import COLLECT_SEEDS, DRIVEN_FROM, SEEDS_PER_RUN, track_seeds
from wm.contracts import Policy
from wm.controller.basis import centred_basis
from wm.driving.loading import Models
from wm.driving.policies import Driven, choose, make_policy
from wm.driving.rollout import play
from wm.envs.task import Measure, Task
from wm.run.errors import DamageError, UserError
from wm.run.progress import Progress
from wm.run.schema import NUMBER, Schema, is_histogram
from wm.store.episode import Episode
from wm.store.shards import open_shard, pack_shard, read_episode


@dataclass(frozen=True)
class Driver:
    """A controller that drives episodes, and its disturbances.

    Attributes:
        models: The V and M that it acts on.
        theta: f32[N], its weights.
        bursts: Probability per step that a burst of brownian actions begins.
        spread: Standard deviation of Gaussian noise on the weights in every second episode, for features minus
            `centre`.
        centre: f64[F], a mean of [z; h]; unused without spread.
    """

    models: Models
    theta: NDArray[np.float32]
    bursts: float
    spread: float
    centre: NDArray[np.float64]

    def drawn(self, index: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """The weights f32[N] that drive the episode with this index."""
        if not self.spread or index % 2 == 0:
            return self.theta
        basis = centred_basis(self.centre, self.models.layout)
        away = basis.express(rng.normal(0, self.spread, basis.weights))  # `express` is linear
        return (self.theta + away).astype(np.float32)


@dataclass(frozen=True)
class Collected:
    """The episodes of one task.

    Attributes:
        shard: A shard's file with them, as `pack_shard` makes it.
        steps: Their steps in all.
    """

    shard: bytes
    steps: int


def make_collector(
    task: Task, policy: str, max_steps: int, seed: int, cut_after: int = 0, driver: Driver | None = None
) -> Callable[[Sequence[int]], Collected]:
    """Builds a worker that collects episodes. It writes no file: it may run on another machine.

    Args:
        task: The environment.
        policy: Name of a policy or a mixture in `wm.driving.policies`, or of the task's own.
        max_steps: Maximum length of an episode.
        seed: The run's seed.
        cut_after: End an episode after this many steps without a positive reward; 0: never.
        driver: The controller that drives the episodes from index `DRIVEN_FROM` on.

    Returns:
        A function that plays the episodes of given indices.
    """
    env = task.make()
    made = dict[str, Policy]()
    agents = None if driver is None else driver.models.agents()
    tracks = track_seeds(COLLECT_SEEDS, seed)

    def record(index: int) -> Episode:
        # All randomness of an episode comes from (seed, index), whichever worker records it.
        rng = np.random.default_rng([seed, index])
        name = choose(policy, task, rng) if index < DRIVEN_FROM else Driven.name
        if name == Driven.name:
            assert driver is not None
            assert agents is not None
            theta = driver.drawn(index, rng)
            policy_of_it: Policy = Driven(env.action_space, agents(theta), driver.bursts)
        else:
            if name not in made:
                made[name] = make_policy(name, task, env.action_space)
            policy_of_it = made[name]
        limits = {"max_steps": max_steps, "cut_after": cut_after}
        return record_episode(
            env, policy_of_it, name, measure=task.measure, index=index, seed=tracks[index], **limits, rng=rng
        )

    def work(indices: Sequence[int]) -> Collected:
        lengths = []

        def episodes() -> Iterator[Episode]:
            for index in indices:
                episode = record(index)
                lengths.append(episode.length)
                yield episode

        return Collected(pack_shard(episodes()), sum(lengths))

    return work


def record_episode(
    env: gym.Env[Any, Any],
    policy: Policy,
    name: str,
    *,
    measure: Measure | None = None,
    index: int,
    seed: int,
    max_steps: int,
    cut_after: int = 0,
    rng: np.random.Generator,
) -> Episode:
    """Plays and records one episode, with `name` as the name of its policy; a cut episode counts as truncated."""
    assert env.spec is not None
    steps, held = [], 0
    for step in play(env, policy, seed=seed, max_steps=max_steps, rng=rng, cut_after=cut_after):
        steps.append(step)
        held += measure is not None and measure.of(env)
    return Episode(
        index=index,
        seed=seed,
        policy=name,
        env_id=env.spec.id,
        env_version=gym.__version__,
        observations=np.stack([step.observation for step in steps] + [steps[-1].following]),
        actions=np.stack([step.action for step in steps]),
        rewards=np.array([step.reward for step in steps], np.float32),
        terminated=steps[-1].terminated,
        truncated=steps[-1].truncated or steps[-1].cut,
        measure=held / len(steps) if measure else float("nan"),
    )


def mismatch(row: Any, task: Task, policy: str, max_steps: int, seed: int, cut_after: int = 0) -> str:
    """Why an episode, a row of a shard's table, is not part of the collection with these options; "" when it is."""
    index, length, spec = int(row["index"]), int(row["length"]), spec_of(task.id(train=True))
    if row["env_id"].decode() != spec.id:
        return f"environment {row['env_id'].decode()}, not {spec.id}"
    if not 0 <= index < SEEDS_PER_RUN or row["seed"] != track_seeds(COLLECT_SEEDS, seed)[index]:
        return f"track {row['seed']}, which is not that of seed {seed}"
    wanted = choose(policy, task, np.random.default_rng([seed, index])) if index < DRIVEN_FROM else Driven.name
    if row["policy"].decode() != wanted:
        return f"policy {row['policy'].decode()}, not {wanted}"
    limit = min(max_steps, spec.max_episode_steps or max_steps)
    least = cut_after or limit  # of an episode that was ended
    if length > limit or (row["truncated"] and length < min(least, limit)):
        return f"{length} steps, which these limits do not allow"
    return ""


def spec_of(env_id: str) -> EnvSpec:
    """What Gymnasium knows of an environment; its own id lacks the module that `module:Env-v0` begins with."""
    module, _, name = env_id.rpartition(":")
    if module:  # which registers it
        importlib.import_module(module)
    return gym.spec(name)


def set_aside_damaged(folder: Path, mismatch: Callable[[Any], str] = lambda row: "") -> list[int]:
    """Reads every shard completely and moves the damaged ones to folder/damaged/; complete shards are never moved.

    Args:
        folder: Where the shards are.
        mismatch: Gives the reason why the episode of a row of a shard's table does not belong here; "" if it does.

    Returns:
        The indices of the complete episodes.

    Raises:
        UserError: A complete shard belongs to another collection, or has an episode of another shard. Nothing is moved.
        MachineError: The system refuses to read a shard, which is no sign of damage. Nothing is moved.
    """
    paths = sorted(folder.glob("[!.]*.h5"))
    found = dict[int, Path]()
    damages = dict[Path, DamageError]()
    with Progress("check shards", len(paths), unit="shard") as progress:
        for path in paths:
            progress.update()
            try:
                shard = open_shard(path)
                episodes = [read_episode(shard, row).index for row in range(len(shard.table))]
                shard.close()
            except DamageError as error:
                damages[path] = error
                continue
            for row, index in zip(shard.table, episodes, strict=True):
                if reason := mismatch(row):
                    raise UserError(
                        f"{path} belongs to another collection (its episode {index} has {reason}): choose another RUN "
                        "or RUNS, give the options with which it was made, move it away, or train V on the episodes "
                        f"that are there with `.venv/bin/python -m stages.vae --run {shlex.quote(str(folder.parent))}`."
                    )
                if index in found:
                    raise UserError(f"{found[index]} and {path} both hold episode {index}: move one of them away.")
                found[index] = path
    for path, damage in damages.items():
        set_aside(path)
        print(f"set aside in {folder / 'damaged'}: {damage}")
    return sorted(found)


def set_aside(path: Path) -> None:
    """Moves a file into damaged/ beside it, under a free name, since shards of all collections have the same names."""
    folder = path.parent / "damaged"
    folder.mkdir(exist_ok=True)
    target, number = folder / path.name, 1
    while target.exists():
        number += 1
        target = folder / f"{path.stem}-{number}{path.suffix}"
    path.rename(target)


SUMMARY: Schema = {
    **dict.fromkeys(("episodes", "frames"), int),
    **dict.fromkeys(("bytes", "return_mean", "return_std", "return_max"), NUMBER),
    "policies": {...: int},
    "measures?": {...: float},
    f"{MEASURE}?": (float, NoneType),
    "actions": [is_histogram],
    "returns?": is_histogram,
}
"""Schema of the fields of summary.json that are read again. Stage collect writes it."""
