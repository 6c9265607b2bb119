"""How the convolutional VAE learns: its loss on frames, its validation; and it as a kind of V."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wm.config.vmc import VAEConfig
from wm.contracts import Lesson
from wm.run.device import autocast, derived_seed
from wm.run.errors import UserError
from wm.run.remedies import redo
from wm.store.frames import frame_batches
from wm.store.shards import Rollouts
from wm.vision.encoder import FRAME, LAYERS, Encoder, encoder_graph, quantised_graph
from wm.vision.vae import DEAD_NATS, VAE, activation_ranges, as_input, kl_per_dimension, load_vae, vae_loss

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
    value, error = vae_loss(x, reconstruction, kl, config.free_nats, config.kl_weight)
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
            x, model.decode(mu + noise * (logvar / 2).exp()), each, config.free_nats, config.kl_weight
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


class ConvKind:
    """The convolutional VAE as a kind of V; see `wm.contracts.VisionKind`."""

    name = VAE.kind
    title = "the VAE"
    config = VAEConfig

    def check(self, frame: tuple[int, ...]) -> None:
        """UserError unless observations are pictures of 64 by 64."""
        if frame != FRAME:
            raise UserError(f"V {self.name!r} needs frames u8{list(FRAME)}, not {list(frame)}: choose another V.")

    def build(self, config: VAEConfig) -> VAE:
        """A new VAE, in channels-last, the memory layout of the frames, which is faster."""
        model: VAE = VAE(config.z).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def load(self, path: Path) -> tuple[VAE, dict[str, Any]]:
        """The VAE of a file."""
        return load_vae(path)

    def lesson(
        self,
        config: VAEConfig,
        rollouts: Rollouts,
        training: NDArray[np.int64],
        frames: Frames,
        seed: int,
        device: torch.device,
    ) -> Lesson:
        """Batches of shuffled frames."""
        sizes = {"batch": config.batch, "seed": seed, "shuffle_frames": config.shuffle_frames}
        return Lesson(
            batches=lambda start: frame_batches(rollouts, training, **sizes, start=start),
            loss=partial(batch_loss, config=config, device=device),
            validate=partial(validate, frames=frames, config=config, seed=seed, device=device),
            lr=lambda update: config.lr,
            unit="frames",
            per_update=config.batch,
        )

    def finish(self, config: VAEConfig, model: VAE, frames: Frames) -> dict[str, Any]:
        """The activation ranges of the int8 encoder."""
        return {"ranges": activation_ranges(model, frames)}

    def describe(self, config: VAEConfig, metrics: Mapping[str, float]) -> str:
        """The numbers of a validation."""
        error, kl, dead = (metrics[name] for name in ("error", "kl", "dead"))
        return f"squared error {error:.1f} per image, KL {kl:.1f} nats, {dead:.0f} of {config.z} dimensions dead"

    def fault(self, config: VAEConfig, metrics: Mapping[str, float]) -> str:
        """What is wanted instead when V is too inaccurate to act on; else ""."""
        if metrics["error"] > config.warn_error or metrics["dead"] > config.z / 2:
            return f"an error of at most {config.warn_error:g}, and at most {config.z // 2} dead"
        return ""

    def acting(self, model: VAE, meta: Mapping[str, Any], path: Path, precision: str) -> Callable[[], Encoder]:
        """A picklable function that makes the encoder."""
        weights = {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}
        graph = encoder_graph(weights) if precision == "float32" else quantised_graph(weights, _ranges(path, meta))
        return partial(Encoder, graph)


def _ranges(path: Path, meta: Mapping[str, Any]) -> list[float]:
    """V's activation ranges as recorded by stage vae; UserError when they are missing or not valid."""
    ranges = meta["config"].get("ranges")
    if (
        not isinstance(ranges, list)
        or len(ranges) != len(LAYERS)
        or not all(isinstance(r, float) and 0 < r < np.inf for r in ranges)
    ):
        raise UserError(
            f"{path} has no valid activation ranges for int8 ({ranges!r}): "
            f"{redo('vae')}, or act with --precision float32."
        )
    return ranges
