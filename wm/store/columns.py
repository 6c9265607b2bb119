"""The HDF5 layout of rollouts and latents: concatenated episodes in columns, and a small table of the episodes.

    episodes            one row per episode: its metadata and its number of steps
    frame/<name>        [sum of T+1, ...]: one row per observation
    step/<name>         [sum of T, ...]: one row per step

Every dataset is chunked and has fletcher32 checksums, so that a flipped bit is an error and not a wrong number.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from wm.config.names import RUN_FORMAT
from wm.run.errors import DamageError, UserError, check_read, first_line
from wm.run.signals import held

Array = NDArray[Any]

CHUNK_BYTES = 100_000
"""Target size of a chunk: 8 frames of 64x64x3. See the table in docs/formats.md."""
COMPRESSION: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": False}
"""Chosen by `python -m tests.bench_store`; see the table in docs/formats.md."""

SUM = np.dtype(np.uint32)
"""dtype of an episode's checksum."""

MOST_PACKED = 2000
"""Upper bound of a plausible compression ratio: gzip reaches about 1000. A column beyond it is not complete."""


class _Output(io.FileIO):
    """A file through which HDF5 writes. It stores the first failure for `check` and drops all writes after it.

    Callers hold signals while HDF5 writes, since an exception raised in here is lost or ends the process inside the
    library.

    HDF5's own driver hides a full disk: h5py meets the error while it closes objects, where it is only printed. The
    file then looks complete, and the library may crash later.
    """

    failure: OSError | None = None

    def write(self, content: Any) -> int:
        """Writes all of `content`."""
        left = memoryview(content).cast("B")
        size = len(left)
        try:
            while left and self.failure is None:
                left = left[super().write(left) :]
        except OSError as error:
            self.failure = error
        return size

    def truncate(self, size: int | None = None) -> int:
        """Sets the length."""
        if self.failure is None:
            try:
                return super().truncate(size)
            except OSError as error:
                self.failure = error
        return size or 0

    def check(self) -> None:
        """Raises the first failure of a write."""
        if self.failure is not None:
            raise self.failure


