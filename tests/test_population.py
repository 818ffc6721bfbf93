import json
import os
import shutil

import numpy as np
import pytest
import torch

import polyfuse
import tiny
from polyfuse import Arrays, Population, Splits
from polyfuse.errors import DataError, RunError
from polyfuse.labels import write_labels
from polyfuse.members import write_member

ROWS = 6
DATA = Splits(*(Arrays(np.full((ROWS, 1), i), np.arange(ROWS) % 2) for i in range(3)))
COMMITTED = {
    "model.safetensors",
    "rows/held_out.npy",
    "predictions/train.npy",
    "predictions/val.npy",
    "predictions/test.npy",
}


def said(seed, held_out=None):
    draw = np.random.default_rng(seed)
    logits = {n: draw.standard_normal((ROWS, 2)).astype("f4") for n in ("train", "val", "test")}
    if held_out is not None:
        logits["train"][np.setdiff1d(np.arange(ROWS), held_out)] = np.nan
    return logits


def add(run, index, **others):
    record = {"index": index, "parameters": 3, "seed": 7}
    rows = {"held_out": np.arange(2)}
    state = {"w": torch.tensor([float(index)])}
    return write_member(run, record, state, others.get("logits") or said(index), rows)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "RUN"
    folder.mkdir()
    write_labels(folder, DATA)
    for index in (1, 0):
        add(folder, index)
    return folder


# What is written is read ------------------------------------------------------------------------


def test_members_come_in_order_with_all_that_was_written(run):
    found = Population.open(run)
    assert [member.name for member in found.members] == ["member 0", "member 1"]
    member = found.members[1]
    assert (member.index, member.parameters, member.record["seed"]) == (1, 3, 7)
    assert set(member.record["files"]) == COMMITTED
    assert member.state()["w"].tolist() == [1.0]
    assert member.rows("held_out").tolist() == [0, 1]
    for name, array in said(1).items():
        np.testing.assert_array_equal(member.predictions(name), array)
    np.testing.assert_array_equal(found.stack("val"), np.stack([said(i)["val"] for i in range(2)]))


def test_labels_names_and_groups_are_kept(tmp_path):
    train = Arrays(np.zeros((3, 1)), [0, 1, 1], groups=[5, 5, 6], names=["a", "b", "é"], blank=1)
    write_labels(tmp_path, Splits(train, DATA.val, Arrays(np.zeros((2, 1)))))
    found = Population.open(tmp_path)
    assert found.labels("train").tolist() == [0, 1, 1]
    assert found.groups("train").tolist() == [5, 5, 6]
    assert found.names("train") == ["a", "b", "é"]
    assert found.index["blank"] == 1
    assert {k: v["rows"] for k, v in found.index["splits"].items()} == {
        "train": 3,
        "val": ROWS,
        "test": 2,
    }
    assert found.labels("test") is None
    assert found.groups("val") is None


