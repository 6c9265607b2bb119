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

import wm.learning.strategies
from wm.learning.strategies import CMAES, STRATEGIES, EvolutionStrategy, OpenES, SeparableCMAES, make_es, restored

ROOT = Path(__file__).parent.parent
Array = NDArray[np.float64]


def sphere(candidates: Array) -> Array:
    """Largest, 0, at (1, 1, ...)."""
    return -((candidates - 1) ** 2).sum(axis=1)


def noisy(candidates: Array, generation: int) -> Array:
    return sphere(candidates) + np.random.default_rng(generation).normal(0, 0.5, len(candidates))


def evolve(es: EvolutionStrategy, generations: int) -> list[Array]:
    asked = []
    for _ in range(generations):
        candidates = es.ask()
        asked.append(candidates)
        es.tell(noisy(candidates, es.generation))
    return asked


def test_it_maximises() -> None:
    es = CMAES(np.zeros(10), sigma0=0.1, popsize=12, seed=0)
    assert not es.mean.any()
    for _ in range(200):
        es.tell(sphere(es.ask()))
    assert sphere(es.mean[None])[0] > -1e-6
    assert es.generation == 200
    assert es.sigma < 0.1


def test_the_step_size_grows_on_a_slope() -> None:
    es = CMAES(np.zeros(20), sigma0=0.1, popsize=12, seed=0)
    for _ in range(30):
        es.tell(es.ask().sum(axis=1))
    assert es.sigma > 0.2
    assert es.mean.mean() > 1


def test_the_step_size_stays_below_its_bound_also_after_a_resume() -> None:
    es: EvolutionStrategy = CMAES(np.zeros(20), sigma0=0.1, popsize=12, seed=0, sigma_max=0.1)
    for generation in range(30):
        if generation == 15:
            es = restored(es.state())
        es.tell(es.ask().sum(axis=1))
        assert es.sigma <= 0.1
    assert es.sigma == 0.1
    assert es.mean.mean() > 0.2


def test_the_step_size_stays_above_its_bound_also_after_a_resume() -> None:
    found = {}
    for sigma_min in (0.0, 0.09):
        es: EvolutionStrategy = CMAES(np.zeros(5), sigma0=0.1, popsize=12, seed=0, sigma_min=sigma_min)
        for generation in range(30):
            if generation == 15:
                es = restored(es.state())
            es.tell(-(es.ask() ** 2).sum(axis=1))
            assert es.sigma >= sigma_min
        found[sigma_min] = es.sigma
    assert found[0.0] < 0.05
    assert found[0.09] == 0.09


def test_the_average_of_the_last_means_also_after_a_resume() -> None:
    es: EvolutionStrategy = CMAES(np.zeros(5), sigma0=0.1, popsize=6, seed=0)
    assert not es.average(3).any()
    means = []
    for generation in range(7):
        es.tell(noisy(es.ask(), generation))
        means.append(es.mean)
        es = restored(es.state())
        np.testing.assert_array_equal(es.average(1), es.mean)
        np.testing.assert_allclose(es.average(3), np.mean(means[-3:], axis=0), rtol=1e-12)


def test_it_remembers_so_many_means_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wm.learning.strategies, "MOST_AVERAGED", 3)
    es = CMAES(np.zeros(5), sigma0=0.1, popsize=6, seed=0)
    for generation in range(7):
        es.tell(noisy(es.ask(), generation))
    assert len(es._means) == 3


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_maximises_a_noisy_function_and_goes_on_exactly(name: str) -> None:
    def make() -> EvolutionStrategy:
        return make_es(
            name, np.full(30, -0.5), sigma0=0.1, sigma_min=0.0, sigma_max=0.5, popsize=16, seed=3, lr=0.05, ranks=True
        )

    whole, part = make(), make()
    assert isinstance(whole, STRATEGIES[name])
    before = sphere(whole.mean[None])[0]
    expected = evolve(whole, 60)
    evolve(part, 25)
    resumed = restored(part.state())
    assert type(resumed) is type(whole)
    np.testing.assert_array_equal(evolve(resumed, 35), expected[25:])
    np.testing.assert_array_equal(resumed.mean, whole.mean)
    assert sphere(whole.mean[None])[0] > 0.3 * before
    assert all(value.dtype != object for value in whole.state().values())


