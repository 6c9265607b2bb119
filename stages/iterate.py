"""Stage iterate: rounds of collect, V, M and dream (paper, section 5). RUN/rounds/, RUN/rounds.jsonl, RUN/dream.npz.

Each round has its own run folder, RUN/rounds/0, RUN/rounds/1, ..., in which the other stages work as usual. Untrained
policies drive the episodes of the first round. Each later round adds episodes that the controller of the previous round
drives, trains V and M on all episodes from the previous weights, and evolves C in the new dream. RUN itself holds a
copy of the round whose controller has the best score on the real selection tracks.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from wm.config.vmc import IterateConfig
from wm.envs import find_task
from wm.learning.evolution import check_dream
from wm.run.checksums import file_hash
from wm.run.command_line import Common, call_stage, parse, run_stage, split_options
from wm.run.errors import MachineError, UserError
from wm.run.experiments import ROUND
from wm.run.files import copy
from wm.run.folder import Run
from wm.run.json_files import append_line, read_lines
from wm.run.metrics import best_validation, read_metrics
from wm.run.provenance import commit, now
from wm.show.plots.curves import plot_rounds
from wm.store.latents import Latents
from wm.store.shards import share_shards

ARTIFACTS = ("vae.pt", "mdnrnn.pt", "starts.npz", "dream.npz")
"""Files of the best round that are copied to RUN, each made from those before it."""

REPORT_FILES = ("metrics.jsonl", "rollouts/summary.json", "plots/*.png")
"""Further files of the best round that are copied to RUN, for the report."""

SHAPES = ("hidden", "mixtures", "reward", "outlook")
"""Options that determine the shapes of M's weights."""

REMAKE = "restore it, or remove it and run the same command again, which rebuilds it from rounds/"

STAGES = ("collect", "vae", "memory", "dream")
"""The stages of a round."""

RECORDED = ("collect", "vae", "mdnrnn", "dream", "controller")
"""Stages whose results the best round's files would replace, as the manifest names them."""


def main(argv: list[str]) -> None:
    """Makes the missing rounds; an interrupted one resumes."""
    args, config = parse(lambda preset: preset.iterate, "Train in the dream in rounds, each on new data.", argv)
    # Options of later stages are checked here, since hours pass until stage dream could refuse them.
    where = ["--run", str(args.run), "--preset", args.preset, "--env", args.env]
    options = split_options("--dream-options", config.dream_options)
    for name, more in (("dream", []), ("refine", split_options("--refine-options", config.refine_options))):
        try:
            _, dream = parse(lambda preset: preset.dream, "", [*where, *options, *more])
            check_dream(dream, find_task(args.env).least_start)
            if dream.start_after >= args.config().collect.max_steps:
                raise UserError(
                    f"--start-after {dream.start_after} is not below --max-steps of the episodes: give fewer steps."
                )
            if dream.disagreement:
                raise UserError("--disagreement needs an ensemble, but a round has one M: leave it out.")
        except UserError as error:
            raise UserError(f"--{name}-options: {error}") from error
    _, memory = parse(
        lambda preset: preset.mdnrnn, "", [*where, *split_options("--mdnrnn-options", config.mdnrnn_options)]
    )
    for name in SHAPES:
        if getattr(memory, name) != getattr(args.config().mdnrnn, name):
            raise UserError(
                f"--mdnrnn-options: --{name} cannot change, since M continues from that of round 0: leave it out."
            )
    run = Run(args.run)
    with run.stage("iterate", config, args.seed, args.restart, args.env) as begin:
        rows = read_lines(run.rounds, **ROUND, files=dict)
        for row in rows:
            if set(row["files"]) != set(ARTIFACTS):
                raise UserError(f"{run.rounds} does not list the files of round {row['round']}: {REMAKE}.")
        if [row["round"] for row in rows] != list(range(len(rows))):
            raise UserError(f"{run.rounds} does not list all rounds from 0 on in order: {REMAKE}.")
        check_no_other_results(run, rows)
        if args.restart:
            for name in reversed(ARTIFACTS):
                (run.folder / name).unlink(missing_ok=True)
            run.rounds.unlink(missing_ok=True)
            shutil.rmtree(run.folder / "rounds", ignore_errors=True)
            rows = []
        missing = range(len(rows), config.rounds)
        if missing:
            begin()
        if rows:
            show_best(run, rows)
        for number in missing:
            try:
                make_round(args, config, number)
            except UserError as error:
                if rows:  # the options have made a round before, so they are not the reason
                    raise MachineError(str(error)) from error
                raise
            rows.append(row_of(round_of(run, number), number, rows))
            append_line(run.rounds, rows[-1])
            show_best(run, rows)
            delete_rebuildable(run, rows)
        if not missing:
            print(f"{run.rounds} is finished: {len(rows)} rounds (ROUNDS=n for more, --restart to redo them).")


