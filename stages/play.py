"""Stage play: drive the dream in a browser, or the real environment by keyboard. Makes RUN/play/, a static page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from wm.config.bounds import bounded
from wm.config.seeds import EVALUATE_SEEDS
from wm.run.command_line import parse, run_stage
from wm.run.folder import Run
from wm.show.keyboard import drive_by_keyboard
from wm.show.server import LocalServer
from wm.show.site import add_runtime, build_site


@dataclass(frozen=True)
class PlayArgs:
    """Options of stage play: what to drive, and where the page is served."""

    RENAMED: ClassVar[dict[str, str]] = {"track": "episode"}

    world: Literal["dream", "real"] = "dream"
    """dream: drive the dream in a browser, on a page that any web server can serve. real: drive the real environment in
    a window, by keyboard, beside V's reconstruction."""
    controller: str = "controller"
    """Controller that can drive on the page. controller: evolved on real rollouts. dream: evolved in the dream.
    dream-M-C: evolved in the dream of this kind of M, of this kind of C."""
    port: int = bounded(8000, 0, 65_535)
    """Port of the local web server, reachable from this machine only. 0: any free port."""
    serve: bool = True
    """Serve the page until Ctrl-C. --no-serve: only write it."""
    episode: int = bounded(EVALUATE_SEEDS.start, 0, 2**31 - 1)
    """Episode to drive: the seed of the real track. Default: the first track of the evaluation."""
    car: Literal["stock", "fast"] = "stock"
    """Rendering of the real track that V sees. stock: Gymnasium's. fast: ours."""
    source: Path | None = None
    """Run folder of V, M and C. Default: the run folder that the page is written to."""


def main(argv: list[str]) -> None:
    """Writes the page and serves it until Ctrl-C, or opens a window with the real track."""
    args, config = parse(lambda preset: PlayArgs(), "Drive the dream, or the real track.", argv)
    run = Run(config.source or args.run)
    if config.world == "real":
        drive_by_keyboard(run, config.episode, config.car, config.controller)
        return
    target = Run(args.run)
    target.sweep()
    folder = target.play
    size = build_site(run, folder, config.controller)
    add_runtime(folder / "runtime")
    print(f"{folder}: {size / 1e6:.1f} MB of graphs; any web server can serve this folder.")
    if config.serve:
        serve(folder, config.port)


def serve(folder: Path, port: int) -> None:
    """Serves the page until it is interrupted."""
    with LocalServer(folder, port) as server:
        print(f"Drive at {server.url}  (Ctrl-C to stop)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    run_stage(main)
