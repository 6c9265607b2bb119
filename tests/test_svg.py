"""The plots of the report: what they show is where it should be, and they are sound XML."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from markupsafe import Markup

from wm.show.svg import BOTTOM, HEIGHT, LEFT, MOST_POINTS, RIGHT, TOP, WIDTH, Line, Plotter, _ticks, number, thinned

HIGH, WIDE = HEIGHT - TOP - BOTTOM, WIDTH - LEFT - RIGHT


def parsed(svg: Markup) -> ElementTree.Element:
    """The plot and its legend, as one element."""
    return ElementTree.fromstring(f"<div>{svg}</div>")


def points(root: ElementTree.Element, style: int) -> list[tuple[float, float]]:
    """The corners of the line of a style, in the plot's units."""
    (found,) = (e.get("d", "") for e in root.findall("./svg/svg/path") if e.get("class") == f"line-{style}")
    return [(float(x), float(y)) for x, y in re.findall(r"([-\d.]+) ([-\d.]+)", found)]


def texts(root: ElementTree.Element, kind: str) -> list[str]:
    return [e.text or "" for e in root.findall(f"./svg/text[@class='{kind}']")]


def test_a_line_goes_through_its_points() -> None:
    root = parsed(Plotter().lines("t", "updates", "nats", [Line("a", [0, 50, 100], [0, 10, 5])]))
    x, y = zip(*points(root, 0), strict=True)
    assert x == pytest.approx((0, WIDE / 2, WIDE), abs=0.1)
    assert y[0] == pytest.approx(HIGH, abs=0.1)  # 0 is the bottom
    assert (HIGH - y[1]) == pytest.approx(2 * (HIGH - y[2]), abs=0.3)
    assert texts(root, "x")[:3] == ["0", "20", "40"]
    assert texts(root, "y")[0] == "0"
    assert {"updates", "nats"} <= set(texts(root, "x"))


def test_ticks_stand_where_their_values_are() -> None:
    root = parsed(Plotter().lines("t", "x", "y", [Line("a", [0, 100], [3, 7])]))
    (left, bottom), (right, top) = points(root, 0)
    marks = [e for e in root.findall("./svg/text") if e.get("class") == "y"]
    for mark in marks:
        value, at = float(mark.text or ""), float(mark.get("y", "")) - TOP - 4.5
        assert at == pytest.approx(bottom + (value - 3) / 4 * (top - bottom), abs=0.2)
    assert len(marks) >= 3
    assert (left, right) == (0, pytest.approx(WIDE, abs=0.1))


def test_a_logarithmic_axis() -> None:
    root = parsed(Plotter().lines("t", "x", "y", [Line("a", [0, 1, 2], [10, 100, 1000])], log=True))
    y = [y for _, y in points(root, 0)]
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.2)
    assert {"10", "100", "1,000"} <= set(texts(root, "y"))
    narrow = parsed(Plotter().lines("t", "x", "y", [Line("a", [0, 1], [12, 18])], log=True))
    assert len(texts(narrow, "y")) >= 3


def test_what_comes_before_a_loss_settles_does_not_flatten_the_rest() -> None:
    line = Line("loss", list(range(101)), [1000.0, *[2.0 - i / 100 for i in range(100)]])
    flat = points(parsed(Plotter().lines("t", "x", "y", [line])), 0)
    seen = points(parsed(Plotter().lines("t", "x", "y", [line], settle=0.05)), 0)
    assert abs(flat[1][1] - flat[-1][1]) < 2
    assert abs(seen[1][1] - seen[-1][1]) > HIGH / 2


def test_areas_spreads_dots_and_levels_are_drawn() -> None:
    line = Line("a", [1, 2], [5, 6], spread=[1, 1], dots=True, low=[0, 1], high=[9, 9])
    root = parsed(Plotter().lines("t", "x", "y", [line], levels=[("base", 7.0)]))
    classes = [e.get("class") for e in root.findall("./svg/svg/*")]
    assert sorted(map(str, classes)) == ["area-0", "dot-0", "dot-0", "line-0", "line-1", "whisker-0", "whisker-0"]
    assert ["".join(item.itertext()).strip() for item in root.iter("li")] == ["a", "base"]


