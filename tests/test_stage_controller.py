"""Stage controller: which tracks a generation meets, and what it needs when it is finished or refuses."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from stages.controller import main, tracks_of_generation
from tests.toy_dream import make_toy_run
from wm.config.vmc import ControllerConfig
from wm.controller.file import save_controller
from wm.driving.loading import load_models
from wm.run.errors import UserError
from wm.run.json_files import append_line


def test_every_generation_meets_new_tracks() -> None:
    config = ControllerConfig(tracks=3)
    assert [tracks_of_generation(config, g) for g in (1, 2, 3)] == [range(3), range(3, 6), range(6, 9)]


def test_rollouts_double_up_to_the_most() -> None:
    config = ControllerConfig(tracks=5, double_every=2)
    met = [tracks_of_generation(config, generation) for generation in range(1, 11)]
    assert [len(tracks) for tracks in met] == [1, 1, 2, 2, 4, 4, 5, 5, 5, 5]
    assert met[0].start == 0
    assert all(before.stop == after.start for before, after in pairwise(met))
    assert len(tracks_of_generation(ControllerConfig(tracks=16, double_every=1), 1800)) == 16


def test_a_finished_one_needs_no_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_toy_run(tmp_path / "toy")
    meta = {"made_from": load_models(run, "float32").made_from, "generations": 3, "env_steps": 100}
    save_controller(run.controller, np.zeros(39), meta)
    row = {"best": 1.0, "mean": 1.0, "worst": 1.0, "sigma": 0.1, "seconds": 1.0, "select": 5.0, "select_std": 1.0}
    append_line(run.metrics, {"stage": "controller", "step": 3, **row, "env_steps": 100.0, "select_steps": 9.0})
    run.latents.unlink()
    where = ["--run", str(run.folder), "--preset", "smoke", "--workers", "0", "--centre"]
    main([*where, "--generations", "3"])
    assert capsys.readouterr().out.startswith(f"{run.controller} is finished (--generations N")
    assert run.read_manifest()["stages"] == {}
    for more in (["--generations", "4"], ["--generations", "3", "--restart"]):
        before = run.controller.read_bytes()
        with pytest.raises(UserError, match=r"controller\.npz cannot be resumed|latents\.h5 is missing"):
            main([*where, *more])
        assert run.controller.read_bytes() == before


def test_where_to_begin_is_said_once(tmp_path: Path) -> None:
    for options, sentence in (
        (["--start", "a.npz", "--carry", "b"], "--start and --carry both set the first mean"),
        (["--carry", "b", "--hidden-units", "3"], "--carry fits a linear controller: leave --controller and --hidden"),
        (["--carry", "b", "--controller", "hidden"], "--carry fits a linear controller: leave --controller and --hid"),
    ):
        with pytest.raises(UserError, match=sentence):
            main(["--run", str(tmp_path / "run"), "--preset", "smoke", *options])
    assert list(tmp_path.iterdir()) == []
