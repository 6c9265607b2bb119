"""The dream environments in a made-up world whose numbers are known exactly."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from wm.contracts import Noise, State
from wm.dream.env import DreamEnv, DreamVectorEnv
from wm.dream.world import World
from wm.envs.car_racing.task import CAR_RACING

Floats = NDArray[np.float32]

Z, HIDDEN, STARTS, END = 2, 3, 5, -50.0
STEER = np.array([0.25, 0, 0], np.float32)


def world(chance: float = 0.1, seen: list[Any] | None = None) -> World:
    """h counts steps, z drifts with noise and steering, a step is worth z[0]; it terminates with `chance`."""

    def step(state: State, a: Floats, noise: Noise, mask: Floats | None) -> tuple[State, Floats, Floats]:
        if seen is not None:
            told = {**state, "a": a, **noise, **({} if mask is None else {"mask": mask})}
            seen.append({name: part.copy() for name, part in told.items()})
        z = state["z"] + a[:, :1] + np.where(noise["uniform"] > 0.5, 1, -1).astype(np.float32) * noise["noise"]
        if mask is not None:
            z = z + mask.sum(1, keepdims=True)
        following = {"z": z, "h": state["h"] + np.float32(1 / 128), "c": state["c"] + 1}
        return following, z[:, 0].copy(), np.full(len(z), chance, np.float32)

    def read(state: State) -> Floats:
        return np.concatenate([state["z"], state["h"]], axis=1)

    def decode(z: Floats) -> NDArray[np.uint8]:
        bright = np.clip(128 + 20 * z[:, 0], 0, 255).astype(np.uint8)
        return np.broadcast_to(bright[:, None, None, None], (len(z), 64, 64, 3)).copy()

    starts = np.arange(STARTS, dtype=np.float32)[:, None]
    return World(
        task=CAR_RACING,
        step=step,
        read=read,
        decode=decode,
        chances={"uniform": ("uniform", Z), "noise": ("normal", Z)},
        masked=HIDDEN,
        bound=np.array([np.inf] * Z + [1] * HIDDEN, np.float32),
        state={
            "z": starts.repeat(Z, 1),
            "h": starts.repeat(HIDDEN, 1) / np.float32(10),
            "c": -starts.repeat(HIDDEN, 1),
        },
        end=END,
    )


def play(env: DreamEnv, seed: int | None, steps: int, action: Floats = STEER) -> list[Any]:
    observation, info = env.reset(seed=seed)
    found: list[Any] = [(observation, info)]
    for _ in range(steps):
        found.append(env.step(action))
    return found


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return bool(one.dtype == other.dtype and np.array_equal(one, other))
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


# --- one dream -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("observe", ["features", "pixels"])
def test_check_env(observe: Any) -> None:
    check_env(DreamEnv(world(chance=0), horizon=20, observe=observe, render_mode="rgb_array"))


def test_what_is_observed_and_earned() -> None:
    seen: list[Any] = []
    env = DreamEnv(world(chance=0, seen=seen), horizon=4)
    observation, info = env.reset(seed=1)
    start = info["start"]
    assert observation.dtype == np.float32
    np.testing.assert_array_equal(observation, np.array([start] * Z + [start / 10] * HIDDEN, np.float32))
    for number in range(1, 5):
        observation, reward, terminated, truncated, info = env.step(STEER)
        assert (observation.shape, observation.dtype) == ((Z + HIDDEN,), np.float32)
        assert reward == observation[0]
        assert (terminated, truncated, info) == (False, number == 4, {})
    assert len(seen) == 4  # M advances once a step, and on what came out of the step before
    for before, after in pairwise(seen):
        np.testing.assert_array_equal(after["h"], before["h"] + np.float32(1 / 128))
        np.testing.assert_array_equal(after["c"], before["c"] + 1)
        np.testing.assert_array_equal(before["a"][0], STEER)


def test_the_noise_is_noise() -> None:
    seen: list[Any] = []
    play(DreamEnv(world(0, seen), horizon=10**6), 0, 5000)
    uniform, noise = (np.concatenate([call[name] for call in seen]) for name in ("uniform", "noise"))
    assert 0 <= uniform.min() < 0.001
    assert 0.999 < uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.02
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.03
    assert abs(np.corrcoef(uniform[:, 0], noise[:, 0])[0, 1]) < 0.05


def test_terminations_come_at_their_rate_and_pay_the_end() -> None:
    env = DreamEnv(world(chance=0.1), horizon=10**6)
    ends = 0
    env.reset(seed=0)
    for _ in range(3000):
        _, reward, terminated, truncated, _ = env.step(STEER)
        assert not truncated
        if terminated:
            ends += 1
            assert reward == END
            env.reset()
    assert 240 < ends < 360


def test_same_seed_same_dream() -> None:
    one, other = DreamEnv(world(), horizon=9), DreamEnv(world(), horizon=9)
    first = play(one, 3, 9)
    assert same(first, play(other, 3, 9))
    assert not same(first, play(other, 4, 9))
    assert not same(first, play(one, None, 9))  # without a seed it goes on with its generator
    assert same(first, play(one, 3, 9))
    np.random.seed(0)  # noqa: NPY002  numpy's global state has no part in it
    assert same(first, play(other, 3, 9))


def test_starts_are_drawn_or_chosen() -> None:
    env = DreamEnv(world(), horizon=9)
    assert {env.reset(seed=seed)[1]["start"] for seed in range(50)} == set(range(STARTS))
    observation, info = env.reset(seed=0, options={"start": 3})
    assert (info["start"], observation[0]) == (3, 3.0)
    assert DreamEnv(world(), horizon=9, start=2).reset(seed=0)[1]["start"] == 2
    # What follows does not depend on how the start was chosen.
    chosen = env.reset(seed=7)[1]["start"]
    following = env.step(STEER)
    env.reset(seed=7, options={"start": chosen})
    assert same(following, env.step(STEER))


def test_actions_are_cut_to_what_m_has_seen() -> None:
    seen: list[Any] = []
    env = DreamEnv(world(0, seen), horizon=9)
    env.reset(seed=0)
    env.step(np.array([-7, -1, 9], np.float32))
    np.testing.assert_array_equal(seen[0]["a"], [[-1, 0, 1]])


def test_pixels_are_decoded_latents() -> None:
    env = DreamEnv(world(chance=0), horizon=9, observe="pixels", render_mode="rgb_array", start=4)
    observation, _ = env.reset(seed=0)
    assert (observation.shape, observation.dtype) == ((64, 64, 3), np.uint8)
    assert (observation == 208).all()
    frame = env.render()
    assert frame is not None
    np.testing.assert_array_equal(frame, observation)
    assert DreamEnv(world(), horizon=9).render() is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"horizon": 0}, "horizon is 0"),
        ({"start": STARTS}, "start is 5, there are 5 starts"),
        ({"start": -1}, "start is -1"),
        ({"observe": "smell"}, "observe is 'smell'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"render_mode": "human"}, "render_mode is 'human'"),
    ],
)
@pytest.mark.parametrize("make", [DreamEnv, lambda *args, **kwargs: DreamVectorEnv(2, *args, **kwargs)])
def test_options_that_make_no_sense(make: Callable[..., Any], options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make(world(), **{"horizon": 9, **options})
    if options.get("start") is not None:
        with pytest.raises(ValueError, match=sentence):
            make(world(), horizon=9).reset(options={"start": options["start"]})


def test_dropout_stays_for_a_dream_and_follows_from_its_seed() -> None:
    seen: list[Any] = []
    env = DreamEnv(world(chance=0, seen=seen), horizon=9, dropout=0.4)
    for seed in (3, None, 3):
        play(env, seed, 4)
    masks = [row["mask"] for row in seen]
    rng = np.random.default_rng(3)
    rng.integers(STARTS)
    wanted = np.where(rng.random(HIDDEN, np.float32) < 0.4, 0, np.float32(1) / np.float32(0.6)).astype(np.float32)
    for first in (0, 8):
        assert all(np.array_equal(mask, wanted[None]) for mask in masks[first : first + 4])
    assert all(np.array_equal(mask, masks[4]) for mask in masks[4:8])
    plain: list[Any] = []
    play(DreamEnv(world(chance=0, seen=plain), horizon=9), 3, 4)
    assert all("mask" not in row for row in plain)  # M is told of none


# --- many dreams -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("observe", "dropout"), [("features", 0.0), ("features", 0.4), ("pixels", 0.0)])
def test_a_vector_is_its_singles(observe: Any, dropout: float) -> None:
    """Through ends of both kinds and new beginnings, beside Gymnasium's own loop over single environments."""
    count, options = 4, {"horizon": 6, "observe": observe, "dropout": dropout}
    whole = DreamVectorEnv(count, world(0.2), **options)
    singles = SyncVectorEnv([lambda: DreamEnv(world(0.2), **options)] * count)
    assert whole.single_observation_space == singles.single_observation_space
    assert whole.observation_space == singles.observation_space
    assert whole.action_space == singles.action_space
    assert same(whole.reset(seed=11), singles.reset(seed=11))
    rng, ends = np.random.default_rng(0), {"terminated": 0, "truncated": 0}
    for number in range(40):
        actions = rng.uniform(-1, 1, (count, 3)).astype(np.float32)
        found = whole.step(actions)
        assert same(found, singles.step(actions)), number
        assert found[0] in whole.observation_space
        ends["terminated"] += int(found[2].sum())
        ends["truncated"] += int(found[3].sum())
    assert min(ends.values()) > 3
    assert same(whole.reset(seed=[3, None, 5, None]), singles.reset(seed=[3, None, 5, None]))
    assert same(whole.reset(), singles.reset())


