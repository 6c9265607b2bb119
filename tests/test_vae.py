"""V: the paper's counts, its loss, what its first deconvolution is, and vae.pt."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import conv_transpose2d, relu

from wm.run.device import seeded
from wm.run.errors import UserError
from wm.vision.vae import PARAMETERS, VAE, as_input, kl_per_dimension, load_vae, save_vae, vae_loss


@pytest.fixture(scope="module")
def model() -> VAE:
    return seeded(VAE, 1).eval()


@pytest.fixture
def saved(model: VAE, tmp_path: Path) -> Path:
    save_vae(tmp_path / "vae.pt", model.state_dict(), {"z": 32, "updates": 7}, {"rollouts": "abc"})
    return tmp_path / "vae.pt"


def test_parameter_count_is_the_papers(model: VAE) -> None:
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS == 4_348_547


@torch.no_grad()
def test_shapes_and_ranges(model: VAE) -> None:
    for batch in (1, 3):
        frames = torch.randint(0, 256, (batch, 64, 64, 3), dtype=torch.uint8)
        x = as_input(frames)
        assert x.shape == (batch, 3, 64, 64)
        assert x.dtype == torch.float32
        assert x[0, 2, 5, 9].item() == pytest.approx(frames[0, 5, 9, 2].item() / 255)
        mu, logvar = model.encode(x)
        assert mu.shape == logvar.shape == (batch, 32)
        y = model.decode(mu)
        assert y.shape == x.shape
        assert y.dtype == torch.float32
        assert 0 <= y.min() <= y.max() <= 1


@torch.no_grad()
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_first_deconvolution_is_one(layout: torch.memory_format) -> None:
    """The decoder writes its first deconvolution as a matrix product: it must be the layer that is stored."""
    model = seeded(VAE, 2)
    model.to(memory_format=layout)  # type: ignore[call-overload]
    z = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    first = relu(model.deconv1(model.fc(z)[:, :, None, None]))
    plain = model.deconv4(relu(model.deconv3(relu(model.deconv2(first))))).sigmoid()
    torch.testing.assert_close(model.decode(z), plain, atol=1e-6, rtol=0)
    assert model.deconv1.weight.shape == (1024, 128, 5, 5)
    assert conv_transpose2d(torch.zeros(1, 1024, 1, 1), model.deconv1.weight).shape == (1, 128, 5, 5)


@given(st.floats(-3, 3), st.floats(-4, 2))
@settings(deadline=None, max_examples=50)
def test_kl_is_that_of_two_normals(mu: float, logvar: float) -> None:
    m, v = torch.tensor([[mu]], dtype=torch.float64), torch.tensor([[logvar]], dtype=torch.float64)
    expected = kl_divergence(Normal(m, (v / 2).exp()), Normal(torch.zeros(1, 1), torch.ones(1, 1)))
    torch.testing.assert_close(kl_per_dimension(m, v), expected.double())


def test_loss_sums_over_an_image_and_averages_over_the_batch() -> None:
    x = torch.zeros(2, 3, 64, 64)
    y = x.clone()
    y[0] = 0.1  # an error of 0.01 in each of 12,288 numbers of one image in two
    kl = torch.tensor([[0.5, 0.25], [3.0, 1.0]])
    value, error = vae_loss(x, y, kl, free_nats=0.5)
    assert error.item() == pytest.approx(12_288 * 0.01 / 2, rel=1e-5)
    assert value.item() == pytest.approx(12_288 * 0.01 / 2 + (1.0 + 4.0) / 2, rel=1e-5)


def test_the_weight_of_the_kl() -> None:
    x = torch.zeros(2, 3, 64, 64)
    kl = torch.tensor([[30.0, 2.0], [10.0, 8.0]])
    value, error = vae_loss(x, x + 0.1, kl, 0.5, kl_weight=0.1)
    assert error.item() == pytest.approx(12_288 * 0.01, rel=1e-4)
    assert value.item() == pytest.approx(12_288 * 0.01 + 0.1 * 25, rel=1e-4)


def test_free_nats_are_per_image_and_stop_the_gradient() -> None:
    kl = torch.tensor([[0.1, 0.1], [2.0, 2.0]], requires_grad=True)
    x = torch.zeros(2, 3, 64, 64)
    value, _ = vae_loss(x, x, kl, free_nats=0.5)
    value.backward()
    # A clamp after the mean over the batch would push both images or neither.
    assert kl.grad is not None
    assert kl.grad.tolist() == [[0.0, 0.0], [0.5, 0.5]]


def test_round_trip(model: VAE, saved: Path) -> None:
    before = torch.random.get_rng_state()
    loaded, meta = load_vae(saved)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not loaded.training
    assert meta["config"] == {"z": 32, "updates": 7}
    assert meta["made_from"] == {"rollouts": "abc"}
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_float16_becomes_float32(model: VAE, saved: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.pt"
    save_vae(half, {name: value.half() for name, value in model.state_dict().items()}, {"z": 32}, {})
    assert half.stat().st_size < 0.52 * saved.stat().st_size
    loaded, _ = load_vae(half)
    assert loaded.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(loaded.conv1.weight, model.conv1.weight, atol=1e-3, rtol=0)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vae\.pt is missing: make it with `make vae`"):
        load_vae(tmp_path / "vae.pt")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_truncated(saved: Path, share: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match="damaged"):
        load_vae(saved)


def test_foreign_bytes(saved: Path) -> None:
    saved.write_bytes(np.random.default_rng(0).bytes(10_000))
    with pytest.raises(UserError, match="damaged"):
        load_vae(saved)


def _artifact(saved: Path) -> dict:
    return torch.load(saved, weights_only=True)


@pytest.mark.parametrize("change", ["kind", "format", "keys", "shape", "nan", "integers", "config", "z", "list"])
def test_refuses_what_is_no_v(saved: Path, change: str) -> None:
    artifact = _artifact(saved)
    weights = artifact["model"]
    if change == "kind":
        artifact["kind"] = "mdnrnn"
    elif change == "format":
        artifact["format"] = 999
    elif change == "keys":
        del weights["mu.bias"]
    elif change == "shape":
        weights["mu.bias"] = torch.zeros(31)
    elif change == "nan":
        weights["conv2.bias"][3] = float("nan")
    elif change == "integers":
        weights["conv2.bias"] = torch.zeros(64, dtype=torch.int64)
    elif change == "config":
        artifact["config"] = "z=32"
    elif change == "z":
        artifact["config"]["z"] = 16
    torch.save([artifact] if change == "list" else artifact, saved)
    with pytest.raises(UserError, match="make vae ARGS=--restart"):
        load_vae(saved)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_malicious_pickle_does_not_run(saved: Path, tmp_path: Path) -> None:
    witness = tmp_path / "was_here"
    artifact = _artifact(saved)
    torch.save({**artifact, "config": Evil(witness)}, saved)
    with pytest.raises(UserError, match="damaged or foreign"):
        load_vae(saved)
    saved.write_bytes(pickle.dumps(Evil(witness), protocol=2))
    with pytest.raises(UserError, match="damaged or foreign"):
        load_vae(saved)
    assert not witness.exists()
    pickle.loads(saved.read_bytes())
    assert witness.exists()  # it would have run


def test_equal_weights_make_equal_files(tmp_path: Path) -> None:
    model = VAE()
    for name in ("a.pt", "b.pt"):
        save_vae(tmp_path / name, model.state_dict(), {"z": 32}, {})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
