"""The names of a pair of M and C, and the commands that messages name for them."""

from pathlib import Path

import pytest

from wm.controller.file import load_controller
from wm.run.errors import UserError
from wm.run.pair import Pair, drawn_by, score_name, stage_of, starts_name
from wm.run.remedies import STAGES, command, rebuilt, target


@pytest.mark.parametrize(
    ("pair", "stage", "starts"),
    [
        (Pair(), "dream", "starts.npz"),
        (Pair(controller="hidden"), "dream-mdnrnn-hidden", "starts.npz"),
        (Pair("drift"), "dream-drift-linear", "starts-drift.npz"),
    ],
)
def test_a_pair_and_its_names_belong_together(pair: Pair, stage: str, starts: str) -> None:
    assert (pair.stage, pair.latest, pair.starts) == (stage, f"{stage}-latest", starts)
    assert starts_name(pair.memory) == starts
    assert drawn_by(starts) == Pair(pair.memory).stage
    assert Pair.of(pair.stage) == Pair.of(pair.latest) == pair
    assert stage_of(pair.stage) == stage_of(pair.latest) == stage
    assert score_name(stage) == f"score-{stage}.json"


@pytest.mark.parametrize(
    "name",
    ["", "best", "controller-latest", "dream-", "dream-drift", "dream-mdnrnn-linear", "dream-a-b-c", "dream--linear"],
)
def test_other_names_are_of_no_stage(name: str) -> None:
    assert Pair.of(name) is stage_of(name) is None


def test_every_stage_and_controller_has_its_command() -> None:
    assert [target(stage) for stage in STAGES] == list(STAGES)
    assert target("drift") == "memory M=drift"
    assert target("dream-latest") == "dream"
    assert target("dream-drift-linear") == target("dream-drift-linear-latest") == "dream M=drift C=linear"
    assert command("drift", "ARGS=--restart") == "`make memory M=drift ARGS=--restart`"
    assert "`make dream M=drift C=linear`" in rebuilt("dream-drift-linear")
    assert "make" not in rebuilt("best")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("dream-drift-linear", "`make dream M=drift C=linear`"),
        ("dream-drift-linear-latest", "`make dream M=drift C=linear`"),
        ("dream-latest", "`make dream`"),
        ("controller", "`make controller`"),
        ("best", "give another file"),
    ],
)
def test_a_file_of_a_controller_names_the_command_that_makes_it(tmp_path: Path, name: str, remedy: str) -> None:
    path = tmp_path / f"{name}.npz"
    with pytest.raises(UserError, match=f"is missing: .*{remedy}"):
        load_controller(path)
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"is damaged or not a controller .*{remedy}"):
        load_controller(path)
