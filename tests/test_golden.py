"""What the published controllers do, dream and score, as it was at commit de0f8cc: a change of code is no change of it.

On the type of processor that the values were recorded on they are compared bit for bit, on others within rounding. They
are recorded anew, by `python -m tests.test_golden`, only where a change of numbers is wanted, and the commit says why.
"""

import functools
import hashlib
import platform
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import wm.envs  # noqa: F401  registers the environments
from wm.config.seeds import SELECT_SEEDS
from wm.config.vmc import DreamConfig
from wm.controller.file import load_controller
from wm.controller.linear import Linear
from wm.dream.networks import load_networks
from wm.dream.population import Population
from wm.driving.loading import load_acting, load_agent
from wm.driving.trials import Trial, make_player
from wm.envs.car_racing.task import CAR_RACING
from wm.memory.graph import dream_graph
from wm.memory.mdnrnn import load_mdnrnn
from wm.run.folder import Run
from wm.show.graphs.controller import controller_graph
from wm.show.graphs.starts import starts_graph
from wm.store.starts import load_starts
from wm.vision.encoder import encoder_graph, quantised_graph
from wm.vision.graph import decoder_graph
from wm.vision.vae import load_vae

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).with_suffix(".npz")
PUBLISHED = {"controller": ROOT / "data" / "pretrained", "dream": ROOT / "data" / "pretrained" / "dream"}
"""Folders by the name of the controller in them."""

TRACK = SELECT_SEEDS[0]
DRIVEN, DREAMT, PLAYED = 200, 100, 60
"""Steps."""

Arrays = dict[str, NDArray[Any]]


def processor() -> str:
    """What the last bits of a product of matrices depend on, and so the actions of a long drive."""
    abilities = [name for name, has in sorted(torch.cpu.get_capabilities().items()) if has is True]
    return f"{platform.machine()} {' '.join(abilities)}"


def drive(controller: str) -> Arrays:
    """200 steps on one track: actions, and the features at every twentieth step."""
    env = gymnasium.make("wm/CarRacing-v3")
    agent = load_agent(PUBLISHED[controller], controller)
    frame, _ = env.reset(seed=TRACK)
    actions, features, rewards = [], [], []
    for _ in range(DRIVEN):
        actions.append(agent.act(frame))
        features.append(agent.features.copy())
        frame, reward, *_ = env.step(actions[-1])
        rewards.append(reward)
    return {"actions": np.array(actions), "features": np.array(features[::20]), "rewards": np.array(rewards)}


def dream(controller: str) -> Arrays:
    """100 steps of one dream, and of three as a batch that begin anew where they end."""
    rng = np.random.default_rng(0)
    actions = rng.uniform([-1, 0, 0], 1, (DREAMT, 3, 3)).astype(np.float32)
    settings: dict[str, Any] = {"run": str(PUBLISHED[controller]), "temperature": 0.7, "horizon": 40, "dropout": 0.1}
    env = gymnasium.make("wm/Dream-v0", **settings)
    features, _ = env.reset(seed=1)
    found: dict[str, list[Any]] = {"one": [features], "paid": [], "many": [], "many_paid": [], "many_ended": []}
    for action in actions[:, 0]:
        features, reward, terminated, truncated, _ = env.step(action)
        found["one"].append(features)
        found["paid"].append(reward)
        if terminated or truncated:
            found["one"].append(env.reset()[0])
    envs = gymnasium.make_vec("wm/Dream-v0", num_envs=3, vectorization_mode="vector_entry_point", **settings)
    envs.reset(seed=7)
    for action in actions:
        batch, rewards, ends, cuts, _ = envs.step(action)
        found["many"].append(batch)
        found["many_paid"].append(rewards)
        found["many_ended"].append(ends | cuts)
    thinned = {"one": found["one"][::20], "many": found["many"][::20]}
    return {name: np.array(value) for name, value in (found | thinned).items()}


