"""Runs tasks on persistent worker processes, or inline: one small interface for collection and evolution.

`Inline`, `ProcessPool` and `wm.driving.ray_workers.RayWorkers` have the same `run` and give the same results. A worker
is built once, by a top-level function that gets plain data (arrays and bytes), and then called with one task
after another. Workers are spawned, compute on one thread, and do not import torch.
"""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import islice
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import TracebackType
from typing import Any

from wm.contracts import Workers
from wm.run.errors import MachineError, writing
from wm.run.signals import held

Task = Any
Result = Any
Work = Callable[[Task], Result]

MOST_DEATHS = 5
"""Number of workers' deaths in a row, without a finished task between them, after which `run` raises WorkersDied."""


class WorkersDied(MachineError):
    """Workers died repeatedly without finishing a task, perhaps for lack of memory."""


def warn_of_death(left: int) -> None:
    """Says that a worker died, and how many tasks are left."""
    print(f"warning: a worker died; its tasks are repeated ({left} tasks left).", file=sys.stderr, flush=True)


def make_workers(workers: int | str, make: Callable[..., Work], *args: Any, recycle: int = 2000) -> Workers:
    """Makes a pool of processes, its inline equivalent, or workers on a Ray cluster.

    Args:
        workers: Number of processes, >= 0; 0: inline. Or "ray", "ray:HOST:PORT" or "ray://HOST:PORT", see `RayWorkers`.
        make: Top-level function; make(*args) builds a worker's state and returns the function to call with each task.
        *args: Plain data, pickled to each process once.
        recycle: Tasks per worker after which the processes are replaced (Box2D may leak memory over long runs).
    """
    if workers == 0:
        return Inline(make, *args)
    if isinstance(workers, str):
        from wm.driving.ray_workers import RayWorkers

        return RayWorkers(workers, make, *args, recycle=recycle)
    return ProcessPool(workers, make, *args, recycle=recycle)


class Inline:
    """Runs tasks in this process, in order: for debugging, and as the reference in tests of the pool."""

    def __init__(self, make: Callable[..., Work], *args: Any) -> None:
        self._work = make(*args)

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
        """See `Workers.run`."""
        for i, task in enumerate(tasks):
            yield i, self._work(task)


class ProcessPool:
    """Spawned processes behind concurrent.futures, whose executor breaks when a worker dies.

    A broken executor is replaced and its unfinished tasks are run again. A task contains all its randomness, so the
    results are the same. An exception in a worker reaches the caller with the worker's traceback.
    """

    def __init__(self, workers: int, make: Callable[..., Work], *args: Any, recycle: int = 2000) -> None:
        self._workers, self._recycle, self._used = workers, recycle * workers, 0
        self._payload: Any = WorkerPayload(make, args)  # Any, since it is what it holds where it arrives
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> ProcessPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop(kill=kind is not None)
        self._payload.close()

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
        """See `Workers.run`. Raises WorkersDied when workers die repeatedly."""
        todo = dict(enumerate(tasks))
        deaths = 0
        while todo:
            if self._used >= self._recycle:
                self._stop()
            executor = self._running()
            futures: dict[Future[Result], int] = {}
            try:
                for i, task in islice(todo.items(), self._recycle - self._used):
                    with held():  # an executor whose own thread has only half started cannot be shut down
                        futures[executor.submit(_call, task)] = i
                pending = set(futures)
                while pending:
                    finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                    # Results come before a death in the same batch, so that finished tasks are not repeated.
                    for future in sorted(finished, key=lambda f: isinstance(f.exception(), BrokenProcessPool)):
                        result = future.result()
                        deaths = 0
                        self._used += 1
                        del todo[futures[future]]
                        yield futures[future], result
            except BrokenProcessPool as error:
                deaths += 1
                self._stop(kill=True)
                if deaths >= MOST_DEATHS:
                    raise WorkersDied(
                        f"workers died {deaths} times in a row without finishing a task, perhaps for lack of memory: "
                        "run the same command again with fewer --workers."
                    ) from error
                warn_of_death(len(todo))

    def _running(self) -> ProcessPoolExecutor:
        if self._executor is None:
            self._used = 0
            self._executor = ProcessPoolExecutor(
                self._workers, mp_context=_Context(), initializer=_start, initargs=(self._payload,)
            )
        return self._executor

    def _stop(self, kill: bool = False) -> None:
        if self._executor is None:
            return
        if kill:
            # All of them, since the executor does not know a worker whose start was interrupted.
            workers = [process for process in multiprocessing.active_children() if isinstance(process, _Worker)]
            for process in workers:
                process.kill()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._executor = None


ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@contextmanager
def spawning() -> Iterator[None]:
    """Processes started inside inherit one compute thread and a blocked SIGINT (the parent handles Ctrl-C).

    Both must be set before a process imports its modules, which is before any code of ours runs in it.
    """
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


class WorkerPayload:
    """The arguments of the workers, in an unnamed file that they inherit.

    multiprocessing sends a process its arguments through a pipe, and the parent holds both ends of it meanwhile. With
    more than the 64 kB of a pipe's buffer, the parent would wait until the worker has imported nearly everything, or
    for ever if the worker dies before.
    """

    def __init__(self, make: Callable[..., Work], args: tuple[Any, ...]) -> None:
        with writing(Path(tempfile.gettempdir())):
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
            pickle.dump((make, args), self._file)
            self._file.flush()

    def close(self) -> None:
        """Closes the file; workers that inherited it keep their own descriptor."""
        self._file.close()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Unpickles in the worker as its content, (make, args)."""
        return _unpacked, (DupFd(self._file.fileno()),)


def _unpacked(inherited: Any) -> tuple[Callable[..., Work], tuple[Any, ...]]:
    # Mapped instead of read, since all workers share one file position.
    with open(inherited.detach(), "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return pickle.loads(content)


class _Worker(SpawnProcess):
    """A spawned process whose start holds signals, since a partly started process dies with a traceback."""

    def start(self) -> None:
        with held(), spawning():
            super().start()


class _Context(SpawnContext):
    """A spawn context that makes `_Worker` processes."""

    Process = _Worker


class Worker:
    """What a worker process does: makes its state at the first task, and runs tasks on one thread."""

    def __init__(self, make: Callable[..., Work], args: tuple[Any, ...]) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._make = partial(make, *args)
        self._work: Work | None = None

    def __call__(self, task: Task) -> Result:
        """Runs a task; an exception of `make` is raised here, so that it reaches the caller like a task's."""
        if self._work is None:
            self._work = self._make()
            # The garbage collector would visit all imported objects repeatedly, which takes a fifth of an environment
            # step's time. Permanent objects are frozen, and it runs between tasks only.
            gc.collect()
            gc.freeze()
            gc.disable()
        try:
            return self._work(task)
        finally:
            gc.collect()


_worker: Worker | None = None
"""The worker of this process, where it is one of a `ProcessPool`."""


def _start(payload: tuple[Callable[..., Work], tuple[Any, ...]]) -> None:
    """Sets up a worker process, which ends with its parent."""
    global _worker
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _worker = Worker(*payload)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(task: Task) -> Result:
    assert _worker is not None
    return _worker(task)
