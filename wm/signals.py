"""SIGTERM and Ctrl-C of a command: out at once while it only imports, later by unwinding."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

INTERRUPTED = "interrupted: the same command goes on where it stopped."
"""What an interrupted command says last."""

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
    _handle(_raise, signal.default_int_handler)


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


def _raise(number: int, frame: FrameType | None) -> None:
    raise Interrupted
