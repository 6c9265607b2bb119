"""Frame batches: shuffled, complete, a function of data and seed only, and exact in resuming."""

from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wm.run.errors import UserError
from wm.store.episode import Episode
from wm.store.frames import BLOCK, frame_batches, validation_frames
from wm.store.shards import Rollouts, write_shard

LENGTHS = [37, 1, 16, 15, 64, 5]


def numbered(index: int, steps: int) -> Episode:
    """An episode whose frames name themselves: (episode, step)."""
    frames = np.zeros((steps + 1, 2), np.int64)
    frames[:, 0], frames[:, 1] = index, np.arange(steps + 1)
    return Episode(
        index=index,
        seed=index,
        policy="uniform",
        env_id="Some/Env-v0",
        env_version="1.4.0",
        observations=frames,
        actions=np.zeros((steps, 1), np.float32),
        rewards=np.zeros(steps, np.float32),
        terminated=False,
        truncated=True,
    )


def collection(folder: Path, per_shard: int) -> Rollouts:
    episodes = [numbered(i, steps) for i, steps in enumerate(LENGTHS)]
    for first in range(0, len(episodes), per_shard):
        write_shard(folder / f"{9 - first}.h5", episodes[first : first + per_shard])
    return Rollouts(folder)


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Rollouts:
    return collection(tmp_path_factory.mktemp("frames"), 2)


EVERY = np.arange(len(LENGTHS))
TOTAL = sum(LENGTHS) + len(LENGTHS)


def names(batch: np.ndarray) -> list[tuple[int, int]]:
    return [(int(episode), int(step)) for episode, step in batch]


def test_an_epoch_has_every_frame_once_the_last_ones_too(rollouts: Rollouts) -> None:
    batches = frame_batches(rollouts, EVERY, batch=TOTAL // 2, seed=0, start=0, shuffle_frames=50)
    for _ in range(3):  # the epoch is two batches
        seen = Counter(name for batch in islice(batches, 2) for name in names(batch))
        wanted = {(i, step) for i, steps in enumerate(LENGTHS) for step in range(steps + 1)}
        assert TOTAL % 2 == 0
        assert set(seen) == wanted
        assert set(seen.values()) == {1}


def test_only_the_given_episodes(rollouts: Rollouts) -> None:
    batches = frame_batches(rollouts, np.array([1, 4]), batch=10, seed=0, start=0, shuffle_frames=20)
    assert {episode for batch in islice(batches, 20) for episode, _ in names(batch)} == {1, 4}


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 2 * TOTAL),
    start=st.integers(0, 25),
    shuffle_frames=st.integers(1, 2 * TOTAL),
    seed=st.integers(0, 5),
)
def test_resuming_anywhere_is_exact(rollouts: Rollouts, batch: int, start: int, shuffle_frames: int, seed: int) -> None:
    def stream(first: int) -> list[list[tuple[int, int]]]:
        found = frame_batches(rollouts, EVERY, batch=batch, seed=seed, start=first, shuffle_frames=shuffle_frames)
        return [names(b) for b in islice(found, start + 3 - first)]

    assert stream(start) == stream(0)[start:]


def test_what_a_resume_skips_is_hardly_read(rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = 0
    read = Rollouts.read

    def counted(self: Rollouts, episode: int, start: int, stop: int) -> np.ndarray:
        nonlocal reads
        reads += stop - start
        return read(self, episode, start, stop)

    monkeypatch.setattr(Rollouts, "read", counted)
    next(frame_batches(rollouts, EVERY, batch=4, seed=0, start=10_000, shuffle_frames=40))
    assert reads <= 2 * (40 + BLOCK)  # the buffer it is in, and perhaps the next


def test_batches_do_not_depend_on_the_sharding(rollouts: Rollouts, tmp_path: Path) -> None:
    other = collection(tmp_path, 5)
    streams = [frame_batches(r, EVERY, batch=7, seed=3, start=0, shuffle_frames=40) for r in (rollouts, other)]
    for _ in range(60):
        np.testing.assert_array_equal(next(streams[0]), next(streams[1]))


def test_orders_differ_by_seed_and_by_epoch(rollouts: Rollouts) -> None:
    def epochs(seed: int) -> list[list[tuple[int, int]]]:
        return [
            names(b)
            for b in islice(frame_batches(rollouts, EVERY, batch=TOTAL, seed=seed, start=0, shuffle_frames=50), 2)
        ]

    assert epochs(0) == epochs(0)
    assert len({tuple(order) for order in (*epochs(0), *epochs(1))}) == 4


def test_neighbouring_frames_are_parted(rollouts: Rollouts) -> None:
    batch = names(next(frame_batches(rollouts, EVERY, batch=TOTAL, seed=0, start=0, shuffle_frames=TOTAL)))
    following = sum((episode, step + 1) == other for (episode, step), other in pairwise(batch))
    assert following < 8  # about 1 when shuffled, 132 in order of time


def test_the_shuffle_buffer_bounds_what_is_in_memory(rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead, most = 0, 0
    read = Rollouts.read

    def counted(self: Rollouts, episode: int, start: int, stop: int) -> np.ndarray:
        nonlocal ahead, most
        ahead += stop - start
        most = max(most, ahead)
        return read(self, episode, start, stop)

    monkeypatch.setattr(Rollouts, "read", counted)
    for _ in islice(frame_batches(rollouts, EVERY, batch=1, seed=0, start=0, shuffle_frames=40), 3 * TOTAL):
        ahead -= 1
    assert most <= 40 + BLOCK


def test_a_collection_smaller_than_a_batch(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.h5", [numbered(0, 1)])
    batch = next(frame_batches(Rollouts(tmp_path), np.array([0]), batch=10, seed=0, start=0, shuffle_frames=100))
    assert Counter(names(batch)) == {(0, 0): 5, (0, 1): 5}


def test_a_damaged_frame_is_refused_by_name(tmp_path: Path) -> None:
    rollouts = collection(tmp_path, 6)
    path = next(tmp_path.glob("*.h5"))
    del rollouts

    with h5py.File(path) as file:
        chunk = file["frame/observations"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 16
    path.write_bytes(content)
    batches = frame_batches(Rollouts(tmp_path), EVERY, batch=TOTAL, seed=0, start=0, shuffle_frames=50)
    with pytest.raises(UserError, match=rf"{path.name} .*make collect"):
        next(batches)


@pytest.mark.parametrize("most", [1, 2, 7, 50, TOTAL, 10 * TOTAL])
def test_validation_frames_are_spread_evenly(rollouts: Rollouts, most: int) -> None:
    found = names(validation_frames(rollouts, EVERY, most))
    everything = [(i, step) for i, steps in enumerate(LENGTHS) for step in range(steps + 1)]
    assert len(found) == min(most, TOTAL)
    places = [everything.index(name) for name in found]
    assert places == sorted(set(places))
    if 2 <= most <= TOTAL:
        gaps = np.diff(places)
        assert gaps.max() - gaps.min() <= 1
        assert (places[0], places[-1]) == (0, TOTAL - 1)


def test_validation_frames_of_some_episodes(rollouts: Rollouts) -> None:
    found = names(validation_frames(rollouts, np.array([2, 5]), 1000))
    assert found == [(2, step) for step in range(17)] + [(5, step) for step in range(6)]
