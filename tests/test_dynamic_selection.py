"""Dynamic selection beside a plain re-statement, one row and one member at a time."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.neighbors import NearestNeighbors

from polyfuse.dynamic_selection import DynamicSelection, selection
from polyfuse.dynamic_selection.neighbours import DISTANCES, around
from polyfuse.errors import DataError

METHODS = [
    {"method": "knora_e"},
    {"method": "knora_u"},
    {"method": "des_knn"},
    {"method": "des_knn", "diversity": "q", "accurate": 0.8, "diverse": 0.5},
    {"method": "soft"},
    {"method": "soft", "competence": "likelihood", "power": 2.0},
]
every_method = pytest.mark.parametrize(
    "asked", METHODS, ids=lambda asked: "-".join(map(str, asked.values()))
)


def drawn(members=5, n=60, classes=3, seed=0, features=4, heads=()):
    """Members that are each good in a part of the feature space."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, (n, *heads))
    x = draw.normal(size=(n, features))
    skill = 2.0 * (x @ draw.normal(size=(features, members)) > 0)
    truth = np.eye(classes)[labels]
    z = draw.normal(size=(members, n, *heads, classes))
    z += skill.T.reshape(members, n, *(1 for _ in heads), 1) * truth
    p = np.exp(z)
    return p / p.sum(-1, keepdims=True), labels, x


def distance(kind, a, b):
    if kind == "hellinger":
        return math.dist(np.sqrt(a), np.sqrt(b))
    if kind == "cosine":
        a, b = a / math.hypot(*a), b / math.hypot(*b)
    return math.dist(a, b)


def pairs_of(a, b):
    """Return how often both, the first alone, the second alone, and neither is right."""
    both = list(zip(a, b, strict=True))
    return [
        both.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))
    ]


def yule(a, b):
    n11, n10, n01, n00 = pairs_of(a, b)
    down = n11 * n00 + n10 * n01
    return (n11 * n00 - n10 * n01) / down if down else 0


def plain_weights(fitted, near, far, p, labels):
    """Return the members' weights on one row, from the numbers and distances of its neighbours."""
    members = range(len(p))
    right = [[bool(p[m, j].argmax() == labels[j]) for j in near] for m in members]
    own = [[p[m, j, labels[j]] for j in near] for m in members]
    if fitted.method == "knora_e":
        for size in range(len(near), 0, -1):
            good = [m for m in members if all(right[m][:size])]
            if good:
                return [float(m in good) for m in members]
        return [1.0 for _ in members]
    if fitted.method == "knora_u":
        counts = [float(sum(right[m])) for m in members]
        return counts if any(counts) else [1.0 for _ in members]
    if fitted.method == "des_knn":
        most = max(1, int(len(p) * fitted.accurate))
        order = sorted(members, key=lambda m: (-sum(right[m]), -np.mean(own[m]), m))[:most]

        def alike(m):
            others = [o for o in order if o != m]
            if fitted.diversity == "q":
                pairs = [yule(right[m], right[o]) for o in others]
            else:
                pairs = [pairs_of(right[m], right[o])[3] / len(near) for o in others]
            return round(float(np.mean(pairs)), 9) if others else 0.0

        chosen = sorted(order, key=lambda m: (alike(m), order.index(m)))
        least = min(most, math.ceil(len(p) * fitted.diverse))
        return [float(m in chosen[:least]) for m in members]
    nearness = [1 / d for d in far]
    if fitted.competence == "accuracy":
        local = [np.average(right[m], weights=nearness) for m in members]
    else:
        local = [math.exp(np.average(np.log(own[m]), weights=nearness)) for m in members]
    raised = [value**fitted.power for value in local]
    return raised if any(raised) else [1.0 for _ in members]