def test_openes_samples_are_mirrored_and_its_step_is_adams() -> None:
    es = OpenES(np.zeros(4), sigma0=0.2, popsize=6, seed=0, lr=0.05)
    for generation in range(3):
        mean, candidates = es.mean, es.ask()
        np.testing.assert_allclose(candidates[:3] - mean, mean - candidates[3:], atol=1e-12)
        fitness = np.array([3.0, 1.0, 1.0, 7.0, -5.0, 2.0])
        es.tell(fitness)
        if generation == 0:  # Adam's first step is lr times the sign of the gradient
            ranks = np.array([0.8, 0.3, 0.3, 1.0, 0.0, 0.6]) - 0.5  # of equal ones the average
            gradient = ranks @ (candidates - mean)
            np.testing.assert_allclose(es.mean, 0.05 * np.sign(gradient), rtol=1e-4)
    assert es.sigma == 0.2


def test_openes_by_fitness_pulls_as_much_as_candidates_differ() -> None:
    es = OpenES(np.zeros(4), sigma0=0.2, popsize=8, seed=0, lr=0.05, ranks=False)
    m, v = np.zeros((2, 4))
    for generation, spread in enumerate((1.0, 100.0), start=1):
        before = es.mean
        asked = es.ask()
        fitness = 850 + spread * asked[:, 0]
        gradient = np.mean((fitness - fitness.mean())[:, None] * (asked - before), axis=0) / 0.2**2
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        es.tell(fitness)
        step = 0.05 * m / (1 - 0.9**generation) / (np.sqrt(v / (1 - 0.999**generation)) + 1e-8)
        np.testing.assert_allclose(es.mean - before, step, rtol=1e-9)
    np.testing.assert_array_equal(restored(es.state()).mean, es.mean)


def test_openes_does_not_move_on_equal_fitness_and_wants_an_even_popsize() -> None:
    es = OpenES(np.zeros(4), sigma0=0.2, popsize=6, seed=0, lr=0.05)
    es.ask()
    es.tell(np.full(6, 3.0))
    assert not es.mean.any()
    with pytest.raises(ValueError, match="5 is not even"):
        OpenES(np.zeros(4), sigma0=0.2, popsize=5, seed=0, lr=0.05)


def test_the_separable_one_learns_scales_quickly() -> None:
    scales = np.array([1.0] * 15 + [30.0] * 15)
    left = {}
    for kind in (CMAES, SeparableCMAES):
        es = kind(np.zeros(30), sigma0=0.1, popsize=12, seed=0)
        for _ in range(150):
            es.tell(-(((es.ask() - 1) * scales) ** 2).sum(axis=1))
        left[kind] = (((es.mean - 1) * scales) ** 2).sum()
    assert left[SeparableCMAES] < 0.25 * left[CMAES]


def test_shapes_and_dtypes() -> None:
    es = CMAES(np.zeros(867), sigma0=0.1, popsize=8, seed=0)
    candidates = es.ask()
    assert candidates.shape == (8, 867)
    assert candidates.dtype == es.mean.dtype == np.float64
    assert es.mean.shape == (867,)
    assert candidates.std() == pytest.approx(0.1, rel=0.1)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), popsize=st.integers(4, 20), parameters=st.integers(2, 12))
def test_a_seed_fixes_the_candidates(seed: int, popsize: int, parameters: int) -> None:
    one, two, other = (CMAES(np.zeros(parameters), sigma0=0.1, popsize=popsize, seed=s) for s in (seed, seed, seed + 1))
    asked = evolve(one, 6)
    np.testing.assert_array_equal(asked, evolve(two, 6))
    assert not np.array_equal(asked[0], other.ask())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), stop=st.integers(0, 14), asked_before_saving=st.booleans())
