"""The views of a replay, with the pictures of each step.

real      the camera, V's input, V's reconstruction
triptych  the camera, V's reconstruction of the frame, and M's prediction of this frame one step before
dream     C drives in the dream, without any frame after the first
compare   a real episode beside a dream with the same start and the same actions, and their difference
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from wm.config.vmc import DreamConfig
from wm.controller.hidden import make_controller
from wm.dream.env import DreamEnv
from wm.dream.networks import load_networks
from wm.dream.world import make_world
from wm.driving.agent import Agent
from wm.driving.loading import load_acting
from wm.driving.rollout import play
from wm.envs.car_racing.preprocess import DASHBOARD_ROW, FRAME_SHAPE, preprocess
from wm.memory.cell import LSTMCell
from wm.memory.mdnrnn import mixture_moments
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.show.videos.canvas import FPS, Curves, Image, Moment, Pane
from wm.store.starts import Starts, load_starts
from wm.vision.encoder import Encoder
from wm.vision.vae import as_frames, as_input

View = Literal["real", "triptych", "dream", "compare"]
Vector = NDArray[np.float32]
State = tuple[Vector, Vector]

WARM_UP = DreamConfig.start_after
"""Real steps before a dream begins, the same number as before the starts of the evolution."""

TYPICAL_REWARDS = np.array([-0.1, 3.2, -100], np.float32)
"""Mean rewards in a run without starts.npz: no tile, a tile (1000/N with N about 310), leaving the field."""


class WorldModel:
    """V, M and C of a run, to act, to decode, to predict and to dream with.

    Attributes:
        controller: C.
    """

    def __init__(self, run: Run, controller: str = "controller") -> None:
        """Reads the run's models and one of its controllers.

        Args:
            run: The run folder.
            controller: "controller" or "dream", as `load_acting` has it.

        Raises:
            UserError: One is missing, damaged or does not fit the others.
        """
        models, self._theta = load_acting(run, controller)
        self._encoder, self._cell = Encoder(models.graph), LSTMCell(models.cell)
        self.controller = make_controller(self._theta, models.features)
        self._networks = load_networks(run)
        self._rewards = load_starts(run.starts).rewards if run.starts.exists() else TYPICAL_REWARDS

    def agent(self) -> Agent:
        """A new agent with its own state."""
        return Agent(self._encoder, self._cell, self._theta)

    def encode(self, frame: Image) -> Vector:
        """V's latent of a frame u8[64, 64, 3]: z f32[Z]."""
        return self._encoder(frame)

    @torch.inference_mode()
    def decode(self, z: Vector) -> Image:
        """V's reconstruction from z f32[Z]: u8[64, 64, 3]."""
        picture: Image = as_frames(self._networks.vae.decode(torch.from_numpy(z)[None]))[0]
        return picture

    @torch.inference_mode()
    def expect(self, z: Vector, action: Vector, state: State) -> Vector:
        """The mean of M's mixture for the next z, f32[Z], after z f32[Z], the action f32[A] and (h, c) before it."""
        z_, a, h, c = (torch.from_numpy(part)[None, None] for part in (z, action, *state))
        prediction, _ = self._networks.mdnrnn(z_, a, (h, c))
        return mixture_moments(prediction)[0][0, 0].numpy()

    @torch.inference_mode()
    def certain(self, frame: Image) -> NDArray[np.bool_]:
        """The dimensions of z that hold information about a frame u8[64, 64, 3]: bool[Z].

        In these V's posterior is at most half as wide as the prior. If there are none, all are True. In the others z is
        noise, in the dream as in M's training.
        """
        _, logvar = self._networks.vae.encode(as_input(torch.from_numpy(frame)[None]))
        certain: NDArray[np.bool_] = (logvar[0] < 2 * math.log(0.5)).numpy()
        return certain if certain.any() else ~certain

    def dream(self, z: Vector, state: State, temperature: float, horizon: int) -> DreamEnv:
        """A dream environment that starts at z f32[Z] with M's state (h, c) before the action; it observes [z, h]."""
        z, h, c = (part[None].copy() for part in (z, *state))
        where = np.zeros(1, np.int64)
        starts = Starts(z, h, c, where, where, self._rewards, self._networks.made_from)
        return DreamEnv(make_world(self._networks, starts, temperature), horizon=horizon)


