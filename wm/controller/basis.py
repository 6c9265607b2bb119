"""The coordinates that C evolves in: [z; h] minus its mean, its principal directions evened out (by its weights).

An affordable evolution moves all 867 weights alike, so how soon it learns to use a feature depends on how much that
varies. As they are, h has a mean of 0.4 a unit beside a standard deviation of 0.2, so that most candidates differ by a
constant action only; and six directions hold most of the variance, beside which the rest hardly shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wm.controller.linear import ACTIONS

Array = NDArray[np.float64]

LEAST_SPREAD = 1e-3
"""Directions with less standard deviation than this share of the largest one are scaled as if they had it."""


@dataclass(frozen=True)
class Basis:
    """Coordinates scale @ (x - mean) for features x f[F].

    Attributes:
        mean: f64[F].
        scale: f64[F,F], symmetric.
    """

    mean: Array
    scale: Array

    def express(self, theta: Array) -> Array:
        """The weights f64[3·(F+1)] that do on features what `theta`, of that size, does on these coordinates."""
        weights, bias = np.split(theta, [ACTIONS * len(self.mean)])
        weights = weights.reshape(ACTIONS, -1) @ self.scale
        return np.concatenate([weights.ravel(), bias - weights @ self.mean])

    def coordinates(self, theta: Array) -> Array:
        """The inverse of `express`."""
        weights, bias = np.split(theta, [ACTIONS * len(self.mean)])
        weights = weights.reshape(ACTIONS, -1)
        return np.concatenate([np.linalg.solve(self.scale, weights.T).T.ravel(), bias + weights @ self.mean])


def fit_basis(features: NDArray[np.floating], centre: bool, whiten: float) -> Basis:
    """Coordinates for features like these.

    Args:
        features: f[N,F], [z; h] of recorded steps.
        centre: Subtract their mean.
        whiten: Each principal direction is divided by its standard deviation to this power, 0 to 1: 0 leaves them as
            they are, 1 makes them all alike. Then all are scaled by one number that gives back the total variance, so
            that a step size moves the actions as much as before.
    """
    size = features.shape[1]
    mean = features.mean(axis=0, dtype=np.float64) if centre else np.zeros(size)
    if whiten == 0:
        return Basis(mean, np.eye(size))
    variance, directions = np.linalg.eigh(np.atleast_2d(np.cov(features.T.astype(np.float64))))
    spread = np.sqrt(variance.clip(min=LEAST_SPREAD**2 * variance.max()))
    factors = spread**-whiten
    factors *= np.sqrt(variance.sum() / (variance * factors**2).sum())
    return Basis(mean, directions * factors @ directions.T)
