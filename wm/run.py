"""The run folder: its paths, lock, manifest, metrics and atomic files; progress lines and errors of all stages.

    RUN/rollouts/*.h5 vae.pt latents.h5 mdnrnn.pt controller.npz starts.npz dream.npz score.json scores.jsonl
        probe.json videos/ play/ plots/ metrics.jsonl manifest.json checkpoints/ tensorboard/

A stage does all its work within `Run.stage(...)`: it locks the folder, and writes down in the manifest what
was run with which versions, for how long and in how much memory.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import NoneType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from wm.config import RUN_FORMAT, changed_fields
from wm.signals import work_begins

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PACKAGES = ("torch", "gymnasium", "box2d", "cma", "numpy", "h5py", "opencv-python-headless", "onnxruntime")
"""Packages whose versions go into the manifest and beside every score."""

Shape = Any
"""What a value of JSON has to be: a type, a tuple of shapes of which one fits, a list of the shape of its items, an
object: a dict of the shapes of its fields by name ("name?": it may be missing), or by `...` of whatever is in it; or
what a function says."""

NUMBER = (int, float)
LARGEST = 1e100
"""A number beyond is none that anybody has counted or measured."""


def is_histogram(value: Any) -> bool:
    """Whether a value of JSON is counts between ascending edges."""
    if not fits(value, {"edges": [NUMBER], "counts": [NUMBER]}):
        return False
    edges = value["edges"]
    return len(edges) == len(value["counts"]) + 1 > 1 and all(low < high for low, high in pairwise(edges))


RECORD: Shape = {
    "config": {
        **dict.fromkeys(("updates?", "generations?", "horizon?", "z?"), int),
        "temperature?": NUMBER,
        "reward?": str,
    },
    "seed": int,
    "versions": {...: str},
    "commit": str,
    "cores": int,
    "started": str,
    "ended": (str, NoneType),
    "seconds": NUMBER,
    "peak_memory_mb": NUMBER,
}
"""What the manifest holds of each stage; `Run.stage` writes it."""

SCORE: Shape = {
    **dict.fromkeys(("mean", "std"), float),
    "ci95": (float, NoneType),
    "returns": [NUMBER],
    "lengths": [int],
    "seeds": [int],
    **dict.fromkeys(("env_id", "commit", "time"), str),
    "max_steps": int,
    "made_from": {...: str},
    "versions": {"gymnasium": str},
}
"""What a score holds that is read again; stage evaluate writes it."""

SUMMARY: Shape = {
    **dict.fromkeys(("episodes", "frames"), int),
    **dict.fromkeys(("bytes", "return_mean", "return_std", "return_max"), NUMBER),
    "policies": {...: int},
    "on_road": (float, NoneType),
    "actions": [is_histogram],
    "returns?": is_histogram,
}
"""What the summary of a collection holds that is read again; stage collect writes it."""

EVOLVED = ("env_steps", "seconds", "mean")
SELECTED = ("select_std", "select_steps")
REQUIRED_WITH: dict[str, dict[str, tuple[str, ...]]] = {
    "vae": {"val_loss": ("val_error", "val_kl", "val_dead")},
    "mdnrnn": {"val_loss": ("val_nll", "val_nll_one", "val_nll_marginal", "val_nll_unit")},
    "controller": {"step": (*EVOLVED, "best", "worst"), "select": SELECTED},
    "dream": {"step": EVOLVED, "select": (*SELECTED, "dream")},
}
"""What a line of a stage's metrics holds that is read again, beside another number."""

NOTICE_SECONDS = 20.0
"""Without a terminal, a progress line is printed this often."""


LOCKS: list[int] = []
"""Descriptors of the locks that this process holds. A stage that it calls inherits them: whoever is killed alone leaves
the folder locked for as long as the called one works in it."""


class UserError(Exception):
    """What the user can mend: one sentence naming the file or option and the way out; exit code 2."""


class MachineError(UserError):
    """What the machine refuses (room, rights, memory): the options are not at fault, and the same command goes on."""


UNWRITABLE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free disk space and run the same command again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "change the permissions, or choose another RUN or RUNS"),
    **dict.fromkeys((errno.EIO, errno.ESTALE), "check the disk and run the same command again"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (ulimit -n) and run the same command again"),
    **dict.fromkeys(
        (errno.EISDIR, errno.ENOTDIR, errno.EEXIST), "move away what has its name and run the same command again"
    ),
    errno.ENAMETOOLONG: "choose a shorter RUN or RUNS",
}
"""Way out when the system refuses to write, by errno."""

