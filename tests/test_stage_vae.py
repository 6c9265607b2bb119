"""Stage vae on small drawn rollouts: what it leaves behind, when it is finished, and that no kill changes a bit."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

import stages.vae
import wm.vision.kinds
import wm.vision.training
from stages.vae import main
from wm.config.presets import SMOKE
from wm.learning.checkpoint import Best
from wm.run.checksums import file_hash
from wm.run.device import derived_seed
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.json_files import write_json
from wm.run.metrics import read_metrics
from wm.store.episode import Episode
from wm.store.shards import Rollouts, write_shard
from wm.vision.encoder import Encoder, encoder_graph
from wm.vision.training import ConvKind, batch_loss, validate
from wm.vision.vae import VAE, as_input, kl_per_dimension, load_vae, vae_loss

ROOT = Path(__file__).parent.parent
SMALL = ["--updates=6", "--batch=8", "--validate-every=3", "--validation-frames=24", "--shuffle-frames=40"]


def drawn_episode(index: int, steps: int = 30) -> Episode:
    """A dark square that wanders over a ground whose brightness changes."""
    rng = np.random.default_rng(index)
    frames = np.empty((steps + 1, 64, 64, 3), np.uint8)
    frames[:] = rng.integers(60, 220, (steps + 1, 1, 1, 1))
    x, y = rng.integers(0, 48, 2)
    for frame in frames:
        x, y = np.clip(np.add((x, y), rng.integers(-4, 5, 2)), 0, 48)
        frame[y : y + 16, x : x + 16] = (60, 0, 30)
    return Episode(
        index=index,
        seed=index,
        policy="uniform",
        env_id="wm/CarRacing-v3",
        env_version="1.4.0",
        observations=frames,
        actions=np.zeros((steps, 3), np.float32),
        rewards=np.zeros(steps, np.float32),
        terminated=False,
        truncated=True,
    )


def new_run(folder: Path, episodes: int = 6) -> Run:
    run = Run(folder)
    run.rollouts.mkdir(parents=True)
    for first in range(0, episodes, 2):
        write_shard(run.rollouts / f"{first:06d}.h5", [drawn_episode(i) for i in (first, first + 1)])
    return run


def arguments(run: Run, *more: str) -> list[str]:
    return ["--run", str(run.folder), "--preset", "smoke", "--threads", "1", *more]


def lines(run: Run) -> list[dict[str, Any]]:
    timed = ("time", "frames_per_second")
    return [{k: v for k, v in line.items() if k not in timed} for line in read_metrics(run.metrics, "vae")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = new_run(tmp_path_factory.mktemp("vae"))
    main(arguments(run, *SMALL))
    return run


@pytest.fixture
def started(trained: Run, tmp_path: Path) -> Run:
    """A copy of the trained run that a test may change."""
    subprocess.run(["cp", "-r", str(trained.folder), str(tmp_path / "run")], check=True)
    return Run(tmp_path / "run")


def test_episodes_that_the_summary_does_not_know_are_not_trained_on_unnoticed(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", episodes=2)
    write_json(run.rollouts / "summary.json", {"fingerprint": Rollouts(run.rollouts).fingerprint()})
    write_shard(run.rollouts / "mine.h5", [drawn_episode(7)])
    with pytest.raises(UserError, match=r"holds other episodes than its summary.json says: move the shards"):
        main(arguments(run, *SMALL))
    assert not run.vae.exists()
    assert (run.rollouts / "mine.h5").exists()


def test_leaves_v_its_metrics_and_pictures(trained: Run) -> None:
    model, meta = load_vae(trained.vae)
    assert meta["config"]["updates"] == 6
    assert meta["config"]["z"] == model.z == 32
    assert len(meta["config"]["ranges"]) == 4
    assert min(meta["config"]["ranges"]) > 0
    assert meta["made_from"] == {"rollouts": Rollouts(trained.rollouts).fingerprint()}
    found = lines(trained)
    assert [line["step"] for line in found] == [3, 6]
    names = {"stage", "step", "lr", "loss", "error", "kl", "val_loss", "val_error", "val_kl", "val_dead"}
    assert found[0].keys() == names | {f"val_kl_{i:02d}" for i in range(32)}
    assert sum(found[0][f"val_kl_{i:02d}"] for i in range(32)) == pytest.approx(found[0]["val_kl"])
    assert found[0]["val_dead"] == sum(found[0][f"val_kl_{i:02d}"] < 0.01 for i in range(32))
    assert all(line["frames_per_second"] > 0 for line in read_metrics(trained.metrics, "vae"))
    for name in ("reconstructions", "traversals"):
        picture = cv2.imread(str(trained.plots / f"{name}.png"))
        assert picture is not None
        assert picture.std() > 10


def test_encoder_of_the_artifact_equals_v(trained: Run) -> None:
    model, _ = load_vae(trained.vae)
    encoder = Encoder(encoder_graph({n: v.numpy() for n, v in model.state_dict().items()}))
    frames = drawn_episode(99).observations
    with torch.no_grad():
        expected = model.encode(as_input(torch.from_numpy(frames)))[0].numpy()
    np.testing.assert_allclose(np.stack([encoder(frame) for frame in frames]), expected, atol=1e-4)


def test_finished_stage_does_nothing(
    started: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = started.vae.read_bytes(), started.metrics.read_bytes()
    monkeypatch.setattr(stages.vae, "seeded", lambda *_: pytest.fail("it builds a network"))
    main(arguments(started, *SMALL))
    assert (
        capsys.readouterr().out.strip()
        == f"{started.vae} is finished: 6 updates (--updates N for more, --restart to redo it)."
    )
    assert (started.vae.read_bytes(), started.metrics.read_bytes()) == before


def test_larger_total_equals_one_go(started: Run, tmp_path: Path) -> None:
    main(arguments(started, *SMALL, "--updates", "9"))
    whole = new_run(tmp_path / "whole")
    main(arguments(whole, *SMALL, "--updates", "9"))
    assert lines(started) == lines(whole)
    one, other = load_vae(started.vae)[0].state_dict(), load_vae(whole.vae)[0].state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_restart_does_it_anew(started: Run, trained: Run) -> None:
    main(arguments(started, *SMALL, "--restart", "--lr", "0.002"))
    assert [line["step"] for line in lines(started)] == [3, 6]
    assert lines(started)[0]["lr"] == 0.002
    assert lines(started) != lines(trained)


def test_it_begins_with_given_weights_and_goes_on_without_them(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = tmp_path / "start.pt"
    made: list[dict[str, torch.Tensor]] = []
    start.write_bytes(trained.vae.read_bytes())
    given = load_vae(start)[0].state_dict()
    original = wm.vision.training.batch_loss

    def first_only(model: VAE, *rest: Any, **more: Any) -> Any:
        if not made:
            made.append({name: value.cpu().clone() for name, value in model.state_dict().items()})
        return original(model, *rest, **more)

    monkeypatch.setattr(wm.vision.training, "batch_loss", first_only)
    run = new_run(tmp_path / "run", 8)
    options = [*SMALL, "--earlier", "6", "--updates"]
    main(arguments(run, *options, "3", "--start", str(start)))
    assert made[0].keys() == given.keys()
    assert all(torch.equal(value, given[name]) for name, value in made[0].items())
    first_hash = file_hash(start)
    assert load_vae(run.vae)[1]["made_from"]["start"] == first_hash
    whole = Run(shutil.copytree(run.folder, tmp_path / "whole"))
    main(arguments(whole, *options, "6", "--start", str(start)))
    start.unlink()
    main(arguments(run, *options, "6"))  # from the checkpoint
    assert load_vae(run.vae)[1]["made_from"]["start"] == first_hash
    assert whole.vae.read_bytes() == run.vae.read_bytes()
    # What was held out when the start was trained still is, and nothing that it was trained on.
    held_out = Rollouts(run.rollouts).split(0.25, 0, (6,))[1]
    assert held_out[held_out < 6].tolist() == Rollouts(trained.rollouts).split(0.25, 0)[1].tolist()


def test_no_updates_leave_v_as_it_was(trained: Run, tmp_path: Path) -> None:
    other = new_run(tmp_path / "other", episodes=8)
    with pytest.raises(UserError, match="--updates 0 leaves random weights: give --start"):
        main(arguments(other, *SMALL, "--updates=0"))
    main(arguments(other, *SMALL, "--updates=0", f"--start={trained.vae}"))
    one, two = (load_vae(run.vae)[0].state_dict() for run in (trained, other))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    (line,) = lines(other)
    assert line["step"] == 0
    assert np.isfinite(line["val_error"])
    main(arguments(other, *SMALL, "--updates=0", f"--start={trained.vae}"))
    assert lines(other) == [line]
    other.vae.unlink()  # as if it had been killed after the line
    main(arguments(other, *SMALL, "--updates=0", f"--start={trained.vae}"))
    assert len(lines(other)) == 1


def test_starts_that_do_not_fit(trained: Run, started: Run, tmp_path: Path) -> None:
    run = new_run(tmp_path / "other")
    for options, sentence in (
        (("--start", str(tmp_path / "none.pt")), r"none\.pt is missing"),
        (("--start", str(trained.vae), "--z", "8"), r"vae\.pt does not fit this vae .*sizes of --start"),
    ):
        with pytest.raises(UserError, match=sentence):
            main(arguments(run, *SMALL, *options))
    assert not run.vae.exists()
    assert run.read_manifest()["stages"] == {}
    with pytest.raises(UserError, match="made from another start"):
        main(arguments(started, *SMALL, "--start", str(trained.vae)))


@pytest.mark.parametrize(
    ("error", "dead", "warned"), [(29.9, 16, False), (30.1, 0, True), (15.0, 17, True), (45.0, 20, True)]
)
def test_warns_with_the_numbers(
    error: float,
    dead: float,
    warned: bool,
    started: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = load_vae(started.vae)[0].state_dict()
    metrics = {"error": error, "kl": 16.04, "dead": dead}
    monkeypatch.setattr(stages.vae, "train", lambda *_, **__: Best(weights, 100, metrics, 100))
    for plot in ("plot_reconstructions", "plot_traversals"):
        monkeypatch.setattr(stages.vae, plot, lambda *_: None)
    main(arguments(started, *SMALL, "--updates", "100"))
    found = capsys.readouterr()
    numbers = f"squared error {error:.1f} per image, KL 16.0 nats, {dead} of 32 dimensions dead"
    assert found.out.splitlines()[-1] == f"V is trained, best at update 100 (validation): {numbers}."
    warning = (
        f"warning: V is too inaccurate for driving ({numbers}; wanted: an error of at most 30, and at most 16 dead): "
    )
    assert (warning in found.err) == warned
    assert ("warning" in found.err) == warned


def test_no_rollouts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make collect"):
        main(arguments(Run(tmp_path), *SMALL))


def test_other_rollouts_are_refused(started: Run) -> None:
    write_shard(started.rollouts / "000006.h5", [drawn_episode(6)])
    for more in ([], ["--updates", "9"]):
        with pytest.raises(UserError, match=r"made from another rollouts .* `make vae ARGS=--restart`"):
            main(arguments(started, *SMALL, *more))


def test_another_kind_of_v_is_refused(started: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(ConvKind):
        name = "other"

    monkeypatch.setitem(wm.vision.kinds.KINDS, "other", Other())
    with pytest.raises(UserError, match=r"vision was conv, is other"):
        main(arguments(started, *SMALL, "--vision", "other"))


def test_kl_is_by_dimension() -> None:
    metrics = {f"kl_{i:02d}": float(i) for i in reversed(range(120))}
    assert stages.vae.kl_of(Best(metrics=metrics | {"kl": 7.0})) == list(range(120))


def test_a_restart_that_is_killed_early_does_not_leave_old_work_under_new_options(
    started: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages.vae, "delete_results", killed)
        with pytest.raises(KeyboardInterrupt):
            main(arguments(started, *SMALL, "--restart", "--lr", "0.002"))
    with pytest.raises(UserError, match=r"lr was 0\.001, is 0\.002"):
        main(arguments(started, *SMALL, "--lr", "0.002"))


def test_other_data_than_car_racings_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path)
    small = [replace(e, observations=e.observations[:, :8, :8]) for e in map(drawn_episode, range(3))]
    write_shard(run.rollouts / "a.h5", small)
    with pytest.raises(UserError, match=r"a\.h5 does not hold CarRacing episodes"):
        main(arguments(run, *SMALL))


def test_damaged_artifact_is_one_sentence(started: Run) -> None:
    started.vae.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"vae\.pt is damaged"):
        main(arguments(started, *SMALL))


@pytest.mark.slow
def test_z_tells_frames_apart(tmp_path: Path) -> None:
    """A V that has collapsed decodes the mean frame, whatever it sees; this one does better."""
    run = new_run(tmp_path, 8)
    main(arguments(run, "--updates", "45", "--validation-frames", "200"))
    rollouts = Rollouts(run.rollouts)
    _, held_out = rollouts.split(0.25, 0)
    frames = np.concatenate([rollouts.episode(i).observations for i in held_out]) / 255
    collapsed = np.square(frames - frames.mean(0)).sum((1, 2, 3)).mean()
    assert lines(run)[-1]["val_error"] < 0.75 * collapsed


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_kills_change_nothing(tmp_path: Path) -> None:
    """The real command, killed at random times and called again, ends with the bits of one that was left alone."""
    code = (
        "import wm.learning.gradient; wm.learning.gradient.SAVE_SECONDS = 0.2\n"
        "from wm.run.command_line import run_stage; from stages.vae import main; run_stage(main)"
    )
    rng = random.Random(0)
    runs = [new_run(tmp_path / name) for name in ("killed", "whole")]
    small = ("--batch", "8", "--validate-every", "7", "--validation-frames", "24")
    commands = [[sys.executable, "-c", code, *arguments(run, *small)] for run in runs]
    subprocess.run(commands[1], cwd=ROOT, check=True, capture_output=True)
    resumed_at = []
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(commands[0], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        checkpoint = runs[0].checkpoints / "vae.pt"
        before = checkpoint.stat().st_mtime if checkpoint.exists() else 0.0
        while process.poll() is None and not (checkpoint.exists() and checkpoint.stat().st_mtime > before):
            time.sleep(0.02)
        time.sleep(0.5 * rng.random())
        process.send_signal(number)
        process.communicate()
        if not runs[0].vae.exists():
            resumed_at.append(torch.load(checkpoint, weights_only=True)["state"]["update"])
    assert resumed_at  # killed midway at least once
    subprocess.run(commands[0], cwd=ROOT, check=True, capture_output=True)
    assert lines(runs[0]) == lines(runs[1])
    one, other = (torch.load(run.checkpoints / "vae.pt", weights_only=True) for run in runs)
    as_lists = [json.dumps(c["state"], default=lambda t: t.double().sum().item()) for c in (one, other)]
    assert as_lists[0] == as_lists[1]
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name])
    assert runs[0].vae.exists()


@torch.no_grad()
def test_vs_validation_is_the_mean_over_all_frames_with_the_same_noise() -> None:
    config, model = SMOKE.vae, VAE(SMOKE.vae.z)
    frames = np.random.default_rng(0).integers(0, 256, (150, 64, 64, 3), np.uint8)  # two batches
    found = validate(model, frames, config=config, seed=3, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(derived_seed("vae validation", 3))
    wanted, errors, kls = [], [], []
    for part in np.split(frames, 2):
        x = as_input(torch.from_numpy(part))
        mu, logvar = model.encode(x)
        z = mu + torch.randn(mu.shape, generator=generator) * (logvar / 2).exp()
        kl = kl_per_dimension(mu, logvar)
        value, error = vae_loss(x, model.decode(z), kl, config.free_nats, config.kl_weight)
        wanted.append(value.item())
        errors.append(error.item())
        kls.append(kl.mean(0))
    assert found["loss"] == pytest.approx(np.mean(wanted), rel=1e-4)
    assert found["error"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert found["kl"] == pytest.approx(torch.stack(kls).mean(0).sum().item(), rel=1e-4)
    assert found["kl_05"] == pytest.approx(torch.stack(kls).mean(0)[5].item(), rel=1e-3)


def test_vs_loss_draws_z_and_counts_what_validation_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wm.run.device.has_fast_bf16", lambda device: False)
    config, model = SMOKE.vae, VAE(SMOKE.vae.z)
    frames = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)

    def at(seed: int) -> tuple[Tensor, Any]:
        return batch_loss(model, frames, torch.Generator().manual_seed(seed), config=config, device=torch.device("cpu"))

    assert at(0)[1]["error"] == at(0)[1]["error"] != at(1)[1]["error"]
    x = as_input(torch.from_numpy(frames))
    mu, logvar = model.encode(x)
    noise = torch.randn(mu.shape, generator=torch.Generator().manual_seed(0))
    made = model.decode(mu + noise * (logvar / 2).exp())
    wanted, error = vae_loss(x, made, kl_per_dimension(mu, logvar), config.free_nats, config.kl_weight)
    assert at(0)[0].item() == pytest.approx(wanted.item(), rel=1e-4)
    assert at(0)[1]["error"].item() == pytest.approx(error.item(), rel=1e-4)
