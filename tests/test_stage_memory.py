"""The stage memory with the MDN-RNN, in this process on a toy world: what it writes, aligns, refuses; resuming."""

import shutil
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import stages.memory
import wm.memory.training
from stages.memory import main
from wm.config.vmc import MDNRNNConfig
from wm.dream.networks import load_networks, split_latents
from wm.driving.loading import load_models
from wm.memory.mdnrnn import MDNRNN, load_mdnrnn
from wm.memory.training import binary, constant_predictors, to_tensors, validate
from wm.run.checksums import file_hash
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.metrics import read_metrics
from wm.store.episode import Episode
from wm.store.latents import Latents, clip_batches, validation_clips
from wm.store.shards import Rollouts, write_shard
from wm.vision.vae import VAE, as_input, load_vae, save_vae

SMALL = ["--preset", "smoke", "--threads", "1", "--hidden", "24", "--batch", "4", "--length", "10"]


def toy_episode(index: int, steps: int) -> Episode:
    """An episode in which a_t decides the brightness of frame t + 1, r_t, and whether the episode ends there.

    The actions are independent of one another: what a_t decides cannot be foreseen from any other step.
    """
    rng = np.random.default_rng(index)
    actions = rng.uniform(-1, 1, (steps, 3)).astype(np.float32)
    bright = np.concatenate([rng.uniform(0, 255, 1), 127.5 * (1 + actions[:, 0])])
    frames = np.broadcast_to(bright[:, None, None, None], (steps + 1, 64, 64, 3)).astype(np.uint8)
    return Episode(
        index=index,
        seed=index,
        policy="toy",
        env_id="toy",
        env_version="0",
        observations=frames,
        actions=actions,
        rewards=np.where(actions[:, 1] > 0, 3.2, -0.1).astype(np.float32),
        terminated=bool(index % 2),
        truncated=not index % 2,
    )


def sharp_vae(seed: int) -> VAE:
    """A random V that tells brightness well: large means, sigma exp(-3)."""
    torch.manual_seed(seed)
    vae = VAE(4)
    with torch.no_grad():
        vae.mu.weight.mul_(100)
        vae.logvar.weight.zero_()
        vae.logvar.bias.fill_(-6)
    return vae.eval()


