"""README and docs/: links, commands, options, paths and committed scores that they name are there and right."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
LOG = ROOT / "docs" / "experiments.md"
"""What was tried, at the commits that it names: options of there may be gone."""

LONG = {"collect", "vae", "memory", "mdnrnn", "controller", "dream", "iterate", "evaluate", "curves", "ablate"}
LONG |= {"test-faults", "bench"}
"""Targets that take minutes to hours as the pages call them. Tests run them at other sizes."""

FOREIGN = {"--logdir", "--help"}
"""Options of other programs."""

OF_KINDS = {"vae": ("VAEConfig",), "memory": ("MDNRNNConfig",)}
"""By stage: the configs of its kinds."""

GONE = {"--road-weight"}
"""Options that a page says are gone."""

NESTED = {"dream_options": "dream", "refine_options": "dream", "mdnrnn_options": "memory", "options": "controller"}
"""Fields that hold options of another stage."""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


# --- reading Markdown ------------------------------------------------------------------------------------


@cache
def lines(page: Path) -> list[tuple[str, str]]:
    """(language of the fenced block that a line is in, or "", and the line); the fences themselves are left out."""
    found, fence = [], ""
    for line in page.read_text(encoding="utf-8").splitlines():
        opened = re.match(r"\s*```(\w*)", line)
        if opened:
            fence = "" if fence else opened[1] or "text"
        else:
            found.append((fence, line))
    return found


def spans(page: Path) -> list[str]:
    """All `code` in running text and tables."""
    return [code for fence, line in lines(page) if not fence for code in re.findall(r"`([^`]+)`", line)]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    text = page.read_text(encoding="utf-8")
    return [each for kind, each in re.findall(r"^\s*```(\w+)\n(.*?)^\s*```", text, re.M | re.S) if kind == language]


def anchors(page: Path) -> set[str]:
    """The names that a page's headings have on GitHub."""
    titles = [line.lstrip("#").strip() for fence, line in lines(page) if not fence and re.match("#+ ", line)]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def shell_commands(page: Path) -> Iterator[tuple[str, str]]:
    """(command without its comment, comment of the line or the block) of all fenced sh blocks."""
    for block in blocks(page, "sh"):
        general = ""
        for line in block.replace("\\\n", " ").splitlines():
            command, _, comment = line.partition(" # ") if not line.startswith("#") else ("", "", line)
            if command.strip():
                yield command.strip(), comment or general
            else:
                general = comment


def make_words(code: str) -> list[str] | None:
    """The words after `make` of a command; None when it is none."""
    try:
        words = shlex.split(re.split(r" \\?\| ", code)[0])
    except ValueError:
        return None
    while words and re.match(r"[A-Z_]+=", words[0]):  # the command's environment
        words = words[1:]
    return words[1:] if words and words[0] == "make" else None


# --- what there is ---------------------------------------------------------------------------------------


@cache
def makefile() -> tuple[set[str], set[str]]:
    """The targets and the variables of the Makefile."""
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):.*##", text, re.M))
    return targets, set(re.findall(r"^([A-Z]+) \?=", text, re.M))


@cache
def classes() -> dict[str, tuple[list[str], dict[str, str]]]:
    """Bases, and fields with their types, of the classes that hold a stage's options."""
    found = {}
    for path in [*ROOT.glob("wm/**/*.py"), *ROOT.glob("stages/*.py")]:
        text = path.read_text(encoding="utf-8")
        if path.parent.name != "stages" and "Config:" not in text and "Config(" not in text and "Common" not in text:
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.ClassDef):
                fields = {
                    each.target.id: ast.unparse(each.annotation)
                    for each in node.body
                    if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
                }
                found[node.name] = ([ast.unparse(base) for base in node.bases], fields)
    return found


def fields_of(name: str) -> dict[str, str]:
    """All fields of a class, with those of its bases."""
    bases, own = classes().get(name, ([], {}))
    return {key: kind for base in bases for key, kind in fields_of(base).items()} | own


