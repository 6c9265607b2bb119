"""The world of a dream: V, M and the starts of a run as plain functions and arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from wm.config.vmc import DreamConfig
from wm.contracts import Chances, Floats, Noise, State
from wm.dream.networks import Networks, load_networks
from wm.dream.starts import find_starts
from wm.dream.step import dream_step
from wm.envs.task import Task
from wm.run.folder import Run
from wm.run.pair import DEFAULT_MEMORY
from wm.store.starts import Starts
from wm.vision.vae import as_frames

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class World:
    """The models and starts of a dream as plain functions and arrays; all arrays are f32[N,...] of N dreams.

    Attributes:
        task: The environment that is dreamt of.
        step: One step of M: (state, a, noise, mask) to (state, reward, probability of terminating), new arrays. `noise`
            is all its randomness. `mask` f32[N,masked] multiplies what M's heads read (dropout), or is None.
        read: What C reads of a state, f32[N,F].
        decode: V's decoder: z f32[N,Z] to frames u8[N,height,width,3].
        chances: What `step` needs of noise; see `wm.contracts.Memory`.
        masked: Size of the mask.
        bound: f32[F], the largest absolute values of what C reads.
        state: M's state at the S starts.
        end: Reward of a step that terminates.
    """

    task: Task
    step: Callable[[State, Floats, Noise, Floats | None], tuple[State, Floats, Floats]]
    read: Callable[[State], Floats]
    decode: Callable[[Floats], Frames]
    chances: Chances
    masked: int
    bound: Floats
    state: Mapping[str, Floats]
    end: float


def load_world(run: Run, temperature: float, memory: str = DEFAULT_MEMORY) -> World:
    """The world of a run's dream environments with M of a kind, on the CPU; UserError as for `find_starts`."""
    networks = load_networks(run, memory)
    return make_world(networks, find_starts(run, networks, DreamConfig()), temperature)


def make_world(networks: Networks, starts: Starts, temperature: float) -> World:
    """The world of given starts, on the CPU; ValueError when the temperature is not above 0 and finite."""
    memory = networks.memory.dreaming(starts.pays, temperature)

    def tensors(arrays: Mapping[str, Floats]) -> State:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    @torch.inference_mode()
    def step(state: State, a: Floats, noise: Noise, mask: Floats | None) -> tuple[State, Floats, Floats]:
        following, reward, terminated = dream_step(
            memory,
            tensors(state),
            torch.from_numpy(a),
            tensors(noise),
            None if mask is None else torch.from_numpy(mask),
        )
        return {name: part.numpy() for name, part in following.items()}, reward.numpy(), terminated.numpy()

    @torch.inference_mode()
    def read(state: State) -> Floats:
        features: Floats = memory.read(tensors(state)).numpy()
        return features

    @torch.inference_mode()
    def decode(z: Floats) -> Frames:
        return as_frames(networks.vision.decode(torch.from_numpy(z)))

    return World(
        networks.task, step, read, decode, memory.chances, memory.masked, memory.bound, starts.state, starts.pays.end
    )
