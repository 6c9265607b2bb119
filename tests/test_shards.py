"""Rollout shards: round trips of any episode, independence of the sharding, and what is refused how."""

import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wm.run.errors import MachineError, UserError
from wm.store import shards
from wm.store.columns import ColumnFile
from wm.store.episode import Episode
from wm.store.shards import Rollouts, write_shard


def drawn(index: int, steps: int | None = None) -> Episode:
    """An episode that is a function of its index."""
    rng = np.random.default_rng(index)
    steps = int(rng.integers(1, 40)) if steps is None else steps
    return Episode(
        index=index,
        seed=1000 + index,
        policy=("brownian", "random_network")[index % 2],
        env_id="wm/CarRacing-v3",
        env_version="1.4.0",
        observations=rng.integers(0, 256, (steps + 1, 8, 8, 3), dtype=np.uint8),
        actions=rng.normal(size=(steps, 3)).astype(np.float32),
        rewards=rng.normal(size=steps).astype(np.float32),
        terminated=bool(index % 3 == 0),
        truncated=bool(index % 3 == 1),
        measure=float(rng.random()),
    )


def assert_same(found: Episode, wanted: Episode) -> None:
    for name in ("observations", "actions", "rewards"):
        a, b = getattr(found, name), getattr(wanted, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    parts = [{k: v for k, v in vars(e).items() if not isinstance(v, np.ndarray | float)} for e in (found, wanted)]
    assert parts[0] == parts[1]
    np.testing.assert_equal(found.measure, wanted.measure)
    assert found.digest() == wanted.digest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven episodes in three shards whose names are not in the order of the episodes."""
    write_shard(tmp_path / "c.h5", [drawn(0), drawn(4)])
    write_shard(tmp_path / "a.h5", [drawn(5), drawn(2), drawn(1)])
    write_shard(tmp_path / "b.h5", [drawn(6), drawn(3)])
    return tmp_path


# --- round trips -----------------------------------------------------------------------------------------

dtypes = st.sampled_from(["u1", "i2", "i8", "f4", "f8", "?", ">i4", ">f4"])
shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)


def arrays(dtype: str, shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    kind = np.dtype(dtype)
    elements: dict[str, Any] = {"allow_nan": False, "allow_infinity": False} if kind.kind == "f" else {}
    return hnp.arrays(kind, shape, elements=hnp.from_dtype(kind, **elements))


@st.composite
def alike(draw: st.DrawFn) -> list[Episode]:
    """A few episodes of one environment of odd shapes and dtypes."""
    seen, done, seen_type, done_type = draw(shapes), draw(shapes), draw(dtypes), draw(dtypes)
    episodes = []
    for index in range(draw(st.integers(1, 3))):
        steps = draw(st.integers(1, 6))
        episodes.append(
            Episode(
                index=index,
                seed=draw(st.integers(0, 2**63 - 1)),
                policy=draw(st.sampled_from(["uniform", "brownian", "é"])),
                env_id="Some/Env-v0",
                env_version="1.4.0",
                observations=draw(arrays(seen_type, (steps + 1, *seen))),
                actions=draw(arrays(done_type, (steps, *done))),
                rewards=draw(arrays("f4", (steps,))),
                terminated=draw(st.booleans()),
                truncated=draw(st.booleans()),
                measure=draw(st.floats(0, 1)),
            )
        )
    return episodes


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(alike())
def test_round_trip_of_any_shape_and_dtype(tmp_path_factory: pytest.TempPathFactory, episodes: list[Episode]) -> None:
    folder = tmp_path_factory.mktemp("odd")
    write_shard(folder / "x.h5", episodes)
    for found, wanted in zip(Rollouts(folder), episodes, strict=True):
        assert_same(found, wanted)


def test_cartpole_round_trip(tmp_path: Path) -> None:
    env = gymnasium.make("CartPole-v1")
    env.action_space.seed(0)
    seen = [env.reset(seed=5)[0]]
    done, rewards, terminated, truncated = [], [], False, False
    while not (terminated or truncated):
        done.append(env.action_space.sample())
        following, reward, terminated, truncated, _ = env.step(done[-1])
        seen.append(following)
        rewards.append(reward)
    wanted = Episode(
        index=0,
        seed=5,
        policy="uniform",
        env_id="CartPole-v1",
        env_version=gymnasium.__version__,
        observations=np.stack(seen),
        actions=np.array(done),
        rewards=np.array(rewards, np.float32),
        terminated=terminated,
        truncated=truncated,
    )
    assert wanted.actions.shape == (len(done),)
    write_shard(tmp_path / "x.h5", [wanted])
    assert_same(Rollouts(tmp_path).episode(0), wanted)


def test_the_last_observation_is_kept(folder: Path) -> None:
    rollouts = Rollouts(folder)
    for i in range(7):
        wanted = drawn(i)
        last = rollouts.read(i, wanted.length, wanted.length + 1)
        np.testing.assert_array_equal(last[0], wanted.observations[-1])


def test_reads_parts_of_an_episode_and_nothing_beyond_it(folder: Path) -> None:
    rollouts = Rollouts(folder)
    wanted = drawn(2)
    np.testing.assert_array_equal(rollouts.read(2, 1, 4), wanted.observations[1:4])
    assert len(rollouts.read(2, 3, 3)) == 0
    for start, stop in ((-1, 2), (0, wanted.length + 2), (3, 2)):
        with pytest.raises(IndexError):
            rollouts.read(2, start, stop)


# --- sharding --------------------------------------------------------------------------------------------


def test_order_is_by_episode_and_the_fingerprint_knows_no_shards(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rollouts = Rollouts(folder)
    assert rollouts.table["index"].tolist() == list(range(7))
    assert rollouts.table["seed"].tolist() == [1000 + i for i in range(7)]
    assert rollouts.table["length"].tolist() == [drawn(i).length for i in range(7)]
    for i, found in enumerate(rollouts):
        assert_same(found, drawn(i))
    other = tmp_path_factory.mktemp("other")
    write_shard(other / "all.h5", [drawn(i) for i in range(7)])
    assert Rollouts(other).fingerprint() == rollouts.fingerprint()
    one = tmp_path_factory.mktemp("changed")
    write_shard(one / "all.h5", [replace(drawn(i), seed=7) if i == 6 else drawn(i) for i in range(7)])
    assert Rollouts(one).fingerprint() != rollouts.fingerprint()


def test_the_last_observation_counts_in_the_fingerprint(tmp_path: Path) -> None:
    wanted = drawn(0)
    changed = wanted.observations.copy()
    changed[-1] ^= 1
    for name, episode in (("a", wanted), ("b", replace(wanted, observations=changed))):
        write_shard(tmp_path / name / "x.h5", [episode])
    assert Rollouts(tmp_path / "a").fingerprint() != Rollouts(tmp_path / "b").fingerprint()


@given(st.integers(2, 200), st.floats(0.001, 0.999), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_split_is_of_whole_episodes_with_at_least_one_on_each_side(n: int, validation: float, seed: int) -> None:
    train, held_out = shards.split(n, validation, seed)
    assert len(train) >= 1
    assert len(held_out) >= 1
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(n))
    assert abs(len(held_out) - validation * n) <= 1
    again = shards.split(n, validation, seed)
    assert [part.tolist() for part in again] == [train.tolist(), held_out.tolist()]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.floats(0.001, 0.999), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_what_was_split_before_stays_on_its_side(grown: list[int], validation: float, seed: int) -> None:
    counts = np.cumsum([2, *grown]).tolist()
    sides = [shards.split(n, validation, seed, counts[:i]) for i, n in enumerate(counts)]
    for n, (training, held_out) in zip(counts, sides, strict=True):
        assert sorted([*training.tolist(), *held_out.tolist()]) == list(range(n))
        for i, side in enumerate((training, held_out)):
            assert side[side < counts[0]].tolist() == sides[0][i].tolist()
            assert side.tolist() == [number for number in sides[-1][i].tolist() if number < n]


@pytest.mark.parametrize("earlier", [(1,), (9,), (8,), (4, 4), (5, 3)])
def test_earlier_counts_that_are_none(earlier: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"--earlier [\d ]+ is not valid: give ascending numbers from 2 to below 8"):
        shards.split(8, 0.3, 0, earlier)


def test_the_split_depends_on_the_seed(folder: Path) -> None:
    rollouts = Rollouts(folder)
    assert len({tuple(rollouts.split(0.3, seed)[1].tolist()) for seed in range(10)}) > 1


@pytest.mark.parametrize("validation", [0.0, 1.0, -0.1, float("nan")])
def test_a_split_needs_a_share(folder: Path, validation: float) -> None:
    with pytest.raises(UserError, match="--validation"):
        Rollouts(folder).split(validation, 0)


def test_one_episode_cannot_be_split(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.h5", [drawn(0)])
    with pytest.raises(UserError, match="EPISODES="):
        Rollouts(tmp_path).split(0.5, 0)


def test_many_shards_open_quickly_are_checked_once_and_few_stay_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first in range(0, 160, 4):
        write_shard(tmp_path / f"{first:06d}.h5", [drawn(i, steps=2) for i in range(first, first + 4)])
    monkeypatch.setattr(shards, "OPEN_FILES", 8)
    checked: list[Path] = []
    check = ColumnFile._check

    def noted(file: ColumnFile, *rest: Any) -> None:
        checked.append(file.path)
        check(file, *rest)

    monkeypatch.setattr(ColumnFile, "_check", noted)
    start = time.perf_counter()
    rollouts = Rollouts(tmp_path)
    assert time.perf_counter() - start < 4.0  # 40 shards; about 0.05 s when nothing else runs
    assert held_open(tmp_path) == 0
    for i in np.random.default_rng(0).permutation(160).tolist():
        np.testing.assert_array_equal(rollouts.read(i, 0, 3), drawn(i, steps=2).observations)
        assert held_open(tmp_path) <= 8
    assert held_open(tmp_path) == 8
    assert len(checked) == 40


def held_open(folder: Path) -> int:
    """Open files in a folder."""
    links = []
    for handle in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that lists them
            links.append(os.readlink(f"/proc/self/fd/{handle}"))
    return sum(str(folder) in link for link in links)


def test_a_shard_that_was_replaced_while_it_was_not_open_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.h5", [drawn(0, steps=9)])
    rollouts = Rollouts(tmp_path)
    write_shard(tmp_path / "x.h5", [drawn(0, steps=5)])
    with pytest.raises(UserError, match=r"x\.h5 is damaged \(it has been replaced by another file\)"):
        rollouts.read(0, 0, 10)


# --- what is refused -------------------------------------------------------------------------------------


def read_all(folder: Path) -> list[str]:
    return [episode.digest() for episode in Rollouts(folder)]


@pytest.mark.parametrize("made", [True, False])
def test_an_empty_folder_names_the_command(tmp_path: Path, made: bool) -> None:
    folder = tmp_path / "rollouts"
    if made:
        folder.mkdir()
    with pytest.raises(UserError, match=rf"{re.escape(str(folder))} .*`make collect`"):
        Rollouts(folder)


def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    write_shard(path, [drawn(0, steps=80), drawn(1, steps=3)])
    whole = path.read_bytes()
    wanted = read_all(tmp_path)
    rng = np.random.default_rng(0)
    refused = []
    for position in rng.choice(len(whole), 250, replace=False):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            found = read_all(tmp_path)
        except UserError as error:
            refused.append(str(error))
        else:
            assert found == wanted
    assert len(refused) > 100  # the others hit unused bytes
    for sentence in refused:
        assert sentence.startswith(str(path))
        assert "make collect" in sentence
        assert "\n" not in sentence


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_shard_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "x.h5"
    write_shard(path, [drawn(0), drawn(1)])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=rf"{re.escape(str(path))} .*`make collect`"):
        read_all(tmp_path)


def test_a_foreign_file_is_refused(folder: Path) -> None:
    with h5py.File(folder / "foreign.h5", "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(UserError, match=r"foreign\.h5 is not a rollouts file: move it away"):
        Rollouts(folder)
    (folder / "foreign.h5").write_text("no HDF5 at all")
    with pytest.raises(UserError, match=r"foreign\.h5 .*`make collect`"):
        Rollouts(folder)


def test_a_shard_without_episodes_is_refused(folder: Path) -> None:
    write_shard(folder / "empty.h5", [])
    with pytest.raises(UserError, match=r"empty\.h5 holds no episodes: move it away"):
        Rollouts(folder)


def test_a_shard_of_another_format_is_refused(folder: Path) -> None:
    with h5py.File(folder / "a.h5", "r+") as file:
        file.attrs["format"] = 999
    with pytest.raises(UserError, match=r"a\.h5 is not of format"):
        Rollouts(folder)


def test_a_doubled_episode_is_refused(folder: Path) -> None:
    write_shard(folder / "d.h5", [drawn(3)])
    with pytest.raises(UserError, match=r"b\.h5 and .*d\.h5 both hold episode 3"):
        Rollouts(folder)


def test_another_environments_shard_is_refused(folder: Path) -> None:
    other = drawn(9)
    write_shard(folder / "d.h5", [replace(other, observations=other.observations[:, :4])])
    with pytest.raises(UserError, match=r"d\.h5 has other observations"):
        Rollouts(folder)


@pytest.mark.parametrize("column", ["step/rewards", "step/actions"])
def test_numbers_that_are_not_finite_are_refused(folder: Path, column: str) -> None:
    with h5py.File(folder / "a.h5", "r+") as file:
        file[column][1] = np.nan
    with pytest.raises(UserError, match=r"a\.h5 .*not finite"):
        read_all(folder)


def test_columns_of_other_lengths_are_refused(folder: Path) -> None:
    with h5py.File(folder / "a.h5", "r+") as file:
        file["step/rewards"].resize(len(file["step/rewards"]) - 1, axis=0)
    with pytest.raises(UserError, match=r"a\.h5 .*step/rewards"):
        Rollouts(folder)


# --- writing ---------------------------------------------------------------------------------------------


def test_a_shard_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def broken() -> object:
        yield drawn(0)
        assert not list(tmp_path.glob("[!.]*"))  # nothing under its name while it is written
        raise RuntimeError("killed here")

    with pytest.raises(RuntimeError, match="killed here"):
        write_shard(tmp_path / "x.h5", broken())  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_writer_are_not_read(folder: Path) -> None:
    (folder / ".a-1234.tmp.h5").write_bytes(b"half a shard")
    assert len(Rollouts(folder)) == 7


def test_every_dataset_has_checksums_and_chunks(folder: Path) -> None:
    with h5py.File(folder / "a.h5") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        assert {"episodes", "frame/observations", "step/actions", "step/rewards"} <= set(names)
        assert all(file[name].fletcher32 and file[name].chunks for name in names)


def test_a_name_too_long_for_the_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="policy"):
        write_shard(tmp_path / "x.h5", [replace(drawn(0), policy="p" * 100)])


def test_column_files_close(folder: Path) -> None:
    file = shards.open_shard(folder / "a.h5")
    file.close()
    assert len(file.table) == 3
    assert len(file.read("step/rewards", 0, 0, 2)) == 2  # it opens again
    file.close()
    file.path.unlink()
    with pytest.raises(UserError, match=r"a\.h5 cannot be read \(No such file or directory\): restore it"):
        file.read("step/rewards", 0, 0, 2)


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_shard_that_is_open_elsewhere_is_not_called_damaged(folder: Path, mode: str) -> None:
    rollouts = Rollouts(folder)
    with h5py.File(folder / "a.h5", mode):
        for read in (lambda: Rollouts(folder), lambda: list(rollouts)):
            with pytest.raises(MachineError, match=r"a\.h5 cannot be read while it is open elsewhere .*: close it"):
                read()
    assert len(list(rollouts)) == 7


WRITER = """
import sys, h5py
with h5py.File(sys.argv[1], "r+", libver="latest") as file:
    file["x"] = 1
    file.flush()
    print("open", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("locking", ["FALSE", "TRUE"])
def test_a_shard_that_another_program_writes_is_not_called_damaged(folder: Path, locking: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder / "a.h5")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"open\n"
        reader = "import sys, pathlib, wm.store.shards as shards; shards.Rollouts(pathlib.Path(sys.argv[1]))"
        done = subprocess.run(
            [sys.executable, "-c", reader, str(folder)],
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "HDF5_USE_FILE_LOCKING": locking},
            capture_output=True,
            text=True,
            check=False,
        )
        writer.communicate(b"")
    assert "wm.run.errors.MachineError: " in done.stderr
    locked = "a.h5 cannot be read (Resource temporarily unavailable): close it where it is open"
    assert (locked if locking == "TRUE" else "a.h5 cannot be read while it is open elsewhere") in done.stderr


def test_rows_that_nobody_wrote_are_no_table(tmp_path: Path) -> None:
    """A table that claims 2**50 rows is refused before memory is asked for them."""
    write_shard(tmp_path / "x.h5", [drawn(0)])
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        del file["episodes"]
        file.create_dataset("episodes", shape=(2**50,), dtype=shards.ROW, chunks=(64,), fletcher32=True)
    with pytest.raises(UserError, match=r"x\.h5 is damaged \(its episodes are not complete\)"):
        Rollouts(tmp_path)
