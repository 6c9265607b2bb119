"""C as an ONNX graph."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wm.controller.linear import ACTIONS, parameter_count
from wm.show.graphs.builder import Graph


def controller_graph(theta: NDArray[np.float32], z: int, hidden: int) -> bytes:
    """C: z f32[N,Z] and h f32[N,H] to the action a f32[N,3]; its weights are few and stay float32.

    Args:
        theta: f32[3·(Z+H+1)], flat, as `wm.controller.linear.LinearController` takes it.
        z: Z.
        hidden: H.

    Raises:
        ValueError: theta has another length.
    """
    if theta.shape != (parameter_count(z + hidden),):
        raise ValueError(f"theta has shape {theta.shape}, {z + hidden} features need ({parameter_count(z + hidden)},)")
    weight, bias = np.split(theta.astype(np.float32), [ACTIONS * (z + hidden)])
    graph = Graph()
    weights = [graph.constant("weight", weight.reshape(ACTIONS, -1)), graph.constant("bias", bias)]
    raw = graph.add("Tanh", graph.add("Gemm", graph.add("Concat", "z", "h", axis=-1), *weights, transB=1))
    steer, gas, brake = graph.split(raw, 1, 1, 1)
    gas = graph.add("Mul", graph.add("Add", gas, graph.constant("one", 1.0)), graph.constant("half", 0.5))
    graph.add("Concat", steer, gas, graph.add("Relu", brake), axis=-1, name="a")
    return graph.finish({"z": ("N", z), "h": ("N", hidden)}, {"a": ("N", ACTIONS)})
