"""The stage dream, run in this process on a toy run with real selection tracks: what it makes, refuses, and resumes."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stages.dream
from stages.dream import main
from tests.toy_dream import CONFIG, FEATURES, LINEAR, Z, make_population, make_toy_member, make_toy_run, toy_mdnrnn
from wm.config.presets import PRESETS, STOCK_ENV
from wm.controller.basis import fit_basis
from wm.controller.file import load_controller, save_controller
from wm.controller.hidden import Hidden
from wm.dream.ensemble import load_ensemble
from wm.dream.networks import load_networks
from wm.dream.population import Population
from wm.driving.loading import load_acting, load_agent
from wm.envs import TASKS
from wm.envs.car_racing.task import CAR_RACING
from wm.learning.evolution import Evolution
from wm.memory.mdnrnn import save_mdnrnn
from wm.run.checksums import file_hash
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.json_files import read_lines
from wm.run.metrics import read_metrics
from wm.store.starts import load_starts

SMALL = [
    *("--preset", "smoke", "--workers", "0", "--threads", "1", "--generations", "4", "--select-every", "2"),
    *("--start-after", "20", "--max-steps", "3", "--select-tracks", "1", "--centre"),
]
TIMES = ("time", "seconds", "steps_per_second")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_run(tmp_path_factory.mktemp("toy")).folder


@pytest.fixture
def run(source: Path, tmp_path: Path) -> Iterator[Run]:
    threads = torch.get_num_threads()
    yield Run(shutil.copytree(source, tmp_path / "run"))
    torch.set_num_threads(threads)


def stage(run: Run, *arguments: str, pictures: bool = False) -> None:
    """Runs the stage; its pictures, the slowest part of so short a run, only where they are wanted."""
    with pytest.MonkeyPatch.context() as patch:
        if not pictures:
            patch.setattr(stages.dream, "calibrate", lambda *_: None)
            patch.setattr(stages.dream, "print_result", lambda *_: None)
        main(["--run", str(run.folder), *SMALL, *arguments])


def outcome(run: Run) -> tuple[bytes, bytes, dict[str, Any], bytes, list[dict[str, float]]]:
    """All that an uninterrupted and a resumed run have to have in common."""
    theta, meta = load_controller(run.dream)
    latest, _ = load_controller(run.dream_latest)
    lines = [{name: value for name, value in row.items() if name not in TIMES} for row in read_lines(run.metrics)]
    return (
        theta.tobytes(),
        latest.tobytes(),
        meta,
        Evolution.load(run.checkpoints / "dream.npz").es.mean.tobytes(),
        lines,
    )


def test_the_whole_stage(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    stage(run, pictures=True)
    said = capsys.readouterr().out
    assert "M's calibration on 2 validation episodes: pulse " in said
    assert "(640 dream steps" in said  # 4 generations of 4 candidates, 2 dreams each of 20 steps
    assert "570 real steps: 564 for data, 6 for selection" in said
    for name in ("starts.npz", "dream.npz", "plots/calibration.png", "plots/dream.png", "checkpoints/dream.npz"):
        assert (run.folder / name).stat().st_size > 0, name
    assert not run.controller.exists()
    starts = load_starts(run.starts)
    assert len(starts) == 8
    assert starts.step.min() >= 20

    rows = read_metrics(run.metrics, "dream")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "select" in row] == [2, 4]
    assert all(np.isfinite(row["dream"]) for row in rows if "select" in row)
    assert (rows[-1]["env_steps"], rows[-1]["select_steps"]) == (640, 6)
    (calibration,) = read_metrics(run.metrics, "calibration")
    assert {"pulse_error", "terminated_error", "clip_real", "clip_dreamt", "clip_correlation"} <= set(calibration)

    theta, meta = load_controller(run.dream)
    assert theta.shape == (3 * 13,)
    assert set(meta["made_from"]) == {"vae.pt", "mdnrnn.pt", "starts.npz"}
    assert (meta["env_steps"], meta["select_steps"], meta["generations"]) == (640, 6, 4)
    latest, meta = load_controller(run.dream_latest)
    assert (meta["generation"], meta["generations"], meta["selection_score"]) == (4, 4, None)
    es = Evolution.load(run.checkpoints / "dream.npz").es
    features = np.concatenate([starts.state["z"], starts.state["h"]], axis=1)
    basis = fit_basis(features, LINEAR, centre=True, whiten=0, components=0)
    np.testing.assert_array_equal(latest, basis.express(es.mean).astype(np.float32))
    agent = load_agent(run.folder, controller="dream")
    assert agent.act(np.zeros((96, 96, 3), np.uint8)).shape == (3,)
    assert agent.z.shape == (Z,)
    with pytest.raises(UserError, match=r"controller\.npz is missing: make it with `make controller`"):
        load_agent(run.folder)
    with pytest.raises(UserError, match="there is no controller 'night'"):
        load_agent(run.folder, controller="night")

    before = {path: path.read_bytes() for path in run.folder.rglob("*.npz")}
    stage(run)
    assert "finished" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before


def test_another_c_has_files_of_its_own(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    stage(run, "--controller", "hidden")
    assert {path.name for path in run.folder.glob("*.npz")} == {
        *("starts.npz", "dream-mdnrnn-hidden.npz", "dream-mdnrnn-hidden-latest.npz")
    }
    wanted = Hidden(outputs=3, units=40)
    for name in ("dream-mdnrnn-hidden", "dream-mdnrnn-hidden-latest"):
        theta, meta = load_controller(run.folder / f"{name}.npz")
        assert (meta["kind"], meta["sizes"], meta["memory"]) == ("hidden", {"outputs": 3, "units": 40}, "mdnrnn")
        assert theta.shape == (wanted.count(FEATURES),)
        models, loaded = load_acting(run, name)
        np.testing.assert_array_equal(loaded, theta)
        assert models.layout == wanted
        assert models.agents()(loaded).act(np.zeros((96, 96, 3), np.uint8)).shape == (3,)
    assert {row["stage"] for row in read_lines(run.metrics)} == {"dream-mdnrnn-hidden"}
    # A linear C of the same M beside it starts where it did.
    starts = run.starts.read_bytes()
    before = {path: path.read_bytes() for path in run.folder.glob("dream-*.npz")}
    stage(run)
    assert load_controller(run.dream)[1]["kind"] == "linear"
    assert {path: path.read_bytes() for path in before} == before
    assert run.starts.read_bytes() == starts
    made = run.dream.read_bytes()
    stage(run, "--controller", "hidden", "--starts", "3", "--restart")
    assert "starts.npz stays as dream needs it: 8 starts, whatever the options." in capsys.readouterr().out
    assert (run.starts.read_bytes(), run.dream.read_bytes()) == (starts, made)
    save_mdnrnn(run.mdnrnn, toy_mdnrnn(seed=1).state_dict(), CONFIG, {"vae.pt": file_hash(run.vae)})
    with pytest.raises(
        UserError, match=r"starts\.npz has the starts of dream-mdnrnn-hidden, of another V or M: choose"
    ):
        stage(run, "--restart")
    assert (run.starts.read_bytes(), run.dream.read_bytes()) == (starts, made)


@pytest.mark.parametrize(
    ("at", "options"),
    [
        *((1, ()), (2, ()), (3, ())),
        *((2, ("--dropout", "0.3")), (2, ("--disagreement", "9", "--ensemble"))),
        (2, ("--noise", "recorded", "--value", "5", "--fresh", "3")),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    run: Run, source: Path, tmp_path: Path, at: int, options: tuple[str, ...]
) -> None:
    whole = Run(shutil.copytree(source, tmp_path / "whole"))
    if "--ensemble" in options:
        options += tuple(str(make_toy_member(tmp_path / str(seed), run, seed)) for seed in (1, 2))
    stage(whole, *options)
    original, calls = Population.score, 0

    def interrupted(self: Population, thetas: Any, *rest: Any) -> Any:
        nonlocal calls
        calls += len(thetas) > 1  # generations; a single theta is the distribution mean
        if calls == at and (len(thetas) == 1) == (at == 2):  # generation 2: while the mean is scored
            raise KeyboardInterrupt
        return original(self, thetas, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Population, "score", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stage(run, *options)
    drawn = run.starts.read_bytes()
    stage(run, *options)
    assert run.starts.read_bytes() == drawn == whole.starts.read_bytes()
    assert outcome(run) == outcome(whole)


def test_seeds_differ_and_restart_begins_anew(run: Run) -> None:
    stage(run, "--seed", "1")
    first = outcome(run)
    with pytest.raises(UserError, match=r"seed was 1, is 0.*--restart"):
        stage(run)
    stage(run, "--restart")
    assert outcome(run)[0] != first[0]
    stage(run, "--restart", "--seed", "1")
    assert outcome(run) == first


def test_each_draw_has_candidates_and_dreams_of_its_own(run: Run) -> None:
    outcomes = []
    for options in (("--seed", "1"), ("--seed", "1", "--draw", "1"), ("--seed", "0", "--draw", "1")):
        stage(run, *options, "--restart")
        outcomes.append(outcome(run)[0])
    assert len(set(map(str, outcomes))) == 3
    with pytest.raises(UserError, match=r"draw was 1, is 2.*--restart"):
        stage(run, "--draw", "2")


def test_v_m_and_record_may_lie_in_another_folder(run: Run, source: Path, tmp_path: Path) -> None:
    other = Run(tmp_path / "other")
    stage(other, "--source", str(source))
    stage(run)
    assert outcome(run) == outcome(other)
    assert {path.name for path in other.folder.glob("*.*")} == {
        *(".lock", "starts.npz", "dream.npz", "dream-latest.npz", "metrics.jsonl", "manifest.json")
    }


def test_threads_change_nothing(run: Run, source: Path, tmp_path: Path) -> None:
    other = Run(shutil.copytree(source, tmp_path / "other"))
    stage(run)
    stage(other, "--threads", "3")
    assert outcome(run) == outcome(other)


def test_an_ensemble_cannot_change_under_way(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (str(make_toy_member(tmp_path / str(seed), run, seed)) for seed in (1, 2))
    stage(run, "--ensemble", one)
    assert "ensemble of 2 M's" in capsys.readouterr().out
    first = outcome(run)
    moved = str(shutil.move(one, tmp_path / "moved"))
    for ensemble in ((), ("--ensemble", other), ("--ensemble", moved, other)):
        with pytest.raises(UserError, match=r"a dream made with other options \(ensemble was "):
            stage(run, *ensemble, "--generations", "5")
    stage(run, "--ensemble", moved)
    assert "finished" in capsys.readouterr().out
    stage(run, "--restart")
    assert outcome(run)[0] != first[0]
    with pytest.raises(UserError, match=r"--ensemble .*gone: .*mdnrnn\.pt is missing"):
        stage(run, "--ensemble", str(tmp_path / "gone"))


def test_a_penalty_is_in_the_fitness_and_not_in_the_dream_score(run: Run, source: Path, tmp_path: Path) -> None:
    other = make_toy_member(tmp_path / "m", run, 1)
    runs = [Run(shutil.copytree(source, tmp_path / weight)) for weight in ("0", "1", "4")]
    for this in runs:
        options = ("--ensemble", str(other), "--disagreement", this.folder.name)
        stage(this, *options, "--generations", "1", "--select-every", "1")
    rows = [read_metrics(this.metrics, "dream")[0] for this in runs]
    # The first generation's candidates, and so the fitness without the penalty, are the same in all three.
    means = [row["mean"] for row in rows]
    assert means[0] - means[1] > 1
    assert means[0] - means[2] == pytest.approx(4 * (means[0] - means[1]), rel=0.02)

    networks, starts = load_networks(runs[2]), load_starts(runs[2].starts)
    others = load_ensemble([other], runs[2], networks, starts)
    population = make_population(networks, starts, PRESETS[STOCK_ENV]["smoke"].dream, others=others)
    dream_noise = population.draw_noise(0, 0, dreams=stages.dream.SCORE_DREAMS)
    theta = load_controller(runs[2].dream)[0][None].astype(np.float64)
    plain, penalised = (population.score(theta, dream_noise, weight)[0] for weight in (0.0, 1.0))
    assert rows[2]["dream"] == pytest.approx(plain, rel=1e-3)
    assert rows[2]["disagreement"] == pytest.approx((plain - penalised) / 1000, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--temperature", "0"), "--temperature 0.0 is out of range"),
        (("--dropout", "1"), "--dropout 1.0 is out of range"),
        (("--disagreement", "1"), "--disagreement needs an ensemble"),
        (("--unpaid", "20"), "--unpaid must be below --horizon"),
        (("--start-after", "19"), "--start-after at least 20"),
        (("--dreams", "0"), "--dreams 0 is out of range"),
        (("--horizon", "0"), "--horizon 0 is out of range"),
        (("--starts", "0"), "--starts 0 is out of range"),
        (("--popsize", "3"), "--popsize 3 is out of range"),
        (("--start-after", "90"), "no recorded episode is longer than --start-after 90"),
    ],
)
def test_options_that_make_no_dream(run: Run, arguments: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        stage(run, *arguments)
    assert not run.starts.exists()
    assert not run.dream.exists()


def test_what_is_refused_leaves_no_starts_behind(run: Run, tmp_path: Path) -> None:
    """The next call, of other options, draws its own."""
    save_controller(tmp_path / "small.npz", np.zeros(6), {"made_from": {}})
    wrong = ("--start", str(tmp_path / "small.npz"))
    with pytest.raises(UserError, match="give another controller"):
        stage(run, *wrong, "--starts", "3")
    assert not run.starts.exists()
    stage(run, "--starts", "5")
    assert len(load_starts(run.starts)) == 5


@pytest.mark.parametrize(
    ("options", "sentence"), [(("--start", "small.npz"), "give another controller"), ((), r"latents\.h5 is missing")]
)
def test_a_restart_that_is_refused_leaves_all_as_it_is(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_controller(tmp_path / "small.npz", np.zeros(6), {"made_from": {}})
    stage(run, "--starts", "5")
    before = {path: path.read_bytes() for path in (run.starts, run.dream, run.dream_latest)}
    if not options:
        run.latents.unlink()
    with pytest.raises(UserError, match=sentence):
        stage(run, "--restart", "--starts", "7", *options)
    assert {path: path.read_bytes() for path in before} == before


def test_starts_without_a_record_are_taken_as_they_are(run: Run) -> None:
    """As in what is published; drawn again only where the record is there."""
    stage(run, "--starts", "5")
    drawn = run.starts.read_bytes()
    run.manifest.unlink()
    run.dream.unlink()
    run.latents.rename(run.latents.with_suffix(".away"))
    shutil.rmtree(run.checkpoints)
    stage(run, "--starts", "7")
    assert run.starts.read_bytes() == drawn


def test_another_m_is_refused(run: Run) -> None:
    stage(run)
    save_mdnrnn(run.mdnrnn, toy_mdnrnn(seed=1).state_dict(), CONFIG, {"vae.pt": file_hash(run.vae)})
    with pytest.raises(UserError, match=r"starts\.npz was made from another mdnrnn\.pt .*`make dream ARGS=--restart`"):
        stage(run)
    stage(run, "--restart")
    assert load_controller(run.dream)[1]["made_from"]["mdnrnn.pt"] == file_hash(run.mdnrnn)


@pytest.mark.parametrize(
    ("missing", "command"), [("vae", "make vae"), ("mdnrnn", "make mdnrnn"), ("latents", "make mdnrnn")]
)
def test_missing_inputs_say_which_command_makes_them(run: Run, missing: str, command: str) -> None:
    getattr(run, missing).unlink()
    with pytest.raises(UserError, match=command):
        stage(run)


def test_it_starts_from_another_controller(run: Run, source: Path, tmp_path: Path) -> None:
    stage(run)
    other = Run(shutil.copytree(source, tmp_path / "other"))
    shutil.copy(run.starts, other.starts)
    small = ["--sigma0", "1e-9", "--sigma-max", "1e-9"]
    stage(other, "--start", str(run.dream_latest), "--generations", "1", *small)
    begun, meta = load_controller(other.dream_latest)
    np.testing.assert_allclose(begun, load_controller(run.dream_latest)[0], atol=1e-5)
    assert meta["made_from"]["start"] == file_hash(run.dream_latest)
    with pytest.raises(UserError, match="so nothing can start from it"):
        stage(other, "--start", str(tmp_path / "nothing.npz"), "--generations", "2", *small)
    save_controller(tmp_path / "small.npz", np.zeros(6), {"made_from": {}})
    with pytest.raises(UserError, match=r"small\.npz has 6 weights, but this C has 39: give another controller"):
        stage(other, "--restart", "--start", str(tmp_path / "small.npz"))
    np.testing.assert_array_equal(load_controller(other.dream_latest)[0], begun)


def test_recorded_noise_has_a_temperature_of_its_own(run: Run) -> None:
    with pytest.raises(UserError, match="--noise recorded needs --temperature 1"):
        stage(run, "--noise", "recorded", "--temperature", "1.5")
    assert not run.dream.exists()


def test_a_value_that_nothing_recorded_tells_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, STOCK_ENV, replace(CAR_RACING, settled=100))
    with pytest.raises(UserError, match=r"--value 5 is too long \(no recorded episode is longer than 100 \+ 5"):
        stage(run, "--value", "5")
    assert not run.dream.exists()
