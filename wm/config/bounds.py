"""What a config says of its fields beside type and default: bounds, totals, and fields that it had earlier.

updates: int = total(4000, 0, 10**9)        # may grow between two calls of the stage
lr: float = bounded(1e-3, 1e-12, 1)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, field, fields
from typing import Any

from wm.config.earlier import present

MOST_AVERAGED = 1000
"""Number of past means that an evolution stores, the upper bound of --average."""


def bounded(default: Any, least: float, most: float) -> Any:
    """A dataclass field with bounds of its number, or of each number of its tuple. Values outside are typing errors."""
    return field(default=default, metadata={"bounds": (least, most)})


def total(default: Any, least: float, most: float) -> Any:
    """A bounded field that may change between two calls of a stage: it adds work. Other changes need --restart."""
    return field(default=default, metadata={"bounds": (least, most), "total": True})


def bounds_of(f: Field[Any]) -> tuple[float, float] | None:
    """Least and most value of a field; None without bounds."""
    return f.metadata.get("bounds")


def changed_fields(old: dict[str, Any], new: Any) -> Iterator[str]:
    """Yields 'name was OLD, is NEW' for each field of config dataclass `new` that differs from the stored dict.

    Totals are left out. A field that the stored dict lacks counts as its default, since the default of a new field
    keeps the earlier behaviour. Fields that the config had in earlier versions are in its REMOVED, with their defaults:
    work done with another value cannot be resumed.
    """
    for f in fields(new):
        before = old.get(f.name, f.default)
        before = tuple(before) if isinstance(before, list) else present(f.name, before)  # JSON has no tuples
        now = getattr(new, f.name)
        if not f.metadata.get("total") and before != now:
            was, here = ("unset" if value == "" else value for value in (before, now))
            yield f"{f.name} was {was}, is {here}"
    for name, default in getattr(new, "REMOVED", {}).items():
        if old.get(name, default) != default:
            yield f"{name} was {old[name]}, is no longer supported"
