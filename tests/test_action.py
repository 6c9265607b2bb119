"""Action: its numpy, torch and ONNX readings agree, keep to the bounds, and are told apart from what is no action."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wm.envs import CAR_RACING
from wm.envs.action import Action, Floats
from wm.run.graph import Graph

CROOKED = Action(
    ("pull", "lift", "push", "turn"), ("tanh", "half", "relu", "half"), (-0.3, 1.5, -7.0, 0.0), (0.9, 1.75, 5.0, 1e-3)
)
CHOICE = Action(("left", "stay", "right"), first=5)
KINDS = {"car": CAR_RACING.action, "crooked": CROOKED, "choice": CHOICE}

every_kind = pytest.mark.parametrize("action", KINDS.values(), ids=KINDS.keys())


def raw_outputs(action: Action, seed: int, rows: int = 200) -> Floats:
    """Raw outputs of all sizes, among them the largest and smallest that C can give."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(rows, action.size)) * 10 ** rng.uniform(-3, 3, (rows, action.size))
    limit = np.finfo(np.float32).max
    raw[:4] = np.array([0.0, 1e-38, limit, -limit])[:, None]
    return raw.astype(np.float32)


def by_onnx(action: Action, raw: Floats) -> Floats:
    graph = Graph()
    action.squash_graph(graph, "raw", "a")
    content = graph.finish({"raw": ("N", action.size)}, {"a": ("N", action.size)})
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found: Floats = session.run(None, {"raw": raw})[0]
    return found


def by_hand(action: Action, raw: Floats) -> list[list[float]]:
    """Number by number, in float64."""
    if not action.heads:
        return [[float(i == row.index(max(row))) for i in range(action.size)] for row in raw.tolist()]
    natural = {"tanh": lambda x: (np.tanh(x) + 1) / 2, "half": lambda x: (np.tanh(x) + 1) / 2}
    relu = {"relu": lambda x: max(np.tanh(x), 0.0)}
    parts = list(zip(action.heads, action.low, action.high, strict=True))
    return [
        [low + (high - low) * (natural | relu)[head](x) for x, (head, low, high) in zip(row, parts, strict=True)]
        for row in raw.tolist()
    ]


@every_kind
@given(seed=st.integers(0, 2**32 - 1))
def test_numpy_and_torch_are_the_plain_formula_within_bounds(action: Action, seed: int) -> None:
    raw = raw_outputs(action, seed, 40)
    before = raw.copy()
    found = action.squash(raw)
    np.testing.assert_array_equal(raw, before)
    assert found.dtype == np.float32
    assert found.shape == raw.shape
    np.testing.assert_allclose(found, by_hand(action, raw), atol=1e-5)
    tensor = action.squash_tensor(torch.from_numpy(raw.copy()))
    assert tensor.dtype == torch.float32
    np.testing.assert_allclose(tensor.numpy(), found, atol=5e-6)
    for each in (found, tensor.numpy()):
        assert_within(action, each)
    np.testing.assert_array_equal(action.squash(raw[0]), found[0])
    shaped = raw.reshape(4, 10, -1)
    np.testing.assert_array_equal(action.squash(shaped), found.reshape(shaped.shape))
    assert torch.equal(action.squash_tensor(torch.from_numpy(shaped.copy())), tensor.reshape(shaped.shape))


@every_kind
def test_onnx_does_the_same(action: Action) -> None:
    raw = raw_outputs(action, 0)
    found = by_onnx(action, raw)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, action.squash(raw), atol=5e-6)
    assert_within(action, found)
    np.testing.assert_array_equal(by_onnx(action, raw[:1]), found[:1])


