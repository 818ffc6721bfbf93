"""Members and labels are joined by ids and names, or refused with all that does not fit at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfuse.errors import DataError
from polyfuse.predictions import (
    LabelColumn,
    Predictions,
    align,
    as_task,
    read_labels,
    read_predictions,
)

IDS = ["a", "b", "c", "d"]
PROBS = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.2, 0.5, 0.3]])
CLASSES = ["cat", "dog", "owl"]


def member(name="one", array=PROBS, **words):
    return Predictions(name=name, array=np.asarray(array), **words)


def labels(values=(0, 1, 2, 1), **words):
    return LabelColumn(values=np.asarray(values), name="y", **words)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_order_of_rows_and_columns_is_put_right(data):
    ids = data.draw(st.lists(st.text(max_size=4), min_size=1, max_size=6, unique=True))
    names = st.text("abé, ", max_size=3)
    classes = data.draw(st.lists(names, min_size=2, max_size=4, unique=True))
    array = np.arange(len(ids) * len(classes), dtype=float).reshape(len(ids), len(classes))
    truth = np.arange(len(ids)) % len(classes)
    shuffled, orders = [], []
    for number in range(3):
        rows = data.draw(st.permutations(range(len(ids))))
        orders.append(data.draw(st.permutations(range(len(classes)))))
        words = {"ids": [ids[i] for i in rows], "classes": [classes[i] for i in orders[-1]]}
        shuffled.append(member(str(number), array[rows][:, orders[-1]] + number, **words))
    rows = data.draw(st.permutations(range(len(ids))))
    called = sorted({classes[i] for i in truth})
    codes = np.array([called.index(classes[i]) for i in truth])[rows]
    known = labels(codes, ids=[ids[i] for i in rows], names=called)
    aligned, found = align(shuffled, known)
    assert list(found.ids) == [ids[i] for i in rows]
    assert [aligned[0].classes[i] for i in found.values] == [classes[i] for i in truth[rows]]
    for number, one in enumerate(aligned):
        assert (list(one.ids), one.classes) == (found.ids, list(shuffled[0].classes))
        np.testing.assert_array_equal(one.array, array[rows][:, orders[0]] + number)


def test_what_fits_is_not_copied():
    one, two = member("one", ids=IDS), member("two", PROBS[::-1].copy())
    aligned, truth = align([one, two], labels())
    assert aligned[0].array is one.array
    assert aligned[1].array is two.array
    assert truth.ids == aligned[1].ids == IDS


def test_files_without_ids_are_joined_by_position_and_it_is_told():
    plain = align([member("one"), member("two", PROBS[::-1])])[0]
    assert plain[0].ids is None
    assert plain[0].notes == ()
    mixed = align([member("one"), member("two", PROBS + 1, ids=IDS)])[0]
    assert mixed[0].notes == ("one without ids: taken to be in the order of 'two'",)


def test_rows_that_all_have_are_kept_on_request():
    one, two = member("one", ids=IDS), member("two", PROBS[:3] / 2, ids=["d", "x", "b"])
    known = labels(ids=["d", "c", "b", "a"])
    aligned, truth = align([one, two], known, rows="shared")
    assert truth.ids == ["d", "b"]
    np.testing.assert_array_equal(aligned[0].array, PROBS[[3, 1]])
    np.testing.assert_array_equal(aligned[1].array, PROBS[[0, 2]] / 2)
    assert truth.values.tolist() == [0, 2]
    assert aligned[0].notes == ("3 rows that not all files have are left out",)
    with pytest.raises(DataError, match="no row of 'one' is in all files"):
        align([one, member("two", PROBS[:1], ids=["z"])], rows="shared")


def test_all_mismatches_of_all_files_at_once():
    members = [
        member("one", ids=IDS, classes=CLASSES, space="prob", task="multiclass"),
        member("two", ids=["a", "b", "x", "y"], classes=["cat", "dog", "cow"]),
        member("three", ids=["a", "a", "b", "c"], space="logit"),
        member("four", PROBS[:3]),
        member("five", PROBS[:, :2], ids=IDS, task="binary"),
    ]
    with pytest.raises(DataError) as caught:
        align(members, labels(ids=IDS, values=[0, 1, 2, 7]))
    lines = str(caught.value).splitlines()
    assert lines == [
        "'three' has 1 ids more than once ('a'); keep one each",
        "'two' lacks 2 ids of 'y' ('c', 'd') and has 2 more ('x', 'y'); bring the same rows in "
        'every file, or keep those that all have: rows="shared", typed --rows shared',
        "'three' lacks 1 ids of 'y' ('d'); bring the same rows in every file, or keep those that "
        'all have: rows="shared", typed --rows shared',
        "'four' has 3 rows and no ids, but 'y' has 4; add a column of ids, or bring the same rows "
        "in the same order",
        "'two' has other classes than the first file: it lacks owl and has cow; give every file "
        "the same columns",
        "'five' has shape (4, 2), but 'one' has (4, 3); all need the same classes",
        "members differ in their space: prob in 'one'; logit in 'three'; bring all into one: "
        "probabilities are torch.softmax(logits, -1)",
        "members differ in their task: multiclass in 'one'; binary in 'five'; give all of them "
        "the same task",
        "'y' has labels that are no columns of the predictions: '0', '1', '2', '7'; these are cat, "
        "dog, owl: rename the columns or the labels",
    ]


def test_lengths_that_differ_without_ids():
    with pytest.raises(DataError, match="but 'y' has 4, 'one' has 4, 'two' has 3; add a column"):
        align([member("one"), member("two", PROBS[:3])], labels())


def test_examples_are_few_and_printable():
    ids = [f"\x1b[31m{i}" for i in range(500)]
    array = np.full((500, 2), 0.5)
    with pytest.raises(DataError) as caught:
        align([member("one", array, ids=ids), member("two", array[:1], ids=["q"])])
    assert "lacks 500 ids of 'one' ('\\x1b[31m0', '\\x1b[31m1', '\\x1b[31m2', ...)" in str(
        caught.value
    )
    assert len(str(caught.value)) < 400


def test_narrow_dtypes_are_widened_and_it_is_told():
    halves = [member(str(n), PROBS.astype(f"f{n}") + n) for n in (2, 4, 8)]
    aligned, _ = align(halves)
    assert {one.array.dtype for one in aligned} == {np.dtype("f8")}
    assert aligned[0].notes == ("'2': float16 is widened to float64",)
    assert aligned[2].notes == ()
    assert align(halves[:2])[0][0].array.dtype == np.float32


def test_the_same_predictions_twice_are_told():
    two = member("two", PROBS[::-1], ids=IDS[::-1])
    near = member("near", PROBS + np.where(np.arange(4)[:, None] == 3, 1e-9, 0), ids=IDS)
    aligned, _ = align([member("one", ids=IDS), near, two])
    assert aligned[2].notes == ("'two' has the same predictions as 'one'",)
    assert aligned[2].facts["same_as"] == "one"
    assert "same_as" not in aligned[0].facts
    assert "same_as" not in aligned[1].facts


def test_one_row_of_many_makes_predictions_different():
    many = np.full((1000, 2), 0.5)
    for row in range(0, 1000, 37):
        other = many.copy()
        other[row] = 0.25, 0.75
        assert align([member("one", many), member("two", other)])[0][1].notes == ()


def test_inputs_stay_as_they_were():
    one = member("one", PROBS.copy(), ids=IDS, classes=CLASSES)
    two = member("two", PROBS.astype("f4"), ids=IDS[::-1], classes=CLASSES[::-1])
    align([one, two], labels(ids=IDS))
    np.testing.assert_array_equal(one.array, PROBS)
    assert (two.ids, two.classes, two.notes) == (IDS[::-1], CLASSES[::-1], ())


# labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("truth", "classes", "values", "names"),
    [
        (labels(), None, [0, 1, 2, 1], None),
        (labels(), CLASSES, [0, 1, 2, 1], None),
        (labels((0, 0, 2, 2)), None, [0, 0, 2, 2], None),
        (labels((1, 0, 1, 1), names=["cat", "owl"]), CLASSES, [2, 0, 2, 2], CLASSES),
        (labels((1, 0, 1, 1), names=["cat", "owl"]), CLASSES[::-1], [0, 2, 0, 0], CLASSES[::-1]),
        (labels((30, 10, 20, 10)), ["10", "20", "30"], [2, 0, 1, 0], ["10", "20", "30"]),
        (labels((1, 2, 1, 2)), ["2", "1", "0"], [1, 0, 1, 0], ["2", "1", "0"]),
        (labels((7, 3, 5, 3)), None, [2, 0, 1, 0], ["3", "5", "7"]),
        (labels((-1, 1, 4, 1)), None, [0, 1, 2, 1], ["-1", "1", "4"]),
        (labels((2, 0, 1, 0), names=CLASSES), None, [2, 0, 1, 0], CLASSES),
    ],
)
def test_labels_are_coded_as_the_columns_are(truth, classes, values, names):
    _, found = align([member(classes=classes)], truth)
    assert found.values.tolist() == values
    assert found.names == names
    guessed = classes is None and names is not None
    assert [note[:40] for note in found.notes] == [
        "'y': labels are matched with columns in "
    ] * guessed


@pytest.mark.parametrize(
    ("truth", "classes", "told"),
    [
        (labels((0, 1, 2, 3)), None, r"4 different labels \('0', '1', '2', '3'\), .*3 columns"),
        (labels((1, 3, 3, 1)), None, "numbered 0 to 2; they count from 1: subtract 1"),
        (labels((0, 9, 9, 0)), None, "name the columns of the predictions after the labels"),
        (
            labels((0, 1, 0, 0), names=["cat", "cow"]),
            CLASSES,
            "no columns of the predictions: 'cow'",
        ),
        (labels((0, 1, 0, 0), names=["cat", "cow"]), None, "2 different labels"),
        (labels((0.5, 1, 0, 0)), None, "has fractions, such as 0.5; classes are whole numbers"),
        (labels([[0, 1]] * 4), None, r"labels of shape \(4, 2\), which do not fit"),
    ],
)
def test_labels_that_do_not_fit_are_refused_with_the_fix(truth, classes, told):
    with pytest.raises(DataError, match=told):
        align([member(classes=classes)], truth)


def test_heads_have_a_label_each():
    heads = np.stack([PROBS, PROBS], 1)
    truth = labels([[0, 1], [1, 2], [2, 0], [0, 0]])
    assert align([member(array=heads)], truth)[1].values.shape == (4, 2)
    with pytest.raises(DataError, match="bring one label a sample and head"):
        align([member(array=heads)], labels())


def test_multilabel_needs_noughts_and_ones():
    marks = as_task(member(), "multilabel")
    assert align([marks], labels((PROBS > 0.25).astype(int)))[1].values.shape == (4, 3)
    with pytest.raises(DataError, match="need a 0 or 1 for each sample and column"):
        align([marks], labels())


def test_numbers_need_numbers():
    values = as_task(member(array=PROBS[:, 0]), "regression")
    targets = labels((0.5, 1.0, 2.0, -1.0))
    assert align([values], targets)[1].values is targets.values
    with pytest.raises(DataError, match="'y' has texts, but the members have numbers"):
        align([values], labels((0, 1, 0, 1), names=["a", "b"]))


def test_decisions_as_texts_share_one_coding():
    one = member("one", [1, 0, 1, 1], space="label", classes=["cat", "dog"])
    two = member("two", [0, 0, 1, 0], space="label", classes=["dog", "owl"])
    aligned, truth = align([one, two], labels((0, 0, 1, 1), names=["ant", "cat"]))
    names = ["ant", "cat", "dog", "owl"]
    assert [[names[i] for i in m.array] for m in aligned] == [
        ["dog", "cat", "dog", "dog"],
        ["dog", "dog", "owl", "dog"],
    ]
    assert truth.values.tolist() == [0, 0, 1, 1]
    assert aligned[0].classes == truth.names == names
    with pytest.raises(DataError, match="'three' have labels as numbers, the others as texts"):
        align([one, member("three", [0, 1, 0, 0], space="label")])


def test_decisions_beside_probabilities_are_refused():
    with pytest.raises(DataError, match="'two' have decided labels, 'one' have numbers"):
        align([member("one"), member("two", [1, 0, 1, 1], space="label")])


def test_no_members_and_unknown_words():
    with pytest.raises(DataError, match="there are no members to align"):
        align([])
    with pytest.raises(DataError, match="did you mean 'shared'"):
        align([member()], rows="share")


def test_three_files_and_a_submission_end_to_end(tmp_path):
    np.save(tmp_path / "net.npy", PROBS.astype(np.float16))
    (tmp_path / "tree.csv").write_text(
        "owl,cat,dog\n" + "\n".join(",".join(map(str, row)) for row in PROBS[:, [2, 0, 1]])
    )
    rows = [f"{IDS[i]},{','.join(map(str, PROBS[i]))}" for i in (2, 0, 3, 1)]
    (tmp_path / "kaggle.csv").write_text("id,cat,dog,owl\n" + "\n".join(rows))
    (tmp_path / "y.csv").write_text("id,label\nb,dog\na,cat\nd,dog\nc,owl\n")
    files = ["kaggle.csv", "tree.csv"]
    members = [as_task(read_predictions(tmp_path / name)) for name in files]
    aligned, truth = align(members, read_labels(tmp_path / "y.csv"))
    np.testing.assert_array_equal(aligned[0].array, PROBS[[1, 0, 3, 2]])
    np.testing.assert_array_equal(aligned[1].array, PROBS)  # no ids: in the order of the labels
    assert truth.values.tolist() == [1, 0, 1, 2]
    assert (aligned[0].array.argmax(-1) == truth.values).all()
    assert any("without ids" in note for note in aligned[0].notes)
