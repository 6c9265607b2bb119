"""The contracts: what a task, V, M, C, a dream and workers are to one another.

They are structural: a class fulfils one by having its members, without inheriting from it. `tests/test_contracts.py`
runs every kind through them. `Task` and `Action` are data and lie in `wm/envs/`.

A real step is   see → read → act → advance            (`wm.driving.agent.Agent.act`)
A dreamt step is read → act → advance → expect → draw   (`wm.dream.population`, `wm.dream.world`)

Symbols: Z latent, A what M reads of an action, F features of C, R raw outputs of C, P candidates, S dreams, T steps.
`...` are any leading dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Floats = NDArray[np.float32]

State = Mapping[str, Any]
"""M's whole state by name, with "z" first, the latent that it holds: numpy arrays in a cell, tensors in a memory. It is
never changed in place. Its names and arrays are also those of a file of starts: each part is f32[size] with any leading
dimensions, finite in float16, and its name is none of `RESERVED` in `wm/store/starts.py`."""
Noise = Mapping[str, Any]
"""All randomness of one dreamt step by name. It comes from outside, so that dreams can share it."""
Chances = Mapping[str, tuple[Literal["uniform", "normal"], int]]
"""By name of a noise: its distribution, uniform in [0, 1) or standard normal, and its size for one dream."""


class Posterior(NamedTuple):
    """V's code of observations: a Gaussian over z.

    Attributes:
        mu: f32[...,Z], its mean. When an agent acts, z is this mean.
        logvar: f32[...,Z], its log variance.
    """

    mu: Any
    logvar: Any


class Pays(NamedTuple):
    """Mean rewards of recorded steps.

    Attributes:
        miss: Of a step without a positive reward.
        hit: Of a step with a positive reward.
        end: Of a step that terminates the episode.
    """

    miss: float
    hit: float
    end: float


# V


class Encoder(Protocol):
    """V for acting: one observation at a time, on one thread, without torch."""

    z: int

    def __call__(self, frame: NDArray[Any]) -> Floats:
        """An observation as the task preprocesses it, to z f32[Z]."""
        ...


class Vision(Protocol):
    """V: a torch module."""

    kind: str
    z: int

    def encode(self, x: Tensor) -> Posterior:
        """Observations, frames as f32[B,3,height,width] in [0,1], to their posterior."""
        ...

    def latent(self, code: Posterior, generator: torch.Generator) -> Tensor:
        """Draws z f32[...,Z] from posteriors."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Latents f32[B,Z] to pictures f32[B,3,height,width] in [0,1]."""
        ...


class Decodes(Protocol):
    """A V whose decoder can run in a browser (`make play`)."""

    def graph(self) -> bytes:
        """An ONNX graph: "z" [N,Z] to "x" [N,3,height,width] in [0,1]; large weights in float16."""
        ...


# M


class Cell(Protocol):
    """M for acting: one row, numpy, no torch."""

    features: int

    def initial(self) -> State:
        """The state at the start of an episode."""
        ...

    def see(self, state: State, z: Floats) -> State:
        """The state once M has seen z f32[Z]."""
        ...

    def read(self, state: State) -> Floats:
        """C's input f32[F], in new memory."""
        ...

    def advance(self, state: State, action: Floats) -> State:
        """The state after an action f32[A]."""
        ...


class Memory(Protocol):
    """M for dreaming: torch, any leading dimensions, no gradients.

    Attributes:
        features: F, size of what `read` gives.
        masked: Size of the factors that `expect` takes (dropout of the heads).
        bound: f32[F], largest absolute values of what `read` gives; infinite where there is no bound.
        chances: What `draw` needs of noise.
    """

    features: int
    masked: int
    bound: Floats
    chances: Chances

    def see(self, state: State, z: Tensor) -> State:
        """The state once M has seen z f32[...,Z], such as a z that another M of an ensemble has drawn."""
        ...

    def read(self, state: State) -> Tensor:
        """C's input f32[...,F]."""
        ...

    def advance(self, state: State, action: Tensor) -> State:
        """The state after actions f32[...,A]; its z is still that before them."""
        ...

    def expect(self, state: State, mask: Tensor | None = None) -> Tensor:
        """All heads in one product, f32[...,n], which only `draw` and `mean` read; `mask` f32[...,masked] or None."""
        ...

    def draw(self, state: State, raw: Tensor, noise: Noise) -> tuple[State, Tensor, Tensor]:
        """The state with the next z, the expected reward f32[...], and the probability f32[...] of terminating.

        The reward is that of a step that does not terminate the episode.
        """
        ...

    def mean(self, raw: Tensor) -> Tensor:
        """The expected next z, f32[...,Z]."""
        ...