NO_TEMPORARY = "No usable temporary directory"
"""Message of Python's tempfile when no folder has space; its errno is that of a missing file."""

UNREADABLE = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "change the permissions and run the same command again"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (ulimit -n) and run the same command again"),
    **dict.fromkeys((errno.EIO, errno.ESTALE), "check the disk and run the same command again"),
    errno.ENOMEM: "free memory and run the same command again",
}
"""Way out when the system refuses to read, by errno."""


@contextmanager
def writing(path: Path | None) -> Iterator[None]:
    """Within it, an OSError of writing `path`, or for None whatever the error names, becomes one sentence.

    Raises:
        MachineError: That sentence.
    """
    try:
        yield
    except OSError as error:
        if NO_TEMPORARY in str(error):
            way_out = UNWRITABLE[errno.ENOSPC]
            raise MachineError(f"no folder for temporary files can be written: {way_out}.") from error
        if error.errno not in UNWRITABLE:
            raise
        reason = os.strerror(error.errno)
        where = path or error.filename or "a file of the run"
        raise MachineError(f"{where} cannot be written ({reason}): {UNWRITABLE[error.errno]}.") from error


# --- files -----------------------------------------------------------------------------------------------


def check_read(path: Path, error: BaseException) -> None:
    """Raises what it is when `error` kept a file from being read and is no sign of damage to it.

    Raises:
        MemoryError: There was none.
        MachineError: The system refused.
    """
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, OSError) and error.errno in UNREADABLE:
        reason = os.strerror(error.errno)
        raise MachineError(f"{path} cannot be read ({reason}): {UNREADABLE[error.errno]}.") from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is flushed to disk and renamed, else removed.

    The temporary name keeps the suffix, since writers choose formats by it. So `path` is whole or absent.

    Raises:
        MachineError: There is no room, or no right to write there.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=f".tmp{path.suffix}", dir=path.parent)
        temporary = Path(name)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # as long as this is held, `remove_leftovers` lets it be
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)  # mkstemp makes files that only their owner can read
            temporary.replace(path)
            _flush_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(handle)


def _flush_folder(folder: Path) -> None:
    """Flushes a folder's names to disk, where its file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def copy(source: Path, target: Path) -> None:
    """Copies a file, whole or not at all."""
    with atomic(target) as temporary:
        shutil.copyfile(source, temporary)


def share(source: Path, target: Path) -> None:
    """Gives another folder a file that is never written into again, without a second copy; one that is there stays."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        copy(source, target)


def remove_leftovers(folder: Path) -> None:
    """Removes what `atomic` leaves in a folder when its process is killed; files that are being written stay."""
    for leftover in folder.rglob(".*.tmp*"):
        with suppress(FileNotFoundError, BlockingIOError), leftover.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()


CHECKSUM = "crc32"
"""The last field of every JSON object that is written: the CRC-32 of the others. Objects of before have none."""


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all; an object with its checksum."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(_checked(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path, **fields: Shape) -> Any:
    """Reads JSON.

    Args:
        path: The file.
        **fields: Shapes of what it has to hold, by name; any make it an object.

    Raises:
        UserError: It is damaged, or lacks one of `fields`.
    """
    try:
        return _parsed(path.read_bytes(), fields)
    except (ValueError, RecursionError, OSError) as error:
        check_read(path, error)
        raise UserError(f"{path} cannot be read as JSON ({in_short(error)}): remove it or restore it.") from error


def read_score(path: Path) -> dict[str, Any]:
    """A score; UserError when it is damaged or none."""
    score: dict[str, Any] = read_json(path, **SCORE)
    columns = [score[name] for name in ("returns", "lengths", "seeds")]
    if len({len(column) for column in columns}) > 1 or not columns[0]:
        raise UserError(f"{path} holds no score (check its returns, lengths and seeds): remove it or restore it.")
    return score


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Adds an object with its checksum to a file of one JSON object a line; what a kill left of a line goes first.

    It is flushed to disk: no checkpoint that is written later may be there without it.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            end = file.tell()
            file.seek(max(0, end - 1))
            if file.read() not in (b"", b"\n"):
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write(_line(value).encode())
            file.flush()
            os.fsync(file.fileno())


