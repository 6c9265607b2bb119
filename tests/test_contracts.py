"""Every kind of V, M and C and every task fulfils its contract; what is new is a file and an entry, nothing else."""

import pickle
import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

import wm.agent
import wm.envs
from tests.here import ROOT, run_here
from tests.toys import DOT, DRIFT, Wave, add_toys
from wm.contracts import Network, Pays, State
from wm.controller.basis import fit_basis
from wm.controller.kinds import KINDS as CONTROLLERS
from wm.controller.kinds import layout_of, make_layout
from wm.dream.step import dream_step
from wm.driving.agent import Agent
from wm.driving.policies import MIXTURES, POLICIES, RandomNetwork, make_policy
from wm.driving.rollout import play
from wm.envs.task import Task
from wm.memory.kinds import KINDS as MEMORIES
from wm.run.artifact import save_artifact
from wm.run.device import seeded
from wm.run.graph import Graph
from wm.run.remedies import STAGES
from wm.store.episode import Episode
from wm.store.latents import Latents, LatentsWriter
from wm.store.starts import Starts, load_starts, save_starts
from wm.vision.kinds import KINDS as VISIONS
from wm.vision.vae import as_input

Z, A, T, F = 6, 3, 12, 11
PAYS = Pays(-0.1, 3.0, -7.0)
TASKS: list[Task] = [*{**wm.envs.TASKS, DOT.env_id: DOT}.values()]
KINDS: list[Any] = [*{**MEMORIES, "drift": DRIFT.DriftKind()}.values()]
SMALL: dict[str, dict[str, Any]] = {"mdnrnn": {"hidden": 8, "outlook": (2, 3), "batch": 8, "length": T}}
"""Options of a kind for tests, where its own defaults are large."""
LAYOUTS: list[Any] = [*{**{kind: make_layout(kind, A) for kind in CONTROLLERS}, "wave": Wave(A)}.values()]


def network(kind: Any) -> Any:
    """A small one whose every weight matters."""
    config = kind.config(**SMALL.get(kind.name, {}))
    model = seeded(lambda: kind.build(config, Z, A), 1)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.3 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(2)))
    return model.eval()


def record(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, (T + 1, Z)).astype(np.float32), rng.uniform(-1, 1, (T, A)).astype(np.float32)


def tensors(state: State) -> State:
    return {name: torch.from_numpy(part) for name, part in state.items()}


def noise_of(model: Network, shape: tuple[int, ...] = (), seed: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.rand if kind == "uniform" else torch.randn)((*shape, size), generator=generator)
        for name, (kind, size) in model.dreaming(PAYS).chances.items()
    }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
