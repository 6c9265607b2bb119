"""Stage publish: puts a run's V, M, C, starts, scores and curves into data/pretrained, small enough for git."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wm.config.vmc import DreamConfig
from wm.controller.file import load_controller, save_controller
from wm.dream.networks import load_networks
from wm.dream.starts import find_starts
from wm.driving.loading import load_acting
from wm.driving.scores import read_score
from wm.run.artifact import load_artifact, save_artifact
from wm.run.checksums import file_hash
from wm.run.command_line import parse, run_stage
from wm.run.errors import UserError
from wm.run.files import copy
from wm.run.folder import Run
from wm.run.json_files import read_json, write_json
from wm.run.pair import score_name, stage_of
from wm.run.provenance import check_made_from
from wm.run.remedies import scored_by
from wm.store.starts import save_starts

MOST_BYTES = 25_000_000
"""Maximum size in bytes of a published run, since git stores every version."""

PLOTS = (
    *("contact_sheet", "reconstructions", "traversals", "predictions", "calibration"),
    *("controller", "dream", "dream-*", "rounds", "curves", "curves-dream", "curves-dream-*"),
)
REPORT_FILES = (
    *("metrics.jsonl", "rollouts/summary.json", "probe.json", "curves.jsonl", "ablations.json", "rounds.jsonl"),
    *(f"plots/{name}.png" for name in PLOTS),
)
"""Further files that a report or the README needs, as patterns; missing ones are skipped."""

MODELS = ("*.pt", "*.npz", "score*.json")
"""Patterns of V, M, C, starts and scores, of all kinds."""


@dataclass(frozen=True)
class PublishArgs:
    """Options of stage publish: the target folder."""

    to: Path = Path("data/pretrained")
    """Target folder. Files of an earlier call are replaced."""


def main(argv: list[str]) -> None:
    """Writes V and M in half precision, and records their new hashes in the files that were made from them."""
    args, config = parse(lambda preset: PublishArgs(), "Publish a run into the repository.", argv)
    run, target = Run(args.run), Run(config.to)
    if config.to.resolve() == args.run.resolve() or any(target.rollouts.glob("*.h5")) or target.checkpoints.exists():
        raise UserError(f"--to {config.to} is a run folder, not a published one: choose another folder.")
    with run.lock():
        names, left = publishable(run)
        with target.lock():
            staged = Run(target.folder / ".staged")  # leftovers of a killed call are removed
            shutil.rmtree(staged.folder, ignore_errors=True)
            try:
                publish(run, staged, names)
                check_weight(staged.folder, target.folder)
                move(staged.folder, target.folder)
            finally:
                shutil.rmtree(staged.folder, ignore_errors=True)
    scores = {name: read_score(target.folder / score_name(name)) for name in names}
    scored = ", ".join(f"{name} {score['mean']:.0f} ± {score['std']:.0f}" for name, score in scores.items())
    print(f"{target.folder}: {weight(target.folder) / 1e6:.1f} MB, {scored}.")
    for name in left:
        print(f"{run.folder / name}.npz has no score and is left out: score it with `{scored_by(name)}`.")
    print(f"V and M are rounded to half precision: check the score with {rescored_by(names[0], target.folder)}.")


def publishable(run: Run) -> tuple[list[str], list[str]]:
    """Names of a run's controllers with a score, and of those without; the last means of dreams are neither.

    Raises:
        UserError: None has a score, or one of those does not fit V and M or has the score of another file.
    """
    found = [name for name in run.controllers() if stage_of(name) == name]
    if not found:
        raise UserError(f"{run.folder} has no controller: make one with `make controller` or `make dream`.")
    names = [name for name in found if (run.folder / score_name(name)).exists()]
    if not names:
        raise UserError(f"{run.folder / score_name(found[0])} is missing: make it with `{scored_by(found[0])}`.")
    for name in names:
        load_acting(run, name)
        check_starts(run, name)
        check_score(run, name)
    return names, [name for name in found if name not in names]


def publish(run: Run, target: Run, names: Sequence[str]) -> None:
    """Copies a run's files into an empty folder; of M the kinds that its controllers act with."""
    made_from: dict[str, str] = {}

    def half(path: Path, kind: str) -> None:
        artifact = load_artifact(path, kind)
        weights = {name: value.half() for name, value in artifact["model"].items()}
        before = {name: made_from.get(name, was) for name, was in artifact["made_from"].items()}
        save_artifact(target.folder / path.name, kind, weights, artifact["config"], before)
        made_from[path.name] = file_hash(target.folder / path.name)

    half(run.vae, "vae")
    for kind in dict.fromkeys(load_acting(run, name)[0].memory for name in names):
        starts = find_starts(run, load_networks(run, kind), DreamConfig())
        half(run.memory(kind), kind)
        path = target.starts_of(kind)
        save_starts(path, replace(starts, made_from={name: made_from[name] for name in starts.made_from}))
        made_from[path.name] = file_hash(path)
    write_json(target.manifest, run.read_manifest())
    for name in names:
        theta, meta = load_controller(run.folder / f"{name}.npz")
        # New hashes for published files; other inputs, such as --start, keep theirs.
        hashes = {of: made_from.get(of, was) for of, was in meta["made_from"].items()}
        save_controller(target.folder / f"{name}.npz", theta, {**meta, "made_from": hashes})
    for pattern in (*map(score_name, names), *REPORT_FILES):
        for path in run.folder.glob(pattern):
            if path != run.probe or read_json(path)["driver"] in names:
                copy(path, target.folder / path.relative_to(run.folder))


