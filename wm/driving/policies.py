"""Policies for data collection, untrained and trained. None of them imports torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from wm.contracts import Policy
from wm.controller.linear import Linear
from wm.driving.agent import Agent
from wm.envs.task import Task
from wm.memory.cell import random_cell
from wm.run.errors import UserError
from wm.vision.encoder import FRAME, random_encoder

Z, HIDDEN = 32, 256
"""Sizes of the random network: the paper's."""

DT = 1 / 50
"""Variance of a step of the brownian policy, in units of the actions: that of a second in 50 steps."""

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

    Actions of neighbouring steps are similar, so that something moves. The idea is from ctallec's port of the
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

    def __init__(self, task: Task) -> None:
        """Takes the task; UserError when V's encoder cannot see it."""
        if task.frame != FRAME:
            raise UserError(f"--policy {self.name} needs frames {FRAME}, not {task.frame}: choose --policy uniform.")
        self._task = task

    def reset(self, rng: np.random.Generator | None = None) -> None:
        """Draws the network from `rng`."""
        rng = rng if rng is not None else np.random.default_rng()
        scale = rng.uniform(0, CAUCHY_SCALE)

        def draw(*shape: int) -> NDArray[np.float32]:
            cut = np.clip(rng.standard_cauchy(shape), -CAUCHY_LIMIT, CAUCHY_LIMIT)
            return (cut * scale).astype(np.float32)

        encoder, actions = random_encoder(draw, Z), self._task.action.size
        cell = random_cell(draw, Z, actions, HIDDEN)
        layout = Linear(actions)
        theta = draw(layout.count(Z + HIDDEN))
        self._agent = Agent(self._task, encoder, cell, layout.controller(theta, Z + HIDDEN))

    def act(self, observation: Any) -> Any:
        """The network's action for an observation."""
        return self._agent.act(observation)


class Driven:
    """A controller with random bursts (paper, section 5: iterate): brownian actions of a box, else uniform ones.

    The bursts show V and M states that the controller does not reach by itself: how a skid begins and what follows it.
    """

    name = "driven"

    def __init__(self, space: gym.Space[Any], agent: Agent, chance: float) -> None:
        """Takes the action space, the agent that drives, and the probability per step that a burst begins."""
        burst: Policy = Brownian(space) if isinstance(space, gym.spaces.Box) else Uniform(space)
        self._agent, self._burst, self._chance = agent, burst, chance

    def reset(self, rng: np.random.Generator | None = None) -> None:
        """Starts an episode; `rng` draws the bursts."""
        self._rng = rng if rng is not None else np.random.default_rng()
        self._agent.reset()
        self._left = 0

    def act(self, observation: Any) -> Any:
        """The controller's action for an observation, or the burst's."""
        if self._left == 0 and self._rng.random() < self._chance:
            self._left = int(self._rng.integers(*BURST_STEPS))
            self._burst.reset(self._rng)
        if self._left == 0:
            return self._agent.act(observation)
        self._left -= 1
        return self._agent.act(observation, instead=self._burst.act(observation))


POLICIES: dict[str, Callable[[gym.Space[Any]], Policy]] = {p.name: p for p in (Uniform, Brownian)}
"""Policies of any environment; its task may have further ones."""
MIXTURES = {"mixture": (RandomNetwork.name, Brownian.name)}
"""The policies that a mixture chooses from, each entry with equal probability; a task may have further ones."""


def make_policy(name: str, task: Task, space: gym.Space[Any]) -> Policy:
    """Makes a policy by its name, for a task with this action space."""
    if name == RandomNetwork.name:
        return RandomNetwork(task)
    return {**POLICIES, **task.policies}[name](space)


def check_policy(policy: str, task: Task) -> None:
    """UserError unless this is a policy, or a mixture of policies, that can play the task."""
    known = (RandomNetwork.name, *POLICIES, *task.policies, *MIXTURES, *task.mixtures)
    if policy not in known:
        raise UserError(f"--policy {policy} is unknown for {task.title}: choose one of {', '.join(known)}.")
    for part in {**MIXTURES, **task.mixtures}.get(policy, (policy,)):
        make_policy(part, task, task.action.space())


def choose(policy: str, task: Task, rng: np.random.Generator) -> str:
    """The name of the policy of one episode: `policy` itself, or a draw of `rng` from the mixture `policy`."""
    parts = {**MIXTURES, **task.mixtures}.get(policy, (policy,))
    return parts[rng.integers(len(parts))] if len(parts) > 1 else policy
