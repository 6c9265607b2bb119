"""The evolution loop for real rollouts and for the dream: ask, evaluate, tell, select, save.

It separates two numbers: the fitness of candidates, on tracks that change every generation and may be cut short, and
the score of the distribution mean on fixed selection tracks, which selects the saved controller.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm.config.vmc import DreamConfig, EvolutionConfig
from wm.contracts import Layout
from wm.controller.basis import Basis
from wm.controller.file import load_controller, save_controller
from wm.learning.strategies import EvolutionStrategy, make_es, restored
from wm.run.checksums import check_archive
from wm.run.errors import UserError, check_read, first_line
from wm.run.files import atomic
from wm.run.folder import Run
from wm.run.metrics import Metrics, read_metrics
from wm.run.progress import Progress
from wm.run.provenance import check_made_from
from wm.run.remedies import command

Array = NDArray[np.float64]

Evaluate = Callable[[Array, int], tuple[Array, int]]
"""(candidates f64[P,N], number of the generation, from 1) to (fitness f64[P], number of steps)."""
Select = Callable[[Array], tuple[Array, int]]
"""theta f64[N] to (returns f64[tracks] on the selection tracks, number of environment steps)."""


@dataclass
class Evolution:
    """The state of an evolution, with all that an exact resume needs."""

    es: EvolutionStrategy
    env_steps: int = 0
    select_steps: int = 0
    seconds: float = 0.0
    best_theta: Array | None = None
    best_score: float = -np.inf
    best_generation: int = 0
    made_from: dict[str, str] = field(default_factory=dict)

    _PLAIN = ("env_steps", "select_steps", "seconds", "best_score", "best_generation", "made_from")

    def save(self, path: Path) -> None:
        """Writes the state as plain arrays and a JSON string."""
        arrays = {f"es_{name}": value for name, value in self.es.state().items()}
        if self.best_theta is not None:
            arrays["best_theta"] = self.best_theta
        plain = {
            name: getattr(self, name) for name in self._PLAIN if name != "best_score" or self.best_theta is not None
        }
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, plain=np.array(json.dumps(plain)), **arrays)

    @classmethod
    def load(cls, path: Path) -> Evolution:
        """Reads the file of `save`; UserError when it is damaged or cannot be resumed exactly on this machine."""
        try:
            check_archive(path)
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            plain = json.loads(str(arrays.pop("plain")))
            theta = arrays.pop("best_theta", None)
            es = restored({name.removeprefix("es_"): value for name, value in arrays.items()})
            _check_plain(plain, theta)
            return cls(es, best_theta=theta, **plain)
        except ArithmeticError as error:
            reason = first_line(error)
            raise UserError(
                f"{path} cannot be resumed on this machine ({reason}): resume where it began, or redo the stage with "
                "--restart."
            ) from error
        except Exception as error:  # a damaged file can raise anything in numpy, zipfile or pycma
            check_read(path, error)
            reason = first_line(error)
            raise UserError(f"{path} is damaged ({reason}): redo the stage with --restart.") from error


def _check_plain(plain: Mapping[str, Any], theta: Array | None) -> None:
    """ValueError unless these are an evolution's counts and hashes, and its best weights."""
    if theta is not None and (theta.dtype.kind != "f" or theta.ndim != 1 or not np.isfinite(theta).all()):
        raise ValueError("its best weights are not a vector of finite numbers")
    for name, value in plain.items():
        if not isinstance(value, dict if name == "made_from" else int | float):
            raise ValueError(f"{name} is {value!r}")


def check_sizes(config: EvolutionConfig) -> None:
    """UserError when sizes do not fit together; the bounds of their fields limit each of them separately."""
    if not config.sigma_min <= config.sigma0 <= config.sigma_max:
        raise UserError("--sigma0 is out of range: give a value from --sigma-min to --sigma-max.")
    if config.es == "openes" and config.popsize % 2:
        raise UserError(f"--popsize {config.popsize} is odd, but --es openes mirrors its samples: give an even number.")


