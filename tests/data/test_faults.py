"""Lists of faults: what is written is read again, and nothing else is taken for one."""

import pytest

from polyfuse.data.faults import COLUMNS, Fault, Faults, rows_of, write_list
from polyfuse.errors import DataError


def test_a_list_is_read_as_it_was_written(tmp_path):
    long = "a" * 240 + ".png"
    found = [
        Fault(long, "label", "11"),
        Fault('a "b", c.png', "label", "11, 12"),
        Fault("x\x1b[31m.png", "kind", ""),
    ]
    write_list(tmp_path / "faults.csv", found)
    assert "\x1b" not in (tmp_path / "faults.csv").read_text()
    faults = Faults(tmp_path, exclude=str(tmp_path / "faults.csv"))
    assert {'a "b", c.png', long} <= faults.excluded
    faults.add('a "b", c.png', "label", "again")
    faults.refuse(2)
    faults.add("new.png", "label", "11")
    with pytest.raises(DataError, match=r"1 of 2 files .* has faults: 1 x label\nnew\.png: label"):
        faults.refuse(2)


@pytest.mark.parametrize("text", ["file,kind\na,b\n", "names\n", "", "file,kind,fact\na,b\n"])
def test_what_is_no_list_leaves_nothing_out(tmp_path, text):
    (tmp_path / "faults.csv").write_text(text)
    with pytest.raises(DataError, match=r"faults\.csv"):
        Faults(tmp_path, exclude=str(tmp_path / "faults.csv"))


def test_a_table_that_is_too_large_or_no_file(tmp_path):
    with open(tmp_path / "huge.csv", "wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(DataError, match="at most 67,108,864 are read"):
        rows_of(tmp_path / "huge.csv", [COLUMNS])
    with pytest.raises(DataError, match="is not a regular file"):
        rows_of(tmp_path, [COLUMNS])
