"""The report's section on the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from wm.config.earlier import MEASURE
from wm.driving.collection import SUMMARY
from wm.run.json_files import read_json
from wm.show.report.blocks import Plot, Section, add_picture
from wm.show.report.reader import RunReader
from wm.show.svg import Plotter


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
    shares = "".join(f", {share:.0%} of the steps {name}" for name, share in measures(main, found).items())
    section.headline = f"{found['episodes']:,} episodes, {found['frames']:,} frames"
    section.notes.append(
        f"{policies}; {found['bytes'] / 1e6:,.0f} MB; return {found['return_mean']:.0f} ± "
        f"{found['return_std']:.0f}, best {found['return_max']:.0f}{shares}."
    )
    add_picture(
        section,
        main.run.plots / "contact_sheet.png",
        "Contact sheet",
        "Rows of small frames, a row for each of some episodes",
        "One episode per row, from its first frame to its last.",
    )
    if "returns" in found:
        edges, counts = found["returns"]["edges"], found["returns"]["counts"]
        svg = plotter.histogram("Returns of the episodes", "return", "episodes", edges, counts)
        section.blocks.append(Plot("Returns", svg))
    action = main.task.action
    names = [f"{n}, {low:g} to {high:g}" for n, low, high in zip(action.names, action.low, action.high, strict=False)]
    for name, histogram in zip(names or [f"number of {', '.join(action.names)}"], found["actions"], strict=False):
        shares = 100 * np.array(histogram["counts"]) / max(1, sum(histogram["counts"]))
        title = f"Actions: {name.partition(',')[0]}"
        svg = plotter.histogram(title, name, "% of the steps", histogram["edges"], shares.tolist())
        section.blocks.append(Plot(title, svg))
    return section


def measures(main: RunReader, found: Mapping[str, Any]) -> dict[str, float]:
    """Fractions of the steps by what holds in them; older summaries have one number, of the task's own measure."""
    if "measures" in found:
        return dict(found["measures"])
    share, measure = found.get(MEASURE), main.task.measure
    return {measure.name: share} if measure and share is not None else {}
