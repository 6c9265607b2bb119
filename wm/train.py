"""The gradient loop of V and M: Adam, validation, the best weights, exact resume.

When a training diverges for the first time, it returns to its best weights and continues with a lower learning rate.
The second time it ends with a diagnosis.

A checkpoint holds the weights, the optimiser, the update count, the best weights and the running sums of the log. There
is no other state: the noise of update n is seeded by (stage, seed, n), and batch n is a function of the data, the seed
and n. So a run that was killed anywhere resumes to the same numbers, bit for bit on one CPU with the same number of
threads (which determines the order of additions).
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from wm.artifact import fill, load_artifact, read_tensors, write_tensors
from wm.config import RUN_FORMAT, changed_fields
from wm.run import Metrics, Progress, Run, UserError, check_made_from
from wm.signals import Interrupted, held

Batch = TypeVar("Batch")
Model = TypeVar("Model", bound=nn.Module)
Weights = dict[str, Tensor]

LOG_EVERY = 50
"""Updates between lines of metrics. A line holds the means over the updates since the previous line."""

LOWERED = 1 / 3
"""Factor on the learning rate after a training has diverged and returned to its best weights."""

GROWN = 2.0
"""A training has also diverged when the mean loss since the previous line is this many times the loss of the first
update, and at least 1 above it (a loss may be around 0): it is then far worse than an untrained network."""

SAVE_SECONDS = 60.0
"""Seconds between checkpoints, the most that a kill can lose."""


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
class _State:
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


class _Diverged(Exception):
    """The training has diverged: a number is not finite, or the loss has grown too much."""

    def __init__(self, what: str, value: float) -> None:
        super().__init__(f"the {what} is {value:.4g}")


# --- device, precision, randomness ------------------------------------------------------------------------


def pick_device() -> torch.device:
    """The GPU if there is one, else the CPU. It also makes a GPU's convolutions deterministic and float32."""
    torch.backends.cudnn.deterministic = True  # a resumed training must give the same weights
    torch.backends.cudnn.allow_tf32 = False  # latents must equal those of the agent; V trains in bfloat16 anyway
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 on the device: on GPUs, and on CPUs with AVX512-BF16 or AMX.

    The capabilities decide, and not a timing, since results must not depend on one.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    abilities = torch.cpu.get_capabilities()
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Context manager in which matrix products and convolutions run in bfloat16 where it is faster."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device))


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a function of `parts` only; different parts give unrelated seeds."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seeded(make: Callable[[], Model], seed: int) -> Model:
    """Builds a network with initial weights from `seed`; torch's global random state is unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def check_updates(updates: int, start: Path | None) -> None:
    """UserError when a training has no updates and no initial weights."""
    if not updates and not start:
        raise UserError("--updates 0 leaves random weights: give --start with trained weights, or more updates.")


def begin_with(model: nn.Module, path: Path, stage: str) -> None:
    """Loads the weights of another artifact of the stage; UserError when they are damaged or do not fit."""
    way_out = "give the sizes of --start, or leave --start out"
    fill(model, load_artifact(path, stage)["model"], path, stage, way_out)


# --- finished or not --------------------------------------------------------------------------------------


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
        raise UserError(f"{path} does not record its updates: redo it with `make {stage} ARGS=--restart`.")
    if updates < config.updates and not _checkpoint(run, stage).exists():
        raise UserError(
            f"{path} cannot be resumed from update {updates}, since {_checkpoint(run, stage)} is missing: "
            f"restore it, or redo the stage with `make {stage} ARGS=--restart`."
        )
    return bool(updates >= config.updates)


def forget(run: Run, stage: str, path: Path) -> None:
    """Deletes a stage's artifact and checkpoint (--restart)."""
    path.unlink(missing_ok=True)
    _checkpoint(run, stage).unlink(missing_ok=True)


# --- the loop ---------------------------------------------------------------------------------------------


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
    path = _checkpoint(run, stage)
    state = _State()
    if path.exists():
        given = made_from
        state, made_from = _resume(path, stage, model, optimizer, config, made_from)
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
                        raise _given_up(stage, trouble, update, rate, state) from trouble
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
                    _save(path, stage, model, optimizer, state, config, made_from)
                    saved, saved_at = state.update, time.monotonic()
                whole = True
                progress.update(loss=number)
        except (KeyboardInterrupt, Interrupted):
            if whole and state.update > saved:
                _save(path, stage, model, optimizer, state, config, made_from)
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


def _validate(model: nn.Module, validate: Callable[[Any], Mapping[str, float]], state: _State) -> dict[str, float]:
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


def _given_up(stage: str, trouble: _Diverged, update: int, rate: float, state: _State) -> UserError:
    before = f", and before at update {state.retreat}" if state.retreat else ""
    return UserError(
        f"stage {stage} has diverged ({trouble} at update {update}, learning rate {rate:.3g}{before}): "
        f'redo it with a lower rate, `make {stage} ARGS="--restart --lr {rate / 3:.1g}"`.'
    )


# --- checkpoints ------------------------------------------------------------------------------------------


def _checkpoint(run: Run, stage: str) -> Path:
    return run.checkpoints / f"{stage}.pt"


@held()
def _save(
    path: Path,
    stage: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: _State,
    config: Any,
    made_from: Mapping[str, str],
) -> None:
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


def _resume(
    path: Path,
    stage: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: Any,
    made_from: Mapping[str, str],
) -> tuple[_State, dict[str, str]]:
    """Loads a checkpoint into model and optimiser; returns its state and the hashes of all its inputs."""
    way_out = f"redo the stage with `make {stage} ARGS=--restart`"
    checkpoint = read_tensors(path, way_out)
    if checkpoint.get("kind") != f"{stage} checkpoint" or checkpoint.get("format") != RUN_FORMAT:
        raise UserError(f"{path} is not a {stage} checkpoint of format {RUN_FORMAT}: {way_out}.")
    try:
        changes = list(changed_fields(checkpoint["config"], config))
        if changes:
            raise UserError(
                f"{path} was made with other options ({'; '.join(changes)}): give the old options, or {way_out}."
            )
        check_made_from(path, checkpoint["made_from"], made_from)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        found = checkpoint["state"]
        state = _State(**{**found, "best": Best(**found["best"])})
        _check_state(state, model)
        return state, {**checkpoint["made_from"], **made_from}
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} does not fit this network ({type(error).__name__}): {way_out}.") from error


def _check_state(state: _State, model: nn.Module) -> None:
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