def plain(fitted, p, labels, x, q, x_new):
    """Return the pooled probabilities and shares of votes of new rows, and members' weights."""
    points = x if fitted.space == "features" else np.concatenate(p, 1)
    queries = x_new if fitted.space == "features" else np.concatenate(q, 1)
    weights = []
    for row in queries:
        all_far = [distance(fitted.distance, row, one) for one in points]
        near = sorted(range(len(points)), key=lambda j: (all_far[j], j))[: fitted.k]
        weights.append(plain_weights(fitted, near, [all_far[j] for j in near], p, labels))
    weights = np.array(weights) / np.sum(weights, 1, keepdims=True)
    pool = np.einsum("nm,mnc->nc", weights, q)
    votes = np.einsum("nm,mnc->nc", weights, np.eye(q.shape[-1])[q.argmax(-1)])
    return pool, votes, weights


@every_method
@pytest.mark.parametrize("space", ["predictions", "features"])
@settings(max_examples=6)
@given(seed=st.integers(0, 10**6), k=st.sampled_from([1, 4, 9]))
def test_it_is_the_plain_restatement(asked, space, seed, k):
    p, labels, x = drawn(seed=seed)
    q, _, x_new = drawn(seed=seed + 1, n=12)
    kind = ["euclidean", "cosine", "hellinger" if space == "predictions" else "euclidean"][seed % 3]
    fitted = DynamicSelection(space=space, k=k, distance=kind, **asked).fit(p, labels, inputs=x)
    pool, votes, weights = plain(fitted, p, labels, x, q, x_new)
    assert np.allclose(fitted.member_weights(q, inputs=x_new), weights, atol=1e-9)
    assert np.allclose(fitted.predict_proba(q, inputs=x_new), pool, atol=1e-9)
    assert np.array_equal(
        fitted.predict(q, inputs=x_new), fitted.predict_proba(q, inputs=x_new).argmax(-1)
    )
    fitted.set_params(votes="hard")
    assert np.allclose(fitted.predict_proba(q, inputs=x_new), votes, atol=1e-9)
    tied = np.where(votes > votes.max(-1, keepdims=True) - 1e-9, pool, -1)
    assert np.array_equal(fitted.predict(q, inputs=x_new), tied.argmax(-1))


@every_method
def test_one_member_is_that_member_and_copies_change_nothing(asked):
    p, labels, _ = drawn()
    q = drawn(seed=1)[0]
    fitted = DynamicSelection(**asked).fit(p[:1], labels)
    assert np.allclose(fitted.predict_proba(q[:1]), q[0])
    copies, new = np.repeat(p[:1], 4, 0), np.repeat(q[:1], 4, 0)
    assert np.allclose(DynamicSelection(**asked).fit(copies, labels).predict_proba(new), q[0])


@every_method
@settings(max_examples=10)
@given(order=st.permutations(range(5)))
def test_members_in_another_order_are_the_same(asked, order):
    p, labels, x = drawn()
    q, _, x_new = drawn(seed=1)
    for space in ("predictions", "features"):
        one, other = (
            DynamicSelection(space=space, **asked)
            .fit(a, labels, inputs=x)
            .predict_proba(b, inputs=x_new)
            for a, b in ((p, q), (p[order], q[order]))
        )
        assert np.allclose(one, other)


@every_method
def test_each_head_is_weighed_by_itself(asked):
    p, labels, x = drawn(heads=(2, 3))
    q, _, x_new = drawn(seed=1, n=9, heads=(2, 3))
    fitted = DynamicSelection(space="features", **asked).fit(p, labels, inputs=x)
    said = fitted.predict_proba(q, inputs=x_new)
    assert said.shape == (9, 2, 3, 3)
    assert fitted.member_weights(q, inputs=x_new).shape == (9, 2, 3, 5)
    for i in range(2):
        for j in range(3):
            alone = DynamicSelection(space="features", **asked)
            alone.fit(p[:, :, i, j], labels[:, i, j], inputs=x)
            assert np.allclose(alone.predict_proba(q[:, :, i, j], inputs=x_new), said[:, i, j])


def test_in_chunks_it_is_the_same(monkeypatch):
    p, labels, _ = drawn()
    q = drawn(seed=1, n=50)[0]
    fitted = DynamicSelection(method="soft").fit(p, labels)
    whole = fitted.predict_proba(q)
    monkeypatch.setattr(selection, "_CHUNK", 2000)
    assert np.allclose(fitted.predict_proba(q), whole, atol=1e-12)


