"""The coordinates in which C evolves: leading principal directions of [z; h], scaled and folded into C's weights.

An affordable evolution moves all weights by the same amount. So it learns to use a feature sooner if the feature varies
more, and it learns faster with fewer weights. Untransformed, each unit of h has a mean of 0.4 beside a standard
deviation of 0.2, so that most candidates differ by a constant action only; six directions hold most of the variance;
and a few dozen of the 288 hold all that a controller needs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wm.contracts import Layout

Array = NDArray[np.float64]

LEAST_SPREAD = 1e-3
"""Lower bound of a direction's standard deviation in the scaling, as a fraction of the largest one."""


@dataclass(frozen=True)
class Basis:
    """Coordinates scale @ (x - mean), f[K], of features x f[F].

    Attributes:
        mean: f64[F].
        scale: f64[K,F].
        layout: Which of C's weights read the features.
    """

    mean: Array
    scale: Array
    layout: Layout

    @property
    def weights(self) -> int:
        """Number of evolved weights: that of C on K features."""
        return self.layout.count(len(self.scale))

    @property
    def expressed(self) -> int:
        """Number of weights of `express`: that of C on all F features."""
        return self.layout.count(len(self.mean))

    def express(self, theta: Array) -> Array:
        """Maps weights on the coordinates, f64[weights], to the equivalent ones on the features, f64[expressed]."""
        weights, bias, rest = self._split(theta, len(self.scale))
        weights = weights @ self.scale  # [R,K] @ [K,F] to [R,F]
        return np.concatenate([weights.ravel(), bias - weights @ self.mean, rest])

    def coordinates(self, theta: Array) -> Array:
        """The inverse of `express`; with K < F the projection of `theta` on these directions."""
        weights, bias, rest = self._split(theta, len(self.mean))
        return np.concatenate([(weights @ np.linalg.pinv(self.scale)).ravel(), bias + weights @ self.mean, rest])

    def _split(self, theta: Array, inputs: int) -> tuple[Array, Array, Array]:
        """The first layer's weights f64[R, inputs] and biases f64[R], and the remaining weights."""
        rows = self.layout.rows
        weights, bias, rest = np.split(theta, [rows * inputs, rows * (inputs + 1)])
        return weights.reshape(rows, inputs), bias, rest  # [R,inputs], [R]


def plain_basis(features: int, layout: Layout) -> Basis:
    """The features themselves as coordinates."""
    return centred_basis(np.zeros(features), layout)


def centred_basis(mean: Array, layout: Layout) -> Basis:
    """The features minus a mean, f64[F], as coordinates."""
    return Basis(mean, np.eye(len(mean)), layout)


def first_only(basis: Basis, features: int) -> Basis:
    """Extends a basis of the first features, such as z, to all `features`, with zero weight on the others."""
    k, first = basis.scale.shape
    scale = np.concatenate([basis.scale, np.zeros((k, features - first))], axis=1)
    return replace(basis, mean=np.concatenate([basis.mean, np.zeros(features - first)]), scale=scale)


def fit_basis(features: NDArray[np.floating], layout: Layout, *, centre: bool, whiten: float, components: int) -> Basis:
    """Fits coordinates to recorded features.

    Args:
        features: f[N,F], [z; h] or z of recorded steps.
        layout: Of the C that evolves.
        centre: Subtract their mean.
        whiten: Power in [0, 1]. Each principal direction is divided by its standard deviation to this power: 0 leaves
            them unchanged, 1 gives all the same variance. One common factor then restores the total variance, so that
            a step size changes the actions as much as before.
        components: K, number of principal directions, those of largest variance; 0: all.
    """
    plain = plain_basis(features.shape[1], layout)
    mean = features.mean(axis=0, dtype=np.float64) if centre else plain.mean
    if whiten == 0 and not components:
        return Basis(mean, plain.scale, layout)
    variance, directions = np.linalg.eigh(np.atleast_2d(np.cov(features.T.astype(np.float64))))
    chosen = slice(None, -components - 1 if components else None, -1)  # eigh sorts in ascending order
    variance, directions = variance[chosen], directions[:, chosen]  # [K], [F,K]
    spread = np.sqrt(variance.clip(min=LEAST_SPREAD**2 * variance.max()))
    factors = spread**-whiten  # [K]
    factors *= np.sqrt(variance.sum() / (variance * factors**2).sum())
    return Basis(mean, (directions * factors).T, layout)  # [K,F]
