"""SIGTERM and Ctrl-C: a command that still imports exits at once; later an exception unwinds it, unless `held`."""

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
"""Exit code of an interrupted command, the same that shells give for Ctrl-C."""


class Interrupted(BaseException):
    """SIGTERM as an exception. It unwinds like Ctrl-C, so that open files are closed and saved files stay complete.

    Like KeyboardInterrupt it is not an `Exception`, since readers of files treat any `Exception` as damage.
    """


def leave_at_once() -> None:
    """From now on a signal prints `INTERRUPTED` and ends the process, without a traceback through partial imports."""
    _handle(_leave, _leave)


def raise_on_signals() -> None:
    """From now on SIGTERM raises Interrupted and SIGINT raises KeyboardInterrupt, wherever the main thread is."""
    _handle(_raise, _raise)


def ignore() -> None:
    """From now on signals are ignored: all work is done, and a signal must not break the interpreter's shutdown."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


Handler = Callable[[int, FrameType | None], None]


def _handle(terminate: Handler, interrupt: Handler) -> None:
    signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a shell's background commands ignore Ctrl-C
        signal.signal(signal.SIGINT, interrupt)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(EXIT_CODE)


@contextmanager
def held() -> Iterator[None]:
    """Context manager in which signals wait, for work of at most about a second that must not be left incomplete.

    A library that calls back into Python, such as HDF5, may swallow an exception raised there and continue with broken
    data. Signals reach only the main thread, so that other threads need not hold them.
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


def note_new_work() -> None:
    """Notes that --restart has deleted the earlier results and that there is new work to resume."""
    _Work.begun = True


def last_line(restart: bool) -> str:
    """The last line of an interrupted command; `restart`: it was called with --restart."""
    return RESTARTED if restart and _Work.begun else INTERRUPTED


class _Work:
    """Whether the new work of a --restart has begun."""

    begun = False


class _Waiting:
    """How many `held` contexts are open, and the exception of a signal that came meanwhile."""

    depth = 0
    error: BaseException | None = None


def _raise(number: int, frame: FrameType | None) -> None:
    error = KeyboardInterrupt() if number == signal.SIGINT else Interrupted()
    if not _Waiting.depth:
        raise error
    _Waiting.error = error
