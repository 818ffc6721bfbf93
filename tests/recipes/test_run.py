"""Run a recipe, resume it, move it, ask it: on a data set of a second."""

import json
import shutil
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

import polyfuse.fit
from polyfuse.data.arrays import Arrays
from polyfuse.errors import DataError, RecipeError, RunError
from polyfuse.recipes import run as module
from polyfuse.recipes import source
from polyfuse.recipes.folder import Run
from tiny_run import ROWS, SHAPE, digests, held_out_images, images, make_data, make_recipe

run = partial(module.run, workers=1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return a finished run and its recipe; nobody changes them."""
    folder = tmp_path_factory.mktemp("tiny")
    recipe = make_recipe(folder)
    return SimpleNamespace(recipe=recipe, run=run(recipe, out=folder / "RUN"))


@pytest.fixture
def copied(tiny, tmp_path):
    """Return a copy of the finished run that may be changed."""
    return SimpleNamespace(
        recipe=tiny.recipe, run=Run(shutil.copytree(tiny.run.path, tmp_path / "RUN"))
    )


def submission(root):
    head, *lines = (root / "submission.csv").read_text().splitlines()
    assert head == "file_name,file_code"
    return [tuple(line.split(",")) for line in lines]


def test_the_folder_is_laid_out_as_the_design_says(tiny):
    found = set(digests(tiny.run.path))
    assert found == {
        "recipe.yaml",
        "run.json",
        "leaderboard.json",
        "submission.csv",
        "labels/index.json",
        *(f"labels/{s}{end}" for s in ("train", "val", "test") for end in (".npy", "_names.json")),
        *(
            f"members/00{i}/{name}"
            for i in (0, 1)
            for name in (
                *("member.json", "model.safetensors"),
                *(f"rows/{part}.npy" for part in ("learned", "stopped", "held_out")),
                *(f"predictions/{split}.npy" for split in ("train", "val", "test")),
            )
        ),
        *(
            f"fusions/{name}/{file}"
            for name in ("mean_probability", "hard_vote")
            for file in ("fusion.json", "predictions/val.npy", "predictions/test.npy")
        ),
    }


def test_the_record_says_what_was_run(tiny):
    record = json.loads((tiny.run.path / "run.json").read_text())
    assert record["schema"] == 1
    assert {"python", "torch", "polyfuse"} <= record["versions"].keys()
    tree = source.read(tiny.recipe).tree
    del tree["quick"]
    assert record["recipe"] == tree
    assert source.read(tiny.run.path / "recipe.yaml").tree == tree
    assert tiny.run.recipe == tree


def test_a_second_call_trains_nothing_and_changes_nothing(copied, monkeypatch):
    monkeypatch.setattr("polyfuse.training.base.fit_member", None)  # whoever trains, fails
    root = copied.run.path
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}
    bytes_before = (root / "leaderboard.json").read_bytes()
    seen = []
    run(copied.recipe, out=root, progress=lambda *what: seen.append(what[:3]))
    assert (root / "leaderboard.json").read_bytes() == bytes_before
    after = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}
    changed = {p.name for p in after if before.get(p) != after[p]}
    assert changed <= {"submission.csv", ".lock"}
    assert seen == [("data", 72, 72), ("members", 2, 2)]


def test_progress_names_data_members_and_timing(tmp_path):
    seen = []
    recipe = make_recipe(tmp_path)
    run(recipe, out=tmp_path / "RUN", quick=True, progress=lambda *what: seen.append(what))
    names = {name for name, *_ in seen}
    assert names == {"data", "members", "member 0", "member 1", "timing"}
    last = {name: (done, total) for name, done, total, _ in seen}
    assert all(done == total for done, total in last.values())
    assert last["member 0"] == (1, 1)  # quick: one epoch


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        (["fit.epochs=3"], "fit.epochs is 2 there and 3 here"),
        (["seed=1"], "seed is None there and 1 here"),
        (["model.hidden=9", "name=other"], "name is 'tiny' there and 'other' here; model.hidden"),
    ],
)
def test_another_recipe_is_refused_and_nothing_changes(tiny, settings, difference):
    before = digests(tiny.run.path)
    with pytest.raises(RunError, match="was made by another recipe") as caught:
        run(tiny.recipe, out=tiny.run.path, settings=settings)
    assert difference in str(caught.value)
    assert "--out" in str(caught.value)
    assert digests(tiny.run.path) == before


def test_a_recipe_that_trained_nothing_may_be_corrected(tmp_path):
    recipe = make_recipe(tmp_path)
    with pytest.raises(DataError, match="the model has 2 classes"):
        run(recipe, out=tmp_path / "RUN", settings=["model.classes=2"])
    done = run(recipe, out=tmp_path / "RUN", quick=True)
    assert done.recipe["model"]["classes"] == 3
    assert source.read(done.path / "recipe.yaml").tree == done.recipe


def test_a_foreign_folder_is_refused_and_nothing_is_put_there(tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"is no RUN folder \(it holds thesis.tex\)"):
        run(tiny.recipe, out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way_is_refused(tiny, tmp_path):
    (tmp_path / "RUN").write_text("x")
    with pytest.raises(polyfuse.PolyfuseError, match="is a file, not a folder"):
        run(tiny.recipe, out=tmp_path / "RUN")
    assert (tmp_path / "RUN").read_text() == "x"


def test_a_folder_in_use_is_refused(copied):
    another = FileLock(copied.run.path / ".lock")  # as another process holds it
    with another, pytest.raises(RunError, match="in use by another"):
        run(copied.recipe, out=copied.run.path)


def test_other_data_are_refused(copied, tmp_path):
    make_data(tmp_path / "data.npz", test_inputs=np.zeros((12, *SHAPE), "f4"))
    record = json.loads((copied.run.path / "run.json").read_text())
    record["recipe"]["data"]["path"] = str(tmp_path / "data.npz")
    (copied.run.path / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="was made with other data"):
        run(copied.recipe, out=copied.run.path, settings=[f"data.path={tmp_path / 'data.npz'}"])


def test_a_moved_run_reports_predicts_and_resumes(copied, tmp_path):
    before = digests(copied.run.path)
    moved = Run(shutil.move(copied.run.path, tmp_path / "elsewhere"))
    assert moved.scoreboard.best in str(moved.scoreboard)
    assert moved.predict(save(tmp_path / "new.npy", held_out_images())) == submission(moved.path)
    shutil.rmtree(moved.path / "members" / "001")
    run(copied.recipe, out=moved.path)
    assert digests(moved.path) == before


def test_no_time_is_a_clear_message_and_the_next_call_completes(tiny, tmp_path):
    with pytest.raises(RunError, match="the time was up before any of 2 members was done") as no:
        run(tiny.recipe, out=tmp_path / "RUN", minutes=0)
    assert "run the same command again" in str(no.value)
    run(tiny.recipe, out=tmp_path / "RUN", minutes=60)
    assert digests(tmp_path / "RUN") == digests(tiny.run.path)


def test_an_unfinished_population_says_so_and_the_next_call_completes(tiny, tmp_path, monkeypatch):
    ticks = iter(range(100))
    with monkeypatch.context() as clock:
        # fit asks the clock before each epoch: three begin before it is past the deadline.
        clock.setattr("polyfuse.fit.time", SimpleNamespace(time=lambda: next(ticks)))
        clock.setattr("polyfuse.budget.time", SimpleNamespace(time=lambda: 0))  # between members
        clock.setattr(module, "time", SimpleNamespace(time=lambda: 2 - 60))
        part = run(tiny.recipe, out=tmp_path / "RUN", minutes=1)
    assert len(part.population.members) == 1
    assert str(part.spent) == "0.0 of 1 minutes used"
    assert part.scoreboard.summary()[0].startswith("Unfinished: 1 of 2 members")
    assert len(list((tmp_path / "RUN" / "resume").iterdir())) == 1
    whole = run(tiny.recipe, out=tmp_path / "RUN")
    assert not whole.scoreboard.summary()[0].startswith("Unfinished")
    assert digests(tmp_path / "RUN") == digests(tiny.run.path)


def test_two_workers_give_the_same_numbers(tiny, tmp_path):
    run(tiny.recipe, out=tmp_path / "RUN", workers=2)
    assert digests(tmp_path / "RUN") == digests(tiny.run.path)


def test_the_submission_is_the_row_that_is_best_on_validation(tiny):
    board, population = tiny.run.scoreboard, tiny.run.population
    row = board.row(board.best)
    assert row["val"]["accuracy"]["value"] == max(r["val"]["accuracy"]["value"] for r in board.rows)
    stack = population.stack("test")[row["members"]]
    read = np.exp(stack - stack.max(-1, keepdims=True))
    read /= read.sum(-1, keepdims=True)
    classes = read.mean(0).argmax(-1) if row["name"] != "hard_vote" else None
    assert classes is not None  # the tiny run is won by a member or a mean
    expected = [(name, str(c)) for name, c in zip(population.names("test"), classes, strict=True)]
    assert submission(tiny.run.path) == expected


@pytest.mark.parametrize("best", ["mean_probability", "hard_vote", "member 1"])
def test_every_kind_of_row_can_be_submitted(copied, best):
    file = copied.run.path / "leaderboard.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, "best": best}))
    run(copied.recipe, out=copied.run.path)
    expected = copied.run.predict(Arrays(held_out_images() / np.float32(255)), fusion=best)
    assert submission(copied.run.path) == expected
    assert Run(copied.run.path).scoreboard.best == best  # the board was not made again


def test_without_test_labels_there_is_a_submission_and_no_test_score(tiny, tmp_path):
    recipe = make_recipe(tmp_path, test_labels=None)
    done = run(recipe, out=tmp_path / "RUN")
    assert done.scoreboard.splits() == ["val"]
    assert all("test" not in row for row in done.scoreboard.rows)
    board = done.scoreboard
    unknown = "The test labels are unknown." in board.summary()[0]
    assert unknown == (board.best != board.document["best_member"])
    assert submission(done.path) == submission(tiny.run.path)


def test_a_run_shows_itself_in_a_notebook_and_as_a_frame(tiny):
    frame = tiny.run.to_pandas()
    assert list(frame["name"].unique()) == ["member 0", "member 1", "mean_probability", "hard_vote"]
    assert set(frame["split"]) == {"val", "test"}
    assert "<table>" in tiny.run._repr_html_()
    assert "mean_probability" in tiny.run._repr_html_()
    assert repr(tiny.run) == f"Run({str(tiny.run.path)!r})"


def save(file, array):
    np.save(file, array)
    return file


def save_images(folder, pixels):
    folder.mkdir()
    for i, image in enumerate(np.moveaxis(pixels, 1, -1)):
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    return folder


def test_predict_agrees_with_the_stored_predictions_on_every_kind_of_input(tiny, tmp_path):
    pixels = held_out_images()
    expected = submission(tiny.run.path)
    floats = pixels / np.float32(255)
    for given in (
        save(tmp_path / "first.npy", floats),
        save(tmp_path / "last.npy", np.moveaxis(pixels, 1, -1)),
        save(tmp_path / "double.npy", floats.astype("f8")),
        Arrays(floats),
    ):
        assert tiny.run.predict(given) == expected
    read = tiny.run.predict(save_images(tmp_path / "png", pixels))
    assert read == [(f"{int(name):02d}.png", code) for name, code in expected]


def test_a_run_trained_on_uint8_images_reads_uint8_images(tiny, tmp_path):
    pixels = {f"{split}_inputs": images(rows, i)[0] for i, (split, rows) in enumerate(ROWS.items())}
    done = run(make_recipe(tmp_path, **pixels), out=tmp_path / "RUN")
    assert submission(done.path) == submission(tiny.run.path)
    assert done.predict(save(tmp_path / "new.npy", held_out_images())) == submission(done.path)


def test_predict_with_another_row(tiny, tmp_path):
    file = save(tmp_path / "new.npy", images(6, 9)[0])
    for name in ("member 0", "mean_probability", "hard_vote"):
        assert len(tiny.run.predict(file, fusion=name)) == 6
    with pytest.raises(RunError, match="did you mean 'hard_vote'"):
        tiny.run.predict(file, fusion="hard_votes")


OWN = "import torch\ndef net():\n    return torch.nn.Sequential(torch.nn.Flatten(), "
OWN += "torch.nn.Linear(72, 3))\n"


@pytest.fixture
def coded(tmp_path, monkeypatch):
    """Return a run of the user's own model, whose module lies in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_nets.py").write_text(OWN)
    recipe = make_recipe(tmp_path)
    text = recipe.read_text().replace("{name: mlp, inputs: 72, classes: 3, hidden: 8}", "MODEL")
    recipe.write_text(text.replace("MODEL", "'own_nets:net'"))
    yield SimpleNamespace(recipe=recipe, run=run(recipe, out=tmp_path / "RUN", quick=True))
    sys.modules.pop("own_nets", None)


def test_code_is_imported_only_from_a_recipe_that_the_user_names(coded, tmp_path):
    torch.manual_seed(0)
    sys.modules.pop("own_nets")
    file = save(tmp_path / "new.npy", held_out_images())
    with pytest.raises(RecipeError, match="'own_nets:net' names code"):
        coded.run.predict(file)
    assert "own_nets" not in sys.modules
    assert coded.run.predict(file, recipe=coded.recipe) == submission(coded.run.path)


@pytest.mark.parametrize("part", ["model", "data", "fusions"])
def test_a_copied_run_cannot_smuggle_code_in(coded, tmp_path, part):
    (tmp_path / "evil.py").write_text("import pathlib\npathlib.Path('owned').touch()\n")
    file = coded.run.path / "recipe.yaml"
    source_ = source.read(file)
    source_.tree[part] = ["evil:x"] if part == "fusions" else "evil:x"
    file.write_text(source.write(source_.tree))
    new = save(tmp_path / "new.npy", held_out_images())
    for recipe in (None, coded.recipe):
        with pytest.raises(RecipeError, match="'evil:x' names code"):
            coded.run.predict(new, recipe=recipe)
    assert not (tmp_path / "owned").exists()


def only_first(logits):
    """A user's fusion that forgets the samples."""
    return logits[0, 0]


@pytest.mark.parametrize(
    ("fusion", "message"),
    [
        ("string_vote", r"string_vote does not fit the task.*4 or more axes"),
        (f"{__name__}:only_first", r"only_first maps \(2, 1, 3\) to float32 of \(3,\)"),
    ],
)
def test_a_fusion_that_does_not_fit_is_refused_before_training(tmp_path, fusion, message):
    recipe = make_recipe(tmp_path)
    with pytest.raises(RecipeError, match=message):
        run(recipe, out=tmp_path / "RUN", settings=[f"fusions=['{fusion}']"])
    assert not (tmp_path / "RUN" / "members").exists()
    assert len(run(recipe, out=tmp_path / "RUN").population.members) == 2


def test_blank_without_positions_is_refused_before_training(tmp_path):
    with pytest.raises(DataError, match="blank=2 means strings of characters"):
        run(make_recipe(tmp_path), out=tmp_path / "RUN", settings=["data.blank=2"])
    assert not (tmp_path / "RUN" / "members").exists()
