"""`polyfuse combine --kind strings`: what it prints, writes and refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from polyfuse import tables
from polyfuse.cli import combining_strings
from polyfuse.submissions import VOTES
from tiny_run import polyfuse, refused

IDS = [f"{i:06d}.png" for i in range(30)]


def answers(seed):
    """Return house numbers, a third of them read wrong; some begin with a zero."""
    truth = [f"{code:03d}" for code in np.random.default_rng(5).integers(0, 400, len(IDS))]
    draw = np.random.default_rng(seed)
    return [f"{draw.integers(400):03d}" if draw.random() < 0.3 else one for one in truth]


def write(name, said, ids=IDS):
    text = tables.comma_separated(["file_name", "file_code"], list(zip(ids, said, strict=True)))
    Path(name).write_text(text)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in a folder with three submissions."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc"):
        write(f"{name}.csv", answers(seed))


STRINGS = ("combine", "a.csv", "b.csv", "c.csv", "--kind", "strings", "-o", "out.csv")


def test_the_names_of_votes_are_those_of_the_source():
    assert tuple(VOTES) == combining_strings.VOTES


@pytest.mark.parametrize("method", VOTES)
def test_three_files_become_one_that_is_sound(method):
    write("sample.csv", ["0"] * len(IDS), IDS[::-1])
    done = polyfuse(*STRINGS, "--method", method, "--weights", "3,2,2", "--sample", "sample.csv")
    assert done.exit_code == 0, done.output
    assert f"out.csv: 30 rows by {method}" in done.stdout
    checked = polyfuse("data", "check", "out.csv", "--sample", "sample.csv")
    assert checked.exit_code == 0, checked.output
    three = [answers(seed)[::-1] for seed in range(3)]
    lines = [line.split(",") for line in Path("out.csv").read_text().splitlines()[1:]]
    assert lines == [list(p) for p in zip(IDS[::-1], VOTES[method](three, [3, 2, 2]), strict=True)]


def test_a_person_sees_who_agrees_and_what_changed():
    done = polyfuse(*STRINGS, "--changes", "changes.csv")
    for text in ("all say the same", "as voted", "Agreement of the files", "Changed from a:"):
        assert text in done.stdout
    changed = Path("changes.csv").read_text().splitlines()
    assert changed[0] == "file_name,before,after,votes,a,b,c"
    assert f"Changed from a: {len(changed) - 1} of 30" in done.stdout
    assert "files that say so" in done.stdout
    assert all(line.split(",")[0] in done.stdout for line in changed[1:])


def test_a_machine_gets_it_all():
    document = json.loads(polyfuse(*STRINGS, "--weights", "a=1,b=2,c=1.5", "--json").stdout)
    assert (document["rows"], document["method"]) == (30, "string_vote")
    assert [one["name"] for one in document["files"]] == ["a", "b", "c"]
    assert [one["weight"] for one in document["files"]] == [1.0, 2.0, 1.5]
    assert np.array(document["agreement"]).shape == (3, 3)
    assert document["changed"] == len(document["changes"])
    assert {"id", "before", "after", "votes", "said"} == set(document["changes"][0])


def test_all_faults_are_told_and_nothing_is_written():
    write("b.csv", [one.lstrip("0") or "0" for one in answers(1)])
    write("c.csv", ["", *answers(2)[1:]], ["x.png", *IDS[1:]])
    message = refused(*STRINGS)
    for word in ("2 of 3", "lost_zeros", "empty_answers", "missing_ids", "unknown_ids"):
        assert word in message
    assert not Path("out.csv").exists()
    write("d.csv", answers(3))
    left = polyfuse(*STRINGS[:4], "d.csv", *STRINGS[4:], "--broken", "leave_out")
    assert left.exit_code == 0, left.output
    assert "Left out, since broken:" in left.stdout


def test_what_is_meant_is_accepted():
    write("b.csv", ["", *answers(1)[1:]])
    assert "--accept" in refused(*STRINGS)
    assert polyfuse(*STRINGS, "--accept", "empty_answers").exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*STRINGS, "--labels", "y.csv"], "--labels"),
        ([*STRINGS, "--metric", "nll"], "--metric"),
        ([*STRINGS, "--seed", "1"], "--seed"),
        ([*STRINGS, "--method", "mean"], "strings are voted by one of"),
        ([*STRINGS, "--method", "string_vote", "--method", "aligned_vote"], "--method"),
        ([*STRINGS, "--weights", "1,x,1"], "--weights"),
        ([*STRINGS, "--broken", "ignore"], "--broken"),
        ([*STRINGS[:-2]], "name the file to write"),
        ([*STRINGS[:-1], "folder"], "name the file to write"),
        ([*STRINGS[:-1], "a.csv"], "is one of the submissions"),
        ([*STRINGS, "--changes", "./b.csv"], "is one of the submissions"),
        (["combine", "a.csv", "b.csv", "--kind", "words", "-o", "x.csv"], "--kind"),
        (["combine", "a.csv", "--labels", "y.csv", "-o", "x", "--weights", "1"], "--weights"),
        (["combine", "a.csv", "--labels", "y.csv", "-o", "x", "--longest", "8"], "--longest"),
    ],
)
def test_what_does_not_go_together_is_wrong_usage(words, message):
    done = polyfuse(*words)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stdout == ""