class TestMemory:
    def test_cell_memory_and_network_read_a_record_alike(self, kind: Any) -> None:
        model, (z, a) = network(kind), record()
        cell, memory = pickle.loads(pickle.dumps(model.acting()))(), model.dreaming(PAYS)
        state: State = cell.initial()
        dreamt = tensors(state)
        with torch.no_grad():
            followed = model.follow(torch.from_numpy(z), torch.from_numpy(a)).numpy()
        assert cell.features == memory.features == model.features == followed.shape[1]
        assert next(iter(state)) == "z"
        assert all(part.dtype == np.float32 for part in state.values())
        for t in range(T + 1):
            state, dreamt = cell.see(state, z[t]), memory.see(dreamt, torch.from_numpy(z[t]))
            np.testing.assert_array_equal(state["z"], z[t])
            np.testing.assert_allclose(cell.read(state), followed[t], atol=1e-5)
            np.testing.assert_allclose(memory.read(dreamt).numpy(), followed[t], atol=1e-5)
            assert (np.abs(followed[t]) <= memory.bound).all()
            if t < T:
                before = {name: part.copy() for name, part in state.items()}
                after = cell.advance(state, a[t])
                assert all(np.array_equal(before[name], part) for name, part in state.items()), "it was changed"
                dreamt = memory.advance(dreamt, torch.from_numpy(a[t]))
                state = after

    def test_its_state_lies_in_a_file_of_starts(self, kind: Any, tmp_path: Path) -> None:
        cell, (z, a) = network(kind).acting()(), record()
        state = cell.initial()
        for t in range(T):
            state = cell.advance(cell.see(state, z[t]), a[t])
        rows = {name: np.stack([part, cell.initial()[name]]) for name, part in state.items()}
        where = np.zeros(2, np.int64)
        save_starts(tmp_path / "starts.npz", Starts(rows, where, where, np.array(PAYS, np.float32), {}))
        found = load_starts(tmp_path / "starts.npz").state
        assert list(found) == list(rows)
        for name, part in rows.items():
            assert part.ndim == 2
            np.testing.assert_allclose(found[name], part, rtol=1e-3, atol=1e-3)

    def test_a_dreamt_step_is_a_function_of_its_arguments(self, kind: Any) -> None:
        model = network(kind)
        memory = model.dreaming(PAYS, temperature=0.7)
        start = {
            name: torch.randn(4, 5, part.shape[0], generator=torch.Generator().manual_seed(3)).tanh()
            for name, part in model.acting()().initial().items()
        }
        a, noise = torch.rand(4, 5, A, generator=torch.Generator().manual_seed(4)), noise_of(model, (4, 5))
        kept = {name: part.clone() for name, part in start.items()}
        state, reward, terminated = dream_step(memory, start, a, noise)
        again, *_ = dream_step(memory, start, a, noise)
        other, *_ = dream_step(memory, start, a, noise_of(model, (4, 5), seed=6))
        assert all(torch.equal(kept[name], part) for name, part in start.items()), "the state was changed"
        assert all(torch.equal(state[name], again[name]) for name in state)
        assert not torch.equal(state["z"], other["z"])
        assert reward.shape == terminated.shape == (4, 5)
        assert memory.read(state).shape == (4, 5, model.features)
        assert ((terminated >= 0) & (terminated <= 1)).all()
        assert set(start) <= set(state)
        one, *_ = dream_step(
            memory,
            {name: part[1, 2] for name, part in start.items()},
            a[1, 2],
            {name: part[1, 2] for name, part in noise.items()},
        )
        assert all(torch.allclose(one[name], state[name][1, 2], atol=1e-5) for name in start)
        masked = dream_step(memory, start, a, noise, torch.ones(4, 5, memory.masked))
        assert torch.allclose(masked[0]["z"], state["z"])
        assert torch.allclose(masked[1], reward)
        hidden = dream_step(memory, start, a, noise, torch.zeros(4, 5, memory.masked))
        assert not torch.allclose(hidden[0]["z"], state["z"]), "the mask has no effect"

    def test_the_mean_is_that_of_the_draws(self, kind: Any) -> None:
        model = network(kind)
        memory, draws = model.dreaming(PAYS), 20_000
        state = memory.advance(tensors(model.acting()().initial()), torch.full((A,), 0.3))
        raw = memory.expect(state)
        many = {name: part.expand(draws, *part.shape) for name, part in state.items()}
        drawn, *_ = memory.draw(many, raw.expand(draws, *raw.shape), noise_of(model, (draws,)))
        spread = drawn["z"].std(0)
        assert ((drawn["z"].mean(0) - memory.mean(raw)).abs() < 5 * spread / draws**0.5).all()

    def test_an_ensemble_can_hand_z_on(self, kind: Any) -> None:
        memory = network(kind).dreaming(PAYS)
        state = memory.advance(tensors(network(kind).acting()().initial()), torch.zeros(A))
        z = torch.arange(Z, dtype=torch.float32)
        assert torch.equal(memory.see(state, z)["z"], z)

    def test_abilities(self, kind: Any) -> None:
        model, (z, a) = network(kind), record()
        memory, told = model.dreaming(PAYS), (torch.from_numpy(z), torch.from_numpy(a))
        state = tensors(model.acting()().initial())
        if hasattr(model, "abduct"):  # its noise leads along the record
            with torch.no_grad():
                noise = model.abduct(*told, torch.Generator().manual_seed(0))
            for t in range(T):
                state, *_ = dream_step(
                    memory, memory.see(state, told[0][t]), told[1][t], {name: part[t] for name, part in noise.items()}
                )
                np.testing.assert_allclose(state["z"].numpy(), z[t + 1], atol=1e-3)
        if hasattr(model, "foresee"):  # its heads are those of the dream
            state = tensors(model.acting()().initial())
            with torch.no_grad():
                heads = model.foresee(*told)
            assert set(heads) == {"terminated"} | ({"pulse"} if model.reward == "pulse" else set())
            for t in range(T):
                state = memory.see(state, told[0][t])
                state, reward, ends = dream_step(memory, state, told[1][t], noise_of(model))
                assert ends.item() == pytest.approx(heads["terminated"][t].sigmoid().item(), abs=1e-5)
                if "pulse" in heads:
                    wanted = PAYS.miss + (PAYS.hit - PAYS.miss) * heads["pulse"][t].sigmoid().item()
                    assert reward.item() == pytest.approx(wanted, abs=1e-4)

    def test_its_graph_dreams_as_it_does(self, kind: Any) -> None:
        model = network(kind)
        if not hasattr(model, "graph"):
            pytest.skip("it does not run in a browser")
        session = onnxruntime.InferenceSession(model.graph(PAYS), providers=["CPUExecutionProvider"])
        state = {name: torch.zeros(2, part.shape[0]) for name, part in model.acting()().initial().items()}
        noise, a = noise_of(model, (2,)), torch.full((2, A), 0.5)
        found = session.run(
            None,
            {
                **{name: part.numpy() for name, part in {**state, **noise}.items()},
                "a": a.numpy(),
                "temperature": np.ones(1, np.float32),
            },
        )
        named = dict(zip((output.name for output in session.get_outputs()), found, strict=True))
        after, reward, ends = dream_step(model.dreaming(PAYS), state, a, noise)
        for name, part in {**{f"next_{n}": after[n] for n in state}, "reward": reward, "terminated": ends}.items():
            np.testing.assert_allclose(named[name], part.numpy(), atol=0.02, err_msg=name)

    def test_it_learns_and_is_read_again(self, kind: Any, tmp_path: Path) -> None:
        with LatentsWriter(tmp_path / "latents.h5", {}) as writer:
            for index in range(8):
                z, a = record(index)
                z = np.cumsum(0.1 * z, 0, dtype=np.float32)
                rewards = z[1:, 0].copy()
                episode = Episode(index, index, "toy", "toy", "0", np.zeros((T + 1, 1)), a, rewards, False, True)
                writer.append(episode, a, z, np.full_like(z, -6))
        latents, config = Latents(tmp_path / "latents.h5"), kind.config(**SMALL.get(kind.name, {}))
        model = seeded(lambda: kind.build(config, Z, A), 0)
        lesson = kind.lesson(config, latents, *latents.split(0.25, 0), 0, torch.device("cpu"))
        with torch.no_grad():
            before = lesson.validate(model)
        optimizer, generator = torch.optim.Adam(model.parameters(), 1e-2), torch.Generator()
        batches = lesson.batches(0)
        for _ in range(30):
            optimizer.zero_grad()
            loss, parts = lesson.loss(model, next(batches), generator)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            after = lesson.validate(model.eval())
        assert after["loss"] < before["loss"]
        assert set(parts) <= set(after)
        assert kind.describe(config, after)
        assert not kind.describe(config, after).endswith(".")
        first, *_ = kind.charts({})
        assert {first.name, *first.baselines} <= set(after)
        sizes = {**vars(config), "z": Z, "actions": A}
        save_artifact(tmp_path / f"{kind.name}.pt", kind.name, model.state_dict(), sizes, {"vae.pt": "x"})
        read, meta = kind.load(tmp_path / f"{kind.name}.pt")
        assert meta["made_from"] == {"vae.pt": "x"}
        assert read.kind == kind.name
        assert (read.z, read.actions) == (Z, A)
        for name, value in model.state_dict().items():
            assert torch.equal(read.state_dict()[name], value)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.kind)
