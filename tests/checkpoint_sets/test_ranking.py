"""The best ones: metrics in names, checkpoints and tables; no guess where it is ambiguous."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyfuse.checkpoint_sets import ranking
from polyfuse.checkpoint_sets.ranking import best, is_lower_better, metrics_in_name
from polyfuse.errors import CheckpointError

NAMED = ["epoch=1-val_acc=0.8-val_loss=0.9.ckpt", "epoch=2-val_acc=0.9-val_loss=1.2.ckpt"]


def chosen(names, count, metric=None, table=None, lower=None):
    return [one.path.name for one in best([Path(n) for n in names], count, metric, table, lower)]


def refused(*arguments, **options):
    with pytest.raises(CheckpointError) as caught:
        chosen(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("acc=0.91.pt", {"acc": 0.91}),
        ("val_loss=0.123.ckpt", {"val_loss": 0.123}),
        ("epoch=3-val_acc=0.9.ckpt", {"epoch": 3, "val_acc": 0.9}),
        ("epoch=3-val_acc=0.9-v2.ckpt", {"epoch": 3, "val_acc": 0.9}),
        ("loss=1e-05.pt", {"loss": 1e-5}),
        ("elbo=-1.5.pt", {"elbo": -1.5}),
        ("model_acc_0.91.pth.tar", {"model_acc": 0.91}),
        ("acc0.91.bin", {"acc": 0.91}),
        ("top1-76.5.pt[2]", {"top1": 76.5}),
        ("checkpoint_40.pt", {}),
        ("checkpoint-500", {}),
    ],
)
def test_metrics_in_a_name(name, metrics):
    assert metrics_in_name(name) == metrics


def test_the_metric_is_found_by_its_end_and_its_direction_by_its_words():
    assert chosen(NAMED, 1, "val_acc") == chosen(NAMED, 1, "acc") == [NAMED[1]]
    assert chosen(NAMED, 1, "loss") == [NAMED[0]]
    assert chosen(NAMED, 2, "loss") == NAMED
    assert chosen(NAMED, 1, "loss", lower=False) == [NAMED[1]]
    assert chosen(NAMED, 1, "epoch", lower=False) == [NAMED[1]]


def test_which_metric_is_asked_where_there_are_several():
    message = refused(NAMED, 1)
    assert message == (
        "which metric? the file names give 'epoch', 'val_acc', 'val_loss'; name one: --metric NAME"
    )


def test_one_metric_needs_no_name():
    assert chosen(["epoch=1-acc=0.8.pt", "epoch=2-acc=0.7.pt"], 1) == ["epoch=1-acc=0.8.pt"]


def test_a_metric_that_is_not_there(monkeypatch):
    monkeypatch.setattr(ranking, "_stored_metrics", lambda path: {})
    assert "not 'val_acccuracy'; did you mean 'val_acc'?" in refused(NAMED, 1, "val_acccuracy")
    assert "which metric? the checkpoints give no metric" in refused(["a.pt", "b.pt"], 1)


def test_a_metric_that_ends_two_names():
    names = ["val_acc=1.0-test_acc=2.0.pt", "val_acc=2.0-test_acc=1.0.pt"]
    assert "name one of them in full" in refused(names, 1, "acc")


def test_a_checkpoint_without_the_metric_is_not_passed_over():
    message = refused([*NAMED, "last.ckpt"], 1, "acc")
    assert message == "the file names give no 'val_acc' for 'last.ckpt'"


def test_a_direction_that_the_name_does_not_tell():
    message = refused(["elbo=1.0.pt", "elbo=2.0.pt"], 1)
    assert "'elbo' does not tell whether lower or higher is better; say --lower or --higher" in (
        message
    )
    with pytest.raises(CheckpointError):
        is_lower_better("loss_accuracy")


@pytest.mark.parametrize("name", ["val_loss", "valLoss", "eval/loss", "WER", "perplexity"])
def test_lower_is_better(name):
    assert is_lower_better(name)


@pytest.mark.parametrize("name", ["val_acc", "topAccuracy", "F1", "mAP", "val.iou", "bleu"])
def test_higher_is_better(name):
    assert not is_lower_better(name)


def test_the_checkpoints_own_metrics(monkeypatch):
    stored = {"a.pt": {"val_acc": 0.5}, "b.pt": {"val_acc": 0.7}}
    monkeypatch.setattr(ranking, "_stored_metrics", lambda path: stored[path.name])
    assert chosen(stored, 1) == chosen(stored, 1, "acc") == ["b.pt"]


CSV = "file,epoch,val_acc,note\na.pt,1,0.5,x\nsub/b.pt,2,0.7,y\nc,3,nan,\n"


@pytest.mark.parametrize(
    "text",
    [
        CSV,
        "\ufeff" + CSV,
        CSV.replace("file,", "Checkpoint, "),
        json.dumps({"a.pt": {"val_acc": 0.5}, "b.pt": {"val_acc": 0.7}, "c": {"val_acc": 0}}),
        json.dumps({"a.pt": 0.5, "b.pt": 0.7, "c.pt": 0.1}).replace("value", "acc"),
        json.dumps([{"path": p, "acc": v} for p, v in (("a.pt", 1), ("b.pt", 2), ("c", 0))]),
    ],
)
def test_a_table(tmp_path, text):
    table = tmp_path / ("t.json" if text[0] in "[{" else "t.csv")
    table.write_text(text, encoding="utf-8")
    files = ["sub/a.pt", "sub/b.pt", "sub/c.pt"]
    metric = None if "0.1" in text else "acc"
    lower = False if metric is None else None
    assert chosen(files, 1, metric, table, lower) == ["b.pt"]
    assert chosen(files, 2, metric, table, lower) == ["b.pt", "a.pt"]


def test_a_nan_is_never_the_best(tmp_path):
    (tmp_path / "t.csv").write_text(CSV)
    files = ["a.pt", "sub/b.pt", "c.pt"]
    message = refused(files, 3, "val_acc", tmp_path / "t.csv")
    assert message == "'val_acc' is NaN for 'c.pt'; ask for fewer"


@pytest.mark.parametrize(
    ("name", "text", "fact"),
    [
        ("t.csv", "", "is no table"),
        ("t.json", "{", "is no table"),
        ("t.json", "3", "is no table"),
        ("t.json", "[1, 2]", "is no table"),
        ("t.json", "[" * 100_000, "is no table"),
        ("t.csv", "who,acc\na.pt,1\n", "has no column 'file'; its columns are 'who', 'acc'"),
        ("t.csv", "file,acc\nb.pt,1\n", "needs one row for each checkpoint: 'a.pt' has none"),
        ("t.csv", "file,acc\na.pt,1\na.pt,2\n", "needs one row for each checkpoint: 'a.pt' has 2"),
        ("t.csv", "file,acc\na.pt,good\n", "give no metric"),
        ("t.csv", "file,acc\n\x00\n", "'t.csv'"),
    ],
)
def test_a_damaged_table(tmp_path, monkeypatch, name, text, fact):
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text)
    assert fact in refused(["a.pt"], 1, None, Path(name))


def test_a_table_that_is_not_there():
    from polyfuse.errors import PolyfuseError

    with pytest.raises(PolyfuseError, match=r"no\.csv"):
        chosen(["a.pt"], 1, None, Path("no.csv"))


@given(st.lists(st.floats(0, 1e6).map(lambda x: round(x, 3)), min_size=1, max_size=9), st.data())
def test_the_best_are_the_best(values, data):
    count = data.draw(st.integers(1, len(values)))
    paths = [Path(f"{i}-loss={value:.3f}.pt") for i, value in enumerate(values)]
    picked = best(paths, count, None, None, None)
    assert [one.value for one in picked] == sorted(values)[:count]
