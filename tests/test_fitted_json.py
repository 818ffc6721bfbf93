"""What was fitted, through JSON and back: exact; and documents of strangers never do harm."""

import copy
import json
import math
import sys
import types
from functools import cache, partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfuse import metrics
from polyfuse.calibration import CALIBRATORS, Beta, CalibratedPool, Isotonic, Temperature, Vector
from polyfuse.dynamic_selection import DynamicSelection
from polyfuse.errors import DataError
from polyfuse.fitted_json import KINDS, Kind, StoredFunction, from_document, to_document
from polyfuse.fitted_json.values import LARGE, decode, encode
from polyfuse.greedy_selection import GreedySelection
from polyfuse.simplex import SimplexWeights
from polyfuse.stacking import Blender, Stacker
from polyfuse.thresholds import DecisionThresholds

DRAW = np.random.default_rng(0)
LABELS = DRAW.integers(0, 3, 50)
P = DRAW.dirichlet(np.ones(3), (4, 50))
X = DRAW.normal(size=(50, 2))
NUMBERS = X[:, 0] + DRAW.normal(size=(4, 50))


def right_half(prediction, labels):
    """A metric of the user's own that an import finds."""
    return float((prediction.argmax(-1) == labels)[:25].mean())


ON_MEMBERS = {
    "greedy": lambda: GreedySelection(start=2).fit(P, LABELS),
    "greedy with bags": lambda: GreedySelection(bags=4, metric="brier").fit(P, LABELS),
    "greedy with a budget": lambda: GreedySelection(budget=3.0).fit(P, LABELS, [1, 2, 3, 4]),
    "greedy by a function": lambda: GreedySelection(metric=right_half).fit(P, LABELS),
    "simplex": lambda: SimplexWeights(l2=0.1).fit(P, LABELS),
    "simplex of classes": lambda: SimplexWeights(per_class=True, loss="brier").fit(P, LABELS),
    "dynamic": lambda: DynamicSelection(k=5, distance="hellinger").fit(P, LABELS),
    "dynamic in steps": lambda: DynamicSelection(method="soft", power=math.pi).fit(P, LABELS),
} | {
    f"{method}, {'each' if each else 'pool'}{', weighed' if given else ''}": partial(
        CalibratedPool(method=method, per_member=each, weights=given).fit, P, LABELS
    )
    for method in CALIBRATORS
    for each in (False, True)
    for given in (None, [1, 0, 2, 0.5])
}
ON_SCORES = {
    "temperature": lambda: Temperature(space="prob", bounds=(0.1, 10.0)).fit(P[0], LABELS),
    "vector": lambda: Vector(space="prob").fit(P[0], LABELS),
    "beta": lambda: Beta().fit(P[0], LABELS),
    "isotonic": lambda: Isotonic().fit(P[0], LABELS),
}
OTHERS = {
    "weights": lambda: np.array([0.1, 0.2, 0.7]),
    "weights of classes": lambda: DRAW.random((4, 3)),
    "numbers": lambda: SimplexWeights(loss="mse").fit(NUMBERS, X[:, 0]),
    "greedy of numbers": lambda: GreedySelection(metric="mse").fit(NUMBERS, X[:, 0]),
    "thresholds of classes": lambda: DecisionThresholds().fit(P[0], LABELS),
    "thresholds of labels": lambda: DecisionThresholds(average="micro").fit(
        P[0], np.eye(3, dtype=int)[LABELS]
    ),
    "dynamic by inputs": lambda: DynamicSelection(space="features", standardise=True).fit(
        P, LABELS, inputs=X
    ),
    "heads": lambda: DynamicSelection(k=3).fit(P.reshape(4, 10, 5, 3), LABELS.reshape(10, 5)),
}
STACKED = {
    "stacker": lambda: Stacker().fit(P, LABELS),
    "stacker of layers": lambda: Stacker(layers=[["logistic"]], final="mean", folds=3).fit(
        P, LABELS
    ),
    "blender": lambda: Blender(meta="logistic", holdout=0.4).fit(P, LABELS),
}


