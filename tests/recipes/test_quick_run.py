"""The shipped recipe end to end in its quick form: real digits, a gain, honest folds."""

import csv
import re

import numpy as np
import pytest

from polyfuse.data.street_numbers import BLANK
from polyfuse.recipes.run import run
from polyfuse.sequences import strings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Return the finished quick run of the shipped recipe."""
    folder = tmp_path_factory.mktemp("quick")  # one worker: this process has imported all
    return run("street_numbers", out=folder / "RUN", quick=True, workers=1)


@pytest.fixture(scope="module")
def board(quick):
    return quick.scoreboard


def test_the_run_is_complete(quick, board):
    assert len(quick.population.members) == board.document["expected"] == 3
    assert board.document["metrics"] == ["string_accuracy", "character_accuracy", "nll"]
    names = [row["name"] for row in board.rows]
    assert names == ["member 0", "member 1", "member 2", *quick.recipe["fusions"]]
    assert {p.name for p in quick.path.iterdir()} >= {
        *("recipe.yaml", "run.json", "members", "labels", "fusions"),
        *("leaderboard.json", "submission.csv"),
    }
    assert not list(quick.path.rglob("*.tmp"))
    assert not list((quick.path / "resume").iterdir())


@pytest.mark.parametrize("split", ["val", "test"])
def test_one_small_net_leaves_room_and_reads_something(board, split):
    for row in board.rows:
        if row["kind"] == "member":
            assert 0.15 < row[split]["string_accuracy"]["value"] < 0.85
            assert row[split]["character_accuracy"]["value"] > 0.4


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_mean_of_probabilities_is_better_calibrated_than_its_members(board, split):
    members = [r[split]["nll"]["value"] for r in board.rows if r["kind"] == "member"]
    # By Jensen's inequality no worse than the members' mean; here clearly below it.
    assert board.row("mean_probability")[split]["nll"]["value"] < 0.95 * np.mean(members)


def test_the_fusion_reads_more_strings_than_the_mean_member(board):
    members = [r["test"]["string_accuracy"]["value"] for r in board.rows if r["kind"] == "member"]
    assert board.row("mean_probability")["test"]["string_accuracy"]["value"] > np.mean(members)


@pytest.mark.parametrize("split", ["val", "test"])
def test_gains_are_differences_to_the_best_member_of_validation(board, split):
    scores = {r["name"]: r["val"]["string_accuracy"]["value"] for r in board.rows}
    members = [r["name"] for r in board.rows if r["kind"] == "member"]
    best = board.row(board.document["best_member"])
    assert scores[best["name"]] == max(scores[name] for name in members)
    assert scores[board.best] == max(scores.values())
    for row in board.rows:
        gain, own = row[split]["difference"], row[split]["string_accuracy"]["value"]
        assert gain["value"] == pytest.approx(own - best[split]["string_accuracy"]["value"])
        assert gain["low"] <= gain["value"] <= gain["high"]
        corrected = 1 if gain["p"] is None else gain["p"]  # the best member has none
        assert gain["better"] == (gain["low"] > 0 and corrected <= 0.05)
    assert best[split]["difference"]["value"] == 0


def test_out_of_fold_and_test_scores_agree(board):
    train, test = board.document["out_of_fold"]["train"], board.document["out_of_fold"]["test"]
    assert board.document["out_of_fold"]["rows"] == 4000
    assert train["low"] <= test["high"]
    assert test["low"] <= train["high"]
    assert "the intervals agree" in board.summary()[-1]


def test_every_training_row_is_predicted_by_the_one_member_that_did_not_see_it(quick):
    said = ~np.isnan(quick.population.stack("train")).any((-1, -2))
    assert (said.sum(0) == 1).all()
    for member, mine in zip(quick.population.members, said, strict=True):
        seen = np.concatenate([member.rows("learned"), member.rows("stopped")])
        assert not mine[seen].any()
        assert (np.flatnonzero(mine) == member.rows("held_out")).all()
        groups = quick.population.groups("train")
        assert not set(groups[mine]) & set(groups[seen])


def test_votes_have_no_probabilities_and_all_costs_are_known(board):
    for row in board.rows:
        assert (row["test"]["nll"] is None) == row["name"].endswith("_vote")
        assert row["milliseconds"] > 0
        per_member = board.row("member 0")["parameters"]
        assert row["parameters"] == per_member * len(row["members"])


def test_the_submission_reads_every_test_image(quick, board):
    head, *lines = list(csv.reader((quick.path / "submission.csv").read_text().splitlines()))
    assert head == ["file_name", "file_code"]
    assert [name for name, _ in lines] == quick.population.names("test")
    assert all(re.fullmatch("[0-9]{0,6}", code) for _, code in lines)
    truth = strings(quick.population.labels("test"), blank=BLANK)
    right = np.mean([code == true for (_, code), true in zip(lines, truth, strict=True)])
    assert right == pytest.approx(board.row(board.best)["test"]["string_accuracy"]["value"])
