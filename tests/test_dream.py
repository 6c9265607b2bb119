"""The dream of a run: its starts, its environments with a real M, and populations against a plain loop."""

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from torch import Tensor

import wm.dream.ensemble
import wm.dream.population
import wm.dream.starts
import wm.memory.fused
from tests.toy_dream import (
    CONFIG,
    END,
    EPISODES,
    FEATURES,
    HIDDEN,
    HIT,
    LINEAR,
    MISS,
    Z,
    make_population,
    make_toy_member,
    make_toy_run,
    mdnrnn_of,
    toy_mdnrnn,
)
from wm.config.presets import SMOKE
from wm.config.vmc import DreamConfig
from wm.contracts import Layout, State
from wm.controller.hidden import Hidden
from wm.dream.chance import DreamNoise
from wm.dream.ensemble import Member, load_ensemble
from wm.dream.networks import Networks, load_networks, split_latents
from wm.dream.starts import draw_starts, find_starts
from wm.dream.step import dream_step
from wm.dream.value import Value
from wm.driving.loading import load_agent
from wm.envs.car_racing.task import CAR_RACING
from wm.memory.mdnrnn import MDNRNN, mixture_moments, sample, save_mdnrnn
from wm.run.checksums import file_hash
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.json_files import write_json
from wm.store.latents import Latents
from wm.store.starts import Starts, save_starts

Array = NDArray[np.float64]

AFTER = 20
SMALL = replace(SMOKE.dream, starts=10, start_after=AFTER, horizon=7, unpaid=2, dreams=3)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_run(tmp_path_factory.mktemp("toy")).folder


@pytest.fixture
def run(source: Path, tmp_path: Path) -> Run:
    return Run(shutil.copytree(source, tmp_path / "run"))


@pytest.fixture(scope="module")
def networks(source: Path) -> Networks:
    return load_networks(Run(source))


@pytest.fixture(scope="module")
def starts(source: Path, networks: Networks) -> Starts:
    return find_starts(Run(source), networks, SMALL)


