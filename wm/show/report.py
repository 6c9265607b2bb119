"""The report: one self-contained page on a run folder. `stages.report` writes it.

A section shows the files of its stage; if the stage has not run, it names the command. The report computes no new
results, and the page fetches nothing and runs no script.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from wm.config import EVALUATE_SEEDS, DreamConfig, MDNRNNConfig, VAEConfig
from wm.controller.linear import ACTIONS, load_controller
from wm.probe import HEADER, PROBE, describe, rows
from wm.run import (
    NUMBER,
    SUMMARY,
    Run,
    Shape,
    UserError,
    commit,
    file_hash,
    fits,
    now,
    read_json,
    read_lines,
    read_metrics,
    read_score,
)
from wm.show.svg import Line, Plotter, number
from wm.vision.vae import DEAD_NATS

TEMPLATE = Path(__file__).with_suffix(".html")

STAGES = ("collect", "vae", "mdnrnn", "controller", "dream", "evaluate", "probe")
"""Stages in the report, in their order."""
SETTLE = 0.05
"""Fraction of a loss curve, from its start, that is ignored for the height of its plot."""
SCORE_STEPS, SCORE_BINS = (5, 10, 20, 50, 100), 25
"""Bin widths of a score's histogram, and the maximum number of bins; the first width within this maximum is used."""
SOLVED = 900.0
"""Mean return at which the environment counts as solved (Gym's documentation)."""
DREAM_SCORE = "make evaluate ARGS='--controller dream'"
"""The command that scores the controller of the dream."""
ACTION_NAMES = {"steering": "−1 left to 1 right", "gas": "0 to 1", "brake": "0 to 1"}
"""Names and ranges of the actions."""

ROUND: Shape = {
    **dict.fromkeys(("round", "episodes", "new", "real_steps"), int),
    **dict.fromkeys(("error", "nats", "dream", "select", "select_std", "gap", "minutes"), NUMBER),
}
"""Schema of the fields of a line of rounds.jsonl that are read again. Stage iterate writes it."""

ABLATION: Shape = {
    "says": str,
    **dict.fromkeys(("weights", "lost", "episodes"), int),
    **dict.fromkeys(("env_steps", "mean", "std", "median"), NUMBER),
    "ci95": (*NUMBER, type(None)),
}
"""Schema of the fields of a row of ablations.json that are read again. Stage ablate writes it."""


CURVE: Shape = {
    **dict.fromkeys(("name", "options"), str),
    **dict.fromkeys(("seed", "steps"), int),
    "curve": [{"env_steps": NUMBER, "select": NUMBER, "dream?": NUMBER}],
    "config?": {"temperature?": NUMBER},
}
"""Schema of the fields of a line of curves.jsonl that are read again. Stage curves writes it."""


# --- blocks of a section ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its header. `folded`: collapsed until opened."""

    kind: ClassVar = "table"
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False


@dataclass(frozen=True)
class Plot:
    """A plot of `wm.show.svg`."""

    kind: ClassVar = "plot"
    title: str
    svg: Markup
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI."""

    kind: ClassVar = "picture"
    title: str
    data: str
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Video:
    """A video and a still picture of it as data URIs; `alt` says what it shows."""

    kind: ClassVar = "video"
    title: str
    data: str
    poster: str
    alt: str
    caption: str = ""


Block = Table | Plot | Picture | Video


@dataclass
class Section:
    """One section of the page.

    Attributes:
        id: Its anchor.
        title: Its heading.
        missing: The command that makes its missing files; "" when they exist.
        headline: Its main number.
        notes: Paragraphs.
        blocks: Tables, plots, pictures and videos.
    """

    id: str
    title: str
    missing: str = ""
    headline: str = ""
    notes: list[str] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True)
class RunReader:
    """A reader of a run for the report.

    Attributes:
        name: Its name in plots.
        run: Its folder.
        beside: A folder whose scores and probe take precedence: the models of a committed run are scored elsewhere.
        stages: Its manifest's records by stage.
    """

    name: str
    run: Run
    beside: Path
    stages: Mapping[str, Any]

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        """The stage's lines of metrics.jsonl."""
        return read_metrics(self.run.metrics, stage)

    @property
    def scored(self) -> str:
        """Name of the scored controller: that of real rollouts, or that of the dream if there is no other."""
        return "dream" if self.run.dream.exists() and not self.run.controller.exists() else "controller"

    def read_score(self, controller: str = "controller") -> dict[str, Any] | None:
        """The score of a controller; None when it is missing."""
        path = self.find("score.json" if controller == "controller" else f"score-{controller}.json")
        return read_score(path) if path.exists() else None

    def find(self, name: str) -> Path:
        """The path of a file of the run, in `beside` if it exists there."""
        beside = self.beside / name
        return beside if beside.exists() else self.run.folder / name


