"""The commands that make runs, by `make -n`: which, in which order and with which arguments."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import wm.controller.kinds
import wm.memory.kinds
import wm.vision.kinds
from tests.here import ROOT, outside_of_make
from wm.config.names import default_run
from wm.run.pair import Pair

TARGETS = [
    *("help", "setup"),
    *("collect", "vae", "memory", "mdnrnn", "controller", "dream", "iterate"),
    *("evaluate", "probe", "replay", "report", "play", "publish", "curves", "ablate"),
    *("test", "test-faults", "lint", "bench"),
]


def make(*arguments: str, code: int = 0) -> str:
    """The output of make, run in the repository and free of the variables of a make around this test."""
    done = subprocess.run(
        ["make", *arguments], cwd=ROOT, env=outside_of_make(), capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def commands(*arguments: str) -> list[str]:
    """What `make -n` would run of our stages, from the stage's name on."""
    lines = re.findall(r"-m stages\.(.*)", make("-n", "WORKERS=3", "THREADS=2", *arguments).replace("\\\n", " "))
    return [" ".join(line.split()) for line in lines]


@pytest.fixture
def runs(tmp_path: Path) -> str:
    return f"RUNS={tmp_path}"


@pytest.fixture
def made(tmp_path: Path) -> str:
    """A folder of runs whose run `carracing` has everything; the oldest file is the latest in the pipeline."""
    folder = tmp_path / "carracing"
    (folder / "rollouts").mkdir(parents=True)
    for age, name in enumerate(["rollouts/summary.json", "vae.pt", "mdnrnn.pt", "controller.npz"]):
        (folder / name).touch()
        os.utime(folder / name, (1e9 - age, 1e9 - age))
    return f"RUNS={tmp_path}"


def sizes(tmp_path: Path, run: str = "carracing", preset: str = "laptop") -> str:
    return f"--run {tmp_path}/{run} --preset {preset} --workers 3 --threads 2"


