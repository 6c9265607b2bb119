"""Plots of the evolution: learning curves, variants, rounds, the histogram of a score, and the probe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from wm.show.plots.figure import save_figure
from wm.show.svg import bin_edges


def plot_curve(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draws the evolution: the population's best, mean and worst fitness, and the mean's score on selection tracks.

    Args:
        path: The PNG to write.
        rows: The stage's lines of metrics.jsonl, one per generation, in order.
    """
    axes = (
        ("generation", [row["step"] for row in rows]),
        ("million environment steps", [row["env_steps"] / 1e6 for row in rows]),
        ("minutes", [row["seconds"] / 60 for row in rows]),
    )
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    for i, (name, x) in enumerate(axes):
        plot = figure.add_subplot(1, 3, i + 1)
        plot.fill_between(
            x,
            [r["worst"] for r in rows],
            [r["best"] for r in rows],
            color="tab:blue",
            alpha=0.15,
            label="worst to best",
        )
        plot.plot(x, [row["mean"] for row in rows], color="tab:blue", label="population's mean fitness")
        selected = [i for i, row in enumerate(rows) if "select" in row]
        plot.errorbar(
            [x[i] for i in selected],
            [rows[i]["select"] for i in selected],
            [rows[i]["select_std"] for i in selected],
            color="tab:orange",
            elinewidth=0.6,
            marker="o",
            markersize=3,
            label="distribution mean on selection tracks (± std)",
        )
        plot.set_xlabel(name)
        plot.set_ylabel("return")
        plot.grid(alpha=0.3)
        if i == 0:
            plot.legend(loc="lower right", fontsize=8)
    save_figure(path, figure)


def plot_variants(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draws the learning curves of several variants: the mean over seeds, and a band from the lowest to the highest.

    Args:
        path: The PNG to write.
        rows: One for each variant and seed: its "name" and its "curve", points with "env_steps" and "select".
    """
    figure = Figure(figsize=(10, 6), layout="constrained")
    plot = figure.add_subplot()
    for i, name in enumerate(sorted({row["name"] for row in rows})):
        curves = [row["curve"] for row in rows if row["name"] == name]
        # Seeds are evaluated at different steps; they are compared in the range that all of them cover.
        start, end = max(c[0]["env_steps"] for c in curves), min(c[-1]["env_steps"] for c in curves)
        x = np.linspace(start, end, 100)
        y = np.array([np.interp(x, [p["env_steps"] for p in c], [p["select"] for p in c]) for c in curves])
        colour = f"C{i % 10}"
        plot.plot(x / 1e6, y.mean(axis=0), color=colour, label=f"{name} ({len(curves)})")
        plot.fill_between(x / 1e6, y.min(axis=0), y.max(axis=0), color=colour, alpha=0.15)
    plot.set_xlabel("million steps of the population, in the environment or in the dream")
    plot.set_ylabel("mean return of the distribution mean on the selection tracks")
    plot.set_title("mean over seeds (their number); band from the lowest to the highest", fontsize=10)
    plot.grid(alpha=0.3)
    plot.legend(fontsize=8)
    save_figure(path, figure)


def plot_rounds(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draws the scores of each round's controller, in its dream and on real tracks, by round and by real steps.

    Args:
        path: The PNG to write.
        rows: The lines of rounds.jsonl, in order.
    """
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = (
        ("round", [row["round"] for row in rows]),
        ("million real steps", [row["real_steps"] / 1e6 for row in rows]),
    )
    for place, (name, x) in enumerate(axes):
        plot = figure.add_subplot(1, 2, place + 1)
        plot.plot(x, [row["dream"] for row in rows], color="tab:blue", marker="o", label="in its dream")
        plot.errorbar(
            x,
            [row["select"] for row in rows],
            [row["select_std"] for row in rows],
            color="tab:orange",
            elinewidth=0.6,
            marker="o",
            label="on real selection tracks (± std)",
        )
        plot.set_xlabel(name)
        plot.set_ylabel("score of the best mean")
        plot.grid(alpha=0.3)
        if place == 0:
            plot.set_xticks(x)
            plot.legend(fontsize=8, loc="lower right")
    save_figure(path, figure)


def plot_score(path: Path, returns: Sequence[float], title: str, solved: float | None = None) -> None:
    """Draws the histogram of an evaluation's returns, one per track, and the return at which the task is solved."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    plot = figure.add_subplot()
    plot.hist(returns, bins=bin_edges(returns if solved is None else [*returns, solved]), color="tab:blue")
    plot.axvline(float(np.mean(returns)), color="tab:orange", label=f"mean {np.mean(returns):.0f}")
    if solved is not None:
        plot.axvline(solved, color="grey", linestyle=":", label=f"{solved:g}, the environment's 'solved'")
    plot.set_xlabel("return of a track")
    plot.set_ylabel("tracks")
    plot.set_title(title, fontsize=10)
    plot.legend()
    save_figure(path, figure)


def plot_probe(path: Path, targets: Sequence[dict[str, Any]]) -> None:
    """Draws the R² of a probe as bars, a group for each target, with the error of [z; h] in the target's unit below.

    Args:
        path: The PNG to write.
        targets: As in probe.json; an undefined R² has no bar.
    """
    figure = Figure(figsize=(11, 5), layout="constrained")
    plot = figure.add_subplot()
    names = list(targets[0]["r2"])
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        heights = [np.nan if target["r2"][name] is None else target["r2"][name] for target in targets]
        places = np.arange(len(targets)) + (i - (len(names) - 1) / 2) * width
        bars = plot.bar(places, heights, width, label=f"from {name}")
        plot.bar_label(bars, ["" if np.isnan(height) else f"{height:.2f}" for height in heights], fontsize=7)
    whole = names[-1]
    labels = [f"{t['name']}\n± {t['rmse'][whole]:.2g} {t['unit']}" for t in targets]
    plot.set_xticks(range(len(targets)), labels, fontsize=8)
    plot.set_xlabel(f"target; below: root mean square error from {whole}")
    plot.set_ylabel("R² on test episodes")
    plot.set_ylim(bottom=max(plot.get_ylim()[0], -1), top=1.05)
    plot.axhline(0, color="black", linewidth=0.8)
    plot.grid(alpha=0.3, axis="y")
    figure.legend(fontsize=8, loc="outside upper right", ncols=len(names))
    save_figure(path, figure)
