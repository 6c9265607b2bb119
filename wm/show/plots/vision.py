"""Plots of V: reconstructions and latent traversals of validation frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from wm.contracts import Vision
from wm.show.plots.figure import save_figure
from wm.vision.vae import as_frames, as_input

Frames = NDArray[np.uint8]

COLUMNS = 12
"""Number of frames in the reconstructions."""
ROWS = 12
"""Number of latent dimensions in the traversals, those with the largest KL."""
VALUES = np.linspace(-3, 3, 9)
"""Values of a traversed dimension; the prior's standard deviation is 1."""
GAP = 4
"""Pixels between pictures."""


@torch.no_grad()
def plot_reconstructions(path: Path, model: Vision, frames: Frames) -> None:
    """Draws frames above V's reconstructions through z = mu, with the squared error of each.

    Args:
        path: The PNG to write.
        model: V in eval mode, on any device.
        frames: u8[N,height,width,3]; up to 12 of them, spread evenly, are shown.
    """
    chosen = frames[np.linspace(0, len(frames) - 1, min(COLUMNS, len(frames))).astype(int)]
    x = as_input(torch.from_numpy(chosen).to(_device(model)))
    reconstruction = model.decode(model.encode(x)[0])
    errors = (x - reconstruction).square().flatten(1).sum(1).tolist()

    figure, axes = _grid(np.stack([chosen, as_frames(reconstruction)]))
    axes.set_xticks(axes.get_xticks(), [f"{error:.1f}" for error in errors])
    axes.set_yticks(axes.get_yticks(), ["frame", "V"])
    axes.set_title("validation frames and their reconstructions; below: squared error per image")
    save_figure(path, figure)


@torch.no_grad()
def plot_traversals(path: Path, model: Vision, frame: Frames, kl: Sequence[float]) -> None:
    """Draws V's decoded images when one latent dimension changes and the others stay as in one frame.

    Args:
        path: The PNG to write.
        model: V in eval mode, on any device.
        frame: u8[height,width,3].
        kl: Mean KL of each latent dimension, nats; a row each for the 12 largest. Empty: it has none, the first 12.
    """
    mu, _ = model.encode(as_input(torch.from_numpy(frame[None]).to(_device(model))))
    largest = sorted(range(model.z), key=lambda i: -kl[i] if kl else i)[:ROWS]
    z = mu.repeat(len(largest), len(VALUES), 1)  # [D,S,Z]
    for row, i in enumerate(largest):
        z[row, :, i] = torch.from_numpy(VALUES).to(z)
    images = as_frames(model.decode(z.flatten(0, 1)))
    figure, axes = _grid(images.reshape(len(largest), len(VALUES), *images.shape[1:]))
    axes.set_xticks(axes.get_xticks(), [f"{value:+.1f}" for value in VALUES])
    axes.set_yticks(axes.get_yticks(), [f"z[{i}]" + (f"\nKL {kl[i]:.2f}" if kl else "") for i in largest])
    axes.set_title("one latent dimension changed, the others as in one validation frame")
    save_figure(path, figure)


def _device(model: Vision) -> torch.device:
    """Where a model's weights lie; the CPU if it has none."""
    weights = next(cast(nn.Module, model).parameters(), None)
    return torch.device("cpu") if weights is None else weights.device


def _grid(images: Frames) -> tuple[Figure, Axes]:
    """Frames u8[R,C,height,width,3] as one picture, with a tick in the middle of each row and column."""
    rows, columns, height, width = images.shape[:4]
    down, across = height + GAP, width + GAP
    canvas = np.full((rows * down, columns * across, 3), 255, np.uint8)
    for row, column in np.ndindex(rows, columns):
        canvas[row * down : row * down + height, column * across : column * across + width] = images[row, column]
    figure = Figure(figsize=(columns + 1, rows + 0.8), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(canvas)
    axes.set_xticks(np.arange(columns) * across + (width - 1) / 2)
    axes.set_yticks(np.arange(rows) * down + (height - 1) / 2)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure, axes