def check_dream(config: DreamConfig, least_start: int) -> None:
    """As `check_sizes`, with the sizes of a dream, and the task's least number of steps before a start."""
    check_sizes(config)
    if config.unpaid >= config.horizon or config.start_after < least_start:
        raise UserError(f"--unpaid must be below --horizon, --start-after at least {least_start}.")
    if config.noise == "recorded" and config.temperature != 1:
        raise UserError("--noise recorded needs --temperature 1: leave one of the two options out.")


def coordinates_of(path: Path, basis: Basis) -> Array:
    """A controller's weights in the coordinates of `basis`, as the first mean; UserError when it does not fit V, M, C.

    Of a file of an earlier version only the number of weights is known.
    """
    theta, meta = load_controller(path)
    if theta.shape != (basis.expressed,):
        raise UserError(f"{path} has {len(theta)} weights, but this C has {basis.expressed}: give another controller.")
    here = {"kind": basis.layout.kind, "sizes": dict(basis.layout.sizes())}
    there = {name: meta.get(name) for name in here}
    if "kind" in meta and there != here:
        raise UserError(f"{path} holds another C ({there}) than this one ({here}): give another controller.")
    return basis.coordinates(theta.astype(np.float64))


def is_finished(run: Run, stage: str, artifact: Path, config: EvolutionConfig, made_from: Mapping[str, str]) -> bool:
    """Whether the controller exists and has as many generations, or steps, as `config` asks for.

    Raises:
        UserError: It is damaged or made from other models than the current ones, or it needs more generations but its
            checkpoint is missing.
    """
    if not artifact.exists():
        return False
    _, meta = load_controller(artifact)
    check_made_from(artifact, meta["made_from"], made_from)
    if meta.get("generations", 0) >= config.generations or 0 < config.env_steps <= meta.get("env_steps", 0):
        return True
    if not _checkpoint(run, stage).exists():
        raise UserError(
            f"{_checkpoint(run, stage)} is missing, so {artifact} cannot be resumed: restore it, or redo the stage "
            "with --restart."
        )
    return False


def delete_results(run: Run, stage: str, *artifacts: Path) -> None:
    """Deletes a stage's controllers and checkpoint (--restart)."""
    for path in (*artifacts, _checkpoint(run, stage)):
        path.unlink(missing_ok=True)


def selections(run: Run, stage: str) -> list[dict[str, Any]]:
    """The lines of metrics with a score on the selection tracks; UserError when there are none."""
    found = [row for row in read_metrics(run.metrics, stage) if "select" in row]
    if not found:
        raise UserError(
            f"{run.metrics} lacks the lines of stage {stage}: restore it, or redo the stage with "
            f"{command(stage, 'ARGS=--restart')}."
        )
    return found


def about(layout: Layout, memory: str) -> dict[str, Any]:
    """What a controller's file says of C and of the kind of M that it acts on."""
    return {"kind": layout.kind, "sizes": dict(layout.sizes()), "memory": memory}


def _checkpoint(run: Run, stage: str) -> Path:
    return run.checkpoints / f"{stage}.npz"


