"""The probe: ridge regression against plain formulas, the true state by hand, and the stage from start to end."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import stages.probe
from stages.probe import main
from wm.config.presets import FAST_ENV, SMOKE
from wm.config.seeds import PROBE_SEEDS
from wm.config.vmc import ProbeConfig
from wm.driving.loading import load_acting
from wm.driving.probe import Record, Recorder, make_prober, probe, ridge, rows, split
from wm.driving.rollout import play
from wm.envs import make_env
from wm.envs.car_racing.task import CarTruth
from wm.envs.car_racing.truth import AHEAD, TARGETS, Road, true_state
from wm.run.checksums import file_hash
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.json_files import read_json, write_json

PRETRAINED = Path(__file__).parent.parent / "data" / "pretrained"
NAMES = list(TARGETS)


def car(x: float, y: float, angle: float = 0.0, v: tuple[float, float] = (0, 0), turn: float = 0.0) -> Any:
    """What Box2D says of a hull."""
    return SimpleNamespace(position=(x, y), angle=angle, linearVelocity=v, angularVelocity=turn)


def state(road: Road, hull: Any) -> dict[str, float]:
    return dict(zip(NAMES, true_state(road, hull).tolist(), strict=True))


# --- roads -----------------------------------------------------------------------------------------------


def circle(tiles: int, radius: float, left: bool = True) -> Road:
    """Round the origin, counter-clockwise or clockwise, from the right end on; CarRacing's direction 0 is along y."""
    phi = 2 * np.pi * np.arange(tiles) / tiles * (1 if left else -1)
    direction = phi + (0 if left else np.pi)
    return Road(np.stack([phi, direction, radius * np.cos(phi), radius * np.sin(phi)], axis=1))


def straight(tiles: int, length: float = 3.5) -> Road:
    """Up along y, and back 100 units to the left."""
    up = [(0.0, 0.0, 0.0, length * i) for i in range(tiles)]
    down = [(0.0, math.pi, -100.0, length * i) for i in reversed(range(tiles))]
    return Road(up + down)


def test_on_a_straight_road() -> None:
    found = state(straight(60), car(-2.5, 40.0, 0.3, (3.0, 4.0), -0.7))
    wanted = {"lateral": 2.5, "heading": 0.3, "turn rate": -0.7} | {f"bend, {n} tiles": 0.0 for n in AHEAD}
    # Along the car (-sin, cos), and to its left (-cos, -sin).
    wanted["speed"] = -3 * math.sin(0.3) + 4 * math.cos(0.3)
    wanted["slip"] = -3 * math.cos(0.3) - 4 * math.sin(0.3)
    assert found == pytest.approx(wanted)
    right = state(straight(60), car(1.0, 41.3, 4 * math.pi - 0.1, (0.0, 5.0)))
    assert right["lateral"] == pytest.approx(-1.0)
    assert right["heading"] == pytest.approx(-0.1)  # whatever turns the car has made
    assert right["slip"] == pytest.approx(5 * math.sin(0.1))  # it points to the right of where it goes
    back = state(straight(60), car(-100.0, 41.3, math.pi, (0.0, -5.0)))
    assert back["lateral"] == pytest.approx(0, abs=1e-12)
    assert (back["heading"], back["speed"]) == pytest.approx((0.0, 5.0))


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("place", [0.0, 10.0, 10.4, 99.5, 197.8])
def test_on_a_circle(left: bool, place: float) -> None:
    sign = 1 if left else -1
    phi = sign * 2 * np.pi * place / 200
    road = circle(200, 100.0, left)
    # Five units inside of the circle, along it but for 0.2 rad.
    angle = phi + (0 if left else np.pi) + 0.2
    found = state(road, car(95 * np.cos(phi), 95 * np.sin(phi), angle))
    assert found["lateral"] == pytest.approx(sign * 5, abs=0.02)  # the line from tile to tile lies 0.012 inside
    assert found["heading"] == pytest.approx(0.2, abs=1e-3)
    for tiles in AHEAD:
        assert found[f"bend, {tiles} tiles"] == pytest.approx(sign * 2 * np.pi * tiles / 200)


