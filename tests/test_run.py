"""The run folder: whole files or none, one command at a time, and a manifest and metrics that survive a kill."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import wm.run.folder
import wm.run.progress
import wm.run.provenance
from wm.config.names import RUN_FORMAT
from wm.config.presets import SMOKE
from wm.config.vmc import VAEConfig
from wm.run.checksums import file_hash
from wm.run.errors import MachineError, UserError, writing
from wm.run.files import atomic
from wm.run.folder import Run
from wm.run.json_files import append_line, read_json, read_lines, write_json
from wm.run.metrics import Metrics, read_metrics
from wm.run.progress import Progress
from wm.run.provenance import PACKAGES, check_made_from, commit, peak_memory_mb, versions
from wm.run.remedies import command, install, made_by, redo

ROOT = Path(__file__).parent.parent
CONFIG = SMOKE.controller


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- files -----------------------------------------------------------------------------------------------


def test_atomic_writes_a_new_file_with_the_usual_rights(tmp_path: Path) -> None:
    with atomic(tmp_path / "deep" / "a.npz") as temporary:
        assert temporary.suffix == ".npz"
        temporary.write_text("new")
    (tmp_path / "plain").write_text("")
    made = tmp_path / "deep" / "a.npz"
    assert made.read_text() == "new"
    assert made.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert files(made.parent) == {"a.npz"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_no_temporary_one(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert files(tmp_path) == {"a.json"}


def test_json_round_trip_and_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, 0.1, None]})
    assert read_json(path) == {"a": [1, 0.1, None]}
    path.write_bytes(b'{"a": [1, \xff')
    with pytest.raises(UserError, match=rf"{path} cannot be read as JSON .* remove it or restore it\."):
        read_json(path)


def test_json_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"seconds": 12.5, "names": ["é", None, True], "b": {"x": 1e-300}})
    assert read_json(path, seconds=float, names=list)["seconds"] == 12.5
    for change in (("12.5", "72.5"), ("true", "null"), ("x", "y")):
        damaged = path.read_text().replace(*change)
        (tmp_path / "b.json").write_text(damaged)
        with pytest.raises(UserError, match=r"b\.json cannot be read as JSON \(its crc32 does not match"):
            read_json(tmp_path / "b.json")
    with pytest.raises(UserError, match="field 'mean' is missing or has the wrong type"):
        read_json(path, mean=float)
    for foreign in ('{"a": NaN}', "[" * 100_000, '"' + "a" * 10):
        path.write_text(foreign)
        with pytest.raises(UserError, match=r"a\.json cannot be read as JSON"):
            read_json(path)


def test_json_that_is_no_json_is_not_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    assert read_json(tmp_path / "a.json") == 1


def test_file_hash(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_hash(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- versions --------------------------------------------------------------------------------------------


def test_versions_name_everything_that_a_result_depends_on() -> None:
    found = versions()
    assert set(found) == {"python", *PACKAGES}
    assert "not installed" not in found.values()


def test_commit_in_and_outside_of_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    code = tmp_path / "wm" / "run" / "provenance.py"
    code.parent.mkdir(parents=True)
    code.write_text("")
    monkeypatch.setattr(wm.run.provenance, "__file__", str(code))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() == "unknown"
    git("init")
    git("add", ".")
    git("commit", "-m", "m")
    git("tag", "-a", "v1", "-m", "m")  # a tag must not take the commit's place
    # Git would write the index anew for the other time of a file, under a lock that a kill leaves behind.
    index = tmp_path / ".git" / "index"
    before = index.stat().st_mtime_ns
    os.utime(code, (1e9, 1e9))
    assert re.fullmatch(r"[0-9a-f]{12}", commit())
    assert index.stat().st_mtime_ns == before
    code.write_text("changed")
    assert re.fullmatch(r"[0-9a-f]{12}-dirty", commit())


@pytest.mark.parametrize("where", [".", "lib", "hook"])
def test_a_foreign_repository_gives_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """The library is installed into its root (pip install --target .) or a folder; or a hook of Git's is at work."""
    foreign = tmp_path / "foreign"
    identity = ["-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init"], ["commit", "--allow-empty", "-m", "m"]):
        foreign.mkdir(exist_ok=True)
        subprocess.run(["git", *identity, *words], cwd=foreign, check=True, capture_output=True)
    code = (tmp_path if where == "hook" else foreign / where) / "wm" / "run" / "provenance.py"
    code.parent.mkdir(parents=True)
    code.touch()
    if where == "hook":
        monkeypatch.setenv("GIT_DIR", str(foreign / ".git"))
    monkeypatch.setattr(wm.run.provenance, "__file__", str(code))
    assert commit() == "unknown"


