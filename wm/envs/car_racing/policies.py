"""The policy that cruises: it knows what CarRacing's three actions mean."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from wm.run.errors import UserError

DT = 1 / 50
"""Seconds between two actions of the brownian policy, CarRacing's frame time."""

CRUISE_SECONDS = 0.3
"""Correlation time of wheel and pedal in the cruise policy: the autocorrelation falls to 1/e."""
CRUISE_STEERING = (0.02, 1.0)
"""Range of the standard deviation of the steering, drawn log-uniformly per episode: most go straight, some spin."""
CRUISE_PEDAL = (0.0, 0.25)
"""Range of the mean pedal (above 0 gas, below 0 brake), drawn per episode: both a stop and 50 units/s are rare."""
CRUISE_PEDAL_STD = (0.1, 0.8)
"""Range of the standard deviation of the pedal, drawn per episode."""
CRUISE_HOLD_CHANCE = 0.01
"""Probability per step that a hold of wheel and pedal begins: one in two seconds of driving."""
CRUISE_HOLD_STEPS = (10, 100)
"""Steps of a hold, from the first number to below the second: at 50 a second, 0.2 to 2 seconds."""
CRUISE_HOLD_REACH = 1.5
"""Held values are drawn uniformly within ± this and clipped to ±1: a third are full lock, full gas or full brake."""


class Cruise:
    """Ornstein-Uhlenbeck walks of the wheel and of one pedal, each around a mean and sometimes held. Not in the paper.

    Brownian actions brake half of the time and steer to a limit, so that the car is slow (5 units a second, the median
    of 40 episodes that are cut after 100 steps without a tile), and M learns that nothing moves. This policy does not
    see the road either, but it presses one pedal at a time and mostly turns the wheel a little. So the car drives 15
    units a second, in one step of ten above 39, and touches twice as many tiles per step. An untrained controller holds
    the wheel at its limit and brakes fully at that speed; if no recorded episode shows the outcome, the dream rewards
    it.
    """

    name = "cruise"

    def __init__(self, space: gym.Space[Any]) -> None:
        """Takes the environment's action space; UserError when it is not CarRacing's."""
        if not isinstance(space, gym.spaces.Box) or space.shape != (3,):
            raise UserError(f"--policy cruise needs CarRacing's actions, not {space}: choose --policy uniform.")

    def reset(self, rng: np.random.Generator | None = None) -> None:
        """Draws the episode's means and deviations of steering and pedal from `rng`, which also drives the walk."""
        self._rng = rng if rng is not None else np.random.default_rng()
        self._mean = np.array([0.0, self._rng.uniform(*CRUISE_PEDAL)])
        steering = np.exp(self._rng.uniform(*np.log(CRUISE_STEERING)))
        self._std = np.array([steering, self._rng.uniform(*CRUISE_PEDAL_STD)])
        self._walk = np.zeros(2)
        self._left = 0

    def act(self, observation: Any) -> NDArray[np.float32]:
        """The next point of the walk, or the held values: f32[3], steering in [-1, 1], gas and brake in [0, 1]."""
        forget = DT / CRUISE_SECONDS
        self._walk = (1 - forget) * self._walk + np.sqrt(2 * forget) * self._rng.standard_normal(2)
        if self._left == 0 and self._rng.random() < CRUISE_HOLD_CHANCE:
            self._left = int(self._rng.integers(*CRUISE_HOLD_STEPS))
            self._held = self._rng.uniform(-CRUISE_HOLD_REACH, CRUISE_HOLD_REACH, 2)
        wanted = self._held if self._left else self._mean + self._std * self._walk
        self._left = max(0, self._left - 1)
        steering, pedal = np.clip(wanted, -1, 1)
        return np.array([steering, max(pedal, 0), max(-pedal, 0)], np.float32)