def test_directions_go_on_over_the_start_and_over_jumps_by_a_turn() -> None:
    tiles = np.arange(8)
    phi = 2 * np.pi * tiles / 8
    direction = np.where(tiles > 3, phi - 2 * np.pi, phi)  # as CarRacing keeps them near its alpha
    road = Road(np.stack([phi, direction, np.cos(phi), np.sin(phi)], axis=1))
    for place in (0.0, 2.5, 3.5, 7.75, 8.0, 11.0, 21.5):
        assert road.direction(place) == pytest.approx(2 * np.pi * place / 8)


def test_a_car_placed_by_hand_in_the_environment() -> None:
    env: Any = make_env(FAST_ENV).unwrapped
    env.reset(seed=PROBE_SEEDS.start)
    road, hull = Road(env.track), env.car.hull
    assert true_state(road, hull)[:5] == pytest.approx(np.zeros(5), abs=0.01)  # the car settles
    tiles = np.array(env.track)[:, 1:]
    bends = [abs(road.direction(i + 3) - road.direction(i - 3)) for i in range(3, len(tiles) - 3)]
    i = 3 + int(np.argmin(bends))  # where the road is straightest
    direction, x, y = tiles[i]
    sin, cos = math.sin(direction), math.cos(direction)
    hull.position = (x - 3 * cos, y - 3 * sin)
    hull.angle = direction - 0.25
    hull.linearVelocity = (20 * -math.sin(hull.angle), 20 * math.cos(hull.angle))
    hull.angularVelocity = 0.5
    found = state(road, hull)
    wanted = {"lateral": 3.0, "heading": -0.25, "speed": 20.0, "slip": 0.0, "turn rate": 0.5}
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=0.02), name
    ahead = (tiles[i + np.array(AHEAD), 0] - direction + np.pi) % (2 * np.pi) - np.pi
    for tiles_ahead, bend in zip(AHEAD, ahead, strict=True):
        assert found[f"bend, {tiles_ahead} tiles"] == pytest.approx(bend, abs=0.02)
    # Steered to the left it turns to the left, and still goes somewhat to the right of where it points.
    env.reset(seed=PROBE_SEEDS.start)
    for _ in range(60):
        env.step(np.array([-0.3, 0.5, 0], np.float32))
    found = state(Road(env.track), env.car.hull)
    assert found["turn rate"] > 0.1
    assert found["heading"] > 0.1
    assert found["slip"] < 0
    assert math.hypot(found["speed"], found["slip"]) == pytest.approx(math.hypot(*env.car.hull.linearVelocity))


# --- what is recorded ------------------------------------------------------------------------------------


def test_features_and_state_are_those_that_c_acts_on() -> None:
    models, theta = load_acting(Run(PRETRAINED))
    env = make_env(FAST_ENV)
    agent, again = models.agents()(theta), models.agents()(theta)
    recorder = Recorder(env, CarTruth(), agent, agent)
    states = []
    for step in play(env, recorder, seed=5, max_steps=60):
        h = again.state["h"]
        np.testing.assert_array_equal(again.act(step.observation), step.action)
        record = recorder.record()
        np.testing.assert_array_equal(record.features[-1], np.concatenate([again.z, h]))
        assert len(record.features) == len(record.states) == step.number
        states.append(true_state(Road(env.unwrapped.track), env.unwrapped.car.hull))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(record.states[1:], states[:-1])  # of before the step


def test_an_episode_depends_on_its_index_and_seed_only() -> None:
    models, theta = load_acting(Run(PRETRAINED))
    one, other = (make_prober(models, theta, 40, 2) for _ in range(2))
    wanted = one(1)
    other(0)
    for mine, theirs in zip(wanted, other(1), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert wanted.features.shape == (40, 288)
    assert wanted.states.shape == (40, len(TARGETS))
    assert not np.array_equal(wanted.states, one(0).states)


# --- regression ------------------------------------------------------------------------------------------


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5)) * [1, 10, 0.1, 3, 1] + [0, 100, 0, -3, 7]
    return x, x @ rng.normal(size=(5, 2)) + 0.1 * rng.normal(size=(n, 2)) + [3, -200]


def test_ridge_without_a_penalty_is_least_squares() -> None:
    x, y = drawn(200)
    weights, bias = ridge(x, y, 1e-12)
    wanted, *_ = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)
    np.testing.assert_allclose(np.vstack([weights, bias]), wanted, rtol=1e-4)


