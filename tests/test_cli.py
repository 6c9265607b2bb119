"""The command line that all stages share."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest

import wm.controller.file
from wm.config.presets import FAST_ENV, LAPTOP, PRESETS, SMOKE, STOCK_ENV
from wm.config.vmc import Config, ControllerConfig
from wm.controller.file import load_controller, save_controller
from wm.run.command_line import Common, call_stage, check_bounds, parse
from wm.run.errors import MachineError, UserError
from wm.run.folder import Run
from wm.run.json_files import write_json
from wm.run.signals import EXIT_CODE, INTERRUPTED, RESTARTED, Interrupted, held

ROOT = Path(__file__).parent.parent

STAGE = """
import errno, os, sys, time
from wm.run.command_line import parse, run_stage
from wm.controller.file import load_controller, save_controller
from wm.run.errors import UserError
from wm.run.signals import Interrupted, held, note_new_work

def main(argv):
    args, config = parse(lambda preset: preset.controller, "Test stage.", argv)
    if config.generations == 13:
        raise UserError("generation 13 brings bad luck: choose another.")
    if config.generations == 14:
        raise RuntimeError("a defect")
    if config.generations == 17:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 68 bytes")
    if config.generations == 19:
        raise RuntimeError("can't start new thread")
    if config.generations in (errno.EAGAIN + 100, errno.ENOMEM + 100, errno.ESTALE + 100):
        raise OSError(config.generations - 100, os.strerror(config.generations - 100))
    if config.generations == 20:
        note_new_work()
    print("started", config, flush=True)
    if config.generations == 16:
        with held():
            time.sleep(1)
            print("done", flush=True)
        time.sleep(60)
    while config.generations in (15, 20):
        time.sleep(0.05)
    if config.generations == 21:
        print(os.fsdecode(b"R\\xc2\\xb2 \\xc2\\xb1 \\xff"))
        raise UserError("\\u00b1 is no number.")
    if config.generations == 18:
        input()
        print("nobody reads this")

run_stage(main)
"""


NO_MORE = "error: the machine has no memory or processes left: give smaller sizes or fewer --workers.\n"


def started(*arguments: str) -> subprocess.Popen[str]:
    """The stage, once it has said so."""
    command = [sys.executable, "-c", STAGE, "--run", "x", *arguments]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("started")
    return process


@pytest.mark.parametrize("both", [False, True])
def test_nobody_reads_the_output_any_more(both: bool) -> None:
    """As in `make collect | head -1`."""
    process = started("--generations", "18")
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    if both:
        process.stderr.close()
    process.stdin.write("\n")
    process.stdin.close()
    assert both or process.stderr.read() == ""
    assert process.wait(60) == EXIT_CODE


def stage(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", STAGE, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def controller(config: Config) -> ControllerConfig:
    return config.controller


@dataclass(frozen=True)
class WithSource:
    source: Path | None = None
    """Run folder of the models."""


def with_source(config: Config) -> WithSource:
    return WithSource()


def test_defaults_are_those_of_the_laptop_preset() -> None:
    args, config = parse(controller, "", ["--run", "x"])
    assert args == Common(run=Path("x"))
    assert config == LAPTOP.controller
    assert type(config) is ControllerConfig


@pytest.mark.parametrize(
    "argv",
    [
        ["--preset", "smoke", "--run", "x"],
        ["--run", "x", "--preset=smoke"],
        ["--preset", "laptop", "--run", "x", "--preset", "smoke"],  # as `make ... ARGS="--preset smoke"` gives it
        ["--preset=laptop", "--run", "x", "--preset=smoke"],
    ],
)
def test_a_preset_gives_the_defaults_wherever_it_stands(argv: list[str]) -> None:
    args, config = parse(controller, "", argv)
    assert args.preset == "smoke"
    assert config == SMOKE.controller


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system gives a process all cores")
def test_as_many_workers_as_cores_that_may_be_used() -> None:
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); from wm.run.command_line import CORES"
    code += "; print(CORES)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    "argv", [[], ["--env", "CarRacing-v3"], ["--env=wm/CarRacing-v3"], ["--env=x", "--env", FAST_ENV]]
)
def test_our_pixels_are_another_name_of_the_environment(argv: list[str]) -> None:
    args, config = parse(controller, "", ["--run", "x", *argv])
    assert (args.env, config) == ("CarRacing-v3", LAPTOP.controller)


@pytest.fixture
def pong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run of another environment, which has presets too."""
    monkeypatch.setitem(PRESETS, "Pong-v5", {"laptop": SMOKE})
    write_json(tmp_path / "pong" / "manifest.json", {"format": 1, "env": "Pong-v5", "stages": {}})
    write_json(tmp_path / "car" / "manifest.json", {"format": 1, "env": "CarRacing-v3", "stages": {}})
    return str(tmp_path / "pong")


