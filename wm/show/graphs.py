"""A run as ONNX graphs, for use without torch, such as in a browser: starts, M's step in the dream, C, V's decoder.

    starts: number ─→ z, h, c;  controller: z, h ─→ a;  dream: z, h, c, a, noise ─→ z', h', c', ...;  decoder: z ─→ x

Large arrays are stored in float16; all computation is in float32. The leading dimension N of all inputs and outputs is
the number of dreams.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from wm.controller.linear import ACTIONS, parameter_count
from wm.memory.mdnrnn import MDNRNN
from wm.run import UserError
from wm.store.starts import STATES, Starts
from wm.vision.vae import VAE

Array = NDArray[np.generic]
Shapes = Mapping[str, tuple[int | str, ...]]

SIDE = 5
"""Height and width of the output of the decoder's first deconvolution, whose input is a single pixel."""


class _Graph:
    """A graph under construction; values are referred to by name."""

    def __init__(self) -> None:
        self._nodes: list = []
        self._constants: list = []

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
        """Adds a constant array; a float becomes float32."""
        value = np.float32(array) if isinstance(array, float) else array
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


def decoder_graph(vae: VAE) -> bytes:
    """V's decoder: z f32[N,Z] to x f32[N,3,64,64] in [0,1].

    The paper has no relu between the decoder's first two layers, so they are one linear function of z. As one matrix,
    named `first`, they take a thirtieth of the space and of the time.
    """
    weights = {name: value.detach().double().numpy() for name, value in vae.state_dict().items()}
    spread, pixels = weights["fc.weight"], weights["deconv1.weight"]  # [1024,Z], [1024,128,5,5]
    first = np.einsum("kz,kcij->cijz", spread, pixels, optimize=True)
    bias = np.einsum("k,kcij->cij", weights["fc.bias"], pixels, optimize=True) + weights["deconv1.bias"][:, None, None]

    graph = _Graph()
    weight = graph.half("first.weight", first.reshape(-1, vae.z))
    x = graph.add("Gemm", "z", weight, graph.half("first.bias", bias.reshape(-1)), transB=1)
    x = graph.add("Reshape", x, graph.constant("shape", np.array([-1, len(bias), SIDE, SIDE])))
    for layer in ("deconv2", "deconv3", "deconv4"):
        parts = [graph.half(f"{layer}.{part}", weights[f"{layer}.{part}"]) for part in ("weight", "bias")]
        x = graph.add("ConvTranspose", graph.add("Relu", x), *parts, strides=[2, 2])
    graph.add("Sigmoid", x, name="x")
    return graph.finish({"z": ("N", vae.z)}, {"x": ("N", 3, 64, 64)})


