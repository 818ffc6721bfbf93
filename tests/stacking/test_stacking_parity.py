"""The same numbers as scikit-learn's stacking and cross_val_predict, on the same folds."""

import numpy as np
import pytest
from noisy_members import members, numbers
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
    StackingRegressor,
)
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    RepeatedKFold,
    StratifiedKFold,
    cross_val_predict,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from polyfuse.cross_fitting import cross_fitted
from polyfuse.stacking import Stacker


class Says(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose predictions are columns of its inputs."""

    def __init__(self, first=0, classes=3):
        self.first, self.classes = first, classes

    def fit(self, x, y=None):
        self.classes_ = np.arange(self.classes)
        return self

    def predict_proba(self, x):
        return x[:, self.first : self.first + self.classes]

    def predict(self, x):
        return self.predict_proba(x).argmax(1)


class SaysNumber(RegressorMixin, BaseEstimator):
    def __init__(self, column=0):
        self.column = column

    def fit(self, x, y=None):
        self.fitted_ = True
        return self

    def predict(self, x):
        return x[:, self.column]


def flat(p):
    return np.concatenate(list(p), -1)


def theirs(p, final, **options):
    classes = p.shape[-1]
    each = [(f"m{i}", Says(i * classes, classes).fit(None)) for i in range(len(p))]
    return StackingClassifier(each, final, cv="prefit", stack_method="predict_proba", **options)


PLAIN = {"features": "prob", "standardise": False}
METAS = [
    LogisticRegression(C=0.3),
    GaussianNB(),
    RandomForestClassifier(10, random_state=3),
    HistGradientBoostingClassifier(max_iter=5),
]


@pytest.mark.parametrize("meta", METAS, ids=lambda meta: type(meta).__name__)
@pytest.mark.parametrize("classes", [2, 3])
def test_classes_as_stacking_classifier_of_fitted_members(meta, classes):
    p, labels = members(classes=classes)
    new, _ = members(1, classes=classes)
    their = theirs(p, meta).fit(flat(p), labels)
    ours = Stacker(meta=meta, **PLAIN).fit(p, labels)
    assert np.allclose(ours.predict_proba(new), their.predict_proba(flat(new)), atol=1e-9)
    assert (ours.predict(new) == their.predict(flat(new))).all()


def test_passthrough_as_stacking_classifier():
    p, labels = members()
    whole = flat(p)
    their = theirs(p, LogisticRegression(), passthrough=True).fit(whole, labels)
    ours = Stacker(passthrough=True, meta=LogisticRegression(), **PLAIN)
    ours.fit(p, labels, inputs=whole)
    assert np.allclose(ours.predict_proba(p, inputs=whole), their.predict_proba(whole), atol=1e-9)


@pytest.mark.parametrize("meta", [Ridge(2.0), LinearRegression(positive=True)])
def test_numbers_as_stacking_regressor_of_fitted_members(meta):
    said, targets = numbers()
    each = [(f"m{i}", SaysNumber(i).fit(None)) for i in range(len(said))]
    their = StackingRegressor(each, meta, cv="prefit").fit(said.T, targets)
    ours = Stacker(target="numbers", meta=meta, standardise=False).fit(said, targets)
    new, _ = numbers(1)
    assert np.allclose(ours.predict(new), their.predict(new.T), rtol=1e-9)
    standard = make_pipeline(StandardScaler(), meta).fit(said.T, targets)
    ours = Stacker(target="numbers", meta=meta).fit(said, targets)
    assert np.allclose(ours.predict(new), standard.predict(new.T), rtol=1e-9)


def columns(p, kind, clip):
    if kind == "log_prob":
        return flat(np.log(np.maximum(p, clip)))
    inside = np.clip(p, clip, 1 - clip)
    return flat(np.log(inside / (1 - inside)))


@pytest.mark.parametrize("kind", ["log_prob", "logit"])
def test_features_are_clipped_at_one_in_the_rows_and_standardised(kind):
    p, labels = members()
    p[0, :50] = np.eye(3)[labels[:50]]  # zeros and ones
    pipe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    pipe.fit(columns(p, kind, 1 / 240), labels)
    ours = Stacker(features=kind).fit(p, labels)
    assert ours.clip_ == 1 / 240
    assert np.allclose(ours.predict_proba(p), pipe.predict_proba(columns(p, kind, 1 / 240)))


FOLDS = {
    "stratified": StratifiedKFold(4, shuffle=True, random_state=5),
    "plain": KFold(3),
    "groups": GroupKFold(4),
}


@pytest.mark.parametrize("name", FOLDS)
def test_out_of_fold_predictions_are_those_of_cross_val_predict(name):
    p, labels = members()
    groups = np.arange(240) // 6 if name == "groups" else None
    pipe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    their = cross_val_predict(
        pipe,
        columns(p, "log_prob", 1 / 240),
        labels,
        cv=FOLDS[name],
        method="predict_proba",
        groups=groups,
    )
    fitted = Stacker(final="mean", folds=FOLDS[name]).fit(p, labels, groups=groups)
    assert np.allclose(fitted.out_of_fold_, their, atol=1e-9)
    outside = cross_fitted(Stacker(clip=1 / 240), p, labels, folds=4, seed=5)
    if name == "stratified":  # cross_fitted numbers its folds in the same way
        assert np.allclose(outside, their, atol=1e-9)


def test_repeats_are_averaged_by_how_often_a_row_was_predicted():
    p, labels = members(n=60)
    repeated = RepeatedKFold(n_splits=3, n_repeats=4, random_state=0)
    pipe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    x, total = columns(p, "log_prob", 1 / 60), np.zeros((60, 3))
    for fit, held in repeated.split(x):
        total[held] += pipe.fit(x[fit], labels[fit]).predict_proba(x[held])
    fitted = Stacker(final="mean", folds=repeated).fit(p, labels)
    assert np.allclose(fitted.out_of_fold_, total / 4, atol=1e-9)
    uneven = [*KFold(3).split(x), (np.arange(10, 60), np.arange(5))]
    fitted = Stacker(final="mean", folds=uneven).fit(p, labels)
    once = pipe.fit(x[10:], labels[10:]).predict_proba(x[:5])
    first = Stacker(final="mean", folds=KFold(3)).fit(p, labels).out_of_fold_
    assert np.allclose(fitted.out_of_fold_[:5], (once + first[:5]) / 2, atol=1e-9)
    assert np.allclose(fitted.out_of_fold_[5:], first[5:], atol=1e-12)


LAYER = [LogisticRegression(), GaussianNB()]


def test_layers_as_nested_stacking_classifiers():
    """Members -> two meta-models, predicted out of fold -> one: StackingClassifier on columns."""
    p, labels = members()
    cv = StratifiedKFold(3, shuffle=True, random_state=1)
    each = [("a", LAYER[0]), ("b", LAYER[1])]
    their = StackingClassifier(each, LogisticRegression(), cv=cv).fit(flat(p), labels)
    ours = Stacker(layers=[LAYER], meta=LogisticRegression(), folds=cv, **PLAIN).fit(p, labels)
    new, _ = members(1)
    assert np.allclose(ours.predict_proba(new), their.predict_proba(flat(new)), atol=1e-6)


def test_layers_with_inputs_as_written_out():
    """Every layer sees the inputs beside what the layer before says."""
    p, labels = members()
    new, _ = members(1)
    inputs, new_inputs = (np.random.default_rng(i).normal(size=(240, 2)) for i in range(2))
    cv = StratifiedKFold(3, shuffle=True, random_state=1)
    x, y = np.hstack([flat(p), inputs]), np.hstack([flat(new), new_inputs])
    outside = [cross_val_predict(m, x, labels, cv=cv, method="predict_proba") for m in LAYER]
    final = LogisticRegression().fit(np.hstack([*outside, inputs]), labels)
    said = [clone(m).fit(x, labels).predict_proba(y) for m in LAYER]
    expected = final.predict_proba(np.hstack([*said, new_inputs]))
    ours = Stacker(
        layers=[LAYER], meta=LogisticRegression(), folds=cv, passthrough=True, **PLAIN
    ).fit(p, labels, inputs=inputs)
    assert np.allclose(ours.predict_proba(new, inputs=new_inputs), expected, atol=1e-6)


def test_numbers_in_layers_as_nested_stacking_regressors():
    said, targets = numbers()
    cv = KFold(4)
    each = [("a", Ridge(1.0)), ("b", LinearRegression())]
    their = StackingRegressor(each, Ridge(0.5), cv=cv).fit(said.T, targets)
    ours = Stacker(
        target="numbers",
        layers=[[model for _, model in each]],
        meta=Ridge(0.5),
        folds=cv,
        standardise=False,
    ).fit(said, targets)
    new, _ = numbers(1)
    assert np.allclose(ours.predict(new), their.predict(new.T), rtol=1e-9)


def test_the_mean_of_fold_models_is_their_mean():
    p, labels = members()
    cv = KFold(4)
    fitted = Stacker(final="mean", folds=cv, layers=[["logistic"]], **PLAIN).fit(p, labels)
    x, new = flat(p), members(1)[0]
    meta = LogisticRegression(C=0.1, max_iter=1000)
    models = [clone(meta).fit(x[f], labels[f]) for f, _ in cv.split(x)]
    outside = np.zeros((240, 3))
    for model, (_, held) in zip(models, cv.split(x), strict=True):
        outside[held] = model.predict_proba(x[held])
    second = [clone(meta).fit(outside[f], labels[f]) for f, _ in cv.split(x)]
    between = np.mean([model.predict_proba(flat(new)) for model in models], 0)
    expected = np.mean([model.predict_proba(between) for model in second], 0)
    assert np.allclose(fitted.predict_proba(new), expected, atol=1e-9)
    assert fitted.summary().endswith("by the mean of 4 folds")
    refit = Stacker(folds=cv, layers=[["logistic"]], **PLAIN).fit(p, labels)
    assert refit.summary().endswith("by a refit on all of them")
    assert refit.out_of_fold_ is None
    assert not np.allclose(refit.predict_proba(new), expected, atol=1e-6)


@pytest.mark.parametrize("heads", [(2,), (2, 2)])
def test_each_head_has_a_meta_model_of_its_own(heads):
    p, labels = members(n=120, heads=heads)
    new, _ = members(1, n=120, heads=heads)
    fitted = Stacker(layers=[["logistic"]]).fit(p, labels)
    said = fitted.predict_proba(new)
    assert said.shape == (120, *heads, 3)
    for head in np.ndindex(heads):
        index = (slice(None), slice(None), *head)
        # With several heads folds are not balanced by one head's classes.
        alone = Stacker(layers=[["logistic"]], folds=KFold(5, shuffle=True, random_state=0))
        alone.fit(p[index], labels[index[1:]])
        assert np.allclose(said[index[1:]], alone.predict_proba(new[index]), atol=1e-12)


def test_each_output_of_numbers_has_a_meta_model_of_its_own():
    said, targets = numbers(outputs=(2,))
    fitted = Stacker(target="numbers").fit(said, targets)
    for output in range(2):
        alone = Stacker(target="numbers").fit(said[..., output], targets[:, output])
        assert np.allclose(fitted.predict(said)[:, output], alone.predict(said[..., output]))
