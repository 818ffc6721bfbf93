"""Ranges and the last ones: which number of a name counts, what is missing, what is ambiguous."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyfuse.checkpoint_sets import numbered
from polyfuse.checkpoint_sets.numbered import in_range, last, parse_range
from polyfuse.errors import CheckpointError


def paths(*names):
    return [Path(name) for name in names]


def numbers(chosen):
    return [one.number for one in chosen]


def test_a_range_includes_both_ends_and_is_in_order():
    files = [Path(f"checkpoint_{i}.pt") for i in range(60, 0, -1)]
    chosen = in_range(files, 40, 50)
    assert numbers(chosen) == list(range(40, 51))
    assert [one.path.name for one in chosen] == [f"checkpoint_{i}.pt" for i in range(40, 51)]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["resnet50_epoch3_fold2.pt", "resnet50_epoch4_fold2.pt"], [3, 4]),
        (["epoch=3-step=300.ckpt", "epoch=4-step=400.ckpt"], [300, 400]),
        (["epoch=3-val_acc=0.91.ckpt", "epoch=4-val_acc=0.88.ckpt"], [3, 4]),
        (["epoch=3-val_acc=0.91-v1.ckpt", "epoch=4-val_acc=0.88.ckpt"], [3, 4]),
        (["out/checkpoint-500", "out/checkpoint-1000"], [500, 1000]),
        (["run2/checkpoint-5/model.pt", "run2/checkpoint-6/model.pt"], [5, 6]),
        (["a_007.pth.tar", "a_010.pth.tar"], [7, 10]),
        (["list.pt[0]", "a3.pt[1]", "a4.pt[1]"], [3, 4]),
        (["v1.5_epoch3.pt", "v1.5_epoch4.pt", "checkpoint_best.pt"], [3, 4]),
    ],
)
def test_the_number_of_a_name(names, wanted):
    assert numbers(last(paths(*names), len(wanted))) == wanted


def refused(call, *arguments):
    with pytest.raises(CheckpointError) as caught:
        call(*arguments)
    return str(caught.value)


def test_missing_numbers_are_listed():
    files = [Path(f"c{i}.pt") for i in range(1, 50) if i not in (43, 44)]
    message = refused(in_range, files, 40, 50)
    assert message.startswith("the range 40:50 lacks 43, 44, 50; the numbers there are 1, 2, 3,")
    assert message.endswith("and 35 more")


def test_the_step_of_the_numbers_is_the_step_that_is_expected():
    files = [Path(f"checkpoint-{i}") for i in (500, 1000, 1500, 2500)]
    assert numbers(in_range(files, 1, 1500)) == [500, 1000, 1500]
    assert "lacks 2000;" in refused(in_range, files, 1000, 2500)
    assert "lacks 3000;" in refused(in_range, files, 2500, 3000)
    assert "lacks any number from 600 to 700" in refused(in_range, files, 600, 700)


def test_one_file_has_a_step_of_one():
    assert numbers(in_range(paths("c7.pt"), 7, 7)) == [7]
    assert "lacks 8" in refused(in_range, paths("c7.pt"), 7, 8)


def test_a_huge_range_is_refused_at_once():
    assert "and " in refused(in_range, paths("c1.pt", "c2.pt"), 0, 10**17)


def test_one_number_twice():
    message = refused(last, paths("a/c1.pt", "b/c1.pt", "b/c2.pt"), 1)
    assert "'a/c1.pt' and 'b/c1.pt' both have the number 1" in message


def test_no_number_at_all():
    message = refused(last, paths("best.pt", "model.pt"), 1)
    assert "there is none in 'best.pt', 'model.pt'; name the files themselves" in message


@pytest.mark.parametrize("count", [0, 3])
def test_too_many_or_none(count):
    assert f"asked for {count} of 2" in refused(last, paths("c1.pt", "c2.pt"), count)


def test_ranges_are_parsed():
    assert parse_range(" 7 : 7 ") == (7, 7)
    assert parse_range("040:050") == (40, 50)


@pytest.mark.parametrize("text", ["", "4", "4-5", "4:5:6", "a:b", "-1:3", "4:", "1" * 5000 + ":2"])
def test_what_is_no_range(text):
    assert "is not of the form 40:50" in refused(parse_range, text)


def test_a_range_that_runs_backwards():
    assert refused(parse_range, "50:40") == "range 50:40 is empty; type 40:50"


@given(st.sets(st.integers(0, 300), min_size=1), st.integers(0, 300), st.integers(0, 300))
def test_a_range_is_exactly_what_lies_in_it_or_an_error(values, one, other):
    low, high = sorted((one, other))
    try:
        chosen = in_range([Path(f"c{i}.pt") for i in values], low, high)
    except CheckpointError:
        assert set(range(low, high + 1)) - values
    else:
        assert numbers(chosen) == sorted(i for i in values if low <= i <= high)


def test_all_have_a_number_or_none_has():
    files = paths("run/a10.pt", "run/a9.pt")
    assert numbered.numbers(files) == dict(zip(files, (10, 9), strict=True))
    assert numbered.numbers(paths("a.pt", "b.pt")) == {}
    with pytest.raises(CheckpointError, match=r"but none in 'best.pt'; name the files of one run"):
        numbered.numbers(paths("a9.pt", "best.pt"))
