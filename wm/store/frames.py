"""Frames for V: shuffled batches streamed from disk in bounded memory, and a fixed validation set."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from wm.store.columns import Array
from wm.store.shards import Rollouts

BLOCK = 16
"""Number of neighbouring frames that are read together (two or three chunks); the shuffle buffer separates them."""


def frame_batches(
    rollouts: Rollouts, episodes: Array, *, batch: int, seed: int, start: int, shuffle_frames: int
) -> Iterator[Array]:
    """Endless batches of shuffled frames, epoch after epoch.

    An epoch takes blocks of neighbouring frames in random order, fills a buffer with them, and yields the buffer's
    frames in random order. Frames that do not fill a batch move to the next epoch. Batch n depends on the episodes and
    the seed only, so that a resume with `start` n gives the same batches as an uninterrupted run; whole buffers before
    it are not read.

    Args:
        rollouts: The data.
        episodes: i64[N], places of the episodes.
        batch: Frames per batch, >= 1.
        seed: Seed of all orders.
        start: Number of the first batch to yield.
        shuffle_frames: Frames in the buffer, which bounds the memory.

    Yields:
        [batch, ...] observations, such as u8[batch,64,64,3].
    """
    stream = _shuffled(rollouts, episodes, seed, start * batch, shuffle_frames)
    while True:
        yield np.stack(list(islice(stream, batch)))


def _shuffled(rollouts: Rollouts, episodes: Array, seed: int, skip: int, shuffle_frames: int) -> Iterator[Array]:
    """Single frames in the order of the batches, from number `skip` on."""
    blocks = np.array(
        [
            (episode, first, min(first + BLOCK, steps + 1))
            for episode, steps in zip(episodes, rollouts.table["length"][episodes], strict=True)
            for first in range(0, steps + 1, BLOCK)
        ],
        dtype=np.int64,
    )
    sizes = blocks[:, 2] - blocks[:, 1]
    epoch, skip = divmod(skip, int(sizes.sum()))
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(len(blocks))
        # A buffer ends with the block that fills it.
        part_of = (np.cumsum(sizes[order]) - 1) // shuffle_frames
        for part in range(part_of[-1] + 1):
            buffer = blocks[order[part_of == part]]
            size = int((buffer[:, 2] - buffer[:, 1]).sum())
            if skip >= size:
                skip -= size
                continue
            frames = [frame for address in buffer.tolist() for frame in rollouts.read(*address)]
            for i in np.random.default_rng([seed, epoch, part]).permutation(size)[skip:]:
                yield frames[i]
            skip = 0
        epoch += 1


def validation_frames(rollouts: Rollouts, episodes: Array, most: int) -> Array:
    """At most `most` frames, evenly spread over all frames of `episodes`; in order of episode and time."""
    counts = rollouts.table["length"][episodes] + 1
    ends = np.cumsum(counts)
    wanted = np.unique(np.linspace(0, ends[-1] - 1, min(most, int(ends[-1]))).astype(np.int64))
    found = []
    for episode, end, count in zip(episodes, ends, counts, strict=True):
        mine = wanted[(wanted >= end - count) & (wanted < end)] - (end - count)
        if len(mine):
            found.append(rollouts.read(int(episode), 0, int(count))[mine])
    return np.concatenate(found)
