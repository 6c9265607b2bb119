"""Which tracks a generation of stage controller meets."""

from itertools import pairwise

from stages.controller import met_tracks
from wm.config import ControllerConfig


def test_every_generation_meets_new_tracks() -> None:
    assert [met_tracks(ControllerConfig(tracks=3), g) for g in (1, 2, 3)] == [range(3), range(3, 6), range(6, 9)]


def test_rollouts_double_up_to_the_most() -> None:
    config = ControllerConfig(tracks=5, double_every=2)
    met = [met_tracks(config, generation) for generation in range(1, 11)]
    assert [len(tracks) for tracks in met] == [1, 1, 2, 2, 4, 4, 5, 5, 5, 5]
    assert met[0].start == 0
    assert all(before.stop == after.start for before, after in pairwise(met))
    assert len(met_tracks(ControllerConfig(tracks=16, double_every=1), 1800)) == 16
