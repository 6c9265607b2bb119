"""C with one hidden layer, the paper's comparison with the linear C (section 3.4); the length of theta decides."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from wm.controller.linear import ACTIONS, LinearController, parameter_count, squash

Vector = NDArray[np.float32]


def hidden_count(features: int, units: int) -> int:
    """Length of theta with `units` hidden units: 1443 for z alone (32 features) and 40 units."""
    return units * (features + 1) + parameter_count(units)


class HiddenController:
    """a = squash(W2 tanh(W1 x + b1) + b2). theta: W1 [U,F] row by row, b1 [U], W2 [3,U] row by row, b2 [3]."""

    def __init__(self, theta: NDArray[np.floating], features: int) -> None:
        """Builds C from flat weights; ValueError when their number does not match any number of hidden units >= 1."""
        units, rest = divmod(len(theta) - ACTIONS, features + 1 + ACTIONS)
        if rest or units < 1:
            raise ValueError(f"theta has {len(theta)} numbers, which fit no hidden layer on {features} features")
        first, second = np.split(theta.astype(np.float32), [units * (features + 1)])
        self._weights = first[: units * features].reshape(units, features)  # [U,F]
        self._bias = first[units * features :]  # [U]
        self._out = second[: ACTIONS * units].reshape(ACTIONS, units)  # [A,U]
        self._out_bias = second[ACTIONS * units :]

    def __call__(self, features: Vector) -> Vector:
        """Features f32[F] to an action f32[3]."""
        return squash(self._out @ np.tanh(self._weights @ features + self._bias) + self._out_bias)


def make_controller(theta: NDArray[np.floating], features: int) -> Callable[[Vector], Vector]:
    """Makes a linear controller, or one with a hidden layer, by the length of theta; ValueError when neither fits."""
    if theta.shape == (parameter_count(features),):
        return LinearController(theta, features)
    if theta.ndim != 1:
        raise ValueError(f"theta has shape {theta.shape}, not one dimension")
    return HiddenController(theta, features)
