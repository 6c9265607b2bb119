"""V's decoder as an ONNX graph."""

from __future__ import annotations

import numpy as np

from wm.run.graph import Graph
from wm.vision.vae import VAE

SIDE = 5
"""Height and width of the output of the decoder's first deconvolution, whose input is a single pixel."""


def decoder_graph(vae: VAE) -> bytes:
    """V's decoder: z f32[N,Z] to x f32[N,3,64,64] in [0,1].

    The paper has no relu between the decoder's first two layers, so they are one linear function of z. As one matrix,
    named `first`, they take a thirtieth of the space and of the time.
    """
    weights = {name: value.detach().double().numpy() for name, value in vae.state_dict().items()}
    spread, pixels = weights["fc.weight"], weights["deconv1.weight"]  # [1024,Z], [1024,128,5,5]
    first = np.einsum("kz,kcij->cijz", spread, pixels, optimize=True)
    bias = np.einsum("k,kcij->cij", weights["fc.bias"], pixels, optimize=True) + weights["deconv1.bias"][:, None, None]

    graph = Graph()
    weight = graph.half("first.weight", first.reshape(-1, vae.z))
    x = graph.add("Gemm", "z", weight, graph.half("first.bias", bias.reshape(-1)), transB=1)
    x = graph.add("Reshape", x, graph.constant("shape", np.array([-1, len(bias), SIDE, SIDE])))
    for layer in ("deconv2", "deconv3", "deconv4"):
        parts = [graph.half(f"{layer}.{part}", weights[f"{layer}.{part}"]) for part in ("weight", "bias")]
        x = graph.add("ConvTranspose", graph.add("Relu", x), *parts, strides=[2, 2])
    graph.add("Sigmoid", x, name="x")
    return graph.finish({"z": ("N", vae.z)}, {"x": ("N", 3, 64, 64)})
