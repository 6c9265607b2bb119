"""What Ray costs the coordinator: its CPU time a generation and the bytes of a task, beside a pool of processes.

The workers get V and M and are sent real trials, but answer at once, so that all that is measured is their
administration. Needs Ray; run it with `python -m tests.bench_ray`.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from wm.driving.loading import load_acting
from wm.driving.ray_workers import RayWorkers
from wm.driving.rollout import Outcome
from wm.driving.trials import Trial
from wm.driving.workers import make_workers
from wm.run.folder import Run

ROOT = Path(__file__).parent.parent
POPSIZES = (64, 1024)
ROUNDS = 7


def make_idle(models: Any) -> Callable[[Trial], Outcome]:
    """A worker that answers at once."""
    return lambda trial: Outcome(ret=float(trial.theta[0]), steps=trial.max_steps, cut=False)


def main() -> None:
    """Prints a table of both kinds of workers."""
    models, theta = load_acting(Run(ROOT / "data" / "pretrained"), "controller")
    print(f"V and M, once a node: {len(pickle.dumps((make_idle, (models,)))):,} bytes\n")
    print(f"2 workers; the coordinator's CPU ms and wall ms a generation, median of {ROUNDS}\n")
    print("| workers | popsize | CPU ms | wall ms | bytes a task | bytes a result |")
    print("|---|---:|---:|---:|---:|---:|")
    for kind in (2, "ray"):
        with make_workers(kind, make_idle, models, recycle=10**6) as workers:
            for popsize in POPSIZES:
                rng = np.random.default_rng(0)
                trials = [Trial(theta + rng.normal(size=len(theta)), 1, 1000) for _ in range(popsize)]
                spent = []
                for _ in range(ROUNDS + 1):
                    before = time.process_time(), time.perf_counter()
                    sent = (workers.sent_bytes, workers.got_bytes) if isinstance(workers, RayWorkers) else (0, 0)
                    assert len(list(workers.run(trials))) == popsize
                    spent.append((time.process_time() - before[0], time.perf_counter() - before[1]))
                cpu, wall = (median(column) * 1e3 for column in zip(*spent[1:], strict=True))  # the first starts them
                there = back = ""
                if isinstance(workers, RayWorkers):
                    there = f"{(workers.sent_bytes - sent[0]) / popsize:,.0f}"
                    back = f"{(workers.got_bytes - sent[1]) / popsize:,.0f}"
                print(f"| {kind} | {popsize} | {cpu:,.0f} | {wall:,.0f} | {there} | {back} |", flush=True)


if __name__ == "__main__":
    from tests import bench_ray

    bench_ray.main()  # of the module by its name, since a node's __main__ has no `make_idle`
