"""Evolution strategies with ask and tell. They know neither the task nor the policy.

Candidates maximise here. pycma minimises: the sign changes in `CMAES._update`, and nowhere else.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from typing import Any

import cma
import numpy as np
from cma.sigma_adaptation import CMAAdaptSigmaTPA
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from wm.config.bounds import MOST_AVERAGED

Array = NDArray[np.float64]


class EvolutionStrategy(ABC):
    """Base class of all strategies: ask and tell, the means so far, and a state for exact resume.

    The state is small: the settings and the fitness of every candidate so far. `restored` replays them (about 0.02 s a
    generation for CMA-ES) and checks that the mean is the same.
    """

    def __init__(self, start: Array, *, sigma0: float, popsize: int, seed: int) -> None:
        """Starts at a mean.

        Args:
            start: f64[N], the first mean.
            sigma0: Initial step size.
            popsize: Candidates per generation, >= 4.
            seed: Seed of all sampling, >= 0.
        """
        self._start = start.copy()
        self._settings: dict[str, float | int] = {"sigma0": sigma0, "popsize": popsize, "seed": seed}
        self._asked = np.empty((0, len(start)))
        self._fitness: list[Array] = []
        self._means: deque[Array] = deque(maxlen=MOST_AVERAGED)

    @property
    def generation(self) -> int:
        """Number of finished generations."""
        return len(self._fitness)

    @property
    @abstractmethod
    def mean(self) -> Array:
        """f64[N], the mean of the distribution. It is the result, since the best sample's fitness is biased by luck."""

    @property
    @abstractmethod
    def sigma(self) -> float:
        """The step size."""

    @abstractmethod
    def _sample(self) -> Array:
        """The candidates of the next generation, f64[P, N]."""

    @abstractmethod
    def _update(self, fitness: Array) -> None:
        """Moves the distribution by the fitness f64[P] of `_asked`."""

    def average(self, generations: int) -> Array:
        """f64[N], the average of the means of the last `generations` (1 to 1000), or of all if there are fewer."""
        last = list(self._means)[-generations:]
        return np.mean(last, axis=0) if last else self.mean

    def ask(self) -> Array:
        """f64[P, N]: the candidates of the next generation."""
        self._asked = self._sample()
        return self._asked.copy()

    def tell(self, fitness: Array) -> None:
        """Ends a generation.

        Args:
            fitness: f64[P], larger is better, in the order of `ask`.

        Raises:
            ValueError: The fitness has another length or is not finite.
        """
        if fitness.shape != (len(self._asked),) or not np.isfinite(fitness).all():
            raise ValueError(f"fitness {fitness} is not one finite number for each of {len(self._asked)} candidates")
        self._update(fitness)
        self._asked = self._asked[:0]
        self._fitness.append(fitness.copy())
        self._means.append(self.mean)

    def state(self) -> dict[str, NDArray[Any]]:
        """Plain arrays from which `restored` rebuilds the strategy exactly."""
        return {
            "es": np.array(next(name for name, kind in STRATEGIES.items() if kind is type(self))),
            "start": self._start.copy(),
            **{name: np.array(value) for name, value in self._settings.items()},
            "fitness": np.array(self._fitness).reshape(self.generation, int(self._settings["popsize"])),
            "mean": self.mean,
        }


def restored(state: Mapping[str, NDArray[Any]]) -> EvolutionStrategy:
    """Rebuilds a strategy by replaying its `state`; ArithmeticError when this machine computes another mean."""
    settings = {name: value.item() for name, value in state.items() if name not in ("es", "start", "fitness", "mean")}
    es = STRATEGIES[str(state["es"])](state["start"], **settings)
    for fitness in state["fitness"]:
        es.ask()
        es.tell(fitness)
    if not np.array_equal(es.mean, state["mean"]):
        raise ArithmeticError("replaying the evolution gave another mean than the one that was saved")
    return es


class TwoPointAdaptation(CMAAdaptSigmaTPA):
    """pycma's two-point adaptation without its self-check, which draws from numpy's global random state."""

    def check_consistency(self, es: cma.CMAEvolutionStrategy) -> None:
        """Does nothing; pycma's own method only warns."""


