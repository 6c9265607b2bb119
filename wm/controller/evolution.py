"""The evolution of C by ask and tell; it knows neither the task nor the policy.

Candidates maximise here. pycma minimises: the sign changes in `tell`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cma
import numpy as np
from cma.sigma_adaptation import CMAAdaptSigmaTPA
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]


class TwoPointAdaptation(CMAAdaptSigmaTPA):
    """pycma's two-point adaptation without its self-check, which draws from numpy's global random state."""

    def check_consistency(self, es: cma.CMAEvolutionStrategy) -> None:
        """Does nothing; pycma's own only ever warns."""


class CMAES:
    """pycma's CMA-ES (paper, appendix A.4), driven from a numpy Generator instead of numpy's global state.

    The state for an exact resume is small: the seed and the fitness of every candidate so far. `from_state`
    replays them, about 0.02 s a generation, and checks that it arrives at the same mean.
    """

    def __init__(self, parameters: int, *, sigma0: float, popsize: int, seed: int, sigma_max: float = np.inf) -> None:
        """Starts at the zero vector.

        Args:
            parameters: Length of a candidate.
            sigma0: First step size.
            popsize: Candidates a generation, >= 4.
            seed: Seed of all sampling, >= 0.
            sigma_max: Largest step size.
        """
        rng = np.random.default_rng(seed)
        self._settings = {
            "parameters": parameters,
            "sigma0": sigma0,
            "popsize": popsize,
            "seed": seed,
            "sigma_max": sigma_max,
        }
        self._es = cma.CMAEvolutionStrategy(
            np.zeros(parameters),
            sigma0,
            {
                "popsize": popsize,
                # Two-point adaptation compares two candidates along the last step of the mean on the same tracks;
                # the choice is made here since pycma's own default depends on the number of parameters.
                "AdaptSigma": TwoPointAdaptation,
                "randn": lambda *shape: rng.standard_normal(shape),
                "seed": np.nan,  # nan: pycma leaves numpy's global random state alone
                "verbose": -9,
                "verb_log": 0,
            },
        )
        # The number of BLAS threads changes the last bits of the eigenvectors, and so every later candidate.
        self._one_thread = ThreadpoolController().wrap(limits=1, user_api="blas")
        self._asked: list[NDArray[np.float64]] = []
        self._fitness: list[NDArray[np.float64]] = []
        self._means: list[NDArray[np.float64]] = []

    @property
    def generation(self) -> int:
        """Generations told so far."""
        return len(self._fitness)

    @property
    def mean(self) -> NDArray[np.float64]:
        """f64[N], the mean of the distribution: what to keep (a lucky best sample's fitness is biased)."""
        return np.array(self._es.mean)

    def average(self, generations: int) -> NDArray[np.float64]:
        """f64[N], the average of the means of the last so many generations, >= 1, or of all if there are fewer."""
        return np.mean(self._means[-generations:], axis=0) if self._means else self.mean

    @property
    def sigma(self) -> float:
        """The step size."""
        return float(self._es.sigma)

    def ask(self) -> NDArray[np.float64]:
        """f64[P, N]: the candidates of the next generation."""
        self._asked = self._one_thread(self._es.ask)()
        return np.array(self._asked)

    def tell(self, fitness: NDArray[np.float64]) -> None:
        """Ends a generation.

        Args:
            fitness: f64[P], larger is better, in the order of `ask`. ValueError when it does not fit or is not finite.
        """
        if fitness.shape != (len(self._asked),) or not np.isfinite(fitness).all():
            raise ValueError(f"fitness {fitness} is not one finite number for each of {len(self._asked)} candidates")
        self._one_thread(self._es.tell)(self._asked, list(-fitness))
        # Not pycma's "maxstd": that bounds each coordinate in a Python loop, 1.5 s for 867, and lets sigma grow on.
        self._es.sigma = min(self._es.sigma, self._settings["sigma_max"])
        self._asked = []
        self._fitness.append(fitness.copy())
        self._means.append(self.mean)

    def state(self) -> dict[str, NDArray[Any]]:
        """Plain arrays from which `from_state` goes on as if nothing had happened."""
        popsize = self._settings["popsize"]
        return {
            **{name: np.array(value) for name, value in self._settings.items()},
            "fitness": np.array(self._fitness).reshape(len(self._fitness), int(popsize)),
            "mean": self.mean,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]]) -> CMAES:
        """Replays `state`; ArithmeticError when this machine's arithmetic does not arrive at the same mean."""
        es = cls(
            int(state["parameters"]),
            sigma0=float(state["sigma0"]),
            popsize=int(state["popsize"]),
            seed=int(state["seed"]),
            sigma_max=float(state["sigma_max"]),
        )
        for fitness in state["fitness"]:
            es.ask()
            es.tell(fitness)
        if not np.array_equal(es.mean, state["mean"]):
            raise ArithmeticError("replaying the evolution gave another mean than the one that was saved")
        return es
