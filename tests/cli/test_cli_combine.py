"""`polyfuse combine` and `predict` on files of predictions, end to end."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from polyfuse import combining
from polyfuse.cli import combining as verbs
from tiny_members import classes, given
from tiny_run import polyfuse, refused

NAMES = ("cat", "dog", "fish")
FEW = ("--replicates", "50", "--quiet")


def table(path, head, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n")


def write_split(folder, seed, count):
    """Write a CSV, a .npy of logits, a .npz and a torch file, one a member; and the labels."""
    said, labels = classes(rows=count, seed=seed)
    ids = [f"{folder}{i}" for i in range(count)]
    head = ",".join(["id", *NAMES])
    table(Path(folder, "a.csv"), head, [[i, *row] for i, row in zip(ids, said[0], strict=True)])
    np.save(f"{folder}/b.npy", np.log(said[1]) + 2.0)
    np.savez(f"{folder}/c.npz", probabilities=said[2])
    torch.save(torch.from_numpy(said[3]), f"{folder}/d.pt")
    truth = [NAMES[label] for label in labels]
    table(Path(f"{folder}_labels.csv"), "id,label", zip(ids, truth, strict=True))
    return said


@pytest.fixture(autouse=True)
def said(tmp_path, monkeypatch):
    """Work in a folder with four members' files of validation and of test."""
    monkeypatch.chdir(tmp_path)
    return {"val": write_split("val", 0, 60), "test": write_split("test", 1, 40)}


def files(folder):
    return sorted(map(str, Path(folder).iterdir()))


def test_files_of_all_kinds_become_one_combination(said):
    result = polyfuse(
        *("combine", *files("val"), "--labels", "val_labels.csv"),
        *("--test", *files("test"), "--test-labels", "test_labels.csv"),
        *("--method", "mean", "--method", "caruana", "--use", "mean", "-o", "out", *FEW),
    )
    assert result.exit_code == 0, result.output
    for line in ("Validation (choices are made here)", "Test (nothing is chosen here)"):
        assert line in result.stdout
    assert "Recommended: " in result.stdout
    assert "passed over, and why" in result.stdout
    assert "Cross-fitted in 5 folds on validation: caruana." in result.stdout
    assert "out: mean   Next: polyfuse predict out PRED... -o answers.csv" in result.stdout
    assert result.stderr == ""
    fused = np.load("out/predictions/test.npy")
    assert np.allclose(fused, said["test"].mean(0), atol=1e-6)
    first = Path("out/submission.csv").read_text().splitlines()[:2]
    assert first[0] == "id,cat,dog,fish"
    assert first[1].startswith("test0,")


def test_new_predictions_get_the_same_answers_bit_for_bit():
    polyfuse(
        *("combine", *files("val"), "--labels", "val_labels.csv", "--test", *files("test")),
        *("--method", "stack", "-o", "out", *FEW),
    )
    done = polyfuse("predict", "out", *files("test"), "-o", "answers.csv")
    assert done.stdout.endswith("answers.csv: 40 rows, read by stack\n")
    assert Path("answers.csv").read_bytes() == Path("out/submission.csv").read_bytes()
    result = polyfuse("predict", "out", "test/*", "-o", "answers.npy", "--json")
    document = json.loads(result.stdout)
    assert (document["rows"], document["fusion"]) == (40, "stack")
    assert Path("answers.npy").read_bytes() == Path("out/predictions/test.npy").read_bytes()


def test_all_tries_all_and_json_says_all():
    result = polyfuse(
        *("combine", "val/*", "--labels", "val_labels.csv", "--method", "all"),
        *("--costs", "d=4,c=3,b=2,a=1", "-o", "out", "--json", *FEW),
    )
    document = json.loads(result.stdout)
    names = [row["name"] for row in document["leaderboard"]["rows"]]
    assert set(combining.METHODS) - set(names) == {
        *combining.methods.ALIASES,
        *("string_vote", "aligned_vote", "joint_decoding"),
    }
    assert document["use"] == document["recommended"]
    assert document["leaderboard"]["rows"][3]["cost"] == 4.0
    assert document["weights"]["caruana"].keys() == set("abcd")
    saved = json.loads(Path("out/leaderboard.json").read_text())
    assert saved == document["leaderboard"]


def test_the_same_command_again_writes_the_same_bytes():
    command = ("combine", "val/*", "--labels", "val_labels.csv", "--method", "caruana", "-o", "out")
    polyfuse(*command, *FEW)
    first = {path: path.read_bytes() for path in Path("out").rglob("*.*")}
    assert polyfuse(*command, *FEW).exit_code == 0
    assert {path: path.read_bytes() for path in Path("out").rglob("*.*")} == first


