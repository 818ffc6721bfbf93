"""`polyfuse add`: what is typed, what is printed, what is refused before anything is loaded."""

import json

import numpy as np
import pytest

from polyfuse import Arrays, Population, Splits
from polyfuse.labels import write_labels
from tiny_run import polyfuse, refused

DATA = Splits(*(Arrays(np.zeros((4, 1)), [0, 1, 0, 1]) for _ in range(3)))


@pytest.fixture
def run(tmp_path):
    """A population that nobody has trained yet, and a stranger's predictions beside it."""
    folder = tmp_path / "RUN"
    folder.mkdir()
    write_labels(folder, DATA)
    for split, seed in (("val", 0), ("test", 1)):
        p = np.random.default_rng(seed).dirichlet([1, 1], 4)
        lines = [f"{i},{a},{b}" for i, (a, b) in enumerate(p)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["id,0,1", *lines]) + "\n")
    return folder


def add(run, *more):
    files = [f"{split}={run.parent / split}.csv" for split in ("val", "test")]
    named = [part for file in files for part in ("--predictions", file)]
    return ["add", run, "--name", "resnet", *named, *more]


def test_a_member_is_added_and_shown(run):
    done = polyfuse(*add(run))
    assert done.exit_code == 0, done.output
    shown = " ".join(done.output.split())
    assert "'resnet', by its predictions alone" in shown
    assert "There is no scoreboard yet; it will have this member, too." in shown
    assert f"Next: polyfuse report {run}" in shown
    assert [member.name for member in Population.open(run).members] == ["resnet"]


def test_json_tells_the_record(run):
    done = polyfuse(
        *add(run, "--json", "--parameters", 7, "--milliseconds", 0.5, "--trained-on", "none")
    )
    told = json.loads(done.stdout)
    assert told["command"] == "add"
    assert told["leaderboard"] is None
    member = told["member"]
    assert (member["name"], member["parameters"], member["milliseconds"]) == ("resnet", 7, 0.5)
    assert member["trained_on"] == "0 rows"
    assert member["source"]["predictions"]["val"]["file"] == "val.csv"


def test_what_it_refuses_is_a_message(run):
    polyfuse(*add(run))
    assert "'resnet' is there already, and says the same" in polyfuse(*add(run)).output
    (run.parent / "val.csv").write_text("id,0,1\n0,1,0\n1,1,0\n2,1,0\n3,1,0\n")
    assert "there is a member 'resnet' already; call this one otherwise" in refused(*add(run))
    nowhere = ["add", run.parent / "nowhere", "--name", "a", "--checkpoint", "a.pt"]
    assert "there is no RUN folder" in refused(*nowhere)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([], "give this or --checkpoint"),
        (["--predictions", "val=a.npy", "--checkpoint", "a.pt"], "give this or --checkpoint"),
        (["--predictions", "a.npy"], "NAME=VALUE"),
        (["--predictions", "vla=a.npy"], "give train, val and test once each, got 'vla'"),
        (["--predictions", "val=a", "--predictions", "val=b"], "once each, got 'val'"),
        (["--predictions", "val=a.npy", "--space", "probs"], "'probs' is none of prob"),
        (["--checkpoint", "a.pt", "--parameters", "-1"], "'--parameters'"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_read(typed, message):
    done = polyfuse("add", "nowhere", "--name", "resnet", *typed)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())


def test_help_has_an_example():
    done = polyfuse("add", "--help")
    assert "Example: polyfuse add runs/street_numbers --name resnet" in " ".join(
        done.output.split()
    )
