"""The views of a replay, with the pictures of each step.

real      the camera, V's input, V's reconstruction
triptych  the camera, V's reconstruction of the frame, and M's prediction of this frame one step before
dream     C drives in the dream, without any frame after the first
compare   a real episode beside a dream with the same start and the same actions, and their difference
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from wm.contracts import Floats, State
from wm.dream.env import DreamEnv
from wm.dream.networks import load_networks
from wm.dream.world import make_world
from wm.driving.agent import Agent
from wm.driving.loading import load_acting
from wm.driving.rollout import play
from wm.envs.action import Action
from wm.envs.task import Task
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.show.videos.canvas import Bar, Curves, Image, Moment, Pane
from wm.store.starts import Starts, load_starts
from wm.vision.vae import as_frames, as_input

View = Literal["real", "triptych", "dream", "compare"]


class WorldModel:
    """V, M and C of a run, to act, to decode, to predict and to dream with.

    Attributes:
        task: The environment.
        controller: C, from what it reads f32[F] to raw outputs f32[R].
    """

    def __init__(self, run: Run, controller: str = "controller") -> None:
        """Reads the run's models and one of its controllers.

        Args:
            run: The run folder.
            controller: "controller" or "dream", as `load_acting` has it.

        Raises:
            UserError: One is missing, damaged or does not fit the others.
        """
        models, theta = load_acting(run, controller)
        self.task = models.task
        self._encoder, self._cell = models.encoder(), models.cell()
        self.controller = models.layout.controller(theta, models.features)
        self._networks = load_networks(run, models.memory)
        path = run.starts_of(models.memory)
        self._rewards = load_starts(path).rewards if path.exists() else np.array(self.task.pays, np.float32)
        self._memory = self._networks.memory.dreaming(self.task.pays)  # the mean of the next z has no rewards

    def agent(self) -> Agent:
        """A new agent with its own state."""
        return Agent(self.task, self._encoder, self._cell, self.controller)

    def see(self, state: State, z: Floats) -> State:
        """M's state once it has seen z f32[Z]."""
        return self._cell.see(state, z)

    def encode(self, frame: Image) -> Floats:
        """V's latent of a frame u8[height, width, 3]: z f32[Z]."""
        return self._encoder(frame)

    @torch.inference_mode()
    def decode(self, z: Floats) -> Image:
        """V's reconstruction from z f32[Z]: u8[height, width, 3]."""
        picture: Image = as_frames(self._networks.vision.decode(torch.from_numpy(z)[None]))[0]
        return picture

    @torch.inference_mode()
    def expect(self, state: State, action: Any) -> Floats:
        """M's mean of the next z, f32[Z], after the environment's action in a state that has seen the z before it."""
        state = {name: torch.from_numpy(part) for name, part in state.items()}
        a = torch.from_numpy(self.task.action.from_env(action))
        z: Floats = self._memory.mean(self._memory.expect(self._memory.advance(state, a))).numpy()
        return z

    @torch.inference_mode()
    def certain(self, frame: Image) -> NDArray[np.bool_]:
        """The dimensions of z that hold information about a frame u8[height, width, 3]: bool[Z].

        In these V's posterior is at most half as wide as the prior. If there are none, all are True. In the others z is
        noise, in the dream as in M's training.
        """
        logvar = self._networks.vision.encode(as_input(torch.from_numpy(frame)[None])).logvar
        certain: NDArray[np.bool_] = (logvar[0] < 2 * math.log(0.5)).numpy()
        return certain if certain.any() else ~certain

    def dream(self, state: State, temperature: float, horizon: int) -> DreamEnv:
        """A dream environment that starts in M's state before the action; it observes what C reads."""
        where = np.zeros(1, np.int64)
        rows = {name: part[None].copy() for name, part in state.items()}
        starts = Starts(rows, where, where, self._rewards, self._networks.made_from)
        return DreamEnv(make_world(self._networks, starts, temperature), horizon=horizon)