def read_lines(path: Path, **fields: Shape) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object a line; [] when it is missing.

    A line counts once its end is written: what a kill cut off is left out.

    Args:
        path: The file.
        **fields: Shapes of what each object has to hold, by name.

    Raises:
        UserError: A line is damaged, or lacks one of `fields`.
    """
    if not path.exists():
        return []
    found = []
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        check_read(path, error)
        raise UserError(f"{path} cannot be read ({error.strerror}): remove it or restore it.") from error
    for number, line in enumerate(lines, 1):
        try:
            value = _parsed(line, fields)
            if not isinstance(value, dict):
                raise ValueError("it is not an object")
        except (ValueError, RecursionError) as error:
            reason = in_short(error)
            raise UserError(f"{path} is damaged in line {number} ({reason}): restore the line or remove it.") from error
        found.append(value)
    return found


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(_checked(dict(value)), allow_nan=False) + "\n"


def _checked(value: Any) -> Any:
    return {**value, CHECKSUM: _checksum(value)} if isinstance(value, dict) else value


def _checksum(value: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(value).encode()):08x}"


def _parsed(content: bytes, fields: Mapping[str, Shape]) -> Any:
    """The value of JSON text without its checksum; ValueError when it is none, or not what it was."""
    value = json.loads(content, parse_constant=_no_number)
    if isinstance(value, dict):
        last = value.popitem() if value else ("", None)
        # By its value, since the name may be what is damaged.
        if re.fullmatch("[0-9a-f]{8}", str(last[1])):
            if last != (CHECKSUM, _checksum(value)):
                raise ValueError(f"its {CHECKSUM} does not match, so it was changed after it was written")
        elif last[0]:
            value[last[0]] = last[1]
        if CHECKSUM in value:
            raise ValueError(f"its {CHECKSUM} is damaged")
    for name, shape in fields.items():
        if not fits(value, {name: shape}):
            raise ValueError(f"it has no {name!r} of the right kind")
    return value


def fits(value: Any, shape: Shape) -> bool:
    """Whether a value of JSON is of a shape; what an object has beside its fields does not matter."""
    if isinstance(shape, tuple):
        return any(fits(value, one) for one in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(item, shape[0]) for item in value)
    if isinstance(shape, type):
        return isinstance(value, shape) and not (isinstance(value, int | float) and abs(value) > LARGEST)
    if not isinstance(shape, dict):
        return bool(shape(value))
    if not isinstance(value, dict):
        return False
    if ... in shape:
        return all(fits(item, shape[...]) for item in value.values())
    return all(
        fits(value[key], one) if (key := name.removesuffix("?")) in value else key != name
        for name, one in shape.items()
    )


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def in_short(error: BaseException) -> str:
    """What an exception says, in a part of one line; its kind if it says nothing."""
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__


def check_archive(path: Path) -> None:
    """Compares every member of a zip archive (*.npz, *.pt) with the checksum that the archive holds of it.

    numpy and torch read only what the archive's own headers tell them to, and torch checks nothing.

    Raises:
        Exception: Of some kind, when it is no whole archive.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
        if damaged is not None or not archive.namelist():
            raise ValueError(f"the checksum of {damaged} does not match")
        for member in archive.infolist():
            if member.filename.endswith(".npy"):
                _check_size(archive, member)


def _check_size(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """ValueError unless an array is as large as its header says: numpy makes room for that before it reads."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if file.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError(f"{member.filename} does not have the size that its header gives")


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- versions --------------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str:
    """The commit of this code, with '-dirty' when tracked files differ from it; 'unknown' outside of git."""

    def git(*arguments: str) -> str:
        # Without its optional locks: a kill would leave .git/index.lock behind, and every commit would be refused.
        return subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def peak_memory_mb() -> float:
    """Largest resident size so far of this process and of its largest finished child, added, in MB."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return round((own + children) / 1024, 1)


# --- progress --------------------------------------------------------------------------------------------


class Progress:
    """A progress bar with rate and time left; without a terminal, a line now and then.

    Use as a context manager; `update(n, **shown)` advances it by n and shows `shown` behind it.
    """

    def __init__(self, name: str, total: int, initial: int = 0, unit: str = "it") -> None:
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            desc=name, total=total, initial=initial, unit=unit, disable=not self._terminal, dynamic_ncols=True
        )
        self._name, self._total, self._unit = name, total, unit
        self._first = self._n = initial
        self._said_n = -1
        self._start = self._said = time.monotonic()
        self._shown = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._terminal and kind is None and self._said_n != self._n:
            self._say()
        self._bar.close()

    def update(self, n: int = 1, **shown: float | str) -> None:
        """Advances by `n`; `shown` are values to print behind the bar."""
        self._n += n
        if shown:
            self._shown = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
            self._bar.set_postfix_str(self._shown, refresh=False)
        self._bar.update(n)
        if not self._terminal and time.monotonic() - self._said > NOTICE_SECONDS:
            self._say()

    def _say(self) -> None:
        self._said, self._said_n = time.monotonic(), self._n
        line = tqdm.format_meter(
            self._n,
            self._total,
            self._said - self._start,
            prefix=self._name,
            unit=self._unit,
            postfix=self._shown,
            initial=self._first,
            bar_format="{desc}: {n_fmt}/{total_fmt} {percentage:.0f}% [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
        )
        print(line, file=sys.stderr, flush=True)


