"""How the MDN-RNN learns: its loss on clips, its validation beside constant predictors; and it as a kind of M."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wm.config.earlier import present
from wm.config.vmc import MDNRNNConfig
from wm.contracts import Chart, Lesson
from wm.memory.mdnrnn import (
    MDNRNN,
    StepLosses,
    clip_losses,
    gaussian_nll,
    load_mdnrnn,
    mean_losses,
    mixture_moments,
    outlook_targets,
    pulses,
    total_loss,
)
from wm.run.device import autocast, derived_seed
from wm.store.latents import Clips, Latents, fresh_batches, validation_clips


def to_tensors(clips: Clips, posterior: float, device: torch.device) -> dict[str, Tensor]:
    """The arrays of clips by name, on the device, with V's standard deviation times `posterior`."""
    tensors = {name: torch.from_numpy(value).to(device) for name, value in vars(clips).items()}
    return {**tensors, "logvar": tensors["logvar"] + 2 * math.log(posterior)}


def batch_loss(
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
        reward: Rate of pulses; for a value head the mean reward.
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
        reward += float((r > 0).sum() if config.reward == "pulse" else r.sum(dtype=np.float64))
        frames, steps = frames + len(mu), steps + len(r)
    mean = total / frames
    sigma = np.sqrt(square / frames - mean**2)
    # One event more of each kind, since the log of a rate of 0 is not finite.
    return Constants(
        torch.from_numpy(mean).float(),
        torch.from_numpy(np.log(sigma)).float(),
        (reward + 1) / (steps + 2) if config.reward == "pulse" else reward / steps,
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
                binary(pulses(r), constants.reward) if config.reward == "pulse" else (r - constants.reward).square()
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


class MDNRNNKind:
    """The MDN-RNN as a kind of M; see `wm.contracts.MemoryKind`."""

    name = MDNRNN.kind
    title = "the MDN-RNN"
    config = MDNRNNConfig

    def build(self, config: MDNRNNConfig, z: int, actions: int) -> MDNRNN:
        """A new MDN-RNN."""
        return MDNRNN(
            z,
            actions,
            config.hidden,
            config.mixtures,
            reward=config.reward,
            logsigma_floor=config.logsigma_floor,
            outlook=config.outlook,
        )

    def load(self, path: Path) -> tuple[MDNRNN, dict[str, Any]]:
        """The MDN-RNN of a file."""
        return load_mdnrnn(path)

    def lesson(
        self,
        config: MDNRNNConfig,
        latents: Latents,
        training: NDArray[np.int64],
        held_out: NDArray[np.int64],
        seed: int,
        device: torch.device,
    ) -> Lesson:
        """Batches of clips, with the paper's decay of the learning rate."""
        constants = constant_predictors(latents, training, config)
        clips = validation_clips(latents, held_out, length=config.length, most=config.validation_clips)
        sizes = {"fresh": config.fresh, "batch": config.batch, "length": config.length, "seed": seed}
        return Lesson(
            batches=lambda start: fresh_batches(latents, training, **sizes, start=start),
            loss=partial(batch_loss, config=config, device=device),
            validate=partial(validate, clips=clips, constants=constants, config=config, seed=seed, device=device),
            lr=lambda update: (config.lr - config.lr_final) * config.lr_decay**update + config.lr_final,
            unit="steps",
            per_update=config.batch * config.length,
            clip=config.clip,
        )

    def describe(self, config: MDNRNNConfig, metrics: Mapping[str, float]) -> str:
        """The numbers of a validation beside the baselines."""
        m = metrics
        return (
            f"{m['nll']:.3f} nats per dimension (one Gaussian {m['nll_one']:.3f}, fixed Gaussian "
            f"{m['nll_marginal']:.3f}, N(0, 1) {m['nll_unit']:.3f}); "
            f"{config.reward} {m['reward']:.4f} (constant {m['reward_constant']:.4f}), "
            f"terminated {m['terminated']:.5f} (constant {m['terminated_constant']:.5f})"
            + (f", outlook {m['outlook']:.5f} (constant {m['outlook_constant']:.5f})" if "outlook" in m else "")
        )

    def charts(self, config: Mapping[str, Any]) -> tuple[Chart, ...]:
        """The next z, and the heads."""
        pulse = present("reward", config.get("reward", MDNRNNConfig.reward)) == "pulse"
        gaussians = {
            "nll_marginal": "one fixed Gaussian",
            "nll_one": "the one Gaussian with the mixture's mean and variance",
            "nll_unit": "N(0, 1)",
        }
        square = "(reward per step)²"
        return (
            Chart("nll", "next z", "nats per latent dimension", gaussians),
            Chart("reward", "reward head", "nats per step" if pulse else square, {"reward_constant": "a constant"}),
            Chart("terminated", "termination head", "nats per step", {"terminated_constant": "a constant"}),
            Chart(
                "outlook", "outlook head", "(pulses per step)²" if pulse else square, {"outlook_constant": "a constant"}
            ),
        )
