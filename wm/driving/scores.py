"""score.json: what it holds, and its reader."""

from __future__ import annotations

from pathlib import Path
from types import NoneType
from typing import Any

from wm.run.errors import UserError
from wm.run.json_files import read_json
from wm.run.schema import NUMBER, Schema

SCORE: Schema = {
    **dict.fromkeys(("mean", "std"), float),
    "ci95": (float, NoneType),
    "returns": [NUMBER],
    "lengths": [int],
    "seeds": [int],
    **dict.fromkeys(("env_id", "commit", "time"), str),
    "max_steps": int,
    "made_from": {...: str},
    "versions": {"gymnasium": str},
}
"""Schema of the fields of a score that are read again. Stage evaluate writes it."""


def read_score(path: Path) -> dict[str, Any]:
    """Reads a score; UserError when it is damaged or not a score."""
    score: dict[str, Any] = read_json(path, **SCORE)
    columns = [score[name] for name in ("returns", "lengths", "seeds")]
    if len({len(column) for column in columns}) > 1 or not columns[0]:
        raise UserError(f"{path} holds no score (check its returns, lengths and seeds): remove it or restore it.")
    return score
