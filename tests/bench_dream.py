"""Dream steps/s on two cores: whole populations, beside plain torch, and the environments. `make bench` runs it.

A dream step is one of C, M, sampling and heads. Plain torch is M's own forward and `sample` in float32 over the whole
batch, on two threads. All take the same weights and starts, in turns within one run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median

import numpy as np
import torch

from wm.config.presets import LAPTOP
from wm.controller.linear import Linear
from wm.dream.env import DreamVectorEnv
from wm.dream.networks import Networks
from wm.dream.population import Population
from wm.dream.world import make_world
from wm.envs.car_racing.task import CAR_RACING
from wm.memory.mdnrnn import MDNRNN, sample
from wm.run.device import has_fast_bf16, seeded
from wm.store.starts import Starts
from wm.vision.vae import VAE

THREADS = 2
ROUNDS = 5
CANDIDATES, DREAMS, HORIZON = 64, 16, 100
"""Batches of 1,024."""
ENVS = (1, 64, 1024)
Z, HIDDEN = 32, 256
LINEAR = Linear(CAR_RACING.action.size)


def make_starts(count: int) -> Starts:
    """Made-up starts of the real sizes."""
    rng = np.random.default_rng(0)
    sizes = {"z": Z, "h": HIDDEN, "c": HIDDEN}
    state = {name: rng.normal(0, 0.3, (count, size)).astype(np.float32) for name, size in sizes.items()}
    numbers = np.zeros(count, np.int64)
    return Starts(state, numbers, numbers, np.array([-0.1, 3.4, -100], np.float32), {})


@torch.inference_mode()
def plain(model: MDNRNN, starts: Starts, thetas: np.ndarray) -> None:
    """Dreams as one would write it down, one batch on torch's own threads."""
    weights = torch.from_numpy(thetas).float()
    matrix, bias = weights[:, :-3].unflatten(1, (3, Z + HIDDEN)), weights[:, -3:]
    rows = CANDIDATES * DREAMS
    z, h, c = (torch.from_numpy(starts.state[name][:DREAMS]).repeat(CANDIDATES, 1) for name in "zhc")
    state = (h[None], c[None])
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(rows)
    for _ in range(HORIZON):
        features = torch.cat([z, state[0][0]], 1).unflatten(0, (CANDIDATES, DREAMS))
        raw = torch.einsum("pkf,psf->psk", matrix, features) + bias[:, None]
        action = CAR_RACING.action.squash_tensor(raw).flatten(0, 1)
        prediction, state = model(z[:, None], action[:, None], state)
        z = sample(prediction, 1.0, generator)[:, 0]
        total += prediction.reward[:, 0].sigmoid() * 3.5 - 0.1


def rate(run: Callable[[], object], steps: int) -> float:
    """Steps/s of one call."""
    start = time.perf_counter()
    run()
    return steps / (time.perf_counter() - start)


def main() -> None:
    """Prints medians with their spread, and ratios to plain torch."""
    model = seeded(MDNRNN, 0).eval()
    starts = make_starts(64)
    thetas = np.random.default_rng(1).normal(0, 0.1, (CANDIDATES, LINEAR.count(Z + HIDDEN)))
    config = replace(LAPTOP.dream, dreams=DREAMS, horizon=HORIZON, noise="drawn", value=0)
    kinds: dict[str, tuple[str, torch.dtype | None]] = {"float32": ("cpu", torch.float32)}
    if has_fast_bf16(torch.device("cpu")):
        kinds["bfloat16"] = ("cpu", torch.bfloat16)
    if torch.cuda.is_available():
        kinds["on the GPU"] = ("cuda", None)
    populations = {
        name: Population(model, CAR_RACING, LINEAR, starts, config, threads=THREADS, device=device, dtype=dtype)
        for name, (device, dtype) in kinds.items()
    }
    steps = CANDIDATES * DREAMS * HORIZON

    def run_plain() -> None:
        torch.set_num_threads(THREADS)
        plain(model, starts, thetas)
        torch.set_num_threads(1)

    runs: dict[str, Callable[[], object]] = {"plain torch": run_plain}
    for name, population in populations.items():
        runs[f"ours, {name}"] = partial(population.score, thetas, population.draw_noise(0, 1))
    torch.set_num_threads(1)
    for run in runs.values():
        run()
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            rates[name].append(rate(run, steps))
    print(f"dream steps/s, {CANDIDATES} candidates x {DREAMS} starts, {THREADS} threads, everything in it:")
    for name, found in rates.items():
        ratios = [one / other for one, other in zip(found, rates["plain torch"], strict=True)]
        print(
            f"  {name:14s} {median(found):9,.0f} ({min(found):,.0f} to {max(found):,.0f})   "
            f"ratio {median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        )

    world = make_world(Networks(CAR_RACING, VAE().eval(), model, 0.0, {}), starts, 1.0)
    torch.set_num_threads(THREADS)
    print("the environment (float32, numpy in and out):")
    for count in ENVS:
        env = DreamVectorEnv(count, world, horizon=1000)
        env.reset(seed=0)
        actions = np.zeros((count, 3), np.float32)
        repeats = max(20, 20_000 // count)

        def play(env: DreamVectorEnv = env, actions: np.ndarray = actions, repeats: int = repeats) -> None:
            for _ in range(repeats):
                env.step(actions)

        found = [rate(play, repeats * count) for _ in range(ROUNDS)]
        print(f"  {count:5d} dreams {median(found):9,.0f} ({min(found):,.0f} to {max(found):,.0f})")


if __name__ == "__main__":
    main()
