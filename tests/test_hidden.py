"""C with a hidden layer, against a plain formula; which kind a file holds and words choose."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wm.contracts import Layout
from wm.controller.hidden import Hidden
from wm.controller.kinds import layout_of, make_layout
from wm.controller.linear import Linear
from wm.envs.car_racing.task import CAR_RACING
from wm.run.errors import UserError


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 9))
def test_the_action_is_the_plain_formula(seed: int, features: int, units: int) -> None:
    rng = np.random.default_rng(seed)
    theta = rng.normal(0, 0.5, Hidden(3, units).count(features))
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
    action = CAR_RACING.action.squash(Hidden(3, units).controller(theta, features)(x))
    assert action.dtype == np.float32
    np.testing.assert_allclose(action, [steer, (gas + 1) / 2, max(brake, 0)], atol=1e-4)


def test_a_kind_has_sizes_of_its_own() -> None:
    assert make_layout("hidden", 3) == Hidden(3, 40)
    assert make_layout("hidden", 3, 7) == make_layout("", 3, 7) == Hidden(3, 7)
    with pytest.raises(UserError, match="--hidden-units needs a C with a hidden layer, not 'linear'"):
        make_layout("linear", 3, 7)


def test_a_file_says_what_it_is_and_the_length_tells_of_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "controller.npz"

    def found(weights: int, meta: dict[str, Any], outputs: int = 3, features: int = 288) -> Layout:
        return layout_of(path, meta, np.zeros(weights), features, outputs)

    def says(layout: Layout) -> dict[str, Any]:
        return {"kind": layout.kind, "sizes": layout.sizes()}

    assert found(867, {}) == found(867, says(Linear(3))) == Linear(3)
    assert found(Hidden(3, 5).count(288), {}) == Hidden(3, 5)
    assert found(Hidden(2, 5).count(288), says(Hidden(2, 5)), outputs=2) == Hidden(2, 5)
    lengths = {Linear(3).count(288), *(Hidden(3, units).count(288) for units in range(1, 200))}
    assert len(lengths) == 200
    # 27 numbers on 8 features are a linear C, or one with two hidden units: only what the file says tells them apart.
    for layout in (Linear(3), Hidden(3, 2)):
        assert found(27, says(layout), features=8) == layout

    wrong = [
        *((weights, {}) for weights in (868, 3, 0)),
        *((weights, says(Linear(3))) for weights in (868, Hidden(3, 5).count(288))),
        (867, says(Hidden(3, 5))),
        (Linear(2).count(288), says(Linear(2))),
        (867, {"kind": "linear"}),
        (867, {"kind": "linear", "sizes": Hidden(3, 5).sizes()}),
    ]
    for weights, meta in wrong:
        with pytest.raises(UserError, match=r"controller.npz does not fit V and M in its folder: redo it with `make c"):
            found(weights, meta)
    with pytest.raises(UserError, match="holds a C of the kind 'cubic', which this version does not have"):
        found(867, {"kind": "cubic", "sizes": {}})


def test_words_choose_a_kind() -> None:
    assert make_layout("", 3) == make_layout("linear", 3) == Linear(3)
    assert make_layout("", 3, 7) == make_layout("hidden", 3, 7) == Hidden(3, 7)
    assert make_layout("hidden", 3) == Hidden(3, 40)  # the paper's
    with pytest.raises(UserError, match="there is no C 'cubic': choose one of linear, hidden"):
        make_layout("cubic", 3)
    with pytest.raises(UserError, match="--hidden-units needs a C with a hidden layer, not 'linear'"):
        make_layout("linear", 3, 7)


@pytest.mark.parametrize("shape", [(868,), (3,), (0,), (5, 290)])
def test_the_wrong_number_of_weights_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="theta has"):
        Hidden(3, 5).controller(np.zeros(shape), 288)
