"""Ray: a cluster gives what the inline reference gives, whatever happens to its nodes, and no run hangs.

Ray is an extra; `make test` installs it.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_workers import make_failing, make_mortal
from wm.driving.collection import make_collector
from wm.driving.ray_workers import RayWorkers, _Actor, this_code
from wm.driving.workers import Inline, WorkersDied, make_workers
from wm.envs.car_racing.task import CAR_RACING
from wm.run.errors import MachineError, UserError
from wm.run.remedies import install
from wm.run.signals import EXIT_CODE, INTERRUPTED

pytest.importorskip("ray", reason=f"Ray is not installed: {install('ray')}")

ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


# --- what workers are made of --------------------------------------------------------------------------------


def make_normal(weights: np.ndarray, seconds: float) -> Callable[[int], np.ndarray]:
    weights *= 2  # arrays have to be the worker's own

    def work(seed: int) -> np.ndarray:
        time.sleep(seconds)
        drawn = np.random.default_rng(seed).normal(size=len(weights)) @ np.diag(weights)
        drawn += 1
        return drawn

    return work


def make_settings() -> Callable[[int], dict[str, Any]]:
    import cv2
    from threadpoolctl import threadpool_info  # type: ignore[import-untyped]

    return lambda _: {
        "blas": [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"],
        "cv2": cv2.getNumThreads(),
        "torch": "torch" in sys.modules,
        "pid": os.getpid(),
    }


WEIGHTS = np.arange(4.0)


def reference(tasks: range) -> dict[int, list[float]]:
    with Inline(make_normal, WEIGHTS.copy(), 0) as inline:
        return {i: result.tolist() for i, result in inline.run(tasks)}


# --- a cluster of two nodes ----------------------------------------------------------------------------------


class TwoNodes:
    """A head and a second node on this machine, with a CPU each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self.second: Any = None
        self.add()
        self.where = f"ray:{self._cluster.address}"

    def add(self) -> None:
        """Adds the second node."""
        self.second = self._cluster.add_node(num_cpus=1)

    def kill_second(self) -> None:
        """Kills the second node."""
        self._cluster.remove_node(self.second, allow_graceful=False)

    def kill_head(self) -> None:
        """Kills the head's own process; what runs on the nodes goes on."""
        self._cluster.head_node.kill_gcs_server(check_alive=False)

    def shutdown(self) -> None:
        """Ends it."""
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    found = TwoNodes()
    yield found
    found.shutdown()


def test_results_are_inlines_and_come_from_both_nodes(nodes: TwoNodes) -> None:
    tasks = range(24)
    with make_workers(nodes.where, make_normal, WEIGHTS.copy(), 0.05) as workers:
        assert isinstance(workers, RayWorkers)
        while len(workers.done) < 2:  # one of the nodes may be slow to start
            found = list(workers.run(tasks))
            assert len(found) == len(tasks)
            assert {i: result.tolist() for i, result in found} == reference(tasks)
        assert list(workers.run([])) == []


def test_a_worker_computes_on_one_thread_and_is_recycled(nodes: TwoNodes) -> None:
    with make_workers(nodes.where, make_settings, recycle=2) as workers:
        found = [settings for _, settings in workers.run(range(6))]
    for settings in found:
        assert (set(settings["blas"]), settings["cv2"], settings["torch"]) == ({1}, 1, False)
    pids = [settings["pid"] for settings in found]
    assert max(pids.count(pid) for pid in pids) <= 2


def test_an_exception_arrives_with_the_workers_traceback(nodes: TwoNodes) -> None:
    with make_workers(nodes.where, make_failing, 5) as workers:
        with pytest.raises(ZeroDivisionError, match="task 5 is bad") as raised:
            list(workers.run(range(20)))
        assert type(raised.value) is ZeroDivisionError
        assert 'raise ZeroDivisionError(f"task {x} is bad")' in str(raised.value.__cause__)
        assert dict(workers.run([1, 2])) == {0: 1, 1: 2}  # and the workers are as good as before


