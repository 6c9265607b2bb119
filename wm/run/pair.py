"""The pair of M and C of a dream, and the names that follow from it: of its stage, its files and its score."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_MEMORY = "mdnrnn"
DEFAULT_CONTROLLER = "linear"

LATEST = "-latest"
"""End of the name of a controller that is the last mean of its dream, not the selected one."""


@dataclass(frozen=True)
class Pair:
    """Kinds of M and C, without hyphens. The first pair keeps the names that it had when it was the only one.

    Attributes:
        memory: Kind of M.
        controller: Kind of C.
    """

    memory: str = DEFAULT_MEMORY
    controller: str = DEFAULT_CONTROLLER

    @property
    def stage(self) -> str:
        """Name of the stage that evolves this C in the dream of this M, and of the controller that it selects."""
        return "dream" if self == Pair() else f"dream-{self.memory}-{self.controller}"

    @property
    def latest(self) -> str:
        """Name of the controller that is the last mean of the stage."""
        return self.stage + LATEST

    @property
    def starts(self) -> str:
        """Name of the file of starts, which all kinds of C share."""
        return starts_name(self.memory)

    @staticmethod
    def of(name: str) -> Pair | None:
        """The pair of a stage of a dream or of one of its two controllers; None for any other name."""
        kinds = name.removesuffix(LATEST).split("-")
        found = Pair() if kinds == ["dream"] else Pair(*kinds[1:]) if len(kinds) == 3 and all(kinds) else None
        return found if found and name in (found.stage, found.latest) else None


def stage_of(controller: str) -> str | None:
    """The stage that makes a controller of this name; None for a name that no stage gives."""
    pair = Pair.of(controller)
    return pair.stage if pair else "controller" if controller == "controller" else None


def starts_name(memory: str) -> str:
    """Name of the file of the starts with the state of M of a kind."""
    return "starts.npz" if memory == DEFAULT_MEMORY else f"starts-{memory}.npz"


def drawn_by(starts: str) -> str:
    """A stage that draws the starts of a file of this name: that of its M with the first kind of C."""
    return Pair(starts.removesuffix(".npz").removeprefix("starts").removeprefix("-") or DEFAULT_MEMORY).stage


def score_name(controller: str) -> str:
    """Name of the file of the score of a controller on stock tracks."""
    return "score.json" if controller == "controller" else f"score-{controller}.json"