def test_without_a_run_the_folder_has_the_name_of_the_environment(
    pong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for argv, run in ([], "carracing"), (["--env", FAST_ENV], "carracing"), (["--env=Pong-v5"], "pong"):
        assert parse(controller, "", argv)[0].run == Path("data/runs", run)
    assert parse(with_source, "", ["--source", pong])[0].run == Path("data/runs/pong")
    write_json(Path("data/runs/pong/manifest.json"), {"format": 1, "env": "CarRacing-v3", "stages": {}})
    with pytest.raises(UserError, match=r"^data/runs/pong is a run of CarRacing-v3, not of Pong-v5 \(from --env\)"):
        parse(with_source, "", ["--env=Pong-v5", "--source", "none"])


def test_later_stages_take_the_environment_of_the_run(pong: str) -> None:
    for argv in ([f"--run={pong}"], ["--run", pong, "--env", "Pong-v5"], ["--run", "car", "--run", pong]):
        args, config = parse(controller, "", argv)
        assert (args.env, config) == ("Pong-v5", SMOKE.controller)
    args, _ = parse(with_source, "", ["--run", "new", "--source", pong])
    assert args.env == "Pong-v5"


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ("--run {pong} --env wm/CarRacing-v3", "{pong} is a run of Pong-v5, not of CarRacing-v3 (from --env)"),
        ("--run {car} --env Pong-v5", "{car} is a run of CarRacing-v3, not of Pong-v5 (from --env)"),
        ("--run new --source {car} --env Pong-v5", "{car} is a run of CarRacing-v3, not of Pong-v5 (from --env)"),
        ("--run {pong} --source {car}", "{pong} is a run of Pong-v5, not of CarRacing-v3 (from --source)"),
    ],
)
def test_another_environment_than_that_of_the_run_is_refused(pong: str, argv: str, sentence: str) -> None:
    folders = {"pong": pong, "car": str(Path(pong).parent / "car")}
    with pytest.raises(UserError, match=re.escape(sentence.format(**folders)) + ": choose another RUN or --"):
        parse(with_source, "", argv.format(**folders).split())


def test_a_manifest_whose_environment_is_damaged_is_refused(pong: str) -> None:
    write_json(Path(pong) / "manifest.json", {"format": 1, "env": 5, "stages": {}})
    with pytest.raises(UserError, match=r"manifest\.json is damaged \(its env is not readable\): restore it\."):
        parse(controller, "", ["--run", pong])


