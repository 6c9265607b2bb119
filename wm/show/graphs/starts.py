"""The starts of dreams as an ONNX graph."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from wm.show.graphs.builder import Graph, Shapes
from wm.store.starts import STATES, Starts


def starts_graph(starts: Starts) -> bytes:
    """The starts: number i32[N], from 0, to z f32[N,Z], h f32[N,H] and c f32[N,H]."""
    graph = Graph()
    for name in STATES:
        rounded = graph.constant(f"all_{name}", getattr(starts, name).astype(np.float16))
        graph.add("Cast", graph.add("Gather", rounded, "number"), name=name, to=TensorProto.FLOAT)
    shapes: Shapes = {name: ("N", getattr(starts, name).shape[1]) for name in STATES}
    return graph.finish({"number": ("N",)}, shapes, integer=("number",))


def spread(starts: Starts) -> NDArray[np.float32]:
    """f32[Z]: standard deviation of each dimension of z over the starts; near 0 for a dead dimension."""
    found: NDArray[np.float32] = np.std(starts.z, axis=0)
    return found