def write_vae(run: Run, seed: int = 0) -> None:
    made_from = {"rollouts": Rollouts(run.rollouts).fingerprint()}
    save_vae(run.vae, sharp_vae(seed).state_dict(), {"z": 4}, made_from)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rollouts and V, from which each test gets a copy."""
    run = Run(tmp_path_factory.mktemp("toy"))
    episodes = [toy_episode(i, 23 + i) for i in range(8)]
    write_shard(run.rollouts / "a.h5", episodes[:3])
    write_shard(run.rollouts / "b.h5", episodes[3:])
    write_vae(run)
    return run.folder


@pytest.fixture
def run(source: Path, tmp_path: Path) -> Iterator[Run]:
    threads = torch.get_num_threads()
    yield Run(shutil.copytree(source, tmp_path / "run"))
    torch.set_num_threads(threads)


def stage(run: Run, *arguments: str, picture: bool = False) -> None:
    """Runs the stage in this process; its picture, the slowest part of so short a run, only where it is wanted."""
    with pytest.MonkeyPatch.context() as patch:
        if not picture:
            patch.setattr(stages.memory, "plot_clip", lambda *_: None)
        main(["--run", str(run.folder), *SMALL, *arguments])


def weights(run: Run) -> Tensor:
    model, _ = load_mdnrnn(run.mdnrnn)
    return torch.cat([value.flatten() for value in model.state_dict().values()])


# --- what it makes ---------------------------------------------------------------------------------------


def test_the_whole_stage(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    stage(run, "--updates", "6", "--validate-every", "3", picture=True)
    said = capsys.readouterr().out
    assert "nats per dimension" in said
    model, meta = load_mdnrnn(run.mdnrnn)
    assert (model.z, model.actions, model.hidden, model.mixtures, model.reward) == (4, 3, 24, 5, "pulse")
    assert meta["made_from"] == {"rollouts": Rollouts(run.rollouts).fingerprint(), "vae.pt": file_hash(run.vae)}
    assert load_models(run, "float32").features == 28
    assert (run.plots / "predictions.png").read_bytes().startswith(b"\x89PNG")
    lines = read_metrics(run.metrics, "mdnrnn")
    assert [line["step"] for line in lines if "val_loss" in line] == [3, 6]
    for name in ("loss", "nll", "reward", "terminated", "lr", "steps_per_second"):
        assert np.isfinite(lines[-1][name]), name
    for name in ("nll", "nll_one", "nll_marginal", "nll_unit", "reward", "reward_constant", "terminated_constant"):
        assert np.isfinite(lines[-1][f"val_{name}"]), name
    assert not [path for path in run.folder.rglob("*") if ".tmp" in path.name]

    before = {path: path.read_bytes() for path in (run.mdnrnn, run.latents, run.metrics)}
    stage(run, "--updates", "6", "--validate-every", "3")
    assert "finished" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before
    run.latents.unlink()  # as of a round that another one was built on
    stage(run, "--updates", "6", "--validate-every", "3")
    assert {path: path.read_bytes() for path in before} == before

    stage(run, "--updates", "8", "--validate-every", "3")
    assert read_metrics(run.metrics, "mdnrnn")[-1]["step"] == 8
    assert load_mdnrnn(run.mdnrnn)[1]["config"]["updates"] == 8


def test_latents_are_vs_and_aligned_with_the_record(run: Run) -> None:
    """Each step of each clip, through both files: its frames, its action, its reward and its end."""
    stage(run, "--updates", "1")
    rollouts, latents = Rollouts(run.rollouts), Latents(run.latents)
    vae, _ = load_vae(run.vae)
    wanted = []
    for episode in rollouts:
        with torch.no_grad():
            posterior = vae.encode(as_input(torch.from_numpy(episode.observations)))
        wanted.append((episode, posterior[0].numpy(), posterior[1].numpy()))
    seen = 0
    batches = clip_batches(latents, np.arange(8), batch=5, length=10, seed=0, start=0)
    for _ in range(10):
        clips = next(batches)
        for i in range(5):
            real = int(clips.mask[i].sum())
            # The first frame's latent says which episode and which step it is.
            found = [
                (episode, mu, logvar, start)
                for episode, mu, logvar in wanted
                for start in range(len(episode.rewards))
                if np.abs(mu[start] - clips.mu[i, 0]).max() < 1e-4
                and np.array_equal(episode.actions[start], clips.a[i, 0])
            ]
            assert len(found) == 1
            episode, mu, logvar, start = found[0]
            np.testing.assert_allclose(clips.mu[i, : real + 1], mu[start : start + real + 1], atol=1e-4)
            np.testing.assert_allclose(clips.logvar[i, : real + 1], logvar[start : start + real + 1], atol=1e-4)
            np.testing.assert_array_equal(clips.a[i, :real], episode.actions[start : start + real])
            np.testing.assert_array_equal(clips.r[i, :real], episode.rewards[start : start + real])
            ends = np.zeros(real, bool)
            ends[-1] = start + real == len(episode.rewards) and episode.terminated
            np.testing.assert_array_equal(clips.terminated[i, :real], ends)
            seen += 1
    assert seen == 50


@pytest.mark.slow
@pytest.mark.parametrize("reward", ["pulse", "value"])
def test_it_learns_what_an_action_does(run: Run, reward: str) -> None:
    """From files to losses: a shift of one step anywhere on the way would leave M at the constants."""
    stage(run, "--updates", "400", "--lr", "0.01", "--reward", reward, "--batch", "16", "--validate-every", "100")
    line = read_metrics(run.metrics, "mdnrnn")[-1]
    assert line["val_nll"] < line["val_nll_marginal"] - 0.5
    assert line["val_reward"] < 0.5 * line["val_reward_constant"]
    assert line["val_nll_marginal"] < line["val_nll_unit"]


# --- baselines -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reward", ["pulse", "value"])
def test_baselines_are_the_ones_they_say(run: Run, reward: str) -> None:
    stage(run, "--updates", "1")
    latents = Latents(run.latents)
    training, held_out = latents.split(0.25, 0)
    config = MDNRNNConfig(batch=3, length=10, reward=reward)  # type: ignore[arg-type]
    constants = constant_predictors(latents, training, config)
    episodes = [latents.episode(place) for place in training.tolist()]
    mu = np.concatenate([episode.mu for episode in episodes])
    r = np.concatenate([episode.rewards for episode in episodes])
    np.testing.assert_allclose(constants.z_mu.numpy(), mu.mean(0), atol=1e-4)
    np.testing.assert_allclose(constants.z_logsigma.exp().numpy(), np.sqrt(mu.var(0) + np.exp(-6)), rtol=1e-3)
    wanted = ((r > 0).sum() + 1) / (len(r) + 2) if reward == "pulse" else r.mean()
    assert constants.reward == pytest.approx(wanted, rel=1e-5)
    ends = sum(bool(episode.terminated[-1]) for episode in episodes)
    assert constants.terminated == pytest.approx((ends + 1) / (len(r) + 2))

    # Cut in batches of 3 clips or taken as one, with padding between: the means are over the same real steps.
    clips = validation_clips(latents, held_out, length=10, most=100)
    assert not clips.mask.all()
    torch.manual_seed(0)
    model = MDNRNN(4, 3, 8, 2, reward=reward).eval()
    with torch.no_grad():
        found = validate(model, clips=clips, constants=constants, config=config, seed=0, device=torch.device("cpu"))
        again = validate(model, clips=clips, constants=constants, config=config, seed=0, device=torch.device("cpu"))
    assert found == again
    real = clips.r[clips.mask]
    p = constants.reward
    each = -np.log(np.where(real > 0, p, 1 - p)) if reward == "pulse" else (real - p) ** 2
    assert found["reward_constant"] == pytest.approx(each.mean(), rel=1e-4)
    squares = (clips.mu[:, 1:] ** 2 + np.exp(clips.logvar[:, 1:]))[clips.mask].mean()
    assert found["nll_unit"] == pytest.approx(0.5 * (squares + np.log(2 * np.pi)), rel=0.05)
    assert found["loss"] == pytest.approx(found["nll"] + found["reward"] + found["terminated"], rel=1e-5)


def test_the_outlook_is_in_the_loss_and_has_its_constant(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--validate-every", "2", "--outlook", "2", "5")
    stage(run, "--updates", "2", *options)
    assert "outlook" in capsys.readouterr().out
    stage(run, "--updates", "4", *options)  # the horizons compare equal to those in the files
    line = read_metrics(run.metrics, "mdnrnn")[-1]
    assert line["step"] == 4
    assert line["outlook"] > 0
    parts = sum(line[f"val_{name}"] for name in ("nll", "reward", "terminated"))
    assert line["val_loss"] == pytest.approx(parts + 100 * line["val_outlook"], rel=1e-5)
    # Rewards of the toy world come as by a coin: the rate over 2 steps has a variance of 1/8, over 5 of 1/20.
    assert line["val_outlook_constant"] == pytest.approx((1 / 8 + 1 / 20) / 2, rel=0.4)
    model, _ = load_mdnrnn(run.mdnrnn)
    assert model.outlook == (2, 5)
    with pytest.raises(UserError, match="outlook"):
        stage(run, "--updates", "4", "--validate-every", "2")


def test_dropout_is_in_the_loss_and_not_in_validation(run: Run) -> None:
    stage(run, "--updates", "1")
    latents = Latents(run.latents)
    training, held_out = latents.split(0.25, 0)
    clips, cpu = validation_clips(latents, held_out, length=10, most=100), torch.device("cpu")
    torch.manual_seed(0)
    model = MDNRNN(4, 3, 8, 2).eval()
    losses, metrics = [], []
    for dropout in (0.0, 0.5):
        config = MDNRNNConfig(batch=3, length=10, dropout=dropout)
        constants = constant_predictors(latents, training, config)
        with torch.no_grad():
            total, _ = wm.memory.training.batch_loss(
                model, clips, torch.Generator().manual_seed(0), config=config, device=cpu
            )
            metrics.append(validate(model, clips=clips, constants=constants, config=config, seed=0, device=cpu))
        losses.append(total.item())
    assert metrics[0] == metrics[1]
    assert losses[0] != pytest.approx(losses[1], abs=1e-4)


def test_cross_entropy_of_a_constant() -> None:
    target = torch.tensor([1.0, 0.0])
    torch.testing.assert_close(binary(target, 0.25), torch.tensor([-np.log(0.25), -np.log(0.75)]).float())


# --- beginning with given weights ---------------------------------------------------------------------------


def test_it_begins_with_given_weights(run: Run, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = tmp_path / "start.pt"
    stage(run, "--updates", "2")
    shutil.copy(run.mdnrnn, start)
    given, found = weights(run), []
    original = wm.memory.training.batch_loss

    def first_only(model: MDNRNN, *rest, **more):  # type: ignore[no-untyped-def]
        found.append(torch.cat([value.flatten() for value in model.state_dict().values()]).cpu().clone())
        return original(model, *rest, **more)

    monkeypatch.setattr(wm.memory.training, "batch_loss", first_only)
    other = Run(shutil.copytree(source, tmp_path / "other"))
    write_shard(other.rollouts / "c.h5", [toy_episode(8, 20), toy_episode(9, 20)])
    write_vae(other)
    with pytest.raises(UserError, match=r"start\.pt does not fit this mdnrnn \(.*sizes of --start"):
        stage(other, "--start", str(start), "--hidden", "8")
    assert not other.latents.exists()
    stage(other, "--updates", "1", "--start", str(start), "--earlier", "8")
    assert torch.equal(found[0], given)
    assert load_mdnrnn(other.mdnrnn)[1]["made_from"]["start"] == file_hash(start)
    stage(other, "--updates", "1", "--start", str(start), "--earlier", "8")
    start.unlink()
    stage(other, "--updates", "2", "--earlier", "8")
    assert load_mdnrnn(other.mdnrnn)[1]["made_from"].keys() == {"rollouts", "vae.pt", "start"}
    # Dreams begin in what M was trained on, of all rounds.
    _, training, held_out = split_latents(other, load_networks(other))
    assert held_out.tolist() == Rollouts(other.rollouts).split(0.25, 0, (8,))[1].tolist()
    assert set(held_out[:-1].tolist()) == set(Latents(run.latents).split(0.25, 0)[1].tolist())
    assert len(training) + len(held_out) == 10
    with pytest.raises(UserError, match="earlier was"):
        stage(other, "--updates", "3")


# --- interruptions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", ["0", "0.3"])
def test_resume_is_exact(run: Run, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: str) -> None:
    whole = Run(shutil.copytree(source, tmp_path / "whole"))
    options = ("--updates", "9", "--validate-every", "4", "--dropout", dropout)
    stage(whole, *options)

    calls = 0
    original = wm.memory.training.batch_loss

    def interrupted(*args, **kwargs):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(wm.memory.training, "batch_loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stage(run, *options)
    assert not run.mdnrnn.exists()
    encoded = run.latents.stat().st_mtime_ns
    stage(run, *options)
    assert run.latents.stat().st_mtime_ns == encoded
    assert torch.equal(weights(run), weights(whole))
    last, wanted = (read_metrics(each.metrics, "mdnrnn")[-1] for each in (run, whole))
    unlike = {"time", "steps_per_second"}
    assert {k: v for k, v in last.items() if k not in unlike} == {k: v for k, v in wanted.items() if k not in unlike}


def test_interrupted_encoding_leaves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    original = VAE.encode
    calls = 0

    def interrupted(self: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return original(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(VAE, "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stage(run, "--updates", "1")
    assert not run.latents.exists()
    assert not [path for path in run.folder.iterdir() if ".tmp" in path.name]
    stage(run, "--updates", "1")
    assert run.mdnrnn.exists()


# --- what it refuses -------------------------------------------------------------------------------------


def test_new_rollouts_under_an_old_v(run: Run) -> None:
    write_shard(run.rollouts / "c.h5", [toy_episode(8, 20)])
    with pytest.raises(UserError, match=r"vae\.pt was made from another rollouts .*make vae ARGS=--restart"):
        stage(run)


def test_a_new_v_under_old_latents(run: Run) -> None:
    stage(run, "--updates", "1")
    write_vae(run, seed=1)
    with pytest.raises(UserError, match=r"mdnrnn\.pt was made from another vae\.pt .*make mdnrnn ARGS=--restart"):
        stage(run, "--updates", "1")
    run.mdnrnn.unlink()
    (run.checkpoints / "mdnrnn.pt").unlink()
    with pytest.raises(UserError, match=r"latents\.h5 was made from another vae\.pt .*make mdnrnn ARGS=--restart"):
        stage(run, "--updates", "1")
    old = Latents(run.latents).episode(0).mu
    stage(run, "--updates", "1", "--restart")
    assert not np.allclose(Latents(run.latents).episode(0).mu, old)
    assert load_mdnrnn(run.mdnrnn)[1]["made_from"]["vae.pt"] == file_hash(run.vae)


def test_restart_trains_anew_on_the_same_latents(run: Run) -> None:
    stage(run, "--updates", "2")
    first, encoded = weights(run), run.latents.stat().st_mtime_ns
    stage(run, "--updates", "2", "--restart", "--lr", "0.1")
    assert run.latents.stat().st_mtime_ns == encoded
    assert not torch.equal(weights(run), first)


def test_damaged_latents(run: Run) -> None:
    stage(run, "--updates", "1")
    run.mdnrnn.unlink()
    run.latents.write_bytes(run.latents.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"latents\.h5 .*make mdnrnn ARGS=--restart"):
        stage(run, "--updates", "1")
    stage(run, "--updates", "1", "--restart")
    assert len(Latents(run.latents)) == 8


@pytest.mark.parametrize(("missing", "command"), [("rollouts", "make collect"), ("vae.pt", "make vae")])
def test_missing_inputs_say_which_command_makes_them(run: Run, missing: str, command: str) -> None:
    path = run.folder / missing
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(UserError, match=command):
        stage(run)


def test_what_is_encoded_already_is_taken_over(
    run: Run, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From latents by the same weights; an episode that has changed since is encoded, as are new ones."""
    stage(run, "--updates", "1")
    more = Run(shutil.copytree(source, tmp_path / "more"))
    write_shard(more.rollouts / "c.h5", [toy_episode(8, 30)])
    (more.rollouts / "a.h5").unlink()
    episodes = [toy_episode(i, 23 + i) for i in range(3)]
    write_shard(more.rollouts / "a.h5", [*episodes[:2], replace(episodes[2], actions=-episodes[2].actions)])
    write_vae(more)
    assert file_hash(more.vae) != file_hash(run.vae)
    encoded, original = 0, VAE.encode

    def counted(self: VAE, frames: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal encoded
        encoded += len(frames)
        return original(self, frames)

    with monkeypatch.context() as patch:
        patch.setattr(VAE, "encode", counted)
        stage(more, "--updates", "1", "--encoded", str(run.latents))
    assert encoded == 26 + 31
    found = Latents(more.latents)
    more.latents.unlink()
    stage(more, "--updates", "1", "--restart")
    wanted = Latents(more.latents)
    assert found.made_from == wanted.made_from
    assert found.table.tolist() == wanted.table.tolist()
    for place in range(len(wanted)):
        one, two = found.episode(place), wanted.episode(place)
        assert all(np.array_equal(getattr(one, f.name), getattr(two, f.name)) for f in fields(one))

    write_vae(more, seed=1)
    with pytest.raises(UserError, match="it was encoded by another V: leave it out"):
        stage(more, "--restart", "--encoded", str(run.latents))
    assert Latents(more.latents).made_from == wanted.made_from


def test_of_vs_standard_deviation_as_much_as_asked(run: Run) -> None:
    stage(run, "--updates", "1")
    clips = next(clip_batches(Latents(run.latents), np.arange(8), batch=3, length=10, seed=0, start=0))
    for posterior in (1.0, 0.3):
        tensors = to_tensors(clips, posterior, torch.device("cpu"))
        sigma = (0.5 * tensors["logvar"]).exp().numpy()
        np.testing.assert_allclose(sigma, posterior * np.exp(0.5 * clips.logvar), rtol=1e-5)
        assert torch.equal(tensors["mu"], torch.from_numpy(clips.mu))


def test_no_updates_leave_m_as_it_was(run: Run, source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--updates 0 leaves random weights: give --start"):
        stage(run, "--updates", "0")
    stage(run)
    other = Run(shutil.copytree(source, tmp_path / "other"))
    stage(other, "--updates", "0", "--start", str(run.mdnrnn))
    one, two = (load_mdnrnn(each.mdnrnn)[0].state_dict() for each in (run, other))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    (line,) = read_metrics(other.metrics, "mdnrnn")
    assert line["step"] == 0
    assert np.isfinite(line["val_nll"])
    stage(other, "--updates", "0", "--start", str(run.mdnrnn))
    assert read_metrics(other.metrics, "mdnrnn") == [line]
