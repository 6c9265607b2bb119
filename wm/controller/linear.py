"""C, the linear controller: raw = W x + b (paper, section 2.3 and its published code)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from wm.contracts import Candidates, Floats

if TYPE_CHECKING:
    from torch import Tensor


class LinearController:
    """theta f[R·(F+1)]: the weights W [R, F] row by row, then the biases b [R]."""

    def __init__(self, theta: NDArray[np.floating], features: int, outputs: int) -> None:
        """Builds C from flat weights; ValueError when their number does not fit."""
        wanted = (outputs * (features + 1),)
        if theta.shape != wanted:
            raise ValueError(f"theta has shape {theta.shape}, {features} features need {wanted}")
        theta = theta.astype(np.float32)
        self._weights = theta[: outputs * features].reshape(outputs, features)  # [R,F]
        self._bias = theta[outputs * features :]

    def __call__(self, features: Floats) -> Floats:
        """Features f32[F] to raw outputs f32[R]."""
        return self._weights @ features + self._bias


@dataclass(frozen=True)
class Linear:
    """The layout of `LinearController`; see `wm.contracts.Layout`.

    Attributes:
        outputs: R.
    """

    kind: ClassVar[str] = "linear"
    outputs: int

    @property
    def rows(self) -> int:
        """R."""
        return self.outputs

    def sizes(self) -> Mapping[str, int]:
        """The fields by name."""
        return asdict(self)

    def count(self, features: int) -> int:
        """Weights and biases: 867 for z 32, h 256 and 3 outputs."""
        return self.outputs * (features + 1)

    def start(self, inputs: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Zeros."""
        return np.zeros(self.count(inputs))

    def controller(self, theta: NDArray[np.floating], features: int) -> LinearController:
        """C of flat weights."""
        return LinearController(theta, features, self.outputs)

    def candidates(self, thetas: Tensor, features: int) -> Candidates:
        """One batched product for all candidates."""
        import torch

        weights = thetas[:, : self.outputs * features].unflatten(1, (self.outputs, features)).transpose(1, 2)  # [P,F,R]
        bias = thetas[:, None, self.outputs * features :]  # [P,1,R]
        return lambda x: torch.baddbmm(bias, x, weights)

    def graph(self, graph: Any, theta: Floats, features: str) -> str:
        """One product; its weights are few and stay float32."""
        weight, bias = np.split(theta.astype(np.float32), [len(theta) - self.outputs])
        weights = [graph.constant("weight", weight.reshape(self.outputs, -1)), graph.constant("bias", bias)]
        return str(graph.add("Gemm", features, *weights, transB=1))
