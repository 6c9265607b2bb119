"""Environment steps/s of `collect` on two workers, beside stock Gymnasium with the same policy and workers.

Both record whole episodes and write the same kind of shards; they take turns within one run. `make bench` runs it.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from wm.config.presets import FAST_ENV, STOCK_ENV
from wm.driving.collection import make_collector
from wm.driving.workers import make_workers
from wm.envs.car_racing.task import CAR_RACING
from wm.envs.task import Task
from wm.store.shards import save_shard

WORKERS = 2
ROUNDS = 3
STEPS = 500
"""Longest episode, as in the laptop preset."""
EPISODES = {STOCK_ENV: 2, FAST_ENV: 24}
POLICIES = ("brownian", "random_network", "mixture")


def task_on(env_id: str) -> Task:
    """CarRacing on this environment."""
    return replace(CAR_RACING, train_id=env_id, train_options=CAR_RACING.train_options if env_id == FAST_ENV else {})


def rate(env_id: str, policy: str, folder: Path) -> float:
    """Steps/s of collecting, with the workers started and warm."""
    with make_workers(WORKERS, make_collector, task_on(env_id), policy, STEPS, 0) as workers:
        # First episodes of other indices: each worker makes its environment, and loads what it needs.
        list(workers.run([[1000 + i] for i in range(2 * WORKERS)]))
        tasks = [[i] for i in range(EPISODES[env_id])]
        start, steps = time.perf_counter(), 0
        for i, collected in workers.run(tasks):
            save_shard(folder / f"{i}.h5", collected.shard)
            steps += collected.steps
        return steps / (time.perf_counter() - start)


def main() -> None:
    """Prints a table of both rates and their ratio by policy."""
    print(
        f"{WORKERS} workers, episodes of up to {STEPS} steps; steps/s, median of {ROUNDS} rounds (lowest to highest)\n"
    )
    print("| policy | stock Gymnasium | collect | ratio |")
    print("|---|---:|---:|---:|")
    for policy in POLICIES:
        found: dict[str, list[float]] = {STOCK_ENV: [], FAST_ENV: []}
        for _ in range(ROUNDS):
            for env_id, rates in found.items():
                with tempfile.TemporaryDirectory() as folder:
                    rates.append(rate(env_id, policy, Path(folder)))
        cells = [f"{median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})" for rates in found.values()]
        ratio = median(found[FAST_ENV]) / median(found[STOCK_ENV])
        print(f"| {policy} | {' | '.join(cells)} | {ratio:.1f} |", flush=True)


if __name__ == "__main__":
    main()
