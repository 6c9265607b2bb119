"""The run folder: paths, lock, manifest, metrics and atomic files; also the progress lines and errors of all stages.

    RUN/rollouts/*.h5 vae.pt latents.h5 mdnrnn.pt controller.npz starts.npz dream.npz score.json scores.jsonl
        probe.json videos/ play/ plots/ metrics.jsonl manifest.json checkpoints/ tensorboard/

A stage works inside `Run.stage(...)`. It locks the folder and records in the manifest the config, the versions, the
time and the memory of the stage.
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
"""Packages whose versions are recorded in the manifest and with every score."""

Shape = Any
"""Schema of a JSON value. One of: a type; a tuple of schemas, of which one must fit; a list with the schema of its
items; a dict with the schemas of an object's fields by name ("name?": optional), or with `...` as the key for all
fields; a function that returns a bool."""

NUMBER = (int, float)
LARGEST = 1e100
"""Largest absolute value that counts as a plausible number."""


def is_histogram(value: Any) -> bool:
    """Whether a JSON value is a histogram: counts between ascending edges."""
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
"""Schema of the manifest's record of a stage, which `Run.stage` writes."""

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
"""Schema of the fields of a score that are read again. Stage evaluate writes it."""

SUMMARY: Shape = {
    **dict.fromkeys(("episodes", "frames"), int),
    **dict.fromkeys(("bytes", "return_mean", "return_std", "return_max"), NUMBER),
    "policies": {...: int},
    "on_road": (float, NoneType),
    "actions": [is_histogram],
    "returns?": is_histogram,
}
"""Schema of the fields of summary.json that are read again. Stage collect writes it."""

EVOLVED = ("env_steps", "seconds", "mean")
SELECTED = ("select_std", "select_steps")
REQUIRED_WITH: dict[str, dict[str, tuple[str, ...]]] = {
    "vae": {"val_loss": ("val_error", "val_kl", "val_dead")},
    "mdnrnn": {"val_loss": ("val_nll", "val_nll_one", "val_nll_marginal", "val_nll_unit")},
    "controller": {"step": (*EVOLVED, "best", "worst"), "select": SELECTED},
    "dream": {"step": EVOLVED, "select": (*SELECTED, "dream")},
}
"""By stage: fields that a line of its metrics must have if it has the named one, since they are read together."""

NOTICE_SECONDS = 20.0
"""Seconds between progress lines when stderr is not a terminal."""


LOCKS: list[int] = []
"""File descriptors of the locks that this process holds. A called stage inherits them, so that the folder stays locked
while that stage works, even if only the caller is killed."""


class UserError(Exception):
    """An error that the user can correct: one sentence with the file or option and the way out. Exit code 2."""


class MachineError(UserError):
    """A refusal of the machine (disk space, permissions, memory). The options are valid, so the command can resume."""


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
    **dict.fromkeys((errno.EISDIR, errno.ENOTDIR), "move away what is in its place and run the same command again"),
    errno.EAGAIN: "close it where it is open and run the same command again",
    errno.ENOMEM: "free memory and run the same command again",
    errno.ENOENT: "restore it and run the same command again",
}
"""Way out when the system refuses to read, by errno."""

SYSTEMS_NUMBER = re.compile(r"\berrno (?:= )?(\d+)")
"""How HDF5 and torch report the system's errno."""

OPEN_ELSEWHERE = re.compile("already open|file locking flag")
"""What HDF5 reports, without an errno, for a file that another process writes or that this process has open."""


@contextmanager
def writing(path: Path | None) -> Iterator[None]:
    """Context manager that turns an OSError of writing into one sentence.

    Args:
        path: The file to name; None: the file that the error names.

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
    """Raises an error if `error` prevented a file from being read but is no sign of damage to the file.

    Raises:
        MemoryError: There was not enough memory.
        MachineError: The system refused to read, or the file is open elsewhere.
    """
    if isinstance(error, MemoryError):
        raise error
    if OPEN_ELSEWHERE.search(str(error)):
        raise MachineError(
            f"{path} cannot be read while it is open elsewhere ({in_short(error)}): close it there, and the same "
            "command goes on."
        ) from error
    number = error.errno if isinstance(error, OSError) else None
    if found := SYSTEMS_NUMBER.search(str(error)):
        number = int(found[1])
    if number and number != errno.EINVAL:  # which is what places beyond a damaged file's end lead to
        way_out = UNREADABLE.get(number, "mend that, and the same command goes on")
        raise MachineError(f"{path} cannot be read ({os.strerror(number)}): {way_out}.") from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is flushed to disk and renamed to `path`, else removed.

    So `path` is either complete or absent. The temporary name has the same suffix, since writers choose formats by it.

    Raises:
        MachineError: There is no disk space, or no permission to write there.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=f".tmp{path.suffix}", dir=path.parent)
        temporary = Path(name)
        try:
            locked(handle)  # `remove_leftovers` skips a locked file
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)  # mkstemp creates files that only their owner can read
            temporary.replace(path)
            _flush_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(handle)


NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of file systems that have no `flock`."""


