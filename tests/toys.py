"""The task, M and C of the tutorials in docs/, as modules where the tutorials put them."""

import re
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import wm.controller.kinds
import wm.envs
import wm.memory.kinds
from wm.config.presets import PRESETS, SMOKE

DOCS = Path(__file__).parent.parent / "docs"


def load(page: str) -> ModuleType:
    """The module that a tutorial writes: its block whose first line is a comment with the path."""
    (block,) = re.findall(r"^```python\n# (wm/\S+\.py)\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)
    path, source = block
    name = path.removesuffix(".py").replace("/", ".")
    if (DOCS.parent / path).exists():  # somebody follows the tutorial in this checkout
        return import_module(name)
    module = ModuleType(name)
    sys.modules[name] = module  # before it runs, as an import has it: dataclasses look it up
    exec(compile(source, f"{page}: {path}", "exec"), module.__dict__)
    return module


DOT: Any = load("add-a-task.md").DOT
DRIFT: Any = load("add-a-memory.md")
Wave: Any = load("add-a-controller.md").Wave
DOT_SMOKE = replace(
    SMOKE, mdnrnn=replace(SMOKE.mdnrnn, reward="value"), dream=replace(SMOKE.dream, start_after=5, start_near=0)
)


def add_toys(patch: pytest.MonkeyPatch) -> None:
    """Enters all three where the tutorials do."""
    patch.setitem(wm.envs.TASKS, DOT.env_id, DOT)
    patch.setitem(PRESETS, DOT.env_id, {"smoke": DOT_SMOKE})
    patch.setitem(wm.memory.kinds.KINDS, DRIFT.Drift.kind, DRIFT.DriftKind())
    patch.setitem(wm.controller.kinds.KINDS, Wave.kind, Wave)
