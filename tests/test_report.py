"""The report: a sound, self-contained, accessible page of whatever a run folder holds."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
import pytest

from stages.report import main
from tests.contrast import contrast, themes
from wm.config.presets import FAST_ENV
from wm.contracts import Chart, MemoryKind
from wm.controller.file import save_controller
from wm.envs import TASKS
from wm.envs.action import Action
from wm.envs.car_racing.task import CAR_RACING
from wm.memory.kinds import KINDS
from wm.run.checksums import file_hash
from wm.run.errors import UserError
from wm.run.experiments import read_ablations
from wm.run.folder import Run
from wm.run.json_files import append_line, write_json
from wm.show.report.blocks import Video, duration
from wm.show.report.page import TEMPLATE, render
from wm.show.report.reader import RunReader, open_run

PRETRAINED = Path(__file__).parent.parent / "data" / "pretrained"
VOID = {"meta", "img", "br", "input", "link", "hr"}
STAGES = {"collect": {}, "vae": {"updates": 100, "z": 32}, "mdnrnn": {"updates": 100}, "controller": {"generations": 4}}
SECTIONS = ["run", "data", "vision", "memory", "controller", "score", "dream"]


class Page(HTMLParser):
    """What is in a page; fails on tags that are not closed in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.words += data

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in tags]


def check(text: str) -> Page:
    """The rules that hold for every page."""
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        for name in ("src", "href", "poster", "action"):
            assert str(attributes.get(name, "#")).startswith(("#", "data:")), (tag, attributes.get(name))
        assert not any(name.startswith("on") for name in attributes)
        for name in ("aria-labelledby", "aria-describedby"):
            assert set(str(attributes.get(name) or "").split()) <= set(ids)
    assert not re.search(r"https?://|url\(|@import", text)
    assert not page.all("script", "link", "iframe")
    assert page.all("html")[0]["lang"] == "en"
    for landmark in ("header", "nav", "main", "footer"):
        assert len(page.all(landmark)) == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(attributes.get("alt") for attributes in page.all("img"))
    assert all(attributes.get("aria-label") for attributes in page.all("video"))
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert [a["aria-labelledby"] for a in page.all("section")] == SECTIONS
    assert {f"#{name}" for name in SECTIONS} <= {a.get("href") for a in page.all("a")}
    return page


