"""What all tests need of the process that they run in."""

import signal
from collections.abc import Iterator

import pytest

from wm.signals import unwind

# Started in a shell's background, pytest ignores Ctrl-C, and so would every command that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def unwinding() -> Iterator[None]:
    """The test's process takes signals as a command does."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    unwind()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