class TestController:
    def test_its_three_forms_agree(self, layout: Any) -> None:
        rng = np.random.default_rng(0)
        thetas, x = rng.normal(0, 0.5, (3, layout.count(F))), rng.normal(0, 1, (3, 4, F)).astype(np.float32)
        raw = layout.candidates(torch.from_numpy(thetas).float(), F)(torch.from_numpy(x)).numpy()
        assert raw.shape == (3, 4, A)
        for p, theta in enumerate(thetas):
            acting = layout.controller(theta, F)
            np.testing.assert_allclose(raw[p], [acting(row) for row in x[p]], atol=1e-4)
            graph = Graph()
            out = layout.graph(graph, theta.astype(np.float32), "x")
            graph.add("Identity", out, name="raw")
            session = onnxruntime.InferenceSession(
                graph.finish({"x": ("N", F)}, {"raw": ("N", A)}), providers=["CPUExecutionProvider"]
            )
            np.testing.assert_allclose(session.run(None, {"x": x[p]})[0], raw[p], atol=1e-4)

    def test_wrong_weights_are_refused(self, layout: Any) -> None:
        with pytest.raises(ValueError, match="theta"):
            layout.controller(np.zeros(layout.count(F) + 1), F)

    def test_it_evolves_in_any_basis(self, layout: Any) -> None:
        rng = np.random.default_rng(1)
        seen = rng.normal(2, 1, (50, F))
        basis = fit_basis(seen, layout, centre=True, whiten=1.0, components=5)
        start = layout.start(5, rng)
        assert start.shape == (basis.weights,)
        theta = start + rng.normal(0, 1, basis.weights)
        x = seen[0].astype(np.float32)
        within = layout.controller(theta, 5)((basis.scale @ (seen[0] - basis.mean)).astype(np.float32))
        np.testing.assert_allclose(layout.controller(basis.express(theta), F)(x), within, atol=1e-3)
        np.testing.assert_allclose(basis.coordinates(basis.express(theta)), theta, atol=1e-8)

    def test_its_file_says_what_it_is(self, layout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        add_toys(monkeypatch)
        theta, meta = np.zeros(layout.count(F), np.float32), {"kind": layout.kind, "sizes": dict(layout.sizes())}
        assert layout_of(Path("controller.npz"), meta, theta, F, A) == layout
        assert pickle.loads(pickle.dumps(layout)) == layout


@pytest.mark.parametrize("kind", VISIONS.values(), ids=lambda kind: kind.name)
class TestVision:
    def test_acting_is_the_mean_of_its_posterior(self, kind: Any, tmp_path: Path) -> None:
        config = kind.config(z=4)
        model = seeded(lambda: kind.build(config), 0).eval()
        frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
        kind.check(frames.shape[1:])
        path = tmp_path / "vae.pt"
        about = {**vars(config), "vision": kind.name, **kind.finish(config, model, frames)}
        save_artifact(path, "vae", model.state_dict(), about, {})
        read, meta = kind.load(path)
        with torch.no_grad():
            code = read.encode(as_input(torch.from_numpy(frames)))
            picture = read.decode(code.mu)
            draws = torch.stack([read.latent(code, torch.Generator().manual_seed(n)) for n in range(200)])
        assert picture.shape == (3, 3, 64, 64)
        assert picture.min() >= 0
        assert picture.max() <= 1
        assert ((draws.mean(0) - code.mu).abs() < 5 * (code.logvar / 2).exp() / 200**0.5).all()
        for precision, error in (("float32", 1e-4), ("int8", 0.2)):
            encoder = pickle.loads(pickle.dumps(kind.acting(read, meta, path, precision)))()
            assert encoder.z == read.z == 4
            np.testing.assert_allclose([encoder(frame) for frame in frames], code.mu.numpy(), atol=error)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.title)
