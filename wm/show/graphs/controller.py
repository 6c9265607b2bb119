"""C as an ONNX graph."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wm.contracts import Layout
from wm.envs.action import Action
from wm.run.graph import Graph


def controller_graph(
    theta: NDArray[np.float32], layout: Layout, action: Action, read: tuple[tuple[str, int], ...]
) -> bytes:
    """C: parts of M's state, f32[N,size] each, to the action a f32[N,A].

    Args:
        theta: f32[N], flat weights.
        layout: C's kind and sizes.
        action: What its raw outputs become.
        read: Name and size of the parts of M's state that C reads, in their order.

    Raises:
        ValueError: theta has another length.
    """
    features = sum(size for _, size in read)
    if theta.shape != (layout.count(features),):
        raise ValueError(f"theta has shape {theta.shape}, {features} features need ({layout.count(features)},)")
    graph = Graph()
    # The order of operations, and so the file, is that of the first page.
    seen = graph.add("Concat", *(name for name, _ in read), axis=-1)
    action.squash_graph(graph, layout.graph(graph, theta, seen), "a")
    return graph.finish({name: ("N", size) for name, size in read}, {"a": ("N", action.size)})
