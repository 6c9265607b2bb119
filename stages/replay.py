"""Stage replay: a video of the controller driving one track. Makes RUN/videos/*.mp4."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

import wm.envs  # noqa: F401  registers wm/CarRacing-v3
from wm.agent import load_agent
from wm.cli import parse, run_stage
from wm.config import EVALUATE_SEEDS, FAST_ENV, STOCK_ENV
from wm.envs.preprocess import preprocess
from wm.rollout import play
from wm.run import Progress, Run
from wm.show.video import compose, write_video
from wm.vision.vae import VAE, as_frames, load_vae


@dataclass(frozen=True)
class ReplayArgs:
    """What a replay shows."""

    track: int = EVALUATE_SEEDS.start
    """Seed of the track. Default: the first one of the evaluation."""
    car: Literal["stock", "fast"] = "stock"
    """stock: Gymnasium's own pixels. fast: ours."""
    max_steps: int = 1000
    """Longest episode in environment steps."""
    controller: Literal["controller", "dream"] = "controller"
    """controller: evolved on real rollouts. dream: evolved in the dream."""
    source: Path | None = None
    """Folder of V, M and C, when it is not the run folder that the video goes to."""


def main(argv: list[str]) -> None:
    """Drives the track once and writes the video."""
    args, config = parse(lambda preset: ReplayArgs(), "Make a video of the controller driving.", argv)
    run, source = Run(args.run), Run(config.source or args.run)
    agent = load_agent(source.folder, config.controller)
    vae, _ = load_vae(source.vae)
    env = gym.make(STOCK_ENV if config.car == "stock" else FAST_ENV, render_mode="rgb_array", disable_env_checker=True)
    score = 0.0

    def frames() -> Iterator[NDArray[np.uint8]]:
        nonlocal score
        with Progress("replay", config.max_steps, unit="step") as progress:
            for step in play(env, agent, seed=config.track, max_steps=config.max_steps):
                score += step.reward
                seen = preprocess(step.observation)
                camera = np.asarray(env.render(), np.uint8)
                yield compose(camera, seen, reconstruct(vae, agent.z), step.action, score, step.number)
                progress.update(score=score)

    driver = "dream-" if config.controller == "dream" else ""
    path = run.videos / f"{driver}{config.car}-{config.track}.mp4"
    count = write_video(path, frames())
    print(f"{path}: {count} steps, score {score:.0f}.")


def reconstruct(vae: VAE, z: NDArray[np.float32]) -> NDArray[np.uint8]:
    """V's picture of z f32[Z], u8[64, 64, 3]."""
    with torch.inference_mode():
        return as_frames(vae.decode(torch.from_numpy(z)[None]))[0]


if __name__ == "__main__":
    run_stage(main)
