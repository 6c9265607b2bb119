"""Stage publish: puts a run's V, M, C, manifest, score and curve into data/pretrained, small enough for git."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from wm.agent import load_acting
from wm.artifact import load_artifact, save_artifact
from wm.cli import parse, run_stage
from wm.controller.linear import load_controller, save_controller
from wm.run import Run, UserError, file_hash, read_json, write_json

MOST_BYTES = 25_000_000
"""What a published run may weigh: git remembers every copy."""


@dataclass(frozen=True)
class PublishArgs:
    """Where a run is published."""

    to: Path = Path("data/pretrained")
    """Folder that is written to; what it holds is replaced."""


def main(argv: list[str]) -> None:
    """Writes V and M in half precision, and records their new hashes in what was made from them."""
    args, config = parse(lambda preset: PublishArgs(), "Publish a run into the repository.", argv)
    run, target = Run(args.run), Run(config.to)
    load_acting(run)  # what does not fit together is not published
    if not run.score.exists():
        raise UserError(f"{run.score} is missing: make it with `make evaluate`.")
    score = read_json(run.score)
    if score["made_from"]["controller.npz"] != file_hash(run.controller):
        raise UserError(f"{run.score} is of another controller than {run.controller}: redo it with `make evaluate`.")
    vae, mdnrnn = load_artifact(run.vae, "vae"), load_artifact(run.mdnrnn, "mdnrnn")
    theta, meta = load_controller(run.controller)

    for artifact in (vae, mdnrnn):
        artifact["model"] = {name: value.half() for name, value in artifact["model"].items()}
    save_artifact(target.vae, "vae", vae["model"], vae["config"], vae["made_from"])
    made_from = {"vae.pt": file_hash(target.vae)}
    save_artifact(target.mdnrnn, "mdnrnn", mdnrnn["model"], mdnrnn["config"], {**mdnrnn["made_from"], **made_from})
    made_from["mdnrnn.pt"] = file_hash(target.mdnrnn)
    save_controller(target.controller, theta, {**meta, "made_from": made_from})
    write_json(target.manifest, run.read_manifest())
    shutil.copy(run.score, target.score)
    target.plots.mkdir(exist_ok=True)
    shutil.copy(run.plots / "controller.png", target.plots / "controller.png")

    total = sum(path.stat().st_size for path in target.folder.rglob("*") if path.is_file())
    if total > MOST_BYTES:
        raise UserError(f"{target.folder} has {total:,} bytes, more than {MOST_BYTES:,}: too much for git.")
    print(f"{target.folder}: {total / 1e6:.1f} MB, score {score['mean']:.0f} ± {score['std']:.0f}.")
    print("V and M are rounded to half precision: check the score with `make evaluate RUN=pretrained`.")


if __name__ == "__main__":
    run_stage(main)
