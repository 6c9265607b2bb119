"""Rollouts on disk: HDF5 shards of a few episodes each, read as one sequence in order of the episode index."""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from wm.config.earlier import MEASURE
from wm.run.errors import DamageError, UserError
from wm.run.files import atomic, share
from wm.run.remedies import command
from wm.store.columns import COMPRESSION, Array, ColumnFile, ColumnWriter, split
from wm.store.episode import Episode

KIND = "rollouts"
REMEDY = f"run {command('collect')}, which sets it aside and collects its episodes again"
FOREIGN = "move it away, or choose another RUN or RUNS"
"""Remedy for a complete file that does not belong in the folder; it is never moved automatically."""
ROW = np.dtype(
    [
        ("index", "i8"),
        ("seed", "i8"),
        ("length", "i8"),
        ("ret", "f8"),
        (MEASURE, "f8"),
        ("terminated", "?"),
        ("truncated", "?"),
        ("policy", "S32"),
        ("env_id", "S64"),
        ("env_version", "S32"),
        ("digest", "S64"),
    ]
)
"""A shard's table of episodes; see `Episode` for the meanings."""

OPEN_FILES = 128
"""Maximum number of open shards; there may be thousands."""


def write_shard(path: Path, episodes: Iterable[Episode]) -> None:
    """Writes episodes to a shard, whole or not at all."""
    save_shard(path, pack_shard(episodes))


def save_shard(path: Path, content: bytes) -> None:
    """Writes what `pack_shard` made, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def pack_shard(episodes: Iterable[Episode]) -> bytes:
    """The content of a shard's file; memory is bounded by it and one episode.

    Workers pack: compression runs in parallel, and a message is a tenth of its episodes.
    """
    memory = io.BytesIO()
    with ColumnWriter(memory, KIND, {}, COMPRESSION) as writer:
        for e in episodes:
            row = (e.index, e.seed, e.length, e.ret, e.measure, e.terminated, e.truncated)
            names = tuple(text.encode() for text in (e.policy, e.env_id, e.env_version, e.digest()))
            for field, text in zip(("policy", "env_id", "env_version"), names, strict=False):
                if len(text) > ROW[field].itemsize:
                    raise ValueError(f"{field} {text.decode()!r} is longer than {ROW[field].itemsize} bytes")
            writer.append(
                np.array([row + names], ROW),
                {"observations": e.observations},
                {"actions": e.actions, "rewards": e.rewards},
            )
    return memory.getvalue()


def open_shard(path: Path) -> ColumnFile:
    """Opens a shard; errors as for `ColumnFile`."""
    return ColumnFile(path, KIND, ROW, REMEDY, FOREIGN)


def read_episode(shard: ColumnFile, row: int) -> Episode:
    """The episode in a row of a shard; DamageError when it does not match its digest."""
    about = shard.table[row]
    index, steps = int(about["index"]), int(about["length"])
    try:
        episode = Episode(
            index=index,
            seed=int(about["seed"]),
            policy=about["policy"].decode(),
            env_id=about["env_id"].decode(),
            env_version=about["env_version"].decode(),
            observations=shard.read("frame/observations", row, 0, steps + 1),
            actions=shard.read("step/actions", row, 0, steps),
            rewards=shard.read("step/rewards", row, 0, steps),
            terminated=bool(about["terminated"]),
            truncated=bool(about["truncated"]),
            measure=float(about[MEASURE]),
        )
    except ValueError as error:
        raise DamageError(f"{shard.path} is damaged (episode {index}: {error}): {REMEDY}.") from error
    if episode.digest().encode() != about["digest"]:
        raise DamageError(f"{shard.path} is damaged (episode {index} does not fit its digest): {REMEDY}.")
    return episode


def share_shards(source: Path, target: Path) -> None:
    """Links the shards of `source` into the folder `target`."""
    for shard in source.glob("[!.]*.h5"):
        share(shard, target / shard.name)


class Rollouts:
    """All shards of a folder as one sequence of episodes, sorted by episode index.

    Episodes are addressed by their place in `table`, 0 to len - 1. Only the tables are in memory.

    Attributes:
        table: One row per episode, of dtype `ROW`.
    """

    def __init__(self, folder: Path) -> None:
        """Opens every shard and checks it.

        Raises:
            UserError: There is none, or one is damaged, foreign, empty or holds an episode that another one has.
        """
        paths = sorted(folder.glob("[!.]*.h5")) if folder.is_dir() else []
        if not paths:
            raise UserError(f"{folder} holds no rollouts: make them with {command('collect')}.")
        self._shards: list[ColumnFile] = []
        self._open = OrderedDict[int, None]()
        for path in paths:
            shard = open_shard(path)
            shard.close()  # h5py is slow with many open files
            self._shards.append(shard)
            if shard.columns != self._shards[0].columns:
                raise UserError(f"{path} has other observations or actions than {paths[0]}: {FOREIGN}.")
        tables = [shard.table for shard in self._shards]
        counts = [len(table) for table in tables]
        table = np.concatenate(tables)
        order = np.argsort(table["index"], kind="stable")
        self.table: Array = table[order]
        self._shard_of = np.repeat(np.arange(len(paths)), counts)[order]
        self._row_of = np.concatenate([np.arange(count) for count in counts])[order]
        doubled = np.flatnonzero(np.diff(self.table["index"]) == 0)
        if len(doubled):
            one, other = (paths[self._shard_of[doubled[0] + k]] for k in (0, 1))
            index = self.table["index"][doubled[0]]
            raise UserError(f"{one} and {other} both hold episode {index}: remove one of them.")

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.table)

    def fingerprint(self) -> str:
        """SHA-256 over the episodes' digests, in hex; it does not depend on their distribution over shards."""
        return hashlib.sha256(self.table["digest"].tobytes()).hexdigest()

    def split(self, validation: float, seed: int, earlier: Sequence[int] = ()) -> tuple[Array, Array]:
        """Training and validation episodes; see `wm.store.columns.split`."""
        return split(len(self), validation, seed, earlier)

    def check(self, title: str, columns: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
        """UserError unless the episodes have these columns: shape and dtype of a row, as a task of this title has."""
        found = {name: (shape, dtype.str.lstrip("<|=")) for name, (shape, dtype) in self._shards[0].columns.items()}
        if found != columns:
            raise UserError(f"{self._shards[0].path} does not hold {title} episodes (columns: {found}): {FOREIGN}.")

    def read(self, episode: int, start: int, stop: int) -> Array:
        """Observations start..stop-1 of an episode of T+1; UserError when the shard is damaged there."""
        return self._read("frame/observations", episode, start, stop)

    def actions(self, episode: int) -> Array:
        """All T actions of an episode."""
        return self._read("step/actions", episode, 0, int(self.table["length"][episode]))

    def episode(self, episode: int) -> Episode:
        """The whole record of an episode; UserError when the shard is damaged there."""
        return read_episode(self._shard(int(self._shard_of[episode])), int(self._row_of[episode]))

    def __iter__(self) -> Iterator[Episode]:
        """All episodes, in order of their index."""
        return (self.episode(i) for i in range(len(self)))

    def _read(self, column: str, episode: int, start: int, stop: int) -> Array:
        return self._shard(int(self._shard_of[episode])).read(column, int(self._row_of[episode]), start, stop)

    def _shard(self, number: int) -> ColumnFile:
        """A shard to read from; the least recently used one is closed when too many are open."""
        self._open[number] = None
        self._open.move_to_end(number)
        if len(self._open) > OPEN_FILES:
            self._shards[self._open.popitem(last=False)[0]].close()
        return self._shards[number]
