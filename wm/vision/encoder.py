"""V's encoder for acting: one frame to one latent vector by ONNX Runtime on one thread, without torch.

Measured against the alternatives by `python -m tests.bench_encoder`; a test holds it equal to `VAE.encode`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime
from numpy.typing import NDArray

STRIDE = 2
LAYERS = ("conv1", "conv2", "conv3", "conv4")


def encoder_graph(weights: Mapping[str, NDArray[np.float32]]) -> bytes:
    """V's encoder as an ONNX graph: input `frame` u8[1,64,64,3], output `mu` f32[1,Z].

    Args:
        weights: f32 arrays by the names of `VAE.state_dict()`: conv1 to conv4 and mu, each .weight and .bias.
            Others are not looked at.

    Returns:
        The graph with its weights, as `Encoder` takes it: plain bytes to hand to worker processes.
    """
    from onnx import TensorProto, helper, numpy_helper  # only who builds a graph pays for this import

    # The graph takes bytes 0..255: what divides them by 255 is the first layer's weights.
    arrays = {f"{name}.{part}": weights[f"{name}.{part}"] for name in (*LAYERS, "mu") for part in ("weight", "bias")}
    arrays["conv1.weight"] = arrays["conv1.weight"] / np.float32(255)
    nodes = [
        helper.make_node("Cast", ["frame"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["x"], perm=[0, 3, 1, 2]),
    ]
    x = "x"
    for name in LAYERS:
        nodes.append(
            helper.make_node("Conv", [x, f"{name}.weight", f"{name}.bias"], [f"{name}.out"], strides=[STRIDE, STRIDE])
        )
        nodes.append(helper.make_node("Relu", [f"{name}.out"], [f"{name}.relu"]))
        x = f"{name}.relu"
    nodes.append(helper.make_node("Flatten", [x], ["flat"]))
    nodes.append(helper.make_node("Gemm", ["flat", "mu.weight", "mu.bias"], ["mu"], transB=1))
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, 64, 64, 3])],
        [helper.make_tensor_value_info("mu", TensorProto.FLOAT, [1, len(arrays["mu.bias"])])],
        [numpy_helper.from_array(np.ascontiguousarray(a, np.float32), name) for name, a in arrays.items()],
    )
    # Versions that this and older releases of ONNX Runtime read; newer ones add nothing that is needed here.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


class Encoder:
    """The one inference function of V in acting.

    Attributes:
        z: Size of the latent vector.
    """

    z: int

    def __init__(self, graph: bytes) -> None:
        """Makes a session on one thread for a graph of `encoder_graph`."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only: warnings about the machine are none of the user's business
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.z = self._session.get_outputs()[0].shape[1]

    def __call__(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """One frame u8[64,64,3] to mu f32[Z], the mean of V's posterior."""
        mu: NDArray[np.float32] = self._session.run(None, {"frame": frame[None]})[0]
        return mu[0]
