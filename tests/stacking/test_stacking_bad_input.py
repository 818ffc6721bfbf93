"""What does not fit is refused before anything is fitted, with the fix."""

import numpy as np
import pytest
from noisy_members import members, numbers
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.svm import LinearSVC
from torch import nn

from polyfuse.errors import DataError
from polyfuse.stacking import Stacker

REFUSED = {
    "meta": [
        ({"meta": "logistc"}, "did you mean 'logistic'"),
        ({"meta": "ridge"}, "'ridge' is no meta-model for classes.*it is one of logistic, trees"),
        ({"meta": "logistic", "target": "numbers"}, "no meta-model for numbers"),
        ({"meta": LinearSVC()}, "has no predict_proba for classes.*CalibratedClassifierCV"),
        ({"meta": RidgeClassifier()}, "has no predict_proba for classes"),
        ({"meta": LinearRegression()}, "has no predict_proba for classes"),
        ({"meta": LogisticRegression(), "target": "numbers"}, "predict for numbers"),
        ({"meta": LogisticRegression}, r"is no estimator; bring LogisticRegression\(\)"),
        ({"meta": 3}, "is no estimator"),
        ({"layers": [["logistic"], ["tree"]]}, "did you mean 'trees'"),
        ({"layers": ["logistic"]}, r"layers\[0\] is no sequence of meta-models"),
        ({"layers": [["logistic"], []]}, r"layers\[1\] is no sequence of meta-models"),
    ],
    "options": [
        ({"features": "log_probs"}, "did you mean 'log_prob'"),
        ({"target": "class"}, "did you mean 'classes'"),
        ({"final": "refits"}, "did you mean 'refit'"),
        ({"uncovered": "leave"}, "uncovered='leave' is not known"),
        ({"clip": 0.0}, "clip=0.0 must be above 0 and below 0.5"),
        ({"clip": float("nan")}, "clip=nan"),
        ({"passthrough": True}, "passthrough=True needs inputs="),
        ({"ordered": True, "final": "mean", "folds": [([0], [1])]}, "ordered=True needs a number"),
    ],
}


@pytest.mark.parametrize(("options", "told"), REFUSED["meta"] + REFUSED["options"])
def test_parameters_that_do_not_fit_are_refused(options, told):
    numeric = options.get("target") == "numbers"
    p, labels = numbers(n=40) if numeric else members(n=40)
    with pytest.raises(DataError, match=f"(?s){told}"):
        Stacker(**options).fit(p, labels)


def test_the_wrappers_that_messages_name_work():
    p, labels = members(n=90)
    fitted = Stacker(meta=CalibratedClassifierCV(LinearSVC(), cv=3)).fit(p, labels)
    assert (fitted.predict(p) == labels).mean() > 0.9


def test_logits_are_told_and_so_are_labels_in_other_coding():
    p, labels = members(n=40)
    with pytest.raises(DataError, match=r"(?s)labels are <U\d+.*np\.unique.*look like logits"):
        Stacker().fit(np.log(p) + 3, labels.astype(str))
    with pytest.raises(DataError, match="labels from 0 to 3 do not fit 3 classes"):
        Stacker().fit(p, labels + (labels == 2))


def test_groups_and_inputs_of_another_length_are_refused():
    p, labels = members(n=40)
    with pytest.raises(DataError, match=r"groups of shape \(39,\) do not fit 40 rows"):
        Stacker().fit(p, labels, groups=np.zeros(39))
    for inputs in (np.zeros((39, 2)), np.zeros(40), np.full((40, 2), "a")):
        with pytest.raises(DataError, match="inputs must be 40 rows of numbers"):
            Stacker(passthrough=True).fit(p, labels, inputs=inputs)
    broken = np.zeros((40, 2))
    broken[3, 1] = np.inf
    with pytest.raises(DataError, match="1 rows of inputs are not finite, row 3 the first"):
        Stacker(passthrough=True).fit(p, labels, inputs=broken)
    with pytest.raises(DataError, match="passthrough=False came with inputs"):
        Stacker().fit(p, labels, inputs=np.zeros((40, 2)))
    fitted = Stacker(passthrough=True).fit(p, labels, inputs=np.zeros((40, 2)))
    with pytest.raises(DataError, match="needs inputs="):
        fitted.predict(p)


def test_numbers_have_no_probabilities():
    said, targets = numbers(n=40)
    fitted = Stacker(target="numbers").fit(said, targets)
    with pytest.raises(DataError, match=r"call predict\(\)"):
        fitted.predict_proba(said)
    said[0, 3] = np.inf
    with pytest.raises(DataError, match="infinite numbers"):
        fitted.predict(said)


def test_classes_that_the_fitting_rows_lack_get_nothing_and_a_single_class_everything():
    p, labels = members(n=60, classes=4)
    keep = labels != 1
    fitted = Stacker().fit(p[:, keep], labels[keep])
    said = fitted.predict_proba(p)
    assert said.shape == (60, 4)
    assert (said[:, 1] == 0).all()
    assert np.allclose(said.sum(-1), 1)
    only = Stacker().fit(p[:, labels == 2], labels[labels == 2])
    assert (only.predict(p) == 2).all()


def test_members_that_say_the_same_and_columns_of_one_value_are_no_trouble():
    p, labels = members(n=60, count=2)
    same = np.stack([p[0], p[0], np.full((60, 3), 1 / 3)])
    fitted = Stacker().fit(same, labels)
    alone = Stacker().fit(p[:1], labels)
    assert np.isfinite(fitted.predict_proba(same)).all()
    assert (fitted.predict(same) == alone.predict(p[:1])).mean() > 0.95


def test_a_column_of_one_value_is_not_stretched_by_its_rounding_errors():
    draw = np.random.default_rng(0)
    x, level = draw.normal(size=(47, 2)), 0.1 / 3
    x[:, 1] = level
    x[::2, 1] = np.nextafter(level, 1)
    fitted = Stacker().fit(x, (x[:, 0] > 0).astype(int))
    moved = np.column_stack([x[:, 0], np.full(47, level + 0.01)])
    assert np.allclose(fitted.predict_proba(moved), fitted.predict_proba(x), atol=1e-6)


def test_an_estimator_object_is_cloned_and_a_random_state_of_none_is_the_seed():
    p, labels = members(n=60)
    meta = LogisticRegression()
    Stacker(meta=meta).fit(p, labels)
    assert not hasattr(meta, "coef_")
    first, again = (Stacker(meta="trees", seed=1).fit(p, labels).predict_proba(p) for _ in "ab")
    other = Stacker(meta="trees", seed=2).fit(p, labels).predict_proba(p)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_tensors_of_any_precision_are_taken():
    torch = pytest.importorskip("torch")
    p, labels = members(n=60)
    tensors = [torch.as_tensor(member, dtype=torch.bfloat16) for member in p]
    fitted = Stacker().fit(tensors, torch.as_tensor(labels))
    assert (fitted.predict(tensors) == labels).mean() > 0.8


def test_a_module_without_parameters_is_refused():
    p, labels = members(n=40)
    with pytest.raises(DataError, match="nothing to train"):
        Stacker(meta=nn.Flatten(), features="prob").fit(p[:1], labels)
