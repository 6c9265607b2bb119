"""Collection: what an episode holds depends on (seed, index) only; kills and damage cost nothing but time."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import gymnasium
import h5py
import numpy as np
import pytest

from stages.collect import load_driver, main
from wm.config.earlier import MEASURE
from wm.config.presets import FAST_ENV
from wm.config.seeds import COLLECT_SEEDS, DRIVEN_FROM, track_seeds
from wm.config.vmc import CollectConfig
from wm.controller.file import load_controller, save_controller
from wm.controller.hidden import Hidden
from wm.driving.collection import make_collector, mismatch, record_episode, set_aside_damaged
from wm.driving.loading import load_agent
from wm.envs import make_env
from wm.envs.action import Action
from wm.envs.car_racing.task import CAR_RACING
from wm.envs.task import Task
from wm.run.errors import MachineError, UserError
from wm.run.folder import Run
from wm.run.json_files import read_json
from wm.store.frames import frame_batches
from wm.store.shards import Rollouts, save_shard, write_shard
from wm.store.starts import load_starts

ROOT = Path(__file__).parent.parent
CARTPOLE = Task("CartPole-v1", "CartPole", Action(("left", "right")), (4,), lambda observation: observation)


def cartpole(folder: Path, groups: list[list[int]], seed: int = 0) -> Rollouts:
    work = make_collector(CARTPOLE, "uniform", 50, seed)
    for group in groups:
        save_shard(folder / f"{group[0]}.h5", work(group).shard)
    return Rollouts(folder)


def arguments(folder: Path, *more: str, episodes: int = 4) -> list[str]:
    small = ["--max-steps", "12", "--policy", "brownian", "--episodes", str(episodes)]
    return ["--run", str(folder), "--preset", "smoke", "--workers", "0", *small, *more]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished collection of four episodes, two a shard."""
    run = Run(tmp_path_factory.mktemp("collect"))
    main(arguments(run.folder))
    return run


@pytest.fixture
def copy(whole: Run, tmp_path: Path) -> Run:
    """A copy of it that a test may change."""
    subprocess.run(["cp", "-r", str(whole.folder), str(tmp_path / "run")], check=True)
    return Run(tmp_path / "run")


# --- episodes --------------------------------------------------------------------------------------------


def test_cartpole_is_collected_too_however_it_is_shared_out(tmp_path: Path) -> None:
    one = cartpole(tmp_path / "one", [[0, 1, 2, 3, 4, 5]])
    other = cartpole(tmp_path / "other", [[5, 3], [0], [4, 1, 2]])
    assert one.fingerprint() == other.fingerprint()
    streams = [frame_batches(r, np.arange(6), batch=8, seed=1, start=0, shuffle_frames=30) for r in (one, other)]
    for a, b in islice(zip(*streams, strict=True), 30):
        np.testing.assert_array_equal(a, b)
    assert cartpole(tmp_path / "seed", [[0, 1, 2, 3, 4, 5]], seed=1).fingerprint() != one.fingerprint()
    episode = one.episode(0)
    assert episode.observations.shape == (episode.length + 1, 4)
    assert episode.actions.shape == (episode.length,)
    assert episode.terminated != episode.truncated
    assert np.isnan(episode.measure)


def test_an_episode_can_be_played_again_from_its_record(tmp_path: Path) -> None:
    for index, episode in enumerate(cartpole(tmp_path, [[0, 1, 2]])):
        assert episode.index == index
        assert episode.seed == track_seeds(COLLECT_SEEDS, 0)[index]
        assert episode.env_id == "CartPole-v1"
        assert episode.env_version == gymnasium.__version__
        env = gymnasium.make(episode.env_id)
        observation, _ = env.reset(seed=episode.seed)
        for t, action in enumerate(episode.actions):
            np.testing.assert_array_equal(observation, episode.observations[t])
            observation, reward, *_ = env.step(action)
            assert reward == episode.rewards[t]
        np.testing.assert_array_equal(observation, episode.observations[-1])


