"""Environment steps/s of the evolution's loop on two cores, beside the naive loop, and how a step's time divides.

The naive loop is two processes, stock CarRacing, V and M in torch fp32 with batch 1, one torch thread each. Both
play the same track with the same weights, resets included, in turns within one run; as in a generation of the
evolution, all trials of a round have one track. `make bench` runs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

import cv2
import gymnasium as gym
import numpy as np

from wm.config.presets import FAST_ENV, STOCK_ENV
from wm.controller.linear import Linear
from wm.driving.agent import Agent
from wm.driving.loading import Models
from wm.driving.trials import Trial, make_player
from wm.driving.workers import ProcessPool
from wm.envs.car_racing.preprocess import preprocess
from wm.envs.car_racing.task import CAR_RACING
from wm.memory.cell import LSTMCell
from wm.vision.encoder import Encoder, encoder_graph, quantised_graph

WORKERS = 2
ROUNDS = 3
NAIVE_TRIALS, TRIALS = 2, 24
STEPS = 300
"""Steps a trial; a rollout of the early evolution is about as long."""
Z, FEATURES = 32, 288
LINEAR = Linear(CAR_RACING.action.size)

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
        controller = LINEAR.controller(trial.theta, FEATURES)
        frame, _ = env.reset(seed=trial.seed)
        h = c = torch.zeros(1, 1, 256)
        for step in range(trial.max_steps):
            z, _ = vision.encode(as_input(torch.from_numpy(preprocess(frame))[None]))
            action = CAR_RACING.action.squash(controller(torch.cat([z[0], h[0, 0]]).numpy()))
            _, (h, c) = memory(torch.cat([z, torch.from_numpy(action)[None]], 1)[None], (h, c))
            frame, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                return step + 1
        return trial.max_steps

    return work


def models_of(graph: bytes, lstm: Weights) -> Models:
    """What workers are sent, of V's graph and M's weights."""
    encoder, cell = partial(Encoder, graph), partial(LSTMCell, lstm, Z)
    return Models(CAR_RACING, encoder, cell, LINEAR, Z, FEATURES, "mdnrnn", {})


def main() -> None:
    """Prints both rates with their spread, their ratio, and the parts of a step."""
    import torch

    from wm.vision.vae import VAE, activation_ranges

    torch.manual_seed(0)
    vision = VAE()
    vae = {name: value.numpy() for name, value in vision.state_dict().items()}
    noise = np.random.default_rng(0).integers(0, 256, (50, 64, 64, 3), dtype=np.uint8)
    lstm = {f"lstm.{name}": value.numpy() for name, value in torch.nn.LSTM(35, 256).state_dict().items()}
    graphs = {"int8": quantised_graph(vae, activation_ranges(vision, noise)), "float32": encoder_graph(vae)}
    theta = np.zeros(LINEAR.count(FEATURES), np.float32)

    with ExitStack() as stack:
        pools = {"naive": stack.enter_context(ProcessPool(WORKERS, make_naive, vae, lstm))}
        for name, graph in graphs.items():
            pools[name] = stack.enter_context(ProcessPool(WORKERS, make_player, models_of(graph, lstm)))

        def rate(name: str, trials: int, track: int) -> float:
            start = time.perf_counter()
            results = [result for _, result in pools[name].run([Trial(theta, track, STEPS)] * trials)]
            steps = sum(result if name == "naive" else result.steps for result in results)
            return steps / (time.perf_counter() - start)

        sizes = {name: NAIVE_TRIALS if name == "naive" else TRIALS for name in pools}
        for name in pools:
            rate(name, WORKERS, 7_000)  # start the processes
        rounds = [{name: rate(name, n, 7_000 + i) for name, n in sizes.items()} for i in range(ROUNDS)]
    print(f"the loop with everything in it, {WORKERS} processes, resets included, trials of {STEPS} steps:")
    for name in pools:
        rates, ratios = [r[name] for r in rounds], [r[name] / r["naive"] for r in rounds]
        label = name if name == "naive" else f"ours, {name}"
        print(f"  {label:13s} {median(rates):7.0f} steps/s ({min(rates):.0f} to {max(rates):.0f})", end="")
        print(f"  {median(ratios):5.1f} x naive ({min(ratios):.1f} to {max(ratios):.1f})")
    divide(graphs, lstm)


def divide(graphs: Mapping[str, bytes], lstm: Weights, steps: int = 1500) -> None:
    """Prints where the time of a step goes, in one process."""
    cv2.setNumThreads(1)
    env = gym.make(FAST_ENV, disable_env_checker=True)
    encoder, in_float, cell = Encoder(graphs["int8"]), Encoder(graphs["float32"]), LSTMCell(lstm, Z)
    controller = LINEAR.controller(np.zeros(LINEAR.count(FEATURES), np.float32), FEATURES)
    agent = Agent(CAR_RACING, encoder, cell, controller)
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
    features = np.zeros(FEATURES, np.float32)

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
        "V (int8)": each(lambda frame: encoder(small)),
        "C (linear)": each(lambda frame: CAR_RACING.action.squash(controller(features))),
        "M (LSTM step)": each(lambda frame: cell.advance(state, features[:3])),
    }
    whole = environment + each(partial(agent.act))
    parts["the rest"] = whole - sum(parts.values())
    print(f"one step on one core: {whole * 1e3:.3f} ms; a reset {reset * 1e3:.0f} ms")
    for name, seconds in parts.items():
        print(f"  {name:17s} {seconds * 1e3:6.3f} ms {seconds / whole:5.0%}")
    print(f"V in float32 instead takes {each(lambda frame: in_float(small)) * 1e3:.3f} ms")


if __name__ == "__main__":
    main()
