"""Calibration of M's heads: predicted probabilities against observed rates, and dreamt returns against real ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from wm.contracts import Foresees, Posterior, State
from wm.dream.networks import Networks
from wm.dream.starts import warm_up
from wm.dream.step import dream_step
from wm.store.latents import Latents
from wm.store.starts import Starts

Array = NDArray[np.float64]

BINS = 10
"""Bins of a reliability diagram, with equal numbers of steps."""
CLIP_STEPS = 100
"""Length in steps of the clips that are dreamt again."""
CLIPS = 64
"""Maximum number of clips."""
SAMPLES = 8
"""Dreams per clip."""


@dataclass(frozen=True)
class Reliability:
    """Predicted probabilities and observed rates in bins of equal numbers of steps, by rising probability.

    Attributes:
        predicted: f64[bins], mean predicted probability, 0 to 1.
        observed: f64[bins], fraction of the steps in which the event happened, 0 to 1.
        count: i64[bins], number of steps.
    """

    predicted: Array
    observed: Array
    count: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Mean absolute difference of predicted and observed over all steps (the expected calibration error)."""
        return float(np.average(np.abs(self.predicted - self.observed), weights=self.count))

    @property
    def rates(self) -> tuple[float, float]:
        """Mean predicted probability over all steps, and the observed rate."""
        weights = self.count
        return float(np.average(self.predicted, weights=weights)), float(np.average(self.observed, weights=weights))


def reliability(probability: Array, came: NDArray[np.bool_], bins: int = BINS) -> Reliability:
    """Sorts steps by probability into `bins` bins, or fewer if there are fewer steps.

    Args:
        probability: f64[N], predicted probabilities.
        came: bool[N], whether the event happened.
        bins: Maximum number of bins.
    """
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return Reliability(
        np.array([probability[part].mean() for part in parts]),
        np.array([came[part].mean() for part in parts]),
        np.array([len(part) for part in parts]),
    )


@torch.inference_mode()
def head_reliability(
    latents: Latents, episodes: NDArray[np.int64], networks: Networks, seed: int = 0
) -> dict[str, Reliability]:
    """Reliability of M's one-step predictions over whole episodes that M was not trained on.

    Args:
        latents: The recorded episodes.
        episodes: i64[N], places of the episodes in `latents`.
        networks: V and M.
        seed: Seed of the draws of z from V's posterior, as in training.

    Returns:
        By head: "terminated", and "pulse" if the reward head predicts pulses. Nothing if M has no such heads
        (`wm.contracts.Foresees`).
    """
    if not hasattr(networks.memory, "foresee"):
        return {}
    generator = torch.Generator().manual_seed(seed)
    logits: dict[str, list[NDArray[np.float32]]] = {}
    came: dict[str, list[NDArray[np.bool_]]] = {"pulse": [], "terminated": []}
    for place in episodes.tolist():
        episode = latents.episode(place)
        posterior = Posterior(torch.from_numpy(episode.mu), torch.from_numpy(episode.logvar))
        z = networks.vision.latent(posterior, generator)  # [T+1,Z]
        foreseen = cast(Foresees, networks.memory).foresee(z, torch.from_numpy(episode.actions))
        for head, values in foreseen.items():
            logits.setdefault(head, []).append(values.numpy())  # [T]
        came["pulse"].append(episode.rewards > 0)
        came["terminated"].append(episode.terminated)
    found = {}
    for head in logits:
        probability = 1 / (1 + np.exp(-np.concatenate(logits[head]).astype(np.float64)))
        found[head] = reliability(probability, np.concatenate(came[head]))
    return found


@dataclass(frozen=True)
class ClipRewards:
    """Rewards of C recorded clips of T steps, and of dreams from the same moments with the same actions.

    Attributes:
        real: f64[C,T].
        dreamt: f64[C,SAMPLES,T], expected rewards, including terminations.
    """

    real: Array
    dreamt: Array

    @property
    def returns(self) -> tuple[Array, Array]:
        """Return of each clip: real f64[C], and the mean over its dreams f64[C]."""
        return self.real.sum(1), self.dreamt.sum(2).mean(1)

    def numbers(self) -> dict[str, float]:
        """Mean return per clip, "real" and "dreamt"; over clips their "correlation" and root mean square "error"."""
        real, dreamt = self.returns
        varies = real.std() > 0 and dreamt.std() > 0
        return {
            "real": float(real.mean()),
            "dreamt": float(dreamt.mean()),
            "correlation": float(np.corrcoef(real, dreamt)[0, 1]) if varies else 0.0,
            "error": float(np.sqrt(np.mean((real - dreamt) ** 2))),
        }


@torch.inference_mode()
def dream_clips(
    latents: Latents, episodes: NDArray[np.int64], networks: Networks, starts: Starts, *, after: int, seed: int = 0
) -> ClipRewards:
    """Dreams clips of recorded episodes open-loop: M gets the first moment and the recorded actions.

    Args:
        latents: The recorded episodes.
        episodes: i64[N], places of the episodes. Long enough episodes are cut into clips from step `after` on.
        networks: V and M.
        starts: Source of the mean rewards.
        after: Steps before the first clip, as for `draw_starts`; less if no episode is longer.
        seed: Seed of the dreams.
    """
    lengths = latents.table["length"][episodes]
    after = min(after, int(lengths.max()) // 2)
    steps = min(CLIP_STEPS, int(lengths.max()) - after)
    firsts = [
        (place, first)
        for place, length in zip(episodes.tolist(), lengths.tolist(), strict=True)
        for first in range(after, length - steps + 1, steps)
    ]
    chosen = [firsts[i] for i in np.unique(np.linspace(0, len(firsts) - 1, min(CLIPS, len(firsts))).astype(int))]
    cell = networks.memory.acting()()
    begin, actions, real = [], [], []
    for place, first in chosen:
        episode = latents.episode(place)
        begin.append(warm_up(cell, episode, np.array([first])))
        actions.append(episode.actions[first : first + steps])
        real.append(episode.rewards[first : first + steps])

    memory = networks.memory.dreaming(starts.pays)
    state: State = {  # [C,SAMPLES,size]
        name: torch.from_numpy(np.stack([each[name] for each in begin])).expand(-1, SAMPLES, -1) for name in begin[0]
    }
    a = torch.from_numpy(np.stack(actions))[:, None].expand(-1, SAMPLES, -1, -1)  # [C,SAMPLES,T,A]
    generator = torch.Generator().manual_seed(seed)
    end, alive, dreamt = starts.pays.end, torch.ones(len(chosen), SAMPLES), []
    for t in range(steps):
        noise = {
            name: (torch.rand if kind == "uniform" else torch.randn)((*alive.shape, size), generator=generator)
            for name, (kind, size) in memory.chances.items()
        }
        state, reward, terminated = dream_step(memory, state, a[:, :, t], noise)
        dreamt.append(alive * torch.lerp(reward, torch.tensor(end), terminated))  # [C,SAMPLES]
        alive = alive * (1 - terminated)
    return ClipRewards(np.stack(real).astype(np.float64), torch.stack(dreamt, -1).double().numpy())