def locked(handle: int, wait: bool = True) -> bool:
    """Locks an open file for this process; False where its file system has no locks.

    Raises:
        BlockingIOError: Another one holds it, and this one was not to wait.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    return True


def _flush_folder(folder: Path) -> None:
    """Flushes a folder's directory entries to disk, where the file system supports it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def copy(source: Path, target: Path) -> None:
    """Copies a file atomically."""
    with atomic(target) as temporary:
        shutil.copyfile(source, temporary)


def share(source: Path, target: Path) -> None:
    """Hard-links a file that is never modified again into another folder; an existing target stays."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        copy(source, target)


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files that a killed process left in a folder; files that are being written stay.

    Without file locks all stay, since nothing tells the two apart.
    """
    for leftover in folder.rglob(".*.tmp*"):
        # Open for writing, without which NFS locks nothing.
        with suppress(FileNotFoundError, BlockingIOError), leftover.open("rb+") as file:
            if locked(file.fileno(), wait=False):
                leftover.unlink()


CHECKSUM = "crc32"
"""Last field of every JSON object that is written: the CRC-32 of the other fields. Older files have none."""


def write_json(path: Path, value: Any) -> None:
    """Writes `value` atomically as indented JSON; an object gets its checksum."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(_checked(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, **fields: Shape) -> Any:
    """Reads JSON.

    Args:
        path: The file.
        **fields: Schemas of its required fields, by name. If any are given, it must be an object.

    Raises:
        UserError: It is damaged, or lacks one of `fields`.
    """
    try:
        return _parsed(path.read_bytes(), fields)
    except (ValueError, RecursionError, OSError) as error:
        check_read(path, error)
        raise UserError(f"{path} cannot be read as JSON ({in_short(error)}): remove it or restore it.") from error


def read_score(path: Path) -> dict[str, Any]:
    """Reads a score; UserError when it is damaged or not a score."""
    score: dict[str, Any] = read_json(path, **SCORE)
    columns = [score[name] for name in ("returns", "lengths", "seeds")]
    if len({len(column) for column in columns}) > 1 or not columns[0]:
        raise UserError(f"{path} holds no score (check its returns, lengths and seeds): remove it or restore it.")
    return score


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Appends an object with its checksum to a file with one JSON object per line.

    A partial line that a kill left is removed first. The line is flushed to disk, so that a checkpoint that is written
    later never exists without it.
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
    """Reads the objects of a file with one JSON object per line; [] when it is missing.

    A line without a line end, which a kill cut off, is left out.

    Args:
        path: The file.
        **fields: Schemas of the required fields of each object, by name.

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
    """Parses JSON and removes the checksum; ValueError when it is not JSON or the checksum does not match."""
    value = json.loads(content, parse_constant=_no_number)
    if isinstance(value, dict):
        last = value.popitem() if value else ("", None)
        # Recognised by its value, since its name may be damaged.
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
    """Whether a JSON value has a schema; additional fields of an object are allowed."""
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
    """The first line of an exception's message, at most 200 characters; its type if it has no message."""
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__


def check_archive(path: Path) -> None:
    """Checks every member of a zip archive (*.npz, *.pt) against its checksum in the archive.

    It is needed since numpy and torch read only the bytes that the headers name, and torch checks no checksums.

    Raises:
        Exception: Of various types, when the archive is not complete.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
        if damaged is not None or not archive.namelist():
            raise ValueError(f"the checksum of {damaged} does not match")
        for member in archive.infolist():
            if member.filename.endswith(".npy"):
                _check_size(archive, member)


def _check_size(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """ValueError unless an array has the size in its header, since numpy allocates that size before it reads."""
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
    """Versions of Python and of the `PACKAGES` that a result depends on."""
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
        # Without optional locks: after a kill, a leftover .git/index.lock would block every commit.
        return subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=True,
        ).stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def peak_memory_mb() -> float:
    """Peak resident memory in MB: of this process plus its largest finished child, so far."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return round((own + children) / 1024, 1)


