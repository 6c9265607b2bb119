"""The agent: V, M and C composed. The one place that says in which order they act; it does not need torch to act.

frame ─V→ z;  [z, h] ─C→ action;  (z, action, h) ─M→ next h
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wm.controller.linear import LinearController, load_controller, parameter_count
from wm.envs.preprocess import preprocess
from wm.memory.cell import LSTMCell
from wm.run import Run, UserError, check_made_from, file_hash
from wm.vision.encoder import Encoder, encoder_graph

CONTROLLERS = ("controller", "dream")
"""What a run folder may hold as C: evolved on real rollouts, evolved in the dream; the file is <name>.npz."""

Frame = NDArray[np.uint8]
State = tuple[NDArray[np.float32], NDArray[np.float32]]


class Agent:
    """Acts on CarRacing frames. Call `reset` at the start of an episode, then `act` once a step.

    Attributes:
        z: f32[Z], the latent (V's mean) of the last frame.
        state: (h, c), each f32[H]: M's state after the last action.
    """

    z: NDArray[np.float32]
    state: State

    def __init__(self, encoder: Encoder, cell: LSTMCell, theta: NDArray[np.floating]) -> None:
        """Composes V, M and C's flat weights; ValueError when the number of weights does not fit."""
        self._encoder, self._cell = encoder, cell
        self._controller = LinearController(theta, encoder.z + cell.hidden)
        self._features = np.zeros(encoder.z + cell.hidden, np.float32)
        self.reset()

    def reset(self, rng: np.random.Generator | None = None) -> None:
        """Forgets the episode. `rng` is taken since policies get one; this one draws nothing from it."""
        self.z = np.zeros(self._encoder.z, np.float32)
        self.state = self._cell.initial()

    def act(self, observation: Frame) -> NDArray[np.float32]:
        """Acts on one frame.

        Args:
            observation: u8[96, 96, 3] as CarRacing gives it, or u8[64, 64, 3] as `preprocess` makes it of that.

        Returns:
            f32[3]: steering in [-1, 1], gas in [0, 1], brake in [0, 1].
        """
        frame = observation if observation.shape == (64, 64, 3) else preprocess(observation)
        self.z = self._encoder(frame)
        self._features[: len(self.z)] = self.z
        self._features[len(self.z) :] = self.state[0]
        action = self._controller(self._features)
        self.state = self._cell.step(self.z, action, self.state)
        return action


@dataclass(frozen=True)
class Models:
    """V's encoder and M's LSTM as plain data, which is what worker processes are handed.

    Attributes:
        graph: The encoder as an ONNX graph.
        cell: M's LSTM weights by name.
        features: Size of [z; h].
        made_from: Hashes of vae.pt and mdnrnn.pt.
    """

    graph: bytes
    cell: dict[str, NDArray[np.float32]]
    features: int
    made_from: dict[str, str]


def load_models(run: Run) -> Models:
    """Reads vae.pt and mdnrnn.pt of a run; UserError when one is missing, damaged or made from another one."""
    # Reading tensors needs torch; acting does not, and workers only act.
    from wm.memory.mdnrnn import load_mdnrnn
    from wm.vision.vae import load_vae

    vae, _ = load_vae(run.vae)
    made_from = {"vae.pt": file_hash(run.vae)}
    mdnrnn, meta = load_mdnrnn(run.mdnrnn)
    check_made_from(run.mdnrnn, meta["made_from"], made_from)
    weights = {name: value.detach().numpy() for name, value in vae.state_dict().items()}
    cell = {name: value.detach().numpy() for name, value in mdnrnn.state_dict().items() if name.startswith("lstm.")}
    graph = encoder_graph(weights)
    features = Encoder(graph).z + LSTMCell(cell).hidden
    return Models(graph, cell, features, {**made_from, "mdnrnn.pt": file_hash(run.mdnrnn)})


def load_theta(run: Run, models: Models, controller: str = "controller") -> NDArray[np.float32]:
    """Reads <controller>.npz of a run, f32[3·(F+1)], a name of `CONTROLLERS`.

    Raises:
        UserError: There is no controller of that name, or it was not made from these models.
    """
    if controller not in CONTROLLERS:
        raise UserError(f"there is no controller {controller!r}: choose one of {', '.join(CONTROLLERS)}.")
    path = run.folder / f"{controller}.npz"
    theta, meta = load_controller(path)
    check_made_from(path, meta["made_from"], models.made_from)
    if theta.shape != (parameter_count(models.features),):
        raise UserError(f"{path} does not fit the models beside it: redo it with `make {controller} ARGS=--restart`.")
    return theta


def load_agent(folder: Path | str, controller: str = "controller") -> Agent:
    """The agent of a run folder, ready to act: `agent.reset()`, then `action = agent.act(frame)` once a step.

    Args:
        folder: The run folder.
        controller: "controller", evolved on real rollouts, or "dream", evolved in the dream.
    """
    run = Run(folder)
    models = load_models(run)
    return Agent(Encoder(models.graph), LSTMCell(models.cell), load_theta(run, models, controller))
