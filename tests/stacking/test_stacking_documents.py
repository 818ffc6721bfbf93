"""Stored as JSON without pickle, and read back as if a stranger had sent it."""

import copy
import json
import sys

import numpy as np
import pytest
from noisy_members import members, numbers
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import ElasticNet, LogisticRegression, PoissonRegressor, SGDClassifier
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from polyfuse.errors import DataError, MissingExtraError, PolyfuseError
from polyfuse.stacking import Blender, Stacker

LINEAR = {
    "logistic": {},
    "deep": {"layers": [["logistic", LogisticRegression(C=3)]], "final": "mean", "folds": 2},
    "prob": {"features": "prob", "standardise": False, "meta": LogisticRegression(C=0.5)},
    "sgd": {"meta": SGDClassifier(loss="log_loss", max_iter=500)},
    "network": {"meta": "mlp", "training": {"epochs": 3}},
}


def passed_on(fitted, **options):
    text = json.dumps(fitted.document(), allow_nan=False)
    return type(fitted).from_document(json.loads(text), **options)


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("classes", [2, 3])
def test_classes_come_back_bit_for_bit(name, classes):
    if (name, classes) == ("sgd", 3):  # it has no softmax: an estimator like any other
        pytest.importorskip("skops")
    p, labels = members(n=80, classes=classes, heads=(2,) if name == "deep" else ())
    fitted = Stacker(**LINEAR[name]).fit(p, labels)
    back = passed_on(fitted)
    assert np.array_equal(back.predict_proba(p), fitted.predict_proba(p))
    assert np.array_equal(back.predict(p), fitted.predict(p))
    assert np.array_equal(back.rows_, fitted.rows_)
    assert back.summary() == fitted.summary()


@pytest.mark.parametrize("meta", ["ridge", "nonnegative", "mlp", ElasticNet(alpha=0.01)])
def test_numbers_come_back_bit_for_bit(meta):
    said, targets = numbers(n=80, outputs=(2,))
    fitted = Stacker(target="numbers", meta=meta).fit(said, targets)
    back = passed_on(fitted)
    assert np.array_equal(back.predict(said), fitted.predict(said))
    assert "skops" not in json.dumps(fitted.document())


def test_a_blender_with_inputs_and_a_head_of_one_class_comes_back():
    p, labels = members(n=80, heads=(2,))
    labels[:, 1] = 2
    inputs = np.random.default_rng(0).normal(size=(80, 3))
    fitted = Blender(holdout=np.arange(40), passthrough=True).fit(p, labels, inputs=inputs)
    back = passed_on(fitted)
    assert isinstance(back, Blender)
    assert back.holdout == list(range(40))
    said = back.predict_proba(p, inputs=inputs)
    assert np.array_equal(said, fitted.predict_proba(p, inputs=inputs))
    assert np.array_equal(said[:, 1], np.tile([0.0, 0.0, 1.0], (80, 1)))


def test_plain_features_with_named_classes_come_back():
    draw = np.random.default_rng(0)
    x, labels = draw.normal(size=(60, 3)), np.array(["cat", "dog", "eel"])[draw.integers(0, 3, 60)]
    fitted = Stacker().fit(x, labels)
    assert np.array_equal(passed_on(fitted).predict(x), fitted.predict(x))


def test_a_name_can_be_fitted_anew_and_an_object_that_was_only_named_cannot():
    p, labels = members(n=80)
    named = passed_on(Stacker(meta="logistic").fit(p, labels))
    assert np.array_equal(named.fit(p, labels).predict(p), named.predict(p))
    back = passed_on(Stacker(meta=LogisticRegression(C=0.5)).fit(p, labels))
    assert back.meta == "stored: LogisticRegression(C=0.5)"
    with pytest.raises(DataError, match="was only named where this was stored"):
        back.fit(p, labels)
    assert passed_on(back).meta == back.meta
    back.set_params(meta="logistic").fit(p, labels)


def test_what_looks_linear_and_is_not_is_not_stored_as_linear():
    said, targets = numbers(n=80)
    fitted = Stacker(target="numbers", meta=PoissonRegressor()).fit(said, np.abs(targets))
    assert type(fitted.layers_[0][0].models[0][0].model).__name__ == "Estimator"


def test_other_estimators_go_through_skops():
    pytest.importorskip("skops")
    p, labels = members(n=80)
    for meta in (DecisionTreeClassifier(max_depth=3), HistGradientBoostingClassifier(max_iter=3)):
        fitted = Stacker(meta=meta).fit(p, labels)
        document = json.loads(json.dumps(fitted.document()))
        assert document["found"]["layers"][0][0]["models"][0][0]["kind"] == "estimator"
        trusted = untrusted(document)
        back = Stacker.from_document(document, trusted=trusted)
        assert np.array_equal(back.predict_proba(p), fitted.predict_proba(p))


def untrusted(document):
    """Return the types that a document has to be trusted with, as the error names them."""
    try:
        Stacker.from_document(document)
    except DataError as error:
        return json.loads(str(error).rpartition("trusted=")[2])
    return []


class Mine(DecisionTreeClassifier):
    """A class that skops has no reason to trust."""


def test_types_that_nothing_vouches_for_are_refused_unless_named():
    pytest.importorskip("skops")
    p, labels = members(n=80)
    fitted = Stacker(meta=Mine(max_depth=2)).fit(p, labels)
    document = fitted.document()
    with pytest.raises(DataError, match=r'holds types that nothing vouches for: ".*\.Mine"'):
        Stacker.from_document(document)
    back = Stacker.from_document(document, trusted=untrusted(document))
    assert np.array_equal(back.predict(p), fitted.predict(p))