def open_run(run: Run, name: str) -> RunReader:
    """Opens a run for the report; UserError when its folder or its manifest is missing or damaged."""
    if not run.manifest.exists():
        raise UserError(f"{run.folder} holds no run: make one with `make collect`, or give another RUN.")
    return RunReader(name, run, run.folder, run.read_manifest()["stages"])


def data_uri(content: bytes, media_type: str) -> str:
    """A file's content as a data URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


# --- the page ---------------------------------------------------------------------------------------------


def render(main: RunReader, others: Sequence[RunReader], videos: Sequence[Video]) -> str:
    """The whole page.

    Args:
        main: The run of the report.
        others: Runs whose curves are drawn beside its own.
        videos: Videos of the worst and the best track.

    Returns:
        HTML without external resources.

    Raises:
        UserError: A file of a run is damaged.
    """
    plotter, readers = Plotter(), [main, *others]
    sections = [
        overview(readers),
        data(plotter, main),
        vision(plotter, readers),
        memory(plotter, readers),
        controller(plotter, readers),
        score(plotter, readers, videos),
        dream(plotter, readers),
    ]
    beside = f", beside {', '.join(other.name for other in others)}" if others else ""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = prose
    return environment.get_template(TEMPLATE.name).render(
        title=f"Run {main.name}",
        subtitle=f"World model on CarRacing{beside}. Written {date(now())} UTC.",
        sections=sections,
        footer=f"Made by `make report` at commit {commit()}. This page loads nothing from anywhere.",
    )


def prose(text: str) -> Markup:
    """Escapes a text and marks `backticks` as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def overview(readers: Sequence[RunReader]) -> Section:
    """The stages with their options, versions, time and memory."""
    main = readers[0]
    section = Section("run", "What was run")
    rows = []
    # With rounds, the other stages ran in the folders of the rounds.
    stages = list(main.stages) if "iterate" in main.stages else STAGES
    for stage in stages:
        record = main.stages.get(stage)
        if record is None:
            rows.append([stage, f"not yet: `make {stage}`", *[""] * 6])
            continue
        rows.append(
            [
                stage,
                state(main, stage, record),
                duration(record["seconds"]),
                f"{record['peak_memory_mb']:,.0f} MB",
                str(record["cores"]),
                str(record["seed"]),
                record["commit"],
                date(record["started"]),
            ]
        )
    header = ["stage", "state", "wall time", "peak memory", "cores", "seed", "commit", "started (UTC)"]
    section.blocks.append(Table("Stages: time and memory", header, rows))
    total = sum(record["seconds"] for record in main.stages.values())
    section.notes.append(f"All stages together took {duration(total)}.")
    if len(readers) > 1:
        rows = []
        for one in readers:
            found = one.read_score(one.scored)
            seconds = sum(record["seconds"] for record in one.stages.values())
            rows.append([one.name, describe_score(found) if found else "no score yet", duration(seconds)])
        section.blocks.append(Table("Runs compared", ["run", "score", "time of all stages"], rows))
    for stage in stages:
        if stage in main.stages:
            options = [[name, str(value)] for name, value in main.stages[stage]["config"].items()]
            section.blocks.append(Table(f"Options of {stage}", ["option", "value"], options, folded=True))
    packages: dict[str, list[str]] = {}
    for record in main.stages.values():
        for package, version in record["versions"].items():
            if version not in packages.setdefault(package, []):
                packages[package].append(version)
    versions = [[package, ", ".join(found)] for package, found in packages.items()]
    section.blocks.append(Table("Versions", ["package", "version"], versions, folded=True))
    return section


