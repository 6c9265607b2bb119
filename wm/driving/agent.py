"""The agent: V, M and C composed. This module alone defines the order in which they act; acting does not need torch.

frame ─V→ z;  (state, z) ─M.see→ state;  state ─M.read→ features ─C→ action;  (state, action) ─M.advance→ state
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm.contracts import Cell, Controller, Encoder, Floats, State
from wm.envs.task import Task


class Agent:
    """Acts on an environment's observations. Call `reset` at the start of an episode, then `act` once per step.

    Attributes:
        features: f32[F], C's input for the last observation.
        state: M's state after the last action.
    """

    features: Floats
    state: State

    def __init__(self, task: Task, encoder: Encoder, cell: Cell, controller: Controller) -> None:
        """Composes V, M and C for a task."""
        self.task, self._encoder, self._cell, self._controller = task, encoder, cell, controller
        self.reset()

    @property
    def z(self) -> Floats:
        """f32[Z], the latent of the last observation (V's mean)."""
        z: Floats = self.state["z"]
        return z

    def reset(self, rng: np.random.Generator | None = None) -> None:
        """Starts an episode. `rng` is unused; it is part of the policy interface."""
        self.state = self._cell.initial()
        self.features = self._cell.read(self.state)

    def act(self, observation: NDArray[Any], instead: Any = None) -> Any:
        """Acts on one observation.

        Args:
            observation: Of the environment, or as `task.preprocess` gives it.
            instead: An action to take instead of C's. V still encodes the observation, and M reads this action.

        Returns:
            The action, in the environment's form.
        """
        z = self._encoder(self.task.preprocess(observation))
        state = self._cell.see(self.state, z)  # see
        self.features = self._cell.read(state)  # read
        space = self.task.action
        a = space.squash(self._controller(self.features)) if instead is None else space.from_env(instead)  # act
        self.state = self._cell.advance(state, a)  # advance
        return space.to_env(a) if instead is None else instead
