import ctypes
import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import wm.envs  # noqa: F401 -- registers wm/CarRacing-v3
from tests.bench_env import DASHBOARD, ZOOM_STEPS, drive_towards, follow_track, make
from wm.envs.car_racing import fast as drawing


def steering_wildly(env: Any, rng: np.random.Generator) -> np.ndarray:
    """Full throttle and a wandering wheel: leaves the road within seconds."""
    return np.array([np.sin(env.t * 3) + rng.normal(), 1, rng.random() < 0.1], np.float32)


def leaving_the_field(env: Any, rng: np.random.Generator) -> np.ndarray:
    """Across the grass, outwards."""
    x, y = env.car.hull.position
    steer, _, _ = drive_towards(env, 10 * x, 10 * y)
    return np.array([0.4 * steer, 0.1, 0], np.float32)  # gently, or it spins


def play_both(seed: int, steps: int, driver: Any = follow_track, reset: dict | None = None, **kwargs: Any) -> list:
    """Play stock and fast side by side: [(stock's step, fast's step), ...], the resets first, until one ends."""
    stock, fast = make("CarRacing-v3", **kwargs), make("wm/CarRacing-v3", **kwargs)
    rng = np.random.default_rng(seed)
    first = [(*env.reset(seed=seed, **(reset or {})), None, None, None) for env in (stock, fast)]
    assert stock.track == fast.track
    pairs: list = [tuple(first)]
    for _ in range(steps):
        action = driver(stock, rng)
        pairs.append((stock.step(action), fast.step(action)))
        if pairs[-1][0][2]:
            break
    assert stock.np_random.bit_generator.state == fast.np_random.bit_generator.state
    for body, other in zip(stock.world.bodies, fast.world.bodies, strict=True):
        assert (tuple(body.position), body.angle) == (tuple(other.position), other.angle)
    return pairs


def differences(pairs: list) -> np.ndarray:
    """Fast minus stock, i16[T, 96, 96, 3]."""
    return np.array([fast[0].astype(np.int16) - stock[0] for stock, fast in pairs])


