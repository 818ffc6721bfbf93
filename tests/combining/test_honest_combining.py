"""No score flatters: noise stays at chance, rows that a member knows are refused."""

import numpy as np
import pytest

from polyfuse.combining import combine_predictions
from polyfuse.errors import DataError
from polyfuse.greedy_selection import GreedySelection
from polyfuse.metrics import accuracy
from tiny_members import classes, noise

CHANCE = 1 / 3


@pytest.fixture(scope="module")
def of_noise():
    """All methods on members and labels that know nothing of each other."""
    said, labels = noise(rows=400, members=6, seed=2)
    fresh, truth = noise(rows=400, members=6, seed=3)
    return combine_predictions(
        said, labels, test=fresh, test_labels=truth, method="all", replicates=300
    )


def test_all_scores_of_noise_are_at_chance_on_validation_and_on_fresh_rows(of_noise):
    fused = [row for row in of_noise.scoreboard.rows if row["kind"] == "fusion"]
    fitted = {row["name"] for row in fused if row["cross_fitted"]}
    assert fitted == {"best", "caruana", "simplex", "bayes", "stack", "blend", "dynamic"}
    for row in fused:
        for split in ("val", "test"):
            score = row[split]["accuracy"]
            # One in twenty intervals of rules that fit nothing may miss it by luck.
            near = 4 * np.sqrt(CHANCE * (1 - CHANCE) / 400)
            inside = score["low"] <= CHANCE <= score["high"]
            assert inside if row["cross_fitted"] else abs(score["value"] - CHANCE) < near, row
            assert not row[split]["difference"]["better"], row


def test_no_winner_is_declared_of_noise_and_the_cheapest_is_recommended(of_noise):
    document = of_noise.scoreboard.document
    assert document["winner"] is None
    assert len(document["level"]) > len(document["rows"]) - 3
    assert document["rows"][0]["models"] == 1
    assert of_noise.scoreboard.row(of_noise.recommended)["models"] == 1
    assert "No winner on validation" in str(of_noise)
    assert of_noise.scoreboard.rows[0].keys() >= {"val", "test"}


def test_in_sample_the_same_selection_would_have_looked_better():
    flattered, honest = [], []
    for seed in range(6):
        said, labels = noise(rows=90, members=12, seed=seed)
        inside = GreedySelection(metric="accuracy").fit(said, labels)
        flattered.append(accuracy(inside.predict_proba(said), labels).value)
        done = combine_predictions(said, labels, method="caruana", replicates=20)
        honest.append(done.scoreboard.row("caruana")["val"]["accuracy"]["value"])
    error = np.sqrt(CHANCE * (1 - CHANCE) / (6 * 90))
    assert np.mean(flattered) > CHANCE + 4 * error
    assert abs(np.mean(honest) - CHANCE) < 2 * error


def test_rows_that_a_member_trained_on_are_refused_and_named():
    said, labels = classes(rows=60, members=3)
    trained = np.zeros((3, 60), bool)
    trained[1, :20] = True
    with pytest.raises(DataError, match="member 1 trained on 20 of the 60 rows"):
        combine_predictions(said, labels, method="caruana", trained=trained)
    said[1, :20] = np.nan  # out of fold: the member has no say there
    with pytest.raises(DataError, match=r"20 of 60 rows .* member_1.*--uncovered leave_out"):
        combine_predictions(said, labels, method="caruana", trained=trained)
    done = combine_predictions(
        said, labels, method="caruana", trained=trained, uncovered="leave_out", replicates=50
    )
    assert len(done.predictions["val"]) == 40
    assert "20 of 60 rows are left out" in str(done)


def test_rows_of_both_splits_are_refused_by_their_ids(tmp_path):
    said, labels = classes(rows=20, members=2)
    for split, start in (("val", 0), ("test", 19)):
        (tmp_path / split).mkdir()
        for member, name in zip(said, "ab", strict=True):
            lines = [f"r{start + i},{x},{y},{z}" for i, (x, y, z) in enumerate(member)]
            text = "\n".join(["id,0,1,2", *lines])
            (tmp_path / split / f"{name}.csv").write_text(text + "\n")
    paths = {split: sorted((tmp_path / split).iterdir()) for split in ("val", "test")}
    with pytest.raises(DataError, match="'r19'"):
        combine_predictions(paths["val"], labels, test=paths["test"])


def test_the_same_rows_without_ids_are_noted():
    said, labels = classes(rows=30, members=2)
    done = combine_predictions(said, labels, test=said[:, 10:], replicates=20)
    assert "20 of 20 test rows have the same predictions as rows of validation" in str(done)


def test_groups_are_neither_cut_nor_drawn_apart():
    said, labels = classes(rows=40, members=3, skill=0.4)
    twice = np.repeat(said, 4, axis=1), np.repeat(labels, 4)
    groups = np.repeat(np.arange(40), 4)
    kept = combine_predictions(*twice, method="stack", groups=groups, replicates=200)
    cut = combine_predictions(*twice, method="stack", replicates=200)
    wide, narrow = (d.scoreboard.row("stack")["val"]["accuracy"] for d in (kept, cut))
    assert wide["high"] - wide["low"] > 1.5 * (narrow["high"] - narrow["low"])
    one, two = (d.predictions["val"][:4] for d in (kept, cut))
    assert np.allclose(one, one[0])
    assert not np.allclose(two, two[0])


def test_in_order_of_time_the_first_rows_are_not_predicted_nor_scored():
    said, labels = classes(rows=60, members=3)
    done = combine_predictions(said, labels, method="simplex", ordered=True, replicates=50)
    gone = np.isnan(done.predictions["val"]).any(-1)
    assert gone[0]
    assert not gone[-1]
    assert f"Scored on {int((~gone).sum())} of 60 rows" in str(done)


def test_the_same_seed_gives_the_same_bits():
    said, labels = classes(rows=60)
    one, two = (
        combine_predictions(said, labels, method=["caruana", "stack"], replicates=50)
        for _ in range(2)
    )
    assert one.scoreboard.document == two.scoreboard.document
    assert np.array_equal(one.predictions["val"], two.predictions["val"])