def write_run(folder: Path, whole: bool = True) -> Run:
    """A run folder with a manifest, and if it is whole with something of every kind that the report tells of."""
    run = Run(folder)
    record = {
        "seed": 0,
        "versions": {"python": "3.11"},
        "commit": "abc",
        "cores": 2,
        "started": "2026-11-21T12:00:00+00:00",
    }
    stages = {
        name: {**record, "config": config, "ended": "x", "seconds": 90.0, "peak_memory_mb": 512.0}
        for name, config in {**STAGES, "dream": {"temperature": 1.15, "horizon": 300, "generations": 2}}.items()
    }
    folder.mkdir(parents=True)
    run.manifest.write_text(json.dumps({"format": 1, "stages": stages if whole else {}}))
    if not whole:
        return run
    run.rollouts.mkdir()
    summary = {
        **{"episodes": 8, "frames": 900, "return_mean": -20.0, "return_std": 5.0, "return_max": 3.0, "bytes": 1e6},
        **{"policies": {"brownian": 8}, "on_road": 0.7, "actions": [{"edges": [-1, 0, 1], "counts": [1, 3]}] * 3},
    }
    summary["returns"] = {"edges": [-30, -20, 3], "counts": [3, 5]}
    (run.rollouts / "summary.json").write_text(json.dumps(summary))
    run.plots.mkdir()
    for name in ("contact_sheet", "reconstructions", "traversals", "predictions", "calibration"):
        cv2.imwrite(str(run.plots / f"{name}.png"), np.zeros((8, 8, 3), np.uint8))
    for path in (run.vae, run.mdnrnn):
        path.write_bytes(b"present")
    for path in (run.controller, run.dream):
        save_controller(path, np.random.default_rng(0).normal(size=867), {"made_from": {}})
    rows: list[dict] = []
    for step in (50, 100):
        loss = {"error": 30 - step / 10, "kl": 16.0, "nll": 1.0, "reward": 0.05, "terminated": 0.001, "outlook": 0.004}
        val = {f"val_{name}": value for name, value in loss.items()} | {"val_loss": 2 - step / 100, "val_dead": 3.0}
        constant = {"val_nll_one": 1.1, "val_nll_marginal": 1.3, "val_nll_unit": 1.4}
        constant |= {"val_reward_constant": 0.07, "val_terminated_constant": 0.0009, "val_outlook_constant": 0.01}
        kl = {f"val_kl_{i:02d}": i / 10 for i in range(32)}
        rows += [
            {"stage": "vae", "step": step, **loss, **val, **kl},
            {"stage": "mdnrnn", "step": step, **loss, **val, **constant},
        ]
    for step in (1, 2):
        row = {
            "step": step,
            "best": 50.0,
            "mean": 10.0 * step,
            "worst": -5.0,
            "env_steps": 1e5 * step,
            "seconds": 60.0 * step,
        }
        row |= {"select": 200.0 * step, "select_std": 20.0, "select_steps": 100.0}
        rows += [{"stage": "controller", **row}, {"stage": "dream", **row, "dream": 300.0 * step}]
    rows.append({"stage": "calibration", "step": 1, "time": 1.0, "tile_error": 0.01})
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_probe(run)
    for name, path in (("controller", run.score), ("dream", folder / "score-dream.json")):
        artifact = folder / f"{name}.npz"
        write_score(path, {artifact.name: file_hash(artifact)})
    return run


def write_probe(run: Run, speed: float = 0.79) -> None:
    target = {"name": "speed", "unit": "units/s", "std": 19.0, "r2": {"z": 0.1, "h": None, "[z; h]": speed}}
    found = {"config": {"start_after": 50, "off_road": 12.0}, "made_from": {"vae.pt": file_hash(run.vae)}}
    found |= {"episodes": {"fitted": 45, "tested": 15}, "steps": {"fitted": 4000, "tested": 1300, "left_out": 9}}
    write_json(run.probe, {**found, "targets": [{**target, "rmse": {"z": 18.0, "h": 17.5, "[z; h]": 8.25}}]})


def write_score(path: Path, made_from: dict[str, str], env_id: str = "CarRacing-v3", max_steps: int = 1000) -> None:
    seeds = [2_000_000_000, 2_000_000_001]
    score = {
        "mean": 750.0,
        "std": 50.0,
        "ci95": 12.0,
        "returns": [800.0, 700.0],
        "lengths": [900, 1000],
        "seeds": seeds,
    }
    score |= {"env_id": env_id, "max_steps": max_steps, "made_from": made_from, "versions": {"gymnasium": "1.4.0"}}
    path.write_text(json.dumps(score | {"commit": "abc", "time": "now"}))


@pytest.fixture
def reader(tmp_path: Path) -> RunReader:
    return open_run(write_run(tmp_path / "whole"), "whole")


def test_of_an_empty_run_every_section_names_its_command(tmp_path: Path) -> None:
    page = check(render(open_run(write_run(tmp_path / "empty", whole=False), "empty"), [], []))
    missing = re.findall(r"Not made yet:\s+(make \w+)", page.words)
    assert missing == [f"make {name}" for name in ("collect", "vae", "mdnrnn", "controller", "evaluate", "dream")]
    assert not page.all("img", "video")


