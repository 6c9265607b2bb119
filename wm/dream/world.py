"""The world of a dream: V, M and the starts of a run as plain functions and arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wm.config.vmc import DreamConfig
from wm.dream.fused import make_dreamer
from wm.dream.networks import Networks, load_networks
from wm.dream.starts import find_starts
from wm.run.folder import Run
from wm.store.starts import Starts
from wm.vision.vae import as_frames

Floats = NDArray[np.float32]
Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class World:
    """The models and starts of a dream as plain functions and arrays.

    Attributes:
        step: One step of M: (z, h, c, a, uniform, noise, head_mask) to (z, h, c, reward, probability of terminating),
            all f32[N,...], new arrays. `uniform` f32[N,Z] and `noise` f32[N,Z] are all its randomness. `head_mask`
            f32[N,H] multiplies the h that M's heads read (dropout), or is None.
        decode: V's decoder: z f32[N,Z] to frames u8[N,64,64,3].
        z: f32[S,Z], latents of the S starts.
        h: f32[S,H], M's recurrent outputs at the starts.
        c: f32[S,H], M's LSTM cells at the starts.
        end: Reward of a step that terminates.
    """

    step: Callable[
        [Floats, Floats, Floats, Floats, Floats, Floats, Floats | None], tuple[Floats, Floats, Floats, Floats, Floats]
    ]
    decode: Callable[[Floats], Frames]
    z: Floats
    h: Floats
    c: Floats
    end: float


def load_world(run: Run, temperature: float) -> World:
    """The world of a run's dream environments, on the CPU; UserError as for `find_starts`."""
    networks = load_networks(run)
    return make_world(networks, find_starts(run, networks, DreamConfig()), temperature)


def make_world(networks: Networks, starts: Starts, temperature: float) -> World:
    """The world of given starts, on the CPU; ValueError when the temperature is not above 0 and finite."""
    dreamer = make_dreamer(networks.mdnrnn, starts, temperature)

    @torch.inference_mode()
    def step(*arrays: NDArray[np.float32] | None) -> Any:
        given: list[Any] = [None if each is None else torch.from_numpy(each) for each in arrays]
        return tuple(each.numpy() for each in dreamer.step(*given))

    @torch.inference_mode()
    def decode(z: NDArray[np.float32]) -> NDArray[np.uint8]:
        return as_frames(networks.vae.decode(torch.from_numpy(z)))

    return World(step, decode, starts.z, starts.h, starts.c, end=float(starts.rewards[2]))
