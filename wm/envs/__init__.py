"""The known tasks, make_env, and the registration of wm/CarRacing-v3 and of wm/Dream-v0, which lies in wm/dream/."""

from typing import Any

import gymnasium

from wm.config.names import DREAM_ENV
from wm.config.presets import FAST_ENV
from wm.envs.car_racing.task import CAR_RACING
from wm.envs.task import Task
from wm.run.errors import UserError
from wm.run.folder import Run

gymnasium.register(
    id=FAST_ENV, entry_point="wm.envs.car_racing.fast:FastCarRacing", max_episode_steps=1000, reward_threshold=900
)
# The dream needs torch, which these entry points import only when a dream is made.
gymnasium.register(
    id=DREAM_ENV, entry_point="wm.dream.env:make_dream_env", vector_entry_point="wm.dream.env:make_dream_vector_env"
)


TASKS: dict[str, Task] = {task.env_id: task for task in (CAR_RACING,)}
"""The known environments by their Gymnasium ids."""


def find_task(env_id: str) -> Task:
    """The task of an environment, by the id that it is scored or trained on; UserError when it is unknown."""
    for task in TASKS.values():
        if env_id in (task.env_id, task.train_id):
            return task
    raise UserError(f"environment {env_id!r} is unknown: choose one of {', '.join(TASKS)}.")


def task_of(run: Run) -> Task:
    """The task of a run folder, which its manifest names; UserError when it is unknown."""
    env_id = run.read_env() or CAR_RACING.env_id
    try:
        return find_task(env_id)
    except UserError as error:
        raise UserError(f"{run.manifest}: {error}") from error


def make_env(env_id: str, **options: Any) -> gymnasium.Env[Any, Any]:
    """Makes an environment; a known one observes what its V sees, any other is not changed.

    Args:
        env_id: Gymnasium's name, such as "CarRacing-v3" or "wm/CarRacing-v3".
        **options: For `gymnasium.make`: `render_mode`, `max_episode_steps`, the environment's own.
    """
    for task in TASKS.values():
        if env_id in (task.env_id, task.train_id):
            return task.make(env_id != task.env_id, **options)
    return gymnasium.make(env_id, disable_env_checker=True, **options)