def test_ridge_is_least_squares_with_rows_for_its_penalty() -> None:
    """Penalty p on w is what rows sqrt(p) * identity that ask for 0 add to the squared error."""
    x, y = drawn(50)
    weights, bias = ridge(x, y, 20.0)
    standard = (x - x.mean(0)) / x.std(0)
    rows = np.vstack([standard, math.sqrt(20) * np.eye(5)])
    wanted, *_ = np.linalg.lstsq(rows, np.vstack([y - y.mean(0), np.zeros((5, 2))]), rcond=None)
    np.testing.assert_allclose(x @ weights + bias, standard @ wanted + y.mean(0), rtol=1e-4)
    size, without = (np.square(w * x.std(0)[:, None]).sum() for w in (weights, ridge(x, y, 1e-12)[0]))
    assert size < without


def test_a_constant_feature_says_nothing() -> None:
    x, y = drawn(50)
    with_one = np.column_stack([x, np.full(50, 0.1)])
    (weights, bias), (wanted, before) = ridge(with_one, y, 1.0), ridge(x, y, 1.0)
    np.testing.assert_allclose(with_one @ weights + bias, x @ wanted + before, rtol=1e-6)


@pytest.mark.parametrize(
    ("episodes", "share", "fitted"), [(60, 0.25, 45), (2, 0.25, 1), (2, 0.9, 1), (3, 1e-6, 2), (4, 0.999, 1)]
)
def test_the_split(episodes: int, share: float, fitted: int) -> None:
    assert split(episodes, share) == fitted


