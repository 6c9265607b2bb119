"""The noise of dreams: sampled, or inferred from the recorded episode in which a dream starts.

Roads that M samples are easier than real ones: M samples each dimension of z independently, so that the first signs of
a bend seldom agree and vanish. The recorded steps after a start contain real bends. Abduction infers the noise with
which M would have drawn the recorded latents. A dream with this noise follows the record if C acts as recorded; with
other actions it goes where M predicts that they lead on that road. This is the counterfactual of Buesing et al.,
"Woulda, Coulda, Shoulda", 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from wm.dream.fused import FusedMDNRNN
from wm.memory.mdnrnn import MDNRNN, abduct
from wm.store.latents import LatentEpisode

LARGEST = 6.0
"""Clip of inferred noise, in standard deviations. An event that M held impossible says nothing about other actions."""


@dataclass(frozen=True)
class DreamNoise:
    """The starts and the noise of S dreams, shared by all candidates of a generation.

    Common random numbers: two candidates differ by their actions and not by chance, and the noise is drawn only once.

    Attributes:
        starts: i64[S], numbers of the starts.
        uniform: f32[T,S,Z] in [0, 1), chooses the mixture components.
        noise: f32[T,S,Z], standard normal.
        head_mask: f32[S,H], factors on the h that M's heads read, the same at all steps of a dream; None: no dropout.
        members: i64[S], ascending: the M of the ensemble that draws each dream, 0 for the run's own.
    """

    starts: NDArray[np.int64]
    uniform: NDArray[np.float32]
    noise: NDArray[np.float32]
    head_mask: NDArray[np.float32] | None
    members: NDArray[np.int64]


def draw_noise(
    rng: np.random.Generator, pool: int, dreams: int, horizon: int, model: FusedMDNRNN, dropout: float, members: int
) -> DreamNoise:
    """Draws the starts and the noise of a generation.

    Args:
        rng: Source of all draws, in this order: starts, uniform, noise, head mask, members.
        pool: Number of starts to choose from; the chosen ones are different if there are enough.
        dreams: S, number of dreams.
        horizon: T, steps per dream.
        model: M, for the sizes Z and H.
        dropout: Probability that a unit of h is masked, in [0, 1).
        members: Number of M's. Each draws the same number of dreams, up to one. Neighbouring dreams share an M, which
            is fair since the starts are in random order.
    """
    return DreamNoise(
        rng.choice(pool, dreams, replace=dreams > pool),
        rng.random((horizon, dreams, model.z), np.float32),
        rng.standard_normal((horizon, dreams, model.z), np.float32),
        draw_head_mask(rng, (dreams, model.hidden), dropout) if dropout else None,
        np.sort(rng.permutation(members)[np.arange(dreams) % members]),
    )


@dataclass(frozen=True)
class Record:
    """The inferred noise of the recorded steps after each of N starts, for one M.

    Attributes:
        uniform: f32[T,N,Z] in [0, 1).
        noise: f32[T,N,Z], in standard deviations.
        steps: i64[N], how many of the T steps are recorded.
    """

    uniform: NDArray[np.float32]
    noise: NDArray[np.float32]
    steps: NDArray[np.int64]


def empty_record(starts: int, horizon: int, z: int) -> Record:
    """A record without any steps, to be filled by `fill_record`."""
    shape = (horizon, starts, z)
    return Record(np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(starts, np.int64))


@torch.inference_mode()
def fill_record(
    record: Record,
    model: MDNRNN,
    episode: LatentEpisode,
    here: NDArray[np.bool_],
    steps: NDArray[np.int64],
    seed: int = 0,
) -> None:
    """Infers the noise after all starts in one episode and writes it into `record`.

    Args:
        record: The record of all starts; it is changed in place.
        model: M.
        episode: The episode. z is V's mean, as for the agent.
        here: bool[N], which of the starts are in this episode.
        steps: i64[N], number of recorded steps before each start.
        seed: Seed of the mixture components, which can only be sampled from their posterior.
    """
    generator = torch.Generator().manual_seed(seed)
    mu = torch.from_numpy(episode.mu)[None]  # [1,T+1,Z]
    prediction, _ = model(mu[:, :-1], torch.from_numpy(episode.actions)[None])
    uniform, noise = (each[0].numpy() for each in abduct(prediction, mu[:, 1:], generator))  # [T,Z] each
    noise = noise.clip(-LARGEST, LARGEST)  # [T,Z]
    for n in np.flatnonzero(here).tolist():
        known = slice(steps[n], steps[n] + len(record.noise))
        record.steps[n] = len(noise[known])
        record.uniform[: record.steps[n], n] = uniform[known]
        record.noise[: record.steps[n], n] = noise[known]


def use_recorded(dream_noise: DreamNoise, records: Sequence[Record]) -> DreamNoise:
    """Replaces drawn noise by recorded noise, as far as the records go.

    Args:
        dream_noise: The drawn noise; it stays as it is.
        records: One for each M of the ensemble.
    """
    uniform, noise = dream_noise.uniform.copy(), dream_noise.noise.copy()
    for member, record in enumerate(records):
        dreams = np.flatnonzero(dream_noise.members == member)
        starts = dream_noise.starts[dreams]
        known = (np.arange(len(noise))[:, None] < record.steps[starts])[..., None]  # [T,S,1]
        uniform[:, dreams] = np.where(known, record.uniform[: len(noise), starts], uniform[:, dreams])
        noise[:, dreams] = np.where(known, record.noise[: len(noise), starts], noise[:, dreams])
    return replace(dream_noise, uniform=uniform, noise=noise)


def draw_head_mask(rng: np.random.Generator, shape: tuple[int, ...], dropout: float) -> NDArray[np.float32]:
    """Dropout factors, f32 of the given shape: 0 with probability `dropout`, else 1 / (1 - dropout)."""
    return (rng.random(shape, np.float32) >= dropout).astype(np.float32) / np.float32(1 - dropout)