def test_it_beats_every_member_where_each_knows_a_part():
    draw = np.random.default_rng(0)
    x, labels = draw.uniform(-1, 1, (1500, 2)), draw.integers(0, 3, 1500)
    part = (np.arctan2(*x.T) // (2 * np.pi / 3)).astype(int) % 3
    guess = np.where(part == np.arange(3)[:, None], labels, (labels + 1) % 3)
    p = 0.7 * np.eye(3)[guess] + 0.3 * draw.dirichlet(np.ones(3), (3, 1500))
    fit, new = slice(0, 1000), slice(1000, None)
    assert max((said[new].argmax(-1) == labels[new]).mean() for said in (*p, p.mean(0))) < 0.45
    for asked in METHODS[:3] + METHODS[4:]:  # the other one keeps two of the three
        fitted = DynamicSelection(space="features", **asked)
        fitted.fit(p[:, fit], labels[fit], inputs=x[fit])
        assert (fitted.predict(p[:, new], inputs=x[new]) == labels[new]).mean() > 0.9


def test_neighbours_are_exact_far_from_zero_and_ties_go_to_the_earlier_row():
    draw = np.random.default_rng(0)
    points = 1e6 + draw.normal(size=(300, 3)) * 1e-3
    rows, far = around(points).nearest(points[:50] + 1e-5, 5)
    exact = np.sqrt(((points - points[:50, None] - 1e-5) ** 2).sum(-1))
    assert np.array_equal(rows, np.argsort(exact, 1)[:, :5])
    assert np.allclose(far, np.sort(exact, 1)[:, :5], rtol=1e-4)
    same = np.repeat([[1.0, 2.0], [3.0, 3.0]], 400, 0)
    assert around(same).nearest(same[::400], 3)[0].tolist() == [[0, 1, 2], [400, 401, 402]]
    grid = draw.integers(0, 3, (500, 3)).astype(float)
    rows, far = around(grid).nearest(grid[:40], 30)
    exact = np.sqrt(((grid - grid[:40, None]) ** 2).sum(-1)).round(9)
    assert np.array_equal(rows, np.argsort(exact, 1, kind="stable")[:, :30])
    random = draw.normal(size=(200, 7))
    found = (
        NearestNeighbors(n_neighbors=4, metric="cosine").fit(random).kneighbors(random[:20] + 1)[1]
    )
    unit = DISTANCES["cosine"]
    assert np.array_equal(around(unit(random)).nearest(unit(random[:20] + 1), 4)[0], found)


def test_a_row_that_was_fitted_on_decides_alone_under_soft_weights():
    p, labels, _ = drawn()
    weights = DynamicSelection(method="soft").fit(p, labels).member_weights(p)
    right = (p.argmax(-1) == labels).T
    some = right.any(1)
    assert np.allclose(weights[some], right[some] / right[some].sum(1, keepdims=True))
    assert np.allclose(weights[~some], 1 / 5)


def test_standardising_is_dividing_by_deviations():
    p, labels, x = drawn()
    scaled = (x * [1, 100, 0, 1] - (x * [1, 100, 0, 1]).mean(0)) / np.where(
        [1, 1, 0, 1], x.std(0) * [1, 100, 0, 1], 1
    )
    one = DynamicSelection(space="features", standardise=True, distance="cosine")
    one.fit(p, labels, inputs=x * [1, 100, 0, 1])
    assert np.allclose(one.points_, scaled / np.sqrt((scaled**2).sum(1, keepdims=True)))
    assert one.scale_[2] == 1


def test_members_without_a_say():
    p, labels, x = drawn()
    q, _, x_new = drawn(seed=1)
    q[0, :5] = np.nan
    q[:, 7] = np.nan
    near = DynamicSelection().fit(p, labels)
    said = near.predict_proba(q)
    assert np.isnan(said).all(-1).tolist() == [True] * 5 + [False] * 2 + [True] + [False] * 52
    with pytest.raises(DataError, match="6 rows have no class"):
        near.predict(q)
    by_inputs = DynamicSelection(space="features", method="knora_u").fit(p, labels, inputs=x)
    said, weights = (
        by_inputs.predict_proba(q, inputs=x_new),
        by_inputs.member_weights(q, inputs=x_new),
    )
    rest = weights[:5, 1:, None] * np.moveaxis(q[1:, :5], 0, 1)
    assert np.allclose(said[:5], rest.sum(1) / weights[:5, 1:].sum(1, keepdims=True))
    assert np.isnan(said[7]).all()
    chosen = DynamicSelection(space="features", k=1).fit(p, labels, inputs=x)
    only, member = np.argwhere(chosen.member_weights(q, inputs=x) == 1)[0]
    q[member, only] = np.nan  # the one that is chosen is silent: the others speak
    mean = np.nanmean(q[:, only], 0)
    assert np.allclose(chosen.predict_proba(q, inputs=x)[only], mean)


def test_rows_that_nobody_covers_are_left_out_of_the_fit_on_request():
    p, labels, x = drawn()
    p[0, :9] = np.nan
    with pytest.raises(DataError, match="9 of 60 rows are not covered"):
        DynamicSelection().fit(p, labels)
    for space in ("predictions", "features"):
        asked = DynamicSelection(space=space, uncovered="leave_out")
        whole = asked.fit(p, labels, inputs=x)
        rest = clone(asked).fit(p[:, 9:], labels[9:], inputs=x[9:])
        assert np.array_equal(whole.points_, rest.points_)
        assert np.array_equal(whole.right_, rest.right_)


def test_tensors_half_precision_and_images_as_inputs():
    p, labels, _ = drawn()
    pictures = torch.randn(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    fitted = DynamicSelection(space="features").fit(
        list(torch.tensor(p).half()), labels, inputs=pictures
    )
    said = fitted.predict_proba(torch.tensor(p).half(), inputs=pictures)
    assert said.dtype == np.float64
    assert np.allclose(said.sum(-1), 1, atol=1e-6)
    assert fitted.points_.shape == (60, 16)


def test_bad_parameters_are_refused_all_at_once():
    p, labels, _ = drawn()
    with pytest.raises(DataError) as told:
        DynamicSelection(method="knora", k=0, accurate=2, votes="loud", power=math.nan).fit(
            p, labels
        )
    text = str(told.value)
    assert "method='knora' is not known; did you mean 'knora_u'?" in text or "'knora_e'?" in text
    for part in ("k=0 must be", "accurate=2 must be", "votes='loud'", "power=nan must be"):
        assert part in text
    with pytest.raises(DataError, match="k=61 neighbours do not fit 60 rows; lower k"):
        DynamicSelection(k=61).fit(p, labels)


def test_what_does_not_fit_is_refused():
    p, labels, x = drawn()
    features = DynamicSelection(space="features")
    for inputs, said in [
        (None, "got none"),
        (x[:9], r"float64 of shape \(9, 4\)"),
        (x[:, 0], "shape"),
    ]:
        with pytest.raises(DataError, match=f'space="features" needs inputs= with 60 rows.*{said}'):
            features.fit(p, labels, inputs=inputs)
    x[7, 1] = np.inf
    with pytest.raises(DataError, match="1 rows of inputs are not finite, row 7 the first"):
        features.fit(p, labels, inputs=x)
    x[7, 1] = 0
    features.fit(p, labels, inputs=x)
    with pytest.raises(DataError, match="inputs of 3 features do not fit 4 fitted ones"):
        features.predict(p, inputs=x[:, :3])
    with pytest.raises(
        DataError, match=r"predictions \(4, 60, 3\) do not fit what was fitted: 5 members"
    ):
        features.predict(p[:4], inputs=x)
    with pytest.raises(DataError, match='distance="hellinger" is between probabilities, and got -'):
        DynamicSelection(space="features", distance="hellinger").fit(p, labels, inputs=x)
    with pytest.raises(DataError, match="not fitted"):
        DynamicSelection().predict(p)


def test_nothing_warns_where_all_members_are_always_wrong_or_sure():
    labels = np.zeros(20, int)
    wrong = np.tile([0.0, 1.0], (3, 20, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for asked in METHODS:
            for p in (wrong, 1 - wrong):
                fitted = DynamicSelection(**asked).fit(p, labels)
                assert np.array_equal(fitted.predict_proba(p), p[0])
