"""Another task, M and C, filmed, driven and made a page of: none of them is known to the rooms that do so."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import wm.controller.kinds
import wm.memory.kinds
from stages import report
from stages.replay import main
from wm.config.presets import DEFAULT_ENV, PRESETS
from wm.contracts import Cell, Chart, Memory, MemoryKind, Noise, Pays, State
from wm.controller.file import save_controller
from wm.envs import TASKS
from wm.envs.action import Action
from wm.envs.task import Task
from wm.run.artifact import load_artifact, save_artifact
from wm.run.checksums import file_hash
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.graph import Graph
from wm.run.json_files import write_json
from wm.show.site import build_site
from wm.show.videos.views import WorldModel, moments
from wm.store.starts import Starts, save_starts
from wm.vision.vae import VAE, save_vae

Z = 4
ENV = "toy/Dot-v0"
ACTION = Action(("stay", "go"), first=1)


class Dot(gym.Env[NDArray[np.uint8], Any]):
    """A dot that goes to the right or stays."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    observation_space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space: gym.Space[Any] = gym.spaces.Discrete(2, start=1)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        super().reset(seed=seed)
        self.place = 0
        return self.look(), {}

    def step(self, action: int) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        self.place = (self.place + action - 1) % 64
        return self.look(), float(action - 1), False, False, {}

    def look(self) -> NDArray[np.uint8]:
        frame = np.zeros((64, 64, 3), np.uint8)
        frame[30:34, self.place] = 255
        return frame

    def render(self) -> Any:
        return np.repeat(self.look(), 2, axis=1)


DOT = Task(
    env_id=ENV,
    title="Dot",
    action=ACTION,
    frame=(64, 64, 3),
    preprocess=lambda frame: frame,
    fps=20,
    pays=Pays(0.0, 1.0, 0.0),
    reading=lambda env: f"place {cast(Any, env.unwrapped).place}",
    visible=(lambda picture: picture[:, :64], "the left half"),
    keys={"right": (0.0, 1.0)},
)


class Fading:
    """M for acting and for dreaming: "trace" fades and takes up what is done; z drifts by it."""

    def __init__(self, rate: float) -> None:
        self.rate, self.features, self.masked = rate, Z + 2, 0
        self.bound = np.full(self.features, np.inf, np.float32)
        self.chances = {"drift": ("normal", Z)}

    def initial(self) -> State:
        return {"z": np.zeros(Z, np.float32), "trace": np.zeros(2, np.float32)}

    def see(self, state: State, z: Any) -> State:
        return {**state, "z": z}

    def read(self, state: State) -> Any:
        join: Any = torch.cat if isinstance(state["z"], Tensor) else np.concatenate
        return join([state["z"], state["trace"]], -1)

    def advance(self, state: State, action: Any) -> State:
        return {**state, "trace": state["trace"] * self.rate + action}

    def expect(self, state: State, mask: Tensor | None = None) -> Tensor:
        return cast(Tensor, state["z"] + 0.1 * state["trace"].sum(-1, keepdim=True))

    def draw(self, state: State, raw: Tensor, noise: Noise) -> tuple[State, Tensor, Tensor]:
        never = torch.zeros(raw.shape[:-1])
        return {**state, "z": raw + 0.01 * noise["drift"]}, state["trace"][..., 1], never

    def mean(self, raw: Tensor) -> Tensor:
        return raw


class FadingNetwork(nn.Module):
    """M of the toy kind."""

    kind, z, actions, features, reward = "fading", Z, 2, Z + 2, "value"

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.5))

    def acting(self) -> Callable[[], Cell]:
        return partial(Fading, self.rate.item())

    def dreaming(self, pays: Pays, temperature: float = 1.0, device: Any = "cpu", dtype: Any = None) -> Memory:
        return cast(Memory, Fading(self.rate.item()))


