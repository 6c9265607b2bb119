"""The dream as an environment: the task's actions in, M's next state and rewards out. No simulator is involved.

The environments get a `World`, which `wm.dream.world` makes of a run. The two functions at the end are the entry points
of "wm/Dream-v0".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from wm.config.vmc import DreamConfig
from wm.contracts import Floats, State
from wm.dream.chance import draw_head_mask
from wm.dream.world import World, load_world
from wm.run.pair import DEFAULT_MEMORY
from wm.run.published import find_run

Frames = NDArray[np.uint8]
Observe = Literal["features", "pixels"]


class _Dreams:
    """The state of N parallel dreams; M advances once per step."""

    def __init__(
        self, world: World, dreams: int, horizon: int, start: int | None, observe: Observe, dropout: float
    ) -> None:
        if horizon < 1:
            raise ValueError(f"horizon is {horizon}, not at least 1")
        if observe not in ("features", "pixels"):
            raise ValueError(f"observe is {observe!r}, neither 'features' nor 'pixels'")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}, not at least 0 and below 1")
        self._world, self._horizon, self._observe = world, horizon, observe
        self._start = self._checked(start)
        self._state: State = {name: np.repeat(part[:1], dreams, axis=0) for name, part in world.state.items()}
        self._steps = np.zeros(dreams, np.int64)
        self._dropout, self._head_mask = dropout, np.ones((dreams, world.masked), np.float32) if dropout else None

    def space(self) -> spaces.Box:
        """The observation space of one dream."""
        if self._observe == "pixels":
            return spaces.Box(0, 255, self.frames().shape[1:], np.uint8)
        return spaces.Box(-self._world.bound, self._world.bound, dtype=np.float32)

    def begin(self, rngs: Mapping[int, np.random.Generator], start: int | None = None) -> list[int]:
        """Begins an episode in each row of `rngs`, with its generator; returns the numbers of their starts."""
        start = self._start if start is None else self._checked(start)
        state = {name: np.array(part) for name, part in self._state.items()}  # a state is never changed in place
        found = []
        for row, rng in rngs.items():
            drawn = int(rng.integers(self._starts))  # always drawn, so that later draws do not depend on `start`
            chosen = drawn if start is None else start
            for name, part in self._world.state.items():
                state[name][row] = part[chosen]
            self._steps[row] = 0
            if self._head_mask is not None:
                self._head_mask[row] = draw_head_mask(rng, self._head_mask[row].shape, self._dropout)
            found.append(chosen)
        self._state = state
        return found

    def advance(
        self, actions: Any, rngs: Sequence[np.random.Generator | None]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Advances all dreams by one step, each with noise from its own generator.

        Args:
            actions: N of them, in the environment's form.
            rngs: The generator of each dream; None for a dream that is reset instead of stepped.

        Returns:
            Rewards f64[N], terminated bool[N] and truncated bool[N].

        Raises:
            ValueError: The actions are of another shape, or not finite.
        """
        count, space = len(self._steps), self._world.task.action
        given = np.asarray(actions)
        if len(given) != count:
            raise ValueError(f"actions are of shape {given.shape}, but there are {count} dreams")
        here = [row for row, rng in enumerate(rngs) if rng is not None]
        a = np.zeros((count, space.size), np.float32)
        a[here] = space.clip(space.from_env(given[here]))
        noise = {name: np.zeros((count, size), np.float32) for name, (_, size) in self._world.chances.items()}
        last = np.zeros(count, np.float32)  # it decides about termination
        for row in here:
            last[row] = self._draw(rngs[row], {name: part[row] for name, part in noise.items()})
        self._state, reward, chance = self._world.step(self._state, a, noise, self._head_mask)
        self._steps += 1
        terminated = last < chance
        truncated = ~terminated & (self._steps >= self._horizon)
        return np.where(terminated, self._world.end, reward).astype(np.float64), terminated, truncated

    def observe(self) -> NDArray[Any]:
        """The current observations, in new memory: what C reads, f32[N,F], or decoded frames u8[N,height,width,3]."""
        return self.frames() if self._observe == "pixels" else np.array(self._world.read(self._state))

    def latents(self) -> Floats:
        """The current latents f32[N,Z], in new memory."""
        return np.array(self._state["z"])

    def frames(self) -> Frames:
        """The decoded latents, u8[N,height,width,3]."""
        return self._world.decode(self._state["z"])

    @property
    def _starts(self) -> int:
        return len(self._world.state["z"])

    def _draw(self, rng: np.random.Generator | None, noise: Mapping[str, Floats]) -> float:
        """Fills the noise of one dream, and returns the number that decides about termination.

        The uniform numbers come first, that one last of them, and then the normal ones.
        """
        assert rng is not None
        for name, (kind, _) in self._world.chances.items():
            if kind == "uniform":
                rng.random(out=noise[name], dtype=np.float32)
        last = rng.random(dtype=np.float32)
        for name, (kind, _) in self._world.chances.items():
            if kind == "normal":
                rng.standard_normal(out=noise[name], dtype=np.float32)
        return last

    def _checked(self, start: int | None) -> int | None:
        if start is not None and not 0 <= start < self._starts:
            raise ValueError(f"start is {start}, there are {self._starts} starts, counted from 0")
        return start


