"""Stage iterate: the order of its rounds, what it keeps, refuses and resumes; at last with the real stages."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import stages.collect
import stages.iterate
from stages.iterate import ARTIFACTS, link_shards, main
from tests.here import COMMON, given, run_here
from tests.toy_dream import make_toy_run, toy_episode
from wm.config.presets import PRESETS, SMOKE, STOCK_ENV
from wm.config.seeds import DRIVEN_FROM
from wm.controller.file import load_controller, save_controller
from wm.driving.loading import load_agent
from wm.run.checksums import file_hash
from wm.run.errors import MachineError, UserError
from wm.run.folder import Run
from wm.run.json_files import append_line, read_lines, write_json
from wm.store.latents import LatentsWriter
from wm.store.shards import Rollouts
from wm.vision.vae import load_vae

V = ("val_loss", "val_error", "val_kl", "val_dead")
M = ("val_loss", "val_nll", "val_nll_one", "val_nll_marginal", "val_nll_unit")
"""What validations log."""

SELECT = (100.0, 300.0, 200.0, 250.0)
"""What the controllers of the rounds score on the selection tracks, where the stages only pretend to work."""

Call = tuple[str, str, list[str]]


def recorded(stage: str) -> str:
    """The name of a stage in manifest and metrics, where that of M is the kind of M."""
    return "mdnrnn" if stage == "memory" else stage


def append_toy(writer: LatentsWriter, index: int) -> None:
    episode, mu = toy_episode(index, 10), np.zeros((11, 4), np.float32)
    writer.append(episode, episode.actions, mu, mu)


class Pretended:
    """Stands in for `call_stage`: leaves what a stage would, and can be interrupted at any call."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.interrupt_at = -1

    def __call__(self, stage: str, options: dict[str, Any], arguments: Sequence[str] = ()) -> None:
        if len(self.calls) == self.interrupt_at:
            self.interrupt_at = -1
            raise KeyboardInterrupt
        run = Run(options["run"])
        number = int(run.folder.name)
        assert options == {"run": run.folder, **COMMON}
        self.calls.append((run.folder.name, stage, list(arguments)))
        run.rollouts.mkdir(parents=True, exist_ok=True)
        stage = recorded(stage)
        record: dict[str, Any] = {"config": {}, "seed": 3, "versions": {}, "commit": "", "cores": 1, "started": ""}
        run.record(stage, {**record, "ended": "", "seconds": 30.0, "peak_memory_mb": 1.0})
        if stage == "collect":
            (run.rollouts / f"{number}.h5").write_text(f"shard {number}")
            write_json(run.rollouts / "summary.json", {"round": number})
        elif stage == "vae":
            run.vae.write_text(f"V {number}")
            for step, error in ((1, 30.0), (2, 20.0 - number), (3, 25.0)):
                append_line(run.metrics, {"stage": stage, "step": step, **dict.fromkeys(V, error)})
        elif stage == "mdnrnn":
            run.mdnrnn.write_text(f"M {number}")
            append_line(run.metrics, {"stage": stage, "step": 1, **dict.fromkeys(M, 1.0), "val_nll": 0.9})
            with LatentsWriter(run.latents, {}) as writer:
                for index in range(8 + 2 * number):
                    append_toy(writer, index)
        else:
            run.starts.write_text(f"starts {number}")
            run.dream.write_text(f"C {number}")
            run.plots.mkdir()
            (run.plots / "dream.png").write_text(f"plot {number}")
            for step, score in ((1, -50.0), (2, SELECT[number]), (3, 0.0)):
                row = {
                    "dream": 400.0,
                    "select": score,
                    "select_std": 5.0,
                    "select_steps": 7 * step,
                    "env_steps": 100 * step,
                    "seconds": step,
                    "mean": 300.0,
                }
                append_line(run.metrics, {"stage": stage, "step": step, **row})


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    stand_in = Pretended()
    monkeypatch.setattr(stages.iterate, "call_stage", stand_in)
    return stand_in


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def iterate(run: Run, *arguments: str, pictures: bool = False) -> None:
    """Runs the stage; its picture, the slowest part of it here, only where it is wanted."""
    with pytest.MonkeyPatch.context() as patch:
        if not pictures:
            patch.setattr(stages.iterate, "plot_rounds", lambda *_: None)
        main(["--run", str(run.folder), *given(COMMON), *arguments])


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file."""
    return {str(path.relative_to(folder)): file_hash(path) for path in folder.rglob("*") if path.is_file()}


def shown(run: Run) -> list[str]:
    return [(run.folder / name).read_text() for name in ARTIFACTS if (run.folder / name).exists()]


def untimed(run: Run) -> list[dict[str, Any]]:
    return [{**row, "time": ""} for row in read_lines(run.rounds)]


# --- the rounds -------------------------------------------------------------------------------------------


def test_each_round_builds_on_the_one_before(
    run: Run, pretended: Pretended, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--vae-updates", "5", "--dream-options=--temperature 1.5 --horizon 30"]
    iterate(run, "--rounds", "3", *options, pictures=True)
    zero, one = (str(run.folder / "rounds" / number) for number in "01")
    dream = ["--temperature", "1.5", "--horizon", "30"]
    zeroth, first, second = (["--draw", number, *dream] for number in "012")
    assert pretended.calls == [
        ("0", "collect", ["--driven", "0"]),
        ("0", "vae", []),
        ("0", "memory", []),
        ("0", "dream", zeroth),
        ("1", "collect", ["--driven", "2", "--driver", "dream-latest", "--source", zero]),
        ("1", "vae", ["--start", f"{zero}/vae.pt", "--updates", "5", "--earlier", "8"]),
        ("1", "memory", ["--start", f"{zero}/mdnrnn.pt", "--updates", "20", "--earlier", "8"]),
        ("1", "dream", first),
        ("2", "collect", ["--driven", "4", "--driver", "dream-latest", "--source", one]),
        ("2", "vae", ["--start", f"{one}/vae.pt", "--updates", "5", "--earlier", "8", "10"]),
        ("2", "memory", ["--start", f"{one}/mdnrnn.pt", "--updates", "20", "--earlier", "8", "10"]),
        ("2", "dream", second),
    ]
    rows = read_lines(run.rounds)
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert [(row["episodes"], row["new"]) for row in rows] == [(8, 8), (10, 2), (12, 2)]
    assert [row["error"] for row in rows] == [20, 19, 18]
    assert [(row["dream"], row["select"], row["gap"]) for row in rows] == [(400, s, 400 - s) for s in SELECT[:3]]
    assert [row["real_steps"] for row in rows] == [80 + 21, 100 + 42, 120 + 63]
    assert [row["dream_steps"] for row in rows] == [300, 300, 300]
    assert [row["minutes"] for row in rows] == [2, 2, 2]
    # Round 1 was the best.
    assert shown(run) == ["V 1", "M 1", "starts 1", "C 1"]
    assert (run.plots / "dream.png").read_text() == "plot 1"
    assert (run.metrics).read_bytes() == (run.folder / "rounds" / "1" / "metrics.jsonl").read_bytes()
    picture = cv2.imread(str(run.plots / "rounds.png"))
    assert picture is not None
    assert picture.std() > 10
    said = capsys.readouterr().out
    assert "round 2 (the last is 2), stage 4 of 4: dream" in said
    table = [line.split() for line in said.splitlines()[-5:-1]]
    assert table[0][0] == "round"
    assert table[2] == ["1", "10", "2", "19.00", "0.900", "400", "300", "100", "142", "2.0"]
    assert said.splitlines()[-1].endswith("is from round 1: 300 ± 5 on real tracks.")


def test_rounds_in_which_v_stays_and_the_fresh_counts(run: Run, pretended: Pretended) -> None:
    options = ["--vae-rounds", "1", "--fresh-rounds", "2", "--mdnrnn-options=--posterior 0.5"]
    iterate(run, "--rounds", "3", *options)
    arguments = {(number, stage): rest for number, stage, rest in pretended.calls}
    for number, updates in ((1, "20"), (2, "0")):
        before = run.folder / "rounds" / str(number - 1)
        assert arguments[str(number), "vae"][:4] == ["--start", f"{before}/vae.pt", "--updates", updates]
        known = ["--encoded", f"{before}/latents.h5"] if number == 2 else []
        m = ["--start", f"{before}/mdnrnn.pt", "--updates", "20", *known, "--fresh", "4"]
        assert arguments[str(number), "memory"][: len(m)] == m
        assert arguments[str(number), "memory"][-2:] == ["--posterior", "0.5"]
        assert arguments[str(number), "dream"] == ["--fresh", "4", "--draw", str(number)]
    # What is large stays where the next round is built on only.
    assert [Run(run.folder / "rounds" / number).latents.exists() for number in "012"] == [
        False,
        True,
        True,
    ]  # 1 is best


def test_rounds_that_refine(run: Run, pretended: Pretended) -> None:
    options = ["--refine-from", "2", "--refine-added", "3", "--refine-updates", "7", "--refine-options=--sigma0 .05"]
    iterate(run, "--rounds", "4", *options, "--fresh-rounds", "2", "--dream-options=--horizon 30")  # adds 2 before
    arguments = {(number, stage): rest for number, stage, rest in pretended.calls}
    driven = {number: arguments[number, "collect"][1] for number in "0123"}
    assert driven == {"0": "0", "1": "2", "2": "5", "3": "8"}
    m = {number: arguments[number, "memory"] for number in "123"}
    assert [m[number][m[number].index("--updates") + 1] for number in "123"] == ["20", "7", "7"]
    assert m["3"][m["3"].index("--earlier") + 1 :] == ["8", "10", "13"]
    before = {number: run.folder / "rounds" / str(int(number) - 1) / "dream-latest.npz" for number in "23"}
    assert {number: arguments[number, "dream"] for number in "0123"} == {
        "0": ["--draw", "0", "--horizon", "30"],
        "1": ["--fresh", "4", "--draw", "1", "--horizon", "30"],
        "2": ["--fresh", "5", "--start", str(before["2"]), "--draw", "2", "--horizon", "30", "--sigma0", ".05"],
        "3": ["--fresh", "6", "--start", str(before["3"]), "--draw", "3", "--horizon", "30", "--sigma0", ".05"],
    }


def test_finished_rounds_are_not_redone_and_a_larger_total_adds_some(
    run: Run, pretended: Pretended, capsys: pytest.CaptureFixture[str]
) -> None:
    iterate(run)
    assert len(pretended.calls) == 8
    before = contents(run.folder)
    iterate(run)
    assert len(pretended.calls) == 8
    assert "is finished: 2 rounds" in capsys.readouterr().out
    assert contents(run.folder) == before
    iterate(run, "--rounds", "4")
    assert [(number, stage) for number, stage, _ in pretended.calls[8::4]] == [("2", "collect"), ("3", "collect")]
    assert len(read_lines(run.rounds)) == 4
    with pytest.raises(UserError, match="added was 2, is 3"):
        iterate(run, "--added", "3")
    iterate(run, "--restart", "--rounds", "1")
    assert len(read_lines(run.rounds)) == 1
    assert shown(run) == ["V 0", "M 0", "starts 0", "C 0"]
    assert sorted(path.name for path in (run.folder / "rounds").iterdir()) == ["0"]


@pytest.mark.parametrize("at", [0, 1, 3, 4, 5, 8, 11])
def test_interrupted_between_any_two_stages_it_goes_on(run: Run, tmp_path: Path, at: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        whole = Run(tmp_path / "whole")
        patch.setattr(stages.iterate, "call_stage", Pretended())
        iterate(whole, "--rounds", "3")
        cut = Pretended()
        cut.interrupt_at = at
        patch.setattr(stages.iterate, "call_stage", cut)
        with pytest.raises(KeyboardInterrupt):
            iterate(run, "--rounds", "3")
        finished = len(read_lines(run.rounds))
        assert finished == at // 4
        again = Pretended()
        patch.setattr(
            stages.iterate,
            "call_stage",
            lambda stage, *rest: None if is_done(run, rest[0], stage) else again(stage, *rest),
        )
        iterate(run, "--rounds", "3")
    assert [call[:2] for call in cut.calls + again.calls] == [
        (number, stage) for number in "012" for stage in ("collect", "vae", "memory", "dream")
    ]
    assert untimed(run) == untimed(whole)
    assert shown(run) == shown(whole)


def is_done(run: Run, options: dict[str, Any], stage: str) -> bool:
    """A stage that was called before does nothing."""
    return recorded(stage) in Run(options["run"]).read_manifest()["stages"]


@pytest.mark.parametrize("at", range(7))
def test_a_kill_while_the_best_is_copied_leaves_what_fits_together(
    run: Run, pretended: Pretended, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    iterate(run, "--rounds", "1")
    copies, original = 0, stages.iterate.copy

    def killed(source: Path, target: Path) -> None:
        nonlocal copies
        copies += 1
        if copies > at:
            raise KeyboardInterrupt
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(stages.iterate, "copy", killed)
        with pytest.raises(KeyboardInterrupt):
            iterate(run, "--rounds", "2")
    # Three files are told from, then all of round 0 goes, and round 1 comes in the order in which it was made.
    old, new = ([f"{name} {number}" for name in ("V", "M", "starts", "C")] for number in "01")
    assert shown(run) == (old if at < 3 else new[: at - 3])
    assert len(read_lines(run.rounds)) == 2
    iterate(run, "--rounds", "2")
    assert shown(run) == new
    assert len(pretended.calls) == 8


# --- what it refuses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vae.pt", "mdnrnn.pt", "controller.npz", "dream.npz"])
def test_a_folder_with_work_of_its_own_is_refused(run: Run, pretended: Pretended, name: str) -> None:
    run.folder.mkdir()
    (run.folder / name).write_text("mine")
    with pytest.raises(UserError, match=rf"holds results of other stages \({name}\): choose another RUN"):
        iterate(run)
    assert not pretended.calls
    assert sorted(path.name for path in run.folder.iterdir()) == sorted([".lock", name])
    (run.folder / name).unlink()
    iterate(run)
    (run.folder / name).write_text("mine")
    for more in ((), ("--rounds", "3"), ("--restart",)):
        with pytest.raises(UserError, match="results of other stages"):
            iterate(run, *more)
    assert (run.folder / name).read_text() == "mine"
    assert len(pretended.calls) == 8


@pytest.mark.parametrize("stage", ["collect", "mdnrnn"])
def test_a_folder_where_another_stage_worked_is_refused(run: Run, pretended: Pretended, stage: str) -> None:
    with run.stage(stage, stages.collect.CollectConfig(), 0) as begin:
        begin()
    with pytest.raises(UserError, match=rf"results of other stages \(stage {stage}\)"):
        iterate(run)
    assert not pretended.calls


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--temperature 0", "{which}: --temperature 0.0 is out of range"),
        ("--heat 2", "{which}: Unrecognized options: --heat"),
        ("--disagreement 1", "{which}: --disagreement needs an ensemble"),
        ("--unpaid 900 --horizon 800", "{which}: --unpaid must be below --horizon"),
        ("--noise recorded --temperature 2", "{which}: --noise recorded needs"),
        ("--sigma0 9 --sigma-max 1", "{which}: --sigma0 is out of range"),
        ("--start-after 1000", "{which}: --start-after 1000 is not below --max-steps of the episodes"),
        ("--restart", "{which} has --restart, an option of all stages: give it to the command itself"),
        ("--popsize 8 --seed=5", "{which} has --seed=5, an option of all stages"),
        ("--horizon '3", r"{which} .* cannot be parsed \(No closing quotation\)"),
    ],
)
@pytest.mark.parametrize("which", ["--dream-options", "--refine-options"])
def test_wrong_options_of_the_dream_are_refused_at_once(
    run: Run, pretended: Pretended, which: str, options: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence.format(which=which)):
        iterate(run, f"{which}={options}")
    assert not run.folder.exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--hidden 8", "--mdnrnn-options: --hidden cannot change"),
        ("--outlook 5", "--mdnrnn-options: --outlook cannot change"),
        ("--lr -1", "--lr -1.0 is out of range"),
    ],
)
def test_wrong_options_of_m_are_refused_at_once(run: Run, pretended: Pretended, options: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        iterate(run, f"--mdnrnn-options={options}")
    assert not run.folder.exists()


@pytest.mark.parametrize("preset", [*PRESETS[STOCK_ENV]])
def test_the_options_of_each_preset_can_be_given(run: Run, monkeypatch: pytest.MonkeyPatch, preset: str) -> None:
    """It comes as far as the first stage; the options of all stages of later rounds have been looked at by then."""

    def reached(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages.iterate, "call_stage", reached)
    with pytest.raises(KeyboardInterrupt):
        iterate(run, "--preset", preset)


def test_the_best_rounds_work_must_be_what_it_was(run: Run, pretended: Pretended) -> None:
    iterate(run)
    run.dream.unlink()
    (run.folder / "rounds" / "1" / "dream.npz").write_text("another")
    with pytest.raises(UserError, match=r"rounds/1/dream\.npz is not the file that the best round made: restore it"):
        iterate(run)
    assert run.vae.exists()


def test_rounds_that_do_not_say_what_they_made_are_refused(run: Run, pretended: Pretended) -> None:
    iterate(run, "--rounds", "1")
    (row,) = read_lines(run.rounds)
    run.rounds.unlink()
    append_line(run.rounds, row | {"files": {}})
    with pytest.raises(UserError, match=r"rounds\.jsonl does not list the files of round 0: restore it, or remove it"):
        iterate(run, "--rounds", "2")


# --- shards of the round before -----------------------------------------------------------------------------


def test_rounds_whose_table_is_gone_are_told_again(run: Run, pretended: Pretended) -> None:
    iterate(run, "--rounds", "3")
    wanted, lines = untimed(run), run.rounds.read_text().splitlines(keepends=True)
    run.rounds.write_text("".join(lines[::2]))
    with pytest.raises(
        UserError, match=r"does not list all rounds from 0 on .*: restore it, or remove it and run the same"
    ):
        iterate(run, "--rounds", "3")
    run.rounds.unlink()
    with pytest.MonkeyPatch.context() as patch:

        def finished(stage: str, options: dict[str, Any], arguments: Sequence[str] = ()) -> None:
            this, number = Run(options["run"]), int(Path(options["run"]).name)
            if stage == "memory" and not this.latents.exists():  # which round n + 1 has no use for
                with LatentsWriter(this.latents, {}) as writer:
                    for index in range(8 + 2 * number):
                        append_toy(writer, index)

        patch.setattr(stages.iterate, "call_stage", finished)
        iterate(run, "--rounds", "3")
    assert untimed(run) == wanted
    assert len(pretended.calls) == 12


def test_options_that_have_made_a_round_are_kept_to(
    run: Run, pretended: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a called stage leaves with: it may be a full disk."""

    def refused(stage: str, options: dict[str, Any], arguments: Sequence[str] = ()) -> None:
        raise UserError("stage vae ended with exit code 2.")

    with monkeypatch.context() as patch:
        patch.setattr(stages.iterate, "call_stage", refused)
        with pytest.raises(UserError, match="exit code 2"):
            iterate(run)
    assert "iterate" not in run.read_manifest()["stages"]  # nothing was made by them
    with monkeypatch.context() as patch:
        patch.setattr(
            stages.iterate,
            "call_stage",
            lambda *given: (refused if Path(given[1]["run"]).name == "1" else pretended)(*given),
        )
        with pytest.raises(MachineError, match="exit code 2"):
            iterate(run)
    with pytest.raises(UserError, match="added was 2, is 3"):
        iterate(run, "--added", "3")


