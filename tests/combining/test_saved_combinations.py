"""The folder of a combination: what is in it, what is refused, and its use on new files."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from polyfuse.combining import SavedCombination, combine_predictions, is_combination
from polyfuse.combining.documents import document_of, fitted_from
from polyfuse.combining.fits import Weighted
from polyfuse.errors import DataError, PolyfuseError, RunError
from polyfuse.predictions import read
from polyfuse.scoreboard import read_scoreboard
from tiny_members import classes, given, softmax

FEW = {"replicates": 30}
NAMES = ("cat", "dog", "fish")


def write_members(folder, said, ids, columns=NAMES):
    """Write a CSV of probabilities for each member."""
    folder.mkdir()
    for number, member in enumerate(said):
        lines = [
            f"{i},{','.join(map(repr, row))}" for i, row in zip(ids, member.tolist(), strict=True)
        ]
        text = "\n".join([f"file_name,{','.join(columns)}", *lines])
        (folder / f"m{number}.csv").write_text(text + "\n")
    return sorted(folder.iterdir())


@pytest.fixture
def files(tmp_path):
    """Return files of four members, and of labels, by their names."""
    said, labels = classes(rows=60)
    fresh, _ = classes(rows=20, seed=1)
    text = "\n".join(["file_name,species", *(f"v{i},{NAMES[k]}" for i, k in enumerate(labels))])
    (tmp_path / "y.csv").write_text(text + "\n")
    return {
        "val": write_members(tmp_path / "val", said, [f"v{i}" for i in range(60)]),
        "test": write_members(tmp_path / "test", fresh, [f"t{i}" for i in range(20)]),
        "labels": tmp_path / "y.csv",
        "fresh": fresh,
    }


@pytest.fixture
def done(files):
    return combine_predictions(
        files["val"], files["labels"], test=files["test"], method="caruana", **FEW
    )


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def test_what_is_in_the_folder(done, tmp_path):
    out = done.save(tmp_path / "deep" / "out")
    assert is_combination(out)
    record = json.loads((out / "combination.json").read_text())
    assert set(record["files"]) | {"combination.json"} == set(contents(out))
    assert record["classes"] == list(NAMES)
    assert [m["name"] for m in record["members"]] == ["m0", "m1", "m2", "m3"]
    assert all(len(m["fingerprint"]) == 64 for m in record["members"])
    assert {m["space"] for m in record["members"]} == {"prob"}
    assert record["weights"]["caruana"] == done.weights["caruana"]
    assert record["fitted"]["own"]["weights"] == list(done.weights["caruana"].values())
    assert np.array_equal(read(out / "predictions" / "val.npy"), done.predictions["val"])
    assert json.loads((out / "predictions" / "test_ids.json").read_text())[0] == "t0"
    assert read_scoreboard(out).document == done.scoreboard.document


def test_the_submission_has_the_names_that_came_in(done, tmp_path):
    lines = list(
        csv.reader((done.save(tmp_path / "out") / "submission.csv").read_text().splitlines())
    )
    assert lines[0] == ["file_name", *NAMES]
    assert [line[0] for line in lines[1:3]] == ["t0", "t1"]
    numbers = np.array([line[1:] for line in lines[1:]], float)
    assert np.array_equal(numbers, done.predictions["test"])


def test_the_same_command_writes_the_same_bytes(done, files, tmp_path):
    first = contents(done.save(tmp_path / "out"))
    assert contents(done.save(tmp_path / "out")) == first
    again = combine_predictions(
        files["val"], files["labels"], test=files["test"], method="caruana", **FEW
    )
    assert contents(again.save(tmp_path / "other")) == first
    assert not list(tmp_path.glob(".*"))


def test_foreign_folders_are_refused_and_left_as_they_are(done, files, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("dear diary")
    with pytest.raises(RunError, match="is no combination; name another: -o FOLDER"):
        done.save(mine)
    with pytest.raises(RunError, match="is no folder"):
        done.save(mine / "notes.txt")
    out = done.save(tmp_path / "out")
    (out / "notes.txt").write_text("dear diary")
    with pytest.raises(RunError, match=r"has 'notes.txt', which polyfuse did not write"):
        done.save(out)
    (out / "notes.txt").unlink()
    other = combine_predictions(files["val"][:3], files["labels"], **FEW)
    with pytest.raises(RunError, match="of other members or labels"):
        other.save(out)
    assert json.loads((out / "combination.json").read_text())["use"] == "caruana"
    assert (mine / "notes.txt").read_text() == "dear diary"


def test_other_options_replace_a_combination_of_the_same_members(done, files, tmp_path):
    out = done.save(tmp_path / "out")
    combine_predictions(files["val"], files["labels"], method="mean", **FEW).save(out)
    assert json.loads((out / "combination.json").read_text())["use"] == "mean"
    assert not (out / "predictions" / "test.npy").exists()


def test_new_files_are_combined_bit_for_bit_in_any_order_of_files_rows_and_columns(
    done, files, tmp_path
):
    saved = SavedCombination(done.save(tmp_path / "out"))
    answers = saved.predict(files["test"][::-1])
    assert np.array_equal(answers.predictions, done.predictions["test"])
    assert answers.table == (tmp_path / "out" / "submission.csv").read_text()
    order, turned = [2, 0, 1], files["fresh"][:, ::-1]
    ids = [f"t{i}" for i in range(20)][::-1]
    columns = [NAMES[i] for i in order]
    again = write_members(tmp_path / "turned", turned[..., order], ids, columns)
    answers = saved.predict(again)
    assert list(answers.ids) == ids
    assert np.array_equal(answers.predictions, done.predictions["test"][::-1])


def test_members_without_a_say_may_be_missing_others_may_not(files, tmp_path):
    done = combine_predictions(
        files["val"], files["labels"], test=files["test"], method="best", **FEW
    )
    (used,) = done.rows["best"].members
    saved = SavedCombination(done.save(tmp_path / "out"))
    answers = saved.predict([files["test"][used]])
    assert np.array_equal(answers.predictions, done.predictions["test"])
    with pytest.raises(DataError, match=f"the predictions lack 'm{used}'"):
        saved.predict([files["test"][used - 1]])


def test_by_order_where_no_name_fits_and_it_is_said(done, files, tmp_path):
    saved = SavedCombination(done.save(tmp_path / "out"))
    answers = saved.predict(list(files["fresh"]))
    assert np.array_equal(answers.predictions, done.predictions["test"])
    assert "by their order" in answers.notes[0]
    with pytest.raises(DataError, match="lack 'm3'"):
        saved.predict(list(files["fresh"][:3]))


def test_other_classes_shapes_and_spaces_are_refused(done, files, tmp_path):
    saved = SavedCombination(done.save(tmp_path / "out"))
    ids = [f"t{i}" for i in range(20)]
    other = write_members(tmp_path / "o", files["fresh"], ids, ("cat", "dog", "bird"))
    with pytest.raises(DataError, match="'m0' has other classes: cat, dog, bird"):
        saved.predict(other)
    with pytest.raises(DataError, match=r"\(4,\) numbers a row"):
        saved.predict([softmax(np.zeros((5, 4))) for _ in range(4)])
    with pytest.raises(DataError, match="these look like log-prob"):
        saved.predict(list(np.log(files["fresh"])))
    logits = saved.predict(list(np.log(files["fresh"])), space="logit")
    assert np.allclose(logits.predictions, done.predictions["test"])
    with pytest.raises(DataError, match="has decided classes"):
        saved.predict(list(files["fresh"].argmax(-1)))


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multi_head", "regression", "quantiles"])
def test_answers_as_a_table_of_each_kind(kind, tmp_path):
    said, labels, options = given(kind, rows=20)
    done = combine_predictions(said, labels, method="mean", **FEW, **options)
    out = done.save(tmp_path / "out")
    head, *rows = csv.reader((out / "submission.csv").read_text().splitlines())
    expected = {
        "binary": ["id", "prediction"],
        "multilabel": ["id", "0", "1", "2"],
        "multi_head": ["id", "label"],
        "regression": ["id", "prediction"],
        "quantiles": ["id", "q0.1", "q0.5", "q0.9"],
    }
    assert head == expected[kind]
    assert [row[0] for row in rows] == [str(i) for i in range(20)]
    if kind == "multi_head":
        assert set("".join(row[1] for row in rows)) <= set("012")


def test_decided_labels_go_out_under_their_names(tmp_path):
    said, labels = classes(rows=30, members=3)
    paths = []
    for number, member in enumerate(said.argmax(-1)):
        paths.append(tmp_path / f"s{number}.csv")
        lines = [f"{i},{NAMES[k]}" for i, k in enumerate(member)]
        paths[-1].write_text("\n".join(["PassengerId,Species", *lines]) + "\n")
    truth = [NAMES[k] for k in labels]
    done = combine_predictions(paths, truth, method="vote", **FEW)
    table = (done.save(tmp_path / "out") / "submission.csv").read_text().splitlines()
    assert table[0].split(",")[1] == "Species"
    assert {line.split(",")[1] for line in table[1:]} <= set(NAMES)
    again = SavedCombination(tmp_path / "out").predict(paths)
    assert again.table.splitlines() == table


def test_damaged_and_foreign_records_are_refused(done, tmp_path):
    out = done.save(tmp_path / "out")
    path = out / "combination.json"
    whole = json.loads(path.read_text())
    changes = [
        {"schema": 2},
        {"task": "chess"},
        {"members": whole["members"][:1]},
        {"members": [{"name": 1}] * 4},
        {"fitted": {"kind": "weighted", "schema": 1, "own": {"mean": "value", "weights": [-1]}}},
        {"fitted": {"kind": "subprocess", "schema": 1, "own": {}}},
        {"columns": []},
        {"shape": ["a"]},
        {"files": {"../x": {"bytes": 1, "sha256": "0"}}},
    ]
    for change in changes:
        path.write_text(json.dumps({**whole, **change}))
        with pytest.raises(RunError, match=r"combination\.json'.*combine again"):
            SavedCombination(out)
    for text in ("{", "[]", "null", '{"schema": 1}'):
        path.write_text(text)
        with pytest.raises(RunError, match="combine again"):
            SavedCombination(out)


@pytest.mark.parametrize(
    "document",
    [
        {"mean": "median", "weights": [1.0]},
        {"mean": "value", "weights": []},
        {"mean": "value", "weights": [0.0, 0.0]},
        {"mean": "value", "weights": [[[1.0]]]},
        {"mean": "value", "weights": [float("nan")]},
        {"mean": "value"},
    ],
)
def test_weights_of_strangers_are_checked(document):
    with pytest.raises(DataError):
        fitted_from({"schema": 1, "kind": "weighted", "own": document})


def test_calibrated_documents_are_not_nested():
    inner = document_of(Weighted.from_document({"mean": "probability", "weights": [1.0, 2.0]}))
    nested = {"schema": 1, "kind": "calibrated", "combination": inner, "calibrator": inner}
    for wrong in (nested, {**nested, "combination": nested}, {**nested, "more": 1}):
        with pytest.raises(PolyfuseError):
            fitted_from(wrong)


def test_a_combination_that_nobody_finished_is_not_there(done, tmp_path, monkeypatch):
    def full(path, *buffers, new=False):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("polyfuse.durable.write_bytes", full)
    with pytest.raises(PolyfuseError, match=r"full|space"):
        done.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not [p for p in Path(tmp_path).iterdir() if p.name.startswith(".")]
