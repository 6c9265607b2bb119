"""Stage evaluate: the controller's score on fresh tracks of the stock environment. Makes RUN/score.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wm.config.bounds import bounded
from wm.config.seeds import EVALUATE_SEEDS
from wm.config.vmc import EvaluateConfig
from wm.driving.loading import load_acting
from wm.driving.scores import read_score
from wm.driving.trials import Trial, make_player
from wm.driving.workers import make_workers
from wm.run.checksums import file_hash
from wm.run.command_line import parse, run_stage
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.json_files import append_line, read_json, read_lines, write_json
from wm.run.pair import score_name
from wm.run.progress import Progress
from wm.run.provenance import commit, now, versions
from wm.show.plots.curves import plot_score


@dataclass(frozen=True)
class EvaluateArgs(EvaluateConfig):
    """Options of stage evaluate: the protocol, the controller and the file of the score."""

    first_seed: int = bounded(EVALUATE_SEEDS.start, 0, 2**31 - 1)
    """Seed of the first track; the other tracks follow it. Nothing is trained or selected on the default tracks."""
    controller: str = "controller"
    """Controller to score, by the name of its file. controller: evolved on real rollouts. dream: evolved in the dream;
    dream-M-C: in the dream of another M or by another C."""
    fast: bool = False
    """Play the environment that is trained on, if it is another one, such as a faster rendering. The result checks it
    and is not a score."""
    source: Path | None = None
    """Run folder of V, M and C. Default: the run folder that the score is written to."""
    out: Path | None = None
    """File of the score. Default, in the run folder: score.json, or score-dream.json for controller dream; with --fast
    score-fast.json or score-dream-fast.json."""


def main(argv: list[str]) -> None:
    """Plays every track once; an interrupted evaluation resumes with the missing tracks."""
    args, config = parse(
        lambda preset: EvaluateArgs(**asdict(preset.evaluate)), "Score the controller on fresh stock tracks.", argv
    )
    source = Run(config.source or args.run)
    models, theta = load_acting(source, config.controller)
    env_id = models.task.id(train=config.fast)
    seeds = [config.first_seed + i for i in range(config.episodes)]
    what: dict[str, Any] = {
        "env_id": env_id,
        "seeds": seeds,
        "max_steps": config.max_steps,
        "made_from": {
            **models.made_from,
            f"{config.controller}.npz": file_hash(source.folder / f"{config.controller}.npz"),
        },
    }
    run = Run(args.run)
    name = score_name(config.controller)
    out = config.out or run.folder / (name.replace(".json", "-fast.json") if config.fast else name)
    partial = run.checkpoints / f"{out.stem}.json"
    if out.suffix != ".json":
        raise UserError(f"--out {out} is not a .json file: give a name that ends in .json.")
    # A file given by --out is read on a restart, too, since a score must not replace another kind of file.
    score = read_score(out) if out.exists() and (config.out or not args.restart) else None
    if score and not args.restart and is_of(score, what):
        run.sweep()  # an earlier call may have been killed after writing it
        print(f"{out} is finished: {describe(score)} (--restart to redo it).")
        return
    recorded = EvaluateConfig(config.episodes, config.max_steps)
    with run.stage("evaluate", recorded, args.seed, restart=True, env=args.env) as begin:
        if args.restart:  # so that the command without --restart resumes
            out.unlink(missing_ok=True)
            partial.unlink(missing_ok=True)
        begin()
        played: dict[str, list[float]] = {}
        if partial.exists() and is_of(saved := read_json(partial, played=dict), what):
            played = saved["played"]
        missing = [seed for seed in seeds if str(seed) not in played]
        with (
            make_workers(args.workers, make_player, models, config.fast) as workers,
            Progress("evaluate", len(seeds), len(played), unit="track") as progress,
        ):
            for i, outcome in workers.run([Trial(theta, seed, config.max_steps) for seed in missing]):
                played[str(missing[i])] = [outcome.ret, outcome.steps]
                write_json(partial, {**what, "played": played})
                progress.update(mean=float(np.mean([ret for ret, _ in played.values()])))
        returns = np.array([played[str(seed)][0] for seed in seeds])
        score = {
            "mean": float(returns.mean()),
            "std": float(returns.std()),
            "ci95": float(1.96 * returns.std(ddof=1) / np.sqrt(len(returns))) if len(returns) > 1 else None,
            "returns": returns.tolist(),
            "lengths": [int(played[str(seed)][1]) for seed in seeds],
            "controller": config.controller,
            **what,
            "versions": versions(),
            "commit": commit(),
            "time": now(),
        }
        plot_score(run.plots / f"{out.stem}.png", returns.tolist(), describe(score), models.task.solved)
        # The score comes last, since it marks the stage as finished. A kill before it must not cause a second line.
        if missing or not (lines := read_lines(run.scores)) or not is_of(lines[-1], what):
            append_line(run.scores, score)
        write_json(out, score)
        partial.unlink(missing_ok=True)
        print(f"{out}: {describe(score)}")


def is_of(saved: dict[str, Any], what: dict[str, Any]) -> bool:
    """Whether a saved score is of the same controller, tracks and limits."""
    return all(saved.get(name) == value for name, value in what.items())


def describe(score: dict[str, Any]) -> str:
    """The score in one line."""
    spread = "" if score["ci95"] is None else f", 95% interval of the mean ± {score['ci95']:.0f}"
    return f"{score['mean']:.0f} ± {score['std']:.0f} on {len(score['seeds'])} tracks of {score['env_id']}{spread}"


if __name__ == "__main__":
    run_stage(main)
