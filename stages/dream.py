"""Stage dream: evolves C in M's dream and selects the best mean on real tracks. Makes RUN/starts.npz, RUN/dream.npz.

With another M or C than the first pair it makes RUN/starts-M.npz and RUN/dream-M-C.npz.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wm.config.bounds import bounded
from wm.config.seeds import RUN_SEEDS, SELECT_SEEDS
from wm.config.vmc import DreamConfig
from wm.controller.basis import Basis, fit_basis
from wm.controller.kinds import make_layout
from wm.driving.loading import Models, load_models
from wm.driving.trials import make_player, select
from wm.driving.workers import make_workers
from wm.envs import task_of
from wm.envs.task import Task
from wm.learning.evolution import about, check_dream, coordinates_of, delete_results, evolve, is_finished, selections
from wm.run.checksums import file_hash
from wm.run.command_line import parse, run_stage, stage_config
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.metrics import Metrics, read_metrics
from wm.run.pair import DEFAULT_CONTROLLER, DEFAULT_MEMORY, Pair
from wm.run.provenance import start_hash
from wm.run.remedies import command
from wm.store.latents import Latents
from wm.store.starts import Starts, load_starts, save_starts, starts_hash

if TYPE_CHECKING:
    from wm.dream.networks import Networks
    from wm.dream.population import Population

# Modules that import torch are imported in functions, since the workers, which play real tracks, import this module.

Array = NDArray[np.float64]

SCORE_DREAMS = 64
"""Number of dreams in the dream score of the distribution mean; they are the same each time."""


@dataclass(frozen=True)
class DreamArgs(DreamConfig):
    """Options of stage dream: the preset's sizes, the kinds of M and C, the models, the first mean, the ensemble."""

    memory: str = DEFAULT_MEMORY
    """Kind of M that dreams. `make` lists the kinds."""
    controller: str = DEFAULT_CONTROLLER
    """Kind of C. `make` lists the kinds."""
    source: Path | None = None
    """Run folder of V, M and the latents. Default: the run folder that starts and controller are written to."""
    start: Path | None = None
    """Controller (.npz) whose weights are the first mean, such as another run's dream-latest.npz. Default: zeros."""
    ensemble: tuple[Path, ...] = ()
    """Run folders of further M's trained on the same vae.pt. In each dream one M of the ensemble draws z and predicts
    reward and termination."""
    draw: int = bounded(0, 0, 10**6)
    """Index of the random sequence of candidates, starts and noise under the seed. Each round of stage iterate uses its
    own, since the same sequence again would search the same directions."""


@dataclass(frozen=True)
class Recorded(DreamConfig):
    """The config that the manifest records and that a resumed evolution is compared with."""

    ensemble: tuple[str, ...] = ()
    """First 12 digits of the hash of each further M, in the order of the option."""
    draw: int = bounded(0, 0, 10**6)
    """As given."""