def test_of_a_whole_run_everything_is_there(reader: RunReader) -> None:
    text = render(
        reader,
        [],
        [Video("worst", "data:video/mp4;base64,AAAA", "data:image/jpeg;base64,AAAA", "a video of a car", "scored 700")],
    )
    page = check(text)
    assert "Not made yet" not in page.words
    assert len(page.all("img")) == 5
    assert len(page.all("video")) == 1
    for words in (
        *("750 ± 50 on 2 tracks", "on which nothing is trained or selected", "400 ± 20 on the real selection tracks"),
        *("8 episodes, 900 frames", "Squared error 20.0 per image", "1.000 nats per latent dimension"),
        *("90 s", "1.15", "600", "tile_error", "at 2 of 4", "All stages together took 7.5 min"),
    ):
        assert words in page.words, words
    assert "than the current ones" not in page.words
    plots = [a for a in page.all("svg") if a.get("role") == "img"]
    assert len(plots) == 4 + 3 + 4 + 5 + 1 + 7  # data, V, M, C, score, dream
    assert all(a.get("viewbox") for a in plots)


def test_a_stage_under_way_says_so_and_shows_what_there_is(reader: RunReader) -> None:
    reader.run.vae.unlink()
    page = check(render(reader, [], []))
    assert "It is running or was interrupted: vae.pt does not exist yet." in page.words
    assert "Squared error 20.0" in page.words


def test_a_published_run_without_its_data_says_so(reader: RunReader) -> None:
    shutil.rmtree(reader.run.rollouts)
    reader.run.metrics.unlink()
    page = check(render(reader, [], []))
    assert "a published run leaves them out" in page.words
    assert page.words.count("metrics.jsonl has no line of this stage") == 4


def test_rounds_are_a_table_of_the_dream(reader: RunReader) -> None:
    numbers = {"error": 12.5, "nats": 0.93, "dream": 700.0, "select_std": 50.0, "real_steps": 345_678, "minutes": 20.5}
    for number, select in enumerate((300.0, 450.0, 400.0)):
        row = {"round": number, "episodes": 500 + 200 * number, "new": 200, "select": select, "gap": 700 - select}
        append_line(reader.run.rounds, {**row, **numbers})
    manifest = json.loads(reader.run.manifest.read_text())
    manifest["stages"] = {"iterate": manifest["stages"]["controller"]}
    reader.run.manifest.write_text(json.dumps(manifest))
    words = page_words(render(open_run(reader.run, "whole"), [], []))
    assert "Rounds: V and M on validation episodes" in words
    cells = ["1", "700 (200 new)", "12.50", "0.930", "700", "450 ± 50", "250", "345,678", "20.5"]
    assert "".join(cells) in words
    assert "those of round 1, the best on the real selection tracks." in words  # their folders are not here
    assert "not yet: make collect" not in words
    assert "Options of iterate" in words
    (reader.run.folder / "rounds" / "1").mkdir(parents=True)
    words = page_words(render(open_run(reader.run, "whole"), [], []))
    assert "those of round 1, the best on the real selection tracks: make report RUN=whole/rounds/1 shows" in words


def add_variant(run: Run, stage: str, name: str, seed: int, tau: float, *points: tuple[float, float]) -> None:
    """A line of curves.jsonl; `points` are dream scores and real ones."""
    curve = [
        {"step": i, "env_steps": 1e5 * (i + 1), "select": real, "select_std": 9.0}
        | ({"dream": dreamt} if stage == "dream" else {})
        for i, (dreamt, real) in enumerate(points)
    ]
    config = {"temperature": tau} if stage == "dream" else {}
    row = {"name": name, "seed": seed, "steps": 200_000, "options": f"--temperature {tau} --popsize 8", "stage": stage}
    append_line(run.curves, {**row, "curve": curve, "config": config})


def table_of(text: str, caption: str) -> list[list[str]]:
    """The cells of the table of that caption, its header first."""
    (found,) = re.findall(rf"<table>\s*<caption><span>{caption}.*?</table>", text, flags=re.DOTALL)
    cells = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>.*?</tr>", found, flags=re.DOTALL)]
    return [[re.sub("<.*?>", "", cell) for cell in row] for row in cells]


