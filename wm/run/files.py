"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wm.run.errors import writing


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
            flush_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(handle)


NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EACCES, errno.EPERM)
"""errno of `flock` on file systems without locks, or that allow none."""


def locked(handle: int, wait: bool = True) -> bool:
    """Locks an open file for this process; False where its file system has no locks.

    Raises:
        BlockingIOError: Another process holds the lock, and `wait` is False.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    return True


def flush_folder(folder: Path) -> None:
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

    On a file system without locks all of them stay, since nothing distinguishes the two.
    """
    for leftover in folder.rglob(".*.tmp*"):
        # Opened for writing, since NFS does not lock files opened for reading.
        with suppress(FileNotFoundError, BlockingIOError), leftover.open("rb+") as file:
            if locked(file.fileno(), wait=False):
                leftover.unlink()
