"""No leak: noise stays noise, rows that members trained on are refused, uncovered ones left out."""

import numpy as np
import pytest
from noisy_members import members, nll, numbers
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, TimeSeriesSplit
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.tree import DecisionTreeClassifier

from polyfuse.classical import bundled_digits
from polyfuse.cross_fitting import cross_fitted
from polyfuse.errors import DataError
from polyfuse.stacking import Blender, Stacker, join_folds


def noise_members(n=900, fresh=900, classes=3, folds=3):
    """Trees that remember noise: predictions out of fold, of rows they learned, and of new rows."""
    draw = np.random.default_rng(0)
    x, labels = draw.normal(size=(n + fresh, 5)), draw.integers(0, classes, n + fresh)
    out, learned, new = [], [], []
    for depth in (4, 10, None):
        own = np.full((n, classes), np.nan)
        for fit, held in KFold(folds).split(x[:n]):
            tree = DecisionTreeClassifier(max_depth=depth, random_state=0)
            own[held] = tree.fit(x[fit], labels[fit]).predict_proba(x[held])
        tree = DecisionTreeClassifier(max_depth=depth, random_state=0).fit(x[:n], labels[:n])
        out.append(own)
        learned.append(tree.predict_proba(x[:n]))
        new.append(tree.predict_proba(x[n:]))
    return np.stack(out), np.stack(learned), np.stack(new), labels[:n], labels[n:]


NOISE = noise_members()
WAYS = {
    "stacked": Stacker(),
    "layers": Stacker(layers=[["logistic", RandomForestClassifier(5, max_depth=3)]], folds=2),
    "mean of folds": Stacker(final="mean", folds=3),
    "trees": Stacker(meta=RandomForestClassifier(10)),
    "blended": Blender(holdout=0.5),
}


@pytest.mark.parametrize("way", WAYS)
def test_noise_is_at_chance_on_fresh_rows_and_so_is_what_cross_fitting_says(way):
    out, _, new, labels, fresh = NOISE
    expected = cross_fitted(WAYS[way], out, labels, folds=3)
    fitted = type(WAYS[way])(**WAYS[way].get_params()).fit(out, labels)
    spread = 4 * np.sqrt((1 / 3) * (2 / 3) / 900)  # four standard errors of chance
    assert abs((expected.argmax(-1) == labels).mean() - 1 / 3) < spread
    assert abs((fitted.predict(new) == fresh).mean() - 1 / 3) < spread
    if way == "mean of folds":
        assert abs((fitted.out_of_fold_.argmax(-1) == labels).mean() - 1 / 3) < spread


def test_the_same_noise_learned_by_heart_would_flatter_and_is_refused_where_it_is_known():
    _, learned, new, labels, fresh = NOISE
    blind = Stacker().fit(learned, labels)
    assert (blind.predict(learned) == labels).mean() > 0.9
    assert abs((blind.predict(new) == fresh).mean() - 1 / 3) < 0.07
    trained = np.ones((3, 900), dtype=bool)
    trained[1:, 450:] = False
    with pytest.raises(DataError) as caught:
        Stacker().fit(learned, labels, trained=trained)
    told = str(caught.value)
    assert "this stacking would learn from rows that its members trained on" in told
    assert "member 0 trained on 900 of the 900 rows" in told
    assert "member 2 trained on 450 of the 900 rows" in told
    assert "predictions[trained] = np.nan" in told


def test_the_fix_in_that_message_works():
    p, labels = members()
    trained = np.zeros(p.shape[:2], bool)
    trained[:, 40:] = True
    trained[2, 30:] = True
    with pytest.raises(DataError, match=r"the 30 in ~trained\.any\(0\)"):
        Stacker().fit(p, labels, trained=trained)
    hidden = p.copy()
    hidden[trained] = np.nan
    fitted = Stacker().fit(hidden, labels, trained=trained)
    assert np.flatnonzero(fitted.rows_).tolist() == list(range(30))


def digit_members(n=400, test=600):
    """Return predictions of noisy digits out of fold and of new rows, with labels of both."""
    images, labels = bundled_digits()
    draw = np.random.default_rng(0)
    rows = draw.permutation(len(images))[: n + test]
    x = images.reshape(len(images), -1)[rows] + draw.normal(0, 3, (len(rows), 64))
    labels = labels[rows]
    models = [
        DecisionTreeClassifier(random_state=0),
        DecisionTreeClassifier(max_depth=4, random_state=0),
        RandomForestClassifier(20, random_state=0),
        GaussianNB(),
        KNeighborsClassifier(3),
        LogisticRegression(C=1e-3, max_iter=300),
    ]
    out, new = np.zeros((len(models), n, 10)), np.zeros((len(models), test, 10))
    for i, model in enumerate(models):
        for fit, held in KFold(3).split(x[:n]):
            out[i, held] = model.fit(x[fit], labels[fit]).predict_proba(x[held])
        new[i] = model.fit(x[:n], labels[:n]).predict_proba(x[n:])
    return out, new, labels[:n], labels[n:]


