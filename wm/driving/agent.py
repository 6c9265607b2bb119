"""The agent: V, M and C composed. This module alone defines the order in which they act; acting does not need torch.

frame ─V→ z;  [z, h] ─C→ action;  (z, action, h) ─M→ next h
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wm.controller.hidden import make_controller
from wm.envs.car_racing.preprocess import preprocess
from wm.memory.cell import LSTMCell
from wm.vision.encoder import Encoder

Frame = NDArray[np.uint8]
State = tuple[NDArray[np.float32], NDArray[np.float32]]


class Agent:
    """Acts on CarRacing frames. Call `reset` at the start of an episode, then `act` once per step.

    Attributes:
        z: f32[Z], the latent (V's mean) of the last frame.
        features: f32[Z+H], [z; h], C's input for the last frame; the next frame overwrites it.
        state: (h, c), each f32[H]: M's state after the last action.
    """

    z: NDArray[np.float32]
    state: State

    def __init__(self, encoder: Encoder, cell: LSTMCell, theta: NDArray[np.floating]) -> None:
        """Composes V, M and C's flat weights; ValueError when the number of weights does not fit."""
        self._encoder, self._cell = encoder, cell
        self._controller = make_controller(theta, encoder.z + cell.hidden)
        self.features = np.zeros(encoder.z + cell.hidden, np.float32)
        self.reset()

    def reset(self, rng: np.random.Generator | None = None) -> None:
        """Starts an episode: z, h and c are zeros. `rng` is unused; it is part of the policy interface."""
        self.z = np.zeros(self._encoder.z, np.float32)
        self.state = self._cell.initial()

    def act(self, observation: Frame, instead: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Acts on one frame.

        Args:
            observation: u8[96, 96, 3] from CarRacing, or u8[64, 64, 3] from `preprocess`.
            instead: f32[3], an action to take instead of C's. V still encodes the frame, and M reads this action.

        Returns:
            f32[3]: steering in [-1, 1], gas in [0, 1], brake in [0, 1].
        """
        frame = observation if observation.shape == (64, 64, 3) else preprocess(observation)
        self.z = self._encoder(frame)  # see
        self.features[: len(self.z)] = self.z  # read
        self.features[len(self.z) :] = self.state[0]
        action = self._controller(self.features) if instead is None else instead  # act
        self.state = self._cell.step(self.z, action, self.state)  # advance
        return action
