"""What the views show: the committed run, filmed for a few steps of the fast environment."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import gymnasium as gym
import numpy as np
import pytest
import torch

import wm.envs  # noqa: F401
from stages.replay import main
from wm.config.presets import FAST_ENV
from wm.controller.file import load_controller, save_controller
from wm.envs.car_racing.task import CAR_RACING
from wm.memory.mdnrnn import load_mdnrnn, mixture_moments
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.show.videos.canvas import Image, Moment
from wm.show.videos.views import Shot, WorldModel, drive, moments, together
from wm.vision.vae import load_vae

PRETRAINED = Run(Path(__file__).parent.parent / "data" / "pretrained")
STEPS = 12
TRACK = 2_000_000_000
WARM_UP = CAR_RACING.warm_up


@pytest.fixture(scope="module")
def world() -> WorldModel:
    return WorldModel(PRETRAINED)


@pytest.fixture(scope="module")
def env() -> Iterator[gym.Env]:
    env = gym.make(FAST_ENV, render_mode="rgb_array", disable_env_checker=True)
    yield env
    env.close()


@pytest.fixture(scope="module")
def shots(world: WorldModel, env: gym.Env) -> list[Shot]:
    """A real drive that is as long as a dream with its warm-up."""
    return list(drive(env, world, TRACK, WARM_UP + STEPS))


def apart(one: Image | None, other: Image | None) -> float:
    assert one is not None
    assert other is not None
    return float(np.abs(one.astype(float) - other).mean())


def test_a_drive_is_the_evaluations_drive_with_its_pictures(world: WorldModel, shots: list[Shot]) -> None:
    plain = gym.make(FAST_ENV, disable_env_checker=True)
    agent, score = world.agent(), 0.0
    observation, _ = plain.reset(seed=TRACK)
    for shot in shots:
        h = agent.state["h"]
        action = agent.act(observation)
        np.testing.assert_array_equal(shot.action, action)
        np.testing.assert_array_equal(shot.z, agent.z)
        np.testing.assert_array_equal(shot.state["h"], h)
        observation, reward, *_ = plain.step(action)
        score += float(reward)
        assert shot.score == pytest.approx(score)
    assert [shot.number for shot in shots] == list(range(1, len(shots) + 1))
    speeds = [int(shot.reading.removeprefix("speed ").removesuffix(" m/s")) for shot in (shots[0], shots[-1])]
    assert speeds[0] <= 1 < speeds[1] < 150


def test_the_camera_shows_the_very_frame_that_v_sees(shots: list[Shot]) -> None:
    """Upright, in the same colours and at the same step."""
    for earlier, shot in zip(shots[-STEPS:], shots[1 - STEPS :], strict=False):
        camera = cv2.resize(shot.camera[:350], (64, 64), interpolation=cv2.INTER_AREA).astype(np.uint8)
        same = apart(camera, shot.frame)
        assert same < 4
        for wrong in (shot.frame[::-1], shot.frame[:, ::-1], shot.frame[..., ::-1], earlier.frame):
            assert same < apart(camera, wrong)


def test_real_shows_what_v_sees_and_makes_of_it(world: WorldModel, env: gym.Env, shots: list[Shot]) -> None:
    shown = list(moments("real", env, world, TRACK, WARM_UP + STEPS, 1.0))
    assert len(shown) == len(shots)
    for moment, shot in zip(shown, shots, strict=True):
        camera, sees, makes = (pane.image for pane in moment.panes)
        assert apart(camera, shot.camera) == 0
        assert apart(sees, shot.frame) == 0
        if shot.number > WARM_UP:
            assert apart(makes, shot.frame) < 12
    assert shown[-1].readings[0] == f"score {shots[-1].score:.0f}"


@torch.no_grad()
def test_triptych_shows_ms_prediction_of_the_frame_beside_it(
    world: WorldModel, env: gym.Env, shots: list[Shot]
) -> None:
    shown = list(moments("triptych", env, world, TRACK, WARM_UP + STEPS, 1.0))
    vae, _ = load_vae(PRETRAINED.vae)
    model, _ = load_mdnrnn(PRETRAINED.mdnrnn)
    z = torch.from_numpy(np.stack([shot.z for shot in shots]))
    a = torch.from_numpy(np.stack([shot.action for shot in shots]))
    expected = vae.decode(mixture_moments(model(z[None], a[None])[0])[0][0])  # of the frames from the second one on
    assert shown[0].panes[2].image is None
    for t in range(1, len(shown)):
        picture = (expected[t - 1].permute(1, 2, 0) * 255).round().byte().numpy()
        assert apart(shown[t].panes[2].image, picture) < 0.1
        assert apart(shown[t].panes[1].image, world.decode(shots[t].z)) == 0
    assert shown[-1].panes[0].image is not None
    assert shown[-1].panes[0].image.shape == (350, 600, 3)


def test_compare_is_an_open_loop_dream_of_the_real_actions(world: WorldModel, env: gym.Env, shots: list[Shot]) -> None:
    shown = list(moments("compare", env, world, TRACK, STEPS, 1e-8))  # so cold that M's likeliest component decides
    assert len(shown) == STEPS
    model, _ = load_mdnrnn(PRETRAINED.mdnrnn)
    start = shots[WARM_UP]
    h, c = (torch.from_numpy(start.state[name])[None, None] for name in ("h", "c"))
    z = torch.from_numpy(start.z)
    for moment, shot in zip(shown, shots[WARM_UP:], strict=True):
        np.testing.assert_array_equal([bar.value for bar in moment.bars], shot.action)
        assert apart(moment.panes[1].image, world.decode(shot.z)) == 0
        assert apart(moment.panes[2].image, world.decode(z.numpy())) < 0.5
        with torch.no_grad():
            prediction, (h, c) = model(z[None, None], torch.from_numpy(shot.action)[None, None], (h, c))
        z = prediction.mu[0, 0].gather(-1, prediction.logmix[0, 0].argmax(-1, keepdim=True))[:, 0]
    distance, error = shown[-1].curves
    assert distance.lines["dream"][0] == distance.lines["start kept"][0] == 0
    assert distance.lines["dream"][-1] > 0
    assert error.lines["V alone"][-1] == pytest.approx(apart(world.decode(shots[-1].z), shots[-1].frame))
    assert error.lines["dream"][0] == error.lines["V alone"][0]
    assert all(len(values) == STEPS for curve in (distance, error) for values in curve.lines.values())


def test_dream_is_the_same_for_the_same_seed_and_begins_at_the_real_frame(
    world: WorldModel, env: gym.Env, shots: list[Shot]
) -> None:
    one, other = (list(moments("dream", env, world, TRACK, STEPS, 1.0)) for _ in range(2))
    assert len(one) == STEPS
    for moment, same in zip(one, other, strict=True):
        assert apart(moment.panes[0].image, same.panes[0].image) == 0
    assert apart(one[0].panes[0].image, world.decode(shots[WARM_UP].z)) == 0
    np.testing.assert_allclose([bar.value for bar in one[0].bars], shots[WARM_UP].action, atol=1e-5)
    assert apart(one[1].panes[0].image, one[0].panes[0].image) > 0


def test_the_controller_evolved_in_the_dream_can_be_filmed(tmp_path: Path) -> None:
    for path in PRETRAINED.folder.glob("*.pt"):
        shutil.copy(path, tmp_path)
    theta, meta = load_controller(PRETRAINED.controller)
    save_controller(tmp_path / "dream.npz", -theta, meta)
    features = np.ones(288, np.float32)
    real = WorldModel(PRETRAINED).controller(features)
    dreamt = WorldModel(Run(tmp_path), "dream").controller(features)
    np.testing.assert_allclose(dreamt, -real)
    with pytest.raises(UserError, match=r"controller\.npz is missing"):
        WorldModel(Run(tmp_path))


def test_together_the_last_moments_of_short_drives_stay() -> None:
    def drive(length: int) -> Iterator[Moment]:
        for step in range(1, length + 1):
            yield Moment((), (), (str(step),))

    shown = list(together({7: drive(1), 8: drive(3)}))
    assert [{label: m.readings[0] for label, m in now.items()} for now in shown] == [
        {"track 7": "1", "track 8": "1"},
        {"track 7, over": "1", "track 8": "2"},
        {"track 7, over": "1", "track 8": "3"},
    ]


def test_a_drive_that_ends_too_early_is_told_in_one_sentence(
    world: WorldModel, env: gym.Env, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wm.show.videos.views.play", lambda *_, **__: iter(()))
    for view in ("dream", "compare"):
        with pytest.raises(UserError, match="another EPISODE"):
            next(moments(view, env, world, TRACK, STEPS, 1.0))


def test_a_grid_of_dreams_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    what = "--view dream --grid 2 --episode 5 --car fast --max-steps 6"
    killed = tmp_path / "videos" / ".dream-fast-5-x1y2.tmp.mp4"
    killed.parent.mkdir()
    killed.write_bytes(b"half a video")
    main(f"--run {tmp_path} --source {PRETRAINED.folder} {what}".split())
    said = capsys.readouterr().out
    assert "track 5" in said
    assert "track 6" in said
    assert {path.name for path in killed.parent.iterdir()} == {"dream-fast-5-grid2.mp4", "dream-fast-5-grid2.webp"}
    assert min(path.stat().st_size for path in killed.parent.iterdir()) > 0


@pytest.mark.parametrize("wrong", ["--grid 0", "--grid 37", "--temperature 0", "--max-steps 0", "--episode -1"])
def test_senseless_options_are_refused(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(UserError, match=r"give|must be"):
        main(f"--run {tmp_path} --source {PRETRAINED.folder} {wrong}".split())
