"""Stage play: the page it writes and serves, and the real track by keyboard."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import gymnasium as gym
import numpy as np
import pygame
import pytest

from stages import play
from tests.contrast import contrast, over, themes
from tests.toy_dream import make_toy_run
from wm.config.presets import FAST_ENV
from wm.controller.file import save_controller
from wm.controller.hidden import Hidden
from wm.controller.linear import Linear
from wm.envs import TASKS
from wm.envs.action import Action
from wm.envs.car_racing.task import CAR_RACING
from wm.memory.mdnrnn import MDNRNN
from wm.run.checksums import file_hash
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.show import keyboard, site
from wm.show.keyboard import BesideReconstruction, drive_by_keyboard, keys_to_action
from wm.show.site import MOST_BYTES, RUNTIME, RUNTIME_FILES, add_runtime, build_site
from wm.show.videos.views import WorldModel

ROOT = Path(__file__).parent.parent
PRETRAINED = Run(ROOT / "data" / "pretrained")
TRACK = 2_000_000_000
UP_OR_DOWN = {pygame.K_UP, pygame.K_DOWN, ord("w"), ord("s")}
GRAPHS = ("starts", "dream", "controller", "decoder")


# --- the page ---------------------------------------------------------------------------------------------


@pytest.fixture
def no_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests need none of it, and no network."""
    monkeypatch.setattr(play, "add_runtime", lambda folder: None)


def test_the_committed_run_makes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str], no_runtime: None) -> None:
    play.main(["--run", str(tmp_path / "r"), "--source", str(PRETRAINED.folder), "--no-serve"])
    folder = tmp_path / "r" / "play"
    names = {path.name for path in folder.iterdir()}
    assert names == {f"{name}.onnx" for name in GRAPHS} | {"world.json"} | {path.name for path in site.PAGE.iterdir()}
    size = sum((folder / f"{name}.onnx").stat().st_size for name in GRAPHS)
    assert size < 2_500_000 < MOST_BYTES
    assert capsys.readouterr().out == (
        f"{folder}: {size / 1e6:.1f} MB of graphs; any web server can serve this folder.\n"
    )
    world = json.loads((folder / "world.json").read_text())
    assert (world["run"], world["bytes"], world["starts"], world["horizon"]) == ("pretrained", size, 512, 1000)
    assert world["score"]["episodes"] == 100
    assert len(world["spread"]) == world["z"] == 32
    assert world["actions"]["names"] == ["steering", "gas", "brake"]
    assert world["keys"]["up"] == [0, 0.8, 0]


def test_a_run_of_other_sizes(tmp_path: Path) -> None:
    """V and M are smaller, the starts are drawn from its record, and the controller is the dream's."""
    run = make_toy_run(tmp_path)
    made_from = {"vae.pt": file_hash(run.vae), "mdnrnn.pt": file_hash(run.mdnrnn)}
    for layout in (Linear(3), Hidden(3, units=5)):
        theta = np.zeros(layout.count(12), np.float32)
        save_controller(run.dream, theta, {"made_from": made_from, "config": {"precision": "float32"}})
        size = build_site(run, run.play, "dream")
        world = json.loads((run.play / "world.json").read_text())
        assert (world["z"], world["state"], world["score"]) == (4, {"z": 4, "h": 8, "c": 8}, None)
        assert world["reads"] == ["z", "h"]
        assert world["noises"]["uniform"] == {"distribution": "uniform", "size": 4}
        assert size < 10_000_000
    with pytest.raises(UserError, match=r"controller\.npz is missing: make it with `make controller`"):
        build_site(run, run.play)


def test_a_run_that_is_too_large_for_a_page_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match=r"pretrained would have 2,\d+,\d+ bytes of graphs, more than 1,000"):
        build_site(PRETRAINED, tmp_path / "play")
    assert not (tmp_path / "play").exists()


def test_the_page_asks_nobody_else() -> None:
    """Its policy forbids it, and no address of another place is in it."""
    for path in site.PAGE.iterdir():
        assert not re.search(r"https?:|//[a-z]+\.", path.read_text()), path
    page = (site.PAGE / "index.html").read_text()
    assert "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; connect-src 'self'" in page


def test_every_element_that_the_script_looks_for_is_in_the_page() -> None:
    page = (site.PAGE / "index.html").read_text()
    for script in site.PAGE.glob("*.js"):
        for name in re.findall(r"""(?:\$|write)\("([\w-]+)\"""", script.read_text()):
            assert f'id="{name}"' in page, name


