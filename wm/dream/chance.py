"""The noise of dreams: sampled, or inferred from the recorded episode in which a dream starts.

What M samples is easier than the real thing: M samples each dimension of z independently, so that the first signs of
an event, such as a bend, seldom agree and vanish. The recorded steps after a start contain real events. Abduction
infers the noise with which M would have drawn the recorded latents. A dream with this noise follows the record if C
acts as recorded; with other actions it goes where M predicts that they lead there. This is the counterfactual of
Buesing et al., "Woulda, Coulda, Shoulda", 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from wm.contracts import Abducts, Chances, Memory, Network
from wm.store.latents import LatentEpisode

LARGEST = 6.0
"""Clip of inferred noise, in standard deviations. An event that M held impossible says nothing about other actions."""


@dataclass(frozen=True)
class DreamNoise:
    """The starts and the noise of S dreams, shared by all candidates of a generation.

    Common random numbers: two candidates differ by their actions and not by chance, and the noise is drawn only once.

    Attributes:
        starts: i64[S], numbers of the starts.
        noise: f32[T,S,size] of each name, as `Memory.chances` has them.
        head_mask: f32[S,masked], factors on what M's heads read, the same at all steps of a dream; None: no dropout.
        members: i64[S], ascending: the M of the ensemble that draws each dream, 0 for the run's own.
    """

    starts: NDArray[np.int64]
    noise: Mapping[str, NDArray[np.float32]]
    head_mask: NDArray[np.float32] | None
    members: NDArray[np.int64]


def draw_noise(
    rng: np.random.Generator, pool: int, dreams: int, horizon: int, model: Memory, dropout: float, members: int
) -> DreamNoise:
    """Draws the starts and the noise of a generation.

    Args:
        rng: Source of all draws, in this order: starts, noise, head mask, members.
        pool: Number of starts to choose from; the chosen ones are different if there are enough.
        dreams: S, number of dreams.
        horizon: T, steps per dream.
        model: M, for the sizes of its noise and mask.
        dropout: Probability that a unit is masked, in [0, 1).
        members: Number of M's. Each draws the same number of dreams, up to one. Neighbouring dreams share an M, which
            is fair since the starts are in random order.
    """
    return DreamNoise(
        rng.choice(pool, dreams, replace=dreams > pool),
        {name: draws(rng, kind, (horizon, dreams, size)) for name, (kind, size) in model.chances.items()},
        draw_head_mask(rng, (dreams, model.masked), dropout) if dropout else None,
        np.sort(rng.permutation(members)[np.arange(dreams) % members]),
    )


def draws(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Draws of a distribution of `Memory.chances`, f32 of the given shape."""
    return rng.random(shape, np.float32) if kind == "uniform" else rng.standard_normal(shape, np.float32)


@dataclass(frozen=True)
class Record:
    """The inferred noise of the recorded steps after each of N starts, for one M.

    Attributes:
        noise: f32[T,N,size] of each name.
        steps: i64[N], how many of the T steps are recorded.
        normal: Names of the noises that are standard normal.
    """

    noise: Mapping[str, NDArray[np.float32]]
    steps: NDArray[np.int64]
    normal: frozenset[str]


def empty_record(starts: int, horizon: int, chances: Chances) -> Record:
    """A record without any steps, to be filled by `fill_record`."""
    noise = {name: np.zeros((horizon, starts, size), np.float32) for name, (_, size) in chances.items()}
    normal = frozenset(name for name, (kind, _) in chances.items() if kind == "normal")
    return Record(noise, np.zeros(starts, np.int64), normal)


@torch.inference_mode()
def fill_record(
    record: Record,
    model: Network,
    episode: LatentEpisode,
    here: NDArray[np.bool_],
    steps: NDArray[np.int64],
    seed: int = 0,
) -> None:
    """Infers the noise after all starts in one episode and writes it into `record`.

    Args:
        record: The record of all starts; it is changed in place.
        model: M, which can tell its noise (`wm.contracts.Abducts`).
        episode: The episode. z is V's mean, as for the agent.
        here: bool[N], which of the starts are in this episode.
        steps: i64[N], number of recorded steps before each start.
        seed: Seed of what can only be sampled from its posterior, such as mixture components.
    """
    generator = torch.Generator().manual_seed(seed)
    told = cast(Abducts, model).abduct(torch.from_numpy(episode.mu), torch.from_numpy(episode.actions), generator)
    for name, values in told.items():
        noise = values.numpy()  # [T,size]
        if name in record.normal:
            noise = noise.clip(-LARGEST, LARGEST)
        for n in np.flatnonzero(here).tolist():
            known = noise[steps[n] : steps[n] + len(record.noise[name])]
            record.steps[n] = len(known)
            record.noise[name][: len(known), n] = known


def use_recorded(dream_noise: DreamNoise, records: Sequence[Record]) -> DreamNoise:
    """Replaces drawn noise by recorded noise, as far as the records go.

    Args:
        dream_noise: The drawn noise; it stays as it is.
        records: One for each M of the ensemble.
    """
    noise = {name: drawn.copy() for name, drawn in dream_noise.noise.items()}
    for member, record in enumerate(records):
        dreams = np.flatnonzero(dream_noise.members == member)
        starts = dream_noise.starts[dreams]
        for name, drawn in noise.items():
            known = (np.arange(len(drawn))[:, None] < record.steps[starts])[..., None]  # [T,S,1]
            drawn[:, dreams] = np.where(known, record.noise[name][: len(drawn), starts], drawn[:, dreams])
    return replace(dream_noise, noise=noise)


def draw_head_mask(rng: np.random.Generator, shape: tuple[int, ...], dropout: float) -> NDArray[np.float32]:
    """Dropout factors, f32 of the given shape: 0 with probability `dropout`, else 1 / (1 - dropout)."""
    return (rng.random(shape, np.float32) >= dropout).astype(np.float32) / np.float32(1 - dropout)
