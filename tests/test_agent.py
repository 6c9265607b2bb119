"""The agent against a plain torch loop: the acting order is right, whatever the workers' fast path does."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wm.controller.file import load_controller, save_controller
from wm.controller.linear import Linear
from wm.driving.loading import load_acting, load_agent, load_models
from wm.envs.car_racing.preprocess import preprocess
from wm.memory.mdnrnn import MDNRNN, save_mdnrnn
from wm.run.artifact import load_artifact, save_artifact
from wm.run.checksums import file_hash
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.vision.vae import VAE, activation_ranges, save_vae

Z, HIDDEN = 32, 256
FEATURES = Z + HIDDEN


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run folder with V, M and C of random weights, large enough that every part matters."""
    torch.manual_seed(0)
    run = Run(tmp_path_factory.mktemp("agent"))
    vae, mdnrnn = VAE(Z), MDNRNN(z=Z, hidden=HIDDEN)
    with torch.no_grad():
        vae.mu.weight *= 60  # z of the size that a trained V gives
        mdnrnn.lstm.weight_ih_l0 *= 8  # type: ignore[operator]
        mdnrnn.lstm.weight_hh_l0 *= 3  # type: ignore[operator]
    ranges = activation_ranges(vae, random_frames(100, 64, seed=9))
    save_vae(run.vae, vae.state_dict(), {"z": Z, "ranges": ranges}, {"rollouts": "r"})
    config = {"z": Z, "actions": 3, "hidden": HIDDEN, "mixtures": 5, "reward": "pulse", "logsigma_floor": -7.0}
    save_mdnrnn(run.mdnrnn, mdnrnn.state_dict(), config, {"rollouts": "r", "vae.pt": file_hash(run.vae)})
    theta = np.random.default_rng(0).normal(0, 0.1, Linear(3).count(FEATURES))
    made_from = {"vae.pt": file_hash(run.vae), "mdnrnn.pt": file_hash(run.mdnrnn)}
    save_controller(run.controller, theta, {"made_from": made_from})
    return run


def random_frames(n: int, size: int, seed: int = 0) -> NDArray[np.uint8]:
    """Frames [n, size, size, 3] that change slowly and have large bright and dark parts, as the car's have."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 4, 4, 3)).repeat(size // 4, 1).repeat(size // 4, 2)
    noise = rng.integers(-20, 20, (n, size, size, 3))
    return np.clip(coarse + noise, 0, 255).astype(np.uint8)


def plain_torch_loop(run: Run, frames: NDArray[np.uint8]) -> tuple[list[NDArray], list[NDArray], list[NDArray]]:
    """The paper's order, in torch and by the book: z = V(x); a = C([z, h]); h = M(z, a, h)."""
    vae, mdnrnn = VAE(Z), MDNRNN(z=Z, hidden=HIDDEN)
    vae.load_state_dict(torch.load(run.vae, weights_only=True)["model"])
    mdnrnn.load_state_dict(torch.load(run.mdnrnn, weights_only=True)["model"])
    with np.load(run.controller) as file:
        theta = torch.from_numpy(file["theta"])
    weights, bias = theta[:-3].reshape(3, FEATURES), theta[-3:]
    h = c = torch.zeros(1, 1, HIDDEN)
    zs, actions, hs = [], [], []
    with torch.inference_mode():
        for frame in frames:
            x = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
            z, _ = vae.encode(x)
            steer, gas, brake = torch.tanh(weights @ torch.cat([z[0], h[0, 0]]) + bias)
            a = torch.stack([steer, (gas + 1) / 2, brake.clamp(0, 1)])
            _, (h, c) = mdnrnn.lstm(torch.cat([z[0], a])[None, None], (h, c))
            zs.append(z[0].numpy())
            actions.append(a.numpy())
            hs.append(h[0, 0].numpy())
    return zs, actions, hs


