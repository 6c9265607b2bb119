"""A run folder whose V and M are small and untrained, with a made-up record: enough for everything that dreams."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from wm.config.vmc import DreamConfig
from wm.contracts import Layout
from wm.controller.linear import Linear
from wm.dream.networks import Networks
from wm.dream.population import Population
from wm.envs.car_racing.task import CAR_RACING
from wm.memory.mdnrnn import MDNRNN, save_mdnrnn
from wm.run.checksums import file_hash
from wm.run.folder import Run
from wm.store.episode import Episode
from wm.store.latents import LatentsWriter
from wm.store.starts import Starts
from wm.vision.vae import VAE, save_vae

Z, HIDDEN, FEATURES = 4, 8, 12
EPISODES = 8
CONFIG = {
    "z": Z,
    "actions": 3,
    "hidden": HIDDEN,
    "mixtures": 3,
    "reward": "pulse",
    "logsigma_floor": -7.0,
    "validation": 0.25,
}
HIT, MISS, END = 3.5, -0.1, -100.0


def toy_mdnrnn(seed: int = 0, reward: str = "pulse") -> MDNRNN:
    """An M whose every part matters: its weights are large."""
    torch.manual_seed(seed)
    model = MDNRNN(Z, 3, HIDDEN, 3, reward=reward)
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(3)
    return model.eval()


def mdnrnn_of(networks: Networks) -> MDNRNN:
    """M itself, for its forward over sequences."""
    assert isinstance(networks.memory, MDNRNN)
    return networks.memory


LINEAR = Linear(CAR_RACING.action.size)


def make_population(
    networks: Networks, starts: Starts, config: DreamConfig, layout: Layout = LINEAR, **options: Any
) -> Population:
    """Dreams of a toy run's M, with a linear C unless another is given."""
    return Population(networks.memory, networks.task, layout, starts, config, **options)


def make_toy_member(folder: Path, run: Run, seed: int) -> Path:
    """Writes another M, trained on the V of a toy run; returns its folder."""
    made_from = {"rollouts": "r", "vae.pt": file_hash(run.vae)}
    save_mdnrnn(Run(folder).mdnrnn, toy_mdnrnn(seed).state_dict(), CONFIG, made_from)
    return folder


def toy_episode(index: int, steps: int) -> Episode:
    """A record without pictures: random actions, a pulse wherever the gas is above 0.8, odd ones end by the rules."""
    actions = np.random.default_rng(index).uniform([-1, 0, 0], 1, (steps, 3)).astype(np.float32)
    rewards = np.where(actions[:, 1] > 0.8, HIT, MISS).astype(np.float32)
    if index % 2:
        rewards[-1] = END
    return Episode(
        index=index,
        seed=index,
        policy="toy",
        env_id="toy",
        env_version="0",
        observations=np.zeros((steps + 1, 1), np.uint8),
        actions=actions,
        rewards=rewards,
        terminated=bool(index % 2),
        truncated=not index % 2,
    )


def make_toy_run(folder: Path) -> Run:
    """Writes vae.pt, mdnrnn.pt and latents.h5: 8 episodes of 60 to 81 steps."""
    run = Run(folder)
    torch.manual_seed(0)
    save_vae(run.vae, VAE(Z).state_dict(), {"z": Z, "ranges": [1.0] * 4}, {"rollouts": "r"})
    made_from = {"rollouts": "r", "vae.pt": file_hash(run.vae)}
    save_mdnrnn(run.mdnrnn, toy_mdnrnn().state_dict(), CONFIG, made_from)
    with LatentsWriter(run.latents, made_from) as writer:
        for index in range(EPISODES):
            steps = 60 + 3 * index
            rng = np.random.default_rng(100 + index)
            mu = rng.normal(0, 1, (steps + 1, Z)).astype(np.float32)
            episode = toy_episode(index, steps)
            writer.append(episode, episode.actions, mu, np.full_like(mu, -4))
    return run
