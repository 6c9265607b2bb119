"""Which tracks a generation meets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wm.controller.revisit import HARDEST, WINDOW, track_group


def groups(history: list[float], seed: int, revisit: float) -> list[int]:
    return [track_group(history[:g], seed, revisit) for g in range(len(history) + 1)]


def test_without_revisits_every_generation_meets_new_tracks() -> None:
    assert groups([3.0, 1.0, 2.0, 5.0], 7, 0.0) == [0, 1, 2, 3, 4]


@given(st.lists(st.floats(-100, 950), max_size=70), st.integers(0, 99), st.floats(0, 1))
def test_only_hard_ones_are_met_again_and_new_ones_in_order(history: list[float], seed: int, revisit: float) -> None:
    met = groups(history, seed, revisit)
    for generation, group in enumerate(met):
        before = met[:generation]
        if group not in before:
            assert group == max(before, default=-1) + 1
            continue
        since = max(0, generation - WINDOW)
        latest = dict(zip(before[since:], history[since:generation], strict=True))
        harder = sum(fitness < latest[group] for fitness in latest.values())
        assert harder < max(1, len(latest) // HARDEST)


def test_about_the_wanted_share_is_met_again() -> None:
    history = [float((g * 37) % 100) for g in range(300)]
    met = groups(history, 0, 0.5)
    assert 120 < len(met) - len(set(met)) < 180
