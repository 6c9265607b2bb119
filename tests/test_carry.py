"""Carrying a controller over to another V and M."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wm.controller.hidden import Hidden
from wm.driving.carry import LIMIT, carry, features
from wm.driving.loading import Models, load_acting
from wm.memory.mdnrnn import load_mdnrnn
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.store.episode import Episode

PRETRAINED = Run(Path(__file__).parent.parent / "data" / "pretrained")


def episode(models: Models, theta: np.ndarray, steps: int, seed: int) -> Episode:
    """Moving pictures, with the actions that the agent takes on them."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (steps + 1, 4, 4, 3)).repeat(16, 1).repeat(16, 2)
    frames = coarse.astype(np.uint8)
    agent = models.agents()(theta)
    return Episode(
        index=0,
        seed=0,
        policy="driven",
        env_id="x",
        env_version="0",
        observations=frames,
        actions=np.stack([agent.act(frame) for frame in frames[:-1]]),
        rewards=np.zeros(steps, np.float32),
        terminated=False,
        truncated=True,
    )


def test_features_are_what_the_agent_acted_on() -> None:
    models, theta = load_acting(PRETRAINED)
    record = episode(models, theta, 20, 0)
    controller, squash = models.layout.controller(theta, models.features), models.task.action.squash
    for given, action in zip(features(models, record), record.actions, strict=True):
        np.testing.assert_array_equal(squash(controller(given)), action)


def test_a_controller_with_a_hidden_layer_is_not_carried() -> None:
    models, _ = load_acting(PRETRAINED)
    with pytest.raises(UserError, match="--carry does not support a controller with a hidden layer"):
        carry(np.zeros(Hidden(3, 4).count(models.features)), replace(models, layout=Hidden(3, 4)), models, [])


def test_a_controller_of_another_environment_is_not_carried() -> None:
    models, theta = load_acting(PRETRAINED)
    other = replace(models, task=replace(models.task, env_id="Dot-v0", title="Dot"))
    with pytest.raises(UserError, match="--carry has a controller of Dot, not of CarRacing: give a run folder"):
        carry(theta, other, models, [])


def test_the_carried_controller_acts_alike_with_another_memory() -> None:
    models, _ = load_acting(PRETRAINED)
    rng = np.random.default_rng(1)
    memory, _ = load_mdnrnn(PRETRAINED.mdnrnn)
    for weight in memory.lstm.parameters():
        weight.data = weight.data.ravel()[rng.permutation(weight.numel())].reshape(weight.shape)
    other = replace(models, cell=memory.acting())
    weights = rng.normal(0, 0.1, (3, models.features))
    weights[:, 32:] = 0  # it acts on z, which both have
    theta = np.concatenate([weights.ravel(), [0.1, -0.2, 0.3]])
    record = episode(models, theta.astype(np.float32), 900, 1)
    carried = carry(theta, models, other, [record])
    x = np.array(list(features(other, record)))
    found = x @ carried[: 3 * models.features].reshape(3, -1).T + carried[3 * models.features :]
    wanted = (x @ weights.T + [0.1, -0.2, 0.3]).clip(-LIMIT, LIMIT)
    assert ((found - wanted) ** 2).mean() < 0.02 * wanted.var()


def test_the_features_of_an_episode_can_be_kept_side_by_side() -> None:
    models, theta = load_acting(PRETRAINED)
    record = episode(models, theta, 5, 0)
    kept = list(features(models, record))
    copies = [each.copy() for each in features(models, record)]
    np.testing.assert_array_equal(kept, copies)
    assert len({each.tobytes() for each in kept}) == 5