def test_variants_of_the_dream_are_a_table_of_temperatures(tmp_path: Path) -> None:
    """As the paper's for Doom; also of a run that has no dream of its own yet."""
    run = write_run(tmp_path / "run", whole=False)
    add_variant(run, "dream", "warm", 1, 1.15, (900, 300), (950, 500), (990, 100))
    add_variant(run, "dream", "warm", 2, 1.15, (850, 400), (800, 600))
    add_variant(run, "dream", "cold", 1, 0.5, (2000, 50))
    add_variant(run, "dream", "cold", 1, 0.5, (2000, 50), (2100, 196))  # the same seed with a larger budget
    add_variant(run, "controller", "k32", 1, 1.0, (0, 700), (0, 800))
    run.plots.mkdir()
    cv2.imwrite(str(run.plots / "curves-dream.png"), np.zeros((8, 8, 3), np.uint8))
    text = render(open_run(run, "run"), [], [])
    page = check(text)
    assert table_of(text, "Variants of the dream") == [
        ["variant", "temperature", "seeds", "dream score", "real selection tracks", "options"],
        ["cold", "0.5", "1", "2100", "196", "--temperature 0.5 --popsize 8"],
        ["warm", "1.15", "2", "875 (800 to 950)", "550 (500 to 600)", "--temperature 1.15 --popsize 8"],
    ]
    assert table_of(text, "Variants of the evolution")[1:] == [["k32", "1", "800", "--temperature 1.0 --popsize 8"]]
    assert "<code>--temperature 0.5</code> <code>--popsize 8</code>" in text  # lines break between options only
    assert len(page.all("img")) == 1
    assert "Not made yet: make dream" in " ".join(page.words.split())