class DrawnNetwork(FadingNetwork):
    """It can run in a browser."""

    reads = (("z", Z), ("trace", 2))

    def graph(self, pays: Pays) -> bytes:
        graph = Graph()
        kept = graph.add("Mul", "trace", graph.constant("rate", self.rate.item()))
        graph.add("Add", kept, "a", name="next_trace")
        graph.add("Add", "z", graph.add("Mul", "drift", "temperature"), name="next_z")
        both = graph.split("next_trace", 1, 1)
        graph.add("Squeeze", both[1], graph.constant("last", np.array([-1])), name="reward")
        graph.add("Mul", "reward", graph.constant("zero", 0.0), name="terminated")
        given = {"z": ("N", Z), "trace": ("N", 2), "a": ("N", 2), "drift": ("N", Z), "temperature": (1,)}
        states = {"next_z": ("N", Z), "next_trace": ("N", 2)}
        return graph.finish(given, {**states, "reward": ("N",), "terminated": ("N",)})


@dataclass(frozen=True)
class FadingConfig:
    """No more than the split of its data."""

    validation: float = 0.1


class FadingKind:
    """The toy kind of M, as much of it as these stages need."""

    name, title, config = "fading", "the fading trace", FadingConfig
    network: type[FadingNetwork] = DrawnNetwork

    def load(self, path: Path) -> tuple[FadingNetwork, dict[str, Any]]:
        found = load_artifact(path, self.name)
        network = self.network()
        network.load_state_dict(found["model"])
        return network.eval(), found

    def charts(self, config: Mapping[str, Any]) -> tuple[Chart, ...]:
        return ()


@dataclass(frozen=True)
class Nearest:
    """The toy kind of C: an output is minus the distance to a point."""

    kind: ClassVar[str] = "nearest"
    outputs: int
    rows: ClassVar[int] = 0

    def sizes(self) -> Mapping[str, int]:
        return asdict(self)

    def count(self, features: int) -> int:
        return self.outputs * features

    def controller(self, theta: NDArray[np.floating], features: int) -> Callable[[Any], Any]:
        points = theta.astype(np.float32).reshape(self.outputs, features)
        return lambda x: -np.abs(points - x).sum(-1)

    def graph(self, graph: Graph, theta: Any, features: str) -> str:
        weight = graph.constant("points", np.ascontiguousarray(theta.reshape(self.outputs, -1).T))
        return graph.add("MatMul", features, weight)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    gym.register(ENV, cast(Any, Dot), max_episode_steps=40)
    monkeypatch.setitem(TASKS, ENV, DOT)
    monkeypatch.setitem(PRESETS, ENV, PRESETS[DEFAULT_ENV])
    monkeypatch.setitem(wm.memory.kinds.KINDS, "fading", cast(MemoryKind, FadingKind()))
    monkeypatch.setitem(wm.controller.kinds.KINDS, "nearest", cast(Any, Nearest))
    run = Run(tmp_path / "dot")
    write_json(run.manifest, {"format": 1, "env": ENV, "stages": {}})
    torch.manual_seed(0)
    save_vae(run.vae, VAE(Z).state_dict(), {"z": Z, "ranges": [1.0] * 4}, {})
    made_from = {"vae.pt": file_hash(run.vae)}
    save_artifact(run.memory("fading"), "fading", FadingNetwork().state_dict(), {"validation": 0.1}, made_from)
    made_from["fading.pt"] = file_hash(run.memory("fading"))
    state = {"z": np.ones((3, Z), np.float32), "trace": np.zeros((3, 2), np.float32)}
    save_starts(
        run.starts_of("fading"), Starts(state, np.arange(3), np.arange(3), np.array(DOT.pays, np.float32), made_from)
    )
    theta = np.random.default_rng(0).normal(size=2 * (Z + 2))
    about = {"kind": "nearest", "sizes": {"outputs": 2}, "memory": "fading", "config": {"precision": "float32"}}
    save_controller(run.folder / "dream-fading-nearest.npz", theta, {**about, "made_from": made_from})
    yield run
    gym.registry.pop(ENV)