def state(main: RunReader, stage: str, record: Mapping[str, Any]) -> str:
    """The state of a stage; an interrupted one has an end time, too."""
    total = next((record["config"][name] for name in ("updates", "generations") if name in record["config"]), 0)
    rows = main.metrics(stage)
    if rows and rows[-1]["step"] < total:
        return f"at {rows[-1]['step']:,} of {total:,}"
    return "done" if record["ended"] else "running or interrupted"


def data(plotter: Plotter, main: RunReader) -> Section:
    """The rollouts: frames, returns and actions."""
    section = Section("data", "The data")
    summary = main.run.rollouts / "summary.json"
    if not summary.exists():
        if "collect" in main.stages and main.stages["collect"]["ended"]:
            section.notes.append("The rollouts are not in this folder: a published run leaves them out.")
        else:
            section.missing = "make collect"
        return section
    found = read_json(summary, **SUMMARY)
    policies = ", ".join(f"{n:,} by {name}" for name, n in found["policies"].items())
    road = "" if found["on_road"] is None else f", {found['on_road']:.0%} of the steps on the road"
    section.headline = f"{found['episodes']:,} episodes, {found['frames']:,} frames"
    section.notes.append(
        f"{policies}; {found['bytes'] / 1e6:,.0f} MB; return {found['return_mean']:.0f} ± "
        f"{found['return_std']:.0f}, best {found['return_max']:.0f}{road}."
    )
    add_picture(
        section,
        main.run.plots / "contact_sheet.png",
        "Contact sheet",
        "Rows of small frames: road, grass and bends from the car's start to its end",
        "One episode per row, from its first frame to its last.",
    )
    if "returns" in found:
        edges, counts = found["returns"]["edges"], found["returns"]["counts"]
        svg = plotter.histogram("Returns of the episodes", "return", "episodes", edges, counts)
        section.blocks.append(Plot("Returns", svg))
    for (name, unit), histogram in zip(ACTION_NAMES.items(), found["actions"], strict=False):
        shares = 100 * np.array(histogram["counts"]) / max(1, sum(histogram["counts"]))
        title = f"Actions: {name}"
        svg = plotter.histogram(title, f"{name}, {unit}", "% of the steps", histogram["edges"], shares.tolist())
        section.blocks.append(Plot(title, svg))
    return section


def vision(plotter: Plotter, readers: Sequence[RunReader]) -> Section:
    """V: losses, reconstructions, traversals, KL of each dimension."""
    main = readers[0]
    section = Section("vision", "V, the VAE")
    if not began(section, readers, "vae", main.run.vae):
        return section
    best = best_validation(main.metrics("vae"))
    if best:
        section.headline = f"Squared error {best['val_error']:.1f} per image, KL {best['val_kl']:.1f} nats"
        section.notes.append(
            f"The best validation is at update {best['step']:,}; {best['val_dead']:.0f} dimensions are dead "
            f"(a mean KL below {DEAD_NATS} nats: no information about the frame)."
        )
    for name, label, log in (("error", "squared error per image", True), ("kl", "KL, nats per image", False)):
        title = f"V: {label}"
        add_lines(section, plotter, title, "update", label, losses(readers, "vae", name), log=log)
    if best:
        kl = [best[key] for key in sorted(key for key in best if key.startswith("val_kl_"))]
        svg = plotter.bars("KL of each latent dimension", "latent dimension", "mean KL, nats", kl)
        section.blocks.append(Plot("KL of each dimension", svg, "Validation frames, at the best update."))
    add_picture(
        section,
        main.run.plots / "reconstructions.png",
        "Reconstructions",
        "Validation frames above V's reconstructions, with the squared error of each",
        "Above: validation frames; below: V's reconstructions.",
    )
    add_picture(
        section,
        main.run.plots / "traversals.png",
        "Traversals",
        "Rows of decoded frames: in each row one latent dimension goes from -3 to 3",
        "In each row one latent dimension changes; the others stay as in one frame.",
    )
    return section