class TestTask:
    def test_its_environments_are_what_it_says(self, task: Task) -> None:
        task = pickle.loads(pickle.dumps(task))
        for train in (True, False):
            env = task.make(train, max_episode_steps=7)
            space = task.action.space()
            assert env.action_space == space
            frame, _ = env.reset(seed=3)
            assert (frame.shape, frame.dtype) == (task.frame, np.uint8)
            assert task.preprocess(frame) is frame, "what is preprocessed stays as it is"
            env.action_space.seed(0)
            a = task.action.from_env(env.action_space.sample())
            following, reward, _, _, _ = env.step(task.action.to_env(a))
            again, _ = env.reset(seed=3)
            np.testing.assert_array_equal(frame, again)
            repeated, repaid, *_ = env.step(task.action.to_env(a))
            np.testing.assert_array_equal(following, repeated)
            assert reward == repaid
            if task.measure:
                assert task.measure.of(env) in (True, False)
            if task.reading:
                assert re.search(r"\d", task.reading(env))
            if task.truth:
                states = np.array([task.truth.watch(env)() for _ in range(2)])
                assert states.shape == (2, len(task.truth.targets))
                assert task.truth.counts(states).shape == (2,)
            env.close()
        assert all(len(key) == task.action.size for key in task.keys.values())
        assert task.warm_up < task.max_steps
        picture = np.zeros((96, 96, 3), np.uint8)
        assert task.visible[0](picture).shape[1:] == (96, 3)

    def test_every_policy_plays_it(self, task: Task) -> None:
        env = task.make(max_episode_steps=4)
        names = [*POLICIES, RandomNetwork.name, *task.policies]
        for name in names:
            steps = list(
                play(env, make_policy(name, task, env.action_space), seed=1, max_steps=4, rng=np.random.default_rng(0))
            )
            assert all(env.action_space.contains(step.action) for step in steps), name
        for parts in {**MIXTURES, **task.mixtures}.values():
            assert set(parts) <= set(names)

    def test_an_agent_acts_on_it(self, task: Task) -> None:
        class Eye:
            z = Z

            def __call__(self, frame: NDArray[Any]) -> NDArray[np.float32]:
                assert frame.shape == task.frame
                return np.full(Z, frame.mean() / 255, np.float32)

        size = task.action.size
        model, layout = DRIFT.Drift(Z, size), make_layout("linear", size)
        theta = np.random.default_rng(0).normal(0, 1, layout.count(model.features))
        agent = Agent(task, Eye(), model.acting()(), layout.controller(theta, model.features))
        env = task.make(max_episode_steps=5)
        instead = env.action_space.sample()
        for step in play(env, agent, seed=0, max_steps=5):
            assert env.action_space.contains(step.action)
        agent.act(env.observation_space.sample(), instead=instead)
        np.testing.assert_array_equal(agent.state["last"], task.action.from_env(instead))