# --- starts ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_starts_are_moments_of_training_episodes_with_ms_state_there(source: Path, networks: Networks) -> None:
    latents, training, held_out = split_latents(Run(source), networks)
    assert (len(training), len(held_out)) == (6, 2)
    found = draw_starts(latents, training, networks, count=200, after=AFTER, near=0, rewarded=training)
    assert len(found) == 200
    assert set(found.episode) == set(training.tolist())  # here an episode's index is its place
    assert found.step.min() >= AFTER
    room = latents.table["length"][found.episode]
    assert (found.step < room).all()
    assert (found.step >= room - 2).any()
    assert len({*zip(found.episode.tolist(), found.step.tolist(), strict=True)}) == 200  # none twice
    for i in range(0, 200, 11):
        episode, step = latents.episode(found.episode[i]), int(found.step[i])
        np.testing.assert_allclose(found.state["z"][i], episode.mu[step], rtol=1e-3, atol=1e-3)
        z, a = torch.from_numpy(episode.mu[None, :step]), torch.from_numpy(episode.actions[None, :step])
        _, (h, c) = mdnrnn_of(networks)(z, a)
        np.testing.assert_allclose(found.state["h"][i], h[0, 0], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found.state["c"][i], c[0, 0], rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(found.rewards, [MISS, HIT, END], rtol=1e-5)
    assert found.made_from == networks.made_from


def test_each_moment_is_as_likely_as_any_other(source: Path, networks: Networks) -> None:
    latents = Latents(Run(source).latents)
    both = np.array([0, 7])  # 60 and 81 steps
    found = draw_starts(latents, both, networks, count=101, after=AFTER, near=0, rewarded=both)
    assert sorted(zip(found.episode.tolist(), found.step.tolist(), strict=True)) == [
        *((0, step) for step in range(AFTER, 60)),
        *((7, step) for step in range(AFTER, 81)),
    ]


def test_starts_are_near_a_pulse_if_there_is_one(source: Path, networks: Networks) -> None:
    latents = Latents(Run(source).latents)
    episodes = np.arange(EPISODES)
    for near in (1, 3):
        wanted = [
            (n, step)
            for n, place in enumerate(episodes.tolist())
            for step in range(AFTER, int(latents.table["length"][place]))
            if (latents.episode(place).rewards[max(0, step - near) : step + near] > 0).any()
        ]
        found = wm.dream.starts.moments(latents, episodes, AFTER, near)
        assert [tuple(row) for row in found.tolist()] == wanted
        assert 0 < len(wanted) < len(wm.dream.starts.moments(latents, episodes, AFTER, near=0))
    # Where no pulse is near, any moment counts.
    lengths = latents.table["length"]
    bare = next(n for n in range(EPISODES) if not (latents.episode(n).rewards[-3:] > 0).any())
    assert not len(wm.dream.starts.moments(latents, np.array([bare]), int(lengths[bare]) - 1, near=1))
    drawn = draw_starts(
        latents, np.array([bare]), networks, count=1, after=int(lengths[bare]) - 1, near=1, rewarded=np.array([bare])
    )
    assert drawn.step.tolist() == [lengths[bare] - 1]


def test_starts_follow_from_the_record_and_are_the_same_on_disk(run: Run, networks: Networks) -> None:
    drawn, again = (find_starts(run, networks, SMALL) for _ in range(2))
    assert not run.starts.exists()
    save_starts(run.starts, drawn)
    run.latents.unlink()
    read = find_starts(run, networks, SMALL)
    assert set(drawn.state) == {"z", "h", "c"}
    for found in (again, read):
        assert found.state.keys() == drawn.state.keys()
        for name, part in drawn.state.items():
            np.testing.assert_array_equal(found.state[name], part)
        for name in ("episode", "step", "rewards"):
            np.testing.assert_array_equal(getattr(found, name), getattr(drawn, name))


@pytest.mark.parametrize(
    "changes",
    [{"c": np.zeros((SMALL.starts, HIDDEN + 1), np.float32)}, {"more": np.zeros((SMALL.starts, 1), np.float32)}],
)
def test_starts_with_no_state_of_this_m_are_refused(
    run: Run, networks: Networks, starts: Starts, changes: dict[str, Any]
) -> None:
    save_starts(run.starts, replace(starts, state={**starts.state, **changes}))
    with pytest.raises(UserError, match=r"starts\.npz is damaged \(it holds no state of this M\): .*`make dream`"):
        find_starts(run, networks, SMALL)


def test_too_short_a_record_is_refused(source: Path, networks: Networks) -> None:
    latents = Latents(Run(source).latents)
    with pytest.raises(UserError, match=r"longer than --start-after 81 steps"):
        draw_starts(latents, np.arange(EPISODES), networks, count=3, after=81, near=20, rewarded=np.arange(EPISODES))


def test_without_a_record_there_are_no_starts(run: Run, networks: Networks) -> None:
    run.latents.unlink()
    with pytest.raises(UserError, match=r"starts\.npz is missing: make it with `make dream`"):
        find_starts(run, networks, SMALL)


def test_rewards_are_of_all_episodes_where_starts_are_of_the_last(
    run: Run, networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents, _, held_out = split_latents(run, networks)
    split = latents, np.array([1, 0]), held_out  # of which 1 ended by the rules
    monkeypatch.setattr(wm.dream.starts, "split_latents", lambda *_: split)
    found = find_starts(run, networks, replace(SMALL, fresh=1))
    assert set(found.episode) == {0}
    np.testing.assert_allclose(found.rewards, [MISS, HIT, END], rtol=1e-5)


def test_starts_of_another_m_are_refused(run: Run, networks: Networks) -> None:
    save_starts(run.starts, find_starts(run, networks, SMALL))
    save_mdnrnn(run.mdnrnn, toy_mdnrnn(seed=1).state_dict(), CONFIG, {"vae.pt": file_hash(run.vae)})
    with pytest.raises(UserError, match=r"starts\.npz was made from another mdnrnn\.pt .*`make dream ARGS=--restart`"):
        find_starts(run, load_networks(run), SMALL)


def test_where_nothing_was_touched_and_nothing_ended_a_miss_stands_in(source: Path) -> None:
    latents = Latents(Run(source).latents)
    even = np.array([0, 2])
    found = wm.dream.starts.mean_rewards(latents, even)
    np.testing.assert_allclose(found, [MISS, HIT, MISS], rtol=1e-5)


# --- the environment -------------------------------------------------------------------------------------


@pytest.mark.parametrize("observe", ["features", "pixels"])
def test_check_env(source: Path, observe: str) -> None:
    env = gymnasium.make("wm/Dream-v0", run=str(source), observe=observe, render_mode="rgb_array")
    check_env(env.unwrapped)
    assert env.observation_space.shape == ((FEATURES,) if observe == "features" else (64, 64, 3))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@torch.no_grad()
def test_one_dream_is_m_by_the_book(source: Path, networks: Networks, dropout: float) -> None:
    """The environment beside M's forward and the paper's sampling, written out number by number."""
    tau = 0.7
    env = gymnasium.make("wm/Dream-v0", run=str(source), temperature=tau, dropout=dropout, horizon=30)
    observation, info = env.reset(seed=5)
    starts = find_starts(Run(source), networks, DreamConfig())
    z, h, c = (torch.from_numpy(starts.state[name][info["start"]])[None, None] for name in "zhc")
    rng = np.random.default_rng(5)  # what Gymnasium makes of the seed
    assert int(rng.integers(len(starts))) == info["start"]
    hidden = torch.from_numpy(rng.random(HIDDEN, np.float32)) < dropout if dropout else torch.zeros(HIDDEN).bool()
    head_mask = torch.where(hidden, 0.0, 1 / (1 - dropout))[None, None]
    for number in range(20):
        np.testing.assert_allclose(observation, np.concatenate([z[0, 0], h[0, 0]]), atol=2e-4)
        action = np.array([math.sin(number), 0.5, 0.1], np.float32)
        observation, reward, terminated, _, _ = env.step(action)
        uniform, noise = rng.random(Z + 1, np.float32), rng.standard_normal(Z, np.float32)
        prediction, (h, c) = mdnrnn_of(networks)(z, torch.from_numpy(action)[None, None], (h, c), head_mask)
        for i in range(Z):
            weights = torch.softmax(prediction.logmix[0, 0, i] / tau, 0)
            k = min(int((weights.cumsum(0) <= float(uniform[i])).sum()), len(weights) - 1)
            sigma = prediction.logsigma[0, 0, i, k].exp() * math.sqrt(tau)
            z[0, 0, i] = prediction.mu[0, 0, i, k] + sigma * float(noise[i])
        hit, end = prediction.reward.sigmoid().item(), prediction.terminated.sigmoid().item()
        assert terminated == (uniform[Z] < end)
        assert reward == pytest.approx(END if terminated else hit * HIT + (1 - hit) * MISS, abs=1e-4)


def test_a_vector_is_one_batch_and_its_singles(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    original = wm.memory.fused.FusedMDNRNN.advance

    def counted(self: wm.memory.fused.FusedMDNRNN, state: State, action: Tensor) -> State:
        batches.append(len(action))
        return original(self, state, action)

    options: dict[str, Any] = {"run": str(source), "horizon": 5}
    whole = gymnasium.make_vec("wm/Dream-v0", num_envs=3, vectorization_mode="vector_entry_point", **options)
    singles = gymnasium.make_vec("wm/Dream-v0", num_envs=3, vectorization_mode="sync", **options)
    assert whole.observation_space == singles.observation_space
    found, wanted = whole.reset(seed=2), singles.reset(seed=2)
    np.testing.assert_array_equal(found[0], wanted[0])
    rng = np.random.default_rng(0)
    for _ in range(13):
        actions = rng.uniform([-1, 0, 0], 1, (3, 3)).astype(np.float32)
        with monkeypatch.context() as patch:
            patch.setattr(wm.memory.fused.FusedMDNRNN, "advance", counted)
            one = whole.step(actions)
        for mine, theirs in zip(one[:4], singles.step(actions)[:4], strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-3)
    assert batches == [3] * 13


COMMITTED = Path(__file__).parent.parent / "data" / "pretrained"


@pytest.mark.parametrize("run", [COMMITTED, COMMITTED / "dream"])
def test_the_committed_runs_dream_right_after_cloning(run: Path) -> None:
    env = gymnasium.make("wm/Dream-v0", run=str(run))
    assert not (run / "latents.h5").exists()
    observation, _ = env.reset(seed=0)
    assert observation.shape == (288,)
    for _ in range(5):
        observation, reward, *_ = env.step(np.array([0, 0.2, 0], np.float32))
        assert np.isfinite(observation).all()
        assert -100 <= float(reward) < 5


def test_the_committed_controller_of_the_dream_is_found_beside_that_of_real_rollouts() -> None:
    frame = np.full((96, 96, 3), 100, np.uint8)
    mine, same = (load_agent(run, controller="dream") for run in (COMMITTED, COMMITTED / "dream"))
    other = load_agent(COMMITTED)
    np.testing.assert_array_equal(mine.act(frame), same.act(frame))
    other.act(frame)
    assert not np.array_equal(mine.features, other.features)
    with pytest.raises(UserError, match=r"dream-latest\.npz is missing"):
        load_agent(COMMITTED, controller="dream-latest")


def test_ppo_trains_on_it_as_it_is(source: Path) -> None:
    env = gymnasium.make("wm/Dream-v0", run=str(source), horizon=20)
    check_env_sb3(env)
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=32, n_epochs=2, seed=0, device="cpu")
    before = [value.clone() for value in model.policy.parameters()]
    model.learn(128)
    assert model.num_timesteps == 128
    assert any(not torch.equal(one, other) for one, other in zip(before, model.policy.parameters(), strict=True))
    action, _ = model.predict(env.reset(seed=0)[0], deterministic=True)
    assert env.action_space.contains(action)


@pytest.mark.parametrize(("name", "command"), [("vae.pt", "make vae"), ("mdnrnn.pt", "make mdnrnn")])
def test_a_run_that_lacks_something_says_so(run: Run, name: str, command: str) -> None:
    (run.folder / name).unlink()
    with pytest.raises(UserError, match=command):
        gymnasium.make("wm/Dream-v0", run=str(run.folder))


def test_no_temperature_is_refused(source: Path) -> None:
    with pytest.raises(ValueError, match="temperature is 0"):
        gymnasium.make("wm/Dream-v0", run=str(source), temperature=0.0)


# --- populations -----------------------------------------------------------------------------------------


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_members(starts: Starts, count: int) -> list[Member]:
    """M's of other weights, each with a memory of its own at the starts."""
    rng = np.random.default_rng(5)
    states = rng.uniform(-1, 1, (count, 2, *starts.state["h"].shape)).astype(np.float32)
    return [Member(toy_mdnrnn(seed=1 + n), {"z": starts.state["z"], "h": h, "c": c}) for n, (h, c) in enumerate(states)]


def begun(state: State, start: int) -> State:
    """M's state at one start, of one dream."""
    return {name: torch.from_numpy(part[start]) for name, part in state.items()}


def noise_of(dream_noise: DreamNoise, t: int, s: int) -> dict[str, Tensor]:
    """The noise of one step of one dream."""
    return {name: torch.from_numpy(part[t, s]) for name, part in dream_noise.noise.items()}


def mean_of(model: MDNRNN, state: State, a: Tensor, head_mask: Tensor | None) -> NDArray[np.float32]:
    """The mean f32[Z] of what M expects of the next z, for one dream, by M's own forward."""
    z, h, c = (state[name][None, None] for name in "zhc")
    prediction, _ = model(z, a[None, None], (h, c), None if head_mask is None else head_mask[None, None])
    return mixture_moments(prediction)[0][0, 0].numpy()


def random_thetas(count: int, layout: Layout = LINEAR) -> Array:
    return np.random.default_rng(0).normal(0, 0.7, (count, layout.count(FEATURES)))


HIDDEN_C = Hidden(CAR_RACING.action.size, units=5)


@pytest.mark.parametrize("layout", [LINEAR, HIDDEN_C])
def test_candidates_are_controllers_row_by_row(layout: Layout) -> None:
    thetas = random_thetas(4, layout)
    features = np.random.default_rng(1).normal(0, 1, (4, 3, FEATURES)).astype(np.float32)
    raw = layout.candidates(torch.from_numpy(thetas).float(), FEATURES)(torch.from_numpy(features)).numpy()
    assert raw.shape == (4, 3, 3)
    for p, theta in enumerate(thetas):
        controller = layout.controller(theta, FEATURES)
        for s in range(3):
            np.testing.assert_allclose(raw[p, s], controller(features[p, s]), rtol=1e-5, atol=1e-5)
    assert np.std(raw) > 0.1


@pytest.mark.parametrize(
    ("members", "disagreement", "layout"), [(1, 0.0, LINEAR), (1, 0.0, HIDDEN_C), (3, 0.0, LINEAR), (3, 1.5, LINEAR)]
)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@torch.no_grad()
@pytest.mark.usefixtures("one_thread")
def test_scores_are_those_of_a_plain_loop(
    networks: Networks, starts: Starts, dropout: float, members: int, disagreement: float, layout: Layout
) -> None:
    """One candidate and one start at a time, C as it acts, the expectation written out."""
    config, others = replace(SMALL, dropout=dropout, dreams=5), make_members(starts, members - 1)
    population = make_population(networks, starts, config, layout, others=others, dtype=torch.float32)
    thetas, dream_noise = random_thetas(4, layout), population.draw_noise(3, 1)
    assert len(set(dream_noise.members.tolist())) == members
    models = [mdnrnn_of(networks), *(toy_mdnrnn(seed=1 + n) for n in range(len(others)))]
    memories = [model.dreaming(starts.pays, config.temperature) for model in models]
    wanted, penalties = np.zeros((4, config.dreams)), 0.0
    for p, theta in enumerate(thetas):
        controller = layout.controller(theta, FEATURES)
        for s, (start, member) in enumerate(
            zip(dream_noise.starts.tolist(), dream_noise.members.tolist(), strict=True)
        ):
            head_mask = None if dream_noise.head_mask is None else torch.from_numpy(dream_noise.head_mask[s])
            states = [begun(state, start) for state in (starts.state, *(other.state for other in others))]
            alive = 1.0
            for t in range(config.horizon):
                features = torch.cat([states[0]["z"], states[0]["h"]]).numpy()
                action = torch.from_numpy(CAR_RACING.action.squash(controller(features)))
                told = [
                    dream_step(memory, state, action, noise_of(dream_noise, t, s), head_mask)
                    for memory, state in zip(memories, states, strict=True)
                ]
                expected = [mean_of(*given, action, head_mask) for given in zip(models, states, strict=True)]
                unsure = np.var(expected, axis=0).mean()
                drawn, reward, end = told[member][0]["z"], told[member][1].item(), told[member][2].item()
                states = [{**state, "z": drawn} for state, _, _ in told]  # all go on from the z of one of them
                if t >= config.unpaid:
                    wanted[p, s] += alive * ((1 - end) * reward + end * END - disagreement * unsure)
                    penalties += alive * disagreement * unsure
                alive *= 1 - end
    assert bool(penalties > 1) == bool(disagreement)
    found = population.score(thetas, dream_noise, disagreement)
    np.testing.assert_allclose(found, wanted.mean(1) * 1000 / (config.horizon - config.unpaid), rtol=1e-4, atol=1e-2)
    assert np.std(found) > 1


@pytest.mark.usefixtures("one_thread")
def test_threads_and_blocks_change_nothing(networks: Networks, starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    thetas = random_thetas(11)
    scores = []
    for threads, rows in ((1, 6), (3, 6), (1, 10**6)):
        monkeypatch.setattr(wm.dream.population, "BLOCK_ROWS", rows)
        population = make_population(networks, starts, SMALL, threads=threads)
        scores.append(population.score(thetas, population.draw_noise(0, 1)))
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_allclose(scores[2], scores[0], rtol=0.02, atol=1)


@pytest.mark.usefixtures("one_thread")
def test_steps_that_are_not_paid_earn_nothing(networks: Networks, starts: Starts) -> None:
    """The paid steps of a longer dream are those that a dream without unpaid ones has beyond them."""
    scores = {}
    for horizon, unpaid in ((7, 0), (3, 0), (7, 3)):
        config = replace(SMALL, horizon=horizon, unpaid=unpaid)
        population = make_population(networks, starts, config, dtype=torch.float32)
        dream_noise = population.draw_noise(0, 1)
        whole = make_population(networks, starts, SMALL).draw_noise(0, 1)
        dream_noise = replace(dream_noise, noise={name: part[:horizon] for name, part in whole.noise.items()})
        scores[horizon, unpaid] = population.score(random_thetas(2), dream_noise) * (horizon - unpaid) / 1000
    np.testing.assert_allclose(scores[7, 3], scores[7, 0] - scores[3, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("one_thread")
def test_the_value_of_where_a_dream_ends_counts(networks: Networks, starts: Starts) -> None:
    """One candidate, its last features by a plain loop; a dream that has terminated is worth nothing more."""
    value = Value(FEATURES)
    config = replace(SMALL, value=30)
    plain = make_population(networks, starts, SMALL, dtype=torch.float32)
    found = make_population(networks, starts, config, value=value.requires_grad_(False), dtype=torch.float32)
    theta, dream_noise = random_thetas(1), plain.draw_noise(0, 1)
    controller, memory = LINEAR.controller(theta[0], FEATURES), networks.memory.dreaming(starts.pays)
    wanted = plain.score(theta, dream_noise)[0] * (SMALL.horizon - SMALL.unpaid) / 1000
    for s, start in enumerate(dream_noise.starts.tolist()):
        state, alive = begun(starts.state, start), 1.0
        for t in range(SMALL.horizon):
            raw = controller(torch.cat([state["z"], state["h"]]).numpy())
            action = torch.from_numpy(CAR_RACING.action.squash(raw))
            state, _, end = dream_step(memory, state, action, noise_of(dream_noise, t, s))
            alive *= 1 - end.item()
        wanted += alive * value(torch.cat([state["z"], state["h"]])).item() / SMALL.dreams
    paid = SMALL.horizon - SMALL.unpaid + 30
    np.testing.assert_allclose(found.score(theta, dream_noise)[0], wanted * 1000 / paid, rtol=1e-4)


def test_a_night_follows_from_its_seed(networks: Networks, starts: Starts) -> None:
    population = make_population(networks, starts, SMALL)
    one, same, other = population.draw_noise(0, 1), population.draw_noise(0, 1), population.draw_noise(0, 2)
    assert one.noise.keys() == {"uniform", "noise"}
    for name, drawn in one.noise.items():
        np.testing.assert_array_equal(drawn, same.noise[name])
        assert not np.allclose(drawn, other.noise[name])
        assert drawn.shape == (SMALL.horizon, SMALL.dreams, Z)
    np.testing.assert_array_equal(one.starts, same.starts)
    assert len(set(population.draw_noise(0, 1, dreams=10).starts)) == 10  # all different while there are enough
    assert population.draw_noise(0, 1, dreams=30).starts.shape == (30,)


def test_a_night_with_dropout_is_the_same_night(networks: Networks, starts: Starts) -> None:
    plain = make_population(networks, starts, SMALL).draw_noise(0, 1, dreams=300)
    assert plain.head_mask is None
    found = make_population(networks, starts, replace(SMALL, dropout=0.2)).draw_noise(0, 1, dreams=300)
    np.testing.assert_array_equal(found.starts, plain.starts)
    for name, drawn in plain.noise.items():
        np.testing.assert_array_equal(found.noise[name], drawn)
    assert found.head_mask is not None
    assert found.head_mask.shape == (300, HIDDEN)
    assert set(found.head_mask.ravel().tolist()) == {0.0, float(np.float32(1) / np.float32(0.8))}
    assert (found.head_mask == 0).mean() == pytest.approx(0.2, abs=0.03)
    assert len(np.unique(found.head_mask, axis=0)) > 50  # each dream has its own


@pytest.mark.parametrize("disagreement", [0.0, 1.5])
@pytest.mark.usefixtures("one_thread")
def test_threads_and_blocks_change_nothing_in_an_ensemble(
    networks: Networks, starts: Starts, monkeypatch: pytest.MonkeyPatch, disagreement: float
) -> None:
    """With more M's than dreams, too: one of them then has nothing to say."""
    thetas, config = random_thetas(11), replace(SMALL, dropout=0.3)
    scores = []
    for threads, rows in ((1, 6), (3, 6), (1, 10**6)):
        monkeypatch.setattr(wm.dream.population, "BLOCK_ROWS", rows)
        others = make_members(starts, 3)
        population = make_population(networks, starts, config, others=others, threads=threads)
        scores.append(population.score(thetas, population.draw_noise(0, 1), disagreement))
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_allclose(scores[2], scores[0], rtol=0.02, atol=1)


@pytest.mark.usefixtures("one_thread")
def test_twins_are_one(networks: Networks, starts: Starts) -> None:
    twin = Member(networks.memory, starts.state)
    alone = make_population(networks, starts, SMALL, dtype=torch.float32)
    both = make_population(networks, starts, SMALL, others=[twin], dtype=torch.float32)
    thetas, dream_noise = random_thetas(4), both.draw_noise(0, 1)
    assert set(dream_noise.members.tolist()) == {0, 1}
    wanted = alone.score(thetas, alone.draw_noise(0, 1))
    for disagreement in (0.0, 100.0):  # twins always agree
        np.testing.assert_allclose(both.score(thetas, dream_noise, disagreement), wanted, rtol=1e-4, atol=1e-2)


def test_a_night_shares_dreams_out_evenly_and_changes_nothing_else(networks: Networks, starts: Starts) -> None:
    alone = make_population(networks, starts, SMALL)
    three = make_population(networks, starts, SMALL, others=make_members(starts, 2))
    more = set()
    for generation in range(12):
        dream_noise, plain = three.draw_noise(0, generation, dreams=10), alone.draw_noise(0, generation, dreams=10)
        np.testing.assert_array_equal(dream_noise.starts, plain.starts)
        for name, drawn in plain.noise.items():
            np.testing.assert_array_equal(dream_noise.noise[name], drawn)
        assert plain.members.tolist() == [0] * 10
        assert dream_noise.members.tolist() == sorted(dream_noise.members.tolist())
        counts = np.bincount(dream_noise.members, minlength=3)
        assert sorted(counts.tolist()) == [3, 3, 4]
        more.add(int(counts.argmax()))
    assert more == {0, 1, 2}


@torch.no_grad()
def test_each_m_of_an_ensemble_remembers_the_record_before_a_start(
    source: Path, networks: Networks, starts: Starts, tmp_path: Path
) -> None:
    run, latents = Run(source), Latents(Run(source).latents)
    folders = [make_toy_member(tmp_path / str(seed), run, seed) for seed in (1, 2)]
    for seed, member in enumerate(load_ensemble(folders, run, networks, starts), 1):
        model = toy_mdnrnn(seed)
        assert isinstance(member.model, MDNRNN)
        for name, value in model.state_dict().items():
            assert torch.equal(member.model.state_dict()[name], value)
        np.testing.assert_array_equal(member.state["z"], starts.state["z"])
        for i in range(len(starts)):
            episode, step = latents.episode(starts.episode[i]), int(starts.step[i])
            z, a = torch.from_numpy(episode.mu[None, :step]), torch.from_numpy(episode.actions[None, :step])
            _, (h, c) = model(z, a)
            np.testing.assert_allclose(member.state["h"][i], h[0, 0], rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(member.state["c"][i], c[0, 0], rtol=2e-3, atol=1e-3)
    assert load_ensemble([], run, networks, starts) == []
    # The run's own M, warmed up in this way, has what starts.npz has.
    for name, part in wm.dream.ensemble.state_at_starts(networks.memory, run, networks, starts).items():
        np.testing.assert_array_equal(part, starts.state[name])


def test_ensembles_that_do_not_fit_are_refused(run: Run, networks: Networks, starts: Starts, tmp_path: Path) -> None:
    good = make_toy_member(tmp_path / "good", run, 1)
    other = make_toy_run(tmp_path / "other")
    made_from = {"vae.pt": file_hash(run.vae)}
    save_mdnrnn(other.mdnrnn, toy_mdnrnn(1).state_dict(), CONFIG, {"vae.pt": "another"})
    small = Run(tmp_path / "small")
    save_mdnrnn(small.mdnrnn, MDNRNN(Z, 3, 4, 3).state_dict(), {**CONFIG, "hidden": 4}, made_from)
    for folders, sentence in (
        ([good, other.folder], r"--ensemble .*other: its mdnrnn\.pt was trained on another vae\.pt .*`make mdnrnn"),
        ([small.folder], r"--ensemble .*small: its M has features 8, that of .* 12"),
        ([good, good], r"--ensemble .*good: its M is in the ensemble already"),
        ([run.folder], r"--ensemble .*run: its M is in the ensemble already"),
        ([tmp_path], r"mdnrnn\.pt is missing"),
    ):
        with pytest.raises(UserError, match=sentence):
            load_ensemble(folders, run, networks, starts)
    foreign = make_toy_member(tmp_path / "foreign", run, 2)
    write_json(Run(foreign).manifest, {"format": 1, "env": "Dot-v0", "stages": {}})
    with pytest.raises(UserError, match=r"--ensemble .*foreign: it is a run of Dot-v0, not of CarRacing-v3: give run"):
        load_ensemble([foreign], run, networks, starts)
    memory = networks.memory.dreaming(starts.pays)
    for changed, sentence in (
        ({"masked": HIDDEN + 1}, f"--ensemble .*good: its M has masked {HIDDEN}, that of .* {HIDDEN + 1}: give only"),
        ({"chances": {"noise": ("normal", Z)}}, r"--ensemble .*good: its M has chances .*, that of .*: give only"),
    ):
        unlike: Any = toy_mdnrnn()
        dreams = SimpleNamespace(**{"masked": memory.masked, "chances": memory.chances, **changed})
        unlike.dreaming = lambda pays, dreams=dreams: dreams
        with pytest.raises(UserError, match=sentence):
            load_ensemble([good], run, replace(networks, memory=unlike), starts)
    elsewhere = replace(starts, episode=starts.episode + 100)
    with pytest.raises(UserError, match=r"latents\.h5 lacks moments that starts\.npz refers to"):
        load_ensemble([good], run, networks, elsewhere)
    run.latents.unlink()
    with pytest.raises(UserError, match=r"latents\.h5 is missing"):
        load_ensemble([good], run, networks, starts)


@torch.no_grad()
def test_the_same_sampling_at_a_temperature_as_m_itself(networks: Networks, starts: Starts) -> None:
    """In distribution: many draws of the dream and of `wm.memory.mdnrnn.sample` have the same moments."""
    count, tau = 20_000, 1.3
    state = {name: torch.from_numpy(part[:1]).expand(count, -1) for name, part in starts.state.items()}
    z, h, c = state.values()
    a = torch.tensor([[0.1, 0.2, 0.0]]).expand(count, -1)
    prediction, _ = mdnrnn_of(networks)(z[:, None], a[:, None], (h[None].contiguous(), c[None].contiguous()))
    plain = sample(prediction, tau, torch.Generator().manual_seed(0))[:, 0]
    generator = torch.Generator().manual_seed(1)
    noise = {"noise": torch.randn(count, Z, generator=generator), "uniform": torch.rand(count, Z, generator=generator)}
    dreamt = dream_step(networks.memory.dreaming(starts.pays, tau), state, a, noise)[0]["z"]
    spread = mixture_moments(prediction)[1][0, 0].exp()
    assert ((dreamt.mean(0) - plain.mean(0)).abs() < 0.05 * spread).all()
    assert ((dreamt.std(0) / plain.std(0) - 1).abs() < 0.05).all()


def test_hidden_sizes_fit(networks: Networks, starts: Starts) -> None:
    assert starts.state["h"].shape == starts.state["c"].shape == (SMALL.starts, HIDDEN)
    assert networks.validation == CONFIG["validation"]
