"""Which tracks a generation meets: new ones, or now and then again those that the population did worst on.

Most tracks tell an evolution that drives well nothing new. Prioritised replay of levels is from Jiang et al., 2021.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WINDOW = 50
"""Generations back that a group of tracks may be revisited from: older fitness says little of the population now."""
HARDEST = 4
"""One in so many of the groups in the window counts as hard."""


def track_group(earlier: Sequence[float], seed: int, revisit: float) -> int:
    """The number of the group of tracks that the next generation meets; groups are numbered as they come.

    It is a function of its arguments alone, so that a resumed evolution meets the same tracks.

    Args:
        earlier: The population's mean fitness in each generation so far.
        seed: The run's seed.
        revisit: Chance that it is a group met before, one of the hardest of the last `WINDOW` generations.

    Returns:
        Without revisits the number of generations so far.
    """
    met: list[int] = []
    new = 0
    for generation in range(len(earlier) + 1):
        rng = np.random.default_rng([seed, generation])
        if rng.random() < revisit and met:
            since = max(0, generation - WINDOW)
            fitness = dict(zip(met[since:], earlier[since:generation], strict=True))  # the latest of each group
            hard = sorted(fitness, key=lambda group: fitness[group])[: max(1, len(fitness) // HARDEST)]
            met.append(hard[rng.integers(len(hard))])
        else:
            met.append(new)
            new += 1
    return met[-1]
