"""The graphs of a run against torch models that hold the same rounded weights."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from tests.toy_dream import toy_mdnrnn
from wm.controller.linear import LinearController
from wm.dream.networks import load_networks
from wm.driving.loading import load_acting
from wm.memory.fused import FusedMDNRNN, make_dreamer
from wm.memory.graph import dream_graph
from wm.memory.mdnrnn import MDNRNN
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.show.graphs.controller import controller_graph
from wm.show.graphs.starts import spread, starts_graph
from wm.store.starts import load_starts
from wm.vision.graph import decoder_graph
from wm.vision.vae import VAE

PRETRAINED = Run(Path(__file__).parent.parent / "data" / "pretrained")
STEPS = 100
CLOSE = 1e-4


def session(graph: bytes) -> onnxruntime.InferenceSession:
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run(graph: onnxruntime.InferenceSession, **inputs: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
    names = [output.name for output in graph.get_outputs()]
    return dict(zip(names, graph.run(None, inputs), strict=True))


def constants(graph: bytes) -> dict[str, torch.Tensor]:
    """The weights that a graph holds, by name; what is large must be in half precision."""
    found = {}
    for each in onnx.load_from_string(graph).graph.initializer:
        array = onnx.numpy_helper.to_array(each)
        if array.dtype.kind == "f" and array.ndim:
            assert array.dtype == np.float16
            found[each.name] = torch.from_numpy(array.astype(np.float32))
    return found


def rounded_vae(graph: bytes, z: int) -> VAE:
    """A V that holds the decoder's rounded weights.

    Its first two layers are one in the graph: here the first hands z on, and a constant 1 that carries the bias.
    """
    held, vae = constants(graph), VAE(z)
    with torch.no_grad():
        for name, value in vae.named_parameters():
            if name.startswith(("deconv2", "deconv3", "deconv4")):
                value.copy_(held[name])
        vae.fc.weight.zero_()[:z] = torch.eye(z)
        vae.fc.bias.zero_()[z] = 1
        vae.deconv1.weight.zero_()[:z] = held["first.weight"].T.reshape(z, 128, 5, 5)
        vae.deconv1.weight[z] = held["first.bias"].reshape(128, 5, 5)
        assert vae.deconv1.bias is not None
        vae.deconv1.bias.zero_()
    return vae.eval()


def rounded_mdnrnn(graph: bytes, model: MDNRNN) -> MDNRNN:
    """An M that holds the graph's rounded weights."""
    other = MDNRNN(model.z, model.actions, model.hidden, model.mixtures, model.reward, model.logsigma_floor)
    other.load_state_dict(constants(graph))
    return other.eval()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The steps are small: on busy cores threads would wait for one another most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def networks() -> tuple[VAE, MDNRNN]:
    found = load_networks(PRETRAINED)
    return found.vae, found.mdnrnn


@torch.inference_mode()
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.4])
def test_a_hundred_teacher_forced_steps(networks: tuple[VAE, MDNRNN], temperature: float) -> None:
    """Graphs and torch are given the same z, actions and noise at each step; each keeps a state of its own."""
    starts, (vae, model) = load_starts(PRETRAINED.starts), networks
    rng = np.random.default_rng(0)
    decoder, dream = decoder_graph(vae), dream_graph(model, miss=-0.1, hit=3.2)
    torch_vae, torch_model = rounded_vae(decoder, model.z), rounded_mdnrnn(dream, model)
    dreamer = FusedMDNRNN(torch_model, miss=-0.1, hit=3.2, temperature=temperature)
    decode, step = session(decoder), session(dream)

    state = torch_state = (starts.h[:2], starts.c[:2])
    dreamt = []
    h, c = (torch.from_numpy(part).unsqueeze(0) for part in torch_state)
    for t in range(STEPS):
        z = starts.z[2 * t : 2 * t + 2]
        a = rng.uniform([-1, 0, 0], 1, (2, 3)).astype(np.float32)
        uniform, noise = rng.random((2, model.z), np.float32), rng.standard_normal((2, model.z), np.float32)
        given = {"z": z, "a": a, "uniform": uniform, "noise": noise}
        found = run(step, **given, h=state[0], c=state[1], temperature=np.array([temperature], np.float32))
        state = found["next_h"], found["next_c"]
        wanted = dreamer.step(*map(torch.from_numpy, (z, *torch_state, a, uniform, noise)))
        torch_state = wanted.h.numpy(), wanted.c.numpy()
        for name, value in (
            *(("next_z", wanted.z), ("next_h", wanted.h), ("next_c", wanted.c)),
            *(("reward", wanted.reward), ("terminated", wanted.terminated)),
        ):
            np.testing.assert_allclose(found[name], value.numpy(), rtol=0, atol=CLOSE, err_msg=f"{name} at step {t}")
        prediction, (h, c) = torch_model(*(torch.from_numpy(part).unsqueeze(1) for part in (z, a)), (h, c))
        weights = (prediction.logmix[:, 0] / temperature).softmax(-1).transpose(1, 2)
        np.testing.assert_allclose(found["weights"], weights.numpy(), rtol=0, atol=CLOSE)
        np.testing.assert_allclose(found["next_h"], h[0].numpy(), rtol=0, atol=CLOSE)
        dreamt.append(found["next_z"])
    z = np.concatenate(dreamt)
    x = run(decode, z=z)["x"]
    assert (x.shape, x.dtype) == ((2 * STEPS, 3, 64, 64), np.float32)
    np.testing.assert_allclose(x, torch_vae.decode(torch.from_numpy(z)).numpy(), rtol=0, atol=CLOSE)