def test_a_node_killed_in_mid_generation(nodes: TwoNodes, capfd: pytest.CaptureFixture[str]) -> None:
    tasks, found = range(40), {}
    with make_workers(nodes.where, make_normal, WEIGHTS.copy(), 0.1) as workers:
        assert isinstance(workers, RayWorkers)
        while len(workers.done) < 2:
            list(workers.run(range(8)))
        for i, result in workers.run(tasks):
            assert i not in found
            found[i] = result.tolist()
            if len(found) == 6:
                nodes.kill_second()
        assert found == reference(tasks)
        assert len(workers.done) >= 2
        nodes.add()
        while len(workers.done) < 3:  # a node that is new is used, too
            list(workers.run(range(8)))
    assert "a worker died; its tasks are repeated" in capfd.readouterr().err


def test_a_deadly_task_is_given_up(nodes: TwoNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wm.driving.ray_workers.MOST_DEATHS", 2)
    with (
        make_workers(nodes.where, make_mortal, 3) as workers,
        pytest.raises(WorkersDied, match="died 2 times in a row"),
    ):
        list(workers.run(range(4)))


def test_a_node_with_other_code_is_refused() -> None:
    workers = RayWorkers("ray", make_mortal, 3)
    code = this_code()
    assert len(code) > 5
    workers._welcome(_Actor(None, 1), "node 1", "host", code)
    with pytest.raises(UserError, match=r"node host of the cluster has another version of wm, numpy than this machine"):
        workers._welcome(_Actor(None, 1), "node 2", "host", {**code, "wm": "another hash", "numpy": "1.0"})


# --- a head that is dead --------------------------------------------------------------------------------------


def test_an_address_where_nobody_answers_is_one_sentence() -> None:
    with pytest.raises(MachineError, match=r"no Ray cluster answers at 127\.0\.0\.1:1: start its head there"):
        make_workers("ray:127.0.0.1:1", make_failing, 1).__enter__()


STAGE = """
import wm.driving.ray_workers
from tests.test_ray import make_normal, WEIGHTS
from wm.driving.workers import make_workers
from wm.run.command_line import run_stage

wm.driving.ray_workers.SILENCE = 2.0

def main(argv):
    with make_workers(argv[0], make_normal, WEIGHTS, 0.1) as workers:
        while True:
            print(len(list(workers.run(range(4)))), flush=True)

run_stage(main)
"""


def test_a_head_that_dies_is_one_sentence(nodes: TwoNodes) -> None:
    command = [sys.executable, "-c", STAGE, nodes.where]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "4\n"
        nodes.kill_head()
        _, said = process.communicate(timeout=60)
    sentence = r"error: the Ray cluster of --workers ray:[\d.:]+ has died: start it again and run the same command.*\n"
    assert (process.returncode, bool(re.fullmatch(sentence, said))) == (2, True), said


# --- a stage with a cluster of its own ------------------------------------------------------------------------


def session(leader: int) -> list[str]:
    """Command lines of the living processes of a session."""
    found = subprocess.run(["ps", "-o", "stat=,args=", "-s", str(leader)], capture_output=True, text=True, check=False)
    return [line for line in found.stdout.splitlines() if not line.startswith("Z")]


def test_ctrl_c_ends_a_stage_and_its_cluster(tmp_path: Path) -> None:
    sizes = ["--policy", "brownian", "--episodes", "200", "--episodes-per-shard", "1", "--max-steps", "30"]
    options = ["--run", str(tmp_path), "--preset", "smoke", "--workers", "ray", *sizes]
    with subprocess.Popen(
        [sys.executable, "-m", "stages.collect", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        while process.poll() is None and not list((tmp_path / "rollouts").glob("[!.]*.h5")):
            time.sleep(0.05)
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
        said = "".join(process.communicate(timeout=60))
    assert time.monotonic() - began < 20
    assert (process.returncode, said.splitlines()[-1]) == (EXIT_CODE, INTERRUPTED), said
    assert "Traceback" not in said, said
    assert "ray" not in said.replace(str(tmp_path), "").lower()  # its logs are elsewhere
    assert session(process.pid) == []
    shard = min((tmp_path / "rollouts").glob("[!.]*.h5"))
    inline = make_collector(CAR_RACING, "brownian", 30, 0)
    assert shard.read_bytes() == inline([int(shard.stem.split("-")[0])]).shard
