"""Stage vae: trains V on the frames of all rollouts. RUN/vae.pt, RUN/plots/reconstructions.png, traversals.png."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, make_dataclass, replace
from functools import partial
from pathlib import Path

import torch

from wm.envs import find_task
from wm.learning.checkpoint import Best, check_updates, delete_results, is_finished, load_initial_weights
from wm.learning.gradient import train
from wm.run.artifact import save_artifact
from wm.run.command_line import kind_option, parse, run_stage, stage_config, with_options
from wm.run.device import has_fast_bf16, pick_device, seeded
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.json_files import read_json
from wm.run.provenance import start_hash
from wm.show.plots.vision import plot_reconstructions, plot_traversals
from wm.store.frames import validation_frames
from wm.store.shards import Rollouts
from wm.vision.kinds import ConvKind, find_kind


@dataclass(frozen=True)
class VAEArgs:
    """Options of stage vae beside the sizes of the kind of V."""

    vision: str = ConvKind.name
    """Kind of V. `make` lists the kinds."""
    start: Path | None = None
    """A vae.pt with the initial weights. Default: random weights. A resumed training does not need this option."""


def main(argv: list[str]) -> None:
    """Trains until `updates` are done, on `threads` threads; resumes from RUN/checkpoints/vae.pt."""
    kind = find_kind(kind_option(argv, "--vision", ConvKind.name))
    args, given = parse(
        lambda preset: with_options(preset.vision(kind), VAEArgs), f"Train V, {kind.title}, on the rollouts.", argv
    )
    recorded = make_dataclass("Recorded", [("vision", str, ConvKind.name)], bases=(kind.config,), frozen=True)
    config = recorded(**vars(stage_config(given, kind.config)), vision=kind.name)
    run = Run(args.run)
    with run.stage("vae", config, args.seed, args.restart, args.env) as begin:
        task = find_task(args.env)
        kind.check(task.frame)
        rollouts = Rollouts(run.rollouts)
        rollouts.check(task.title, task.columns())
        fingerprint = rollouts.fingerprint()
        check_summary(run, fingerprint)
        made_from = {"rollouts": fingerprint, **start_hash(given.start)}
        if not args.restart and is_finished(run, "vae", run.vae, config, made_from):
            print(f"{run.vae} is finished: {config.updates} updates (--updates N for more, --restart to redo it).")
            return
        training, held_out = rollouts.split(config.validation, args.seed, config.earlier)
        model = seeded(partial(kind.build, config), args.seed)
        if given.start:
            load_initial_weights(model, given.start, "vae")
        check_updates(config.updates, given.start)
        if args.restart:
            delete_results(run, "vae", run.vae)
        begin()
        frames = validation_frames(rollouts, held_out, config.validation_frames)

        torch.set_num_threads(args.threads)
        device = pick_device()
        print(f"V trains on {device} in {'bfloat16' if has_fast_bf16(device) else 'float32'}.")
        lesson = kind.lesson(config, rollouts, training, frames, args.seed, device)
        best = train(
            run, "vae", model, config=config, seed=args.seed, made_from=made_from, device=device, **lesson._asdict()
        )
        # The plots come first, since vae.pt marks the stage as finished.
        model.load_state_dict(best.weights)
        model.eval()
        plot_reconstructions(run.plots / "reconstructions.png", model, frames)
        plot_traversals(run.plots / "traversals.png", model, frames[len(frames) // 2], kl_of(best))
        saved = asdict(replace(config, updates=max(config.updates, best.done)))
        about = {**saved, **kind.finish(config, model, frames)}
        save_artifact(run.vae, "vae", best.weights, about, best.made_from)
        numbers, wanted = kind.describe(config, best.metrics), kind.fault(config, best.metrics)
        print(f"V is trained, best at update {best.update} (validation): {numbers}.")
        if wanted:
            print(
                f"warning: V is too inaccurate for driving ({numbers}; wanted: {wanted}): train it longer (a larger "
                "--updates resumes) or collect more.",
                file=sys.stderr,
            )


def kl_of(best: Best) -> list[float]:
    """The validation's KL of each latent dimension in nats, as V's metrics list them."""
    found = {int(name.removeprefix("kl_")): value for name, value in best.metrics.items() if name.startswith("kl_")}
    return [found[dimension] for dimension in sorted(found)]


def check_summary(run: Run, fingerprint: str) -> None:
    """UserError when the rollouts are not those of their summary.json, which stage collect writes last."""
    summary = run.rollouts / "summary.json"
    if summary.exists() and read_json(summary, **{"fingerprint?": str}).get("fingerprint", fingerprint) != fingerprint:
        raise UserError(
            f"{run.rollouts} holds other episodes than its {summary.name} says: move the shards that do not belong "
            f"there away, or remove {summary.name} to train V on all of them."
        )


if __name__ == "__main__":
    run_stage(main)
