"""The report's section on M."""

from __future__ import annotations

from collections.abc import Sequence

from wm.config.vmc import MDNRNNConfig
from wm.driving.probe import HEADER, PROBE, describe, rows
from wm.run.checksums import file_hash
from wm.run.json_files import read_json
from wm.run.metrics import best_validation
from wm.show.report.blocks import SETTLE, Section, Table, add_lines, add_picture, began, losses
from wm.show.report.reader import RunReader
from wm.show.svg import Plotter, number


def memory(plotter: Plotter, readers: Sequence[RunReader]) -> Section:
    """M: losses against baselines, predictions, calibration."""
    main = readers[0]
    section = Section("memory", "M, the MDN-RNN")
    if not began(section, readers, "mdnrnn", main.run.mdnrnn):
        return section
    best = best_validation(main.metrics("mdnrnn"))
    tiles = main.stages.get("mdnrnn", {}).get("config", {}).get("reward", MDNRNNConfig.reward) == "tile"
    heads = {
        "reward": ("reward head", "nats per step" if tiles else "(reward per step)²"),
        "terminated": ("termination head", "nats per step"),
        "outlook": ("outlook head", "(tiles per step)²" if tiles else "(reward per step)²"),
    }
    if best:
        section.headline = f"{best['val_nll']:.3f} nats per latent dimension"
        baselines = {
            "marginal": "one fixed Gaussian",
            "one": "the one Gaussian with the mixture's mean and variance",
            "unit": "N(0, 1)",
        }
        rows = [
            ["next z, nats per dimension", f"{best['val_nll']:.3f}", f"{best[f'val_nll_{name}']:.3f}", which]
            for name, which in baselines.items()
        ]
        rows += [
            [f"{head}, {unit}", f"{best[f'val_{name}']:.5f}", f"{best[f'val_{name}_constant']:.5f}", "a constant"]
            for name, (head, unit) in heads.items()
            if {f"val_{name}", f"val_{name}_constant"} <= best.keys()
        ]
        caption = f"M against baselines, on validation clips at update {best['step']:,}; less is better"
        section.blocks.append(Table(caption, ["loss", "M", "baseline", "which baseline"], rows))
    levels = []
    settle = SETTLE if len(readers) == 1 else 0.0  # a comparison shows validation only, which begins settled
    if best and len(readers) == 1:
        levels = [("one fixed Gaussian", best["val_nll_marginal"]), ("N(0, 1)", best["val_nll_unit"])]
    label = "nats per latent dimension"
    lines = losses(readers, "mdnrnn", "nll")
    add_lines(section, plotter, "M: next z", "update", label, lines, levels=levels, settle=settle)
    for name, (head, unit) in heads.items():
        baseline = f"val_{name}_constant"
        levels = [("a constant", best[baseline])] if best and baseline in best and len(readers) == 1 else []
        lines = losses(readers, "mdnrnn", name)
        add_lines(section, plotter, f"M: {head}", "update", unit, lines, levels=levels, settle=settle)
    add_picture(
        section,
        main.run.plots / "predictions.png",
        "Predictions",
        "One clip four times: real frames, V's reconstructions, M's one-step predictions, M's open-loop dream",
    )
    add_probe(section, main)
    calibration = main.metrics("calibration")
    if calibration:
        rows = [
            [name, number(value)] for name, value in calibration[-1].items() if name not in ("stage", "step", "time")
        ]
        section.blocks.append(Table("Calibration of M's heads", ["number", "value"], rows, folded=True))
    else:
        section.notes.append("The calibration of M's heads is not measured yet: `make dream`.")
    add_picture(
        section,
        main.run.plots / "calibration.png",
        "Calibration",
        "Reliability diagrams of M's heads, and returns of dreamed clips against the real ones",
    )
    return section


def add_probe(section: Section, main: RunReader) -> None:
    """Adds the table of the probe."""
    path = main.find(main.run.probe.name)
    if not path.exists():
        section.notes.append("[z; h] is not probed yet: `make probe`.")
        return
    found = read_json(path, **PROBE)
    caption = "Ridge regression on z, h and both: R², and root mean square error in the unit"
    section.blocks.append(Table(caption, HEADER, rows(found)))
    section.notes.append(f"The probe: {describe(found)}")
    paths = {name: main.run.folder / name for name in found["made_from"]}
    if any(path.exists() and found["made_from"][name] != file_hash(path) for name, path in paths.items()):
        section.notes.append("The probe belongs to other models than the current ones: `make probe` probes these.")