def main(argv: list[str]) -> None:
    """Evolves until `generations` are done; the same command resumes an interrupted evolution."""
    args, given = parse(lambda preset: DreamArgs(**vars(preset.dream)), "Evolve the controller C in M's dream.", argv)
    ensemble = tuple(short_hash(folder, given.memory) for folder in given.ensemble)
    config = Recorded(**vars(stage_config(given, DreamConfig)), ensemble=ensemble, draw=given.draw)
    seed = args.seed + RUN_SEEDS * given.draw
    if config.disagreement and not config.ensemble:
        raise UserError("--disagreement needs an ensemble: give its other M's with --ensemble, or leave it out.")
    run, source = Run(args.run), Run(given.source or args.run)
    task = task_of(source)
    check_dream(config, task.least_start)
    layout = make_layout(given.controller, task.action.size)
    pair = Pair(given.memory, layout.kind)
    stage, artifact, latest = pair.stage, run.folder / f"{pair.stage}.npz", run.folder / f"{pair.latest}.npz"
    starts_file = run.folder / pair.starts
    with run.stage(stage, config, args.seed, args.restart, args.env) as begin:
        import torch

        from wm.dream.ensemble import load_ensemble, load_records
        from wm.dream.networks import load_networks
        from wm.dream.population import Population
        from wm.dream.value import make_value
        from wm.run.device import pick_device

        networks = load_networks(source, given.memory)
        models = replace(load_models(source, config.precision, given.memory), layout=layout)
        starts, drawn, note = choose_starts(run, source, networks, pair, config, args.restart)
        made_from = {**models.made_from, starts_file.name: starts_hash(starts), **start_hash(given.start)}
        if not args.restart and is_finished(run, stage, artifact, config, made_from):
            if drawn:
                save_starts(starts_file, starts)
            print_result(run, source, stage, config)
            print(f"{artifact} is finished (--generations N for more, --restart to redo it).")
            return
        others = load_ensemble(given.ensemble, source, networks, starts)
        basis = make_basis(models, starts, config)
        first = layout.start(len(basis.scale), np.random.default_rng(seed))
        start = coordinates_of(given.start, basis) if given.start else first
        records = load_records(source, networks, starts, others, config.horizon) if config.noise == "recorded" else []
        torch.set_num_threads(1)  # the population uses its own threads
        value, explained = make_value(source, networks, config, seed) if config.value else (None, 0.0)
        if config.value:
            quality = f"{explained:.2f}" if np.isfinite(explained) else "unknown: no held-out episode is long enough"
            print(f"Value of {config.value} steps fitted; R² on held-out returns {quality}.")
        if args.restart:
            delete_results(run, stage, artifact, latest)
        if drawn:
            starts_file.unlink(missing_ok=True)
        begin()
        if note:
            print(note)
        if drawn:
            calibrate(run, source, networks, starts, config)
            save_starts(starts_file, starts)
        device = pick_device()
        population = Population(
            networks.memory,
            task,
            layout,
            starts,
            config,
            others=others,
            records=records,
            value=value,
            threads=args.threads,
            device=device,
        )
        print(
            f"C dreams on {device} in {str(population.dtype).removeprefix('torch.')}, from {len(starts)} starts"
            + (f", in an ensemble of {len(others) + 1} M's." if others else ".")
        )
        evaluate, extra_metrics = objective(population, task, config, seed)
        tracks = [SELECT_SEEDS[t] for t in range(config.select_tracks)]
        with make_workers(args.workers, make_player, models) as workers:
            evolve(
                run,
                stage,
                artifact,
                config,
                seed=seed,
                start=start,
                made_from=made_from,
                said=about(layout, given.memory),
                express=basis.express,
                evaluate=evaluate,
                select=partial(select, workers, tracks=tracks, max_steps=config.max_steps),
                extra_metrics=extra_metrics,
                latest=latest,
            )
        print_result(run, source, stage, config)


def choose_starts(
    run: Run, source: Run, networks: Networks, pair: Pair, config: DreamConfig, restart: bool
) -> tuple[Starts, bool, str]:
    """The starts of the stage of a pair.

    Returns:
        The starts, whether they are drawn anew, and a sentence if they stay because other stages need them, else "".

    Raises:
        UserError: Other stages need a file of starts that does not fit V and M; or as for `new_starts`, `given_starts`.
    """
    from wm.dream.starts import given_starts, new_starts

    path, recorded = run.folder / pair.starts, run.read_manifest()["stages"]
    sharing = [name for name in recorded if name != pair.stage and (of := Pair.of(name)) and of.starts == pair.starts]
    if sharing and path.exists():
        needed = " and ".join(sharing)
        if any(load_starts(path).made_from.get(name) != made for name, made in networks.made_from.items()):
            raise UserError(
                f"{path} has the starts of {needed}, of another V or M: choose another RUN, or remove the file to draw "
                "new ones, on which those have to be redone."
            )
        starts = given_starts(run, networks)
        begins = restart or pair.stage not in recorded
        note = f"{path} stays as {needed} needs it: {len(starts)} starts, whatever the options." if begins else ""
        return starts, False, note
    # Starts from before the stage's work here may have other options, so they are drawn again if possible.
    begun = pair.stage in recorded and path.exists()
    drawn = restart or (not begun and (source.latents.exists() or not path.exists()))
    return new_starts(source, networks, config) if drawn else given_starts(run, networks), drawn, ""


