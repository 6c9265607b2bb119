"""The dream of a run: its starts, its environment, and the scoring of whole populations in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wm.chance import DreamNoise, Record, draw_noise, empty_record, fill_record, use_recorded
from wm.config import DreamConfig, MDNRNNConfig
from wm.controller.linear import ACTIONS
from wm.envs.dream import DreamEnv, DreamVectorEnv, Observe, World
from wm.memory.cell import LSTMCell
from wm.memory.dream import Dreamer
from wm.memory.mdnrnn import MDNRNN, load_mdnrnn
from wm.run import Run, UserError, check_made_from, file_hash
from wm.store.latents import LatentEpisode, Latents
from wm.store.starts import Starts, load_starts
from wm.train import has_fast_bf16
from wm.value import Value, fit_value
from wm.vision.vae import VAE, as_frames, load_vae

Array = NDArray[np.float64]

SCORE_STEPS = 1000
"""Scores are scaled to this many steps, the length of a real episode, whatever the horizon is."""

BLOCK_ROWS = 512
"""Dreams per block of one CPU thread, so that their LSTM gates fit its cache."""


@dataclass(frozen=True)
class Networks:
    """V and M of a run.

    Attributes:
        vae: V.
        mdnrnn: M.
        validation: Fraction of the episodes that M was not trained on, 0 to 1.
        made_from: Hashes of vae.pt and mdnrnn.pt.
        earlier: Number of episodes in each earlier round, for the same split as in M's training.
    """

    vae: VAE
    mdnrnn: MDNRNN
    validation: float
    made_from: dict[str, str]
    earlier: tuple[int, ...] = ()


def load_networks(run: Run) -> Networks:
    """Reads vae.pt and mdnrnn.pt of a run; UserError when one is missing, damaged or does not fit the other."""
    vae, _ = load_vae(run.vae)
    mdnrnn, meta = load_mdnrnn(run.mdnrnn)
    made_from = {"vae.pt": file_hash(run.vae)}
    check_made_from(run.mdnrnn, meta["made_from"], made_from)
    made_from["mdnrnn.pt"] = file_hash(run.mdnrnn)
    validation, earlier = meta["config"].get("validation", MDNRNNConfig.validation), meta["config"].get("earlier", ())
    if (
        not isinstance(validation, int | float)
        or not isinstance(earlier, list | tuple)
        or not all(isinstance(count, int) for count in earlier)
    ):
        raise UserError(f"{run.mdnrnn} does not record M's validation split: redo it with `make mdnrnn`.")
    return Networks(vae, mdnrnn, float(validation), made_from, tuple(earlier))


# --- starts ----------------------------------------------------------------------------------------------


def find_starts(run: Run, networks: Networks, config: DreamConfig) -> Starts:
    """The starts of a run: from starts.npz if it exists, else drawn from latents.h5. Nothing is written.

    Raises:
        UserError: Both files are missing, or one is damaged, does not fit V and M, or has no moment to start at.
    """
    if run.starts.exists() or not run.latents.exists():
        return given_starts(run, networks)
    return new_starts(run, networks, config)


def given_starts(run: Run, networks: Networks) -> Starts:
    """Reads starts.npz; UserError when it is missing, damaged or does not fit V and M."""
    starts = load_starts(run.starts)
    check_made_from(run.starts, starts.made_from, networks.made_from, stage="dream")
    return starts


def new_starts(run: Run, networks: Networks, config: DreamConfig) -> Starts:
    """Draws starts from M's training episodes in latents.h5; UserError as for `find_starts`."""
    latents, training, _ = split_latents(run, networks)
    return draw_starts(
        latents,
        training[-config.fresh :],
        networks,
        count=config.starts,
        after=config.start_after,
        near=config.start_near,
        # From all episodes: the newest may contain no termination, and a dreamt one would then cost nothing.
        rewarded=training,
    )


def split_latents(run: Run, networks: Networks) -> tuple[Latents, NDArray[np.int64], NDArray[np.int64]]:
    """Opens latents.h5 and splits it.

    Returns:
        The latents, and the places i64[N] of M's training and validation episodes.

    Raises:
        UserError: latents.h5 is missing, damaged or made from another V.
    """
    latents = Latents(run.latents)
    check_made_from(run.latents, latents.made_from, {"vae.pt": networks.made_from["vae.pt"]}, stage="mdnrnn")
    seed = run.read_manifest()["stages"].get("mdnrnn", {}).get("seed", 0)
    return latents, *latents.split(networks.validation, seed, networks.earlier)


