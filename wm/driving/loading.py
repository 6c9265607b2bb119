"""Loading agents and their models from run folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from wm.config.vmc import EvolutionConfig, Precision
from wm.controller.hidden import make_controller
from wm.controller.linear import load_controller
from wm.driving.agent import Agent
from wm.memory.cell import LSTMCell
from wm.run.checksums import file_hash
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.provenance import check_made_from
from wm.vision.encoder import LAYERS, Encoder, encoder_graph, quantised_graph

CONTROLLERS = ("controller", "dream", "dream-latest")
"""Names of the controllers in a run folder (<name>.npz): of real rollouts, of the dream (best mean, last mean)."""


@dataclass(frozen=True)
class Models:
    """V's encoder and M's LSTM as plain data, to be sent to worker processes.

    Attributes:
        graph: The encoder as an ONNX graph.
        cell: M's LSTM weights by name.
        features: F = Z+H, size of [z; h].
        z: Z, size of z.
        made_from: Hashes of vae.pt and mdnrnn.pt.
    """

    graph: bytes
    cell: dict[str, NDArray[np.float32]]
    features: int
    z: int
    made_from: dict[str, str]


def load_models(run: Run, precision: Precision) -> Models:
    """Reads vae.pt and mdnrnn.pt of a run; UserError when one is missing, damaged or does not fit the other.

    Args:
        run: The run folder.
        precision: Number format of V's encoder. A controller must act in the format in which it was evolved.
    """
    # Imported here, since reading tensors needs torch; workers only act and do without it.
    from wm.memory.mdnrnn import load_mdnrnn
    from wm.vision.vae import load_vae

    vae, vae_meta = load_vae(run.vae)
    made_from = {"vae.pt": file_hash(run.vae)}
    mdnrnn, meta = load_mdnrnn(run.mdnrnn)
    check_made_from(run.mdnrnn, meta["made_from"], made_from)
    weights = {name: value.detach().numpy() for name, value in vae.state_dict().items()}
    cell = {name: value.detach().numpy() for name, value in mdnrnn.state_dict().items() if name.startswith("lstm.")}
    graph = quantised_graph(weights, _ranges(run, vae_meta)) if precision == "int8" else encoder_graph(weights)
    z = Encoder(graph).z
    return Models(graph, cell, z + LSTMCell(cell).hidden, z, {**made_from, "mdnrnn.pt": file_hash(run.mdnrnn)})


def _ranges(run: Run, vae_meta: dict[str, Any]) -> list[float]:
    """V's activation ranges as recorded by stage vae; UserError when they are missing or not valid."""
    ranges = vae_meta["config"].get("ranges")
    if (
        not isinstance(ranges, list)
        or len(ranges) != len(LAYERS)
        or not all(isinstance(r, float) and 0 < r < np.inf for r in ranges)
    ):
        raise UserError(
            f"{run.vae} has no valid activation ranges for int8 ({ranges!r}): "
            "redo it with `make vae ARGS=--restart`, or act with --precision float32."
        )
    return ranges


def load_acting(run: Run, controller: str = "controller") -> tuple[Models, NDArray[np.float32]]:
    """Reads a run's controller, theta f32[3·(F+1)], and its V and M, in the precision in which it was evolved.

    Args:
        run: The run folder.
        controller: A name of `CONTROLLERS`.

    Raises:
        UserError: V, M or C is missing or damaged, or does not fit the others; or the name is unknown.
    """
    if controller not in CONTROLLERS:
        raise UserError(f"there is no controller {controller!r}: choose one of {', '.join(CONTROLLERS)}.")
    path, stage = run.folder / f"{controller}.npz", controller.removesuffix("-latest")
    others = [name for name in CONTROLLERS if (run.folder / f"{name}.npz").exists()]
    if others and not path.exists():
        way = f"make it with `make {stage}`, or choose the existing controller {others[0]!r}"
        raise UserError(f"{path} is missing: {way}.")
    theta, meta = load_controller(path)
    precision = meta.get("config", {}).get("precision", EvolutionConfig.precision)
    if precision not in get_args(Precision):
        raise UserError(f"{path} has the unknown precision {precision!r}: redo it with `make {stage} ARGS=--restart`.")
    models = load_models(run, precision)
    check_made_from(path, meta["made_from"], models.made_from, stage)
    try:
        make_controller(theta, models.features)
    except ValueError as error:
        raise UserError(
            f"{path} does not fit V and M in its folder: redo it with `make {stage} ARGS=--restart`."
        ) from error
    return models, theta


def load_agent(folder: Path | str, controller: str = "controller") -> Agent:
    """Loads the agent of a run folder: call `agent.reset()`, then `action = agent.act(frame)` once per step.

    Args:
        folder: The run folder.
        controller: "controller", evolved on real rollouts; "dream", evolved in the dream, the mean with the best score
            on real selection tracks; "dream-latest", the last mean in the dream. In `data/pretrained` the controller of
            the dream has its own V and M, and so its own run folder `dream/`, which is searched as well.

    Raises:
        UserError: As for `load_acting`.
    """
    run = Run(folder)
    within = Run(run.folder / controller.removesuffix("-latest"))
    if within.manifest.exists() and not (run.folder / f"{controller}.npz").exists():
        run = within
    models, theta = load_acting(run, controller)
    return Agent(Encoder(models.graph), LSTMCell(models.cell), theta)