def test_without_skops_the_extra_is_named(monkeypatch):
    p, labels = members(n=80)
    fitted = Stacker(meta=DecisionTreeClassifier(max_depth=2)).fit(p, labels)
    monkeypatch.setitem(sys.modules, "skops.io", None)
    monkeypatch.setitem(sys.modules, "skops", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'polyfuse\[skops\]'"):
        fitted.document()


def test_a_factory_runs_only_where_it_is_trusted():
    p, labels = members(n=80)
    name = "meta_factories:small"
    fitted = Stacker(meta=name, training={"epochs": 2}).fit(p, labels)
    with pytest.raises(DataError, match=f"'{name}' names code"):
        passed_on(fitted)
    back = passed_on(fitted, trusted=[name])
    assert np.array_equal(back.predict_proba(p), fitted.predict_proba(p))
    assert back.meta == name
    document = fitted.document()
    document["found"]["layers"][0][0]["models"][0][0]["model"]["factory"] = "os:getcwd"
    with pytest.raises(DataError, match="'os:getcwd' names code"):
        Stacker.from_document(document, trusted=[name])


def test_reading_imports_neither_scikit_learn_nor_what_a_document_names(monkeypatch):
    p, labels = members(n=60)
    fitted = Stacker().fit(p, labels)
    document, expected = fitted.document(), fitted.predict_proba(p)
    document["parameters"]["meta"] = "antigravity:fly"
    for name in [name for name in sys.modules if name.partition(".")[0] in ("sklearn", "skops")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError):
        Stacker().fit(p, labels)
    back = Stacker.from_document(document)
    assert np.array_equal(back.predict_proba(p), expected)
    assert back.meta == "stored: antigravity:fly"
    assert "antigravity" not in sys.modules


def test_an_unfitted_stacking_and_a_module_without_a_name_are_not_stored():
    with pytest.raises(DataError, match=r"not fitted: call fit"):
        Stacker().document()
    p, labels = members(n=60)
    fitted = Stacker(meta=nn.Linear(12, 3), training={"epochs": 1}).fit(p, labels)
    with pytest.raises(DataError, match=r'meta="package\.module:factory"'):
        fitted.document()


def at(document, *path):
    for key in path[:-1]:
        document = document[key]
    return document, path[-1]


HEAD = ("found", "layers", 0, 0, "models", 0, 0)
DAMAGE = [
    (("found",), None),
    (("parameters",), {"metta": 1}),
    (("parameters", "features"), "probs"),
    (("parameters", "passthrough"), True),
    (("found", "shape"), [4, 5]),
    (("found", "shape"), [10**12, 3]),
    (("found", "shape"), []),
    (("found", "shape"), ["a", 3]),
    (("found", "classes"), [0, 1, 2, 3]),
    (("found", "classes"), None),
    (("found", "clip"), float("nan")),
    (("found", "rows"), {"count": 2**60, "bits": "ff"}),
    (("found", "rows"), {"count": 60, "bits": "zz"}),
    (("found", "layers"), []),
    (("found", "layers", 0), []),
    (("found", "layers", 0, 0, "models"), []),
    ((*HEAD, "shift"), [0.0]),
    ((*HEAD, "scale"), [0.0] * 12),
    ((*HEAD, "scale"), [[1.0] * 12]),
    ((*HEAD, "classes"), [0, 1, 7]),
    ((*HEAD, "classes"), [0, 0, 1]),
    ((*HEAD, "classes"), []),
    ((*HEAD, "width"), 10**9),
    ((*HEAD, "kind"), "pickle"),
    ((*HEAD, "kind"), "constant"),
    ((*HEAD, "kind"), "network"),
    ((*HEAD, "model", "link"), "sigmoid"),
    ((*HEAD, "model", "weights"), [[1.0] * 12]),
    ((*HEAD, "model", "weights"), [[1.0] * 12, [1.0]]),
    ((*HEAD, "model", "weights"), [[float("inf")] * 12] * 3),
    ((*HEAD, "model", "intercept"), "abc"),
]


@pytest.mark.parametrize("number", range(len(DAMAGE)))
def test_a_damaged_document_is_refused_whatever_is_wrong(number):
    path, value = DAMAGE[number]
    p, labels = members(n=60)
    document = copy.deepcopy(Stacker().fit(p, labels).document())
    inner, key = at(document, *path)
    inner[key] = value
    with pytest.raises(PolyfuseError):
        Stacker.from_document(document)
    del inner[key]
    with pytest.raises(PolyfuseError):
        Stacker.from_document(document)


@pytest.mark.parametrize("document", [None, [], "x", {}, {"parameters": 3, "found": {}}])
def test_what_is_no_document_is_refused(document):
    with pytest.raises(DataError, match="describes no"):
        Stacker.from_document(document)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sizes", [12, 10**9]),
        ("state", {}),
        ("state", {"0.weight": {"dtype": "object", "shape": [1], "values": [1]}}),
        ("shift", "a"),
        ("factory", None),
    ],
)
def test_a_damaged_network_is_refused(key, value):
    p, labels = members(n=60)
    document = Stacker(meta="mlp", training={"epochs": 1}).fit(p, labels).document()
    document["found"]["layers"][0][0]["models"][0][0]["model"][key] = value
    with pytest.raises(DataError):
        Stacker.from_document(document)
