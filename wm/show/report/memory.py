"""The report's section on M."""

from __future__ import annotations

from collections.abc import Sequence

from wm.driving.probe import HEADER, PROBE, describe, rows
from wm.memory.kinds import find_kind
from wm.run.checksums import file_hash
from wm.run.json_files import read_json
from wm.run.metrics import best_validation
from wm.run.pair import Pair
from wm.run.remedies import target
from wm.show.report.blocks import SETTLE, Section, Table, add_lines, add_picture, began, losses
from wm.show.report.reader import RunReader
from wm.show.svg import Plotter, number


def memory(plotter: Plotter, readers: Sequence[RunReader], name: str, at: int) -> Section:
    """M of a kind: losses against baselines, predictions, calibration.

    Args:
        plotter: Draws the plots.
        readers: The runs, the report's own first.
        name: The kind's name, which is that of its stage.
        at: Its place among the run's kinds of M.
    """
    main, kind = readers[0], find_kind(name)
    section = Section(f"memory-{name}" if at else "memory", f"M, {kind.title}")
    if not began(section, readers, name, main.run.memory(name), f"make {target(name)}"):
        return section
    best, charts = best_validation(main.metrics(name)), kind.charts(main.config(name))
    rows = []
    for chart in charts:
        val = f"val_{chart.name}"
        baselines = {what: f"val_{of}" for of, what in chart.baselines.items() if best and f"val_{of}" in best}
        if best and val in best:
            section.headline = section.headline or f"{best[val]:.3f} {chart.unit}"
            rows += [
                [f"{chart.title}, {chart.unit}", f"{best[val]:.4g}", f"{best[of]:.4g}", what]
                for what, of in baselines.items()
            ]
    if best and rows:
        caption = f"M against baselines, on validation clips at update {best['step']:,}; less is better"
        section.blocks.append(Table(caption, ["loss", "M", "baseline", "which baseline"], rows))
    settle = SETTLE if len(readers) == 1 else 0.0  # a comparison shows validation only, which begins settled
    for chart in charts:
        levels = []
        if best and len(readers) == 1:
            levels = [(what, best[f"val_{of}"]) for of, what in chart.baselines.items() if f"val_{of}" in best]
        lines = losses(readers, name, chart.name)
        add_lines(section, plotter, f"M: {chart.title}", "update", chart.unit, lines, levels=levels, settle=settle)
    if name == latest(main, main.memories):
        add_picture(
            section,
            main.run.plots / "predictions.png",
            "Predictions",
            "One clip four times: real frames, V's reconstructions, M's one-step predictions, M's open-loop dream",
        )
    add_probe(section, main, name)
    dreamt = latest(main, main.dreams)
    if (pair := Pair.of(dreamt)) and name == (pair.memory if pair != Pair() else main.memories[0]):
        add_calibration(section, main, f"make {target(dreamt)}")
    return section


def latest(main: RunReader, stages: Sequence[str]) -> str:
    """The stage that started last, which has written the plots that several stages write; the first if none has."""
    return max(stages, key=lambda stage: main.stages.get(stage, {}).get("started", ""))


def add_calibration(section: Section, main: RunReader, made: str) -> None:
    """Adds the calibration of M's heads, which `made` measures."""
    calibration = main.metrics("calibration")
    if calibration:
        rows = [
            [name, number(value)] for name, value in calibration[-1].items() if name not in ("stage", "step", "time")
        ]
        section.blocks.append(Table("Calibration of M's heads", ["number", "value"], rows, folded=True))
    else:
        section.notes.append(f"The calibration of M's heads is not measured yet: `{made}`.")
    add_picture(
        section,
        main.run.plots / "calibration.png",
        "Calibration",
        "Reliability diagrams of M's heads, and returns of dreamed clips against the real ones",
    )


def add_probe(section: Section, main: RunReader, name: str) -> None:
    """Adds the table of the probe, if it is of M of this kind."""
    path = main.find(main.run.probe.name)
    if not path.exists():
        if name == main.memories[0]:
            section.notes.append("What C reads is not probed yet: `make probe`.")
        return
    found = read_json(path, **PROBE)
    probed = [kind for kind in main.memories if main.run.memory(kind).name in found["made_from"]] or main.memories
    if name != probed[0]:
        return
    caption = "Ridge regression on z, h and both: R², and root mean square error in the unit"
    section.blocks.append(Table(caption, HEADER, rows(found)))
    section.notes.append(f"The probe: {describe(found)}")
    paths = {name: main.run.folder / name for name in found["made_from"]}
    if any(path.exists() and found["made_from"][name] != file_hash(path) for name, path in paths.items()):
        section.notes.append("The probe belongs to other models than the current ones: `make probe` probes these.")