def bars(action: Action, taken: Any) -> tuple[Bar, ...]:
    """An action in the environment's form as bars, one for each value of a box or for each choice."""
    a = action.from_env(taken).tolist()
    if not action.heads:
        return tuple(Bar(name, value, 0.0, 1.0) for name, value in zip(action.names, a, strict=True))
    axes = zip(action.names, a, action.low, action.high, strict=True)
    return tuple(Bar(f"{name} {value:+.2f}", value, low, high) for name, value, low, high in axes)


class Shot(NamedTuple):
    """One step of a real episode.

    Attributes:
        number: Number of the step, from 1.
        camera: u8[H, W, 3], the camera's image before the action.
        frame: u8[height, width, 3], V's input at the same moment.
        state: M's state before the action, once it has seen the frame.
        action: The action, in the environment's form.
        score: Sum of rewards, including that of this action.
        reading: The task's own reading before the action; "": none.
    """

    number: int
    camera: Image
    frame: Image
    state: State
    action: Any
    score: float
    reading: str

    @property
    def z(self) -> Floats:
        """f32[Z], V's latent of the frame."""
        z: Floats = self.state["z"]
        return z

    @property
    def readings(self) -> tuple[str, ...]:
        """Score, step and the task's own reading as text."""
        return f"score {self.score:.0f}", f"step {self.number}", *filter(None, [self.reading])


class _Filmed:
    """Wraps an agent and renders the camera when it acts, so that the image shows the frame that it acts on."""

    def __init__(self, env: gym.Env[Any, Any], agent: Agent) -> None:
        self._env, self._agent = env, agent

    def reset(self, rng: np.random.Generator | None = None) -> None:
        self._agent.reset(rng)

    def act(self, observation: Image) -> Any:
        self.camera = np.asarray(self._env.render(), np.uint8)
        self.reading = read(self._agent.task, self._env)
        self.state = self._agent.state
        return self._agent.act(observation)


def drive(env: gym.Env[Any, Any], world: WorldModel, track: int, max_steps: int) -> Iterator[Shot]:
    """Drives one real episode and yields its steps.

    Args:
        env: The task's environment, with render_mode="rgb_array".
        world: The agent that drives.
        track: The episode's seed.
        max_steps: Maximum number of steps.
    """
    agent = world.agent()
    filmed, score = _Filmed(env, agent), 0.0
    for step in play(env, filmed, seed=track, max_steps=max_steps):
        score += step.reward
        frame, state = world.task.preprocess(step.observation), world.see(filmed.state, agent.z)
        yield Shot(step.number, filmed.camera, frame, state, step.action, score, filmed.reading)


def read(task: Task, env: gym.Env[Any, Any]) -> str:
    """The task's own reading of an environment's present state; "": none."""
    return task.reading(env) if task.reading else ""


def seen_part(task: Task, caption: str, camera: Image) -> Pane:
    """The part of the camera's image that V sees."""
    cut, left_out = task.visible
    return Pane(caption, cut(camera), left_out)


def moments(
    view: View, env: gym.Env[Any, Any], world: WorldModel, track: int, max_steps: int, temperature: float
) -> Iterator[Moment]:
    """The moments of one view of one track, step by step.

    Args:
        view: The view.
        env: The task's environment, with render_mode="rgb_array".
        world: V, M and C.
        track: The track's seed, also the seed of the dream.
        max_steps: Maximum number of steps shown; the task's `warm_up` real steps before a dream are not shown.
        temperature: tau > 0 of the dream.

    Yields:
        One moment per step.

    Raises:
        UserError: The episode ends before a dream could begin.
    """
    if view == "real":
        return _real(world, drive(env, world, track, max_steps))
    if view == "triptych":
        return _triptych(world, drive(env, world, track, max_steps))
    before = world.task.warm_up
    shots = (shot for shot in drive(env, world, track, before + max_steps) if shot.number > before)
    if view == "dream":
        return _dream(world, shots, track, max_steps, temperature)
    return _compare(world, shots, track, max_steps, temperature)


def _moment(
    world: WorldModel, panes: tuple[Pane, ...], action: Any, readings: tuple[str, ...], *curves: Curves
) -> Moment:
    return Moment(panes, bars(world.task.action, action), readings, curves, world.task.proportion)