def test_share_of_steps_on_the_road() -> None:
    class Straight:
        """Drives straight on at full gas, which leaves the road at the first bend."""

        def __init__(self, gas: float) -> None:
            self._action = np.array([0, gas, 0], np.float32)

        def reset(self, rng: np.random.Generator | None = None) -> None: ...

        def act(self, observation: np.ndarray) -> np.ndarray:
            return self._action

    env = make_env(FAST_ENV)
    rng = np.random.default_rng(0)
    limits: dict[str, Any] = {"measure": CAR_RACING.measure, "index": 0, "seed": 0}
    stands, leaves = (
        record_episode(env, Straight(gas), "straight", **limits, max_steps=steps, rng=rng)
        for gas, steps in ((0.0, 10), (1.0, 250))
    )
    assert stands.measure == 1.0
    assert 0.1 < leaves.measure < 0.9
    assert stands.observations.shape == (11, 64, 64, 3)
    assert stands.observations.dtype == np.uint8
    assert stands.truncated
    assert not stands.terminated


# --- the stage -------------------------------------------------------------------------------------------


def test_leaves_shards_a_summary_and_a_picture(whole: Run) -> None:
    rollouts = Rollouts(whole.rollouts)
    assert rollouts.table["index"].tolist() == [0, 1, 2, 3]
    assert len(list(whole.rollouts.glob("*.h5"))) == 2
    summary = json.loads((whole.rollouts / "summary.json").read_text())
    assert summary["episodes"] == 4
    assert summary["frames"] == int((rollouts.table["length"] + 1).sum())
    assert summary["return_mean"] == pytest.approx(rollouts.table["ret"].mean())
    assert summary["policies"] == {"brownian": 4}
    assert list(summary["measures"]) == ["on the road"]
    wanted = np.average(rollouts.table[MEASURE], weights=rollouts.table["length"])
    assert summary["measures"]["on the road"] == pytest.approx(wanted)
    assert summary["bytes"] == sum(path.stat().st_size for path in whole.rollouts.glob("*.h5"))
    assert summary["fingerprint"] == rollouts.fingerprint()
    assert sum(summary["returns"]["counts"]) == 4
    assert summary["returns"]["edges"][-1] == pytest.approx(rollouts.table["ret"].max())
    assert len(summary["actions"]) == 3
    for histogram in summary["actions"]:
        assert sum(histogram["counts"]) == rollouts.table["length"].sum()
    sheet = cv2.imread(str(whole.plots / "contact_sheet.png"))
    assert sheet is not None
    assert sheet.std() > 10
    assert "collect" in whole.read_manifest()["stages"]


