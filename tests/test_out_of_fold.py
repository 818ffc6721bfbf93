"""Scores of training rows by the members that did not see them."""

import numpy as np
import pytest

import polyfuse
import polyfuse.tasks
import tiny
from polyfuse.out_of_fold import score_out_of_fold
from polyfuse.row_scores import all_metrics, score_rows

HEARD = np.array([[1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]], bool)


def splits(task):
    draw = np.random.default_rng(0)
    labels = {"classification": np.arange(6) % 3, "regression": draw.standard_normal((6, 1))}[task]
    split = polyfuse.Arrays(draw.standard_normal((6, 2)), labels, task=task)
    return polyfuse.Splits(split, split, split)


def population(folder, task, heard=HEARD):
    draw = np.random.default_rng(1)
    width = 3 if task == "classification" else 1
    said = draw.standard_normal((len(heard), 6, width)).astype(np.float32)
    train = np.where(heard[..., None], said, np.nan)
    logits = {i: {"train": train[i], "val": said[i], "test": said[i]} for i in range(len(heard))}
    return tiny.population(folder, splits(task), logits)


def scored(run):
    metrics = all_metrics(None, (), run.task)
    test = score_rows(
        {
            m.name: polyfuse.tasks.mean_of(run.task, m.predictions("test")[None])
            for m in run.members
        },
        run.labels("test"),
        metrics,
    )
    return score_out_of_fold(run, metrics, test, replicates=30, seed=0)


def test_classes_with_several_voices_a_row(tmp_path):
    run = population(tmp_path, "classification")
    found, labels = scored(run), run.labels("train")
    logits = run.stack("train").astype(float)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    single, together = [], []
    for row in range(4):
        voices = [probabilities[m, row] for m in range(2) if HEARD[m, row]]
        single.append(np.mean([voice.argmax() == labels[row] for voice in voices]))
        together.append(np.mean(voices, 0).argmax() == labels[row])
    assert found["rows"] == 4
    assert found["metric"] == "accuracy"
    assert found["train"]["value"] == pytest.approx(np.mean(single), abs=1e-12)
    assert found["together"]["value"] == pytest.approx(np.mean(together), abs=1e-12)
    # On test the members that held rows out, each alone; the third one is not among them.
    right = run.stack("test")[:2].argmax(-1) == run.labels("test")
    assert found["test"]["value"] == pytest.approx(right.mean(), abs=1e-12)


def test_numbers_with_several_voices_a_row(tmp_path):
    run = population(tmp_path, "regression")
    found, labels = scored(run), run.labels("train")[:4]
    told = run.stack("train")[:2, :4].astype(float)
    squares = np.nanmean((told - labels) ** 2, 0)
    assert found["metric"] == "rmse"
    assert found["train"]["value"] == pytest.approx(np.sqrt(squares.mean()), rel=1e-9)
    mean = np.nanmean(told, 0)
    wanted = np.sqrt(((mean - labels) ** 2).mean())
    assert found["together"]["value"] == pytest.approx(wanted, rel=1e-6)


def test_folds_have_one_voice_a_row_and_nothing_together(tmp_path):
    run = population(tmp_path, "classification", np.repeat(np.eye(2, dtype=bool), 3, 1))
    found = scored(run)
    right = np.nanmax(run.stack("train"), 0).argmax(-1) == run.labels("train")
    assert "together" not in found
    assert found["train"]["value"] == pytest.approx(right.mean(), abs=1e-12)


def test_where_nothing_is_held_out_there_is_nothing_to_tell(tmp_path):
    assert scored(population(tmp_path, "classification", np.zeros((2, 6), bool))) is None
