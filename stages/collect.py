"""Stage collect: plays episodes with untrained policies, then with a controller, on workers. Makes RUN/rollouts/*.h5.

Untrained policies drive slowly and not far, so that V and M of such data know little about a fast car. If there are
driven episodes and no --source, a scout is made first: all four stages at smaller sizes, in RUN/scout/.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm.config.earlier import MEASURE
from wm.config.presets import PRESETS
from wm.config.seeds import DRIVEN_FROM, SEEDS_PER_RUN
from wm.config.vmc import CollectConfig
from wm.controller.linear import Linear
from wm.driving.collection import SUMMARY, Driver, make_collector, mismatch, set_aside_damaged
from wm.driving.loading import load_acting
from wm.driving.policies import check_policy
from wm.driving.workers import make_workers
from wm.envs import find_task
from wm.envs.task import Task
from wm.run.command_line import Common, call_stage, parse, run_stage, stage_config
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.json_files import read_json, write_json
from wm.run.metrics import Metrics
from wm.run.pair import Pair, stage_of
from wm.run.progress import Progress
from wm.show.plots.contact import plot_contact_sheet
from wm.store.shards import Rollouts, save_shard
from wm.store.starts import load_starts

SCOUT = "scout"
"""Folder of the scout within the run folder; it is a run folder, too."""


@dataclass(frozen=True)
class CollectArgs(CollectConfig):
    """Options of stage collect: the sizes, and the controller that drives the driven episodes."""

    driver: str = "controller"
    """Controller of the driven episodes. controller: evolved on real rollouts. dream: evolved in the dream, the mean
    with the best score on real selection tracks. dream-latest: the last mean in the dream, which exploits the errors of
    its dream most. dream-M-C, dream-M-C-latest: the same of this kind of M and this kind of C."""
    source: Path | None = None
    """Run folder of that controller, with its V and M. Default: RUN/scout, which is made first."""


def main(argv: list[str]) -> None:
    """Collects the missing episodes; damaged shards are set aside first, and foreign ones are refused."""
    args, given = parse(
        lambda preset: CollectArgs(**vars(preset.collect)), "Collect episodes to train V and M on.", argv
    )
    config = stage_config(given, CollectConfig)
    if not (2 <= config.episodes <= DRIVEN_FROM and 0 <= config.driven <= SEEDS_PER_RUN - DRIVEN_FROM):
        raise UserError(f"--episodes must be 2 to {DRIVEN_FROM:,}, --driven 0 to {SEEDS_PER_RUN - DRIVEN_FROM:,}.")
    if config.driven and not given.source and config.scout not in PRESETS[args.env]:
        raise UserError(f"--scout {config.scout} is not a preset: choose one of {', '.join(PRESETS[args.env])}.")
    if config.driven and config.spread and not given.source and given.driver == "controller":
        raise UserError(
            "--spread needs starts.npz, which a scout's controller lacks: give --driver dream or --spread 0."
        )
    if stage_of(given.driver) is None:
        raise UserError(f"there is no --driver {given.driver}: choose controller, dream, dream-latest or dream-M-C.")
    task = find_task(args.env)
    check_policy(config.policy, task)
    run = Run(args.run)
    summary = run.rollouts / "summary.json"
    with run.stage("collect", config, args.seed, args.restart, args.env) as begin:
        if args.restart:
            delete_collection(run, given, config)
        run.rollouts.mkdir(exist_ok=True)
        made_by = (task, config.policy, config.max_steps, args.seed, config.cut_after)
        present = set(set_aside_damaged(run.rollouts, lambda row: mismatch(row, *made_by)))
        wanted = [*range(config.episodes), *range(DRIVEN_FROM, DRIVEN_FROM + config.driven)]
        missing = [index for index in wanted if index not in present]
        if not missing and summary.exists() and read_json(summary, **SUMMARY)["episodes"] == len(present):
            print(f"{run.rollouts} is finished: {len(present)} episodes (--episodes N adds more, --restart redoes it).")
            return
        drives = any(index >= DRIVEN_FROM for index in missing)
        # Loaded before anything is changed, since the controller may be missing.
        driver = load_driver(Run(given.source), given.driver, config) if drives and given.source else None
        begin()
        if drives and not given.source:
            driver = load_driver(scout(args, config.scout, given.driver), given.driver, config)
        summary.unlink(missing_ok=True)  # it marks the collection as complete; later stages wait for it
        size = config.episodes_per_shard
        tasks = [missing[i : i + size] for i in range(0, len(missing), size)]
        start, steps = time.monotonic(), 0
        with (
            make_workers(
                args.workers,
                make_collector,
                *(task, config.policy, config.max_steps, args.seed, config.cut_after, driver),
            ) as workers,
            Progress("collect", len(wanted), len(wanted) - len(missing), unit="episode") as progress,
        ):
            for i, collected in workers.run(tasks):
                save_shard(run.rollouts / f"{tasks[i][0]:06d}-{tasks[i][-1]:06d}.h5", collected.shard)
                steps += collected.steps
                progress.update(len(tasks[i]), steps_per_second=steps / (time.monotonic() - start))
        rollouts = Rollouts(run.rollouts)
        found = summarise(rollouts, task)
        found["bytes"] = sum(path.stat().st_size for path in run.rollouts.glob("*.h5"))
        plot_contact_sheet(run.plots / "contact_sheet.png", rollouts)
        with Metrics(run, "collect") as metrics:
            numbers = {name: found[name] for name in ("frames", "return_mean", "return_std", "bytes")}
            metrics.log(len(rollouts), numbers | found["measures"])
        write_json(summary, found)
        print(describe(found))


def delete_collection(run: Run, given: CollectArgs, config: CollectConfig) -> None:
    """Deletes an earlier collection and its scout; UserError when the new driver is missing or is one of them."""
    earlier = [folder for folder in (run.folder / SCOUT, run.rollouts) if folder.exists()]
    if config.driven and given.source:
        load_driver(Run(given.source), given.driver, config)
        if any(given.source.resolve().is_relative_to(folder.resolve()) for folder in earlier):
            raise UserError(f"--source {given.source} is in a folder that --restart deletes: copy it elsewhere first.")
    for folder in earlier:  # each by itself: an earlier restart may have been killed between the two
        shutil.rmtree(folder)


def load_driver(source: Run, name: str, config: CollectConfig) -> Driver:
    """Loads the controller of a run folder as the driver; UserError when a file is missing."""
    models, theta = load_acting(source, name)
    centre = np.zeros(models.features)
    if config.spread:
        if not isinstance(models.layout, Linear):
            raise UserError(f"--spread needs a linear controller, unlike that of {source.folder}: leave it out.")
        starts = load_starts(source.starts_of(models.memory))
        cell = models.cell()
        centre = np.array([cell.read(row) for row in starts.rows()]).mean(axis=0, dtype=np.float64)
    return Driver(models, theta, config.bursts, config.spread, centre)


def scout(args: Common, preset: str, driver: str) -> Run:
    """Makes RUN/scout with the controller `driver`; finished stages do nothing."""
    run = Run(args.run / SCOUT)
    options = args.elsewhere(run.folder) | {"preset": preset}
    pair = Pair.of(driver)
    memory = ["--memory", pair.memory] if pair else []
    evolved = [*memory, "--controller", pair.controller] if pair else []
    arguments = {"collect": ["--driven", "0"], "vae": [], "memory": memory, "dream" if pair else "controller": evolved}
    for number, stage in enumerate(arguments, 1):
        print(f"scout, stage {number} of {len(arguments)}: {stage}", flush=True)
        call_stage(stage, options, arguments[stage])
    return run


def summarise(rollouts: Rollouts, task: Task) -> dict[str, Any]:
    """Statistics of a collection, with histograms of the returns and of each action in bins of equal width."""
    actions = np.concatenate([rollouts.actions(episode) for episode in range(len(rollouts))])
    table = rollouts.table
    measured = np.average(table[MEASURE], weights=table["length"])
    return {
        "episodes": len(rollouts),
        "frames": int((table["length"] + 1).sum()),
        "return_mean": float(table["ret"].mean()),
        "return_std": float(table["ret"].std()),
        "return_max": float(table["ret"].max()),
        "policies": {name.decode(): int((table["policy"] == name).sum()) for name in np.unique(table["policy"])},
        "measures": {task.measure.name: float(measured)} if task.measure else {},
        "returns": histogram(table["ret"], bins=25),
        "actions": [histogram(column, bins=10) for column in actions.reshape(len(actions), -1).T.astype(np.float64)],
        "fingerprint": rollouts.fingerprint(),
    }


def histogram(values: NDArray[np.floating], bins: int) -> dict[str, list[float]]:
    """Edges and counts as lists, for JSON."""
    counts, edges = np.histogram(values, bins=bins)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def describe(found: dict[str, Any]) -> str:
    """The summary in a few lines."""
    lines = [
        f"{found['episodes']} episodes ({', '.join(f'{n} {name}' for name, n in found['policies'].items())}), "
        f"{found['frames']:,} frames, {found['bytes'] / 1e6:,.0f} MB",
        f"returns {found['return_mean']:.0f} ± {found['return_std']:.0f}, best {found['return_max']:.0f}"
        + "".join(f"; {name} in {share:.0%} of the steps" for name, share in found["measures"].items()),
    ]
    for i, histogram in enumerate(found["actions"]):
        share = np.array(histogram["counts"]) / sum(histogram["counts"])
        low, high = histogram["edges"][0], histogram["edges"][-1]
        lines.append(f"action {i}, {low:+.2f} to {high:+.2f}: " + " ".join(f"{part:4.0%}" for part in share))
    return "\n".join(lines)


if __name__ == "__main__":
    run_stage(main)