class FittedOnce(dict):
    """What is fitted when a test first asks for it, and not in every process that collects."""

    def __missing__(self, name):
        makers = {**ON_MEMBERS, **ON_SCORES, **OTHERS, **STACKED}
        self[name] = makers[name]()
        return self[name]


NAMES = [*ON_MEMBERS, *ON_SCORES, *OTHERS, *STACKED]
ALL = FittedOnce()


def through_json(fitted):
    return from_document(json.loads(json.dumps(to_document(fitted), allow_nan=False)))


def same(one, other):
    """Tell whether two values are the same, bit by bit and type by type."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return (
            one.dtype == other.dtype
            and one.shape == other.shape
            and one.tobytes() == other.tobytes()
        )
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if hasattr(one, "get_params"):
        return same_parts(one, other)
    return one == other or (one != one and other != other)


def same_parts(one, other):
    a, b = vars(one), vars(other)
    return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if not callable(a[k]))


def test_every_kind_is_tried():
    assert {to_document(ALL[name])["kind"] for name in NAMES} >= set(KINDS)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in STACKED])
def test_there_and_back_is_exact(name):
    fitted, back = ALL[name], through_json(ALL[name])
    assert same(fitted, back)
    assert to_document(back) == to_document(fitted)


@pytest.mark.parametrize("name", [*ON_MEMBERS, *STACKED])
def test_what_comes_back_predicts_the_same(name):
    new = np.random.default_rng(1).dirichlet(np.ones(3), (4, 20))
    assert np.array_equal(ALL[name].predict_proba(new), through_json(ALL[name]).predict_proba(new))


def test_scores_thresholds_and_numbers_predict_the_same():
    for name in ON_SCORES:
        assert np.array_equal(
            ALL[name].predict_proba(P[1]), through_json(ALL[name]).predict_proba(P[1])
        )
    for name in ("numbers", "greedy of numbers"):
        assert np.array_equal(ALL[name].predict(NUMBERS), through_json(ALL[name]).predict(NUMBERS))
    for name in ("thresholds of classes", "thresholds of labels"):
        assert np.array_equal(ALL[name].predict(P[1]), through_json(ALL[name]).predict(P[1]))
    back = through_json(ALL["dynamic by inputs"])
    assert np.array_equal(back.predict(P, inputs=X), ALL["dynamic by inputs"].predict(P, inputs=X))


def test_what_comes_back_can_be_fitted_again():
    for name in ("simplex", "greedy", "dynamic", "beta, each, weighed"):
        assert same(through_json(ALL[name]).fit(P, LABELS), ALL[name])


numbers = st.floats(width=64) | st.sampled_from([0.1, -0.0, 5e-324, 1.7976931348623157e308])


@given(st.lists(numbers, max_size=8), st.sampled_from(["float64", "float32", "float16"]))
def test_floats_are_exact_in_every_precision(values, dtype):
    with np.errstate(over="ignore"):
        array = np.array(values, np.float64).astype(dtype)
    plain = [float(v) for v in values]
    for value in (array, tuple(plain), plain, array.reshape(-1, 1, 1)):
        text = json.dumps(encode(value, None), allow_nan=False)
        back = decode(json.loads(text), None)
        if isinstance(value, np.ndarray):  # a NaN comes back as the plain one
            assert np.array_equal(back, value, equal_nan=True)
            assert (back.dtype, back.shape) == (value.dtype, value.shape)
            assert np.array_equal(
                np.signbit(back),
                np.signbit(value) & ~np.isnan(value) | np.isnan(value) & np.signbit(back),
            )
        else:
            assert same(back, value)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64", "int32", "uint8", "bool"])
def test_large_arrays_are_bytes_and_small_ones_are_read_by_eye(dtype):
    array = (DRAW.random((LARGE + 1, 1)) * 100).astype(dtype)
    large, small = encode(array, None), encode(array[:5], None)
    assert "base64" in large
    assert small["values"] == array[:5, 0].tolist()
    for value, coded in ((array, large), (array[:5], small)):
        back = decode(json.loads(json.dumps(coded)), None)
        assert same(back, value)
        back[0] = 0  # it may be written to
    assert same(decode(encode(array.T[::-1], None), None), np.ascontiguousarray(array.T[::-1]))
    big_endian = np.arange(LARGE + 1, dtype=">i8")
    assert np.array_equal(decode(encode(big_endian, None), None), big_endian)


def test_a_function_is_stored_by_name_and_never_imported(monkeypatch):
    document = to_document(ALL["greedy by a function"])
    assert document["parameters"]["metric"] == {"function": f"{__name__}:right_half"}
    assert "notes" not in document
    back = from_document(document)
    assert back.metric == StoredFunction(f"{__name__}:right_half")
    with pytest.raises(
        DataError, match=rf"stored by its name \({__name__}:right_half\).*set_params"
    ):
        back.fit(P, LABELS)
    back.set_params(metric=right_half)
    assert same(back.fit(P, LABELS), ALL["greedy by a function"])
    for name in ("os:system", "no_such_module_at_all:f", "antigravity:geohash"):
        document["parameters"]["metric"]["function"] = name
        before = set(sys.modules)
        assert from_document(document).metric.name == name
        assert set(sys.modules) == before


def test_a_function_without_a_name_is_said_to_be_lost():
    def inner(prediction, labels):
        return 0.0

    for metric in (
        lambda p, y: 0.0,
        inner,
        metrics.scored_by(right_half),
        types.MethodType(right_half, P),
    ):
        document = to_document(
            GreedySelection(metric=metric, rounds=1).fit(P, LABELS)
            if metric is inner
            else _with(metric)
        )
        assert document["parameters"]["metric"] == {"function": None}
        assert document["notes"] == [
            "metric is a function without a name that an import finds, so it is not stored: set it "
            "again before fitting"
        ]
        assert from_document(document).metric == StoredFunction(None)
        assert to_document(from_document(document)) == document


def _with(metric):
    fitted = copy.copy(ALL["greedy by a function"])
    return fitted.set_params(metric=metric)


class Own:
    """A class that brings its own document."""

    def __init__(self, size):
        self.size = size

    def document(self):
        return {"size": self.size}

    @classmethod
    def from_document(cls, document):
        return cls(10 // document["size"])


def test_a_class_may_bring_its_own_document():
    kinds = {**KINDS, "own": Kind(Own)}
    document = to_document(Own(5), kinds=kinds)
    assert document == {"schema": 1, "kind": "own", "own": {"size": 5}}
    assert from_document(document, kinds=kinds).size == 2
    for bad in ({}, {"size": 0}, {"size": None}, [], None, "size"):
        with pytest.raises(DataError, match="no document of a Own"):
            from_document({**document, "own": bad}, kinds=kinds)
    with pytest.raises(DataError, match="'own' is no kind of fitted object"):
        from_document(document)
    with pytest.raises(DataError, match="a Own cannot be stored as JSON"):
        to_document(Own(5))


class Trusting(Own):
    @classmethod
    def from_document(cls, document, trusted=()):
        return cls(trusted)


def test_what_is_trusted_is_handed_to_a_class_that_asks_for_it():
    kinds = {"trusting": Kind(Trusting), "own": Kind(Own)}
    document = to_document(Trusting(1), kinds=kinds)
    assert from_document(document, kinds=kinds).size == ()
    assert from_document(document, kinds=kinds, trusted=["a.B"]).size == ["a.B"]
    assert from_document(to_document(Own(5), kinds=kinds), kinds=kinds, trusted=["a.B"]).size == 2


def test_what_is_not_fitted_or_cannot_be_stored_is_refused():
    with pytest.raises(DataError, match="this SimplexWeights is not fitted"):
        to_document(SimplexWeights())
    with pytest.raises(DataError, match="a dict cannot be stored as JSON; what can is weights,"):
        to_document({})
    with pytest.raises(DataError, match="a dict cannot be stored"):
        to_document(SimplexWeights().fit(P, LABELS).set_params(l2={}))
    with pytest.raises(DataError, match="an array of complex128 cannot be stored"):
        to_document(np.array([1j]))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": 2}, r"no document of schema 1 \(it says 2\)"),
        ({"schema": True}, "it says True"),
        ({"kind": "greedy_selections"}, "did you mean 'greedy_selection'"),
        ({"kind": ["greedy_selection"]}, "is no kind"),
        ({"kind": "a\x1b[31m"}, r"'a\\x1b\[31m' is no kind"),
        ({"params": {}}, "the document has no 'params'; did you mean 'parameters'"),
        ({"found": []}, "found must be an object of JSON, got list"),
        ({"own": {}}, "the document has no 'own'"),
    ],
)
def test_other_documents_are_refused(change, told):
    with pytest.raises(DataError, match=told):
        from_document({**to_document(ALL["greedy"]), **change})


@pytest.mark.parametrize("document", [None, [], "weights", 1, {}, {1: 2}, {"schema": 1}])
def test_what_is_no_document_is_refused(document):
    with pytest.raises(DataError, match=r"document|no kind"):
        from_document(document)


def test_all_faults_are_told_at_once():
    document = to_document(ALL["simplex"])
    document["parameters"] |= {"loss": "nil", "l2": "much", "per_class": 1}
    document["found"]["gap_"] = {"float": "nan"}
    document["found"]["weights_"]["values"][0] += 0.5
    with pytest.raises(DataError) as told:
        from_document(document)
    lines = str(told.value).splitlines()
    assert lines == [
        "loss: 'nil' is not known; did you mean 'nll'?; it is one of nll, brier, mse",
        "l2: 'much' is no float",
        "per_class: 1 is no bool",
        lines[3],
        "gap_: nan is no finite number",
    ]
    assert "weights sum to 1.5 over members, not to 1" in lines[3]
    document = to_document(ALL["simplex"])
    document["parameters"]["los"] = document["parameters"].pop("loss")
    del document["found"]["gap_"]
    with pytest.raises(DataError) as told:
        from_document(document)
    assert str(told.value).splitlines() == [
        "parameters has no 'los'; did you mean 'loss'?",
        "parameters lacks 'loss'",
        "found lacks 'gap_'",
    ]


def changed(name, *path_and_value):
    """Return a document with one value in it replaced."""
    *path, last, value = path_and_value
    document = to_document(ALL[name])
    inner = document
    for step in path:
        inner = inner[step]
    inner[last] = value
    return document


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (
            changed("greedy", "found", "counts_", "values", 0, 99),
            "weights_ are not counts_ divided",
        ),
        (changed("greedy", "found", "best_single_", 4), "members beyond 3"),
        (changed("greedy", "found", "weights_", "values", 0, "nan"), "not all finite"),
        (changed("greedy", "found", "counts_", "values", 0, 0.5), "0.5 is no int64"),
        (changed("greedy", "found", "counts_", "values", 0, 1 << 63), "too large for int64"),
        (changed("greedy", "found", "counts_", "values", 0, True), "True is no int64"),
        (
            changed("greedy", "found", "weights_", "array", "float32"),
            "do not fit float32 exactly|no array of float64",
        ),
        (changed("greedy", "found", "weights_", "array", "object"), "no array is of object"),
        (changed("greedy", "found", "weights_", "shape", [1 << 39, 1 << 39, 4]), "do not fill"),
        (changed("greedy", "found", "weights_", "shape", [-1]), "is no shape"),
        (changed("greedy", "found", "weights_", "shape", [2, 2]), "with 1 axes"),
        (changed("greedy", "found", "order_", {"tuple": [-1]}), "-1 is no whole number"),
        (changed("simplex", "parameters", "per_class", True), "go with per_class=True"),
        (changed("temperature", "found", "temperature_", -1.0), "-1.0 is not from 1e-50"),
        (changed("temperature", "found", "temperature_", math.nan), "a bare NaN"),
        (changed("temperature", "found", "temperature_", 10**400), "is not from 1e-50"),
        (changed("temperature", "parameters", "bounds", {"tuple": [1.0]}), "is no tuple"),
        (
            changed("vector", "found", "offsets_", encode(np.ones(2), None)),
            "not of the same classes",
        ),
        (
            changed("beta", "found", "coefficients_", encode(np.ones((3, 2)), None)),
            "must be a, b, c",
        ),
        (
            changed("isotonic", "found", "steps_", "tuple", 0, {"tuple": []}),
            "a problem has two arrays",
        ),
        (
            changed("thresholds of classes", "found", "thresholds_", "values", 0, -1.0),
            "from 0 to 2",
        ),
        (changed("dynamic", "parameters", "k", 51), "do not fit 50 rows"),
        (changed("dynamic", "parameters", "k", 0), "k=0 must be at least 1"),
        (changed("dynamic", "parameters", "distance", "far"), "distance='far' is not known"),
        (changed("dynamic", "found", "shape_", {"tuple": [4]}), r"shape_ is not|side by side"),
        (changed("dynamic", "found", "scale_", "values", 0, 0.0), "are not all finite from 1e-50"),
        (changed("beta, pool", "parameters", "method", "vector"), "not of method='vector'"),
        (changed("beta, pool", "parameters", "per_member", None), "None is no bool"),
        (changed("beta, pool", "found", "calibrators_", {"tuple": []}), "no tuple of 1 or more"),
        (changed("beta, pool", "found", "calibrators_", {"tuple": [None]}), "must be there"),
        (
            changed("beta, each, weighed", "parameters", "weights", [1, 1, 1, 1]),
            "a calibrator for each",
        ),
        (changed("beta, each, weighed", "parameters", "weights", ["a"]), "neither|no numbers"),
        (changed("weights", "found", "weights_", "values", 0, -0.1), "not all finite from 0"),
    ],
)
def test_what_does_not_fit_together_is_refused(document, told):
    with pytest.raises(DataError, match=told):
        from_document(json.loads(json.dumps(document)))


def test_nesting_is_bounded():
    deep = {"tuple": []}
    for _ in range(50):
        deep = {"tuple": [deep]}
    with pytest.raises(DataError, match="nested in more than 16 levels"):
        from_document(changed("greedy", "found", "order_", deep))
    pool = to_document(ALL["beta, pool"])
    for _ in range(50):
        pool = changed("beta, pool", "found", "calibrators_", {"tuple": [{"fitted": pool}]})
    with pytest.raises(DataError, match="nested in more than 16 levels"):
        from_document(pool)


def places(document, path=()):
    """Yield the path of every value in a document."""
    yield path
    inner = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document)
        if isinstance(document, list)
        else ()
    )
    for key, value in inner:
        yield from places(value, (*path, key))


FUZZED = [
    "greedy",
    "simplex of classes",
    "beta, each, weighed",
    "isotonic, pool",
    "temperature",
    "thresholds of labels",
    "dynamic",
    "weights",
]


@cache
def document_and_places(name):
    document = to_document(ALL[name])
    return document, [path for path in places(document) if path]


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(1 << 63), 0, 1, -1, 2])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["nan", "inf", "prob", "logit", "nll", "float64", "bool", "AAAA", "temperature", "weights"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["tuple", "float", "array", "shape", "values", "base64", "function", "fitted"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


@settings(max_examples=300)
@given(st.data())
def test_documents_of_strangers_are_read_or_refused_and_nothing_else(data):
    name = data.draw(st.sampled_from(FUZZED))
    document, paths = document_and_places(name)
    document = copy.deepcopy(document)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(paths))
        inner = document
        try:
            for step in path[:-1]:
                inner = inner[step]
            if data.draw(st.booleans()):
                inner[path[-1]] = data.draw(junk)
            else:
                del inner[path[-1]]
        except (LookupError, TypeError):
            continue  # the other change took that place away
    before = set(sys.modules)
    try:
        read = from_document(document)
    except DataError:
        return
    finally:
        assert set(sys.modules) == before
    again = to_document(read)
    json.dumps(again, allow_nan=False)
    if hasattr(read, "predict_proba"):
        members = P if read.__class__ not in CALIBRATORS.values() else P[0]
        try:
            said = read.predict_proba(members)
        except DataError:
            return  # of other members or classes
        assert said.shape == (50, 3)
        assert (np.abs(said.sum(-1) - 1) < 1e-6).all()