@pytest.mark.parametrize("links", [True, False])
def test_new_episodes_beside_linked_ones_leave_the_older_round_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """Round 1 by the real stage collect, driven by a toy controller on toy V and M."""
    before = make_toy_run(tmp_path / "0")
    made_from = {"vae.pt": file_hash(before.vae), "mdnrnn.pt": file_hash(before.mdnrnn)}
    save_controller(before.dream, np.random.default_rng(0).normal(size=39), {"made_from": made_from})
    common = ["--preset", "smoke", "--workers", "0", "--episodes", "2", "--max-steps", "3"]
    monkeypatch.setattr(stages.collect, "plot_contact_sheet", lambda *_: None)
    stages.collect.main(["--run", str(before.folder), *common, "--driven", "0"])
    old = contents(before.folder)
    inodes = {path.name: path.stat().st_ino for path in before.rollouts.glob("*.h5")}

    this = Run(tmp_path / "1")
    with monkeypatch.context() as patch:
        if not links:

            def refused(*_: object) -> None:
                raise OSError(1, "Operation not permitted")

            patch.setattr(os, "link", refused)
        link_shards(before, this)
        link_shards(before, this)  # as after a kill
    assert {path.name: path.stat().st_ino for path in this.rollouts.iterdir()} == inodes or not links
    driven = ["--driven", "2", "--driver", "dream", "--source", str(before.folder)]
    stages.collect.main(["--run", str(this.folder), *common, *driven])
    first, second = Rollouts(before.rollouts), Rollouts(this.rollouts)
    assert second.table["index"].tolist() == [0, 1, DRIVEN_FROM, DRIVEN_FROM + 1]
    assert second.table["digest"][:2].tolist() == first.table["digest"].tolist()
    # A shard that is damaged in the new round is set aside there; one that the collection replaced is not linked anew.
    damaged = this.rollouts / "000000-000001.h5"
    damaged.unlink()
    damaged.write_bytes(b"damaged")
    stages.collect.main(["--run", str(this.folder), *common, *driven])
    link_shards(before, this)
    assert Rollouts(this.rollouts).fingerprint() == second.fingerprint()
    stages.collect.main(["--run", str(this.folder), *common, *driven, "--restart"])
    assert contents(before.folder) == old


