"""Views of a population of readers: characters and length heads are merged."""

from types import SimpleNamespace

import numpy as np
import pytest

import polyfuse
from polyfuse.combine import geometric_mean
from polyfuse.errors import DataError, RunError
from polyfuse.inference import Heads
from polyfuse.labels import write_labels
from polyfuse.members import write_member
from polyfuse.metrics import string_accuracy
from polyfuse.population_views import (
    ViewStore,
    choose_views,
    chosen_views,
    lengths_with_views,
    merge_heads,
    stack_with_views,
    views_kept,
)
from polyfuse.sequences import strings

BLANK, POSITIONS, ROWS = 4, 3, {"train": 8, "val": 60, "test": 30}
VIEWS = ["identity", "closer", "noise"]
NOISE = {"identity": 1.6, "closer": 1.6, "noise": 8.0}


def softmax(logits):
    raised = np.exp(logits - logits.max(-1, keepdims=True).astype("f8"))
    return raised / raised.sum(-1, keepdims=True)


def labels_of(split):
    draw = np.random.default_rng(len(split))
    rows = draw.integers(0, BLANK, (ROWS[split], POSITIONS))
    rows[np.arange(POSITIONS) >= draw.integers(1, POSITIONS + 1, (ROWS[split], 1))] = BLANK
    return rows


def heads(member, view, split, *, head):
    """Return what a member says of a view: it knows the labels, with a noise that is the view's."""
    draw = np.random.default_rng([member, VIEWS.index(view), len(split)])
    labels = labels_of(split)
    said = 3 * np.eye(BLANK + 1)[labels]
    said += NOISE[view] * draw.normal(size=said.shape)
    count = 3 * np.eye(POSITIONS + 1)[(labels != BLANK).sum(1)]
    count += NOISE[view] * draw.normal(size=count.shape)
    return Heads(said.astype("f4"), count.astype("f4") if head else None)


def populated(folder, with_head=(0, 1)):
    """Write two readers and what they say of all views."""
    data = {
        s: polyfuse.Arrays(np.zeros((n, 1)), labels_of(s), blank=BLANK) for s, n in ROWS.items()
    }
    write_labels(folder, polyfuse.Splits(**data))
    for index in range(2):
        said = {s: heads(index, "identity", s, head=True) for s in ROWS}
        characters = {s: h.characters for s, h in said.items()}
        lengths = {s: h.lengths for s, h in said.items() if s != "train"}
        record, own = {"index": index, "parameters": 1}, index in with_head
        write_member(folder, record, {}, characters, {}, lengths={None: lengths} if own else None)
    population = polyfuse.Population.open(folder)
    store = ViewStore(population)
    for member in population.members:
        for view in VIEWS[1:]:
            for split in ("val", "test"):
                said = heads(member.index, view, split, head=member.has_lengths)
                store.write(member, split, view, said)
    return population


@pytest.fixture
def readers(tmp_path):
    return populated(tmp_path)


def probabilities(view, split, what):
    return softmax(np.stack([getattr(heads(m, view, split, head=True), what) for m in range(2)]))


@pytest.mark.parametrize("combiner", [None, geometric_mean])
def test_strings_are_judged_whole_and_their_lengths_merged_too(readers, combiner):
    chosen = choose_views(readers, VIEWS, combiner=combiner, folds=3)
    assert chosen == chosen_views(readers)._replace(weights=chosen.weights)
    assert chosen.names == views_kept(readers) == ("identity", "closer")
    assert "string_accuracy" in " ".join(chosen.report)
    for split in ("val", "test"):
        for what, read in (("characters", stack_with_views), ("lengths", lengths_with_views)):
            each = np.stack([probabilities(view, split, what) for view in VIEWS[:2]])
            expected = each.mean(0) if combiner is None else softmax(np.log(each).mean(0))
            found = read(readers, split)
            assert found.dtype == np.float32
            np.testing.assert_allclose(np.exp(found), expected, rtol=1e-4, atol=1e-7)
    before = string_accuracy(
        probabilities("identity", "val", "characters").mean(0), labels_of("val"), blank=BLANK
    )
    after = string_accuracy(
        np.exp(stack_with_views(readers, "val")).mean(0), labels_of("val"), blank=BLANK
    )
    assert after.value > before.value


def test_the_figures_are_those_of_the_members_together(readers):
    choose_views(readers, VIEWS)
    raw = (readers.path / "views/chosen/chosen.json").read_text()
    told = string_accuracy(
        probabilities("identity", "val", "characters").mean(0), labels_of("val"), blank=BLANK
    )
    assert f'"score": {told.value}' in raw


