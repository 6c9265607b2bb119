"""Policies for data collection, untrained and trained. None of them imports torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from wm.controller.linear import ACTIONS, parameter_count
from wm.driving.agent import Agent
from wm.driving.rollout import Policy
from wm.envs.car_racing.policies import DT, Cruise
from wm.memory.cell import LSTMCell
from wm.run.errors import UserError
from wm.vision.encoder import Encoder, encoder_graph

Z, HIDDEN = 32, 256
"""Sizes of the random network: the paper's."""

CAUCHY_SCALE = 0.01
"""Upper bound of the scale of the random network's weights, as in the paper's code: rand() * 0.01."""
CAUCHY_LIMIT = 1000.0
"""Clip of the draws, in units of the scale (it affects 1 in 1,600). Without it activations reach infinity and nan."""

BURST_STEPS = (5, 30)
"""Steps of a burst, from the first number to below the second: at 50 a second, 0.1 to 0.6 seconds."""


class Uniform:
    """Samples each action from the action space. It fits any environment."""

    name = "uniform"

    def __init__(self, space: gym.Space[Any]) -> None:
        """Takes the environment's action space, whose own generator samples the actions."""
        self._space = space

    def reset(self, rng: np.random.Generator | None = None) -> None:
        """Seeds the action space from `rng`."""
        if rng is not None:
            self._space.seed(int(rng.integers(2**31)))

    def act(self, observation: Any) -> Any:
        """A new sample."""
        return self._space.sample()


class Brownian:
    """A random walk through the action space: a += sqrt(dt) N(0, 1), clipped to its bounds, from a uniform start.

    Actions of neighbouring steps are similar, so that the car moves along. The idea is from ctallec's port of the
    paper.
    """

    name = "brownian"

    def __init__(self, space: gym.Space[Any]) -> None:
        """Takes the environment's action space; UserError when it is not a bounded box."""
        if not isinstance(space, gym.spaces.Box) or not space.is_bounded():
            raise UserError(f"--policy brownian needs bounded real actions, not {space}: choose --policy uniform.")
        self._space = space

    def reset(self, rng: np.random.Generator | None = None) -> None:
        """Draws the first action from `rng`, which also drives the walk."""
        self._rng = rng if rng is not None else np.random.default_rng()
        self._action = self._rng.uniform(self._space.low, self._space.high)

    def act(self, observation: Any) -> NDArray[np.float32]:
        """The next point of the walk."""
        action = self._action.astype(np.float32)
        self._action = self._action + np.sqrt(DT) * self._rng.standard_normal(self._action.shape)
        self._action = np.clip(self._action, self._space.low, self._space.high)
        return action


class RandomNetwork:
    """The paper's V-M-C network with random weights, drawn anew for each episode (section 4.1 and its code).

    Each weight is a standard Cauchy draw times a scale, which is drawn once per episode, uniformly below 0.01.
    """

    name = "random_network"

    def __init__(self, space: gym.Space[Any]) -> None:
        """Takes the environment's action space; UserError when it is not CarRacing's."""
        if not isinstance(space, gym.spaces.Box) or space.shape != (ACTIONS,):
            raise UserError(f"--policy random_network needs CarRacing's actions, not {space}: choose --policy uniform.")

    def reset(self, rng: np.random.Generator | None = None) -> None:
        """Draws the network from `rng`."""
        rng = rng if rng is not None else np.random.default_rng()
        scale = rng.uniform(0, CAUCHY_SCALE)

        def draw(*shape: int) -> NDArray[np.float32]:
            cut = np.clip(rng.standard_cauchy(shape), -CAUCHY_LIMIT, CAUCHY_LIMIT)
            return (cut * scale).astype(np.float32)

        encoder: dict[str, NDArray[np.float32]] = {}
        for name, shape in (
            ("conv1", (32, 3, 4, 4)),
            ("conv2", (64, 32, 4, 4)),
            ("conv3", (128, 64, 4, 4)),
            ("conv4", (256, 128, 4, 4)),
            ("mu", (Z, 1024)),
        ):
            encoder |= {f"{name}.weight": draw(*shape), f"{name}.bias": draw(shape[0])}
        memory = {
            "lstm.weight_ih_l0": draw(4 * HIDDEN, Z + ACTIONS),
            "lstm.weight_hh_l0": draw(4 * HIDDEN, HIDDEN),
            "lstm.bias_ih_l0": draw(4 * HIDDEN),
            "lstm.bias_hh_l0": draw(4 * HIDDEN),
        }
        theta = draw(parameter_count(Z + HIDDEN))
        self._agent = Agent(Encoder(encoder_graph(encoder)), LSTMCell(memory), theta)

    def act(self, observation: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The network's action for a frame u8[64,64,3] or u8[96,96,3]."""
        return self._agent.act(observation)


class Driven:
    """A controller with random bursts of brownian actions (paper, section 5: iterate).

    The bursts show V and M states that the controller does not reach by itself: how a skid begins and what follows it.
    """

    name = "driven"

    def __init__(self, space: gym.Space[Any], agent: Agent, chance: float) -> None:
        """Takes CarRacing's action space, the agent that drives, and the probability per step that a burst begins."""
        self._agent, self._brownian, self._chance = agent, Brownian(space), chance

    def reset(self, rng: np.random.Generator | None = None) -> None:
        """Starts an episode; `rng` draws the bursts."""
        self._rng = rng if rng is not None else np.random.default_rng()
        self._agent.reset()
        self._left = 0

    def act(self, observation: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The controller's action for a frame u8[64,64,3] or u8[96,96,3], or the burst's."""
        if self._left == 0 and self._rng.random() < self._chance:
            self._left = int(self._rng.integers(*BURST_STEPS))
            self._brownian.reset(self._rng)
        if self._left == 0:
            return self._agent.act(observation)
        self._left -= 1
        return self._agent.act(observation, instead=self._brownian.act(observation))


POLICIES: dict[str, Callable[[gym.Space[Any]], Policy]] = {
    p.name: p for p in (Uniform, Brownian, RandomNetwork, Cruise)
}
MIXTURES = {
    "mixture": (RandomNetwork.name, Brownian.name),
    "wide": (RandomNetwork.name, Brownian.name, Cruise.name, Cruise.name),
}
"""The policies that a mixture chooses from, each entry with equal probability."""


def choose(policy: str, rng: np.random.Generator) -> str:
    """The name of the policy of one episode: `policy` itself, or a draw of `rng` from the mixture `policy`."""
    parts = MIXTURES.get(policy, (policy,))
    return parts[rng.integers(len(parts))] if len(parts) > 1 else policy
