"""Measures loads far above the usual: `python -m tests.bench_load`. Not a test, and not run by one.

Many worker processes on few cores, a store of thousands of short episodes, a large population. Time is CPU time where
it can be, so that other work on the machine hardly counts.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import tyro

from tests.soak import children, resident
from tests.test_shards import drawn
from wm.config.presets import LAPTOP
from wm.controller.linear import Linear
from wm.learning.strategies import make_es
from wm.store.frames import frame_batches
from wm.store.shards import Rollouts, write_shard


@dataclass(frozen=True)
class Load:
    """How much of each."""

    workers: int = 64
    """Worker processes of a collection."""
    episodes: int = 10_000
    """Episodes in the store."""
    popsize: int = 1000
    """Candidates a generation, of C's 867 weights."""
    only: tuple[str, ...] = ("store", "population", "generation", "workers")
    """What to measure."""


def main(load: Load) -> None:
    """Prints a line for each."""
    if "store" in load.only:
        store(load.episodes)
    if "population" in load.only:
        population(load.popsize)
    if "generation" in load.only:
        generation(load.popsize)
    if "workers" in load.only:
        workers(load.workers)


def store(episodes: int) -> None:
    """Opens many short episodes, eight a shard, and streams shuffled batches of them."""
    with tempfile.TemporaryDirectory() as folder:
        for first in range(0, episodes, 8):
            write_shard(Path(folder) / f"{first:06d}.h5", [drawn(first + k, steps=3) for k in range(8)])
        Rollouts(Path(folder))  # so that the files are in the system's cache
        began = time.process_time()
        rollouts = Rollouts(Path(folder))
        opened = time.process_time() - began
        batches = frame_batches(rollouts, np.arange(len(rollouts)), batch=100, seed=0, start=0, shuffle_frames=20_000)
        began = time.process_time()
        for _ in islice(batches, 300):
            pass
        streamed = 30_000 / (time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"store of {len(rollouts):,} episodes: opened in {opened:.1f} CPU s, {streamed:,.0f} frames/s, {peak:.0f} MB",
        flush=True,
    )


def population(popsize: int) -> None:
    """Asks and tells a few generations."""
    start = np.zeros(Linear(3).count(288))
    sizes = replace(LAPTOP.controller, popsize=popsize)
    es = make_es(
        "cmaes",
        start,
        sigma0=sizes.sigma0,
        sigma_min=sizes.sigma_min,
        sigma_max=sizes.sigma_max,
        popsize=sizes.popsize,
        seed=0,
        lr=sizes.lr,
        ranks=True,
    )
    rng = np.random.default_rng(0)
    began = time.process_time()
    for _ in range(3):
        es.ask()
        es.tell(rng.normal(size=popsize))
    seconds = (time.process_time() - began) / 3
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"popsize {popsize}: {seconds:.1f} CPU s a generation to ask and tell, {peak:.0f} MB", flush=True)


def generation(popsize: int) -> None:
    """One generation on real rollouts of 50 steps, by the stage itself with V and M of data/pretrained."""
    with tempfile.TemporaryDirectory() as folder:
        options = f"--source data/pretrained --generations 1 --popsize {popsize} --max-steps 50 --workers 2"
        seconds, cpu, most, code = measured("controller", Path(folder) / "run", options)
    print(
        f"popsize {popsize}: a generation of 50 steps each in {seconds:.0f} s ({cpu:.0f} CPU s, imports and all), "
        f"{most:,.0f} MB, exit code {code}",
        flush=True,
    )


def workers(count: int) -> None:
    """Collects two episodes a worker; all processes together are measured while they work."""
    with tempfile.TemporaryDirectory() as folder:
        options = f"--workers {count} --episodes {2 * count} --episodes-per-shard 1 --max-steps 100"
        seconds, cpu, most, code = measured("collect", Path(folder) / "run", options)
    print(
        f"{count} workers: {2 * count} episodes of 100 steps in {seconds:.0f} s ({cpu:.0f} CPU s), {most:,.0f} MB, "
        f"exit code {code}",
        flush=True,
    )


def measured(stage: str, run: Path, options: str) -> tuple[float, float, float, int]:
    """Runs a stage: its wall and CPU seconds, the most MB that it held with its workers, and its exit code."""
    command = [sys.executable, "-m", f"stages.{stage}", "--run", str(run), "--preset", "smoke", *options.split()]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began, most = time.monotonic(), 0.0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            most = max(most, resident([process.pid, *children(process.pid)], ("Pss:",)))
            time.sleep(0.5)
    seconds = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, most, process.returncode


if __name__ == "__main__":
    main(tyro.cli(Load, description=__doc__))
