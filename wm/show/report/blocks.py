"""What the report's sections are made of: tables, plots, pictures, videos."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from markupsafe import Markup

from wm.show.report.reader import RunReader
from wm.show.svg import Line, Plotter

SETTLE = 0.05
"""Fraction of a loss curve, from its start, that is ignored for the height of its plot."""


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


def data_uri(content: bytes, media_type: str) -> str:
    """A file's content as a data URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def began(section: Section, readers: Sequence[RunReader], stage: str, artifact: Path, command: str = "") -> bool:
    """Whether any of the runs has results of a stage; adds a note on what the first run lacks.

    `command` makes the artifact; "": the stage of that name.
    """
    rows = readers[0].metrics(stage)
    if not artifact.exists():
        section.missing = command or f"make {stage}"
        if rows:
            section.notes.append(f"It is running or was interrupted: {artifact.name} does not exist yet.")
    elif not rows:
        section.notes.append("There are no curves: metrics.jsonl has no line of this stage.")
    return artifact.exists() or any(one.metrics(stage) for one in readers)


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


def add_picture(section: Section, path: Path, title: str, alt: str, caption: str = "") -> None:
    """Adds a PNG if it exists."""
    if path.exists():
        section.blocks.append(Picture(title, data_uri(path.read_bytes(), "image/png"), alt, caption))


def date(iso: str) -> str:
    """A time of `wm.run.provenance.now` in readable form."""
    return iso.replace("T", " ").removesuffix("+00:00")


def duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
