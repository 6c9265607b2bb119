"""Ensembles: other M's that dream along, and what the record says after the starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm.contracts import Network, State
from wm.dream.chance import Record, empty_record, fill_record
from wm.dream.networks import Networks, split_latents
from wm.dream.starts import rounded, warm_up
from wm.memory.kinds import find_kind
from wm.run.checksums import file_hash
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.pair import Pair
from wm.run.remedies import command
from wm.store.latents import LatentEpisode
from wm.store.starts import Starts


@dataclass(frozen=True)
class Member:
    """A further M of an ensemble.

    Attributes:
        model: M, with the same sizes as the run's own.
        state: Its state at the run's N starts, f32[N,size] of each name.
    """

    model: Network
    state: State


def load_ensemble(folders: Sequence[Path], run: Run, networks: Networks, starts: Starts) -> list[Member]:
    """Reads the M's of other runs and warms each up over the recorded steps before the starts.

    Args:
        folders: Run folders whose M was trained on the same V.
        run: The run, for its latents.h5.
        networks: Its V and M.
        starts: Its starts.

    Raises:
        UserError: One of the M's is missing, damaged, of another environment or V, of other sizes or given twice; or
            latents.h5 is missing or lacks a start.
    """
    members: list[Member] = []
    kind = networks.memory.kind
    known, wanted = {networks.made_from[run.memory(kind).name]}, _sizes(networks.memory, starts)
    for folder in folders:
        own, env = networks.task.env_id, Run(folder).read_env()
        if env not in (None, own):
            raise UserError(
                f"--ensemble {folder}: it is a run of {env}, not of {own}: give run folders of the same environment."
            )
        path = Run(folder).memory(kind)
        model, meta = find_kind(kind).load(path)
        if meta["made_from"].get("vae.pt") != networks.made_from["vae.pt"]:
            raise UserError(
                f"--ensemble {folder}: its {path.name} was trained on another vae.pt than that of {run.folder}: "
                f"copy that vae.pt there and train M on it with {command(kind, 'ARGS=--restart')}, or leave "
                "the folder out."
            )
        for name, size in _sizes(model, starts).items():
            if size != wanted[name]:
                raise UserError(
                    f"--ensemble {folder}: its M has {name} {size}, that of {run.folder} {wanted[name]}: give only M's "
                    "of the same sizes."
                )
        if file_hash(path) in known:
            raise UserError(
                f"--ensemble {folder}: its M is in the ensemble already: give each other M once, and not the run's own."
            )
        known.add(file_hash(path))
        members.append(Member(model, state_at_starts(model, run, networks, starts)))
    return members


def _sizes(model: Network, starts: Starts) -> dict[str, Any]:
    """What must be equal in the M's of an ensemble, since they share C's input, the noise and the masks."""
    memory = model.dreaming(starts.pays)
    return {
        "actions": model.actions,
        "features": model.features,
        "chances": dict(memory.chances),
        "masked": memory.masked,
    }


def state_at_starts(model: Network, run: Run, networks: Networks, starts: Starts) -> State:
    """An M's state at the starts of a run, f32[N,size] of each name, rounded to float16 like the run's own on disk.

    Raises:
        UserError: latents.h5 is missing, damaged, of another V, or has no such moments.
    """
    cell = model.acting()()
    found = {name: np.empty((len(starts), *part.shape), np.float32) for name, part in cell.initial().items()}
    for episode, here in recorded_episodes(run, networks, starts):
        for name, part in warm_up(cell, episode, starts.step[here]).items():
            found[name][here] = part
    return {name: rounded(part) for name, part in found.items()}


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
                f"{run.latents} lacks moments that {run.starts_of(networks.memory.kind).name} refers to: draw new "
                f"starts with {command(Pair(networks.memory.kind).stage, 'ARGS=--restart')}."
            )
        yield latents.episode(places[index]), here


def load_records(run: Run, networks: Networks, starts: Starts, others: Sequence[Member], horizon: int) -> list[Record]:
    """The inferred noise after the starts: a record for the run's own M, then one for each of the others.

    Raises:
        UserError: As for `recorded_episodes`.
    """
    models = [networks.memory, *(other.model for other in others)]
    if not all(hasattr(model, "abduct") for model in models):
        raise UserError(f"--noise recorded needs an M that can tell its noise, not {models[0].kind}: leave it out.")
    records = [empty_record(len(starts), horizon, model.dreaming(starts.pays).chances) for model in models]
    for episode, here in recorded_episodes(run, networks, starts):
        for model, record in zip(models, records, strict=True):
            fill_record(record, model, episode, here, starts.step)
    return records
