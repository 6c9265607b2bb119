"""Plots of M's predictions: a validation clip beside one-step predictions and an open-loop dream."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from wm.memory.mdnrnn import MDNRNN, State, mixture_moments, sample
from wm.show.plots.figure import save_figure
from wm.vision.vae import VAE

if TYPE_CHECKING:
    from matplotlib.axes import Axes


COLUMNS = 11
"""Number of moments shown, spread over the clip."""


def dream(
    model: MDNRNN, z: Tensor, a: Tensor, state: State | None, temperature: float, generator: torch.Generator
) -> Tensor:
    """Runs M open-loop on its own samples: recorded actions, no frame after the first.

    Args:
        model: M.
        z: f32[Z], the first latent.
        a: f32[T,A], the actions from there on.
        state: M's state before the first of them; None at the start of an episode.
        temperature: tau > 0 of the samples.
        generator: Source of the samples.

    Returns:
        f32[T,Z]: the latent after each action.
    """
    dreamt = []
    z = z[None, None]  # [B=1,T=1,Z]
    for action in a:
        prediction, state = model(z, action[None, None], state)
        z = sample(prediction, temperature, generator)
        dreamt.append(z[0, 0])
    return torch.stack(dreamt)


@torch.no_grad()
def plot_predictions(
    path: Path,
    vae: VAE,
    model: MDNRNN,
    frames: NDArray[np.uint8],
    mu: NDArray[np.float32],
    actions: NDArray[np.float32],
    generator: torch.Generator,
    *,
    title: str = "",
    temperature: float = 1.0,
) -> None:
    """Draws a clip four times: real frames, V's reconstructions, M's one-step predictions, M's open-loop dream.

    M has read the episode up to the clip. The one-step row decodes the mean of the mixture for z_{t+1} after the real
    (z_t, a_t). The dream decodes samples, each after M's previous sample and the real action.

    Args:
        path: The PNG to write.
        vae: V in eval mode, on the device of `model`.
        model: M in eval mode.
        frames: u8[T+1,64,64,3], the clip, T >= 1: the last frames of the part of an episode in `mu` and `actions`.
        mu: f32[N+1,Z], N >= T, V's means from the start of the episode to the end of the clip.
        actions: f32[N,A], the actions there.
        generator: Source of the dream's samples.
        title: First words of the title.
        temperature: tau of the dream.
    """
    device = model.mixture_head.weight.device
    z, a = torch.from_numpy(mu).to(device), torch.from_numpy(actions).to(device)
    steps = len(frames) - 1
    first = len(a) - steps
    state: State | None = None
    if first > 0:
        _, state = model(z[None, :first], a[None, :first])
    foreseen, _ = mixture_moments(model(z[None, first:-1], a[None, first:], state)[0])
    dreamt = dream(model, z[first], a[first:], state, temperature, generator)

    clip = z[first:]
    rows: dict[str, NDArray[np.float32]] = {
        "real": frames.astype(np.float32) / np.float32(255),
        "seen by V": _decode(vae, clip),
        "M, one step\nahead": _decode(vae, torch.cat([clip[:1], foreseen[0]])),
        "M, open-loop\ndream": _decode(vae, torch.cat([clip[:1], dreamt])),
    }
    columns = np.unique(np.linspace(0, steps, min(COLUMNS, steps + 1)).astype(int))
    figure = Figure(figsize=(1.25 * len(columns) + 1.1, 6.0), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for row, (name, images) in enumerate(rows.items()):
        for column, t in enumerate(columns):
            _show(axes[row, column], images[t])
        axes[row, 0].set_ylabel(name, fontsize=9, rotation=0, ha="right", va="center")
    for column, t in enumerate(columns):
        axes[0, column].set_title(f"t = {t}", fontsize=8)
    given = f"{steps} steps, tau {temperature:g}; at t = 0 M is given the real frame"
    figure.suptitle(f"{title}{given}", fontsize=9)
    save_figure(path, figure)


def _decode(vae: VAE, z: Tensor) -> NDArray[np.float32]:
    """Latents f32[T,Z] to images f32[T,64,64,3] in [0,1]."""
    images: NDArray[np.float32] = vae.decode(z).permute(0, 2, 3, 1).cpu().numpy()
    return images


def _show(axes: Axes, image: NDArray[np.float32]) -> None:
    axes.imshow(image, vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
