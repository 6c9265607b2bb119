"""What a result was made with and from: versions, commit, memory, hashes of inputs."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import resource
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from wm.run.checksums import file_hash
from wm.run.errors import UserError
from wm.run.remedies import redo

PACKAGES = ("torch", "gymnasium", "box2d", "cma", "numpy", "h5py", "opencv-python-headless", "onnxruntime")
"""Packages whose versions are recorded in the manifest and with every score."""


def versions() -> dict[str, str]:
    """Versions of Python and of the `PACKAGES` that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def source_hash() -> str:
    """SHA-256 over the Python files of `wm`: equal where two machines run the same code."""
    root = Path(__file__).parents[1]
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(f"{path.relative_to(root).as_posix()} {file_hash(path)}\n".encode())
    return total.hexdigest()


def commit() -> str:
    """The commit of this code, with '-dirty' when tracked files differ from it; 'unknown' outside of its repository."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        # Without optional locks: after a kill, a leftover .git/index.lock would block every commit.
        return subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=root,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=True,
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return "unknown"  # installed inside another repository, whose commit says nothing of this code
        git("ls-files", "--error-unmatch", __file__)  # nor does one that this file is not part of
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def peak_memory_mb() -> float:
    """Peak resident memory in MB: of this process plus its largest finished child, so far."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return round((own + children) / 1024, 1)


def now() -> str:
    """The time as ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def start_hash(path: Path | None) -> dict[str, str]:
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
                f"{redo(stage or path.stem)}, or restore the {name} that it was made from."
            )
