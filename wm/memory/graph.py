"""M's dream step as an ONNX graph."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from wm.contracts import Pays
from wm.memory.mdnrnn import MDNRNN
from wm.run.graph import Graph, Shapes


def dream_graph(model: MDNRNN, pays: Pays) -> bytes:
    """M's step in the dream, as `wm.memory.fused.FusedMDNRNN` computes it, with the temperature as an input.

    Inputs: z f32[N,Z], h and c f32[N,H], a f32[N,A]; uniform f32[N,Z] in [0, 1) and noise f32[N,Z], standard normal,
    which are all its randomness; temperature f32[1], above 0. Outputs: next_z, next_h, next_c; weights f32[N,K,Z]
    of the mixture at that temperature; reward f32[N], expected if the step does not terminate; terminated f32[N],
    the probability that it does.

    Args:
        model: M.
        pays: Mean rewards of the record; unused with a value head.
    """
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    z, hidden, mixtures = model.z, model.hidden, model.mixtures
    graph = Graph()

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
    if model.reward == "pulse":
        gain = graph.add("Mul", graph.add("Sigmoid", reward), graph.constant("gain", pays.hit - pays.miss))
        graph.add("Add", gain, graph.constant("miss", pays.miss), name="reward")
    else:
        graph.add("Identity", reward, name="reward")
    ends = graph.add("Squeeze", linear(h, "terminated_head.weight", "terminated_head.bias"), one)
    graph.add("Sigmoid", ends, name="terminated")

    state: Shapes = {"z": ("N", z), "h": ("N", hidden), "c": ("N", hidden)}
    given: Shapes = {"a": ("N", model.actions), "uniform": ("N", z), "noise": ("N", z), "temperature": (1,)}
    heads: Shapes = {"weights": ("N", mixtures, z), "reward": ("N",), "terminated": ("N",)}
    return graph.finish({**state, **given}, {**{f"next_{name}": shape for name, shape in state.items()}, **heads})
