"""The value of a state: the returns that it is fitted to, and what it makes of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wm.dream.value
from tests.toy_dream import FEATURES, HIDDEN, Z, toy_mdnrnn
from wm.dream.value import EVERY, fit_value, recorded_returns
from wm.envs.car_racing.task import CAR_RACING
from wm.store.latents import LatentEpisode

AFTER, IDLE = CAR_RACING.settled, CAR_RACING.idle


def episode(steps: int, seed: int, terminated: bool = False) -> LatentEpisode:
    """Earns 3 a step where the first dimension of z is positive, which changes slowly."""
    rng = np.random.default_rng(seed)
    mu = rng.normal(0, 1, (steps + 1, Z)).astype(np.float32)
    mu[:, 0] = np.sin(np.arange(steps + 1) / 40 + rng.uniform(0, 6))
    ends = np.zeros(steps, np.bool_)
    ends[-1] = terminated
    return LatentEpisode(
        mu=mu,
        logvar=np.full_like(mu, -4),
        actions=rng.uniform(-1, 1, (steps, 3)).astype(np.float32),
        rewards=np.where(mu[:-1, 0] > 0, 3, -0.125).astype(np.float32),
        terminated=ends,
    )


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 250),
    steps=st.integers(1, 120),
    end=st.sampled_from(["goes on", "lost", "fell", "finished"]),
    seed=st.integers(0, 100),
)
def test_returns_are_those_of_a_plain_loop(length: int, steps: int, end: str, seed: int) -> None:
    record = episode(length, seed, terminated=end in ("fell", "finished"))
    rewards = record.rewards.copy()
    rewards[-1] = {"goes on": 3.0, "lost": -0.125, "fell": -100.0, "finished": 3.0}[end]
    if end == "lost":
        rewards[-IDLE:] = -0.125
    moments, returns = recorded_returns(replace(record, rewards=rewards), CAR_RACING, steps)
    nothing_more = end == "fell" or (length > IDLE and all(rewards[-IDLE:] <= 0))
    wanted = {}
    for t in range(AFTER, length, EVERY):
        if t + steps <= length or nothing_more:
            tail = 0.0 if end == "fell" else float(rewards[-1])
            wanted[t] = sum(float(rewards[k]) if k < length else tail for k in range(t, t + steps))
    assert moments.tolist() == list(wanted)
    np.testing.assert_allclose(returns, list(wanted.values()), rtol=1e-4, atol=1e-3)


def test_it_learns_what_the_record_says() -> None:
    model = toy_mdnrnn()
    before = torch.get_rng_state()
    training, held_out = [episode(400, seed) for seed in range(12)], [episode(400, 99), episode(300, 98)]
    value, explained = fit_value(model, CAR_RACING, training, held_out, steps=20, seed=0)
    assert explained > 0.7
    again, same = fit_value(model, CAR_RACING, training, held_out, steps=20, seed=0)
    assert same == explained
    assert torch.equal(torch.get_rng_state(), before)
    features = torch.randn(5, 2, FEATURES)
    torch.testing.assert_close(value(features), again(features), rtol=0, atol=0)
    assert value(features).shape == (5, 2)
    other, _ = fit_value(model, CAR_RACING, training, [], steps=20, seed=1)
    assert not torch.equal(value(features), other(features))


def test_a_lost_car_costs_what_would_have_come() -> None:
    """Where z says that the car is lost for good, the value is that of nothing more; else of driving on."""

    def drive(lost: bool, seed: int) -> LatentEpisode:
        record = episode(260, seed)
        record.mu[:, 0] = -1 if lost else 1
        return replace(record, rewards=np.full(260, -0.1 if lost else 0.5, np.float32))

    training = [drive(lost, seed) for seed in range(8) for lost in (False, True)]
    value, explained = fit_value(toy_mdnrnn(), CAR_RACING, training, training[:2], steps=40, seed=0)
    assert explained > 0.9
    going, gone = (
        float(value(wm.dream.value._pairs(toy_mdnrnn(), CAR_RACING, [one], 40)[0]).mean()) for one in training[:2]
    )
    assert going == pytest.approx(0.5 * 40, rel=0.1)
    assert gone == pytest.approx(-0.1 * 40, abs=1.5)


def test_features_are_what_the_agent_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """z of a frame, and M's memory of all that came before it."""
    model, record = toy_mdnrnn(), episode(90, 0)
    features, returns = wm.dream.value._pairs(model, CAR_RACING, [record], 10)
    moments, wanted = recorded_returns(record, CAR_RACING, 10)
    np.testing.assert_array_equal(returns.numpy(), wanted)
    cell = model.acting()()
    state = cell.initial()
    for t in range(moments[-1] + 1):
        state = cell.see(state, record.mu[t])
        if t in moments:
            mine = features[moments.tolist().index(t)].numpy()
            np.testing.assert_array_equal(mine[:Z], record.mu[t])
            np.testing.assert_allclose(mine[Z:], state["h"], atol=1e-5)
            np.testing.assert_allclose(mine, cell.read(state), atol=1e-5)
        state = cell.advance(state, record.actions[t])
    assert features.shape == (len(moments), Z + HIDDEN)


def test_a_record_that_is_too_short_is_refused() -> None:
    record = replace(episode(300, 0), rewards=np.full(300, 3, np.float32))
    with pytest.raises(ValueError, match="no recorded episode is longer than 60 \\+ 500 steps"):
        fit_value(toy_mdnrnn(), CAR_RACING, [record], [], steps=500, seed=0)
