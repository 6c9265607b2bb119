"""The report's section on the score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wm.config.seeds import EVALUATE_SEEDS
from wm.run.checksums import file_hash
from wm.run.remedies import scored_by
from wm.show.report.blocks import Plot, Section, Table, Video, add_lines, date
from wm.show.report.reader import RunReader
from wm.show.svg import Line, Plotter, bin_edges


def score(plotter: Plotter, readers: Sequence[RunReader], videos: Sequence[Video]) -> Section:
    """The score: histogram, all tracks, videos of the worst and the best track."""
    main = readers[0]
    section = Section("score", "The score")
    found = main.read_score(main.scored)
    if found is None:
        section.missing = scored_by(main.scored)
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
            f"after scoring; for any other run, `{scored_by(controller)}` scores the current files."
        )
    solved = main.task.solved
    edges = bin_edges(returns if solved is None else [*returns, solved])
    counts, _ = np.histogram(returns, bins=edges)
    marks = [("mean", found["mean"])]
    if solved is not None:
        marks.append((f"{solved:g}, the environment's 'solved'", solved))
    svg = plotter.histogram("Returns of the tracks", "return", "tracks", edges, counts.tolist(), marks=marks)
    section.blocks.append(Plot("Returns", svg))


def add_tracks(section: Section, found: Mapping[str, Any]) -> None:
    """Adds the table of a score's tracks."""
    rows = [
        [str(seed), f"{ret:.1f}", str(length)]
        for ret, seed, length in sorted(zip(found["returns"], found["seeds"], found["lengths"], strict=True))
    ]
    section.blocks.append(Table("Every track, the worst first", ["track", "return", "steps"], rows, folded=True))


def describe_score(found: Mapping[str, Any]) -> str:
    """A score in a few words."""
    interval = "" if found["ci95"] is None else f" (95% interval of the mean ± {found['ci95']:.0f})"
    return f"{found['mean']:.0f} ± {found['std']:.0f} on {len(found['seeds'])} tracks{interval}"
