"""Stage ablate: scores variants of the recipe at equal budgets. Makes RUN/ablations/NAME/ and RUN/ablations.json.

Each row of the table has its own run folder, RUN/ablations/NAME/. It shares RUN's files that the row does not change
(data, V, M). The other stages do the rest there: they train V and M if the row changes them, evolve C with the common
budget, and score it on fresh stock tracks.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np

from wm.config.bounds import bounded, total
from wm.controller.file import load_controller
from wm.driving.scores import read_score
from wm.envs import task_of
from wm.learning.evolution import selections
from wm.run.checksums import file_hash
from wm.run.command_line import Common, call_stage, parse, run_stage
from wm.run.errors import UserError
from wm.run.experiments import read_ablations
from wm.run.files import share
from wm.run.folder import Run
from wm.run.json_files import write_json
from wm.run.provenance import commit, now
from wm.run.signals import note_new_work
from wm.store.shards import share_shards


@dataclass(frozen=True)
class Row:
    """The changes of a row to the preset.

    Attributes:
        description: Description in the table.
        vae: Options of stage vae, where {run} is RUN's folder; None: the row uses RUN's V.
        mdnrnn: The same for M; a row with its own V needs its own M.
        controller: Options of stage controller.
    """

    description: str
    vae: tuple[str, ...] | None = None
    mdnrnn: tuple[str, ...] | None = None
    controller: tuple[str, ...] = ()


ROWS = {
    "full": Row("V + M, linear"),
    "no-outlook": Row("V + M without the outlook, linear", mdnrnn=("--outlook",)),
    "untrained-m": Row("V + untrained M, linear", mdnrnn=("--updates", "1", "--lr", "1e-12", "--lr-final", "1e-12")),
    "v": Row("V only, linear", controller=("--inputs", "z")),
    "v-hidden": Row("V only, hidden layer of 40", controller=("--inputs", "z", "--hidden-units", "40")),
    "all-directions": Row("V + M, linear, all 288 features", controller=("--components", "0", "--whiten", "0")),
}
"""The paper's rows (section 3.4) and further ones."""


@dataclass(frozen=True)
class AblateArgs:
    """Options of stage ablate: the rows and the budget of each row."""

    rows: tuple[str, ...] = tuple(ROWS)
    """Rows to make. The table shows all rows made so far."""
    steps: int = bounded(1_500_000, 1, 10**12)
    """Environment steps of the population in each row. Steps on selection tracks are counted separately."""
    select_every: int = bounded(5, 1, 10**6)
    """Generations between evaluations of the mean on the selection tracks, in each row."""
    select_tracks: int = bounded(32, 1, 10**6)
    """Number of selection tracks, in each row."""
    episodes: int = total(100, 1, 10**6)
    """Number of fresh stock tracks on which each row is scored."""


def main(argv: list[str]) -> None:
    """Makes the missing rows one after another; an interrupted one resumes."""
    args, config = parse(lambda preset: AblateArgs(), "Score variants of the recipe at equal budgets.", argv)
    unknown = sorted(set(config.rows) - set(ROWS))
    if unknown or not config.rows:
        raise UserError(f"--rows {' '.join(unknown)} is unknown: choose from {', '.join(ROWS)}.")
    run = Run(args.run)
    with run.lock():
        for needed, stage in (
            (run.rollouts / "summary.json", "collect"),
            (run.vae, "vae"),
            (run.latents, "mdnrnn"),
            (run.mdnrnn, "mdnrnn"),
        ):
            if not needed.exists():
                raise UserError(f"{needed} is missing: make it with `make {stage}`.")
        table = read_ablations(run.ablations)
        if args.restart:
            table = {name: row for name, row in table.items() if name not in config.rows}
            write_json(run.ablations, {"rows": table})
            for name in config.rows:
                shutil.rmtree(run.folder / "ablations" / name, ignore_errors=True)
            note_new_work()
        for name in config.rows:
            table[name] = make_row(args, run, config, name)
            table = {known: table[known] for known in ROWS if known in table} | table  # those of earlier versions last
            write_json(run.ablations, {"rows": table})
            print_table(table, task_of(run).lost)


def make_row(args: Common, run: Run, config: AblateArgs, name: str) -> dict[str, Any]:
    """Makes one row of the table; finished stages do nothing, interrupted ones resume."""
    row, this = ROWS[name], Run(run.folder / "ablations" / name)
    share_unchanged_files(run, this, row)
    options = args.elsewhere(this.folder)
    budget = ["--env-steps", str(config.steps), "--generations", str(10**9)]  # the steps alone end the evolution
    selection = ["--select-every", str(config.select_every), "--select-tracks", str(config.select_tracks)]
    for stage, arguments in (
        ("vae", row.vae),
        ("memory", row.mdnrnn),
        ("controller", (*budget, *selection, *row.controller)),
        ("evaluate", ("--episodes", str(config.episodes))),
    ):
        if arguments is not None:
            print(f"row {name}, stage {stage}", flush=True)
            call_stage(stage, options, [argument.format(run=run.folder) for argument in arguments])

    score, evolved = read_score(this.score), selections(this, "controller")
    returns = np.array(score["returns"])
    return {
        "says": row.description,
        "options": {"vae": row.vae, "mdnrnn": row.mdnrnn, "controller": row.controller},
        "weights": int(np.count_nonzero(load_controller(this.controller)[0])),
        "env_steps": evolved[-1]["env_steps"],
        "select_steps": evolved[-1]["select_steps"],
        "seed": args.seed,
        **{field: score[field] for field in ("mean", "std", "ci95")},
        "median": float(np.median(returns)),
        "lost": int((returns < task_of(run).lost).sum()),
        "episodes": len(returns),
        "commit": commit(),
        "time": now(),
    }


def share_unchanged_files(run: Run, this: Run, row: Row) -> None:
    """Links RUN's data into a row's folder, and its V, latents and M unless the row trains its own.

    Raises:
        UserError: RUN's files have changed since the row began.
    """
    share_shards(run.rollouts, this.rollouts)
    share(run.rollouts / "summary.json", this.rollouts / "summary.json")
    for mine, theirs, own in (
        (this.vae, run.vae, row.vae),
        (this.latents, run.latents, row.vae),
        (this.mdnrnn, run.mdnrnn, row.mdnrnn),
    ):
        if own is None:
            share(theirs, mine)
            if file_hash(mine) != file_hash(theirs):
                raise UserError(f"{mine} differs from that of {run.folder}: redo the row with ARGS=--restart.")


def print_table(rows: dict[str, dict[str, Any]], lost: float) -> None:
    """Prints the table; episodes with a return below `lost` are counted."""
    wide = max(len(row["says"]) for row in rows.values())
    print(f"{'':{wide}}  weights  million steps       score  median  below {lost:g}")
    for row in rows.values():
        print(
            f"{row['says']:{wide}}  {row['weights']:7,}  {row['env_steps'] / 1e6:13.2f}  "
            f"{row['mean']:5.0f} ± {row['std']:3.0f}  {row['median']:6.0f}  {row['lost']:2} of {row['episodes']}"
        )


if __name__ == "__main__":
    run_stage(main)
