"""Stage report: one self-contained page on all results of a run. Makes RUN/report.html."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import gymnasium as gym
import numpy as np

from wm.run.command_line import parse, run_stage
from wm.run.errors import UserError
from wm.run.files import atomic
from wm.run.folder import Run
from wm.run.progress import Progress
from wm.show.report.blocks import Video, data_uri
from wm.show.report.page import render
from wm.show.report.reader import RunReader, open_run
from wm.show.videos.canvas import Image, camera_only, grid
from wm.show.videos.video import write_video
from wm.show.videos.views import WorldModel, moments

CRF, EVERY = 30, 2
"""H.264 quality (0 is best), and every how many frames one is stored: about 0.3 MB per video."""

POSTER_STEP = 120
"""Step of a video's poster frame; at first some environments still show how an episode begins."""


@dataclass(frozen=True)
class ReportArgs:
    """Options of stage report: the content of the page."""

    compare: tuple[Path, ...] = ()
    """Further run folders whose curves are drawn beside this run's."""
    videos: bool = True
    """Include videos of the worst and the best track of the score. Filming them takes a minute or two."""
    source: Path | None = None
    """Run folder to report on. Default: the run folder that the page is written to."""


def main(argv: list[str]) -> None:
    """Writes the page; a missing section names the command that makes it."""
    args, config = parse(lambda preset: ReportArgs(), "Write a report of a run.", argv)
    run, source = Run(args.run), Run(config.source or args.run)
    run.sweep()
    folders = list(dict.fromkeys([source.folder, *config.compare]))
    names = Counter(folder.name for folder in folders)
    readers = [open_run(Run(folder), folder.name if names[folder.name] == 1 else str(folder)) for folder in folders]
    readers[0] = replace(readers[0], beside=run.folder)  # scored and probed here, though the models lie elsewhere
    videos: list[Video] = []
    if config.videos:
        try:
            videos = film(readers[0])
        except UserError as error:  # the rest of the page does not need the videos
            print(f"warning: the report has no videos: {error}", file=sys.stderr)
    path = run.folder / "report.html"
    page = render(readers[0], readers[1:], videos)
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")  # a folder's name may be any bytes
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB.")


def film(reader: RunReader) -> list[Video]:
    """Films the worst and the best track of the score again; no videos without a score or a controller.

    Raises:
        UserError: The models do not fit together.
    """
    score = reader.read_score(reader.scored)
    if score is None or not (reader.run.folder / f"{reader.scored}.npz").exists():
        return []
    world = WorldModel(reader.run, reader.scored)
    ordered = sorted(zip(score["returns"], score["seeds"], strict=True))
    env = gym.make(score["env_id"], render_mode="rgb_array", disable_env_checker=True)
    return [
        film_track(env, world, track, score["max_steps"], f"The {which} track, {track}", ret)
        for which, (ret, track) in {"worst": ordered[0], "best": ordered[-1]}.items()
    ]


def film_track(
    env: gym.Env[Any, Any], world: WorldModel, track: int, max_steps: int, title: str, scored: float
) -> Video:
    """Films one track as a small video; its poster is one of its frames."""
    poster: Image = np.zeros((2, 2, 3), np.uint8)
    reading = ""

    def frames() -> Iterator[Image]:
        nonlocal poster, reading
        with Progress("film", max_steps, unit="step") as progress:
            for number, moment in enumerate(moments("real", env, world, track, max_steps, temperature=1.0)):
                reading = moment.readings[0]
                frame = grid({f"track {track}": camera_only(moment)})
                if number < POSTER_STEP:
                    poster = frame
                yield frame
                progress.update()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "track.mp4"
        steps = write_video(path, frames(), world.task.fps, crf=CRF, every=EVERY)
        data = data_uri(path.read_bytes(), "video/mp4")
    _, still = cv2.imencode(".jpg", cv2.cvtColor(poster, cv2.COLOR_RGB2BGR))
    return Video(
        title,
        data,
        data_uri(still.tobytes(), "image/jpeg"),
        f"Video of the controller driving track {track}",
        f"Scored {scored:.0f}. Filmed again: {reading} in {steps} steps.",
    )


if __name__ == "__main__":
    run_stage(main)
