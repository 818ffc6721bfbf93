import hashlib
import json

import numpy as np
import pytest
from scipy.stats import binomtest

import tiny
from polyfuse import Arrays, Population, Splits, compare_fusions, read_scoreboard
from polyfuse.errors import DataError, PolyfuseError, RunError
from polyfuse.metrics import bootstrap_counts
from polyfuse.predictions import read
from polyfuse.row_scores import MORE_METRICS

ROWS, CLASSES, MEMBERS = 40, 3, 3


def labelled(seed, rows=ROWS, **options):
    draw = np.random.default_rng(seed)
    return Arrays(draw.standard_normal((rows, 1)), draw.integers(0, CLASSES, rows), **options)


DATA = Splits(labelled(0), labelled(1), labelled(2))


def guess(seed, data=DATA, right=1.0):
    """Logits that lean to the right class, with noise."""
    draw = np.random.default_rng(seed)
    return {
        name: draw.standard_normal((len(split), CLASSES)) + right * np.eye(CLASSES)[split.labels]
        for name, split in data._asdict().items()
    }


def sure(labels, wrong=()):
    """Logits that are right everywhere but in some rows."""
    said = np.where(np.isin(np.arange(len(labels)), wrong), (labels + 1) % CLASSES, labels)
    return 5.0 * np.eye(CLASSES)[said]


@pytest.fixture
def population(tmp_path):
    return tiny.population(tmp_path, DATA, {i: guess(i) for i in range(MEMBERS)})


def board(population, **options):
    return compare_fusions(population, **{"replicates": 200, **options})


# An independent recomputation, in double precision ----------------------------------------------


def softmax(logits):
    raised = np.exp(logits.astype(np.float64))
    return raised / raised.sum(-1, keepdims=True)


def answers(population, split):
    """Every row's answer: probabilities, or classes for the vote."""
    logits = [m.predictions(split).astype(np.float64) for m in population.members]
    shares = [softmax(z) for z in logits]
    found = {f"member {i}": share for i, share in enumerate(shares)}
    found["mean_probability"] = sum(shares) / len(shares)
    found["mean_logit"] = softmax(sum(logits) / len(logits))
    votes = sum(np.eye(CLASSES)[z.argmax(1)] for z in logits)
    found["hard_vote"] = (votes + sum(shares) / 1000).argmax(1)
    return found


def correct(answer, labels):
    return (answer if answer.ndim == 1 else answer.argmax(1)) == labels


def resampled(values, rows, seed):
    """Means over bootstrap samples, each one spelled out row by row."""
    counts = bootstrap_counts(rows, 200, seed=seed).astype(int)
    return [values[np.repeat(np.arange(rows), times)].mean() for times in counts]


@pytest.mark.parametrize("split", ["val", "test"])
def test_scores_and_intervals_equal_an_independent_recomputation(split, population):
    found, labels = board(population, seed=5), population.labels(split)
    said = answers(population, split)
    assert [row["name"] for row in found.rows] == list(said)
    for name, answer in said.items():
        scores, right = found.row(name)[split], correct(answer, labels)
        assert scores["accuracy"]["value"] == pytest.approx(right.mean(), abs=1e-12)
        wanted = np.quantile(resampled(right, ROWS, 5), [0.025, 0.975])
        low_high = [scores["accuracy"][end] for end in ("low", "high")]
        np.testing.assert_allclose(low_high, wanted, atol=1e-6)
        if answer.ndim == 2:
            logs = -np.log(answer[np.arange(ROWS), labels])
            assert scores["nll"]["value"] == pytest.approx(logs.mean(), rel=1e-5)
        else:
            assert scores["nll"] is None


@pytest.mark.parametrize("split", ["val", "test"])
def test_differences_are_paired_with_the_best_member(split, population):
    found, labels = board(population, seed=5), population.labels(split)
    said = answers(population, split)
    reference = correct(said[found.document["best_member"]], labels).astype(float)
    for name, answer in said.items():
        gain = found.row(name)[split]["difference"]
        apart = correct(answer, labels) - reference
        low, high = np.quantile(resampled(apart, ROWS, 5), [0.025, 0.975])
        assert gain["value"] == pytest.approx(apart.mean(), abs=1e-12)
        np.testing.assert_allclose([gain["low"], gain["high"]], [low, high], atol=1e-6)
    own = found.row(found.document["best_member"])[split]["difference"]
    assert own == {"value": 0, "low": 0, "high": 0, "better": False, "p": None}


