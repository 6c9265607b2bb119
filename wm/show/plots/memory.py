"""Plots of M's predictions: a validation clip beside one-step predictions and an open-loop dream."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from wm.contracts import Network, Pays, State, Vision
from wm.dream.chance import draws
from wm.show.plots.figure import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


COLUMNS = 11
"""Number of moments shown, spread over the clip."""


@torch.inference_mode()
def plot_predictions(
    path: Path,
    vision: Vision,
    model: Network,
    frames: NDArray[np.uint8],
    mu: NDArray[np.float32],
    actions: NDArray[np.float32],
    seed: int,
    *,
    title: str = "",
    temperature: float = 1.0,
) -> None:
    """Draws a clip four times: real frames, V's reconstructions, M's one-step predictions, M's open-loop dream.

    M has read the episode up to the clip. The one-step row decodes the mean of M's prediction of z_{t+1} after the real
    (z_t, a_t). The dream decodes samples, each after M's previous sample and the real action.

    Args:
        path: The PNG to write.
        vision: V in eval mode.
        model: M in eval mode.
        frames: u8[T+1,height,width,3], the clip, T >= 1: the last frames of the part of an episode in `mu`.
        mu: f32[N+1,Z], N >= T, V's means from the start of the episode to the end of the clip.
        actions: f32[N,A], the actions there.
        seed: Seed of the dream's samples.
        title: First words of the title.
        temperature: tau of the dream.
    """
    memory = model.dreaming(Pays(0.0, 0.0, 0.0), temperature)
    rng, steps = np.random.default_rng(seed), len(frames) - 1
    first = len(actions) - steps
    z, a = torch.from_numpy(mu), torch.from_numpy(actions)
    state: State = {name: torch.from_numpy(part) for name, part in model.acting()().initial().items()}
    dreaming, foreseen, dreamt = state, [], []
    for t in range(len(actions)):
        state = memory.see(state, z[t])
        dreaming = state if t == first else dreaming
        state = memory.advance(state, a[t])
        if t >= first:
            foreseen.append(memory.mean(memory.expect(state)))
            noise = {name: torch.from_numpy(draws(rng, kind, (n,))) for name, (kind, n) in memory.chances.items()}
            dreaming = memory.advance(dreaming, a[t])
            dreaming, _, _ = memory.draw(dreaming, memory.expect(dreaming), noise)
            dreamt.append(dreaming["z"])

    clip = z[first:]
    rows: dict[str, NDArray[np.float32]] = {
        "real": frames.astype(np.float32) / np.float32(255),
        "seen by V": _decode(vision, clip),
        "M, one step\nahead": _decode(vision, torch.cat([clip[:1], torch.stack(foreseen)])),
        "M, open-loop\ndream": _decode(vision, torch.cat([clip[:1], torch.stack(dreamt)])),
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


def _decode(vision: Vision, z: Tensor) -> NDArray[np.float32]:
    """Latents f32[T,Z] to images f32[T,height,width,3] in [0,1]."""
    images: NDArray[np.float32] = vision.decode(z).permute(0, 2, 3, 1).cpu().numpy()
    return images


def _show(axes: Axes, image: NDArray[np.float32]) -> None:
    axes.imshow(image, vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
