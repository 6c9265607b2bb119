"""Policies that collect data, before anything has been learnt and after; none of them imports torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from wm.agent import Agent
from wm.controller.linear import ACTIONS, parameter_count
from wm.memory.cell import LSTMCell
from wm.rollout import Policy
from wm.run import UserError
from wm.vision.encoder import Encoder, encoder_graph

Z, HIDDEN = 32, 256
"""Sizes of the random network: the paper's."""

DT = 1 / 50
"""Seconds between two actions of the brownian policy: CarRacing's frame time."""

CAUCHY_SCALE = 0.01
"""Largest scale of the random network's weights, as in the paper's code: rand() * 0.01."""
CAUCHY_LIMIT = 1000.0
"""Draws are cut here, in units of the scale (1 in 1,600 is): else layers multiply to infinity, and inf - inf is nan."""

CRUISE_SECONDS = 0.3
"""Time in which the cruising policy forgets where wheel and pedal were: a correlation falls to 1/e."""
CRUISE_STEERING = (0.02, 1.0)
"""Its standard deviation of the steering, drawn once an episode, its logarithm evenly: most go straight, some spin."""
CRUISE_PEDAL = (0.0, 0.25)
"""Its mean pedal (above 0 gas, below 0 brake), drawn once an episode: standing still is rare, 50 units a second too."""
CRUISE_PEDAL_STD = (0.1, 0.8)
"""Its standard deviation of the pedal, drawn once an episode."""
CRUISE_HOLD_CHANCE = 0.01
"""Chance a step that it holds still: one in two seconds of driving."""
CRUISE_HOLD_STEPS = (10, 100)
"""Steps of a hold, from the first number up to below the second: at 50 a second, 0.2 to 2 seconds."""
CRUISE_HOLD_REACH = 1.5
"""What is held is drawn from so far to both sides and cut at 1: a third are full locks, full gas or full brake."""

BURST_STEPS = (5, 30)
"""Steps of a burst, from the first number up to below the second: at 50 a second, 0.1 to 0.6 seconds."""


class Uniform:
    """Each action is drawn from the action space. Fits any environment."""

    name = "uniform"

    def __init__(self, space: gym.Space[Any]) -> None:
        """Takes the environment's action space, whose own generator is used."""
        self._space = space

    def reset(self, rng: np.random.Generator | None = None) -> None:
        """Seeds the action space from `rng`."""
        if rng is not None:
            self._space.seed(int(rng.integers(2**31)))

    def act(self, observation: Any) -> Any:
        """A new draw."""
        return self._space.sample()


class Brownian:
    """A random walk through the action space: a += sqrt(dt) N(0, 1), clipped to its bounds, from a uniform start.

    The actions of neighbouring steps resemble one another, so that the car gets somewhere; the idea is from
    ctallec's port of the paper.
    """

    name = "brownian"

    def __init__(self, space: gym.Space[Any]) -> None:
        """Takes the environment's action space; UserError when it is no bounded box."""
        if not isinstance(space, gym.spaces.Box) or not space.is_bounded():
            raise UserError(f"--policy brownian needs bounded real actions, not {space}: choose --policy uniform.")
        self._space = space

    def reset(self, rng: np.random.Generator | None = None) -> None:
        """Draws the start from `rng`, which the walk goes on with."""
        self._rng = rng if rng is not None else np.random.default_rng()
        self._action = self._rng.uniform(self._space.low, self._space.high)

    def act(self, observation: Any) -> NDArray[np.float32]:
        """The next point of the walk."""
        action = self._action.astype(np.float32)
        self._action = self._action + np.sqrt(DT) * self._rng.standard_normal(self._action.shape)
        self._action = np.clip(self._action, self._space.low, self._space.high)
        return action


class Cruise:
    """Wheel and one pedal, each an Ornstein-Uhlenbeck walk around a mean, now and then held: fast, until the road ends.

    Brownian actions brake half of the time and steer to an end, so that the car creeps (5 units a second, the median of
    40 episodes that are given up after 100 steps without a tile) and M learns that nothing moves. Nothing here looks at
    the road, either, but who presses one pedal at a time and mostly turns the wheel a little goes 15, one step in ten
    above 39, and touches twice as many tiles a step. A controller that has not learnt yet holds the wheel at its end
    and stands on the brake at that speed; where no record shows what comes of it, that is what pays in a dream. Ours.
    """

    name = "cruise"

    def __init__(self, space: gym.Space[Any]) -> None:
        """Takes the environment's action space; UserError when it is not CarRacing's."""
        if not isinstance(space, gym.spaces.Box) or space.shape != (ACTIONS,):
            raise UserError(f"--policy cruise needs CarRacing's actions, not {space}: choose --policy uniform.")

    def reset(self, rng: np.random.Generator | None = None) -> None:
        """Draws the episode's steering and pedal from `rng`, which the walk goes on with."""
        self._rng = rng if rng is not None else np.random.default_rng()
        self._mean = np.array([0.0, self._rng.uniform(*CRUISE_PEDAL)])
        steering = np.exp(self._rng.uniform(*np.log(CRUISE_STEERING)))
        self._std = np.array([steering, self._rng.uniform(*CRUISE_PEDAL_STD)])
        self._walk = np.zeros(2)
        self._left = 0

    def act(self, observation: Any) -> NDArray[np.float32]:
        """The next point of the walk, or what is held, as steering, gas and brake."""
        forget = DT / CRUISE_SECONDS
        self._walk = (1 - forget) * self._walk + np.sqrt(2 * forget) * self._rng.standard_normal(2)
        if self._left == 0 and self._rng.random() < CRUISE_HOLD_CHANCE:
            self._left = int(self._rng.integers(*CRUISE_HOLD_STEPS))
            self._held = self._rng.uniform(-CRUISE_HOLD_REACH, CRUISE_HOLD_REACH, 2)
        wanted = self._held if self._left else self._mean + self._std * self._walk
        self._left = max(0, self._left - 1)
        steering, pedal = np.clip(wanted, -1, 1)
        return np.array([steering, max(pedal, 0), max(-pedal, 0)], np.float32)


class RandomNetwork:
    """The paper's V-M-C network with random weights, drawn anew for each episode (section 4.1 and its code).

    Every weight is a standard Cauchy draw times a scale that is drawn once an episode, uniformly below 0.01.
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
    """A controller that drives, disturbed now and then by a burst of brownian actions (paper, section 5: iterate).

    The bursts show V and M what the controller's own driving does not: how a skid begins, and what follows one.
    """

    name = "driven"

    def __init__(self, space: gym.Space[Any], agent: Agent, chance: float) -> None:
        """Takes CarRacing's action space, who drives, and the chance a step that a burst begins."""
        self._agent, self._brownian, self._chance = agent, Brownian(space), chance

    def reset(self, rng: np.random.Generator | None = None) -> None:
        """Forgets the episode; `rng` draws the bursts."""
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
"""What a policy of this name draws from, each entry with equal chance."""


def choose(policy: str, rng: np.random.Generator) -> str:
    """The name of the policy of one episode: `policy` itself, or for a mixture one drawn by `rng`."""
    parts = MIXTURES.get(policy, (policy,))
    return parts[rng.integers(len(parts))] if len(parts) > 1 else policy
