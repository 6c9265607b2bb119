"""What all tests need of the process that they run in, and how they share the cores."""

import os
import signal
from collections.abc import Iterator

# Of tests side by side each has a core: threads of a library that has more of them would mostly wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    from wm.driving.workers import ONE_THREAD

    for name, value in ONE_THREAD.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
from hypothesis import settings

from wm.run.signals import raise_on_signals

# Started in a shell's background, pytest ignores Ctrl-C, and so would every command that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What an example takes depends on what runs beside it.
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")

LONG = ("test_pipeline", "test_browser", "test_faults", "test_iterate")
"""Files that take the longest. They come first: at the end one core would be idle while the other has such a file."""

MOST_WORKERS = 8
"""More would wait for the longest file, and take a gigabyte each."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto`: one a core."""
    from wm.run.command_line import CORES

    return min(CORES, MOST_WORKERS)


class Figures:
    """Prints what tests recorded as `figure` as soon as each is done, also of tests side by side."""

    def __init__(self, reporter: pytest.TerminalReporter) -> None:
        self._reporter = reporter

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == "figure" and report.when == "call":
                self._reporter.ensure_newline()
                self._reporter.write_line(str(value))


@pytest.hookimpl(trylast=True)  # after pytest has made its reporter
def pytest_configure(config: pytest.Config) -> None:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter:  # not in the processes of tests side by side
        config.pluginmanager.register(Figures(reporter))


@pytest.fixture
def unwinding() -> Iterator[None]:
    """The test's process takes signals as a command does."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    raise_on_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
