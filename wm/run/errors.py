"""Errors that the user or the machine's owner can mend: one sentence, exit code 2."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """An error that the user can correct: one sentence with the file or option and the remedy. Exit code 2."""


class DamageError(UserError):
    """A file is damaged: it differs from what was written."""


class MachineError(UserError):
    """A refusal of the machine (disk space, permissions, memory). The options are valid, so the command can resume."""


REFUSED = {
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files (ulimit -n) and run the same command again"),
    **dict.fromkeys((errno.EIO, errno.ESTALE), "check the disk and run the same command again"),
    **dict.fromkeys(
        (errno.EISDIR, errno.ENOTDIR), "move or rename the file or folder of this name and run the same command again"
    ),
}
"""Remedy when the system refuses to write or to read, by errno."""

UNWRITABLE = {
    **REFUSED,
    errno.EEXIST: REFUSED[errno.EISDIR],
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free disk space and run the same command again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "change the permissions, or choose another RUN or RUNS"),
    errno.ENAMETOOLONG: "choose a shorter RUN or RUNS",
}
"""Remedy when the system refuses to write, by errno."""

NO_TEMPORARY = "No usable temporary directory"
"""Message of Python's tempfile when no folder has space; its errno is that of a missing file."""

UNREADABLE = {
    **REFUSED,
    **dict.fromkeys((errno.EACCES, errno.EPERM), "change the permissions and run the same command again"),
    errno.EAGAIN: "close it where it is open and run the same command again",
    errno.ENOMEM: "free memory and run the same command again",
    errno.ENOENT: "restore it and run the same command again",
}
"""Remedy when the system refuses to read, by errno."""

SYSTEMS_NUMBER = re.compile(r"\berrno (?:= )?(\d+)")
"""The errno in messages of HDF5 and torch."""

OPEN_ELSEWHERE = re.compile("already open|file locking flag")
"""HDF5's messages, without an errno, about a file that is open for writing, or open in this process in another mode."""


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
            remedy = UNWRITABLE[errno.ENOSPC]
            raise MachineError(f"no folder for temporary files can be written: {remedy}.") from error
        if error.errno not in UNWRITABLE:
            raise
        reason = os.strerror(error.errno)
        where = path or error.filename or "a file of the run"
        raise MachineError(f"{where} cannot be written ({reason}): {UNWRITABLE[error.errno]}.") from error


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
            f"{path} cannot be read while it is open elsewhere ({first_line(error)}): close it there and run "
            "the same command again. If no program has it open, clear its flag with `h5clear -s` or move it away."
        ) from error
    number = error.errno if isinstance(error, OSError) else None
    if found := SYSTEMS_NUMBER.search(str(error)):
        number = int(found[1])
    if number and number != errno.EINVAL:  # EINVAL comes from offsets beyond the end of a damaged file
        remedy = UNREADABLE.get(number, "correct this and run the same command again")
        raise MachineError(f"{path} cannot be read ({os.strerror(number)}): {remedy}.") from error


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, at most 200 characters; its type if it has no message."""
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__
