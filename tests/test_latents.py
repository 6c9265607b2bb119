"""Latents and clips: alignment, masks, no clip across an episode's end, exact resuming."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import wm.store.columns
import wm.store.latents
from wm.run.errors import UserError
from wm.run.signals import Interrupted
from wm.store.columns import split
from wm.store.episode import Episode
from wm.store.latents import Clips, Latents, LatentsWriter, clip_batches, fresh_batches, validation_clips

LENGTHS = [37, 1, 16, 15, 64, 5]
EVERY = np.arange(len(LENGTHS))
MADE_FROM = {"rollouts": "a" * 64, "vae.pt": "b" * 64}


def append(writer: LatentsWriter, index: int, steps: int) -> None:
    """An episode whose every number names its episode and step: 1000 index + step. Its own actions are choices."""
    name = 1000.0 * index + np.arange(steps + 1, dtype=np.float32)
    episode = Episode(
        index=index,
        seed=index,
        policy="uniform",
        env_id="Some/Env-v0",
        env_version="1.4.0",
        observations=np.zeros((steps + 1, 1), np.uint8),
        actions=np.zeros(steps, np.int64),
        rewards=name[:-1] + np.float32(0.75),
        terminated=index % 2 == 0,
        truncated=index % 2 == 1,
    )
    mu: NDArray[np.float32] = np.stack([name, -name, name], 1)
    writer.append(episode, np.stack([name[:-1] + 0.25, name[:-1] + 0.5], 1), mu, mu * np.float32(0.5))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latents") / "latents.h5"
    with LatentsWriter(path, MADE_FROM) as writer:
        for index, steps in enumerate(LENGTHS):
            append(writer, index, steps)
    return path


@pytest.fixture(scope="module")
def latents(path: Path) -> Latents:
    return Latents(path)


def check(clips: Clips) -> list[tuple[int, int, int]]:
    """Holds the clips to what `append` wrote; returns (episode, first step, steps) of each."""
    batch, length = clips.mask.shape
    assert clips.mu.shape == clips.logvar.shape == (batch, length + 1, 3)
    assert clips.a.shape == (batch, length, 2)
    assert clips.r.shape == clips.terminated.shape == (batch, length)
    assert {value.dtype.name for value in (clips.mu, clips.logvar, clips.a, clips.r)} == {"float32"}
    assert clips.mask.dtype == clips.terminated.dtype == np.bool_
    found = []
    for i in range(batch):
        steps = int(clips.mask[i].sum())
        assert steps >= 1
        assert clips.mask[i, :steps].all()  # padding at the end only
        episode, first = divmod(int(clips.mu[i, 0, 0]), 1000)
        assert first + steps <= LENGTHS[episode]  # never across the end
        name = 1000 * episode + np.arange(first, first + steps + 1, dtype=np.float32)
        np.testing.assert_array_equal(clips.mu[i, : steps + 1], np.stack([name, -name, name], 1))
        np.testing.assert_array_equal(clips.logvar[i], clips.mu[i] / 2)
        np.testing.assert_array_equal(clips.a[i, :steps], np.stack([name[:-1] + 0.25, name[:-1] + 0.5], 1))
        np.testing.assert_array_equal(clips.r[i, :steps], name[:-1] + np.float32(0.75))
        ends = first + steps == LENGTHS[episode] and episode % 2 == 0
        assert clips.terminated[i].nonzero()[0].tolist() == ([steps - 1] if ends else [])
        for padded in (clips.mu[i, steps + 1 :], clips.logvar[i, steps + 1 :], clips.a[i, steps:], clips.r[i, steps:]):
            assert not padded.any()
        found.append((episode, first, steps))
    return found


def same(a: Clips, b: Clips) -> bool:
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Clips))


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 12), length=st.integers(1, 80), seed=st.integers(0, 3))
def test_clips_are_aligned_and_masked(latents: Latents, batch: int, length: int, seed: int) -> None:
    for clips in islice(clip_batches(latents, EVERY, batch=batch, length=length, seed=seed, start=0), 8):
        assert clips.mask.shape == (batch, length)
        check(clips)


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 40), length=st.integers(1, 80), seed=st.integers(0, 3), start=st.integers(0, 30))
def test_resuming_anywhere_is_exact(latents: Latents, batch: int, length: int, seed: int, start: int) -> None:
    def stream(first: int) -> list[Clips]:
        found = clip_batches(latents, EVERY, batch=batch, length=length, seed=seed, start=first)
        return list(islice(found, start + 3 - first))

    assert all(same(a, b) for a, b in zip(stream(start), stream(0)[start:], strict=True))


def test_every_step_is_seen_equally_often_and_cuts_differ(latents: Latents) -> None:
    seen: Counter[tuple[int, int]] = Counter()
    firsts = set()
    for clips in islice(clip_batches(latents, EVERY, batch=1, length=10, seed=0, start=0), 600):
        [(episode, first, steps)] = check(clips)
        seen.update((episode, step) for step in range(first, first + steps))
        if episode == 4:
            firsts.add(first)
    assert set(seen) == {(i, step) for i, steps in enumerate(LENGTHS) for step in range(steps)}
    assert max(seen.values()) - min(seen.values()) <= 1
    assert len(firsts) > 20


def test_only_the_given_episodes_and_the_seed_decides(latents: Latents) -> None:
    def addresses(seed: int) -> list[tuple[int, int, int]]:
        found = clip_batches(latents, np.array([0, 4]), batch=5, length=10, seed=seed, start=0)
        return [address for clips in islice(found, 10) for address in check(clips)]

    assert {episode for episode, _, _ in addresses(0)} == {0, 4}
    assert addresses(0) == addresses(0)
    assert addresses(0) != addresses(1)


def test_whole_episodes_when_the_clip_is_longer(latents: Latents) -> None:
    found = clip_batches(latents, EVERY, batch=len(LENGTHS), length=999, seed=0, start=0)
    for clips in islice(found, 3):
        assert sorted(check(clips)) == [(i, 0, steps) for i, steps in enumerate(LENGTHS)]


@pytest.mark.parametrize("most", [1, 3, 100])
def test_validation_clips_are_fixed_and_spread(latents: Latents, most: int) -> None:
    clips = validation_clips(latents, EVERY, length=10, most=most)
    found = check(clips)
    assert same(clips, validation_clips(latents, EVERY, length=10, most=most))
    assert len(found) == len(set(found)) <= most
    if most == 100:
        assert sum(steps for *_, steps in found) == sum(LENGTHS)
    if most == 3:
        assert len({episode for episode, *_ in found}) > 1


def test_whole_episode(latents: Latents) -> None:
    for index, steps in enumerate(LENGTHS):
        episode = latents.episode(index)
        assert episode.mu.shape == episode.logvar.shape == (steps + 1, 3)
        assert episode.mu[-1, 0] == 1000 * index + steps  # the last observation counts
        assert episode.actions.shape == (steps, 2)
        assert episode.rewards.shape == (steps,)
        assert episode.terminated.tolist() == [False] * (steps - 1) + [index % 2 == 0]


def test_what_it_says_of_itself(latents: Latents) -> None:
    assert latents.made_from == MADE_FROM
    assert len(latents) == len(LENGTHS)
    assert latents.table["index"].tolist() == EVERY.tolist()
    assert latents.table["length"].tolist() == LENGTHS


def test_the_split_is_that_of_the_rollouts(latents: Latents) -> None:
    for mine, theirs in zip(latents.split(0.3, 5), split(len(LENGTHS), 0.3, 5), strict=True):
        np.testing.assert_array_equal(mine, theirs)


# --- what is refused -------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def foreign(path: Path) -> None:
    path.unlink()
    with h5py.File(path, "w") as file:
        file["mu"] = np.zeros(3)


def nan(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["frame/mu"][3] = np.nan


def flip(path: Path) -> None:
    with h5py.File(path) as file:
        chunk = file["frame/mu"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 1
    path.write_bytes(content)


def other_columns(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["frame/logvar"]


@pytest.mark.parametrize("damage", [cut, foreign, nan, flip, other_columns])
def test_damage_is_refused_in_a_sentence(path: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    copy = tmp_path / "latents.h5"
    copy.write_bytes(path.read_bytes())
    damage(copy)
    with pytest.raises(UserError, match=r"latents\.h5 .*`make mdnrnn") as caught:
        validation_clips(Latents(copy), EVERY, length=10, most=1000)
    assert "\n" not in str(caught.value)


def test_missing_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"latents\.h5 is missing.*`make mdnrnn`"):
        Latents(tmp_path / "latents.h5")


def test_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed here"), LatentsWriter(tmp_path / "latents.h5", {}) as writer:  # noqa: PT012
        append(writer, 0, 5)
        assert not (tmp_path / "latents.h5").exists()
        raise RuntimeError("killed here")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("unwinding")
@pytest.mark.parametrize("at", [1, 2, 5, 20, 40])
def test_a_signal_while_hdf5_writes_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """HDF5 swallows what is raised in its callbacks, and a damaged file passed for whole, or the process died."""
    write, calls = wm.store.columns._Output.write, iter(range(1, 10**6))

    def interrupted(output: wm.store.columns._Output, content: Any) -> int:
        if next(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return write(output, content)

    monkeypatch.setattr(wm.store.columns._Output, "write", interrupted)
    with pytest.raises(Interrupted), LatentsWriter(tmp_path / "latents.h5", MADE_FROM) as writer:  # noqa: PT012
        for index in range(8):
            append(writer, index, 300)
    assert next(calls) > at
    assert not list(tmp_path.iterdir())


def test_the_cache_is_bounded_and_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wm.store.latents, "CACHE_BYTES", 2000)
    small, large = Latents(path), Latents(path)
    streams = [clip_batches(found, EVERY, batch=3, length=10, seed=0, start=0) for found in (small, large)]
    for a, b in islice(zip(*streams, strict=True), 20):
        assert same(a, b)
        assert len(small._cache) <= 2
    assert small._cached_bytes == sum(episode.bytes for episode in small._cache.values())


def test_half_of_a_batch_is_fresh(latents: Latents) -> None:
    sizes = {"batch": 7, "length": 10, "seed": 1}
    batches = list(islice(fresh_batches(latents, EVERY, fresh=2, start=0, **sizes), 20))
    for clips in batches:
        episodes = [episode for episode, *_ in check(clips)]
        assert len(episodes) == 7
        assert set(episodes[4:]) <= {4, 5}
    assert {episode for clips in batches for episode, *_ in check(clips)} == set(EVERY)
    assert same(next(fresh_batches(latents, EVERY, fresh=2, start=13, **sizes)), batches[13])
    plain = islice(clip_batches(latents, EVERY, start=0, **sizes), 5)
    assert all(map(same, plain, fresh_batches(latents, EVERY, fresh=0, start=0, **sizes)))


def test_an_episode_of_another_file_is_taken_over_as_it_is(latents: Latents, tmp_path: Path) -> None:
    with LatentsWriter(tmp_path / "other.h5", MADE_FROM) as writer:
        for place in (4, 1):
            writer.append_latents(latents.table[place], latents.episode(place))
    other = Latents(tmp_path / "other.h5")
    assert other.table.tolist() == latents.table[[4, 1]].tolist()
    for mine, theirs in ((0, 4), (1, 1)):
        one, two = other.episode(mine), latents.episode(theirs)
        assert all(np.array_equal(getattr(one, f.name), getattr(two, f.name)) for f in fields(one))
