"""Names in files of earlier versions that this version calls otherwise. Readers of files alone use them."""

from __future__ import annotations

from typing import Any

VALUES: dict[str, dict[Any, Any]] = {"reward": {"tile": "pulse"}}
"""By the name of a config's field: values with another name today."""

MEASURE = "on_road"
"""Column of shards, and field of summary.json, of the task's measure."""


def present(name: str, value: Any) -> Any:
    """Today's name of a recorded value of a config's field."""
    known = VALUES.get(name)
    return known.get(value, value) if known and isinstance(value, str) else value


LEFT_OUT = "12 units or more from the centre line or facing backwards"
"""What a probe.json without "left_out" left out."""

REMOVED_OF_V: dict[str, Any] = {"road_weight": 1.0}
"""Fields that V's config had, with their defaults."""
REMOVED_OF_PROBE: dict[str, Any] = {"off_road": 12.0}
"""Fields that the probe's config had, with their defaults."""
