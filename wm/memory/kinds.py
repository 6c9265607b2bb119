"""The kinds of M. A new one is a file beside this one and an entry here."""

from __future__ import annotations

from wm.contracts import MemoryKind
from wm.memory.training import MDNRNNKind
from wm.run.errors import UserError

KINDS: dict[str, MemoryKind] = {"mdnrnn": MDNRNNKind()}
"""By name; `make` lists them from here."""


def find_kind(name: str) -> MemoryKind:
    """The kind of M with this name; UserError when there is none."""
    if name not in KINDS:
        raise UserError(f"there is no M {name!r}: choose one of {', '.join(KINDS)}.")
    return KINDS[name]
