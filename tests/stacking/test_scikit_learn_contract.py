"""scikit-learn's own checks, where its contract applies: features (sample, feature) of classes.

Fits on members' predictions have members first, so of the others here only what needs no data is
checked: parameters, clones, and constructors.
"""

import warnings

import numpy as np
import pytest
from noisy_members import members
from sklearn.base import clone, is_classifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

from polyfuse.calibration import Beta, CalibratedPool, Isotonic, Temperature, Vector
from polyfuse.dynamic_selection import DynamicSelection
from polyfuse.errors import DataError
from polyfuse.greedy_selection import GreedySelection
from polyfuse.simplex import SimplexWeights
from polyfuse.stacking import Blender, Stacker
from polyfuse.thresholds import DecisionThresholds

pytest.importorskip("sklearn", "1.6", reason="checks that are expected to fail can be named")
APART = {
    "check_fit_score_takes_y": "what is fitted on is called predictions and labels, everywhere",
    "check_estimators_unfitted": "that fit was not called is told by a DataError, everywhere",
    "check_supervised_y_2d": "labels (n, 1) are refused, not flattened with a warning",
}
ONE_ROW = {"check_fit2d_1sample": "one row cannot be divided into parts; a DataError says so"}


def apart(estimator):
    return APART | (ONE_ROW if estimator.layers or isinstance(estimator, Blender) else {})


CHECKED = [
    Stacker(),
    Stacker(layers=(("logistic",),), final="mean", folds=2, meta=LogisticRegression()),
    Blender(holdout=0.5),
]
with warnings.catch_warnings():  # not derived from BaseEstimator, which importing would cost 1.5 s
    warnings.simplefilter("ignore")
    with_checks = parametrize_with_checks(CHECKED, expected_failed_checks=apart)


@pytest.mark.filterwarnings("ignore")  # the checks provoke them
@with_checks
def test_scikit_learns_checks(estimator, check):
    check(estimator)


OTHERS = [
    GreedySelection(),
    SimplexWeights(),
    DynamicSelection(),
    CalibratedPool(),
    Temperature(),
    Vector(),
    Beta(),
    Isotonic(),
    DecisionThresholds(),
    Stacker(target="numbers"),
]
WITHOUT_DATA = [
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_get_params_invariance",
    "check_no_attributes_set_in_init",
    "check_set_params",
]


@pytest.mark.parametrize("name", WITHOUT_DATA)
@pytest.mark.parametrize("estimator", OTHERS, ids=lambda one: type(one).__name__)
def test_checks_that_need_no_data(estimator, name):
    getattr(estimator_checks, name)(type(estimator).__name__, estimator)


def test_it_is_a_classifier_that_pipelines_and_searches_take():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(120, 4))
    labels = np.array(["no", "yes"])[(x[:, 0] + 0.3 * draw.normal(size=120) > 0).astype(int)]
    assert is_classifier(Stacker())
    pipe = make_pipeline(StandardScaler(), Stacker(final="mean", folds=3))
    assert cross_val_score(pipe, x, labels, scoring="accuracy").mean() > 0.8
    grid = {"final": ["refit", "mean"], "standardise": [True, False]}
    search = GridSearchCV(Stacker(), grid, scoring="neg_log_loss", cv=3).fit(x, labels)
    assert set(search.best_estimator_.predict(x)) == {"no", "yes"}


def test_a_clone_is_unfitted_and_fits_the_same():
    p, labels = members()
    fitted = Stacker(layers=[[LogisticRegression()]], meta="trees", seed=3).fit(p, labels)
    copy = clone(fitted)
    with pytest.raises(DataError, match="not fitted"):
        copy.predict_proba(p)
    assert np.array_equal(copy.fit(p, labels).predict_proba(p), fitted.predict_proba(p))


def test_features_and_members_do_not_mix():
    p, labels = members()
    fitted = Stacker().fit(p, labels)
    with pytest.raises(DataError, match=r"do not fit what was fitted, 4 members of \(3,\)"):
        fitted.predict(p[0])
    with pytest.raises(DataError, match=r"3 members of \(3,\)"):
        fitted.predict(p[:3])
    with pytest.raises(AttributeError):
        fitted.n_features_in_
    plain = Stacker().fit(p[0], labels)
    assert plain.n_features_in_ == 3
    with pytest.raises(DataError, match="do not fit what was fitted, 3 features"):
        plain.predict(p)
    with pytest.raises(DataError, match="plain features"):
        Stacker().fit(p[0], labels, trained=np.zeros((4, 240), bool))
