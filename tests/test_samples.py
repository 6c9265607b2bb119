"""A run folder that was begun at commit de0f8cc is finished by this code, to what that commit's own code came to."""

import hashlib
import tarfile
from pathlib import Path

import numpy as np
import pytest

from stages import controller, dream, memory
from tests.test_golden import processor, recorded
from wm.controller.file import load_controller
from wm.memory.mdnrnn import load_mdnrnn

SAMPLE = Path(__file__).parent / "samples" / "run-de0f8cc.tar.xz"
"""Preset smoke with few and short episodes, z 8 and h 16: M after 20 updates, controller and dream after a generation.

V's weights are a short pattern, so that they pack well. finished.npz: the last means after two generations each, and M
after 40 updates.
"""


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    with tarfile.open(SAMPLE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "run"


def test_it_is_finished_as_it_would_have_been(begun: Path) -> None:
    common = ["--run", str(begun), "--preset", "smoke", "--workers", "0", "--threads", "1"]
    vae = hashlib.sha256((begun / "vae.pt").read_bytes()).hexdigest()
    for stage, options in (
        (controller, ["--generations", "2", "--max-steps", "40"]),
        (dream, ["--generations", "2", "--max-steps", "40", "--start-after", "20"]),
        (memory, ["--updates", "40", "--hidden", "16"]),  # last: the others were made from M as it is
    ):
        stage.main([*common, *options])
    model, _ = load_mdnrnn(begun / "mdnrnn.pt")
    found = {
        "controller": load_controller(begun / "controller.npz")[0],
        "dream": load_controller(begun / "dream-latest.npz")[0],
        "mdnrnn": np.concatenate([value.numpy().ravel() for value in model.state_dict().values()]),
    }
    assert hashlib.sha256((begun / "vae.pt").read_bytes()).hexdigest() == vae
    with np.load(begun / "finished.npz", allow_pickle=False) as finished:
        for name, value in found.items():
            if str(recorded()["processor"]) == processor():
                np.testing.assert_array_equal(value, finished[name], err_msg=name)
            else:
                assert value.shape == finished[name].shape, name
                assert np.isfinite(value).all(), name
