"""Stage memory: encodes all frames once, then trains M. RUN/latents.h5, RUN/<kind>.pt, RUN/plots/predictions.png."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wm.contracts import Network, Vision
from wm.driving.encoding import encode, encoded, known_latents
from wm.envs import find_task
from wm.learning.checkpoint import check_updates, delete_results, is_finished, load_initial_weights
from wm.learning.gradient import train
from wm.memory.kinds import find_kind
from wm.run.artifact import save_artifact
from wm.run.checksums import file_hash
from wm.run.command_line import kind_option, parse, run_stage, stage_config, with_options
from wm.run.device import has_fast_bf16, pick_device, seeded
from wm.run.folder import Run
from wm.run.pair import DEFAULT_MEMORY
from wm.run.provenance import check_made_from, start_hash
from wm.show.plots.memory import plot_predictions
from wm.store.latents import Latents
from wm.store.shards import Rollouts
from wm.vision.kinds import load_vision

DREAM_STEPS = 50
"""Steps of the clip in plots/predictions.png."""


@dataclass(frozen=True)
class MemoryArgs:
    """Options of stage memory beside the sizes of the kind of M."""

    memory: str = DEFAULT_MEMORY
    """Kind of M. `make` lists the kinds."""
    start: Path | None = None
    """A file of M of this kind with the initial weights. Default: random weights. A resumed training does not need this
    option."""
    encoded: Path | None = None
    """A latents.h5 made by a V with the same weights. Its episodes are not encoded again."""


def main(argv: list[str]) -> None:
    """Trains until `updates` are done; resumes from RUN/checkpoints/<kind of M>.pt."""
    kind = find_kind(kind_option(argv, "--memory", MemoryArgs.memory))
    stage = kind.name
    args, given = parse(
        lambda preset: with_options(preset.memory(kind), MemoryArgs),
        f"Encode all frames and train M, {kind.title}, on them.",
        argv,
    )
    config = stage_config(given, kind.config)
    run = Run(args.run)
    path = run.memory(kind.name)
    with run.stage(stage, config, args.seed, args.restart, args.env) as begin:
        task = find_task(args.env)
        rollouts = Rollouts(run.rollouts)
        rollouts.check(task.title, task.columns())
        vision, _, meta = load_vision(run.vae)
        data = {"rollouts": rollouts.fingerprint()}
        check_made_from(run.vae, meta["made_from"], data)  # refuses a V of other rollouts
        made_from = {**data, run.vae.name: file_hash(run.vae)}
        start = start_hash(given.start)
        if not args.restart and is_finished(run, stage, path, config, made_from | start):
            if not run.latents.exists():  # stage iterate deletes them
                device = pick_device()
                encode(run, task.action, rollouts, vision.to(device), made_from, device)
            print(f"{path} is finished: {config.updates} updates (--updates N for more, --restart to redo it).")
            return

        model = seeded(partial(kind.build, config, vision.z, task.action.size), args.seed)
        if given.start:
            load_initial_weights(model, given.start, stage)
        known = known_latents(given.encoded, vision) if given.encoded else None
        check_updates(config.updates, given.start)
        if args.restart:
            delete_results(run, stage, path)
        begin()
        torch.set_num_threads(args.threads)
        device = pick_device()
        vision.to(device)
        latents = encoded(run, task.action, rollouts, vision, made_from, device, known, args.restart, stage)
        training, held_out = latents.split(config.validation, args.seed, config.earlier)

        print(f"M trains on {device} in {'bfloat16' if has_fast_bf16(device) else 'float32'}.")
        lesson = kind.lesson(config, latents, training, held_out, args.seed, device)
        best = train(
            run,
            stage,
            model,
            config=config,
            seed=args.seed,
            made_from=made_from | start,
            device=device,
            **lesson._asdict(),
        )
        # The plot comes first, since M's file marks the stage as finished.
        model.load_state_dict(best.weights)
        model.eval()
        vision.to("cpu")
        plot_clip(run, rollouts, latents, held_out, vision, model)
        config = replace(config, updates=max(config.updates, best.done))
        sizes = {"z": vision.z, "actions": task.action.size}
        save_artifact(path, kind.name, best.weights, {**asdict(config), **sizes}, best.made_from)
        print(f"M is trained, best at update {best.update} (validation): {kind.describe(config, best.metrics)}.")


def plot_clip(
    run: Run, rollouts: Rollouts, latents: Latents, held_out: NDArray[np.int64], vision: Vision, m: Network
) -> None:
    """Draws plots/predictions.png: the middle of the longest validation episode."""
    place = int(held_out[latents.table["length"][held_out].argmax()])
    episode = latents.episode(place)
    length = len(episode.rewards)
    steps = min(DREAM_STEPS, length)
    start = (length - steps) // 2
    stop = start + steps
    plot_predictions(
        run.plots / "predictions.png",
        vision,
        m,
        rollouts.read(place, start, stop + 1),
        episode.mu[: stop + 1],
        episode.actions[:stop],
        seed=0,
        title=f"validation episode {latents.table['index'][place]} from its step {start} on: ",
    )


if __name__ == "__main__":
    run_stage(main)