class DreamEnv(gymnasium.Env[NDArray[Any], Any]):
    """One dream. Its reward is M's expected reward of a step; `reset(options={"start": i})` chooses the start."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  Gymnasium's own form

    def __init__(
        self,
        world: World,
        *,
        horizon: int = DreamConfig.horizon,
        start: int | None = None,
        observe: Observe = "features",
        dropout: float = DreamConfig.dropout,
        render_mode: str | None = None,
    ) -> None:
        """Takes a world.

        Args:
            world: The models and starts.
            horizon: Steps after which an episode is truncated, >= 1.
            start: Number of the start of every episode; None: drawn for each episode.
            observe: "features": what C reads, f32[F]. "pixels": decoded frames u8[height,width,3].
            dropout: Probability that a unit of h is hidden from M's heads, drawn per episode; in [0, 1).
            render_mode: "rgb_array": `render` returns decoded frames u8[height,width,3]; or None.

        Raises:
            ValueError: An argument is out of range.
        """
        _check_render_mode(render_mode, self.metadata)
        self.metadata = {**self.metadata, "render_fps": world.task.fps}
        self.render_mode = render_mode
        self._dreams = _Dreams(world, 1, horizon, start, observe, dropout)
        self.observation_space = self._dreams.space()
        self.action_space = world.task.action.space()

    @property
    def z(self) -> Floats:
        """The current latent f32[Z], in new memory."""
        z: Floats = self._dreams.latents()[0]
        return z

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Begins an episode; info["start"] is the number of its start."""
        super().reset(seed=seed)
        (start,) = self._dreams.begin({0: self.np_random}, (options or {}).get("start"))
        return self._dreams.observe()[0], {"start": start}

    def step(self, action: Any) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Dreams one step."""
        reward, terminated, truncated = self._dreams.advance(np.asarray(action)[None], [self.np_random])
        return self._dreams.observe()[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}

    def render(self) -> Frames | None:
        """The decoded latent, u8[height,width,3]; None without a render mode."""
        return None if self.render_mode is None else self._dreams.frames()[0]


class DreamVectorEnv(gymnasium.vector.VectorEnv[NDArray[Any], Any, NDArray[Any]]):
    """N dreams as one batch of M. Dream i with seed s equals `DreamEnv` with seed s + i.

    An ended dream is reset in the next step, which ignores its action (autoreset mode NEXT_STEP).
    """

    metadata = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int,
        world: World,
        *,
        horizon: int = DreamConfig.horizon,
        start: int | None = None,
        observe: Observe = "features",
        dropout: float = DreamConfig.dropout,
        render_mode: str | None = None,
    ) -> None:
        """Takes a world for `num_envs` >= 1 dreams; the rest as for `DreamEnv`."""
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}, not at least 1")
        _check_render_mode(render_mode, self.metadata)
        self.metadata = {**self.metadata, "render_fps": world.task.fps}
        self.num_envs, self.render_mode = num_envs, render_mode
        self._dreams = _Dreams(world, num_envs, horizon, start, observe, dropout)
        self.single_observation_space = self._dreams.space()
        self.single_action_space = world.task.action.space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rngs: list[np.random.Generator] = [seeding.np_random()[0] for _ in range(num_envs)]
        self._ended = np.zeros(num_envs, np.bool_)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Begins all dreams.

        Args:
            seed: s for the seeds s, s + 1, ...; or one seed per dream; None: continue with the current generators.
            options: "start": the number of a start, the same for all dreams.

        Returns:
            The observations, and infos with "start", the number of each dream's start.
        """
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        if seeds is not None:
            if len(seeds) != self.num_envs:
                raise ValueError(f"{len(seeds)} seeds for {self.num_envs} dreams")
            for row, one in enumerate(seeds):
                if one is not None:
                    self._rngs[row] = seeding.np_random(one)[0]
        self._ended = np.zeros(self.num_envs, np.bool_)
        infos = self._begin(range(self.num_envs), (options or {}).get("start"))
        return self._dreams.observe(), infos

    def step(
        self, actions: Any
    ) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Dreams one step in all dreams; those that ended in the previous step are reset instead."""
        rngs = [None if ended else rng for ended, rng in zip(self._ended, self._rngs, strict=True)]
        reward, terminated, truncated = self._dreams.advance(actions, rngs)
        begun = np.flatnonzero(self._ended)
        infos = self._begin(begun.tolist())
        reward[begun], terminated[begun], truncated[begun] = 0.0, False, False
        self._ended = terminated | truncated
        return self._dreams.observe(), reward, terminated, truncated, infos

    def render(self) -> tuple[Frames, ...] | None:
        """The decoded latents, a frame u8[height,width,3] for each dream; None without a render mode."""
        return None if self.render_mode is None else tuple(self._dreams.frames())

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generator of each dream."""
        return tuple(self._rngs)

    def _begin(self, rows: Sequence[int], start: int | None = None) -> dict[str, Any]:
        infos: dict[str, Any] = {}
        if len(rows):
            begun = self._dreams.begin({row: self._rngs[row] for row in rows}, start)
            for row, number in zip(rows, begun, strict=True):
                infos = self._add_info(infos, {"start": number}, row)
        return infos


