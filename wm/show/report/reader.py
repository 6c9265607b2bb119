"""A run as the report reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wm.driving.scores import read_score
from wm.envs import task_of
from wm.envs.task import Task
from wm.memory.kinds import KINDS as MEMORIES
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.metrics import read_metrics
from wm.run.pair import Pair, score_name


@dataclass(frozen=True)
class RunReader:
    """A reader of a run for the report.

    Attributes:
        name: Its name in plots.
        run: Its folder.
        beside: A folder whose scores and probe take precedence: the models of a committed run are scored elsewhere.
        stages: Its manifest's records by stage.
        task: Its environment.
    """

    name: str
    run: Run
    beside: Path
    stages: Mapping[str, Any]
    task: Task

    @property
    def memories(self) -> list[str]:
        """The kinds of M that were trained; the first known kind if there is none."""
        return [name for name in MEMORIES if name in self.stages] or list(MEMORIES)[:1]

    @property
    def dreams(self) -> list[str]:
        """The stages that evolved a controller in a dream: "dream", and "dream-M-C" of other kinds of M and C."""
        return ["dream", *(name for name in self.stages if Pair.of(name) not in (None, Pair()))]

    def config(self, stage: str) -> Mapping[str, Any]:
        """The recorded config of a stage; empty if it has not run."""
        config: Mapping[str, Any] = self.stages.get(stage, {}).get("config", {})
        return config

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        """The stage's lines of metrics.jsonl."""
        return read_metrics(self.run.metrics, stage)

    @property
    def scored(self) -> str:
        """Name of the scored controller: that of real rollouts, or the first one of a dream if there is no other."""
        names = ("controller", *self.dreams)
        return next((name for name in names if (self.run.folder / f"{name}.npz").exists()), "controller")

    def read_score(self, controller: str = "controller") -> dict[str, Any] | None:
        """The score of a controller; None when it is missing."""
        path = self.find(score_name(controller))
        return read_score(path) if path.exists() else None

    def find(self, name: str) -> Path:
        """The path of a file of the run, in `beside` if it exists there."""
        beside = self.beside / name
        return beside if beside.exists() else self.run.folder / name


def open_run(run: Run, name: str) -> RunReader:
    """Opens a run for the report; UserError when its folder or manifest is missing or damaged, or its task unknown."""
    if not run.manifest.exists():
        raise UserError(f"{run.folder} holds no run: make one with `make collect`, or give another RUN.")
    return RunReader(name, run, run.folder, run.read_manifest()["stages"], task_of(run))
