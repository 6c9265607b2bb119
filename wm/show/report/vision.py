"""The report's section on V."""

from __future__ import annotations

from collections.abc import Sequence

from wm.run.metrics import best_validation
from wm.show.report.blocks import Plot, Section, add_lines, add_picture, began, losses
from wm.show.report.reader import RunReader
from wm.show.svg import Plotter
from wm.vision.kinds import ConvKind, find_kind
from wm.vision.vae import DEAD_NATS


def vision(plotter: Plotter, readers: Sequence[RunReader]) -> Section:
    """V: losses, reconstructions, traversals, KL of each dimension."""
    main = readers[0]
    # Manifests do not name the kind unless it is another one than the first.
    section = Section("vision", f"V, {find_kind(main.config('vae').get('vision', ConvKind.name)).title}")
    if not began(section, readers, "vae", main.run.vae):
        return section
    best = best_validation(main.metrics("vae"))
    if best and {"val_error", "val_kl"} <= best.keys():
        section.headline = f"Squared error {best['val_error']:.1f} per image, KL {best['val_kl']:.1f} nats"
    if best and "val_dead" in best:
        section.notes.append(
            f"The best validation is at update {best['step']:,}; {best['val_dead']:.0f} dimensions are dead "
            f"(a mean KL below {DEAD_NATS} nats: no information about the frame)."
        )
    shown = [("error", "squared error per image", True), ("kl", "KL, nats per image", False)]
    if not {"error", "kl"} & {name for one in readers for row in one.metrics("vae") for name in row}:
        shown = [("loss", "loss", False)]
    for name, label, log in shown:
        title = f"V: {label}"
        add_lines(section, plotter, title, "update", label, losses(readers, "vae", name), log=log)
    kl = [best[key] for key in sorted(key for key in best if key.startswith("val_kl_"))] if best else []
    if kl:
        svg = plotter.bars("KL of each latent dimension", "latent dimension", "mean KL, nats", kl)
        section.blocks.append(Plot("KL of each dimension", svg, "Validation frames, at the best update."))
    add_picture(
        section,
        main.run.plots / "reconstructions.png",
        "Reconstructions",
        "Validation frames above V's reconstructions, with the squared error of each",
        "Above: validation frames; below: V's reconstructions.",
    )
    add_picture(
        section,
        main.run.plots / "traversals.png",
        "Traversals",
        "Rows of decoded frames: in each row one latent dimension goes from -3 to 3",
        "In each row one latent dimension changes; the others stay as in one frame.",
    )
    return section
