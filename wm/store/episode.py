"""Episode: the record of one rollout, used by collection, disk and training alike."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Episode:
    """One rollout of T >= 1 steps, of any environment.

    Attributes:
        index: Index in the collection, >= 0.
        seed: The environment's seed.
        policy: Name of the policy that acted.
        env_id: Gymnasium id of the environment.
        env_version: Version of Gymnasium, which determines the environment's behaviour.
        observations: [T+1, ...], any shape and dtype, including the last one, which has no action.
        actions: [T, ...], any shape and dtype.
        rewards: f32[T].
        terminated: Ended by the environment's rules.
        truncated: Ended by a time limit.
        measure: Fraction of the steps in which the task's measure held, 0 to 1; nan without one.
    """

    index: int
    seed: int
    policy: str
    env_id: str
    env_version: str
    observations: Array
    actions: Array
    rewards: NDArray[np.float32]
    terminated: bool
    truncated: bool
    measure: float = float("nan")

    def __post_init__(self) -> None:
        """ValueError when lengths do not fit together or a number is not finite."""
        steps = len(self.rewards)
        if steps < 1:
            raise ValueError("an episode needs at least one step")
        if self.rewards.dtype != np.float32 or self.rewards.ndim != 1:
            raise ValueError(f"rewards are {self.rewards.dtype}{list(self.rewards.shape)}, not float32[T]")
        if len(self.actions) != steps or len(self.observations) != steps + 1:
            raise ValueError(
                f"{steps} rewards need as many actions and one observation more, "
                f"not {len(self.actions)} and {len(self.observations)}"
            )
        if self.index < 0 or self.seed < 0:
            raise ValueError(f"index {self.index} and seed {self.seed} must not be negative")
        for name in ("observations", "actions", "rewards"):
            values = getattr(self, name)
            if values.dtype.kind not in "buif":
                raise ValueError(f"{name} have dtype {values.dtype}, which is not numeric")
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise ValueError(f"{name} hold a value that is not finite")

    @property
    def length(self) -> int:
        """T, the number of steps."""
        return len(self.rewards)

    @property
    def ret(self) -> float:
        """The return: the sum of rewards."""
        return float(self.rewards.sum(dtype=np.float64))

    def digest(self) -> str:
        """SHA-256 of all fields but `measure`, in hex."""
        found = hashlib.sha256()
        plain = (self.index, self.seed, self.policy, self.env_id, self.env_version, self.terminated, self.truncated)
        found.update(repr(plain).encode())
        for values in (self.observations, self.actions, self.rewards):
            found.update(f"{values.dtype.str}{values.shape}".encode())
            found.update(np.ascontiguousarray(values).data)
        return found.hexdigest()
