"""A submission against the contest's sample: ids, order, columns; a run's own is accepted."""

import csv

import numpy as np
import pytest

from polyfuse import tables
from polyfuse.errors import DataError
from polyfuse.submissions import check_submission
from tiny_run import polyfuse, refused

HEAD = ["file_name", "file_code"]
IDS = [f"{i:06d}.png" for i in range(50)]
ANSWERS = [str(100 + 7 * i) for i in range(50)]


def write(path, ids=IDS, answers=ANSWERS, head=HEAD):
    path.write_text(tables.comma_separated(head, list(zip(ids, answers, strict=True))))
    return path


@pytest.fixture
def sample(tmp_path):
    return write(tmp_path / "sample.csv", answers=["0"] * 50)


def checked(tmp_path, sample, **changes):
    return check_submission(write(tmp_path / "mine.csv", **changes), sample)


def test_the_same_ids_in_the_same_order_are_accepted(tmp_path, sample):
    found = checked(tmp_path, sample)
    assert found.accepted
    assert (found.rows, found.faults, found.notes) == (50, (), ())
    found.refuse()


SWAPPED = [IDS[1], IDS[0], *IDS[2:]]


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"ids": SWAPPED}, ["order"]),
        ({"head": ["name", "label"]}, ["columns"]),
        ({"head": HEAD[::-1]}, ["columns"]),
        ({"ids": IDS[:-1], "answers": ANSWERS[:-1]}, ["missing_ids"]),
        ({"ids": [*IDS, "x.png"], "answers": [*ANSWERS, "1"]}, ["unknown_ids"]),
        ({"ids": [*IDS[:-1], IDS[0]]}, ["duplicate_ids", "missing_ids"]),
        ({"ids": [name.lstrip("0") for name in IDS]}, ["missing_ids", "unknown_ids"]),
        (
            {"head": ["a", "b"], "ids": [*SWAPPED[:-1], SWAPPED[0]]},
            ["columns", "duplicate_ids", "missing_ids"],
        ),
    ],
)
def test_what_differs_from_the_sample_is_a_fault(tmp_path, sample, changes, kinds):
    found = checked(tmp_path, sample, **changes)
    assert [fault.kind for fault in found.faults] == kinds
    with pytest.raises(DataError, match=f"{len(kinds)} faults") as refusal:
        found.refuse()
    assert all(f"[{kind}]" in str(refusal.value) for kind in kinds)


def test_a_missing_header_is_called_so(tmp_path, sample):
    path = write(tmp_path / "mine.csv", ids=IDS[1:], answers=ANSWERS[1:], head=[IDS[0], "100"])
    found = check_submission(path, sample)
    assert "is the header missing?" in found.faults[0].text


def test_what_answers_look_like_is_a_note(tmp_path, sample):
    found = checked(tmp_path, sample, answers=["0"] * 50)
    assert found.accepted
    assert [note.kind for note in found.notes] == ["constant_answers"]


def test_a_sample_that_is_none_is_refused(tmp_path, sample):
    twice = write(tmp_path / "twice.csv", ids=[*IDS[:-1], IDS[0]])
    with pytest.raises(DataError, match="the sample file is not sound"):
        check_submission(sample, twice)


def test_a_sample_with_a_byte_order_mark_is_what_the_contest_gave_out(tmp_path, sample):
    sample.write_bytes(b"\xef\xbb\xbf" + sample.read_bytes())
    assert checked(tmp_path, sample).accepted


def test_the_verb_says_all_faults_and_exits_with_1(tmp_path, sample):
    write(tmp_path / "mine.csv", ids=[*SWAPPED[:-1], "x.png"], answers=["", *ANSWERS[1:]])
    message = refused("data", "check", tmp_path / "mine.csv", "--sample", sample)
    assert all(f"[{kind}]" in message for kind in ("missing_ids", "unknown_ids", "empty_answers"))
    write(tmp_path / "mine.csv", answers=["", *ANSWERS[1:]])
    done = polyfuse("data", "check", tmp_path / "mine.csv", "--sample", sample)
    assert done.exit_code == 0
    assert "empty answers, 1: in rows 1" in done.stdout
    assert "mine.csv: 50 rows, the columns, ids and order of" in done.stdout


def test_the_contests_own_sample_is_sound_and_its_reverse_is_not(tmp_path, shared_data):
    sample = shared_data / "mchar" / "mchar_sample_submit_A.csv"
    found = check_submission(sample, sample)
    assert (found.accepted, found.rows) == (True, 40000)
    head, *rows = csv.reader(sample.read_text().splitlines())
    draw = np.random.default_rng(0)
    answers = [str(draw.integers(1, 10 ** draw.integers(1, 5))) for _ in rows]
    names = [row[0] for row in rows]
    good = check_submission(write(tmp_path / "a.csv", names, answers, head), sample)
    assert (good.accepted, good.notes) == (True, ())
    bad = check_submission(write(tmp_path / "b.csv", names[::-1], answers, head), sample)
    assert [fault.kind for fault in bad.faults] == ["order"]