def test_fields_and_common_arguments_are_read() -> None:
    argv = ["--run=a/b", "--preset=smoke", "--popsize=7", "--sigma0=0.5", "--workers=0", "--threads=3", "--seed=9"]
    args, config = parse(controller, "", [*argv, "--restart"])
    assert (args.run, args.workers, args.threads, args.seed, args.restart) == (Path("a/b"), 0, 3, 9, True)
    assert (config.popsize, config.sigma0) == (7, 0.5)
    assert config.generations == SMOKE.controller.generations


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--preset", "huge"], r"--preset huge is unknown: choose one of smoke, scout, rounds, laptop, paper\."),
        (["--preset", "dreamer"], r"--preset dreamer has another name: give --preset rounds\."),
        (["--env", "Pong-v5"], rf"environment Pong-v5 has no presets: choose --env from {STOCK_ENV}\."),
        (["--workers", "-1"], r"--workers -1 is out of range: give 0 to 1024\."),
        (["--workers", "1025"], r"--workers 1025 is out of range"),
        (["--threads", "0"], r"--threads 0 is out of range: give 1 to 1024\."),
        (["--threads", "1025"], r"--threads 1025 is out of range"),
        (["--workers", "many"], r"--workers many is neither a number nor ray, ray:HOST:PORT or ray://HOST:PORT\."),
        (["--workers", "ray:head"], r"--workers ray:head is neither a number nor ray"),
        (["--seed", "-1"], r"--seed -1 is out of range: give 0 to 99\."),
        (["--seed", "100"], r"--seed 100 is out of range"),
    ],
)
def test_bad_values_are_refused_in_one_sentence(argv: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse(controller, "", ["--run", "x", *argv])


@pytest.mark.parametrize(
    ("stage", "name"), [*((name, name) for name in ("collect", "vae", "controller", "evaluate")), ("memory", "mdnrnn")]
)
def test_help_shows_every_field_with_its_default(
    stage: str, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [f"/elsewhere/stages/{stage}.py", "--help"])
    with pytest.raises(SystemExit) as left:
        parse(lambda preset: getattr(preset, name), "What it does.", ["--help", "--preset", "smoke"])
    assert left.value.code == 0
    shown = "".join(capsys.readouterr().out.split())  # without the line breaks and frames that tyro puts in
    shown = shown.replace("│", "")
    assert shown.startswith(f"usage:python-mstages.{stage}[")
    assert "/elsewhere" not in shown
    assert "Whatitdoes." in shown
    config = getattr(PRESETS[STOCK_ENV]["smoke"], name)
    for f in [*fields(config), *fields(Common)]:
        assert f"--{f.name.replace('_', '-')}" in shown
    for f in fields(config):
        after = shown.split(f"--{f.name.replace('_', '-')}", 1)[1]
        default = getattr(config, f.name)
        said = "".join(map(str, default)) if isinstance(default, tuple) else default
        assert f"(default:{said})" in after


def test_exit_code_0_when_done() -> None:
    done = stage("--run", "x")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--preset", "huge"], "error: --preset huge is unknown: choose one of smoke, scout, rounds, laptop, paper.\n"),
        (["--workers", "-2"], "error: --workers -2 is out of range: give 0 to 1024.\n"),
        (["--seed", "100"], "error: --seed 100 is out of range: give 0 to 99.\n"),
        (["--generations", "13"], "error: generation 13 brings bad luck: choose another.\n"),
        *((["--generations", str(number)], NO_MORE) for number in (17, 19, errno.EAGAIN + 100, errno.ENOMEM + 100)),
        (
            ["--generations", str(errno.ESTALE + 100)],
            "error: a file of the run cannot be written (Stale file handle): check the disk and run the same "
            "command again.\n",
        ),
    ],
)
def test_exit_code_2_and_one_sentence_when_the_user_can_mend_it(arguments: list[str], sentence: str) -> None:
    done = stage("--run", "x", *arguments)
    assert (done.returncode, done.stderr, done.stdout) == (2, sentence, "")


@pytest.mark.parametrize(
    "arguments", [["--run"], ["--run", "x", "--unknown", "1"], ["--run", "x", "--popsize", "many"]]
)
def test_exit_code_2_for_tyros_own_errors(arguments: list[str]) -> None:
    assert stage(*arguments).returncode == 2


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "utf-8"])
def test_what_a_terminal_has_no_sign_for_is_said_all_the_same(encoding: str) -> None:
    command = [sys.executable, "-c", STAGE, "--run", "x", "--generations", "21"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False, timeout=60)
    assert done.returncode == 2, done.stderr
    shown = "R\u00b2 \u00b1 \udcff\n".encode(encoding, "backslashreplace")
    assert done.stdout.endswith(shown)
    assert done.stderr == "error: \u00b1 is no number.\n".encode(encoding, "backslashreplace")


def test_a_defect_shows_its_traceback() -> None:
    done = stage("--run", "x", "--generations", "14")
    assert done.returncode == 1
    assert "RuntimeError: a defect" in done.stderr


def test_a_signal_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path) -> None:
        raise Interrupted

    save_controller(tmp_path / "controller.npz", np.zeros(3), {"made_from": {}})
    monkeypatch.setattr(wm.controller.file, "check_archive", interrupted)
    with pytest.raises(Interrupted):
        load_controller(tmp_path / "controller.npz")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_while_it_is_held(number: signal.Signals) -> None:
    process = started("--generations", "16")
    time.sleep(0.1)
    for _ in range(2):
        os.kill(process.pid, number)
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout, stderr) == (130, "done\n", f"{INTERRUPTED}\n")


