"""Trained networks on disk (vae.pt, mdnrnn.pt): plain tensors and values, written atomically, checked when read.

An artifact is {"format", "kind", "config", "model", "made_from"}. It is read only after the checksums of its archive
match, and with weights_only, which refuses every pickle that could run code.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wm.config.names import RUN_FORMAT
from wm.run.checksums import check_archive
from wm.run.errors import UserError, check_read
from wm.run.files import atomic
from wm.run.remedies import made_by, redo


def save_artifact(
    path: Path, kind: str, model: Mapping[str, Tensor], config: Mapping[str, Any], made_from: Mapping[str, str]
) -> None:
    """Writes an artifact atomically.

    Args:
        path: The file.
        kind: "vae", or the kind of M: the name of the stage that makes it.
        model: The network's state_dict; float32, or float16 to halve the file.
        config: Plain values: the sizes of the network and the settings of its training.
        made_from: Hashes of its inputs, by name.
    """
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in model.items()}
    artifact = {
        "format": RUN_FORMAT,
        "kind": kind,
        "config": dict(config),
        "model": weights,
        "made_from": dict(made_from),
    }
    write_tensors(path, artifact)


def load_artifact(path: Path, kind: str) -> dict[str, Any]:
    """Reads an artifact of `save_artifact`, with float32 weights on the CPU.

    Raises:
        UserError: It is missing, damaged, foreign, of another kind or format, or holds infinities or NaN.
    """
    if not path.exists():
        raise UserError(f"{path} is missing: {made_by(kind)}.")
    artifact = read_tensors(path, redo(kind))
    damaged = UserError(f"{path} is damaged or not a {kind}: {redo(kind)}.")
    if artifact.get("kind") != kind:
        raise damaged
    if artifact.get("format") != RUN_FORMAT:
        raise UserError(f"{path} is not of format {RUN_FORMAT}, which this version reads: {redo(kind)}.")
    if not all(isinstance(artifact.get(name), dict) for name in ("config", "model", "made_from")):
        raise damaged
    for value in artifact["model"].values():
        if not isinstance(value, Tensor) or not value.is_floating_point() or not value.isfinite().all():
            raise damaged
    artifact["model"] = {name: value.float() for name, value in artifact["model"].items()}
    return artifact


def write_tensors(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a dict of tensors and plain values with torch.save, atomically.

    It writes through a buffer in memory: given a path, torch.save stores the path's name in the file, so that equal
    weights would have different hashes, and hides the reason when the disk is full.
    """
    content = io.BytesIO()
    torch.save(value, content)
    with atomic(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def read_tensors(path: Path, remedy: str) -> dict[str, Any]:
    """Reads a dict of tensors and values of `write_tensors`; UserError, ending in `remedy`, when it is damaged."""
    try:
        check_archive(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file can fail anywhere in the reader: in the archive, the pickle, a storage, the encoding.
    except Exception as error:
        check_read(path, error)
        raise UserError(f"{path} is damaged or foreign ({type(error).__name__}): {remedy}.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged or foreign (not a dictionary): {remedy}.")
    return found


def fill(model: nn.Module, weights: Mapping[str, Tensor], path: Path, kind: str, remedy: str = "") -> None:
    """Loads an artifact's weights into a network; UserError, ending in `remedy`, when names or shapes differ."""
    wanted = model.state_dict()
    shapes = ({name: value.shape for name, value in part.items()} for part in (wanted, weights))
    unlike = sorted({name for name, _ in set.symmetric_difference(*(set(part.items()) for part in shapes))})
    if unlike:
        raise UserError(f"{path} does not fit this {kind} ({unlike[0]} differs): {remedy or redo(kind)}.")
    model.load_state_dict(dict(weights))
