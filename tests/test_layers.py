"""Imports between packages: they point one way, some packages do not import one another, and workers need no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LAYERS: list[set[str]] = [
    {"stages"},
    {"show"},
    {"agent", "driving", "learning"},
    {"dream"},
    {"vision", "memory", "controller"},
    {"store", "envs"},
    {"run", "config", "contracts"},
]
"""From the top; a module may import its own layer and those below."""

LAZY_TORCH = {
    "wm.controller.hidden": {"Hidden"},
    "wm.controller.linear": {"Linear"},
    "wm.driving.loading": {"load_models"},
    "wm.envs.action": {"Action"},
    "wm.run.metrics": {"Metrics"},
}
"""Where a module that needs no torch to be imported may yet import it, directly or through another module."""

WITH_TORCH = {
    "wm.dream",
    "wm.driving.encoding",
    "wm.learning.checkpoint",
    "wm.learning.gradient",
    "wm.memory.fused",
    "wm.memory.graph",
    "wm.memory.kinds",
    "wm.memory.mdnrnn",
    "wm.memory.training",
    "wm.run.artifact",
    "wm.run.device",
    "wm.show",
    "wm.vision.graph",
    "wm.vision.kinds",
    "wm.vision.training",
    "wm.vision.vae",
}
"""What does not run in a rollout worker; all the rest of wm can, and is free of torch."""

WITH_WORKERS = ("collect", "controller", "dream", "evaluate", "probe")
"""Stages whose main module every worker process imports again."""

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("wm", "stages")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def imports(module: str) -> list[tuple[str, str]]:
    """(imported module, name of the function or class that imports it or '') for every import anywhere in it.

    Imports for type checkers alone are left out.
    """
    found: list[tuple[str, str]] = []

    def walk(node: ast.AST, within: str) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, within) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            assert node.module is not None
            for alias in node.names:  # `from package import module` imports the module, too
                whole = f"{node.module}.{alias.name}"
                found.append((whole if whole in MODULES else node.module, within))
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        for child in ast.iter_child_nodes(node):
            walk(child, within or node.name if named else within)  # type: ignore[attr-defined]

    walk(ast.parse(MODULES[module].read_text()), "")
    return found


TORCH_FREE = [m for m in MODULES if m.startswith("wm") and not within(m, WITH_TORCH)]


def ours(module: str) -> set[str]:
    return {name for name, _ in imports(module) if within(name, {"wm", "stages", "tests"})}


def layer(module: str) -> int:
    room = module.split(".")[0] if module.startswith("stages") else [*module.split("."), ""][1]
    (found,) = (i for i, rooms in enumerate(LAYERS) if room in rooms)
    return found


def test_the_walk_sees_imports() -> None:
    """The tests below would pass on nothing found."""
    assert ("wm.memory.kinds", "load_models") in imports("wm.driving.loading")
    assert ("wm.controller.linear", "") in imports("wm.driving.loading")
    assert ("torch.utils.tensorboard", "Metrics") in imports("wm.run.metrics")
    assert len(MODULES) > 80
    assert len(TORCH_FREE) > 40


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("wm", "stages")])
def test_imports_point_down(module: str) -> None:
    for imported in ours(module):
        assert imported != "wm", f"{module} imports the bare package"
        assert layer(imported) >= layer(module), f"{module} imports {imported}, which lies above"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("stages.")])
def test_no_stage_imports_a_stage(module: str) -> None:
    assert not {name for name in ours(module) if within(name, {"stages", "tests"})}


STRANGERS = [
    ({"wm.vision"}, {"wm.memory", "wm.controller", "wm.envs"}),
    ({"wm.memory"}, {"wm.vision", "wm.controller", "wm.envs"}),
    ({"wm.controller"}, {"wm.vision", "wm.memory", "wm.envs", "wm.store", "torch"}),
    ({"wm.envs"}, {"wm.store", "torch"}),
    ({"wm.store"}, {"wm.envs", "torch", "gymnasium"}),
    ({"wm.dream", "wm.driving", "stages"}, {"wm.envs.car_racing"}),
    ({"wm.learning"}, {"wm.vision", "wm.memory", "wm.dream", "wm.driving", "wm.envs", "wm.store", "gymnasium"}),
    ({"wm.driving"}, {"wm.learning", "wm.dream"}),
    ({"wm.learning.evolution"}, {"torch"}),
    ({"wm.learning.gradient"}, {"wm.controller"}),
    ({"wm.driving.workers"}, {"wm.vision", "wm.memory", "wm.controller", "wm.envs", "wm.store", "torch", "gymnasium"}),
    ({"wm.contracts"}, {"wm", "torch", "gymnasium"}),
    ({"wm.config"}, {"wm.run", "torch", "numpy", "gymnasium"}),
]
"""(rooms, what they do not know)."""


@pytest.mark.parametrize(("rooms", "strangers"), STRANGERS)
def test_rooms_do_not_know_one_another(rooms: set[str], strangers: set[str]) -> None:
    modules = [module for module in MODULES if within(module, rooms)]
    assert modules
    for module in modules:
        for imported, function in imports(module):
            if function in LAZY_TORCH.get(module, set()) and within(imported, {"torch"}):
                continue
            assert not within(imported, strangers), f"{module} imports {imported}"


def test_only_stages_show() -> None:
    for module in MODULES:
        if not within(module, {"stages", "wm.show"}):
            assert not {name for name in ours(module) if within(name, {"wm.show"})}, module


def test_torch_is_imported_late_only_where_it_is_said() -> None:
    for module in MODULES:
        if module in TORCH_FREE:
            for imported, function in imports(module):
                if within(imported, {"torch"}):
                    assert function in LAZY_TORCH.get(module, set()), f"{module}, {function}"


def modules_after(code: str, folder: Path = ROOT) -> tuple[set[str], str]:
    """What a new process has in sys.modules after `code`, and what it printed."""
    code += "\nimport sys; sys.stderr.write('MODULES ' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    said, _, modules = done.stderr.rpartition("MODULES ")
    return set(modules.split()), done.stdout + said


def test_what_workers_import_is_free_of_torch() -> None:
    modules, _ = modules_after("\n".join(f"import {module}" for module in TORCH_FREE))
    assert set(TORCH_FREE) <= modules
    assert not {"torch", "tensorboard"} & modules


@pytest.mark.parametrize("stage", WITH_WORKERS)
def test_a_stage_with_workers_is_free_of_torch_until_it_runs(stage: str) -> None:
    modules, _ = modules_after(f"import stages.{stage}")
    assert "wm.driving.workers" in modules
    assert "torch" not in modules


def test_stages_with_workers_are_these() -> None:
    found = {m for m in MODULES if m.startswith("stages.") and "wm.driving.workers" in ours(m)}
    assert found == {f"stages.{stage}" for stage in WITH_WORKERS}


def test_importing_a_module_says_and_leaves_nothing(tmp_path: Path) -> None:
    code = f"import threading, sys; sys.path.insert(0, {str(ROOT)!r})\n"
    code += "\n".join(f"import {module}" for module in MODULES) + "\nprint(threading.active_count())"
    modules, said = modules_after(code, tmp_path)
    assert set(MODULES) <= modules
    assert said == "1\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", list(MODULES))
def test_a_modules_top_level_only_defines(module: str) -> None:
    """Statements that do something on import are looked for by their form: bare calls, loops, with, try."""
    tree = ast.parse(MODULES[module].read_text())
    for node in tree.body:
        if isinstance(node, ast.If):
            allowed = ["sys.argv[0] == '-m'"] if module == "stages" else ["TYPE_CHECKING", "__name__ == '__main__'"]
            assert ast.unparse(node.test) in allowed, f"line {node.lineno}"
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            assert module == "wm.envs", f"{module} calls {ast.unparse(node.value.func)} on import"
            assert ast.unparse(node.value.func).endswith("register")
            continue
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        definitions = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
        assert is_text or isinstance(node, definitions), f"{module}, line {node.lineno}: {ast.unparse(node)[:60]}"