def test_both_themes_of_the_page_have_contrast() -> None:
    """Text 4.5 to 1, also on a pad that is filled up; what is drawn 3 to 1."""
    style = (site.PAGE / "style.css").read_text()
    (fill,) = set(re.findall(r"color-mix\(in srgb, var\(--(?:you|controller)\) (\d+)%, transparent\)", style))
    for colours in themes(style):
        for ground in (colours["ground"], colours["raised"]):
            assert min(contrast(colours[ink], ground) for ink in ("ink", "soft")) >= 4.5
        for who in ("you", "controller"):
            assert contrast(colours["ink"], over(colours[who], int(fill) / 100, colours["raised"])) >= 4.5, who
        assert contrast(colours["on"], colours["you"]) >= 4.5
        assert min(contrast(colours[drawn], colours["raised"]) for drawn in ("you", "warn")) >= 3
    grass = "#66ff66"  # the brightest that a dream has
    assert contrast("#ffffff", over("#0a0c10", 0.78, grass)) >= 4.5
    assert "color: #fff; background: rgb(10 12 16 / .78)" in style


SERVE = "import sys; from pathlib import Path; from stages.play import serve; serve(Path(sys.argv[1]), 0)"


def test_serving_until_it_is_interrupted(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("here")
    command = [sys.executable, "-c", f"import signal; signal.signal(2, signal.default_int_handler); {SERVE}"]
    process = subprocess.Popen([*command, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = re.fullmatch(r"Drive at (http://127\.0\.0\.1:\d+/)  \(Ctrl-C to stop\)\n", process.stdout.readline())
    assert said is not None
    with urlopen(said[1], timeout=30) as answer:
        assert answer.read() == b"here"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0


# --- the runtime ------------------------------------------------------------------------------------------


def put_npm(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A program called npm that stands before the real one."""
    npm = folder / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{npm.parent}:{os.environ['PATH']}")


def test_without_npm_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError) as error:
        add_runtime(tmp_path / "runtime")
    assert str(error.value) == (
        f"npm is missing, but the page needs it to fetch {RUNTIME}: install Node.js with npm "
        "(https://nodejs.org; on Debian: apt-get install npm) and run the same command again."
    )


def test_an_npm_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_npm(tmp_path, monkeypatch, "exec sleep 60")
    monkeypatch.setattr("wm.show.site.NPM_SECONDS", 0.1)
    with pytest.raises(UserError, match=rf"npm could not fetch {RUNTIME} in 0\.1 seconds: check the network and npm"):
        add_runtime(tmp_path)


def test_an_npm_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_npm(tmp_path, monkeypatch, "echo first >&2; echo no network >&2; exit 1")
    with pytest.raises(UserError, match=rf"npm could not fetch {RUNTIME} \(no network\): check the network"):
        add_runtime(tmp_path / "runtime")


def test_another_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_npm(tmp_path, monkeypatch, 'echo something else > "$6/onnxruntime-web-1.30.0.tgz"')
    with pytest.raises(UserError, match=rf"npm fetched a {RUNTIME} with another checksum"):
        add_runtime(tmp_path / "runtime")
    assert not (tmp_path / "runtime").exists()


def test_the_runtime_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def fetch(folder: Path) -> Path:
        fetched.append(folder)
        with tarfile.open(folder / "package.tgz", "w:gz") as package:
            for name, (member, _) in RUNTIME_FILES.items():
                (folder / name).write_text(name)
                package.add(folder / name, f"package/dist/{member}")
        return folder / "package.tgz"

    runtime = tmp_path / "runtime"
    monkeypatch.setattr(site, "_fetch", fetch)
    add_runtime(runtime)
    assert {path.name: path.read_text() for path in runtime.iterdir()} == {name: name for name in RUNTIME_FILES}
    known = {name: (member, file_hash(runtime / name)) for name, (member, _) in RUNTIME_FILES.items()}
    monkeypatch.setattr(site, "RUNTIME_FILES", known)
    add_runtime(runtime)
    assert len(fetched) == 1
    (runtime / "ort.js").write_text("damaged")
    add_runtime(runtime)
    assert len(fetched) == 2


# --- the real track ---------------------------------------------------------------------------------------


def test_keys() -> None:
    keys = keys_to_action(CAR_RACING)
    assert keys[(pygame.K_LEFT,)].tolist() == keys[(ord("a"),)].tolist() == [-1, 0, 0]
    np.testing.assert_allclose(keys[(pygame.K_RIGHT, pygame.K_UP)], [1, 0.8, 0])
    np.testing.assert_allclose(keys[(ord("d"), ord("s"))], [1, 0, 0.8])
    np.testing.assert_allclose(keys[(pygame.K_LEFT, ord("w"))], [-1, 0.8, 0])  # a hand on each set
    np.testing.assert_allclose(keys[(pygame.K_LEFT, pygame.K_RIGHT, pygame.K_UP)], [0, 0.8, 0])
    space = gym.make(FAST_ENV, disable_env_checker=True).action_space
    assert all(action in space for action in keys.values())
    assert len({tuple(sorted(held)) for held in keys}) == len(keys) == 2**8 - 1


def test_keys_choose_an_action_of_a_discrete_space() -> None:
    sides = {"left": (0.0, 1.0, 0.0), "right": (0.0, 0.0, 1.0)}
    keys = keys_to_action(replace(CAR_RACING, action=Action(("stay", "left", "right"), first=1), keys=sides))
    assert set(keys) == {held for held in keys_to_action(CAR_RACING) if not set(held) & UP_OR_DOWN}
    assert keys[(pygame.K_LEFT,)] == keys[(ord("a"),)] == 2
    assert keys[(pygame.K_RIGHT,)] == 3


def test_the_reconstruction_is_of_the_frame_that_is_shown() -> None:
    env = gym.make(FAST_ENV, render_mode="rgb_array", disable_env_checker=True)
    beside = BesideReconstruction(env, WorldModel(PRETRAINED))
    beside.reset(seed=TRACK)
    for _ in range(60):  # past the zoom-in
        beside.step(np.array([0, 0.3, 0], np.float32))
    shown = beside.render()
    assert shown.dtype == np.uint8
    half = shown.shape[1] // 2
    grassy = [
        ((part[..., 1] > 1.5 * part[..., 0]) & (part[..., 1] > 120)).mean()
        for part in (shown[:, :half], shown[:, half:])
    ]
    assert min(grassy) > 0.2
    assert abs(grassy[0] - grassy[1]) < 0.15
    lower = (shown[230:340, :half], shown[230:340, half:])  # kerbs are red, too, but further up
    cars = [np.argwhere((part[..., 0] > 150) & (part[..., 1] < 60)) for part in lower]
    here, there = (car.mean(axis=0) for car in cars)
    assert np.abs(here - there)[0] < 8  # both show the same part of the world, so that eyes can go across
    env.close()


def test_driving_in_a_window(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    actions: list[Any] = []
    titles: list[str] = []

    class Watched(BesideReconstruction):
        def step(self, action: Any) -> Any:
            actions.append(action.tolist())
            titles.append(pygame.display.get_caption()[0])
            if len(actions) == 3:
                pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_UP))
            if len(actions) == 6:
                pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_ESCAPE))
            return super().step(action)

    monkeypatch.setattr(keyboard, "BesideReconstruction", Watched)
    drive_by_keyboard(PRETRAINED, TRACK, "fast")
    np.testing.assert_allclose(actions, [[0, 0, 0]] * 3 + [[0, 0.8, 0]] * 3)
    assert titles == [f"CarRacing, track {TRACK}: arrow keys or WASD drive, Escape closes"] * len(actions)
    assert capsys.readouterr().out == "Drive with the arrow keys or WASD; Escape closes the window.\n"


def test_the_v_of_another_controller_reconstructs_in_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(env: Any, world: WorldModel) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr(keyboard, "BesideReconstruction", opened)
    run = PRETRAINED.folder / "dream"
    assert not Run(run).controller.exists()
    with pytest.raises(KeyboardInterrupt):
        play.main(["--run", str(run), "--world", "real", "--car", "fast", "--controller", "dream"])


def test_an_environment_without_keys_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, CAR_RACING.env_id, replace(CAR_RACING, keys={}))
    with pytest.raises(UserError, match="CarRacing has no keys to drive it by: drive its dream in a browser with"):
        drive_by_keyboard(PRETRAINED, TRACK, "fast")


def test_a_v_or_m_that_no_browser_can_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(MDNRNN, "graph")
    with pytest.raises(UserError, match="M of the kind 'mdnrnn' cannot run in a browser: choose another M"):
        build_site(PRETRAINED, tmp_path / "play")


def test_without_a_display_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "none-such")
    pygame.display.quit()  # another test may have begun one
    with pytest.raises(UserError, match=r"^there is no display for a window \(.+\): .* with `make play`\.$"):
        play.main(["--run", "x", "--source", str(PRETRAINED.folder), "--world", "real"])
    with pytest.raises(UserError, match=r"--episode -1 is out of range"):
        play.main(["--run", "x", "--world", "real", "--episode", "-1"])