class ColumnWriter:
    """Appends episodes to a new file; memory is bounded by one episode. Use as a context manager."""

    @held()
    def __init__(
        self, output: Path | io.BytesIO, kind: str, attributes: Mapping[str, str], compression: Mapping[str, Any]
    ) -> None:
        """Opens `output` for writing.

        Args:
            output: The file, or memory, which stays open.
            kind: What the file holds, such as "rollouts".
            attributes: Further attributes of the file.
            compression: `COMPRESSION`, or empty for data that does not compress.
        """
        self._compression = compression
        self._on_disk = _Output(output, "wb+") if isinstance(output, Path) else None
        self._file = h5py.File(self._on_disk or output, "w", libver="v110")
        # Strings of fixed length are stored in the header, which has a checksum. Other strings are in a heap without a
        # checksum, and a damaged heap can make HDF5 loop for ever.
        self._file.attrs.update({"format": RUN_FORMAT, "kind": np.bytes_(kind)})
        self._file.attrs.update({name: np.bytes_(value) for name, value in attributes.items()})
        self._rows: list[Array] = []
        self._sums: list[int] = []

    def __enter__(self) -> ColumnWriter:
        return self

    @held()
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._rows:
            table = np.concatenate(self._rows)
            self._file.create_dataset("episodes", data=table, chunks=table.shape, fletcher32=True)
            sums = np.array(self._sums, SUM)
            self._file.create_dataset("checksums", data=sums, chunks=sums.shape, fletcher32=True)
        self._file.close()
        if self._on_disk:
            self._on_disk.close()
            if kind is None:
                self._on_disk.check()

    @held()
    def append(self, row: Array, frame: Mapping[str, Array], step: Mapping[str, Array]) -> None:
        """Adds an episode: its row of the table (structured, shape [1]), its frame columns and step columns."""
        for group, columns in (("frame", frame), ("step", step)):
            for name, values in columns.items():
                self._extend(f"{group}/{name}", values)
        if self._on_disk:
            self._on_disk.check()
        self._rows.append(row)
        self._sums.append(checksum(*frame.values(), *step.values()))

    def _extend(self, name: str, values: Array) -> None:
        if name not in self._file:
            item = max(1, values.dtype.itemsize * int(np.prod(values.shape[1:])))
            self._file.create_dataset(
                name,
                shape=(0, *values.shape[1:]),
                maxshape=(None, *values.shape[1:]),
                dtype=values.dtype,
                chunks=(max(1, min(CHUNK_BYTES // item, 8192)), *values.shape[1:]),
                fletcher32=True,
                **self._compression,
            )
        dataset = self._file[name]
        if dataset.shape[1:] != values.shape[1:] or dataset.dtype != values.dtype:
            raise ValueError(
                f"{name} are {values.dtype}{values.shape[1:]}, earlier ones {dataset.dtype}{dataset.shape[1:]}"
            )
        start = len(dataset)
        dataset.resize(start + len(values), axis=0)
        dataset[start:] = values


class ColumnFile:
    """Reads a file of episodes; only the table is read on opening.

    Attributes:
        path: The file.
        table: One row per episode, with its number of steps in "length".
        attributes: The file's attributes by name.
        columns: (shape of a row, dtype) by "frame/<name>" and "step/<name>".
    """

    def __init__(self, path: Path, kind: str, row: np.dtype[Any], remedy: str, foreign: str = "") -> None:
        """Opens and checks a file.

        Args:
            path: The file.
            kind: The expected kind of the file.
            row: dtype of the table.
            remedy: End of the sentence of an error about damage.
            foreign: End of the sentence of an error about a complete file of another kind; "": `remedy`.

        Raises:
            DamageError: It is damaged.
            UserError: It is foreign or empty, or of another format.
        """
        self.path, self._remedy, self._foreign = path, remedy, foreign or remedy
        self._file: h5py.File | None = None
        try:
            self._check(self._opened(), kind, row)
        except (OSError, KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            self.close()
            check_read(self.path, error)
            raise self._damaged(error) from error
        except UserError:
            self.close()
            raise

    def _opened(self) -> h5py.File:
        """The open file; it is reopened after a `close`."""
        if self._file is None:
            self._file = h5py.File(self.path, "r", locking=False)
        return self._file

    def _check(self, opened: h5py.File, kind: str, row: np.dtype[Any]) -> None:
        attributes = {name: _text(value) for name, value in opened.attrs.items()}
        if attributes.get("kind") != kind:
            raise UserError(f"{self.path} is not a {kind} file: {self._foreign}.")
        if attributes.get("format") != str(RUN_FORMAT):
            raise UserError(f"{self.path} is not of format {RUN_FORMAT}, which this version reads: {self._foreign}.")
        # The low-level interface takes a third of the time, which counts for thousands of shards.
        file = opened.id
        if b"episodes" not in file:
            raise UserError(f"{self.path} holds no episodes: {self._foreign}.")
        table = _whole(file, b"episodes", row)
        if not len(table) or (table["length"] < 1).any():
            raise ValueError("its table of episodes is not valid")
        self.attributes, self.table = attributes, table
        # Older files have no checksums.
        self._sums = _whole(file, b"checksums", SUM) if b"checksums" in file else None
        if self._sums is not None and self._sums.shape != table.shape:
            raise ValueError("its checksums do not fit its table")
        self.columns: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        self._starts: dict[str, Array] = {}
        for group, extra in (("frame", 1), ("step", 0)):
            ends = np.cumsum(table["length"] + extra)
            self._starts[group] = ends - (table["length"] + extra)
            members = h5py.h5g.open(file, group.encode())
            for name in members:
                column = h5py.h5d.open(members, name)
                rows, *shape = column.shape
                if rows != ends[-1]:
                    raise ValueError(f"{group}/{name.decode()} has {rows} rows, not {ends[-1]}")
                if rows * math.prod(shape) * column.dtype.itemsize > MOST_PACKED * column.get_storage_size():
                    raise ValueError(f"{group}/{name.decode()} is not complete")  # its size is not plausible
                self.columns[f"{group}/{name.decode()}"] = (tuple(shape), column.dtype)

    def check_columns(self, wanted: Mapping[str, tuple[int, str]]) -> None:
        """UserError unless the columns are `wanted`: number of dimensions of a row, and dtype, by name."""
        found = {name: (len(shape), dtype.str.lstrip("<|=")) for name, (shape, dtype) in self.columns.items()}
        if found != dict(wanted):
            raise self._damaged(ValueError(f"its columns are {found}"))

    def read(self, column: str, row: int, start: int, stop: int) -> Array:
        """Rows start..stop-1 of a column ("frame/<name>" or "step/<name>") within the episode in row `row`."""
        group = column.split("/")[0]
        rows = int(self.table["length"][row]) + (group == "frame")
        if not 0 <= start <= stop <= rows:
            raise IndexError(f"{column} {start}..{stop} of an episode that has {rows}")
        first = int(self._starts[group][row])
        try:
            values: Array = self._opened()[column][first + start : first + stop]
        except (OSError, KeyError, RuntimeError) as error:
            check_read(self.path, error)
            raise self._damaged(error) from error
        if len(values) != stop - start:
            raise self._damaged(ValueError("it has been replaced by another file"))
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise self._damaged(ValueError(f"its {column} are not finite"))
        return values

    def check_episode(self, row: int, *columns: Array) -> None:
        """UserError unless these columns of the episode in row `row` match its checksum.

        It is needed since HDF5's own checksum does not distinguish 0 from 0xffff, nor some shifts of regular data.
        """
        if self._sums is not None and checksum(*columns) != self._sums[row]:
            raise self._damaged(ValueError(f"episode {self.table['index'][row]} does not fit its checksum"))

    def close(self) -> None:
        """Closes the file; the table stays, and a later read reopens the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _damaged(self, error: BaseException) -> DamageError:
        return DamageError(f"{self.path} is damaged ({first_line(error)}): {self._remedy}.")


def checksum(*columns: Array) -> int:
    """CRC-32 of the bytes of an episode's columns in the order of writing, frames first."""
    found = 0
    for values in columns:
        found = zlib.crc32(np.ascontiguousarray(values).data, found)
    return found


def _whole(file: Any, name: bytes, dtype: np.dtype[Any]) -> Array:
    """All rows of the column `name` of an open file; ValueError when its rows have another dtype."""
    column = h5py.h5d.open(file, name)
    # HDF5 types are compared, since a conversion to a structured dtype takes as long as opening the file.
    if not column.get_type().equal(_type(dtype)) or len(column.shape) != 1:
        raise ValueError(f"its {name.decode()} have another type")
    if column.get_storage_size() < column.shape[0] * dtype.itemsize:  # rows that were never written
        raise ValueError(f"its {name.decode()} are not complete")
    rows = np.empty(column.shape, dtype)
    column.read(h5py.h5s.ALL, h5py.h5s.ALL, rows)
    return rows


@cache
def _type(dtype: np.dtype[Any]) -> Any:
    """The HDF5 type of a dtype."""
    return h5py.h5t.py_create(dtype, logical=True)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def split(episodes: int, validation: float, seed: int, earlier: Sequence[int] = ()) -> tuple[Array, Array]:
    """Splits episodes 0..n-1 into training and validation, at least one each.

    Args:
        episodes: n.
        validation: Fraction of validation episodes, in (0, 1).
        seed: Seed of the choice.
        earlier: Numbers of episodes at earlier splits, ascending. Those episodes keep their sides, so that a network
            that continues from an earlier training is never validated on its training data.

    Returns:
        i64 numbers of the training and of the validation episodes, each in ascending order.

    Raises:
        UserError: There are fewer than two episodes, or `validation` or `earlier` is not valid.
    """
    if not 0 < validation < 1:
        raise UserError(f"--validation {validation} is out of range: give a fraction between 0 and 1.")
    if episodes < 2:
        raise UserError(
            f"{episodes} episode cannot be split into training and validation: collect more with EPISODES=."
        )
    ends = [*earlier, episodes]
    if not all(before < after for before, after in pairwise([1, *ends])):
        raise UserError(
            f"--earlier {' '.join(map(str, earlier))} is not valid: give ascending numbers from 2 to below {episodes}, "
            "the number of episodes."
        )
    training, held_out = [], []
    for first, end in pairwise([0, *ends]):
        count = min(max(1, round(validation * (end - first))), end - first - 1)
        order = first + np.random.default_rng([seed, first] if first else seed).permutation(end - first)
        training.append(order[count:])
        held_out.append(order[:count])
    return np.sort(np.concatenate(training)), np.sort(np.concatenate(held_out))
