"""V's loss on a batch of frames, and its validation."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wm.config.vmc import VAEConfig
from wm.run.device import autocast, derived_seed
from wm.vision.vae import DEAD_NATS, VAE, as_input, kl_per_dimension, vae_loss

Frames = NDArray[np.uint8]


def batch_loss(
    model: VAE, frames: Frames, generator: torch.Generator, *, config: VAEConfig, device: torch.device
) -> tuple[Tensor, dict[str, float | Tensor]]:
    """The loss of one batch of frames u8[B,64,64,3], and its squared error and KL (nats) per image."""
    x = as_input(torch.from_numpy(frames).to(device))  # [B,3,64,64]
    with autocast(device):
        mu, logvar = (part.float() for part in model.encode(x))  # [B,Z] each
        noise = torch.randn(mu.shape, generator=generator, device=device)  # [B,Z]
        reconstruction = model.decode(mu + noise * (logvar / 2).exp())  # [B,3,64,64]
    kl = kl_per_dimension(mu, logvar)  # [B,Z]
    value, error = vae_loss(x, reconstruction, kl, config.free_nats, config.kl_weight, config.road_weight)
    return value, {"error": error.detach(), "kl": kl.detach().sum(1).mean()}


def validate(model: VAE, frames: Frames, *, config: VAEConfig, seed: int, device: torch.device) -> dict[str, float]:
    """The same over all validation frames, in float32 and with the same noise each time; also KL per dimension."""
    generator = torch.Generator(device).manual_seed(derived_seed("vae validation", seed))
    total, error, kl = 0.0, 0.0, torch.zeros(model.z, dtype=torch.float64)
    for batch in np.array_split(frames, -(-len(frames) // 100)):
        x = as_input(torch.from_numpy(batch).to(device))  # [B,3,64,64]
        mu, logvar = model.encode(x)  # [B,Z] each
        noise = torch.randn(mu.shape, generator=generator, device=device)  # [B,Z]
        each = kl_per_dimension(mu, logvar)  # [B,Z]
        value, batch_error = vae_loss(
            x,
            model.decode(mu + noise * (logvar / 2).exp()),
            each,
            config.free_nats,
            config.kl_weight,
            config.road_weight,
        )
        total += value.item() * len(batch)
        error += batch_error.item() * len(batch)
        kl += each.sum(0).double().cpu()
    kl /= len(frames)
    return {
        "loss": total / len(frames),
        "error": error / len(frames),
        "kl": kl.sum().item(),
        "dead": float((kl < DEAD_NATS).sum()),
        **{f"kl_{i:02d}": value for i, value in enumerate(kl.tolist())},
    }