def objective(
    population: Population, task: Task, config: Recorded, seed: int
) -> tuple[Callable[[Array, int], tuple[Array, int]], Callable[[Array], dict[str, float]]]:
    """What `evolve` asks of dreams: scores of a generation's candidates, and further numbers of a selected theta."""

    def evaluate(candidates: Array, generation: int) -> tuple[Array, int]:
        dream_noise = population.draw_noise(seed, generation)
        scores = population.score(candidates, dream_noise, config.disagreement)
        return scores, len(candidates) * config.dreams * config.horizon

    fixed = population.draw_noise(seed, 0, dreams=SCORE_DREAMS)

    def extra_metrics(theta: Array) -> dict[str, float]:
        score = population.score(theta[None], fixed)[0]
        if not config.ensemble:
            return {"dream": score}
        # Both have a penalty, so that their dreams are equal to the last digit: without one, M's run on fewer.
        once, twice = (population.score(theta[None], fixed, weight)[0] for weight in (1.0, 2.0))
        return {"dream": score, "disagreement": (once - twice) / task.max_steps}

    return evaluate, extra_metrics


def make_basis(models: Models, starts: Starts, config: DreamConfig) -> Basis:
    """The coordinates in which C evolves, fitted to what it reads at the starts."""
    cell = models.cell()
    features = np.array([cell.read(row) for row in starts.rows()])
    return fit_basis(features, models.layout, centre=config.centre, whiten=config.whiten, components=config.components)


def short_hash(folder: Path, memory: str) -> str:
    """The short hash of the M of a run folder, as it is recorded; UserError when there is no M."""
    path = Run(folder).memory(memory)
    if not path.exists():
        raise UserError(f"--ensemble {folder}: {path} is missing: give run folders in which {command(memory)} has run.")
    return file_hash(path)[:12]


def calibrate(run: Run, source: Run, networks: Networks, starts: Starts, config: DreamConfig) -> None:
    """Measures M's heads and dreamt returns on validation episodes; writes plots/calibration.png, a line of metrics."""
    from wm.dream.calibration import dream_clips, head_reliability
    from wm.dream.networks import split_latents
    from wm.show.plots.dream import plot_calibration

    latents, _, held_out = split_latents(source, networks)
    heads = head_reliability(latents, held_out, networks)
    clips = dream_clips(latents, held_out, networks, starts, after=config.start_after)
    plot_calibration(run.plots / "calibration.png", heads, clips)
    numbers = {f"clip_{name}": value for name, value in clips.numbers().items()}
    for name, found in heads.items():
        predicted, observed = found.rates
        numbers |= {f"{name}_predicted": predicted, f"{name}_observed": observed, f"{name}_error": found.error}
    with Metrics(run, "calibration") as metrics:
        metrics.log(1, numbers)
    parts = [
        f"{name} {found.rates[0]:.2g} predicted, {found.rates[1]:.2g} observed (mean error {found.error:.2g})"
        for name, found in heads.items()
    ]
    parts.append(
        f"a clip's return {numbers['clip_dreamt']:.2f} dreamt, {numbers['clip_real']:.2f} real, "
        f"correlation {numbers['clip_correlation']:.2f}"
    )
    print(f"M's calibration on {len(held_out)} validation episodes: {'; '.join(parts)}.")


def print_result(run: Run, source: Run, stage: str, config: DreamConfig) -> None:
    """Draws plots/<stage>.png and prints the result and its costs."""
    from wm.show.plots.dream import plot_dream

    rows = read_metrics(run.metrics, stage)
    plot_dream(run.plots / f"{stage}.png", rows)
    selected = selections(run, stage)
    best = max(selected, key=lambda row: row["select"])
    collected = int(Latents(source.latents).table["length"].sum())
    steps = selected[-1]["select_steps"]
    print(
        f"{run.folder / stage}.npz: the mean of generation {best['step']} scores {best['select']:.0f} ± "
        f"{best['select_std']:.0f} on {config.select_tracks} real selection tracks and {best['dream']:.0f} in the "
        f"dream ({rows[-1]['env_steps']:,.0f} dream steps, {rows[-1]['seconds'] / 60:.1f} minutes; "
        f"{collected + steps:,.0f} real steps: {collected:,} for data, {steps:,.0f} for selection)."
    )


if __name__ == "__main__":
    run_stage(main)