def evolve(
    run: Run,
    stage: str,
    artifact: Path,
    config: EvolutionConfig,
    *,
    seed: int,
    start: Array,
    made_from: dict[str, str],
    said: Mapping[str, Any],
    evaluate: Evaluate,
    select: Select,
    express: Callable[[Array], Array] = lambda candidate: candidate,
    extra_metrics: Callable[[Array], Mapping[str, float]] = lambda theta: {},
    latest: Path | None = None,
) -> None:
    """Evolves until `config.generations` or `config.env_steps` are done, resuming from the checkpoint if there is one.

    The checkpoint is saved after each generation. `artifact` holds the distribution mean with the best score on the
    selection tracks so far, so that an interrupted run leaves a controller, too.

    Args:
        run: The run folder.
        stage: Name of the stage, for its checkpoint and its metrics.
        artifact: File of the controller.
        config: Sizes of the evolution.
        seed: The run's seed.
        start: f64[N], the first mean, in the coordinates in which C evolves.
        made_from: Hashes of the models that C is evolved on.
        said: What the controller's file says of C and M; see `about`.
        evaluate: Gives each candidate its fitness.
        select: Plays the selection tracks.
        express: Maps coordinates f64[N] to theta.
        extra_metrics: Gives further numbers of a selected theta, for the metrics.
        latest: File of the last distribution mean, written whatever its score on real tracks is; None: not written.

    Raises:
        UserError: The checkpoint is damaged or was made from other models.
    """
    checkpoint = _checkpoint(run, stage)
    if checkpoint.exists():
        state = Evolution.load(checkpoint)
        check_made_from(artifact, state.made_from, made_from)
    else:
        es = make_es(
            config.es,
            start,
            sigma0=config.sigma0,
            sigma_min=config.sigma_min,
            sigma_max=config.sigma_max,
            popsize=config.popsize,
            seed=seed,
            lr=config.lr,
            ranks=config.ranks,
        )
        state = Evolution(es, made_from=made_from)

    def keep(generations: int) -> None:
        assert state.best_theta is not None
        meta = {
            **said,
            "config": asdict(config),
            "seed": seed,
            "generations": generations,
            "generation": state.best_generation,
            "selection_score": state.best_score,
            "env_steps": state.env_steps,
            "select_steps": state.select_steps,
            "made_from": {**state.made_from, **made_from},  # a resumed call need not give --start again
        }
        if latest:  # before the artifact, whose existence marks the stage as finished
            last = {**meta, "generation": state.es.generation, "selection_score": None}
            save_controller(latest, express(state.es.average(config.average)), last)
        save_controller(artifact, state.best_theta, meta)

    def ended() -> bool:
        return state.es.generation >= config.generations or 0 < config.env_steps <= state.env_steps

    first = state.es.generation
    if state.best_theta is not None:
        keep(first)
    with (
        Metrics(run, stage, resume_at=first) as metrics,
        Progress(stage, config.env_steps, state.env_steps, unit="step")
        if config.env_steps
        else Progress(stage, config.generations, first, unit="gen") as progress,
    ):
        while not ended():
            generation = state.es.generation + 1
            began = time.monotonic()
            fitness, steps = evaluate(np.array([express(c) for c in state.es.ask()]), generation)  # [P,N] to [P]
            state.es.tell(fitness)
            rate = steps / (time.monotonic() - began)
            state.env_steps += steps
            row: dict[str, Any] = {
                "best": fitness.max(),
                "mean": fitness.mean(),
                "worst": fitness.min(),
                "sigma": state.es.sigma,
                "env_steps": state.env_steps,
            }
            if ended() or generation % config.select_every == 0:
                theta = express(state.es.average(config.average))  # [N]
                returns, select_steps = select(theta)  # [tracks]
                state.select_steps += select_steps
                row |= {
                    "select": returns.mean(),
                    "select_std": returns.std(),
                    "select_steps": state.select_steps,
                    **extra_metrics(theta),
                }
                if returns.mean() > state.best_score:
                    state.best_theta, state.best_score = theta, float(returns.mean())
                    state.best_generation = generation
            state.seconds += time.monotonic() - began
            row |= {"seconds": state.seconds, "steps_per_second": rate}
            # In this order a kill between two writes loses nothing: metrics ahead of the checkpoint are cut back, and
            # the controller is written again.
            metrics.log(generation, row)
            state.save(checkpoint)
            if "select" in row:
                keep(generation)
            progress.update(
                steps if config.env_steps else 1,
                mean=float(row["mean"]),
                best=float(row["best"]),
                selected=state.best_score,
            )