def test_zeros_of_trees_do_not_explode_as_log_probabilities():
    """Clipped at 1e-6, zeros of trees dominate all other columns; at 1 / n they do not."""
    out, new, labels, fresh = digit_members()
    assert (out == 0).mean() > 0.3
    ours = Stacker().fit(out, labels)
    trap = Stacker(clip=1e-6, standardise=False, meta=LogisticRegression(max_iter=1000))
    trap.fit(out, labels)
    errors = [(fitted.predict(new) != fresh).mean() for fitted in (ours, trap)]
    losses = [nll(fitted.predict_proba(new), fresh) for fitted in (ours, trap)]
    single = min((member.argmax(-1) != fresh).mean() for member in new)
    mean = (new.mean(0).argmax(-1) != fresh).mean()
    assert errors[0] <= min(single + 0.01, mean), (errors, single, mean)
    assert errors[1] > errors[0] + 0.01, errors
    assert losses[1] > 1.5 * losses[0], losses


@pytest.mark.parametrize("feature", ["prob", "logit"])
def test_of_two_classes_the_column_that_repeats_the_other_is_dropped(feature):
    p, labels = members(classes=2)
    fitted = Stacker(features=feature, layers=[["logistic"]]).fit(p, labels)
    assert [len(layer[0].models[0][0].shift) for layer in fitted.layers_] == [4, 1]
    both = Stacker(features=feature, layers=[["logistic"]], drop_column=False).fit(p, labels)
    assert [len(layer[0].models[0][0].shift) for layer in both.layers_] == [8, 2]
    assert (fitted.predict(p) == both.predict(p)).mean() > 0.97


def test_logarithms_of_two_classes_say_different_things_and_stay():
    p, labels = members(classes=2)
    assert len(Stacker().fit(p, labels).layers_[0][0].models[0][0].shift) == 8


def test_time_ordered_splits_that_are_no_partition_work():
    """cross_val_predict refuses TimeSeriesSplit (scikit-learn #17285)."""
    p, labels = members(n=120)
    for fitted in (
        Stacker(final="mean", folds=TimeSeriesSplit(5)).fit(p, labels),
        Stacker(final="mean", ordered=True).fit(p, labels),
    ):
        gone = np.isnan(fitted.out_of_fold_).any(-1)
        assert np.flatnonzero(gone).tolist() == list(range(20))
    deep = Stacker(final="mean", layers=[["logistic"]], ordered=True, folds=5).fit(p, labels)
    # The first block is never predicted, so the second has no rows to be learned from.
    gone = np.isnan(deep.out_of_fold_).any(-1)
    assert np.flatnonzero(gone).tolist() == list(range(40))


def test_a_later_layer_learns_from_predicted_rows_only():
    p, labels = members(n=120)
    fitted = Stacker(layers=[["logistic"]], ordered=True, features="prob", standardise=False)
    fitted.fit(p, labels)
    x = np.concatenate(list(p), -1)
    said, rows = [], []
    for fit, held in TimeSeriesSplit(5).split(x):
        model = LogisticRegression(C=0.1, max_iter=1000).fit(x[fit], labels[fit])
        said.append(model.predict_proba(x[held]))
        rows.append(held)
    final = LogisticRegression(C=0.1, max_iter=1000)
    final.fit(np.concatenate(said), labels[np.concatenate(rows)])
    first = LogisticRegression(C=0.1, max_iter=1000).fit(x, labels).predict_proba(x)
    assert np.allclose(fitted.predict_proba(p), final.predict_proba(first), atol=1e-9)


def test_nothing_of_the_future_is_in_a_prediction_in_time():
    p, labels = members(n=120)
    before = Stacker(final="mean", ordered=True, clip=0.01).fit(p, labels).out_of_fold_
    labels[100:] = (labels[100:] + 1) % 3
    p[:, 100:] = p[:, 100:][..., ::-1]
    after = Stacker(final="mean", ordered=True, clip=0.01).fit(p, labels).out_of_fold_
    assert np.array_equal(before[20:100], after[20:100])
    assert not np.array_equal(before[100:], after[100:])


def test_uncovered_rows_are_left_out_and_stay_nan():
    p, labels = members()
    p[2, 10:30] = np.nan
    fitted = Stacker(final="mean", clip=0.01).fit(p, labels)
    keep = np.r_[:10, 30:240]
    alone = Stacker(final="mean", clip=0.01).fit(p[:, keep], labels[keep])
    assert np.isnan(fitted.out_of_fold_[10:30]).all()
    assert np.array_equal(fitted.out_of_fold_[keep], alone.out_of_fold_)
    said = fitted.predict_proba(p)
    assert np.isnan(said[10:30]).all()
    assert np.array_equal(said[keep], alone.predict_proba(p[:, keep]))
    assert "fitted on 220 rows (20 left out)" in fitted.summary()
    assert Stacker().fit(p, labels).clip_ == 1 / 220
    with pytest.raises(DataError, match="20 rows have no class"):
        fitted.predict(p)
    with pytest.raises(DataError, match="20 of 240 rows are not covered"):
        Stacker(uncovered="error").fit(p, labels)