def test_peak_memory_is_in_megabytes() -> None:
    assert 20 < peak_memory_mb() < 100_000


# --- progress --------------------------------------------------------------------------------------------


def test_progress_without_a_terminal_prints_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wm.run.progress, "NOTICE_SECONDS", -1.0)
    with Progress("vae", 10, initial=4, unit="update") as progress:
        progress.update(3, loss=1.23456, note="fine")
        monkeypatch.setattr(wm.run.progress, "NOTICE_SECONDS", 1000.0)
        progress.update(3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # one for the first update, one at the end
    assert re.fullmatch(r"vae: 7/10 70% \[\d\d:\d\d<.*update/s, loss 1.235, note fine\]", lines[0])
    assert re.fullmatch(r"vae: 10/10 100% \[.*loss 1.235, note fine\]", lines[1])


def test_progress_is_silent_about_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), Progress("vae", 0):
        raise KeyboardInterrupt
    with Progress("empty", 0):
        pass
    assert capsys.readouterr().err.startswith("empty: 0/0")


# --- metrics ---------------------------------------------------------------------------------------------


def without_time(path: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k != "time"} for line in read_lines(path)]


def log_steps(run: Run, stage: str, resume_at: int, steps: Iterator[int] | range) -> None:
    with Metrics(run, stage, resume_at) as metrics:
        for step in steps:
            metrics.log(step, {"loss": 1 / (step + 1), "count": step})


