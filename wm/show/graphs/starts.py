"""The starts of dreams as an ONNX graph."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from wm.run.graph import Graph, Shapes
from wm.store.starts import Starts


def starts_graph(starts: Starts) -> bytes:
    """The starts: number i32[N], from 0, to M's state f32[N,size] by name."""
    graph = Graph()
    for name, part in starts.state.items():
        rounded = graph.constant(f"all_{name}", part.astype(np.float16))
        graph.add("Cast", graph.add("Gather", rounded, "number"), name=name, to=TensorProto.FLOAT)
    shapes: Shapes = {name: ("N", part.shape[1]) for name, part in starts.state.items()}
    return graph.finish({"number": ("N",)}, shapes, integer=("number",))


def spread(starts: Starts) -> NDArray[np.float32]:
    """f32[Z]: standard deviation of each dimension of z over the starts; near 0 for a dead dimension."""
    found: NDArray[np.float32] = np.std(starts.state["z"], axis=0)
    return found
