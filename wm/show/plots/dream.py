"""Plots of the dream: dream score against real score, and the calibration of M's heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from wm.dream.calibration import ClipRewards, Reliability
from wm.show.plots.figure import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


HEADS = {"pulse": "a step has a positive reward", "terminated": "a step ends the episode"}
"""What each head predicts, in words."""


def plot_dream(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draws dream scores beside real ones: by generation, by minutes, and against one another.

    Args:
        path: The PNG to write.
        rows: The stage's lines of metrics.jsonl, one per generation, in order.
    """
    selected = [row for row in rows if "select" in row]
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    for place, (name, x) in enumerate((("generation", _generation), ("minutes", _minutes))):
        plot = figure.add_subplot(1, 3, place + 1)
        plot.plot(
            [x(r) for r in rows], [r["mean"] for r in rows], color="tab:blue", alpha=0.4, label="dream: population"
        )
        plot.plot(
            [x(r) for r in selected],
            [r["dream"] for r in selected],
            color="tab:blue",
            marker="o",
            markersize=3,
            label="dream: distribution mean",
        )
        plot.errorbar(
            [x(r) for r in selected],
            [r["select"] for r in selected],
            [r["select_std"] for r in selected],
            color="tab:orange",
            elinewidth=0.6,
            marker="o",
            markersize=3,
            label="real: distribution mean on selection tracks (± std)",
        )
        plot.set_xlabel(name)
        plot.set_ylabel("score of a whole episode")
        plot.grid(alpha=0.3)
        if place == 0:
            plot.legend(fontsize=8)
    plot = figure.add_subplot(1, 3, 3)
    points = plot.scatter(
        [r["dream"] for r in selected], [r["select"] for r in selected], c=[r["step"] for r in selected], cmap="viridis"
    )
    _diagonal(plot)
    figure.colorbar(points, label="generation")
    plot.set_xlabel("dream score")
    plot.set_ylabel("real score")
    plot.grid(alpha=0.3)
    save_figure(path, figure)


def plot_calibration(path: Path, heads: Mapping[str, Reliability], clips: ClipRewards) -> None:
    """Draws a reliability diagram per head, the real and dreamt rewards of one clip, and the returns of all clips.

    Args:
        path: The PNG to write.
        heads: Reliability by head.
        clips: Real and dreamt rewards; the clip shown is that with the largest real return.
    """
    figure = Figure(figsize=(5 * (len(heads) + 2), 4.5), layout="constrained")
    axes = figure.subplots(1, len(heads) + 2)
    for plot, (name, found) in zip(axes, heads.items(), strict=False):
        spread = 2 * np.sqrt(found.observed * (1 - found.observed) / found.count)
        bars = [np.minimum(spread, found.observed), spread]  # a rate is not below 0
        plot.errorbar(found.predicted, found.observed, bars, fmt="o-", markersize=4, elinewidth=0.8)
        _diagonal(plot)
        plot.locator_params(nbins=5)
        plot.set_xlabel("predicted probability")
        plot.set_ylabel("observed rate (± 2 standard errors)")
        steps, came = found.count.sum(), round(float(found.observed @ found.count))
        predicted, observed = found.rates
        plot.set_title(
            f"{HEADS.get(name, name)}: {predicted:.2g} predicted, {observed:.2g} observed\n"
            f"({came:,} of {steps:,} steps in {len(found.count)} bins; mean error {found.error:.2g})",
            fontsize=9,
        )

    clip = int(clips.real.sum(1).argmax())
    length = clips.real.shape[1]
    x = np.arange(1, length + 1)
    for i, dreamt in enumerate(clips.dreamt[clip].cumsum(1)):
        axes[-2].plot(x, dreamt, color="tab:blue", alpha=0.4, label="dreamt (expected)" if i == 0 else None)
    axes[-2].plot(x, clips.real[clip].cumsum(), color="black", label="real")
    axes[-2].set_xlabel("step of the clip")
    axes[-2].set_ylabel("sum of rewards")
    axes[-2].set_title("the clip with the largest real return, same actions", fontsize=9)
    axes[-2].legend(fontsize=8)

    real, dreamt = clips.returns
    numbers = clips.numbers()
    axes[-1].scatter(real, dreamt, s=14)
    _diagonal(axes[-1])
    axes[-1].set_xlabel("real return of a clip")
    axes[-1].set_ylabel("dreamt return (mean of its dreams)")
    axes[-1].set_title(
        f"{len(real)} clips of {length} steps: real {numbers['real']:.2f}, dreamt {numbers['dreamt']:.2f} per clip\n"
        f"correlation {numbers['correlation']:.2f}, root mean square error {numbers['error']:.2f}",
        fontsize=9,
    )
    for plot in axes:
        plot.grid(alpha=0.3)
    save_figure(path, figure)


def _generation(row: Mapping[str, Any]) -> float:
    return float(row["step"])


def _minutes(row: Mapping[str, Any]) -> float:
    return float(row["seconds"]) / 60


def _diagonal(plot: Axes) -> None:
    """Draws the diagonal, where both axes have the same value, within the plot's limits."""
    low = max(plot.get_xlim()[0], plot.get_ylim()[0])
    high = min(plot.get_xlim()[1], plot.get_ylim()[1])
    if low < high:
        plot.plot([low, high], [low, high], color="grey", linestyle=":")