@pytest.mark.parametrize("view", ["real", "triptych", "dream", "compare"])
def test_every_view_shows_them(run: Run, view: str) -> None:
    world = WorldModel(run, "dream-fading-nearest")
    env = gym.make(ENV, render_mode="rgb_array", disable_env_checker=True)
    shown = list(moments(cast(Any, view), env, world, track=0, max_steps=5, temperature=1.0))
    assert len(shown) == 5
    for moment in shown:
        assert moment.aspect == 1
        assert [(bar.text, bar.low, bar.high) for bar in moment.bars] == [("stay", 0, 1), ("go", 0, 1)]
        assert sorted(bar.value for bar in moment.bars) == [0, 1]
    if view == "triptych":
        assert shown[0].panes[0].image is not None
        assert shown[0].panes[0].image.shape == (64, 64, 3)
        assert shown[0].panes[0].source == "the left half"
        assert shown[0].panes[2].image is None
        assert shown[-1].panes[2].image is not None
    if view != "dream":
        assert shown[-1].readings[-1].startswith("place ")


def test_their_dream_is_an_environment(run: Run) -> None:
    options: Any = {"run": str(run.folder), "memory": "fading"}
    env = gym.make("wm/Dream-v0", **options)
    assert env.reset(seed=1)[0].shape == (Z + 2,)
    assert env.step(2)[1] == 1.0
    assert env.metadata["render_fps"] == DOT.fps
    many = gym.make_vec("wm/Dream-v0", num_envs=2, vectorization_mode="vector_entry_point", **options)
    assert many.reset(seed=1)[0].shape == (2, Z + 2)
    with pytest.raises(UserError, match="no M 'none-such'"):
        gym.make("wm/Dream-v0", **{**options, "memory": "none-such"})


def test_a_replay_by_the_command(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    main(f"--run {run.folder} --controller dream-fading-nearest --max-steps 4".split())
    assert "4 steps" in capsys.readouterr().out
    (video,) = run.videos.glob("by-dream-fading-nearest-real-stock-*.mp4")
    assert video.stat().st_size > 0


def test_their_page(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    build_site(run, run.play, "dream-fading-nearest")
    world = json.loads((run.play / "world.json").read_text())
    assert world["title"] == "Dot"
    assert world["actions"] == {"names": ["stay", "go"], "low": [], "high": [], "discrete": True}
    assert world["keys"] == {"right": [0, 1]}
    assert (world["state"], world["reads"]) == ({"z": Z, "trace": 2}, ["z", "trace"])
    assert world["noises"] == {"drift": {"distribution": "normal", "size": Z}}
    assert (world["steps_per_second"], world["rewards"]["pulse"]) == (20, False)
    monkeypatch.setattr(FadingKind, "network", FadingNetwork)
    with pytest.raises(UserError, match="M of the kind 'fading' cannot run in a browser: choose another M"):
        build_site(run, run.play, "dream-fading-nearest")


def test_their_report(run: Run) -> None:
    base = {"config": {}, "seed": 0, "versions": {}, "commit": "abc", "cores": 2, "ended": "x", "seconds": 9.0}
    record = {**base, "peak_memory_mb": 9.0, "started": "2026-11-21T12:00:00+00:00"}
    stages = dict.fromkeys(("fading", "dream-fading-nearest"), record)
    write_json(run.manifest, {"format": 1, "env": ENV, "stages": stages})
    score = {"mean": 2.0, "std": 1.0, "ci95": None, "returns": [1.0, 3.0], "lengths": [4, 4], "seeds": [8, 9]}
    what = {
        "env_id": ENV,
        "max_steps": 4,
        "made_from": {},
        "commit": "abc",
        "time": "now",
        "versions": {"gymnasium": "1"},
    }
    write_json(run.folder / "score-dream-fading-nearest.json", score | what)
    report.main(f"--run {run.folder}".split())
    page = (run.folder / "report.html").read_text()
    for words in (
        "World model on Dot",
        "M, the fading trace",
        "The dream of M fading and C nearest",
        "2 ± 1 on 2 tracks",
    ):
        assert words in page, words
    assert page.count("<video") == 2
    assert "solved" not in page