def test_it_acts_as_a_plain_torch_loop_does(run: Run) -> None:
    frames = random_frames(50, 64)
    zs, actions, hs = plain_torch_loop(run, frames)
    agent = load_agent(run.folder)
    for t, frame in enumerate(frames):
        action = agent.act(frame)
        assert action.dtype == np.float32
        np.testing.assert_allclose(agent.z, zs[t], atol=1e-4)
        np.testing.assert_allclose(action, actions[t], atol=1e-4)
        np.testing.assert_allclose(agent.state["h"], hs[t], atol=1e-4)
    # The loop would not notice a wrong order if nothing moved.
    assert np.std(actions, axis=0).min() > 0.05
    assert np.std(hs, axis=0).mean() > 0.05
    assert np.std(zs, axis=0).mean() > 0.05


def in_int8(run: Run, folder: Path, precision: str = "int8") -> Run:
    """The same run with a controller that says that it was evolved in int8."""
    copy = copy_of(run, folder)
    theta, meta = load_controller(run.controller)
    save_controller(copy.controller, theta, {**meta, "config": {"precision": precision}})
    return copy


def test_a_controller_acts_in_the_precision_it_was_evolved_in(run: Run, tmp_path: Path) -> None:
    exact, rounded = load_agent(run.folder), load_agent(in_int8(run, tmp_path).folder)
    encoder = load_models(run, "int8").encoder()
    for frame in random_frames(20, 64):
        exact.act(frame)
        rounded.act(frame)
        np.testing.assert_array_equal(rounded.z, encoder(frame))
        assert 0 < np.abs(rounded.z - exact.z).max() < 0.2 * np.abs(exact.z).max()


def test_int8_without_ranges_or_an_unknown_precision_is_refused(run: Run, tmp_path: Path) -> None:
    copy = in_int8(run, tmp_path, "int4")
    with pytest.raises(UserError, match=r"controller.npz has the unknown precision 'int4'"):
        load_agent(tmp_path)
    vae = VAE(Z).state_dict()
    for ranges in ({}, {"ranges": [1.0, 2.0, 3.0]}, {"ranges": [1.0, 2.0, 3.0, 0.0]}, {"ranges": [1.0] * 3 + [np.inf]}):
        save_vae(copy.vae, vae, {"z": Z, **ranges}, {"rollouts": "r"})
        with np.load(run.controller) as file:
            made_from = {"vae.pt": file_hash(copy.vae)}
            save_controller(copy.controller, file["theta"], {"made_from": made_from, "config": {"precision": "int8"}})
        mdnrnn = load_artifact(run.mdnrnn, "mdnrnn")
        save_artifact(copy.mdnrnn, "mdnrnn", mdnrnn["model"], mdnrnn["config"], made_from)
        with pytest.raises(UserError, match=r"vae.pt has no valid activation ranges .* redo it with `make vae"):
            load_agent(tmp_path)


def test_h_reaches_the_action_one_step_later(run: Run) -> None:
    frames = random_frames(2, 64)
    agent = load_agent(run.folder)
    first = agent.act(frames[0])
    second = agent.act(frames[0])
    assert np.abs(first - second).max() > 1e-3  # the same frame, another h
    agent.reset()
    agent.act(frames[1])
    assert np.abs(agent.act(frames[0]) - second).max() > 1e-5  # h remembers the frame before


def test_raw_and_preprocessed_frames_are_the_same(run: Run) -> None:
    raw, cut = load_agent(run.folder), load_agent(run.folder)
    for frame in random_frames(20, 96):
        assert preprocess(frame).shape == (64, 64, 3)
        np.testing.assert_array_equal(raw.act(frame), cut.act(preprocess(frame)))
    np.testing.assert_array_equal(raw.state["h"], cut.state["h"])


def test_reset_forgets(run: Run) -> None:
    agent, fresh = load_agent(run.folder), load_agent(run.folder)
    frames = random_frames(10, 64)
    expected = [fresh.act(frame) for frame in frames]
    for frame in random_frames(5, 64, seed=1):
        agent.act(frame)
    agent.reset(np.random.default_rng(0))
    assert not agent.z.any()
    assert not agent.state["h"].any()
    assert not agent.state["c"].any()
    np.testing.assert_array_equal([agent.act(frame) for frame in frames], expected)