def test_a_moved_run_folder_works(run, tmp_path, monkeypatch):
    before = Population.open(run)
    values = [before.fingerprint(), before.stack("test").tolist(), before.labels("val").tolist()]
    shutil.move(run, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    after = Population.open(".")
    assert values == [
        after.fingerprint(),
        after.stack("test").tolist(),
        after.labels("val").tolist(),
    ]


def test_out_of_fold_is_the_mean_of_those_who_did_not_see_a_row(tmp_path):
    logits = {0: said(0, [0, 1]), 1: said(1, [1, 2]), 2: said(2, [3])}
    mean = tiny.population(tmp_path, DATA, logits).out_of_fold()
    train = {index: each["train"] for index, each in logits.items()}
    np.testing.assert_array_equal(mean[0], train[0][0])
    np.testing.assert_allclose(mean[1], (train[0][1] + train[1][1]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(mean[2], train[1][2])
    np.testing.assert_array_equal(mean[3], train[2][3])
    assert np.isnan(mean[4:]).all()


def test_the_fingerprint_follows_members_and_labels(run, tmp_path):
    prints = [Population.open(run).fingerprint()]
    add(run, 2)
    prints.append(Population.open(run).fingerprint())
    shutil.rmtree(run / "members" / "002")
    assert Population.open(run).fingerprint() == prints[0]
    other = tmp_path / "other"
    other.mkdir()
    write_labels(other, DATA._replace(val=DATA.test))
    for index in range(2):
        add(other, index)
    prints.append(Population.open(other).fingerprint())
    assert len(set(prints)) == 3


def test_the_first_commit_of_an_index_wins(run):
    before = tiny.hashes(run)
    member = add(run, 0, logits=said(99))
    assert tiny.hashes(run) == before
    np.testing.assert_array_equal(member.predictions("val"), said(0)["val"])


def test_a_model_gets_the_weights_and_another_one_is_refused(tmp_path):
    found = tiny.train(tmp_path)
    factory = tiny.task().factory
    model = found.members[0].model(factory)
    assert not model.training
    assert tiny.same(model.state_dict(), found.members[0].state())
    with pytest.raises(RunError, match=r"members/000' does not fit the model.*trained as"):
        found.members[0].model(lambda: polyfuse.mlp(inputs=4, classes=3))


# What does not belong together ------------------------------------------------------------------


def test_labels_of_other_data_are_refused_and_the_same_are_kept(run):
    before = tiny.hashes(run)
    write_labels(run, DATA)
    with pytest.raises(RunError, match="other data; name a new folder"):
        write_labels(run, DATA._replace(test=Arrays(np.ones((2, 1)))))
    assert tiny.hashes(run) == before


@pytest.mark.parametrize("rows", [ROWS - 1, ROWS + 1])
def test_predictions_of_another_length_are_refused(rows, run):
    add(run, 2, logits={**said(2), "val": np.zeros((rows, 2), np.float32)})
    found = Population.open(run)
    assert found.stack("test").shape == (3, ROWS, 2)
    with pytest.raises(DataError, match=rf"shapes .*\({rows}, 2\).*{ROWS} rows; delete"):
        found.stack("val")


def test_equal_predictions_of_another_length_than_the_labels_are_refused(tmp_path):
    short = {name: array[:-1] for name, array in said(0).items()}
    found = tiny.population(tmp_path, DATA, {0: short, 1: short})
    with pytest.raises(DataError, match=f"{ROWS} rows"):
        found.stack("val")


def test_nothing_there_says_what_to_do(tmp_path):
    with pytest.raises(RunError, match=r"no RUN folder.*polyfuse demo"):
        Population.open(tmp_path / "nowhere")
    write_labels(tmp_path, DATA)
    with pytest.raises(RunError, match="no members yet; run the same command again"):
        Population.open(tmp_path).stack("val")


# Damage -----------------------------------------------------------------------------------------


def test_all_half_written_members_are_named_and_none_is_touched(run):
    add(run, 2)
    for name in ("000", "002"):
        (run / "members" / name / "member.json").unlink()
    before = tiny.hashes(run)
    with pytest.raises(RunError) as raised:
        Population.open(run)
    lines = str(raised.value).splitlines()
    assert ["000' is half-written" in lines[0], "002' is half-written" in lines[1]] == [True, True]
    assert all("run the same command again (the other members are kept)" in li for li in lines)
    assert tiny.hashes(run) == before


@pytest.mark.parametrize("name", sorted(COMMITTED))
@pytest.mark.parametrize("damage", ["missing", "truncated", "longer", "folder", "pipe"])
def test_damage_that_shows_is_found_when_the_run_is_opened(name, damage, run):
    file = run / "members" / "001" / name
    raw = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage == "pipe":
        os.mkfifo(file)
    elif damage != "missing":
        file.write_bytes(raw[:-1] if damage == "truncated" else raw + b"\0")
    with pytest.raises(RunError, match=f"001/{name}' is missing or truncated.*delete"):
        Population.open(run)


@pytest.mark.parametrize("name", sorted(COMMITTED))
def test_damage_that_does_not_show_is_found_when_the_file_is_read(name, run):
    flip(run / "members" / "001" / name)
    member = Population.open(run).members[1]
    folder, _, rest = name.partition("/")
    stem = rest.removesuffix(".npy")
    read = {"model.safetensors": member.state, "rows": lambda: member.rows(stem)}
    with pytest.raises(RunError, match=f"001/{name}' was changed.*SHA-256"):
        read.get(folder, lambda: member.predictions(stem))()


@pytest.mark.parametrize("name", ["val.npy", "val_names.json"])
def test_changed_labels_are_found(name, run):
    flip(run / "labels" / name)
    found = Population.open(run)
    with pytest.raises(RunError, match=f"labels/{name}' was changed"):
        found.labels("val") if name == "val.npy" else found.names("val")


def flip(file):
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 1
    file.write_bytes(raw)


def test_an_unknown_file_is_in_no_record(run):
    with pytest.raises(RunError, match=r"predictions/future\.npy' is in no record"):
        Population.open(run).members[0].predictions("future")


FINE = {"bytes": 1, "sha256": "0"}
HOSTILE = {
    "no object": "[]",
    "no JSON": "{",
    "nothing": "",
    "deep": "[" * 100_000,
    "other schema": {"schema": 2},
    "no schema": {"schema": None},
    "index as text": {"index": "0"},
    "index below zero": {"index": -1},
    "index of another": {"index": 0},
    "index NaN": {"index": float("nan")},
    "no index": {"index": None},
    "no parameters": {"parameters": None},
    "parameters as fraction": {"parameters": 0.5},
    "no files": {"files": None},
    "files as list": {"files": ["model.safetensors"]},
    "above": {"files": {"../../../secret": FINE}},
    "above, inside": {"files": {"rows/../../../secret": FINE}},
    "absolute": {"files": {"/etc/hostname": FINE}},
    "not normal": {"files": {"rows//held_out.npy": FINE}},
    "the folder itself": {"files": {".": FINE}},
    "no name": {"files": {"": FINE}},
    "NUL": {"files": {"a\0b": FINE}},
    "endless name": {"files": {"a" * 5000: FINE}},
    "no facts": {"files": {"model.safetensors": None}},
    "bytes as text": {"files": {"model.safetensors": {"bytes": "1", "sha256": "0"}}},
    "no digest": {"files": {"model.safetensors": {"bytes": 1}}},
    "a name of its own": {"name": "better than it is"},
    "no number of those added": {"strategy": "foreign", "name": "resnet"},
    "the number of one added": {"index": 100_000},
    "control characters": {"files": {"\x1b[31mred": FINE}},
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_record_is_refused(how, run):
    file = run / "members" / "001" / "member.json"
    record, given = json.loads(file.read_text()), HOSTILE[how]
    file.write_text(given if isinstance(given, str) else json.dumps(record | given))
    with pytest.raises(RunError, match="001") as raised:
        Population.open(run)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1000


def test_a_huge_record_is_not_read(run):
    with (run / "members" / "001" / "member.json").open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(RunError, match="at most 16,777,216 are read"):
        Population.open(run)


DAMAGED = {
    "no object": "[]",
    "nothing in it": "{}",
    "no JSON": "{",
    "other schema": {"schema": 2},
    "no fingerprint": {"fingerprint": None},
    "files as list": {"files": []},
    "no facts": {"files": {"val.npy": 3}},
    "above": {"files": {"../val.npy": FINE}},
    "no splits": {"splits": None},
    "a split is missing": {"splits": {"train": {"rows": 6}, "val": {"rows": 6}}},
    "rows as text": {"splits": {name: {"rows": "6"} for name in ("train", "val", "test")}},
    "blank as text": {"blank": "10"},
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_index_of_labels_is_refused(how, run):
    file, given = run / "labels" / "index.json", DAMAGED[how]
    record = json.loads(file.read_text())
    file.write_text(given if isinstance(given, str) else json.dumps(record | given))
    found = Population.open(run)
    for use in (
        lambda: found.labels("val"),
        lambda: found.stack("val"),
        found.fingerprint,
        lambda: write_labels(run, DATA),
    ):
        with pytest.raises(RunError, match=r"labels/index\.json' is (no record|not JSON).*restore"):
            use()


def test_strangers_in_the_folder_are_not_members(run):
    (run / "members" / ".DS_Store").write_bytes(b"x")
    (run / "members" / ".003.polyfuse-1-00000000.tmp").mkdir()
    assert len(Population.open(run).members) == 2