def memory(plotter: Plotter, readers: Sequence[RunReader]) -> Section:
    """M: losses against baselines, predictions, calibration."""
    main = readers[0]
    section = Section("memory", "M, the MDN-RNN")
    if not began(section, readers, "mdnrnn", main.run.mdnrnn):
        return section
    best = best_validation(main.metrics("mdnrnn"))
    tiles = main.stages.get("mdnrnn", {}).get("config", {}).get("reward", MDNRNNConfig.reward) == "tile"
    heads = {
        "reward": ("reward head", "nats per step" if tiles else "(reward per step)²"),
        "terminated": ("termination head", "nats per step"),
        "outlook": ("outlook head", "(tiles per step)²" if tiles else "(reward per step)²"),
    }
    if best:
        section.headline = f"{best['val_nll']:.3f} nats per latent dimension"
        baselines = {
            "marginal": "one fixed Gaussian",
            "one": "the one Gaussian with the mixture's mean and variance",
            "unit": "N(0, 1)",
        }
        rows = [
            ["next z, nats per dimension", f"{best['val_nll']:.3f}", f"{best[f'val_nll_{name}']:.3f}", which]
            for name, which in baselines.items()
        ]
        rows += [
            [f"{head}, {unit}", f"{best[f'val_{name}']:.5f}", f"{best[f'val_{name}_constant']:.5f}", "a constant"]
            for name, (head, unit) in heads.items()
            if {f"val_{name}", f"val_{name}_constant"} <= best.keys()
        ]
        caption = f"M against baselines, on validation clips at update {best['step']:,}; less is better"
        section.blocks.append(Table(caption, ["loss", "M", "baseline", "which baseline"], rows))
    levels = []
    settle = SETTLE if len(readers) == 1 else 0.0  # a comparison shows validation only, which begins settled
    if best and len(readers) == 1:
        levels = [("one fixed Gaussian", best["val_nll_marginal"]), ("N(0, 1)", best["val_nll_unit"])]
    label = "nats per latent dimension"
    lines = losses(readers, "mdnrnn", "nll")
    add_lines(section, plotter, "M: next z", "update", label, lines, levels=levels, settle=settle)
    for name, (head, unit) in heads.items():
        baseline = f"val_{name}_constant"
        levels = [("a constant", best[baseline])] if best and baseline in best and len(readers) == 1 else []
        lines = losses(readers, "mdnrnn", name)
        add_lines(section, plotter, f"M: {head}", "update", unit, lines, levels=levels, settle=settle)
    add_picture(
        section,
        main.run.plots / "predictions.png",
        "Predictions",
        "One clip four times: real frames, V's reconstructions, M's one-step predictions, M's open-loop dream",
    )
    add_probe(section, main)
    calibration = main.metrics("calibration")
    if calibration:
        rows = [
            [name, number(value)] for name, value in calibration[-1].items() if name not in ("stage", "step", "time")
        ]
        section.blocks.append(Table("Calibration of M's heads", ["number", "value"], rows, folded=True))
    else:
        section.notes.append("The calibration of M's heads is not measured yet: `make dream`.")
    add_picture(
        section,
        main.run.plots / "calibration.png",
        "Calibration",
        "Reliability diagrams of M's heads, and returns of dreamed clips against the real ones",
    )
    return section


def controller(plotter: Plotter, readers: Sequence[RunReader]) -> Section:
    """C: learning curves and weights."""
    main = readers[0]
    section = Section("controller", "C, the controller")
    add_ablations(section, main)
    add_variants(section, main, "controller")
    if not began(section, readers, "controller", main.run.controller):
        return section
    add_curves(section, plotter, readers, "controller")
    if main.run.controller.exists():
        add_weights(section, plotter, main, main.run.controller)
    return section


def score(plotter: Plotter, readers: Sequence[RunReader], videos: Sequence[Video]) -> Section:
    """The score: histogram, all tracks, videos of the worst and the best track."""
    main = readers[0]
    section = Section("score", "The score")
    found = main.read_score(main.scored)
    if found is None:
        section.missing = "make evaluate" if main.scored == "controller" else DREAM_SCORE
        return section
    section.headline = describe_score(found)
    add_score(section, plotter, main, found, main.scored)
    if len(readers) > 1:
        lines = []
        for i, one in enumerate(readers):
            theirs = one.read_score(one.scored)
            if theirs:
                ordered = sorted(theirs["returns"])
                shares = [100 * (len(ordered) - i) / len(ordered) for i in range(len(ordered))]
                lines.append(Line(one.name, ordered, shares, style=i))
        add_lines(section, plotter, "Tracks that reach a return", "return", "% of the tracks with at least that", lines)
    section.blocks += videos
    add_tracks(section, found)
    return section


