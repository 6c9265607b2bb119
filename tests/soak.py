"""Measures whether memory stays flat: `python -m tests.soak --minutes 60`. Not a test, and not run by one.

Runs the collector, the gradient loops of V and M, and the evolution with its workers, as their own commands with totals
that they never reach, an equal share of the time each; `--only vae --minutes 12` measures one of them. The memory that
is theirs alone is read every few seconds, after a warm-up of a fifth of the share: what grows then is a leak, or a
buffer that has not filled yet. Mapped files are not counted: a process has the larger a share of the pages of a library
the fewer others use it, and so would seem to grow whenever anything else ends. A collection of an hour leaves some 15
GB in the folder for temporary files until it ends.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from wm.config.seeds import DRIVEN_FROM
from wm.run.signals import EXIT_CODE, raise_on_signals

WARM_UP = 0.2
"""Share of a stage's time that does not count: caches and buffers fill, libraries are loaded."""

ENDLESS = {
    "collect": f"--episodes {DRIVEN_FROM} --max-steps 1000",
    "vae": "--updates 10000000 --validate-every 200 --shuffle-frames 500",
    "mdnrnn": "--updates 10000000 --validate-every 200",
    "controller": "--generations 1000000 --popsize 16 --max-steps 1000 --precision int8",
    "dream": "--generations 1000000 --popsize 16 --horizon 100 --unpaid 5 --select-every 5 --noise recorded --value 20",
}


@dataclass(frozen=True)
class Soak:
    """How long, on what."""

    minutes: float = 60.0
    """Minutes in all."""
    workers: int = 2
    """Worker processes."""
    every: float = 5.0
    """Seconds between two looks."""
    only: tuple[str, ...] = tuple(ENDLESS)
    """Stages to measure."""


def main(soak: Soak) -> None:
    """Prints a line for each stage: memory after the warm-up and at the end, and its growth by a straight line."""
    raise_on_signals()  # so that SIGTERM ends the endless stage, too
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        for stage in ("collect", "vae", "mdnrnn"):
            subprocess.run(command(stage, run, soak, ""), check=True, stdout=subprocess.DEVNULL)
        print(f"{'stage':<12}{'minutes':>8}{'parent MB':>16}{'workers MB':>16}{'growth MB/hour':>18}", flush=True)
        for stage in soak.only:
            report(stage, measure(stage, run, soak))


def command(stage: str, run: Path, soak: Soak, options: str) -> list[str]:
    """A stage's command line; the endless ones that would change options of what is there go elsewhere."""
    where = ["--run", str(run), "--preset", "smoke", "--workers", str(soak.workers)]
    return [sys.executable, "-m", f"stages.{stage}", *where, *options.split()]


def measure(stage: str, run: Path, soak: Soak) -> np.ndarray:
    """Looks at a stage for its share of the time: [looks, 3] of seconds, MB of the parent, MB of its workers."""
    copy = run.with_name(f"endless-{stage}")
    if stage != "collect":
        shutil.copytree(run, copy)
    redo = " --restart" if stage in ("vae", "mdnrnn") else ""
    said = copy.with_suffix(".log")
    with said.open("w") as file:
        process = subprocess.Popen(command(stage, copy, soak, ENDLESS[stage] + redo), stdout=file, stderr=file)
    looks, began = [], time.monotonic()
    seconds = soak.minutes * 60 / len(soak.only)
    try:
        while (now := time.monotonic() - began) < seconds and process.poll() is None:
            looks.append((now, resident([process.pid]), resident(children(process.pid))))
            time.sleep(soak.every)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
    if process.returncode != EXIT_CODE:
        raise RuntimeError(f"stage {stage} ended by itself with exit code {process.returncode}:\n{said.read_text()}")
    shutil.rmtree(copy)
    return np.array(looks)


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def resident(pids: list[int], kinds: tuple[str, ...] = ("Pss_Anon:", "Pss_Shmem:")) -> float:
    """Resident memory of processes in MB, shared pages shared out among them; mapped files with `kinds` ("Pss:",)."""
    total = 0
    for pid in pids:
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                total += int(line.split()[1]) if line.startswith(kinds) else 0
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total / 1024


def report(stage: str, looks: np.ndarray) -> None:
    """One line of the table."""
    counted = looks[looks[:, 0] >= WARM_UP * looks[-1, 0]]
    third = max(1, len(counted) // 3)
    (first, workers_first), (last, workers_last) = counted[:third, 1:].mean(0), counted[-third:, 1:].mean(0)
    slope = 3600 * np.polyfit(counted[:, 0], counted[:, 1:].sum(1), 1)[0] if len(counted) > 1 else 0.0
    parent, workers = f"{first:.0f} to {last:.0f}", f"{workers_first:.0f} to {workers_last:.0f}"
    print(f"{stage:<12}{looks[-1, 0] / 60:>8.1f}{parent:>16}{workers:>16}{slope:>18.1f}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Soak, description=__doc__))
