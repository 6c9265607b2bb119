"""Encoding of all frames of a run: rollouts and V to latents.h5."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from wm.envs.action import Action
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.progress import Progress
from wm.run.provenance import check_made_from
from wm.store.latents import Latents, LatentsWriter
from wm.store.shards import Rollouts
from wm.vision.vae import as_input

ENCODE_BATCH = 256
"""Frames that V encodes at a time."""


def known_latents(path: Path, vae: Any) -> Latents:
    """Latents of another run that were encoded by the same V; UserError when another V made them."""
    latents = Latents(path)
    if latents.made_from.get("encoder") != encoder_hash(vae):
        raise UserError(f"--encoded {path}: it was encoded by another V: leave it out.")
    return latents


def encoder_hash(vae: nn.Module) -> str:
    """SHA-256 of V's weights in hex, equal for equal weights in different files."""
    digest = hashlib.sha256()
    for name, value in sorted(vae.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def encoded(
    run: Run,
    action: Action,
    rollouts: Rollouts,
    vae: Any,
    made_from: Mapping[str, str],
    device: torch.device,
    known: Latents | None,
    restart: bool,
    stage: str,
) -> Latents:
    """RUN/latents.h5: V's posterior of every frame. The frames are encoded unless the file exists and fits.

    `stage`, that of the M that needs them, is what a refusal names.

    Raises:
        UserError: The file is damaged or was made from other rollouts or another V, and there is no --restart.
    """
    if run.latents.exists():
        try:
            latents = Latents(run.latents)
            check_made_from(run.latents, latents.made_from, made_from, stage)
            return latents
        except UserError:
            if not restart:
                raise
    encode(run, action, rollouts, vae, made_from, device, known)
    return Latents(run.latents)


@torch.no_grad()
def encode(
    run: Run,
    action: Action,
    rollouts: Rollouts,
    vae: Any,
    made_from: Mapping[str, str],
    device: torch.device,
    known: Latents | None = None,
) -> None:
    """Encodes all frames in float32, as the agent does. One episode is in memory at a time.

    Args:
        run: The run folder.
        action: The task's actions, as M reads them.
        rollouts: The episodes.
        vae: V, on `device`.
        made_from: Hashes of the inputs.
        device: Device of the encoding.
        known: Latents of the same V; episodes in them with the same actions are copied.
    """
    places = {} if known is None else {index: place for place, index in enumerate(known.table["index"].tolist())}
    frames = int((rollouts.table["length"] + 1).sum())
    with (
        LatentsWriter(run.latents, {**made_from, "encoder": encoder_hash(vae)}) as writer,
        Progress("encode", frames, unit="frames") as progress,
    ):
        for number, index in enumerate(rollouts.table["index"].tolist()):
            if known is not None and index in places:
                there = known.episode(places[index])
                if np.array_equal(there.actions, action.from_env(rollouts.actions(number))):
                    writer.append_latents(known.table[places[index]], there)
                    progress.update(len(there.mu))
                    continue
            episode = rollouts.episode(number)
            posterior = []
            for batch in torch.from_numpy(episode.observations).split(ENCODE_BATCH):
                posterior.append(torch.stack(vae.encode(as_input(batch.to(device)))).cpu())  # [2,B,Z]
                progress.update(len(batch))
            mu, logvar = torch.cat(posterior, dim=1).numpy()  # [T+1,Z] each
            writer.append(episode, action.from_env(episode.actions), mu, logvar)
