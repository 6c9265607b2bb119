"""The chance of the record: with the recorded actions a dream goes as the record did."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.toy_dream import Z, make_population, make_toy_member, make_toy_run
from wm.config.presets import SMOKE
from wm.contracts import State
from wm.dream.chance import LARGEST, DreamNoise, Record, empty_record, fill_record, use_recorded
from wm.dream.ensemble import load_ensemble, load_records
from wm.dream.networks import Networks, load_networks, split_latents
from wm.dream.starts import find_starts, new_starts
from wm.dream.step import dream_step
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.store.latents import Latents
from wm.store.starts import Starts

NAMES = ("uniform", "noise")

HORIZON = 12
SMALL = replace(SMOKE.dream, starts=10, start_after=20, horizon=HORIZON, unpaid=2, dreams=4, noise="recorded")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_toy_run(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def networks(run: Run) -> Networks:
    return load_networks(run)


@pytest.fixture(scope="module")
def starts(run: Run, networks: Networks) -> Starts:
    return find_starts(run, networks, SMALL)


@torch.no_grad()
def test_recorded_actions_lead_where_they_led(run: Run, networks: Networks, starts: Starts) -> None:
    (record,) = load_records(run, networks, starts, [], HORIZON)
    assert np.abs(record.noise["noise"]).max() < LARGEST  # nothing was cut, or it would not come out
    memory, latents = networks.memory.dreaming(starts.pays), Latents(run.latents)
    for n, (index, first) in enumerate(zip(starts.episode.tolist(), starts.step.tolist(), strict=True)):
        episode = latents.episode(index)  # here an episode's index is its place
        assert record.steps[n] == min(HORIZON, len(episode.actions) - first) > 0
        state: State = {name: torch.from_numpy(part[n]) for name, part in starts.state.items()}
        for t in range(record.steps[n]):
            action = torch.from_numpy(episode.actions[first + t])
            draws = {name: torch.from_numpy(part[t, n]) for name, part in record.noise.items()}
            state, *_ = dream_step(memory, state, action, draws)
            # The state at a start is rounded to half precision, and this M is a wild one.
            np.testing.assert_allclose(state["z"].numpy(), episode.mu[first + t + 1], atol=0.1)


def test_what_m_held_for_impossible_is_cut(run: Run, networks: Networks, starts: Starts) -> None:
    episode = Latents(run.latents).episode(0)
    far = replace(episode, mu=episode.mu * 1e4)
    record = empty_record(1, 5, networks.memory.dreaming(starts.pays).chances)
    fill_record(record, networks.memory, far, np.array([True]), np.array([3]))
    assert np.abs(record.noise["noise"]).max() == LARGEST
    assert record.noise["uniform"].min() >= 0
    assert 0 < record.noise["uniform"].max() < 1
    assert record.steps.tolist() == [5]


def test_each_m_recalls_its_own_and_draws_past_the_end() -> None:
    rng = np.random.default_rng(0)

    records = [
        Record({name: rng.random((6, 3, Z), np.float32) for name in NAMES}, np.array(steps), frozenset({"noise"}))
        for steps in ([6, 2, 0], [6, 2, 4])
    ]
    noise = {name: rng.random((6, 5, Z), np.float32) for name in NAMES}
    drawn = DreamNoise(np.array([0, 1, 2, 1, 2]), noise, None, np.array([0, 0, 0, 1, 1]))
    before = {name: part.copy() for name, part in noise.items()}
    found = use_recorded(drawn, records)
    for s, (start, member) in enumerate(zip(drawn.starts, drawn.members, strict=True)):
        for t in range(6):
            known = t < records[member].steps[start]
            for name in NAMES:
                wanted = records[member].noise[name][t, start] if known else drawn.noise[name][t, s]
                np.testing.assert_array_equal(found.noise[name][t, s], wanted)
    for name in NAMES:
        np.testing.assert_array_equal(drawn.noise[name], before[name])
    np.testing.assert_array_equal(found.starts, drawn.starts)


def test_a_population_draws_recorded_noise(run: Run, networks: Networks, starts: Starts, tmp_path: Path) -> None:
    others = load_ensemble([make_toy_member(tmp_path, run, 1)], run, networks, starts)
    records = load_records(run, networks, starts, others, HORIZON)
    assert len(records) == 2
    dream_noise = make_population(networks, starts, SMALL, others=others, records=records).draw_noise(0, 1)
    plain = make_population(networks, starts, SMALL, others=others).draw_noise(0, 1)
    wanted = use_recorded(plain, records)
    for name in NAMES:
        assert not np.allclose(records[0].noise[name], records[1].noise[name])
        assert not np.array_equal(dream_noise.noise[name], plain.noise[name])
        np.testing.assert_array_equal(dream_noise.noise[name], wanted.noise[name])
    for name in ("starts", "members"):
        np.testing.assert_array_equal(getattr(dream_noise, name), getattr(wanted, name))


def test_a_record_without_the_moments_is_refused(run: Run, networks: Networks, starts: Starts, tmp_path: Path) -> None:
    copy = Run(shutil.copytree(run.folder, tmp_path / "run"))
    with pytest.raises(UserError, match=r"lacks moments that starts\.npz refers to"):
        load_records(copy, networks, replace(starts, step=starts.step + 1000), [], HORIZON)
    copy.latents.unlink()
    with pytest.raises(UserError, match=r"latents\.h5 is missing"):
        load_records(copy, networks, starts, [], HORIZON)


def test_starts_can_be_fresh(run: Run, networks: Networks) -> None:
    _, training, _ = split_latents(run, networks)
    for fresh, wanted in ((2, training[-2:]), (0, training)):
        found = new_starts(run, networks, replace(SMALL, starts=200, fresh=fresh))
        assert set(found.episode) == set(wanted.tolist())  # here an episode's index is its place
