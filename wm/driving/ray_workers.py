"""Ray as the third kind of workers: processes of this machine, or of all nodes of a cluster.

The stage coordinates. Actors live as long as the stage, hold nothing that cannot be made again, and may vanish with
their node at any time: their tasks are then sent to others.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from wm.driving.workers import MOST_DEATHS, Result, Task, Work, Worker, WorkersDied, spawning, warn_of_death
from wm.run.errors import MachineError, UserError, first_line
from wm.run.provenance import source_hash, versions
from wm.run.remedies import install
from wm.run.signals import held

IN_FLIGHT = 2
"""Number of tasks that an actor has at most: the second one travels while the first one runs."""

TICK = 0.2
"""Seconds between two looks for signals while no result arrives."""

LOOK_EVERY = 2.0
"""Seconds between two looks at the cluster: whether its head answers, and how many CPUs it has."""

SILENCE = 10.0
"""Seconds without an answer after which the cluster counts as dead. Ray ends this process after 60, without a word."""

PATIENCE = 300.0
"""Seconds that a living cluster may give no CPU."""

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_CLIENT_RECONNECT_GRACE_PERIOD": "5"}
"""Environment of Ray: no telemetry, and a client that does not try for half a minute to find a dead head again."""


def import_ray() -> Any:
    """The package `ray`; UserError with the command that installs it."""
    os.environ.update(QUIET)
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--workers ray needs Ray, which is not installed: {install('ray')}.") from error
    return ray


def this_code() -> dict[str, str]:
    """What has to be the same on all nodes: the hash of `wm`, and the versions of what workers compute with."""
    return {"wm": source_hash(), **{name: version for name, version in versions().items() if name != "torch"}}


class RayWorker:
    """One worker on one CPU of a node: what becomes an actor.

    Tasks and results are pickled here and not by Ray, whose arrays would be read-only.
    """

    def __init__(self, payload: bytes) -> None:
        """`payload` is the pickled (make, args); it is read with the first task, when the code is known to be equal."""
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        threadpool_limits(1)
        self._payload = payload
        self._worker: Worker | None = None

    def about(self) -> tuple[str, str, dict[str, str]]:
        """The node's id, its host name, and its code."""
        import ray

        return ray.get_runtime_context().get_node_id(), socket.gethostname(), this_code()

    def run(self, task: bytes) -> bytes:
        """Runs a pickled task and pickles its result."""
        if self._worker is None:
            self._worker = Worker(*pickle.loads(self._payload))
        return pickle.dumps(self._worker(pickle.loads(task)))


@dataclass(eq=False)
class _Actor:
    """An actor as the coordinator knows it.

    Attributes:
        handle: Ray's handle.
        births: How many actors in a row died here before they were ready, with this one if it does.
        node: Id of its node; "" until it is ready.
        sent: The tasks that it has, in the order in which it runs them: position by Ray's reference to the result.
        used: Number of tasks that it was sent.
    """

    handle: Any
    births: int
    node: str = ""
    sent: dict[Any, int] = field(default_factory=dict)
    used: int = 0


