"""Whole populations of controllers in dreams, as one batch of M."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from threading import Event

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wm.config.vmc import DreamConfig
from wm.contracts import Layout, Network, Noise, State
from wm.dream.chance import DreamNoise, Record, draw_noise, use_recorded
from wm.dream.ensemble import Member
from wm.dream.value import Value
from wm.envs.task import Task
from wm.run.device import has_fast_bf16
from wm.store.starts import Starts

Array = NDArray[np.float64]

BLOCK_ROWS = 512
"""Dreams per block of one CPU thread, so that what M computes in a step fits its cache."""


@dataclass(frozen=True)
class _Scene:
    """Starts and noise of S dreams on the device.

    Attributes:
        states: The state of each M, f32[s,size] of each name in the s dreams in which it runs.
        noise: f32[T,S,size] of each name.
        head_mask: f32[S,masked], or None.
        parts: For each M the dreams that it draws.
        runs: For each M the dreams in which it runs: all, or only its part. The run's own M runs in all, since C reads
            its state.
    """

    states: list[State]
    noise: Noise
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
        model: Network,
        task: Task,
        layout: Layout,
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
            task: The environment that is dreamt of.
            layout: C's kind and sizes.
            starts: The pool of starts.
            config: Temperature, dropout, horizon, unpaid steps and dreams per candidate.
            others: The further M's of an ensemble. C always reads the state of `model`. In each dream one M of all
                draws z and predicts reward and termination.
            records: For recorded noise: the inferred noise after the starts, for `model` and each of the others.
            value: Estimates the return of the config's `value` steps after a dream.
            threads: CPU threads, >= 1.
            device: Where to dream.
            dtype: Type of the matrix products; None: bfloat16 where it is fast, else float32.
        """
        self._device = torch.device(device)
        self.dtype = dtype or (torch.bfloat16 if has_fast_bf16(self._device) else torch.float32)
        self._members = [
            one.dreaming(starts.pays, config.temperature, self._device, self.dtype)
            for one in (model, *(other.model for other in others))
        ]
        self._config, self._threads, self._pool, self._records = config, threads, len(starts), records
        self._task, self._layout = task, layout
        self._states = [
            {name: torch.from_numpy(part).to(self._device) for name, part in state.items()}
            for state in (starts.state, *(other.state for other in others))
        ]
        self._end = starts.pays.end
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
        state, is scaled to the length of a real episode (`task.max_steps`),
        whatever the horizon is.

        Args:
            thetas: f64[P,N], flat weights.
            dream_noise: Starts and noise, the same for all candidates.
            disagreement: Penalty in points per scored step and unit of disagreement: the variance over the M's of the
                mean of the next z, averaged over dimensions. All M's read the same z and a.

        Returns:
            f64[P], means over the starts.
        """
        weights = torch.from_numpy(thetas).float().to(self._device)  # [P,N]
        scene = self._scene(dream_noise, watched=disagreement > 0)
        size = len(thetas) if self._device.type != "cpu" else max(1, BLOCK_ROWS // len(dream_noise.starts))
        left = Event()

        def block(part: Tensor) -> Tensor:
            return self._dream(part, scene, disagreement, left)

        with ThreadPoolExecutor(self._threads) as threads:
            try:
                returns = torch.cat(list(threads.map(block, weights.split(size))))  # [P,S]
            except BaseException:
                left.set()  # on a signal: the blocks must stop, since the executor waits for them
                raise
        config = self._config
        paid = config.horizon - config.unpaid + (config.value if self._value else 0)
        scores: Array = returns.mean(1).double().cpu().numpy() * (self._task.max_steps / paid)
        return scores

    def _scene(self, dream_noise: DreamNoise, watched: bool) -> _Scene:
        """The noise on the device, with the state of each M in the dreams in which it runs: in all if `watched`."""
        begin = torch.from_numpy(dream_noise.starts).to(self._device)
        bounds = np.searchsorted(dream_noise.members, np.arange(len(self._members) + 1)).tolist()
        parts = [slice(*each) for each in pairwise(bounds)]
        runs = [slice(None)] * len(parts) if watched else [slice(None), *parts[1:]]
        return _Scene(
            states=[
                {name: part[begin[dreams]] for name, part in state.items()}
                for dreams, state in zip(runs, self._states, strict=True)
            ],
            noise={name: torch.from_numpy(part).to(self._device) for name, part in dream_noise.noise.items()},
            head_mask=None
            if dream_noise.head_mask is None
            else torch.from_numpy(dream_noise.head_mask).to(self._device),
            parts=parts,
            runs=runs,
        )

    @torch.inference_mode()
    def _dream(self, theta: Tensor, scene: _Scene, disagreement: float, left: Event) -> Tensor:
        """Returns f32[P,S] of P candidates from S starts; it stops early once `left` is set."""
        act = self._layout.candidates(theta, self._members[0].features)
        states: list[State] = [  # [P,S,size] of an M that runs in all dreams
            {name: part.expand(len(theta), *part.shape) for name, part in state.items()} for state in scene.states
        ]
        total = torch.zeros(states[0]["z"].shape[:2], device=theta.device)  # [P,S]
        alive = torch.ones_like(total)
        end = torch.full_like(total, self._end)
        for t in range(self._config.horizon):
            if left.is_set():
                break
            action = self._task.action.squash_tensor(act(self._members[0].read(states[0])))  # [P,S,F] to [P,S,A]
            paid = t >= self._config.unpaid
            drawn, means = [], []
            for m, (member, part, runs) in enumerate(zip(self._members, scene.parts, scene.runs, strict=True)):
                states[m] = member.advance(states[m], action[:, runs])  # [P,s,size], s: its dreams
                own = part if runs == slice(None) else slice(None)  # the dreams that it draws, among those it runs in
                drawing = {name: value[:, own] for name, value in states[m].items()}
                if paid and disagreement:
                    raw = member.expect(states[m], scene.head_mask)  # [P,S,n]
                    means.append(member.mean(raw))
                    raw = raw[:, own]
                else:
                    raw = member.expect(drawing, None if scene.head_mask is None else scene.head_mask[part])
                noise = {name: value[t, part] for name, value in scene.noise.items()}
                drawn.append(member.draw(drawing, raw, noise))
            if len(drawn) == 1:
                states[0], reward, terminated = drawn[0]
            else:  # each M goes on from what the others have drawn
                z = torch.cat([state["z"] for state, _, _ in drawn], 1)  # [P,S,Z]
                reward, terminated = (torch.cat(each, 1) for each in list(zip(*drawn, strict=True))[1:])  # [P,S]
                states = [
                    member.see(state, z[:, runs])
                    for member, state, runs in zip(self._members, states, scene.runs, strict=True)
                ]
            if paid:
                earned = torch.lerp(reward, end, terminated)  # [P,S]
                if disagreement:
                    earned -= disagreement * torch.stack(means).var(0, correction=0).mean(-1)  # [M's,P,S,Z] to [P,S]
                total += alive * earned
            alive *= 1 - terminated
        if self._value is not None:
            total += alive * self._value(self._members[0].read(states[0]))  # [P,S,F] to [P,S]
        return total
