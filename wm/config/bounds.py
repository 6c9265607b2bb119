"""Bounds of all options, and what may change between two calls of a stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from wm.config.seeds import RUN_SEEDS

MOST_AVERAGED = 1000
"""Number of past means that an evolution stores, the upper bound of --average."""

BOUNDS: dict[str, tuple[float, float]] = {
    "average": (1, MOST_AVERAGED),
    "episodes": (1, 10**6),
    **dict.fromkeys(("max_steps", "generations", "validate_every"), (1, 10**9)),
    **dict.fromkeys(("episodes_per_shard", "length", "dreams", "horizon", "tracks"), (1, 10**6)),
    **dict.fromkeys(("select_every", "select_tracks", "starts", "validation_frames", "validation_clips"), (1, 10**6)),
    **dict.fromkeys(("shuffle_frames", "batch"), (1, 10**8)),
    **dict.fromkeys(("driven", "cut_after", "unpaid", "start_after", "start_near", "double_every"), (0, 10**6)),
    **dict.fromkeys(("free_nats", "kl_weight", "head_weight", "step_cost", "warn_error"), (0, 10**6)),
    **dict.fromkeys(("road_weight", "outlook_weight", "disagreement"), (0, 10**6)),
    **dict.fromkeys(("lr", "lr_final", "lr_decay"), (1e-12, 1)),
    **dict.fromkeys(("sigma0", "sigma_max", "temperature", "clip", "penalty", "off_road"), (1e-12, 10**6)),
    **dict.fromkeys(("first_seed", "track"), (0, 2**31 - 1)),
    "sigma_min": (0, 10**6),
    "whiten": (0, 1),
    "posterior": (1e-3, 1),
    **dict.fromkeys(("disturb", "bursts"), (0, 1)),
    "spread": (0, 10**6),
    "dropout": (0, 0.99),
    "components": (0, 4096),
    "hidden_units": (0, 1024),
    "validation": (1e-6, 1 - 1e-6),
    "logsigma_floor": (-50, 0),
    "z": (1, 4096),
    "hidden": (1, 65_536),
    "mixtures": (1, 1024),
    "popsize": (4, 10**5),
    "rounds": (1, 50),
    "fresh_rounds": (0, 50),
    **dict.fromkeys(("added", "refine_added"), (1, 10**4)),
    **dict.fromkeys(("updates", "vae_updates", "mdnrnn_updates", "refine_updates"), (0, 10**9)),
    **dict.fromkeys(("value", "fresh", "vae_rounds", "refine_from"), (0, 10**9)),
    "env_steps": (0, 10**12),
    "steps": (1, 10**12),
    "seeds": (0, RUN_SEEDS - 1),
    "draw": (0, 10**6),
    **dict.fromkeys(("outlook", "earlier"), (1, 10**6)),
    "grid": (1, 36),
    "port": (0, 65_535),
}
"""Least and greatest value of each numeric option, by its name. A value outside is refused as a typing error."""

TOTALS = frozenset({"episodes", "driven", "updates", "generations", "env_steps", "rounds"})
"""Fields that may grow between two calls of a stage, since they only add work. Any other change needs --restart."""

REMOVED: dict[str, Any] = {"go_on": False, "later_options": "", "later_from": 1, "discount": 0.0, "pace": 0.0}
"""Removed fields of earlier versions, with their defaults. Work done with another value cannot be resumed."""


def changed_fields(old: dict[str, Any], new: Any) -> Iterator[str]:
    """Yields 'name was OLD, is NEW' for each field of config dataclass `new` that differs from the stored dict.

    Totals (`TOTALS`) are left out: a change of those adds work and needs no restart. A field that the stored dict
    lacks counts as its default, since the default of a new field keeps the earlier behaviour.
    """
    for f in fields(new):
        before = old.get(f.name, f.default)
        before = tuple(before) if isinstance(before, list) else before  # JSON has no tuples
        if f.name not in TOTALS and before != getattr(new, f.name):
            yield f"{f.name} was {before}, is {getattr(new, f.name)}"
    for name, default in REMOVED.items():
        if old.get(name, default) != default:
            yield f"{name} was {old[name]}, is no longer supported"
