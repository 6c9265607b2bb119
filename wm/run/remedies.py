"""Commands that messages name, so that the reader has them: with a checkout, or with the installed library alone."""

from __future__ import annotations

from pathlib import Path

from wm.run.pair import Pair, stage_of

ROOT = Path(__file__).parents[2]
"""The folder that `wm` lies in: a checkout of the repository, or what an installer writes to."""


STAGES = (
    *("collect", "vae", "memory", "mdnrnn", "controller", "dream", "iterate"),
    *("evaluate", "probe", "replay", "report", "play", "publish", "curves", "ablate"),
)
"""Stages that are targets of the Makefile under their own names."""


def target(stage: str) -> str:
    """The target of a stage, with its kinds: the stage of another M is named after it, that of a dream after both.

    The name of a controller stands for its stage.
    """
    if pair := Pair.of(stage):
        return "dream" if pair == Pair() else f"dream M={pair.memory} C={pair.controller}"
    return stage if stage in STAGES else f"memory M={stage}"


def command(stage: str, arguments: str = "") -> str:
    """The command of a stage: `make vae`, with `arguments` behind it; without a checkout also where it can be given."""
    said = f"`{' '.join(filter(None, ('make', target(stage), arguments)))}`"
    return said if _in_checkout() else f"{said} in a clone of the repository"


def made_by(stage: str) -> str:
    """Remedy for a missing file that a stage makes."""
    return f"make it with {command(stage)}"


def redo(stage: str) -> str:
    """Remedy for a file of a stage that cannot be used."""
    return f"redo it with {command(stage, 'ARGS=--restart')}"


def rebuilt(controller: str) -> str:
    """Remedy for the file of a controller, by its name, that cannot be used."""
    stage = stage_of(controller)
    if stage is None:  # a file that somebody has copied or renamed: no stage makes it
        return "restore it, or give another file"
    return f"remove it and run {command(stage)}, which rebuilds it from the checkpoint if there is one"


def scored_by(controller: str) -> str:
    """The command that scores a controller, by its name, without quotes."""
    return "make evaluate" if controller == "controller" else f"make evaluate ARGS='--controller {controller}'"


def install(extra: str) -> str:
    """Remedy for a package that is missing, by the name of its extra in pyproject.toml."""
    how = f"make setup EXTRAS={extra}" if _in_checkout() else f'pip install "world-models[{extra}]"'
    return f"install it with `{how}`"


def _in_checkout() -> bool:
    return (ROOT / "Makefile").exists() and (ROOT / "stages").is_dir()
