"""CarRacing as a task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from wm.config.presets import FAST_ENV, STOCK_ENV
from wm.contracts import Pays
from wm.envs.action import Action
from wm.envs.car_racing.policies import Cruise
from wm.envs.car_racing.preprocess import DASHBOARD_ROW, FRAME_SHAPE, SIZE, preprocess
from wm.envs.car_racing.truth import BACKWARDS, OFF_ROAD, TARGETS, Road, is_on_road, true_state
from wm.envs.task import Frame, Measure, Task

FRAME = (SIZE, SIZE, 3)


def see(observation: Frame) -> Frame:
    """u8[96, 96, 3] to u8[64, 64, 3]; one that is preprocessed already stays as it is."""
    return observation if observation.shape == FRAME else preprocess(observation)


def without_dashboard(camera: Frame) -> Frame:
    """The part of the camera's picture that V sees: the upper 84 of 96 rows."""
    return camera[: camera.shape[0] * DASHBOARD_ROW // FRAME_SHAPE[0]]


def speed(env: gym.Env[Any, Any]) -> str:
    """The car's speed in Box2D's metres per second."""
    racing: Any = env.unwrapped
    return f"speed {float(np.hypot(*racing.car.hull.linearVelocity)):.0f} m/s"


class CarTruth:
    """The state of car and road."""

    targets = TARGETS
    left_out = f"{OFF_ROAD:g} units or more from the centre line or facing backwards"

    def watch(self, env: gym.Env[Any, Any]) -> Callable[[], NDArray[np.float64]]:
        """See `wm.envs.task.Truth`."""
        racing: Any = env.unwrapped
        road = Road(racing.track)
        return lambda: true_state(road, racing.car.hull)

    def counts(self, states: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Steps near the road, not facing backwards."""
        near: NDArray[np.bool_] = (np.abs(states[:, 0]) < OFF_ROAD) & (np.abs(states[:, 1]) < BACKWARDS)
        return near


CAR_RACING = Task(
    env_id=STOCK_ENV,
    title="CarRacing",
    action=Action(("steering", "gas", "brake"), ("tanh", "half", "relu"), (-1.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    frame=FRAME,
    preprocess=see,
    train_id=FAST_ENV,
    train_options={"dashboard": False},
    pays=Pays(-0.1, 3.2, -100.0),  # no new tile, a tile (1000/N with N about 310), leaving the field
    fps=50,
    max_steps=1000,
    settled=60,  # it zooms in for 50 steps
    least_start=20,
    warm_up=70,  # as before the starts of the evolution
    idle=50,
    solved=900,
    lost=700,
    policies={Cruise.name: Cruise},
    mixtures={"wide": ("random_network", "brownian", Cruise.name, Cruise.name)},
    measure=Measure("on the road", is_on_road),
    reading=speed,
    visible=(without_dashboard, "without the dashboard"),
    aspect=10 / 7,  # it draws 1000 by 700 on what V sees as a square
    # At full gas the car spins in every bend.
    keys={"left": (-1.0, 0.0, 0.0), "right": (1.0, 0.0, 0.0), "up": (0.0, 0.8, 0.0), "down": (0.0, 0.0, 0.8)},
    truth=CarTruth(),
)
