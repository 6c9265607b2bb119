"""C: the linear policy against a plain formula, and its file."""

import io
import json
import math
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wm.config.names import RUN_FORMAT
from wm.controller.file import load_controller, save_controller
from wm.controller.linear import Linear
from wm.envs.car_racing.task import CAR_RACING
from wm.run.errors import UserError

META = {"made_from": {"vae.pt": "a", "mdnrnn.pt": "b"}, "generations": 3, "config": {"popsize": 4}}


LINEAR = Linear(3)


def test_the_papers_number_of_parameters() -> None:
    assert LINEAR.count(32 + 256) == 867


def acts(theta: np.ndarray, features: np.ndarray) -> NDArray[np.float32]:
    return CAR_RACING.action.squash(LINEAR.controller(theta, len(features))(features))


def plain(theta: np.ndarray, features: np.ndarray) -> list[float]:
    """A = squash(W x + b), number by number."""
    n = len(features)
    raw = [
        sum(float(theta[k * n + i]) * float(features[i]) for i in range(n)) + float(theta[3 * n + k]) for k in range(3)
    ]
    steer, gas, brake = (math.tanh(x) for x in raw)
    return [steer, (gas + 1) / 2, min(max(brake, 0.0), 1.0)]


@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.sampled_from([0.01, 0.1, 1.0, 100.0]))
def test_the_action_is_the_plain_formula(seed: int, features: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    theta = rng.normal(0, scale, LINEAR.count(features)).astype(np.float32)
    x = rng.normal(0, 1, features).astype(np.float32)
    action = acts(theta, x)
    assert action.dtype == np.float32
    assert action.shape == (3,)
    np.testing.assert_allclose(action, plain(theta, x), atol=1e-5 * max(1.0, scale * math.sqrt(features)))
    assert -1 <= action[0] <= 1
    assert 0 <= action[1] <= 1
    assert 0 <= action[2] <= 1


def test_zero_weights_coast_straight_on_half_gas() -> None:
    np.testing.assert_array_equal(acts(np.zeros(867), np.ones(288, np.float32)), [0, 0.5, 0])


def test_the_biases_come_last() -> None:
    theta = np.zeros(LINEAR.count(4))
    theta[-3:] = [100, -100, -100]
    np.testing.assert_allclose(acts(theta, np.zeros(4, np.float32)), [1, 0, 0])


def test_the_weights_are_a_copy() -> None:
    theta = np.zeros(LINEAR.count(2), np.float32)
    controller = LINEAR.controller(theta, 2)
    theta[:] = 1
    np.testing.assert_array_equal(controller(np.ones(2, np.float32)), [0, 0, 0])


@pytest.mark.parametrize("shape", [(866,), (868,), (3, 289), (0,)])
def test_the_wrong_number_of_weights_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"288 features need \(867,\)"):
        LINEAR.controller(np.zeros(shape), 288)


# --- the file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_save_and_load(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "controller.npz"
    theta: NDArray[np.floating] = np.random.default_rng(0).normal(size=867).astype(dtype)
    save_controller(path, theta, META)
    loaded, meta = load_controller(path)
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, theta.astype(np.float32))
    assert meta == {"format": RUN_FORMAT, **META}
    assert [p.name for p in tmp_path.iterdir()] == ["controller.npz"]


@pytest.mark.parametrize("name", ["controller", "dream"])
def test_a_missing_file_is_named_and_the_command_that_makes_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path}/{name}.npz is missing: make it with `make {name}`\."):
        load_controller(tmp_path / f"{name}.npz")


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=True, **arrays)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def meta(**changes: object) -> np.ndarray:
    return np.array(json.dumps({"format": RUN_FORMAT, **META, **changes}))


GOOD = np.zeros(867, np.float32)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged or not a controller"),
        (b"not a zip file", "damaged or not a controller"),
        (npy(GOOD), "damaged or not a controller"),
        (npz(weights=GOOD), "damaged or not a controller"),
        (npz(theta=GOOD), "damaged or not a controller"),
        (npz(theta=GOOD, meta=np.array("{")), "damaged or not a controller"),
        (npz(theta=GOOD, meta=np.array({"format": 1}, dtype=object)), "damaged or not a controller"),
        (npz(theta=GOOD, meta=np.array("[]")), f"not of format {RUN_FORMAT}"),
        (npz(theta=GOOD, meta=meta(format=RUN_FORMAT + 1)), f"not of format {RUN_FORMAT}"),
        (npz(theta=GOOD, meta=meta(made_from=None)), "does not record what it was made from"),
        (npz(theta=GOOD.astype(np.float64), meta=meta()), "not finite float32 numbers"),
        (npz(theta=GOOD[None], meta=meta()), "not finite float32 numbers"),
        (npz(theta=np.full(867, np.nan, np.float32), meta=meta()), "not finite float32 numbers"),
    ],
)
def test_a_foreign_file_is_refused_in_a_sentence(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "controller.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path} .*{reason}.*`make controller`") as raised:
        load_controller(path)
    assert "\n" not in str(raised.value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 6000), flip=st.integers(0, 6000), bit=st.integers(0, 7))
def test_damage_is_noticed_or_harmless(cut: int, flip: int, bit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    theta = np.random.default_rng(0).normal(size=867).astype(np.float32)
    save_controller(path, theta, META)
    content = bytearray(path.read_bytes())
    content[flip % len(content)] ^= 1 << bit
    path.write_bytes(content[: len(content) - cut % len(content)] if cut % 2 else content)
    try:
        loaded, found = load_controller(path)
    except UserError:
        return
    np.testing.assert_array_equal(loaded, theta)
    assert found == {"format": RUN_FORMAT, **META}


class Malicious:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_without_running_its_code(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "controller.npz"
    pickle.loads(pickle.dumps(Malicious(trace)))
    assert trace.exists()  # it does what it says
    trace.unlink()
    bare = pickle.dumps(Malicious(trace))
    member = io.BytesIO()
    with zipfile.ZipFile(member, "w") as archive:
        archive.writestr("theta.npy", bare)
        archive.writestr("meta.npy", bare)
    inside = npz(theta=np.array([Malicious(trace)], dtype=object), meta=meta())
    for content in (bare, member.getvalue(), inside):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged or not a controller"):
            load_controller(path)
        assert not trace.exists()
