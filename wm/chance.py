"""The chance of dreams: drawn out of M, or what was surprising in the record that a dream begins in.

Roads that M draws by itself are easier than real ones: each dimension of z is drawn for itself, so that the first
signs of a bend seldom agree and go by. What came after a start in the record had real bends. Given the
record, M says which draws would have led it there (abduction); a dream with those draws goes on as the record did if C
acts as was recorded, and else where M says that those other actions lead, on that road. This is the counterfactual
of Buesing et al., "Woulda, Coulda, Shoulda", 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from wm.envs.dream import draw_head_mask
from wm.memory.dream import Dreamer
from wm.memory.mdnrnn import MDNRNN, abduct
from wm.store.latents import LatentEpisode

LARGEST = 6.0
"""Recorded noise is cut there, in standard deviations: what M held for impossible says nothing of another moment."""


@dataclass(frozen=True)
class DreamNoise:
    """What all candidates of a generation dream under: the same starts and the same noise.

    So two candidates differ by what they do and not by their luck, and the noise is drawn once for all.

    Attributes:
        starts: i64[S], numbers of the starts.
        uniform: f32[T,S,Z] in [0, 1).
        noise: f32[T,S,Z], standard normal.
        head_mask: f32[S,H], factors on the h that M's heads see, the same at all steps of a dream; None: no dropout.
        members: i64[S], which M of the ensemble each dream is drawn by, 0 the run's own; those of one M are neighbours.
    """

    starts: NDArray[np.int64]
    uniform: NDArray[np.float32]
    noise: NDArray[np.float32]
    head_mask: NDArray[np.float32] | None
    members: NDArray[np.int64]


def draw_noise(
    rng: np.random.Generator, pool: int, dreams: int, horizon: int, model: Dreamer, dropout: float, members: int
) -> DreamNoise:
    """Draws `dreams` of `pool` starts, different ones while there are enough, and `horizon` steps of noise.

    Then the dropout, and which of the `members` M's draws which dreams: each as many as any other, up to one. The
    starts are in random order, so the first of them may go to the first M.
    """
    return DreamNoise(
        rng.choice(pool, dreams, replace=dreams > pool),
        rng.random((horizon, dreams, model.z), np.float32),
        rng.standard_normal((horizon, dreams, model.z), np.float32),
        draw_head_mask(rng, (dreams, model.hidden), dropout) if dropout else None,
        np.sort(rng.permutation(members)[np.arange(dreams) % members]),
    )


# --- the record -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """What chance did after each of N starts, as one M sees it.

    Attributes:
        uniform: f32[T,N,Z] in [0, 1).
        noise: f32[T,N,Z], in standard deviations.
        steps: i64[N], of how many of the T steps there is a record.
    """

    uniform: NDArray[np.float32]
    noise: NDArray[np.float32]
    steps: NDArray[np.int64]


def empty_record(starts: int, horizon: int, z: int) -> Record:
    """No step of any start, for `fill_record`."""
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
    """Writes the starts of one episode.

    Args:
        record: Of all starts.
        model: M.
        episode: The episode. What counts is V's mean, as for the agent.
        here: bool[N], which of the starts are moments of it.
        steps: i64[N], how many steps came before each start.
        seed: Seed of which component a z came from, which can only be guessed.
    """
    generator = torch.Generator().manual_seed(seed)
    mu = torch.from_numpy(episode.mu)[None]
    prediction, _ = model(mu[:, :-1], torch.from_numpy(episode.actions)[None])
    uniform, noise = (each[0].numpy() for each in abduct(prediction, mu[:, 1:], generator))
    noise = noise.clip(-LARGEST, LARGEST)
    for n in np.flatnonzero(here).tolist():
        known = slice(steps[n], steps[n] + len(record.noise))
        record.steps[n] = len(noise[known])
        record.uniform[: record.steps[n], n] = uniform[known]
        record.noise[: record.steps[n], n] = noise[known]


def use_recorded(dream_noise: DreamNoise, records: Sequence[Record]) -> DreamNoise:
    """A dream_noise with the chance of the record, and with its own where there is none.

    Args:
        dream_noise: As it was drawn.
        records: One for each M of the ensemble.
    """
    uniform, noise = dream_noise.uniform.copy(), dream_noise.noise.copy()
    for member, record in enumerate(records):
        dreams = np.flatnonzero(dream_noise.members == member)
        starts = dream_noise.starts[dreams]
        known = (np.arange(len(noise))[:, None] < record.steps[starts])[..., None]
        uniform[:, dreams] = np.where(known, record.uniform[: len(noise), starts], uniform[:, dreams])
        noise[:, dreams] = np.where(known, record.noise[: len(noise), starts], noise[:, dreams])
    return replace(dream_noise, uniform=uniform, noise=noise)
