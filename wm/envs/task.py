"""Task: all that a method has to know of an environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from wm.contracts import Pays, Policy
from wm.envs.action import Action

Frame = NDArray[np.uint8]


class Truth(Protocol):
    """The true state of an environment, as its simulator knows it, for the probe.

    Attributes:
        targets: Units of the K probed quantities by name, in the order of all arrays and tables.
        left_out: Which steps do not count, for a sentence "... of each episode, and those {left_out}".
    """

    @property
    def targets(self) -> Mapping[str, str]:
        """See above."""
        ...

    @property
    def left_out(self) -> str:
        """See above."""
        ...

    def watch(self, env: gym.Env[Any, Any]) -> Callable[[], NDArray[np.float64]]:
        """At the start of an episode: a function that gives the present state f64[K]."""
        ...

    def counts(self, states: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Mask bool[T] of the states f64[T,K] that a probe can be expected to know."""
        ...


@dataclass(frozen=True)
class Measure:
    """What an environment's episodes are described by beside return and length.

    Attributes:
        name: For a sentence "... in 87% of the steps".
        of: Whether it holds now.
    """

    name: str
    of: Callable[[gym.Env[Any, Any]], bool]


NOTHING = Pays(0.0, 0.0, 0.0)


def whole(picture: Frame) -> Frame:
    """All of a picture."""
    return picture


@dataclass(frozen=True)
class Task:
    """One environment. The known ones are listed in `wm/envs/__init__.py`.

    Attributes:
        env_id: Gymnasium id, on which scores count.
        title: Its name in texts.
        action: Its actions.
        frame: Shape of what V sees, u8.
        preprocess: An observation to what V sees; one that is preprocessed already stays as it is.
        train_id: Gymnasium id of a faster equal, on which everything but scores is played, and an entry of
            `FASTER` (`wm/config/presets.py`); "": `env_id`.
        train_options: Its options where only what V sees is needed.
        pays: Typical rewards, for a run without a record.
        fps: Steps per second of real time.
        max_steps: The environment's own time limit; the scale of dreamt scores.
        settled: Steps after which M's state no longer shows how an episode begins.
        least_start: Steps before which no dream may start.
        warm_up: Real steps before a dream in a video, fewer than an episode has.
        idle: An episode without a positive reward in its last steps, so many, would have gone on like that.
        solved: Mean return at which the environment counts as solved; None: no such number.
        lost: Episodes with a lower return are counted as lost in ablations.
        policies: Its own policies for collection, by name; each takes the environment's action space.
        mixtures: Policies that a mixture chooses from, each entry with equal probability.
        measure: What else describes an episode; None: nothing.
        reading: A text on the present state for videos, such as the speed; None: none.
        visible: The part of a rendered picture that V sees, and what was left out.
        aspect: Width by height of what V sees, as it lies in the world; None: that of `frame`.
        keys: For people: what a held key adds to `a`, by the key's name (left, right, up, down).
        truth: The true state, for the probe; None: unknown.
    """

    env_id: str
    title: str
    action: Action
    frame: tuple[int, ...]
    preprocess: Callable[[Any], Frame]
    train_id: str = ""
    train_options: Mapping[str, Any] = field(default_factory=dict)
    pays: Pays = NOTHING
    fps: int = 30
    max_steps: int = 1000
    settled: int = 0
    least_start: int = 1
    warm_up: int = 5
    idle: int = 10**9
    solved: float | None = None
    lost: float = float("-inf")
    policies: Mapping[str, Callable[[gym.Space[Any]], Policy]] = field(default_factory=dict)
    mixtures: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    measure: Measure | None = None
    reading: Callable[[gym.Env[Any, Any]], str] | None = None
    visible: tuple[Callable[[Frame], Frame], str] = (whole, "")
    aspect: float | None = None
    keys: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    truth: Truth | None = None

    @property
    def proportion(self) -> float:
        """`aspect`, or that of `frame`."""
        return self.aspect or (self.frame[1] / self.frame[0] if len(self.frame) > 1 else 1.0)

    def id(self, train: bool) -> str:
        """Gymnasium id of the environment to train on, or to score on."""
        return self.train_id or self.env_id if train else self.env_id

    def make(self, train: bool = True, **options: Any) -> gym.Env[Any, Any]:
        """The environment with what V sees as its observations, without Gymnasium's passive checker.

        Args:
            train: The one to train on, or the one to score on.
            **options: For `gymnasium.make`.
        """
        own = dict(self.train_options) if train and self.train_id else {}
        env = gym.make(self.id(train), disable_env_checker=True, **{**own, **options})
        return Preprocessed(env, self)

    def columns(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of a row of each column of its rollouts."""
        return {
            "frame/observations": (self.frame, "u1"),
            "step/actions": self.action.column,
            "step/rewards": ((), "f4"),
        }


class Preprocessed(gym.ObservationWrapper[Frame, Any, Any]):
    """An environment whose observations are what V sees, u8[task.frame]."""

    def __init__(self, env: gym.Env[Any, Any], task: Task) -> None:
        super().__init__(env)
        self._preprocess = task.preprocess
        self.observation_space = gym.spaces.Box(0, 255, task.frame, np.uint8)

    def observation(self, observation: Any) -> Frame:
        """`task.preprocess` of an observation."""
        return self._preprocess(observation)
