"""Chunk size and compression of rollout shards: size, frames written and read a second, as a table for docs/formats.md.

All settings take turns within one run, on the same frames: brownian episodes of the fast environment, eight a shard,
as by default. "Blocks" are V's reads: 16 neighbouring frames at random places. `make bench` runs it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np

from wm.config.presets import FAST_ENV
from wm.config.seeds import COLLECT_SEEDS
from wm.driving.collection import record_episode
from wm.driving.policies import Brownian
from wm.envs import make_env
from wm.store import columns
from wm.store.episode import Episode
from wm.store.frames import BLOCK
from wm.store.latents import Latents, LatentsWriter, clip_batches
from wm.store.shards import Rollouts, write_shard

EPISODES, STEPS = 8, 125
ROUNDS = 3
CHUNKS = (1, 8, 16, 32, 64)
FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "lzf": {"compression": "lzf"},
    "gzip-1": {"compression": "gzip", "compression_opts": 1},
    "gzip-1 + shuffle": {"compression": "gzip", "compression_opts": 1, "shuffle": True},
    "gzip-4": {"compression": "gzip", "compression_opts": 4},
}
FRAME_BYTES = 64 * 64 * 3


def record() -> list[Episode]:
    """Real episodes to write."""
    env = make_env(FAST_ENV)
    policy = Brownian(env.action_space)
    return [
        record_episode(
            env, policy, policy.name, index=i, seed=COLLECT_SEEDS[i], max_steps=STEPS, rng=np.random.default_rng(i)
        )
        for i in range(EPISODES)
    ]


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call, system time included: what others do on the machine hardly changes them."""
    start = time.process_time()
    work()
    return time.process_time() - start


def blocks(rollouts: Rollouts) -> Iterable[tuple[int, int, int]]:
    """As many blocks as cover the frames once, at random places."""
    rng = np.random.default_rng(0)
    lengths = rollouts.table["length"]
    for _ in range(int(lengths.sum()) // BLOCK):
        episode = int(rng.integers(len(rollouts)))
        start = int(rng.integers(max(1, lengths[episode] + 2 - BLOCK)))
        yield episode, start, min(start + BLOCK, int(lengths[episode]) + 1)


def frames_table(folder: Path) -> None:
    """Prints the table of chunk sizes and filters."""
    episodes = record()
    frames = sum(episode.length + 1 for episode in episodes)
    settings = [(name, chunk) for name in FILTERS for chunk in CHUNKS]
    found: dict[tuple[str, int], list[tuple[float, float, float]]] = {setting: [] for setting in settings}
    sizes = {}
    for _ in range(ROUNDS):
        for name, chunk in settings:
            path = folder / f"{name}-{chunk}" / "x.h5"
            with (
                patch.object(columns, "CHUNK_BYTES", chunk * FRAME_BYTES),
                patch("wm.store.shards.COMPRESSION", FILTERS[name]),
            ):
                written = seconds(lambda: write_shard(path, episodes))  # noqa: B023  called at once
            sizes[name, chunk] = path.stat().st_size
            rollouts = Rollouts(path.parent)
            in_order = seconds(lambda: [rollouts.episode(i) for i in range(len(rollouts))])  # noqa: B023
            rollouts = Rollouts(path.parent)  # a new one, without HDF5's cache of chunks
            addresses = list(blocks(rollouts))
            at_random = seconds(lambda: [rollouts.read(*address) for address in addresses])  # noqa: B023
            found[name, chunk].append((written, in_order, at_random))
    print(f"{frames:,} frames of {EPISODES} brownian episodes; frames per CPU second, median of {ROUNDS} rounds\n")
    print("| filter | frames a chunk | bytes a frame | smaller by | written | read in order | read in blocks |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, chunk in settings:
        size = sizes[name, chunk] / frames
        rates = " | ".join(f"{frames / median(column):,.0f}" for column in zip(*found[name, chunk], strict=True))
        print(f"| {name} | {chunk} | {size:,.0f} | {FRAME_BYTES / size:.1f} | {rates} |", flush=True)


def opening(folder: Path) -> None:
    """Prints how long it takes to open many small shards."""
    tiny = Episode(
        index=0,
        seed=0,
        policy="uniform",
        env_id=FAST_ENV,
        env_version="",
        observations=np.zeros((3, 64, 64, 3), np.uint8),
        actions=np.zeros((2, 3), np.float32),
        rewards=np.zeros(2, np.float32),
        terminated=False,
        truncated=True,
    )
    shards, each = 1250, 8
    for shard in range(shards):
        first = shard * each
        episodes = [Episode(**{**vars(tiny), "index": i}) for i in range(first, first + each)]
        write_shard(folder / f"{first:06d}.h5", episodes)
    taken = median(seconds(lambda: Rollouts(folder)) for _ in range(ROUNDS))
    print(f"\nopening {shards * each:,} short episodes in {shards:,} shards: {taken:.2f} s", flush=True)


def clips(folder: Path) -> None:
    """Prints what a batch of clips for M costs."""
    rng = np.random.default_rng(0)
    episodes, steps, batches = 200, 500, 200
    with LatentsWriter(folder / "latents.h5", {}) as writer:
        for i in range(episodes):
            episode = Episode(
                index=i,
                seed=i,
                policy="uniform",
                env_id=FAST_ENV,
                env_version="",
                observations=np.zeros((steps + 1, 1), np.uint8),
                actions=rng.random((steps, 3), np.float32),
                rewards=rng.random(steps, np.float32),
                terminated=False,
                truncated=True,
            )
            writer.append(episode, episode.actions, *(rng.standard_normal((2, steps + 1, 32), np.float32)))
    stream = clip_batches(Latents(folder / "latents.h5"), np.arange(episodes), batch=32, length=100, seed=0, start=0)
    cold = seconds(lambda: [next(stream) for _ in range(batches)]) / batches
    warm = seconds(lambda: [next(stream) for _ in range(batches)]) / batches
    print(f"batches of 32 clips of 100 steps: {1e3 * cold:.1f} ms at first, {1e3 * warm:.1f} ms from memory")


def main() -> None:
    """Prints all of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames_table(folder / "frames")
        opening(folder / "many")
        clips(folder)


if __name__ == "__main__":
    main()