@pytest.mark.parametrize("split", ["val", "test"])
def test_p_is_exact_and_corrected_for_all_rows_that_are_compared(split, population):
    """McNemar's test is a binomial test of the samples on which two rows differ; Holm by hand."""
    found, labels = board(population, seed=5), population.labels(split)
    said = {n: correct(a, labels) for n, a in answers(population, split).items()}
    reference = said.pop(found.document["best_member"])
    p = {}
    for name, right in said.items():
        wins, losses = int((right & ~reference).sum()), int((reference & ~right).sum())
        p[name] = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    largest = 0.0
    for rank, name in enumerate(sorted(p, key=p.get)):
        largest = max(largest, min(1.0, p[name] * (len(p) - rank)))
        gain = found.row(name)[split]["difference"]
        assert gain["p"] == pytest.approx(largest, rel=1e-9)
        assert gain["better"] == (gain["low"] > 0 and largest <= 0.05)


def test_an_interval_alone_does_not_make_a_row_better(tmp_path):
    """Five samples gained, none lost: the interval excludes zero, p is 1/16, of five rows."""
    wrong = {i: np.arange(10 * i, 10 * i + 5) for i in range(MEMBERS)}
    logits = {
        i: {name: sure(split.labels, rows) for name, split in DATA._asdict().items()}
        for i, rows in wrong.items()
    }
    found = board(tiny.population(tmp_path, DATA, logits))
    gain = found.row("hard_vote")["test"]["difference"]
    assert gain["value"] == pytest.approx(5 / ROWS)
    assert gain["low"] > 0
    assert gain["p"] == pytest.approx(5 / 16)
    assert not gain["better"]
    assert "not shown to be better" in " ".join(found.summary())
    assert found.recommended == "member 0"


def test_better_is_said_where_the_interval_excludes_zero(tmp_path):
    # Each is wrong in another third: the mean is right everywhere.
    thirds = np.array_split(np.arange(ROWS), MEMBERS)
    logits = {
        i: {name: sure(s.labels, thirds[i]) for name, s in DATA._asdict().items()}
        for i in range(MEMBERS)
    }
    found = board(tiny.population(tmp_path, DATA, logits))
    assert found.best == "mean_probability"
    assert found.row("mean_probability")["test"]["accuracy"]["value"] == 1
    assert found.row("mean_probability")["test"]["difference"]["better"]
    assert not found.row("member 1")["test"]["difference"]["better"]
    assert found.recommended == "mean_probability"
    assert found.passed_over["member 1"].startswith("worse than mean_probability on validation: -")
    assert "costs as much as mean_probability" in found.passed_over["mean_logit"]


def test_the_cheapest_of_those_that_validation_does_not_tell_apart_is_recommended(tmp_path):
    """One sample in forty is no reason to run two models instead of one."""
    data = DATA._asdict()
    logits = {0: {n: sure(s.labels, [0]) for n, s in data.items()}}
    logits[1] = {n: 2 * sure(s.labels, [1, 2]) for n, s in data.items()}
    for n in data:
        logits[1][n][[1, 2]] *= 0.1
    found = board(tiny.population(tmp_path, DATA, logits))
    assert found.best in ("mean_probability", "mean_logit")
    assert found.recommended == "member 0"
    assert "costs 2.1 times as much as member 0" in found.passed_over[found.best]
    assert set(found.passed_over) == {row["name"] for row in found.rows} - {"member 0"}
    assert any("Recommended: member 0." in line for line in found.summary())


def test_more_metrics_are_shown_and_do_not_decide(population):
    plain = board(population)
    found = board(population, metrics=["brier", "ece", "balanced_accuracy"])
    assert found.document["metrics"] == ["accuracy", "nll", "brier", "ece", "balanced_accuracy"]
    assert (found.best, found.recommended) == (plain.best, plain.recommended)
    labels = population.labels("test")
    share = answers(population, "test")["mean_logit"]
    wanted = ((share - np.eye(CLASSES)[labels]) ** 2).sum(1).mean()
    assert found.row("mean_logit")["test"]["brier"]["value"] == pytest.approx(wanted, rel=1e-5)
    assert found.row("hard_vote")["test"]["ece"] is None  # a vote has no probabilities
    classes = found.row("hard_vote")["test"]["balanced_accuracy"]
    said = answers(population, "test")["hard_vote"]
    recalls = [(said[labels == c] == c).mean() for c in range(CLASSES)]
    assert classes["value"] == pytest.approx(np.mean(recalls))
    assert len(found.table("test").columns) == len(plain.table("test").columns) + 3
    with pytest.raises(PolyfuseError, match=r"scoreboard\.metrics has no option 'breir'.*'brier'"):
        board(population, metrics=["breir"])


