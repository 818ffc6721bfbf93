"""What members are called, and which file belongs to which."""

import pytest

from polyfuse.combining.naming import bare, matched, member_names
from polyfuse.errors import DataError


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["val/cnn.npy", "val/mlp.csv"], ["cnn", "mlp"]),
        (["/x/cnn/val.npy", "/x/mlp/val.npy"], ["cnn", "mlp"]),
        (["a/one.npy", "b/two.npy"], ["a/one", "b/two"]),
        (["cnn.npy", "cnn.csv"], ["cnn.npy", "cnn.csv"]),
        (["val/cnn.v2.npy", "val/cnn.v1.npy"], ["cnn.v2", "cnn.v1"]),
        (["members/000/said/val.npy", "members/001/said/val.npy"], ["000", "001"]),
        (["one.npy"], ["one"]),
        ([None, None], ["member_0", "member_1"]),
    ],
)
def test_names_are_what_tells_files_apart(paths, names):
    assert member_names(paths) == names


@pytest.mark.parametrize(
    ("name", "short"),
    [("cnn_val", "cnn"), ("test-cnn", "cnn"), ("oof.cnn", "cnn"), ("evaluate", "evaluate")],
)
def test_the_split_is_no_part_of_a_name(name, short):
    assert bare(name) == short


def test_members_are_matched_by_name_in_any_order():
    assert matched(["a", "b"], ["b", "a"], "files") == ({"a": 1, "b": 0}, [])
    assert matched(["a_val", "b_val"], ["test_b", "test_a"], "files")[0] == {"a_val": 1, "b_val": 0}


def test_by_order_only_where_no_name_fits_and_it_is_said():
    place, notes = matched(["a", "b"], ["x", "y"], "new files")
    assert place == {"a": 0, "b": 1}
    assert "new files are matched with the members by their order" in notes[0]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (["a"], "lack 'b'"),
        (["a", "x"], "have 'x', which is no member"),
        (["a", "b", "x"], "have 'x', which is no member"),
        (["a_val", "a_test"], "two names are the same"),
    ],
)
def test_what_is_missing_or_strange_is_named(found, message):
    with pytest.raises(DataError, match=message):
        matched(["a", "b"], found, "files")


def test_those_that_are_not_needed_may_be_missing():
    assert matched(["a", "b", "c"], ["b"], "files", needed=["b"])[0] == {"b": 0}