def test_the_contact_sheet_shows_the_first_frame(whole: Run) -> None:
    sheet = cv2.imread(str(whole.plots / "contact_sheet.png"))
    assert sheet is not None
    frame = cv2.cvtColor(Rollouts(whole.rollouts).read(0, 0, 1)[0], cv2.COLOR_RGB2BGR)
    height, width = sheet.shape[:2]
    places = cv2.matchTemplate(sheet[: height // 2, : width // 4], frame, cv2.TM_SQDIFF)
    assert places.min() < 1


def test_a_finished_collection_says_so_and_changes_nothing(copy: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rollouts.iterdir()}
    main(arguments(copy.folder))
    assert "finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in copy.rollouts.iterdir()} == before


def test_a_larger_total_adds_episodes(copy: Run, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in copy.rollouts.glob("*.h5")}
    main(arguments(copy.folder, episodes=7))
    after = {path.name: path.read_bytes() for path in copy.rollouts.glob("*.h5")}
    assert before.items() <= after.items()
    main(arguments(tmp_path / "at once", "--episodes-per-shard", "3", episodes=7))
    assert Rollouts(copy.rollouts).fingerprint() == Rollouts(tmp_path / "at once" / "rollouts").fingerprint()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def flip(path: Path) -> None:
    with h5py.File(path) as file:
        chunk = file["frame/observations"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def missing(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [cut, flip, empty, missing])
def test_damage_is_set_aside_and_filled_up(
    whole: Run, copy: Run, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    path = sorted(copy.rollouts.glob("*.h5"))[1]
    damage(path)
    if damage is not missing:
        with pytest.raises(UserError, match=path.name):
            list(Rollouts(copy.rollouts))
    main(arguments(copy.folder))
    assert Rollouts(copy.rollouts).fingerprint() == Rollouts(whole.rollouts).fingerprint()
    said = capsys.readouterr().out
    if damage is not missing:
        assert str(path) in said
        assert (copy.rollouts / "damaged" / path.name).exists()
    assert read_json(copy.rollouts / "summary.json") == read_json(whole.rollouts / "summary.json") | {
        "bytes": sum(p.stat().st_size for p in copy.rollouts.glob("*.h5"))
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 3}, "track 3, which is not that of seed 0"),
        ({"env_id": "CartPole-v1"}, "environment CartPole-v1, not wm/CarRacing-v3"),
        ({"policy": "uniform"}, "policy uniform, not brownian"),
        ({"index": 5_000_000}, "which is not that of seed 0"),
        ({"shorter": 5}, "7 steps, which these limits do not allow"),
    ],
)
def test_a_shard_of_another_collection_stays_and_is_refused(
    whole: Run, copy: Run, change: dict[str, Any], reason: str
) -> None:
    episode = Rollouts(copy.rollouts).episode(0)
    change = dict(change)
    if steps := change.pop("shorter", 0):
        parts: dict[str, Any] = {
            name: getattr(episode, name)[steps:] for name in ("observations", "actions", "rewards")
        }
        episode = replace(episode, **parts)
    first, last = sorted(copy.rollouts.glob("*.h5"))
    write_shard(last, [replace(episode, **change), Rollouts(whole.rollouts).episode(1)])
    cut(first)
    before = contents(copy.folder)
    with pytest.raises(
        UserError, match=rf"{last.name} belongs to another collection .*{reason}.*: choose another RUN or RUNS, give"
    ):
        main(arguments(copy.folder, episodes=5))
    assert contents(copy.folder) == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def of_another_kind(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(3)


def of_another_format(path: Path) -> None:
    shutil.copy(path.parent / "000000-000001.h5", path)
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = 999


def without_episodes(path: Path) -> None:
    write_shard(path, [])


def doubled(path: Path) -> None:
    shutil.copy(path.parent / "000000-000001.h5", path)


@pytest.mark.parametrize("make", [of_another_kind, of_another_format, without_episodes, doubled])
def test_a_whole_file_that_does_not_belong_there_stays_and_is_refused(copy: Run, make: Callable[[Path], None]) -> None:
    make(copy.rollouts / "z.h5")
    cut(copy.rollouts / "000002-000003.h5")
    before = contents(copy.folder)
    with pytest.raises(UserError, match=r"z\.h5 .*: move (it|one of them) away"):
        main(arguments(copy.folder))
    assert contents(copy.folder) == before


def test_who_has_episodes_of_their_own_is_told_how_to_train_on_them(whole: Run, tmp_path: Path) -> None:
    """`make vae` asks for rollouts/summary.json, which only a collection makes; stages.vae takes what is there."""
    run = Run(tmp_path / "run")
    write_shard(run.rollouts / "mine.h5", [replace(episode, seed=7) for episode in Rollouts(whole.rollouts)])
    before = contents(run.folder)
    with pytest.raises(
        UserError, match=f"move it away, or train V .* with `.venv/bin/python -m stages.vae --run {run.folder}`"
    ):
        main(arguments(run.folder))
    assert contents(run.folder) == before | {run.folder / ".lock": b""}


def test_an_earlier_damaged_shard_stays(copy: Run) -> None:
    path = sorted(copy.rollouts.glob("*.h5"))[0]
    contents = [b"damaged once", b"and again"]
    for content in contents:
        path.write_bytes(content)
        set_aside_damaged(copy.rollouts)
    assert sorted(path.read_bytes() for path in (copy.rollouts / "damaged").iterdir()) == sorted(contents)


def test_what_the_system_does_not_open_is_not_taken_for_damaged(copy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    before = sorted(copy.rollouts.rglob("*"))
    with monkeypatch.context() as patched:
        patched.setattr("h5py.File", refused)
        with pytest.raises(MachineError, match=r"cannot be read \(Permission denied\): change the permissions"):
            main(arguments(copy.folder, episodes=5))
    assert sorted(copy.rollouts.rglob("*")) == before


def test_a_hopeless_episode_is_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who stands still has no new tile after the first steps."""
    cut = ["--policy", "brownian", "--max-steps", "60", "--episodes", "4", "--cut-after", "10"]
    run = Run(tmp_path / "run")
    for _ in range(2):
        main(["--run", str(run.folder), "--preset", "smoke", "--workers", "0", *cut])
    assert "set aside" not in capsys.readouterr().out
    table = Rollouts(run.rollouts).table
    assert min(table["length"]) < 60
    assert table["truncated"].all()
    for episode in map(Rollouts(run.rollouts).episode, range(4)):
        last = np.flatnonzero(episode.rewards > 0)[-1] + 1
        assert episode.length == min(last + 10, 60)
        waits = np.diff(np.flatnonzero(episode.rewards > 0))
        assert waits.max(initial=0) <= 10
    assert mismatch(table[table["length"].argmin()], CAR_RACING, "brownian", 60, 0, cut_after=10) == ""
    assert "these limits" in mismatch(table[table["length"].argmin()], CAR_RACING, "brownian", 60, 0)


def test_leftovers_of_a_killed_run_go(copy: Run) -> None:
    leftover = copy.rollouts / ".000000-000001-abc.tmp.h5"
    leftover.write_bytes(b"half a shard")
    assert set_aside_damaged(copy.rollouts) == [0, 1, 2, 3]
    main(arguments(copy.folder))
    assert not leftover.exists()
    assert not (copy.rollouts / "damaged").exists()


def test_other_options_are_refused_and_restart_makes_anew(copy: Run) -> None:
    with pytest.raises(UserError, match=r"max_steps was 12, is 13.*--restart"):
        main(arguments(copy.folder, "--max-steps", "13"))
    before = Rollouts(copy.rollouts).fingerprint()
    main(arguments(copy.folder, "--max-steps", "13", "--restart", episodes=2))
    rollouts = Rollouts(copy.rollouts)
    assert len(rollouts) == 2
    assert rollouts.fingerprint() != before


@pytest.mark.parametrize(
    ("source", "reason"), [("typo", "controller.npz is missing"), ("scout", "in a folder that --restart deletes")]
)
def test_a_restart_throws_nothing_away_before_it_knows_who_drives(copy: Run, source: str, reason: str) -> None:
    shutil.copytree(ROOT / "data" / "pretrained", copy.folder / "scout")
    before = sorted(copy.folder.rglob("*"))
    with pytest.raises(UserError, match=reason):
        main(arguments(copy.folder, "--driven", "2", "--source", str(copy.folder / source), "--restart"))
    assert sorted(copy.folder.rglob("*")) == before


def test_a_controller_drives_the_driven_episodes(whole: Run, copy: Run) -> None:
    driven = ["--driven", "2", "--source", str(ROOT / "data" / "pretrained")]
    main(arguments(copy.folder, *driven))
    rollouts = Rollouts(copy.rollouts)
    assert rollouts.table["policy"].tolist() == [b"brownian"] * 4 + [b"driven"] * 2
    assert rollouts.table["index"].tolist() == [0, 1, 2, 3, DRIVEN_FROM, DRIVEN_FROM + 1]
    for place, before in enumerate(Rollouts(whole.rollouts)):
        assert rollouts.episode(place).digest() == before.digest()
    # While the camera zooms in, twelve steps long, no burst came by these seeds: it is the agent that acts.
    agent = load_agent(ROOT / "data" / "pretrained")
    episode = rollouts.episode(4)
    for frame, action in zip(episode.observations, episode.actions, strict=False):
        np.testing.assert_array_equal(agent.act(frame), action)
    main(arguments(copy.folder, *driven, episodes=5))
    assert Rollouts(copy.rollouts).table["policy"].tolist().count(b"brownian") == 5


def test_a_neighbour_drives_every_second_driven_episode(tmp_path: Path) -> None:
    """The neighbours act as the controller does where [z; h] is as on average, but for a bias of that spread."""
    pretrained = ROOT / "data" / "pretrained"
    options = ["--driven", "4", "--source", str(pretrained), "--bursts", "0", "--spread", "0.05"]
    main(arguments(tmp_path, *options, episodes=2))
    rollouts = Rollouts(tmp_path / "rollouts")
    agent = load_agent(pretrained)
    same = []
    for place in range(2, 6):
        agent.reset()
        episode = rollouts.episode(place)
        equal = []
        for frame, action in zip(episode.observations, episode.actions, strict=False):
            equal.append(np.array_equal(agent.act(frame), action))
        same.append(all(equal))
    assert same == [True, False, True, False]
    driver = load_driver(Run(pretrained), "controller", CollectConfig(bursts=0.5, spread=0.05))
    assert (driver.bursts, driver.spread) == (0.5, 0.05)
    starts = load_starts(pretrained / "starts.npz")
    np.testing.assert_allclose(
        driver.centre, np.concatenate([starts.state["z"], starts.state["h"]], axis=1).mean(0), atol=1e-5
    )
    assert driver.drawn(6, np.random.default_rng(0)) is driver.theta
    away = np.stack([driver.drawn(7, np.random.default_rng(n)) - driver.theta for n in range(50)]).astype(np.float64)
    weights, bias = away[:, :-3].reshape(50, 3, -1), away[:, -3:]
    assert weights.std() == pytest.approx(0.05, rel=0.05)
    assert (bias + weights @ driver.centre).std() == pytest.approx(0.05, rel=0.2)


def test_a_spread_that_no_scout_can_drive_with_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--spread needs starts\.npz, which a scout's controller lacks"):
        main(arguments(tmp_path / "run", "--driven", "2", "--spread", "0.1"))
    assert not (tmp_path / "run").exists()


def test_neighbours_need_a_linear_controller_and_starts(tmp_path: Path) -> None:
    run, pretrained = Run(tmp_path / "run"), Run(ROOT / "data" / "pretrained")
    run.folder.mkdir()
    for path in (pretrained.vae, pretrained.mdnrnn, pretrained.controller, pretrained.manifest):
        shutil.copy(path, run.folder)
    with pytest.raises(UserError, match=r"starts\.npz is missing: make it with `make dream`"):
        load_driver(run, "controller", CollectConfig(spread=0.1))
    assert load_driver(run, "controller", CollectConfig()).spread == 0
    theta = np.zeros(Hidden(3, 4).count(288), np.float32)
    save_controller(run.controller, theta, load_controller(run.controller)[1])
    with pytest.raises(UserError, match="--spread needs a linear controller"):
        load_driver(run, "controller", CollectConfig(spread=0.1))


def test_who_is_to_drive_has_to_be_there(copy: Run) -> None:
    before = Rollouts(copy.rollouts).fingerprint()
    with pytest.raises(UserError, match=r"controller\.npz is missing.*make controller"):
        main(arguments(copy.folder, "--driven", "2", "--source", str(copy.folder)))
    assert Rollouts(copy.rollouts).fingerprint() == before
    assert (copy.rollouts / "summary.json").exists()
    assert copy.read_manifest()["stages"]["collect"]["config"]["driven"] == 0


def test_a_scout_of_no_preset_is_refused(copy: Run) -> None:
    with pytest.raises(UserError, match=r"--scout tiny is not a preset: choose one of smoke, scout, rounds"):
        main(arguments(copy.folder, "--driven", "2", "--scout", "tiny"))


@pytest.mark.parametrize(
    "wrong", [["--driven", "-1"], ["--episodes", "1"], ["--max-steps", "0"], ["--episodes-per-shard", "0"]]
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, wrong: list[str]) -> None:
    with pytest.raises(UserError, match=wrong[0]):
        main(arguments(tmp_path, *wrong))


# --- by subprocess ---------------------------------------------------------------------------------------


def command(folder: Path, workers: int) -> list[str]:
    more = ["--episodes", "24", "--episodes-per-shard", "2", "--max-steps", "60", "--workers", str(workers)]
    return [sys.executable, "-m", "stages.collect", "--run", str(folder), "--preset", "smoke", *more]


@pytest.mark.slow
def test_neither_workers_nor_kills_change_what_is_collected(tmp_path: Path) -> None:
    subprocess.run(command(tmp_path / "inline", 0), cwd=ROOT, check=True, capture_output=True)
    wanted = Rollouts(tmp_path / "inline" / "rollouts").fingerprint()

    killed = Run(tmp_path / "killed")
    for shards in (1, 4, 8):
        process = subprocess.Popen(
            command(killed.folder, 2),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while process.poll() is None and len(list(killed.rollouts.glob("[!.]*.h5"))) < shards:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    # A kill costs at most the shards that were open.
    assert len(Rollouts(killed.rollouts)) >= 16
    subprocess.run(command(killed.folder, 2), cwd=ROOT, check=True, capture_output=True)
    assert Rollouts(killed.rollouts).fingerprint() == wanted
    assert not [path for path in killed.rollouts.iterdir() if ".tmp" in path.name]
    assert read_json(killed.rollouts / "summary.json")["episodes"] == 24


@pytest.mark.parametrize(
    ("driver", "wanted"),
    [
        ("controller", [("collect", "--driven 0"), ("vae", ""), ("memory", ""), ("controller", "")]),
        (
            "dream-latest",
            [
                *(("collect", "--driven 0"), ("vae", ""), ("memory", "--memory mdnrnn")),
                ("dream", "--memory mdnrnn --controller linear"),
            ],
        ),
        (
            "dream-drift-wave",
            [
                *(("collect", "--driven 0"), ("vae", ""), ("memory", "--memory drift")),
                ("dream", "--memory drift --controller wave"),
            ],
        ),
    ],
)
def test_the_scout_makes_the_controller_that_drives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str, wanted: list[tuple[str, str]]
) -> None:
    calls = list[tuple[str, str]]()
    monkeypatch.setattr("stages.collect.call_stage", lambda stage, _, more: calls.append((stage, " ".join(more))))
    with pytest.raises(UserError, match=rf"{driver}\.npz is missing"):
        main(arguments(tmp_path / "run", "--driven", "2", "--driver", driver))
    assert calls == wanted
    with pytest.raises(UserError, match="there is no --driver dream-odd: choose"):
        main(arguments(tmp_path / "run", "--driven", "2", "--driver", "dream-odd"))


def test_the_episodes_of_a_task_in_a_module_of_its_own_belong_to_it(tmp_path: Path) -> None:
    task = replace(CARTPOLE, env_id="gymnasium.envs.classic_control:CartPole-v1")
    row = cartpole(tmp_path, [[0]]).table[0]
    assert not mismatch(row, task, "uniform", 30, 0).startswith("environment")
