"""Tasks of a run: labels that fit, outputs as they are meant, fusions and metrics by task."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import sklearn.metrics
import torch
from torch import nn

import tiny
from polyfuse import Arrays, Population, Splits, compare_fusions
from polyfuse.data.base import classes_of, task_of, truth_of
from polyfuse.errors import DataError, PolyfuseError, RunError
from polyfuse.inference import check_labels, predict
from polyfuse.labels import read_index, write_labels
from polyfuse.metrics import METRICS, bootstrap_counts
from polyfuse.row_scores import all_metrics
from polyfuse.scoreboard import read_scoreboard
from polyfuse.tasks import (
    FUSIONS,
    TASKS,
    default_fusions,
    fusion_for,
    fusions_for,
    mean_of,
    mean_said,
    meant,
    rules_of,
    written,
)

X = np.random.default_rng(0).standard_normal((4, 2))
NUMBERS = [0.5, -1.0, 2.0, 3.5]
LABELS = [[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]
OUTPUTS = np.random.default_rng(1).standard_normal((5, 6, 3))


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


# Labels ------------------------------------------------------------------------------------------


def test_labels_of_each_task_have_their_type():
    split = Arrays(X, NUMBERS, task="regression")
    assert (split.labels.dtype, split.labels.shape) == (np.float32, (4,))
    split = Arrays(X, torch.tensor(NUMBERS)[:, None], task="regression")
    assert (truth_of(split).dtype, split.labels.shape) == (np.float32, (4, 1))
    for given in (LABELS, np.array(LABELS, bool), torch.tensor(LABELS), np.array(LABELS, "f8")):
        split = Arrays(X, given, task="multilabel")
        assert split.labels.dtype == np.float32  # as torch's own binary cross-entropy takes them
        np.testing.assert_array_equal(truth_of(split), LABELS)
        assert truth_of(split).dtype == np.int64
    assert Arrays(X, task="regression").labels is None


def test_a_split_of_ones_own_is_of_classes_unless_it_says_otherwise():
    assert task_of(SimpleNamespace(labels=np.zeros(3, int))) == "classification"
    assert task_of(SimpleNamespace(task="multilabel")) == "multilabel"
    with pytest.raises(DataError, match="'multilabels' is not known; did you mean 'multilabel'"):
        task_of(SimpleNamespace(task="multilabels"))


def test_rows_are_balanced_by_classes_alone():
    np.testing.assert_array_equal(classes_of(Arrays(X, [0, 1, 1, 0])), [0, 1, 1, 0])
    assert classes_of(Arrays(X, [[0], [1], [1], [0]])) is None
    assert classes_of(Arrays(X, NUMBERS, task="regression")) is None
    assert classes_of(Arrays(X, LABELS, task="multilabel")) is None
    assert classes_of(Arrays(X)) is None


REFUSED = {
    "task": (NUMBERS, "regresion", "did you mean 'regression'"),
    "NaN": ([0.0, np.nan, 1.0, np.inf], "regression", r"in 2 of 4 rows \(first: \[1, 3\]\)"),
    "too large": ([0.0, 1e39, 1.0, 2.0], "regression", "more than float32 holds in 1 of 4"),
    "text": (list("abcd"), "regression", "must be numbers"),
    "three axes": (np.zeros((4, 2, 2)), "regression", r"of shape \(4, 2, 2\)"),
    "no outputs": (np.zeros((4, 0)), "regression", r"of shape \(4, 0\)"),
    "lengths": (NUMBERS[:3], "regression", "for 4 rows"),
    "columns": (np.zeros((4, 1)), "mean_variance", r"one number a row.* labels\[:, 0\]"),
    "one axis": ([0, 1, 1, 0], "multilabel", "give a column to each label"),
    "a class": ([[0], [1], [2], [0]], "multilabel", "but 1 are not, such as 2"),
    "a NaN": ([[0], [np.nan], [1], [0]], "multilabel", "but 1 are not, such as nan"),
    "numbers": (NUMBERS, "classification", 'say task="regression"'),
}


@pytest.mark.parametrize(("labels", "task", "fact"), REFUSED.values(), ids=REFUSED)
def test_labels_that_do_not_fit_their_task_are_refused(labels, task, fact):
    with pytest.raises(DataError, match=fact):
        Arrays(X, labels, task=task)


def test_the_fingerprint_sees_the_task():
    labels = np.array(LABELS, "f4")
    prints = {Arrays(X, labels, task=t).fingerprint() for t in ("multilabel", "regression")}
    assert len(prints) == 2


# Models ------------------------------------------------------------------------------------------

FIT = {
    "one number": (NUMBERS, "regression", nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))),
    "one output": (np.array(NUMBERS)[:, None], "regression", nn.Linear(2, 1)),
    "outputs": (np.zeros((4, 3)), "regression", nn.Linear(2, 3)),
    "labels": (LABELS, "multilabel", nn.Linear(2, 3)),
    "mean and variance": (NUMBERS, "mean_variance", nn.Linear(2, 2)),
}


@pytest.mark.parametrize(("labels", "task", "model"), FIT.values(), ids=FIT)
def test_models_that_fit_pass(labels, task, model):
    split = Arrays(X, labels, task=task)
    check_labels(model, split, np.arange(4))
    pairs = (2,) if task == "mean_variance" else ()
    assert predict(model, split).shape == (*split.labels.shape, *pairs)


MISFITS = {
    "a lone axis": (NUMBERS, "regression", 1, r"\(2, 1\), .* labels\[:, None\], or a model"),
    "fewer outputs": (np.zeros((4, 3)), "regression", 2, "as many outputs"),
    "no variance": (NUMBERS, "mean_variance", 1, r"mean and log-variance of each, \(rows, 2\)"),
    "logits of pairs": (LABELS, "multilabel", 6, r"to \(2, 6\), .*one logit for each"),
}


@pytest.mark.parametrize(("labels", "task", "outputs", "fact"), MISFITS.values(), ids=MISFITS)
def test_models_of_other_outputs_are_refused(labels, task, outputs, fact):
    with pytest.raises(DataError, match=fact):
        check_labels(nn.Linear(2, outputs), Arrays(X, labels, task=task), np.arange(4))


ODD = {
    "NaN": ("regression", np.array([[0.0], [np.nan]], "f4"), 1, "NaN or infinity in 1 of 2 rows"),
    "whole": ("regression", np.array([[0], [1]]), 1, r"labels.astype\('float32'\)"),
    "2": ("multilabel", np.array([[0], [2]]), 1, "zeros and ones, got int64 from 0 to 2"),
    "floats": ("classification", np.array([0.0, 1.0]), 2, 'task="regression" or'),
    "negative": ("classification", np.array([0, -1]), 2, "down to -1; number the classes from 0"),
}


@pytest.mark.parametrize(("task", "labels", "outputs", "fact"), ODD.values(), ids=ODD)
def test_labels_of_a_split_of_ones_own_are_looked_at(task, labels, outputs, fact):
    split = SimpleNamespace(
        labels=labels, task=task, blank=None, inputs=lambda rows: torch.zeros(len(rows), 2)
    )
    with pytest.raises(DataError, match=fact):
        check_labels(nn.Linear(2, outputs), split, np.arange(2))


def test_blank_is_of_character_strings():
    split = Arrays(X, LABELS, blank=2, task="multilabel")
    with pytest.raises(DataError, match="leave blank out"):
        check_labels(nn.Linear(2, 3), split, np.arange(4))


# Outputs, as they are meant ----------------------------------------------------------------------


def test_outputs_mean_what_the_task_says_and_nan_stays_nan():
    narrow = OUTPUTS.astype("f4")
    narrow[0, 0] = np.nan
    raised = np.exp(narrow.astype("f8"))
    narrow = narrow[..., :2]
    raised = raised[..., :2]
    expected = {
        "classification": raised / raised.sum(-1, keepdims=True),
        "multilabel": sigmoid(narrow.astype("f8")),
        "regression": narrow.astype("f8"),
        "mean_variance": np.stack([narrow[..., 0], raised[..., 1]], -1),
    }
    for task in TASKS:
        np.testing.assert_allclose(meant(task, narrow), expected[task], rtol=1e-14)
        assert meant(task, narrow).dtype == np.float64


def test_answers_as_text():
    strings = np.zeros((2, 2, 11))
    strings[0, :, 3] = strings[1, 0, 10] = 1
    assert written("classification", strings, 10) == ["33", ""]
    assert written("classification", np.array([1, 0]), None) == ["1", "0"]
    assert written("classification", np.array([[0.2, 0.8]]), None) == ["1"]
    assert written("multilabel", np.array([[0.6, 0.5, 0.9], [0.1, 0.2, 0.3]]), None) == ["0 2", ""]
    assert written("multilabel", np.array([[0, 1, 1]]), None) == ["1 2"]
    third = np.array([1 / 3], "f4")
    assert written("regression", third, None) == written("regression", third[:, None], None)
    assert np.float32(written("regression", third, None)[0]) == third[0]  # it reads back the same
    assert written("regression", np.array([[1.5, -2.0]]), None) == ["1.5 -2.0"]


# Fusions -----------------------------------------------------------------------------------------

NUMPY = {
    "mean_value": lambda z: z.mean(0),
    "median": lambda z: np.median(z, 0),
    "trimmed_mean": lambda z: np.sort(z, 0)[1:-1].mean(0),
    "winsorised_mean": lambda z: np.clip(z, *np.sort(z, 0)[[1, -2]]).mean(0),
    "maximum": lambda z: z.max(0),
    "minimum": lambda z: z.min(0),
    "boosted_sum": lambda z: z.sum(0),
}


def given_cut(name):
    return partial(FUSIONS[name], cut=0.2) if "trim" in name or "wins" in name else FUSIONS[name]


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 3)])
def test_fusions_of_numbers_are_those_of_numpy(shape):
    z = np.random.default_rng(2).standard_normal(shape)
    assert set(rules_of("regression").fusions) == set(NUMPY)
    for name, oracle in NUMPY.items():
        fusion = fusion_for("regression", name, given_cut(name))
        np.testing.assert_allclose(fusion(z), oracle(z), rtol=1e-12, err_msg=name)
    weighted = fusion_for(
        "regression", "mine", partial(FUSIONS["mean_value"], weights=[1] * 4 + [0])
    )
    np.testing.assert_allclose(weighted(z), z[:4].mean(0), rtol=1e-12)


def mixture(means, variances):
    """Return the moments of a mixture of equal parts, by its second moment."""
    mean = means.mean(0)
    return np.stack([mean, (variances + means**2).mean(0) - mean**2], -1)


def test_means_and_variances_make_a_mixture():
    outputs = np.random.default_rng(3).standard_normal((5, 6, 2))
    expected = mixture(outputs[..., 0], np.exp(outputs[..., 1]))
    fusion = fusion_for("mean_variance", "mixture_moments", FUSIONS["mixture_moments"])
    np.testing.assert_allclose(fusion(outputs), expected, rtol=1e-12)
    np.testing.assert_allclose(mean_of("mean_variance", outputs), expected, rtol=1e-12)
    said = meant("mean_variance", outputs)
    np.testing.assert_allclose(mean_said("mean_variance", said), expected, rtol=1e-12)
    said[0, :3] = said[1:, 3] = said[:, 5] = np.nan  # one is silent, one alone, nobody
    heard = mean_said("mean_variance", said)
    np.testing.assert_allclose(heard[:3], mixture(said[1:, :3, 0], said[1:, :3, 1]), rtol=1e-9)
    np.testing.assert_allclose(heard[3], said[0, 3], rtol=1e-12)
    assert np.isnan(heard[5]).all()
    np.testing.assert_allclose(heard[4], expected[4], rtol=1e-12)


@pytest.mark.parametrize("name", rules_of("multilabel").fusions)
def test_fusions_of_labels_are_those_of_pairs_no_and_yes(name):
    pairs = np.stack([np.zeros_like(OUTPUTS), OUTPUTS], -1)
    ours = fusion_for("multilabel", name, FUSIONS[name])(OUTPUTS)
    theirs = FUSIONS[name](pairs)
    assert ours.shape == OUTPUTS.shape[1:]
    if ours.dtype.kind == "f":
        np.testing.assert_allclose(ours, theirs[..., 1], rtol=1e-12)
    else:
        np.testing.assert_array_equal(ours, theirs)


def test_the_means_of_labels_are_those_of_sigmoids():
    of = partial(fusion_for, "multilabel")
    mean = of("mean_probability", FUSIONS["mean_probability"])(OUTPUTS)
    np.testing.assert_allclose(mean, sigmoid(OUTPUTS).mean(0), rtol=1e-12)
    mean = of("mean_logit", FUSIONS["mean_logit"])(OUTPUTS)
    np.testing.assert_allclose(mean, sigmoid(OUTPUTS.mean(0)), rtol=1e-12)
    votes = of("hard_vote", FUSIONS["hard_vote"])(OUTPUTS)
    np.testing.assert_array_equal(votes, (OUTPUTS > 0).sum(0) > 2)


def test_fusions_that_do_not_fit_are_refused_all_at_once_with_those_that_do():
    with pytest.raises(DataError) as caught:
        fusions_for("regression", {name: FUSIONS[name] for name in ("hard_vote", "mean_logit")})
    first, second = str(caught.value).splitlines()
    assert first.startswith("hard_vote does not fit the task regression, which takes mean_value, ")
    assert second.startswith("mean_logit does not fit")
    for task in TASKS:
        for name, fusion in FUSIONS.items():
            fits = name in rules_of(task).fusions
            aliased = name == "position_vote" and task == "multilabel"  # it is hard_vote
            if fits or aliased:
                fusion_for(task, name, fusion)
            else:
                with pytest.raises(DataError, match="does not fit"):
                    fusion_for(task, name, partial(fusion))
        assert set(default_fusions(task, None)) <= set(rules_of(task).fusions)


def test_functions_of_ones_own_and_options_that_are_given_stay():
    def own(z):
        return z[0]

    assert fusion_for("regression", "median", own) is own
    given = partial(FUSIONS["median"], space="logit")
    assert fusion_for("regression", "median", given) is given


# Populations -------------------------------------------------------------------------------------

ROWS = 24
NOISE = np.random.default_rng(3).standard_normal((4, ROWS, 3))


def data_of(task, rows=ROWS, shape=(3,), groups=None):
    truth = np.random.default_rng(4).standard_normal((rows, *shape))
    labels = (truth > 0).astype(int) if task == "multilabel" else truth
    return Splits(*(Arrays(np.zeros((rows, 2)), labels, groups, task=task) for _ in range(3)))


def members_of(data, count=4, scale=1.0):
    """Return outputs near the labels, with an error of its own for each member."""
    labels = data.val.labels
    near = 2 * labels - 1 if task_of(data.val) == "multilabel" else labels
    errors = NOISE[:count].reshape(count, ROWS, 3)[..., : near[0].size].reshape(count, *near.shape)
    said = [near + scale * error for error in errors]
    if task_of(data.val) == "mean_variance":
        said = [np.stack([mean, NOISE[m, :, 2]], -1) for m, mean in enumerate(said)]
    return {m: {s: said[m].copy() for s in ("train", "val", "test")} for m in range(count)}


def population_of(folder, task, **options):
    data = data_of(task, **options)
    return tiny.population(folder, data, members_of(data))


def test_the_folder_says_its_task_and_an_older_one_is_of_classes(tmp_path):
    write_labels(tmp_path, data_of("multilabel"))
    assert Population(tmp_path, ()).task == "multilabel"
    assert Population(tmp_path, ()).labels("val").dtype == np.int64
    index = tmp_path / "labels" / "index.json"
    index.write_text(index.read_text().replace('"task"', '"other"'))
    assert Population(tmp_path, ()).task == "classification"
    index.write_text(index.read_text().replace('"other": "multilabel"', '"task": "../x"'))
    with pytest.raises(RunError, match="no record of schema 1"):
        read_index(tmp_path / "labels")


def test_splits_of_several_tasks_are_refused(tmp_path):
    data = data_of("regression")._replace(val=data_of("multilabel").val)
    with pytest.raises(DataError, match="train of regression, val of multilabel, test of reg"):
        write_labels(tmp_path, data)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_what_base_models_say_is_the_mean_of_those_that_have_a_say(tmp_path, task):
    data = data_of(task)
    outputs = members_of(data, 2)
    outputs[0]["train"][:10] = outputs[1]["train"][8:] = np.nan
    population = tiny.population(tmp_path, data, outputs)
    said = population.base_predictions("train")
    ours = [meant(task, outputs[m]["train"].astype("f4")) for m in (0, 1)]
    np.testing.assert_allclose(said, ours, rtol=1e-6)
    assert np.isnan(said[0, :10]).all()
    mean = population.out_of_fold()
    assert np.isnan(mean[8:10]).all()
    np.testing.assert_allclose(mean[:8], outputs[1]["train"][:8], rtol=1e-6)


def crps_by_integral(said, labels):
    """Return the mean of the integral over z of (P(z) - [z >= y])^2 of normal distributions."""
    z = np.linspace(-30, 30, 6_001)
    total = 0.0
    for (mean, variance), y in zip(said.astype("f8"), labels, strict=True):
        p = scipy.special.ndtr((z - mean) / np.sqrt(variance))
        total += scipy.integrate.trapezoid((p - (z >= y)) ** 2, z)
    return total / len(labels)


def oracle(task, metric, said, labels):
    """Return what scikit-learn scores."""
    if metric == "crps":
        return crps_by_integral(said, labels)
    if task in ("regression", "mean_variance"):
        said = said if task == "regression" else said[:, 0]
        if metric == "rmse":
            return sklearn.metrics.mean_squared_error(labels, said) ** 0.5
        return sklearn.metrics.mean_absolute_error(labels, said)
    p = np.asarray(said, "f8")
    if metric == "f1":
        return sklearn.metrics.f1_score(labels, p > 0.5, average="macro")
    each = range(labels.shape[1])
    if metric == "nll":
        return sum(sklearn.metrics.log_loss(labels[:, k], p[:, k], labels=[0, 1]) for k in each)
    return np.mean([2 * sklearn.metrics.brier_score_loss(labels[:, k], p[:, k]) for k in each])


@pytest.mark.parametrize(
    ("task", "shape"),
    [("multilabel", (3,)), ("regression", ()), ("regression", (2,)), ("mean_variance", ())],
)
def test_every_score_is_that_of_scikit_learn_with_intervals_over_groups(tmp_path, task, shape):
    groups = np.repeat(np.arange(ROWS // 3), 3)
    population = population_of(tmp_path, task, shape=shape, groups=groups)
    board = compare_fusions(population, replicates=20, seed=5)
    labels, counts = population.labels("val"), bootstrap_counts(ROWS, 20, seed=5, groups=groups)
    names = {
        "multilabel": ["nll", "brier", "f1"],
        "regression": ["rmse", "mae"],
        "mean_variance": ["crps", "rmse", "mae"],
    }[task]
    assert board.document["metrics"] == names
    stack = population.stack("val")
    said = {f"member {i}": mean_of(task, one[None]) for i, one in enumerate(stack)}
    said |= {name: population.said(name, "val") for name in default_fusions(task, None)}
    assert [row["name"] for row in board.rows] == list(said)
    for row in board.rows:
        for metric in names:
            answer, found = said[row["name"]], row["val"][metric]
            if found is None:
                assert (row["name"], metric in ("nll", "brier")) == ("hard_vote", True)
                continue
            close = 1e-3 if metric == "crps" else 1e-6  # the integral is a sum
            assert found["value"] == pytest.approx(oracle(task, metric, answer, labels), rel=close)
    if task == "mean_variance":
        return
    metric, answer, found = names[0], said["member 1"], board.row("member 1")["val"]
    drawn = [
        oracle(task, metric, np.repeat(answer, n, 0), np.repeat(labels, n, 0))
        for n in counts.astype(int)
    ]
    interval = (found[metric]["low"], found[metric]["high"])
    assert interval == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), rel=1e-6)


def test_lower_is_better_and_the_mean_of_numbers_is_told_from_its_members(tmp_path):
    board = compare_fusions(population_of(tmp_path, "regression"), replicates=300)
    assert board.best == "mean_value"
    gain = board.row("mean_value")["test"]["difference"]
    assert gain["better"]
    assert gain["value"] < gain["high"] < 0
    assert not any(
        row["test"]["difference"]["better"] for row in board.rows if row["kind"] == "member"
    )
    assert "better than the best single member" in board.summary()[0]
    shown = str(board)
    assert "|  | RMSE | MAE | vs best member |" in shown
    assert board.to_pandas()["rmse"].notna().all()


def test_a_vote_has_no_likelihood_so_it_is_shown_and_never_chosen(tmp_path):
    board = compare_fusions(population_of(tmp_path, "multilabel"), replicates=40)
    row = board.row("hard_vote")
    assert row["val"]["difference"] is None
    assert row["val"]["f1"]["value"] > 0
    assert row["passed_over"].startswith("not scored: nll needs probabilities")
    assert board.best != "hard_vote"
    again = read_scoreboard(tmp_path)
    assert str(again) == str(board)
    (line,) = [one for one in str(board).splitlines() if "hard_vote" in one][:1]
    assert line.startswith("| hard_vote | - | - | ")
    assert "hard_vote" in board.to_csv()


def test_fusions_are_kept_as_they_are_meant(tmp_path):
    population = population_of(tmp_path, "regression", shape=())
    compare_fusions(population, fusions={"mine": lambda z: z.min(0)}, replicates=5)
    assert population.fusion("mine")["space"] == "value"
    np.testing.assert_array_equal(population.said("mine", "val"), population.stack("val").min(0))
    (tmp_path / "other").mkdir()
    population = population_of(tmp_path / "other", "multilabel")
    compare_fusions(population, fusions=["mean_probability", "hard_vote"], replicates=5)
    assert population.fusion("mean_probability")["space"] == "log_prob"
    expected = sigmoid(population.stack("val").astype("f8")).mean(0)
    np.testing.assert_allclose(population.said("mean_probability", "val"), expected, rtol=1e-5)
    assert population.said("hard_vote", "val").dtype == np.int64


def test_metrics_and_fusions_that_do_not_fit_are_refused(tmp_path):
    population = population_of(tmp_path, "regression")
    with pytest.raises(
        DataError, match=r"accuracy, brier do not fit .*has rmse, mae, and takes no"
    ):
        compare_fusions(population, metrics=["accuracy", "brier"])
    with pytest.raises(DataError, match="hard_vote does not fit the task regression"):
        compare_fusions(population, fusions=["mean_value", "hard_vote"])
    with pytest.raises(PolyfuseError, match="unknown fusion 'mean_values'; did you mean 'mean_v"):
        compare_fusions(population, fusions=["mean_values"])


def test_more_metrics_of_labels(tmp_path):
    population = population_of(tmp_path, "multilabel")
    board = compare_fusions(population, metrics=["accuracy", "auroc", "f1"], replicates=9)
    labels, p = population.labels("val"), mean_of("multilabel", population.stack("val")[:1])
    found = board.row("member 0")["val"]
    assert found["accuracy"]["value"] == pytest.approx(((p > 0.5) == labels).mean())
    area = sklearn.metrics.roc_auc_score(labels, p, average="macro")
    assert found["auroc"]["value"] == pytest.approx(area)
    assert list(all_metrics(None, ["f1"], "multilabel")) == ["nll", "brier", "f1"]
    assert set(METRICS) > {"nll", "brier", "f1"}