def draw_starts(
    latents: Latents,
    episodes: NDArray[np.int64],
    networks: Networks,
    *,
    count: int,
    after: int,
    near: int,
    rewarded: NDArray[np.int64],
    seed: int = 0,
) -> Starts:
    """Draws moments of recorded episodes uniformly and warms M up over all real steps before each.

    Args:
        latents: The recorded episodes.
        episodes: i64[N], places of the episodes to draw from.
        networks: V and M.
        count: Number of starts, >= 1.
        after: Minimum number of steps before a moment. The last moment of an episode is never drawn.
        near: A moment has a new tile within this many steps before or after it; 0, or no such moment: any moment.
        rewarded: i64[N], places of the episodes whose mean rewards are stored with the starts.
        seed: Seed of the choice.

    Raises:
        UserError: No episode is longer than `after`.
    """
    possible = moments(latents, episodes, after, near)
    if near and not len(possible):
        possible = moments(latents, episodes, after, near=0)
    if not len(possible):
        raise UserError(
            f"no recorded episode is longer than --start-after {after} steps: give fewer steps, or collect longer "
            "episodes."
        )
    rng = np.random.default_rng([seed, count])
    drawn = np.sort(rng.choice(len(possible), count, replace=count > len(possible)))
    nth, steps = possible[drawn].T

    cell = make_cell(networks.mdnrnn)
    found = []
    for n in np.unique(nth).tolist():
        episode = latents.episode(episodes[n])
        wanted = steps[nth == n]
        found.append((episode.mu[wanted], *warm_up(cell, episode, wanted)))
    # Rounded to float16 as on disk, so that drawn starts equal saved ones. [N,Z] and twice [N,H]
    z, h, c = (np.concatenate(part).astype(np.float16).astype(np.float32) for part in zip(*found, strict=True))
    return Starts(
        z=z,
        h=h,
        c=c,
        episode=latents.table["index"][episodes][nth].astype(np.int64),
        step=steps.astype(np.int64),
        rewards=mean_rewards(latents, rewarded),
        made_from=networks.made_from,
    )


def moments(latents: Latents, episodes: NDArray[np.int64], after: int, near: int) -> NDArray[np.int64]:
    """All moments that `draw_starts` draws from, i64[N,2]: position in `episodes`, and steps before the moment."""
    found = []
    for n, place in enumerate(episodes.tolist()):
        steps = np.arange(after, latents.table["length"][place])
        if near:
            touched = np.flatnonzero(latents.episode(place).rewards > 0)  # step t leads from moment t to t + 1
            first, last = (np.searchsorted(touched, steps + shift) for shift in (-near, near))
            steps = steps[last > first]
        found.append(np.stack([np.full(len(steps), n), steps], axis=1))
    return np.concatenate(found)


def make_cell(model: MDNRNN) -> LSTMCell:
    """M's LSTM in numpy, as the agent runs it."""
    weights = {name: value.numpy() for name, value in model.state_dict().items() if name.startswith("lstm.")}
    return LSTMCell(weights)