def test_it_goes_on_from_its_state_exactly(seed: int, stop: int, asked_before_saving: bool) -> None:
    whole = CMAES(np.zeros(6), sigma0=0.2, popsize=7, seed=seed)
    expected = evolve(whole, 15)
    part = CMAES(np.zeros(6), sigma0=0.2, popsize=7, seed=seed)
    evolve(part, stop)
    if asked_before_saving:  # killed in the middle of a generation
        part.ask()
    resumed = restored(part.state())
    assert resumed.generation == stop
    np.testing.assert_array_equal(evolve(resumed, 15 - stop), np.reshape(expected[stop:], (15 - stop, 7, 6)))
    np.testing.assert_array_equal(resumed.mean, whole.mean)
    assert resumed.sigma == whole.sigma
    for name, value in whole.state().items():
        np.testing.assert_array_equal(resumed.state()[name], value)


def test_the_state_is_a_copy() -> None:
    es = CMAES(np.zeros(4), sigma0=0.1, popsize=6, seed=0)
    evolve(es, 3)
    before = {name: value.copy() for name, value in es.state().items()}
    state = es.state()
    evolve(es, 3)
    for name, value in before.items():
        np.testing.assert_array_equal(state[name], value)
    assert all(value.dtype != object for value in state.values())


@pytest.mark.parametrize("name", ["mean", "seed", "sigma0", "fitness"])
def test_another_arithmetic_is_noticed(name: str) -> None:
    es = CMAES(np.zeros(4), sigma0=0.1, popsize=6, seed=0)
    evolve(es, 5)
    state = es.state()
    state[name] = np.flip(state[name], axis=-1) if name in ("mean", "fitness") else state[name] + 1
    with pytest.raises(ArithmeticError, match="another mean"):
        restored(state)


def test_numpys_global_random_state_is_left_alone() -> None:
    np.random.seed(5)  # noqa: NPY002  this is about the global state
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    first = evolve(CMAES(np.zeros(5), sigma0=0.1, popsize=8, seed=0), 20)
    np.testing.assert_array_equal(np.random.random(3), expected)  # noqa: NPY002
    np.testing.assert_array_equal(evolve(CMAES(np.zeros(5), sigma0=0.1, popsize=8, seed=0), 20), first)


@pytest.mark.parametrize("bad", [np.zeros(5), np.zeros((6, 1)), np.array([0, 0, 0, 0, 0, np.nan]), np.full(6, np.inf)])
def test_bad_fitness_is_refused_and_changes_nothing(bad: Array) -> None:
    es = CMAES(np.zeros(4), sigma0=0.1, popsize=6, seed=0)
    candidates = es.ask()
    with pytest.raises(ValueError, match="not one finite number for each of 6 candidates"):
        es.tell(bad)
    assert es.generation == 0
    es.tell(sphere(candidates))
    assert es.generation == 1


def test_telling_without_asking_is_refused() -> None:
    es = CMAES(np.zeros(4), sigma0=0.1, popsize=6, seed=0)
    es.tell(sphere(es.ask()))
    with pytest.raises(ValueError, match="0 candidates"):
        es.tell(np.zeros(6))


def test_told_fitness_is_copied() -> None:
    es = CMAES(np.zeros(4), sigma0=0.1, popsize=6, seed=0)
    fitness = sphere(es.ask())
    es.tell(fitness)
    fitness[:] = 0
    assert es.state()["fitness"].any()


def test_equal_fitness_for_all_is_no_error() -> None:
    es = CMAES(np.zeros(4), sigma0=0.1, popsize=6, seed=0)
    for _ in range(20):
        es.ask()
        es.tell(np.zeros(6))
    assert np.isfinite(es.mean).all()


def test_the_number_of_blas_threads_changes_nothing() -> None:
    code = """
import numpy as np
from wm.learning.strategies import CMAES, STRATEGIES, EvolutionStrategy, OpenES, SeparableCMAES, make_es, restored
es = CMAES(np.zeros(500), sigma0=0.1, popsize=16, seed=0)
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