def quick_to_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop stock from drawing, for tests that are about all the rest."""
    from gymnasium.envs.box2d.car_racing import CarRacing

    monkeypatch.setattr(CarRacing, "_render", lambda self, mode: None)


FULL = [pytest.mark.faults, pytest.mark.slow]
"""Marks of what only `make test-faults` runs."""


@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(seed, marks=FULL) for seed in range(5, 20))])
def test_driving_equals_stock_bit_for_bit(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_to_draw(monkeypatch)
    driver = steering_wildly if seed % 2 else follow_track
    pairs = play_both(seed, 400, driver)
    assert all(stock[1:] == fast[1:] for stock, fast in pairs)
    assert len({stock[1] for stock, _ in pairs[1:]}) > 3  # tiles were reached


def test_leaving_the_field_equals_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_to_draw(monkeypatch)
    pairs = play_both(3, 400, leaving_the_field)
    assert all(stock[1:] == fast[1:] for stock, fast in pairs)
    assert pairs[-1][1][1:] == (-100, True, False, {"lap_finished": False})


def test_a_whole_lap_equals_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_to_draw(monkeypatch)
    pairs = play_both(0, 2500, lambda env, rng: follow_track(env, rng, noise=0))
    assert all(stock[1:] == fast[1:] for stock, fast in pairs)
    assert pairs[-1][1][4] == {"lap_finished": True}


def test_time_limit_and_reseeding_equal_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_to_draw(monkeypatch)
    action = np.array([0.1, 0.2, 0], np.float32)
    seen: list[list] = []
    for env_id in ("CarRacing-v3", "wm/CarRacing-v3"):
        env = gymnasium.make(env_id, disable_env_checker=True)
        assert env.spec is not None
        assert (env.spec.max_episode_steps, env.spec.reward_threshold) == (1000, 900)
        seen.append([])
        for seed in (5, None, 5):  # with no seed the random stream goes on
            env.reset(seed=seed)
            steps = [env.step(action)[1:] for _ in range(1000)]
            seen[-1].append((env.get_wrapper_attr("track"), steps))
    assert seen[0] == seen[1]
    assert seen[1][0] == seen[1][2]
    assert seen[1][0][0] != seen[1][1][0]
    assert seen[1][0][1][-1][2]  # truncated


def test_a_track_taken_again_equals_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    quick_to_draw(monkeypatch)
    stock, fast = make("CarRacing-v3"), make("wm/CarRacing-v3")
    made = []
    monkeypatch.setattr(drawing._Field, "new_track", lambda self, *args: made.append(args))
    monkeypatch.setattr(drawing._Field, "repaint", lambda self, index: None)
    monkeypatch.setattr(fast.unwrapped, "_render", lambda mode: None)
    tracks = []
    for n, seed in enumerate((5, 5, 5, 6, 5, None, 5)):
        rng = np.random.default_rng(n)
        for env in (stock, fast):
            env.reset(seed=seed)
        tracks.append(fast.track)
        assert fast.track == stock.track
        assert fast.np_random.bit_generator.state == stock.np_random.bit_generator.state
        for _ in range(250):
            action = (steering_wildly if n % 2 else follow_track)(stock, rng)
            assert stock.step(action)[1:] == fast.step(action)[1:]
        assert stock.tile_visited_count == fast.tile_visited_count
        for body, other in zip(stock.world.bodies, fast.world.bodies, strict=True):
            assert (tuple(body.position), body.angle) == (tuple(other.position), other.angle)
    assert tracks[0] == tracks[1] == tracks[2] != tracks[3]
    assert len(made) == 5  # not for the second and third


def test_a_track_taken_again_looks_new() -> None:
    used, fresh = make("wm/CarRacing-v3"), make("wm/CarRacing-v3")
    for n in range(2):
        used.reset(seed=8)
        rng = np.random.default_rng(n)
        for _ in range(150):
            used.step(follow_track(used, rng))
    first, rng = (env.reset(seed=8)[0] for env in (used, fresh)), np.random.default_rng(2)
    np.testing.assert_array_equal(*first)
    for _ in range(150):
        action = follow_track(fresh, rng)
        np.testing.assert_array_equal(used.step(action)[0], fresh.step(action)[0])


def test_skid_marks_equal_stock() -> None:
    stock, fast = (make(env_id) for env_id in ("CarRacing-v3", "wm/CarRacing-v3"))
    for env in (stock, fast):
        env.reset(seed=1)
    rng = np.random.default_rng(1)
    for _ in range(200):
        action = steering_wildly(stock, rng)
        for env in (stock, fast):
            env.step(action)
    marks = [[(p.color, p.grass, p.poly) for p in env.car.particles] for env in (stock, fast)]
    assert len(marks[0]) > 5
    assert marks[0] == marks[1]


def test_discrete_actions_equal_stock() -> None:
    pairs = play_both(4, 120, lambda env, rng: int(rng.choice(5, p=[0.1, 0.2, 0.2, 0.4, 0.1])), continuous=False)
    assert all(stock[1:] == fast[1:] for stock, fast in pairs)
    assert np.abs(differences(pairs)).mean() < 0.5


def test_random_colours_equal_stock() -> None:
    pairs = play_both(6, 80, domain_randomize=True)
    assert all(stock[1:] == fast[1:] for stock, fast in pairs)
    assert np.abs(differences(pairs)).mean() < 1.0


def test_random_colours_change_or_stay() -> None:
    stock, fast = (make(env_id, domain_randomize=True) for env_id in ("CarRacing-v3", "wm/CarRacing-v3"))
    colours: list[tuple] = []
    for options in ({}, {"randomize": True}, {"randomize": False}):
        frames = []
        for env in (stock, fast):
            env.reset(seed=None if colours else 0, options=options)
            env.t = 1.0  # as if the zoom-in were over
            frames.append(env.step(np.zeros(3, np.float32))[0].astype(int))
        assert np.abs(frames[0] - frames[1]).mean() < 1.0
        colours.append(tuple(np.median(frames[1][:84].reshape(-1, 3), axis=0)))
    assert colours[0] != colours[1]
    assert colours[1] == colours[2]


@pytest.mark.parametrize(
    ("seed", "driver"), [(0, follow_track), (1, follow_track), (2, steering_wildly), (3, steering_wildly)]
)
def test_pixels_are_like_stocks(seed: int, driver: Any) -> None:
    pairs = play_both(seed, 250, driver)
    difference = np.abs(differences(pairs))
    zoom_in, after = difference[: ZOOM_STEPS - 1], difference[ZOOM_STEPS - 1 :]
    assert zoom_in.mean() < 0.5
    assert zoom_in.mean(axis=(1, 2, 3)).max() < 1.0
    assert after.mean() < 0.25
    assert after.mean(axis=(1, 2, 3)).max() < 0.5
    assert after[:, DASHBOARD].mean() < 0.05
    assert after[:, drawing.CAR_ROWS, drawing.CAR_COLS].mean() < 1.0
    assert np.percentile(after, 99.9) < 30  # edges, too


def test_edge_of_the_field_is_like_stocks() -> None:
    pairs = play_both(3, 400, leaving_the_field)
    assert pairs[-1][0][2]  # out of the field
    difference = differences(pairs[-30:])
    assert (pairs[-1][1][0][:84] == 0).all(axis=2).mean() > 0.2  # half of the view is black
    assert np.abs(difference).mean() < 0.3


def test_no_sub_pixel_shift() -> None:
    # To first order fast = stock + u dx + v dy: the least-squares (u, v) over many frames and headings.
    pairs = play_both(1, 250)[ZOOM_STEPS:]
    stock = np.array([frame[0][:84, :, 1] for frame, _ in pairs], float)
    fast = np.array([frame[0][:84, :, 1] for _, frame in pairs], float)
    dy, dx = np.gradient(stock, axis=(1, 2))
    gradients = np.stack([dx.ravel(), dy.ravel()], axis=1)
    shift, *_ = np.linalg.lstsq(gradients, (fast - stock).ravel(), rcond=None)
    assert np.abs(shift).max() < 0.02, shift


def test_curbs_are_there() -> None:
    # Stand the car in the middle of curbs; count what is clearly red or white, each picture against stock's.
    stock, fast = make("CarRacing-v3"), make("wm/CarRacing-v3")
    total = np.zeros(2)
    for seed in range(3):
        for env in (stock, fast):
            env.reset(seed=seed)
            for _ in range(ZOOM_STEPS):
                env.step(np.zeros(3, np.float32))
        curbs = [np.mean(polygon, axis=0) for polygon, colour in stock.road_poly if tuple(colour) == (255, 0, 0)]
        for x, y in curbs[:: max(len(curbs) // 4, 1)]:
            counts = []
            for env in (stock, fast):
                env.car.hull.position = (x, y)
                for wheel in env.car.wheels:
                    wheel.position = (x, y)
                frame = env.step(np.zeros(3, np.float32))[0][: DASHBOARD.start].astype(int)
                frame[drawing.CAR_ROWS, drawing.CAR_COLS] = 0
                red = (frame[..., 0] > 180) & (frame[..., 1] < 80)
                white = frame.min(axis=2) > 180
                counts.append([red.sum(), white.sum()])
            np.testing.assert_allclose(counts[1], counts[0], atol=6, rtol=0.2)
            total += counts[1]
    assert total.min() > 100


@pytest.mark.parametrize("score", [0, 3.4, 47.5, 111, 899.6, 1000, -3, -99.9, -100])
def test_score_digits(score: float) -> None:
    stock, fast = make("CarRacing-v3"), make("wm/CarRacing-v3")
    for env in (stock, fast):
        env.reset(seed=0)
        env.reward = score
    frames = [env._render("state_pixels").astype(int) for env in (stock, fast)]
    assert np.abs(frames[0][84:, :12] - frames[1][84:, :12]).max() <= 1
    assert frames[1][84:, :12].max() > 80


@pytest.mark.parametrize(
    ("velocity", "turn", "omegas"),
    [
        ((0, 0), 0, (0, 0, 0, 0)),
        ((30, 40), 2.5, (10, 20, 30, 40)),
        ((100, 0), -3, (80, 60, 40, 20)),
        ((0.001, 0), 1e-3, (-0.5, 1e-3, 150, 300)),
        ((0, 250), 20, (500, -500, 0, 90)),  # beyond the dashboard on all sides
        ((0, 5), -20, (0, 0, 0, 1)),
    ],
)
def test_dashboard_bars(velocity: tuple, turn: float, omegas: tuple) -> None:
    stock, fast = make("CarRacing-v3"), make("wm/CarRacing-v3")
    for env in (stock, fast):
        env.reset(seed=0)
        env.car.hull.linearVelocity = velocity
        env.car.hull.angularVelocity = turn
        for wheel, omega in zip(env.car.wheels, omegas, strict=True):
            wheel.omega = omega
    frames = [env._render("state_pixels").astype(int)[84:] for env in (stock, fast)]
    difference = np.abs(frames[0] - frames[1])
    assert difference.max() <= 26  # a surface pixel's column of another bar: a tenth of 255
    assert difference.mean() < 0.3


def test_tiles_change_colour_when_touched() -> None:
    stock, fast = make("CarRacing-v3"), make("wm/CarRacing-v3")
    for env in (stock, fast):
        env.reset(seed=0)
        for _ in range(ZOOM_STEPS):
            env.step(np.zeros(3, np.float32))
    tile = next(t for t in stock.road[5:] if t.idx % 3 == 2)  # the palest, 107 to 102
    before = [env.step(np.zeros(3, np.float32))[0].astype(int) for env in (stock, fast)]
    for env in (stock, fast):
        env.road[tile.idx].color[:] = env.road_color
    after = [env.step(np.zeros(3, np.float32))[0].astype(int) for env in (stock, fast)]
    changed = [(b - a).max(axis=2) for b, a in zip(before, after, strict=True)]
    assert (changed[0] >= 4).sum() > 50
    np.testing.assert_allclose((changed[1] >= 4).sum(), (changed[0] >= 4).sum(), rtol=0.15)
    assert np.abs(changed[0] - changed[1]).mean() < 0.05


def test_frames_are_fresh_and_plain_arrays() -> None:
    env = make("wm/CarRacing-v3")
    first, _ = env.reset(seed=0)
    copy = first.copy()
    second = env.step(np.array([0, 1, 0], np.float32))[0]
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, copy)
    assert env.observation_space.contains(second)
    assert second.flags.c_contiguous


def test_same_seed_same_frames_whatever_was_before() -> None:
    env, used = make("wm/CarRacing-v3"), make("wm/CarRacing-v3")
    used.reset(seed=9)
    for _ in range(80):
        used.step(np.array([0.3, 1, 0], np.float32))
    for e in (env, used):
        e.reset(seed=1)
    for k in range(120):
        action = np.array([np.sin(k / 7), 0.5, 0], np.float32)
        np.testing.assert_array_equal(env.step(action)[0], used.step(action)[0])


def test_two_environments_share_nothing() -> None:
    alone = make("wm/CarRacing-v3")
    alone.reset(seed=1)
    action = np.array([0.1, 0.5, 0], np.float32)
    expected = [alone.step(action)[0] for _ in range(90)]
    one, other = make("wm/CarRacing-v3"), make("wm/CarRacing-v3", domain_randomize=True)
    one.reset(seed=1)
    other.reset(seed=2)
    for frame in expected:
        np.testing.assert_array_equal(one.step(action)[0], frame)
        other.step(-action)


def test_other_render_modes_are_stocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    stock, fast = (make(env_id, render_mode="rgb_array") for env_id in ("CarRacing-v3", "wm/CarRacing-v3"))
    for env in (stock, fast):
        env.reset(seed=2)
        for _ in range(60):  # some tiles change colour
            env.step(np.array([0, 1, 0], np.float32))
    picture = fast.render()
    assert picture.shape == (400, 600, 3)
    np.testing.assert_array_equal(picture, stock.render())


def test_human_mode_and_life_after_its_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    other = make("wm/CarRacing-v3")
    other.reset(seed=0)
    env = make("wm/CarRacing-v3", render_mode="human")
    assert env.metadata["render_modes"] == ["human", "rgb_array", "state_pixels"]
    env.reset(seed=0)
    frame = env.step(np.array([0, 1, 0], np.float32))[0]
    assert frame.shape == (96, 96, 3)
    env.close()  # quits pygame, and with it every font
    other.reward = 123.0
    drawing._score.cache_clear()
    assert other.step(np.zeros(3, np.float32))[0][84:, :12].max() > 80


def test_no_torch() -> None:
    code = "import sys, wm.envs, wm.envs.car_racing; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


class Malloc(ctypes.Structure):
    """What glibc says of the memory that was allocated and not freed."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")),
    ]


def held() -> tuple[float, int]:
    """Megabytes that C has allocated, and blocks that Python has."""
    gc.collect()
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Malloc
    found = mallinfo()
    return (found.uordblks + found.hblkhd) / 2**20, sys.getallocatedblocks()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="reads the memory from Linux's glibc")
def test_no_memory_is_kept_over_resets() -> None:
    env = make("wm/CarRacing-v3")
    for seed in range(40):  # caches
        env.reset(seed=seed)
    before = held()
    for seed in range(40, 190):
        env.reset(seed=seed)
    megabytes, blocks = np.subtract(held(), before)
    # Stock keeps 0.4 MB here: pybox2d keeps eight shapes of every car.
    assert megabytes < 0.15
    assert blocks < 3000
    assert env.world.bodyCount == len(env.road) + 5
    assert env.world.jointCount == 4


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory from Linux's /proc")
def test_no_memory_growth_over_resets() -> None:
    env = make("wm/CarRacing-v3")

    def megabytes() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def resets(seeds: range) -> None:
        for seed in seeds:
            env.reset(seed=seed)

    resets(range(200))  # caches and allocator
    before = megabytes()
    resets(range(200, 1200))
    # Stock grows by 2.4 MB here.
    assert megabytes() - before < 1.2