def test_ablations_are_a_table_of_c(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", whole=False)
    numbers = {"env_steps": 1_512_345.0, "mean": 871.4, "std": 101.0, "median": 910.2, "lost": 5, "episodes": 100}
    rows = {"full": {"says": "V + M", "weights": 867, "ci95": 19.8, **numbers}}
    rows["v"] = {"says": "V only", "weights": 99, "ci95": None, **numbers}
    write_json(run.ablations, {"rows": rows})
    text = render(open_run(run, "run"), [], [])
    check(text)
    last = ["1.51", "871 ± 101"]
    assert table_of(text, "Variants of the recipe")[1:] == [
        ["V + M", "867", *last, "± 20", "910", "5 of 100"],
        ["V only", "99", *last, "", "910", "5 of 100"],
    ]


@pytest.mark.parametrize("row", [{}, 3, {"says": "V + M", "weights": "many"}])
def test_rows_of_something_else_are_refused(tmp_path: Path, row: Any) -> None:
    write_json(tmp_path / "ablations.json", {"rows": {"full": row}})
    with pytest.raises(UserError, match=r"ablations\.json has a row 'full' without a valid '\w+': remove the row"):
        read_ablations(tmp_path / "ablations.json")


def test_a_run_that_only_dreams_drove_is_scored_by_the_dreams_controller(reader: RunReader) -> None:
    """As make iterate leaves it: no controller.npz, and no score.json."""
    reader.run.controller.unlink()
    reader.run.score.unlink()
    words = page_words(render(reader, [], []))
    assert words.count("750 ± 50 on 2 tracks") == 2  # in the section of the score and in the dream's table
    assert words.count("Every track, the worst first") == 2  # to unfold, and above the one table
    (reader.run.folder / "score-dream.json").unlink()
    words = " ".join(page_words(render(reader, [], [])).split())
    assert "Not made yet: make evaluate ARGS='--controller dream'" in words


@pytest.mark.parametrize(
    ("returns", "bins"), [([880.0, 911.0, 935.0], 12), ([-20.0, 911.0], 20), ([-120.0, 1010.0], 24), ([905.0], 26)]
)
def test_the_histogram_of_a_score_shows_how_the_tracks_differ(
    reader: RunReader, returns: list[float], bins: int
) -> None:
    score = json.loads(reader.run.score.read_text())
    score |= {"returns": returns, "lengths": [900] * len(returns), "seeds": list(range(len(returns)))}
    reader.run.score.write_text(json.dumps(score))
    (reader.run.folder / "score-dream.json").unlink()
    text = render(reader, [], [])
    svg = text[text.index("Returns of the tracks</title>") :].partition("</figure>")[0]
    assert svg.count('class="bar"') == bins
    described = re.search(r"<desc.*?>(.*?)</desc>", svg)
    assert described is not None
    assert sum(int(n) for n in re.findall(r"(\d+) from", described[1])) == len(returns)  # none falls out


def test_calibration_that_is_missing_is_named(reader: RunReader) -> None:
    assert "The calibration of M's heads" not in page_words(render(reader, [], []))
    lines = [line for line in reader.run.metrics.read_text().splitlines() if "calibration" not in line]
    reader.run.metrics.write_text("\n".join(lines) + "\n")
    assert "The calibration of M's heads is not measured yet: make dream." in page_words(render(reader, [], []))


def test_a_score_of_another_controller_is_told(reader: RunReader) -> None:
    save_controller(reader.run.controller, np.ones(867), {"made_from": {}})
    assert page_words(render(reader, [], [])).count("The score belongs to other files") == 1


def test_what_was_probed_is_told(reader: RunReader, tmp_path: Path) -> None:
    words = page_words(render(reader, [], []))
    for number in ("0.79", "8.25", "Fitted to 4,000 steps (episodes: 45)", "12 units or more from the centre line"):
        assert number in words
    assert "The probe belongs to other models" not in words
    reader.run.vae.write_bytes(b"another")
    assert "The probe belongs to other models" in page_words(render(reader, [], []))
    reader.run.probe.unlink()
    assert "is not probed yet: make probe" in page_words(render(reader, [], []))
    # A probe of RUN=pretrained lies beside the report and not beside the models.
    here = write_run(tmp_path / "here")
    write_probe(here, speed=0.89)
    main(f"--run {here.folder} --source {reader.run.folder} --no-videos".split())
    assert "0.89" in page_words((here.folder / "report.html").read_text())


def page_words(text: str) -> str:
    return check(text).words


def test_several_runs_share_the_plots_in_the_same_colours(reader: RunReader, tmp_path: Path) -> None:
    other = open_run(write_run(tmp_path / "other"), "other")
    text = render(reader, [other], [])
    page = check(text)
    assert "beside other" in page.words
    assert page.words.count("750 ± 50 on 2 tracks") >= 4
    legends = re.findall(r'<ul class="legend">(.*?)</ul>', text)
    with_both = [legend for legend in legends if "other" in legend]
    assert len(with_both) >= 9
    for legend in with_both:
        assert re.findall(r'class="(line-\d)".*?</svg> (\w+)</li>', legend) == [
            ("line-0", "whole"),
            ("line-1", "other"),
        ]
    bare = open_run(write_run(tmp_path / "bare", whole=False), "bare")
    text = render(bare, [other], [])
    assert page_words(text).count("Not made yet") == 6
    legends = re.findall(r'<ul class="legend">(.*?)</ul>', text)
    assert len([legend for legend in legends if "other" in legend]) == len(with_both) - 1  # no score, no curve of it
    assert all('class="line-1"' in legend for legend in legends if "other" in legend)


def test_nothing_that_a_run_says_becomes_markup(reader: RunReader) -> None:
    evil = "<script>alert('&')</script>\"><b>"
    manifest = json.loads(reader.run.manifest.read_text())
    manifest["stages"]["vae"]["commit"] = evil
    manifest["stages"]["vae"]["config"][evil] = evil
    reader.run.manifest.write_text(json.dumps(manifest))
    summary = reader.run.rollouts / "summary.json"
    summary.write_text(summary.read_text().replace("brownian", "<i>x</i>"))
    text = render(
        open_run(reader.run, evil),
        [open_run(reader.run, "other" + evil)],
        [Video(evil, "data:,", "data:,", evil, evil)],
    )
    page = check(text)
    assert not page.all("script", "b", "i")
    assert page.words.count(evil) > 5


def test_both_themes_have_contrast() -> None:
    for colours in themes(TEMPLATE.read_text()):
        for ground in ("ground", "raised"):
            for ink in ("ink", "soft", "link"):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
            for line in range(6):
                assert contrast(colours[f"c{line}"], colours[ground]) >= 4.5, line


def test_the_stage_films_the_worst_and_the_best_track(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    write_score(run.score, {"controller.npz": "another"}, FAST_ENV, max_steps=4)
    other = write_run(tmp_path / "other")
    main(f"--run {run.folder} --source {PRETRAINED} --compare {other.folder}".split())
    assert str(run.folder / "report.html") in capsys.readouterr().out
    page = check((run.folder / "report.html").read_text())
    assert "750 ± 50 on 2 tracks" in page.words  # the score beside the report, not the one beside the models
    videos = [str(a["src"]) for a in page.all("video")]
    assert len(videos) == 2
    for video in videos:
        with av.open(io.BytesIO(base64.b64decode(video.partition(",")[2])), "r") as file:
            assert file.streams.video[0].codec_context.name == "h264"
            assert len(list(file.decode(video=0))) == 2  # of four steps at half the rate
    assert "The worst track, 2000000001" in page.words
    assert "Scored 700. Filmed again: score" in page.words
    posters = [base64.b64decode(str(a["poster"]).partition(",")[2]) for a in page.all("video")]
    assert all(cv2.imdecode(np.frombuffer(p, np.uint8), cv2.IMREAD_COLOR).std() > 5 for p in posters)  # type: ignore[union-attr]


def test_the_stage_needs_a_run_and_can_do_without_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="holds no run"):
        main(f"--run {tmp_path / 'none'}".split())
    run = write_run(tmp_path / "whole")
    main(f"--run {run.folder}".split())  # its models are no models
    assert "the report has no videos" in capsys.readouterr().err
    main(f"--run {run.folder} --no-videos".split())
    assert "no videos" not in capsys.readouterr().err
    check((run.folder / "report.html").read_text())


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "a" / "same"), write_run(tmp_path / "b" / "same")
    main(f"--run {one.folder} --no-videos --compare {other.folder}".split())
    page = check((one.folder / "report.html").read_text())
    assert f"beside {other.folder}" in page.words


