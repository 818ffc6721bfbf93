"""The contest's whole recipe: on its own files to a checked submission; what it says of itself."""

import csv
import shutil

import pytest

import contest
from polyfuse.ladder import ladder_of, steps_of
from polyfuse.population_views import chosen_views
from polyfuse.recipes import source
from polyfuse.recipes.folder import Run
from polyfuse.recipes.run import load, run
from polyfuse.recipes.shipped import find
from polyfuse.submissions import check_submission

SMALL = (
    "model.width=2",
    "training.folds=2",
    "fit.epochs=1",
    "fit.batch_size=24",
    "tta.folds=2",
    "scoreboard.replicates=20",
)
ABOVE = ["mean_probability", "mean_probability, ema", "mean_probability, ema, tta"]
VOTES = ("position_vote", "string_vote", "aligned_vote")


@pytest.fixture(scope="module")
def done(shared_data, tmp_path_factory):
    """Return the recipe's run on a folder of the contest's layout, and that folder."""
    folder = tmp_path_factory.mktemp("whole")
    contest.make(shared_data, folder / "mchar")
    data = f"data={{name: mchar, root: '{folder / 'mchar'}', size: [16, 32]}}"
    return run(
        "street_numbers_full", out=folder / "RUN", settings=[data, *SMALL], workers=1
    ), folder / "mchar"


def test_the_submission_has_the_ids_order_and_columns_of_the_sample(done):
    made, data = done
    found = check_submission(made.path / "submission.csv", data / "mchar_sample_submit_A.csv")
    assert (found.rows, list(found.faults)) == (len(contest.TEST), [])


def test_each_step_is_a_row_with_what_it_bought(done):
    made, _ = done
    board, asked = made.scoreboard, load(source.read(find("street_numbers_full")), []).decoding
    rungs = [*ABOVE, *(f"+ {name}" for name, _ in asked.steps)]
    assert ladder_of(steps_of(made.population)) == rungs
    steps = board.document["steps"]
    assert [step["name"] for step in steps] == rungs
    assert [step["before"] for step in steps] == [board.document["best_member"], *rungs[:-1]]
    for step in steps:
        assert step["val"]["low"] <= step["val"]["value"] <= step["val"]["high"]
    names = {row["name"] for row in board.rows}
    endings = ("", ", ema", ", ema, tta")
    assert names >= {vote + ending for vote in VOTES for ending in endings}


def test_every_view_has_its_sentence(done):
    made, _ = done
    chosen = chosen_views(made.population)
    assert len(chosen.views) == 9  # 8, and the image as it is
    assert len(chosen.report) >= 1
    told = " ".join(chosen.report)
    assert all(view in told for view in chosen.views[1:])


def test_corrections_are_listed_and_new_images_are_read_by_the_last_step(done, tmp_path):
    made, data = done
    with open(made.path / "corrections.csv", newline="") as file:
        head, *rows = list(csv.reader(file))
    assert head == ["name", "before", "after", "why"]
    assert all(name in contest.TEST and before != after for name, before, after, _ in rows)
    shutil.copytree(data / "mchar_test_a", tmp_path / "new")
    read = Run(made.path).predict(tmp_path / "new", fusion=made.scoreboard.rows[-1]["name"])
    assert [name for name, _ in read] == sorted(contest.TEST)
    said = dict(zip(made.population.names("test"), _last(made), strict=True))
    assert dict(read) == said


def _last(made):
    from polyfuse.sequences import strings

    row = made.scoreboard.rows[-1]["name"]
    return strings(made.population.said(row, "test"), blank=10)


def test_the_length_run_reads_the_same_images():
    full, lengths = (
        source.read(find(name)).tree for name in ("street_numbers_full", "street_numbers_lengths")
    )
    assert lengths["data"] == {**full["data"], "target": "length"}
    images = [
        {k: v for k, v in tree["quick"].items() if k[:4] == "data"} for tree in (full, lengths)
    ]
    assert images[0] == images[1]