def _check_render_mode(mode: str | None, metadata: dict[str, Any]) -> None:
    if mode is not None and mode not in metadata["render_modes"]:
        raise ValueError(f"render_mode is {mode!r}, not one of {metadata['render_modes']}")


def make_dream_env(
    run: str | Path, *, memory: str = DEFAULT_MEMORY, temperature: float = DreamConfig.temperature, **options: Any
) -> DreamEnv:
    """Makes the dream environment of a run; the entry point of `gymnasium.make("wm/Dream-v0", run=...)`.

    Args:
        run: A run folder with V, M and starts.npz or latents.h5; or "pretrained", the published run (`find_run`).
        memory: Kind of M.
        temperature: tau > 0 of M's samples (paper, section 4); less makes the dream more certain.
        **options: Those of `DreamEnv`: horizon, start, observe, dropout, render_mode.

    Raises:
        UserError: A file in the folder is missing, or the files do not fit together.
        ValueError: An option is out of range.
    """
    return DreamEnv(load_world(find_run(run), temperature, memory), **options)


def make_dream_vector_env(
    num_envs: int,
    run: str | Path,
    *,
    memory: str = DEFAULT_MEMORY,
    temperature: float = DreamConfig.temperature,
    **options: Any,
) -> DreamVectorEnv:
    """Makes N dreams of a run as one batch of M; the entry point of `gymnasium.make_vec("wm/Dream-v0", N, run=...)`."""
    return DreamVectorEnv(num_envs, load_world(find_run(run), temperature, memory), **options)
