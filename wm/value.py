"""What a state is worth: the return that the record shows after states like it. It stands for what follows a dream.

A dream is true to the world for about two seconds, and the skid that a state makes likely may come later. So a dream is
short, and a small network, fitted to recorded returns, adds what the next steps would have earned (as in Feinberg et
al., "Model-Based Value Estimation", 2018). So that a lost car costs what the rest of the episode would have brought,
the value of the state after those steps can count in turn (fitted value iteration, Ernst et al., 2005).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

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

SWEEPS = 5
"""Times that it is fitted to returns with a value after them, each going on from the time before."""

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
    discount: float = 0.0,
    pace: float = 0.0,
    seed: int,
) -> tuple[Value, float]:
    """Fits it to recorded returns.

    Args:
        model: M, on the CPU.
        training: Episodes to fit it to.
        held_out: Episodes that say how good it is.
        steps: Length of the returns.
        discount: Below 1; so much of the value of the state after these steps counts as well.
        pace: Above 0: returns count up to so many points a step.
        seed: Seed of the weights and the batches.

    Returns:
        The network, and the share of the variance of held-out returns, with what it says of the state after them, that
        it explains (nan without any).

    Raises:
        ValueError: No training episode is long enough.
    """
    most = pace * steps or float("inf")
    pairs = _pairs(model, training, steps, most)
    if not len(pairs.returns):
        raise ValueError(f"no recorded episode is longer than {AFTER} + {steps} steps")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        value = Value(pairs.features.shape[1])
    value.mean.copy_(pairs.features.mean(0))
    value.std.copy_(pairs.features.std(0, correction=0) + 1e-3)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(value.parameters(), lr=RATE, weight_decay=DECAY)
    for sweep in range(SWEEPS if discount else 1):
        # At first as if it went on as it was.
        targets = _targets(pairs, value if sweep else None, discount)
        for _ in range(UPDATES):
            batch = torch.randint(len(targets), (BATCH,), generator=generator)
            loss = ((value(pairs.features[batch]) - targets[batch]) / UNIT).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    value.requires_grad_(False)
    pairs = _pairs(model, held_out, steps, most)
    if not len(pairs.returns):
        return value, float("nan")
    targets = _targets(pairs, value, discount)
    return value, float(1 - (value(pairs.features) - targets).square().mean() / targets.var(correction=0))


class _Pairs(NamedTuple):
    """Moments of episodes, N in all.

    Attributes:
        features: f32[N,Z+H], [z; h] then.
        returns: f32[N], what the `steps` after each earned.
        later: f32[N,Z+H], [z; h] after these steps, where the record goes on so far.
        follows: bool[N], where it does.
        rest: f32[N], what as many steps more earn where it does not, since the car is lost.
    """

    features: Tensor
    returns: Tensor
    later: Tensor
    follows: Tensor
    rest: Tensor


@torch.no_grad()
def _targets(pairs: _Pairs, value: Value | None, discount: float) -> Tensor:
    """f32[N]: the returns, and the discounted value of what follows; without a value, as many steps like them."""
    if not discount:
        return pairs.returns
    on = pairs.returns / (1 - discount) if value is None else value(pairs.later)
    return pairs.returns + discount * torch.where(pairs.follows, on, pairs.rest / (1 - discount))


@torch.inference_mode()
def _pairs(model: MDNRNN, episodes: Iterable[LatentEpisode], steps: int, most: float = float("inf")) -> _Pairs:
    """The moments of episodes whose next `steps` steps are known; of their returns `most` count."""
    width = model.z + model.hidden
    found = [(np.empty((0, width), np.float32), np.empty((0, width), np.float32))]
    told = [(np.empty(0, np.float32), np.empty(0, np.bool_), np.empty(0, np.float32))]
    for episode in episodes:
        moments, returns = recorded_returns(episode, steps)
        inputs = torch.from_numpy(np.concatenate([episode.mu[:-1], episode.actions], axis=1))
        h, _ = model.lstm(inputs[None])
        # The agent's h at a frame is that of the frame before and its action.
        features = np.concatenate([episode.mu[1:], h[0].numpy()], axis=1)
        length = len(features)
        found.append((features[moments - 1], features[np.minimum(moments + steps, length) - 1]))
        rest = np.full(len(moments), steps * _tail(episode), np.float32)
        told.append((returns.clip(max=most), moments + steps <= length, rest))
    states = [torch.from_numpy(np.concatenate(part)) for part in zip(*found, strict=True)]
    numbers = [torch.from_numpy(np.concatenate(part)) for part in zip(*told, strict=True)]
    return _Pairs(features=states[0], returns=numbers[0], later=states[1], follows=numbers[1], rest=numbers[2])


def _fallen(episode: LatentEpisode) -> bool:
    """Whether it ended with a charge."""
    return bool(episode.terminated[-1]) and bool(episode.rewards[-1] < 0)


def _tail(episode: LatentEpisode) -> float:
    """What a step after the end of an episode would have earned, if nothing more was to come."""
    return 0.0 if _fallen(episode) else float(episode.rewards[-1])


def recorded_returns(episode: LatentEpisode, steps: int) -> tuple[NDArray[np.int64], Floats]:
    """Moments of an episode whose next `steps` steps are known, and what they earned.

    What follows the end is known where the car was lost, or the episode terminated with a charge: nothing more would
    have come, but for what its last step cost where it was idle.
    """
    rewards, length = episode.rewards, len(episode.rewards)
    idle = length > IDLE and not (rewards[-IDLE:] > 0).any()
    tail = np.full(steps, _tail(episode), np.float32)
    stop = length if idle or _fallen(episode) else length - steps + 1
    moments = np.arange(AFTER, max(AFTER, stop), EVERY)
    sums = np.concatenate([[0.0], np.concatenate([rewards, tail]).cumsum(dtype=np.float64)])
    return moments, (sums[moments + steps] - sums[moments]).astype(np.float32)
