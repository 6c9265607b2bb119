"""The encoder for acting: in float32 equal to V's, in int8 equal to the same integers in torch; without torch."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wm.run.device import seeded
from wm.vision.encoder import LAYERS, WEIGHT_STEPS, Encoder, encoder_graph, quantised_graph
from wm.vision.vae import VAE, activation_ranges, as_input


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


def random_frame(seed: int, kind: str) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    if kind == "flat":
        return np.broadcast_to(rng.integers(0, 256, 3, dtype=np.uint8), (64, 64, 3)).copy()
    return rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)


FRAMES = st.builds(random_frame, st.integers(0, 2**32 - 1), st.sampled_from(["noise", "flat", "blocks"]))


@given(FRAMES)
@settings(deadline=None, max_examples=30)
def test_equals_torch(model: VAE, encoder: Encoder, frame: np.ndarray) -> None:
    mu = encoder(frame)
    assert mu.dtype == np.float32
    assert mu.shape == (encoder.z,) == (32,)
    truth = expected(model, frame)
    assert np.abs(truth).max() > 0.01
    np.testing.assert_allclose(mu, truth, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def ranges(model: VAE) -> list[float]:
    return activation_ranges(model, np.stack([random_frame(seed, "blocks") for seed in range(120)]))


@pytest.fixture(scope="module")
def quantised(model: VAE, ranges: list[float]) -> Encoder:
    return Encoder(quantised_graph(weights(model), ranges))


@torch.no_grad()
def in_integers(model: VAE, ranges: list[float], frame: np.ndarray) -> np.ndarray:
    """The quantised encoder by its definition, in torch; float64 holds its integers exactly."""
    x = torch.from_numpy(frame).permute(2, 0, 1)[None].double()
    scale = torch.tensor(1 / 255)
    for layer, largest in zip(model.convolutions, ranges, strict=True):
        step = layer.weight.abs().amax((1, 2, 3)) / WEIGHT_STEPS
        integers = (layer.weight / step[:, None, None, None]).round()
        assert layer.bias is not None
        bias = (layer.bias / (step * scale)).round()
        sums = torch.nn.functional.conv2d(x, integers.double(), bias.double(), stride=2)
        after = torch.tensor(largest / 255)
        x = (sums.float() * (scale * step / after)[:, None, None]).round().clamp(0, 255).double()
        scale = after
    return model.mu((x.float() * scale).flatten(1))[0].numpy()


@given(FRAMES)
@settings(deadline=None, max_examples=30)
def test_int8_equals_its_definition(model: VAE, quantised: Encoder, ranges: list[float], frame: np.ndarray) -> None:
    mu = quantised(frame)
    assert mu.dtype == np.float32
    np.testing.assert_allclose(mu, in_integers(model, ranges, frame), atol=1e-4, rtol=0)


def test_int8_is_close_to_v(model: VAE, quantised: Encoder) -> None:
    frames = [random_frame(seed, "blocks") for seed in range(1000, 1060)]
    found, truth = np.stack([quantised(f) for f in frames]), np.stack([expected(model, f) for f in frames])
    error = np.sqrt(((found - truth) ** 2).mean(0))
    assert (error < 0.1 * truth.std(0)).all()
    for mine, its in zip(found.T, truth.T, strict=True):
        assert np.corrcoef(mine, its)[0, 1] > 0.99


def test_int8_cuts_off_what_is_out_of_range(model: VAE, ranges: list[float]) -> None:
    narrow = [r / 4 for r in ranges]
    frame = random_frame(0, "noise")
    mu = Encoder(quantised_graph(weights(model), narrow))(frame)
    np.testing.assert_allclose(mu, in_integers(model, narrow, frame), atol=1e-4, rtol=0)
    assert np.abs(mu - expected(model, frame)).max() > 1e-3


def test_int8_with_a_silent_channel(model: VAE, ranges: list[float]) -> None:
    silent = {name: value.copy() for name, value in weights(model).items()}
    silent["conv2.weight"][5] = 0
    assert np.isfinite(Encoder(quantised_graph(silent, ranges))(random_frame(0, "noise"))).all()


def test_no_pair_of_products_overflows_16_bits() -> None:
    assert 2 * 255 * WEIGHT_STEPS < 2**15


def test_activation_ranges_are_the_largest(model: VAE) -> None:
    frames = np.stack([random_frame(seed, "noise") for seed in range(130)])
    with torch.no_grad():
        x = as_input(torch.from_numpy(frames))
        for layer, found in zip(model.convolutions, activation_ranges(model, frames), strict=True):
            x = layer(x).relu()
            assert found == pytest.approx(x.max().item(), rel=1e-5)
    assert len(LAYERS) == len(model.convolutions)


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


def test_a_graph_is_a_function_of_the_weights(model: VAE, ranges: list[float]) -> None:
    assert encoder_graph(weights(model)) == encoder_graph(weights(model))
    assert quantised_graph(weights(model), ranges) == quantised_graph(weights(model), ranges)


def test_workers_import_neither_torch_nor_onnx() -> None:
    code = "import sys, wm.vision.encoder; print([m for m in ('torch', 'onnx') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