class Network(Protocol):
    """M as it learns and as it reads whole records: a torch module.

    Attributes:
        kind: Name of its kind.
        z: Z.
        actions: A.
        features: F.
        reward: "pulse": the reward head predicts the probability of a positive reward. "value": the reward itself.
    """

    kind: str
    z: int
    actions: int
    features: int
    reward: str

    def follow(self, z: Tensor, a: Tensor) -> Tensor:
        """C's input at each moment of a record: z f32[T+1,Z] and a f32[T,A] to f32[T+1,F]."""
        ...

    def acting(self) -> Callable[[], Cell]:
        """A picklable function that makes the cell, for workers."""
        ...

    def dreaming(
        self, pays: Pays, temperature: float = 1.0, device: Any = "cpu", dtype: torch.dtype | None = None
    ) -> Memory:
        """The memory that dreams with these weights; `dtype` of its products, None: float32."""
        ...


class Abducts(Protocol):
    """A network that can tell the noise of a record (`--noise recorded`)."""

    def abduct(self, z: Tensor, a: Tensor, generator: torch.Generator) -> Noise:
        """The noise [T,size] with which M would have drawn z f32[T+1,Z] after the actions a f32[T,A]."""
        ...


class Foresees(Protocol):
    """A network whose heads can be compared with a record (calibration)."""

    def foresee(self, z: Tensor, a: Tensor) -> Mapping[str, Tensor]:
        """Logits f32[T] of the heads at each step of a record z f32[T+1,Z], a f32[T,A].

        They are "terminated", and "pulse" if the reward head predicts pulses.
        """
        ...


class Drawn(Protocol):
    """A network whose dreamt step can run in a browser (`make play`).

    Attributes:
        reads: Name and size of the parts of the state that C reads, in their order.
    """

    reads: tuple[tuple[str, int], ...]

    def graph(self, pays: Pays) -> bytes:
        """The dreamt step as an ONNX graph, all but "temperature" with a leading dimension N of dreams.

        From the state's names, "a", the noises' names and "temperature" [1] to "next_<name>" of the state, "reward" and
        "terminated"; also "weights" [N,K,Z] if M weighs K futures of each number of z. Large weights are in float16.
        """
        ...


class Dream(Protocol):
    """M, its starts and V's decoder as plain functions and arrays, f32[N,...] of N dreams: `wm.dream.world.World`.

    The dream's environments need nothing else. A population (`wm.dream.population`) takes the same parts in torch, with
    several M's.
    """

    @property
    def state(self) -> State:
        """M's state at the starts."""
        ...

    @property
    def end(self) -> float:
        """Reward of a step that terminates."""
        ...

    @property
    def chances(self) -> Chances:
        """What a step needs of noise."""
        ...

    @property
    def masked(self) -> int:
        """Size of the factors on what M's heads read."""
        ...

    @property
    def bound(self) -> Floats:
        """f32[F], the largest absolute values of what C reads."""
        ...

    @property
    def step(self) -> Callable[[State, Floats, Noise, Floats | None], tuple[State, Floats, Floats]]:
        """(state, actions f32[N,A], noise, mask) to (state, reward, probability of terminating)."""
        ...

    @property
    def read(self) -> Callable[[State], Floats]:
        """What C reads of a state."""
        ...

    @property
    def decode(self) -> Callable[[Floats], NDArray[np.uint8]]:
        """Latents f32[N,Z] to frames u8[N,height,width,3]."""
        ...


# Learning V and M


class Lesson(NamedTuple):
    """What the gradient loop (`wm.learning.gradient.train`) needs of a kind; see there."""

    batches: Callable[[int], Iterator[Any]]
    loss: Callable[[Any, Any, Any], tuple[Any, Mapping[str, Any]]]
    validate: Callable[[Any], Mapping[str, float]]
    lr: Callable[[int], float]
    unit: str
    per_update: int
    clip: float | None = None


class Chart(NamedTuple):
    """How the report shows a number of a kind's validation.

    Attributes:
        name: Of the number in the metrics, without "val_".
        title: Its title.
        unit: Its unit.
        baselines: By name of a number in the metrics, without "val_": what this baseline is.
    """

    name: str
    title: str
    unit: str
    baselines: Mapping[str, str]


