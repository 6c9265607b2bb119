"""V, the convolutional VAE (paper, section 2.1 and appendix A.1), its loss, and vae.pt.

x f32[B,3,64,64] in [0,1] ─encode→ mu, logvar f32[B,Z];  z ~ N(mu, exp(logvar)) ─decode→ x in [0,1] again
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import relu

from wm.contracts import Posterior
from wm.run.artifact import fill, load_artifact, save_artifact
from wm.run.errors import UserError
from wm.run.remedies import redo

PARAMETERS = 4_348_547
"""Parameters of V with z 32, as the paper's table counts them."""

DEAD_NATS = 0.01
"""A latent dimension with a mean KL below this many nats is dead: it holds no information about the frame."""


class VAE(nn.Module):
    """The paper's V. It is deterministic after construction: the caller samples z."""

    kind = "conv"

    def __init__(self, z: int = 32) -> None:
        """Builds V for latents of size `z`, with initial weights that torch's global seed fixes."""
        super().__init__()
        self.z = z
        self.conv1 = nn.Conv2d(3, 32, 4, stride=2)  # 64 -> 31
        self.conv2 = nn.Conv2d(32, 64, 4, stride=2)  # -> 14
        self.conv3 = nn.Conv2d(64, 128, 4, stride=2)  # -> 6
        self.conv4 = nn.Conv2d(128, 256, 4, stride=2)  # -> 2
        self.mu = nn.Linear(1024, z)
        self.logvar = nn.Linear(1024, z)
        self.fc = nn.Linear(z, 1024)
        self.deconv1 = nn.ConvTranspose2d(1024, 128, 5, stride=2)  # 1 -> 5
        self.deconv2 = nn.ConvTranspose2d(128, 64, 5, stride=2)  # -> 13
        self.deconv3 = nn.ConvTranspose2d(64, 32, 6, stride=2)  # -> 30
        self.deconv4 = nn.ConvTranspose2d(32, 3, 6, stride=2)  # -> 64

    @property
    def convolutions(self) -> tuple[nn.Conv2d, ...]:
        """The encoder's layers, each followed by a relu."""
        return self.conv1, self.conv2, self.conv3, self.conv4

    def encode(self, x: Tensor) -> Posterior:
        """Frames f32[B,3,64,64] in [0,1] to the posterior's mu and logvar, each f32[B,Z]."""
        for layer in self.convolutions:
            x = relu(layer(x))
        flat = x.flatten(1)  # [B,256,2,2] -> [B,1024]
        return Posterior(self.mu(flat), self.logvar(flat))

    def latent(self, code: Posterior, generator: torch.Generator) -> Tensor:
        """Draws z f32[...,Z] from a posterior. The noise comes from `generator`, on its device."""
        noise = torch.randn(code.mu.shape, generator=generator, device=generator.device).to(code.mu.device)
        z: Tensor = code.mu + (0.5 * code.logvar).exp() * noise
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Latents f32[B,Z] to frames f32[B,3,64,64] in [0,1]."""
        features = self.fc(z)  # [B,1024]; the paper has no relu here
        # deconv1 has a single input pixel, so it is a matrix product, which makes training a fifth faster.
        weight = self.deconv1.weight.permute(0, 2, 3, 1)  # [1024,128,5,5] -> [1024,5,5,128]
        # [B,1024] to [B,3200] to [B,5,5,128] to [B,128,5,5]
        features = (features @ weight.flatten(1)).unflatten(1, weight.shape[1:]).permute(0, 3, 1, 2)
        bias = self.deconv1.bias[:, None, None]  # type: ignore[index]
        features = relu(features + bias)  # [B,128,5,5]
        features = relu(self.deconv3(relu(self.deconv2(features))))  # [B,32,30,30]
        # Under autocast the last layer gives bfloat16, whose steps near 1 are as coarse as those of a byte.
        return self.deconv4(features).float().sigmoid()  # [B,3,64,64]

    def graph(self) -> bytes:
        """The decoder as an ONNX graph; see `wm.vision.graph.decoder_graph`."""
        from wm.vision.graph import decoder_graph

        return decoder_graph(self)


def as_input(frames: Tensor) -> Tensor:
    """Frames u8[B,64,64,3] to V's input f32[B,3,64,64] in [0,1], in the frames' channels-last memory."""
    return frames.permute(0, 3, 1, 2).float() / 255  # [B,3,64,64]


def as_frames(x: Tensor) -> NDArray[np.uint8]:
    """V's output f32[B,3,64,64] in [0,1] to frames u8[B,64,64,3]."""
    frames: NDArray[np.uint8] = (x.permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()
    return frames


@torch.no_grad()
def activation_ranges(model: VAE, frames: NDArray[np.uint8]) -> list[float]:
    """The largest activation of each of V's four convolutions on frames u8[N,64,64,3], for the int8 encoder.

    Computed in float32 in batches of a hundred frames.
    """
    device = model.conv1.weight.device
    ranges = torch.zeros(len(model.convolutions), device=device)
    for batch in torch.from_numpy(frames).split(100):
        x = as_input(batch.to(device))
        for i, layer in enumerate(model.convolutions):
            x = relu(layer(x))
            ranges[i] = ranges[i].maximum(x.max())
    return ranges.tolist()


def kl_per_dimension(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)) in nats for each latent dimension: f32[B,Z] from f32[B,Z]."""
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar)


def vae_loss(
    x: Tensor, reconstruction: Tensor, kl: Tensor, free_nats: float, kl_weight: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The loss of the paper's code with a weight: summed squared error per image plus max(KL, free_nats · Z).

    Both terms are sums over an image, then means over the batch. An error averaged over the pixels would increase the
    weight of the KL twelve thousand times, and V would collapse.

    Args:
        x: f32[B,3,64,64] in [0,1].
        reconstruction: The same, decoded.
        kl: f32[B,Z] nats, from `kl_per_dimension`.
        free_nats: Nats per dimension; an image's KL below free_nats · Z has no gradient.
        kl_weight: Weight of the KL.

    Returns:
        The loss, and the squared error per image; both scalars are means over the batch.
    """
    error = (x - reconstruction).square().flatten(1).sum(1)  # [B,12288] to [B]
    free = kl.sum(1).clamp(min=free_nats * kl.shape[1])  # [B]
    return (error + kl_weight * free).mean(), error.mean()


def save_vae(path: Path, model: Mapping[str, Tensor], config: Mapping[str, Any], made_from: Mapping[str, str]) -> None:
    """Writes vae.pt: V's state_dict (float32, or float16 for half the size) and its config with "z" and "ranges"."""
    save_artifact(path, "vae", model, config, made_from)


def load_vae(path: Path) -> tuple[VAE, dict[str, Any]]:
    """Reads vae.pt: V on the CPU in eval mode, and {"config", "made_from", ...}.

    Raises:
        UserError: The file is missing, damaged, foreign, or not a V.
    """
    meta = load_artifact(path, "vae")
    weights = meta.pop("model")
    z = meta["config"].get("z")
    if not isinstance(z, int) or not 1 <= z <= 4096:
        raise UserError(f"{path} is damaged (z is {z!r}): {redo('vae')}.")
    with torch.random.fork_rng(devices=[]):  # initial weights must not change the caller's random state
        model = VAE(z)
    fill(model, weights, path, "vae")
    return model.eval(), meta