def check_weight(folder: Path, target: Path) -> None:
    """UserError when the files of a folder, to be moved into `target`, are too large for git."""
    total = weight(folder)
    if total > MOST_BYTES:
        raise UserError(
            f"{target} would have {total:,} bytes, but git should hold at most {MOST_BYTES:,}: publish a smaller run."
        )


def move(staged: Path, target: Path) -> None:
    """Moves the published files into `target`, replacing those of an earlier call."""
    for pattern in (*MODELS, *REPORT_FILES):
        for path in target.glob(pattern):
            if not (staged / path.relative_to(target)).exists():
                path.unlink()
    for path in sorted(path for path in staged.rglob("*") if path.is_file()):
        place = target / path.relative_to(staged)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)


def weight(folder: Path) -> int:
    """Size of a run folder in bytes, without nested run folders."""
    total = 0
    for path in folder.iterdir():
        if path.is_file():
            total += path.stat().st_size
        elif not Run(path).manifest.exists():
            total += weight(path)
    return total


def check_starts(run: Run, name: str) -> None:
    """UserError when the run's file of starts is not the one that the controller `name` dreamt from."""
    path = run.folder / f"{name}.npz"
    _, meta = load_controller(path)
    files = [run.folder / of for of in meta["made_from"] if of.startswith("starts")]
    check_made_from(path, meta["made_from"], {f.name: file_hash(f) for f in files if f.exists()}, stage=name)


def check_score(run: Run, name: str) -> None:
    """UserError unless the score of the controller `name` belongs to that controller's file."""
    path, controller = run.folder / score_name(name), run.folder / f"{name}.npz"
    if read_score(path)["made_from"].get(controller.name) != file_hash(controller):
        raise UserError(
            f"{path} is the score of another controller than {controller}: redo it with `{scored_by(name)}`."
        )


def rescored_by(name: str, published: Path) -> str:
    """The command that scores the controller `name` of a published folder."""
    options = [] if name == "controller" else [f"--controller {name}"]
    which = ""
    if published.is_relative_to("data"):
        which = f" RUN={published.relative_to('data')}"
    else:
        options.append(f"--source {published}")
    return f"`make evaluate{which}" + (f" ARGS='{' '.join(options)}'" if options else "") + "`"


if __name__ == "__main__":
    run_stage(main)
