"""Latents of all rollouts, encoded once by V, and clips of them for M."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from wm.run.errors import UserError
from wm.run.files import atomic
from wm.run.remedies import made_by, redo
from wm.store.columns import Array, ColumnFile, ColumnWriter, split
from wm.store.episode import Episode

KIND = "latents"
REMEDY = redo("mdnrnn")
ROW = np.dtype([("index", "i8"), ("length", "i8"), ("terminated", "?")])

COLUMNS = {"frame/mu": (1, "f4"), "frame/logvar": (1, "f4"), "step/actions": (1, "f4"), "step/rewards": (0, "f4")}
"""Number of dimensions of a row, and dtype, by column."""

CACHE_BYTES = 512 * 2**20
"""Size of the cache of episodes, since a batch of clips is hundreds of small reads; about 2 million steps of z 32."""

Floats = NDArray[np.float32]


class LatentsWriter:
    """Writes latents.h5 atomically, episode by episode. Use as a context manager."""

    def __init__(self, path: Path, made_from: Mapping[str, str]) -> None:
        """`made_from` are the hashes of the rollouts and of vae.pt."""
        self._path, self._made_from = path, made_from

    def __enter__(self) -> LatentsWriter:
        self._stack = ExitStack()
        temporary = self._stack.enter_context(atomic(self._path))
        # Not compressed: gzip saves only 5%, and reading would take longer than training.
        attributes = {f"made_from {name}": value for name, value in self._made_from.items()}
        self._writer = self._stack.enter_context(ColumnWriter(temporary, KIND, attributes, {}))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def append(self, episode: Episode, actions: Floats, mu: Floats, logvar: Floats) -> None:
        """Adds an episode: its actions as M reads them, f32[T,A], and V's posterior, mu and logvar f32[T+1,Z]."""
        row = np.array([(episode.index, episode.length, episode.terminated)], ROW)
        step = {"actions": actions, "rewards": episode.rewards}
        self._writer.append(row, {"mu": mu, "logvar": logvar}, step)

    def append_latents(self, row: Array, episode: LatentEpisode) -> None:
        """Adds an episode of another latents.h5 unchanged: its row of the table there, and its columns."""
        step = {"actions": episode.actions, "rewards": episode.rewards}
        self._writer.append(np.array([row], ROW), {"mu": episode.mu, "logvar": episode.logvar}, step)


@dataclass(frozen=True)
class LatentEpisode:
    """One whole episode in latents.

    Attributes:
        mu: f32[T+1,Z].
        logvar: f32[T+1,Z].
        actions: f32[T,A].
        rewards: f32[T].
        terminated: bool[T]; only the last one can be True.
    """

    mu: Floats
    logvar: Floats
    actions: Floats
    rewards: Floats
    terminated: NDArray[np.bool_]

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        return sum(values.nbytes for values in vars(self).values())


@dataclass(frozen=True)
class Clips:
    """B clips of T steps, each within one episode; steps past an episode's end are zero and masked.

    Attributes:
        mu: f32[B,T+1,Z], posterior means; one frame more than steps.
        logvar: f32[B,T+1,Z], their log variances.
        a: f32[B,T,A], the action at each frame but the last.
        r: f32[B,T], the reward of the action.
        terminated: bool[B,T], whether the episode terminated with the action.
        mask: bool[B,T], True for real steps.
    """

    mu: Floats
    logvar: Floats
    a: Floats
    r: Floats
    terminated: NDArray[np.bool_]
    mask: NDArray[np.bool_]


