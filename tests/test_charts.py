import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd.report import axes, charts
from fedkd.report.charts import Band, Line, Pair

accuracy = st.one_of(st.none(), st.floats(0, 1))


def _line(values, **options):
    points = [(float(i), y) for i, y in enumerate(values, start=1)]
    return charts.line_chart([Line("student", points)], title="t", x_label="round", y_label="accuracy", **options)


def _texts(svg):
    return [text.text for text in ET.fromstring(svg).iter("text")]


def _path(svg, kind):
    return next(p.get("d") for p in ET.fromstring(svg).iter("path") if p.get("class", "").startswith(kind))


def _pairs(d):
    return [tuple(map(float, pair)) for pair in re.findall(r"(-?[\d.]+) (-?[\d.]+)", d)]


def test_thinning_keeps_the_first_and_the_last():
    assert axes.thin(3, 5) == [0, 1, 2]
    kept = axes.thin(1000, 7)
    assert kept[0] == 0 and kept[-1] == 999 and len(kept) == 7


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_few_and_lie_within_the_axis(low, width, most):
    ticks = axes.nice_ticks(low, low + width, most=most)
    assert 1 <= len(ticks) <= most
    assert all(low - 1e-6 * width - 1e-9 <= tick <= low + width * (1 + 1e-6) + 1e-9 for tick in ticks)


def test_ticks_of_rounds_are_whole_and_ticks_of_bytes_are_powers():
    assert axes.nice_ticks(1, 3, whole=True) == [1, 2, 3]
    assert axes.log_ticks(800, 2e6) == [1e3, 1e4, 1e5, 1e6]
    assert axes.log_ticks(9e3, 60e3) == [10e3, 20e3, 50e3]


def test_a_higher_value_is_drawn_higher():
    (x1, y1), (x2, y2) = _pairs(_path(_line([0.5, 0.9]), "line"))
    assert x2 > x1
    assert y2 < y1  # the y axis of SVG points down


def test_equal_factors_are_equal_distances_on_a_logarithmic_axis():
    line = Line("student", [(10.0, 0.5), (100.0, 0.6), (1000.0, 0.7)])
    svg = charts.line_chart([line], title="t", x_label="bytes", y_label="a", log_x=True)
    (a, _), (b, _), (c, _) = _pairs(_path(svg, "line"))
    assert b - a == pytest.approx(c - b, abs=0.2)


def test_an_unknown_value_leaves_a_gap():
    svg = _line([0.1, 0.2, None, 0.4, 0.5])
    assert svg.count('class="line') == 2


def test_a_chart_of_which_nothing_is_known_is_empty():
    assert _line([None, None]) == ""
    assert _line([]) == ""
    assert charts.dumbbell_chart([Pair("0", None, None)], title="t", x_label="x") == ""
    assert charts.grid_chart([[None]], title="t", rows=["0"], columns=["1"], x_label="x", y_label="y") == ""
    assert charts.reliability_chart([("student", [], 1)], title="t") == ""
    assert charts.confusion_chart([], [], title="t") == ""
    assert charts.stacked_chart([("1", [0.0])], ["clients"], title="t", x_label="x", y_label="y") == ""


def test_labels_of_ends_do_not_overlap():
    ends = charts._apart([(50.0, "a", 1), (51.0, "b", 2), (52.0, "c", 3)], 12, 0, 60)
    ys = [y for y, _, _ in ends]
    assert all(b - a >= 12 for a, b in zip(ys, ys[1:], strict=False))
    assert max(ys) <= 60
    assert [text for _, text, _ in ends] == ["a", "b", "c"]


def test_the_band_of_a_single_round_is_a_bar():
    band = Band([(1.0, 0.4, 0.8)])
    assert '<rect class="band' in _line([0.5], band=band)
    assert '<path class="band' in _line([0.5, 0.6], band=Band([(1.0, 0.4, 0.8), (2.0, 0.4, 0.8)]))


def test_the_mark_carries_its_label_and_widens_the_axis():
    svg = charts.line_chart(
        [Line("student", [(1e3, 0.5), (1e4, 0.6)])],
        title="t",
        x_label="x",
        y_label="y",
        log_x=True,
        mark=(1e7, "FedAvg"),
    )
    assert "FedAvg" in _texts(svg)
    assert float(re.search(r'class="mark" d="M([\d.]+)', svg).group(1)) < charts.WIDTH


def test_a_dumbbell_tells_gains_from_losses_by_color_and_by_sign():
    svg = charts.dumbbell_chart([Pair("0", 0.5, 0.7), Pair("1", 0.7, 0.6)], title="t", x_label="x")
    assert "+20.0" in _texts(svg) and "−10.0" in _texts(svg)
    assert svg.count("joint up") == 1 and svg.count("joint down") == 1


def test_every_status_has_a_sign_besides_its_color():
    cells = [[f"st-{status}" for status in charts.STATUSES]]
    svg = charts.grid_chart(cells, title="t", rows=["0"], columns=list("1234"), x_label="x", y_label="y", glyphs=True)
    signs = {re.search(rf'g-{status}" d="([^"]+)"', svg).group(1) for status in charts.STATUSES}
    assert len({re.sub(r"[\d. -]+", "", sign) for sign in signs}) >= 3  # shapes, not only places


def test_the_confusion_matrix_tells_hits_from_mistakes():
    svg = charts.confusion_chart([[9, 1], [0, 10]], ["a", "b"], title="t")
    assert 'class="hit o9"' in svg and 'class="hit o10"' in svg
    assert svg.count('class="miss') == 1
    assert {"9", "1", "10"} <= set(_texts(svg))


