"""Writing of figures."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from wm.run.files import atomic


def save_figure(path: Path, figure: Figure) -> None:
    """Writes a figure as PNG, atomically and without a display."""
    FigureCanvasAgg(figure)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110)
