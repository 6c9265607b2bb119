"""Action: what C's raw output becomes, and what M reads of it. Its numpy, torch and ONNX readings stand side by side.

Inside the lab an action is always `a` f32[A]: the values of a box, or one-hot for a discrete space. Only at the
environment's border it has the environment's own form.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Head = Literal["tanh", "half", "relu"]
Floats = NDArray[np.float32]

NATURAL: dict[Head, tuple[float, float]] = {"tanh": (-1.0, 1.0), "half": (0.0, 1.0), "relu": (0.0, 1.0)}
"""Range of each head before it is stretched to an action's bounds."""


@dataclass(frozen=True)
class Action:
    """The actions of an environment.

    Attributes:
        names: Of each value of a box, or of each choice of a discrete space; A of them.
        heads: Of each value of a box, from C's raw output x: "tanh": tanh(x); "half": (tanh(x) + 1) / 2; "relu":
            max(tanh(x), 0); then stretched to `low` and `high`. Empty for a discrete space: the largest x is chosen.
        low: Lower bounds of a box.
        high: Upper bounds of a box.
        first: The environment's number of the first choice of a discrete space.
    """

    names: tuple[str, ...]
    heads: tuple[Head, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    first: int = 0

    def __post_init__(self) -> None:
        """ValueError when the parts do not fit together."""
        if not self.names or (self.heads and not len(self.names) == len(self.heads) == len(self.low) == len(self.high)):
            raise ValueError(f"names, heads, low and high of an action do not fit together: {self}")

    @property
    def size(self) -> int:
        """A: numbers that M reads, and raw outputs of C."""
        return len(self.names)

    @cached_property
    def stretch(self) -> list[tuple[int, float, float, float, float]]:
        """(value, factor, shift, low, high) of each value whose bounds are not the natural ones of its head.

        Rounding can carry a stretched value past its bounds, so that it is clipped.
        """
        found = []
        for i, (head, low, high) in enumerate(zip(self.heads, self.low, self.high, strict=True)):
            least, most = NATURAL[head]
            if (low, high) != (least, most):
                factor = (high - low) / (most - least)
                found.append((i, factor, low - least * factor, low, high))
        return found

    # The three readings of raw outputs.

    def squash(self, raw: Floats) -> Floats:
        """numpy: raw outputs f32[...,A] to `a` f32[...,A]."""
        if not self.heads:
            return np.eye(self.size, dtype=np.float32)[raw.argmax(-1)]
        a: Floats = np.tanh(raw)
        for i, head in enumerate(self.heads):
            if head == "half":
                a[..., i] = (a[..., i] + 1) / 2
            elif head == "relu":
                a[..., i] = np.maximum(a[..., i], 0)
        for i, factor, shift, low, high in self.stretch:
            stretched = a[..., i] * np.float32(factor) + np.float32(shift)
            a[..., i] = np.clip(stretched, np.float32(low), np.float32(high))
        return a

    def squash_tensor(self, raw: Tensor) -> Tensor:
        """torch: the same; a box is squashed in place."""
        if not self.heads:
            from torch.nn.functional import one_hot

            return one_hot(raw.argmax(-1), self.size).to(raw.dtype)
        raw.tanh_()
        for i, head in enumerate(self.heads):
            if head == "half":
                raw[..., i].add_(1).mul_(0.5)
            elif head == "relu":
                raw[..., i].clamp_(min=0)
        for i, factor, shift, low, high in self.stretch:
            raw[..., i].mul_(factor).add_(shift).clamp_(low, high)
        return raw

    def squash_graph(self, graph: Any, raw: str, name: str) -> str:
        """ONNX: the same, from the value `raw` [N,A] to the value `name`; `graph` is a `wm.run.graph.Graph`."""
        if not self.heads:
            depth = graph.constant("depth", np.array([self.size]))
            ends = graph.constant("ends", np.array([0, 1], np.float32))
            return str(graph.add("OneHot", graph.add("ArgMax", raw, axis=-1, keepdims=0), depth, ends, name=name))
        values = graph.split(graph.add("Tanh", raw), *[1] * self.size)
        for i, head in enumerate(self.heads):
            if head == "half":
                values[i] = graph.add("Add", values[i], graph.constant("one", 1.0))
                values[i] = graph.add("Mul", values[i], graph.constant("half", 0.5))
            elif head == "relu":
                values[i] = graph.add("Relu", values[i])
        for i, factor, shift, low, high in self.stretch:
            values[i] = graph.add("Mul", values[i], graph.constant(f"factor_{i}", float(factor)))
            values[i] = graph.add("Add", values[i], graph.constant(f"shift_{i}", float(shift)))
            bounds = (graph.constant(f"low_{i}", float(low)), graph.constant(f"high_{i}", float(high)))
            values[i] = graph.add("Clip", values[i], *bounds)
        return str(graph.add("Concat", *values, axis=-1, name=name))

    # The border to the environment.

    def space(self) -> gym.Space[Any]:
        """The action space of a dream."""
        if not self.heads:
            return gym.spaces.Discrete(self.size, start=self.first)
        return gym.spaces.Box(np.array(self.low, np.float32), np.array(self.high, np.float32), dtype=np.float32)

    def to_env(self, a: Floats) -> Any:
        """`a` f32[A] in the environment's form."""
        return a if self.heads else int(a.argmax()) + self.first

    def from_env(self, actions: Any) -> Floats:
        """Actions in the environment's form, one or any leading dimensions of them, to `a` f32[...,A].

        Raises:
            ValueError: They are of another shape, not finite, or no choices of a discrete space.
        """
        if not self.heads:
            given = np.asarray(actions)
            if given.dtype.kind in "iu":
                chosen = given.astype(np.int64) - self.first
                if ((chosen >= 0) & (chosen < self.size)).all():
                    return np.eye(self.size, dtype=np.float32)[chosen]
            raise ValueError(f"actions are {actions}, not choices {self.first} to {self.first + self.size - 1}")
        a = np.asarray(actions, np.float32)
        if a.ndim < 1 or a.shape[-1] != self.size:
            raise ValueError(f"actions are of shape {a.shape}, not {(*a.shape[:-1], self.size)}")
        if not np.isfinite(a).all():
            raise ValueError("actions are not finite")
        return a

    def clip(self, a: Floats) -> Floats:
        """`a` f32[...,A] within its bounds, beyond which M was not trained."""
        if not self.heads:
            return a
        return np.clip(a, np.array(self.low, np.float32), np.array(self.high, np.float32))

    @property
    def column(self) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of one recorded action, as `wm.store` writes it."""
        return ((self.size,), "f4") if self.heads else ((), "i8")