def scores(controller: str) -> Arrays:
    """What three candidates score in dreams, and one on two real tracks."""
    run = Run(PUBLISHED[controller])
    models, theta = load_acting(run, controller)
    rng = np.random.default_rng(2)
    thetas = theta + rng.normal(0, np.array([[0.0], [0.05], [0.2]]), (3, len(theta)))
    config = DreamConfig(horizon=PLAYED, dreams=8, unpaid=10, dropout=0.1)
    population = Population(
        load_networks(run).memory, models.task, models.layout, load_starts(run.starts), config, dtype=torch.float32
    )
    play = make_player(models)
    trials = [play(Trial(theta, SELECT_SEEDS[n], PLAYED, cut_after=40, disturb=0.05)) for n in (1, 2)]
    return {
        "dreamt": population.score(thetas, population.draw_noise(3, 4)),
        "real": np.array([(trial.ret, trial.steps, trial.cut) for trial in trials]),
    }


def files(controller: str) -> Arrays:
    """Digests of the graphs and of all weights, and what the files say of themselves."""
    run = Run(PUBLISHED[controller])
    vae, vae_meta = load_vae(run.vae)
    mdnrnn, meta = load_mdnrnn(run.mdnrnn)
    theta, theta_meta = load_controller(run.folder / f"{controller}.npz")
    starts = load_starts(run.starts)
    weights = {name: value.numpy() for name, value in vae.state_dict().items()}
    content = {
        "encoder": encoder_graph(weights),
        "quantised": quantised_graph(weights, vae_meta["config"]["ranges"]),
        "decoder": decoder_graph(vae),
        "memory": dream_graph(mdnrnn, starts.pays),
        "acting": controller_graph(theta, Linear(3), CAR_RACING.action, (("z", vae.z), ("h", mdnrnn.hidden))),
        "begin": starts_graph(starts),
        "vae": b"".join(value.tobytes() for value in weights.values()),
        "mdnrnn": b"".join(value.numpy().tobytes() for value in mdnrnn.state_dict().values()),
        "theta": theta.tobytes(),
        "starts": b"".join(part.tobytes() for part in starts.state.values())
        + starts.episode.tobytes()
        + starts.step.tobytes(),
        "meta": repr([sorted(each["made_from"].items()) for each in (vae_meta, meta, theta_meta)]).encode(),
    }
    return {name: np.array(hashlib.sha256(value).hexdigest()) for name, value in content.items()}


PARTS = {"drive": drive, "dream": dream, "scores": scores, "files": files}


def make(part: str, controller: str) -> Arrays:
    """One part, computed on one thread: their number sets the order of additions."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return PARTS[part](controller)
    finally:
        torch.set_num_threads(threads)


@functools.cache
def recorded() -> Arrays:
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("controller", PUBLISHED)
@pytest.mark.parametrize("part", PARTS)
def test_it_is_what_it_was(part: str, controller: str) -> None:
    found = make(part, controller)
    wanted = {
        name.split("/")[-1]: value for name, value in recorded().items() if name.startswith(f"{part}/{controller}/")
    }
    assert found.keys() == wanted.keys()
    exact = part == "files" or str(recorded()["processor"]) == processor()
    for name, value in found.items():
        if exact:
            np.testing.assert_array_equal(value, wanted[name], err_msg=name)
        else:  # differences grow along a drive and a dream
            first, before = (array[:10].astype(np.float64) for array in (value, wanted[name]))
            np.testing.assert_allclose(first, before, rtol=1e-2, atol=1e-2, err_msg=name)


def record() -> None:
    """Writes what is so now."""
    found: Arrays = {"processor": np.array(processor())}
    for part in PARTS:
        for controller in PUBLISHED:
            found |= {f"{part}/{controller}/{name}": value for name, value in make(part, controller).items()}
    np.savez_compressed(GOLDEN, **found)  # type: ignore[arg-type]


if __name__ == "__main__":
    record()