def assert_within(action: Action, a: Floats) -> None:
    """Within the bounds, to which large raw outputs come; one-hot for a choice."""
    if not action.heads:
        assert set(a.ravel().tolist()) == {0.0, 1.0}
        assert (a.sum(-1) == 1).all()
        return
    low, high = np.array(action.low, np.float32), np.array(action.high, np.float32)
    assert (a >= low).all()
    assert (a <= high).all()
    np.testing.assert_allclose(a[2], high, atol=1e-6)
    np.testing.assert_allclose(a[3], low, atol=1e-6)


@every_kind
def test_the_environments_form_and_back(action: Action) -> None:
    space = action.space()
    space.seed(0)
    for row in action.squash(raw_outputs(action, 1, 40)):
        given_out = action.to_env(row)
        assert space.contains(given_out)
        assert isinstance(given_out, np.ndarray if action.heads else int)
        np.testing.assert_array_equal(action.from_env(given_out), row)
    sampled = [space.sample() for _ in range(40)]
    rows = action.from_env(np.array(sampled))
    assert rows.dtype == np.float32
    assert rows.shape == (40, action.size)
    np.testing.assert_array_equal(action.clip(rows), rows)
    for taken, row in zip(sampled, rows, strict=True):
        np.testing.assert_array_equal(action.from_env(taken), row)
        np.testing.assert_array_equal(action.to_env(row), taken)
    shaped = np.array(sampled).reshape(8, 5, *np.shape(sampled[0]))
    np.testing.assert_array_equal(action.from_env(shaped), rows.reshape(8, 5, -1))


@every_kind
def test_column_and_space_fit(action: Action) -> None:
    shape, dtype = action.column
    space = action.space()
    assert shape == space.shape
    assert space.dtype is not None
    assert np.dtype(dtype) == space.dtype
    if isinstance(space, gym.spaces.Discrete):
        assert (space.n, space.start) == (action.size, action.first)
    else:
        assert isinstance(space, gym.spaces.Box)
        np.testing.assert_array_equal(space.low, np.array(action.low, np.float32))
        np.testing.assert_array_equal(space.high, np.array(action.high, np.float32))


@pytest.mark.parametrize(
    ("action", "bad"),
    [
        *((CROOKED, bad) for bad in (0.5, [1, 2, 3], [[0] * 3], [1, 2, np.nan, 0], [0, -np.inf, 0, 0], [], "left")),
        *((CHOICE, bad) for bad in (4, 8, -1, 5.0, [5, 8], True, [0.0, 1.0, 0.0], None, "left", np.nan)),
    ],
)
def test_what_is_no_action_is_refused(action: Action, bad: Any) -> None:
    with pytest.raises(ValueError, match=r"action|could not convert"):
        action.from_env(bad)


def test_choices_of_any_integer_type_and_first() -> None:
    """Differences of unsigned numbers would wrap around."""
    many = Action(tuple(map(str, range(300))), first=-2)
    for dtype in (np.uint8, np.int8, np.int64, np.uint64):
        np.testing.assert_array_equal(many.from_env(np.array([0, 100], dtype)), np.eye(300)[[2, 102]])
    with pytest.raises(ValueError, match="not choices 5 to 7"):
        CHOICE.from_env(np.array([4], np.uint8))


def test_clip_keeps_a_box_within_its_bounds() -> None:
    given_in = np.array([[9, 9, 9, 9], [-9, -9, -9, -9], [0.1, 1.6, 2, 5e-4]], np.float32)
    wanted = np.array([CROOKED.high, CROOKED.low, [0.1, 1.6, 2, 5e-4]], np.float32)
    np.testing.assert_array_equal(CROOKED.clip(given_in), wanted)


@pytest.mark.parametrize(
    "parts",
    [
        {"names": ()},
        {"names": ("a",), "heads": ("tanh", "half"), "low": (0, 0), "high": (1, 1)},
        {"names": ("a", "b"), "heads": ("tanh", "half"), "low": (0,), "high": (1, 1)},
        {"names": ("a", "b"), "heads": ("tanh", "half"), "low": (0, 0)},
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="do not fit together"):
        Action(**parts)
