"""Charts: bars of the right length, SVG that parses, nothing of a stranger's that breaks it."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyfuse import charts
from polyfuse.charts import Panel

AT = Panel(60, 40, 200, 100)
SVG = "{http://www.w3.org/2000/svg}"
shares = st.floats(0, 1)


def parsed(parts):
    return ElementTree.fromstring(charts.picture(300, 200, "t", parts))


def rectangles(parts):
    """Return all rectangles but the ground."""
    found = parsed(parts).iter(f"{SVG}rect")
    return [one.attrib for one in found if one.get("fill") != "white"]


@given(st.lists(st.floats(0, 1e9), min_size=1), st.integers(1, 60))
def test_bars_of_text_are_as_long_as_their_values_to_an_eighth(values, width):
    bars = charts.text_bars(values, width=width)
    most = max(values)
    for value, bar in zip(values, bars, strict=True):
        partial = " ▏▎▍▌▋▊▉".find(bar[-1]) if bar and bar[-1] != "█" else 0
        length = bar.count("█") + partial / 8
        assert abs(length - (width * value / most if most else 0)) <= 1 / 16 + 1e-9


@given(st.lists(shares, min_size=1, max_size=6))
def test_a_bar_is_as_high_as_its_share(values):
    labels = [str(i) for i in range(len(values))]
    heights = [float(r["height"]) for r in rectangles(charts.bars(AT, "", {"a": values}, labels))]
    top = charts._round_up(max(values))
    assert heights == [pytest.approx(100 * value / top, abs=0.06) for value in values]
    assert max(values) <= top <= max(2 * max(values), 0.01)


def test_bars_of_several_series_stand_side_by_side_and_inside():
    drawn = rectangles(charts.bars(AT, "", {"a": [0.5, 1], "b": [0.25, 0]}, ["1", "2"]))
    lefts = [float(r["x"]) for r in drawn]
    assert lefts == sorted(lefts)
    assert lefts[0] >= AT.left
    assert float(drawn[-1]["x"]) + float(drawn[-1]["width"]) <= AT.left + AT.width
    assert {r["fill"] for r in drawn} == set(charts.COLOURS[:2])


def test_curves_end_where_they_began():
    drawn = parsed(charts.curves(AT, "", {"a": [0.1, 0.2]}, [(0.0, "0"), (1.0, "9+")]))
    (path,) = (p.get("d") for p in drawn.iter(f"{SVG}path") if p.get("stroke-width"))
    assert path == "M60.0 140.0V90.0h100.00V40.0h100.00V140.0"
    assert [t.text for t in drawn.iter(f"{SVG}text")][-2:] == ["0", "9+"]


def test_a_heat_map_is_darkest_where_the_share_is_largest():
    parts = charts.heat_map(
        AT, "", [[0.1, 0.9], [0.4, 0.0]], ["x", "y"], [("1", "n"), ("2", "m")], most=0.9
    )
    fills = [r["fill"] for r in rectangles(parts)]
    assert fills[1] == min(fills)
    assert fills[3] == max(fills)
    assert {"10.0", "90.0", "40.0", "x", "y", "n"} <= {
        t.text for t in parsed(parts).iter(f"{SVG}text")
    }


@given(st.text(max_size=20))
def test_any_text_is_shown_as_text(said):
    parts = [
        *charts.legend([said], 0, 0),
        *charts.bars(AT, said, {said: [0.5]}, [said]),
        *charts.heat_map(AT, said, [[0.5]], [said], [(said, said)], most=1),
    ]
    document = ElementTree.fromstring(charts.picture(9, 9, said, parts))
    names = {one.tag.removeprefix(SVG) for one in document.iter()}
    assert names <= {"svg", "title", "rect", "path", "text"}


def test_nothing_to_draw_is_drawn():
    assert charts.text_bars([]) == []
    assert charts.text_bars([0, 0]) == ["", ""]
    parsed(charts.bars(AT, "", {"a": []}, []))
    parsed(charts.heat_map(AT, "", [], [], [], most=1))