def test_metrics_are_lines_of_plain_numbers(tmp_path: Path) -> None:
    run = Run(tmp_path)
    before = time.time()
    log_steps(run, "vae", 0, range(1, 3))
    log_steps(run, "mdnrnn", 0, range(1, 2))
    assert without_time(run.metrics) == [
        {"stage": "vae", "step": 1, "loss": 0.5, "count": 1.0},
        {"stage": "vae", "step": 2, "loss": 1 / 3, "count": 2.0},
        {"stage": "mdnrnn", "step": 1, "loss": 0.5, "count": 1.0},
    ]
    rows = read_metrics(run.metrics, "vae")
    assert [row["step"] for row in rows] == [1, 2]
    assert before - 1 <= rows[0]["time"] <= time.time() + 1
    assert read_metrics(tmp_path / "missing", "vae") == []


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(saved=st.integers(0, 6), ahead=st.integers(0, 3), torn=st.integers(0, 60))
def test_resumed_metrics_have_the_lines_of_an_uninterrupted_run(
    saved: int, ahead: int, torn: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    once, twice = Run(tmp_path_factory.mktemp("once")), Run(tmp_path_factory.mktemp("twice"))
    for run in (once, twice):
        log_steps(run, "vae", 0, range(1, 4))
    log_steps(once, "controller", 0, range(1, 10))
    log_steps(twice, "controller", 0, range(1, min(saved + ahead, 9) + 1))
    whole = twice.metrics.read_bytes()
    line = json.dumps({"stage": "controller", "step": saved + ahead + 1, "time": 1.0, "loss": 0.5}).encode()
    twice.metrics.write_bytes(whole + line[:torn])  # killed in the middle of a line
    log_steps(twice, "controller", saved, range(saved + 1, 10))
    assert without_time(twice.metrics) == without_time(once.metrics)
    assert files(twice.folder) == {"metrics.jsonl", "tensorboard"}


def test_what_a_kill_left_of_a_line_goes_before_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    for torn in (b"", b'{"mean": 1', b"x" * 10_000):
        with path.open("ab") as file:
            file.write(torn)
        append_line(path, {"n": len(torn)})
        assert read_lines(path)[-1] == {"n": len(torn)}
    assert [line["n"] for line in read_lines(path)] == [0, 10, 10_000]


def test_a_damaged_line_names_the_file_and_the_line(tmp_path: Path) -> None:
    run = Run(tmp_path)
    log_steps(run, "vae", 0, range(1, 4))
    whole = run.metrics.read_bytes()
    for damaged in (
        whole.replace(b'"count": 2.0', b'"count": 3.0'),
        whole.replace(b'{"stage": "vae", "step": 2', b"2"),
    ):
        run.metrics.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{run.metrics} is damaged in line 2 \("):
            read_metrics(run.metrics, "vae")
    run.metrics.write_bytes(b'{"a": 1}\n')
    with pytest.raises(UserError, match="field 'stage' is missing"), Metrics(run, "vae"):
        pass


def test_lines_of_before_the_checksums_are_read(tmp_path: Path) -> None:
    (tmp_path / "m").write_text('{"stage": "vae", "step": 1, "loss": 0.5}\n')
    assert read_metrics(tmp_path / "m", "vae") == [{"stage": "vae", "step": 1, "loss": 0.5}]


def test_a_torn_line_is_not_read(tmp_path: Path) -> None:
    run = Run(tmp_path)
    log_steps(run, "vae", 0, range(1, 3))
    run.metrics.write_bytes(run.metrics.read_bytes()[:-5])
    assert [row["step"] for row in read_metrics(run.metrics, "vae")] == [1]


def test_tensorboard_shows_every_step_once(tmp_path: Path) -> None:
    run = Run(tmp_path)
    log_steps(run, "vae", 0, range(1, 6))
    log_steps(run, "vae", 3, range(4, 8))
    board = EventAccumulator(str(tmp_path / "tensorboard" / "vae")).Reload()
    assert set(board.Tags()["scalars"]) == {"vae/loss", "vae/count"}
    assert [(event.step, event.value) for event in board.Scalars("vae/count")] == [(n, n) for n in range(1, 8)]
    log_steps(run, "vae", 0, range(1, 3))  # begun anew
    board = EventAccumulator(str(tmp_path / "tensorboard" / "vae")).Reload()
    assert [event.step for event in board.Scalars("vae/count")] == [1, 2]


def test_importing_run_does_not_import_torch() -> None:
    code = "import sys, wm.run.folder, wm.run.command_line; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# --- the lock --------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from wm.run.folder import Run
with Run(sys.argv[1]).lock():
    print("locked", flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_second_command_is_refused_until_the_first_one_is_gone(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    with holder(run.folder) as process:
        with pytest.raises(UserError, match=rf"another command is running in {run.folder}: wait until"), run.lock():
            pass
        with pytest.raises(UserError, match="another command"), run.stage("vae", SMOKE.vae, 0):
            pass
        assert not run.manifest.exists()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with run.lock():
            pass
    with run.lock():  # freed by its own end, too
        pass


def test_a_folder_that_cannot_be_made_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"file/run cannot be written .* choose another RUN or RUNS\."),
        Run(tmp_path / "file" / "run").lock(),
    ):
        pass


def test_a_folder_whose_name_is_not_in_utf_8_is_a_users_error(tmp_path: Path) -> None:
    run = Run(tmp_path / os.fsdecode(b"ran\xe9"))
    with pytest.raises(UserError, match=r"is not UTF-8 in this locale: choose another RUN or RUNS"), run.lock():
        pass
    assert not run.folder.exists()
    with Run(tmp_path / "ran é").lock():
        pass


def test_a_file_in_place_of_a_folder_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("")
    for write in (write_json, append_line):
        with pytest.raises(MachineError, match=r"cannot be written \(File exists\): move or rename the file"):
            write(tmp_path / "plots" / "a.json", {"a": 1})
    (tmp_path / "plots").unlink()
    (tmp_path / "plots").symlink_to(tmp_path / "nowhere")
    with pytest.raises(MachineError, match="move or rename the file or folder of this name"):
        write_json(tmp_path / "plots" / "a.json", {"a": 1})


# --- the manifest ----------------------------------------------------------------------------------------


def worked(run: Run, stage: str, config: Any, seed: int = 0, error: UserError | None = None) -> None:
    with run.stage(stage, config, seed) as begin:
        begin()
        if error is not None:
            raise error


def test_a_stage_is_recorded(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.stage("controller", CONFIG, seed=3) as begin:
        assert not run.manifest.exists()
        begin()
        entry = run.read_manifest()["stages"]["controller"]
        assert (entry["ended"], entry["seconds"]) == (None, 0.0)
        time.sleep(0.15)
    assert run.read_manifest()["format"] == RUN_FORMAT
    entry = run.read_manifest()["stages"]["controller"]
    assert entry["config"] == asdict(CONFIG)
    assert entry["seed"] == 3
    assert entry["versions"] == versions()
    assert entry["commit"] == commit()
    assert entry["cores"] == os.cpu_count()
    assert entry["started"] <= entry["ended"]
    assert entry["peak_memory_mb"] > 0
    assert 0.1 <= entry["seconds"] < 5


def test_the_first_stage_of_a_run_records_its_environment(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.read_env() is None
    for env in ("Pong-v5", "Tennis-v5"):
        with run.stage("vae", SMOKE.vae, 0, env=env) as begin:
            begin()
        assert json.loads(run.manifest.read_text())["env"] == run.read_env() == "Pong-v5"


def test_a_run_without_a_recorded_environment_is_of_car_racing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    worked(run, "vae", SMOKE.vae)
    assert "env" not in json.loads(run.manifest.read_text())
    assert run.read_env() == "CarRacing-v3"
    with run.stage("controller", CONFIG, 0, env="Pong-v5") as begin:
        begin()
    assert run.read_env() == "CarRacing-v3"


def test_a_refused_first_call_leaves_no_environment_behind(tmp_path: Path) -> None:
    run = Run(tmp_path)

    def refused() -> None:
        with run.stage("vae", SMOKE.vae, 0, env="Pong-v5") as begin:
            begin()
            raise UserError("the data does not fit.")

    with pytest.raises(UserError):
        refused()
    assert run.read_env() is None


def test_seconds_add_up_over_calls_however_they_end(tmp_path: Path) -> None:
    run = Run(tmp_path)

    def interrupted() -> None:
        with run.stage("controller", CONFIG, seed=0) as begin:
            begin()
            time.sleep(0.2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    first = run.read_manifest()["stages"]["controller"]
    with run.stage("controller", CONFIG, seed=0) as begin:
        begin()
        time.sleep(0.2)
    second = run.read_manifest()["stages"]["controller"]
    assert 0.2 <= first["seconds"] + 0.051 <= second["seconds"]
    assert second["seconds"] >= 0.4 - 0.051
    assert second["started"] == first["started"]


def test_restart_forgets_the_record_even_when_it_is_killed(tmp_path: Path) -> None:
    run = Run(tmp_path)
    worked(run, "controller", CONFIG)
    run.record("controller", {"seconds": 5000.0, "started": "2000-01-01"})
    with run.stage("controller", replace(CONFIG, popsize=9), seed=1, restart=True) as begin:
        begin()
        entry = run.read_manifest()["stages"]["controller"]  # what a SIGKILL now would leave
        assert entry["seconds"] == 0.0
        assert entry["started"] > "2000-01-01"
        assert (entry["config"]["popsize"], entry["seed"]) == (9, 1)


def test_changed_options_are_refused_by_name(tmp_path: Path) -> None:
    run = Run(tmp_path)
    worked(run, "controller", CONFIG)
    before = run.manifest.read_bytes()
    changed = replace(CONFIG, popsize=9, sigma0=0.2)
    with (
        pytest.raises(UserError, match=r"\(popsize was 4, is 9; sigma0 was 0.1, is 0.2; seed was 0, is 1\).*--restart"),
        run.stage("controller", changed, seed=1),
    ):
        pytest.fail("the stage ran")
    assert run.manifest.read_bytes() == before
    worked(run, "vae", SMOKE.vae, seed=1)  # another stage has a record of its own
    assert run.read_manifest()["stages"]["controller"]["seed"] == 0


@pytest.mark.parametrize(
    ("name", "total"),
    [("collect", "episodes"), ("vae", "updates"), ("mdnrnn", "updates"), ("controller", "generations")],
)
def test_totals_may_grow(tmp_path: Path, name: str, total: str) -> None:
    run = Run(tmp_path)
    config = getattr(SMOKE, name)
    worked(run, name, config)
    worked(run, name, replace(config, **{total: 1000}))
    assert run.read_manifest()["stages"][name]["config"][total] == 1000


@pytest.mark.parametrize("text", ['{"format": 0, "stages": {}}', '{"stages": {}}', "[]", '"text"'])
def test_a_manifest_of_another_format_is_refused(tmp_path: Path, text: str) -> None:
    run = Run(tmp_path)
    run.manifest.write_text(text)
    with (
        pytest.raises(UserError, match=rf"manifest.json is not of format {RUN_FORMAT}.*choose another RUN\."),
        run.stage("controller", CONFIG, seed=0, restart=True),
    ):
        pytest.fail("the stage ran")
    assert run.manifest.read_text() == text


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.manifest.write_text('{"format": 1, "sta')
    with pytest.raises(UserError, match=r"manifest.json cannot be read as JSON"), run.stage("vae", SMOKE.vae, 0):
        pytest.fail("the stage ran")


def test_made_from_other_inputs_is_refused_in_one_sentence() -> None:
    check_made_from(Path("r/mdnrnn.pt"), {"vae.pt": "a", "rollouts": "b"}, {"vae.pt": "a"})
    sentence = (
        "r/mdnrnn.pt was made from another vae.pt than the current one: "
        "redo it with `make mdnrnn ARGS=--restart`, or restore the vae.pt that it was made from."
    )
    for recorded in ({"vae.pt": "b"}, {}):
        with pytest.raises(UserError) as raised:
            check_made_from(Path("r/mdnrnn.pt"), recorded, {"vae.pt": "a"})
        assert str(raised.value) == sentence


def test_a_refused_first_call_leaves_no_options_behind(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(UserError):
        worked(run, "vae", VAEConfig(batch=-1), error=UserError("--batch must be at least 1."))
    assert run.read_manifest()["stages"] == {}
    worked(run, "vae", VAEConfig())
    with pytest.raises(UserError):
        worked(run, "vae", VAEConfig(), error=UserError("the data does not fit."))
    assert "vae" in run.read_manifest()["stages"]


def test_what_the_machine_refuses_leaves_the_options_of_the_work_so_far(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(MachineError):
        worked(run, "vae", VAEConfig(), error=MachineError("the disk is full."))
    with pytest.raises(UserError, match="batch was 100, is 7"), run.stage("vae", VAEConfig(batch=7), 0):
        pytest.fail("the stage ran")


def test_who_finds_nothing_to_do_leaves_the_record_of_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    worked(run, "vae", SMOKE.vae)
    before = run.manifest.read_bytes()
    monkeypatch.setattr(wm.run.folder, "commit", lambda: "another")
    with run.stage("vae", SMOKE.vae, 0):
        pass
    assert run.manifest.read_bytes() == before
    worked(run, "vae", SMOKE.vae)
    assert run.read_manifest()["stages"]["vae"]["commit"] == "another"


def test_a_lock_clears_away_what_a_killed_writer_left(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    leftover = tmp_path / "checkpoints" / ".vae-x1y2.tmp.pt"
    leftover.write_bytes(b"half")
    with atomic(tmp_path / "video.mp4") as temporary, Run(tmp_path).lock():
        assert not leftover.exists()
        assert temporary.exists()  # of a replay that is at work meanwhile
    assert (tmp_path / "video.mp4").exists()


@pytest.fixture(params=[errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some network file systems."""
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(request.param, os.strerror(request.param))))


@pytest.mark.usefixtures("no_locks")
def test_what_needs_a_lock_is_refused_without_locks(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"cannot be locked \(No locks available\): choose RUNS on another"),
        Run(tmp_path).lock(),
    ):
        pass


@pytest.mark.usefixtures("no_locks")
def test_what_takes_no_lock_works_without_locks(tmp_path: Path) -> None:
    """As replay and report do."""
    leftover = tmp_path / ".video-x1y2.tmp.mp4"
    leftover.write_bytes(b"of a command that is at work, perhaps")
    Run(tmp_path).sweep()
    with atomic(tmp_path / "report.html") as temporary:
        temporary.write_text("page")
    assert files(tmp_path) == {leftover.name, "report.html"}


def test_no_room_for_temporary_files_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "nowhere")])
    with (
        pytest.raises(MachineError, match=r"^no folder for temporary files can be written: free disk space and run"),
        writing(None),
    ):
        tempfile.gettempdir()


# --- commands in messages --------------------------------------------------------------------------------


def test_messages_name_commands_that_the_reader_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made_by("vae") == "make it with `make vae`"
    assert redo("mdnrnn") == "redo it with `make mdnrnn ARGS=--restart`"
    assert install("ray") == "install it with `make setup EXTRAS=ray`"
    monkeypatch.setattr("wm.run.remedies.ROOT", tmp_path)  # as installed
    (tmp_path / "Makefile").touch()  # of somebody else
    assert command("dream") == "`make dream` in a clone of the repository"
    assert made_by("vae") == "make it with `make vae` in a clone of the repository"
    assert redo("vae") == "redo it with `make vae ARGS=--restart` in a clone of the repository"
    assert install("ray") == 'install it with `pip install "world-models[ray]"`'