def dream_graph(model: MDNRNN, *, miss: float, hit: float) -> bytes:
    """M's step in the dream, as `wm.memory.dream.Dreamer.step`, with the temperature as an input.

    Inputs: z f32[N,Z], h and c f32[N,H], a f32[N,A]; uniform f32[N,Z] in [0, 1) and noise f32[N,Z], standard normal,
    which are all its randomness; temperature f32[1], above 0. Outputs: next_z, next_h, next_c; weights f32[N,K,Z]
    of the mixture at that temperature; reward f32[N], expected if the step does not terminate; terminated f32[N],
    the probability that it does.

    Args:
        model: M.
        miss: Mean reward of a step that touches no tile; unused with a value head.
        hit: Mean reward of a step that touches a tile; unused with a value head.
    """
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    z, hidden, mixtures = model.z, model.hidden, model.mixtures
    graph = _Graph()

    def linear(x: str, weight: str, bias: str) -> str:
        return graph.add("Gemm", x, graph.half(weight, weights[weight]), graph.half(bias, weights[bias]), transB=1)

    # The LSTM, its gates in torch's order.
    seen = linear(graph.add("Concat", "z", "a", axis=-1), "lstm.weight_ih_l0", "lstm.bias_ih_l0")
    gates = graph.add("Add", seen, linear("h", "lstm.weight_hh_l0", "lstm.bias_hh_l0"))
    i, f, g, o = graph.split(gates, *[hidden] * 4)
    i, f, o = (graph.add("Sigmoid", gate) for gate in (i, f, o))
    fresh = graph.add("Mul", i, graph.add("Tanh", g))
    c = graph.add("Add", graph.add("Mul", f, "c"), fresh, name="next_c")
    h = graph.add("Mul", o, graph.add("Tanh", c), name="next_h")

    # The mixtures, at the temperature.
    mixture = linear(h, "mixture_head.weight", "mixture_head.bias")
    by_component = graph.constant("by_component", np.array([-1, mixtures, z]))
    size = mixtures * z
    logits, mu, logsigma = (graph.add("Reshape", part, by_component) for part in graph.split(mixture, size, size, size))
    mix = graph.add("Softmax", graph.add("Div", logits, "temperature"), axis=1, name="weights")

    # The component is the number of cumulative weights <= the uniform draw. The last weight is left out, so that
    # rounding cannot give an index past the last component.
    one = graph.constant("one", np.array([1]))
    cumulative = graph.add("CumSum", mix, graph.constant("axis", np.array(1)))
    reachable = [graph.constant(name, np.array([at])) for name, at in (("from", 0), ("to", mixtures - 1))]
    cumulative = graph.add("Slice", cumulative, *reachable, one)
    reached = graph.add("GreaterOrEqual", graph.add("Unsqueeze", "uniform", one), cumulative)
    reached = graph.add("Cast", reached, to=TensorProto.INT64)
    component = graph.add("ReduceSum", reached, one, keepdims=1)
    mu, logsigma = (
        graph.add("Squeeze", graph.add("GatherElements", part, component, axis=1), one) for part in (mu, logsigma)
    )
    floor = graph.constant("floor", float(model.logsigma_floor))
    above = graph.add("Softplus", graph.add("Sub", logsigma, floor))
    sigma = graph.add("Mul", graph.add("Exp", graph.add("Add", above, floor)), graph.add("Sqrt", "temperature"))
    graph.add("Add", mu, graph.add("Mul", sigma, "noise"), name="next_z")

    # The heads.
    reward = graph.add("Squeeze", linear(h, "reward_head.weight", "reward_head.bias"), one)
    if model.reward == "tile":
        gain = graph.add("Mul", graph.add("Sigmoid", reward), graph.constant("gain", hit - miss))
        graph.add("Add", gain, graph.constant("miss", miss), name="reward")
    else:
        graph.add("Identity", reward, name="reward")
    ends = graph.add("Squeeze", linear(h, "terminated_head.weight", "terminated_head.bias"), one)
    graph.add("Sigmoid", ends, name="terminated")

    state: Shapes = {"z": ("N", z), "h": ("N", hidden), "c": ("N", hidden)}
    given: Shapes = {"a": ("N", model.actions), "uniform": ("N", z), "noise": ("N", z), "temperature": (1,)}
    heads: Shapes = {"weights": ("N", mixtures, z), "reward": ("N",), "terminated": ("N",)}
    return graph.finish({**state, **given}, {**{f"next_{name}": shape for name, shape in state.items()}, **heads})


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
    graph = _Graph()
    weights = [graph.constant("weight", weight.reshape(ACTIONS, -1)), graph.constant("bias", bias)]
    raw = graph.add("Tanh", graph.add("Gemm", graph.add("Concat", "z", "h", axis=-1), *weights, transB=1))
    steer, gas, brake = graph.split(raw, 1, 1, 1)
    gas = graph.add("Mul", graph.add("Add", gas, graph.constant("one", 1.0)), graph.constant("half", 0.5))
    graph.add("Concat", steer, gas, graph.add("Relu", brake), axis=-1, name="a")
    return graph.finish({"z": ("N", z), "h": ("N", hidden)}, {"a": ("N", ACTIONS)})


def starts_graph(starts: Starts) -> bytes:
    """The starts: number i32[N], from 0, to z f32[N,Z], h f32[N,H] and c f32[N,H]."""
    graph = _Graph()
    for name in STATES:
        rounded = graph.constant(f"all_{name}", getattr(starts, name).astype(np.float16))
        graph.add("Cast", graph.add("Gather", rounded, "number"), name=name, to=TensorProto.FLOAT)
    shapes: Shapes = {name: ("N", getattr(starts, name).shape[1]) for name in STATES}
    return graph.finish({"number": ("N",)}, shapes, integer=("number",))


def spread(starts: Starts) -> NDArray[np.float32]:
    """f32[Z]: standard deviation of each dimension of z over the starts; near 0 for a dead dimension."""
    found: NDArray[np.float32] = np.std(starts.z, axis=0)
    return found
