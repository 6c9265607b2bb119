"""How far M's heads can be believed: their probabilities against what came, and dreamed returns against real ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from wm.dream import Networks, make_cell, make_dreamer, warm_up
from wm.memory.mdnrnn import draw
from wm.store.latents import Latents
from wm.store.starts import Starts

Array = NDArray[np.float64]

BINS = 10
"""Bins of a reliability diagram; each holds as many steps."""
CLIP_STEPS = 100
"""Length of the clips whose rewards are dreamt again: two seconds."""
CLIPS = 64
"""Most clips."""
SAMPLES = 8
"""Dreams of each clip."""


@dataclass(frozen=True)
class Reliability:
    """Predicted probabilities beside what came, in bins of equal numbers of steps, by rising probability.

    Attributes:
        predicted: f64[bins], mean probability.
        observed: f64[bins], share of steps where it came true.
        count: i64[bins], steps.
    """

    predicted: Array
    observed: Array
    count: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Mean distance of predicted and observed over all steps (the expected calibration error)."""
        return float(np.average(np.abs(self.predicted - self.observed), weights=self.count))

    @property
    def rates(self) -> tuple[float, float]:
        """Mean probability over all steps, and the share of them where it came true."""
        weights = self.count
        return float(np.average(self.predicted, weights=weights)), float(np.average(self.observed, weights=weights))


def reliability(probability: Array, came: NDArray[np.bool_], bins: int = BINS) -> Reliability:
    """Sorts steps by probability into at most `bins` bins; fewer where there are not as many steps."""
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
    """Reliability of M's heads over whole episodes that it was not trained on, one step ahead of the record.

    Args:
        latents: The record.
        episodes: Places of the episodes.
        networks: V and M.
        seed: Of the draws of z from V's posterior, as in training.

    Returns:
        "terminated", and "tile" if that is what the reward head predicts.
    """
    generator = torch.Generator().manual_seed(seed)
    logits: dict[str, list[NDArray[np.float32]]] = {"tile": [], "terminated": []}
    came: dict[str, list[NDArray[np.bool_]]] = {"tile": [], "terminated": []}
    for place in episodes.tolist():
        episode = latents.episode(place)
        z = draw(torch.from_numpy(episode.mu), torch.from_numpy(episode.logvar), generator)
        prediction, _ = networks.mdnrnn(z[None, :-1], torch.from_numpy(episode.actions)[None])
        logits["tile"].append(prediction.reward[0].numpy())
        logits["terminated"].append(prediction.terminated[0].numpy())
        came["tile"].append(episode.rewards > 0)
        came["terminated"].append(episode.terminated)
    heads = ("tile", "terminated") if networks.mdnrnn.reward == "tile" else ("terminated",)
    found = {}
    for head in heads:
        probability = 1 / (1 + np.exp(-np.concatenate(logits[head]).astype(np.float64)))
        found[head] = reliability(probability, np.concatenate(came[head]))
    return found


@dataclass(frozen=True)
class ClipRewards:
    """Rewards of recorded clips, and of dreams from the same moments under the same actions.

    Attributes:
        real: f64[C,T].
        dreamt: f64[C,SAMPLES,T], expected rewards, terminations included.
    """

    real: Array
    dreamt: Array

    @property
    def returns(self) -> tuple[Array, Array]:
        """Sums over each clip: real f64[C], and the mean of its dreams f64[C]."""
        return self.real.sum(1), self.dreamt.sum(2).mean(1)

    def numbers(self) -> dict[str, float]:
        """Mean return of a clip, "real" and "dreamt"; their "correlation" over clips and root mean square "error"."""
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
    """Dreams clips of recorded episodes again, open-loop: M is given the first moment and the recorded actions.

    Args:
        latents: The record.
        episodes: Places of the episodes; those that are long enough are cut into clips from step `after` on.
        networks: V and M.
        starts: What rewards are worth.
        after: Steps before the first clip, as for `draw_starts`; less if no episode is longer.
        seed: Of the dreams.
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
    cell = make_cell(networks.mdnrnn)
    begin, actions, real = [], [], []
    for place, first in chosen:
        episode = latents.episode(place)
        begin.append((episode.mu[first], *(part[0] for part in warm_up(cell, episode, np.array([first])))))
        actions.append(episode.actions[first : first + steps])
        real.append(episode.rewards[first : first + steps])

    dreamer = make_dreamer(networks.mdnrnn, starts, temperature=1.0)
    shape = (len(chosen), SAMPLES, -1)
    z, h, c = (torch.from_numpy(np.stack(part))[:, None].expand(shape) for part in zip(*begin, strict=True))
    a = torch.from_numpy(np.stack(actions))[:, None].expand(-1, SAMPLES, -1, -1)
    generator = torch.Generator().manual_seed(seed)
    end, alive, dreamt = float(starts.rewards[2]), torch.ones(len(chosen), SAMPLES), []
    for t in range(steps):
        uniform, noise = torch.rand(z.shape, generator=generator), torch.randn(z.shape, generator=generator)
        z, h, c, reward, terminated = dreamer.step(z, h, c, a[:, :, t], uniform, noise)
        dreamt.append(alive * torch.lerp(reward, torch.tensor(end), terminated))
        alive = alive * (1 - terminated)
    return ClipRewards(np.stack(real).astype(np.float64), torch.stack(dreamt, -1).double().numpy())
