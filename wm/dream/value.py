"""The value of a state: the expected return of the next steps, fitted to recorded returns. It is added to a dream.

A dream is accurate for about two seconds, but a skid that a state makes likely may come later. So dreams are short, and
a small network, fitted to recorded returns, adds the return of the steps after them (as in Feinberg et al.,
"Model-Based Value Estimation", 2018).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wm.config.vmc import DreamConfig
from wm.contracts import Network
from wm.dream.networks import Networks, split_latents
from wm.envs.task import Task
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.store.latents import LatentEpisode

UNITS = 48
"""Units of the hidden layer."""

UPDATES, BATCH, RATE, DECAY = 500, 512, 2e-3, 0.05
"""AdamW's updates, batch, learning rate and weight decay. Updates are few, since any new M or data needs a new fit."""

EVERY = 3
"""Steps between the moments of an episode that are fitted; neighbouring moments are alike."""

UNIT = 100.0
"""Points per unit of the network's output."""

Floats = NDArray[np.float32]


class Value(nn.Module):
    """Maps C's features to the expected return of the next steps.

    Attributes:
        mean: f32[F], mean of the features in the fit.
        std: f32[F], their standard deviations.
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
        """f32[...,F] to the return f32[...], in points."""
        value: Tensor = self.net((features - self.mean) / self.std)[..., 0]  # [...,1] to [...]
        return value * UNIT


def fit_value(
    model: Network,
    task: Task,
    training: Iterable[LatentEpisode],
    held_out: Iterable[LatentEpisode],
    *,
    steps: int,
    seed: int,
) -> tuple[Value, float]:
    """Fits the value to recorded returns.

    Args:
        model: M, on the CPU.
        task: The environment, for what the ends of its episodes mean.
        training: Episodes to fit.
        held_out: Episodes for R².
        steps: Length of the returns in steps.
        seed: Seed of the weights and the batches.

    Returns:
        The network, and R² on held-out returns (nan without any).

    Raises:
        ValueError: No training episode is long enough.
    """
    features, returns = _pairs(model, task, training, steps)
    if not len(returns):
        raise ValueError(f"no recorded episode is longer than {task.settled} + {steps} steps")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        value = Value(features.shape[1])
    value.mean.copy_(features.mean(0))
    value.std.copy_(features.std(0, correction=0) + 1e-3)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(value.parameters(), lr=RATE, weight_decay=DECAY)
    for _ in range(UPDATES):
        batch = torch.randint(len(returns), (BATCH,), generator=generator)  # [BATCH]
        loss = ((value(features[batch]) - returns[batch]) / UNIT).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    value.requires_grad_(False)
    features, returns = _pairs(model, task, held_out, steps)
    if not len(returns):
        return value, float("nan")
    return value, float(1 - (value(features) - returns).square().mean() / returns.var(correction=0))


@torch.inference_mode()
def _pairs(model: Network, task: Task, episodes: Iterable[LatentEpisode], steps: int) -> tuple[Tensor, Tensor]:
    """Features f32[N,F] of all moments whose next `steps` steps are known, and their returns f32[N]."""
    found = [(np.empty((0, model.features), np.float32), np.empty(0, np.float32))]
    for episode in episodes:
        moments, returns = recorded_returns(episode, task, steps)
        features = model.follow(torch.from_numpy(episode.mu), torch.from_numpy(episode.actions)).numpy()  # [T+1,F]
        found.append((features[moments], returns))
    states, earned = (torch.from_numpy(np.concatenate(part)) for part in zip(*found, strict=True))
    return states, earned


def _fallen(episode: LatentEpisode) -> bool:
    """Whether the episode terminated with a negative reward."""
    return bool(episode.terminated[-1]) and bool(episode.rewards[-1] < 0)


def recorded_returns(episode: LatentEpisode, task: Task, steps: int) -> tuple[NDArray[np.int64], Floats]:
    """Moments i64[N] of an episode whose next `steps` steps are known, and their returns f32[N].

    Steps after the end are known in two cases. After a termination with a negative reward they earn nothing. After an
    idle end (`task.idle`), each costs the same as the last step.
    """
    rewards, length = episode.rewards, len(episode.rewards)
    idle = length > task.idle and not (rewards[-task.idle :] > 0).any()
    tail = np.full(steps, 0.0 if _fallen(episode) else rewards[-1], np.float32)
    stop = length if idle or _fallen(episode) else length - steps + 1
    moments = np.arange(task.settled, max(task.settled, stop), EVERY)
    sums = np.concatenate([[0.0], np.concatenate([rewards, tail]).cumsum(dtype=np.float64)])  # [T+steps+1]
    return moments, (sums[moments + steps] - sums[moments]).astype(np.float32)


def make_value(run: Run, networks: Networks, config: DreamConfig, seed: int) -> tuple[Value, float]:
    """Fits the value to the run's recorded episodes, or to the newest `config.fresh`.

    Returns:
        As `fit_value`: the network, and R² on held-out returns (nan without any).

    Raises:
        UserError: latents.h5 is missing, damaged or of another V, or its episodes are too short.
    """
    latents, training, held_out = split_latents(run, networks)
    training = training[-config.fresh :]
    held_out = held_out[held_out > training[0]]  # returns of slow cars would not test the value of fast ones
    episodes = [map(latents.episode, part.tolist()) for part in (training, held_out)]
    try:
        return fit_value(networks.memory, networks.task, *episodes, steps=config.value, seed=seed)
    except ValueError as error:
        raise UserError(
            f"--value {config.value} is too long ({error}): give fewer steps, or collect longer episodes."
        ) from error
