"""The collecting policies: in bounds, finite, and a function of their generator only."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces

from wm.contracts import Policy
from wm.driving.policies import (
    BURST_STEPS,
    MIXTURES,
    POLICIES,
    Brownian,
    Driven,
    RandomNetwork,
    Uniform,
    check_policy,
    choose,
    make_policy,
)
from wm.envs.action import Action
from wm.envs.car_racing.policies import (
    CRUISE_HOLD_CHANCE,
    CRUISE_HOLD_REACH,
    CRUISE_HOLD_STEPS,
    CRUISE_PEDAL,
    CRUISE_SECONDS,
    CRUISE_STEERING,
    DT,
    Cruise,
)
from wm.envs.car_racing.task import CAR_RACING
from wm.run.errors import UserError

CAR = spaces.Box(np.array([-1, 0, 0], np.float32), np.array([1, 1, 1], np.float32))
NAMES = (RandomNetwork.name, *POLICIES, *CAR_RACING.policies)
FRAMES = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)


def actions(policy: Policy, seed: int, steps: int = 8) -> np.ndarray:
    policy.reset(np.random.default_rng(seed))
    return np.stack([policy.act(FRAMES[t % len(FRAMES)]) for t in range(steps)])


@pytest.mark.parametrize("name", NAMES)
def test_an_episodes_actions_depend_on_its_generator_only(name: str) -> None:
    fresh, used = (make_policy(name, CAR_RACING, CAR) for _ in range(2))
    actions(used, 7)
    wanted = actions(fresh, 1)
    np.testing.assert_array_equal(actions(used, 1), wanted)
    assert not np.array_equal(actions(used, 2), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_actions_are_finite_float32_within_bounds(name: str) -> None:
    policy = make_policy(name, CAR_RACING, CAR)
    for seed in range(5):
        found = actions(policy, seed)
        assert found.dtype == np.float32
        assert np.isfinite(found).all()
        assert (found >= CAR.low).all()
        assert (found <= CAR.high).all()


def test_uniform_takes_any_space_and_fills_it() -> None:
    found = actions(Uniform(spaces.Discrete(3)), 0, 300)
    assert sorted(set(found.tolist())) == [0, 1, 2]
    found = actions(Uniform(CAR), 0, 2000)
    np.testing.assert_allclose(found.mean(0), [0, 0.5, 0.5], atol=0.05)


def test_brownian_walks_by_the_square_root_of_time() -> None:
    wide = spaces.Box(np.full(3, -1e6, np.float32), np.full(3, 1e6, np.float32), dtype=np.float32)

    class FromZero(np.random.Generator):
        def uniform(self, *bounds: object) -> np.ndarray:  # type: ignore[override]
            return np.zeros(3)

    policy = Brownian(wide)
    policy.reset(FromZero(np.random.PCG64(0)))
    moves = np.diff(np.stack([policy.act(None) for _ in range(4000)]), axis=0)
    np.testing.assert_allclose(moves.std(0), np.sqrt(DT), rtol=0.05)
    np.testing.assert_allclose(moves.mean(0), 0, atol=0.01)


def test_brownian_starts_anywhere_and_stays_at_a_bound_it_is_pushed_to() -> None:
    policy = Brownian(CAR)
    starts = np.stack([actions(policy, seed, 1)[0] for seed in range(300)])
    np.testing.assert_allclose(starts.mean(0), [0, 0.5, 0.5], atol=0.15)
    assert starts[:, 0].min() < -0.8
    long = actions(policy, 0, 2000)
    for i in range(3):
        assert long[:, i].min() == CAR.low[i]
        assert long[:, i].max() == CAR.high[i]


@pytest.mark.parametrize("space", [spaces.Discrete(2), spaces.Box(-np.inf, np.inf, (3,))])
def test_brownian_refuses_what_it_cannot_walk_in(space: spaces.Space) -> None:
    with pytest.raises(UserError, match="--policy uniform"):
        Brownian(space)


def test_cruise_presses_one_pedal_at_a_time_and_forgets_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wm.envs.car_racing.policies.CRUISE_HOLD_CHANCE", 0)
    long = np.stack([actions(Cruise(CAR), seed, 2000) for seed in range(40)]).astype(np.float64)
    assert not (long[..., 1] * long[..., 2]).any()
    pedal = long[..., 1] - long[..., 2]
    assert pedal.mean() == pytest.approx(np.mean(CRUISE_PEDAL), abs=0.05)
    spread = np.log(long[..., 0].std(axis=1))  # of each episode's steering
    low, high = np.log(CRUISE_STEERING)
    assert low - 0.2 < spread.min() < spread.max() < high
    assert spread.mean() == pytest.approx((low + high) / 2, abs=0.5)
    inner = long[np.abs(long[..., 0]).max(axis=1) < 1, :, 0]  # never at the end of its way
    later = round(CRUISE_SECONDS / DT)
    correlation = np.mean([np.corrcoef(walk[:-later], walk[later:])[0, 1] for walk in inner])
    assert correlation == pytest.approx((1 - 1 / later) ** later, abs=0.07)


def test_cruise_holds_locks_and_brakes_now_and_then() -> None:
    long = np.stack([actions(Cruise(CAR), seed, 2000) for seed in range(20)])
    still = (long[:, 1:] == long[:, :-1]).all(axis=2)  # as a walk hardly ever is
    holding = np.mean(CRUISE_HOLD_STEPS) / (np.mean(CRUISE_HOLD_STEPS) + 1 / CRUISE_HOLD_CHANCE)
    assert still.mean() == pytest.approx(holding, abs=0.05)
    held = long[:, 1:][still]
    assert not (held[:, 1] * held[:, 2]).any()
    for end in (held[:, 0] == -1, held[:, 0] == 1, held[:, 1] == 1, held[:, 2] == 1):
        assert end.mean() == pytest.approx((CRUISE_HOLD_REACH - 1) / (2 * CRUISE_HOLD_REACH), abs=0.06)


@pytest.mark.parametrize("space", [spaces.Discrete(2), spaces.Box(-1, 1, (2,))])
def test_cruise_refuses_other_environments(space: spaces.Space) -> None:
    with pytest.raises(UserError, match="--policy uniform"):
        Cruise(space)


def test_the_random_network_acts_in_any_task() -> None:
    choices = replace(CAR_RACING, action=Action(("left", "right"), first=5))
    found = actions(RandomNetwork(choices), 0, 40)
    assert set(found.tolist()) <= {5, 6}
    crooked = replace(CAR_RACING, action=Action(("one", "two"), ("tanh", "half"), (-3, 1), (2, 4)))
    found = actions(RandomNetwork(crooked), 0, 40)
    assert found.shape == (40, 2)
    assert ((found >= [-3, 1]) & (found <= [2, 4])).all()


def test_random_network_is_finite_over_many_draws_and_acts_on_what_it_sees() -> None:
    policy = RandomNetwork(CAR_RACING)
    seen = set()
    for seed in range(25):
        found = actions(policy, seed, 2)
        assert np.isfinite(found).all()
        assert ((found >= CAR.low) & (found <= CAR.high)).all()
        seen.add(tuple(found[0]))
    assert len(seen) > 8
    policy.reset(np.random.default_rng(3))
    assert len({tuple(policy.act(frame)) for frame in FRAMES}) > 1


def test_random_network_survives_the_largest_weights() -> None:
    """Without the cut of the draws, such weights multiply to infinity within a few layers."""

    class Extreme(np.random.Generator):
        def uniform(self, low: float, high: float) -> float:  # type: ignore[override]
            return high

        def standard_cauchy(self, shape: tuple[int, ...]) -> np.ndarray:  # type: ignore[override]
            return self.choice([-1e30, 1e30], shape)

    policy = RandomNetwork(CAR_RACING)
    for seed in range(3):
        policy.reset(Extreme(np.random.PCG64(seed)))
        found = np.stack([policy.act(frame) for frame in FRAMES])
        assert np.isfinite(found).all()
        assert ((found >= CAR.low) & (found <= CAR.high)).all()


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("mixture", {"brownian": 1 / 2, "random_network": 1 / 2}),
        ("wide", {"brownian": 1 / 4, "random_network": 1 / 4, "cruise": 1 / 2}),
    ],
)
def test_a_mixture_has_its_parts(name: str, shares: dict[str, float]) -> None:
    found = Counter(choose(name, CAR_RACING, np.random.default_rng([0, index])) for index in range(1000))
    assert set(found) == set({**MIXTURES, **CAR_RACING.mixtures}[name]) == set(shares)
    assert all(abs(found[part] / 1000 - share) < 0.08 for part, share in shares.items())
    assert choose("uniform", CAR_RACING, np.random.default_rng(0)) == "uniform"


def test_a_task_says_which_policies_and_mixtures_it_has() -> None:
    other = replace(CAR_RACING, title="Another", policies={}, mixtures={})
    for name in ("uniform", "brownian", "random_network", "mixture"):
        check_policy(name, CAR_RACING)
        check_policy(name, other)
    for name in ("cruise", "wide"):
        check_policy(name, CAR_RACING)
        with pytest.raises(UserError, match=rf"--policy {name} is unknown for Another: choose one of random_network, "):
            check_policy(name, other)


def test_what_cannot_play_a_task_is_refused_before_anything_is_played() -> None:
    choices = replace(CAR_RACING, action=Action(("stay", "go")), policies={}, mixtures={})
    small = replace(CAR_RACING, frame=(8, 8, 3))
    for name, task, sentence in (
        ("brownian", choices, "--policy brownian needs bounded real actions"),
        ("mixture", choices, "--policy brownian needs bounded real actions"),
        ("random_network", small, r"--policy random_network needs frames \(64, 64, 3\)"),
        ("mixture", small, r"--policy random_network needs frames"),
    ):
        with pytest.raises(UserError, match=sentence):
            check_policy(name, task)
    check_policy("uniform", choices)
    check_policy("random_network", choices)


def test_bursts_of_choices_are_choices() -> None:
    class Still(Recorder):
        def act(self, observation: np.ndarray, instead: np.ndarray | None = None) -> np.ndarray:
            self.told.append(instead)
            return np.array(0) if instead is None else instead

    space = spaces.Discrete(3)
    found = actions(Driven(space, Still(), 0.1), 3, 500)  # type: ignore[arg-type]
    assert set(found.tolist()) == {0, 1, 2}
    np.testing.assert_array_equal(found, actions(Driven(space, Still(), 0.1), 3, 500))  # type: ignore[arg-type]


# --- driven ----------------------------------------------------------------------------------------------


class Recorder:
    """Stands for an agent: does the same all the time, and keeps what it is told to do instead."""

    def __init__(self) -> None:
        self.told: list[np.ndarray | None] = []

    def reset(self, rng: np.random.Generator | None = None) -> None:
        self.told.clear()

    def act(self, observation: np.ndarray, instead: np.ndarray | None = None) -> np.ndarray:
        self.told.append(instead)
        return np.full(3, 0.5, np.float32) if instead is None else instead


def test_driven_acts_as_the_agent_but_for_bursts_which_the_agent_is_told_of() -> None:
    agent = Recorder()
    found = actions(Driven(CAR, agent, 0.01), 3, 4000)  # type: ignore[arg-type]
    inside = np.array([told is not None for told in agent.told])
    for action, told in zip(found, agent.told, strict=True):
        np.testing.assert_array_equal(action, 0.5 if told is None else told)
    # A burst of 17 steps follows 100 quiet ones, on average; they may touch, so only starts are told apart.
    assert 0.08 < inside.mean() < 0.22
    starts = np.flatnonzero(np.diff(inside.astype(int)) == 1)
    stops = np.flatnonzero(np.diff(inside.astype(int)) == -1)
    lengths = stops[stops > starts[0]][: len(starts)] - starts[: len(stops[stops > starts[0]])]
    assert lengths.min() >= BURST_STEPS[0]
    again = actions(Driven(CAR, Recorder(), 0.01), 3, 4000)  # type: ignore[arg-type]
    np.testing.assert_array_equal(again, found)
    assert (found >= CAR.low).all()
    assert (found <= CAR.high).all()
