"""The views of a replay: what each of them shows of every step.

real      the camera, what V sees, what V makes of it
triptych  the camera, V's reconstruction of the frame, and what M expected that frame to be one step before
dream     C drives in the dream: no frame comes in after the first
compare   the real drive beside a dream that began with it and is given the same actions, and how they part
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from wm.agent import Agent, load_acting
from wm.controller.linear import LinearController
from wm.envs.preprocess import DASHBOARD_ROW, FRAME_SHAPE, preprocess
from wm.memory.cell import LSTMCell
from wm.memory.dream import Dreamer
from wm.memory.mdnrnn import MDNRNN, load_mdnrnn, mixture_moments
from wm.rollout import play
from wm.run import Run, UserError
from wm.show.canvas import FPS, Curves, Image, Moment, Pane
from wm.vision.encoder import Encoder
from wm.vision.vae import as_frames, as_input, load_vae

View = Literal["real", "triptych", "dream", "compare"]
Vector = NDArray[np.float32]

WARM_UP = 60
"""Real steps before a dream begins: the zoom-in takes the first 50, and M has then seen where it is."""


class WorldModel:
    """V, M and C of a run, to act, to decode and to predict with.

    Attributes:
        controller: C.
    """

    def __init__(self, run: Run, controller: str = "controller") -> None:
        """Reads the run's models, with the controller of a name of `wm.agent.CONTROLLERS` as C.

        Raises:
            UserError: One of them is missing, damaged or made from another one.
        """
        models, self._theta = load_acting(run, controller)
        self._encoder, self._cell = Encoder(models.graph), LSTMCell(models.cell)
        self.controller = LinearController(self._theta, models.features)
        self._vae, _ = load_vae(run.vae)
        self._mdnrnn, _ = load_mdnrnn(run.mdnrnn)

    def agent(self) -> Agent:
        """A new agent, with a state of its own."""
        return Agent(self._encoder, self._cell, self._theta)

    @torch.inference_mode()
    def decode(self, z: Vector) -> Image:
        """V's picture of z f32[Z]: u8[64, 64, 3]."""
        picture: Image = as_frames(self._vae.decode(torch.from_numpy(z)[None]))[0]
        return picture

    @torch.inference_mode()
    def expect(self, z: Vector, action: Vector, state: tuple[Vector, Vector]) -> Vector:
        """The mean of M's mixture for the next z, f32[Z], after z f32[Z], the action f32[A] and (h, c) before it."""
        prediction, _ = self._mdnrnn(*_batched(z, action), _torch_state(state))
        return mixture_moments(prediction)[0][0, 0].numpy()

    @torch.inference_mode()
    def certain(self, frame: Image) -> NDArray[np.bool_]:
        """Which dimensions of z say something of a frame u8[64, 64, 3]: bool[Z].

        They are those in which V's posterior is at most half as wide as the prior; all, where there is none. In the
        others z is noise, in the dream as in M's training.
        """
        _, logvar = self._vae.encode(as_input(torch.from_numpy(frame)[None]))
        certain: NDArray[np.bool_] = (logvar[0] < 2 * math.log(0.5)).numpy()
        return certain if certain.any() else ~certain

    def dream(self, z: Vector, state: tuple[Vector, Vector], temperature: float, seed: int) -> Dream:
        """A dream that begins at z f32[Z] with M's state (h, c) before the action there."""
        return Dream(self._mdnrnn, z, state, temperature, seed)


