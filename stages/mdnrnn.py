"""Stage mdnrnn: encodes all frames once, then trains M. RUN/latents.h5, RUN/mdnrnn.pt, RUN/plots/predictions.png."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wm.cli import parse, run_stage, stage_config
from wm.config import MDNRNNConfig
from wm.controller.linear import ACTIONS
from wm.memory.mdnrnn import (
    MDNRNN,
    StepLosses,
    clip_losses,
    gaussian_nll,
    mean_losses,
    mixture_moments,
    outlook_targets,
    save_mdnrnn,
    tile_hit,
    total_loss,
)
from wm.run import Progress, Run, UserError, began_with, check_made_from, file_hash
from wm.show.memory import plot_predictions
from wm.store.latents import Clips, Latents, LatentsWriter, fresh_batches, validation_clips
from wm.store.shards import Rollouts
from wm.train import (
    Best,
    autocast,
    begin_with,
    check_updates,
    derived_seed,
    forget,
    has_fast_bf16,
    is_finished,
    pick_device,
    seeded,
    train,
)
from wm.vision.vae import VAE, as_input, load_vae

ENCODE_BATCH = 256
"""Frames that V encodes at a time."""

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
        start = began_with(given.start)
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
            begin_with(model, given.start, "mdnrnn")
        known = known_latents(given.encoded, vae) if given.encoded else None
        check_updates(config.updates, given.start)
        if args.restart:
            forget(run, "mdnrnn", run.mdnrnn)
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
            loss=partial(loss, config=config, device=device),
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
        show(run, rollouts, latents, held_out, vae, model)
        config = replace(config, updates=max(config.updates, best.done))
        save_mdnrnn(run.mdnrnn, best.weights, {**asdict(config), **sizes}, best.made_from)
        report(config, best)


# --- latents.h5 ------------------------------------------------------------------------------------------


def known_latents(path: Path, vae: VAE) -> Latents:
    """Latents of another run that were encoded by the same V; UserError when another V made them."""
    latents = Latents(path)
    if latents.made_from.get("encoder") != encoder_hash(vae):
        raise UserError(f"--encoded {path}: it was encoded by another V: leave it out.")
    return latents


def encoder_hash(vae: VAE) -> str:
    """SHA-256 of V's weights in hex, equal for equal weights in different files."""
    digest = hashlib.sha256()
    for name, value in sorted(vae.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def encoded(
    run: Run,
    rollouts: Rollouts,
    vae: VAE,
    made_from: Mapping[str, str],
    device: torch.device,
    known: Latents | None,
    restart: bool,
) -> Latents:
    """RUN/latents.h5: V's posterior of every frame. The frames are encoded unless the file exists and fits.

    Raises:
        UserError: The file is damaged or was made from other rollouts or another V, and there is no --restart.
    """
    if run.latents.exists():
        try:
            latents = Latents(run.latents)
            check_made_from(run.latents, latents.made_from, made_from, stage="mdnrnn")
            return latents
        except UserError:
            if not restart:
                raise
    encode(run, rollouts, vae, made_from, device, known)
    return Latents(run.latents)


@torch.no_grad()
def encode(
    run: Run,
    rollouts: Rollouts,
    vae: VAE,
    made_from: Mapping[str, str],
    device: torch.device,
    known: Latents | None = None,
) -> None:
    """Encodes all frames in float32, as the agent does. One episode is in memory at a time.

    Args:
        run: The run folder.
        rollouts: The episodes.
        vae: V, on `device`.
        made_from: Hashes of the inputs.
        device: Device of the encoding.
        known: Latents of the same V; episodes in them with the same actions are copied.
    """
    places = {} if known is None else {index: place for place, index in enumerate(known.table["index"].tolist())}
    frames = int((rollouts.table["length"] + 1).sum())
    with (
        LatentsWriter(run.latents, {**made_from, "encoder": encoder_hash(vae)}) as writer,
        Progress("encode", frames, unit="frames") as progress,
    ):
        for number, index in enumerate(rollouts.table["index"].tolist()):
            if known is not None and index in places:
                there = known.episode(places[index])
                if np.array_equal(there.actions, rollouts.actions(number).astype(np.float32)):
                    writer.append_latents(known.table[places[index]], there)
                    progress.update(len(there.mu))
                    continue
            episode = rollouts.episode(number)
            posterior = []
            for batch in torch.from_numpy(episode.observations).split(ENCODE_BATCH):
                posterior.append(torch.stack(vae.encode(as_input(batch.to(device)))).cpu())  # [2,B,Z]
                progress.update(len(batch))
            mu, logvar = torch.cat(posterior, dim=1).numpy()  # [T+1,Z] each
            writer.append(episode, mu, logvar)


# --- training and validation -----------------------------------------------------------------------------


def to_tensors(clips: Clips, posterior: float, device: torch.device) -> dict[str, Tensor]:
    """The arrays of clips by name, on the device, with V's standard deviation times `posterior`."""
    tensors = {name: torch.from_numpy(value).to(device) for name, value in vars(clips).items()}
    return {**tensors, "logvar": tensors["logvar"] + 2 * math.log(posterior)}


def loss(
    model: MDNRNN, clips: Clips, generator: torch.Generator, *, config: MDNRNNConfig, device: torch.device
) -> tuple[Tensor, dict[str, float | Tensor]]:
    """The loss of one batch of clips, and its parts."""
    batch = to_tensors(clips, config.posterior, device)
    mask = batch.pop("mask")
    with autocast(device):
        losses, prediction, _ = clip_losses(model, **batch, generator=generator, dropout=config.dropout)
    means = mean_losses(losses, mask)
    total = total_loss(means, config.head_weight)
    parts = {name: value.detach() for name, value in means._asdict().items()}
    if config.outlook:
        targets, known = outlook_targets(batch["r"], mask, config.outlook, config.reward)
        outlook = mean_square(prediction.outlook - targets, known)
        total = total + config.outlook_weight * outlook
        parts["outlook"] = outlook.detach()
    return total, parts


def mean_square(error: Tensor, known: Tensor) -> Tensor:
    """Mean of the squares where `known` is True; 0 if it is True nowhere."""
    return error.square().where(known, 0).sum() / known.sum().clamp(min=1)


class Constants(NamedTuple):
    """The best constant predictions, the baselines of M.

    Attributes:
        z_mu: f32[Z], mean of each latent dimension over the training frames.
        z_logsigma: f32[Z], log standard deviation of its draws, which includes V's posterior variance.
        reward: Rate of steps that touch a tile; for a value head the mean reward.
        terminated: Rate of steps that terminate the episode.
    """

    z_mu: Tensor
    z_logsigma: Tensor
    reward: float
    terminated: float


def constant_predictors(latents: Latents, training: NDArray[np.int64], config: MDNRNNConfig) -> Constants:
    """Computes them from the training episodes, one episode in memory at a time."""
    frames, steps = 0, 0
    total, square = np.zeros(latents.z), np.zeros(latents.z)
    reward, terminated = 0.0, int(latents.table["terminated"][training].sum())
    for place in training.tolist():
        episode = latents.episode(place)
        mu, logvar, r = episode.mu.astype(np.float64), episode.logvar.astype(np.float64), episode.rewards
        total += mu.sum(0)
        square += (mu**2 + np.exp(logvar)).sum(0)
        reward += float((r > 0).sum() if config.reward == "tile" else r.sum(dtype=np.float64))
        frames, steps = frames + len(mu), steps + len(r)
    mean = total / frames
    sigma = np.sqrt(square / frames - mean**2)
    # One event more of each kind, since the log of a rate of 0 is not finite.
    return Constants(
        torch.from_numpy(mean).float(),
        torch.from_numpy(np.log(sigma)).float(),
        (reward + 1) / (steps + 2) if config.reward == "tile" else reward / steps,
        (terminated + 1) / (steps + 2),
    )


def validate(
    model: MDNRNN, *, clips: Clips, constants: Constants, config: MDNRNNConfig, seed: int, device: torch.device
) -> dict[str, float]:
    """Means over all steps of the validation clips, in float32 and with the same draws of z each time.

    Returns:
        "loss" and its parts: "nll" (nats per latent dimension), "reward", "terminated" and, if M has one, "outlook"
        (mean square over its known horizons). Baselines of nll on the same draws: "nll_one", the single Gaussian with
        the mean and the variance of M's mixture; "nll_marginal", one fixed Gaussian per dimension, fitted to the
        training frames; "nll_unit", N(0, 1). Baselines of the heads, which predict the training rate:
        "reward_constant", "terminated_constant" and "outlook_constant".
    """
    generator = torch.Generator(device).manual_seed(derived_seed("mdnrnn validation", seed))
    z_mu, z_logsigma = constants.z_mu.to(device), constants.z_logsigma.to(device)
    everything = to_tensors(clips, config.posterior, device)
    sums: dict[str, float] = {}
    outlook, outlook_constant, knowns = 0.0, 0.0, 0
    for part in zip(*(value.split(config.batch) for value in everything.values()), strict=True):
        batch = dict(zip(everything, part, strict=True))
        mask = batch.pop("mask")
        losses, prediction, z = clip_losses(model, **batch, generator=generator)
        r, terminated = batch["r"], batch["terminated"]
        found = {
            **losses._asdict(),
            "nll_one": gaussian_nll(z, *mixture_moments(prediction)).mean(-1),
            "nll_marginal": gaussian_nll(z, z_mu, z_logsigma).mean(-1),
            "nll_unit": gaussian_nll(z, torch.zeros_like(z), torch.zeros_like(z)).mean(-1),
            "reward_constant": (
                binary(tile_hit(r), constants.reward) if config.reward == "tile" else (r - constants.reward).square()
            ),
            "terminated_constant": binary(terminated.float(), constants.terminated),
        }
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value[mask].double().sum().item()
        targets, known = outlook_targets(r, mask, config.outlook, config.reward)
        outlook += (prediction.outlook - targets)[known].double().square().sum().item()
        outlook_constant += (constants.reward - targets)[known].double().square().sum().item()
        knowns += int(known.sum())
    means = {name: value / int(clips.mask.sum()) for name, value in sums.items()}
    parts = StepLosses(*(torch.tensor(means[name]) for name in StepLosses._fields))
    total = total_loss(parts, config.head_weight).item()
    if knowns:
        means |= {"outlook": outlook / knowns, "outlook_constant": outlook_constant / knowns}
        total += config.outlook_weight * means["outlook"]
    return {"loss": total, **means}


def binary(target: Tensor, rate: float) -> Tensor:
    """Cross-entropy in nats of predicting 1 with the probability `rate`, for targets 0.0 and 1.0."""
    return -(target * math.log(rate) + (1 - target) * math.log1p(-rate))


# --- what it came to -------------------------------------------------------------------------------------


def show(run: Run, rollouts: Rollouts, latents: Latents, held_out: NDArray[np.int64], vae: VAE, m: MDNRNN) -> None:
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


def report(config: MDNRNNConfig, best: Best) -> None:
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
