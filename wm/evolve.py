"""The evolution loop: ask, evaluate, tell, select, save. The same for real rollouts and for the dream.

What it keeps apart: the fitness of candidates (on tracks that change every generation, and may be cut short)
and the score of the distribution mean on fixed selection tracks, by which the kept controller is chosen.
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

from wm.config import EvolutionConfig
from wm.controller.evolution import EvolutionStrategy, make_es, restored
from wm.controller.linear import load_controller, save_controller
from wm.run import Metrics, Progress, Run, UserError, atomic, check_archive, check_made_from, in_short

Array = NDArray[np.float64]

LEAST_POPSIZE = 4
"""Two-point adaptation takes two candidates of each generation, and the evolution has to have a choice beside."""

COUNTS = (
    *("generations", "tracks", "dreams", "horizon", "starts"),
    *("max_steps", "select_every", "select_tracks", "average"),
)
"""Sizes of an evolution that must be at least 1, where its config has them."""

SHARES = ("whiten", "disturb")
"""Numbers of an evolution that must be 0 to 1, where its config has them."""

Evaluate = Callable[[Array, int], tuple[Array, int]]
"""(candidates f64[P, N], number of their generation from 1 on) to (fitness f64[P], steps that it took)."""
Select = Callable[[Array], tuple[Array, int]]
"""theta f64[N] to (returns f64[tracks] on the selection tracks, environment steps it took)."""


@dataclass
class Evolution:
    """An evolution under way: all that an exact resume needs."""

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
        """Writes everything as plain arrays and a JSON string."""
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
        """Reads what `save` wrote; UserError when it is damaged or this machine cannot go on with it."""
        try:
            check_archive(path)
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            plain = json.loads(str(arrays.pop("plain")))
            theta = arrays.pop("best_theta", None)
            es = restored({name.removeprefix("es_"): value for name, value in arrays.items()})
            return cls(es, best_theta=theta, **plain)
        except ArithmeticError as error:
            reason = in_short(error)
            raise UserError(f"{path} cannot go on here ({reason}): go on where it began, or --restart.") from error
        except Exception as error:  # whatever a damaged file leads numpy, zipfile or pycma to
            reason = in_short(error)
            raise UserError(f"{path} is damaged ({reason}): remove it and begin anew with --restart.") from error


def check_sizes(config: EvolutionConfig) -> None:
    """UserError when a size makes no evolution."""
    if (
        config.popsize < LEAST_POPSIZE
        or not 0 <= config.sigma_min <= config.sigma0 <= config.sigma_max
        or not config.sigma0
    ):
        raise UserError(
            f"--popsize must be at least {LEAST_POPSIZE}, --sigma0 above 0 and from --sigma-min to --sigma-max."
        )
    if config.es == "openes" and (config.popsize % 2 or config.lr <= 0):
        raise UserError("--es openes takes an even --popsize, since it mirrors its samples, and an --lr above 0.")
    for name in SHARES:
        if not 0 <= getattr(config, name, 0) <= 1:
            raise UserError(f"--{name} must be 0 to 1.")
    if config.env_steps < 0:
        raise UserError("--env-steps must be at least 0.")
    if config.components < 0:
        raise UserError("--components must be at least 0.")
    for name in COUNTS:
        if getattr(config, name, 1) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1.")


def evolve(
    run: Run,
    stage: str,
    artifact: Path,
    config: EvolutionConfig,
    *,
    seed: int,
    restart: bool,
    begin: Callable[[], None],
    start: Array,
    made_from: dict[str, str],
    evaluate: Evaluate,
    select: Select,
    express: Callable[[Array], Array] = lambda candidate: candidate,
    beside: Callable[[Array], Mapping[str, float]] = lambda theta: {},
    latest: Path | None = None,
) -> bool:
    """Evolves until `config.generations` or `config.env_steps` are done, going on from the checkpoint if there is one.

    After each generation the checkpoint is saved; `artifact` holds the distribution mean that was best on the
    selection tracks so far, so an interrupted run leaves a controller, too.

    Args:
        run: The run folder.
        stage: Name of the stage: of its checkpoint and in the metrics.
        artifact: Where the controller goes.
        config: Sizes of the evolution.
        seed: The run's seed.
        restart: Throw earlier work of this stage away.
        begin: Called once there is something to do, as `Run.stage` wants it.
        start: f64[N], the first mean of what evolves.
        made_from: Hashes of the models that C is evolved on.
        evaluate: Gives each candidate its fitness.
        select: Plays the selection tracks.
        express: Takes what evolves, f64[N], to the theta that it stands for.
        beside: Gives more numbers of a theta that was selected on, for the metrics.
        latest: Where the distribution mean of the last generation goes as well, whatever real tracks say of it.

    Returns:
        False when it had been finished before and nothing was done.

    Raises:
        UserError: A size makes no evolution; or the earlier work was made from other models, is damaged or lacks
            its checkpoint.
    """
    check_sizes(config)
    checkpoint = run.checkpoints / f"{stage}.npz"
    if restart:
        for path in (artifact, checkpoint, *([latest] if latest else [])):
            path.unlink(missing_ok=True)
    if artifact.exists():
        _, meta = load_controller(artifact)
        check_made_from(artifact, meta["made_from"], made_from)
        if meta["generations"] >= config.generations or 0 < config.env_steps <= meta["env_steps"]:
            return False
        if not checkpoint.exists():
            raise UserError(f"{checkpoint} is missing, so {artifact} cannot go on: begin anew with --restart.")
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

    begin()

    def keep(generations: int) -> None:
        assert state.best_theta is not None
        meta = {
            "config": asdict(config),
            "seed": seed,
            "generations": generations,
            "generation": state.best_generation,
            "selection_score": state.best_score,
            "env_steps": state.env_steps,
            "select_steps": state.select_steps,
            "made_from": made_from,
        }
        if latest:  # before the artifact, whose presence says that all is done
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
            fitness, steps = evaluate(np.array([express(c) for c in state.es.ask()]), generation)
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
                theta = express(state.es.average(config.average))
                returns, select_steps = select(theta)
                state.select_steps += select_steps
                row |= {
                    "select": returns.mean(),
                    "select_std": returns.std(),
                    "select_steps": state.select_steps,
                    **beside(theta),
                }
                if returns.mean() > state.best_score:
                    state.best_theta, state.best_score = theta, float(returns.mean())
                    state.best_generation = generation
            state.seconds += time.monotonic() - began
            row |= {"seconds": state.seconds, "steps_per_second": rate}
            # In this order a kill between two lines costs nothing: what is ahead is cut back or made again.
            metrics.log(generation, row)
            state.save(checkpoint)
            if "select" in row:
                keep(generation)
            progress.update(
                steps if config.env_steps else 1,
                mean=float(row["mean"]),
                best=float(row["best"]),
                kept=state.best_score,
            )
    return True