def test_rows_of_validation_are_merged_by_choices_that_did_not_see_them(readers):
    chosen = choose_views(readers, VIEWS, choose="class_weights", folds=3)
    assert chosen.weights.shape == (3, BLANK + 1)
    each = np.stack([probabilities(view, "val", "characters") for view in VIEWS])
    found = np.exp(stack_with_views(readers, "val"))
    by_all = np.einsum("vc,vmnpc->mnpc", chosen.weights, each)
    by_all /= by_all.sum(-1, keepdims=True)
    away = np.abs(found - by_all).max((0, 2, 3))
    assert (away > 1e-4).mean() > 0.9  # on test it is one and the same choice
    test = np.stack([probabilities(view, "test", "characters") for view in VIEWS])
    by_all = np.einsum("vc,vmnpc->mnpc", chosen.weights, test)
    found = np.exp(stack_with_views(readers, "test"))
    np.testing.assert_allclose(found, by_all / by_all.sum(-1, keepdims=True), rtol=1e-3, atol=1e-6)
    # Classes of characters are no lengths: a view's weight is the mean over classes.
    lengths = np.stack([probabilities(view, "test", "lengths") for view in VIEWS])
    mixed = np.tensordot(chosen.weights.mean(1), lengths, 1)
    np.testing.assert_allclose(np.exp(lengths_with_views(readers, "test")), mixed, rtol=1e-4)


@pytest.mark.parametrize("choose", ["greedy", "weights", "class_weights", "all"])
def test_new_rows_are_merged_as_those_of_test_are(readers, choose):
    chosen = choose_views(readers, VIEWS, choose=choose, folds=3)
    for index in range(2):
        said = [heads(index, view, "test", head=True) for view in chosen.names]
        found = merge_heads(readers, chosen, said)
        np.testing.assert_array_equal(found.characters, stack_with_views(readers, "test")[index])
        np.testing.assert_array_equal(found.lengths, lengths_with_views(readers, "test")[index])
        assert strings(found.characters, blank=BLANK)


def test_a_member_without_a_length_head_says_nothing_of_lengths(tmp_path):
    readers = populated(tmp_path, with_head=(1,))
    choose_views(readers, VIEWS)
    lengths = lengths_with_views(readers, "test")
    assert np.isnan(lengths[0]).all()
    np.testing.assert_allclose(np.exp(lengths[1]).sum(-1), 1, rtol=1e-5)
    chosen = chosen_views(readers)
    said = [heads(0, view, "test", head=False) for view in chosen.names]
    assert merge_heads(readers, chosen, said).lengths is None


def test_without_length_heads_there_are_no_lengths(tmp_path):
    readers = populated(tmp_path, with_head=())
    choose_views(readers, VIEWS)
    assert lengths_with_views(readers, "val") is None


def test_where_no_view_helps_the_members_are_as_they_are(readers):
    choose_views(readers, ["identity", "noise"])
    assert views_kept(readers) == ()
    assert chosen_views(readers).names == ("identity",)
    plain = np.log(softmax(readers.stack("test")))
    np.testing.assert_allclose(stack_with_views(readers, "test"), plain, rtol=1e-4, atol=1e-5)
    plain = np.log(softmax(readers.lengths("val")))
    np.testing.assert_allclose(lengths_with_views(readers, "val"), plain, rtol=1e-4, atol=1e-5)


def test_a_view_that_was_not_predicted_is_an_error(readers):
    with pytest.raises(
        DataError, match="has no predictions '000/val/other'; it has 000/test/closer"
    ):
        choose_views(readers, ["identity", "other"])
    with pytest.raises(RunError, match="holds no choice of views"):
        stack_with_views(readers, "val")


def test_predictions_of_other_data_are_foreign(readers, tmp_path):
    store, (member, _) = ViewStore(readers), readers.members
    index = {**readers.index, "fingerprint": "0" * 64}
    other = SimpleNamespace(path=readers.path, index=index, rows=readers.rows, task=readers.task)
    with pytest.raises(
        DataError,
        match=r"is of data '\w+\.\.\.', not of '0+\.\.\.'; it is stale.*delete '\S+/views' and run",
    ):
        ViewStore(other).has(member, "val", "closer")
    assert store.has(member, "val", "closer")
    with pytest.raises(DataError, match="is there already"):
        store.write(member, "val", "closer", heads(0, "closer", "val", head=True))


def test_labels_that_nobody_knows_choose_nothing(tmp_path):
    known = polyfuse.Arrays(np.zeros((4, 1)), np.zeros(4, int))
    write_labels(tmp_path, polyfuse.Splits(known, polyfuse.Arrays(np.zeros((4, 1))), known))
    said = {split: np.zeros((4, 2), "f4") for split in ROWS}
    write_member(tmp_path, {"index": 0, "parameters": 1}, {}, said, {})
    with pytest.raises(DataError, match="the labels of val are unknown"):
        choose_views(polyfuse.Population.open(tmp_path), ["identity"])


def test_means_and_variances_have_no_views(tmp_path):
    data = polyfuse.Arrays(np.zeros((4, 1)), np.zeros(4, "f4"), task="mean_variance")
    write_labels(tmp_path, polyfuse.Splits(data, data, data))
    said = {split: np.zeros((4, 2), "f4") for split in ROWS}
    write_member(tmp_path, {"index": 0, "parameters": 1}, {}, said, {})
    with pytest.raises(DataError, match="views do not go with the task mean_variance"):
        choose_views(polyfuse.Population.open(tmp_path), ["identity"])
