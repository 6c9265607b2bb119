"""Environment steps/s of the evolution's loop on two cores, beside the naive loop, and how a step's time divides.

The naive loop is two processes, stock CarRacing, V and M in torch fp32 with batch 1, one torch thread each. Both
play the same tracks with the same weights, resets included, in turns within one run. `make bench` runs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import cv2
import gymnasium as gym
import numpy as np

from wm.agent import Agent
from wm.config import FAST_ENV, STOCK_ENV
from wm.controller.linear import LinearController, parameter_count
from wm.envs.preprocess import preprocess
from wm.memory.cell import LSTMCell
from wm.trials import Trial, make_player
from wm.vision.encoder import Encoder, encoder_graph
from wm.workers import ProcessPool

WORKERS = 2
ROUNDS = 3
NAIVE_TRIALS, TRIALS = 2, 24
STEPS = 300
"""Steps a trial; a rollout of the early evolution is about as long."""

Weights = Mapping[str, Any]


def make_naive(vae: Weights, lstm: Weights) -> Callable[[Trial], int]:
    """A worker of the naive loop: returns the steps of a trial."""
    import torch

    from wm.vision.vae import VAE, as_input

    torch.set_num_threads(1)
    env = gym.make(STOCK_ENV)
    vision = VAE()
    vision.load_state_dict({name: torch.from_numpy(value) for name, value in vae.items()})
    memory = torch.nn.LSTM(35, 256, batch_first=True)
    memory.load_state_dict({name.removeprefix("lstm."): torch.from_numpy(value) for name, value in lstm.items()})

    @torch.inference_mode()
    def work(trial: Trial) -> int:
        controller = LinearController(trial.theta, 288)
        frame, _ = env.reset(seed=trial.seed)
        h = c = torch.zeros(1, 1, 256)
        for step in range(trial.max_steps):
            z, _ = vision.encode(as_input(torch.from_numpy(preprocess(frame))[None]))
            action = controller(torch.cat([z[0], h[0, 0]]).numpy())
            _, (h, c) = memory(torch.cat([z, torch.from_numpy(action)[None]], 1)[None], (h, c))
            frame, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                return step + 1
        return trial.max_steps

    return work


def main() -> None:
    """Prints both rates with their spread, their ratio, and the parts of a step."""
    import torch

    from wm.vision.vae import VAE

    torch.manual_seed(0)
    vae = {name: value.numpy() for name, value in VAE().state_dict().items()}
    lstm = {f"lstm.{name}": value.numpy() for name, value in torch.nn.LSTM(35, 256).state_dict().items()}
    graph = encoder_graph(vae)
    theta = np.zeros(parameter_count(288), np.float32)

    def rate(run: Callable[[int], int], trials: int) -> float:
        start = time.perf_counter()
        return run(trials) / (time.perf_counter() - start)

    with (
        ProcessPool(WORKERS, make_naive, vae, lstm) as naive,
        ProcessPool(WORKERS, make_player, FAST_ENV, graph, lstm) as fast,
    ):
        tracks = lambda n: [Trial(theta, 7_000 + i, STEPS) for i in range(n)]  # noqa: E731
        run_naive = lambda n: sum(steps for _, steps in naive.run(tracks(n)))  # noqa: E731
        run_fast = lambda n: sum(outcome.steps for _, outcome in fast.run(tracks(n)))  # noqa: E731
        run_naive(WORKERS), run_fast(WORKERS)  # start the processes
        rates = [(rate(run_naive, NAIVE_TRIALS), rate(run_fast, TRIALS)) for _ in range(ROUNDS)]
    slow, quick = zip(*rates, strict=True)
    ratios = [f / n for n, f in rates]
    print(f"the loop with everything in it, {WORKERS} processes, resets included, trials of {STEPS} steps:")
    print(f"  naive  {median(slow):7.0f} steps/s ({min(slow):.0f} to {max(slow):.0f})")
    print(f"  ours   {median(quick):7.0f} steps/s ({min(quick):.0f} to {max(quick):.0f})")
    print(f"  ratio  {median(ratios):7.1f} ({min(ratios):.1f} to {max(ratios):.1f})")
    divide(graph, lstm)


def divide(graph: bytes, lstm: Weights, steps: int = 1500) -> None:
    """Prints where the time of a step goes, in one process."""
    cv2.setNumThreads(1)
    env = gym.make(FAST_ENV, disable_env_checker=True)
    encoder, cell = Encoder(graph), LSTMCell(lstm)
    controller = LinearController(np.zeros(parameter_count(288), np.float32), 288)
    agent = Agent(encoder, cell, np.zeros(parameter_count(288), np.float32))
    start = time.perf_counter()
    frame, _ = env.reset(seed=7_000)
    reset = time.perf_counter() - start
    frames = []
    start = time.perf_counter()
    for step in range(steps):
        frame, _, terminated, truncated, _ = env.step(np.array([0, 0.05, 0], np.float32))
        if step % 50 == 0:
            frames.append(frame)
        if terminated or truncated:
            env.reset(seed=7_000)
    environment = (time.perf_counter() - start) / steps
    features = np.zeros(288, np.float32)

    def each(function: Callable[[np.ndarray], object]) -> float:
        start = time.perf_counter()
        for step in range(steps):
            function(frames[step % len(frames)])
        return (time.perf_counter() - start) / steps

    small = preprocess(frames[0])
    state = cell.initial()
    parts = {
        "environment step": environment,
        "crop and resize": each(preprocess),
        "V (encoder)": each(lambda frame: encoder(small)),
        "C (linear)": each(lambda frame: controller(features)),
        "M (LSTM step)": each(lambda frame: cell.step(features[:32], features[:3], state)),
    }
    whole = environment + each(partial(agent.act))
    parts["the rest"] = whole - sum(parts.values())
    print(f"one step on one core: {whole * 1e3:.3f} ms; a reset {reset * 1e3:.0f} ms")
    for name, seconds in parts.items():
        print(f"  {name:17s} {seconds * 1e3:6.3f} ms {seconds / whole:5.0%}")


if __name__ == "__main__":
    main()
