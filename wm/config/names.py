"""Ids of environments, and the version of the run folder's format."""

from __future__ import annotations

import re
from pathlib import Path

DREAM_ENV = "wm/Dream-v0"


def default_run(env: str) -> Path:
    """The run folder of an environment, when none is given; its name is that of `ENV=` in the Makefile, too.

    It is the id in lower case without module, namespace and version: pendulum of Pendulum-v1.
    """
    name = re.split("[:/]", env)[-1]
    return Path("data/runs") / re.sub(r"-v[0-9]+\Z", "", name).lower()


RUN_FORMAT = 1
"""Version of the run folder's layout and of all artifacts in it. A folder of another version is refused."""
