"""Stage ablate: which stages each row calls on what, what it shares, shows, resumes and refuses."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stages.ablate
from stages.ablate import ROWS, Row, main
from tests.here import COMMON, given
from wm.controller.file import save_controller
from wm.run.checksums import file_hash
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.json_files import append_line, read_json, write_json
from wm.run.signals import RESTARTED, last_line

SCORES = {"full": [900.0, 910.0, 890.0, 500.0], "v": [600.0, 800.0, 400.0, 300.0]}


class Pretended:
    """Stands in for `call_stage`: leaves what a stage would, and can be interrupted at any call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, list[str]]] = []
        self.interrupt_at = -1

    def __call__(self, stage: str, options: dict[str, Any], arguments: Sequence[str] = ()) -> None:
        if len(self.calls) == self.interrupt_at:
            self.interrupt_at = -1
            raise KeyboardInterrupt
        run = Run(options["run"])
        name = run.folder.name
        assert options == {"run": run.folder, **COMMON}
        self.calls.append((name, stage, list(arguments)))
        if stage in ("vae", "memory"):
            artifact = run.vae if stage == "vae" else run.mdnrnn
            assert not artifact.exists()
            artifact.write_text(f"{stage} of {name}")
        elif stage == "controller":
            assert run.vae.exists()
            assert run.mdnrnn.exists()
            save_controller(run.controller, np.arange(39.0), {"made_from": {}})
            line = dict.fromkeys(("mean", "best", "worst", "seconds", "select", "select_std"), 1.0)
            append_line(run.metrics, {"stage": stage, "step": 1, **line, "env_steps": 7.0, "select_steps": 3.0})
        else:
            returns = SCORES.get(name, [1.0, 2.0])
            found = {"mean": float(np.mean(returns)), "std": float(np.std(returns)), "ci95": 2.0, "returns": returns}
            numbers = list(range(len(returns)))
            found |= {"lengths": numbers, "seeds": numbers, "env_id": "", "max_steps": 1, "made_from": {}}
            found |= {"commit": "", "time": "", "versions": {"gymnasium": "1"}}
            write_json(run.score, found)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    stand_in = Pretended()
    monkeypatch.setattr(stages.ablate, "call_stage", stand_in)
    return stand_in


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.rollouts.mkdir(parents=True)
    for path in (run.rollouts / "0.h5", run.rollouts / "summary.json", run.vae, run.latents, run.mdnrnn):
        path.write_text(path.name)
    return run


