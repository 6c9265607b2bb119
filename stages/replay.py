"""Stage replay: films the controller on real tracks or in the dream. Makes RUN/videos/*.mp4 and *.webp previews."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import gymnasium as gym

from wm.config.bounds import bounded
from wm.config.seeds import EVALUATE_SEEDS
from wm.run.command_line import parse, run_stage
from wm.run.folder import Run
from wm.run.progress import Progress
from wm.show.videos.canvas import Image, Moment, camera_only, featured, grid, side_by_side
from wm.show.videos.video import Preview, write_video
from wm.show.videos.views import View, WorldModel, moments, together


@dataclass(frozen=True)
class ReplayArgs:
    """Options of stage replay: what the video shows."""

    RENAMED: ClassVar[dict[str, str]] = {"track": "episode"}

    view: View = "real"
    """real: the camera, V's input and V's reconstruction. triptych: the camera, V's reconstruction, M's prediction of
    the frame. dream: the controller in the dream. compare: a real episode beside a dream of it, and their
    difference."""
    episode: int = bounded(EVALUATE_SEEDS.start, 0, 2**31 - 1)
    """Episode to film: the seed of the track and of a dream's samples. Default: the first track of the evaluation."""
    grid: int = bounded(1, 1, 36)
    """Number of tracks shown at once in a grid, from `episode` on; up to 36."""
    car: Literal["stock", "fast"] = "stock"
    """Rendering of the real track. stock: Gymnasium's. fast: ours."""
    max_steps: int = bounded(1000, 1, 10**9)
    """Maximum length of an episode or a dream in environment steps."""
    controller: str = "controller"
    """Controller to film. controller: evolved on real rollouts. dream: evolved in the dream. dream-M-C: evolved in the
    dream of this kind of M, of this kind of C."""
    temperature: float = bounded(1.0, 1e-12, 10**6)
    """tau of the dreams. 1: sample M's mixtures as they are. Less: a more certain dream."""
    source: Path | None = None
    """Run folder of V, M and C. Default: the run folder that the video is written to."""


def main(argv: list[str]) -> None:
    """Drives each track once and writes the video and the preview."""
    args, config = parse(lambda preset: ReplayArgs(), "Make a video of the controller driving.", argv)
    run = Run(args.run)
    run.sweep()
    world = WorldModel(Run(config.source or args.run), config.controller)
    env_id = world.task.id(train=config.car == "fast")
    drives = {
        track: moments(
            config.view,
            gym.make(env_id, render_mode="rgb_array", disable_env_checker=True),
            world,
            track,
            config.max_steps,
            config.temperature,
        )
        for track in range(config.episode, config.episode + config.grid)
    }
    latest: dict[str, Moment] = {}

    def frames() -> Iterator[Image]:
        with Progress("replay", config.max_steps, unit="step") as progress:
            for shown in together(drives):
                latest.clear()
                latest.update(shown)
                yield lay_out(config.view, shown)
                progress.update()

    driver = "" if config.controller == "controller" else f"by-{config.controller}-"
    name = f"{driver}{config.view}-{config.car}-{config.episode}" + (f"-grid{config.grid}" if config.grid > 1 else "")
    path, small = run.videos / f"{name}.mp4", run.videos / f"{name}.webp"
    preview = Preview(world.task.fps)
    count = write_video(path, preview.watch(frames()), world.task.fps)
    preview.write(small)
    for label, moment in latest.items():
        print(f"{label}: {' '.join(moment.readings[0].split())}.")
    print(f"{path}: {count} steps; {small}: {small.stat().st_size / 1e6:.1f} MB.")


def lay_out(view: View, shown: Mapping[str, Moment]) -> Image:
    """One video frame: a single track in the layout of its view, several tracks as a grid."""
    if len(shown) == 1:
        (moment,) = shown.values()
        return featured(moment) if view == "real" else side_by_side(moment)
    if view == "real":  # a grid shows the camera only
        shown = {label: camera_only(moment) for label, moment in shown.items()}
    return grid(shown)


if __name__ == "__main__":
    run_stage(main)