def test_uncovered_numbers_are_left_out_and_stay_nan():
    said, targets = numbers()
    said[0, :5] = np.nan
    # This meta-model would take NaN for a value.
    meta = HistGradientBoostingRegressor(max_iter=3)
    fitted = Stacker(target="numbers", meta=meta).fit(said, targets)
    assert np.flatnonzero(~fitted.rows_).tolist() == list(range(5))
    assert np.isnan(fitted.predict(said)[:5]).all()
    assert np.isfinite(fitted.predict(said)[5:]).all()


def test_rows_that_no_fold_validated_are_nan_never_zero():
    p, labels = members(n=60)
    part = [(np.arange(20, 60), np.arange(10)), (np.arange(20), np.arange(30, 40))]
    outside = Stacker(final="mean", folds=part).fit(p, labels).out_of_fold_
    gone = np.isnan(outside).all(-1)
    assert np.flatnonzero(~gone).tolist() == [*range(10), *range(30, 40)]
    assert np.allclose(outside[~gone].sum(-1), 1)


def test_folds_that_are_brought_number_all_rows_also_where_some_are_left_out():
    p, labels = members(n=60)
    p[1, :15] = np.nan
    halves = [(np.arange(30), np.arange(30, 60)), (np.arange(30, 60), np.arange(30))]
    fitted = Stacker(final="mean", folds=halves, clip=0.02).fit(p, labels)
    first, second = (
        Stacker(clip=0.02).fit(p[:, rows], labels[rows])
        for rows in (np.arange(15, 30), halves[1][0])
    )
    assert np.isnan(fitted.out_of_fold_[:15]).all()
    outside = fitted.out_of_fold_
    assert np.allclose(outside[15:30], second.predict_proba(p[:, 15:30]), atol=1e-12)
    assert np.allclose(outside[30:], first.predict_proba(p[:, 30:]), atol=1e-12)


def test_groups_stay_whole_in_every_layer():
    """Twins, of which one would give the other away, must never lie on two sides of a fold."""
    draw = np.random.default_rng(0)
    single, labels = draw.dirichlet([1, 1, 1], (2, 150)), draw.integers(0, 3, 150)
    p, twice, groups = np.tile(single, (1, 2, 1)), np.tile(labels, 2), np.tile(np.arange(150), 2)
    near = KNeighborsClassifier(1)
    cut = Stacker(meta=near, final="mean").fit(p, twice).out_of_fold_
    whole = Stacker(meta=near, final="mean").fit(p, twice, groups=groups).out_of_fold_
    assert (cut.argmax(-1) == twice).mean() > 0.7
    assert (whole.argmax(-1) == twice).mean() < 0.45


@pytest.mark.parametrize(
    ("folds", "told"),
    [
        (list(KFold(3).split(np.zeros(60))), "fold 0 cuts groups"),
        ([([0, 1, 2], [2, 3])], "fold 0 predicts 1 of the rows it is fitted on, row 2"),
        ([([0, 1], [900])], "fold 0 has rows from 900 to 900 of 60 rows"),
        ([([0, 1], [])], "no fold has rows"),
        ("five", "folds must be a number, a splitter"),
        (1, "folds=1 does not fit"),
    ],
)
def test_folds_that_leak_or_do_not_fit_are_refused(folds, told):
    p, labels = members(n=60)
    groups = np.arange(60) % 7 if told.endswith("groups") else None
    with pytest.raises(DataError, match=told):
        Stacker(final="mean", folds=folds).fit(p, labels, groups=groups)


def test_fold_members_are_joined_before_they_are_stacked():
    p, labels = members(count=2)
    parts = np.arange(240) % 3
    single = np.full((6, 240, 3), np.nan)
    for member in range(6):
        held = parts == member % 3
        single[member, held] = p[member // 3, held]
    trained = np.stack([parts != member % 3 for member in range(6)])
    joined = join_folds(single, ["a"] * 3 + ["b"] * 3, trained=trained)
    assert np.array_equal(joined, p)
    with pytest.raises(DataError, match=r"none of the 240 rows is covered.*join the fold members"):
        Stacker().fit(single, labels)
    with pytest.raises(DataError, match="member 0 trained on 160 of the 240 rows"):
        join_folds(np.repeat(p, 3, 0), ["a"] * 3 + ["b"] * 3, trained=trained)


def test_repeats_are_joined_by_counts_and_a_refit_speaks_only_on_request():
    nan = np.nan
    said = np.array([[0.2, nan, nan, 0.5], [0.4, 0.6, nan, 0.7], [0.9, 0.9, 0.9, 0.9]])
    refits = np.array([False, False, True])
    mean = join_folds(said, "aaa", refits=refits)
    assert np.allclose(mean, [[0.3, 0.6, nan, 0.6]], equal_nan=True)
    assert np.array_equal(join_folds(said, "aaa", refits=refits, use="refit"), said[2:])
    with pytest.raises(DataError, match='use="refit" finds no member of base model b'):
        join_folds(said, ["b", "a", "a"], refits=refits, use="refit")
    with pytest.raises(DataError, match="2 base models"):
        join_folds(said, "aa")
