"""The whole pipeline by the commands that the README gives, at the smoke preset's sizes."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import av
import gymnasium
import h5py
import numpy as np
import pytest
import torch

import wm.envs  # noqa: F401  registers wm/Dream-v0
from tests.here import make_here, outside_of_make, run_here
from wm.config.presets import PRESETS, SMOKE, STOCK_ENV
from wm.controller.file import load_controller, save_controller
from wm.controller.hidden import Hidden
from wm.driving.loading import load_agent
from wm.run.checksums import file_hash
from wm.run.metrics import read_metrics

ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

Make = Callable[..., subprocess.CompletedProcess[str]]


def make_in(
    runs: Path, workers: int, how: Callable[[list[str], dict[str, str]], subprocess.CompletedProcess[str]]
) -> Make:
    """Runs make in the repository with its run folders in `runs`."""

    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = how(
            [*arguments, f"RUNS={runs}", "PRESET=smoke", f"WORKERS={workers}", f"THREADS={max(1, workers)}"],
            outside_of_make(),
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def make(runs: Path) -> Make:
    """The real command, whose stages have worker processes."""

    def how(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        command = ["make", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    return make_in(runs, 2, how)


@pytest.fixture(scope="module")
def here(runs: Path) -> Make:
    """The same in this process and without workers, for what the real command has shown to start."""
    return make_in(runs, 0, make_here)


@pytest.fixture(scope="module")
def blind(runs: Path) -> Make:
    """The same without plots, where nobody looks at them: they take longer than stages as short as these."""
    return make_in(runs, 0, partial(make_here, pictures=False))


@pytest.fixture(scope="module")
def run(make: Make, runs: Path) -> Path:
    """A run folder made by the main command."""
    make("collect", "vae", "mdnrnn", "controller")
    return runs / "carracing"


def test_every_file_is_there(run: Path) -> None:
    for name in (
        "vae.pt",
        "latents.h5",
        "mdnrnn.pt",
        "controller.npz",
        "manifest.json",
        "metrics.jsonl",
        "rollouts/summary.json",
        "plots/contact_sheet.png",
        "plots/reconstructions.png",
        "plots/traversals.png",
        "plots/predictions.png",
        "plots/controller.png",
    ):
        assert (run / name).stat().st_size > 0, name
    assert not [path for path in run.rglob("*") if ".tmp" in path.name]
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["env"] == "CarRacing-v3"
    assert set(manifest["stages"]) == {"collect", "vae", "mdnrnn", "controller"}
    for stage in manifest["stages"].values():
        assert stage["seconds"] > 0
        assert stage["peak_memory_mb"] > 0
        assert stage["versions"]["gymnasium"]
    for stage in ("vae", "mdnrnn", "controller"):
        assert read_metrics(run / "metrics.jsonl", stage)
        assert list((run / "tensorboard" / stage).glob("events.*"))


def test_no_artifact_holds_a_pickled_object(run: Path) -> None:
    for path in (run / "vae.pt", run / "mdnrnn.pt", *run.glob("checkpoints/*.pt")):
        torch.load(path, weights_only=True)
    for path in (run / "controller.npz", *run.glob("checkpoints/*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            assert [arrays[name] for name in arrays.files]
    for path in (run / "latents.h5", *run.glob("rollouts/*.h5")):
        with h5py.File(path) as file:
            file.visititems(lambda name, item: None)


def test_a_finished_stage_says_so_and_changes_nothing(run: Path, here: Make) -> None:
    files = ("vae.pt", "latents.h5", "mdnrnn.pt", "controller.npz", "metrics.jsonl")
    before = {name: (run / name).read_bytes() for name in files}
    done = here("collect", "vae", "mdnrnn", "controller")
    assert done.stdout.count("finished") >= 4
    assert {name: (run / name).read_bytes() for name in files} == before


def test_a_larger_total_adds_generations(run: Path, blind: Make) -> None:
    before = read_metrics(run / "metrics.jsonl", "controller")
    blind("controller", f"GENERATIONS={len(before) + 1}")
    after = read_metrics(run / "metrics.jsonl", "controller")
    assert after[:-1] == before
    assert after[-1]["step"] == len(before) + 1


def test_evaluate_replay_and_three_lines_of_python(run: Path, make: Make, here: Make) -> None:
    done = make("evaluate")
    score = json.loads((run / "score.json").read_text())
    assert score["env_id"] == "CarRacing-v3"
    assert len(score["returns"]) == len(score["seeds"]) == len(score["lengths"]) == 2
    assert score["mean"] == pytest.approx(np.mean(score["returns"]))
    assert f"{score['mean']:.0f}" in done.stdout
    assert "finished" in here("evaluate").stdout
    assert len((run / "scores.jsonl").read_text().splitlines()) == 1
    here("evaluate", "ARGS=--fast --episodes 1")
    assert json.loads((run / "score-fast.json").read_text())["env_id"] == "wm/CarRacing-v3"

    done = here("probe")
    assert "turn rate" in done.stdout
    assert (run / "plots" / "probe.png").stat().st_size > 0
    assert "finished" in here("probe").stdout

    here("replay", "CAR=fast", "EPISODE=5", "ARGS=--max-steps 30")
    assert (run / "videos" / "real-fast-5.webp").stat().st_size > 0
    with av.open(str(run / "videos" / "real-fast-5.mp4")) as video:
        stream = video.streams.video[0]
        assert stream.codec_context.name == "h264"
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 30
    assert stream.average_rate == 50

    here("report", "COMPARE=pretrained")
    page = (run / "report.html").read_text()
    assert f"{score['mean']:.0f} ± {score['std']:.0f} on 2 tracks" in page
    assert page.count("data:video/mp4") == 2
    assert page.count("data:image/png") >= 4

    agent = load_agent(run)
    agent.reset()
    action = agent.act(np.zeros((96, 96, 3), np.uint8))
    assert action.shape == (3,)
    assert action.dtype == np.float32


def test_the_dream(run: Path, make: Make, here: Make) -> None:
    done = make("dream")
    assert "real steps" in done.stdout
    for name in ("starts.npz", "dream.npz", "plots/calibration.png", "plots/dream.png"):
        assert (run / name).stat().st_size > 0, name
    assert "finished" in here("dream").stdout
    before = (run / "score.json").read_bytes()
    here("evaluate", "ARGS=--controller dream")
    score = json.loads((run / "score-dream.json").read_text())
    assert score["controller"] == "dream"
    assert "dream.npz" in score["made_from"]
    assert (run / "score.json").read_bytes() == before
    assert json.loads((run / "scores.jsonl").read_text().splitlines()[-1])["controller"] == "dream"
    here("replay", "CAR=fast", "EPISODE=5", "ARGS=--controller dream --max-steps 10")
    assert (run / "videos" / "by-dream-real-fast-5.mp4").stat().st_size > 0


def test_publish_keeps_the_chain_and_the_driving(run: Path, blind: Make, tmp_path: Path) -> None:
    blind("evaluate")
    blind("dream")
    blind("evaluate", "ARGS=--controller dream")
    blind("publish", f"ARGS=--to {tmp_path / 'published'}")
    frame = np.random.default_rng(0).integers(0, 255, (96, 96, 3)).astype(np.uint8)
    actions = []
    for folder in (run, tmp_path / "published"):
        agent = load_agent(folder)
        for _ in range(5):
            action = agent.act(frame)
        actions.append(action)
    np.testing.assert_allclose(actions[0], actions[1], atol=0.02)
    load_agent(tmp_path / "published", controller="dream")
    assert (tmp_path / "published" / "score-dream.json").exists()
    env = gymnasium.make("wm/Dream-v0", run=str(tmp_path / "published"))
    observation, _ = env.reset(seed=0)
    assert observation.shape == (288,)
    assert env.step(np.array([0, 0.1, 0], np.float32))[0] in env.observation_space


def test_an_evolution_that_starts_from_a_controller(run: Path, tmp_path: Path) -> None:
    first = run / "controller.npz"

    def evolve(start: Path, code: int = 0) -> str:
        # A step size of nearly nothing leaves the first mean where it is.
        still = ["--sigma0", "1e-9", "--sigma-max", "1e-9", "--generations", "1", "--centre"]
        where = ["--run", str(tmp_path / "warm"), "--source", str(run), "--start", str(start)]
        done = run_here("controller", [*where, "--preset", "smoke", "--workers", "0", *still])
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr

    assert f"{tmp_path / 'none.npz'} is missing" in evolve(tmp_path / "none.npz", code=2)
    evolve(first)
    (theta, meta), (before, _) = (load_controller(path) for path in (tmp_path / "warm" / "controller.npz", first))
    np.testing.assert_allclose(theta, before, atol=1e-5)
    assert meta["made_from"]["start"] == file_hash(first)
    save_controller(tmp_path / "other.npz", theta + 1, {"made_from": {}})
    assert "made from another start" in evolve(tmp_path / "other.npz", code=2)


def test_another_round_on_the_controllers_own_driving(run: Path, blind: Make) -> None:
    blind("collect", "RUN=second", f"ARGS=--driven 3 --source {run}")
    for stage in ("vae", "mdnrnn"):
        blind(stage, "RUN=second", "ARGS=--updates 4")
    blind(
        "controller",
        "RUN=second",
        f"ARGS=--carry {run} --components 8 --whiten 1 --tracks 2 --double-every 1 --disturb 0.01",
    )
    second = run.parent / "second"
    summary = json.loads((second / "rollouts" / "summary.json").read_text())
    assert summary["policies"]["driven"] == 3
    theta, meta = load_controller(second / "controller.npz")
    assert theta.shape == (867,)
    assert meta["made_from"]["start"] == file_hash(run / "controller.npz")
    load_agent(second)
    both = blind("controller", "RUN=second", f"ARGS=--restart --carry {run} --start {run / 'controller.npz'}", code=2)
    assert "--start and --carry" in both.stderr


def test_a_scout_drives_when_nobody_is_named(runs: Path, blind: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = replace(SMOKE, vae=replace(SMOKE.vae, updates=4), mdnrnn=replace(SMOKE.mdnrnn, updates=4))
    monkeypatch.setitem(PRESETS[STOCK_ENV], "smoke", tiny)
    options = "ARGS=--driven 3 --scout smoke"
    first = blind("collect", "RUN=scouted", options)
    assert first.stdout.index("stage 1 of 4: collect") < first.stdout.index("stage 4 of 4: controller")
    folder = runs / "scouted"
    summary = json.loads((folder / "rollouts" / "summary.json").read_text())
    assert summary["policies"]["driven"] == 3
    assert "driven" not in json.loads((folder / "scout" / "rollouts" / "summary.json").read_text())["policies"]
    before = read_metrics(folder / "scout" / "metrics.jsonl", "controller")
    assert "finished" in blind("collect", "RUN=scouted", options).stdout
    blind("collect", "RUN=scouted", "ARGS=--driven 5 --scout smoke")  # the scout is there, and stays as it is
    assert read_metrics(folder / "scout" / "metrics.jsonl", "controller") == before


def test_curves_of_variants_at_an_equal_budget(run: Path, make: Make, here: Make) -> None:
    one = here("curves", "ARGS=--name one --steps 500 --seeds 1 2")
    done = here("curves", "ARGS=--name pairs --steps 500 --seeds 1 --options='--tracks=2 --inputs=z --hidden-units=3'")
    assert "one: " in done.stdout
    assert "(2 seeds)" in done.stdout
    assert "pairs: " in done.stdout
    rows = [json.loads(line) for line in (run / "curves.jsonl").read_text().splitlines()]
    assert [(row["name"], row["seed"], row["config"]["tracks"]) for row in rows] == [
        ("one", 1, 1),
        ("one", 2, 1),
        ("pairs", 1, 2),
    ]
    for row in rows:
        assert row["curve"][-1]["env_steps"] >= 500
        assert all(earlier["env_steps"] < 500 for earlier in row["curve"][:-1])
    assert rows[0]["curve"] != rows[1]["curve"]
    theta, _ = load_controller(run / "variants" / "pairs" / "1" / "controller.npz")
    weights = theta[: 3 * 288].reshape(3, 288)
    assert len(theta) == Hidden(3, 3).count(288)
    assert weights[:, :32].all()
    assert not weights[:, 32:].any()
    assert (run / "plots" / "curves.png").stat().st_size > 0
    # What is there is not evolved again, and a name stands for one variant.
    again = here("curves", "ARGS=--name one --steps 500 --seeds 1 2")
    assert len((run / "curves.jsonl").read_text().splitlines()) == 3
    assert [line for line in again.stdout.splitlines() if ": " in line] == [
        line for line in one.stdout.splitlines() if line.startswith("one: ")
    ] + [line for line in done.stdout.splitlines() if line.startswith("pairs: ")]
    other = make("curves", "ARGS=--name one --options=--tracks=3", code=2)
    assert "choose another --name" in other.stderr
    dreamt = make("curves", "ARGS=--stage dream --name short --steps 500 --seeds 1 --options='--horizon=60'")
    assert "short: " in dreamt.stdout
    assert "pairs: " not in dreamt.stdout
    last = json.loads((run / "curves.jsonl").read_text().splitlines()[-1])
    assert last["config"]["horizon"] == 60
    assert {"select", "dream"} <= set(last["curve"][-1])
    assert (run / "plots" / "curves-dream.png").stat().st_size > 0


def test_an_ablation(run: Path, make: Make, blind: Make) -> None:
    options = "ARGS=--rows v untrained-m --steps 100 --select-every 1 --select-tracks 1"
    done = blind("ablate", "EPISODES=1", options)
    assert "V only, linear " in done.stdout
    table = json.loads((run / "ablations.json").read_text())["rows"]
    assert list(table) == ["untrained-m", "v"]
    untrained = run / "ablations" / "untrained-m"
    assert (untrained / "latents.h5").samefile(run / "latents.h5")
    assert not (untrained / "mdnrnn.pt").samefile(run / "mdnrnn.pt")
    load_agent(untrained)
    assert blind("ablate", "EPISODES=1", options).stdout.count("is finished") == 5
    assert "--rows many is unknown" in make("ablate", "ARGS=--rows many", code=2).stderr


def test_new_data_under_an_old_v_is_refused_in_one_sentence(run: Path, blind: Make) -> None:
    # The last test of this file: it leaves the run folder with more data than V was trained on.
    blind("collect", "EPISODES=9")
    for stage in ("vae", "mdnrnn"):
        done = blind(stage, code=2)
        sentence = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert len(sentence) == 1
        assert "rollouts" in sentence[0]
        assert "--restart" in sentence[0]
        assert "Traceback" not in done.stderr
    blind("vae", "ARGS=--restart --updates 1")
    done = blind("controller", code=2)
    assert "vae.pt" in done.stderr


def test_evaluate_and_replay_name_the_command_that_is_missing(make: Make) -> None:
    for stage in ("evaluate", "probe", "replay", "publish"):
        done = make(stage, "RUN=empty", code=2)
        assert "make controller" in done.stderr
        assert "Traceback" not in done.stderr
    assert "make collect" in make("report", "RUN=empty", code=2).stderr
