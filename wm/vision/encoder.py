"""V's encoder for acting: one frame to one latent vector with ONNX Runtime on one thread, without torch.

There are two graphs. `encoder_graph` computes in float32, as V does. `quantised_graph` computes the convolutions in
8-bit integers, in less than half the time. `python -m tests.bench_encoder` measures both against alternatives. Tests
check that the first equals `VAE.encode`, that the second equals the same integers in torch, and bound their difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnxruntime
from numpy.typing import NDArray

FRAME = (64, 64, 3)
"""Shape of what V sees."""

STRIDE = 2
LAYERS = ("conv1", "conv2", "conv3", "conv4")

WEIGHT_STEPS = 64
"""Quantised weights are in -64..64. Processors without VNNI add pairs of products in 16 bits, and twice 255 * 64 fits.
So the integers, and with them a score, are the same on every machine; with 127 they would saturate there."""

Weights = Mapping[str, NDArray[np.float32]]


def weight_shapes(z: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the encoder's weights by name, in the order of V's state_dict."""
    shapes: dict[str, tuple[int, ...]] = {
        "conv1": (32, 3, 4, 4),
        "conv2": (64, 32, 4, 4),
        "conv3": (128, 64, 4, 4),
        "conv4": (256, 128, 4, 4),
        "mu": (z, 1024),
    }
    return {
        f"{name}.{part}": shape[: 4 if part == "weight" else 1]
        for name, shape in shapes.items()
        for part in ("weight", "bias")
    }


def encoder_graph(weights: Weights) -> bytes:
    """V's encoder in float32 as an ONNX graph: input `frame` u8[1,64,64,3], output `mu` f32[1,Z].

    Args:
        weights: f32 arrays by the names of `VAE.state_dict()`: conv1 to conv4 and mu, each .weight and .bias.
            Other entries are ignored.

    Returns:
        The graph with its weights as bytes, for `Encoder` and for worker processes.
    """
    from onnx import TensorProto, helper  # imported only to build a graph

    arrays = {f"{name}.{part}": weights[f"{name}.{part}"] for name in LAYERS for part in ("weight", "bias")}
    # The graph takes bytes 0..255; the division by 255 is folded into the first layer's weights.
    arrays["conv1.weight"] = arrays["conv1.weight"] / np.float32(255)
    nodes = [
        helper.make_node("Cast", ["frame"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["x"], perm=[0, 3, 1, 2]),
    ]
    x = "x"
    for name in LAYERS:
        inputs = [x, f"{name}.weight", f"{name}.bias"]
        nodes.append(helper.make_node("Conv", inputs, [f"{name}.out"], strides=[STRIDE, STRIDE]))
        nodes.append(helper.make_node("Relu", [f"{name}.out"], [f"{name}.relu"]))
        x = f"{name}.relu"
    return _graph(nodes, x, arrays, weights)


def quantised_graph(weights: Weights, ranges: Sequence[float]) -> bytes:
    """The same with integer convolutions: u8 activations, and 8-bit weights with one scale per channel.

    A layer's output y is stored as the byte rint(255 y / range), clipped to 0 (its relu) and 255. The input is bytes
    already; mu is computed in float32 from the last layer's bytes.

    Args:
        weights: As for `encoder_graph`.
        ranges: The largest activation of each of the `LAYERS`, from `wm.vision.vae.activation_ranges`.

    Returns:
        As `encoder_graph`.
    """
    from onnx import helper

    # A frame's byte b means b / 255. Scales are float32, as in ONNX Runtime.
    scales = [np.float32(1 / 255), *(np.float32(r / 255) for r in ranges)]
    arrays: dict[str, NDArray[np.generic]] = {"zero": np.array(0, np.uint8), "x.scale": np.array(scales[0])}
    nodes = [helper.make_node("Transpose", ["frame"], ["x"], perm=[0, 3, 1, 2])]
    x = "x"
    for name, before, after in zip(LAYERS, scales[:-1], scales[1:], strict=True):
        weight = weights[f"{name}.weight"]  # [out,in,4,4]
        step = np.abs(weight).max(axis=(1, 2, 3)) / np.float32(WEIGHT_STEPS)  # [out]
        step[step == 0] = 1  # for a channel of zeros any step is right
        arrays[f"{name}.weight"] = np.rint(weight / step[:, None, None, None]).astype(np.int8)
        arrays[f"{name}.step"] = step
        arrays[f"{name}.zeros"] = np.zeros(len(step), np.int8)
        arrays[f"{name}.bias"] = np.rint(weights[f"{name}.bias"] / (step * before)).astype(np.int32)
        arrays[f"{name}.scale"] = np.array(after)
        inputs = [x, f"{x}.scale", "zero", *(f"{name}.{part}" for part in ("weight", "step", "zeros", "scale"))]
        inputs += ["zero", f"{name}.bias"]
        nodes.append(helper.make_node("QLinearConv", inputs, [name], strides=[STRIDE, STRIDE]))
        x = name
    nodes.append(helper.make_node("DequantizeLinear", [x, f"{x}.scale", "zero"], ["features"]))
    return _graph(nodes, "features", arrays, weights)


def _graph(nodes: list, features: str, arrays: Mapping[str, NDArray[np.generic]], weights: Weights) -> bytes:
    """Ends a graph with mu, a linear function of `features`, and writes it as bytes."""
    from onnx import TensorProto, helper, numpy_helper

    arrays = {**arrays, "mu.weight": weights["mu.weight"], "mu.bias": weights["mu.bias"]}
    nodes = [
        *nodes,
        helper.make_node("Flatten", [features], ["flat"]),
        helper.make_node("Gemm", ["flat", "mu.weight", "mu.bias"], ["mu"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, 64, 64, 3])],
        [helper.make_tensor_value_info("mu", TensorProto.FLOAT, [1, len(weights["mu.bias"])])],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in arrays.items()],
    )
    # Versions that older releases of ONNX Runtime read, too; newer ones add nothing that is needed here.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


class Encoder:
    """V's encoder for acting.

    Attributes:
        z: Z, size of the latent vector.
    """

    z: int

    def __init__(self, graph: bytes) -> None:
        """Makes a session on one thread for a graph of `encoder_graph` or `quantised_graph`."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only; warnings about the machine do not help the user
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.z = self._session.get_outputs()[0].shape[1]

    def __call__(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """One frame u8[64,64,3] to mu f32[Z], the mean of V's posterior."""
        mu: NDArray[np.float32] = self._session.run(None, {"frame": frame[None]})[0]  # [1,Z]
        return mu[0]


def random_encoder(draw: Callable[..., NDArray[np.float32]], z: int) -> Encoder:
    """An encoder whose weights `draw` gives, by their shapes."""
    return Encoder(encoder_graph({name: draw(*shape) for name, shape in weight_shapes(z).items()}))
