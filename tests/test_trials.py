"""Trials: what a worker plays is what the plain loop plays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wm.driving.loading import load_acting
from wm.driving.policies import Driven
from wm.driving.rollout import play_episode
from wm.driving.trials import Trial, make_player
from wm.run.folder import Run

PRETRAINED = Run(Path(__file__).parent.parent / "data" / "pretrained")


def test_a_trial_is_the_agents_rollout_and_its_disturbances_follow_from_the_track() -> None:
    models, theta = load_acting(PRETRAINED)
    play = make_player(models)
    env, agents = models.task.make(), models.agents()
    assert play(Trial(theta, 7, 150)) == play_episode(env, agents(theta), seed=7, max_steps=150)

    disturbed = play(Trial(theta, 7, 150, disturb=0.05))
    assert disturbed.ret != play(Trial(theta, 7, 150)).ret
    driven = Driven(env.action_space, agents(theta), 0.05)
    assert disturbed == play_episode(env, driven, seed=7, max_steps=150, rng=np.random.default_rng(7))
    # Another candidate meets the same bursts at the same steps.
    starts = []
    for weights in (theta, np.zeros_like(theta)):
        policy = Driven(env.action_space, agents(weights), 0.05)
        policy.reset(np.random.default_rng(7))
        frame = np.zeros((64, 64, 3), np.uint8)
        inside = []
        for _ in range(150):
            policy.act(frame)
            inside.append(policy._left > 0)
        starts.append(inside)
    assert starts[0] == starts[1]
    assert any(starts[0])
