"""Ids of the environments that we register, and the version of the run folder's format."""

from __future__ import annotations

FAST_ENV = "wm/CarRacing-v3"
STOCK_ENV = "CarRacing-v3"
DREAM_ENV = "wm/Dream-v0"

RUN_FORMAT = 1
"""Version of the run folder's layout and of all artifacts in it. A folder of another version is refused."""