class MemoryKind(Protocol):
    """All that the stages need of one kind of M. The kinds are listed in `wm/memory/kinds.py`.

    Attributes:
        name: Its name on the command line, of its stage and of its file.
        title: Its name in texts.
        config: Its config dataclass, with `updates`, `validate_every`, `validation` and `earlier` as others have them.
    """

    name: str
    title: str
    config: type[Any]

    def build(self, config: Any, z: int, actions: int) -> Any:
        """A new network, with initial weights that torch's global seed fixes."""
        ...

    def load(self, path: Path) -> tuple[Any, dict[str, Any]]:
        """The network of a file, on the CPU in eval mode, and the file's other fields; UserError when damaged."""
        ...

    def lesson(
        self, config: Any, latents: Any, training: Any, held_out: Any, seed: int, device: torch.device
    ) -> Lesson:
        """What the gradient loop needs, from `wm.store.latents.Latents` and the places of its episodes."""
        ...

    def describe(self, config: Any, metrics: Mapping[str, float]) -> str:
        """The numbers of the best validation in a sentence without its full stop."""
        ...

    def charts(self, config: Mapping[str, Any]) -> Sequence[Chart]:
        """The numbers for the report, the most important one first; `config` as it is recorded."""
        ...


class VisionKind(Protocol):
    """All that the stages need of one kind of V. The kinds are listed in `wm/vision/kinds.py`."""

    name: str
    title: str
    config: type[Any]

    def check(self, frame: tuple[int, ...]) -> None:
        """UserError when it cannot see observations of this shape."""
        ...

    def build(self, config: Any) -> Any:
        """A new network, with initial weights that torch's global seed fixes."""
        ...

    def load(self, path: Path) -> tuple[Any, dict[str, Any]]:
        """The network of a file, on the CPU in eval mode, and the file's other fields; UserError when damaged."""
        ...

    def lesson(
        self, config: Any, rollouts: Any, training: Any, frames: NDArray[Any], seed: int, device: torch.device
    ) -> Lesson:
        """What the gradient loop needs, from `wm.store.shards.Rollouts` and validation observations."""
        ...

    def finish(self, config: Any, model: Any, frames: NDArray[Any]) -> Mapping[str, Any]:
        """Further plain values for the file, measured on validation observations."""
        ...

    def describe(self, config: Any, metrics: Mapping[str, float]) -> str:
        """The numbers of the best validation in a sentence without its full stop."""
        ...

    def fault(self, config: Any, metrics: Mapping[str, float]) -> str:
        """What is wanted instead, when V is too inaccurate to act on; else ""."""
        ...

    def acting(self, model: Any, meta: Mapping[str, Any], path: Path, precision: str) -> Callable[[], Encoder]:
        """A picklable function that makes the encoder, for workers; UserError when the precision is not possible."""
        ...


# C


class Controller(Protocol):
    """C for acting: numpy, one row."""

    def __call__(self, features: Floats) -> Floats:
        """Features f32[F] to raw outputs f32[R], which the task's action turns into an action."""
        ...


class Candidates(Protocol):
    """C for dreaming: P candidates at once, torch."""

    def __call__(self, features: Tensor) -> Tensor:
        """Features f32[P,S,F] to raw outputs f32[P,S,R], in new memory."""
        ...


class Layout(Protocol):
    """A kind of C with its sizes: how flat weights theta f[N] are laid out. The kinds are in `wm/controller/kinds.py`.

    theta begins with its first layer: weights [rows,F] row by row, then biases [rows]. The evolution may search that
    layer in other coordinates (`wm.controller.basis`).

    Attributes:
        kind: Name of the kind.
    """

    kind: ClassVar[str]

    @property
    def outputs(self) -> int:
        """R."""
        ...

    @property
    def rows(self) -> int:
        """Rows of the first layer."""
        ...

    def sizes(self) -> Mapping[str, int]:
        """The arguments that make this layout again, for the file."""
        ...

    def count(self, features: int) -> int:
        """N, the length of theta."""
        ...

    def start(self, inputs: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """The first mean of an evolution on `inputs` coordinates, f64[count(inputs)]."""
        ...

    def controller(self, theta: NDArray[np.floating], features: int) -> Controller:
        """C of flat weights; ValueError when their number does not fit."""
        ...

    def candidates(self, thetas: Tensor, features: int) -> Candidates:
        """C of P candidates, from flat weights f32[P,N]."""
        ...

    def graph(self, graph: Any, theta: Floats, features: str) -> str:
        """Adds C to an ONNX graph (`wm.run.graph.Graph`): the name of features [N,F] to that of raw outputs [N,R]."""
        ...


# Acting


class Policy(Protocol):
    """All that acts in a real environment."""

    def reset(self, rng: np.random.Generator | None = None) -> None:
        """Starts an episode; `rng` is the episode's source of randomness."""
        ...

    def act(self, observation: Any) -> Any:
        """The environment's action for an observation."""
        ...


class Workers(Protocol):
    """Something that runs tasks: this process, others, or other machines. Results return; nothing is written there."""

    def run(self, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yields (position in `tasks`, result) in order of completion; an exception in a task is raised here."""
        ...

    def __enter__(self) -> Workers: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
