"""Transfers a controller to another V and M: a least-squares fit of its actions on their features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from wm.controller.linear import Linear
from wm.driving.loading import Models
from wm.run.errors import UserError
from wm.store.episode import Episode

Array = NDArray[np.float64]

LIMIT = 2.5
"""The arguments of tanh are clipped to ±LIMIT in the fit: beyond it tanh is 0.99, and the action hardly changes."""
RIDGE = 1e-3
"""Ridge penalty on features of unit variance, beside the mean squared error; needed since many features correlate."""


def features(models: Models, episode: Episode) -> Iterator[NDArray[np.float32]]:
    """Yields C's input, f32[F], at each step of a recorded episode; M reads the recorded actions."""
    agent = models.agents()(np.zeros(models.layout.count(models.features), np.float32))
    for frame, action in zip(episode.observations, episode.actions, strict=False):  # one frame more than actions
        agent.act(frame, instead=action)
        yield agent.features.copy()


def carry(theta: NDArray[np.floating], old: Models, new: Models, episodes: Iterable[Episode]) -> Array:
    """Fits weights on new features to the actions of a controller on old features.

    Args:
        theta: f[R·(F+1)], the controller, for R raw outputs.
        old: V and M that it acts on.
        new: V and M that the fitted controller acts on.
        episodes: Recorded episodes to fit on, best those that the controller itself drove.

    Returns:
        f64[R·(F'+1)].

    Raises:
        UserError: The controller is not linear, or of another environment.
    """
    if old.task.env_id != new.task.env_id:
        raise UserError(
            f"--carry has a controller of {old.task.title}, not of {new.task.title}: give a run folder of the same "
            "environment."
        )
    if not isinstance(old.layout, Linear):
        raise UserError("--carry does not support a controller with a hidden layer: give a linear one.")
    x: list[NDArray[np.float32]] = []
    y: list[NDArray[np.float32]] = []
    for episode in episodes:
        y.extend(features(old, episode))
        x.extend(features(new, episode))
    outputs = old.layout.outputs
    weights, bias = np.split(theta.astype(np.float64), [outputs * old.features])
    wanted = (np.array(y) @ weights.reshape(outputs, -1).T + bias).clip(-LIMIT, LIMIT)  # [N,R]
    given = np.array(x, np.float64)  # [N,F']
    mean, spread = given.mean(axis=0), given.std(axis=0) + 1e-9  # [F'] each
    unit = (given - mean) / spread  # [N,F']
    moment = unit.T @ unit / len(unit) + RIDGE * np.eye(new.features)  # [F',F']
    fitted = np.linalg.solve(moment, unit.T @ (wanted - wanted.mean(axis=0)) / len(unit)).T / spread  # [R,F']
    return np.concatenate([fitted.ravel(), wanted.mean(axis=0) - fitted @ mean])