class CMAES(EvolutionStrategy):
    """pycma's CMA-ES (paper, appendix A.4), driven from a numpy Generator instead of numpy's global state."""

    DIAGONAL = False

    def __init__(
        self, start: Array, *, sigma0: float, popsize: int, seed: int, sigma_max: float = np.inf, sigma_min: float = 0.0
    ) -> None:
        """As any strategy; `sigma_min` and `sigma_max` bound the step size."""
        super().__init__(start, sigma0=sigma0, popsize=popsize, seed=seed)
        self._settings |= {"sigma_max": sigma_max, "sigma_min": sigma_min}
        rng = np.random.default_rng(seed)
        self._es = cma.CMAEvolutionStrategy(
            start,
            sigma0,
            {
                "popsize": popsize,
                # Two-point adaptation compares two candidates along the last step of the mean on the same tracks. It
                # is set here since pycma's default depends on the number of parameters.
                "AdaptSigma": TwoPointAdaptation,
                "CMA_diagonal": self.DIAGONAL,
                "randn": lambda *shape: rng.standard_normal(shape),
                "seed": np.nan,  # nan: pycma leaves numpy's global random state alone
                "verbose": -9,
                "verb_log": 0,
            },
        )
        # The number of BLAS threads changes the last bits of the eigenvectors, and so all later candidates.
        self._one_thread = ThreadpoolController().wrap(limits=1, user_api="blas")

    @property
    def mean(self) -> Array:
        """See `EvolutionStrategy.mean`."""
        return np.array(self._es.mean)

    @property
    def sigma(self) -> float:
        """See `EvolutionStrategy.sigma`."""
        return float(self._es.sigma)

    def _sample(self) -> Array:
        return np.array(self._one_thread(self._es.ask)())

    def _update(self, fitness: Array) -> None:
        self._one_thread(self._es.tell)(list(self._asked), list(-fitness))
        # Not pycma's "maxstd": it bounds each coordinate in a Python loop (1.5 s for 867), and sigma still grows.
        self._es.sigma = min(max(self._es.sigma, self._settings["sigma_min"]), self._settings["sigma_max"])


class SeparableCMAES(CMAES):
    """CMA-ES with a diagonal covariance, which learns in far fewer generations (Ros & Hansen, 2008)."""

    DIAGONAL = True


class OpenES(EvolutionStrategy):
    """OpenAI's evolution strategy (Salimans et al., 2017): mirrored samples, ranks, Adam on the estimated gradient.

    With ranks every generation has the same weight. With the fitness itself, a generation has more weight if its
    candidates differ more, as in the gradient of the expected fitness: a track on which some candidates fail counts
    more than one that all drive well.
    """

    BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, start: Array, *, sigma0: float, popsize: int, seed: int, lr: float, ranks: bool = True) -> None:
        """As any strategy. sigma stays sigma0, `lr` is Adam's learning rate, `popsize` must be even."""
        if popsize % 2:
            raise ValueError(f"popsize {popsize} is not even: the samples are mirrored")
        super().__init__(start, sigma0=sigma0, popsize=popsize, seed=seed)
        self._settings |= {"lr": lr, "ranks": ranks}
        self._rng = np.random.default_rng(seed)
        self._mean = start.copy()
        self._m, self._v = np.zeros((2, len(start)))

    @property
    def mean(self) -> Array:
        """See `EvolutionStrategy.mean`."""
        return self._mean.copy()

    @property
    def sigma(self) -> float:
        """See `EvolutionStrategy.sigma`."""
        return self._settings["sigma0"]

    def _sample(self) -> Array:
        noise = self._rng.standard_normal((int(self._settings["popsize"]) // 2, len(self._mean)))
        return self._mean + self.sigma * np.concatenate([noise, -noise])

    def _update(self, fitness: Array) -> None:
        weights = fitness - fitness.mean()
        if self._settings["ranks"]:
            # Equal fitness gets equal rank, so that the gradient is zero when all candidates fail.
            _, place, count = np.unique(fitness, return_inverse=True, return_counts=True)
            weights = (np.cumsum(count) - (count + 1) / 2)[place] / (len(fitness) - 1) - 0.5
        gradient = weights @ (self._asked - self._mean) / (len(fitness) * self.sigma**2)
        steps = self.generation + 1
        self._m = self.BETA1 * self._m + (1 - self.BETA1) * gradient
        self._v = self.BETA2 * self._v + (1 - self.BETA2) * gradient**2
        m, v = self._m / (1 - self.BETA1**steps), self._v / (1 - self.BETA2**steps)
        self._mean = self._mean + self._settings["lr"] * m / (np.sqrt(v) + self.EPSILON)


STRATEGIES: dict[str, type[EvolutionStrategy]] = {"cmaes": CMAES, "sep-cmaes": SeparableCMAES, "openes": OpenES}
"""By the name of the option `--es`."""


MANY_WEIGHTS = 5000
"""Above this many weights `make_es` warns of the memory of a full covariance."""
CMA_BYTES = 51
"""Bytes per entry of the covariance: measured, 6,985 MB for 11,683 weights (a hidden layer of 40 on 288 features)."""


def make_es(
    name: str,
    start: Array,
    *,
    sigma0: float,
    sigma_min: float,
    sigma_max: float,
    popsize: int,
    seed: int,
    lr: float,
    ranks: bool,
) -> EvolutionStrategy:
    """Makes a strategy of `STRATEGIES` from the settings of `EvolutionConfig`; each uses only its own settings."""
    if name == "cmaes" and len(start) > MANY_WEIGHTS:
        size = CMA_BYTES * len(start) ** 2 / 1e9
        print(
            f"warning: CMA-ES on {len(start):,} weights takes about {size:.0f} GB of memory: "
            "--components 32 or --es sep-cmaes takes far less.",
            file=sys.stderr,
        )
    own: dict[str, float] = (
        {"lr": lr, "ranks": ranks} if name == "openes" else {"sigma_max": sigma_max, "sigma_min": sigma_min}
    )
    return STRATEGIES[name](start, sigma0=sigma0, popsize=popsize, seed=seed, **own)
