"""Measures loads far above the usual: `python -m tests.bench_load`. Not a test, and not run by one.

Many worker processes on few cores, a store of thousands of short episodes, a large population. Time is CPU time where
one process works, so that other work on the machine hardly counts.
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
from wm.config import LAPTOP
from wm.controller.evolution import make_es
from wm.controller.linear import parameter_count
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


def main(load: Load) -> None:
    """Prints a line for each."""
    store(load.episodes)
    population(load.popsize)
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
    print(f"store of {len(rollouts):,} episodes: opened in {opened:.1f} CPU s, {streamed:,.0f} frames/s, {peak:.0f} MB")


def population(popsize: int) -> None:
    """Asks and tells a few generations."""
    start = np.zeros(parameter_count(288))
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
    print(f"popsize {popsize}: {seconds:.1f} CPU s a generation to ask and tell, {peak:.0f} MB")


def workers(count: int) -> None:
    """Collects an episode a worker; all processes together are measured while they work."""
    with tempfile.TemporaryDirectory() as folder:
        options = f"--run {folder}/run --workers {count} --episodes {2 * count} --episodes-per-shard 1 --max-steps 100"
        command = [sys.executable, "-m", "stages.collect", "--preset", "smoke", *options.split()]
        began, most = time.monotonic(), 0.0
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None:
                most = max(most, resident([process.pid, *children(process.pid)]))
                time.sleep(0.5)
        seconds = time.monotonic() - began
    ended = f"exit code {process.returncode}"
    print(f"{count} workers: {2 * count} episodes of 100 steps in {seconds:.0f} s, {most:,.0f} MB, {ended}")


if __name__ == "__main__":
    main(tyro.cli(Load, description=__doc__))
