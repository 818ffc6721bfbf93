"""Tables: every format reads back what went in, and no cell breaks out of its place."""

import csv
import html.parser
import io
import sys

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyfuse.errors import MissingExtraError
from polyfuse.tables import Table, amount, comma_separated, data_frame, hypertext, markdown

cells = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=8)
rows = st.lists(st.tuples(cells, cells), min_size=1, max_size=4)
HOSTILE = "<script>alert(1)</script>"


class Cells(html.parser.HTMLParser):
    """Collect the tags and the text of every cell."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.cells = [], []

    def handle_starttag(self, tag, attributes):
        assert attributes == []
        self.tags.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


def test_markdown_is_a_table_with_the_bold_row_stressed():
    table = Table("scores", ["name", "x"], [["a", "1"], ["b", ""]], frozenset({1}))
    assert markdown(table).splitlines() == [
        "| name | x |",
        "|---|--:|",
        "| a | 1 |",
        "| **b** |  |",
    ]


def test_markdown_cells_cannot_end_their_cell_or_line():
    text = markdown(Table("", ["a|b", "c"], [["x|y", "1\n2"], ["\r\n", "z"]]))
    lines = text.splitlines()
    assert lines[0] == r"| a\|b | c |"
    assert lines[2] == r"| x\|y | 1 2 |"
    assert len(lines) == 4


@given(rows)
def test_csv_reads_back(rows):
    text = comma_separated(["name", "x"], rows)
    assert [tuple(line) for line in csv.reader(io.StringIO(text))] == [("name", "x"), *rows]


def test_csv_keeps_numbers_whole_and_none_empty():
    assert comma_separated(["a"], [[0.1 + 0.2], [None], [3]]) == 'a\n0.30000000000000004\n""\n3\n'


@given(cells, rows)
def test_html_shows_every_cell_as_text(title, rows):
    reader = Cells()
    reader.feed(hypertext(Table(title, ["name", "x"], rows)))
    assert reader.cells == ["name", "x", *(cell for row in rows for cell in row)]
    assert set(reader.tags) == {"table", "caption", "thead", "tbody", "tr", "th", "td"}


def test_html_escapes_title_columns_and_cells():
    shown = hypertext(Table(HOSTILE, [HOSTILE], [[HOSTILE]], frozenset({0})))
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") == 3


def test_data_frame_has_the_columns_and_rows():
    frame = data_frame(["name", "x"], [["a", 1.5], ["b", None]])
    expected = pandas.DataFrame({"name": ["a", "b"], "x": [1.5, None]})
    pandas.testing.assert_frame_equal(frame, expected)


def test_data_frame_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pip install pandas"):
        data_frame(["name"], [["a"]])


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (9_994, "9.99 kB"), (9_996, "10.0 kB")),
        *((99_949, "99.9 kB"), (99_951, "100 kB"), (999_499, "999 kB"), (999_501, "1.00 MB")),
        *((2.8e9, "2.80 GB"), (1.23e12, "1.23 TB"), (5e15, "5,000 TB")),
    ],
)
def test_bytes_have_three_digits(count, text):
    assert amount(count) == text
