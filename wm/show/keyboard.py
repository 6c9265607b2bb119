"""The real environment by keyboard, in a window, with V's reconstruction beside the camera."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from itertools import combinations
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pygame

from wm.envs import task_of
from wm.envs.task import Task
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.show.videos.canvas import Image, Moment, Pane, side_by_side
from wm.show.videos.views import WorldModel, bars, read, seen_part

KEYS = {
    "left": (pygame.K_LEFT, ord("a")),
    "right": (pygame.K_RIGHT, ord("d")),
    "up": (pygame.K_UP, ord("w")),
    "down": (pygame.K_DOWN, ord("s")),
}
"""The keyboard's keys by the names that a task has for them, in both sets."""


def action_of(task: Task, held: Iterable[str]) -> Any:
    """The environment's action while the task's keys of these names are held.

    What they add to the action is added up within its bounds; of a discrete space the choice with the largest sum is
    taken, the first one if no key is held.
    """
    a = np.zeros(task.action.size, np.float32)
    for name in held:
        a += np.array(task.keys[name], np.float32)
    return task.action.to_env(task.action.clip(a))


def keys_to_action(task: Task) -> dict[tuple[int, ...], Any]:
    """The action for each combination of held keys, also across both sets."""
    known = {name: keys for name, keys in KEYS.items() if name in task.keys}
    keys = [key for pair in known.values() for key in pair]
    return {
        held: action_of(task, [name for name, pair in known.items() if any(key in held for key in pair)])
        for count in range(1, len(keys) + 1)
        for held in combinations(keys, count)
    }


class BesideReconstruction(gym.Wrapper[Any, Any, Any, Any]):
    """An environment whose `render` gives the camera and V's reconstruction; below action bars and readings."""

    def __init__(self, env: gym.Env[Any, Any], world: WorldModel) -> None:
        """Takes an environment made with render_mode="rgb_array", and the models."""
        super().__init__(env)
        self._world = world

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Starts an episode."""
        self._observation, info = self.env.reset(**kwargs)
        self._action, self._score, self._steps = action_of(self._world.task, ()), 0.0, 0
        return self._observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step; its data is stored for `render`."""
        self._observation, reward, terminated, truncated, info = self.env.step(action)
        self._action, self._score, self._steps = action, self._score + float(reward), self._steps + 1
        return self._observation, reward, terminated, truncated, info

    def render(self) -> Any:
        """u8[H, W, 3]."""
        camera: Image = np.asarray(self.env.render(), np.uint8)
        task = self._world.task
        seen = self._world.decode(self._world.encode(task.preprocess(self._observation)))
        panes = (seen_part(task, "camera", camera), Pane("V's reconstruction", seen, "of the same frame"))
        readings = (f"score {self._score:.0f}", f"step {self._steps}", *filter(None, [read(task, self.env)]))
        return side_by_side(Moment(panes, bars(task.action, self._action), readings, aspect=task.proportion))


def drive_by_keyboard(run: Run, track: int, car: Literal["stock", "fast"], controller: str = "controller") -> None:
    """Opens a window to drive a real track in, by the arrow keys or WASD, until it is closed or Escape is pressed.

    Args:
        run: The run whose V reconstructs.
        track: The track's seed.
        car: Rendering of V's input, stock or fast.
        controller: Name of the run's controller whose V it is.

    Raises:
        UserError: There is no display, a file of the run is missing, or the task has no keys.
    """
    task = task_of(run)
    if not task.keys:
        raise UserError(f"{task.title} has no keys to drive it by: drive its dream in a browser with `make play`.")
    try:
        pygame.display.init()
    except pygame.error as error:
        raise UserError(
            f"there is no display for a window ({error}): run this in a desktop session, "
            "or drive the dream in a browser with `make play`."
        ) from error
    env = gym.make(task.id(train=car == "fast"), render_mode="rgb_array", disable_env_checker=True)
    with warnings.catch_warnings():  # it warns about matplotlib's windows, which only its plots need
        warnings.simplefilter("ignore")
        from gymnasium.utils.play import play
    pygame.display.set_caption(f"{task.title}, track {track}: arrow keys or WASD drive, Escape closes")
    print("Drive with the arrow keys or WASD; Escape closes the window.")
    beside = BesideReconstruction(env, WorldModel(run, controller))
    play(beside, fps=task.fps, keys_to_action=keys_to_action(task), seed=track, noop=action_of(task, ()))
    env.close()
