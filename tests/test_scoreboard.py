"""The scoreboard: every number of leaderboard.json, in every form that it is shown in."""

import copy
import csv
import io

import pandas
import pytest

from polyfuse import durable
from polyfuse.errors import RunError
from polyfuse.scoreboard import SCHEMA, Scoreboard, read_scoreboard

METRICS = ["string_accuracy", "character_accuracy", "nll"]
NAMES = ["member 0", "member 1", "mean_probability", "string_vote"]


def score(value, half=0.01):
    return {"value": value, "low": value - half, "high": value + half}


def scores(value, gain, better, likelihood):
    return {
        "string_accuracy": score(value),
        "character_accuracy": score(value + 0.05),
        "nll": likelihood and score(likelihood),
        "difference": {**score(gain), "better": better},
    }


def row(name, members, parameters, milliseconds, **splits):
    kind = "member" if name.startswith("member") else "fusion"
    costs = {"parameters": parameters, "milliseconds": milliseconds}
    return {"name": name, "kind": kind, "members": members, **costs, **splits}


def some_document(**changes):
    """A run of two members and two fusions, the mean the best of them."""
    document = {
        "schema": SCHEMA,
        "population": "f" * 64,
        "members": 2,
        "expected": 2,
        "metric": "string_accuracy",
        "metrics": METRICS,
        "best": "mean_probability",
        "best_member": "member 1",
        "out_of_fold": {"rows": 9, "metric": METRICS[0], "train": score(0.7), "test": score(0.71)},
        "rows": [
            row("member 0", [0], 1234, 0.5, val=scores(0.7, -0.03, False, 1.5)),
            row("member 1", [1], 1234, 0.5, val=scores(0.73, 0.0, False, 1.25)),
            row("mean_probability", [0, 1], 2468, 1.0, val=scores(0.78, 0.05, True, 0.75)),
            row("string_vote", [0, 1], 2468, None, val=scores(0.76, 0.03, True, None)),
        ],
    }
    for entry in document["rows"]:
        entry["test"] = copy.deepcopy(entry["val"])
    document.update(changes)
    return document


def without_test(document):
    for entry in document["rows"]:
        del entry["test"]
    return document


def test_rows_are_found_by_name():
    board = Scoreboard(some_document())
    assert [entry["name"] for entry in board.rows] == NAMES
    assert board.row("string_vote")["members"] == [0, 1]
    assert board.best == "mean_probability"


def test_an_unknown_row_is_refused_with_the_nearest_name():
    with pytest.raises(RunError, match=r"mean_probabilty'.*did you mean 'mean_probability'"):
        Scoreboard(some_document()).row("mean_probabilty")


def test_splits_without_labels_are_not_shown():
    assert Scoreboard(some_document()).splits() == ["val", "test"]
    board = Scoreboard(without_test(some_document()))
    assert board.splits() == ["val"]
    assert "Test (" not in board.to_markdown()
    assert "test labels are unknown" in board.summary()[0]


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_table_shows_each_row_once_and_the_best_in_bold(split):
    table = Scoreboard(some_document()).table(split)
    assert [cells[0] for cells in table.rows] == NAMES
    assert table.bold == {2}
    assert {len(cells) for cells in table.rows} == {len(table.columns)}
    assert table.rows[2][1:] == (
        ["78.0 [77.0, 79.0]", "83.0", "0.75", "+5.0 [+4.0, +6.0]", "2.47k", "1.00"]
    )
    assert table.rows[3][3] == "-"  # a vote has no likelihood
    assert table.rows[3][-1] == "-"  # a time that nobody took


def test_validation_and_test_are_never_mixed():
    document = some_document()
    document["rows"][2]["test"] = scores(0.5, -0.1, False, 2.0)
    board = Scoreboard(document)
    assert board.table("val").rows[2][1] == "78.0 [77.0, 79.0]"
    assert board.table("test").rows[2][1] == "50.0 [49.0, 51.0]"
    assert board.table("test").bold == {2}  # still the one that validation chose


def test_lower_is_better_scores_are_shown_in_their_own_unit():
    document = some_document(metric="nll", metrics=["nll"])
    document["rows"].pop()
    assert Scoreboard(document).table("val").rows[0][1] == "1.500 [1.490, 1.510]"


@pytest.mark.parametrize(
    ("parameters", "shown"), [(999, "999"), (1234, "1.23k"), (5_000_000, "5M"), (7e9, "7G")]
)
def test_parameters_are_shown_short(parameters, shown):
    document = some_document()
    document["rows"][0]["parameters"] = parameters
    assert Scoreboard(document).table("val").rows[0][-2] == shown


def test_csv_and_pandas_hold_every_number():
    board = Scoreboard(some_document())
    lines = list(csv.DictReader(io.StringIO(board.to_csv())))
    assert [(line["name"], line["split"]) for line in lines] == [
        (name, split) for split in ("val", "test") for name in NAMES
    ]
    assert float(lines[0]["nll_high"]) == 1.51
    assert float(lines[2]["string_accuracy_low"]) == 0.77
    assert lines[3]["nll"] == lines[3]["milliseconds"] == ""
    frame = board.to_pandas()
    assert list(frame.columns) == list(lines[0])
    assert frame.loc[2, "difference"] == 0.05
    assert pandas.isna(frame.loc[3, "nll"])
    assert frame["better"].tolist() == 2 * [False, False, True, True]