def test_stacked_bars_are_as_tall_as_their_sum():
    svg = charts.stacked_chart([("1", [3.0, 1.0])], ["clients", "distill"], title="t", x_label="round", y_label="time")
    first, second = (r for r in ET.fromstring(svg).iter("rect"))
    assert float(first.get("height")) == pytest.approx(3 * float(second.get("height")), abs=0.3)
    assert float(second.get("y")) + float(second.get("height")) == pytest.approx(float(first.get("y")), abs=0.2)


def test_text_is_escaped_everywhere():
    evil = '<script>"&'
    pictures = [
        charts.line_chart([Line(evil, [(1.0, 0.5)])], title=evil, x_label=evil, y_label=evil, mark=(1.0, evil)),
        charts.dumbbell_chart([Pair(evil, 0.1, 0.2)], title=evil, x_label=evil, reference=(0.5, evil)),
        charts.grid_chart([["st-late"]], title=evil, rows=[evil], columns=[evil], x_label=evil, y_label=evil),
        charts.reliability_chart([(evil, [(0.5, 0.5, 3.0)], 1)], title=evil),
        charts.confusion_chart([[1, 2], [3, 4]], [evil, evil], title=evil),
        charts.stacked_chart([(evil, [1.0])], [evil], title=evil, x_label=evil, y_label=evil),
        charts.legend([(charts.swatch("line"), evil)]),
    ]
    for picture in pictures:
        assert "<script" not in picture
        ET.fromstring(picture)  # well-formed, so nothing broke out of an attribute


@given(st.lists(st.tuples(accuracy, accuracy), max_size=40), st.booleans())
def test_any_values_give_a_well_formed_chart_within_its_frame(rows, log_x):
    points = [(float(i), y) for i, (y, _) in enumerate(rows, start=1)]
    band = Band([(float(i), a, b) for i, (a, b) in enumerate(rows, start=1)])
    svg = charts.line_chart(
        [Line("a", points)], title="t", x_label="x", y_label="y", y_limits=(0, 1), log_x=log_x, band=band
    )
    if svg:
        root = ET.fromstring(svg)
        assert all(0 <= float(t.get("x")) <= charts.WIDTH for t in root.iter("text"))
        assert not any(math.isnan(float(n)) for c in root.iter("circle") for n in (c.get("cx"), c.get("cy")))
    dumbbell = charts.dumbbell_chart([Pair(str(i), a, b) for i, (a, b) in enumerate(rows)], title="t", x_label="x")
    if dumbbell:
        ET.fromstring(dumbbell)


@pytest.mark.parametrize("points", [[95e3, 2e6], [21e3, 30e6], [118.1e3, 119e3], [7.0], [0.4, 3e9]])
def test_a_logarithmic_axis_has_a_tick_at_or_before_its_first_point(points):
    line = Line("student", [(x, 0.5) for x in points])
    svg = charts.line_chart([line], title="t", x_label="x", y_label="y", log_x=True)
    ticks = [float(d[1:].split()[0]) for d in re.findall(r'class="axis-line" d="(M[\d. ]+)v4"', svg)]
    first = min(float(x) for x in re.findall(r'class="dot s1" cx="([\d.]+)"', svg))
    assert min(ticks) <= first + 0.1
    assert all(0 <= tick <= charts.WIDTH for tick in ticks)


def test_the_tick_before_the_first_is_of_the_same_kind():
    assert axes.log_ticks(90e3, 2.1e6, first=95e3) == [5e4, 1e5, 2e5, 5e5, 1e6, 2e6]
    assert axes.log_ticks(800, 2e6, first=900) == [1e2, 1e3, 1e4, 1e5, 1e6]


def test_a_dumbbell_without_a_before_has_no_column_of_points():
    svg = charts.dumbbell_chart([Pair("0", None, 0.7)], title="t", x_label="x")
    assert "points" not in _texts(svg) and "ring" not in svg and ">0: 70.0%<" in svg


def test_on_a_roc_chart_decades_are_equal_and_the_diagonal_is_guessing():
    guessing = [(x, x) for x in (0.001, 0.01, 0.1, 1.0)]
    svg = charts.roc_chart([Line("student", guessing)], low=0.001, title="t")
    places = _pairs(_path(svg, "line").replace("M", "").replace("L", " L"))
    steps = {(round(b[0] - a[0]), round(a[1] - b[1])) for a, b in zip(places, places[1:], strict=False)}
    assert len(steps) == 1  # to the right and up by as much each time
    (start, end) = _pairs(_path(svg, "reference"))
    assert (places[0], places[-1]) == (start, end)


def test_on_a_roc_chart_more_found_is_higher_and_what_is_promised_is_named():
    def height(found):
        svg = charts.roc_chart([Line("a", [(0.01, found), (1.0, 1.0)])], low=0.001, title="t")
        return _pairs(_path(svg, "line"))[0][1]

    assert height(0.5) < height(0.02) < height(0.01)
    bound = Line("promised", [(0.01, 0.03), (1.0, 1.0)], 3, 1)
    svg = charts.roc_chart([Line("student", [(0.001, None), (0.01, 0.02)])], low=0.001, bound=bound, title="t")
    assert {"promised", "student", "0.1%", "100%"} <= set(_texts(svg))
    assert "None" not in svg
    assert charts.roc_chart([Line("student", [(0.01, None)])], low=0.001, bound=bound, title="t") == ""
