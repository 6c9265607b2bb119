"""C with one hidden layer, the paper's comparison with the linear C (section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wm.contracts import Candidates, Floats

if TYPE_CHECKING:
    from torch import Tensor


class HiddenController:
    """raw = W2 tanh(W1 x + b1) + b2. theta: W1 [U,F] row by row, b1 [U], W2 [R,U] row by row, b2 [R]."""

    def __init__(self, theta: NDArray[np.floating], features: int, outputs: int, units: int) -> None:
        """Builds C from flat weights; ValueError when their number does not fit."""
        wanted = (Hidden(outputs, units).count(features),)
        if theta.shape != wanted:
            raise ValueError(f"theta has shape {theta.shape}, {features} features and {units} units need {wanted}")
        first, second = np.split(theta.astype(np.float32), [units * (features + 1)])
        self._weights = first[: units * features].reshape(units, features)  # [U,F]
        self._bias = first[units * features :]  # [U]
        self._out = second[: outputs * units].reshape(outputs, units)  # [R,U]
        self._out_bias = second[outputs * units :]

    def __call__(self, features: Floats) -> Floats:
        """Features f32[F] to raw outputs f32[R]."""
        return self._out @ np.tanh(self._weights @ features + self._bias) + self._out_bias


@dataclass(frozen=True)
class Hidden:
    """The layout of `HiddenController`; see `wm.contracts.Layout`.

    Attributes:
        outputs: R.
        units: U, hidden units; the paper's are 40.
    """

    kind: ClassVar[str] = "hidden"
    outputs: int
    units: int = 40

    @property
    def rows(self) -> int:
        """U."""
        return self.units

    def sizes(self) -> Mapping[str, int]:
        """The fields by name."""
        return asdict(self)

    def count(self, features: int) -> int:
        """1443 for z alone (32 features), 40 units and 3 outputs."""
        return self.units * (features + 1) + self.outputs * (self.units + 1)

    def start(self, inputs: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Random weights of the first layer, since with zeros only the last biases have an effect."""
        start = np.zeros(self.count(inputs))
        first = inputs * self.units
        start[:first] = rng.normal(0, 1 / np.sqrt(inputs), first)
        return start

    def controller(self, theta: NDArray[np.floating], features: int) -> HiddenController:
        """C of flat weights."""
        return HiddenController(theta, features, self.outputs, self.units)

    def candidates(self, thetas: Tensor, features: int) -> Candidates:
        """Two batched products for all candidates."""
        import torch

        sizes = [self.units * features, self.units, self.outputs * self.units, self.outputs]
        first, bias, second, out_bias = thetas.split(sizes, 1)
        weights = first.unflatten(1, (self.units, features)).transpose(1, 2)  # [P,F,U]
        out = second.unflatten(1, (self.outputs, self.units)).transpose(1, 2)  # [P,U,R]
        return lambda x: torch.baddbmm(out_bias[:, None], torch.baddbmm(bias[:, None], x, weights).tanh_(), out)

    def graph(self, graph: Any, theta: Floats, features: str) -> str:
        """Two products; their weights are few and stay float32."""
        inputs = (len(theta) - self.outputs * (self.units + 1)) // self.units - 1
        parts = np.split(
            theta.astype(np.float32), np.cumsum([self.units * inputs, self.units, self.outputs * self.units])
        )
        shapes = {"weight": (self.units, inputs), "bias": (-1,), "out": (self.outputs, self.units), "out_bias": (-1,)}
        weight, bias, out, out_bias = (
            graph.constant(name, part.reshape(shape)) for (name, shape), part in zip(shapes.items(), parts, strict=True)
        )
        hidden = graph.add("Tanh", graph.add("Gemm", features, weight, bias, transB=1))
        return str(graph.add("Gemm", hidden, out, out_bias, transB=1))
