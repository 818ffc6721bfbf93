"""What people get wrong, through the command line: exit code 1, the file, the fix, nothing lost."""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from polyfuse.recipes.run import run
from tiny_run import (
    ROWS,
    SHAPE,
    digests,
    held_out_images,
    make_data,
    make_recipe,
    polyfuse,
    refused,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return recipe and folder of a finished run; nobody changes them."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = make_recipe(folder)
    run(recipe, out=folder / "RUN", workers=1)
    return SimpleNamespace(recipe=recipe, root=folder / "RUN")


@pytest.fixture
def mine(finished, tmp_path):
    """Return a copy of the finished run that may be damaged; the recipe is the same."""
    root = shutil.copytree(finished.root, tmp_path / "RUN")
    return SimpleNamespace(recipe=finished.recipe, root=root)


def again(mine, *more):
    """Return the message of the same command, which must be refused."""
    command = ("run", mine.recipe, "--out", mine.root, "--quiet", "--workers", 1, *more)
    return refused(*command)


def completes(mine, finished):
    """Tell whether the same command now gives what the undisturbed run gave."""
    run(mine.recipe, out=mine.root, workers=1)
    return digests(mine.root) == digests(finished.root)


def untouched(mine, finished, *damaged):
    """Tell whether all files but the damaged ones are those of the finished run."""
    before, after = digests(finished.root), digests(mine.root)
    same = {name for name, digest in before.items() if after.get(name) == digest}
    lost = before.keys() - same
    return all(name.startswith(damaged) for name in lost) if damaged else not lost


def test_three_typos_are_all_reported(mine, finished, tmp_path):
    text = finished.recipe.read_text()
    for right, wrong in (("hidden", "hiden"), ("adam,", "addam,"), ("epochs: 2", "epochs: two")):
        text = text.replace(right, wrong)
    (tmp_path / "typos.yaml").write_text(text)
    message = refused("run", tmp_path / "typos.yaml", "--out", mine.root)
    assert "3 faults in recipe 'typos.yaml':" in message
    assert "line 3: model.hiden: unknown 'hiden'; did you mean 'hidden'?" in message
    assert "line 6: fit.epochs: should be a valid integer; got 'two'" in message
    assert "line 8: fit.optimizer.name: unknown 'addam'; did you mean 'adam'?" in message
    assert untouched(mine, finished)


@pytest.mark.parametrize(
    ("setting", "fix"),
    [
        ("model.name=mpl", "did you mean 'mlp'?"),
        (
            "model.name=resnet",
            "reader, mlp, resnet18_small, or package.module:function",
        ),
        ("fusions=[mean_probabilty]", "did you mean 'mean_probability'?"),
        ("fusions=[zebra]", "Known: mean_probability, mean_logit, geometric_mean, "),
    ],
)
def test_unknown_models_and_combiners(mine, finished, setting, fix):
    message = again(mine, "--set", setting)
    assert f"--set {setting}: " in message
    assert fix in message
    assert untouched(mine, finished)


def test_more_folds_than_samples(finished, tmp_path):
    command = ["run", finished.recipe, "--out", tmp_path / "RUN", "--quiet"]
    message = refused(*command, "--set", "training.folds=41")
    assert "folds=41 does not fit 40 rows; type a number of folds from 2 to 40" in message
    run(finished.recipe, out=tmp_path / "RUN", quick=True, workers=1)  # a mistake holds no folder


def not_a_number():
    values = np.zeros((ROWS["train"], *SHAPE), "f4")
    values[7, 0, 0, 0] = np.nan
    return values


DATA = [
    ({"train_labels": np.full(40, 3)}, ["labels go up to 3", "3 classes", "give it 4 classes"]),
    ({"val_labels": np.full(20, 3)}, ["labels go up to 3", "correct the labels"]),
    ({"test_labels": np.full(12, 9)}, ["labels go up to 9", "correct the labels"]),
    ({"train_labels": np.full(40, -1)}, ["data.npz', train split", "map your classes to 0, 1"]),
    ({"train_labels": np.full(40, 0.5)}, ["data.npz', train split", "must be whole numbers"]),
    ({"train_inputs": not_a_number()}, ["data.npz', train", "NaN", "[7]", "numpy.nan_to_num"]),
    ({"train_labels": np.zeros(39, int)}, ["data.npz', train", "(39,) for 40 rows", "one a row"]),
    ({"val_inputs": np.zeros((0, *SHAPE), "f4")}, ["data.npz', val", "no rows", "bring at least"]),
    ({"val_labels": None}, ["data.npz' lacks val_labels"]),
    (
        {"train_inputs": np.array([None] * 40)},
        ["train_inputs' holds object", "convert it"],
    ),
    ({"train_inputs": np.zeros((40, 5), "f4")}, ["the model does not take these inputs"]),
]


@pytest.mark.parametrize(("changes", "facts"), DATA)
def test_data_that_do_not_fit(mine, finished, tmp_path, changes, facts):
    make_data(tmp_path / "data.npz", **changes)
    setting = f"data.path={tmp_path / 'data.npz'}"
    new = SimpleNamespace(recipe=finished.recipe, root=tmp_path / "NEW")
    message = again(new, "--set", setting)
    for fact in facts:
        assert fact in message
    assert not list((tmp_path / "NEW").rglob("*.safetensors"))
    assert untouched(mine, finished)


@pytest.mark.parametrize("damage", [b"", b"no zip", None])
def test_data_files_that_are_none(finished, tmp_path, damage):
    file = tmp_path / "data.npz"
    make_data(file)
    file.write_bytes(file.read_bytes()[:-100] if damage is None else damage)
    new = SimpleNamespace(recipe=finished.recipe, root=tmp_path / "NEW")
    message = again(new, "--set", f"data.path={file}")
    assert f"'{file}' is not an .npz of plain numbers" in message


def test_predictions_and_labels_of_different_lengths(mine, finished):
    folder = mine.root / "members" / "001"
    file = folder / "predictions" / "test.npy"
    np.save(file, np.load(file)[:-1])
    vouch(folder, "predictions/test.npy")
    message = again(mine)
    assert f"predictions of '{mine.root}' for test have shapes [(11, 3), (12, 3)]" in message
    assert "the split has 12 rows; delete the members that differ and run again" in message
    assert untouched(mine, finished, "members/001/")
    shutil.rmtree(folder)
    assert completes(mine, finished)


def vouch(folder, name):
    """Make a member's record vouch for what a file holds now."""
    record = json.loads((folder / "member.json").read_text())
    raw = (folder / name).read_bytes()
    record["files"][name] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    (folder / "member.json").write_text(json.dumps(record))


def test_a_run_of_another_recipe(mine, finished):
    message = again(mine, "--set", "fit.epochs=9", "--set", "model.hidden=9")
    assert f"'{mine.root}' was made by another recipe" in message
    assert "model.hidden is 8 there and 9 here" in message
    assert "fit.epochs is 2 there and 9 here" in message
    assert "name a new folder with --out" in message
    assert untouched(mine, finished)


def truncated(raw):
    return raw.rstrip()[:-1]  # without its last brace, where it is JSON


def flipped(raw):
    return raw[:-1] + bytes([raw[-1] ^ 1])


MEMBER = [
    ("member.json", None, "is half-written: it has no member.json; delete or move the folder"),
    ("member.json", truncated, "is not JSON"),
    ("member.json", lambda raw: b"[]", "is no record of schema 1"),
    ("model.safetensors", truncated, "is missing or truncated"),
    ("model.safetensors", None, "is missing or truncated"),
    ("predictions/val.npy", truncated, "is missing or truncated"),
    ("predictions/val.npy", flipped, "was changed after it was committed"),
]


@pytest.mark.parametrize(("name", "damage", "fact"), MEMBER)
def test_half_written_and_damaged_members(mine, finished, name, damage, fact):
    file = mine.root / "members" / "001" / name
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    (mine.root / "leaderboard.json").unlink()  # so that all is read again
    message = again(mine)
    assert fact in message
    assert "members/001" in message
    assert untouched(mine, finished, "members/001/", "leaderboard.json")
    shutil.rmtree(mine.root / "members" / "001")  # the fix that the message names
    assert completes(mine, finished)


RECORDS = {
    "empty": lambda raw: b"",
    "truncated": truncated,
    "a list": lambda raw: b"[]",
    "another schema": lambda raw: raw.replace(b'"schema": 1', b'"schema": 99'),
    "only a schema": lambda raw: b'{"schema": 1}',
    "deep": lambda raw: b"[" * 100_000,
}
every_damage = pytest.mark.parametrize("damage", RECORDS.values(), ids=RECORDS)


def damaged(root, name, damage):
    (root / name).write_bytes(damage((root / name).read_bytes()))
    return str(root / name)


@every_damage
def test_a_damaged_run_record(mine, finished, damage):
    file = damaged(mine.root, "run.json", damage)
    for message in (again(mine), refused("report", mine.root)):
        assert file in message
        assert "restore it" in message
    assert untouched(mine, finished, "run.json")


@every_damage
def test_a_damaged_leaderboard_is_made_again(mine, finished, damage):
    file = damaged(mine.root, "leaderboard.json", damage)
    message = refused("report", mine.root)
    assert file in message
    assert "run the same recipe again" in message
    assert completes(mine, finished)


@every_damage
@pytest.mark.parametrize("name", ["labels/index.json", "fusions/hard_vote/fusion.json"])
def test_other_damaged_records(mine, finished, damage, name):
    file = damaged(mine.root, name, damage)
    (mine.root / "leaderboard.json").unlink()
    message = again(mine)
    assert str(Path(file).parent) in message
    assert untouched(mine, finished, name, "leaderboard.json")
    shutil.rmtree(mine.root / name.rpartition("/")[0])
    assert completes(mine, finished)


@pytest.mark.parametrize("gone", ["fusions", "labels", "leaderboard.json", "recipe.yaml"])
def test_what_can_be_made_again_is(mine, finished, gone):
    path = mine.root / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert completes(mine, finished)


def test_damaged_progress_of_a_member(mine, finished):
    shutil.rmtree(mine.root / "members" / "001")
    (mine.root / "resume" / "001.safetensors").write_bytes(b"half")
    message = again(mine)
    assert "resume/001.safetensors" in message
    (mine.root / "resume" / "001.safetensors").unlink()
    assert completes(mine, finished)


def test_no_image_in_the_folder_to_predict(mine, finished, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.png").write_text("hello")
    message = refused("predict", mine.root, tmp_path / "new", "-o", tmp_path / "out.csv")
    assert "a.png" in message
    assert "remove them or replace them" in message
    assert not (tmp_path / "out.csv").exists()
    assert untouched(mine, finished)


def test_predict_keeps_the_old_answers_where_it_fails(mine, tmp_path):
    (tmp_path / "out.csv").write_text("precious")
    np.save(tmp_path / "new.npy", held_out_images()[:, :2])
    message = refused("predict", mine.root, tmp_path / "new.npy", "-o", tmp_path / "out.csv")
    assert "new.npy' has shape (12, 2, 4, 6); the run takes (n, 3, 4, 6)" in message
    assert (tmp_path / "out.csv").read_text() == "precious"


@pytest.fixture
def frozen():
    """Return a function that makes a folder read-only, for root too; undone at the end."""
    if os.geteuid() == 0:
        on, off = ["chattr", "+i"], ["chattr", "-i"]
    else:
        on, off = ["chmod", "a-w"], ["chmod", "u+w"]
    done = []

    def freeze(folder):
        folders = [folder, *(p for p in folder.rglob("*") if p.is_dir())]
        for each in folders:
            done.append(each)
            called = subprocess.run([*on, each], capture_output=True, text=True, check=False)
            if called.returncode:
                pytest.skip(f"cannot make a folder read-only here: {called.stderr.strip()}")

    if not shutil.which(on[0]):
        pytest.skip(f"there is no {on[0]} to make a folder read-only with")
    yield freeze
    for each in done:
        subprocess.run([*off, each], check=False, capture_output=True)


def test_a_read_only_output_folder(mine, finished, frozen, tmp_path):
    (tmp_path / "folder").mkdir()
    frozen(tmp_path / "folder")
    frozen(mine.root)
    new = SimpleNamespace(recipe=mine.recipe, root=tmp_path / "folder" / "NEW")
    for message in (again(new), again(mine)):
        assert f"cannot write '{tmp_path}" in message
        assert "name another output folder" in message
    assert untouched(mine, finished)
    assert polyfuse("report", mine.root).exit_code == 0  # what is there can still be read


@pytest.fixture
def small_disk():
    """Return a folder on a file system of 1 MB."""
    folder = Path(tempfile.mkdtemp())
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command to make a small disk with")
    if done.returncode:
        folder.rmdir()
        pytest.skip(f"cannot mount a small disk here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()


def test_a_full_output_folder(mine, finished, small_disk):
    full = SimpleNamespace(recipe=mine.recipe, root=shutil.copytree(mine.root, small_disk / "RUN"))
    shutil.rmtree(full.root / "members" / "001")
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(1 << 20))
    message = again(full)
    assert str(full.root) in message
    assert "the disk is full" in message
    assert "free some space" in message
    assert not list(full.root.rglob("*.tmp"))
    assert untouched(full, finished, "members/001/")
    ballast.unlink()
    assert completes(full, finished)
