"""Builder of an ONNX graph. Large arrays are stored in float16; all computation is in float32.

The leading dimension N of all inputs and outputs is the number of dreams.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from wm.run.errors import UserError

Array = NDArray[np.generic]
Shapes = Mapping[str, tuple[int | str, ...]]


class Graph:
    """A graph under construction; values are referred to by name."""

    def __init__(self) -> None:
        self._nodes: list = []
        self._constants: list = []
        self._names = set[str]()

    def add(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Adds an operation with one output and returns the output's name: `name`, or a new one."""
        output = name or f"{op}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def split(self, value: str, *sizes: int) -> list[str]:
        """Cuts the last dimension into pieces."""
        outputs = [f"piece_{len(self._nodes)}_{i}" for i in range(len(sizes))]
        lengths = self.constant(f"lengths_{len(self._nodes)}", np.array(sizes))
        self._nodes.append(helper.make_node("Split", [value, lengths], outputs, axis=-1))
        return outputs

    def constant(self, name: str, array: Array | float) -> str:
        """Adds a constant array under a name, once; a float becomes float32."""
        value = np.float32(array) if isinstance(array, float) else array
        if name in self._names:
            return name
        self._names.add(name)
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name))
        return name

    def half(self, name: str, values: Array) -> str:
        """Adds weights as a float16 constant under their name, and returns the name of their float32 cast."""
        with np.errstate(over="ignore"):
            rounded = values.astype(np.float16)
        if not np.isfinite(rounded).all():
            raise UserError(f"{name} has weights beyond the range of float16: V or M has diverged, train it again.")
        return self.add("Cast", self.constant(name, rounded), to=TensorProto.FLOAT)

    def finish(self, inputs: Shapes, outputs: Shapes, integer: tuple[str, ...] = ()) -> bytes:
        """The graph as bytes; inputs are float32, or int32 where `integer` names them, outputs float32."""

        def described(shapes: Shapes) -> list:
            kinds = {name: TensorProto.INT32 if name in integer else TensorProto.FLOAT for name in shapes}
            return [helper.make_tensor_value_info(name, kinds[name], shape) for name, shape in shapes.items()]

        graph = helper.make_graph(self._nodes, "graph", described(inputs), described(outputs), self._constants)
        # Versions that older releases of ONNX Runtime read, too; newer ones add nothing that is needed here.
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return bytes(model.SerializeToString())
