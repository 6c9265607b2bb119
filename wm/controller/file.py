"""A controller on disk (controller.npz, dream.npz): flat weights, and what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm.config.names import RUN_FORMAT
from wm.run.checksums import check_archive
from wm.run.errors import UserError, check_read, first_line
from wm.run.files import atomic
from wm.run.pair import stage_of
from wm.run.remedies import made_by, rebuilt

META = {"config": dict, "generations": int, "env_steps": int, "kind": str, "sizes": dict, "memory": str}
"""Types of the fields of a controller's meta that are read again, where they exist."""


def save_controller(path: Path, theta: NDArray[np.floating], meta: dict[str, Any]) -> None:
    """Writes a controller atomically: theta as f32[N], and `meta` (plain JSON values; made_from, config, ...)."""
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, theta=theta.astype(np.float32), meta=np.array(json.dumps({"format": RUN_FORMAT, **meta})))


def load_controller(path: Path) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Reads a controller of `save_controller`: theta f32[N] and meta; UserError when it is missing or damaged."""
    stage, redo = stage_of(path.stem), rebuilt(path.stem)
    if not path.exists():
        raise UserError(f"{path} is missing: {made_by(stage) if stage else 'give another file'}.")
    try:
        check_archive(path)
        with np.load(path, allow_pickle=False) as arrays:
            theta, meta = arrays["theta"], json.loads(str(arrays["meta"]))
    except Exception as error:  # a damaged file can raise anything in numpy, zipfile or json
        check_read(path, error)
        raise UserError(f"{path} is damaged or not a controller ({first_line(error)}): {redo}.") from error
    if not isinstance(meta, dict) or meta.get("format") != RUN_FORMAT:
        raise UserError(f"{path} is not of format {RUN_FORMAT}, which this version reads: {redo}.")
    if not isinstance(meta.get("made_from"), dict):
        raise UserError(f"{path} does not record what it was made from: {redo}.")
    if not all(isinstance(meta.get(name, kind()), kind) for name, kind in META.items()):
        raise UserError(f"{path} does not record how it was made: {redo}.")
    if theta.dtype != np.float32 or theta.ndim != 1 or not np.isfinite(theta).all():
        raise UserError(f"{path} holds weights that are not finite float32 numbers: {redo}.")
    return theta, meta
