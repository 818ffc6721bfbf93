"""Which row is recommended, and what is said of the others."""

import numpy as np
import pytest

from polyfuse.combining import combine_predictions
from polyfuse.errors import DataError
from tiny_members import classes

FEW = {"replicates": 200}


def sure(labels, right, count=3):
    """Return a member that is right where told, and sure of it."""
    said = np.where(right, labels, (labels + 1) % count)
    return np.full((len(labels), count), 0.05) + (1 - 0.05 * count) * np.eye(count)[said]


@pytest.fixture
def labels():
    return np.random.default_rng(0).integers(0, 3, 300)


def test_a_clear_winner_is_recommended_and_the_others_are_worse(labels):
    good, poor = sure(labels, np.ones(300, bool)), sure(labels, np.arange(300) < 150)
    done = combine_predictions({"good": good, "poor": poor}, labels, **FEW)
    board = done.scoreboard
    assert done.recommended == "good"
    assert board.passed_over["poor"].startswith("worse than good on validation: -50.0 [")
    # The mean of both is right or undecided wherever the good one is right.
    assert "mean" in board.passed_over


def test_as_good_but_dearer_is_passed_over(labels):
    one = sure(labels, np.arange(300) % 10 != 0)
    done = combine_predictions(
        {"a": one, "b": one}, labels, method=["mean", "caruana"], costs={"b": 2.0, "a": 6.0}, **FEW
    )
    board = done.scoreboard
    assert done.recommended == "b"
    assert "costs 4 times as much as b" in board.passed_over["mean"]
    assert "costs 3 times as much as b" in board.passed_over["a"]
    assert [row["cost"] for row in board.rows] == [6.0, 2.0, 8.0, 6.0]
    assert "'b' has the same predictions as 'a'" in str(done)


def test_members_without_weight_cost_nothing():
    said, labels = classes(rows=100, members=3)
    chance = np.full((2, 100, 3), 1 / 3)
    done = combine_predictions(
        np.concatenate([said[2:], chance]), labels, method="simplex", costs=[1, 50, 50], **FEW
    )
    row = done.scoreboard.row("simplex")
    assert (row["members"], row["models"], row["cost"]) == ([0], 1, 1.0)


def test_a_really_better_mean_is_recommended_though_it_costs_more():
    said, labels = classes(rows=600, members=6, skill=0.8)
    done = combine_predictions(said, labels, method="mean", **FEW)
    assert done.recommended == "mean"
    document = done.scoreboard.document
    assert document["winner"] == "mean"
    assert all(why.startswith("worse than mean") for why in done.scoreboard.passed_over.values())
    assert "corrected for 21 comparisons" in str(done)
    assert done.scoreboard.row("mean")["val"]["difference"]["better"]


def test_on_test_nothing_is_chosen():
    said, labels = classes(rows=200, members=4)
    # On test the members change places: the best of validation is the poorest there.
    done = combine_predictions(
        said, labels, test=said[::-1].copy(), test_labels=labels, method="mean", **FEW
    )
    board = done.scoreboard
    test = {row["name"]: row["test"]["accuracy"]["value"] for row in board.rows}
    best = board.document["best_member"]
    assert test[best] == min(v for n, v in test.items() if n != "mean")
    assert board.row(best)["test"]["difference"]["value"] == 0.0


def test_one_method_is_kept_of_several_the_recommended_row_and_use_decides():
    said, labels = classes(rows=80)
    one = combine_predictions(said, labels, method="caruana", **FEW)
    several = combine_predictions(said, labels, method=["mean", "caruana"], **FEW)
    named = combine_predictions(said, labels, method=["mean", "vote"], use="vote", **FEW)
    assert one.use == "caruana"
    assert several.use == several.recommended
    assert named.use == "vote"
    with pytest.raises(DataError, match=r"no row 'men' to use; did you mean 'mean'\?"):
        combine_predictions(said, labels, method="mean", use="men", **FEW)


def test_tables_fit_eighty_columns():
    said, labels = classes(rows=80)
    names = [f"resnet_fold_{i}" for i in range(4)]
    done = combine_predictions(
        dict(zip(names, said, strict=True)), labels, method="all", costs=[12.5, 30, 40, 55], **FEW
    )
    table = done.scoreboard.table("val")
    lines = [table.columns, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    assert sum(widths) + len(widths) + 1 <= 80