# --- progress --------------------------------------------------------------------------------------------


class Progress:
    """A progress bar with rate and remaining time. Without a terminal: a line every `NOTICE_SECONDS`.

    Use as a context manager. `update(n, **shown)` advances it by n and shows the values `shown` behind it.
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
        """Advances by `n`; `shown`: values to print behind the bar."""
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
    """Logs one stage's metrics: lines of metrics.jsonl, and TensorBoard event files.

    Each line is {"stage", "step", "time", name: value, ...}; `step` is the stage's own count (updates, generations).
    `resume_at` drops all lines after that step, so that a resumed run logs the same as an uninterrupted one.
    """

    def __init__(self, run: Run, stage: str, resume_at: int = 0) -> None:
        self._stage, self._path = stage, run.metrics
        self._folder, self._resume_at = run.folder / "tensorboard" / stage, resume_at
        self._board: SummaryWriter | None = None
        if self._path.exists():
            lines = read_lines(self._path, stage=str, step=int)
            lines_left = [line for line in lines if line["stage"] != stage or line["step"] <= resume_at]
            with atomic(self._path) as temporary:
                temporary.write_text("".join(map(_line, lines_left)), encoding="utf-8")
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
        """Appends a line with `values` (plain numbers) at `step`."""
        plain = {name: float(value) for name, value in values.items()}
        append_line(self._path, {"stage": self._stage, "step": step, "time": round(time.time(), 3), **plain})
        with writing(self._folder):
            if self._board is None:
                # Imported only here: it imports torch, which takes seconds.
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(self._folder), purge_step=self._resume_at + 1, flush_secs=10)
            for name, value in plain.items():
                self._board.add_scalar(f"{self._stage}/{name}", value, step)


def read_metrics(path: Path, stage: str) -> list[dict[str, Any]]:
    """Reads one stage's lines of metrics.jsonl in order; [] when the file is missing, UserError when it is damaged."""
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
    """A run folder. The paths are fixed; nothing is created before something is written."""

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
        """Reads the manifest, or returns an empty one; UserError when it is damaged or of another format version."""
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
        """Removes partial files of killed commands. `lock` does the same; read-only commands take no lock."""
        with writing(self.folder):
            remove_leftovers(self.folder)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the folder; UserError when another command has locked it. The kernel frees it when the process ends."""
        if os.fsencode(self.folder) != str(self.folder).encode(errors="surrogatepass"):  # where TensorBoard would write
            raise UserError(
                f"the name of {self.folder} is not in UTF-8: choose another RUN or RUNS, or a locale with UTF-8, such "
                "as LC_ALL=C.UTF-8."
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / ".lock").open("wb")
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be written ({error.strerror}): choose another RUN or RUNS."
            ) from error
        with file:
            try:
                if not locked(file.fileno(), wait=False):
                    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
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
        """Locks the folder for a stage and records the stage in the manifest once its work begins.

        Args:
            stage: Its name.
            config: The stage's config dataclass. A change since an earlier call (except of totals) is refused.
            seed: The run's seed; a change is refused, too.
            restart: Ignore the earlier record instead of refusing a change.

        Yields:
            begin(), to be called when there is work to do, and after a restart has deleted the earlier results. A
            stage without work to do does not call it, so that the record of the work stays.

        Raises:
            UserError: The config or the seed differs from that of the existing results.
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
                if begun and refused and not entry:  # no earlier work: the next call may have other options
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
    """The hash of the artifact that a stage starts from, as an entry of made_from; UserError when it is missing."""
    if path is None:
        return {}
    if not path.is_file():
        raise UserError(f"{path} is missing, so nothing can start from it: give another file.")
    return {"start": file_hash(path)}


def check_made_from(
    path: Path, recorded: Mapping[str, str], current: Mapping[str, str], stage: str | None = None
) -> None:
    """UserError when the artifact `path` was made from other inputs than the current ones.

    Args:
        path: The artifact.
        recorded: Hash by input name, as recorded in the artifact.
        current: The current hashes by input name.
        stage: The stage that makes it; None when the artifact is named after its stage.
    """
    for name, value in current.items():
        if recorded.get(name) != value:
            raise UserError(
                f"{path} was made from another {name} than the current one: "
                f"redo it with `make {stage or path.stem} ARGS=--restart`, or restore the {name} that it was made from."
            )