def test_two_agents_of_one_encoder_and_cell_do_not_share_state(run: Run) -> None:
    models, theta = load_acting(run)
    agents = models.agents()
    frames, others = random_frames(10, 64), random_frames(10, 64, seed=1)
    alone = load_agent(run.folder)
    expected = [alone.act(frame) for frame in frames]
    one, two = agents(theta), agents(theta)
    found = []
    for frame, other in zip(frames, others, strict=True):
        found.append(one.act(frame))
        two.act(other)
    np.testing.assert_array_equal(found, expected)


def test_what_an_agent_gave_out_does_not_change(run: Run) -> None:
    agent = load_agent(run.folder)
    given, copies = [], []
    for frame in random_frames(5, 64):
        action = agent.act(frame)
        given += [action, agent.z, *agent.state.values()]
        copies += [action.copy(), agent.z.copy(), *(part.copy() for part in agent.state.values())]
    for mine, copy in zip(given, copies, strict=True):
        np.testing.assert_array_equal(mine, copy)


def test_weights_that_do_not_fit_are_refused(run: Run) -> None:
    models = load_models(run, "float32")
    with pytest.raises(ValueError, match="288 features"):
        models.agents()(np.zeros(866))


def test_models_say_what_they_were_made_from(run: Run) -> None:
    models = load_models(run, "float32")
    assert models.made_from == {"vae.pt": file_hash(run.vae), "mdnrnn.pt": file_hash(run.mdnrnn)}
    assert (models.z, models.features, models.memory, models.layout) == (Z, FEATURES, "mdnrnn", Linear(3))
    assert models.cell().features == FEATURES


def copy_of(run: Run, folder: Path) -> Run:
    copy = Run(folder)
    for path in (run.vae, run.mdnrnn, run.controller):
        (folder / path.name).write_bytes(path.read_bytes())
    return copy


@pytest.mark.parametrize("name", ["vae", "mdnrnn", "controller"])
def test_a_missing_part_is_named(run: Run, tmp_path: Path, name: str) -> None:
    copy = copy_of(run, tmp_path)
    missing: Path = getattr(copy, name)
    missing.unlink()
    with pytest.raises(UserError, match=rf"{missing} is missing: make it with `make {name}`"):
        load_agent(tmp_path)


def test_parts_that_do_not_belong_together_are_refused(run: Run, tmp_path: Path) -> None:
    copy = copy_of(run, tmp_path)
    save_vae(copy.vae, VAE(Z).state_dict(), {"z": Z}, {"rollouts": "r"})
    with pytest.raises(UserError, match=r"mdnrnn.pt was made from another vae.pt"):
        load_agent(tmp_path)
    copy = copy_of(run, tmp_path)
    save_controller(copy.controller, np.zeros(867), {"made_from": {"vae.pt": "another", "mdnrnn.pt": "one"}})
    with pytest.raises(UserError, match=r"controller.npz was made from another vae.pt"):
        load_agent(tmp_path)
    save_controller(copy.controller, np.zeros(4), {"made_from": load_models(copy, "float32").made_from})
    with pytest.raises(UserError, match=r"controller.npz does not fit V and M in its folder"):
        load_agent(tmp_path)


def test_m_is_told_of_what_was_done_instead(run: Run) -> None:
    frames = random_frames(6, 64)
    models, theta = load_acting(run)
    agent, told = (models.agents()(theta) for _ in range(2))
    for t, frame in enumerate(frames):
        action = agent.act(frame)
        done = told.act(frame, instead=action if t % 2 else None)
        np.testing.assert_array_equal(done, action)  # its own action, said aloud, changes nothing
    np.testing.assert_array_equal(told.state["h"], agent.state["h"])
    other = np.array([-1, 1, 0], np.float32)
    np.testing.assert_array_equal(told.act(frames[0], instead=other), other)
    state = agent.state
    agent.act(frames[0])
    np.testing.assert_array_equal(told.z, agent.z)
    cell = models.cell()
    wanted = cell.advance(cell.see(state, agent.z), other)
    np.testing.assert_allclose(told.state["h"], wanted["h"], atol=1e-6)