class Dream:
    """M running on its own samples: after its beginning it sees no frame.

    Attributes:
        z: f32[Z], where the dream is.
        h: f32[H], M's output before the action there.
    """

    z: Vector
    h: Vector

    def __init__(self, model: MDNRNN, z: Vector, state: tuple[Vector, Vector], temperature: float, seed: int) -> None:
        """Begins at z f32[Z] and (h, c), each f32[H]; ValueError for a temperature not above 0."""
        # What is paid 1 for a tile, and nothing for none, expects to be paid the probability of one.
        self._dreamer = Dreamer(model, miss=0.0, hit=1.0, temperature=temperature)
        self._generator = torch.Generator().manual_seed(seed)
        self.z, (self.h, self._c) = z, state

    @torch.inference_mode()
    def step(self, action: Vector) -> tuple[float, float]:
        """Takes an action f32[A]; returns what the reward head says (see `MDNRNN.reward`) and P(terminated)."""
        uniform = torch.rand(self.z.shape, generator=self._generator)
        noise = torch.randn(self.z.shape, generator=self._generator)
        z, h, c, a = (torch.from_numpy(part) for part in (self.z, self.h, self._c, action))
        z, h, c, reward, terminated = self._dreamer.step(z, h, c, a, uniform, noise)
        self.z, self.h, self._c = z.numpy(), h.numpy(), c.numpy()
        return reward.item(), terminated.item()


def _batched(z: Vector, action: Vector) -> tuple[torch.Tensor, torch.Tensor]:
    """What M takes as a sequence of one step: z f32[1,1,Z] and a f32[1,1,A]."""
    return torch.from_numpy(z)[None, None], torch.from_numpy(action)[None, None]


def _torch_state(state: tuple[Vector, Vector]) -> tuple[torch.Tensor, torch.Tensor]:
    """(h, c) f32[1,1,H] each, of the numpy ones that the agent keeps."""
    h, c = (torch.from_numpy(part)[None, None] for part in state)
    return h, c


# --- the real drive ---------------------------------------------------------------------------------------


class Shot(NamedTuple):
    """One step of a real drive.

    Attributes:
        number: 1 for the first step.
        camera: u8[400, 600, 3], what a spectator sees before the action.
        frame: u8[64, 64, 3], what V is given of the same moment.
        z: f32[Z], what V says of it.
        state: (h, c) before the action.
        action: f32[3].
        score: Sum of rewards, the one for this action included.
        speed: Of the car before the action, in metres a second.
    """

    number: int
    camera: Image
    frame: Image
    z: Vector
    state: tuple[Vector, Vector]
    action: Vector
    score: float
    speed: float

    @property
    def readings(self) -> tuple[str, ...]:
        """As text."""
        return f"score {self.score:.0f}", f"step {self.number}", f"speed {self.speed:.0f} m/s"


class _Filmed:
    """An agent that is filmed at the moment it acts, so that the camera shows the very frame it acts on."""

    def __init__(self, env: gym.Env[Any, Any], agent: Agent) -> None:
        self._env, self._agent = env, agent

    def reset(self, rng: np.random.Generator | None = None) -> None:
        self._agent.reset(rng)

    def act(self, observation: Image) -> Vector:
        self.camera = np.asarray(self._env.render(), np.uint8)
        car: Any = self._env.unwrapped
        self.speed = float(np.hypot(*car.car.hull.linearVelocity))
        self.state = self._agent.state
        return self._agent.act(observation)


def drive(env: gym.Env[Any, Any], agent: Agent, track: int, max_steps: int) -> Iterator[Shot]:
    """Drives one real track to its end.

    Args:
        env: CarRacing, stock or fast, with render_mode="rgb_array".
        agent: What drives.
        track: The track's seed.
        max_steps: Longest drive in steps.
    """
    filmed, score = _Filmed(env, agent), 0.0
    for step in play(env, filmed, seed=track, max_steps=max_steps):
        score += step.reward
        frame = preprocess(step.observation)
        yield Shot(step.number, filmed.camera, frame, agent.z, filmed.state, step.action, score, filmed.speed)


