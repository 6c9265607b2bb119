"""The coordinates that C evolves in: the leading principal directions of [z; h], evened out (by folding them into C).

An affordable evolution moves all weights alike, so how soon it learns to use a feature depends on how much that varies,
and how fast it learns at all on the number of weights. As they are, h has a mean of 0.4 a unit beside a standard
deviation of 0.2, so that most candidates differ by a constant action only; six directions hold most of the variance;
and a few dozen of the 288 hold all that a controller needs.
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
    """Coordinates scale @ (x - mean), f[K], of features x f[F].

    Attributes:
        mean: f64[F].
        scale: f64[K,F].
    """

    mean: Array
    scale: Array

    @property
    def weights(self) -> int:
        """Length of what evolves: 3·(K+1)."""
        return ACTIONS * (len(self.scale) + 1)

    def express(self, theta: Array) -> Array:
        """The weights f64[3·(F+1)] that do on features what `theta`, f64[3·(K+1)], does on these coordinates."""
        weights, bias = np.split(theta, [ACTIONS * len(self.scale)])
        weights = weights.reshape(ACTIONS, -1) @ self.scale
        return np.concatenate([weights.ravel(), bias - weights @ self.mean])

    def coordinates(self, theta: Array) -> Array:
        """The inverse of `express`; with K < F what is left of `theta` f64[3·(F+1)] in these directions."""
        weights, bias = np.split(theta, [ACTIONS * len(self.mean)])
        weights = weights.reshape(ACTIONS, -1)
        return np.concatenate([(weights @ np.linalg.pinv(self.scale)).ravel(), bias + weights @ self.mean])


def plain_basis(features: int) -> Basis:
    """The features themselves as coordinates."""
    return Basis(np.zeros(features), np.eye(features))


def fit_basis(features: NDArray[np.floating], *, centre: bool, whiten: float, components: int) -> Basis:
    """Coordinates for features like these.

    Args:
        features: f[N,F], [z; h] of recorded steps.
        centre: Subtract their mean.
        whiten: Each principal direction is divided by its standard deviation to this power, 0 to 1: 0 leaves them as
            they are, 1 makes them all alike. Then all are scaled by one number that gives back their total variance,
            so that a step size moves the actions as much as before.
        components: K, how many of the principal directions to take, those of most variance; 0: all.
    """
    plain = plain_basis(features.shape[1])
    mean = features.mean(axis=0, dtype=np.float64) if centre else plain.mean
    if whiten == 0 and not components:
        return Basis(mean, plain.scale)
    variance, directions = np.linalg.eigh(np.atleast_2d(np.cov(features.T.astype(np.float64))))
    kept = slice(None, -components - 1 if components else None, -1)  # eigh sorts them upwards
    variance, directions = variance[kept], directions[:, kept]
    spread = np.sqrt(variance.clip(min=LEAST_SPREAD**2 * variance.max()))
    factors = spread**-whiten
    factors *= np.sqrt(variance.sum() / (variance * factors**2).sum())
    return Basis(mean, (directions * factors).T)