def round_of(run: Run, number: int) -> Run:
    """The folder of a round."""
    return Run(run.folder / "rounds" / str(number))


def best_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of the round with the best score on the real selection tracks."""
    return max(rows, key=lambda row: row["select"])


def check_no_other_results(run: Run, rows: list[dict[str, Any]]) -> None:
    """UserError when the run folder holds files that no round made, since the best round's files would replace them."""
    known = {made for row in rows for made in row["files"].values()}
    known |= {file_hash(path) for name in ARTIFACTS for path in run.folder.glob(f"rounds/*/{name}")}
    own = [f"stage {stage}" for stage in RECORDED if stage in run.read_manifest()["stages"]]
    for name in (*ARTIFACTS, run.controller.name):
        if (run.folder / name).exists() and file_hash(run.folder / name) not in known:
            own.append(name)
    if own:
        raise UserError(f"{run.folder} holds results of other stages ({', '.join(own)}): choose another RUN.")


def make_round(args: Common, config: IterateConfig, number: int) -> None:
    """Calls the stages of a round; finished stages do nothing, interrupted ones resume."""
    this = round_of(Run(args.run), number)
    arguments: dict[str, list[str]] = {"collect": ["--driven", "0"], "dream": []}
    if number:
        before = round_of(Run(args.run), number - 1)
        link_shards(before, this)
        arguments = arguments_from(before, config, args.config().collect.episodes, number)
    arguments["dream"] += ["--draw", str(number), *split_options("--dream-options", config.dream_options)]
    if refines(config, number):  # the last value of a repeated option wins
        arguments["dream"] += split_options("--refine-options", config.refine_options)
    options = args.elsewhere(this.folder)
    for place, stage in enumerate(STAGES, 1):
        print(f"round {number} (the last is {config.rounds - 1}), stage {place} of {len(STAGES)}: {stage}", flush=True)
        call_stage(stage, options, arguments.get(stage, []))


def arguments_from(before: Run, config: IterateConfig, first: int, number: int) -> dict[str, list[str]]:
    """Arguments by stage that build a round on the previous one.

    Args:
        before: The folder of the previous round.
        config: The sizes.
        first: Number of episodes of the first round.
        number: The round's number, >= 1.
    """
    driven = [driven_by(config, n) for n in range(number + 1)]
    earlier = ["--earlier", *(str(first + n) for n in driven[:-1])]
    fresh = ["--fresh", str(fresh_of(config, number))] if config.fresh_rounds else []
    learns = number <= config.vae_rounds
    updates = config.refine_updates if refines(config, number) else config.mdnrnn_updates
    resume_from = ["--start", str(before.dream_latest)] if refines(config, number) else []
    return {
        "collect": ["--driven", str(driven[-1]), "--driver", config.driver, "--source", str(before.folder)],
        "vae": ["--start", str(before.vae), "--updates", str(config.vae_updates if learns else 0), *earlier],
        "memory": [
            *("--start", str(before.mdnrnn), "--updates", str(updates)),
            *([] if learns else ["--encoded", str(before.latents)]),
            *fresh,
            *earlier,
            *split_options("--mdnrnn-options", config.mdnrnn_options),
        ],
        "dream": [*fresh, *resume_from],
    }


def refines(config: IterateConfig, number: int) -> bool:
    """Whether this round is a refinement round."""
    return 0 < config.refine_from <= number


def driven_by(config: IterateConfig, number: int) -> int:
    """Number of episodes driven by controllers up to the end of a round."""
    small = number - config.refine_from + 1 if refines(config, number) else 0
    return (number - small) * config.added + small * config.refine_added


def fresh_of(config: IterateConfig, number: int) -> int:
    """Number of episodes of the last `fresh_rounds` rounds; missing rounds count with `added` episodes each."""
    return driven_by(config, number) - driven_by(config, number - config.fresh_rounds)


