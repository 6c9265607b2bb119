"""The report's section on the dream: temperatures, rounds, dream score against real score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wm.config.vmc import DreamConfig
from wm.run.experiments import ROUND
from wm.run.json_files import read_lines
from wm.run.pair import Pair
from wm.run.remedies import scored_by, target
from wm.show.report.blocks import Section, Table, add_lines, began
from wm.show.report.controller import add_curves, add_variants, add_weights
from wm.show.report.reader import RunReader
from wm.show.report.score import add_score, add_tracks, describe_score
from wm.show.svg import Line, Plotter


def dream(plotter: Plotter, readers: Sequence[RunReader], stage: str) -> Section:
    """The dream: temperature and scores of each run, dream scores against real scores, the controller.

    Args:
        plotter: Draws the plots.
        readers: The runs, the report's own first.
        stage: "dream", or "dream-M-C" of other kinds of M and C.
    """
    main = readers[0]
    path = main.run.folder / f"{stage}.npz"
    pair = Pair.of(stage)
    assert pair is not None
    section = Section(stage, "The dream" if pair == Pair() else f"The dream of M {pair.memory} and C {pair.controller}")
    add_variants(section, main, stage)
    if not began(section, readers, stage, path, f"make {target(stage)}"):
        return section
    rows = []
    for one in readers:
        selected = [row for row in one.metrics(stage) if "select" in row]
        if selected and stage in one.stages:
            best, config = max(selected, key=lambda row: row["select"]), one.config(stage)
            scored = one.read_score(stage)
            rows.append(
                [
                    one.name,
                    f"{config.get('temperature', DreamConfig.temperature):g}",
                    str(config.get("horizon", DreamConfig.horizon)),
                    f"{best['dream']:.0f}",
                    f"{best['select']:.0f} ± {best['select_std']:.0f}",
                    describe_score(scored) if scored else f"not yet: `{scored_by(stage)}`",
                ]
            )
    if rows:
        header = ["run", "temperature", "horizon, steps", "dream score", "real selection tracks", "fresh real tracks"]
        section.blocks.append(Table("Temperature, dream score and real score of the best mean", header, rows))
    if pair == Pair():
        add_rounds(section, main)
    add_curves(section, plotter, readers, stage)
    lines = []
    for i, one in enumerate(readers):
        selected = [row for row in one.metrics(stage) if "select" in row and "dream" in row]
        x, y = ([row[name] for row in selected] for name in ("dream", "select"))
        lines.append(Line(one.name, x, y, dots=True, joined=False, style=i))
    title = "Dream score and real score of the distribution mean"
    add_lines(section, plotter, title, "score in the dream", "score on real selection tracks", lines)
    scored = main.read_score(stage)
    if scored and main.scored != stage:
        add_score(section, plotter, main, scored, stage)
        add_tracks(section, scored)
    if path.exists():
        add_weights(section, plotter, main, path)
    return section


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
