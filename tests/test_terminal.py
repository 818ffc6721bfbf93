"""The terminal: results to stdout, progress to stderr, and no text of a stranger read as markup."""

import io

import pytest
from rich.console import Console

from polyfuse import terminal
from polyfuse.tables import Table
from polyfuse.terminal import Bars, escaped, show_error, show_table, show_text

HOSTILE = "[red]a[/] \x1b[31mb \x9b31mc \x07 \u202e"
SHOWN = r"[red]a[/] \x1b[31mb \x9b31mc \x07 \u202e"


def is_harmless(text):
    return all(c.isprintable() or c == "\n" for c in text)


def test_text_goes_to_stdout_as_it_is(capsys):
    show_text(HOSTILE)
    out, err = capsys.readouterr()
    assert (out, err) == (SHOWN + "\n", "")


def test_long_lines_are_not_broken_in_a_pipe(capsys):
    show_text("word " * 100)
    assert capsys.readouterr().out.count("\n") == 1


def test_errors_go_to_stderr_with_their_lines(capsys):
    show_error(f"2 faults:\nline 1: {HOSTILE}\nline 2: " + "x" * 300)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: 2 faults:\nline 1: {SHOWN}\nline 2: {'x' * 300}\n"


def test_a_table_has_all_cells_and_reads_no_markup(capsys):
    rows = [["a", "1"], [HOSTILE, "2"], ["x" * 60, "3"]]
    show_table(Table("Title [b]", ["na\x1bme", "[x]"], rows, frozenset([1])))
    out = capsys.readouterr().out
    for cell in ("Title [b]", "na\\x1bme", "[x]", SHOWN, "x" * 60):
        assert cell in out
    assert is_harmless(out)


def test_columns_are_aligned(capsys):
    show_table(Table("", ["name", "n"], [["a", "1"], ["bb", "10"]]))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    name, _, *rows = lines
    assert name.index("name") == rows[0].index("a") == rows[1].index("bb")  # left
    assert rows[0].index("1") == rows[1].index("10") + 1  # right


def test_escaped_keeps_lines_and_printable_text():
    assert escaped("größe\n\x1b[31m\r\n") == "größe\n\\x1b[31m\\r\n"
    assert escaped("x" * 10_000) == "x" * 10_000
    assert escaped("\x07" * 1000) == "\\x07" * 1000


def test_without_a_terminal_a_bar_is_one_line_when_done(capsys):
    with Bars() as bars:
        for done in (1, 2, 2):
            bars("data", done, 2, "note")
        bars("mem\x1bber", 1, 3)
        bars("mem\x1bber", 3000, 3000, HOSTILE)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"data: 2 done note\nmem\\x1bber: 3,000 done {SHOWN}\n"


def test_quiet_bars_show_nothing(capsys):
    with Bars(quiet=True) as bars:
        bars("data", 2, 2)
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def screen(monkeypatch):
    """Return what a terminal of 100 columns would show."""
    file = io.StringIO()

    def console(**options):
        return Console(file=file, force_terminal=True, width=100, height=50)

    monkeypatch.setattr(terminal, "Console", console)
    return file


def test_on_a_terminal_a_bar_shows_count_time_left_and_note(screen):
    with Bars() as bars:
        bars("data", 1, 4, "[b]loss 1.2\x1b]0;title\x07")
        bars("member [0]", 4, 4, "done")
    shown = screen.getvalue()
    for part in ("data", "1/4", "left", "[b]loss 1.2\\x1b]0;title\\x07", "member [0]", "4/4"):
        assert part in shown
    assert "\x1b]0;" not in shown


def test_bytes_are_shown_as_bytes(screen):
    with Bars(in_bytes=True) as bars:
        bars("merge", 1_500_000, 3_000_000)
    for part in ("merge", "1.5/3.0 MB", "left"):
        assert part in screen.getvalue()


def test_bytes_in_a_line_too(capsys):
    with Bars(in_bytes=True) as bars:
        bars("merge", 3_000_000, 3_000_000)
    assert capsys.readouterr().err == "merge: 3.00 MB done\n"


def test_on_a_terminal_quiet_is_quiet(screen):
    with Bars(quiet=True) as bars:
        bars("data", 1, 4)
    assert screen.getvalue() == ""


def test_bars_stop_when_the_work_fails(screen):
    with pytest.raises(ZeroDivisionError), Bars() as bars:
        bars("data", 1 / 0, 4)
    assert screen.getvalue().endswith("\x1b[?25h")  # the cursor is shown again