class Shot(NamedTuple):
    """One step of a real episode.

    Attributes:
        number: Number of the step, from 1.
        camera: u8[400, 600, 3], the camera's image before the action.
        frame: u8[64, 64, 3], V's input at the same moment.
        z: f32[Z], V's latent of it.
        state: (h, c) before the action.
        action: f32[3].
        score: Sum of rewards, including that of this action.
        speed: Speed of the car before the action, in metres per second.
    """

    number: int
    camera: Image
    frame: Image
    z: Vector
    state: State
    action: Vector
    score: float
    speed: float

    @property
    def readings(self) -> tuple[str, ...]:
        """Score, step and speed as text."""
        return f"score {self.score:.0f}", f"step {self.number}", f"speed {self.speed:.0f} m/s"


class _Filmed:
    """Wraps an agent and renders the camera when it acts, so that the image shows the frame that it acts on."""

    def __init__(self, env: gym.Env[Any, Any], agent: Agent) -> None:
        self._env, self._agent = env, agent

    def reset(self, rng: np.random.Generator | None = None) -> None:
        self._agent.reset(rng)

    def act(self, observation: Image) -> Vector:
        self.camera = np.asarray(self._env.render(), np.uint8)
        self.speed = speed_of(self._env)
        self.state = self._agent.state
        return self._agent.act(observation)


def drive(env: gym.Env[Any, Any], agent: Agent, track: int, max_steps: int) -> Iterator[Shot]:
    """Drives one real track and yields its steps.

    Args:
        env: CarRacing, stock or fast, with render_mode="rgb_array".
        agent: The agent that drives.
        track: The track's seed.
        max_steps: Maximum number of steps.
    """
    filmed, score = _Filmed(env, agent), 0.0
    for step in play(env, filmed, seed=track, max_steps=max_steps):
        score += step.reward
        frame = preprocess(step.observation)
        yield Shot(step.number, filmed.camera, frame, agent.z, filmed.state, step.action, score, filmed.speed)


def speed_of(env: gym.Env[Any, Any]) -> float:
    """The current speed of CarRacing's car, in Box2D's metres per second."""
    racing: Any = env.unwrapped
    return float(np.hypot(*racing.car.hull.linearVelocity))


