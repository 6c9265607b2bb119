"""A task, an M and a C of tests alone: what a newcomer would add, each a class and an entry."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import wm.controller.kinds
import wm.envs
import wm.memory.kinds
from wm.config.bounds import bounded, total
from wm.config.presets import PRESETS, SMOKE
from wm.contracts import Candidates, Cell, Chances, Chart, Floats, Lesson, Memory, Noise, Pays, State
from wm.envs.action import Action
from wm.envs.task import Measure, Task
from wm.run.artifact import fill, load_artifact
from wm.run.device import seeded
from wm.store.latents import Clips, Latents, clip_batches, validation_clips

# The task: a dot on a dark field, moved to the right by a wind, and by two crooked actions.


class Dot(gym.Env[NDArray[np.uint8], NDArray[np.float32]]):
    """Observes u8[40, 48, 3]; pays its nearness to the middle; ends at the edge, at the latest after 60 steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  as Gymnasium has it
    observation_space = gym.spaces.Box(0, 255, (40, 48, 3), np.uint8)
    action_space = gym.spaces.Box(np.array([-2, 0.5], np.float32), np.array([1, 2], np.float32), dtype=np.float32)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        super().reset(seed=seed)
        self.place = self.np_random.uniform([10, 10], [30, 38])  # row, column
        return self._picture(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.place = self.place + np.array([action[0] + 0.5, 1.25 - action[1]])
        away = float(np.abs(self.place - [20, 24]).max())
        return self._picture(), 1 - away / 20, away > 17, False, {}

    def render(self) -> Any:
        return np.kron(self._picture(), np.ones((5, 5, 1), np.uint8))

    def _picture(self) -> NDArray[np.uint8]:
        picture = np.full((40, 48, 3), 30, np.uint8)
        row, column = np.round(self.place).astype(int)
        picture[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3] = (240, 200, 40)
        return picture


def see_dot(observation: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The middle 40 columns, in the middle of 64 by 64."""
    if observation.shape == (64, 64, 3):
        return observation
    seen = np.zeros((64, 64, 3), np.uint8)
    seen[12:52, 12:52] = observation[:, 4:44]
    return seen


def is_left(env: gym.Env[Any, Any]) -> bool:
    dot: Any = env.unwrapped
    return bool(dot.place[1] < 24)


def row_of(env: gym.Env[Any, Any]) -> str:
    dot: Any = env.unwrapped
    return f"row {dot.place[0]:.0f}"


gym.register(id="toys/Dot-v0", entry_point="tests.toys:Dot", max_episode_steps=60)

DOT = Task(
    env_id="toys/Dot-v0",
    title="Dot",
    action=Action(("down", "left"), ("tanh", "half"), (-2.0, 0.5), (1.0, 2.0)),
    frame=(64, 64, 3),
    preprocess=see_dot,
    fps=20,
    max_steps=60,
    measure=Measure("left of the middle", is_left),
    reading=row_of,
    keys={"up": (-2.0, 0.0), "down": (1.0, 0.0)},
)


# M: it remembers the last action, and z drifts by a linear function of z, that action and the next one.


@dataclass(frozen=True)
class DriftConfig:
    """Options of the toy M."""

    updates: int = total(30, 0, 10**9)
    """Updates."""
    batch: int = bounded(8, 1, 1000)
    """Clips a batch."""
    length: int = bounded(16, 1, 1000)
    """Steps a clip."""
    validate_every: int = bounded(10, 1, 10**9)
    """Updates between validations."""
    validation: float = bounded(0.25, 1e-6, 1 - 1e-6)
    """Fraction held out."""
    earlier: tuple[int, ...] = bounded((), 1, 10**6)
    """As for others."""


class Drift(nn.Module):
    """The network: z' = z + W [z; last a; a] + noise."""

    kind = "drift"
    reward = "value"

    def __init__(self, z: int, actions: int) -> None:
        super().__init__()
        self.z, self.actions, self.features = z, actions, z + actions
        self.heads = nn.Linear(z + 2 * actions, z + 2)
        self.logsigma = nn.Parameter(torch.zeros(z))

    def follow(self, z: Tensor, a: Tensor) -> Tensor:
        return torch.cat([z, torch.cat([a.new_zeros(1, self.actions), a])], 1)

    def acting(self) -> Callable[[], Cell]:
        return partial(DriftCell, self.z, self.actions)

    def dreaming(
        self, pays: Pays, temperature: float = 1.0, device: Any = "cpu", dtype: torch.dtype | None = None
    ) -> Memory:
        return DriftMemory(self, temperature, torch.device(device))


class DriftCell:
    """M for acting."""

    def __init__(self, z: int, actions: int) -> None:
        self._z, self._actions, self.features = z, actions, z + actions

    def initial(self) -> State:
        return {"z": np.zeros(self._z, np.float32), "last": np.zeros(self._actions, np.float32)}

    def see(self, state: State, z: Floats) -> State:
        return {**state, "z": z}

    def read(self, state: State) -> Floats:
        return np.concatenate([state["z"], state["last"]])

    def advance(self, state: State, action: Floats) -> State:
        return {"z": state["z"], "last": action}


class DriftMemory:
    """M for dreaming; the state after an action holds both actions until z is drawn."""

    def __init__(self, model: Drift, temperature: float, device: torch.device) -> None:
        self._weight, self._bias = (part.detach().to(device) for part in (model.heads.weight, model.heads.bias))
        self._sigma = model.logsigma.detach().exp().to(device) * temperature**0.5
        self._z, self.features, self.masked = model.z, model.features, model.z + 2 * model.actions
        self.bound = np.full(self.features, np.inf, np.float32)
        self.chances: Chances = {"push": ("normal", model.z)}

    def see(self, state: State, z: Tensor) -> State:
        return {**state, "z": z}

    def read(self, state: State) -> Tensor:
        return torch.cat([state["z"], state["last"]], -1)

    def advance(self, state: State, action: Tensor) -> State:
        return {"z": state["z"], "last": action.expand(*state["last"].shape), "before": state["last"]}

    def expect(self, state: State, mask: Tensor | None = None) -> Tensor:
        x = torch.cat([state["z"], state["before"], state["last"]], -1)
        raw = (x if mask is None else x * mask) @ self._weight.T + self._bias
        return torch.cat([state["z"] + raw[..., : self._z], raw[..., self._z :]], -1)

    def draw(self, state: State, raw: Tensor, noise: Noise) -> tuple[State, Tensor, Tensor]:
        z = raw[..., : self._z] + self._sigma * noise["push"]
        return {"z": z, "last": state["last"]}, raw[..., -2], raw[..., -1].sigmoid()

    def mean(self, raw: Tensor) -> Tensor:
        return raw[..., : self._z]


def drift_loss(model: Drift, clips: Clips, generator: Any) -> tuple[Tensor, dict[str, float | Tensor]]:
    z, a, mask = (torch.from_numpy(part) for part in (clips.mu, clips.a, clips.mask))
    last = torch.cat([torch.zeros_like(a[:, :1]), a[:, :-1]], 1)
    raw = model.heads(torch.cat([z[:, :-1], last, a], -1))
    error = (z[:, :-1] + raw[..., : model.z] - z[:, 1:]) * (-model.logsigma).exp()
    reward = (raw[..., -2] - torch.from_numpy(clips.r)).square()[mask].mean()
    ends = nn.functional.binary_cross_entropy_with_logits(raw[..., -1], torch.from_numpy(clips.terminated).float())
    nll = (0.5 * error.square() + model.logsigma)[mask].mean()
    return nll + reward + ends, {"drift": nll.detach(), "reward": reward.detach()}


def drift_validation(model: Drift, *, clips: Clips) -> dict[str, float]:
    loss, parts = drift_loss(model, clips, None)
    return {"loss": float(loss), **{name: float(value) for name, value in parts.items()}}


class DriftKind:
    """The toy M as a kind."""

    name = Drift.kind
    title = "the drift"
    config = DriftConfig

    def build(self, config: DriftConfig, z: int, actions: int) -> Drift:
        return Drift(z, actions)

    def load(self, path: Path) -> tuple[Drift, dict[str, Any]]:
        meta = load_artifact(path, self.name)
        model = seeded(lambda: Drift(meta["config"]["z"], meta["config"]["actions"]), 0)
        fill(model, meta.pop("model"), path, self.name)
        return model.eval(), meta

    def lesson(
        self, config: DriftConfig, latents: Latents, training: Any, held_out: Any, seed: int, device: torch.device
    ) -> Lesson:
        def batches(start: int) -> Iterator[Clips]:
            sizes = {"batch": config.batch, "length": config.length}
            return clip_batches(latents, training, seed=seed, start=start, **sizes)

        clips = validation_clips(latents, held_out, length=config.length, most=20)
        return Lesson(batches, drift_loss, partial(drift_validation, clips=clips), lambda update: 1e-2, "clips", 8)

    def describe(self, config: DriftConfig, metrics: Mapping[str, float]) -> str:
        return f"a drift of {metrics['drift']:.3f} nats"

    def charts(self, config: Mapping[str, Any]) -> tuple[Chart, ...]:
        return Chart("drift", "drift of z", "nats", {}), Chart("reward", "reward", "(reward per step)²", {})


# C: a linear one whose outputs are bent by a sine.


@dataclass(frozen=True)
class Wave:
    """raw = sin(W x + b); theta is W [R,F] row by row, then b."""

    kind: ClassVar[str] = "wave"
    outputs: int

    @property
    def rows(self) -> int:
        return self.outputs

    def sizes(self) -> Mapping[str, int]:
        return asdict(self)

    def count(self, features: int) -> int:
        return self.outputs * (features + 1)

    def start(self, inputs: int, rng: np.random.Generator) -> NDArray[np.float64]:
        return np.zeros(self.count(inputs))

    def controller(self, theta: NDArray[np.floating], features: int) -> Callable[[Floats], Floats]:
        if theta.shape != (self.count(features),):
            raise ValueError("theta does not fit")
        weights, bias = np.split(theta.astype(np.float32), [self.outputs * features])
        return partial(wave, weights.reshape(self.outputs, features), bias)

    def candidates(self, thetas: Tensor, features: int) -> Candidates:
        weights = thetas[:, : self.outputs * features].unflatten(1, (self.outputs, features)).mT
        return lambda x: (x @ weights + thetas[:, None, self.outputs * features :]).sin()

    def graph(self, graph: Any, theta: Floats, features: str) -> str:
        weights, bias = np.split(theta.astype(np.float32), [len(theta) - self.outputs])
        parts = [graph.constant("weights", weights.reshape(self.outputs, -1)), graph.constant("bias", bias)]
        return str(graph.add("Sin", graph.add("Gemm", features, *parts, transB=1)))


def wave(weights: Floats, bias: Floats, features: Floats) -> Floats:
    """A function at the top, so that it can be pickled."""
    raw: Floats = np.sin(weights @ features + bias)
    return raw


def add_toys(patch: pytest.MonkeyPatch) -> None:
    """Enters all three where a newcomer would."""
    patch.setitem(wm.envs.TASKS, DOT.env_id, DOT)
    patch.setitem(PRESETS, DOT.env_id, {"smoke": SMOKE})
    patch.setitem(wm.memory.kinds.KINDS, Drift.kind, DriftKind())
    patch.setitem(wm.controller.kinds.KINDS, Wave.kind, Wave)
