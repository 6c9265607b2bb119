"""Absurd options: each stage refuses each of them in one sentence that names it, before it touches anything."""

import importlib
import math
import re
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.here import ROOT
from wm.config.bounds import bounds_of
from wm.config.presets import PRESETS
from wm.contracts import MemoryKind, VisionKind
from wm.memory import kinds as memory_kinds
from wm.run.command_line import check_bounds
from wm.run.errors import UserError, writing
from wm.vision import kinds as vision_kinds

STAGES = (
    *("collect", "vae", "memory", "controller", "dream", "iterate", "evaluate", "probe"),
    *("replay", "report", "play", "publish", "curves", "ablate"),
)
ABSURD = ("-1", "0", "nan", "inf", "-inf", "1e400", "-0.5", "1" * 30, "", "many", "0x10", "1,5", "None", "../..", "é")


CONFIGS = {"vae": vision_kinds.KINDS["conv"].config, "memory": memory_kinds.KINDS["mdnrnn"].config}
"""Of the kinds that these stages train unless told otherwise."""


def options(stage: str) -> list[Field[Any]]:
    """The fields that are a stage's options."""
    module = importlib.import_module(f"stages.{stage}")
    found = [
        value
        for name, value in vars(module).items()
        if is_dataclass(value) and name.lower() in (f"{stage}args", f"{stage}config")
    ]
    own = max(found, key=lambda kind: len(fields(kind)))
    return [*fields(own), *(fields(CONFIGS[stage]) if stage in CONFIGS else ())]


@pytest.mark.parametrize("stage", STAGES)
def test_every_number_has_bounds_that_hold_its_defaults(stage: str) -> None:
    for f in options(stage):
        if f.type in ("int", "float", "tuple[int, ...]"):
            assert bounds_of(f), f"--{f.name} of stage {stage} has no bounds"
    for preset in next(iter(PRESETS.values())).values():
        for config in vars(preset).values():
            check_bounds(config)


@pytest.mark.parametrize("kind", [*vision_kinds.KINDS.values(), *memory_kinds.KINDS.values()], ids=lambda k: k.name)
def test_every_number_of_a_kind_has_bounds_that_hold_its_defaults(kind: VisionKind | MemoryKind) -> None:
    for f in fields(kind.config):
        if f.type in ("int", "float", "tuple[int, ...]"):
            assert bounds_of(f), f"{f.name} of {kind.title} has no bounds"
    check_bounds(kind.config())


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_records_itself_records_the_environment(stage: str) -> None:
    text = (ROOT / "stages" / f"{stage}.py").read_text(encoding="utf-8")
    assert all("args.env)" in call for call in re.findall(r"run\.stage\(.*", text))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("every", [9, pytest.param(1, marks=[pytest.mark.faults, pytest.mark.slow])])
def test_absurd_values_are_refused_in_a_sentence(
    stage: str, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main = importlib.import_module(f"stages.{stage}").main
    where = ["--run", str(tmp_path / "run"), "--preset", "smoke", "--workers", "0"]
    for i, f in enumerate(options(stage)):
        option = f"--{f.name.replace('_', '-')}"
        for value in ABSURD[i % every :: every]:
            if f.type in ("bool", "str") or "Path" in str(f.type) or is_in_bounds(f, value):
                continue
            with pytest.raises(UserError) as raised:
                main([*where, f"{option}={value}"])
            assert option.lstrip("-") in str(raised.value).replace("no-", ""), (option, value)
            assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def is_in_bounds(f: Field[Any], value: str) -> bool:
    """Whether it is none of the absurd values for this option after all."""
    least, most = bounds_of(f) or (math.inf, -math.inf)
    try:
        return least <= (float(value) if f.type == "float" else int(value)) <= most
    except ValueError:
        return False


@pytest.mark.parametrize("stage", STAGES)
def test_folders_that_are_none_are_refused_in_a_sentence(stage: str, tmp_path: Path) -> None:
    main = importlib.import_module(f"stages.{stage}").main
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    folders = [tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("n" * 300)]
    if stage not in ("collect", "iterate"):  # which begin in an empty folder
        folders += [tmp_path / "empty", tmp_path / "none"]
    for folder in folders:
        with pytest.raises(UserError) as raised, writing(None):  # as `run_stage` does it
            main(["--run", str(folder), "--preset", "smoke", "--workers", "0"])
        assert str(folder) in str(raised.value)
        assert "\n" not in str(raised.value)
        assert ": " in str(raised.value)  # and the way out
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--run", "x", "--unknown", "1"], r"Unrecognized options: --unknown, 1 \("),
        (["--run", "x", "--popsize", "many"], r"Error parsing --popsize: invalid literal .* 'many' \("),
        (
            ["--run", "x", "--es", "luck"],
            r"invalid choice 'luck' for argument '--es'\. Expected one of \('cmaes', .* \(",
        ),
        (["--run"], r"Missing value for argument '--run'\. Expected 1 values \("),
        (["--run", "x", "--seed", "1.5"], r"--seed"),
        (["--run", "x", "--workers=-3"], r"--workers -3 is out of range"),
        (["--run", "x", "--threads=many"], r"--threads"),
        (["--run", "x", "--preset="], r"--preset  is unknown"),
    ],
)
def test_what_cannot_be_parsed_is_one_sentence(arguments: list[str], sentence: str) -> None:
    main = importlib.import_module("stages.controller").main
    with pytest.raises(UserError, match=sentence):
        main(["--preset", "smoke", *arguments])


@pytest.mark.parametrize("stage", ["replay", "play"])
@pytest.mark.parametrize("old", ["--track=7", "--track 7"])
def test_what_was_a_track_is_an_episode(stage: str, old: str) -> None:
    main = importlib.import_module(f"stages.{stage}").main
    with pytest.raises(UserError, match=r"^--track has another name: give --episode\.$"):
        main(["--run", "x", *old.split()])


@pytest.mark.parametrize(
    ("stage", "option", "sentence"),
    [
        ("vae", "--vision", r"there is no V 'odd': choose one of conv\b"),
        ("memory", "--memory", r"there is no M 'odd': choose one of mdnrnn\b"),
    ],
)
def test_a_kind_that_there_is_not(tmp_path: Path, stage: str, option: str, sentence: str) -> None:
    main = importlib.import_module(f"stages.{stage}").main
    with pytest.raises(UserError, match=sentence):
        main(["--run", str(tmp_path / "run"), option, "odd"])
    assert not (tmp_path / "run").exists()


def test_a_name_of_a_variant_stays_in_its_folder(tmp_path: Path) -> None:
    main = importlib.import_module("stages.curves").main
    for name in ("..", ".", "a/b", "../x", ".hidden"):
        with pytest.raises(UserError, match=r"--name '.*' cannot be a folder name"):
            main(["--run", str(tmp_path / "run"), "--name", name])
    with pytest.raises(UserError, match=r"--options .* cannot be parsed \(No closing quotation\)"):
        main(["--run", str(tmp_path / "run"), "--name", "a", "--options=--tracks '2"])
    assert not (tmp_path / "run" / "variants").exists()
