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
from wm.contracts import Pays
from wm.controller.hidden import Hidden
from wm.controller.linear import Linear
from wm.dream.networks import load_networks
from wm.dream.step import dream_step
from wm.driving.loading import load_acting
from wm.envs.action import Action
from wm.memory.fused import FusedMDNRNN
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
PAYS = Pays(-0.1, 3.2, -100.0)
READS = (("z", 32), ("h", 256))


def session(graph: bytes) -> onnxruntime.InferenceSession:
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run(graph: onnxruntime.InferenceSession, **inputs: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
    names = [output.name for output in graph.get_outputs()]
    return dict(zip(names, graph.run(None, inputs), strict=True))


def tensors(**arrays: NDArray[np.float32]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


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
    assert isinstance(found.vision, VAE)
    assert isinstance(found.memory, MDNRNN)
    return found.vision, found.memory


@torch.inference_mode()
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.4])
def test_a_hundred_teacher_forced_steps(networks: tuple[VAE, MDNRNN], temperature: float) -> None:
    """Graphs and torch are given the same z, actions and noise at each step; each keeps a state of its own."""
    starts, (vae, model) = load_starts(PRETRAINED.starts), networks
    rng = np.random.default_rng(0)
    decoder, dream = decoder_graph(vae), dream_graph(model, PAYS)
    torch_vae, torch_model = rounded_vae(decoder, model.z), rounded_mdnrnn(dream, model)
    dreamer = FusedMDNRNN(torch_model, pays=PAYS, temperature=temperature)
    decode, step = session(decoder), session(dream)

    state = {name: starts.state[name][:2] for name in ("h", "c")}
    torch_state = tensors(**state)
    dreamt = []
    h, c = (part.unsqueeze(0) for part in torch_state.values())
    for t in range(STEPS):
        z = starts.state["z"][2 * t : 2 * t + 2]
        a = rng.uniform([-1, 0, 0], 1, (2, 3)).astype(np.float32)
        noise = {
            "uniform": rng.random((2, model.z), np.float32),
            "noise": rng.standard_normal((2, model.z), np.float32),
        }
        found = run(step, z=z, a=a, **noise, **state, temperature=np.array([temperature], np.float32))
        state = {name: found[f"next_{name}"] for name in state}
        seen = {"z": torch.from_numpy(z), **torch_state}
        following, reward, terminated = dream_step(dreamer, seen, torch.from_numpy(a), tensors(**noise))
        torch_state = {name: following[name] for name in torch_state}
        wanted = {**{f"next_{name}": part for name, part in following.items()}, "reward": reward}
        for name, value in (*wanted.items(), ("terminated", terminated)):
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
    state = {name: part[:32] for name, part in starts.state.items()}
    x = run(session(decoder_graph(vae)), z=state["z"])["x"]
    assert np.abs(x - vae.decode(torch.from_numpy(state["z"])).numpy()).max() < 1 / 255
    dreamer = model.dreaming(starts.pays)
    a = np.full((32, 3), 0.3, np.float32)
    noise = {"uniform": np.full((32, 32), 0.5, np.float32), "noise": np.zeros((32, 32), np.float32)}
    wanted, _, _ = dream_step(dreamer, tensors(**state), torch.from_numpy(a), tensors(**noise))
    found = run(session(dream_graph(model, starts.pays)), **state, a=a, **noise, temperature=np.ones(1, np.float32))
    assert np.median(np.abs(found["next_z"] - wanted["z"].numpy())) < 1e-3
    assert np.abs(found["next_h"] - wanted["h"].numpy()).max() < 1e-2


