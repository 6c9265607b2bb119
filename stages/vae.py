"""Stage vae: trains V on the frames of all rollouts. RUN/vae.pt, RUN/plots/reconstructions.png, traversals.png."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from wm.config.vmc import VAEConfig
from wm.learning.checkpoint import Best, check_updates, delete_results, is_finished, load_initial_weights
from wm.learning.gradient import train
from wm.run.command_line import parse, run_stage, stage_config
from wm.run.device import has_fast_bf16, pick_device, seeded
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.json_files import read_json
from wm.run.provenance import start_hash
from wm.show.plots.vision import plot_reconstructions, plot_traversals
from wm.store.frames import frame_batches, validation_frames
from wm.store.shards import Rollouts
from wm.vision.training import batch_loss, validate
from wm.vision.vae import VAE, activation_ranges, save_vae


@dataclass(frozen=True)
class VAEArgs(VAEConfig):
    """Options of stage vae: the preset's sizes, and the initial weights."""

    start: Path | None = None
    """A vae.pt with the initial weights. Default: random weights. A resumed training does not need this option."""


def main(argv: list[str]) -> None:
    """Trains until `updates` are done, on `workers` threads; resumes from RUN/checkpoints/vae.pt."""
    args, given = parse(
        lambda preset: VAEArgs(**vars(preset.vae)), "Train V, the VAE, on the frames of the rollouts.", argv
    )
    config = stage_config(given, VAEConfig)
    run = Run(args.run)
    with run.stage("vae", config, args.seed, args.restart) as begin:
        rollouts = Rollouts(run.rollouts)
        rollouts.check_car_racing()
        fingerprint = rollouts.fingerprint()
        check_summary(run, fingerprint)
        made_from = {"rollouts": fingerprint, **start_hash(given.start)}
        if not args.restart and is_finished(run, "vae", run.vae, config, made_from):
            print(f"{run.vae} is finished: {config.updates} updates (--updates N for more, --restart to redo it).")
            return
        training, held_out = rollouts.split(config.validation, args.seed, config.earlier)
        model = seeded(partial(VAE, config.z), args.seed)
        if given.start:
            load_initial_weights(model, given.start, "vae")
        check_updates(config.updates, given.start)
        if args.restart:
            delete_results(run, "vae", run.vae)
        begin()
        frames = validation_frames(rollouts, held_out, config.validation_frames)

        torch.set_num_threads(max(1, args.workers))
        device = pick_device()
        print(f"V trains on {device} in {'bfloat16' if has_fast_bf16(device) else 'float32'}.")
        # Channels-last is the memory layout of the frames, and the faster one.
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        best = train(
            run,
            "vae",
            model,
            config=config,
            seed=args.seed,
            made_from=made_from,
            batches=lambda start: frame_batches(
                rollouts,
                training,
                batch=config.batch,
                seed=args.seed,
                start=start,
                shuffle_frames=config.shuffle_frames,
            ),
            loss=partial(batch_loss, config=config, device=device),
            validate=partial(validate, frames=frames, config=config, seed=args.seed, device=device),
            lr=lambda update: config.lr,
            device=device,
            unit="frames",
            per_update=config.batch,
        )
        # The plots come first, since vae.pt marks the stage as finished.
        model.load_state_dict(best.weights)
        model.eval()
        kl = [best.metrics[f"kl_{i:02d}"] for i in range(config.z)]
        plot_reconstructions(run.plots / "reconstructions.png", model, frames)
        plot_traversals(run.plots / "traversals.png", model, frames[len(frames) // 2], kl)
        saved = asdict(replace(config, updates=max(config.updates, best.done)))
        save_vae(run.vae, best.weights, {**saved, "ranges": activation_ranges(model, frames)}, best.made_from)
        print_result(config, best)


def check_summary(run: Run, fingerprint: str) -> None:
    """UserError when the rollouts are not those of their summary.json, which stage collect writes last."""
    summary = run.rollouts / "summary.json"
    if summary.exists() and read_json(summary, **{"fingerprint?": str}).get("fingerprint", fingerprint) != fingerprint:
        raise UserError(
            f"{run.rollouts} holds other episodes than its {summary.name} says: move the shards that do not belong "
            f"there away, or remove {summary.name} to train V on all of them."
        )


def print_result(config: VAEConfig, best: Best) -> None:
    """Prints V's validation numbers, and a warning when V is too inaccurate for driving."""
    error, kl, dead = (best.metrics[name] for name in ("error", "kl", "dead"))
    numbers = f"squared error {error:.1f} per image, KL {kl:.1f} nats, {dead:.0f} of {config.z} dimensions dead"
    print(f"V is trained, best at update {best.update} (validation): {numbers}.")
    if error > config.warn_error or dead > config.z / 2:
        print(
            f"warning: V is too inaccurate for driving ({numbers}; wanted: at most {config.warn_error:g} and "
            f"{config.z // 2} dead): train it longer (a larger --updates resumes) or collect more.",
            file=sys.stderr,
        )


if __name__ == "__main__":
    run_stage(main)