@cache
def options(stage: str) -> set[str]:
    """The options of a stage, of what it gives to `parse`; without importing it, for that takes seconds."""
    tree = ast.parse((ROOT / "stages" / f"{stage}.py").read_text(encoding="utf-8"))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "parse"]
    made = calls[0].args[0]
    assert isinstance(made, ast.Lambda)
    if stage in OF_KINDS:
        named = [ast.unparse(made.body.args[1]), *OF_KINDS[stage]]  # type: ignore[attr-defined]
    elif isinstance(made.body, ast.Call):
        named = [ast.unparse(made.body.func)]
    else:  # preset.iterate
        named = [fields_of("Config")[ast.unparse(made.body).split(".")[1]]]
    found = set()
    for field in chain(fields_of("Common"), *map(fields_of, named)):
        found |= {f"--{field.replace('_', '-')}", f"--no-{field.replace('_', '-')}"}
    return found


def check_options(stage: str, given: list[str]) -> None:
    """Each `--option` is one of the stage's, and so are those within options for other stages."""
    for number, word in enumerate(given):
        if not word.startswith("--"):
            continue
        option, _, value = word.partition("=")
        assert option in options(stage), f"stage {stage} has no {option}"
        field = option.removeprefix("--").replace("-", "_")
        if field in NESTED:
            other = given[given.index("--stage") + 1] if "--stage" in given else NESTED[field]
            check_options(other, shlex.split(value or given[number + 1]))


# --- the tests -------------------------------------------------------------------------------------------


def test_what_reads_the_pages_finds_something() -> None:
    """The tests below would pass on nothing."""
    assert len(PAGES) >= 14
    assert {"--popsize", "--carry", "--restart", "--no-centre"} <= options("controller")
    assert "--popsize" not in options("vae")
    assert "--refine-from" in options("iterate")
    assert "from-python" in anchors(README)
    assert ("make bench", "long run: environment, store, inference, evolution loop, dream") in list(
        shell_commands(ROOT / "docs" / "benchmarks.md")
    )
    with pytest.raises(AssertionError, match="stage dream has no --gamma"):
        check_options("curves", ["--stage", "dream", "--options=--temperature 1 --gamma 2"])


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200


def test_the_index_names_every_page() -> None:
    text = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert page.name == "README.md" or f"({page.name})" in text, f"docs/README.md lacks {page.name}"


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for fence, line in lines(page):
        if fence:
            continue
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", line)):
            if target.startswith("https://"):
                continue
            name, _, anchor = target.partition("#")
            path = (page.parent / name).resolve() if name else page
            assert path.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(path), f"{page.name}: {target}"


@each_page
def test_make_commands_have_targets_variables_and_options(page: Path) -> None:
    targets, variables = makefile()
    for code in [*spans(page), *(command for command, _ in shell_commands(page))]:
        words = make_words(code)
        if words is None or page == LOG:
            continue
        goals = [word for word in words if "=" not in word]
        assert set(goals) <= targets, f"{page.name}: {code}"
        for word in words:
            name, given, value = word.partition("=")
            assert not given or name in variables, f"{page.name}: {code}"
            if name == "ARGS" and goals and (ROOT / "stages" / f"{goals[-1]}.py").exists() and "..." not in value:
                check_options(goals[-1], shlex.split(value))


@each_page
def test_options_and_modules_in_running_text(page: Path) -> None:
    known = {"--restart"}.union(*(options(path.stem) for path in ROOT.glob("stages/[a-z]*.py")))
    for code in [*spans(page), *(command for command, _ in shell_commands(page))]:
        module = re.search(r"-m ((?:stages|tests)\.\w+)", code)
        assert not module or (ROOT / f"{module[1].replace('.', '/')}.py").exists(), f"{page.name}: {code}"
        if page != LOG and not module:
            unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", code)) - known - FOREIGN - GONE
            assert not unknown, f"{page.name}: {code}"


