"""The kinds of C, and which one a file holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm.contracts import Layout
from wm.controller.hidden import Hidden
from wm.controller.linear import Linear
from wm.run.errors import UserError
from wm.run.pair import stage_of
from wm.run.remedies import redo

KINDS: dict[str, Callable[..., Layout]] = {"linear": Linear, "hidden": Hidden}
"""By name; each makes a layout of its sizes. `make` lists them from here."""


def make_layout(kind: str, outputs: int, hidden_units: int = 0) -> Layout:
    """The layout that command-line options name.

    Args:
        kind: Name of a kind; "": linear, or hidden if there are hidden units.
        outputs: R.
        hidden_units: Units of a hidden layer; 0: the kind's own number, if it has such a layer.

    Raises:
        UserError: The kind is unknown, or has no hidden units.
    """
    kind = kind or ("hidden" if hidden_units else "linear")
    if kind not in KINDS:
        raise UserError(f"there is no C {kind!r}: choose one of {', '.join(KINDS)}.")
    if not hidden_units:
        return KINDS[kind](outputs=outputs)
    try:
        return KINDS[kind](outputs=outputs, units=hidden_units)
    except TypeError as error:
        sentence = f"--hidden-units needs a C with a hidden layer, not {kind!r}: leave one of the two out."
        raise UserError(sentence) from error


def layout_of(path: Path, meta: Mapping[str, Any], theta: NDArray[np.floating], features: int, outputs: int) -> Layout:
    """The layout of a controller's file, whose weights it fits.

    Args:
        path: The file, for messages.
        meta: What it says of itself: "kind" and "sizes". Files of earlier versions have neither, and the number of
            their weights tells.
        theta: Its weights f32[N].
        features: F of the V and M that it acts on.
        outputs: R of the task.

    Raises:
        UserError: The kind is unknown, or does not fit weights, features or outputs.
    """
    stage = stage_of(path.stem)
    kind, sizes = meta.get("kind"), meta.get("sizes")
    try:
        layout = _earlier_layout(len(theta), features, outputs) if kind is None else KINDS[kind](**(sizes or {}))
        if layout.outputs != outputs or layout.count(features) != len(theta):
            raise ValueError
    except KeyError as error:
        raise UserError(f"{path} holds a C of the kind {kind!r}, which this version does not have.") from error
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path} does not fit V and M in its folder: {redo(stage) if stage else 'give another file'}."
        ) from error
    return layout


def _earlier_layout(weights: int, features: int, outputs: int) -> Layout:
    """By the number of weights; ValueError when neither kind fits."""
    if weights == Linear(outputs).count(features):
        return Linear(outputs)
    units, rest = divmod(weights - outputs, features + 1 + outputs)
    if rest or units < 1:
        raise ValueError(f"{weights} weights fit no layer on {features} features")
    return Hidden(outputs, units)
