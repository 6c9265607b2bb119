"""Ensembles: other M's that dream along, and what the record says after the starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wm.dream.chance import Record, empty_record, fill_record
from wm.dream.networks import Networks, split_latents
from wm.dream.starts import make_cell, warm_up
from wm.memory.mdnrnn import MDNRNN, load_mdnrnn
from wm.run.checksums import file_hash
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.store.latents import LatentEpisode
from wm.store.starts import Starts


@dataclass(frozen=True)
class Member:
    """A further M of an ensemble.

    Attributes:
        model: M, with the same sizes as the run's own.
        h: f32[N,H], its recurrent output at the run's N starts.
        c: f32[N,H], its LSTM cell there.
    """

    model: MDNRNN
    h: NDArray[np.float32]
    c: NDArray[np.float32]


def load_ensemble(folders: Sequence[Path], run: Run, networks: Networks, starts: Starts) -> list[Member]:
    """Reads the M's of other runs and warms each up over the recorded steps before the starts.

    Args:
        folders: Run folders whose M was trained on the same V.
        run: The run, for its latents.h5.
        networks: Its V and M.
        starts: Its starts.

    Raises:
        UserError: One of the M's is missing, damaged, of another V, of other sizes or given twice; or latents.h5 is
            missing or lacks a start.
    """
    members: list[Member] = []
    known = {networks.made_from["mdnrnn.pt"]}
    for folder in folders:
        path = Run(folder).mdnrnn
        model, meta = load_mdnrnn(path)
        if meta["made_from"].get("vae.pt") != networks.made_from["vae.pt"]:
            raise UserError(
                f"--ensemble {folder}: its mdnrnn.pt was trained on another vae.pt than that of {run.folder}: "
                f"copy that vae.pt there and train M on it with `make mdnrnn ARGS=--restart`, or leave the folder out."
            )
        unlike = [name for name in ("actions", "hidden") if getattr(model, name) != getattr(networks.mdnrnn, name)]
        if unlike:
            raise UserError(
                f"--ensemble {folder}: its M has {unlike[0]} {getattr(model, unlike[0])}, that of {run.folder} "
                f"{getattr(networks.mdnrnn, unlike[0])}: give only M's of the same sizes."
            )
        if file_hash(path) in known:
            raise UserError(
                f"--ensemble {folder}: its M is in the ensemble already: give each other M once, and not the run's own."
            )
        known.add(file_hash(path))
        members.append(Member(model, *states_at_starts(model, run, networks, starts)))
    return members


def states_at_starts(
    model: MDNRNN, run: Run, networks: Networks, starts: Starts
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """An M's (h, c) at the starts of a run, each f32[N,H], rounded to float16 like the run's own on disk.

    Raises:
        UserError: latents.h5 is missing, damaged, of another V, or has no such moments.
    """
    cell = make_cell(model)
    h, c = np.empty_like(starts.h), np.empty_like(starts.c)
    for episode, here in recorded_episodes(run, networks, starts):
        h[here], c[here] = warm_up(cell, episode, starts.step[here])
    return h.astype(np.float16).astype(np.float32), c.astype(np.float16).astype(np.float32)


def recorded_episodes(
    run: Run, networks: Networks, starts: Starts
) -> Iterator[tuple[LatentEpisode, NDArray[np.bool_]]]:
    """Yields the recorded episodes that contain starts, each with a mask bool[N] of the starts in it.

    Raises:
        UserError: latents.h5 is missing, damaged, of another V, or has no such moments.
    """
    latents, _, _ = split_latents(run, networks)
    places = {index: place for place, index in enumerate(latents.table["index"].tolist())}
    for index in np.unique(starts.episode).tolist():
        here = starts.episode == index
        if index not in places or latents.table["length"][places[index]] < starts.step[here].max():
            raise UserError(
                f"{run.latents} lacks moments that starts.npz refers to: draw new starts with "
                "`make dream ARGS=--restart`."
            )
        yield latents.episode(places[index]), here


def load_records(run: Run, networks: Networks, starts: Starts, others: Sequence[Member], horizon: int) -> list[Record]:
    """The inferred noise after the starts: a record for the run's own M, then one for each of the others.

    Raises:
        UserError: As for `recorded_episodes`.
    """
    records = [empty_record(len(starts), horizon, networks.mdnrnn.z) for _ in range(len(others) + 1)]
    for episode, here in recorded_episodes(run, networks, starts):
        for model, record in zip((networks.mdnrnn, *(other.model for other in others)), records, strict=True):
            fill_record(record, model, episode, here, starts.step)
    return records