def dream(plotter: Plotter, readers: Sequence[RunReader]) -> Section:
    """The dream: temperature and scores of each run, dream scores against real scores, the controller."""
    main = readers[0]
    section = Section("dream", "The dream")
    add_variants(section, main, "dream")
    if not began(section, readers, "dream", main.run.dream):
        return section
    rows = []
    for one in readers:
        selected = [row for row in one.metrics("dream") if "select" in row]
        if selected and "dream" in one.stages:
            best, config = max(selected, key=lambda row: row["select"]), one.stages["dream"]["config"]
            scored = one.read_score("dream")
            rows.append(
                [
                    one.name,
                    f"{config.get('temperature', DreamConfig.temperature):g}",
                    str(config.get("horizon", DreamConfig.horizon)),
                    f"{best['dream']:.0f}",
                    f"{best['select']:.0f} ± {best['select_std']:.0f}",
                    describe_score(scored) if scored else f"not yet: `{DREAM_SCORE}`",
                ]
            )
    if rows:
        header = ["run", "temperature", "horizon, steps", "dream score", "real selection tracks", "fresh real tracks"]
        section.blocks.append(Table("Temperature, dream score and real score of the best mean", header, rows))
    add_rounds(section, main)
    add_curves(section, plotter, readers, "dream")
    lines = []
    for i, one in enumerate(readers):
        selected = [row for row in one.metrics("dream") if "select" in row and "dream" in row]
        x, y = ([row[name] for row in selected] for name in ("dream", "select"))
        lines.append(Line(one.name, x, y, dots=True, joined=False, style=i))
    title = "Dream score and real score of the distribution mean"
    add_lines(section, plotter, title, "score in the dream", "score on real selection tracks", lines)
    scored = main.read_score("dream")
    if scored and main.scored != "dream":
        add_score(section, plotter, main, scored, "dream")
        add_tracks(section, scored)
    if main.run.dream.exists():
        add_weights(section, plotter, main, main.run.dream)
    return section


# --- parts ------------------------------------------------------------------------------------------------


def began(section: Section, readers: Sequence[RunReader], stage: str, artifact: Path) -> bool:
    """Whether any of the runs has results of a stage; adds a note on what the first run lacks."""
    rows = readers[0].metrics(stage)
    if not artifact.exists():
        section.missing = f"make {stage}"
        if rows:
            section.notes.append(f"It is running or was interrupted: {artifact.name} does not exist yet.")
    elif not rows:
        section.notes.append("There are no curves: metrics.jsonl has no line of this stage.")
    return artifact.exists() or any(one.metrics(stage) for one in readers)


