"""The report's first section: what was run, with which options, and what it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wm.run.remedies import target
from wm.show.report.blocks import Section, Table, date, duration
from wm.show.report.reader import RunReader
from wm.show.report.score import describe_score


def overview(readers: Sequence[RunReader]) -> Section:
    """The stages with their options, versions, time and memory."""
    main = readers[0]
    section = Section("run", "What was run")
    rows = []
    # With rounds, the other stages ran in the folders of the rounds.
    stages = list(main.stages) if "iterate" in main.stages else stages_of(main)
    for stage in stages:
        record = main.stages.get(stage)
        if record is None:
            rows.append([stage, f"not yet: `make {target(stage)}`", *[""] * 6])
            continue
        rows.append(
            [
                stage,
                state(main, stage, record),
                duration(record["seconds"]),
                f"{record['peak_memory_mb']:,.0f} MB",
                str(record["cores"]),
                str(record["seed"]),
                record["commit"],
                date(record["started"]),
            ]
        )
    header = ["stage", "state", "wall time", "peak memory", "cores", "seed", "commit", "started (UTC)"]
    section.blocks.append(Table("Stages: time and memory", header, rows))
    total = sum(record["seconds"] for record in main.stages.values())
    section.notes.append(f"All stages together took {duration(total)}.")
    if len(readers) > 1:
        rows = []
        for one in readers:
            found = one.read_score(one.scored)
            seconds = sum(record["seconds"] for record in one.stages.values())
            rows.append([one.name, describe_score(found) if found else "no score yet", duration(seconds)])
        section.blocks.append(Table("Runs compared", ["run", "score", "time of all stages"], rows))
    for stage in stages:
        if stage in main.stages:
            options = [[name, str(value)] for name, value in main.stages[stage]["config"].items()]
            section.blocks.append(Table(f"Options of {stage}", ["option", "value"], options, folded=True))
    packages: dict[str, list[str]] = {}
    for record in main.stages.values():
        for package, version in record["versions"].items():
            if version not in packages.setdefault(package, []):
                packages[package].append(version)
    versions = [[package, ", ".join(found)] for package, found in packages.items()]
    section.blocks.append(Table("Versions", ["package", "version"], versions, folded=True))
    return section


def stages_of(main: RunReader) -> list[str]:
    """The stages of a run in their order, also those that have not run yet."""
    return ["collect", "vae", *main.memories, "controller", *main.dreams, "evaluate", "probe"]


def state(main: RunReader, stage: str, record: Mapping[str, Any]) -> str:
    """The state of a stage; an interrupted one has an end time, too."""
    total = next((record["config"][name] for name in ("updates", "generations") if name in record["config"]), 0)
    rows = main.metrics(stage)
    if rows and rows[-1]["step"] < total:
        return f"at {rows[-1]['step']:,} of {total:,}"
    return "done" if record["ended"] else "running or interrupted"
