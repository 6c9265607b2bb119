"""Stage controller: evolves C with CMA-ES over real rollouts, on worker processes. Makes RUN/controller.npz."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wm.config.seeds import DRIVEN_FROM, EVOLVE_SEEDS, SELECT_SEEDS, track_seeds
from wm.config.vmc import ControllerConfig
from wm.controller.basis import Basis, first_only, fit_basis, plain_basis
from wm.controller.kinds import make_layout
from wm.driving.carry import carry
from wm.driving.loading import Models, load_acting, load_models
from wm.driving.trials import Trial, fitness, make_player, select
from wm.driving.workers import make_workers
from wm.learning.evolution import about, check_sizes, coordinates_of, delete_results, evolve, is_finished, selections
from wm.run.command_line import parse, run_stage, stage_config
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.metrics import read_metrics
from wm.run.pair import DEFAULT_MEMORY
from wm.run.provenance import check_made_from, start_hash
from wm.show.plots.curves import plot_curve
from wm.store.latents import Latents
from wm.store.shards import Rollouts

Array = NDArray[np.float64]

REPRESENTATIVE = 50
"""Number of episodes that represent [z; h]: with 500 steps each, 25,000 samples."""


@dataclass(frozen=True)
class ControllerArgs(ControllerConfig):
    """Options of stage controller: the preset's sizes, the kinds of M and C, the models and the first mean."""

    memory: str = DEFAULT_MEMORY
    """Kind of M whose state C reads. `make` lists the kinds."""
    controller: str = ""
    """Kind of C. `make` lists the kinds. Default: linear, or hidden with --hidden-units."""
    source: Path | None = None
    """Run folder of V, M and the latents. Default: the run folder that the controller is written to."""
    start: Path | None = None
    """Controller (.npz) whose weights are the first mean. Default: zeros. Read only when the evolution begins."""
    carry: Path | None = None
    """Run folder of a controller with its own V and M. The first mean is fitted to act like this controller."""


@dataclass(frozen=True)
class Recorded(ControllerConfig):
    """The config that the manifest records and that a resumed evolution is compared with."""

    memory: str = DEFAULT_MEMORY
    """Kind of M."""
    controller: str = ""
    """Kind of C; "": hidden if there are hidden units, else linear."""


def main(argv: list[str]) -> None:
    """Evolves until `generations` are done; the same command resumes an interrupted evolution."""
    args, given = parse(
        lambda preset: ControllerArgs(**vars(preset.controller)), "Evolve the controller C on real rollouts.", argv
    )
    config = stage_config(given, Recorded)
    check_sizes(config)
    kind = make_layout(config.controller, 1, config.hidden_units)  # of one output: refused before anything is read
    if kind.kind in ("linear", "hidden"):  # recorded by the hidden units, as when there were only these two
        config = replace(config, controller="", hidden_units=kind.sizes().get("units", 0))
    if given.start and given.carry:
        raise UserError("--start and --carry both set the first mean: give one of them.")
    if given.carry and kind.kind != "linear":
        raise UserError("--carry fits a linear controller: leave --controller and --hidden-units out.")
    run, source = Run(args.run), Run(given.source or args.run)
    with run.stage("controller", config, args.seed, args.restart, args.env) as begin:
        models = load_models(source, config.precision, config.memory)
        models = replace(models, layout=make_layout(config.controller, models.layout.outputs, config.hidden_units))
        made_from = models.made_from | start_hash(given.start or (Run(given.carry).controller if given.carry else None))
        if not args.restart and is_finished(run, "controller", run.controller, config, made_from):
            # The plot is drawn in any case, since a signal may have ended the evolution before it.
            plot_curve(run.plots / "controller.png", read_metrics(run.metrics, "controller"))
            print(f"{run.controller} is finished (--generations N for more, --restart to redo it).")
            return
        basis = make_basis(source, models, config)
        start = first_mean(given, source, models, basis, args.seed)
        if args.restart:
            delete_results(run, "controller", run.controller)
        begin()
        tracks = track_seeds(EVOLVE_SEEDS, args.seed)
        with make_workers(args.workers, make_player, models) as workers:

            def evaluate(candidates: Array, generation: int) -> tuple[Array, int]:
                seeds = [tracks[t] for t in tracks_of_generation(config, generation)]
                trials = [
                    Trial(c, s, config.max_steps, config.cut_after, config.disturb) for c in candidates for s in seeds
                ]
                found = np.zeros(len(trials))
                steps = 0
                for i, outcome in workers.run(trials):
                    found[i] = fitness(outcome, config.max_steps, config.step_cost)
                    steps += outcome.steps
                return found.reshape(len(candidates), len(seeds)).mean(axis=1), steps  # [P·tracks] to [P]

            evolve(
                run,
                "controller",
                run.controller,
                config,
                seed=args.seed,
                start=start,
                made_from=made_from,
                said=about(models.layout, models.memory),
                express=basis.express,
                evaluate=evaluate,
                select=partial(
                    select,
                    workers,
                    tracks=[SELECT_SEEDS[t] for t in range(config.select_tracks)],
                    max_steps=config.max_steps,
                ),
            )
        rows = read_metrics(run.metrics, "controller")
        plot_curve(run.plots / "controller.png", rows)
        best = max(selections(run, "controller"), key=lambda row: row["select"])
        print(
            f"{run.controller}: the mean of generation {best['step']} scores {best['select']:.0f} ± "
            f"{best['select_std']:.0f} on {config.select_tracks} selection tracks "
            f"({rows[-1]['env_steps']:,.0f} environment steps, {rows[-1]['seconds'] / 60:.1f} minutes)."
        )