@pytest.mark.parametrize(("seconds", "text"), [(59.6, "60 s"), (600, "10.0 min"), (9000, "2.5 h")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_page_is_in_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-m", "stages.report", "--run", str(run.folder), "--no-videos"],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},  # whose encoding is ASCII
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    page = (run.folder / "report.html").read_bytes().decode("utf-8")
    assert str(check(page).all("meta")[0]["charset"]).lower() == "utf-8"
    assert "750 ± 50 on 2 tracks" in page


def test_a_run_whose_name_is_not_in_utf_8_has_a_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run").folder.rename(tmp_path / os.fsdecode(b"ran\xe9"))
    main(["--run", str(folder), "--no-videos"])
    assert "Run ran\\udce9" in (folder / "report.html").read_text(encoding="utf-8")


def test_what_has_all_its_updates_is_done(tmp_path: Path) -> None:
    page = check(render(open_run(write_run(tmp_path / "whole"), "whole"), [], []))
    assert "dreamdone" in page.words  # two cells of one row: generations 2 of 2


class OtherKind:
    """As much of another kind of M as the report needs."""

    name, title = "other", "the other M"

    def charts(self, config: Mapping[str, Any]) -> tuple[Chart, ...]:
        return (Chart("miss", "next state", config["unit"], {"miss_mean": "the mean"}),)


def test_other_kinds_of_m_and_c_have_sections_of_their_own(reader: RunReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "other", cast(MemoryKind, OtherKind()))
    manifest = json.loads(reader.run.manifest.read_text())
    record = {**manifest["stages"]["mdnrnn"], "started": "2026-11-22T12:00:00+00:00"}
    manifest["stages"]["other"] = {**record, "config": {"unit": "points"}}
    manifest["stages"]["dream-other-hidden"] = {**record, "config": {"temperature": 0.75, "generations": 1}}
    reader.run.manifest.write_text(json.dumps(manifest))
    reader.run.memory("other").write_bytes(b"present")
    save_controller(reader.run.folder / "dream-other-hidden.npz", np.ones(9), {"made_from": {}, "kind": "hidden"})
    lines = [
        {"stage": "other", "step": 5, "miss": 0.5, "val_loss": 0.3, "val_miss": 0.25, "val_miss_mean": 0.75},
        {"stage": "dream-other-hidden", "step": 1, "mean": 1.0, "env_steps": 9, "seconds": 9.0}
        | {"select": 345.0, "select_std": 6.0, "select_steps": 1.0, "dream": 400.0},
    ]
    with reader.run.metrics.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    text = render(open_run(reader.run, "whole"), [], [])
    page = Page(text)
    sections = [str(a["aria-labelledby"]) for a in page.all("section")]
    assert sections == [*SECTIONS[:4], "memory-other", *SECTIONS[4:], "dream-other-hidden"]
    parts = dict(zip(sections, re.findall(r"<section .*?</section>", text, flags=re.DOTALL), strict=True))
    for words in ("M, the other M", "0.250 points", "the mean", "predictions", "Calibration of M"):
        assert words.lower() in parts["memory-other"].lower(), words
    assert table_of(parts["memory-other"], "M against baselines")[1:] == [
        ["next state, points", "0.25", "0.75", "the mean"]
    ]
    assert "Calibration of M" not in parts["memory"]  # the other M was calibrated last
    assert "R²" in parts["memory"]  # the probe is of the first M
    for words in ("The dream of M other and C hidden", "0.75", "345 ± 6", "--controller dream-other-hidden"):
        assert words in parts["dream-other-hidden"], words
    assert "Weights of" not in parts["dream-other-hidden"]
    reader.run.memory("other").unlink()
    words = Page(render(open_run(reader.run, "whole"), [], [])).words
    assert "make memory M=other" in words


def test_another_task_is_reported_by_its_own_words(reader: RunReader, monkeypatch: pytest.MonkeyPatch) -> None:
    pole = replace(
        CAR_RACING, env_id="Pole-v0", title="Pole", action=Action(("left", "right")), solved=None, lost=20, measure=None
    )
    monkeypatch.setitem(TASKS, pole.env_id, pole)
    manifest = json.loads(reader.run.manifest.read_text())
    reader.run.manifest.write_text(json.dumps({**manifest, "env": pole.env_id}))
    summary = json.loads((reader.run.rollouts / "summary.json").read_text())
    del summary["on_road"]
    write_json(
        reader.run.rollouts / "summary.json",
        {**summary, "measures": {"upright": 0.5}, "actions": summary["actions"][:1]},
    )
    write_json(reader.run.ablations, {"rows": {}})
    for path in (reader.run.controller, reader.run.dream):
        save_controller(path, np.ones(2 * 289), {"made_from": {}})
    words = page_words(render(open_run(reader.run, "whole"), [], []))
    for said in (
        "World model on Pole",
        "50% of the steps upright",
        "number of left, right",
        "Weights of right",
        "below 20",
    ):
        assert said in words, said
    for not_said in ("CarRacing.", "solved", "road", "steering"):
        assert not_said not in words, not_said