def best_validation(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The line with the lowest validation loss, that of the saved weights; None without validations."""
    validated = [row for row in rows if "val_loss" in row]
    return min(validated, key=lambda row: row["val_loss"]) if validated else None


def losses(readers: Sequence[RunReader], stage: str, name: str) -> list[Line]:
    """A loss of V or M: training and validation of one run, or the validation of several."""
    lines = []
    if len(readers) == 1:
        lines.append(curve(readers[0].metrics(stage), "training", name))
    for one in readers:
        label = "validation" if len(readers) == 1 else one.name
        line = curve(one.metrics(stage), label, f"val_{name}", dots=len(readers) == 1)
        lines.append(replace(line, style=len(lines)))  # a run has the same style in all plots
    return lines


def curve(
    rows: Sequence[dict[str, Any]],
    label: str,
    name: str,
    x: Callable[[dict[str, Any]], float] = lambda row: row["step"],
    *,
    spread: str | None = None,
    dots: bool = False,
) -> Line:
    """A metric as a line of a plot, over the rows that have it."""
    rows = [row for row in rows if name in row]
    return Line(
        label,
        [x(row) for row in rows],
        [row[name] for row in rows],
        spread=[row[spread] for row in rows] if spread else None,
        dots=dots,
    )


def add_lines(
    section: Section,
    plotter: Plotter,
    title: str,
    x_label: str,
    y_label: str,
    lines: Sequence[Line],
    *,
    levels: Sequence[tuple[str, float]] = (),
    log: bool = False,
    settle: float = 0.0,
) -> None:
    """Adds a plot of the lines that have points, if there are any."""
    lines = [line for line in lines if line.x]
    if lines:
        svg = plotter.lines(title, x_label, y_label, lines, levels=levels, log=log, settle=settle)
        section.blocks.append(Plot(title, svg))


def add_curves(section: Section, plotter: Plotter, readers: Sequence[RunReader], stage: str) -> None:
    """Adds the learning curves of an evolution: by steps and by time."""
    rows = readers[0].metrics(stage)
    selected = [row for row in rows if "select" in row]
    if selected:
        best = max(selected, key=lambda row: row["select"])
        section.headline = f"{best['select']:.0f} ± {best['select_std']:.0f} on the real selection tracks"
        section.notes.append(
            f"The distribution mean of generation {best['step']:,} of {rows[-1]['step']:,} has the best score on the "
            f"selection tracks; {rows[-1]['env_steps']:,.0f} steps in {duration(rows[-1]['seconds'])}."
        )
    what = "dream" if stage == "dream" else "environment"
    axes: tuple[tuple[str, Callable[[dict[str, Any]], float]], ...] = (
        (f"million {what} steps", lambda row: row["env_steps"] / 1e6),
        ("minutes", lambda row: row["seconds"] / 60),
    )
    for label, x in axes:
        lines = []
        if len(readers) == 1:
            name = "population: mean, and worst to best" if stage == "controller" else "population's mean in the dream"
            population = curve(rows, name, "mean", x)
            low, high = (
                ([row[name] for row in rows] for name in ("worst", "best")) if stage == "controller" else ([], [])
            )
            lines.append(Line(population.name, population.x, population.y, low=low or None, high=high or None))
        for one in readers:
            name = "distribution mean on real selection tracks, ± std" if len(readers) == 1 else one.name
            spread = "select_std" if len(readers) == 1 else None
            line = curve(one.metrics(stage), name, "select", x, spread=spread, dots=True)
            lines.append(replace(line, style=len(lines)))
        if len(readers) == 1:
            lines.append(curve(rows, "distribution mean in the dream", "dream", x))
        add_lines(section, plotter, f"Return by {label}", label, "return", lines)


def stage_of(row: Mapping[str, Any]) -> str:
    """The stage of a line of curves.jsonl; older lines have none and belong to stage controller."""
    stage: str = row.get("stage", "controller")
    return stage


def read_variants(run: Run, stage: str) -> dict[str, list[dict[str, Any]]]:
    """The lines of curves.jsonl of a stage by variant, one for each of its seeds."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in read_lines(run.curves, **CURVE):
        if stage_of(row) == stage and row["curve"]:
            found[row["name"], row["seed"]] = row  # a later line, of a larger budget, replaces an earlier one
    variants: dict[str, list[dict[str, Any]]] = {}
    for (name, _), row in sorted(found.items()):
        variants.setdefault(name, []).append(row)
    return variants


def over_seeds(values: Sequence[float]) -> str:
    """The mean over seeds, and the lowest and highest value if there are several."""
    return f"{np.mean(values):.0f}" + (f" ({min(values):.0f} to {max(values):.0f})" if len(values) > 1 else "")


def add_variants(section: Section, main: RunReader, stage: str) -> None:
    """Adds the table and the plot of the variants of `make curves`, if there are any.

    For the dream it is like the paper's table of temperatures, with the dream score and the real score.
    """
    variants = read_variants(main.run, stage)
    if not variants:
        return
    dreamt = stage == "dream"
    table = []
    for name, seeds in variants.items():
        best = [max(row["curve"], key=lambda point: point["select"]) for row in seeds]
        tau = [f"{seeds[0].get('config', {}).get('temperature', DreamConfig.temperature):g}"] if dreamt else []
        dreams = [over_seeds([point.get("dream", math.nan) for point in best])] if dreamt else []
        real = over_seeds([point["select"] for point in best])
        options = " ".join(f"`{option}`" for option in re.split(r"\s+(?=--)", seeds[0]["options"]) if option)
        table.append([name, *tau, str(len(seeds)), *dreams, real, options or "the preset's"])
    if dreamt:
        table.sort(key=lambda row: float(row[1]))
        caption = "Variants of the dream: temperature, dream score and real score"
        header = ["variant", "temperature", "seeds", "dream score", "real selection tracks", "options"]
    else:
        caption = "Variants of the evolution"
        header = ["variant", "seeds", "real selection tracks", "options"]
    section.blocks.append(Table(caption, header, table))
    command = "make curves ARGS=--stage=dream" if dreamt else "make curves"
    section.notes.append(
        f"Variants of `{command}`: mean over seeds (lowest to highest) of each seed's best score on the real selection "
        "tracks. The best of several scores is biased upwards."
    )
    picture = main.run.plots / ("curves-dream.png" if dreamt else "curves.png")
    alt = "Learning curves of the variants: return on the real selection tracks by steps of the population"
    add_picture(section, picture, "Variants", alt, "Mean over seeds; the band reaches from the lowest to the highest.")


def read_ablations(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of ablations.json by name, {} if it is missing; UserError when it is damaged."""
    rows: dict[str, dict[str, Any]] = read_json(path, rows=dict)["rows"] if path.exists() else {}
    for name, row in rows.items():
        for needed, kind in ABLATION.items():
            if not fits(row, {needed: kind}):
                raise UserError(f"{path} has a row {name!r} without a valid {needed!r}: remove the row.")
    return rows


def add_ablations(section: Section, main: RunReader) -> None:
    """Adds the table of `make ablate`, if there is one."""
    if not main.run.ablations.exists():
        return
    rows = [
        [
            row["says"],
            f"{row['weights']:,}",
            f"{row['env_steps'] / 1e6:.2f}",
            f"{row['mean']:.0f} ± {row['std']:.0f}",
            "" if row["ci95"] is None else f"± {row['ci95']:.0f}",
            f"{row['median']:.0f}",
            f"{row['lost']} of {row['episodes']}",
        ]
        for row in read_ablations(main.run.ablations).values()
    ]
    header = ["recipe", "weights of C", "million steps", "fresh real tracks", "95% of the mean", "median", "below 700"]
    section.notes.append("`make ablate` scored variants of the recipe on this run's data.")
    section.blocks.append(Table("Variants of the recipe at equal budgets", header, rows))


def add_rounds(section: Section, main: RunReader) -> None:
    """Adds the table of the rounds of `make iterate`, if there are any."""
    found = read_lines(main.run.rounds, **ROUND)
    if not found:
        return
    best = max(found, key=lambda row: row["select"])
    note = f"This run was made in rounds. V, M and controller are those of round {best['round']}, the best on the real"
    folder = Path("rounds") / str(best["round"])
    more = f": `make report RUN={main.run.folder.name / folder}` shows how they were made"
    section.notes.append(f"{note} selection tracks{more if (main.run.folder / folder).exists() else ''}.")
    rows = [
        [
            str(row["round"]),
            f"{row['episodes']:,} ({row['new']:,} new)",
            f"{row['error']:.2f}",
            f"{row['nats']:.3f}",
            f"{row['dream']:.0f}",
            f"{row['select']:.0f} ± {row['select_std']:.0f}",
            f"{row['gap']:.0f}",
            f"{row['real_steps']:,}",
            f"{row['minutes']:.1f}",
        ]
        for row in found
    ]
    header = ["round", "episodes", "V: squared error per image", "M: nats per dimension", "dream score"]
    header += ["real selection tracks", "gap", "real steps so far", "minutes"]
    section.blocks.append(Table("Rounds: V and M on validation episodes, scores of the best mean", header, rows))


def add_score(section: Section, plotter: Plotter, main: RunReader, found: Mapping[str, Any], controller: str) -> None:
    """Adds the histogram of a score, and a note on its protocol."""
    seeds, returns = found["seeds"], found["returns"]
    fresh = all(seed in EVALUATE_SEEDS for seed in (min(seeds), max(seeds)))
    section.notes.append(
        f"Mean ± standard deviation over tracks {min(seeds)} to {max(seeds)} of {found['env_id']}"
        f"{', on which nothing is trained or selected' if fresh else ''} "
        f"(Gymnasium {found['versions']['gymnasium']}, commit {found['commit']}, {date(found['time'])} UTC)."
    )
    path = main.run.folder / f"{controller}.npz"
    if path.exists() and found["made_from"].get(path.name) != file_hash(path):
        section.notes.append(
            "The score belongs to other files than the current ones: a published run is rounded to half precision "
            "after scoring; for any other run, `make evaluate` scores the current files."
        )
    low, high = min([*returns, SOLVED]), max([*returns, SOLVED])
    step = next((step for step in SCORE_STEPS if high - low <= step * SCORE_BINS), (high - low) / SCORE_BINS)
    edges = np.arange(math.floor(low / step), math.floor(high / step) + 2) * step
    counts, _ = np.histogram(returns, bins=edges)
    marks = [("mean", found["mean"]), (f"{SOLVED:.0f}, the environment's 'solved'", SOLVED)]
    svg = plotter.histogram("Returns of the tracks", "return", "tracks", edges.tolist(), counts.tolist(), marks=marks)
    section.blocks.append(Plot("Returns", svg))


def add_tracks(section: Section, found: Mapping[str, Any]) -> None:
    """Adds the table of a score's tracks."""
    rows = [
        [str(seed), f"{ret:.1f}", str(length)]
        for ret, seed, length in sorted(zip(found["returns"], found["seeds"], found["lengths"], strict=True))
    ]
    section.blocks.append(Table("Every track, the worst first", ["track", "return", "steps"], rows, folded=True))


def add_probe(section: Section, main: RunReader) -> None:
    """Adds the table of the probe."""
    path = main.find(main.run.probe.name)
    if not path.exists():
        section.notes.append("[z; h] is not probed yet: `make probe`.")
        return
    found = read_json(path, **PROBE)
    caption = "Ridge regression on z, h and both: R², and root mean square error in the unit"
    section.blocks.append(Table(caption, HEADER, rows(found)))
    section.notes.append(f"The probe: {describe(found)}")
    paths = {name: main.run.folder / name for name in found["made_from"]}
    if any(path.exists() and found["made_from"][name] != file_hash(path) for name, path in paths.items()):
        section.notes.append("The probe belongs to other models than the current ones: `make probe` probes these.")


def add_weights(section: Section, plotter: Plotter, main: RunReader, path: Path) -> None:
    """Adds a picture of the controller's weights for each action."""
    theta, meta = load_controller(path)
    if meta.get("config", {}).get("hidden_units"):
        return  # only the weights of a linear controller belong to single actions
    weights, bias = np.split(theta.astype(np.float64), [len(theta) - ACTIONS])
    z = main.stages.get("vae", {}).get("config", {}).get("z", VAEConfig.z)
    scale = float(np.percentile(np.abs(weights), 99)) or 1.0
    for name, row, b in zip(ACTION_NAMES, weights.reshape(ACTIONS, -1), bias.tolist(), strict=True):
        title = f"Weights of the {name}"
        caption = (
            f"Upper row: z ({z}); below: h ({len(row) - z}), row by row. Blue is positive, orange negative; "
            f"full colour from {number(scale)} on. The bias is {number(b)}."
        )
        section.blocks.append(Plot(title, plotter.matrix(title, row, scale, z), caption))


def add_picture(section: Section, path: Path, title: str, alt: str, caption: str = "") -> None:
    """Adds a PNG if it exists."""
    if path.exists():
        section.blocks.append(Picture(title, data_uri(path.read_bytes(), "image/png"), alt, caption))


def describe_score(found: Mapping[str, Any]) -> str:
    """A score in a few words."""
    interval = "" if found["ci95"] is None else f" (95% interval of the mean ± {found['ci95']:.0f})"
    return f"{found['mean']:.0f} ± {found['std']:.0f} on {len(found['seeds'])} tracks{interval}"


def date(iso: str) -> str:
    """A time of `wm.run.now` in readable form."""
    return iso.replace("T", " ").removesuffix("+00:00")


def duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
