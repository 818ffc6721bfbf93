"""Recipes on image files: the contest to its submission, letters, predictions of new images."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import contest
from polyfuse.data.base import Splits
from polyfuse.data.labelled_images import labelled_images
from polyfuse.errors import DataError, RunError
from polyfuse.labels import write_labels
from polyfuse.recipes import run as module
from polyfuse.recipes.folder import Run

run = partial(module.run, workers=1)
RECIPE = """\
name: tiny
data: {data}
model: {{name: character_cnn, width: 2, hidden: 8, positions: {positions}, classes: {classes}}}
training: {{name: kfold, folds: 2}}
fit: {{epochs: 1, batch_size: 8}}
fusions: [mean_probability, string_vote]
scoreboard: {{replicates: 20}}
"""
LETTERS = "abcXYZ"


def recipe(path, data, positions=6, classes=11):
    path.write_text(RECIPE.format(data=json.dumps(data), positions=positions, classes=classes))
    return path


def answers(root):
    head, *lines = (root / "submission.csv").read_text().splitlines()
    assert head == "file_name,file_code"
    return [line.split(",") for line in lines]


@pytest.fixture(scope="module")
def done(shared_data, tmp_path_factory):
    """Return the folder of a run on the contest's files, the data, and what it was asked."""
    folder = tmp_path_factory.mktemp("contest")
    contest.make(shared_data, folder / "mchar")
    data = {"name": "mchar", "root": str(folder / "mchar"), "size": [16, 32], "cache": 1}
    asked = recipe(folder / "mine.yaml", data)
    return run(asked, out=folder / "RUN").path, folder / "mchar", data


def test_the_submission_has_the_names_order_and_columns_of_the_sample(done):
    root, data, _ = done
    sample = (data / "mchar_sample_submit_A.csv").read_text().splitlines()
    made = answers(root)
    assert [name for name, _ in made] == [line.split(",")[0] for line in sample[1:]]
    assert all(set(code) <= set("0123456789") for _, code in made)


def test_new_folders_of_images_are_read_as_test_images_are(done, tmp_path):
    root, data, _ = done
    shutil.copytree(data / "mchar_test_a", tmp_path / "new")
    read = Run(root).predict(tmp_path / "new")
    assert read == sorted(map(tuple, answers(root)))
    (tmp_path / "new" / "bad.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"1 of 6 images cannot be read:\n.*bad\.png"):
        Run(root).predict(tmp_path / "new")


def test_data_that_moved_are_known_again_and_others_are_refused(done, tmp_path):
    root, data, options = done
    moved = shutil.copytree(data, tmp_path / "moved")
    again = {**options, "root": str(moved), "workers": 2, "cache": 0}
    before = (root / "members" / "000" / "member.json").read_bytes()
    run(recipe(tmp_path / "a.yaml", again), out=root)
    assert (root / "members" / "000" / "member.json").read_bytes() == before
    with pytest.raises(RunError, match=r"was made by another recipe: data.size"):
        run(recipe(tmp_path / "b.yaml", {**again, "size": [16, 30]}), out=root)
    first = next((moved / "mchar_train").iterdir())
    with Image.open(first) as image:
        black = Image.new("RGB", image.size)
    black.save(first)
    run_it = partial(run, recipe(tmp_path / "a.yaml", again), out=root)
    with pytest.raises(RunError, match="was made with other data"):
        run_it()


def test_faults_stop_a_run_before_it_begins(done, tmp_path):
    _, data, options = done
    bad = shutil.copytree(data, tmp_path / "bad")
    next((bad / "mchar_val").iterdir()).unlink()
    asked = recipe(tmp_path / "a.yaml", {**options, "root": str(bad)})
    with pytest.raises(DataError, match=r"1 of 37 files .* 1 x missing image"):
        run(asked, out=tmp_path / "RUN")
    assert not (tmp_path / "RUN" / "members").exists()


def plates(folder):
    """Write images with strings of one to eight letters."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    lines = ["file_name,file_code"]
    for i in range(30):
        code = "".join(rng.choice(list(LETTERS), rng.integers(1, 9)))
        pixels = rng.integers(0, 256, (8, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{code}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return {"root": str(folder), "size": [16, 32], "longest": 8}


def test_letters_of_both_cases_come_back_as_letters(tmp_path):
    data = {"name": "labelled_images", "alphabet": LETTERS, **plates(tmp_path / "plates")}
    done = run(recipe(tmp_path / "a.yaml", data, positions=8, classes=7), out=tmp_path / "RUN")
    index = json.loads((done.path / "labels" / "index.json").read_text())
    assert (index["alphabet"], index["blank"]) == (LETTERS, 6)
    assert done.population.alphabet == LETTERS
    made = answers(done.path)
    assert set("".join(code for _, code in made)) <= set(LETTERS)
    assert any(code for _, code in made)
    assert done.population.stack("test").shape[2:] == (8, 7)
    again = dict(Run(done.path).predict(tmp_path / "plates"))
    assert {name: again[name] for name, _ in made} == dict(made)


def test_splits_of_several_alphabets_are_no_data_set(tmp_path):
    options = plates(tmp_path / "plates")
    one = labelled_images(alphabet=LETTERS, **options)
    other = labelled_images(alphabet=LETTERS[::-1], **options)
    with pytest.raises(DataError, match="have several alphabets: 'ZYXcba', 'abcXYZ'"):
        write_labels(tmp_path, Splits(one.train, one.val, other.test))


def test_cut_out_digits_are_ten_classes_and_folds_keep_neighbours_whole(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 400), ("test", 20)):
        images = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        labels = rng.integers(1, 11, (count, 1)).astype(np.uint8)
        savemat(tmp_path / f"{part}_32x32.mat", {"X": images, "y": labels})
    asked = tmp_path / "a.yaml"
    text = RECIPE.format(
        data=json.dumps({"name": "svhn_format2", "root": str(tmp_path)}), positions=1, classes=1
    )
    lines = text.replace(", string_vote", "").splitlines()
    lines[2] = "model: {name: mlp, inputs: 3072, classes: 10, hidden: 4}"
    asked.write_text("\n".join(lines))
    done = run(asked, out=tmp_path / "RUN")
    assert [name for name, _ in answers(done.path)] == [f"test/{i + 1}" for i in range(20)]
    assert {code for _, code in answers(done.path)} <= set("0123456789")
    groups = done.population.groups("train")
    halves = [set(groups[member.rows("held_out")]) for member in done.population.members]
    assert len(halves) == 2
    assert halves[0].isdisjoint(halves[1])
