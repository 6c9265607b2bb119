"""Speed and likeness of the fast CarRacing against stock: `python -m tests.bench_env` (under a minute).

Everything in one process on one thread, round by round in turn, so that a busy machine slows all alike; compare ratios.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import gymnasium
import numpy as np

import wm.envs  # noqa: F401 -- registers wm/CarRacing-v3

SEEDS = (1, 2)
STEPS = 400  # an episode; resets are timed apart
ROUNDS = 4
DASHBOARD = slice(84, 96)
ZOOM_STEPS = 50  # the zoom-in at an episode's start


def make(env_id: str, **kwargs: Any) -> Any:
    """The bare environment, without wrappers, so that both are timed alike."""
    return gymnasium.make(env_id, disable_env_checker=True, **kwargs).unwrapped


def drive_towards(env: Any, x: float, y: float, noise: float = 0) -> np.ndarray:
    """Steer for a point of the field at some 40 units a second, f32[3]; `noise` is added to the wheel."""
    (car_x, car_y), angle = env.car.hull.position, env.car.hull.angle
    error = math.atan2(y - car_y, x - car_x) - math.pi / 2 - angle
    error = (error + math.pi) % (2 * math.pi) - math.pi
    speed = math.hypot(*env.car.hull.linearVelocity)
    steer = min(max(-2.5 * error + noise, -1), 1)
    return np.array([steer, 0.6 * (speed < 40), 0.3 * (speed > 60)], np.float32)


def follow_track(env: Any, rng: np.random.Generator, noise: float = 0.2) -> np.ndarray:
    """A simple driver that sees the track: for the point five tiles ahead, f32[3]."""
    track = np.array(env.track)[:, 2:]
    nearest = int(((track - tuple(env.car.hull.position)) ** 2).sum(axis=1).argmin())
    x, y = track[(nearest + 5) % len(track)].tolist()
    return drive_towards(env, x, y, noise * rng.normal())


def record_actions(env: Any, seed: int) -> list[np.ndarray]:
    """The driver's actions for one episode."""
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    actions = []
    for _ in range(STEPS):
        actions.append(follow_track(env, rng))
        env.step(actions[-1])
    return actions


def play(env: Any, seed: int, actions: list[np.ndarray], frames: list[np.ndarray] | None = None) -> tuple[float, float]:
    """Play the actions: seconds for the reset, seconds for all steps."""
    start = time.perf_counter()
    env.reset(seed=seed)
    middle = time.perf_counter()
    if frames is None:
        for action in actions:
            env.step(action)
    else:
        frames.extend(env.step(action)[0] for action in actions)
    return middle - start, time.perf_counter() - middle


def describe(values: Sequence[float], form: str) -> str:
    """Median and spread."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}}  ({low:{form}}..{high:{form}})"


def envpool_player() -> Callable[[list[np.ndarray]], float] | None:
    """A function that plays actions in EnvPool's CarRacing-v3 and returns seconds; None without EnvPool."""
    try:
        import envpool
    except ImportError:
        return None
    env = envpool.make("CarRacing-v3", env_type="gymnasium", num_envs=1, num_threads=1)

    def play_envpool(actions: list[np.ndarray]) -> float:
        env.reset()
        start = time.perf_counter()
        for action in actions:
            env.step(action[None])
        return time.perf_counter() - start

    return play_envpool


def main() -> None:
    """Measure and print."""
    cv2.setNumThreads(1)
    stock, fast = make("CarRacing-v3"), make("wm/CarRacing-v3")
    envpool = envpool_player()
    actions = {seed: record_actions(fast, seed) for seed in SEEDS}
    n = STEPS * len(SEEDS)
    rates: dict[str, list[float]] = {"stock": [], "fast": [], "envpool": [], "ratio": []}
    resets: dict[str, list[float]] = {"stock": [], "fast": []}
    frames: dict[str, list[np.ndarray]] = {"stock": [], "fast": []}
    for number in range(ROUNDS):
        for name, env in (("stock", stock), ("fast", fast)):
            keep = frames[name] if number == 0 else None
            times = [play(env, seed, actions[seed], keep) for seed in SEEDS]
            resets[name] += [1000 * reset for reset, _ in times]
            rates[name].append(n / sum(steps for _, steps in times))
        rates["ratio"].append(rates["fast"][-1] / rates["stock"][-1])
        if envpool:
            rates["envpool"].append(n / sum(envpool(actions[seed]) for seed in SEEDS))

    print(f"{ROUNDS} rounds of {len(SEEDS)} episodes x {STEPS} steps, one thread; median (min..max)")
    print(f"stock    steps/s {describe(rates['stock'], '.0f')}")
    print(f"fast     steps/s {describe(rates['fast'], '.0f')}")
    print(f"fast / stock     {describe(rates['ratio'], '.1f')}")
    print(f"envpool  steps/s {describe(rates['envpool'], '.0f') if envpool else 'not installed'}")
    for name, milliseconds in resets.items():
        print(f"{name:5s} reset ms   {describe(milliseconds, '.1f')}")
    difference = np.abs(np.array(frames["stock"], np.int16) - np.array(frames["fast"], np.int16))
    zoom_in = np.tile(np.arange(STEPS) < ZOOM_STEPS - 1, len(SEEDS))  # the reset drew the first of them
    after = difference[~zoom_in]
    print("mean absolute difference of pixels, of 255 (largest frame):")
    print(f"  zoom-in   {difference[zoom_in].mean():.3f} ({difference[zoom_in].mean(axis=(1, 2, 3)).max():.3f})")
    print(f"  after it  {after.mean():.3f} ({after.mean(axis=(1, 2, 3)).max():.3f})")
    print(f"  field {after[:, : DASHBOARD.start].mean():.3f}, dashboard {after[:, DASHBOARD].mean():.3f}")


if __name__ == "__main__":
    main()