@pytest.mark.usefixtures("unwinding")
def test_other_threads_do_not_hold_signals() -> None:
    with ThreadPoolExecutor(1) as threads:

        def hold() -> None:
            with held():
                inside.set()
                assert leave.wait(30)

        inside, leave = threading.Event(), threading.Event()
        done = threads.submit(hold)
        assert inside.wait(30)
        try:
            with pytest.raises(Interrupted):
                os.kill(os.getpid(), signal.SIGTERM)
        finally:
            leave.set()
        done.result()


@pytest.mark.parametrize(("generations", "sentence"), [("15", INTERRUPTED), ("20", RESTARTED)])
def test_an_interrupted_restart_goes_on_without_it_once_it_has_begun(generations: str, sentence: str) -> None:
    process = started("--generations", generations, "--restart")
    process.terminate()
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, f"{sentence}\n")


@pytest.mark.parametrize(
    ("script", "kind", "sentence"),
    [
        ("kill -9 $$", MachineError, "stage vae of x was killed by signal 9: run the same command again"),
        ("exit 130", MachineError, "stage vae of x was interrupted: run the same command again"),
        ("exit 2", UserError, "stage vae of x ended with exit code 2: see its message above"),
    ],
)
def test_why_a_called_stage_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, kind: type[UserError], sentence: str
) -> None:
    (tmp_path / "python").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UserError, match=sentence) as caught:
        call_stage("vae", {"run": Path("x")})
    assert caught.type is kind


def test_a_folder_stays_locked_while_a_called_stage_works_in_it(tmp_path: Path) -> None:
    """Whoever has called it may be killed alone, as by a system that runs out of memory."""
    stage = tmp_path / "python"
    stage.write_text("#!/bin/sh\necho $$; exec sleep 60\n")
    stage.chmod(0o755)
    caller = (
        "import sys; from pathlib import Path; from wm.run.command_line import call_stage\n"
        "from wm.run.folder import Run\n"
        f"sys.executable = {str(stage)!r}\n"
        f"with Run(Path({str(tmp_path / 'run')!r})).lock(): call_stage('vae', {{'run': 'x'}})"
    )
    process = subprocess.Popen([sys.executable, "-c", caller], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    called = int(process.stdout.readline())
    process.kill()
    process.wait()
    try:
        with pytest.raises(UserError, match="another command is running"), Run(tmp_path / "run").lock():
            pass
    finally:
        os.kill(called, signal.SIGKILL)
    for _ in range(100):
        with suppress(UserError), Run(tmp_path / "run").lock():
            return
        time.sleep(0.1)
    raise AssertionError("it stays locked")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_exit_code_130_when_interrupted(number: signal.Signals) -> None:
    process = started("--generations", "15")
    time.sleep(0.1)
    os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, "interrupted: run the same command again to resume.\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_the_end_changes_nothing(number: signal.Signals) -> None:
    """An interpreter that closes down would else say a traceback, or die of it although all is done."""
    late = f"import atexit, os\natexit.register(lambda: os.kill(os.getpid(), {int(number)}))\n"
    command = [sys.executable, "-c", late + STAGE, "--run", "x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("unwinding")
def test_a_signal_waits_for_the_outermost_that_holds_it() -> None:
    passed = []

    @held()
    def outer() -> None:
        with held():
            os.kill(os.getpid(), signal.SIGINT)
        passed.append("inner")
        _ = [None for _ in range(1000)]  # gives the interpreter time to meet the signal
        passed.append("outer")

    with pytest.raises(KeyboardInterrupt):
        outer()
    assert passed == ["inner", "outer"]


def test_bounds_are_inclusive_on_both_sides() -> None:
    for whiten in (0.0, 1.0):
        check_bounds(replace(SMOKE.controller, whiten=whiten))
    for whiten in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match=rf"--whiten {whiten} is out of range: give 0 to 1\."):
            check_bounds(replace(SMOKE.controller, whiten=whiten))


def test_an_environment_without_the_usual_preset_has_its_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(PRESETS, "Pong-v5", {"smoke": SMOKE, "other": SMOKE})
    args, _ = parse(lambda preset: preset.vae, "", ["--run", str(tmp_path), "--env", "Pong-v5"])
    assert args.preset == "smoke"
