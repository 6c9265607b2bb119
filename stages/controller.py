"""Stage controller: evolves C with CMA-ES over real rollouts, on worker processes. Makes RUN/controller.npz."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wm.agent import load_models
from wm.cli import parse, run_stage
from wm.config import EVOLVE_SEEDS, SELECT_SEEDS, track_seeds
from wm.controller.linear import parameter_count
from wm.evolve import evolve
from wm.run import Run, read_metrics
from wm.show.plots import plot_curve
from wm.trials import Trial, fitness, make_player
from wm.workers import make_workers

Array = NDArray[np.float64]


def main(argv: list[str]) -> None:
    """Evolves until `generations` are done; the same command goes on after an interruption."""
    args, config = parse(lambda preset: preset.controller, "Evolve the controller C on real rollouts.", argv)
    run = Run(args.run)
    with run.stage("controller", config, args.seed, args.restart):
        models = load_models(run)
        tracks = track_seeds(EVOLVE_SEEDS, args.seed)
        with make_workers(args.workers, make_player, args.env, models.graph, models.cell) as workers:

            def evaluate(candidates: Array, generation: int) -> tuple[Array, int]:
                seeds = [tracks[(generation - 1) * config.tracks + t] for t in range(config.tracks)]
                trials = [Trial(c, s, config.max_steps, config.cut_after) for c in candidates for s in seeds]
                found = np.zeros(len(trials))
                steps = 0
                for i, outcome in workers.run(trials):
                    found[i] = fitness(outcome, config.max_steps, config.step_cost)
                    steps += outcome.steps
                return found.reshape(len(candidates), config.tracks).mean(axis=1), steps

            def select(theta: Array) -> tuple[Array, int]:
                trials = [Trial(theta, SELECT_SEEDS[t], config.max_steps) for t in range(config.select_tracks)]
                outcomes = dict(workers.run(trials))
                return np.array([outcomes[i].ret for i in range(len(trials))]), sum(o.steps for o in outcomes.values())

            worked = evolve(
                run,
                "controller",
                run.controller,
                config,
                seed=args.seed,
                restart=args.restart,
                parameters=parameter_count(models.features),
                made_from=models.made_from,
                evaluate=evaluate,
                select=select,
            )
        if not worked:
            print(f"{run.controller} is finished: nothing to do (--generations N for more, --restart to redo it).")
            return
        rows = read_metrics(run.metrics, "controller")
        plot_curve(run.plots / "controller.png", rows)
        kept = max((row for row in rows if "select" in row), key=lambda row: row["select"])
        print(
            f"{run.controller}: the mean of generation {kept['step']} scores {kept['select']:.0f} ± "
            f"{kept['select_std']:.0f} on {config.select_tracks} selection tracks "
            f"({rows[-1]['env_steps']:,.0f} environment steps, {rows[-1]['seconds'] / 60:.1f} minutes)."
        )


if __name__ == "__main__":
    run_stage(main)
