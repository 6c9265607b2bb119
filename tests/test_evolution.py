"""CMA-ES by ask and tell: it maximises, a seed fixes it, and it goes on from its state as if nothing had happened."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wm.controller.evolution import CMAES

ROOT = Path(__file__).parent.parent
Array = NDArray[np.float64]


def sphere(candidates: Array) -> Array:
    """Largest, 0, at (1, 1, ...)."""
    return -((candidates - 1) ** 2).sum(axis=1)


def noisy(candidates: Array, generation: int) -> Array:
    return sphere(candidates) + np.random.default_rng(generation).normal(0, 0.5, len(candidates))


def evolve(es: CMAES, generations: int) -> list[Array]:
    asked = []
    for _ in range(generations):
        candidates = es.ask()
        asked.append(candidates)
        es.tell(noisy(candidates, es.generation))
    return asked


def test_it_maximises() -> None:
    es = CMAES(10, sigma0=0.1, popsize=12, seed=0)
    assert not es.mean.any()
    for _ in range(200):
        es.tell(sphere(es.ask()))
    assert sphere(es.mean[None])[0] > -1e-6
    assert es.generation == 200
    assert es.sigma < 0.1


def test_the_step_size_grows_on_a_slope() -> None:
    es = CMAES(20, sigma0=0.1, popsize=12, seed=0)
    for _ in range(30):
        es.tell(es.ask().sum(axis=1))
    assert es.sigma > 0.2
    assert es.mean.mean() > 1


def test_the_step_size_stays_below_its_bound_also_after_a_resume() -> None:
    es = CMAES(20, sigma0=0.1, popsize=12, seed=0, sigma_max=0.1)
    for generation in range(30):
        if generation == 15:
            es = CMAES.from_state(es.state())
        es.tell(es.ask().sum(axis=1))
        assert es.sigma <= 0.1
    assert es.sigma == 0.1
    assert es.mean.mean() > 0.2


def test_the_average_of_the_last_means_also_after_a_resume() -> None:
    es = CMAES(5, sigma0=0.1, popsize=6, seed=0)
    assert not es.average(3).any()
    means = []
    for generation in range(7):
        es.tell(noisy(es.ask(), generation))
        means.append(es.mean)
        es = CMAES.from_state(es.state())
        np.testing.assert_array_equal(es.average(1), es.mean)
        np.testing.assert_allclose(es.average(3), np.mean(means[-3:], axis=0), rtol=1e-12)


def test_shapes_and_dtypes() -> None:
    es = CMAES(867, sigma0=0.1, popsize=8, seed=0)
    candidates = es.ask()
    assert candidates.shape == (8, 867)
    assert candidates.dtype == es.mean.dtype == np.float64
    assert es.mean.shape == (867,)
    assert candidates.std() == pytest.approx(0.1, rel=0.1)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), popsize=st.integers(4, 20), parameters=st.integers(2, 12))
def test_a_seed_fixes_the_candidates(seed: int, popsize: int, parameters: int) -> None:
    one, two, other = (CMAES(parameters, sigma0=0.1, popsize=popsize, seed=s) for s in (seed, seed, seed + 1))
    asked = evolve(one, 6)
    np.testing.assert_array_equal(asked, evolve(two, 6))
    assert not np.array_equal(asked[0], other.ask())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), stop=st.integers(0, 14), asked_before_saving=st.booleans())
def test_it_goes_on_from_its_state_exactly(seed: int, stop: int, asked_before_saving: bool) -> None:
    whole = CMAES(6, sigma0=0.2, popsize=7, seed=seed)
    expected = evolve(whole, 15)
    part = CMAES(6, sigma0=0.2, popsize=7, seed=seed)
    evolve(part, stop)
    if asked_before_saving:  # killed in the middle of a generation
        part.ask()
    resumed = CMAES.from_state(part.state())
    assert resumed.generation == stop
    np.testing.assert_array_equal(evolve(resumed, 15 - stop), np.reshape(expected[stop:], (15 - stop, 7, 6)))
    np.testing.assert_array_equal(resumed.mean, whole.mean)
    assert resumed.sigma == whole.sigma
    for name, value in whole.state().items():
        np.testing.assert_array_equal(resumed.state()[name], value)


def test_the_state_is_a_copy() -> None:
    es = CMAES(4, sigma0=0.1, popsize=6, seed=0)
    evolve(es, 3)
    before = {name: value.copy() for name, value in es.state().items()}
    state = es.state()
    evolve(es, 3)
    for name, value in before.items():
        np.testing.assert_array_equal(state[name], value)
    assert all(value.dtype != object for value in state.values())


@pytest.mark.parametrize("name", ["mean", "seed", "sigma0", "fitness"])
def test_another_arithmetic_is_noticed(name: str) -> None:
    es = CMAES(4, sigma0=0.1, popsize=6, seed=0)
    evolve(es, 5)
    state = es.state()
    state[name] = np.flip(state[name], axis=-1) if name in ("mean", "fitness") else state[name] + 1
    with pytest.raises(ArithmeticError, match="another mean"):
        CMAES.from_state(state)


def test_numpys_global_random_state_is_left_alone() -> None:
    np.random.seed(5)  # noqa: NPY002  this is about the global state
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    first = evolve(CMAES(5, sigma0=0.1, popsize=8, seed=0), 20)
    np.testing.assert_array_equal(np.random.random(3), expected)  # noqa: NPY002
    np.testing.assert_array_equal(evolve(CMAES(5, sigma0=0.1, popsize=8, seed=0), 20), first)


@pytest.mark.parametrize("bad", [np.zeros(5), np.zeros((6, 1)), np.array([0, 0, 0, 0, 0, np.nan]), np.full(6, np.inf)])
def test_bad_fitness_is_refused_and_changes_nothing(bad: Array) -> None:
    es = CMAES(4, sigma0=0.1, popsize=6, seed=0)
    candidates = es.ask()
    with pytest.raises(ValueError, match="not one finite number for each of 6 candidates"):
        es.tell(bad)
    assert es.generation == 0
    es.tell(sphere(candidates))
    assert es.generation == 1


def test_telling_without_asking_is_refused() -> None:
    es = CMAES(4, sigma0=0.1, popsize=6, seed=0)
    es.tell(sphere(es.ask()))
    with pytest.raises(ValueError, match="0 candidates"):
        es.tell(np.zeros(6))


def test_told_fitness_is_copied() -> None:
    es = CMAES(4, sigma0=0.1, popsize=6, seed=0)
    fitness = sphere(es.ask())
    es.tell(fitness)
    fitness[:] = 0
    assert es.state()["fitness"].any()


def test_equal_fitness_for_all_is_no_error() -> None:
    es = CMAES(4, sigma0=0.1, popsize=6, seed=0)
    for _ in range(20):
        es.ask()
        es.tell(np.zeros(6))
    assert np.isfinite(es.mean).all()


def test_the_number_of_blas_threads_changes_nothing() -> None:
    code = """
import numpy as np
from wm.controller.evolution import CMAES
es = CMAES(500, sigma0=0.1, popsize=16, seed=0)
for _ in range(12):
    es.tell(-((es.ask() - 1) ** 2).sum(axis=1))
print(es.mean.tobytes().hex())
"""
    means = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2", "4")
    ]
    assert len(means[0]) == 500 * 8 * 2 + 1
    assert means[0] == means[1] == means[2]