def _real(world: WorldModel, shots: Iterator[Shot]) -> Iterator[Moment]:
    for shot in shots:
        panes = (Pane("camera", shot.camera), Pane("V sees", shot.frame), Pane("V reconstructs", world.decode(shot.z)))
        yield _moment(world, panes, shot.action, shot.readings)


def _triptych(world: WorldModel, shots: Iterator[Shot]) -> Iterator[Moment]:
    expected = None
    for shot in shots:
        panes = (
            seen_part(world.task, "camera", shot.camera),
            Pane("V's reconstruction", world.decode(shot.z), "of the same frame"),
            Pane("M's prediction of it", expected, "from state and action one step before"),
        )
        yield _moment(world, panes, shot.action, shot.readings)
        expected = world.decode(world.expect(shot.state, shot.action))


class _Dreaming:
    """C as a policy in the dream; it keeps the latent that it acts on."""

    def __init__(self, env: DreamEnv, world: WorldModel) -> None:
        self._env, self._world = env, world

    def reset(self, rng: np.random.Generator | None = None) -> None:
        pass

    def act(self, features: Floats) -> Any:
        self.z = self._env.z
        action = self._world.task.action
        return action.to_env(action.squash(self._world.controller(features)))


def _dream(world: WorldModel, shots: Iterator[Shot], seed: int, max_steps: int, temperature: float) -> Iterator[Moment]:
    start = next(shots, None)
    if start is None:
        raise _too_short(seed, world.task)
    env, score = world.dream(start.state, temperature, max_steps), 0.0
    dreaming = _Dreaming(env, world)
    began = seen_part(world.task, "where it began", start.camera)
    began = replace(began, source=f"the real track after {world.task.warm_up} steps")
    for step in play(env, dreaming, seed=seed, max_steps=max_steps):
        score += step.reward
        dreamt = Pane("the dream", world.decode(dreaming.z), f"M's samples at tau {temperature:g}, decoded by V")
        yield _moment(world, (dreamt, began), step.action, (f"score {score:.0f}", f"step {step.number}"))


def _compare(
    world: WorldModel, shots: Iterator[Shot], seed: int, max_steps: int, temperature: float
) -> Iterator[Moment]:
    start = next(shots, None)
    if start is None:
        raise _too_short(seed, world.task)
    still, certain = world.decode(start.z), world.certain(start.frame)
    env = world.dream(start.state, temperature, max_steps)
    env.reset(seed=seed)
    axis = {"seconds": max_steps / world.task.fps, "rate": world.task.fps}
    distance: dict[str, list[float]] = {"dream": [], "start kept": []}
    error: dict[str, list[float]] = {"dream": [], "start kept": [], "V alone": []}
    for number, shot in enumerate(chain([start], shots), start=1):
        z = env.z
        dreamt, seen = world.decode(z), world.decode(shot.z)
        for name, other in (("dream", z), ("start kept", start.z)):
            distance[name].append(float(np.linalg.norm((other - shot.z)[certain])))
        for name, picture in (("dream", dreamt), ("start kept", still), ("V alone", seen)):
            error[name].append(float(np.abs(picture.astype(float) - shot.frame).mean()))
        panes = (
            replace(seen_part(world.task, "real", shot.camera), source="the controller drives here"),
            Pane("real, through V", seen, "what the dream could look like at best"),
            Pane("dream", dreamt, f"same start, same actions, tau {temperature:g}"),
        )
        curves = (
            Curves(f"distance of z from the real z, in the {certain.sum()} dimensions that V uses", distance, **axis),
            Curves("error of the picture, mean of 0 to 255", error, **axis),
        )
        yield _moment(world, panes, shot.action, shot._replace(number=number).readings, *curves)
        env.step(shot.action)  # M's predicted termination is ignored here


def _too_short(track: int, task: Task) -> UserError:
    return UserError(f"the episode on track {track} ended before step {task.warm_up}: give another EPISODE.")


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
