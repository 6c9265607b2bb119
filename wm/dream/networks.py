"""V and M of a run, as every dream needs them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wm.contracts import Network, Vision
from wm.envs import task_of
from wm.envs.task import Task
from wm.memory.kinds import find_kind
from wm.run.checksums import file_hash
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.pair import DEFAULT_MEMORY
from wm.run.provenance import check_made_from
from wm.run.remedies import command
from wm.store.latents import Latents
from wm.vision.kinds import load_vision


@dataclass(frozen=True)
class Networks:
    """V and M of a run.

    Attributes:
        task: The environment.
        vision: V.
        memory: M.
        validation: Fraction of the episodes that M was not trained on, 0 to 1.
        made_from: Hashes of the files of V and M.
        earlier: Number of episodes in each earlier round, for the same split as in M's training.
    """

    task: Task
    vision: Vision
    memory: Network
    validation: float
    made_from: dict[str, str]
    earlier: tuple[int, ...] = ()


def load_networks(run: Run, memory: str = DEFAULT_MEMORY) -> Networks:
    """Reads V and M of a run; UserError when one is missing, damaged or does not fit the other.

    Args:
        run: The run folder.
        memory: Kind of M.
    """
    task = task_of(run)
    vision, _, _ = load_vision(run.vae)
    path = run.memory(memory)
    kind = find_kind(memory)
    network, meta = kind.load(path)
    made_from = {run.vae.name: file_hash(run.vae)}
    check_made_from(path, meta["made_from"], made_from)
    made_from[path.name] = file_hash(path)
    validation, earlier = meta["config"].get("validation", kind.config().validation), meta["config"].get("earlier", ())
    if (
        not isinstance(validation, int | float)
        or not isinstance(earlier, list | tuple)
        or not all(isinstance(count, int) for count in earlier)
    ):
        raise UserError(f"{path} does not record M's validation split: redo it with {command(memory)}.")
    return Networks(task, vision, network, float(validation), made_from, tuple(earlier))


def split_latents(run: Run, networks: Networks) -> tuple[Latents, NDArray[np.int64], NDArray[np.int64]]:
    """Opens latents.h5 and splits it.

    Returns:
        The latents, and the places i64[N] of M's training and validation episodes.

    Raises:
        UserError: latents.h5 is missing, damaged or made from another V.
    """
    latents = Latents(run.latents)
    check_made_from(
        run.latents, latents.made_from, {"vae.pt": networks.made_from["vae.pt"]}, stage=networks.memory.kind
    )
    seed = run.read_manifest()["stages"].get(networks.memory.kind, {}).get("seed", 0)
    return latents, *latents.split(networks.validation, seed, networks.earlier)
