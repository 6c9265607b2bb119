"""Ids of environments, and the version of the run folder's format."""

from __future__ import annotations

FAST_ENV = "wm/CarRacing-v3"
STOCK_ENV = "CarRacing-v3"
DREAM_ENV = "wm/Dream-v0"


def canonical(env: str) -> str:
    """The id that presets and manifests know an environment by; our fast CarRacing is another name of the stock one."""
    return STOCK_ENV if env == FAST_ENV else env


def training_id(env: str) -> str:
    """The id that is trained on, by the canonical one that is scored: for CarRacing our fast pixels, else the same."""
    return FAST_ENV if env == STOCK_ENV else env


RUN_FORMAT = 1
"""Version of the run folder's layout and of all artifacts in it. A folder of another version is refused."""