def test_make_lists_every_target_with_a_line() -> None:
    listed = re.findall(r"^  ([\w-]+) +(\S.*)$", make(), flags=re.MULTILINE)
    assert [name for name, _ in listed] == TARGETS
    assert all(len(line) > 10 for _, line in listed)
    assert make() == make("help")
    variables = re.findall(r"^([A-Z]+) \?=", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(variables) == set(re.findall(r"\b([A-Z]+)=", make().split("Variables:")[1]))
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert phony is not None
    assert phony[1].split() == TARGETS


def test_make_lists_the_kinds_that_there_are() -> None:
    there: dict[str, Iterable[str]] = {"V": wm.vision.kinds.KINDS, "M": wm.memory.kinds.KINDS}
    there["C"] = wm.controller.kinds.KINDS
    said = " ".join(f"{word}={'|'.join(kinds)}" for word, kinds in there.items())
    assert f"Kinds: {said}\n" in make()
    for stage, words in (("vae", 1), ("memory", 1), ("dream", 2), ("controller", 2)):
        assert (ROOT / "stages" / f"{stage}.py").read_text().count("`make` lists the kinds.") == words


def test_every_command_is_a_module_that_is_there(made: str) -> None:
    text = (ROOT / "Makefile").read_text()
    for module in re.findall(r"-m (tests\.\w+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    stages = [name for name in TARGETS if name not in ("help", "setup", "test", "test-faults", "lint", "bench")]
    for target in stages:
        (command,) = commands(target, made)
        module = "memory" if target == "mdnrnn" else target
        assert command.split()[0] == module
        assert (ROOT / "stages" / f"{module}.py").exists()


@pytest.mark.parametrize("target", ["dream", "controller"])
def test_what_is_evolved_on_another_run_needs_none_of_its_own(runs: str, tmp_path: Path, target: str) -> None:
    (command,) = commands(target, runs, "RUN=hot", "ARGS=--source somewhere --popsize 8")
    assert command == f"{target} {sizes(tmp_path, 'hot')} --source somewhere --popsize 8"


def test_the_controller_first_makes_what_is_missing(runs: str, tmp_path: Path) -> None:
    common = sizes(tmp_path)
    assert commands("controller", runs) == [f"{name} {common}" for name in ("collect", "vae", "memory", "controller")]


def test_the_dream_needs_m_but_no_controller(runs: str, tmp_path: Path) -> None:
    common = sizes(tmp_path)
    wanted = [f"{name} {common}" for name in ("collect", "vae", "memory", "dream")]
    assert commands("dream", runs) == wanted
    assert commands("dream", runs, "GENERATIONS=8")[-1] == f"dream {common} --generations 8"


def test_what_is_there_is_not_made_again(made: str, tmp_path: Path) -> None:
    assert commands("controller", made) == [f"controller {sizes(tmp_path)}"]
    (tmp_path / "carracing" / "mdnrnn.pt").unlink()
    assert commands("controller", made) == [f"{name} {sizes(tmp_path)}" for name in ("memory", "controller")]
    assert commands("vae", made) == [f"vae {sizes(tmp_path)}"]  # asked for by name: the stage says it is finished


def test_all_stages_at_once_make_each_once(runs: str) -> None:
    # `make -n` makes no files, so that each stage's own prerequisites are asked for again.
    names = [command.split()[0] for command in commands("collect", "vae", runs)]
    assert names[0] == "collect"
    assert names[-1] == "vae"


def test_run_and_preset(runs: str, tmp_path: Path) -> None:
    common = sizes(tmp_path, "mine", "smoke")
    assert commands("vae", runs, "RUN=mine", "PRESET=smoke") == [f"collect {common}", f"vae {common}"]
    assert commands("iterate", runs, "RUN=mine", "PRESET=smoke") == [f"iterate {common}"]


def test_the_environment_goes_to_every_stage(runs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = f"--run {tmp_path}/carracing --env wm/CarRacing-v3"
    given = f"{where} --preset laptop --workers 3 --threads 2"
    assert commands("vae", runs, "ENV=wm/CarRacing-v3") == [f"collect {given}", f"vae {given}"]
    for target in ("replay", "report", "play", "publish"):
        assert commands(target, runs, "ENV=wm/CarRacing-v3") == [f"{target} {where}"]
    monkeypatch.setenv("ENV", "/home/me/.shrc; echo")  # sh's own
    assert commands("report", runs) == [f"report --run {tmp_path}/carracing"]


@pytest.mark.parametrize(
    ("env", "name"),
    [
        *(("", "carracing"), ("CarRacing-v3", "carracing"), ("wm/CarRacing-v3", "carracing")),
        *(("LunarLander-v3", "lunarlander"), ("some_module:Cart.Pole-Swing-v10", "cart.pole-swing")),
        *(("module.sub:ns/MiniGrid-v2Hard-v0", "minigrid-v2hard"), ("ALE/Pong", "pong"), ("x-v", "x-v")),
    ],
)
def test_a_run_is_named_after_its_environment(tmp_path: Path, env: str, name: str) -> None:
    assert default_run(env or "CarRacing-v3") == Path("data/runs", name)
    said = re.search(r"RUN=(\S*) RUNS=(\S*) ", make("help", f"ENV={env}"))
    assert said is not None
    assert Path(said[2], said[1]) == default_run(env or "CarRacing-v3")
    (command,) = commands("evaluate", f"ENV={env}", f"RUNS={tmp_path}", "RUN=mine")
    assert command.startswith(f"evaluate --run {tmp_path}/mine ")


@pytest.mark.parametrize(
    "given", [f"a{sign}b" for sign in "%*?[]{};&|<>()'\"`\\\t\n "] + ["a$$b", "a$b", "#x", "CartPole-v1 "]
)
def test_an_odd_environment_is_refused_at_once(given: str) -> None:
    said = make("-n", "vae", f"ENV={given}", code=2)
    assert said.rstrip().endswith("is no name of an environment: give one such as CarRacing-v3.  Stop.")
    assert "venv" not in said


def test_variables_go_where_they_belong(runs: str, tmp_path: Path) -> None:
    common = sizes(tmp_path)
    given = ["EPISODES=7", "GENERATIONS=8", "EPISODE=9", "CAR=fast", "VIEW=dream", "GRID=4", "ARGS=--restart"]
    assert commands("controller", runs, *given) == [
        f"collect {common} --episodes 7",
        f"vae {common}",
        f"memory {common}",
        f"controller {common} --generations 8 --restart",  # ARGS only for what was asked for
    ]
    assert commands("iterate", runs, "ROUNDS=4", *given) == [
        f"iterate {sizes(tmp_path, preset='rounds')} --rounds 4 --restart"
    ]
    for target in ("evaluate", "probe"):
        assert commands(target, runs, *given) == [f"{target} {common} --episodes 7 --restart"]
    folder = f"--run {tmp_path}/carracing"
    assert commands("replay", runs, *given) == [
        f"replay {folder} --view dream --episode 9 --car fast --grid 4 --restart"
    ]
    assert commands("report", runs, "COMPARE=other pretrained") == [
        f"report {folder} --compare {tmp_path}/other data/pretrained"
    ]
    assert commands("play", runs, *given[2:4], "WORLD=real") == [f"play {folder} --world real --episode 9 --car fast"]
    assert commands("publish", runs, *given) == [f"publish {folder} --restart"]


def test_words_choose_the_kinds(runs: str, tmp_path: Path) -> None:
    common = sizes(tmp_path)
    assert commands("dream", runs, "V=conv", "M=mdnrnn", "C=hidden") == [
        f"collect {common}",
        f"vae {common} --vision conv",
        f"memory {common} --memory mdnrnn",
        f"dream {common} --memory mdnrnn --controller hidden",
    ]
    assert commands("mdnrnn", runs, "M=mdnrnn")[-1] == f"memory {common} --memory mdnrnn"
    assert commands("controller", runs, "C=hidden")[-1] == f"controller {common} --controller hidden"
    for word in ("V", "M", "C"):  # before anything is trained
        assert f"{word}=nope is no kind: choose one of" in make("-n", "dream", runs, f"{word}=nope", code=2)


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        *(((), ""), (("M=mdnrnn",), "dream"), (("C=linear",), "dream"), (("M=mdnrnn", "C=linear"), "dream")),
        *((("C=hidden",), "dream-mdnrnn-hidden"), (("M=mdnrnn", "C=hidden"), "dream-mdnrnn-hidden")),
    ],
)
def test_kinds_name_the_controller_of_their_dream(made: str, given: tuple[str, ...], driver: str) -> None:
    for target in ("evaluate", "probe", "replay", "play"):
        (command,) = commands(target, made, *given)
        option = "--driver" if target == "probe" else "--controller"
        assert re.findall(r"--(?:driver|controller) \S+", command) == ([f"{option} {driver}"] if driver else [])
        assert not driver or Pair.of(driver)
    assert "--controller" not in commands("controller", "evaluate", made, "M=mdnrnn")[-1]  # the one just made


@pytest.mark.parametrize(
    "target", ["collect", "vae", "iterate", "report", "publish", "curves", "ablate", "collect vae", "memory", "mdnrnn"]
)
def test_a_kind_without_effect_is_refused_at_once(made: str, target: str) -> None:
    for word in ("C",) if target in ("memory", "mdnrnn") else ("M", "C"):
        said = make("-n", *target.split(), made, f"{word}=drift", code=2)
        assert f"{word}=drift has no effect on make {target}: leave it out" in said
        assert "-m stages" not in said


@pytest.mark.parametrize("given", ["a;b", "a b", "$(x)", "#x", "a/b", "a.b"])
@pytest.mark.parametrize("word", ["V", "M", "C"])
def test_an_odd_kind_is_refused_at_once(word: str, given: str) -> None:
    said = make("-n", "dream", f"{word}={given}", code=2)
    assert "is no name of a kind" in said
    assert "venv" not in said


def test_the_seed_goes_to_every_stage_but_is_no_track(runs: str, tmp_path: Path) -> None:
    where = f"--run {tmp_path}/carracing --seed 9"
    common = f"{where} --preset laptop --workers 3 --threads 2"
    assert commands("vae", runs, "SEED=9") == [f"collect {common}", f"vae {common}"]
    for target in ("evaluate", "iterate"):
        (command,) = commands(target, runs, "SEED=9")
        assert command.startswith(f"{target} {where} ")
    for goals in (["replay"], ["play"], ["controller", "replay"]):
        said = make("-n", *goals, runs, "SEED=9;x", code=2)
        assert said.rstrip().endswith("the track that replay films and play drives with EPISODE=.  Stop.")
        assert "-m stages" not in said


def test_without_variables_the_presets_sizes_hold(made: str, tmp_path: Path) -> None:
    assert commands("evaluate", made) == [f"evaluate {sizes(tmp_path)}"]
    assert commands("replay", made) == [f"replay --run {tmp_path}/carracing"]


def test_the_stage_itself_counts_the_cores(runs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS has no nproc."""
    gnu_make = shutil.which("make")
    assert gnu_make is not None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "make").symlink_to(gnu_make)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    said = make("-n", "collect", runs)
    assert f"-m stages.collect --run {tmp_path}/carracing --preset laptop" in " ".join(said.split())
    assert "--workers" not in said
    assert "--threads" not in said
    assert "nproc" not in said


@pytest.mark.parametrize(
    "given",
    [
        *("RUNS=my runs", "RUN=my run", "RUNS=", "RUN=", "RUN=last ", "RUNS= "),
        *(f"RUN=a{sign}b" for sign in ":%*?[]{};&|<>()'\"`\\\t\n"),
        "RUN=a$$b",
        "RUN=a$b",
        "RUNS=#x",
        "COMPARE=a;b",
    ],
)
def test_a_folder_that_make_would_take_apart_is_refused_at_once(given: str) -> None:
    said = make("-n", "vae", given, code=2)
    assert "that make cannot handle" in said
    assert said.rstrip().endswith(": choose another name.  Stop.")
    assert "venv" not in said
    assert "make[1]" not in said


def test_a_checkout_may_have_spaces_in_its_path(runs: str, tmp_path: Path) -> None:
    checkout = tmp_path / "my checkout"
    checkout.mkdir()
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, checkout)
    assert commands("-C", str(checkout), "vae", runs) == [f"{name} {sizes(tmp_path)}" for name in ("collect", "vae")]
    assert commands("vae", runs, "RUN=Läufe-1.2_b+c=d,e@f#g~") == [
        f"{name} {sizes(tmp_path, 'Läufe-1.2_b+c=d,e@f#g~')}" for name in ("collect", "vae")
    ]


COMMITTED = ["pretrained", "pretrained/dream"]


@pytest.mark.parametrize("run", COMMITTED)
def test_a_committed_run_is_read_in_place_and_written_elsewhere(runs: str, tmp_path: Path, run: str) -> None:
    source = f"--source data/{run}"
    for target in ("evaluate", "probe"):
        assert commands(target, runs, f"RUN={run}") == [f"{target} {sizes(tmp_path, run)} {source}"]
    for target in ("replay", "report", "play"):
        assert commands(target, runs, f"RUN={run}") == [f"{target} --run {tmp_path}/{run} {source}"]
    assert commands("report", runs, f"COMPARE={run}") == [f"report --run {tmp_path}/carracing --compare data/{run}"]


@pytest.mark.parametrize("run", COMMITTED)
@pytest.mark.parametrize("target", ["collect", "vae", "memory", "mdnrnn", "controller", "dream", "iterate"])
def test_a_committed_run_is_not_trained(runs: str, target: str, run: str) -> None:
    output = make("-n", target, runs, f"RUN={run}", code=2)
    assert f"RUN={run} is a committed run and cannot be trained further: choose another RUN" in output
    assert "-m stages." not in output


@pytest.mark.parametrize("run", COMMITTED)
def test_a_committed_run_is_not_published(runs: str, run: str) -> None:
    output = make("-n", "publish", runs, f"RUN={run}", code=2)
    assert "choose the RUN to publish" in output


def test_finished_artifacts_survive_a_stage_that_fails(tmp_path: Path) -> None:
    """Plain make deletes what a failed or interrupted rule has written."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "requirements.txt").touch()
    (tmp_path / ".venv" / ".complete").touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\n'
        "mkdir -p runs/r && echo whole > runs/r/vae.pt && mkdir -p runs/r/rollouts\nexit 130\n"
    )
    python.chmod(0o755)
    (tmp_path / "runs" / "r" / "rollouts").mkdir(parents=True)
    (tmp_path / "runs" / "r" / "rollouts" / "summary.json").touch()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    command = ["make", "mdnrnn", "RUNS=runs", "RUN=r"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert (tmp_path / "runs" / "r" / "vae.pt").exists()


# --- the environment ---------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which every Python is a script, and none is installed into."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "requirements.txt").touch()
    return folder


def python_of(folder: Path, version: str, pip: int = 0) -> str:
    """PYTHON= for a script that says it is of a version; in an environment that is there it leaves Python as it is."""
    path = folder / f"python-{version}-{pip}"
    told = f"import sys; sys.version_info = ({version.replace('.', ', ')}, 0, 'final', 0)"
    path.write_text(
        f"""#!/bin/sh
[ "$1" = -c ] && exec {sys.executable} -c "{told}; $2"
[ "$2" = venv ] && mkdir -p .venv/bin && {{ [ -e .venv/bin/python ] || cp "$0" .venv/bin/python; }}
[ "$2" = pip ] && [ {pip} = 1 ] && exit 1
[ "$2" = venv ] || echo "$0 runs $2"
"""
    )
    path.chmod(0o755)
    return f"PYTHON={path}"


@pytest.mark.parametrize("target", ["setup", "report"])
@pytest.mark.parametrize("version", ["2.7", "3.10", "3.14", "gone"])
def test_a_python_that_will_not_do_is_refused_before_anything_is_made(
    checkout: Path, tmp_path: Path, target: str, version: str
) -> None:
    given = "PYTHON=/nowhere/python" if version == "gone" else python_of(tmp_path, version)
    said = make("-C", str(checkout), target, given, code=2)
    assert f"{given} is not Python 3.11, 3.12 or 3.13: give one, for example `make setup PYTHON=python3.11`" in said
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("before", ["3.9", "3.11 without pip", "gone", "another"])
def test_an_environment_that_will_not_do_is_made_anew(checkout: Path, tmp_path: Path, before: str) -> None:
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (checkout / ".venv" / "half-made").touch()
    if before == "gone":
        python.symlink_to("/nowhere/python3")
    else:
        number, *without = before.replace("another", "3.11").split(maxsplit=1)
        shutil.copy(python_of(tmp_path, number, len(without)).removeprefix("PYTHON="), python)
    if before in ("gone", "another"):
        (checkout / ".venv" / ".complete").touch()
    assert "python runs stages.report" in make("-C", str(checkout), "report", python_of(tmp_path, "3.12"))
    assert "(3, 12, 0" in python.read_text()
    assert not (checkout / ".venv" / "half-made").exists()
    assert (checkout / ".venv" / ".complete").exists()


@pytest.mark.parametrize("complete", [True, False])
def test_an_environment_that_will_do_stays(checkout: Path, tmp_path: Path, complete: bool) -> None:
    make("-C", str(checkout), "setup", python_of(tmp_path, "3.13"))
    python = checkout / ".venv" / "bin" / "python"
    made = python.stat().st_mtime_ns
    os.utime(checkout / ".venv" / ".complete", (1, 1))  # requirements.txt has changed since
    if not complete:
        (checkout / ".venv" / ".complete").unlink()
    for given in ([], [python_of(tmp_path, "3.13")], [python_of(tmp_path, "3.9")]):
        make("-C", str(checkout), "setup", *given)
    assert python.stat().st_mtime_ns == made
    assert (checkout / ".venv" / ".complete").stat().st_mtime > 1


def test_an_extra_is_installed_once_and_only_when_a_command_needs_it(checkout: Path, tmp_path: Path) -> None:
    (checkout / "requirements.txt").write_text('torch==1  # V\nray==2.1 ; extra == "ray"  # workers\n')
    python, stamp = python_of(tmp_path, "3.12"), checkout / ".venv" / ".extra-ray"
    collect = ["-C", str(checkout), "collect", python]
    make(*collect, "WORKERS=2")
    assert not stamp.exists()
    said = make(*collect, "WORKERS=ray")
    assert said.count("runs pip") == 1
    assert "| .venv/bin/python -m pip install --quiet --disable-pip-version-check -r /dev/stdin" in said
    assert stamp.exists()
    assert "runs pip" not in make(*collect, "WORKERS=ray://head:10001")
    assert "runs pip" not in make("-C", str(checkout), "setup", python, "EXTRAS=ray")
    said = make("-C", str(checkout), "setup", python, "EXTRAS=gone", code=2)
    assert "EXTRAS=gone: requirements.txt has no such extra" in said
    assert not (checkout / ".venv" / ".extra-gone").exists()


def test_the_pin_of_an_extra_is_found() -> None:
    said = make("-n", "-B", "setup", "EXTRAS=ray")
    (command,) = re.findall("sed -n .* requirements.txt", said)
    pins = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"ray==[\d.]+\n", pins)
