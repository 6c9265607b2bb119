"""Workers: the pool gives what the inline reference gives, whatever happens to its processes, and never hangs."""

import concurrent.futures.process
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import wm.driving.workers
from wm.driving.workers import Inline, ProcessPool, WorkersDied, make_workers
from wm.run.errors import UserError
from wm.run.signals import EXIT_CODE, INTERRUPTED, Interrupted

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.timeout(60)


# --- what workers are made of: top-level functions that a spawned process can import ------------------------


def make_power(exponent: int) -> Callable[[int], int]:
    return lambda x: x**exponent


def make_slow_power(exponent: int) -> Callable[[int], int]:
    def power(x: int) -> int:
        time.sleep(0.001 * (x * 7919 % 5))  # so that the order of completion is another one
        return x**exponent

    return power


def make_failing(bad: int) -> Callable[[int], int]:
    def work(x: int) -> int:
        if x == bad:
            raise ZeroDivisionError(f"task {x} is bad")
        return x

    return work


def make_broken(sentence: str) -> Callable[[int], int]:
    raise RuntimeError(sentence)


def make_dying(flag: str, bad: int) -> Callable[[int], int]:
    """Dies in mid-task at `bad`, once: the flag remembers."""

    def work(x: int) -> int:
        if x == bad and not Path(flag).exists():
            Path(flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x * x

    return work


def make_mortal(bad: int) -> Callable[[int], int]:
    """Dies at `bad`, always."""

    def work(x: int) -> int:
        if x == bad:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    return work


def make_stillborn() -> Callable[[int], int]:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def make_weighty() -> Callable[[np.ndarray], float]:
    def work(x: np.ndarray) -> float:
        if x[0] == 3 and not Path(os.environ["WEIGHTY_FLAG"]).exists():
            Path(os.environ["WEIGHTY_FLAG"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return float(x.sum())

    return work


def make_pid() -> Callable[[float], int]:
    def work(seconds: float) -> int:
        time.sleep(seconds)
        return os.getpid()

    return work


def make_threads() -> Callable[[int], dict[str, object]]:
    import cv2
    import numpy as np  # noqa: F401  loads BLAS
    from threadpoolctl import threadpool_info  # type: ignore[import-untyped]

    return lambda _: {
        "blas": [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"],
        "cv2": cv2.getNumThreads(),
        "deaf to Ctrl-C": signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "environment": {name: os.environ.get(name) for name in wm.driving.workers.ONE_THREAD},
    }


def make_modules() -> Callable[[int], list[str]]:
    import wm.driving.policies  # noqa: F401
    import wm.driving.trials  # noqa: F401

    return lambda _: sorted(sys.modules)


def make_sleeper(folder: str) -> Callable[[int], int]:
    """Leaves a file named by its pid, then sleeps."""

    def work(x: int) -> int:
        (Path(folder) / str(os.getpid())).touch()
        time.sleep(60)
        return x

    return work


def hold_workers(folder: str) -> None:
    """What `test_..._parent_...` run in a process of its own."""
    with make_workers(2, make_sleeper, folder) as workers:
        list(workers.run([0, 1, 2, 3]))


# --- equal results -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_are_those_of_a_plain_loop(workers: int) -> None:
    tasks = list(range(40))
    with make_workers(workers, make_slow_power, 3) as pool:
        for _ in range(2):  # the workers persist
            results = list(pool.run(tasks))
            assert sorted(i for i, _ in results) == tasks
            assert dict(results) == {i: x**3 for i, x in enumerate(tasks)}


def test_zero_workers_are_inline_in_order() -> None:
    with make_workers(0, make_power, 2) as pool:
        assert isinstance(pool, Inline)
        assert list(pool.run([3, 1, 2])) == [(0, 9), (1, 1), (2, 4)]


@pytest.mark.parametrize("workers", [0, 2])
def test_no_tasks(workers: int) -> None:
    with make_workers(workers, make_power, 2) as pool:
        assert list(pool.run([])) == []


def test_without_ray_one_sentence_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"Ray, which is not installed: install it with `make setup EXTRAS=ray`"):
        make_workers("ray", make_power, 2)


# --- exceptions --------------------------------------------------------------------------------------------


def test_an_exception_in_a_task_arrives_with_the_workers_traceback() -> None:
    with ProcessPool(2, make_failing, 5) as pool:
        with pytest.raises(ZeroDivisionError, match="task 5 is bad") as raised:
            list(pool.run(range(20)))
        assert "test_workers.py" in str(raised.value.__cause__)  # the worker's own lines
        assert 'raise ZeroDivisionError(f"task {x} is bad")' in str(raised.value.__cause__)
        assert dict(pool.run([1, 2])) == {0: 1, 1: 2}  # and the pool is as good as before


def test_an_exception_in_making_a_worker_arrives_as_itself(capfd: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    with (
        pytest.raises(RuntimeError, match="no such environment") as raised,
        ProcessPool(2, make_broken, "no such environment") as pool,
    ):
        list(pool.run(range(4)))
    assert "make_broken" in str(raised.value.__cause__)
    assert "worker died" not in capfd.readouterr().err
    assert time.monotonic() - start < 20


def test_a_maker_that_cannot_be_sent_is_an_error_at_once() -> None:
    with pytest.raises((AttributeError, TypeError), match=r"pickle|local"), ProcessPool(2, lambda: abs) as pool:
        list(pool.run([1]))


# --- deaths ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_killed_in_mid_task_is_replaced_and_its_work_done_again(
    workers: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with ProcessPool(workers, make_dying, str(tmp_path / "died"), 7) as pool:
        results = list(pool.run(range(20)))
    assert (tmp_path / "died").exists()
    assert sorted(results) == [(i, i * i) for i in range(20)]  # each once
    assert capfd.readouterr().err.count("a worker died; its tasks are repeated") == 1


def test_a_worker_killed_from_outside_is_noticed() -> None:
    with ProcessPool(2, make_pid) as pool:
        results = []
        killed = None
        for _, pid in pool.run([0.05] * 30):
            results.append(pid)
            if killed is None:
                killed = pid
                os.kill(killed, signal.SIGKILL)
        assert len(results) == 30
        assert killed not in results[15:]


def test_a_worker_that_always_dies_is_given_up(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkersDied, match="died 5 times in a row"), ProcessPool(2, make_stillborn) as pool:
        list(pool.run(range(4)))
    assert capfd.readouterr().err.count("a worker died") == wm.driving.workers.MOST_DEATHS - 1


def test_a_deadly_task_ends_in_an_error_and_no_result_comes_twice() -> None:
    done: list[int] = []
    with pytest.raises(WorkersDied), ProcessPool(2, make_mortal, 3) as pool:
        done.extend(i for i, _ in pool.run(range(10)))
    assert 3 not in done
    assert len(set(done)) == len(done)


def test_a_death_while_large_tasks_wait_in_the_pipe_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTY_FLAG", str(tmp_path / "died"))
    tasks = [np.full(200_000, float(i)) for i in range(8)]  # 1.6 MB each: more than a pipe holds
    with ProcessPool(2, make_weighty) as pool:
        assert dict(pool.run(tasks)) == {i: i * 200_000.0 for i in range(8)}
    assert (tmp_path / "died").exists()


# --- recycling ---------------------------------------------------------------------------------------------


def test_workers_are_recycled_over_runs() -> None:
    with ProcessPool(1, make_pid, recycle=5) as pool:
        pids = [pid for _ in range(5) for _, pid in sorted(pool.run([0.0] * 3))]
    assert [len(set(pids[first : first + 5])) for first in (0, 5, 10)] == [1, 1, 1]
    assert len(set(pids)) == 3


def test_workers_are_recycled_within_a_run() -> None:
    """A whole collection is one run."""
    with ProcessPool(1, make_pid, recycle=5) as pool:
        results = sorted(pool.run([0.0] * 12))
    assert [i for i, _ in results] == list(range(12))
    pids = [pid for _, pid in results]
    assert [len(set(pids[first : first + 5])) for first in (0, 5, 10)] == [1, 1, 1]
    assert len(set(pids)) == 3


# --- what workers inherit ----------------------------------------------------------------------------------


def test_a_worker_computes_on_one_thread_and_the_parents_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with ProcessPool(1, make_threads) as pool:
        ((_, found),) = pool.run([0])
    assert set(found["blas"]) == {1}  # numpy's and OpenCV's
    assert found["cv2"] == 1
    assert found["deaf to Ctrl-C"]
    assert set(found["environment"].values()) == {"1"}
    assert os.environ["OPENBLAS_NUM_THREADS"] == "2"
    assert "MKL_NUM_THREADS" not in os.environ
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_worker_that_plays_trials_has_no_torch() -> None:
    with ProcessPool(1, make_modules) as pool:
        ((_, modules),) = pool.run([0])
    assert "wm.driving.agent" in modules
    assert not {"torch", "tensorboard", "matplotlib.pyplot"} & set(modules)


# --- ends --------------------------------------------------------------------------------------------------


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody has waited for does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


@contextmanager
def parent_at_work(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with two workers in mid-task, in a process group of its own."""
    code = f"from tests.test_workers import hold_workers; hold_workers({str(folder)!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def pids(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_parent_is_killed_the_workers_vanish(tmp_path: Path, number: signal.Signals) -> None:
    with parent_at_work(tmp_path) as parent:
        assert until(lambda: len(pids(tmp_path)) == 2, 30)
        assert all(alive(pid) for pid in pids(tmp_path))
        parent.send_signal(number)
        parent.wait(timeout=10)
        assert until(lambda: not any(alive(pid) for pid in pids(tmp_path)), 5)


def test_ctrl_c_ends_everything_quickly_and_quietly(tmp_path: Path) -> None:
    with parent_at_work(tmp_path) as parent:
        assert until(lambda: len(pids(tmp_path)) == 2, 30)
        os.killpg(parent.pid, signal.SIGINT)  # the terminal sends it to the whole group
        _, stderr = parent.communicate(timeout=10)
        assert not any(alive(pid) for pid in pids(tmp_path))
    assert stderr.count("Traceback") == 1  # the parent's own
    assert stderr.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize("delay", [0.0, 0.15, 0.4])
def test_ctrl_c_while_workers_are_starting(tmp_path: Path, delay: float) -> None:
    with parent_at_work(tmp_path) as parent:
        assert until(lambda: len(children(parent.pid)) >= 2, 30)
        started = children(parent.pid)
        time.sleep(delay)
        os.killpg(parent.pid, signal.SIGINT)
        _, stderr = parent.communicate(timeout=10)
        assert until(lambda: not any(alive(pid) for pid in started), 5)
    # The parent's own; a worker whose parent leaves while handing it its start may say that its input ended.
    assert stderr.count("\nKeyboardInterrupt") == 1, stderr


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


# --- signals ------------------------------------------------------------------------------------------------


def make_much(much: bytes) -> Callable[[int], int]:
    return lambda x: len(much) + x


STAGE = """
from tests.test_workers import make_much
from wm.run.command_line import run_stage
from wm.driving.workers import make_workers

def main(argv):
    with make_workers(2, make_much, bytes(8_000_000)) as workers:
        print("begins", flush=True)
        while True:
            list(workers.run([1, 2]))

run_stage(main)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("delay", [0.02, 0.1, 0.4])
def test_a_signal_while_workers_start_leaves_none_behind(number: signal.Signals, delay: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STAGE], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(delay)
    process.send_signal(number)
    _, said = process.communicate(timeout=50)  # ends when nobody has the pipe any more
    assert (process.returncode, said) == (EXIT_CODE, f"{INTERRUPTED}\n")


@pytest.mark.usefixtures("unwinding")
def test_a_signal_while_the_pools_own_thread_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine that takes a while."""
    original = concurrent.futures.process._ExecutorManagerThread.start

    def start(thread: threading.Thread) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        original(thread)

    monkeypatch.setattr("concurrent.futures.process._ExecutorManagerThread.start", start)
    with pytest.raises(Interrupted), ProcessPool(1, make_power, 2) as pool:
        list(pool.run([1]))
    assert not [child for child in multiprocessing.active_children() if child.is_alive()]


def test_a_worker_killed_while_it_starts_is_replaced(capfd: pytest.CaptureFixture[str]) -> None:
    """What it is made of is more than a pipe takes: nobody may wait for it to be read."""
    before = set(children(os.getpid()))
    victims: list[int] = []

    def kill_the_first() -> None:
        while not victims:
            for pid in set(children(os.getpid())) - before:
                if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text():  # else it is the tracker of resources
                    os.kill(pid, signal.SIGKILL)
                    victims.append(pid)
            time.sleep(0.001)

    killer = threading.Thread(target=kill_the_first, daemon=True)
    killer.start()
    with ProcessPool(1, make_much, bytes(3_000_000)) as pool:
        assert sorted(pool.run([1, 2])) == [(0, 3_000_001), (1, 3_000_002)]
    killer.join(10)
    assert len(victims) == 1
    assert "a worker died" in capfd.readouterr().err
