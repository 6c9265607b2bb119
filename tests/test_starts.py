"""starts.npz: what is written is read, rounded to half precision, and nothing else is taken for it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wm.run.errors import UserError
from wm.store.starts import Starts, load_starts, save_starts

COUNT, Z, HIDDEN = 6, 3, 5


def starts(**changes: Any) -> Starts:
    """Starts with other arrays by their names in the file."""
    rng = np.random.default_rng(0)
    state = {
        "z": rng.normal(0, 1, (COUNT, Z)).astype(np.float32),
        "h": rng.uniform(-1, 1, (COUNT, HIDDEN)).astype(np.float32),
        "c": rng.normal(0, 30, (COUNT, HIDDEN)).astype(np.float32),
    }
    arrays: dict[str, Any] = {
        "episode": np.arange(COUNT, dtype=np.int64),
        "step": 70 + np.arange(COUNT, dtype=np.int64),
        "rewards": np.array([-0.1, 3.4, -100], np.float32),
        "made_from": {"vae.pt": "v", "mdnrnn.pt": "m"},
    }
    state = {name: changes.pop(name, part) for name, part in state.items()}
    return Starts(state, **{**arrays, **changes})


def test_saved_and_loaded(tmp_path: Path) -> None:
    path, given = tmp_path / "starts.npz", starts()
    save_starts(path, given)
    found = load_starts(path)
    assert len(found) == COUNT
    assert list(found.state) == ["z", "h", "c"]
    for name, value in found.state.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, given.state[name].astype(np.float16))
    np.testing.assert_array_equal(found.episode, given.episode)
    np.testing.assert_array_equal(found.step, given.step)
    np.testing.assert_array_equal(found.rewards, given.rewards)
    assert found.made_from == given.made_from
    assert found.pays == pytest.approx((-0.1, 3.4, -100))
    before = path.read_bytes()
    save_starts(path, found)
    assert path.read_bytes() == before  # nothing is lost by writing it once more


def test_a_published_set_is_small(tmp_path: Path) -> None:
    shape = (512, 256)
    many = starts(
        z=np.ones((512, 32), np.float32),
        h=np.ones(shape, np.float32),
        c=np.ones(shape, np.float32),
        episode=np.zeros(512, np.int64),
        step=np.zeros(512, np.int64),
    )
    save_starts(tmp_path / "starts.npz", many)
    assert (tmp_path / "starts.npz").stat().st_size < 600_000


def test_a_missing_file_names_its_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"starts\.npz is missing: make it with `make dream`"):
        load_starts(tmp_path / "starts.npz")
    with pytest.raises(UserError, match=r"starts-drift\.npz is missing: make it with `make dream M=drift C=linear`"):
        load_starts(tmp_path / "starts-drift.npz")


@pytest.mark.parametrize("damage", ["empty", "cut", "foreign", "pickle", "lacking"])
def test_damage_is_one_sentence(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "starts.npz"
    save_starts(path, starts())
    whole = path.read_bytes()
    if damage == "pickle":
        np.savez(path, z=np.array([{}], dtype=object))
    elif damage == "lacking":
        np.savez(path, z=np.zeros((2, 3)))
    else:
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "foreign": b"hello"}[damage])
    with pytest.raises(UserError, match=r"starts\.npz is damaged or holds no starts .*`make dream`"):
        load_starts(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"h": np.zeros((COUNT + 1, HIDDEN), np.float32)},
        {"c": np.zeros((COUNT, HIDDEN, 1), np.float32)},
        {"step": np.zeros(COUNT - 1, np.int64)},
        {"rewards": np.zeros(2, np.float32)},
        {"step": np.full(COUNT, 0.5)},
        {"episode": np.full(COUNT, -1)},
        {"z": np.full((COUNT, Z), np.nan, np.float32)},
        {
            "z": np.zeros((0, Z), np.float32),
            "h": np.zeros((0, HIDDEN), np.float32),
            "c": np.zeros((0, HIDDEN), np.float32),
            "step": np.zeros(0, np.int64),
            "episode": np.zeros(0, np.int64),
        },
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    given = starts(**changes)
    meta = np.array(json.dumps({"format": 1, "made_from": {}}))
    np.savez(
        tmp_path / "starts.npz",
        allow_pickle=False,
        **{"meta": meta, **given.state, "episode": given.episode, "step": given.step, "rewards": given.rewards},
    )
    with pytest.raises(UserError, match=r"starts\.npz is damaged \(its arrays do not fit"):
        load_starts(tmp_path / "starts.npz")


@pytest.mark.parametrize(
    "state",
    [
        {"step": np.zeros((COUNT, HIDDEN), np.float32)},
        {"meta": np.zeros((COUNT, HIDDEN), np.float32)},
        {"h": np.zeros((COUNT, HIDDEN, 1), np.float32)},
        {"h": np.zeros(COUNT, np.float32)},
        {"h": np.full((COUNT, HIDDEN), 1e5, np.float32)},
    ],
)
def test_a_state_that_a_file_cannot_hold_is_not_written(tmp_path: Path, state: dict[str, Any]) -> None:
    given = starts()
    with pytest.raises(ValueError, match="is none for a file of starts"):
        save_starts(tmp_path / "starts.npz", replace(given, state={**given.state, **state}))
    assert list(tmp_path.iterdir()) == []