class Latents:
    """Reader of latents.h5. Episodes are addressed by their place, the same as in `Rollouts`.

    Attributes:
        table: One row per episode, of dtype `ROW`.
        made_from: Hashes of its inputs by name.
        z: Z, latent size.
        actions: A, length of an action vector.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file; UserError when it is missing, damaged or foreign."""
        if not path.exists():
            raise UserError(f"{path} is missing: {made_by('mdnrnn')}.")
        self._file = ColumnFile(path, KIND, ROW, REMEDY)
        self._file.check_columns(COLUMNS)
        self.table: Array = self._file.table
        prefix = "made_from "
        self.made_from = {
            name.removeprefix(prefix): value for name, value in self._file.attributes.items() if name.startswith(prefix)
        }
        self._cache, self._cached_bytes = OrderedDict[int, LatentEpisode](), 0
        self.z = self._file.columns["frame/mu"][0][0]
        self.actions = self._file.columns["step/actions"][0][0]
        if self._file.columns["frame/logvar"][0] != (self.z,):
            raise UserError(f"{path} is damaged (its mu and logvar have different sizes): {REMEDY}.")

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.table)

    def split(self, validation: float, seed: int, earlier: Sequence[int] = ()) -> tuple[Array, Array]:
        """Training and validation episodes, the same as `Rollouts.split` of the same rollouts."""
        return split(len(self), validation, seed, earlier)

    def episode(self, episode: int) -> LatentEpisode:
        """One whole episode. Its arrays are cached and must not be changed."""
        episode = int(episode)
        if episode in self._cache:
            self._cache.move_to_end(episode)
            return self._cache[episode]
        steps = int(self.table["length"][episode])
        terminated = np.zeros(steps, np.bool_)
        terminated[-1] = self.table["terminated"][episode]
        found = LatentEpisode(
            mu=self._file.read("frame/mu", episode, 0, steps + 1),
            logvar=self._file.read("frame/logvar", episode, 0, steps + 1),
            actions=self._file.read("step/actions", episode, 0, steps),
            rewards=self._file.read("step/rewards", episode, 0, steps),
            terminated=terminated,
        )
        self._file.check_episode(episode, found.mu, found.logvar, found.actions, found.rewards)
        self._cache[episode] = found
        self._cached_bytes += found.bytes
        while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].bytes
        return found

    def clips(self, addresses: Array, length: int) -> Clips:
        """Reads clips at addresses i64[B,3] (episode, first step, step after the last), at most `length` steps each."""
        shape = (len(addresses), length)
        clips = Clips(
            mu=np.zeros((shape[0], length + 1, self.z), np.float32),
            logvar=np.zeros((shape[0], length + 1, self.z), np.float32),
            a=np.zeros((*shape, self.actions), np.float32),
            r=np.zeros(shape, np.float32),
            terminated=np.zeros(shape, np.bool_),
            mask=np.zeros(shape, np.bool_),
        )
        for i, (episode, first, stop) in enumerate(addresses.tolist()):
            whole, real = self.episode(episode), stop - first
            clips.mu[i, : real + 1] = whole.mu[first : stop + 1]
            clips.logvar[i, : real + 1] = whole.logvar[first : stop + 1]
            clips.a[i, :real] = whole.actions[first:stop]
            clips.r[i, :real] = whole.rewards[first:stop]
            clips.terminated[i, :real] = whole.terminated[first:stop]
            clips.mask[i, :real] = True
        return clips


def clip_batches(
    latents: Latents, episodes: Array, *, batch: int, length: int, seed: int, start: int
) -> Iterator[Clips]:
    """Endless batches of clips in random order, epoch after epoch.

    An epoch cuts each episode that is longer than a clip at a random step and every `length` steps from there. So the
    cuts differ between epochs, and each epoch contains every step once; the clips at an episode's ends are shorter and
    masked. Batch n depends on the episodes and the seed only.

    Args:
        latents: The data.
        episodes: i64[N], places of the episodes.
        batch: Clips per batch, >= 1.
        length: Steps per clip, >= 1.
        seed: Seed of all choices.
        start: Number of the first batch to yield.
    """
    steps = latents.table["length"][episodes]

    def addresses(number: int) -> Array:
        """All addresses of epoch `number`, in random order."""
        rng = np.random.default_rng([seed, number])
        found = []
        for episode, count in zip(episodes.tolist(), steps.tolist(), strict=True):
            cut = int(rng.integers(length)) if count > length else 0
            edges = [*range(cut - length if cut else 0, count, length), count]
            found += [(episode, max(first, 0), stop) for first, stop in pairwise(edges)]
        return rng.permutation(np.array(found, np.int64))

    skip = start * batch
    number = 0
    waiting = np.empty((0, 3), np.int64)
    while True:
        order = addresses(number)
        number += 1
        if skip >= len(order):
            skip -= len(order)
            continue
        waiting = np.concatenate([waiting, order[skip:]])
        skip = 0
        while len(waiting) >= batch:
            yield latents.clips(waiting[:batch], length)
            waiting = waiting[batch:]


def fresh_batches(
    latents: Latents, episodes: Array, *, fresh: int, batch: int, length: int, seed: int, start: int
) -> Iterator[Clips]:
    """As `clip_batches`, but half of each batch, rounded down, comes from the newest `fresh` episodes; 0: no half."""
    sizes = {"length": length, "seed": seed, "start": start}
    if not fresh or batch < 2:
        yield from clip_batches(latents, episodes, batch=batch, **sizes)
    everything = clip_batches(latents, episodes, batch=batch - batch // 2, **sizes)
    last = clip_batches(latents, episodes[-fresh:], batch=batch // 2, **sizes)
    for parts in zip(everything, last, strict=True):
        yield Clips(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Clips)))


def validation_clips(latents: Latents, episodes: Array, *, length: int, most: int) -> Clips:
    """At most `most` clips, evenly spread over the episodes, which are cut from their first step on."""
    steps = latents.table["length"][episodes]
    addresses = np.array(
        [
            (episode, first, min(first + length, count))
            for episode, count in zip(episodes.tolist(), steps.tolist(), strict=True)
            for first in range(0, count, length)
        ],
        np.int64,
    )
    chosen = np.unique(np.linspace(0, len(addresses) - 1, min(most, len(addresses))).astype(np.int64))
    return latents.clips(addresses[chosen], length)
