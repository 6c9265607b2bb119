"""M's numpy LSTM: the same numbers as torch's, states passed in and returned, no overflow with wild weights."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wm.contracts import State
from wm.memory.cell import LSTMCell
from wm.memory.mdnrnn import MDNRNN


def weights_of(model: MDNRNN) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items() if name.startswith("lstm.")}


def copy_of(state: State) -> dict[str, np.ndarray]:
    return {name: part.copy() for name, part in state.items()}


@pytest.mark.parametrize(("z", "a", "hidden"), [(32, 3, 256), (5, 1, 7), (1, 1, 1)])
def test_equals_torch(z: int, a: int, hidden: int) -> None:
    torch.manual_seed(1)
    model = MDNRNN(z, a, hidden, 2)
    cell = LSTMCell(weights_of(model), z)
    assert (cell.hidden, cell.features) == (hidden, z + hidden)
    x = 2 * torch.randn(1, 100, z + a)
    with torch.no_grad():
        wanted, (h, c) = model.lstm(x)
    state = cell.initial()
    for t in range(100):
        step = x[0, t].numpy()
        state = cell.advance(cell.see(state, step[:z]), step[z:])
        np.testing.assert_array_equal(cell.read(state), [*step[:z], *state["h"]])
        np.testing.assert_allclose(state["h"], wanted[0, t].numpy(), atol=1e-5)
    np.testing.assert_allclose(state["h"], h[0, 0].numpy(), atol=1e-5)
    np.testing.assert_allclose(state["c"], c[0, 0].numpy(), atol=1e-5)


def test_a_state_is_a_value() -> None:
    """Branching from one state, in any order, gives what stepping once from it gives; nothing is kept inside."""
    torch.manual_seed(2)
    cell = LSTMCell(weights_of(MDNRNN(4, 2, 8, 2)), 4)
    rng = np.random.default_rng(0)
    z, a = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(3, 2)).astype(np.float32)
    first = cell.advance(cell.see(cell.initial(), z[0]), a[0])
    kept = copy_of(first)
    left = cell.advance(cell.see(first, z[1]), a[1])
    left_kept = copy_of(left)
    right = cell.advance(cell.see(first, z[2]), a[2])
    assert not np.array_equal(left["h"], right["h"])
    again = cell.advance(cell.see(first, z[1]), a[1])
    for state, wanted in ((first, kept), (left, left_kept), (again, left_kept)):
        assert list(state) == list(wanted) == ["z", "h", "c"]
        for name, part in state.items():
            np.testing.assert_array_equal(part, wanted[name])
    features = cell.read(left)
    features[:] = 0
    np.testing.assert_array_equal(left["h"], left_kept["h"])  # what is read is new memory
    assert all(array.dtype == np.float32 for array in left.values())
    assert [part.tolist() for part in cell.initial().values()] == [[0] * 4, [0] * 8, [0] * 8]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-3, 1.0, 1e6]))
def test_wild_weights_stay_finite(seed: int, scale: float) -> None:
    """Cauchy weights, as the random policy of the paper draws them, saturate the gates without a warning."""
    rng = np.random.default_rng(seed)

    def wild(*shape: int) -> np.ndarray:
        return (scale * rng.standard_cauchy(shape)).astype(np.float32)

    cell = LSTMCell(
        {
            "lstm.weight_ih_l0": wild(32, 6),
            "lstm.weight_hh_l0": wild(32, 8),
            "lstm.bias_ih_l0": wild(32),
            "lstm.bias_hh_l0": wild(32),
        },
        4,
    )
    state = cell.initial()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(50):
            state = cell.advance(cell.see(state, wild(4)), wild(2))
    assert np.isfinite(state["h"]).all()
    assert np.isfinite(state["c"]).all()
    assert np.abs(state["h"]).max() <= 1


def test_weights_are_copied() -> None:
    torch.manual_seed(3)
    weights = {name: value.copy() for name, value in weights_of(MDNRNN(4, 2, 8, 2)).items()}
    cell = LSTMCell(weights, 4)
    z, a = np.ones(4, np.float32), np.ones(2, np.float32)
    before = cell.advance(cell.see(cell.initial(), z), a)["h"]
    for value in weights.values():
        value[:] = 0
    np.testing.assert_array_equal(cell.advance(cell.see(cell.initial(), z), a)["h"], before)


def test_shapes_that_do_not_fit_are_refused() -> None:
    weights = weights_of(MDNRNN(4, 2, 8, 2))
    weights["lstm.weight_ih_l0"] = weights["lstm.weight_ih_l0"][:-1]
    with pytest.raises(ValueError, match="do not fit"):
        LSTMCell(weights, 4)


def test_needs_no_torch() -> None:
    """Rollout workers import it; torch would cost each of them seconds and a quarter of a gigabyte."""
    code = "import sys, wm.memory.cell; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
