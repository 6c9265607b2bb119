"""Stage curves: compares variants of an evolution at equal budgets. RUN/curves.jsonl, RUN/plots/curves.png.

With --name it first evolves that variant, seed after seed, and adds its curves to the results. Stage controller or
dream evolves each seed in its own run folder, RUN/variants/NAME/SEED/, on RUN's V and M, so that it can be interrupted
and resumed as usual and writes the same metrics. Without --name it only draws the results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from wm.config.bounds import bounded
from wm.config.seeds import RUN_SEEDS
from wm.run.command_line import Common, call_stage, kind_option, parse, run_stage, split_options
from wm.run.errors import UserError
from wm.run.experiments import CURVE, curves_name, over_seeds, read_variants, stage_of
from wm.run.folder import Run
from wm.run.json_files import append_line, read_lines
from wm.run.metrics import read_metrics
from wm.run.pair import DEFAULT_CONTROLLER, DEFAULT_MEMORY, Pair
from wm.run.pair import stage_of as made_by
from wm.run.provenance import commit, now
from wm.show.plots.curves import plot_variants

KEPT = ("step", "env_steps", "select_steps", "seconds", "select", "select_std", "dream", "disagreement")
"""Metrics of each selection that are saved in a curve, if the stage has them."""


@dataclass(frozen=True)
class CurvesArgs:
    """Options of stage curves: a variant and its budget."""

    stage: str = "controller"
    """Stage to compare. controller: evolution on real rollouts. dream: evolution in the dream. dream-M-C: in the dream
    of this kind of M, of this kind of C. Kinds in --options win: they are variants of the stage."""
    name: str = ""
    """Name of the variant to evolve, used in the results and the plot. Default: only draw the plot."""
    steps: int = bounded(3_000_000, 1, 10**12)
    """Steps of the population per seed, real or dreamt. Steps on selection tracks are counted separately."""
    seeds: tuple[int, ...] = bounded((1, 2), 0, RUN_SEEDS - 1)
    """Seeds of the evolution, for its samples and its tracks."""
    options: str = ""
    """Options of the stage that define the variant, such as "--popsize 64 --tracks 2"."""


def main(argv: list[str]) -> None:
    """Evolves the missing seeds of a variant, then draws and prints all variants of the stage."""
    args, config = parse(lambda preset: CurvesArgs(), "Compare learning curves of an evolution.", argv)
    run = Run(args.run)
    if args.restart:
        raise UserError("--restart is not supported: choose another --name, or remove lines of curves.jsonl.")
    if made_by(config.stage) != config.stage:  # the last mean of a dream is of no stage of its own
        raise UserError(f"--stage {config.stage} evolves no controller: choose controller, dream or dream-M-C.")
    if config.name:
        if not config.seeds:
            raise UserError("--seeds is empty: give at least one seed.")
        if config.name.startswith(".") or not all(letter.isalnum() or letter in "._+-" for letter in config.name):
            raise UserError(
                f"--name {config.name!r} cannot be a folder name: use letters, digits, _, +, - and inner dots only."
            )
        with run.lock():
            for seed in config.seeds:
                evolve(args, run, config, seed)
    variants = read_variants(run, config.stage)
    if not variants:
        raise UserError(
            f"{run.curves} has no curve of stage {config.stage}: make one with `make curves ARGS='--name NAME'`."
        )
    rows = [row for group in variants.values() for row in group]
    plot_variants(run.plots / curves_name(config.stage), rows)
    for name, group in variants.items():
        curves = [row["curve"] for row in group]
        steps = np.mean([curve[-1]["env_steps"] for curve in curves])
        last = over_seeds([curve[-1]["select"] for curve in curves])
        best = over_seeds([max(point["select"] for point in curve) for curve in curves])
        print(f"{name}: {last} after {steps / 1e6:.1f} million steps, at best {best} ({len(curves)} seeds)")


def evolve(args: Common, run: Run, config: CurvesArgs, seed: int) -> None:
    """Evolves one seed with the budget and adds its curve to the results, unless the curve exists."""
    known = [row for row in read_lines(run.curves, **CURVE) if row["name"] == config.name]
    if any(row["options"] != config.options or stage_of(row) != config.stage for row in known):
        raise UserError(f"{run.curves} has a variant {config.name} made with other options: choose another --name.")
    if any(row["seed"] == seed and row["steps"] >= config.steps for row in known):
        return
    variant = Run(run.folder / "variants" / config.name / str(seed))
    # The steps end the evolution, so the number of generations must not.
    budget = {"env-steps": config.steps, "generations": 10**9}
    options = args.elsewhere(variant.folder) | {"source": run.folder, "seed": seed} | budget
    stage, arguments = config.stage, split_options("--options", config.options)
    if pair := Pair.of(stage):
        kinds = ["--memory", pair.memory, "--controller", pair.controller] if pair != Pair() else []
        arguments = [*kinds, *arguments]
        stage = Pair(
            kind_option(arguments, "--memory", DEFAULT_MEMORY),
            kind_option(arguments, "--controller", DEFAULT_CONTROLLER),
        ).stage
    call_stage("dream" if pair else stage, options, arguments)
    rows = [row for row in read_metrics(variant.metrics, stage) if "select" in row]
    line: dict[str, Any] = {"name": config.name, "seed": seed, "steps": config.steps, "options": config.options}
    line["stage"] = config.stage
    line["curve"] = [{field: row[field] for field in KEPT if field in row} for row in rows]
    line |= {"config": variant.read_manifest()["stages"][stage]["config"], "commit": commit(), "time": now()}
    append_line(run.curves, line)


if __name__ == "__main__":
    run_stage(main)