# --- the real thing -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_rounds_of_the_real_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run")
    tiny = replace(SMOKE, vae=replace(SMOKE.vae, updates=4), mdnrnn=replace(SMOKE.mdnrnn, updates=4))
    monkeypatch.setitem(PRESETS[STOCK_ENV], "smoke", tiny)

    def command(stage: str, *arguments: str) -> str:
        where = ["--run", str(run.folder), "--preset", "smoke", "--workers", "0", "--threads", "1"]
        done = run_here(stage, [*where, *arguments], pictures=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    steady = ["--vae-rounds", "0", "--fresh-rounds", "1", "--refine-from", "1", "--refine-added", "3"]
    steady += ["--refine-updates", "10", "--dream-options=--noise recorded --value 10"]
    command("iterate", "--rounds", "1", *steady)
    zero, one = (run.folder / "rounds" / number for number in "01")
    before = contents(zero)
    command("iterate", "--rounds", "2", *steady)
    thinned = {name: value for name, value in before.items() if name != "latents.h5" and "checkpoints/" not in name}
    first, second = read_lines(run.rounds)
    assert contents(zero) == (before if first["select"] >= second["select"] else thinned)
    assert not [path for path in run.folder.rglob("*") if ".tmp" in path.name]
    rows = read_lines(run.rounds)
    assert [(row["episodes"], row["new"]) for row in rows] == [(8, 8), (11, 3)]
    assert all(np.isfinite(row[name]) for row in rows for name in ("error", "nats", "gap", "minutes"))
    assert rows[1]["real_steps"] == rows[1]["collect_steps"] + rows[0]["select_steps"] + rows[1]["select_steps"]
    manifest = Run(one).read_manifest()["stages"]
    assert [manifest[stage]["config"]["updates"] for stage in ("vae", "mdnrnn")] == [0, 10]
    assert [manifest[stage]["config"]["earlier"] for stage in ("vae", "mdnrnn")] == [[8], [8]]
    first, second = (load_vae(folder / "vae.pt")[0].state_dict() for folder in (zero, one))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    table = Rollouts(one / "rollouts").table
    assert table["index"][-3:].tolist() == [DRIVEN_FROM, DRIVEN_FROM + 1, DRIVEN_FROM + 2]
    best = max(rows, key=lambda row: row["select"])
    assert load_controller(run.dream)[1]["selection_score"] == best["select"]
    assert load_agent(run.folder, controller="dream").act(np.zeros((96, 96, 3), np.uint8)).shape == (3,)
    assert "finished" in command("iterate", "--rounds", "2", *steady)
    assert "tracks of CarRacing-v3" in command("evaluate", "--controller", "dream", "--episodes", "1")
