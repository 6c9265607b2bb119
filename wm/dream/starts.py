"""Where dreams start: moments of the record, with M's state after all real steps before them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wm.config.vmc import DreamConfig
from wm.contracts import Cell, State
from wm.dream.networks import Networks, split_latents
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.pair import drawn_by
from wm.run.provenance import check_made_from
from wm.run.remedies import command
from wm.store.latents import LatentEpisode, Latents
from wm.store.starts import Starts, load_starts


def find_starts(run: Run, networks: Networks, config: DreamConfig) -> Starts:
    """The starts of a run: from starts.npz if it exists, else drawn from latents.h5. Nothing is written.

    Raises:
        UserError: Both files are missing, or one is damaged, does not fit V and M, or has no moment to start at.
    """
    if run.starts_of(networks.memory.kind).exists() or not run.latents.exists():
        return given_starts(run, networks)
    return new_starts(run, networks, config)


def given_starts(run: Run, networks: Networks) -> Starts:
    """Reads starts.npz; UserError when it is missing, damaged or does not fit V and M."""
    path = run.starts_of(networks.memory.kind)
    starts = load_starts(path)
    check_made_from(path, starts.made_from, networks.made_from, stage=drawn_by(path.name))
    state = networks.memory.acting()().initial()
    if {name: part.shape[1:] for name, part in starts.state.items()} != {n: part.shape for n, part in state.items()}:
        raise UserError(
            f"{path} is damaged (it holds no state of this M): remove it and remake it with "
            f"{command(drawn_by(path.name))}."
        )
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
        near: A moment has a positive reward within this many steps before or after it; 0, or no such moment: any.
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
    nth, steps = possible[drawn].T  # [N] each

    cell = networks.memory.acting()()
    found = [warm_up(cell, latents.episode(episodes[n]), steps[nth == n]) for n in np.unique(nth).tolist()]
    return Starts(
        state={name: rounded(np.concatenate([state[name] for state in found])) for name in found[0]},
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
            first, last = (np.searchsorted(touched, steps + shift) for shift in (-near, near))  # [steps] each
            steps = steps[last > first]
        found.append(np.stack([np.full(len(steps), n), steps], axis=1))
    return np.concatenate(found)


def rounded(part: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded to float16 as on disk, so that drawn starts equal saved ones."""
    return part.astype(np.float16).astype(np.float32)


def warm_up(cell: Cell, episode: LatentEpisode, steps: NDArray[np.int64]) -> State:
    """Runs M over an episode as the agent does (z is V's mean).

    Args:
        cell: M for acting.
        episode: The recorded episode.
        steps: i64[N], numbers of steps.

    Returns:
        The state f32[N,size] of each name after each of these numbers of steps, once M has seen the z there.
    """
    wanted, states = set(steps.tolist()), {}
    state = cell.initial()
    for step, z in enumerate(episode.mu[: steps.max() + 1]):
        state = cell.see(state, z)
        if step in wanted:
            states[step] = state
        if step < steps.max():
            state = cell.advance(state, episode.actions[step])
    return {name: np.stack([states[step][name] for step in steps.tolist()]) for name in state}


def mean_rewards(latents: Latents, episodes: NDArray[np.int64]) -> NDArray[np.float32]:
    """f32[3]: mean reward of recorded steps without a positive reward, with one, and that terminate the episode.

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
