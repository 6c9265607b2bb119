"""The report's section on C: learning curves, variants, ablations, weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wm.config.vmc import DreamConfig, VAEConfig
from wm.controller.file import load_controller
from wm.controller.linear import Linear
from wm.run.experiments import curves_name, over_seeds, read_ablations, read_variants
from wm.show.report.blocks import Plot, Section, Table, add_lines, add_picture, began, curve, duration
from wm.show.report.reader import RunReader
from wm.show.svg import Line, Plotter, number


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
    what = "environment" if stage == "controller" else "dream"
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


def add_variants(section: Section, main: RunReader, stage: str) -> None:
    """Adds the table and the plot of the variants of `make curves`, if there are any.

    For the dream it is like the paper's table of temperatures, with the dream score and the real score.
    """
    variants = read_variants(main.run, stage)
    if not variants:
        return
    dreamt = stage != "controller"
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
    command = f"make curves ARGS=--stage={stage}" if dreamt else "make curves"
    section.notes.append(
        f"Variants of `{command}`: mean over seeds (lowest to highest) of each seed's best score on the real selection "
        "tracks. The best of several scores is biased upwards."
    )
    picture = main.run.plots / curves_name(stage)
    alt = "Learning curves of the variants: return on the real selection tracks by steps of the population"
    add_picture(section, picture, "Variants", alt, "Mean over seeds; the band reaches from the lowest to the highest.")


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
    header = ["recipe", "weights of C", "million steps", "fresh real tracks", "95% of the mean", "median"]
    header.append(f"below {main.task.lost:g}")
    section.notes.append("`make ablate` scored variants of the recipe on this run's data.")
    section.blocks.append(Table("Variants of the recipe at equal budgets", header, rows))


def add_weights(section: Section, plotter: Plotter, main: RunReader, path: Path) -> None:
    """Adds a picture of the controller's weights for each action."""
    theta, meta = load_controller(path)
    kind = meta.get("kind", "hidden" if meta.get("config", {}).get("hidden_units") else Linear.kind)
    if kind != Linear.kind:
        return  # only the weights of a linear controller belong to single actions
    names = main.task.action.names
    weights, bias = np.split(theta.astype(np.float64), [len(theta) - len(names)])
    z = main.config("vae").get("z", VAEConfig.z)
    scale = float(np.percentile(np.abs(weights), 99)) or 1.0
    for name, row, b in zip(names, weights.reshape(len(names), -1), bias.tolist(), strict=True):
        title = f"Weights of {name}"
        caption = (
            f"Upper row: z ({z}); below: what else C reads ({len(row) - z}), row by row. Blue is positive, "
            f"orange negative; full colour from {number(scale)} on. The bias is {number(b)}."
        )
        section.blocks.append(Plot(title, plotter.matrix(title, row, scale, z), caption))
