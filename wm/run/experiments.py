"""What stages that compare write, row by row: rounds, ablations, curves of variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.json_files import read_json, read_lines
from wm.run.schema import NUMBER, Schema, fits

ROUND: Schema = {
    **dict.fromkeys(("round", "episodes", "new", "real_steps"), int),
    **dict.fromkeys(("error", "nats", "dream", "select", "select_std", "gap", "minutes"), NUMBER),
}
"""Schema of the fields of a line of rounds.jsonl that are read again. Stage iterate writes it."""

ABLATION: Schema = {
    "says": str,
    **dict.fromkeys(("weights", "lost", "episodes"), int),
    **dict.fromkeys(("env_steps", "mean", "std", "median"), NUMBER),
    "ci95": (*NUMBER, type(None)),
}
"""Schema of the fields of a row of ablations.json that are read again. Stage ablate writes it."""

CURVE: Schema = {
    **dict.fromkeys(("name", "options"), str),
    **dict.fromkeys(("seed", "steps"), int),
    "curve": [{"env_steps": NUMBER, "select": NUMBER, "dream?": NUMBER}],
    "config?": {"temperature?": NUMBER},
}
"""Schema of the fields of a line of curves.jsonl that are read again. Stage curves writes it."""


def stage_of(row: Mapping[str, Any]) -> str:
    """The stage of a line of curves.jsonl; older lines have none and belong to stage controller."""
    stage: str = row.get("stage", "controller")
    return stage


def curves_name(stage: str) -> str:
    """Name of the picture of the variants of a stage, in plots/."""
    return "curves.png" if stage == "controller" else f"curves-{stage}.png"


def read_variants(run: Run, stage: str) -> dict[str, list[dict[str, Any]]]:
    """The lines of curves.jsonl of a stage by variant, one for each of its seeds."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in read_lines(run.curves, **CURVE):
        if stage_of(row) == stage and row["curve"]:
            found[row["name"], row["seed"]] = row  # a later line, of a larger budget, replaces an earlier one
    variants: dict[str, list[dict[str, Any]]] = {}
    for (name, _), row in sorted(found.items()):
        variants.setdefault(name, []).append(row)
    return variants


def read_ablations(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of ablations.json by name, {} if it is missing; UserError when it is damaged."""
    rows: dict[str, dict[str, Any]] = read_json(path, rows=dict)["rows"] if path.exists() else {}
    for name, row in rows.items():
        for needed, kind in ABLATION.items():
            if not fits(row, {needed: kind}):
                raise UserError(f"{path} has a row {name!r} without a valid {needed!r}: remove the row.")
    return rows


def over_seeds(values: Sequence[float]) -> str:
    """The mean over seeds, and the lowest and highest value if there are several."""
    return f"{np.mean(values):.0f}" + (f" ({min(values):.0f} to {max(values):.0f})" if len(values) > 1 else "")