@pytest.fixture
def own_v(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row with a V of its own beside the others."""
    row = Row("another V", vae=("--start", "{run}/vae.pt", "--kl-weight", "5"), mdnrnn=())
    monkeypatch.setitem(ROWS, "own-v", row)


def ablate(run: Run, *arguments: str) -> None:
    main(["--run", str(run.folder), *given(COMMON), *arguments])


def row_of(run: Run, name: str) -> Run:
    return Run(run.folder / "ablations" / name)


@pytest.mark.usefixtures("own_v")
def test_a_row_calls_the_stages_of_what_it_changes(run: Run, pretended: Pretended) -> None:
    ablate(run, "--rows", *ROWS, "--steps", "50", "--episodes", "4")
    called = {name: [stage for row, stage, _ in pretended.calls if row == name] for name in ROWS}
    last = ["controller", "evaluate"]
    trained = {"no-outlook": ["memory"], "untrained-m": ["memory"], "own-v": ["vae", "memory"]}
    assert called == {name: [*trained.get(name, []), *last] for name in ROWS}
    budget = ["--env-steps", "50", "--generations", "1000000000", "--select-every", "5", "--select-tracks", "32"]
    for name, stage, arguments in pretended.calls:
        if stage == "controller":
            assert arguments == [*budget, *ROWS[name].controller]
        elif stage == "vae":
            assert arguments == ["--start", f"{run.folder}/vae.pt", "--kl-weight", "5"]
        elif stage == "evaluate":
            assert arguments == ["--episodes", "4"]


@pytest.mark.usefixtures("own_v")
def test_what_a_row_does_not_change_is_that_of_the_run(run: Run, pretended: Pretended) -> None:
    ablate(run, "--rows", *ROWS)
    for name, row in ROWS.items():
        this = row_of(run, name)
        for mine, theirs, own in (
            (this.vae, run.vae, row.vae),
            (this.mdnrnn, run.mdnrnn, row.mdnrnn),
            (this.rollouts / "0.h5", run.rollouts / "0.h5", None),
            (this.rollouts / "summary.json", run.rollouts / "summary.json", None),
        ):
            assert (file_hash(mine) == file_hash(theirs)) == (own is None), (name, mine.name)
            assert (mine.stat().st_ino == theirs.stat().st_ino) == (own is None)
        assert this.latents.exists() == (row.vae is None)


def test_the_table(run: Run, pretended: Pretended, capsys: pytest.CaptureFixture[str]) -> None:
    ablate(run, "--rows", "v")
    ablate(run, "--rows", "full")
    rows = read_json(run.ablations)["rows"]
    assert list(rows) == ["full", "v"]  # in the table's own order
    assert rows["full"]["mean"] == 800
    assert rows["full"]["median"] == 895
    assert rows["full"]["lost"] == 1
    assert rows["v"]["env_steps"] == 7
    assert rows["v"]["options"]["controller"] == ["--inputs", "z"]
    *_, head, first, second = capsys.readouterr().out.splitlines()
    assert head.endswith("below 700")
    assert first.split("linear")[1].split() == ["38", "0.00", "800", "±", "173", "895", "1", "of", "4"]
    assert second.startswith("V only, linear")


def test_rows_of_earlier_versions_stay(run: Run, pretended: Pretended, capsys: pytest.CaptureFixture[str]) -> None:
    ablate(run, "--rows", "full")
    row = read_json(run.ablations)["rows"]["full"]
    write_json(run.ablations, {"rows": {"road": {**row, "says": "V with road pixels weighted"}}})
    ablate(run, "--rows", "full")
    rows = read_json(run.ablations)["rows"]
    assert list(rows) == ["full", "road"]
    assert rows["road"]["mean"] == row["mean"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("V with road pixels weighted")


def test_an_interrupted_row_goes_on(run: Run, pretended: Pretended) -> None:
    pretended.interrupt_at = 1  # after M, before C
    with pytest.raises(KeyboardInterrupt):
        ablate(run, "--rows", "no-outlook")
    assert not run.ablations.exists()
    (row_of(run, "no-outlook").mdnrnn).unlink()  # the pretended stage would not know that it is finished
    ablate(run, "--rows", "no-outlook")
    assert list(read_json(run.ablations)["rows"]) == ["no-outlook"]


def test_an_interrupted_restart_goes_on_without_it(
    run: Run, pretended: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wm.run.signals._Work.begun", False)
    ablate(run, "--rows", "full", "no-outlook", "untrained-m")
    pretended.calls.clear()
    pretended.interrupt_at = 1
    with pytest.raises(KeyboardInterrupt):
        ablate(run, "--rows", "full", "no-outlook", "--restart")
    assert last_line(restart=True) == RESTARTED
    assert list(read_json(run.ablations)["rows"]) == ["untrained-m"]
    assert not row_of(run, "no-outlook").folder.exists()
    assert row_of(run, "untrained-m").folder.exists()


def test_a_row_on_an_older_v_is_refused_and_made_anew(run: Run, pretended: Pretended) -> None:
    ablate(run, "--rows", "full")
    run.vae.unlink()
    run.vae.write_text("another V")
    with pytest.raises(UserError, match=r"full/vae.pt differs from that of .*--restart"):
        ablate(run, "--rows", "full")
    ablate(run, "--rows", "full", "--restart")
    assert row_of(run, "full").vae.read_text() == "another V"


def test_what_it_refuses(run: Run, pretended: Pretended) -> None:
    with pytest.raises(UserError, match="--rows many is unknown: choose from full, no-outlook"):
        ablate(run, "--rows", "full", "many")
    run.latents.unlink()
    with pytest.raises(UserError, match=r"latents\.h5 is missing: make it with `make mdnrnn`"):
        ablate(run)
    (run.rollouts / "summary.json").unlink()
    with pytest.raises(UserError, match=r"summary\.json is missing: make it with `make collect`"):
        ablate(run)
    assert pretended.calls == []


def test_a_file_system_without_links(run: Run, pretended: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    ablate(run, "--rows", "full")
    assert row_of(run, "full").vae.read_text() == "vae.pt"
