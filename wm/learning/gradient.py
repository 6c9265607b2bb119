"""The gradient loop of V and M: Adam, validation, the best weights, exact resume.

When a training diverges for the first time, it returns to its best weights and continues with a lower learning rate.
The second time it ends with a diagnosis.

A checkpoint holds the weights, the optimiser, the update count, the best weights and the running sums of the log. There
is no other state: the noise of update n is seeded by (stage, seed, n), and batch n is a function of the data, the seed
and n. So a run that was killed anywhere resumes to the same numbers, bit for bit on one CPU with the same number of
threads (which determines the order of additions).
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from wm.learning.checkpoint import Best, TrainConfig, TrainState, Weights, checkpoint_path, resume, save_checkpoint
from wm.run.device import derived_seed
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.metrics import Metrics
from wm.run.progress import Progress
from wm.run.remedies import command
from wm.run.signals import Interrupted, held

Batch = TypeVar("Batch")

LOG_EVERY = 50
"""Updates between lines of metrics. A line holds the means over the updates since the previous line."""

LOWERED = 1 / 3
"""Factor on the learning rate after a training has diverged and returned to its best weights."""

GROWN = 2.0
"""A training has also diverged when the mean loss since the previous line is this many times the loss of the first
update, and at least 1 above it (a loss may be around 0): it is then far worse than an untrained network."""

SAVE_SECONDS = 60.0
"""Seconds between checkpoints, the most that a kill can lose."""


class _Diverged(Exception):
    """The training has diverged: a number is not finite, or the loss has grown too much."""

    def __init__(self, what: str, value: float) -> None:
        super().__init__(f"the {what} is {value:.4g}")


def train(
    run: Run,
    stage: str,
    model: nn.Module,
    *,
    config: TrainConfig,
    seed: int,
    made_from: Mapping[str, str],
    batches: Callable[[int], Iterator[Batch]],
    loss: Callable[[Any, Batch, torch.Generator], tuple[Tensor, Mapping[str, float | Tensor]]],
    validate: Callable[[Any], Mapping[str, float]],
    lr: Callable[[int], float],
    device: torch.device,
    clip: float | None = None,
    unit: str = "updates",
    per_update: int = 1,
) -> Best:
    """Trains until `config.updates` are done, resuming from RUN/checkpoints/<stage>.pt if it exists.

    Args:
        run: The run folder, locked.
        stage: Name of the stage, for the checkpoint, the metrics and the progress line.
        model: The network with its initial weights; it is moved to `device` and trained in place.
        config: The stage's config dataclass.
        seed: The run's seed.
        made_from: Hashes of the inputs by name. A checkpoint with other hashes is refused; its further entries, such
            as initial weights that were deleted since, are carried over.
        batches: batches(n) yields batch n, n + 1, ... without end, as a function of n only.
        loss: loss(model, batch, generator) gives the scalar loss, and numbers to log. All its randomness must come from
            the generator, which is on `device`.
        validate: validate(model), called in eval mode without gradients, gives numbers to log as val_<name>; the
            lowest "loss" is the best.
        lr: Learning rate of an update, counted from 0.
        device: Device of the training.
        clip: Maximum norm of the gradient; None: no limit.
        unit: Unit of the speed metric <unit>_per_second.
        per_update: Number of units per update.

    Returns:
        The best weights on validation; without updates the initial weights, with the numbers of `validate`.

    Raises:
        UserError: The training has diverged a second time (nothing of that is saved), or the checkpoint is damaged, or
            it was made with other options or from other inputs.
    """
    model.to(device).train()
    initial = _copy(model)
    optimizer = _optimizer(model, lr(0))
    path = checkpoint_path(run, stage)
    state = TrainState()
    if path.exists():
        given = made_from
        state, made_from = resume(path, stage, model, optimizer, config, made_from)
        if made_from != given:
            initial = {}  # the initial weights of this training are unknown to this call
    if not config.updates and not state.update:
        with Metrics(run, stage, resume_at=-1) as metrics:  # drops a line at 0 of a call that was killed
            metrics.log(0, _validate(model, validate, state))
        return replace(state.best, made_from=dict(made_from))
    if state.update > config.updates or (state.update == config.updates and not state.best.weights):
        raise UserError(f"{path} has {state.update} updates already: give a larger --updates.")
    saved, saved_at = state.update, time.monotonic()
    generator = torch.Generator(device)
    source = batches(state.update)
    timed, timed_at = 0, time.monotonic()
    whole = True  # False while model, optimiser and state belong to different updates

    with (
        Metrics(run, stage, resume_at=state.update) as metrics,
        Progress(stage, total=config.updates, initial=state.update, unit="updates") as progress,
    ):
        try:
            while state.update < config.updates:
                rate = lr(state.update) * (LOWERED if state.retreat else 1)
                batch = next(source)
                try:
                    generator.manual_seed(derived_seed(stage, seed, state.update))
                    optimizer.zero_grad(set_to_none=True)
                    value, numbers = loss(model, batch, generator)
                    value.backward()
                    number = value.item()
                    _check_finite("loss", number)
                    norm = nn.utils.clip_grad_norm_(model.parameters(), math.inf if clip is None else clip)
                    _check_finite("norm of the gradient", norm.item())
                    if state.first is None and state.update == 0:
                        state.first = number

                    last = state.update + 1 == config.updates
                    validating = last or (state.update + 1) % config.validate_every == 0
                    whole = False
                    with nullcontext() if validating else held():  # a validation is too long for a signal to wait
                        optimizer.param_groups[0]["lr"] = rate
                        optimizer.step()
                        state.update += 1
                        for name, extra in {"loss": number, **numbers}.items():
                            state.sums[name] = state.sums.get(name, 0.0) + float(extra)
                        state.summed += 1
                        timed += 1
                        if validating or state.update % LOG_EVERY == 0:
                            line = {name: total / state.summed for name, total in state.sums.items()}
                            _check_growth(line["loss"], state.first)
                            line["lr"] = rate
                            line[f"{unit}_per_second"] = timed * per_update / (time.monotonic() - timed_at)
                            state.sums, state.summed = {}, 0
                            if validating:
                                line |= _validate(model, validate, state)
                            metrics.log(state.update, line)
                            timed, timed_at = 0, time.monotonic()
                        whole = not validating
                except _Diverged as trouble:
                    update = state.update + whole  # the update that diverged, which may not be counted yet
                    back = state.best.weights or initial
                    if state.retreat or update == config.updates or not back:
                        raise _divergence_error(stage, trouble, update, rate, state) from trouble
                    whole = False
                    # It depends only on the checkpoint's state. Batch and noise of this update are not used again.
                    model.load_state_dict(back)
                    model.train()
                    optimizer = _optimizer(model, rate)
                    state = replace(state, update=update, sums={}, summed=0, retreat=update)
                    print(
                        f"warning: stage {stage} has diverged ({trouble} at update {update}): it continues from the "
                        f"weights of update {state.best.update} with the learning rate times {LOWERED:.2g}.",
                        file=sys.stderr,
                    )
                    whole = True
                    progress.update()
                    continue
                if last or time.monotonic() - saved_at > SAVE_SECONDS:
                    save_checkpoint(path, stage, model, optimizer, state, config, made_from)
                    saved, saved_at = state.update, time.monotonic()
                whole = True
                progress.update(loss=number)
        except (KeyboardInterrupt, Interrupted):
            if whole and state.update > saved:
                save_checkpoint(path, stage, model, optimizer, state, config, made_from)
            raise
    return replace(state.best, done=state.update, made_from=dict(made_from))


def _copy(model: nn.Module) -> Weights:
    """The state_dict on the CPU: cloned, since the optimiser changes weights in place; contiguous, as saved."""
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }


def _optimizer(model: nn.Module, rate: float) -> torch.optim.Adam:
    device = next(model.parameters()).device
    return torch.optim.Adam(model.parameters(), lr=rate, fused=device.type in ("cpu", "cuda"))


def _validate(model: nn.Module, validate: Callable[[Any], Mapping[str, float]], state: TrainState) -> dict[str, float]:
    """Validates, stores the weights if they are the best so far, and returns the numbers as val_<name>."""
    model.eval()
    with torch.no_grad():
        found = {name: float(value) for name, value in validate(model).items()}
    model.train()
    _check_finite("validation loss", found["loss"])
    if not state.best.metrics or found["loss"] < state.best.metrics["loss"]:
        state.best = Best(_copy(model), state.update, found)
    return {f"val_{name}": value for name, value in found.items()}


def _check_finite(what: str, value: float) -> None:
    if not math.isfinite(value):
        raise _Diverged(what, value)


def _check_growth(loss: float, first: float | None) -> None:
    """Raises _Diverged when the mean loss is far above that of the first update (None: unknown, older checkpoint)."""
    if first is not None and loss > first + max(1.0, (GROWN - 1) * abs(first)):
        raise _Diverged(f"mean loss, {first:.4g} at the first update,", loss)


def _divergence_error(stage: str, trouble: _Diverged, update: int, rate: float, state: TrainState) -> UserError:
    before = f", and before at update {state.retreat}" if state.retreat else ""
    arguments = f'ARGS="--restart --lr {rate / 3:.1g}"'
    return UserError(
        f"stage {stage} has diverged ({trouble} at update {update}, learning rate {rate:.3g}{before}): "
        f"redo it with a lower rate, {command(stage, arguments)}."
    )
