"""Metrics of the stages: RUN/metrics.jsonl and TensorBoard's event files."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from wm.run.errors import UserError, writing
from wm.run.files import atomic
from wm.run.folder import Run
from wm.run.json_files import append_line, json_line, read_lines
from wm.run.pair import Pair
from wm.run.schema import NUMBER, fits

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


EVOLVED = ("env_steps", "seconds", "mean")
SELECTED = ("select_std", "select_steps")
REQUIRED_WITH: dict[str, dict[str, tuple[str, ...]]] = {
    "vae": {"val_loss": ("val_error", "val_kl", "val_dead")},
    "mdnrnn": {"val_loss": ("val_nll", "val_nll_one", "val_nll_marginal", "val_nll_unit")},
    "controller": {"step": (*EVOLVED, "best", "worst"), "select": SELECTED},
    "dream": {"step": EVOLVED, "select": (*SELECTED, "dream")},
}
"""By stage: fields that a line of its metrics must have if it has the named one, since they are read together."""


class Metrics:
    """Logs one stage's metrics: lines of metrics.jsonl, and TensorBoard event files.

    Each line is {"stage", "step", "time", name: value, ...}; `step` is the stage's own count (updates, generations).
    `resume_at` drops all lines after that step, so that a resumed run logs the same as an uninterrupted one.
    """

    def __init__(self, run: Run, stage: str, resume_at: int = 0) -> None:
        self._stage, self._path = stage, run.metrics
        self._folder, self._resume_at = run.folder / "tensorboard" / stage, resume_at
        self._board: SummaryWriter | None = None
        if self._path.exists():
            lines = read_lines(self._path, stage=str, step=int)
            lines_left = [line for line in lines if line["stage"] != stage or line["step"] <= resume_at]
            with atomic(self._path) as temporary:
                temporary.write_text("".join(map(json_line, lines_left)), encoding="utf-8")
        if resume_at <= 0:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            with writing(self._folder):
                self._board.close()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line with `values` (plain numbers) at `step`."""
        plain = {name: float(value) for name, value in values.items()}
        append_line(self._path, {"stage": self._stage, "step": step, "time": round(time.time(), 3), **plain})
        with writing(self._folder):
            if self._board is None:
                # Imported only here: it imports torch, which takes seconds.
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(self._folder), purge_step=self._resume_at + 1, flush_secs=10)
            for name, value in plain.items():
                self._board.add_scalar(f"{self._stage}/{name}", value, step)


def read_metrics(path: Path, stage: str) -> list[dict[str, Any]]:
    """Reads one stage's lines of metrics.jsonl in order; [] when the file is missing, UserError when it is damaged."""
    found = [line for line in read_lines(path, stage=str, step=int) if line["stage"] == stage]
    for line in found:
        wanted = line.keys() - {"stage"}
        for name, others in REQUIRED_WITH.get("dream" if Pair.of(stage) else stage, {}).items():
            wanted |= set(others) if name in line else set()
        for name in sorted(wanted):
            if not fits(line.get(name), NUMBER):
                raise UserError(
                    f"{path} has a line of stage {stage}, step {line['step']}, in which {name!r} is not a number: "
                    "restore the line or remove it."
                )
    return found


def best_validation(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The line with the lowest validation loss, that of the saved weights; None without validations."""
    validated = [row for row in rows if "val_loss" in row]
    return min(validated, key=lambda row: row["val_loss"]) if validated else None