@torch.inference_mode()
@pytest.mark.parametrize(("mixtures", "reward"), [(1, "pulse"), (3, "value")])
def test_other_ms(mixtures: int, reward: str) -> None:
    toy = toy_mdnrnn(reward=reward)
    model = MDNRNN(toy.z, 3, toy.hidden, mixtures, reward=reward)
    pays = Pays(-1.0, 2.0, -9.0)
    graph = dream_graph(model, pays)
    dreamer = FusedMDNRNN(rounded_mdnrnn(graph, model), pays=pays, temperature=0.7)
    rng = np.random.default_rng(1)
    sizes = {"z": toy.z, "h": toy.hidden, "c": toy.hidden, "a": 3, "noise": toy.z}
    given = {name: rng.standard_normal((6, size), np.float32) for name, size in sizes.items()}
    given["uniform"] = rng.random((6, toy.z), np.float32)
    found = run(session(graph), **given, temperature=np.array([0.7], np.float32))
    parts = tensors(**given)
    state, noise = ({name: parts[name] for name in names} for names in (("z", "h", "c"), ("uniform", "noise")))
    following, earned, terminated = dream_step(dreamer, state, parts["a"], noise)
    said = {"next_z": following["z"], "reward": earned, "terminated": terminated}
    for name, value in said.items():
        np.testing.assert_allclose(found[name], value.numpy(), rtol=0, atol=CLOSE)


def test_the_controller_is_the_runs_controller() -> None:
    state = load_starts(PRETRAINED.starts).state
    models, theta = load_acting(PRETRAINED)
    controller, action = models.layout.controller(theta, 288), models.task.action
    graph = controller_graph(theta, models.layout, action, READS)
    found = run(session(graph), z=state["z"][:50], h=state["h"][:50])["a"]
    wanted = [
        action.squash(controller(np.concatenate(pair))) for pair in zip(state["z"][:50], state["h"][:50], strict=True)
    ]
    np.testing.assert_allclose(found, np.stack(wanted), rtol=0, atol=1e-5)
    assert found[:, 0].min() < 0 < found[:, 0].max()
    with pytest.raises(ValueError, match=r"theta has shape \(867,\)"):
        controller_graph(theta, models.layout, action, (("z", 32), ("h", 255)))


@pytest.mark.parametrize("layout", [Linear(2), Hidden(2, units=5)])
@pytest.mark.parametrize("action", [Action(("left", "right")), Action(("a", "b"), ("half", "tanh"), (0, -3), (2, 1))])
def test_other_controllers_and_actions(layout: Linear | Hidden, action: Action) -> None:
    rng = np.random.default_rng(2)
    theta, z = rng.standard_normal(layout.count(4), np.float32), rng.standard_normal((20, 4), np.float32)
    found = run(session(controller_graph(theta, layout, action, (("z", 4),))), z=z)["a"]
    controller = layout.controller(theta, 4)
    np.testing.assert_allclose(found, [action.squash(controller(row)) for row in z], rtol=0, atol=1e-5)


def test_starts_are_the_runs_starts() -> None:
    starts = load_starts(PRETRAINED.starts)
    found = run(session(starts_graph(starts)), number=np.array([7, 0], np.int32))
    for name in ("z", "h", "c"):
        np.testing.assert_array_equal(found[name], starts.state[name][[7, 0]])
    assert (spread(starts) > 0.3).sum() < 32


def test_weights_beyond_half_precision_are_refused(networks: tuple[VAE, MDNRNN]) -> None:
    model = toy_mdnrnn()
    with torch.no_grad():
        model.reward_head.weight[0, 0] = 1e6
    with pytest.raises(UserError, match=r"reward_head\.weight has weights beyond the range of float16"):
        dream_graph(model, PAYS)


def test_what_a_browser_loads_is_small(networks: tuple[VAE, MDNRNN]) -> None:
    vae, model = networks
    models, theta = load_acting(PRETRAINED)
    graphs = [
        decoder_graph(vae),
        dream_graph(model, PAYS),
        controller_graph(theta, models.layout, models.task.action, READS),
        starts_graph(load_starts(PRETRAINED.starts)),
    ]
    assert sum(map(len, graphs)) < 2_500_000
