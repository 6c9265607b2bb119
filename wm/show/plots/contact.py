"""The contact sheet: an overview of the collected frames."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from wm.run.files import atomic
from wm.store.shards import Rollouts

ROWS, COLUMNS = 10, 12
"""Number of episodes, and of frames per episode."""
GAP = 2
"""Pixels between pictures."""
FRAME = 64


def plot_contact_sheet(path: Path, rollouts: Rollouts) -> None:
    """Draws up to 10 episodes, spread evenly over the collection, one a row: 12 frames from its first to its last.

    Args:
        path: The PNG to write.
        rollouts: Episodes with observations u8[H,W,3]; others have no picture, and none is written.
    """
    first = rollouts.read(0, 0, 1)
    if first.dtype != np.uint8 or first.ndim != 4 or first.shape[-1] != 3:
        return
    chosen = np.unique(np.linspace(0, len(rollouts) - 1, min(ROWS, len(rollouts))).astype(int))
    cell = FRAME + GAP
    sheet = np.full((len(chosen) * cell + GAP, COLUMNS * cell + GAP, 3), 255, np.uint8)
    for row, episode in enumerate(chosen.tolist()):
        last = int(rollouts.table["length"][episode])
        for column, step in enumerate(np.linspace(0, last, COLUMNS).astype(int).tolist()):
            frame = cv2.resize(rollouts.read(episode, step, step + 1)[0], (FRAME, FRAME))
            top, left = row * cell + GAP, column * cell + GAP
            sheet[top : top + FRAME, left : left + FRAME] = frame
    _, content = cv2.imencode(path.suffix, cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    with atomic(path) as temporary:  # cv2.imwrite does not report a full disk
        temporary.write_bytes(content.tobytes())
