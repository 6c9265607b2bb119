"""What one frame costs to encode on one core, by every way that is installed, and what V's training makes.

    OPENBLAS_NUM_THREADS=1 python -m tests.bench_encoder

The ways take turns, and the best of several rounds counts, so that a busy machine distorts the ratios little.
OpenVINO is no requirement of this project; it is measured where it is installed.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import time
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided

from wm.config.presets import PAPER
from wm.run.device import has_fast_bf16, seeded
from wm.vision.encoder import Encoder, encoder_graph, quantised_graph
from wm.vision.training import batch_loss as loss
from wm.vision.vae import VAE, activation_ranges, as_input

Encode = Callable[[np.ndarray], np.ndarray]


def by_torch(layout: torch.memory_format) -> Encode:
    """V itself, in torch."""
    model = seeded(VAE, 0).eval()
    model.to(memory_format=layout)  # type: ignore[call-overload]

    @torch.inference_mode()
    def encode(frame: np.ndarray) -> np.ndarray:
        x = as_input(torch.from_numpy(frame)[None]).contiguous(memory_format=layout)
        return model.encode(x)[0][0].numpy()

    return encode


def by_numpy(weights: dict[str, np.ndarray]) -> Encode:
    """Patches of the frame as rows of a matrix, and OpenBLAS."""
    kernels = [weights[f"conv{i}.weight"].transpose(2, 3, 1, 0) for i in range(1, 5)]
    matrices = [np.ascontiguousarray(k.reshape(-1, k.shape[3])) for k in kernels]
    biases = [weights[f"conv{i}.bias"] for i in range(1, 5)]
    last = weights["mu.weight"].reshape(-1, 256, 2, 2).transpose(0, 2, 3, 1).reshape(-1, 1024).copy()

    def encode(frame: np.ndarray) -> np.ndarray:
        x = frame.astype(np.float32) / np.float32(255)
        for matrix, bias in zip(matrices, biases, strict=True):
            size, _, channels = x.shape
            out = (size - 4) // 2 + 1
            a, b, c = x.strides
            patches = as_strided(x, (out, out, 4, 4, channels), (2 * a, 2 * b, a, b, c))
            y = patches.reshape(out * out, -1) @ matrix + bias
            x = np.maximum(y, 0).reshape(out, out, -1)
        return last @ x.reshape(-1) + weights["mu.bias"]

    return encode


def by_openvino(graph: bytes, precision: str) -> Encode:
    """The same graph in OpenVINO."""
    import openvino  # type: ignore[import-not-found]

    core = openvino.Core()
    options = {
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = core.compile_model(core.read_model(graph), "CPU", options).create_infer_request()
    return lambda frame: request.infer([frame[None]], share_inputs=True)[0][0]


def encoders() -> dict[str, Encode]:
    """Every way that is installed, by name."""
    model = seeded(VAE, 0)
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    ranges = activation_ranges(model, np.random.default_rng(1).integers(0, 256, (50, 64, 64, 3), dtype=np.uint8))
    for when in ("first", "again"):
        start = time.perf_counter()
        graph = encoder_graph(weights)
        built = time.perf_counter()
        Encoder(graph)
        print(f"graph {1e3 * (built - start):.1f} ms, session {1e3 * (time.perf_counter() - built):.1f} ms ({when})")
    ways: dict[str, Encode] = {
        "onnxruntime float32 (chosen)": Encoder(graph),
        "onnxruntime int8 (chosen)": Encoder(quantised_graph(weights, ranges)),
        "numpy im2col float32": by_numpy(weights),
        "torch float32": by_torch(torch.contiguous_format),
        "torch float32 channels-last": by_torch(torch.channels_last),
    }
    if importlib.util.find_spec("openvino"):
        for precision in ("f32", "bf16"):
            ways[f"openvino {precision}"] = by_openvino(graph, precision)
    return ways


def encoding(rounds: int = 8, calls: int = 200) -> None:
    """Prints milliseconds a frame of each way and how far it is from the chosen one in float32."""
    torch.set_num_threads(1)
    ways = encoders()
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, encode in ways.items():
            encode(frame)
            start = time.perf_counter()
            for _ in range(calls):
                encode(frame)
            best[name] = min(best[name], (time.perf_counter() - start) / calls)
    first, *_ = ways.values()
    truth = first(frame)
    print(f"{'one frame, one thread':32s} {'ms':>6s} {'x':>5s}  largest difference")
    for name, encode in ways.items():
        ratio = best[name] / min(best.values())
        print(f"{name:32s} {1e3 * best[name]:6.3f} {ratio:5.2f}  {np.abs(encode(frame) - truth).max():.1e}")


def training(rounds: int = 3, updates: int = 4) -> None:
    """Prints frames per second of V's training on all cores, by layout and precision."""
    torch.set_num_threads(os.cpu_count() or 1)
    frames = np.random.default_rng(0).integers(0, 256, (PAPER.vae.batch, 64, 64, 3), dtype=np.uint8)
    layouts = {"channels-last": torch.channels_last, "channels-first": torch.contiguous_format}
    best: dict[tuple[str, bool], float] = {}
    for _, (layout, memory_format), bf16 in itertools.product(range(rounds), layouts.items(), (True, False)):
        model = seeded(VAE, 0)
        model.to(memory_format=memory_format)  # type: ignore[call-overload]
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
        generator = torch.Generator()
        with patch("wm.vision.training.autocast", lambda _, on=bf16: torch.autocast("cpu", torch.bfloat16, enabled=on)):
            for update in range(updates + 1):
                if update == 1:
                    start = time.perf_counter()  # the first update prepares kernels
                optimizer.zero_grad(set_to_none=True)
                loss(model, frames, generator, config=PAPER.vae, device=torch.device("cpu"))[0].backward()
                optimizer.step()
        speed = updates * len(frames) / (time.perf_counter() - start)
        best[layout, bf16] = max(best.get((layout, bf16), 0.0), speed)
    print(f"training V on {torch.get_num_threads()} threads (the stage takes channels-last and", end=" ")
    print(f"{'bfloat16' if has_fast_bf16(torch.device('cpu')) else 'float32'} here)")
    for (layout, bf16), speed in best.items():
        print(f"{layout:16s} {'bfloat16' if bf16 else 'float32':10s} {speed:6.0f} frames/s")


if __name__ == "__main__":
    encoding()
    training()