@torch.inference_mode()
def test_rounding_changes_nothing_that_could_be_seen(networks: tuple[VAE, MDNRNN]) -> None:
    vae, model = networks
    starts = load_starts(PRETRAINED.starts)
    z = torch.from_numpy(starts.z[:32])
    x = run(session(decoder_graph(vae)), z=starts.z[:32])["x"]
    assert np.abs(x - vae.decode(z).numpy()).max() < 1 / 255
    dreamer = make_dreamer(model, starts, temperature=1.0)
    a, even, none = (
        np.full((32, 3), 0.3, np.float32),
        np.full((32, 32), 0.5, np.float32),
        np.zeros((32, 32), np.float32),
    )
    wanted = dreamer.step(z, *map(torch.from_numpy, (starts.h[:32], starts.c[:32], a, even, none)))
    miss, hit, _ = starts.rewards.tolist()
    found = run(
        session(dream_graph(model, miss=miss, hit=hit)),
        **{"z": starts.z[:32], "h": starts.h[:32], "c": starts.c[:32], "a": a, "uniform": even, "noise": none},
        temperature=np.ones(1, np.float32),
    )
    assert np.median(np.abs(found["next_z"] - wanted.z.numpy())) < 1e-3
    assert np.abs(found["next_h"] - wanted.h.numpy()).max() < 1e-2


@torch.inference_mode()
@pytest.mark.parametrize(("mixtures", "reward"), [(1, "tile"), (3, "value")])
def test_other_ms(mixtures: int, reward: str) -> None:
    toy = toy_mdnrnn(reward=reward)
    model = MDNRNN(toy.z, 3, toy.hidden, mixtures, reward=reward)
    graph = dream_graph(model, miss=-1.0, hit=2.0)
    dreamer = FusedMDNRNN(rounded_mdnrnn(graph, model), miss=-1.0, hit=2.0, temperature=0.7)
    rng = np.random.default_rng(1)
    z, h, c, a, noise = (
        rng.standard_normal((6, size), np.float32) for size in (toy.z, toy.hidden, toy.hidden, 3, toy.z)
    )
    uniform = rng.random((6, toy.z), np.float32)
    found = run(
        session(graph), z=z, h=h, c=c, a=a, uniform=uniform, noise=noise, temperature=np.array([0.7], np.float32)
    )
    wanted = dreamer.step(*map(torch.from_numpy, (z, h, c, a, uniform, noise)))
    for name, value in (("next_z", wanted.z), ("reward", wanted.reward), ("terminated", wanted.terminated)):
        np.testing.assert_allclose(found[name], value.numpy(), rtol=0, atol=CLOSE)


def test_the_controller_is_the_runs_controller() -> None:
    starts = load_starts(PRETRAINED.starts)
    _, theta = load_acting(PRETRAINED)
    controller = LinearController(theta, 288)
    found = run(session(controller_graph(theta, 32, 256)), z=starts.z[:50], h=starts.h[:50])["a"]
    wanted = [controller(np.concatenate(pair)) for pair in zip(starts.z[:50], starts.h[:50], strict=True)]
    np.testing.assert_allclose(found, np.stack(wanted), rtol=0, atol=1e-5)
    assert found[:, 0].min() < 0 < found[:, 0].max()
    with pytest.raises(ValueError, match=r"theta has shape \(867,\)"):
        controller_graph(theta, 32, 255)


def test_starts_are_the_runs_starts() -> None:
    starts = load_starts(PRETRAINED.starts)
    found = run(session(starts_graph(starts)), number=np.array([7, 0], np.int32))
    for name in ("z", "h", "c"):
        np.testing.assert_array_equal(found[name], getattr(starts, name)[[7, 0]])
    assert (spread(starts) > 0.3).sum() < 32


def test_weights_beyond_half_precision_are_refused(networks: tuple[VAE, MDNRNN]) -> None:
    model = toy_mdnrnn()
    with torch.no_grad():
        model.reward_head.weight[0, 0] = 1e6
    with pytest.raises(UserError, match=r"reward_head\.weight has weights beyond the range of float16"):
        dream_graph(model, miss=0.0, hit=1.0)


def test_what_a_browser_loads_is_small(networks: tuple[VAE, MDNRNN]) -> None:
    vae, model = networks
    _, theta = load_acting(PRETRAINED)
    graphs = [
        decoder_graph(vae),
        dream_graph(model, miss=-0.1, hit=3.2),
        controller_graph(theta, 32, 256),
        starts_graph(load_starts(PRETRAINED.starts)),
    ]
    assert sum(map(len, graphs)) < 2_500_000