def _without_dashboard(camera: Image) -> Image:
    """The part of the camera's picture that V sees: its upper 84 of 96 rows."""
    return camera[: camera.shape[0] * DASHBOARD_ROW // FRAME_SHAPE[0]]


# --- the views --------------------------------------------------------------------------------------------


def moments(
    view: View, env: gym.Env[Any, Any], world: WorldModel, track: int, max_steps: int, temperature: float
) -> Iterator[Moment]:
    """What one view shows of one track, step by step.

    Args:
        view: Which view.
        env: CarRacing, stock or fast, with render_mode="rgb_array".
        world: V, M and C.
        track: The track's seed, and that of the dream.
        max_steps: Steps shown at most; a dream's `WARM_UP` real steps before it are not shown.
        temperature: tau > 0 of the dream.

    Yields:
        One moment a step.

    Raises:
        UserError: The drive ends before a dream could begin.
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
        panes = (
            Pane("camera", shot.camera),
            Pane("V sees", shot.frame),
            Pane("V reconstructs", world.decode(shot.z)),
        )
        yield Moment(panes, shot.action, shot.readings)


def _triptych(world: WorldModel, shots: Iterator[Shot]) -> Iterator[Moment]:
    expected = None
    for shot in shots:
        panes = (
            Pane("camera", _without_dashboard(shot.camera), "without the dashboard"),
            Pane("V's reconstruction", world.decode(shot.z), "of the same frame"),
            Pane("M's prediction of it", expected, "from z, action and h one step before"),
        )
        yield Moment(panes, shot.action, shot.readings)
        expected = world.decode(world.expect(shot.z, shot.action, shot.state))


def _dream(world: WorldModel, shots: Iterator[Shot], seed: int, max_steps: int, temperature: float) -> Iterator[Moment]:
    for start in shots:
        dream = world.dream(start.z, start.state, temperature, seed)
        earned = 0.0
        for number in range(1, max_steps + 1):
            action = world.controller(np.concatenate([dream.z, dream.h]))
            panes = (
                Pane("the dream", world.decode(dream.z), f"M's samples at tau {temperature:g}, decoded by V"),
                Pane("where it began", _without_dashboard(start.camera), f"the real track after {WARM_UP} steps"),
            )
            reward, terminated = dream.step(action)
            earned += reward
            yield Moment(panes, action, (f"tiles {earned:.1f}", f"step {number}", f"end {terminated:.0%}"))
        return
    raise _too_short(seed)


def _compare(
    world: WorldModel, shots: Iterator[Shot], seed: int, max_steps: int, temperature: float
) -> Iterator[Moment]:
    dream: Dream | None = None
    seconds = max_steps / FPS
    distance: dict[str, list[float]] = {"dream": [], "start kept": []}
    error: dict[str, list[float]] = {"dream": [], "start kept": [], "V alone": []}
    for number, shot in enumerate(shots, start=1):
        if dream is None:
            dream, start, still = world.dream(shot.z, shot.state, temperature, seed), shot.z, world.decode(shot.z)
            certain = world.certain(shot.frame)
        dreamt, seen = world.decode(dream.z), world.decode(shot.z)
        for name, z in (("dream", dream.z), ("start kept", start)):
            distance[name].append(float(np.linalg.norm((z - shot.z)[certain])))
        for name, picture in (("dream", dreamt), ("start kept", still), ("V alone", seen)):
            error[name].append(float(np.abs(picture.astype(float) - shot.frame).mean()))
        panes = (
            Pane("real", _without_dashboard(shot.camera), "the controller drives here"),
            Pane("real, through V", seen, "what the dream could look like at best"),
            Pane("dream", dreamt, f"same start, same actions, tau {temperature:g}"),
        )
        curves = (
            Curves(f"distance of z from the real z, in the {certain.sum()} dimensions that V uses", distance, seconds),
            Curves("error of the picture, mean of 0 to 255", error, seconds),
        )
        yield Moment(panes, shot.action, shot._replace(number=number).readings, curves)
        dream.step(shot.action)
    if dream is None:
        raise _too_short(seed)


def _too_short(track: int) -> UserError:
    return UserError(f"the drive on track {track} is over before its step {WARM_UP}: give another SEED.")


# --- several tracks ---------------------------------------------------------------------------------------


def together(drives: Mapping[int, Iterator[Moment]]) -> Iterator[dict[str, Moment]]:
    """Plays several drives at once until the last one has ended; the others keep their last moment.

    Args:
        drives: By track.

    Yields:
        For each step the moments by a label for the track.
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