class RayWorkers:
    """Actors on a Ray cluster, one a CPU.

    Lost tasks are sent again, and lost actors are made anew wherever a CPU is free. A task contains all its randomness,
    so the results are the same. An exception in a worker reaches the caller with the worker's traceback.

    Attributes:
        done: Number of finished tasks by node.
        sent_bytes: Bytes of all tasks sent, without the payload.
        got_bytes: Bytes of all results.
    """

    def __init__(self, where: str, make: Callable[..., Work], *args: Any, recycle: int = 2000) -> None:
        """Needs `ray`; it is started or connected by the `with` statement.

        Args:
            where: "ray": a cluster of this machine, which is started and ended here. "ray:HOST:PORT": the cluster with
                this head, of which this machine is a node. "ray://HOST:PORT": the same by Ray's client, from a machine
                outside.
            make: See `wm.driving.workers.make_workers`.
            *args: See there; they are sent to each node once.
            recycle: Tasks per actor after which it is replaced.
        """
        self._ray = import_ray()
        self._where, self._recycle = where, recycle
        self._payload = pickle.dumps((make, args))
        self._code = this_code()
        self._actors: list[_Actor] = []
        self._waiting: dict[Any, _Actor] = {}  # whose `about` is awaited, by its reference
        self._cpus = 0
        self.done: Counter[str] = Counter()
        self.sent_bytes = self.got_bytes = 0

    def __enter__(self) -> RayWorkers:
        if self._where != "ray":
            host, port = self._where.rsplit("/", 1)[-1].removeprefix("ray:").rsplit(":", 1)
            self._head = (host, int(port))
            if not self._head_answers():
                raise MachineError(
                    f"no Ray cluster answers at {host}:{port}: start its head there (`ray start --head`), or correct "
                    "the address in --workers."
                )
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            # Interrupted, `init` would leave processes behind.
            with held(), spawning():
                try:
                    self._connect()
                except (ConnectionError, RuntimeError, ValueError, OSError, ImportError) as error:
                    raise MachineError(
                        f"the Ray cluster of --workers {self._where} cannot be used ({first_line(error)}): each node "
                        "needs the same Python, Ray and checkout (docs/scale.md)."
                    ) from error
                if threading.current_thread() is threading.main_thread():
                    for number, handler in handlers.items():
                        signal.signal(number, handler)  # Ray has set its own
        except BaseException:
            self.__exit__()
            raise
        now = time.monotonic()
        self._looked, self._heard, self._worked = -LOOK_EVERY, now, now
        return self

    def _connect(self) -> None:
        from wm.run.command_line import CORES

        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._where == "ray":
            options |= {"address": "local", "num_cpus": CORES, "include_dashboard": False}
        else:
            is_client = self._where.startswith("ray://")
            options["address"] = self._where if is_client else self._where.removeprefix("ray:")
        self._ray.init(**options)
        if self._where == "ray":
            host, port = self._ray.get_runtime_context().gcs_address.rsplit(":", 1)
            self._head = (host, int(port))
        self._actor_class = self._ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(RayWorker)
        self._shared = self._ray.put(self._payload)

    def __exit__(self, *_: object) -> None:
        with held():
            self._ray.shutdown()  # ends the actors, too
        self._actors.clear()
        self._waiting.clear()

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
        """See `Workers.run`.

        Raises:
            WorkersDied: A task was lost repeatedly, or actors died repeatedly before they were ready.
            MachineError: The cluster is dead, or gives no CPU.
            UserError: A node has other code.
        """
        todo = deque(range(len(tasks)))
        losses: Counter[int] = Counter()
        left = len(tasks)
        for actor in self._actors:
            actor.sent.clear()  # of an earlier run whose caller has left
        while left:
            results, died = [], False
            with held():  # Ray would lose an exception that a signal raises while it waits
                try:
                    self._look()
                    self._hire(left)
                    self._send(tasks, todo)
                    finished = self._finished()
                except ConnectionError as error:  # of Ray's client
                    raise self._dead() from error
                for ref in finished:
                    try:
                        content = self._ray.get(ref)
                    except self._ray.exceptions.RayTaskError as error:
                        raise error.cause from error
                    except ConnectionError as error:
                        raise self._dead() from error
                    except self._ray.exceptions.RayError as error:
                        died = self._bury(ref, error, todo, losses) or died
                        continue
                    if ref in self._waiting:
                        self._welcome(self._waiting.pop(ref), *content)
                        continue
                    owner = self._owner(ref)
                    if owner is not None:  # else it is sent again already
                        self.done[owner.node] += 1
                        self.got_bytes += len(content)
                        position = owner.sent.pop(ref)
                        del losses[position]
                        results.append((position, content))
            if died:
                warn_of_death(left - len(results))
            for position, content in results:
                left -= 1
                yield position, pickle.loads(content)

    def _look(self) -> None:
        """Looks now and then whether the cluster lives, and counts its CPUs."""
        now = time.monotonic()
        if any(actor.node for actor in self._actors):
            self._worked = now
        if now - self._looked < LOOK_EVERY:
            return
        self._looked = now
        if self._head_answers():
            self._cpus = int(sum(node["Resources"].get("CPU", 0) for node in self._ray.nodes() if node["Alive"]))
            if self._cpus:
                self._heard = now
        if now - self._heard > SILENCE:
            raise self._dead()
        if now - self._worked > PATIENCE:
            raise MachineError(
                f"the Ray cluster of --workers {self._where} has given no CPU for {PATIENCE:.0f} seconds: wait until "
                "others have left, or add nodes, and run the same command again."
            )

    def _dead(self) -> MachineError:
        return MachineError(
            f"the Ray cluster of --workers {self._where} has died: start it again and run the same command again."
        )

    def _head_answers(self) -> bool:
        try:
            socket.create_connection(self._head, timeout=1).close()
        except OSError:
            return False
        return True

    def _hire(self, left: int) -> None:
        """Makes actors up to one a CPU, as far as there are tasks, and replaces those that have run enough tasks."""
        # An actor ends with its last handle.
        self._actors = [actor for actor in self._actors if actor.used < self._recycle or actor.sent]
        while len(self._actors) < min(self._cpus, left):
            self._make_actor(births=1)

    def _make_actor(self, births: int) -> None:
        actor = _Actor(self._actor_class.remote(self._shared), births)
        self._actors.append(actor)
        self._waiting[actor.handle.about.remote()] = actor

    def _welcome(self, actor: _Actor, node: str, host: str, code: dict[str, str]) -> None:
        """A new actor is ready for tasks, if it has our code."""
        different = [name for name, version in self._code.items() if code.get(name) != version]
        if different:
            raise UserError(
                f"node {host} of the cluster has another version of {', '.join(different)} than this machine: install "
                "the same checkout and requirements.txt there."
            )
        actor.node = node

    def _send(self, tasks: Sequence[Task], todo: deque[int]) -> None:
        """Gives each ready actor a task, and a second one while there are plenty, so that none waits behind another."""
        ready = [actor for actor in self._actors if actor.node and actor.used < self._recycle]
        for depth in range(IN_FLIGHT):
            for actor in ready:
                if todo and len(actor.sent) == depth and (not depth or len(todo) > len(ready)):
                    position = todo.popleft()
                    content = pickle.dumps(tasks[position])
                    actor.sent[actor.handle.run.remote(content)] = position
                    actor.used += 1
                    self.sent_bytes += len(content)

    def _finished(self) -> list[Any]:
        """References that are ready, waiting at most `TICK` for one."""
        refs = [*self._waiting, *(ref for actor in self._actors for ref in actor.sent)]
        if not refs:
            time.sleep(TICK)
            return []
        found, _ = self._ray.wait(refs, num_returns=1, timeout=TICK)
        if found:
            found, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        return found

    def _owner(self, ref: Any) -> _Actor | None:
        """The actor that the task of `ref` was sent to; None when it is gone."""
        return next((actor for actor in self._actors if ref in actor.sent), None)

    def _bury(self, ref: Any, error: BaseException, todo: deque[int], losses: Counter[int]) -> bool:
        """Replaces the actor of a reference that was lost, and takes its tasks back; False when that is done already.

        Only the loss of the first task counts: the others of an actor had not begun.
        """
        if ref in self._waiting:
            actor = self._waiting.pop(ref)
            if "creation task" in str(error):  # an exception there, and no death
                reason = [line for line in str(error).splitlines() if line.strip()][-1].strip()
                raise MachineError(
                    f"a node of the cluster cannot start a worker ({reason}): each node needs the same checkout and "
                    "requirements.txt (docs/scale.md)."
                ) from error
            if actor.births >= MOST_DEATHS:
                raise self._given_up() from error
            self._actors.remove(actor)
            self._make_actor(actor.births + 1)
            return True
        actor_or_none = self._owner(ref)
        if actor_or_none is None:
            return False
        actor = actor_or_none
        positions = list(actor.sent.values())
        losses[positions[0]] += 1
        if losses[positions[0]] >= MOST_DEATHS:
            raise self._given_up() from error
        todo.extendleft(reversed(positions))
        self._actors.remove(actor)
        return True

    def _given_up(self) -> WorkersDied:
        return WorkersDied(
            f"workers died {MOST_DEATHS} times in a row without finishing a task, perhaps for lack of memory: start "
            "Ray with fewer CPUs on each node (`ray start --num-cpus`) and run the same command again."
        )