def test_costs_and_groups_by_file_and_options_of_methods():
    table(Path("costs.csv"), "member,ms", zip("dcba", (4.5, 3, 2, 1), strict=True))
    table(Path("groups.csv"), "id,who", [(f"val{i}", i // 3) for i in range(60)])
    result = polyfuse(
        *("combine", "val/*", "--labels", "val_labels.csv", "--method", "caruana"),
        *("--costs", "costs.csv", "--groups", "groups.csv", "--metric", "nll"),
        *("--set", "caruana.rounds=3", "--calibrate", "-o", "out", "--json", *FEW),
    )
    document = json.loads(result.stdout)
    rows = {row["name"]: row for row in document["leaderboard"]["rows"]}
    assert [rows[name]["cost"] for name in "abcd"] == [1.0, 2.0, 3.0, 4.5]
    assert document["leaderboard"]["metric"] == "nll"
    assert "caruana calibrated" in rows
    weights = np.array(list(document["weights"]["caruana"].values()))
    assert any(np.allclose(weights * added, (weights * added).round()) for added in (1, 2, 3))


@pytest.mark.parametrize("kind", ["binary", "multilabel", "regression", "mean_variance"])
def test_other_tasks_from_arrays(kind):
    said, labels, _ = given(kind, rows=40)
    for name, member in zip("ab", said, strict=False):
        np.save(f"{name}.npy", member)
    np.save("y.npy", labels)
    result = polyfuse("combine", "a.npy", "b.npy", "--labels", "y.npy", "-o", "out", "--json", *FEW)
    document = json.loads(result.stdout)
    assert document["leaderboard"]["task"] == kind
    assert np.load("out/predictions/val.npy").shape == said[0].shape


@pytest.mark.parametrize(
    ("kind", "option"),
    [("quantiles", ("--levels", "0.1,0.5,0.9")), ("multi_head", ("--blank", 3))],
)
def test_quantiles_and_strings_are_named(kind, option):
    said, labels, _ = given(kind, rows=40)
    for name, member in zip("ab", said, strict=False):
        np.save(f"{name}.npy", member)
    np.save("y.npy", labels)
    result = polyfuse(
        *("combine", "a.npy", "b.npy", "--labels", "y.npy", *option, "-o", "out", "--json", *FEW)
    )
    assert json.loads(result.stdout)["leaderboard"]["task"] == kind


def test_everything_wrong_is_told_at_once_and_nothing_is_written():
    np.save("val/b.npy", np.full((59, 4), 0.25))
    command = ("combine", "val/a.csv", "val/b.npy", "-o", "out", "--labels")
    message = refused(*command, "no.csv", "--test", "t1.npy", "t2.npy")
    assert all(name in message for name in ("no.csv", "t1.npy", "t2.npy"))
    message = refused(*command, "val_labels.csv")
    assert "59" in message
    assert "(59, 4)" in message
    assert not Path("out").exists()


def test_rows_that_not_all_files_have_are_refused_or_left_out_on_request():
    lines = Path("val/a.csv").read_text().splitlines(keepends=True)
    Path("few.csv").write_text("".join(lines[:50]))
    command = ("combine", "val/a.csv", "few.csv", "--labels", "val_labels.csv", "-o", "out", *FEW)
    assert "typed --rows shared" in refused(*command)
    done = polyfuse(*command, "--rows", "shared", "--json")
    assert done.exit_code == 0, done.output
    assert np.load("out/predictions/val.npy").shape == (49, 3)
    assert any("11 rows" in note for note in json.loads(done.stdout)["leaderboard"]["notes"])


def test_a_foreign_folder_is_refused_before_anything_is_read():
    Path("out").mkdir()
    Path("out/mine.txt").write_text("dear diary")
    message = refused("combine", "no.npy", "no2.npy", "--labels", "no.csv", "-o", "out")
    assert "'out' is there, and is no combination" in message
    assert "no.npy" not in message


def test_errors_are_json_too():
    result = polyfuse("combine", "val/a.csv", "--labels", "val_labels.csv", "-o", "out", "--json")
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert error["kind"] == "DataError"
    assert "1 member is nothing to combine" in error["message"]


def test_wrong_usage_is_told_without_torch():
    for arguments, hint in (
        (("--method", "caruna"), "did you mean 'caruana'?"),
        (("--task", "binry"), "did you mean 'binary'?"),
        (("--costs", "1,x"), "neither numbers"),
        (("--set", "rounds"), "NAME=VALUE"),
        (("--uncovered", "no"), "leave_out"),
    ):
        result = polyfuse("combine", "a", "b", "--labels", "y", "-o", "out", *arguments)
        assert result.exit_code == 2
        assert hint in " ".join(result.stderr.replace("│", "").split())
    result = polyfuse("combine", "a", "b", "-o", "out")
    assert result.exit_code == 2
    assert "--labels" in result.stderr


def test_predict_tells_a_run_from_a_combination():
    polyfuse("combine", "val/*", "--labels", "val_labels.csv", "-o", "out", *FEW)
    result = polyfuse("predict", "out", "test/*", "-o", "x.csv", "--fusion", "mean")
    assert result.exit_code == 2
    assert "RUN" in result.stderr
    result = polyfuse("predict", "run", "a", "b", "-o", "x.csv")
    assert result.exit_code == 2
    assert "lack 'd'" in refused("predict", "out", *files("test")[:3], "-o", "x.csv")
    assert not Path("x.csv").exists()


def test_progress_goes_to_stderr_and_help_has_an_example():
    loud = polyfuse("combine", "val/*", "--labels", "val_labels.csv", "-o", "out", *FEW[:2])
    assert "methods: 1 done" in loud.stderr
    text = polyfuse("combine", "--help").stdout
    assert "polyfuse combine val/*.csv --labels y.csv --test test/*.csv" in text


def test_names_that_the_command_line_knows_are_those_of_the_source():
    assert set(verbs.METHODS) == set(combining.METHODS)
    assert set(verbs.TASKS) == set(combining.KINDS)


NO_SKLEARN = """\
import sys
from polyfuse.cli import app
try:
    app("combine val/a.csv val/c.npz --labels val_labels.csv -o o --quiet".split())
except SystemExit as end:
    assert end.code == 0
assert "torch" in sys.modules
assert not {"sklearn", "scipy", "pandas"} & set(sys.modules)
"""


def test_fixed_rules_need_no_scikit_learn():
    subprocess.run([sys.executable, "-c", NO_SKLEARN], check=True, capture_output=True)
