"""Stage probe: fits a linear map from C's features to the true state, on fresh tracks. Makes RUN/probe.json."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wm.config.vmc import ProbeConfig
from wm.driving.loading import load_acting
from wm.driving.probe import HEADER, PROBE, Record, describe, make_prober, probe, rows, truth_of
from wm.driving.workers import make_workers
from wm.run.checksums import file_hash
from wm.run.command_line import parse, run_stage, stage_config
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.json_files import read_json, write_json
from wm.run.progress import Progress
from wm.run.provenance import commit, now, versions
from wm.show.plots.curves import plot_probe


@dataclass(frozen=True)
class ProbeArgs(ProbeConfig):
    """Options of stage probe: the preset's sizes and the controller."""

    driver: str = "controller"
    """Controller that drives, by the name of its file. controller: evolved on real rollouts. dream: in the dream."""
    source: Path | None = None
    """Run folder of V, M and C. Default: the run folder that the probe is written to."""


def main(argv: list[str]) -> None:
    """Drives every track once, fits and tests; an existing probe with the same models and options is only printed."""
    args, given = parse(
        lambda preset: ProbeArgs(**vars(preset.probe)), "Fit a linear map from C's features to the true state.", argv
    )
    config = stage_config(given, ProbeConfig)
    if config.episodes < 2 or config.max_steps <= config.start_after:
        raise UserError("--episodes must be at least 2 (one to fit, one to test), --max-steps above --start-after.")
    source, run = Run(given.source or args.run), Run(args.run)
    models, theta = load_acting(source, given.driver)
    truth, artifact = truth_of(models.task), source.folder / f"{given.driver}.npz"
    what: dict[str, Any] = {
        "env_id": models.task.id(train=True),
        "driver": given.driver,
        "config": asdict(config),
        "seed": args.seed,
        "made_from": {**models.made_from, artifact.name: file_hash(artifact)},
    }
    if not args.restart and run.probe.exists():
        found = read_json(run.probe, **PROBE)
        # Options of earlier versions count as well.
        then, wanted = ({**each, "config": ProbeConfig.REMOVED | each["config"]} for each in (found, what))
        if not (changed := list(differing(then, wanted))):
            run.sweep()  # an earlier call may have been killed after writing it
            print_result(found)
            print(f"{run.probe} is finished (--restart to redo it).")
            return
        print(f"{run.probe} was made with another {', '.join(changed)}: it is made again.")
    with run.stage("probe", config, args.seed, restart=True, env=args.env) as begin:
        if args.restart:  # so that the command without --restart resumes
            run.probe.unlink(missing_ok=True)
        begin()
        records: dict[int, Record] = {}
        with (
            make_workers(args.workers, make_prober, models, theta, config.max_steps, args.seed) as workers,
            Progress("probe", config.episodes, unit="track") as progress,
        ):
            for i, record in workers.run(range(config.episodes)):
                records[i] = record
                progress.update()
        found = {**what, **probe([records[i] for i in range(config.episodes)], models.z, truth, config)}
        found |= {"versions": versions(), "commit": commit(), "time": now()}
        plot_probe(run.plots / "probe.png", found["targets"])
        write_json(run.probe, found)  # last, since it marks the stage as finished
        print_result(found)
        print(f"{run.probe} and {run.plots / 'probe.png'} are written.")


def differing(found: dict[str, Any], what: dict[str, Any]) -> Iterator[str]:
    """Yields the names of the settings and input files in which an existing probe differs from `what`."""
    for name, value in what.items():
        if isinstance(value, dict):
            yield from differing(found.get(name, {}), value)
        elif found.get(name) != value:
            yield name


def print_result(found: dict[str, Any]) -> None:
    """Prints the table."""
    table = [list(HEADER), *rows(found)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        name, unit, *numbers = row
        cells = [name.ljust(widths[0]), unit.ljust(widths[1])]
        print("  ".join([*cells, *(n.rjust(w) for n, w in zip(numbers, widths[2:], strict=True))]))
    print(describe(found))


if __name__ == "__main__":
    run_stage(main)
