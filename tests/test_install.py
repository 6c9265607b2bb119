"""The library as others install it: its dependencies, and what an environment of its own in another folder has."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from packaging.requirements import Requirement

from tests.here import ROOT, outside_of_make
from wm.agent import load_agent
from wm.run.errors import UserError
from wm.run.published import find_run

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> list[Requirement]:
    lines = (re.sub(r"(^|\s+)#.*", "", line) for line in (ROOT / "requirements.txt").read_text().splitlines())
    return [Requirement(line) for line in lines if line]


# --- dependencies ----------------------------------------------------------------------------------------


def test_every_package_has_one_range_and_one_pin_that_satisfies_it() -> None:
    extras = PROJECT["optional-dependencies"]
    ranges = [Requirement(line) for lines in (PROJECT["dependencies"], *extras.values()) for line in lines]
    assert sorted(each.name for each in pins()) == sorted(each.name for each in ranges)  # none of them twice
    by_name = {each.name: each for each in ranges}
    assert len(by_name) == len(ranges)
    for pin in pins():
        (exact,) = pin.specifier
        assert exact.operator == "==", pin
        assert by_name[pin.name].specifier.contains(exact.version), f"{pin} is not within {by_name[pin.name]}"
        assert by_name[pin.name].extras == pin.extras, pin
        if pin.marker is not None:
            extra = re.fullmatch('extra == "([a-z0-9]+)"', str(pin.marker))
            assert extra is not None, pin
            assert any(Requirement(line).name == pin.name for line in extras[extra[1]]), pin


# --- the published run -----------------------------------------------------------------------------------


def test_the_name_of_the_published_run_wins_over_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pretrained").mkdir()
    assert find_run("pretrained").folder == ROOT / "data" / "pretrained"
    assert find_run("pretrained/dream").folder == ROOT / "data" / "pretrained" / "dream"
    for own in ("./pretrained", "data/pretrained", "pretrained-2"):
        assert find_run(own).folder == Path(own)
    assert find_run(Path("pretrained")).folder == Path("pretrained")
    with pytest.raises(
        UserError, match=r"'pretrained/gone' is not installed .* data/pretrained/gone, .* \./pretrained"
    ):
        find_run("pretrained/gone")


# --- installed -------------------------------------------------------------------------------------------


class Environment:
    """A fresh environment in a folder that is a repository of its own and has a folder `pretrained`.

    The dependencies are borrowed from the environment of the tests.
    """

    def __init__(self, folder: Path) -> None:
        self.source, self.folder = folder / "source", folder / "elsewhere"
        self.source.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, self.source)
        for name, large in (("wm", ""), ("stages", ""), ("tests", "samples"), ("data/pretrained", "plots")):
            unneeded = shutil.ignore_patterns("__pycache__", large)
            shutil.copytree(ROOT / name, self.source / name, ignore=unneeded)
        (self.folder / "pretrained").mkdir(parents=True)
        subprocess.run(["git", "init", "--quiet", str(self.folder)], check=True)
        venv.create(self.folder / ".venv", symlinks=True)
        self.python = self.folder / ".venv" / "bin" / "python"
        self.lib = self.folder / ".venv" / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
        (self.lib / "borrowed.pth").write_text(sysconfig.get_path("purelib"))

    def run(self, *command: str) -> str:
        """The output of a command."""
        environment = outside_of_make()
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, encoding="utf-8", check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def install(self, *options: str) -> None:
        """Installs the library by pip."""
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--quiet", "--no-compile"]
        self.run(*pip, "--no-deps", "--no-index", "--no-build-isolation", *options, str(self.source))

    def says(self, program: str) -> dict[str, Any]:
        """The dictionary `found` that a program makes here."""
        start = "import importlib.util, json, warnings; warnings.simplefilter('error', UserWarning)\n"
        text = self.run(str(self.python), "-c", f"{start}{program}\nprint(json.dumps(found, default=str))")
        found: dict[str, Any] = json.loads(text.splitlines()[-1])
        return found


STRANGERS = "[name for name in ('stages', 'tests') if importlib.util.find_spec(name)]"

USE = """
import gymnasium
car = gymnasium.make("wm.envs:wm/CarRacing-v3")  # nothing of wm is imported yet
frame, _ = car.reset(seed=0)
import wm.envs
from wm.agent import load_agent
agent = load_agent("pretrained")
agent.reset()
action = agent.act(frame)
car.step(action)
dream = gymnasium.make("wm/Dream-v0", run="pretrained")
dream.reset(seed=0)
dreams = gymnasium.make_vec("wm/Dream-v0", 2, run="pretrained")
dreams.reset(seed=0)
from wm.run.provenance import commit
from wm.show.report.page import TEMPLATE
from wm.show.site import PAGE
try:
    load_agent("./pretrained")  # a folder of the reader's own, which is empty
except Exception as error:
    said = str(error)
found = {
    "wm": wm.__file__,
    "action": action.tolist(),
    "reward": float(dream.step(action)[1]),
    "rewards": dreams.step(dreams.action_space.sample())[1].tolist(),
    "commit": commit(),
    "said": said,
    "page": sorted(path.name for path in PAGE.iterdir()),
    "template": TEMPLATE.read_text(encoding="utf-8"),
}
"""


def test_the_library_drives_and_dreams_in_an_environment_of_its_own(tmp_path: Path) -> None:
    own = Environment(tmp_path)
    own.install()
    found = own.says(f"{USE}\nfound['strangers'] = {STRANGERS}")
    assert found["wm"] == str(own.lib / "wm" / "__init__.py")

    frame, _ = gymnasium.make("wm/CarRacing-v3").reset(seed=0)
    agent = load_agent(ROOT / "data" / "pretrained")
    agent.reset()
    np.testing.assert_array_equal(np.array(found["action"], np.float32), agent.act(frame))
    assert np.isfinite([found["reward"], *found["rewards"]]).all()

    assert found["commit"] == "unknown"
    assert found["said"].endswith("make it with `make controller` in a clone of the repository.")
    assert found["page"] == sorted(path.name for path in (ROOT / "wm" / "show" / "page").iterdir())
    assert found["template"] == (ROOT / "wm" / "show" / "report" / "page.html").read_text(encoding="utf-8")
    assert (own.lib / "wm" / "py.typed").exists()
    published = ["controller.npz", "manifest.json", "mdnrnn.pt", "score.json", "starts.npz", "vae.pt"]
    assert sorted(os.listdir(own.lib / "wm" / "pretrained")) == published
    assert found["strangers"] == []
    assert {path.name for path in own.lib.iterdir() if path.suffix != ".dist-info"} == {"wm", "borrowed.pth"}


def test_an_editable_installation_reads_the_checkout(tmp_path: Path) -> None:
    own = Environment(tmp_path)
    own.install("--editable")
    program = "from wm.run.published import find_run; found = {'run': find_run('pretrained').folder}"
    found = own.says(f"{program}\nfound['strangers'] = {STRANGERS}")
    assert found == {"run": str(own.source / "data" / "pretrained"), "strangers": []}


def test_every_package_is_installed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "wm").rglob("__init__.py")}
    assert sorted(listed) == sorted({*there, "wm.pretrained"})
