"""Progress bars; without a terminal, progress lines."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

NOTICE_SECONDS = 20.0
"""Seconds between progress lines when stderr is not a terminal."""


class Progress:
    """A progress bar with rate and remaining time. Without a terminal: a line every `NOTICE_SECONDS`.

    Use as a context manager. `update(n, **shown)` advances it by n and shows the values `shown` behind it.
    """

    def __init__(self, name: str, total: int, initial: int = 0, unit: str = "it") -> None:
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            desc=name, total=total, initial=initial, unit=unit, disable=not self._terminal, dynamic_ncols=True
        )
        self._name, self._total, self._unit = name, total, unit
        self._first = self._n = initial
        self._said_n = -1
        self._start = self._said = time.monotonic()
        self._shown = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._terminal and kind is None and self._said_n != self._n:
            self._say()
        self._bar.close()

    def update(self, n: int = 1, **shown: float | str) -> None:
        """Advances by `n`; `shown`: values to print behind the bar."""
        self._n += n
        if shown:
            self._shown = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
            self._bar.set_postfix_str(self._shown, refresh=False)
        self._bar.update(n)
        if not self._terminal and time.monotonic() - self._said > NOTICE_SECONDS:
            self._say()

    def _say(self) -> None:
        self._said, self._said_n = time.monotonic(), self._n
        line = tqdm.format_meter(
            self._n,
            self._total,
            self._said - self._start,
            prefix=self._name,
            unit=self._unit,
            postfix=self._shown,
            initial=self._first,
            bar_format="{desc}: {n_fmt}/{total_fmt} {percentage:.0f}% [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
        )
        print(line, file=sys.stderr, flush=True)
