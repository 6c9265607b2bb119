"""C with a hidden layer, against a plain formula; told from a linear one by its length."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wm.controller.hidden import HiddenController, hidden_count, make_controller
from wm.controller.linear import LinearController, parameter_count


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 9))
def test_the_action_is_the_plain_formula(seed: int, features: int, units: int) -> None:
    rng = np.random.default_rng(seed)
    theta = rng.normal(0, 0.5, hidden_count(features, units))
    x = rng.normal(0, 1, features).astype(np.float32)
    numbers = iter(theta.tolist())
    first = [[next(numbers) for _ in range(features)] for _ in range(units)]
    biases = [next(numbers) for _ in range(units)]
    second = [[next(numbers) for _ in range(units)] for _ in range(3)]
    out = [next(numbers) for _ in range(3)]
    assert next(numbers, None) is None
    layer = [
        math.tanh(sum(w * v for w, v in zip(row, x.tolist(), strict=True)) + b)
        for row, b in zip(first, biases, strict=True)
    ]
    steer, gas, brake = (
        math.tanh(sum(w * v for w, v in zip(row, layer, strict=True)) + b) for row, b in zip(second, out, strict=True)
    )
    action = HiddenController(theta, features)(x)
    assert action.dtype == np.float32
    np.testing.assert_allclose(action, [steer, (gas + 1) / 2, max(brake, 0)], atol=1e-4)


def test_the_length_tells_what_it_is() -> None:
    assert isinstance(make_controller(np.zeros(867), 288), LinearController)
    assert isinstance(make_controller(np.zeros(hidden_count(288, 5)), 288), HiddenController)
    for theta in (np.zeros(868), np.zeros(3), np.zeros(0), np.zeros((3, 289))):
        with pytest.raises(ValueError, match="theta has"):
            make_controller(theta, 288)
    lengths = {parameter_count(288), *(hidden_count(288, units) for units in range(1, 200))}
    assert len(lengths) == 200
