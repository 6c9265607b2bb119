"""Checkpoints of a training: whether a stage is finished, and an exact resume."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from wm.config.bounds import changed_fields
from wm.config.names import RUN_FORMAT
from wm.run.artifact import fill, load_artifact, read_tensors, write_tensors
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.provenance import check_made_from
from wm.run.remedies import command
from wm.run.signals import held

Weights = dict[str, Tensor]


class TrainConfig(Protocol):
    """The fields of a stage's config dataclass that the loop reads. All fields are stored and compared on resume."""

    @property
    def updates(self) -> int:
        """Total number of updates."""

    @property
    def validate_every(self) -> int:
        """Updates between validations."""


@dataclass
class Best:
    """The best weights so far.

    Attributes:
        weights: state_dict on the CPU.
        update: The update after which they were validated.
        metrics: The numbers of `validate` for them; the lowest "loss" is the best.
        done: Total number of updates when the training ended.
        made_from: Hashes of the inputs by name, including initial weights.
    """

    weights: Weights = field(default_factory=dict)
    update: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    done: int = 0
    made_from: dict[str, str] = field(default_factory=dict)


@dataclass
class TrainState:
    """The state in a checkpoint beside model and optimiser.

    Attributes:
        update: Number of updates done.
        best: The best weights so far.
        sums: Sums for the next line of metrics.
        summed: Number of updates in the sums.
        first: The loss of the first update, of an untrained network.
        retreat: The update at which the training diverged and returned to its best weights; 0: none.
    """

    update: int = 0
    best: Best = field(default_factory=Best)
    sums: dict[str, float] = field(default_factory=dict)
    summed: int = 0
    first: float | None = None
    retreat: int = 0


def check_updates(updates: int, start: Path | None) -> None:
    """UserError when a training has no updates and no initial weights."""
    if not updates and not start:
        raise UserError("--updates 0 leaves random weights: give --start with trained weights, or more updates.")


def load_initial_weights(model: nn.Module, path: Path, stage: str) -> None:
    """Loads the weights of another artifact of the stage; UserError when they are damaged or do not fit."""
    remedy = "give the sizes of --start, or leave --start out"
    fill(model, load_artifact(path, stage)["model"], path, stage, remedy)


def is_finished(run: Run, stage: str, path: Path, config: TrainConfig, made_from: Mapping[str, str]) -> bool:
    """Whether the artifact at `path` exists and has as many updates as `config` asks for.

    Raises:
        UserError: The artifact is damaged or made from other inputs than the current ones, or it needs more updates
            but its checkpoint is missing.
    """
    if not path.exists():
        return False
    artifact = load_artifact(path, stage)
    check_made_from(path, artifact["made_from"], made_from)
    updates = artifact["config"].get("updates", 0)
    if not isinstance(updates, int):
        raise UserError(f"{path} does not record its updates: redo it with {command(stage, 'ARGS=--restart')}.")
    if updates < config.updates and not checkpoint_path(run, stage).exists():
        raise UserError(
            f"{path} cannot be resumed from update {updates}, since {checkpoint_path(run, stage)} is missing: "
            f"restore it, or redo the stage with {command(stage, 'ARGS=--restart')}."
        )
    return bool(updates >= config.updates)


def delete_results(run: Run, stage: str, path: Path) -> None:
    """Deletes a stage's artifact and checkpoint (--restart)."""
    path.unlink(missing_ok=True)
    checkpoint_path(run, stage).unlink(missing_ok=True)


def checkpoint_path(run: Run, stage: str) -> Path:
    """Where a stage's checkpoint is."""
    return run.checkpoints / f"{stage}.pt"


@held()
def save_checkpoint(
    path: Path,
    stage: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: TrainState,
    config: Any,
    made_from: Mapping[str, str],
) -> None:
    """Writes all that an exact resume needs; a signal waits until it is done."""
    checkpoint = {
        "format": RUN_FORMAT,
        "kind": f"{stage} checkpoint",
        "config": asdict(config),
        "made_from": dict(made_from),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "state": asdict(state),
    }
    write_tensors(path, checkpoint)


def resume(
    path: Path,
    stage: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: Any,
    made_from: Mapping[str, str],
) -> tuple[TrainState, dict[str, str]]:
    """Loads a checkpoint into model and optimiser; returns its state and the hashes of all its inputs."""
    remedy = f"redo the stage with {command(stage, 'ARGS=--restart')}"
    checkpoint = read_tensors(path, remedy)
    if checkpoint.get("kind") != f"{stage} checkpoint" or checkpoint.get("format") != RUN_FORMAT:
        raise UserError(f"{path} is not a {stage} checkpoint of format {RUN_FORMAT}: {remedy}.")
    try:
        changes = list(changed_fields(checkpoint["config"], config))
        if changes:
            raise UserError(
                f"{path} was made with other options ({'; '.join(changes)}): give the old options, or {remedy}."
            )
        check_made_from(path, checkpoint["made_from"], made_from)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        found = checkpoint["state"]
        state = TrainState(**{**found, "best": Best(**found["best"])})
        _check_state(state, model)
        return state, {**checkpoint["made_from"], **made_from}
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} does not fit this network ({type(error).__name__}): {remedy}.") from error


def _check_state(state: TrainState, model: nn.Module) -> None:
    """TypeError or ValueError when the parts of a checkpoint have wrong types, shapes or values."""
    counts = (state.update, state.summed, state.retreat, state.best.update, state.best.done)
    numbers = (*state.sums.values(), *state.best.metrics.values(), *([] if state.first is None else [state.first]))
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        raise TypeError("a count is not an integer >= 0")
    if not all(isinstance(number, float) and math.isfinite(number) for number in numbers):
        raise TypeError("a number is not finite")
    if state.best.weights:
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        if {name: value.shape for name, value in state.best.weights.items()} != shapes:
            raise ValueError("the best weights have other shapes")
    if not all(value.isfinite().all() for value in (*model.state_dict().values(), *state.best.weights.values())):
        raise ValueError("a weight is not finite")