def warm_up(
    cell: LSTMCell, episode: LatentEpisode, steps: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Runs M over an episode as the agent does (z is V's mean).

    Args:
        cell: M's LSTM.
        episode: The recorded episode.
        steps: i64[N], numbers of steps.

    Returns:
        (h, c), each f32[N,H], after each of these numbers of steps.
    """
    state = cell.initial()
    states = [state]
    for z, action in zip(episode.mu[: steps.max()], episode.actions, strict=False):
        state = cell.step(z, action, state)
        states.append(state)
    h, c = zip(*(states[step] for step in steps.tolist()), strict=True)
    return np.stack(h), np.stack(c)


def mean_rewards(latents: Latents, episodes: NDArray[np.int64]) -> NDArray[np.float32]:
    """f32[3]: mean reward of recorded steps that touch no tile, touch one, or terminate the episode.

    A kind without any step gets the mean of the first kind.
    """
    sums, counts = np.zeros(3), np.zeros(3)
    for place in episodes.tolist():
        episode = latents.episode(place)
        kind = np.where(episode.terminated, 2, episode.rewards > 0)
        sums += np.bincount(kind, episode.rewards, 3)
        counts += np.bincount(kind, minlength=3)
    means = sums / np.maximum(counts, 1)
    return np.where(counts > 0, means, means[0]).astype(np.float32)


# --- ensembles -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """A further M of an ensemble.

    Attributes:
        model: M, with the same sizes as the run's own.
        h: f32[N,H], its recurrent output at the run's N starts.
        c: f32[N,H], its LSTM cell there.
    """

    model: MDNRNN
    h: NDArray[np.float32]
    c: NDArray[np.float32]


def load_ensemble(folders: Sequence[Path], run: Run, networks: Networks, starts: Starts) -> list[Member]:
    """Reads the M's of other runs and warms each up over the recorded steps before the starts.

    Args:
        folders: Run folders whose M was trained on the same V.
        run: The run, for its latents.h5.
        networks: Its V and M.
        starts: Its starts.

    Raises:
        UserError: One of the M's is missing, damaged, of another V, of other sizes or given twice; or latents.h5 is
            missing or lacks a start.
    """
    members: list[Member] = []
    known = {networks.made_from["mdnrnn.pt"]}
    for folder in folders:
        path = Run(folder).mdnrnn
        model, meta = load_mdnrnn(path)
        if meta["made_from"].get("vae.pt") != networks.made_from["vae.pt"]:
            raise UserError(
                f"--ensemble {folder}: its mdnrnn.pt was trained on another vae.pt than that of {run.folder}: "
                f"copy that vae.pt there and train M on it with `make mdnrnn ARGS=--restart`, or leave the folder out."
            )
        unlike = [name for name in ("actions", "hidden") if getattr(model, name) != getattr(networks.mdnrnn, name)]
        if unlike:
            raise UserError(
                f"--ensemble {folder}: its M has {unlike[0]} {getattr(model, unlike[0])}, that of {run.folder} "
                f"{getattr(networks.mdnrnn, unlike[0])}: give only M's of the same sizes."
            )
        if file_hash(path) in known:
            raise UserError(
                f"--ensemble {folder}: its M is in the ensemble already: give each other M once, and not the run's own."
            )
        known.add(file_hash(path))
        members.append(Member(model, *remembered(model, run, networks, starts)))
    return members


def remembered(
    model: MDNRNN, run: Run, networks: Networks, starts: Starts
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """An M's (h, c) at the starts of a run, each f32[N,H], rounded to float16 like the run's own on disk.

    Raises:
        UserError: latents.h5 is missing, damaged, of another V, or has no such moments.
    """
    cell = make_cell(model)
    h, c = np.empty_like(starts.h), np.empty_like(starts.c)
    for episode, here in recorded_episodes(run, networks, starts):
        h[here], c[here] = warm_up(cell, episode, starts.step[here])
    return h.astype(np.float16).astype(np.float32), c.astype(np.float16).astype(np.float32)


def recorded_episodes(
    run: Run, networks: Networks, starts: Starts
) -> Iterator[tuple[LatentEpisode, NDArray[np.bool_]]]:
    """Yields the recorded episodes that contain starts, each with a mask bool[N] of the starts in it.

    Raises:
        UserError: latents.h5 is missing, damaged, of another V, or has no such moments.
    """
    latents, _, _ = split_latents(run, networks)
    places = {index: place for place, index in enumerate(latents.table["index"].tolist())}
    for index in np.unique(starts.episode).tolist():
        here = starts.episode == index
        if index not in places or latents.table["length"][places[index]] < starts.step[here].max():
            raise UserError(
                f"{run.latents} lacks moments that starts.npz refers to: draw new starts with "
                "`make dream ARGS=--restart`."
            )
        yield latents.episode(places[index]), here


def load_records(run: Run, networks: Networks, starts: Starts, others: Sequence[Member], horizon: int) -> list[Record]:
    """The inferred noise after the starts: a record for the run's own M, then one for each of the others.

    Raises:
        UserError: As for `recorded_episodes`.
    """
    records = [empty_record(len(starts), horizon, networks.mdnrnn.z) for _ in range(len(others) + 1)]
    for episode, here in recorded_episodes(run, networks, starts):
        for model, record in zip((networks.mdnrnn, *(other.model for other in others)), records, strict=True):
            fill_record(record, model, episode, here, starts.step)
    return records


def make_value(run: Run, networks: Networks, config: DreamConfig, seed: int) -> tuple[Value, float]:
    """Fits the value to the run's recorded episodes, or to the newest `config.fresh`.

    Returns:
        As `fit_value`: the network, and R² on held-out returns (nan without any).

    Raises:
        UserError: latents.h5 is missing, damaged or of another V, or its episodes are too short.
    """
    latents, training, held_out = split_latents(run, networks)
    training = training[-config.fresh :]
    held_out = held_out[held_out > training[0]]  # returns of slow cars would not test the value of fast ones
    episodes = [map(latents.episode, part.tolist()) for part in (training, held_out)]
    try:
        return fit_value(networks.mdnrnn, *episodes, steps=config.value, seed=seed)
    except ValueError as error:
        raise UserError(
            f"--value {config.value} is too long ({error}): give fewer steps, or collect longer episodes."
        ) from error


# --- the environment -------------------------------------------------------------------------------------


def make_dream_env(
    run: str | Path,
    *,
    temperature: float = DreamConfig.temperature,
    horizon: int = DreamConfig.horizon,
    start: int | None = None,
    observe: Observe = "features",
    dropout: float = DreamConfig.dropout,
    render_mode: str | None = None,
) -> DreamEnv:
    """Makes the dream environment of a run; the entry point of `gymnasium.make("wm/Dream-v0", run=...)`.

    Args:
        run: A run folder with V, M and starts.npz or latents.h5.
        temperature: tau > 0 of M's samples (paper, section 4); less makes the dream more certain.
        horizon: Steps after which an episode is truncated, >= 1.
        start: Number of the start of every episode; None: drawn for each episode.
        observe: "features": [z, h] f32[Z+H]. "pixels": decoded frames u8[64,64,3].
        dropout: Probability that a unit of h is hidden from M's heads in an episode, in [0, 1).
        render_mode: "rgb_array" or None.

    Raises:
        UserError: A file in the folder is missing, or the files do not fit together.
        ValueError: An option is out of range.
    """
    world = load_world(Run(run), temperature)
    return DreamEnv(world, horizon=horizon, start=start, observe=observe, dropout=dropout, render_mode=render_mode)


def make_dream_vector_env(
    num_envs: int,
    run: str | Path,
    *,
    temperature: float = DreamConfig.temperature,
    horizon: int = DreamConfig.horizon,
    start: int | None = None,
    observe: Observe = "features",
    dropout: float = DreamConfig.dropout,
    render_mode: str | None = None,
) -> DreamVectorEnv:
    """Makes N dreams of a run as one batch of M; the entry point of `gymnasium.make_vec("wm/Dream-v0", N, run=...)`.

    `num_envs` is N; the other arguments and the errors are those of `make_dream_env`.
    """
    world = load_world(Run(run), temperature)
    return DreamVectorEnv(
        num_envs, world, horizon=horizon, start=start, observe=observe, dropout=dropout, render_mode=render_mode
    )


def load_world(run: Run, temperature: float) -> World:
    """The world of a run's dream environments, on the CPU; UserError as for `find_starts`."""
    networks = load_networks(run)
    return make_world(networks, find_starts(run, networks, DreamConfig()), temperature)


def make_world(networks: Networks, starts: Starts, temperature: float) -> World:
    """The world of given starts, on the CPU; ValueError when the temperature is not above 0 and finite."""
    dreamer = make_dreamer(networks.mdnrnn, starts, temperature)

    @torch.inference_mode()
    def step(*arrays: NDArray[np.float32] | None) -> Any:
        given: list[Any] = [None if each is None else torch.from_numpy(each) for each in arrays]
        return tuple(each.numpy() for each in dreamer.step(*given))

    @torch.inference_mode()
    def decode(z: NDArray[np.float32]) -> NDArray[np.uint8]:
        return as_frames(networks.vae.decode(torch.from_numpy(z)))

    return World(step, decode, starts.z, starts.h, starts.c, end=float(starts.rewards[2]))


def make_dreamer(
    model: MDNRNN,
    starts: Starts,
    temperature: float,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Dreamer:
    """M's dreamer with the mean rewards of the recorded steps."""
    miss, hit, _ = starts.rewards.tolist()
    return Dreamer(model, miss=miss, hit=hit, temperature=temperature, device=device, dtype=dtype)


# --- whole populations -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scene:
    """Starts and noise of S dreams on the device.

    Attributes:
        z: f32[S,Z], latents at the starts.
        states: (h, c) of each M, each f32[s,H] in the s dreams in which it runs.
        uniform: f32[T,S,Z].
        noise: f32[T,S,Z].
        head_mask: f32[S,H], or None.
        parts: For each M the dreams that it draws.
        runs: For each M the dreams in which it runs: all, or only its part. The run's own M runs in all, since C reads
            its h.
    """

    z: Tensor
    states: list[tuple[Tensor, Tensor]]
    uniform: Tensor
    noise: Tensor
    head_mask: Tensor | None
    parts: list[slice]
    runs: list[slice]


class Population:
    """Scores a population in dreams: candidates × starts in one batch, each candidate with its own weights.

    On a CPU the batch is cut into blocks whose size does not depend on the number of threads. One thread computes a
    block from its first step to its last. So threads do not wait for one another after each of the thirty operations
    of a step, and the scores do not depend on the number of threads. The caller sets torch to one thread.

    Attributes:
        dtype: Type of the matrix products.
    """

    def __init__(
        self,
        model: MDNRNN,
        starts: Starts,
        config: DreamConfig,
        *,
        others: Sequence[Member] = (),
        records: Sequence[Record] = (),
        value: Value | None = None,
        threads: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Prepares M and the starts.

        Args:
            model: M.
            starts: The pool of starts.
            config: Temperature, dropout, horizon, unpaid steps and dreams per candidate.
            others: The further M's of an ensemble. C always reads the h of `model`. In each dream one M of all draws z
                and predicts reward and termination.
            records: For recorded noise: the inferred noise after the starts, for `model` and each of the others.
            value: Estimates the return of the config's `value` steps after a dream.
            threads: CPU threads, >= 1.
            device: Where to dream.
            dtype: Type of the matrix products; None: bfloat16 where it is fast, else float32.
        """
        self._device = torch.device(device)
        self.dtype = dtype or (torch.bfloat16 if has_fast_bf16(self._device) else torch.float32)
        self._members = [
            make_dreamer(one, starts, config.temperature, self._device, self.dtype)
            for one in (model, *(other.model for other in others))
        ]
        self._config, self._threads, self._pool, self._records = config, threads, len(starts), records
        self._z = torch.from_numpy(starts.z).to(self._device)
        self._states = [
            (torch.from_numpy(h).to(self._device), torch.from_numpy(c).to(self._device))
            for h, c in ((starts.h, starts.c), *((other.h, other.c) for other in others))
        ]
        self._end = float(starts.rewards[2])
        self._value = None if value is None else value.to(self._device)

    def draw_noise(self, *seed: int, dreams: int | None = None) -> DreamNoise:
        """Draws starts and noise as a function of `seed`, for `dreams` dreams (default: the config's number)."""
        dreams = self._config.dreams if dreams is None else dreams
        rng, config = np.random.default_rng(seed), self._config
        members = len(self._members)
        dream_noise = draw_noise(rng, self._pool, dreams, config.horizon, self._members[0], config.dropout, members)
        return use_recorded(dream_noise, self._records) if self._records else dream_noise

    def score(self, thetas: Array, dream_noise: DreamNoise, disagreement: float = 0.0) -> Array:
        """Scores each candidate in a dream from each start.

        The score is the expected return: rewards and terminations enter by their probabilities, so that only z is
        random. The first `unpaid` steps are not scored. The return of the other steps, plus the value of the last
        state, is scaled to 1000 steps.

        Args:
            thetas: f64[P,N], flat weights.
            dream_noise: Starts and noise, the same for all candidates.
            disagreement: Penalty in points per scored step and unit of disagreement: the variance over the M's of the
                mean of the next z, averaged over dimensions. All M's read the same z and a.

        Returns:
            f64[P], means over the starts.
        """
        weights = torch.from_numpy(thetas).float().to(self._device)
        scene = self._scene(dream_noise, watched=disagreement > 0)
        size = len(thetas) if self._device.type != "cpu" else max(1, BLOCK_ROWS // len(dream_noise.starts))
        left = Event()

        def block(part: Tensor) -> Tensor:
            return self._dream(part, scene, disagreement, left)

        with ThreadPoolExecutor(self._threads) as threads:
            try:
                returns = torch.cat(list(threads.map(block, weights.split(size))))
            except BaseException:
                left.set()  # on a signal: the blocks must stop, since the executor waits for them
                raise
        config = self._config
        paid = config.horizon - config.unpaid + (config.value if self._value else 0)
        scores: Array = returns.mean(1).double().cpu().numpy() * (SCORE_STEPS / paid)
        return scores

    def _scene(self, dream_noise: DreamNoise, watched: bool) -> _Scene:
        """The noise on the device, with the state of each M in the dreams in which it runs: in all if `watched`."""
        begin = torch.from_numpy(dream_noise.starts).to(self._device)
        bounds = np.searchsorted(dream_noise.members, np.arange(len(self._members) + 1)).tolist()
        parts = [slice(*each) for each in pairwise(bounds)]
        runs = [slice(None)] * len(parts) if watched else [slice(None), *parts[1:]]
        return _Scene(
            z=self._z[begin],
            states=[(h[begin[dreams]], c[begin[dreams]]) for dreams, (h, c) in zip(runs, self._states, strict=True)],
            uniform=torch.from_numpy(dream_noise.uniform).to(self._device),
            noise=torch.from_numpy(dream_noise.noise).to(self._device),
            head_mask=None
            if dream_noise.head_mask is None
            else torch.from_numpy(dream_noise.head_mask).to(self._device),
            parts=parts,
            runs=runs,
        )

    @torch.inference_mode()
    def _dream(self, theta: Tensor, scene: _Scene, disagreement: float, left: Event) -> Tensor:
        """Returns f32[P,S] of P candidates from S starts; it stops early once `left` is set."""
        candidates, features = len(theta), self._members[0].z + self._members[0].hidden
        weights = theta[:, : ACTIONS * features].unflatten(1, (ACTIONS, features)).transpose(1, 2)  # [P,F,A]
        bias = theta[:, None, ACTIONS * features :]  # [P,1,A]
        z = scene.z.expand(candidates, *scene.z.shape)  # [P,S,Z]
        states = [  # [P,S,H] each, of an M that runs in all dreams
            (h.expand(candidates, *h.shape), c.expand(candidates, *c.shape)) for h, c in scene.states
        ]
        total = torch.zeros(z.shape[:2], device=z.device)  # [P,S]
        alive = torch.ones_like(total)
        end = torch.full_like(total, self._end)
        for t in range(self._config.horizon):
            if left.is_set():
                break
            action = squash(torch.baddbmm(bias, torch.cat([z, states[0][0]], -1), weights))  # [P,S,F] to [P,S,A]
            paid = t >= self._config.unpaid
            drawn, means = [], []
            for m, (member, part, runs) in enumerate(zip(self._members, scene.parts, scene.runs, strict=True)):
                h, _ = states[m] = member.remember(z[:, runs], *states[m], action[:, runs])
                own = part if runs == slice(None) else slice(None)  # the dreams that it draws, among those it runs in
                if paid and disagreement:
                    raw = member.expect(h, scene.head_mask)  # [P,S,3KZ+2]
                    means.append(member.mean(raw))
                    raw = raw[:, own]
                else:
                    raw = member.expect(h[:, own], None if scene.head_mask is None else scene.head_mask[part])
                drawn.append(member.draw(raw, scene.uniform[t, part], scene.noise[t, part]))
            z, reward, terminated = (torch.cat(each, 1) for each in zip(*drawn, strict=True))  # [P,S,Z], [P,S], [P,S]
            if paid:
                earned = torch.lerp(reward, end, terminated)
                if disagreement:
                    earned -= disagreement * torch.stack(means).var(0, correction=0).mean(-1)  # [M's,P,S,Z] to [P,S]
                total += alive * earned
            alive *= 1 - terminated
        if self._value is not None:
            total += alive * self._value(torch.cat([z, states[0][0]], -1))  # [P,S,F] to [P,S]
        return total


def squash(raw: Tensor) -> Tensor:
    """Squashes raw actions f32[...,3] in place, as `wm.controller.linear.squash` does for one action."""
    raw.tanh_()
    raw[..., 1].add_(1).mul_(0.5)
    raw[..., 2].clamp_(min=0)
    return raw
