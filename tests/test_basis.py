"""The coordinates that C evolves in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wm.controller.basis import first_only, fit_basis
from wm.controller.hidden import Hidden
from wm.controller.linear import Linear

LINEAR = Linear(3)


def drawn(seed: int, features: int, rows: int = 600) -> np.ndarray:
    """Correlated features of unlike spread, with a mean."""
    rng = np.random.default_rng(seed)
    mixed = (
        rng.normal(0, 1, (rows, features)) * np.geomspace(1, 0.05, features) @ rng.normal(0, 1, (features, features))
    )
    return mixed + rng.normal(0, 1, features)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.booleans(), st.sampled_from([0.0, 0.5, 1.0]))
def test_expressed_weights_do_on_features_what_theta_does_on_coordinates(
    seed: int, features: int, centre: bool, whiten: float
) -> None:
    x = drawn(seed, features)
    basis = fit_basis(x, LINEAR, centre=centre, whiten=whiten, components=0)
    theta = np.random.default_rng(seed).normal(0, 0.1, LINEAR.count(features))
    mean = x.mean(axis=0) if centre else np.zeros(features)
    folded = basis.express(theta)
    assert folded.shape == theta.shape

    # In float64, since little of one direction may be the difference of large numbers.
    def linear(weights: np.ndarray, given: np.ndarray) -> np.ndarray:
        return weights[: 3 * features].reshape(3, features) @ given + weights[3 * features :]

    np.testing.assert_allclose(linear(folded, x[0]), linear(theta, basis.scale @ (x[0] - mean)), atol=1e-6)
    np.testing.assert_allclose(basis.coordinates(folded), theta, atol=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_a_hidden_layer_sees_the_coordinates_of_the_first_features_only(seed: int, units: int) -> None:
    x = drawn(seed, 9)
    basis = fit_basis(x[:, :5], LINEAR, centre=True, whiten=1.0, components=4)
    whole = replace(first_only(basis, 9), layout=Hidden(3, units))
    theta = np.random.default_rng(seed).normal(0, 0.1, whole.weights)
    assert len(theta) == whole.layout.count(4)
    expected = whole.layout.controller(theta, 4)((basis.scale @ (x[0, :5] - basis.mean)).astype(np.float32))
    found = whole.layout.controller(whole.express(theta), 9)(x[0].astype(np.float32))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    np.testing.assert_allclose(whole.coordinates(whole.express(theta)), theta, atol=1e-6)


def test_without_centre_and_whitening_nothing_changes() -> None:
    theta = np.random.default_rng(0).normal(0, 1, LINEAR.count(5))
    np.testing.assert_array_equal(
        fit_basis(drawn(0, 5), LINEAR, centre=False, whiten=0.0, components=0).express(theta), theta
    )


@pytest.mark.parametrize("whiten", [0.25, 0.5, 1.0])
def test_whitening_evens_the_spreads_and_keeps_the_total(whiten: float) -> None:
    x = drawn(1, 12)
    basis = fit_basis(x, LINEAR, centre=True, whiten=whiten, components=0)
    before = np.sqrt(np.linalg.eigvalsh(np.cov(x.T)))
    after = np.sqrt(np.linalg.eigvalsh(np.cov(basis.scale @ (x - basis.mean).T)))
    np.testing.assert_allclose(after / after[-1], (before / before[-1]) ** (1 - whiten), rtol=1e-6)
    assert np.isclose((after**2).sum(), (before**2).sum())


def test_directions_without_spread_are_not_blown_up() -> None:
    x = drawn(2, 6)
    x[:, 3] = 1.0
    basis = fit_basis(x, LINEAR, centre=True, whiten=1.0, components=0)
    assert np.isfinite(basis.scale).all()
    assert np.linalg.norm(basis.scale, 2) < 1e4


@pytest.mark.parametrize("whiten", [0.0, 0.5, 1.0])
def test_components_are_those_of_most_variance(whiten: float) -> None:
    x = drawn(3, 10)
    basis = fit_basis(x, LINEAR, centre=True, whiten=whiten, components=4)
    assert basis.weights == 15
    found = (x - basis.mean) @ basis.scale.T
    before = np.linalg.eigvalsh(np.cov(x.T))[:-5:-1]
    after = np.cov(found.T)
    np.testing.assert_allclose(np.diag(after).sum(), before.sum())
    np.testing.assert_allclose(np.diag(after) / after[0, 0], (before / before[0]) ** (1 - whiten), rtol=1e-6)
    np.testing.assert_allclose(after, np.diag(np.diag(after)), atol=1e-9)
    # What evolves there and back again is the same, and what lies in other directions is left out.
    theta = np.random.default_rng(0).normal(0, 1, basis.weights)
    np.testing.assert_allclose(basis.coordinates(basis.express(theta)), theta, atol=1e-9)
