"""Stage mdnrnn: encodes all frames once, then trains M. RUN/latents.h5, RUN/mdnrnn.pt, RUN/plots/predictions.png."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wm.config.vmc import MDNRNNConfig
from wm.controller.linear import ACTIONS
from wm.driving.encoding import encode, encoded, known_latents
from wm.learning.checkpoint import Best, check_updates, delete_results, is_finished, load_initial_weights
from wm.learning.gradient import train
from wm.memory.mdnrnn import MDNRNN, save_mdnrnn
from wm.memory.training import batch_loss, constant_predictors, validate
from wm.run.checksums import file_hash
from wm.run.command_line import parse, run_stage, stage_config
from wm.run.device import has_fast_bf16, pick_device, seeded
from wm.run.folder import Run
from wm.run.provenance import check_made_from, start_hash
from wm.show.plots.memory import plot_predictions
from wm.store.latents import Latents, fresh_batches, validation_clips
from wm.store.shards import Rollouts
from wm.vision.vae import VAE, load_vae

DREAM_STEPS = 50
"""Steps of the clip in plots/predictions.png."""


@dataclass(frozen=True)
class MDNRNNArgs(MDNRNNConfig):
    """Options of stage mdnrnn: the preset's sizes, the initial weights and encoded episodes."""

    start: Path | None = None
    """A mdnrnn.pt with the initial weights. Default: random weights. A resumed training does not need this option."""
    encoded: Path | None = None
    """A latents.h5 made by a V with the same weights. Its episodes are not encoded again."""


def main(argv: list[str]) -> None:
    """Trains until `updates` are done, on `workers` threads; resumes from RUN/checkpoints/mdnrnn.pt."""
    args, given = parse(
        lambda preset: MDNRNNArgs(**vars(preset.mdnrnn)), "Encode all frames and train M, the MDN-RNN, on them.", argv
    )
    config = stage_config(given, MDNRNNConfig)
    run = Run(args.run)
    with run.stage("mdnrnn", config, args.seed, args.restart) as begin:
        rollouts = Rollouts(run.rollouts)
        rollouts.check_car_racing()
        vae, meta = load_vae(run.vae)
        data = {"rollouts": rollouts.fingerprint()}
        check_made_from(run.vae, meta["made_from"], data)  # refuses a V of other rollouts
        made_from = {**data, "vae.pt": file_hash(run.vae)}
        start = start_hash(given.start)
        if not args.restart and is_finished(run, "mdnrnn", run.mdnrnn, config, made_from | start):
            if not run.latents.exists():  # stage iterate deletes them
                device = pick_device()
                encode(run, rollouts, vae.to(device), made_from, device)
            print(f"{run.mdnrnn} is finished: {config.updates} updates (--updates N for more, --restart to redo it).")
            return

        sizes = {"z": vae.z, "actions": ACTIONS}
        model = seeded(
            lambda: MDNRNN(
                **sizes,
                hidden=config.hidden,
                mixtures=config.mixtures,
                reward=config.reward,
                logsigma_floor=config.logsigma_floor,
                outlook=config.outlook,
            ),
            args.seed,
        )
        if given.start:
            load_initial_weights(model, given.start, "mdnrnn")
        known = known_latents(given.encoded, vae) if given.encoded else None
        check_updates(config.updates, given.start)
        if args.restart:
            delete_results(run, "mdnrnn", run.mdnrnn)
        begin()
        torch.set_num_threads(max(1, args.workers))
        device = pick_device()
        vae.to(device)
        latents = encoded(run, rollouts, vae, made_from, device, known, args.restart)
        training, held_out = latents.split(config.validation, args.seed, config.earlier)
        constants = constant_predictors(latents, training, config)
        clips = validation_clips(latents, held_out, length=config.length, most=config.validation_clips)

        print(f"M trains on {device} in {'bfloat16' if has_fast_bf16(device) else 'float32'}.")
        best = train(
            run,
            "mdnrnn",
            model,
            config=config,
            seed=args.seed,
            made_from=made_from | start,
            batches=lambda start: fresh_batches(
                latents,
                training,
                fresh=config.fresh,
                batch=config.batch,
                length=config.length,
                seed=args.seed,
                start=start,
            ),
            loss=partial(batch_loss, config=config, device=device),
            validate=partial(validate, clips=clips, constants=constants, config=config, seed=args.seed, device=device),
            lr=lambda update: (config.lr - config.lr_final) * config.lr_decay**update + config.lr_final,
            clip=config.clip,
            device=device,
            unit="steps",
            per_update=config.batch * config.length,
        )
        # The plot comes first, since mdnrnn.pt marks the stage as finished.
        model.load_state_dict(best.weights)
        model.eval()
        plot_clip(run, rollouts, latents, held_out, vae, model)
        config = replace(config, updates=max(config.updates, best.done))
        save_mdnrnn(run.mdnrnn, best.weights, {**asdict(config), **sizes}, best.made_from)
        print_result(config, best)


def plot_clip(run: Run, rollouts: Rollouts, latents: Latents, held_out: NDArray[np.int64], vae: VAE, m: MDNRNN) -> None:
    """Draws plots/predictions.png: the middle of the longest validation episode."""
    place = int(held_out[latents.table["length"][held_out].argmax()])
    episode = latents.episode(place)
    length = len(episode.rewards)
    steps = min(DREAM_STEPS, length)
    start = (length - steps) // 2
    stop = start + steps
    plot_predictions(
        run.plots / "predictions.png",
        vae,
        m,
        rollouts.read(place, start, stop + 1),
        episode.mu[: stop + 1],
        episode.actions[:stop],
        torch.Generator(m.mixture_head.weight.device).manual_seed(0),
        title=f"validation episode {latents.table['index'][place]} from its step {start} on: ",
    )


def print_result(config: MDNRNNConfig, best: Best) -> None:
    """Prints M's validation numbers beside the baselines."""
    m = best.metrics
    print(
        f"M is trained, best at update {best.update} (validation): {m['nll']:.3f} nats per dimension "
        f"(one Gaussian {m['nll_one']:.3f}, fixed Gaussian {m['nll_marginal']:.3f}, N(0, 1) {m['nll_unit']:.3f}); "
        f"{config.reward} {m['reward']:.4f} (constant {m['reward_constant']:.4f}), "
        f"terminated {m['terminated']:.5f} (constant {m['terminated_constant']:.5f})"
        + (f", outlook {m['outlook']:.5f} (constant {m['outlook_constant']:.5f})." if "outlook" in m else ".")
    )


if __name__ == "__main__":
    run_stage(main)