@each_page
def test_commands_are_recognised_and_long_ones_say_so(page: Path) -> None:
    for command, comment in shell_commands(page):
        words = make_words(command)
        if words is None:
            other = r"\.venv/bin/python -m (stages|tests)\.\w+|mkdir |pip install "
            assert re.match(other, command), f"{page.name}: {command}"
        elif LONG & set(words) and "PRESET=smoke" not in words:
            assert "long run" in comment, f"{page.name}: {command} takes long and does not say so"


def written(page: Path) -> set[str]:
    """The files that a tutorial writes, each a block of Python that begins with its path."""
    return {path for block in blocks(page, "python") for path in re.findall(r"\A# (wm/\S+)\n", block)}


@each_page
def test_python_compiles_and_imports_what_is_there(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")
        for module, names in re.findall(r"^(?:import|from) (wm[\w.]*)(?: import (.*))?", block, re.M):
            path = ROOT / module.replace(".", "/")
            path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            if str(path.relative_to(ROOT)) in written(page):
                continue
            assert all(re.search(rf"\b{name}\b", path.read_text()) for name in re.findall(r"\w+", names))


@each_page
def test_paths_exist(page: Path) -> None:
    """Every file and folder that is named is there."""
    named = [code for _, line in lines(page) for code in re.findall(r"(?<![\w/.])(?:wm|stages|tests)/[\w./]*", line)]
    named += re.findall(r"(?<![\w/.])data/pretrained/[\w./-]*\w", page.read_text(encoding="utf-8"))
    named = [name.rstrip(".") for name in named if not re.match(r"wm/[A-Z]", name)]  # those are Gymnasium's
    missing = sorted({name for name in named if not (ROOT / name).exists()} - written(page))
    assert not missing, f"{page.name} names {', '.join(missing)}"


def test_the_functions_of_the_architecture_are_where_it_says() -> None:
    rows = [line for fence, line in lines(ROOT / "docs" / "architecture.md") if not fence and line.startswith("| ")]
    missing, found = [], 0
    for row in rows:
        _, files, names, *_ = [*row.split(" | "), "", ""]
        paths = re.findall(r"`(wm/[\w/]+\.py)`", files)
        if not paths or not names.startswith("`"):
            continue
        text = "\n".join((ROOT / path).read_text(encoding="utf-8") for path in paths if (ROOT / path).exists())
        for name in re.findall(r"`([\w.]+)`", names):
            for part in name.split("."):
                if not re.search(rf"\b(def|class) {part}\b", text):
                    missing.append(f"{part} in {files}")
                found += 1
    assert not missing, "; ".join(missing)
    assert found > 20


@pytest.mark.parametrize("score", ["score.json", "dream/score-dream.json"])
def test_committed_scores_are_as_the_pages_say(score: str) -> None:
    found = json.loads((ROOT / "data" / "pretrained" / score).read_text())
    said = f"**{found['mean']:.0f} ± {found['std']:.0f}**"
    for page in (README, ROOT / "docs" / "results.md"):
        rows = [line for _, line in lines(page) if line.startswith("|") and f"data/pretrained/{score}" in line]
        assert len(rows) == 1, page
        assert said in rows[0], f"{page.name}: {rows[0]}"


def test_licence_and_citation() -> None:
    licence = (ROOT / "LICENSE").read_text()
    assert licence.startswith("MIT License\n\nCopyright (c) 2026 The World Models authors\n")
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    for line in ("cff-version: 1.2.0", "title: World Models", "license: MIT", "  - name: The World Models authors"):
        assert line in text.splitlines()
    assert all(re.match(r"( *- )?\s*[\w-]+: ?|\s+(- )?\S|$", line) for line in text.splitlines())
    assert "\t" not in text
    assert {"message", "authors", "references"} <= set(re.findall(r"^([\w-]+):", text, re.M))
