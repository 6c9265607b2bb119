"""Loading agents and their models from run folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from wm.config.vmc import EvolutionConfig, Precision
from wm.contracts import Cell, Encoder, Layout
from wm.controller.file import load_controller
from wm.controller.kinds import layout_of
from wm.controller.linear import Linear
from wm.driving.agent import Agent
from wm.envs import task_of
from wm.envs.task import Task
from wm.run.checksums import file_hash
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.pair import DEFAULT_MEMORY, Pair, stage_of
from wm.run.provenance import check_made_from
from wm.run.published import find_run
from wm.run.remedies import made_by, redo

CONTROLLERS = ("controller", "dream", "dream-latest")
"""Names of the controllers in a run folder (<name>.npz): of real rollouts, of the dream (best mean, last mean)."""


@dataclass(frozen=True)
class Models:
    """What an agent is made of beside C's weights, as plain data, to be sent to worker processes.

    Attributes:
        task: The environment.
        encoder: Makes V for acting.
        cell: Makes M for acting.
        layout: C's kind and sizes.
        z: Z, size of V's latent.
        features: F, size of C's input.
        memory: Kind of M.
        made_from: Hashes of the files of V and M.
    """

    task: Task
    encoder: Callable[[], Encoder]
    cell: Callable[[], Cell]
    layout: Layout
    z: int
    features: int
    memory: str
    made_from: dict[str, str]

    def agents(self) -> Callable[[NDArray[np.floating]], Agent]:
        """Makes V and M once: a function from C's weights theta f[N] to an agent with its own state.

        The function raises ValueError when their number does not fit.
        """
        encoder, cell = self.encoder(), self.cell()
        return lambda theta: Agent(self.task, encoder, cell, self.layout.controller(theta, self.features))


def load_models(run: Run, precision: Precision, memory: str = DEFAULT_MEMORY) -> Models:
    """Reads V and M of a run; UserError when one is missing, damaged or does not fit the other.

    Args:
        run: The run folder.
        precision: Number format of V's encoder. A controller must act in the format in which it was evolved.
        memory: Kind of M.

    Returns:
        The models, with the layout of a linear C.
    """
    # Imported here, since reading tensors needs torch; workers only act and do without it.
    from wm.memory.kinds import find_kind
    from wm.vision.kinds import load_vision

    task = task_of(run)
    vision, kind, vision_meta = load_vision(run.vae)
    made_from = {run.vae.name: file_hash(run.vae)}
    path = run.memory(memory)
    network, meta = find_kind(memory).load(path)
    check_made_from(path, meta["made_from"], made_from)
    return Models(
        task,
        kind.acting(vision, vision_meta, run.vae, precision),
        network.acting(),
        Linear(task.action.size),
        vision.z,
        network.features,
        memory,
        {**made_from, path.name: file_hash(path)},
    )


def load_acting(run: Run, controller: str = "controller") -> tuple[Models, NDArray[np.float32]]:
    """Reads a run's controller, theta f32[N], and its V and M, in the precision in which it was evolved.

    Args:
        run: The run folder.
        controller: A name of `CONTROLLERS`, or that of another controller of a dream, such as "dream-mdnrnn-hidden".

    Raises:
        UserError: V, M or C is missing or damaged, or does not fit the others; or the name is unknown.
    """
    stage = stage_of(controller)
    if stage is None:
        raise UserError(f"there is no controller {controller!r}: choose one of {', '.join(CONTROLLERS)}, dream-M-C.")
    path, others = run.folder / f"{controller}.npz", run.controllers()
    if others and not path.exists():
        way = f"{made_by(stage)}, or choose the existing controller {others[0]!r}"
        raise UserError(f"{path} is missing: {way}.")
    theta, meta = load_controller(path)
    precision = meta.get("config", {}).get("precision", EvolutionConfig.precision)
    if precision not in get_args(Precision):
        raise UserError(f"{path} has the unknown precision {precision!r}: {redo(stage)}.")
    models = load_models(run, precision, meta.get("memory", DEFAULT_MEMORY))  # older files do not say it
    check_made_from(path, meta["made_from"], models.made_from, stage)
    layout = layout_of(path, meta, theta, models.features, models.task.action.size)
    return replace(models, layout=layout), theta


def load_agent(folder: Path | str, controller: str = "controller") -> Agent:
    """Loads the agent of a run folder: call `agent.reset()`, then `action = agent.act(frame)` once per step.

    Args:
        folder: The run folder; or "pretrained", the published run, from any folder (`find_run`).
        controller: "controller", evolved on real rollouts; "dream", evolved in the dream, the mean with the best score
            on real selection tracks; "dream-latest", the last mean in the dream. In `data/pretrained` the controller of
            the dream has its own V and M, and so its own run folder `dream/`, which is searched as well. Only a
            checkout has it.

    Raises:
        UserError: As for `find_run` and `load_acting`.
    """
    run = find_run(folder)
    within = Run(run.folder / Pair().stage)
    if Pair.of(controller) and within.manifest.exists() and not (run.folder / f"{controller}.npz").exists():
        run = within
    models, theta = load_acting(run, controller)
    return models.agents()(theta)