def without_dashboard(camera: Image) -> Image:
    """The part of the camera's image that V sees: the upper 84 of 96 rows."""
    return camera[: camera.shape[0] * DASHBOARD_ROW // FRAME_SHAPE[0]]


def moments(
    view: View, env: gym.Env[Any, Any], world: WorldModel, track: int, max_steps: int, temperature: float
) -> Iterator[Moment]:
    """The moments of one view of one track, step by step.

    Args:
        view: The view.
        env: CarRacing, stock or fast, with render_mode="rgb_array".
        world: V, M and C.
        track: The track's seed, also the seed of the dream.
        max_steps: Maximum number of steps shown; the `WARM_UP` real steps before a dream are not shown.
        temperature: tau > 0 of the dream.

    Yields:
        One moment per step.

    Raises:
        UserError: The episode ends before a dream could begin.
    """
    if view == "real":
        return _real(world, drive(env, world.agent(), track, max_steps))
    if view == "triptych":
        return _triptych(world, drive(env, world.agent(), track, max_steps))
    shots = (shot for shot in drive(env, world.agent(), track, WARM_UP + max_steps) if shot.number > WARM_UP)
    if view == "dream":
        return _dream(world, shots, track, max_steps, temperature)
    return _compare(world, shots, track, max_steps, temperature)


def _real(world: WorldModel, shots: Iterator[Shot]) -> Iterator[Moment]:
    for shot in shots:
        panes = (Pane("camera", shot.camera), Pane("V sees", shot.frame), Pane("V reconstructs", world.decode(shot.z)))
        yield Moment(panes, shot.action, shot.readings)


def _triptych(world: WorldModel, shots: Iterator[Shot]) -> Iterator[Moment]:
    expected = None
    for shot in shots:
        panes = (
            Pane("camera", without_dashboard(shot.camera), "without the dashboard"),
            Pane("V's reconstruction", world.decode(shot.z), "of the same frame"),
            Pane("M's prediction of it", expected, "from z, action and h one step before"),
        )
        yield Moment(panes, shot.action, shot.readings)
        expected = world.decode(world.expect(shot.z, shot.action, shot.state))


class _OnFeatures:
    """C as a policy in the dream, whose observation is [z, h]."""

    def __init__(self, controller: Callable[[Vector], Vector]) -> None:
        self._controller = controller

    def reset(self, rng: np.random.Generator | None = None) -> None:
        pass

    def act(self, observation: Vector) -> Vector:
        return self._controller(observation)


def _dream(world: WorldModel, shots: Iterator[Shot], seed: int, max_steps: int, temperature: float) -> Iterator[Moment]:
    start = next(shots, None)
    if start is None:
        raise _too_short(seed)
    env, score = world.dream(start.z, start.state, temperature, max_steps), 0.0
    for step in play(env, _OnFeatures(world.controller), seed=seed, max_steps=max_steps):
        score += step.reward
        z = step.observation[: len(start.z)]
        panes = (
            Pane("the dream", world.decode(z), f"M's samples at tau {temperature:g}, decoded by V"),
            Pane("where it began", without_dashboard(start.camera), f"the real track after {WARM_UP} steps"),
        )
        yield Moment(panes, step.action, (f"score {score:.0f}", f"step {step.number}"))


def _compare(
    world: WorldModel, shots: Iterator[Shot], seed: int, max_steps: int, temperature: float
) -> Iterator[Moment]:
    start = next(shots, None)
    if start is None:
        raise _too_short(seed)
    still, certain = world.decode(start.z), world.certain(start.frame)
    env = world.dream(start.z, start.state, temperature, max_steps)
    features, _ = env.reset(seed=seed)
    seconds = max_steps / FPS
    distance: dict[str, list[float]] = {"dream": [], "start kept": []}
    error: dict[str, list[float]] = {"dream": [], "start kept": [], "V alone": []}
    for number, shot in enumerate(chain([start], shots), start=1):
        z = features[: len(start.z)]
        dreamt, seen = world.decode(z), world.decode(shot.z)
        for name, other in (("dream", z), ("start kept", start.z)):
            distance[name].append(float(np.linalg.norm((other - shot.z)[certain])))
        for name, picture in (("dream", dreamt), ("start kept", still), ("V alone", seen)):
            error[name].append(float(np.abs(picture.astype(float) - shot.frame).mean()))
        panes = (
            Pane("real", without_dashboard(shot.camera), "the controller drives here"),
            Pane("real, through V", seen, "what the dream could look like at best"),
            Pane("dream", dreamt, f"same start, same actions, tau {temperature:g}"),
        )
        curves = (
            Curves(f"distance of z from the real z, in the {certain.sum()} dimensions that V uses", distance, seconds),
            Curves("error of the picture, mean of 0 to 255", error, seconds),
        )
        yield Moment(panes, shot.action, shot._replace(number=number).readings, curves)
        features, *_ = env.step(shot.action)  # M's predicted termination is ignored here


def _too_short(track: int) -> UserError:
    return UserError(f"the episode on track {track} ended before step {WARM_UP}: give another SEED.")


def together(drives: Mapping[int, Iterator[Moment]]) -> Iterator[dict[str, Moment]]:
    """Runs several episodes in parallel until the last one ends; an ended one keeps its last moment.

    Args:
        drives: The moments of each episode by track.

    Yields:
        For each step the moments by a label of the track.
    """
    running, latest = dict(drives), dict[int, Moment]()
    while running:
        for track in list(running):
            moment = next(running[track], None)
            if moment is None:
                del running[track]
            else:
                latest[track] = moment
        if running:
            yield {f"track {track}{'' if track in running else ', over'}": latest[track] for track in sorted(latest)}
