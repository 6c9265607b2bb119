"""The report's section on the data."""

from __future__ import annotations

import numpy as np

from wm.driving.collection import SUMMARY
from wm.run.json_files import read_json
from wm.show.report.blocks import ACTION_NAMES, Plot, Section, add_picture
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
