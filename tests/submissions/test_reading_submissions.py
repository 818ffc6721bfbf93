"""Files of ids and answers as they come from strangers: every fault is found, and all at once."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyfuse.submissions import ACCEPTABLE, Submission, check_submission, read_submission
from polyfuse.submissions.base import DIGITS
from polyfuse.submissions.contents import suspicious, zeros_lost, zeros_lost_alone

HEAD = "file_name,file_code\n"


def kinds(faults):
    return [fault.kind for fault in faults]


def submission(answers, name="a.csv", ids=None):
    answers = list(answers)
    ids = ids or [f"{i:06d}.png" for i in range(len(answers))]
    return Submission(name, ("file_name", "file_code"), ids, answers)


def house_numbers(count, seed=0):
    """Return answers as the contest has them: one to four digits, first digits without zero."""
    draw = np.random.default_rng(seed)
    return [str(draw.integers(1, 10 ** draw.integers(1, 5))) for _ in range(count)]


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("end", ["", "\n", "\n\n\n"])
@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_answers_are_texts_and_line_ends_do_not_matter(tmp_path, end, line):
    text = HEAD + '000000.png,007\n"000001.png","12"' + end
    found, faults = read_submission(written(tmp_path / "a.csv", text.replace("\n", line)))
    assert faults == []
    assert found.columns == ("file_name", "file_code")
    assert found.answers == ["007", "12"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("\ufeff" + HEAD + "0,1\n", ["bom"]),
        (HEAD.replace(",", ";") + "0;1\n", ["separator"]),
        (HEAD.replace(",", "\t") + "0\t1\n", ["separator"]),
        (HEAD + "0,1\n\n1,2\n", ["empty_rows"]),
        (HEAD + "0,1\n,\n1,2\n", ["empty_rows"]),
        (HEAD + "0,1\n1\n2,3,4\n", ["cells"]),
        (HEAD + "0,1\n\n1\n", ["empty_rows", "cells"]),
        ("id,a,b\n0,1,2\n", ["columns"]),
        ("file_code\n7\n", ["columns"]),
        ("", ["unreadable"]),
        (HEAD, ["unreadable"]),
        (HEAD + '0,"1\n', ["unreadable"]),
        (HEAD.encode("utf-16"), ["unreadable"]),
        (HEAD.encode() + b"0,\xb2\n", ["unreadable"]),
        (HEAD.encode() + b"0,1\0\n", ["unreadable"]),
        (HEAD + "0," + "1" * 200_000, ["unreadable"]),
    ],
)
def test_every_fault_of_a_file_is_named(tmp_path, content, found):
    assert kinds(read_submission(written(tmp_path / "a.csv", content))[1]) == found


def test_what_is_no_regular_file_is_told_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "none.csv", "."):
        found, faults = read_submission(tmp_path / name)
        assert found is None
        assert kinds(faults) == ["unreadable"]


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("polyfuse.submissions.reading.LIMIT", 20)
    found, faults = read_submission(written(tmp_path / "a.csv", HEAD + "0,1\n"))
    assert found is None
    assert "24 bytes, and 20 are the most" in faults[0].text


def test_control_characters_of_a_file_do_not_reach_the_terminal(tmp_path):
    path = written(tmp_path / "a.csv", "id,\x1b[31mred\x1b\n\x1b[2J,1\n\x1b[2J,2\n")
    sample = written(tmp_path / "sample.csv", HEAD + "0,1\n")
    found = check_submission(path, sample)
    assert kinds(found.faults) == ["columns", "duplicate_ids", "missing_ids", "unknown_ids"]
    assert all("\x1b" not in fault.text for fault in found.faults)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_submission_or_faults(tmp_path_factory, content):
    path = written(tmp_path_factory.getbasetemp() / "any.csv", content)
    found, faults = read_submission(path)
    assert found is not None or faults
    assert found is None or len(found.ids) == len(found.answers)


def found_in(answers, alphabet=DIGITS, longest=6):
    return kinds(suspicious(submission(answers), alphabet=alphabet, longest=longest))


def test_sound_answers_raise_no_suspicion():
    assert found_in(house_numbers(500)) == []
    assert kinds(zeros_lost_alone(submission(house_numbers(500)))) == []
    assert found_in(["aB3"], alphabet="aB3") == []


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda said: ["", *said[1:]], ["empty_answers"]),
        (lambda said: [f"{one}.0" for one in said], ["alphabet", "constant_suffix"]),
        (lambda said: ["1E+05", *said[1:]], ["alphabet"]),
        (lambda said: ["7 ", *said[1:]], ["alphabet"]),
        (lambda said: ["٣", *said[1:]], ["alphabet"]),  # a digit, but of no contest
        (lambda said: ["1234567", *said[1:]], ["too_long"]),
        (lambda said: ["0"] * len(said), ["constant_answers"]),
        (lambda said: [f"{one[:2]}10" for one in said], ["constant_suffix"]),
        (lambda said: said[:300] + ["0"] * 200, ["constant_tail"]),
        # The blank's class written as characters: all strings have six of them.
        (
            lambda said: [one + "10" * (6 - len(one)) for one in said],
            ["too_long", "constant_suffix"],
        ),
    ],
)
def test_every_damage_to_answers_is_found(damage, found):
    assert found_in(damage(house_numbers(500))) == found


def test_a_floating_point_column_is_called_so():
    (fault, _) = suspicious(submission(["12.0", "7.0"] * 20), alphabet=DIGITS, longest=6)
    assert "they went through floating point" in fault.text


def test_a_run_of_equal_answers_that_chance_makes_is_no_fault():
    mostly = ["1"] * 95 + ["2"] * 5 + ["1"] * 30  # 95 % of the rows say so anyway
    assert "constant_tail" not in found_in(mostly)
    assert found_in(["1"] * 5) == []  # and five rows are no pattern


CODES = [f"{code:04d}" for code in np.random.default_rng(0).integers(0, 10000, 400)]


def spreadsheet(answers):
    return [one.lstrip("0") or "0" for one in answers]


def test_zeros_that_a_spreadsheet_dropped_are_found_in_one_file_of_codes():
    assert kinds(zeros_lost_alone(submission(spreadsheet(CODES)))) == ["lost_zeros"]
    assert zeros_lost_alone(submission(CODES)) == []
    assert zeros_lost_alone(submission(["ab1"] * 30 + ["b1"] * 3)) == []


def test_zeros_that_a_spreadsheet_dropped_are_found_beside_other_files():
    draw = np.random.default_rng(1)
    wrong = [c if draw.random() < 0.8 else f"{draw.integers(10000):04d}" for c in CODES]
    files = [submission(CODES, "a"), submission(spreadsheet(wrong), "b"), submission(wrong, "c")]
    assert [(fault.file, fault.kind) for fault in zeros_lost(files)] == [("b", "lost_zeros")]


def test_a_model_that_reads_no_leading_zero_is_not_blamed():
    # It reads another first digit there, as models do; it does not read fewer digits.
    other = [f"9{one[1:]}" if one.startswith("0") else one for one in CODES]
    assert zeros_lost([submission(CODES, "a"), submission(other, "b")]) == []


def test_house_numbers_of_many_lengths_have_lost_nothing():
    assert zeros_lost([submission(house_numbers(300, seed), str(seed)) for seed in range(3)]) == []


def test_the_page_names_every_fault_and_which_may_be_accepted():
    page = (Path(__file__).parents[2] / "docs" / "submissions.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| .* \|(.*)\|$", page, re.MULTILINE)
    told = {word: said.strip() for words, said in rows for word in re.findall(r"`(\w+)`", words)}
    assert {word for word, said in told.items() if said == "yes"} == set(ACCEPTABLE)
    raised = {"unreadable", "columns", "cells", "empty_rows"}
    raised |= {"missing_ids", "unknown_ids", "duplicate_ids"}
    assert set(told) == raised | set(ACCEPTABLE)
