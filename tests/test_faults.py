"""Faults: every stage, killed, interrupted, out of disk or robbed of its workers, ends with the same contents.

The real commands at the least sizes that do something. A small dose here, all of it by `make test-faults`.
"""

import fcntl
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.test_damage import plain, read_latents
from wm.controller.file import load_controller
from wm.learning.evolution import Evolution
from wm.run.artifact import load_artifact
from wm.run.checksums import file_hash
from wm.run.folder import Run
from wm.run.json_files import read_json, read_lines
from wm.run.metrics import read_metrics
from wm.run.signals import EXIT_CODE, INTERRUPTED
from wm.store.shards import Rollouts
from wm.store.starts import load_starts

ROOT = Path(__file__).parent.parent
SPAWNED = "from multiprocessing.spawn import spawn_main"

pytestmark = pytest.mark.timeout(7200)

CHAIN = ("collect", "vae", "memory", "controller", "dream", "evaluate", "probe", "report")
"""Stages of which each works in the folder that the one before leaves."""
CALLING = ("iterate", "ablate")
"""Stages that call others, as processes of their own."""
STAGES = (*CHAIN, *CALLING)
BEFORE: dict[str, str | None] = {
    **dict(zip(CHAIN, (None, *CHAIN), strict=False)),
    **{"iterate": None, "ablate": "memory", "curves": "memory", "replay": "controller"},
}
"""In whose folder a stage begins."""
POOLED = ("collect", "controller", "dream", "evaluate", "probe")
"""Stages with worker processes."""

EVOLUTION = "--generations 3 --popsize 4 --max-steps 40 --select-every 2 --select-tracks 2"
OPTIONS = {
    "collect": "--episodes 6 --episodes-per-shard 1 --max-steps 80 --policy brownian",
    "vae": "--updates 12 --validate-every 4 --batch 8 --validation-frames 16 --shuffle-frames 64",
    "memory": "--updates 12 --validate-every 4 --batch 4 --length 16 --hidden 16 --validation-clips 8",
    "controller": f"{EVOLUTION} --tracks 1",
    "dream": f"{EVOLUTION} --start-after 20 --horizon 12 --starts 8 --noise recorded --value 10",
    "evaluate": "--episodes 4 --max-steps 40 --fast",
    "probe": "--episodes 4 --max-steps 70",
    "report": "--no-videos",
    "iterate": "--rounds 3 --added 2 --vae-updates 6 --vae-rounds 1 --mdnrnn-updates 6 --fresh-rounds 1 "
    "--refine-from 2 --refine-added 1 --refine-updates 4 --dream-options=--generations=1",
    "ablate": "--rows full untrained-m --steps 50 --select-every 1 --select-tracks 1 --episodes 1",
    "curves": "--name few --steps 300 --seeds 1 --options=--popsize=4",
    "replay": "--car fast --max-steps 60",
}

SAVING = (
    "import wm.learning.gradient; wm.learning.gradient.SAVE_SECONDS = 0.1\n"
    "from wm.run.command_line import run_stage; from stages.{stage} import main; run_stage(main)"
)
"""A gradient loop that saves so often that kills meet checkpoints of all ages."""


def patience() -> float:
    """Seconds that a signal may take: 5, on a machine that has something else to do in proportion more."""
    side_by_side = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))  # the load is that of the last minute
    return 5 * max(1.0, side_by_side, os.getloadavg()[0] / (os.cpu_count() or 1))


ALL = [pytest.mark.faults, pytest.mark.slow]
"""Marks of what only `make test-faults` runs."""


def stages(*dose: str, among: tuple[str, ...] = STAGES) -> list[Any]:
    """Parameters: all of them for `make test-faults`, those of `dose` for `make test`, too."""
    always = [pytest.param(stage, marks=pytest.mark.slow, id=f"{stage}-dose") for stage in dose]
    return [*always, *(pytest.param(stage, marks=ALL) for stage in among)]


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether this is the full dose."""
    return request.node.get_closest_marker("faults") is not None


@pytest.fixture
def tell(full: bool, record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Says a figure of the full dose: for docs/reliability.md."""
    return (lambda line: record_property("figure", line)) if full else (lambda line: None)