# --- metrics ---------------------------------------------------------------------------------------------


class Metrics:
    """One stage's numbers: lines of metrics.jsonl, and TensorBoard event files beside them.

    Each line is {"stage", "step", "time", name: value, ...}; `step` is the stage's own count (updates,
    generations). `resume_at` drops everything logged after that step, so that an interrupted and resumed run
    logs what an uninterrupted one does.
    """

    def __init__(self, run: Run, stage: str, resume_at: int = 0) -> None:
        self._stage, self._path = stage, run.metrics
        self._folder, self._resume_at = run.folder / "tensorboard" / stage, resume_at
        self._board: SummaryWriter | None = None
        if self._path.exists():
            lines = read_lines(self._path, stage=str, step=int)
            lines_left = [line for line in lines if line["stage"] != stage or line["step"] <= resume_at]
            with atomic(self._path) as temporary:
                temporary.write_text("".join(map(_line, lines_left)))
        if resume_at <= 0:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            with writing(self._folder):
                self._board.close()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Appends `values` (plain numbers) at `step`."""
        plain = {name: float(value) for name, value in values.items()}
        append_line(self._path, {"stage": self._stage, "step": step, "time": round(time.time(), 3), **plain})
        with writing(self._folder):
            if self._board is None:
                # Imports torch: seconds that a stage without numbers to log need not pay.
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(self._folder), purge_step=self._resume_at + 1, flush_secs=10)
            for name, value in plain.items():
                self._board.add_scalar(f"{self._stage}/{name}", value, step)


def read_metrics(path: Path, stage: str) -> list[dict[str, Any]]:
    """The lines of one stage in metrics.jsonl, in order; [] when the file is missing; UserError when one is none."""
    found = [line for line in read_lines(path, stage=str, step=int) if line["stage"] == stage]
    for line in found:
        wanted = line.keys() - {"stage"}
        for name, others in REQUIRED_WITH.get(stage, {}).items():
            wanted |= set(others) if name in line else set()
        for name in sorted(wanted):
            if not fits(line.get(name), NUMBER):
                raise UserError(
                    f"{path} has a line of stage {stage}, step {line['step']}, in which {name!r} is not a number: "
                    "restore the line or remove it."
                )
    return found


# --- the folder ------------------------------------------------------------------------------------------


class Run:
    """A run folder. Paths are fixed; nothing is created until something is written."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.rollouts = self.folder / "rollouts"
        self.vae = self.folder / "vae.pt"
        self.latents = self.folder / "latents.h5"
        self.mdnrnn = self.folder / "mdnrnn.pt"
        self.controller = self.folder / "controller.npz"
        self.starts = self.folder / "starts.npz"
        self.dream = self.folder / "dream.npz"
        self.dream_latest = self.folder / "dream-latest.npz"
        self.score = self.folder / "score.json"
        self.scores = self.folder / "scores.jsonl"
        self.probe = self.folder / "probe.json"
        self.metrics = self.folder / "metrics.jsonl"
        self.curves = self.folder / "curves.jsonl"
        self.ablations = self.folder / "ablations.json"
        self.rounds = self.folder / "rounds.jsonl"
        self.manifest = self.folder / "manifest.json"
        self.plots = self.folder / "plots"
        self.videos = self.folder / "videos"
        self.play = self.folder / "play"
        self.checkpoints = self.folder / "checkpoints"

    def read_manifest(self) -> dict[str, Any]:
        """The manifest, or a new one; UserError when it is damaged or of another format version."""
        if not self.manifest.exists():
            return {"format": RUN_FORMAT, "stages": {}}
        manifest = read_json(self.manifest)
        if not isinstance(manifest, dict) or manifest.get("format") != RUN_FORMAT:
            raise UserError(
                f"{self.manifest} is not of format {RUN_FORMAT}, which this version writes: choose another RUN."
            )
        stages = manifest.get("stages")
        if not fits(stages, {...: RECORD}):
            raise UserError(f"{self.manifest} is damaged (its records of stages are not readable): restore it.")
        return manifest

    def record(self, stage: str, entry: dict[str, Any]) -> None:
        """Merges `entry` into the manifest's record of one stage."""
        manifest = self.read_manifest()
        manifest["stages"].setdefault(stage, {}).update(entry)
        write_json(self.manifest, manifest)

    def sweep(self) -> None:
        """Removes what killed commands left half written. `lock` does; commands that only look on take no lock."""
        with writing(self.folder):
            remove_leftovers(self.folder)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other commands off this folder; UserError when one is at work. The kernel frees it at any death."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / ".lock").open("w")
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be written ({error.strerror}): choose another RUN or RUNS."
            ) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"another command is at work in {self.folder}: wait until it has ended, or choose another RUN."
                ) from error
            except OSError as error:
                raise UserError(
                    f"{self.folder} cannot be locked ({error.strerror}): choose RUNS on another file system."
                ) from error
            self.sweep()
            LOCKS.append(file.fileno())
            try:
                yield
            finally:
                LOCKS.remove(file.fileno())
                remove_leftovers(self.folder)  # of workers that were killed on the way

    @contextmanager
    def stage(self, stage: str, config: Any, seed: int, restart: bool = False) -> Iterator[Callable[[], None]]:
        """Locks the folder for a stage, which is recorded in the manifest once it begins to work.

        Args:
            stage: Its name.
            config: The stage's config dataclass. A change since an earlier call (but for totals) is refused.
            seed: The run's seed; a change is refused, too.
            restart: Forget the earlier record instead of refusing.

        Yields:
            begin(), to be called as soon as it is known that there is something to do, and after a restart has thrown
            the earlier work away. Who finds nothing to do does not call it: the record stays that of the work.

        Raises:
            UserError: Config or seed are not those of the work that is already there.
        """
        with self.lock():
            entry = self.read_manifest()["stages"].get(stage, {})
            if restart:
                entry = {}
            if entry:
                changes = list(changed_fields(entry["config"], config))
                if entry["seed"] != seed:
                    changes.append(f"seed was {entry['seed']}, is {seed}")
                if changes:
                    raise UserError(
                        f"{self.folder} has a {stage} made with other options ({'; '.join(changes)}): "
                        "give the old options, choose another RUN, or redo the stage with --restart."
                    )
            before = entry.get("seconds", 0.0)
            start = time.monotonic()
            begun = refused = False

            def begin() -> None:
                nonlocal begun
                base = {
                    "config": asdict(config),
                    "seed": seed,
                    "versions": versions(),
                    "commit": commit(),
                    "cores": os.cpu_count(),
                    "started": entry.get("started", now()),
                    "ended": None,
                    "seconds": before,
                    "peak_memory_mb": entry.get("peak_memory_mb", 0.0),
                }
                self.record(stage, base)
                begun = True
                work_begins()

            try:
                yield begin
            except UserError as error:
                refused = not isinstance(error, MachineError)
                raise
            finally:
                if begun and refused and not entry:  # its first work: the next call need not keep to its options
                    manifest = self.read_manifest()
                    del manifest["stages"][stage]
                    write_json(self.manifest, manifest)
                elif begun:
                    seconds = round(before + time.monotonic() - start, 1)
                    peak = max(peak_memory_mb(), entry.get("peak_memory_mb", 0.0))
                    self.record(stage, {"seconds": seconds, "peak_memory_mb": peak, "ended": now()})


def now() -> str:
    """The time as ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def began_with(path: Path | None) -> dict[str, str]:
    """What a stage is made from beside, when it begins with another artifact; UserError when that is not there."""
    if path is None:
        return {}
    if not path.is_file():
        raise UserError(f"{path} is missing, so nothing can start from it: give another file.")
    return {"start": file_hash(path)}


def check_made_from(
    path: Path, recorded: Mapping[str, str], current: Mapping[str, str], stage: str | None = None
) -> None:
    """UserError when the artifact `path` was made from other inputs than those that are there now.

    Args:
        path: The artifact.
        recorded: Hash by input name, as the artifact recorded it when it was made.
        current: The hashes now.
        stage: The stage that redoes it; None when the artifact is named after it.
    """
    for name, value in current.items():
        if recorded.get(name) != value:
            raise UserError(
                f"{path} was made from another {name} than the current one: "
                f"redo it with `make {stage or path.stem} ARGS=--restart`, or restore the {name} that it was made from."
            )