def test_autoreset_is_in_the_next_step() -> None:
    env = DreamVectorEnv(2, world(chance=0), horizon=2)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    _, infos = env.reset(seed=0)
    assert infos["_start"].all()
    actions = np.zeros((2, 3), np.float32)
    assert not env.step(actions)[3].any()
    _, _, terminated, truncated, infos = env.step(actions)
    assert truncated.all()
    assert not terminated.any()
    assert infos == {}
    begun, reward, terminated, truncated, infos = env.step(np.ones((2, 3), np.float32))
    assert (reward == 0).all()
    assert not (terminated | truncated).any()
    np.testing.assert_array_equal(begun[:, 0], infos["start"])  # as they were recorded, whatever the action


def test_what_was_given_out_does_not_change() -> None:
    env = DreamVectorEnv(3, world(), horizon=3)
    given = [env.reset(seed=0)[0]]
    copies = [given[0].copy()]
    for _ in range(8):
        given.append(env.step(np.zeros((3, 3), np.float32))[0])
        copies.append(given[-1].copy())
    assert same(given, copies)


def test_neither_states_nor_observations_share_memory_with_what_m_returned() -> None:
    returned: list[State] = []

    def step(*given: Any) -> Any:
        following, reward, chance = world().step(*given)
        returned.append(following)
        return following, reward, chance

    made = replace(world(), step=step, read=lambda state: state["z"], bound=np.full(Z, np.inf, np.float32))
    env = DreamEnv(made, horizon=9)
    env.reset(seed=0)
    last, *_ = env.step(STEER)
    kept, whole = last.copy(), {name: part.copy() for name, part in returned[0].items()}
    env.reset(seed=1, options={"start": 4})
    np.testing.assert_array_equal(last, kept)
    assert same(dict(returned[0]), whole)