def test_a_plot_says_in_words_what_it_shows() -> None:
    svg = Plotter().lines("Loss of <V>", "update", "nats & bits", [Line("train", [1, 2, 3], [5, 1, 2])])
    root = parsed(svg)
    (plot,) = root.findall("./svg")
    assert plot.get("role") == "img"
    ids = {e.get("id"): e.text for e in plot if e.get("id")}
    assert set((plot.get("aria-labelledby") or "").split()) == set(ids)
    title, words = ids.values()
    assert title == "Loss of <V>"
    assert (
        words
        == "Horizontal: update. Vertical: nats & bits; train: from 5 at 1, to 2 at 3, lowest 1 at 2, highest 5 at 1."
    )


def test_plots_of_one_plotter_share_no_identifier() -> None:
    plotter = Plotter()
    both = plotter.bars("a", "x", "y", [1, 2]) + plotter.matrix("b", np.ones(4), 1.0, 2)
    ids = re.findall(r' id="([^"]+)"', both)
    assert len(ids) == len(set(ids)) == 4


def test_bars_stand_on_zero_and_are_as_high_as_their_values() -> None:
    root = parsed(Plotter().histogram("t", "x", "n", [0, 1, 2, 4], [4, 0, 2], marks=[("mean", 1.0)]))
    bars = [e for e in root.findall("./svg/svg/rect")]
    high = [float(e.get("height", "")) for e in bars]
    assert high[0] == pytest.approx(2 * high[2], abs=0.1)
    assert high[1] == 0
    for bar, h in zip(bars, high, strict=True):
        assert float(bar.get("y", "")) + h == pytest.approx(HIGH, abs=0.1)
    assert float(bars[2].get("width", "")) == pytest.approx(2 * float(bars[0].get("width", "")), abs=1.5)
    (mark,) = (e.get("d", "") for e in root.findall("./svg/svg/path"))
    assert float(re.findall(r"M([\d.]+)", mark)[0]) == pytest.approx(WIDE / 4, abs=0.1)


def test_a_matrix_has_signs_and_strengths_row_by_row() -> None:
    root = parsed(Plotter().matrix("w", np.array([1.0, -0.5, 0.0, 3.0]), 2.0, 2))
    found = [(e.get("class"), e.get("opacity"), e.get("x"), e.get("y")) for e in root.findall("./svg/rect")]
    assert found == [("plus", "0.50", "0", "0"), ("minus", "0.25", "1", "0"), ("plus", "1.00", "1", "1")]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1_200_000, "1,200,000"),
        (0.0453, "0.0453"),
        (-72, "-72"),
        (2.5, "2.5"),
        (100, "100"),
        (1e-9, "1.00e-09"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 17), (0, 4000), (1e6, 1.0001e6), (-1e-4, 2e-4), (0.96, 0.97)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = _ticks(low, high, most=6)
    assert 3 <= len(found) <= 7
    assert low <= found[0] < found[-1] <= high
    steps = np.diff(found)
    assert np.allclose(steps, steps[0])
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-6


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [-5.0, -5.0, -5.0]])
def test_a_line_without_height_or_width_is_drawn(values: list[float]) -> None:
    root = parsed(Plotter().lines("t", "x", "y", [Line("a", list(range(len(values))), values)]))
    assert all(0 <= y <= HIGH for _, y in points(root, 0))


def test_a_long_line_is_thinned_to_its_means() -> None:
    line = Line("a", list(range(1000)), [float(i % 2) for i in range(1000)], spread=[2.0] * 1000)
    short = thinned(line)
    assert len(short.x) == len(short.y) <= MOST_POINTS
    assert set(short.y[:-1]) <= {1 / 3, 2 / 3}
    assert short.spread is not None
    assert set(short.spread) == {2.0}