def tracks_of_generation(config: ControllerConfig, generation: int) -> range:
    """Numbers of the tracks of a generation (counted from 1); each generation has new ones."""

    def rollouts(earlier: int) -> int:
        if not config.double_every:
            return config.tracks
        return min(config.tracks, 2 ** min(earlier // config.double_every, config.tracks.bit_length()))

    first = sum(rollouts(earlier) for earlier in range(generation - 1))
    return range(first, first + rollouts(generation - 1))


def make_basis(source: Run, models: Models, config: ControllerConfig) -> Basis:
    """The coordinates in which C evolves, of all features or of z alone."""
    seen = models.features if config.inputs == "zh" else models.z
    basis = plain_basis(seen, models.layout)
    if config.centre or config.whiten or config.components:  # else no recorded features are needed
        basis = fit_basis(
            recorded_features(source, models)[:, :seen],
            models.layout,
            centre=config.centre,
            whiten=config.whiten,
            components=config.components,
        )
    return first_only(basis, models.features)


def recorded_features(run: Run, models: Models) -> NDArray[np.float32]:
    """C's input at each step, f32[N,F], of the `representative_episodes`."""
    latents = Latents(run.latents)
    check_made_from(run.latents, latents.made_from, {"vae.pt": models.made_from["vae.pt"]}, stage=models.memory)
    cell = models.cell()
    features = []
    for place in representative_episodes(latents.table["index"]):
        episode = latents.episode(place)
        state = cell.initial()
        for z, action in zip(episode.mu, episode.actions, strict=False):  # one frame more than actions
            state = cell.see(state, z)
            features.append(cell.read(state))
            state = cell.advance(state, action)
    return np.array(features)


def first_mean(given: ControllerArgs, source: Run, models: Models, basis: Basis, seed: int) -> Array:
    """The first mean, in the coordinates of `basis`: that of the kind of C, or the weights of a controller."""
    if given.carry:
        old, theta = load_acting(Run(given.carry))
        rollouts = Rollouts(source.rollouts)
        places = representative_episodes(rollouts.table["index"])
        return basis.coordinates(carry(theta, old, models, map(rollouts.episode, places)))
    if not given.start:
        return basis.layout.start(len(basis.scale), np.random.default_rng(seed))
    return coordinates_of(given.start, basis)


def representative_episodes(index: NDArray[np.int64]) -> list[int]:
    """Places of `REPRESENTATIVE` evenly spread episodes of those with these indices; only driven ones, if any."""
    driven = np.flatnonzero(index >= DRIVEN_FROM)
    chosen = driven if len(driven) else np.arange(len(index))
    places: list[int] = chosen[np.unique(np.linspace(0, len(chosen) - 1, REPRESENTATIVE).astype(int))].tolist()
    return places


if __name__ == "__main__":
    run_stage(main)
