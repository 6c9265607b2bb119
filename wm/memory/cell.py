"""M's LSTM for acting: one step in numpy, with the numbers of torch's LSTM but without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from wm.contracts import State

Vector = NDArray[np.float32]


def weight_shapes(z: int, actions: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the LSTM's weights by name, in the order of M's state_dict."""
    return {
        "lstm.weight_ih_l0": (4 * hidden, z + actions),
        "lstm.weight_hh_l0": (4 * hidden, hidden),
        "lstm.bias_ih_l0": (4 * hidden,),
        "lstm.bias_hh_l0": (4 * hidden,),
    }


class LSTMCell:
    """M for acting: one LSTM layer, one step at a time (paper, appendix A.2). The state is passed in and returned.

    A state holds z f32[Z], h f32[H] in (-1, 1) and c f32[H]. C reads [z; h].

    sigmoid(x) = (tanh(x/2) + 1)/2, so that one call of tanh computes all four gates, and no exponential can overflow
    for any weights. The factor 1/2 is folded into the weights, which is exact. An instance has scratch memory, so only
    one thread at a time can use it.

    Attributes:
        hidden: H, the size of h and of c.
        features: F = Z+H.
    """

    def __init__(self, weights: Mapping[str, NDArray[np.floating]], z: int) -> None:
        """Copies the weights.

        Args:
            weights: By the names of M's state_dict, gates in torch's order (i, f, g, o): "lstm.weight_ih_l0" [4H,Z+A],
                "lstm.weight_hh_l0" [4H,H], "lstm.bias_ih_l0" [4H], "lstm.bias_hh_l0" [4H].
            z: Z.

        Raises:
            ValueError: Their shapes do not fit together.
        """
        w_ih, w_hh = weights["lstm.weight_ih_l0"], weights["lstm.weight_hh_l0"]
        bias = weights["lstm.bias_ih_l0"] + weights["lstm.bias_hh_l0"]
        h = self.hidden = w_hh.shape[1]
        self._z, self.features = z, z + h
        if w_hh.shape[0] != 4 * h or w_ih.shape[0] != 4 * h or bias.shape != (4 * h,):
            raise ValueError(f"LSTM weights of shapes {w_ih.shape}, {w_hh.shape} and {bias.shape} do not fit")
        # The three sigmoid gates first: rows i, f, o, g.
        order = np.concatenate([np.arange(2 * h), np.arange(3 * h, 4 * h), np.arange(2 * h, 3 * h)])
        half = np.where(np.arange(4 * h) < 3 * h, np.float32(0.5), np.float32(1.0))
        stacked = np.concatenate([w_ih, w_hh], axis=1).astype(np.float32)  # [4H,Z+A+H]
        self._weights: NDArray[np.float32] = np.ascontiguousarray(stacked[order] * half[:, None])
        self._bias: Vector = bias.astype(np.float32)[order] * half
        self._x = np.zeros(self._weights.shape[1], np.float32)  # [z, a, h]
        self._gates = np.empty(4 * h, np.float32)
        # Views of the scratch memory, made once, since slicing costs as much as the arithmetic.
        self._x_h = self._x[-h:]  # [H]
        self._sigmoids, self._g = self._gates[: 3 * h], self._gates[3 * h :]  # [3H], [H]
        self._i, self._f, self._o = self._gates[:h], self._gates[h : 2 * h], self._gates[2 * h : 3 * h]  # [H] each

    def initial(self) -> State:
        """The state at the start of an episode: zeros."""
        return {"z": np.zeros(self._z, np.float32), **{n: np.zeros(self.hidden, np.float32) for n in ("h", "c")}}

    def see(self, state: State, z: Vector) -> State:
        """The state with this z f32[Z]; h and c stay."""
        return {**state, "z": z}

    def read(self, state: State) -> Vector:
        """[z; h], f32[F], in new memory."""
        return np.concatenate([state["z"], state["h"]])

    def advance(self, state: State, action: Vector) -> State:
        """The state after an action f32[A]: z stays, h and c are new."""
        h, c = self.step(state["z"], action, (state["h"], state["c"]))
        return {"z": state["z"], "h": h, "c": c}

    def step(self, z: Vector, a: Vector, state: tuple[Vector, Vector]) -> tuple[Vector, Vector]:
        """The LSTM's own step.

        Args:
            z: f32[Z], the latent of the frame before the action.
            a: f32[A], the action.
            state: (h, c) before the step, each f32[H]; it is not changed.

        Returns:
            (h, c) after the step: two new arrays f32[H], h in (-1, 1).
        """
        h, c = state
        self._x[: len(z)] = z
        self._x[len(z) : -self.hidden] = a
        self._x_h[:] = h
        gates, sigmoids = self._gates, self._sigmoids
        np.dot(self._weights, self._x, out=gates)  # [4H,Z+A+H] by [Z+A+H] to [4H]
        gates += self._bias
        np.tanh(gates, out=gates)
        sigmoids *= 0.5
        sigmoids += 0.5
        new_c = self._f * c
        self._g *= self._i
        new_c += self._g
        new_h = np.tanh(new_c)
        new_h *= self._o
        return new_h, new_c


def random_cell(draw: Callable[..., NDArray[np.float32]], z: int, actions: int, hidden: int) -> LSTMCell:
    """A cell whose weights `draw` gives, by their shapes."""
    return LSTMCell({name: draw(*shape) for name, shape in weight_shapes(z, actions, hidden).items()}, z)
