"""Every number once: seed ranges never overlap, and the presets are what they say."""

from dataclasses import asdict, replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wm.config.bounds import changed_fields
from wm.config.presets import LAPTOP, PAPER, PRESETS, ROUNDS, SCOUT, SMOKE, STOCK_ENV, canonical
from wm.config.seeds import (
    COLLECT_SEEDS,
    EVALUATE_SEEDS,
    EVOLVE_SEEDS,
    PROBE_SEEDS,
    SEEDS_PER_RUN,
    SELECT_SEEDS,
    SeedRange,
    track_seeds,
)
from wm.envs import TASKS, find_task

RANGES = (COLLECT_SEEDS, EVOLVE_SEEDS, PROBE_SEEDS, SELECT_SEEDS, EVALUATE_SEEDS)
RUN_SEEDS = st.integers(0, 99)


def disjoint(one: SeedRange, other: SeedRange) -> bool:
    return one.stop <= other.start or other.stop <= one.start


def test_ranges_of_different_uses_are_disjoint() -> None:
    assert all(disjoint(one, other) for one, other in combinations(RANGES, 2))
    assert all(0 <= r.start < r.stop <= 2**31 for r in RANGES)  # what every seeding function takes


@given(RUN_SEEDS, RUN_SEEDS, st.sampled_from([COLLECT_SEEDS, EVOLVE_SEEDS, PROBE_SEEDS]))
def test_parts_of_two_run_seeds_are_disjoint_and_within_the_range(one: int, other: int, whole: SeedRange) -> None:
    part = track_seeds(whole, one)
    assert whole.start <= part.start < part.stop <= whole.stop
    assert part.stop - part.start == SEEDS_PER_RUN
    assert one == other or disjoint(part, track_seeds(whole, other))


@given(RUN_SEEDS, st.integers(0, SEEDS_PER_RUN - 1))
def test_a_seed_of_one_use_is_in_no_other(run_seed: int, index: int) -> None:
    seed = track_seeds(EVOLVE_SEEDS, run_seed)[index]
    assert [seed in r for r in RANGES] == [False, True, False, False, False]


@pytest.mark.parametrize("index", [-1, SEEDS_PER_RUN, 10**12])
def test_an_index_outside_of_a_part_is_an_error(index: int) -> None:
    part = track_seeds(EVOLVE_SEEDS, 3)
    assert part[0] == part.start
    assert part[SEEDS_PER_RUN - 1] == part.stop - 1
    with pytest.raises(IndexError, match="outside"):
        part[index]


def test_presets() -> None:
    assert PRESETS[STOCK_ENV] == dict(smoke=SMOKE, scout=SCOUT, rounds=ROUNDS, laptop=LAPTOP, paper=PAPER)


def test_what_is_trained_on_and_what_is_scored() -> None:
    assert canonical("wm/CarRacing-v3") == canonical("CarRacing-v3") == "CarRacing-v3"
    assert find_task("wm/CarRacing-v3") is find_task("CarRacing-v3")
    assert find_task("CarRacing-v3").id(train=True) == "wm/CarRacing-v3"
    assert canonical("LunarLander-v3") == "LunarLander-v3"
    assert canonical("wm/Grid-v0") == "wm/Grid-v0"  # one of our own, not a faster form of another
    for task in TASKS.values():
        assert canonical(task.id(train=True)) == task.env_id


def test_the_papers_numbers() -> None:
    collect, vae, mdnrnn, controller = PAPER.collect, PAPER.vae, PAPER.mdnrnn, PAPER.controller
    assert (collect.episodes, collect.max_steps) == (10_000, 1000)
    assert (vae.z, vae.batch, vae.lr, vae.free_nats) == (32, 100, 1e-4, 0.5)
    assert vae.updates * vae.batch == 10 * collect.episodes * collect.max_steps  # ten epochs
    assert (mdnrnn.hidden, mdnrnn.mixtures, mdnrnn.length, mdnrnn.batch, mdnrnn.updates) == (256, 5, 1000, 100, 4000)
    assert (mdnrnn.lr, mdnrnn.lr_final, mdnrnn.lr_decay, mdnrnn.clip) == (1e-3, 1e-5, 0.9999, 1.0)
    assert (controller.popsize, controller.tracks, controller.sigma0, controller.generations) == (64, 16, 0.1, 1800)
    assert PAPER.evaluate.episodes == 100


def test_the_smoke_preset_is_small() -> None:
    assert SMOKE.collect.episodes * SMOKE.collect.max_steps <= 1000
    assert SMOKE.vae.updates * SMOKE.vae.batch <= 2000
    assert SMOKE.mdnrnn.updates * SMOKE.mdnrnn.batch * SMOKE.mdnrnn.length <= 20_000
    c = SMOKE.controller
    assert c.generations * c.max_steps * (c.popsize * c.tracks + c.select_tracks) <= 2000
    assert SMOKE.evaluate.episodes * SMOKE.evaluate.max_steps <= 200
    assert SMOKE.probe.episodes * SMOKE.probe.max_steps <= 300


@pytest.mark.parametrize("name", ["smoke", "scout", "laptop"])
def test_smaller_presets_keep_the_papers_networks(name: str) -> None:
    preset = PRESETS[STOCK_ENV][name]
    assert preset.vae.z == PAPER.vae.z
    assert (preset.mdnrnn.hidden, preset.mdnrnn.mixtures) == (PAPER.mdnrnn.hidden, PAPER.mdnrnn.mixtures)


def test_changed_fields_names_what_changed_but_not_totals() -> None:
    old = asdict(SMOKE.controller)
    assert list(changed_fields(old, replace(SMOKE.controller, generations=99))) == []
    assert list(changed_fields(old, replace(SMOKE.controller, popsize=9, tracks=2))) == [
        "popsize was 4, is 9",
        "tracks was 1, is 2",
    ]


def test_work_done_with_an_option_that_is_no_more_has_changed() -> None:
    old = asdict(SMOKE.iterate)
    assert list(changed_fields({**old, "go_on": False, "later_from": 1}, SMOKE.iterate)) == []
    assert list(changed_fields({**old, "go_on": True}, SMOKE.iterate)) == ["go_on was True, is no longer supported"]


def test_old_work_with_names_and_options_of_its_time_goes_on() -> None:
    old = {**asdict(SMOKE.mdnrnn), "reward": "tile"}
    assert list(changed_fields(old, SMOKE.mdnrnn)) == []
    assert list(changed_fields(old, replace(SMOKE.mdnrnn, reward="value"))) == ["reward was pulse, is value"]
    for config, name, default in ((SMOKE.vae, "road_weight", 1.0), (SMOKE.probe, "off_road", 12.0)):
        old = asdict(config)
        assert list(changed_fields({**old, name: default}, config)) == []
        assert list(changed_fields({**old, name: 5.0}, config)) == [f"{name} was 5.0, is no longer supported"]


def test_a_field_that_old_work_lacks_had_its_default() -> None:
    old = {name: value for name, value in asdict(SMOKE.controller).items() if name != "whiten"}
    default = type(SMOKE.controller).whiten
    assert list(changed_fields(old, replace(SMOKE.controller, whiten=default))) == []
    assert list(changed_fields(old, replace(SMOKE.controller, whiten=0.5))) == [f"whiten was {default}, is 0.5"]