def records(n: int, steps: int = 40, z: int = 2, h: int = 3) -> list[Record]:
    """Episodes whose first target is linear in z, second in h, third in both; a fourth is noise, the others are 0."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(n):
        features = rng.normal(size=(steps, z + h)).astype(np.float32)
        states = np.zeros((steps, len(TARGETS)))
        states[:, 0], states[:, 1] = 2 * features[:, 0] + 1, 0.2 * features[:, z]
        states[:, 2], states[:, 3] = features[:, 1] + features[:, z + 1], rng.normal(size=steps)
        found.append(Record(features, states))
    return found


def test_z_h_and_both_are_told_apart() -> None:
    config = ProbeConfig(episodes=40, max_steps=40, penalty=1e-3, start_after=10)
    found = probe(records(40), 2, CarTruth(), config)
    assert found["episodes"] == {"fitted": 30, "tested": 10}
    assert found["steps"] == {"fitted": 900, "tested": 300, "left_out": 400}
    lateral, heading, speed, slip, turn, *_ = found["targets"]
    for target, wanted in ((lateral, (1, 0, 1)), (heading, (0, 1, 1)), (speed, (0.5, 0.5, 1)), (slip, (0, 0, 0))):
        assert list(target["r2"].values()) == pytest.approx(wanted, abs=0.1), target["name"]
    assert lateral["rmse"]["[z; h]"] < 1e-3
    assert lateral["rmse"]["h"] == pytest.approx(2, rel=0.1)
    assert speed["rmse"]["z"] == pytest.approx(1, rel=0.1)
    assert list(turn["r2"].values()) == [None] * 3  # it never differs
    assert [t["name"] for t in found["targets"]] == NAMES
    assert rows(found)[1][:5] == ["heading", "rad", f"{heading['std']:.3g}", f"{heading['r2']['z']:.2f}", "1.00"]
    assert rows(found)[4][3] == "-"
    json.dumps(found, allow_nan=False)


def test_what_does_not_count_and_whole_episodes_are_kept_apart() -> None:
    config = ProbeConfig(episodes=8, max_steps=40, penalty=1e-3, start_after=10)
    wanted = probe(records(8), 2, CarTruth(), config)
    spoilt = records(8)
    for record in spoilt:  # the first steps are not looked at
        record.states[:10, 1:] = 1e6
        record.features[:10] = 1e6
    assert probe(spoilt, 2, CarTruth(), config) == wanted
    spoilt[0].states[20:, :] = [-12.0, *[1e6] * 7]
    spoilt[7].states[30:, :] = [0, math.pi / 2, *[1e6] * 6]  # facing backwards
    found = probe(spoilt, 2, CarTruth(), config)
    assert found["steps"] == {"fitted": 160, "tested": 50, "left_out": 110}
    assert found["targets"][2]["r2"]["[z; h]"] > 0.99
    # What the last episodes hold has no part in the fit: with targets turned round they are missed.
    turned = records(8)
    for record in turned[6:]:
        record.states[:, 2] *= -1
    assert probe(turned, 2, CarTruth(), config)["targets"][2]["r2"]["[z; h]"] < -1
    for side in (slice(0, 6), slice(6, 8)):
        lost = records(8)
        for record in lost[side]:
            record.states[:, 0] = 20
        with pytest.raises(UserError, match=r"no step is left to probe.*--start-after"):
            probe(lost, 2, CarTruth(), config)


# --- the stage -------------------------------------------------------------------------------------------


def stage(folder: Path, *arguments: str, source: Path = PRETRAINED) -> dict[str, Any]:
    main(["--run", str(folder), "--source", str(source), "--preset", "smoke", "--workers", "0", *arguments])
    found: dict[str, Any] = read_json(folder / "probe.json")
    return {name: value for name, value in found.items() if name not in ("time", "commit")}


@pytest.mark.slow
def test_the_whole_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("vae.pt", "mdnrnn.pt", "controller.npz"):
        shutil.copy(PRETRAINED / name, source)
    found = stage(tmp_path / "run", source=source)
    said = capsys.readouterr().out
    assert " ".join(said.splitlines()[0].split()) == "what unit std R²: z h [z; h] error: z h [z; h]"
    assert f"{found['targets'][2]['rmse']['[z; h]']:.3g}" in said
    assert found["made_from"] == {path.name: file_hash(path) for path in source.iterdir()}
    assert found["config"]["episodes"] == SMOKE.probe.episodes == sum(found["episodes"].values())
    assert sum(found["steps"].values()) <= 300
    assert (tmp_path / "run" / "plots" / "probe.png").read_bytes().startswith(b"\x89PNG")
    assert Run(tmp_path / "run").read_manifest()["stages"]["probe"]["ended"]

    assert stage(tmp_path / "other", "--workers", "1") == found  # on a process, and the same models elsewhere

    def no_work(*_: Any) -> Any:
        raise AssertionError("the tracks are driven again")

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(stages.probe, "make_workers", no_work)
        assert stage(tmp_path / "run", source=source) == found
        again = capsys.readouterr().out
        assert again.splitlines()[:-1] == said.splitlines()[:-1]
        assert "is finished" in again.splitlines()[-1]
        path = tmp_path / "run" / "probe.json"
        written = read_json(path)

        def rewrite(**config: Any) -> None:
            write_json(path, {**written, "config": {**written["config"], **config}})

        rewrite(off_road=12.0)  # an option of earlier versions; this was its default
        stage(tmp_path / "run", source=source)
        rewrite(off_road=6.0)
        with pytest.raises(AssertionError, match="again"):
            stage(tmp_path / "run", source=source)
        assert "probe.json was made with another off_road: it is made again." in capsys.readouterr().out
        rewrite()
        for changed, name in ((["--seed", "1"], "seed"), (["--penalty", "3"], "penalty")):
            with pytest.raises(AssertionError, match="again"):
                stage(tmp_path / "run", *changed, source=source)
            assert f"probe.json was made with another {name}: it is made again." in capsys.readouterr().out
        with pytest.raises(AssertionError, match="again"):
            stage(tmp_path / "run", "--restart", source=source)
    assert not (tmp_path / "run" / "probe.json").exists()  # so that it goes on without --restart
    assert stage(tmp_path / "run", source=source) == found
    with np.load(source / "controller.npz") as arrays:
        parts = dict(arrays)
    np.savez(source / "controller.npz", **{**parts, "theta": parts["theta"] + np.float32(1e-3)})
    capsys.readouterr()
    assert stage(tmp_path / "run", source=source)["made_from"] != found["made_from"]
    assert "was made with another controller.npz: it is made again." in capsys.readouterr().out


def test_what_is_missing_or_senseless_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"controller.npz is missing: make it with `make controller`\.$"):
        stage(tmp_path / "run", source=tmp_path)
    with pytest.raises(UserError, match=r"dream\.npz is missing: make it with `make dream`, or choose the existing co"):
        stage(tmp_path / "run", "--driver", "dream")
    for options in (["--episodes", "1"], ["--max-steps", "50"], ["--start-after", "100"]):
        with pytest.raises(UserError, match="--episodes must be at least 2"):
            stage(tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()
