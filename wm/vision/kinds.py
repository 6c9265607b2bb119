"""The kinds of V. A new one is a file beside this one and an entry here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wm.contracts import VisionKind
from wm.run.artifact import load_artifact
from wm.run.errors import UserError
from wm.vision.training import ConvKind

KINDS: dict[str, VisionKind] = {"conv": ConvKind()}
"""By name; `make` lists them from here."""


def find_kind(name: str) -> VisionKind:
    """The kind of V with this name; UserError when there is none."""
    if name not in KINDS:
        raise UserError(f"there is no V {name!r}: choose one of {', '.join(KINDS)}.")
    return KINDS[name]


def load_vision(path: Path) -> tuple[Any, VisionKind, dict[str, Any]]:
    """Reads vae.pt: V on the CPU in eval mode, its kind, and the file's other fields.

    Raises:
        UserError: The file is missing, damaged, or of a kind that this version does not have.
    """
    kind = find_kind(load_artifact(path, "vae")["config"].get("vision", ConvKind.name))  # older files do not say it
    model, meta = kind.load(path)
    return model, kind, meta