def test_a_toy_task_memory_and_controller_pass_through_all_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From collection to a report, and not a line changed elsewhere."""
    add_toys(monkeypatch)
    run = tmp_path / "run"
    common = ["--run", str(run), "--preset", "smoke", "--workers", "0", "--threads", "1"]
    made = "dream-drift-wave"
    for stage, options in (
        ("collect", ["--env", DOT.env_id]),
        ("vae", ["--updates", "4", "--z", "5"]),
        ("memory", ["--memory", "drift", "--updates", "30"]),
        ("dream", ["--memory", "drift", "--controller", "wave"]),
        ("controller", ["--memory", "drift", "--controller", "wave", "--precision", "float32"]),
        ("evaluate", ["--controller", made]),
        ("replay", ["--controller", made, "--max-steps", "8", "--view", "real"]),
        ("replay", ["--controller", made, "--max-steps", "8", "--view", "triptych"]),
        ("report", ["--no-videos"]),
    ):
        done = run_here(stage, [*common, *options], pictures=stage == "memory")
        assert done.returncode == 0, (stage, done.stderr)
    for name in ("drift.pt", "starts-drift.npz", f"{made}.npz", f"score-{made}.json", "report.html"):
        assert (run / name).exists(), name
    page = (run / "report.html").read_text()
    assert "Dot" in page
    assert "drift of z" in page
    assert "left of the middle" in page
    agent = wm.agent.load_agent(run, made)
    env = gymnasium.make(DOT.env_id)
    frame, _ = env.reset(seed=0)
    assert env.action_space.contains(agent.act(frame))
    refused = run_here("evaluate", [*common, "--env", "CarRacing-v3", "--controller", made])
    assert refused.returncode == 2
    assert "Dot" in refused.stderr


@pytest.mark.parametrize("kind", [*VISIONS, *(kind.name for kind in KINDS), *(layout.kind for layout in LAYOUTS)])
def test_the_name_of_a_kind_is_one_word_of_a_name(kind: str) -> None:
    """Names of stages and files join M and C with hyphens, and a kind of M has no target of another stage."""
    assert re.fullmatch(r"\w+", kind)
    assert kind not in STAGES or kind == "mdnrnn"


FORBIDDEN = re.compile(
    r"car.?racing|\btiles?\b|tile_|_tile|tiled|\broads?\b|_road|road_|\bgrass|96 ?[x×] ?96|\(96, 96|\bsteer(ing)?\b",
    re.I,
)


@pytest.mark.parametrize("folder", ["wm", "stages"])
def test_only_tasks_and_presets_know_an_environment(folder: str) -> None:
    """Names in files of earlier versions lie in one module of their own."""
    allowed = ("wm/envs/", "wm/config/presets.py", "wm/config/earlier.py")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".js", ".html", ".css") and not str(path.relative_to(ROOT)).startswith(allowed)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if FORBIDDEN.search(line)
    ]
    assert not found, "\n".join(found)


def test_only_the_memory_knows_its_network() -> None:
    known = re.compile(r"\bLSTM|\bMDNRNN\b|FusedMDNRNN|nn\.LSTM")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for folder in ("wm", "stages")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not path.is_relative_to(ROOT / "wm" / "memory")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if known.search(line)
    ]
    assert not found, found