def test_it_is_as_fast_as_its_task() -> None:
    slow = replace(world(), task=replace(CAR_RACING, fps=7))
    assert DreamEnv(slow).metadata["render_fps"] == DreamVectorEnv(2, slow).metadata["render_fps"] == 7
    assert DreamEnv(world()).metadata["render_fps"] == CAR_RACING.fps


def test_a_vector_renders_a_frame_each() -> None:
    env = DreamVectorEnv(3, world(), horizon=3, render_mode="rgb_array", start=1)
    env.reset(seed=0)
    frames = env.render()
    assert isinstance(frames, tuple)
    assert [frame.shape for frame in frames] == [(64, 64, 3)] * 3
    assert all((frame == 148).all() for frame in frames)
    assert DreamVectorEnv(3, world(), horizon=3).render() is None


def test_numbers_of_dreams_and_seeds() -> None:
    with pytest.raises(ValueError, match="num_envs is 0"):
        DreamVectorEnv(0, world(), horizon=3)
    with pytest.raises(ValueError, match="2 seeds for 3 dreams"):
        DreamVectorEnv(3, world(), horizon=3).reset(seed=[1, 2])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_actions_that_are_none_are_refused(bad: float) -> None:
    env, envs = DreamEnv(world(), horizon=1), DreamVectorEnv(2, world(), horizon=1)
    env.reset(seed=0)
    envs.reset(seed=0)
    for action in ([0, bad, 0], [0, 0]):
        with pytest.raises(ValueError, match=r"actions are not finite|actions are of shape \(1, 2\), not \(1, 3\)"):
            env.step(np.array(action, np.float32))
        with pytest.raises(ValueError, match=r"actions are not finite|actions are of shape \(2, 2\), not \(2, 3\)"):
            envs.step(np.array([action] * 2, np.float32))
    envs.step(np.zeros((2, 3), np.float32))
    envs.step(np.full((2, 3), bad, np.float32))  # both begin anew, and their actions are not looked at


def test_importing_wm_envs_registers_it() -> None:
    spec = gymnasium.spec("wm/Dream-v0")
    assert (spec.entry_point, spec.vector_entry_point) == (
        "wm.dream.env:make_dream_env",
        "wm.dream.env:make_dream_vector_env",
    )