def test_choices_are_made_on_validation_alone(tmp_path):
    none, all_rows = [], np.arange(ROWS)
    logits = {
        0: {"val": sure(DATA.val.labels, none), "test": sure(DATA.test.labels, all_rows)},
        1: {"val": sure(DATA.val.labels, all_rows), "test": 9 * sure(DATA.test.labels, none)},
    }
    for index in logits:
        logits[index]["train"] = guess(index)["train"]
    found = board(tiny.population(tmp_path, DATA, logits))
    on_test = {row["name"]: row["test"]["accuracy"]["value"] for row in found.rows}
    assert (on_test["member 0"], on_test["member 1"]) == (0, 1)
    assert found.document["best_member"] == "member 0"
    # A fusion as good on validation would cost twice as much.
    assert found.best == "member 0"


def test_whole_groups_are_drawn_where_there_are_any(tmp_path):
    groups = np.arange(ROWS) // 10
    data = DATA._replace(test=labelled(2, groups=groups))
    found = board(tiny.population(tmp_path, data, {0: guess(0), 1: guess(1)}), seed=5)
    right = correct(answers(Population.open(tmp_path), "test")["member 0"], data.test.labels)
    drawn = bootstrap_counts(4, 200, seed=5).astype(int)
    means = [
        np.concatenate([np.tile(right[groups == g], times[g]) for g in range(4)]).mean()
        for times in drawn
    ]
    scores = found.row("member 0")["test"]["accuracy"]
    wanted = np.quantile(means, [0.025, 0.975])
    np.testing.assert_allclose([scores["low"], scores["high"]], wanted, atol=1e-6)


def test_the_same_seed_gives_the_same_scoreboard_and_another_one_other_intervals(population):
    first, again, other = (board(population, seed=seed).document for seed in (1, 1, 2))
    assert first == again
    assert first != other
    values = [[row["test"]["accuracy"]["value"] for row in d["rows"]] for d in (first, other)]
    assert values[0] == values[1]


def test_out_of_fold_scores_equal_a_recomputation(tmp_path):
    logits = {i: guess(i) for i in range(2)}
    for i, rows in enumerate((np.arange(10, 40), np.r_[0:10, 30:40])):
        logits[i]["train"][rows] = np.nan  # rows 30 to 39 are nobody's
    found = board(tiny.population(tmp_path, DATA, logits)).document["out_of_fold"]
    said = np.concatenate([logits[0]["train"][:10], logits[1]["train"][10:30]])
    assert found["rows"] == 30
    assert found["metric"] == "accuracy"
    wanted = (said.argmax(1) == DATA.train.labels[:30]).mean()
    assert found["train"]["value"] == pytest.approx(wanted)
    members = [(logits[i]["test"].argmax(1) == DATA.test.labels).mean() for i in range(2)]
    assert found["test"]["value"] == pytest.approx(np.mean(members))


def test_strings_are_scored_as_strings(tmp_path):
    blank, positions = CLASSES - 1, 2
    draw = np.random.default_rng(0)

    def strings():
        labels = np.c_[draw.integers(0, blank, ROWS), draw.integers(0, blank + 1, ROWS)]
        return Arrays(np.zeros((ROWS, 1)), labels, blank=blank)

    data = Splits(strings(), strings(), strings())
    shape = (ROWS, positions, CLASSES)
    logits = {i: {n: draw.standard_normal(shape) for n in data._fields} for i in range(2)}
    found = board(tiny.population(tmp_path, data, logits), metrics=list(MORE_METRICS))
    assert found.document["metric"] == "string_accuracy"
    more = [found.row("mean_logit")["test"][name] for name in MORE_METRICS]
    assert all(score["low"] <= score["value"] <= score["high"] for score in more)
    assert {"position_vote", "string_vote"} < {row["name"] for row in found.rows}
    read_off = logits[0]["test"].argmax(-1)
    read_off[read_off[:, 0] == blank, 1] = blank
    right = (read_off == data.test.labels).all(1).mean()
    assert found.row("member 0")["test"]["string_accuracy"]["value"] == pytest.approx(right)
    assert found.row("string_vote")["test"]["nll"] is None


# What is kept -----------------------------------------------------------------------------------


def test_the_leaderboard_file_is_the_scoreboard(population):
    found = board(population)
    assert read_scoreboard(population.path).document == found.document


def test_each_fusion_is_kept_with_its_digests(population):
    board(population)
    folders = sorted((population.path / "fusions").iterdir())
    assert [folder.name for folder in folders] == ["hard_vote", "mean_logit", "mean_probability"]
    for folder in folders:
        record = json.loads((folder / "fusion.json").read_text())
        assert record["members"] == [0, 1, 2]
        assert record["inputs"] == population.fingerprint()
        assert set(record["files"]) == {"predictions/val.npy", "predictions/test.npy"}
        for name, facts in record["files"].items():
            raw = (folder / name).read_bytes()
            assert facts == {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}


