"""The coordinates that C evolves in: the leading principal directions of [z; h], evened out (by folding them into C).

An affordable evolution moves all weights alike, so how soon it learns to use a feature depends on how much that varies,
and how fast it learns at all on the number of weights. As they are, h has a mean of 0.4 a unit beside a standard
deviation of 0.2, so that most candidates differ by a constant action only; six directions hold most of the variance;
and a few dozen of the 288 hold all that a controller needs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wm.controller.hidden import hidden_count
from wm.controller.linear import ACTIONS, parameter_count

Array = NDArray[np.float64]

LEAST_SPREAD = 1e-3
"""Directions with less standard deviation than this share of the largest one are scaled as if they had it."""


@dataclass(frozen=True)
class Basis:
    """Coordinates scale @ (x - mean), f[K], of features x f[F].

    Attributes:
        mean: f64[F].
        scale: f64[K,F].
        units: U, rows of the first layer of C, hidden units; 0: C is linear, the rows are those of its 3 actions.
    """

    mean: Array
    scale: Array
    units: int = 0

    @property
    def weights(self) -> int:
        """Length of what evolves: 3·(K+1), or that of C with a hidden layer on K features."""
        return self._count(len(self.scale))

    @property
    def expressed(self) -> int:
        """Length of what `express` gives: that of C on all F features."""
        return self._count(len(self.mean))

    def express(self, theta: Array) -> Array:
        """The weights that do on features what `theta` does on these coordinates; f64[3·(F+1)] of f64[3·(K+1)]."""
        weights, bias, rest = self._split(theta, len(self.scale))
        weights = weights @ self.scale
        return np.concatenate([weights.ravel(), bias - weights @ self.mean, rest])

    def coordinates(self, theta: Array) -> Array:
        """The inverse of `express`; with K < F what is left of `theta` in these directions."""
        weights, bias, rest = self._split(theta, len(self.mean))
        return np.concatenate([(weights @ np.linalg.pinv(self.scale)).ravel(), bias + weights @ self.mean, rest])

    def _count(self, inputs: int) -> int:
        return hidden_count(inputs, self.units) if self.units else parameter_count(inputs)

    def _split(self, theta: Array, inputs: int) -> tuple[Array, Array, Array]:
        """The first layer's weights f64[R, inputs] and biases f64[R], and what comes after it."""
        rows = self.units or ACTIONS
        weights, bias, rest = np.split(theta, [rows * inputs, rows * (inputs + 1)])
        return weights.reshape(rows, inputs), bias, rest


def plain_basis(features: int) -> Basis:
    """The features themselves as coordinates."""
    return centred_basis(np.zeros(features))


def centred_basis(mean: Array) -> Basis:
    """The features minus a mean, f64[F], as coordinates."""
    return Basis(mean, np.eye(len(mean)))


def first_only(basis: Basis, features: int) -> Basis:
    """A basis of the first features, such as z, as one of all `features`, of which the others count nothing."""
    k, first = basis.scale.shape
    scale = np.concatenate([basis.scale, np.zeros((k, features - first))], axis=1)
    return replace(basis, mean=np.concatenate([basis.mean, np.zeros(features - first)]), scale=scale)


def fit_basis(features: NDArray[np.floating], *, centre: bool, whiten: float, components: int) -> Basis:
    """Coordinates for features like these.

    Args:
        features: f[N,F], [z; h] or z of recorded steps.
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
    chosen = slice(None, -components - 1 if components else None, -1)  # eigh sorts them upwards
    variance, directions = variance[chosen], directions[:, chosen]
    spread = np.sqrt(variance.clip(min=LEAST_SPREAD**2 * variance.max()))
    factors = spread**-whiten
    factors *= np.sqrt(variance.sum() / (variance * factors**2).sum())
    return Basis(mean, (directions * factors).T)
