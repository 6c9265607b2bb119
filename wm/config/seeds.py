"""Ranges of seeds: one for each use, and none overlaps another."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SeedRange:
    """A half-open range of track seeds (the argument of env.reset). Ranges of different uses never overlap."""

    start: int
    stop: int

    def __contains__(self, seed: int) -> bool:
        return self.start <= seed < self.stop

    def __getitem__(self, index: int) -> int:
        """The seed at `index`. Raises IndexError past the end, so that no use can leave its range unnoticed."""
        if not 0 <= index < self.stop - self.start:
            raise IndexError(f"seed index {index} outside of a range of {self.stop - self.start}")
        return self.start + index


COLLECT_SEEDS = SeedRange(0, 1_000_000_000)
"""Tracks of the training data of V and M. A run with seed s uses the part [s, s + 1) million of each range."""
EVOLVE_SEEDS = SeedRange(1_000_000_000, 1_800_000_000)
"""Tracks of the evolution, on which candidates are compared."""
PROBE_SEEDS = SeedRange(1_800_000_000, 1_900_000_000)
"""Tracks of the probe of [z; h]."""
SELECT_SEEDS = SeedRange(1_900_000_000, 2_000_000_000)
"""Tracks on which the distribution mean is evaluated, to select the best one. The same for all seeds of a run."""
EVALUATE_SEEDS = SeedRange(2_000_000_000, 2_100_000_000)
"""Tracks of the final score. Nothing is ever trained or selected on them."""
SEEDS_PER_RUN = 1_000_000
"""Track seeds of one run seed in each range."""
RUN_SEEDS = 100
"""Number of seeds that a run can have: 0 to 99."""
DRIVEN_FROM = SEEDS_PER_RUN // 2
"""Index of the first episode driven by a controller, and so the largest number of episodes of untrained policies."""


def track_seeds(part: SeedRange, run_seed: int) -> SeedRange:
    """The part of a seed range that one run seed (an int >= 0) uses."""
    start = part[run_seed * SEEDS_PER_RUN]
    return SeedRange(start, part[run_seed * SEEDS_PER_RUN + SEEDS_PER_RUN - 1] + 1)
