"""Starts of dreams: moments of recorded episodes with M's state there, and the mean rewards of the record."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm.config.names import RUN_FORMAT
from wm.contracts import Pays, State
from wm.run.checksums import check_archive
from wm.run.errors import UserError, check_read, first_line
from wm.run.files import atomic
from wm.run.pair import drawn_by
from wm.run.remedies import command, made_by

Floats = NDArray[np.float32]

ADDRESS = ("episode", "step", "rewards")
"""Arrays of a file beside M's state."""
RESERVED = (*ADDRESS, "meta", "file", "allow_pickle")
"""Names that no part of M's state can have: those of the file's other arrays and of numpy's own arguments."""


@dataclass(frozen=True)
class Starts:
    """N moments at which dreams start, with the state that a controller has there in the real environment.

    Attributes:
        state: M's state by name, f32[N,size] each, after the real steps before the moment; "z" f32[N,Z] is V's mean of
            the observation at the moment.
        episode: i64[N], index of the recorded episode.
        step: i64[N], number of its steps before the moment.
        rewards: f32[3], mean reward of the recorded steps without a positive reward, with one, and that terminated the
            episode; see `pays`.
        made_from: Hashes of the files of V and M.
    """

    state: Mapping[str, Floats]
    episode: NDArray[np.int64]
    step: NDArray[np.int64]
    rewards: Floats
    made_from: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.step)

    def rows(self) -> Iterator[State]:
        """M's state at one start after another, without the leading dimension."""
        return ({name: part[row] for name, part in self.state.items()} for row in range(len(self)))

    @property
    def pays(self) -> Pays:
        """The mean rewards as plain numbers."""
        return Pays(*self.rewards.tolist())


def save_starts(path: Path, starts: Starts) -> None:
    """Writes starts.npz; the state is rounded to float16, whose error is below that of V and M.

    Raises:
        ValueError: The state is none that a file can hold; see `wm.contracts.State`.
    """
    with atomic(path) as temporary:
        temporary.write_bytes(_packed(starts))


def starts_hash(starts: Starts) -> str:
    """SHA-256 of the file that `save_starts` writes, in hex; ValueError as there."""
    return hashlib.sha256(_packed(starts)).hexdigest()


def _packed(starts: Starts) -> bytes:
    with np.errstate(over="ignore"):  # it is refused below
        arrays: dict[str, Any] = {name: part.astype(np.float16) for name, part in starts.state.items()}
    for name, part in arrays.items():
        if name in RESERVED or part.ndim != 2 or not np.isfinite(part).all():
            raise ValueError(
                f"M's state {name!r} of shape {part.shape} is none for a file of starts: each part is f32[size], "
                f"finite in float16, and none is called {', '.join(RESERVED)}"
            )
    arrays |= {name: getattr(starts, name) for name in ADDRESS}
    meta = json.dumps({"format": RUN_FORMAT, "made_from": dict(starts.made_from)})
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, meta=np.array(meta), **arrays)
    return file.getvalue()


def load_starts(path: Path) -> Starts:
    """Reads a file of `save_starts`; UserError when it is missing or damaged."""
    stage = drawn_by(path.name)
    remedy = f"remove it and remake it with {command(stage)}"
    if not path.exists():
        raise UserError(f"{path} is missing: {made_by(stage)}.")
    try:
        check_archive(path)
        with np.load(path, allow_pickle=False) as file:
            meta = json.loads(str(file["meta"]))
            arrays = {name: file[name] for name in ADDRESS}
            state = {name: file[name].astype(np.float32) for name in file.files if name not in RESERVED}
        count, made_from = len(state["z"]), dict(meta["made_from"])
        fits = (
            count > 0
            and all(part.shape[0] == count and part.ndim == 2 for part in state.values())
            and all(arrays[name].shape == (count,) for name in ("episode", "step"))
            and arrays["rewards"].shape == (3,)
            and all(np.isfinite(part).all() for part in (*arrays.values(), *state.values()))
            and all(arrays[name].dtype.kind == "i" and (arrays[name] >= 0).all() for name in ("episode", "step"))
            and arrays["rewards"].dtype.kind == "f"
        )
    except Exception as error:  # a damaged file can raise anything in numpy, zipfile or json
        check_read(path, error)
        raise UserError(f"{path} is damaged or holds no starts ({first_line(error)}): {remedy}.") from error
    if meta.get("format") != RUN_FORMAT:
        raise UserError(f"{path} is not of format {RUN_FORMAT}, which this version reads: {remedy}.")
    if not fits:
        raise UserError(f"{path} is damaged (its arrays do not fit together): {remedy}.")
    return Starts(state, **arrays, made_from=made_from)
