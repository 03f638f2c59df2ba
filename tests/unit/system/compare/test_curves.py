"""Which figures a comparison has: what stands where, and that many contenders can still be told apart."""

from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes

from system.compare.curves import CROWDED, Curve, Drawing, Look, panels, spread_out


def drawing(set_up=lambda axis: None) -> Drawing:
    return Drawing("score", "score over NFE", "NFE", "score", set_up)


def curves(count: int, last=lambda i: 10.0, seeds: int = 2) -> list[Curve]:
    """Curves that begin together and fan out by .01 each."""
    return [
        Curve(
            f"contender{i}",
            np.array([0.0, 5.0, last(i)]),
            np.array([[0.5, 0.6, 0.7 + i / 100 + s / 1000] for s in range(seeds)]),
            f"{0.7 + i / 100:.2f}",
        )
        for i in range(count)
    ]


def pictures(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("*.png"))


def test_few_contenders_share_a_plot_and_are_named_at_their_ends(tmp_path):
    (panel,) = panels(drawing(), curves(3), "Mean score", "At the end", tmp_path)
    assert "legend" not in panel.svg
    for i in range(3):
        assert panel.svg.count(f">contender{i} 0.7{i}<") == 1
    assert panel.caption == "Mean score; the band is all seeds."
    assert not panel.wide
    assert pictures(tmp_path) == ["score.png"]


def test_lines_that_end_apart_are_named_in_a_legend(tmp_path):
    (panel,) = panels(drawing(), curves(3, last=lambda i: 10.0 + 5 * i), "Mean score", "", tmp_path)
    assert "legend" in panel.svg
    assert panel.svg.count(">contender1 0.71<") == 1


def test_many_contenders_share_a_plot_and_have_one_each(tmp_path):
    together, each = panels(drawing(), curves(11), "Mean score", "", tmp_path)
    for panel in (together, each):
        assert panel.wide
        assert "legend" not in panel.svg
        assert [panel.svg.count(f">contender{i} {0.7 + i / 100:.2f}<") for i in range(11)] == [1] * 11
    assert each.title == "score over NFE, each contender"
    assert pictures(tmp_path) == ["score-each.png", "score.png"]


def test_many_lines_that_end_apart_have_a_plot_each_alone(tmp_path):
    (panel,) = panels(drawing(), curves(CROWDED, last=lambda i: 10.0 + 5 * i), "Mean score", "", tmp_path)
    assert (panel.title, panel.wide) == ("score over NFE", True)
    assert pictures(tmp_path) == ["score.png"]


@pytest.mark.parametrize("count", [3, 11])
def test_the_names_at_the_ends_do_not_overlap_nor_leave_the_picture(tmp_path, monkeypatch, count):
    """Ask the renderer for the boxes of the names, as they were drawn."""
    drawn = []
    annotate = Axes.annotate

    def remember(axis, *arguments, **named):
        drawn.append(annotate(axis, *arguments, **named))
        return drawn[-1]

    monkeypatch.setattr(Axes, "annotate", remember)
    panels(drawing(), curves(count), "Mean score", "", tmp_path)
    for figure in {text.figure for text in drawn}:
        figure.draw_without_rendering()
        boxes = [mpl.text.Text.get_window_extent(text) for text in drawn if text.figure is figure]
        boxes.sort(key=lambda box: box.y0)
        assert len(boxes) == count
        assert all(low.y1 <= high.y0 for low, high in pairwise(boxes))
        assert min(box.x0 for box in boxes) > 0
        assert max(box.x1 for box in boxes) <= figure.bbox.x1


def test_every_axis_is_set_up(tmp_path):
    seen = []
    panels(drawing(seen.append), curves(11), "", "", tmp_path)
    assert len(seen) == 2 * (1 + 11), "a shared plot and one for each, as SVG and as PNG"


def test_no_two_of_fifteen_contenders_look_alike():
    looks = [Look.of(place) for place in range(15)]
    assert len({(look.colour, look.dash) for look in looks}) == 15
    assert len({look.marker for look in looks[:12]}) == 12


@pytest.mark.parametrize(
    ("wanted", "gap", "places"),
    [
        ([0.1, 0.9, 0.5], 0.2, [0.1, 0.9, 0.5]),
        ([0.5, 0.5], 0.2, [0.4, 0.6]),
        ([0.5, 0.6, 0.9], 0.2, [0.45, 0.65, 0.9]),
        ([0.0, 0.05], 0.2, [0.0, 0.2]),
        ([1.0, 0.95], 0.2, [1.0, 0.8]),
        ([0.5], 0.2, [0.5]),
    ],
)
def test_names_move_no_further_than_they_must(wanted, gap, places):
    np.testing.assert_allclose(spread_out(np.array(wanted), gap), places, atol=1e-12)


def test_spread_out_names_keep_their_order_and_distance():
    rng = np.random.default_rng(0)
    for count in range(2, 12):
        wanted = rng.uniform(0.3, 0.6, count)
        places = spread_out(wanted, 0.08)
        assert (np.argsort(places) == np.argsort(wanted)).all()
        assert np.diff(np.sort(places)).min() >= 0.08 - 1e-12
        assert places.min() >= 0
        assert places.max() <= 1