@pytest.mark.parametrize("split", ["val", "test"])
def test_kept_predictions_are_the_fusion(split, population):
    board(population)
    said = answers(population, split)
    for name in ("mean_probability", "mean_logit"):
        kept = read(population.path / "fusions" / name / "predictions" / f"{split}.npy")
        np.testing.assert_allclose(np.exp(kept), said[name], rtol=1e-5)
        np.testing.assert_array_equal(population.fused(name, split), kept)
    np.testing.assert_array_equal(population.fused("hard_vote", split), said["hard_vote"])


def test_kept_fusions_are_made_anew_only_when_members_change(population):
    board(population)
    folder = population.path / "fusions" / "mean_logit"
    before = folder.stat().st_ino
    board(population)
    assert folder.stat().st_ino == before
    more = tiny.population(population.path, DATA, {3: guess(3)})
    board(more)
    assert json.loads((folder / "fusion.json").read_text())["members"] == [0, 1, 2, 3]
    said = answers(more, "test")["mean_logit"]
    np.testing.assert_allclose(np.exp(more.fused("mean_logit", "test")), said, rtol=1e-5)


def test_a_fusion_without_its_record_is_refused(population):
    board(population)
    (population.path / "fusions" / "mean_logit" / "fusion.json").unlink()
    with pytest.raises(RunError, match=r"mean_logit' is half-written.*delete"):
        board(population)


# Costs, choices of rows, and what is missing ----------------------------------------------------


def test_costs_are_sums_over_members(population):
    found = board(population, milliseconds={0: 1.0, 1: 2.5})
    costs = {r["name"]: (r["parameters"], r["milliseconds"], r["members"]) for r in found.rows}
    assert costs["member 1"] == (11, 2.5, [1])
    assert costs["member 2"] == (12, None, [2])
    assert costs["mean_logit"] == (33, None, [0, 1, 2])
    found = board(population, milliseconds={0: 1.0, 1: 2.5, 2: 0.5})
    assert found.row("mean_logit")["milliseconds"] == 4


def test_a_population_that_is_not_complete_is_flagged(population):
    found = board(population, expected=5)
    assert (found.document["members"], found.document["expected"]) == (3, 5)
    assert any("Unfinished: 3 of 5 members" in line for line in found.summary())
    assert not any("Unfinished" in line for line in board(population).summary())


def test_fusions_may_be_named_or_brought(population):
    named = board(population, fusions=["mean_logit"])
    assert [row["name"] for row in named.rows if row["kind"] == "fusion"] == ["mean_logit"]
    brought = board(population, fusions={"first": lambda logits: softmax(logits[0])})
    first = brought.row("first")["test"]["accuracy"]
    assert first == brought.row("member 0")["test"]["accuracy"]


def test_unknown_test_labels_leave_the_test_scores_out(tmp_path):
    data = DATA._replace(test=Arrays(DATA.test.values))
    found = board(tiny.population(tmp_path, data, {i: guess(i) for i in range(2)}))
    assert found.splits() == ["val"]
    assert "test" not in found.document["out_of_fold"]
    assert any("test labels are unknown" in line for line in found.summary())


@pytest.mark.parametrize(
    ("fusions", "message"),
    [
        (["mean_logits"], "unknown fusion 'mean_logits'; did you mean 'mean_logit'"),
        (["x"], "known"),
    ],
)
def test_an_unknown_fusion_is_refused(fusions, message, population):
    with pytest.raises(DataError, match=message):
        board(population, fusions=fusions)


def test_without_labels_nothing_can_be_chosen(tmp_path):
    data = DATA._replace(val=Arrays(DATA.val.values))
    with pytest.raises(DataError, match="validation split has no labels"):
        board(tiny.population(tmp_path, data, {0: guess(0)}))


def test_without_members_there_is_nothing_to_compare(tmp_path):
    with pytest.raises(RunError, match="no members yet"):
        board(tiny.population(tmp_path, DATA, {}))


def test_predictions_of_another_length_than_the_labels_are_refused(tmp_path):
    short = {name: array[:-1] for name, array in guess(0).items()}
    with pytest.raises(DataError, match=f"{ROWS} rows"):
        board(tiny.population(tmp_path, DATA, {0: short}))
    assert not (tmp_path / "leaderboard.json").exists()


def test_predictions_of_another_shape_than_the_labels_are_refused(tmp_path):
    heads = {name: np.stack([array, array], 1) for name, array in guess(0).items()}
    with pytest.raises(DataError, match=r"predictions of \(40, 2\) do not fit labels of \(40,\)"):
        board(tiny.population(tmp_path, DATA, {0: heads}))
    assert not (tmp_path / "leaderboard.json").exists()
