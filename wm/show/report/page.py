"""The report: one self-contained page on a run folder. `stages.report` writes it.

A section shows the files of its stage; if the stage has not run, it names the command. The report computes no new
results, and the page fetches nothing and runs no script.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from wm.run.provenance import commit, now
from wm.show.report.blocks import Video, date
from wm.show.report.controller import controller
from wm.show.report.data import data
from wm.show.report.dream import dream
from wm.show.report.memory import memory
from wm.show.report.reader import RunReader
from wm.show.report.run import overview
from wm.show.report.score import score
from wm.show.report.vision import vision
from wm.show.svg import Plotter

TEMPLATE = Path(__file__).with_suffix(".html")


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
        *(memory(plotter, readers, kind, at) for at, kind in enumerate(main.memories)),
        controller(plotter, readers),
        score(plotter, readers, videos),
        *(dream(plotter, readers, stage) for stage in main.dreams),
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
        subtitle=f"World model on {main.task.title}{beside}. Written {date(now())} UTC.",
        sections=sections,
        footer=f"Made by `make report` at commit {commit()}. This page loads no external resources.",
    )


def prose(text: str) -> Markup:
    """Escapes a text and marks `backticks` as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
