"""What a state is worth: the return that the record shows after states like it. It stands for what follows a dream.

A dream is true to the world for about two seconds, and the skid that a state makes likely may come later. So a dream is
short, and a small network, fitted to recorded returns, adds what the next steps would have earned (as in Feinberg et
al., "Model-Based Value Estimation", 2018).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wm.memory.mdnrnn import MDNRNN
from wm.store.latents import LatentEpisode

UNITS = 48
"""Of the hidden layer."""

UPDATES, BATCH, RATE, DECAY = 500, 512, 2e-3, 0.05
"""Of AdamW. They are few: it is fitted anew whenever M or the record has changed."""

EVERY = 3
"""Steps between the moments of an episode that it is fitted to; neighbours are alike."""

AFTER = 60
"""First such moment: CarRacing zooms in for 50 steps."""

IDLE = 50
"""An episode without a reward in its last so many steps would have gone on like that: the car is lost."""

UNIT = 100.0
"""Points that the network's output counts in."""

Floats = NDArray[np.float32]


class Value(nn.Module):
    """[z; h] to the return of the steps from there on.

    Attributes:
        mean: f32[Z+H] of the features that it was fitted to.
        std: f32[Z+H], their standard deviations.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: int) -> None:
        """Builds it with torch's own initial weights."""
        super().__init__()
        self.net = nn.Sequential(nn.Linear(features, UNITS), nn.Tanh(), nn.Linear(UNITS, 1))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    def forward(self, features: Tensor) -> Tensor:
        """f32[...,Z+H] to f32[...], in points."""
        value: Tensor = self.net((features - self.mean) / self.std)[..., 0]
        return value * UNIT


def fit_value(
    model: MDNRNN,
    training: Iterable[LatentEpisode],
    held_out: Iterable[LatentEpisode],
    *,
    steps: int,
    seed: int,
) -> tuple[Value, float]:
    """Fits it to recorded returns.

    Args:
        model: M, on the CPU.
        training: Episodes to fit it to.
        held_out: Episodes that say how good it is.
        steps: Length of the returns.
        seed: Seed of the weights and the batches.

    Returns:
        The network, and the share of the variance of held-out returns that it explains (nan without any).

    Raises:
        ValueError: No training episode is long enough.
    """
    features, returns = _pairs(model, training, steps)
    if not len(returns):
        raise ValueError(f"no recorded episode is longer than {AFTER} + {steps} steps")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        value = Value(features.shape[1])
    value.mean.copy_(features.mean(0))
    value.std.copy_(features.std(0, correction=0) + 1e-3)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(value.parameters(), lr=RATE, weight_decay=DECAY)
    for _ in range(UPDATES):
        batch = torch.randint(len(returns), (BATCH,), generator=generator)
        loss = ((value(features[batch]) - returns[batch]) / UNIT).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    value.requires_grad_(False)
    features, returns = _pairs(model, held_out, steps)
    if not len(returns):
        return value, float("nan")
    return value, float(1 - (value(features) - returns).square().mean() / returns.var(correction=0))


@torch.inference_mode()
def _pairs(model: MDNRNN, episodes: Iterable[LatentEpisode], steps: int) -> tuple[Tensor, Tensor]:
    """Of moments whose next `steps` steps are known: [z; h] f32[N,Z+H], and what these steps earned f32[N]."""
    found = [(np.empty((0, model.z + model.hidden), np.float32), np.empty(0, np.float32))]
    for episode in episodes:
        moments, returns = recorded_returns(episode, steps)
        inputs = torch.from_numpy(np.concatenate([episode.mu[:-1], episode.actions], axis=1))
        h, _ = model.lstm(inputs[None])
        # The agent's h at a frame is that of the frame before and its action.
        features = np.concatenate([episode.mu[1:], h[0].numpy()], axis=1)
        found.append((features[moments - 1], returns))
    states, earned = (torch.from_numpy(np.concatenate(part)) for part in zip(*found, strict=True))
    return states, earned


def _fallen(episode: LatentEpisode) -> bool:
    """Whether it ended with a charge."""
    return bool(episode.terminated[-1]) and bool(episode.rewards[-1] < 0)


def recorded_returns(episode: LatentEpisode, steps: int) -> tuple[NDArray[np.int64], Floats]:
    """Moments of an episode whose next `steps` steps are known, and what they earned.

    What follows the end is known where the car was lost, or the episode terminated with a charge: nothing more would
    have come, but for what its last step cost where it was idle.
    """
    rewards, length = episode.rewards, len(episode.rewards)
    idle = length > IDLE and not (rewards[-IDLE:] > 0).any()
    tail = np.full(steps, 0.0 if _fallen(episode) else rewards[-1], np.float32)
    stop = length if idle or _fallen(episode) else length - steps + 1
    moments = np.arange(AFTER, max(AFTER, stop), EVERY)
    sums = np.concatenate([[0.0], np.concatenate([rewards, tail]).cumsum(dtype=np.float64)])
    return moments, (sums[moments + steps] - sums[moments]).astype(np.float32)
