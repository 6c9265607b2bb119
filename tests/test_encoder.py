"""The encoder for acting: equal to V's, without torch, quick to make."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wm.train import seeded
from wm.vision.encoder import Encoder, encoder_graph
from wm.vision.vae import VAE, as_input


def weights(model: VAE) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def model() -> VAE:
    """A V whose latents are of the size of a trained one's, so that a tolerance of 1e-4 means something."""
    model = seeded(VAE, 3).eval()
    with torch.no_grad():
        for layer in (model.conv1, model.conv2, model.conv3, model.conv4, model.mu):
            layer.weight *= 2
    return model


@pytest.fixture(scope="module")
def encoder(model: VAE) -> Encoder:
    return Encoder(encoder_graph(weights(model)))


@torch.no_grad()
def expected(model: VAE, frame: np.ndarray) -> np.ndarray:
    return model.encode(as_input(torch.from_numpy(frame)[None]))[0][0].numpy()


@given(st.integers(0, 2**32 - 1), st.sampled_from(["noise", "flat", "blocks"]))
@settings(deadline=None, max_examples=30)
def test_equals_torch(model: VAE, encoder: Encoder, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    if kind == "noise":
        frame = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    elif kind == "flat":
        frame = np.broadcast_to(rng.integers(0, 256, 3, dtype=np.uint8), (64, 64, 3)).copy()
    else:
        frame = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    mu = encoder(frame)
    assert mu.dtype == np.float32
    assert mu.shape == (encoder.z,) == (32,)
    truth = expected(model, frame)
    assert np.abs(truth).max() > 0.01
    np.testing.assert_allclose(mu, truth, atol=1e-4, rtol=0)


def test_every_pixel_and_channel_counts(encoder: Encoder) -> None:
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    base = encoder(frame)
    for changed in (frame[::-1], frame[:, ::-1], frame[:, :, ::-1], frame.transpose(1, 0, 2)):
        assert np.abs(encoder(np.ascontiguousarray(changed)) - base).max() > 1e-3
        np.testing.assert_array_equal(encoder(changed), encoder(np.ascontiguousarray(changed)))


def test_results_are_the_callers_own(encoder: Encoder) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    first = encoder(frames[0])
    kept = first.copy()
    encoder(frames[1])
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(encoder(frames[0]), kept)


def test_other_latent_sizes() -> None:
    model = seeded(lambda: VAE(5), 0).eval()
    encoder = Encoder(encoder_graph(weights(model)))
    frame = np.full((64, 64, 3), 200, np.uint8)
    assert encoder.z == 5
    np.testing.assert_allclose(encoder(frame), expected(model, frame), atol=1e-4)


def test_a_graph_is_a_function_of_the_weights(model: VAE) -> None:
    assert encoder_graph(weights(model)) == encoder_graph(weights(model))


def test_workers_import_neither_torch_nor_onnx() -> None:
    code = "import sys, wm.vision.encoder; print([m for m in ('torch', 'onnx') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