def command(stage: str, folder: Path, workers: int = 2) -> list[str]:
    start = ["-c", SAVING.format(stage=stage)] if stage in ("vae", "memory") else ["-m", f"stages.{stage}"]
    where = [
        "--run",
        str(folder),
        "--preset",
        "smoke",
        "--workers",
        str(workers if stage in POOLED else 1),
        "--threads",
        "1",
    ]
    return [sys.executable, *start, *where, *OPTIONS[stage].split()]


def start(stage: str, folder: Path, limit: int | None = None) -> subprocess.Popen[str]:
    """Starts a stage in a process group of its own; `limit` is the largest file that it may write, in bytes."""

    def bounded() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        command(stage, folder),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=bounded,
    )


def finish(stage: str, folder: Path) -> None:
    done = subprocess.run(command(stage, folder), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@contextmanager
def at_work(stage: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A stage that has begun to work."""
    process = start(stage, folder)
    try:
        until(lambda: process.poll() is not None or (has_imported(process) and has_begun(stage, folder)))
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def has_imported(process: subprocess.Popen[str]) -> bool:
    """Whether it has come to its imports: a signal that is earlier meets Python itself."""
    return "multiarray" in Path(f"/proc/{process.pid}/maps").read_text()


def named(stage: str) -> str:
    """What manifest, metrics and artifact call a stage: stage memory has the name of the kind of M."""
    return "mdnrnn" if stage == "memory" else stage


def has_begun(stage: str, folder: Path) -> bool:
    manifest = folder / "manifest.json"
    if stage == "ablate":
        return (folder / "ablations").exists()
    if stage == "report" or not manifest.exists():
        return stage == "report"
    record = json.loads(manifest.read_text())["stages"].get(named(stage))
    return record is not None and record["ended"] is None


def until(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def descendants(pid: int) -> list[int]:
    """Worker processes of a command."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [child for child in children if SPAWNED in Path(f"/proc/{child}/cmdline").read_text()]
    except (FileNotFoundError, ProcessLookupError):
        return []


# --- what a stage has come to ------------------------------------------------------------------------------

TIMES = ("time", "seconds", "steps_per_second", "frames_per_second")
WHEN = ("time", "commit")
"""Of a result. The commit may change while an hour of tests runs beside somebody who works on the code."""


def rows(run: Run, stage: str) -> list[dict[str, Any]]:
    return [{n: v for n, v in row.items() if n not in TIMES} for row in read_metrics(run.metrics, stage)]


def contents(stage: str, folder: Path) -> Any:
    """Everything that has to be equal whatever happened on the way."""
    run = Run(folder)
    if stage == "collect":
        summary = read_json(run.rollouts / "summary.json")
        # What goes into which shard, and so their bytes, depends on where a kill left gaps.
        return Rollouts(run.rollouts).fingerprint(), {**summary, "bytes": 0}, rows_without(run, stage, "bytes")
    if stage in ("vae", "memory"):
        found: list[Any] = [plain(load_artifact(run.folder / f"{named(stage)}.pt", named(stage)))]
        found += [rows(run, named(stage))]
        return found if stage == "vae" else [*found, plain(read_latents(run))]
    if stage in ("controller", "dream"):
        theta, meta = load_controller(getattr(run, stage))
        state = Evolution.load(run.checkpoints / f"{stage}.npz")
        starts = [plain(vars(load_starts(run.starts)))] if stage == "dream" else []
        return [plain(theta), meta, plain(state.es.state()), state.env_steps, rows(run, stage), *starts]
    if stage == "evaluate":
        return [without(score, *WHEN) for score in (read_json(run.folder / "score-fast.json"), *read_lines(run.scores))]
    if stage == "probe":
        return without(read_json(run.probe), *WHEN)
    if stage == "iterate":
        rounds = read_lines(run.rounds)
        best = max(rounds, key=lambda row: row["select"])
        assert {name: file_hash(folder / name) for name in best["files"]} == best["files"]
        inner = [contents(inner, folder / "rounds" / str(row["round"])) for row in rounds for inner in CHAIN[:2]]
        # Of a round that another one was built on the latents are gone; its networks are.
        last = contents("memory", folder / "rounds" / str(len(rounds) - 1))
        return [[without(row, "minutes", *WHEN) for row in rounds], inner, last]
    if stage == "ablate":
        table = read_json(run.ablations)["rows"]
        weights = {name: plain(load_controller(folder / "ablations" / name / "controller.npz")) for name in table}
        return [{name: without(row, *WHEN) for name, row in table.items()}, weights]
    page = (folder / "report.html").read_text()
    # Without when it was written and by which commit.
    when = r"\d\d\d\d-\d\d-\d\d[T ][\d:]+(\+00:00)?|\b[0-9a-f]{12}(-dirty)?\b"
    return re.sub(when, "", page)


def rows_without(run: Run, stage: str, name: str) -> list[dict[str, Any]]:
    return [without(row, name) for row in rows(run, stage)]


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {n: v for n, v in row.items() if n not in names}


def assert_tidy(folder: Path) -> None:
    """No half-written file is left, and nothing was taken for damaged."""
    assert not [path for path in folder.rglob("*") if ".tmp" in path.name or path.name == "damaged"]


class Pipeline:
    """Run folders of uninterrupted stages: `before` each stage, and what it comes to.

    Tests that run side by side share them; who needs one that another test is about to make waits for it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def after(self, stage: str) -> Path:
        """The folder in which this stage and all before it were left alone."""
        folder = self._folder / stage / "run"
        with (self._folder / f"{stage}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._seconds(stage).exists():
                shutil.rmtree(folder, ignore_errors=True)
                self.copy(stage, folder)
                began = time.monotonic()
                finish(stage, folder)
                self._seconds(stage).write_text(str(time.monotonic() - began))
        return folder

    def seconds(self, stage: str) -> float:
        """How long the stage takes."""
        self.after(stage)
        return float(self._seconds(stage).read_text())

    def _seconds(self, stage: str) -> Path:
        return self._folder / f"{stage}.seconds"

    def copy(self, stage: str, target: Path) -> Path:
        """A folder in which this stage comes next."""
        earlier = BEFORE[stage]
        if earlier:
            shutil.copytree(self.after(earlier), target)
        return target


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    mine = tmp_path_factory.getbasetemp()
    return Pipeline((mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "pipeline")


# --- kills -------------------------------------------------------------------------------------------------


def killed(process: subprocess.Popen[str], folder: Path, seconds: float, rng: random.Random) -> bool:
    """Kills the whole group at a moment, or right after one of the next changes in the folder; False: it was done."""
    if rng.random() < 0.4:
        end = time.monotonic() + rng.uniform(0, seconds)
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
    else:
        for _ in range(rng.randint(1, 12)):
            seen = snapshot(folder)
            while process.poll() is None and snapshot(folder) == seen:
                time.sleep(0.005)  # to look takes time of the two cores, too
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    _, said = process.communicate()
    assert "Traceback" not in said, said
    assert process.returncode in (0, -signal.SIGKILL), said
    return process.returncode != 0


def snapshot(folder: Path) -> list[tuple[str, int]]:
    found = []
    for parent, folders, files in os.walk(folder):  # passes over a folder that vanishes meanwhile; rglob raises
        for name in folders + files:
            path = os.path.join(parent, name)
            try:
                found.append((path, os.stat(path).st_size))
            except FileNotFoundError:
                found.append((path, -1))
    return sorted(found)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize(("stage", "kills"), [*((stage, 12) for stage in CHAIN), *((stage, 8) for stage in CALLING)])
def test_kills_change_nothing(
    pipeline: Pipeline, tmp_path: Path, stage: str, kills: int, tell: Callable[[str], None]
) -> None:
    wanted, seconds = contents(stage, pipeline.after(stage)), pipeline.seconds(stage)
    rng = random.Random(f"{stage} {kills}")
    survived = turn = 0
    while survived < kills:
        folder = pipeline.copy(stage, tmp_path / f"turn{turn}" / "run")
        folder.mkdir(parents=True, exist_ok=True)
        while survived < kills and killed(start(stage, folder), folder, seconds, rng):
            survived += 1
        finish(stage, folder)
        assert contents(stage, folder) == wanted
        assert_tidy(folder)
        turn += 1
        seconds *= 0.8  # it was done before: it was measured beside more work than there is now
        assert turn < 3 * kills, "it ends before it can be killed"
    tell(f"{stage}: {survived} kills survived in {turn} runs")


# --- signals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", stages("collect"))
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_within_seconds_and_the_same_command_goes_on(
    pipeline: Pipeline, tmp_path: Path, stage: str, number: signal.Signals, full: bool, tell: Callable[[str], None]
) -> None:
    wanted = contents(stage, pipeline.after(stage))
    folder = pipeline.copy(stage, tmp_path / "run")
    rng = random.Random(f"{stage} {number}")
    took: list[float] = []
    seconds, turn = pipeline.seconds(stage), 0
    while len(took) < (2 if full else 1):
        assert turn < 12, "it ends before a signal comes"
        with at_work(stage, folder) as process:
            time.sleep(rng.uniform(0, 0.3) * seconds)
            began = time.monotonic()
            workers = descendants(process.pid)
            if number == signal.SIGINT:
                with suppress(ProcessLookupError):  # it was done before
                    os.killpg(process.pid, number)  # as a terminal does it
            else:
                process.send_signal(number)
            _, said = process.communicate(timeout=60)
            if process.returncode == 0:  # it was done before: it was measured beside more work than there is now
                turn, seconds = turn + 1, seconds * 0.7
                folder = pipeline.copy(stage, tmp_path / f"turn{turn}" / "run")
            else:
                took.append(time.monotonic() - began)
                assert (process.returncode, said.splitlines()[-1]) == (EXIT_CODE, INTERRUPTED), said
                assert took[-1] < patience()
            assert "Traceback" not in said, said
            assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    tell(f"{stage}: out {max(took):.1f} s after {number.name} at most, of {len(took)} (load {os.getloadavg()[0]:.0f})")
    finish(stage, folder)
    assert contents(stage, folder) == wanted
    assert_tidy(folder)


@pytest.mark.parametrize("stage", stages("collect"))
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_imports(tmp_path: Path, stage: str, number: signal.Signals) -> None:
    where = ["--run", str(tmp_path / "run"), *OPTIONS[stage].split()]
    process = subprocess.Popen(
        [sys.executable, "-m", f"stages.{stage}", *where], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    until(lambda: has_imported(process))
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (EXIT_CODE, f"{INTERRUPTED}\n")
    assert not (tmp_path / "run").exists()


# --- workers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", stages("collect", among=POOLED))
def test_workers_killed_one_by_one(
    pipeline: Pipeline, tmp_path: Path, stage: str, full: bool, tell: Callable[[str], None]
) -> None:
    wanted = contents(stage, pipeline.after(stage))
    folder = pipeline.copy(stage, tmp_path / "run")
    rng = random.Random(stage)
    victims = 0
    with at_work(stage, folder) as process:
        for _ in range(4 if full else 2):
            until(lambda: process.poll() is not None or len(descendants(process.pid)) == 2)
            time.sleep(rng.uniform(0, 0.5))
            for pid in descendants(process.pid)[:1]:
                os.kill(pid, signal.SIGKILL)
                until(lambda pid=pid: process.poll() is not None or pid not in descendants(process.pid))  # type: ignore[misc]
                victims += 1
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said
    assert victims
    tell(f"{stage}: {victims} workers killed")
    assert "Traceback" not in said, said
    assert contents(stage, folder) == wanted
    assert_tidy(folder)


# --- a full disk -------------------------------------------------------------------------------------------

LIMITS = (0, 300, 4_000, 100_000, 3_000_000)
"""Bytes of the largest file that can be written; the least artifact has 1,000, V's checkpoint 52 million."""


@pytest.mark.parametrize("stage", stages("collect", among=CHAIN))
def test_no_room_is_one_sentence_and_nothing_half_written(
    pipeline: Pipeline, tmp_path: Path, stage: str, full: bool
) -> None:
    """Writes fail in whatever library they happen: the kernel refuses them beyond a size."""
    wanted = contents(stage, pipeline.after(stage))
    folder = pipeline.copy(stage, tmp_path / "run")
    refused = 0
    limits = LIMITS if stage != "collect" else LIMITS[:4]
    for limit in limits if full else limits[::2]:
        process = start(stage, folder, limit)
        _, said = process.communicate(timeout=600)
        if process.returncode:
            refused += 1
            (sentence,) = [line for line in said.splitlines() if line.startswith("error: ")]
            assert process.returncode == 2
            written = r"cannot be written \(File too large\)|no folder for temporary files can be written"
            assert re.search(rf"({written}): free disk space and run the same command again\.", sentence)
            assert "Traceback" not in said, said
    assert refused
    finish(stage, folder)
    assert contents(stage, folder) == wanted
    assert_tidy(folder)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize(("stage", "made"), [("curves", "plots/curves.png"), ("replay", "videos/*.mp4")])
def test_no_room_for_what_is_only_looked_at(pipeline: Pipeline, tmp_path: Path, stage: str, made: str) -> None:
    folder = pipeline.copy(stage, tmp_path / "run")
    refused = 0
    for limit in LIMITS:
        process = start(stage, folder, limit)
        _, said = process.communicate(timeout=600)
        assert process.returncode in (0, 2), said
        if process.returncode:
            refused += 1
            assert re.search(
                r"cannot be written \(File too large\): free disk space and run the same command again\.\n", said
            )
            assert "Traceback" not in said, said
            assert_tidy(folder)
    assert refused
    finish(stage, folder)
    assert list(folder.glob(made))
    assert_tidy(folder)


def pages(folder: Path) -> int:
    """Bytes that the files of a folder take up in memory."""
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    return sum(4096 * -(-path.stat().st_size // 4096) for path in files)


@pytest.mark.parametrize("stage", stages(among=CHAIN))
@pytest.mark.parametrize("room", [0.05, 0.5, 0.9])
def test_a_small_disk(pipeline: Pipeline, tmp_path: Path, stage: str, room: float) -> None:
    """A disk that is full after a share of what the stage writes; where one may be mounted."""
    wanted = contents(stage, pipeline.after(stage))
    disk = tmp_path / "disk"
    disk.mkdir()
    before = pipeline.copy(stage, tmp_path / "before")
    there = pages(before)
    size = int(there + 20_000 + room * (pages(pipeline.after(stage)) - there))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "small", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        folder = pipeline.copy(stage, disk / "run")
        process = start(stage, folder)
        _, said = process.communicate(timeout=600)
        assert process.returncode in ((2,) if room < 0.1 else (0, 2)), said
        assert "Traceback" not in said, said
        if process.returncode:
            assert (
                "cannot be written (No space left on device): free disk space and run the same command again." in said
            )
        larger = Path(shutil.copytree(folder, tmp_path / "larger" / "run"))
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
    finish(stage, larger)
    assert contents(stage, larger) == wanted


# --- two at once -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", stages("collect", among=(*CHAIN[:-1], *CALLING)))
def test_a_second_command_is_refused_and_does_no_harm(pipeline: Pipeline, tmp_path: Path, stage: str) -> None:
    wanted = contents(stage, pipeline.after(stage))
    folder = pipeline.copy(stage, tmp_path / "run")
    with at_work(stage, folder) as process:
        os.kill(process.pid, signal.SIGSTOP)  # so that it is still there when the second one has imported
        second = subprocess.run(command(stage, folder), cwd=ROOT, capture_output=True, text=True, check=False)
        os.kill(process.pid, signal.SIGCONT)
        assert second.returncode == 2, second.stderr
        assert f"error: another command is running in {folder}: wait until it has ended" in second.stderr
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said
    assert contents(stage, folder) == wanted


# --- options -----------------------------------------------------------------------------------------------


def test_an_unwritable_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        done = subprocess.run(command("collect", folder, 0), cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {folder} cannot be written (")
        assert len(done.stderr.splitlines()) == 1