def link_shards(before: Run, this: Run) -> None:
    """Links the shards of the previous round, unless the round's collection has begun (it sets damaged ones aside)."""
    if "collect" not in this.read_manifest()["stages"]:
        share_shards(before.rollouts, this.rollouts)


def delete_rebuildable(run: Run, rows: list[dict[str, Any]]) -> None:
    """Deletes large files that can be rebuilt (latents, checkpoints) from all rounds but the last and the best."""
    best = best_of(rows)
    for row in rows[:-1]:
        if row is not best:
            this = round_of(run, row["round"])
            this.latents.unlink(missing_ok=True)
            shutil.rmtree(this.checkpoints, ignore_errors=True)


def row_of(this: Run, number: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The line of rounds.jsonl of a finished round.

    Args:
        this: The round's folder.
        number: Its number.
        rows: The rows of the earlier rounds.
    """
    v, m = (best_validation(read_metrics(this.metrics, stage)) for stage in ("vae", "mdnrnn"))
    selected = [row for row in read_metrics(this.metrics, "dream") if "select" in row]
    if not (v and m and selected):
        raise UserError(f"{this.metrics} lacks lines of V, M or the dream: restore it, or redo all with --restart.")
    best = max(selected, key=lambda row: row["select"])
    lengths = Latents(this.latents).table["length"]
    collect_steps, select_steps = int(lengths.sum()), int(selected[-1]["select_steps"])
    return {
        "round": number,
        "episodes": len(lengths),
        "new": len(lengths) - (rows[-1]["episodes"] if rows else 0),
        "error": v["val_error"],
        "nats": m["val_nll"],
        "dream": best["dream"],
        "select": best["select"],
        "select_std": best["select_std"],
        "gap": best["dream"] - best["select"],
        "collect_steps": collect_steps,
        "select_steps": select_steps,
        "real_steps": collect_steps + select_steps + sum(row["select_steps"] for row in rows),
        "dream_steps": int(selected[-1]["env_steps"]),
        "minutes": sum(stage["seconds"] for stage in this.read_manifest()["stages"].values()) / 60,
        "files": {name: file_hash(this.folder / name) for name in ARTIFACTS},
        "commit": commit(),
        "time": now(),
    }


def show_best(run: Run, rows: list[dict[str, Any]]) -> None:
    """Copies the best round's files into the run folder, draws plots/rounds.png and prints the table."""
    best = best_of(rows)
    copy_best(run, best)
    plot_rounds(run.plots / "rounds.png", rows)
    print("round  episodes   (new)  V error  M nats   dream    real     gap  real steps  minutes")
    for row in rows:
        print(
            f"{row['round']:5}  {row['episodes']:8,}  {row['new']:6,}  {row['error']:7.2f}  {row['nats']:6.3f}  "
            f"{row['dream']:6.0f}  {row['select']:6.0f}  {row['gap']:6.0f}  {row['real_steps']:10,}  "
            f"{row['minutes']:7.1f}"
        )
    print(f"{run.dream} is from round {best['round']}: {best['select']:.0f} ± {best['select_std']:.0f} on real tracks.")


def copy_best(run: Run, best: dict[str, Any]) -> None:
    """Copies a round's files into the run folder, in an order in which its files fit together at any time.

    Raises:
        UserError: A file in the round's folder is missing or has changed.
    """
    source = round_of(run, best["round"])

    def holds(folder: Path, name: str) -> bool:
        return (folder / name).exists() and file_hash(folder / name) == best["files"][name]

    if all(holds(run.folder, name) for name in ARTIFACTS):
        return
    for name in ARTIFACTS:
        if not holds(source.folder, name):
            raise UserError(
                f"{source.folder / name} is not the file that the best round made: restore it, or redo all rounds with "
                "--restart."
            )
    for pattern in REPORT_FILES:
        for path in source.folder.glob(pattern):
            copy(path, run.folder / path.relative_to(source.folder))
    for name in reversed(ARTIFACTS):  # a file is removed before the files from which it was made
        (run.folder / name).unlink(missing_ok=True)
    for name in ARTIFACTS:
        copy(source.folder / name, run.folder / name)


if __name__ == "__main__":
    run_stage(main)
