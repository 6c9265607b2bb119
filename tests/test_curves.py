"""The stage curves on evolutions that are pretended: which stage evolves, and which one's lines make the curve."""

from pathlib import Path
from typing import Any

import pytest

import stages.curves
from wm.run.errors import UserError
from wm.run.folder import Run
from wm.run.json_files import append_line, read_lines, write_json

RECORD = {"config": {"horizon": 7}, "seed": 1, "versions": {}, "commit": "c", "cores": 1, "started": "s", "ended": "e"}


@pytest.mark.parametrize(
    ("of", "options", "made", "kinds"),
    [
        ("controller", "--hidden-units 3", "controller", []),
        ("dream", "--horizon 7", "dream", []),
        ("dream", "--controller hidden", "dream-mdnrnn-hidden", []),
        ("dream", "--memory=drift", "dream-drift-linear", []),
        ("dream-drift-wave", "", "dream-drift-wave", ["--memory", "drift", "--controller", "wave"]),
        (
            "dream-drift-wave",
            "--controller=linear",
            "dream-drift-linear",
            ["--memory", "drift", "--controller", "wave"],
        ),
    ],
)
def test_a_curve_has_the_lines_of_the_stage_that_evolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str, options: str, made: str, kinds: list[str]
) -> None:
    run, calls = Run(tmp_path / "run"), list[tuple[str, list[str]]]()

    def pretended(stage: str, given: dict[str, Any], arguments: list[str]) -> None:
        calls.append((stage, arguments))
        variant = Run(given["run"])
        line = {"step": 2, "select": 5.0, "select_std": 1.0, "select_steps": 3, "env_steps": 4, "seconds": 1.0}
        append_line(variant.metrics, {"stage": made, **line, "mean": 1.0, "best": 2.0, "worst": 0.0, "dream": 6.0})
        record = {**RECORD, "seconds": 1.0, "peak_memory_mb": 1.0}
        write_json(variant.manifest, {"format": 1, "stages": {made: record}})

    monkeypatch.setattr(stages.curves, "call_stage", pretended)
    monkeypatch.setattr(stages.curves, "plot_variants", lambda path, _: path.parent.mkdir() or path.touch())
    stages.curves.main(["--run", str(run.folder), "--stage", of, "--name", "a", "--seeds", "1", f"--options={options}"])
    assert calls == [("controller" if of == "controller" else "dream", [*kinds, *options.split()])]
    (row,) = read_lines(run.curves)
    assert (row["stage"], row["config"], row["curve"][0]["select"]) == (of, {"horizon": 7}, 5.0)
    assert [path.name for path in run.plots.iterdir()] == ["curves.png" if of == "controller" else f"curves-{of}.png"]


@pytest.mark.parametrize("stage", ["vae", "dream-latest", "dream-odd", ""])
def test_a_stage_that_evolves_nothing_is_refused(tmp_path: Path, stage: str) -> None:
    with pytest.raises(UserError, match=f"--stage {stage} evolves no controller"):
        stages.curves.main(["--run", str(tmp_path / "run"), "--stage", stage, "--name", "a"])
