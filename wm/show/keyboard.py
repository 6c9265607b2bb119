"""The real environment by keyboard, in a window, with V's reconstruction beside the camera."""

from __future__ import annotations

import warnings
from itertools import combinations
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pygame
from numpy.typing import NDArray

import wm.envs  # noqa: F401  registers wm/CarRacing-v3
from wm.config.names import FAST_ENV, STOCK_ENV
from wm.envs.car_racing.preprocess import preprocess
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.show.videos.canvas import FPS, Image, Moment, Pane, side_by_side
from wm.show.videos.views import WorldModel, speed_of, without_dashboard

Action = NDArray[np.float32]

KEYS = {
    "left": (pygame.K_LEFT, ord("a")),
    "right": (pygame.K_RIGHT, ord("d")),
    "gas": (pygame.K_UP, ord("w")),
    "brake": (pygame.K_DOWN, ord("s")),
}
"""The keys of each action, in both sets."""

GAS, BRAKE = 0.8, 0.8
"""Pedal values of a pressed key; at full gas the car spins in every bend."""


def keys_to_action() -> dict[tuple[int, ...], Action]:
    """The action for each combination of held keys, also across both sets; left and right cancel."""
    keys = [key for pair in KEYS.values() for key in pair]
    found = {}
    for count in range(1, len(keys) + 1):
        for held in combinations(keys, count):
            left, right, gas, brake = (any(key in held for key in pair) for pair in KEYS.values())
            found[held] = np.array([right - left, GAS * gas, BRAKE * brake], np.float32)
    return found


class BesideReconstruction(gym.Wrapper[Any, Any, Any, Any]):
    """CarRacing whose `render` gives the camera and V's reconstruction; below action bars, score, step and speed."""

    def __init__(self, env: gym.Env[Any, Any], world: WorldModel) -> None:
        """Takes an environment made with render_mode="rgb_array", and the models."""
        super().__init__(env)
        self._world = world

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Starts an episode."""
        self._observation, info = self.env.reset(**kwargs)
        self._action, self._score, self._steps = np.zeros(3, np.float32), 0.0, 0
        return self._observation, info

    def step(self, action: Action) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step; its data is stored for `render`."""
        self._observation, reward, terminated, truncated, info = self.env.step(action)
        self._action, self._score, self._steps = action, self._score + float(reward), self._steps + 1
        return self._observation, reward, terminated, truncated, info

    def render(self) -> Any:
        """u8[H, W, 3]."""
        camera: Image = np.asarray(self.env.render(), np.uint8)
        seen = self._world.decode(self._world.encode(preprocess(self._observation)))
        panes = (
            Pane("camera", without_dashboard(camera), "without the dashboard"),
            Pane("V's reconstruction", seen, "of the same frame"),
        )
        speed = f"speed {speed_of(self.env):.0f} m/s"
        return side_by_side(Moment(panes, self._action, (f"score {self._score:.0f}", f"step {self._steps}", speed)))


def drive_by_keyboard(run: Run, track: int, car: Literal["stock", "fast"]) -> None:
    """Opens a window to drive a real track in, by the arrow keys or WASD, until it is closed or Escape is pressed.

    Args:
        run: The run whose V reconstructs.
        track: The track's seed.
        car: Rendering of V's input, stock or fast.

    Raises:
        UserError: There is no display, or a file of the run is missing.
    """
    try:
        pygame.display.init()
    except pygame.error as error:
        raise UserError(
            f"there is no display for a window ({error}): run this in a desktop session, "
            "or drive the dream in a browser with `make play`."
        ) from error
    env = gym.make(STOCK_ENV if car == "stock" else FAST_ENV, render_mode="rgb_array", disable_env_checker=True)
    with warnings.catch_warnings():  # it warns about matplotlib's windows, which only its plots need
        warnings.simplefilter("ignore")
        from gymnasium.utils.play import play
    pygame.display.set_caption(f"Track {track}: arrow keys or WASD drive, Escape closes")
    print("Drive with the arrow keys or WASD; Escape closes the window.")
    beside = BesideReconstruction(env, WorldModel(run))
    play(beside, fps=FPS, keys_to_action=keys_to_action(), seed=track, noop=np.zeros(3, np.float32))
    env.close()
