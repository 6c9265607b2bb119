"""SIGTERM and Ctrl-C of a command: out at once while it only imports, later by unwinding, once nobody holds it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = "interrupted: run the same command again to resume."
"""Last line of an interrupted command."""

RESTARTED = "interrupted: run the same command without --restart to resume."
"""The same for a command with --restart whose new work has begun, since --restart would delete that work."""

EXIT_CODE = 130
"""Its exit code, as shells give it for Ctrl-C."""


class Interrupted(BaseException):
    """SIGTERM: unwinds like Ctrl-C, so that everything open is closed and what is saved stays whole.

    No `Exception`, as KeyboardInterrupt is none: who reads a file takes whatever goes wrong for damage.
    """


def leave_at_once() -> None:
    """From here on a signal says `INTERRUPTED` and ends the process, without a traceback through half-made modules."""
    _handle(_leave, _leave)


def unwind() -> None:
    """From here on SIGTERM raises Interrupted and SIGINT KeyboardInterrupt, wherever the main thread is."""
    _handle(_raise, _raise)


def ignore() -> None:
    """From here on a signal comes too late: all is done, and an interpreter that closes down must not die of it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


Handler = Callable[[int, FrameType | None], None]


def _handle(terminate: Handler, interrupt: Handler) -> None:
    signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a shell's background commands are deaf to Ctrl-C
        signal.signal(signal.SIGINT, interrupt)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(EXIT_CODE)


@contextmanager
def held() -> Iterator[None]:
    """Within it a signal waits: for what must not be left half-done, and takes less than a second or so.

    A library that calls back into Python may swallow what is raised there, as HDF5 does, and go on with what is broken.
    Signals reach the main thread only, so that other threads need not hold them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Waiting.depth += 1
    try:
        yield
    finally:
        _Waiting.depth -= 1
        if _Waiting.error and not _Waiting.depth:
            error, _Waiting.error = _Waiting.error, None
            raise error


def work_begins() -> None:
    """From here on what --restart was to throw away is gone, and there is new work to go on with."""
    _Work.begun = True


def farewell(restart: bool) -> str:
    """What a command says last that was interrupted; `restart`: it was called with --restart."""
    return RESTARTED if restart and _Work.begun else INTERRUPTED


class _Work:
    """Whether it has begun."""

    begun = False


class _Waiting:
    """How many `held` are open, and what has come meanwhile."""

    depth = 0
    error: BaseException | None = None


def _raise(number: int, frame: FrameType | None) -> None:
    error = KeyboardInterrupt() if number == signal.SIGINT else Interrupted()
    if not _Waiting.depth:
        raise error
    _Waiting.error = error