def test_markdown_and_text_are_the_same_and_hold_both_tables():
    board = Scoreboard(some_document())
    text = board.to_markdown()
    assert str(board) == text
    assert text.count("| **mean_probability** |") == 2
    assert all(sentence in text for sentence in board.summary())


def with_advice():
    """A document as it is written now: the best row is the mean, a member is recommended."""
    document = some_document(recommended="member 1")
    reasons = ["worse", None, "not told from the best, but costs 2 times as much", "a vote"]
    for entry, reason in zip(document["rows"], reasons, strict=True):
        entry["passed_over"] = reason
        entry["test"]["difference"]["p"] = 0.25
    return document


def test_a_cheaper_row_is_recommended_and_the_others_are_passed_over_for_a_reason():
    board = Scoreboard(with_advice())
    assert board.recommended == "member 1"
    assert list(board.passed_over) == ["member 0", "mean_probability", "string_vote"]
    assert (
        "\nRecommended: member 1. Validation does not tell it from mean_probability, which costs "
        "2 times as much.\n"
    ) in "\n".join(board.summary())
    frame = board.to_pandas()
    assert frame["passed_over"].isna().tolist()[:4] == [False, True, False, False]
    assert frame["p"].tolist()[4:] == [0.25] * 4


def test_what_the_first_version_wrote_has_no_advice():
    board = Scoreboard(some_document())
    assert board.recommended == board.best
    assert board.passed_over == {}
    assert "Recommended" not in " ".join(board.summary())
    assert board.to_pandas()["p"].isna().all()


def test_parameters_that_nobody_knows_are_a_dash():
    document = with_advice()
    document["rows"][1]["parameters"] = None
    board = Scoreboard(document)
    assert board.table("test").rows[1][-2] == "-"
    assert "costs 2 times as much" in " ".join(board.summary())  # in models
    assert pandas.isna(board.to_pandas().loc[1, "parameters"])


def test_html_escapes_what_a_stranger_named():
    document = some_document()
    document["rows"][0]["name"] = document["best_member"] = "<script>alert(1)</script>"
    shown = Scoreboard(document)._repr_html_()
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") >= 2


def summary(**changes):
    return " ".join(Scoreboard(some_document(**changes)).summary())


def test_the_summary_says_better_only_where_the_interval_says_so():
    assert "it is better than" in summary()
    document = some_document()
    document["rows"][2]["test"]["difference"]["better"] = False
    said = " ".join(Scoreboard(document).summary())
    assert "not shown to be better" in said
    assert "member 1" in said
    assert "+5.0 [+4.0, +6.0]" in said


def test_the_summary_says_when_no_fusion_is_best():
    assert "no fusion was better" in summary(best="member 1")


def with_soups(gain, **changes):
    """A document in which a soup of both members gains so much, another one a point less."""
    document = some_document(**changes)
    for name, extra in (("poor_soup", gain - 0.01), ("rich_soup", gain)):
        soup = row(name, [0, 1], 1234, 0.5, val=scores(0.73 + extra, extra, extra > 0.02, 1.2))
        soup |= {"kind": "soup", "models": 1, "test": copy.deepcopy(soup["val"])}
        document["rows"].append(soup)
    return document


def said(document):
    return "\n".join(Scoreboard(document).summary())


def test_a_soup_costs_as_much_as_one_model():
    best = said(with_soups(0.06, best="rich_soup"))
    assert best.startswith(
        "Best on validation: rich_soup. On test it is better than the best single member "
        "(member 1): +6.0 [+5.0, +7.0] points, at 1 times the inference cost."
    )
    assert "Best soup" not in best
    document = with_soups(0.02)
    assert (
        "\nBest soup: rich_soup. On test it is not shown to be better than the best single member "
        "(member 1): +2.0 [+1.0, +3.0] points, at 1 times the inference cost."
    ) in said(document)
    assert "at 2 times" in said(document)
    assert ",soup,2," in Scoreboard(document).to_csv()


def test_a_soup_that_is_worse_than_a_member_is_not_praised():
    assert "Best soup" not in said(with_soups(-0.3))
    assert "Best soup" not in said(some_document())


def test_notes_are_part_of_the_summary():
    assert "\nNo out-of-fold scores: ...\n" in said(
        some_document(notes=["No out-of-fold scores: ..."])
    )


def test_the_summary_says_what_is_unfinished():
    assert "Unfinished: 2 of 5 members" in summary(expected=5)
    assert "Unfinished" not in summary()


@pytest.mark.parametrize(("train", "leak"), [(0.7, False), (0.9, True), (0.5, True)])
def test_the_summary_warns_where_the_folds_leak(train, leak):
    folds = {"rows": 9, "metric": METRICS[0], "train": score(train), "test": score(0.71)}
    assert ("look for a leak" in summary(out_of_fold=folds)) == leak
    assert "leak" not in summary(out_of_fold=None)


def test_a_scoreboard_is_read_back(tmp_path):
    durable.write_json(tmp_path / "leaderboard.json", some_document())
    assert read_scoreboard(str(tmp_path)) == Scoreboard(some_document())


@pytest.mark.parametrize("document", [[], {}, {"schema": SCHEMA + 1}, "text", None])
def test_foreign_documents_are_refused(tmp_path, document):
    durable.write_json(tmp_path / "leaderboard.json", document)
    with pytest.raises(RunError, match=f"schema {SCHEMA}; run the same recipe again"):
        read_scoreboard(tmp_path)
