"""torch files as a whole: layouts, ties, legacy files, and files that are none."""

import argparse
import io
import json
import os
import pickle
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch_bytes import Called, Stored, archive, records, saved, tensor, torch_file

from polyfuse.checkpoints import torch_files
from polyfuse.checkpoints.torch_files import read_torch
from polyfuse.errors import CheckpointError

legacy = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < torch_files.SAFE_TORCH,
    reason="this torch reads no legacy file safely",
)
both_formats = pytest.mark.parametrize("zipped", [True, pytest.param(False, marks=legacy)])


def save(folder, value, zipped=True):
    return saved(folder, value, _use_new_zipfile_serialization=zipped)


@pytest.fixture
def net():
    made = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(3, 3))
    made[0].weight.data = made[0].weight.data.to(memory_format=torch.channels_last)
    return made


def assert_loads(checkpoint, net):
    state = checkpoint.state_dict()
    net.load_state_dict(state, strict=True)
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())


@both_formats
def test_a_training_state(tmp_path, net, zipped):
    tree = {
        "epoch": 3,
        "best_acc1": torch.tensor(76.5),
        "state_dict": net.state_dict(),
        "model_ema": net.state_dict(),
        "optimizer": torch.optim.Adam(net.parameters()).state_dict(),
    }
    with read_torch(save(tmp_path, tree, zipped)) as checkpoint:
        assert_loads(checkpoint, net)
        assert checkpoint.format == "torch"
        assert checkpoint.facts["keys"] == {"state_dict": 9, "model_ema": 9}
        assert (checkpoint.facts["epoch"], checkpoint.facts["metrics"]["best_acc1"]) == (3, 76.5)
        assert checkpoint.facts["ema"] == ["model_ema"]


@both_formats
def test_a_state_dict(tmp_path, net, zipped):
    with read_torch(save(tmp_path, net.state_dict(), zipped)) as checkpoint:
        assert_loads(checkpoint, net)
        assert checkpoint.facts["key"] == ""


@both_formats
def test_key_and_index(tmp_path, net, zipped):
    path = save(tmp_path, {"a": {"models": [{"w": torch.ones(1)}, {"w": torch.ones(2)}]}}, zipped)
    with read_torch(path, "a.models", 1) as checkpoint:
        assert checkpoint.read("w").tolist() == [1, 1]
        assert checkpoint.facts["key"] == "a.models"


@both_formats
def test_tied_tensors(tmp_path, zipped):
    weight = torch.arange(6.0).view(2, 3)
    state = {"a": weight, "b": weight[0], "c": weight, "d": weight.T, "e": weight.clone()}
    state |= {"none": torch.zeros(0), "none too": torch.zeros(0), "none tied": weight[:0]}
    with read_torch(save(tmp_path, state, zipped)) as checkpoint:
        assert checkpoint.aliases == {"c": "a"}
        again = checkpoint.state_dict()
        assert again["a"] is again["c"]
        assert all(torch.equal(again[name], value) for name, value in state.items())


def test_two_types_of_one_storage_are_not_tied(tmp_path):
    path = torch_file(tmp_path, {"a": tensor(), "b": tensor(Stored("Int")), "c": tensor()})
    assert read_torch(path).aliases == {"c": "a"}


def test_checks_and_order_follow_the_file(tmp_path):
    path = save(tmp_path, {"model": {"a": torch.ones(2), "b": torch.ones(3)}, "x": torch.ones(4)})
    checkpoint = read_torch(path)
    raw = path.read_bytes()
    assert [check.name for check in checkpoint.checks] == ["a/data/0", "a/data/1"]
    for check in checkpoint.checks:
        assert zlib.crc32(raw[check.start : check.start + check.length]) == check.crc
    starts = [(0, check.start) for check in checkpoint.checks]
    assert [info.order for info in checkpoint.tensors.values()] == starts


def test_every_tensor_that_cannot_be_read_is_told_at_once(tmp_path):
    faults = {f"t{i}": tensor(offset=i) for i in range(30)}
    state = {"model": {**faults, "s": torch.eye(2)}, "good": {"w": tensor()}}
    state["model"]["s"] = Called("torch._utils._rebuild_sparse_tensor", 1, 2)
    path = torch_file(tmp_path, state)
    with pytest.raises(CheckpointError, match="holds 30 tensors that cannot be read") as error:
        read_torch(path)
    assert "'t1': it reaches to element 5" in str(error.value)
    assert "and 10 more" in str(error.value)
    assert read_torch(path, "good").read("w").tolist() == [0, 1, 2, 3]


def test_kinds_are_refused_only_where_they_are_asked_for(tmp_path):
    path = save(tmp_path, {"model": {"w": torch.eye(2)}, "x": {"s": torch.eye(2).to_sparse()}})
    assert read_torch(path).read("w").tolist() == [1, 0, 0, 1]
    with pytest.raises(CheckpointError, match=r"'s': it is a sparse tensor; .*to_dense"):
        read_torch(path, "x")


def test_what_lies_beside_does_not_block(tmp_path, net):
    beside = {"epoch": np.float64(3), "args": argparse.Namespace(lr=0.1), "best": np.float32(0.5)}
    checkpoint = read_torch(save(tmp_path, {**beside, "model": net.state_dict()}))
    assert (checkpoint.facts["epoch"], checkpoint.facts["metrics"]) == (3.0, {"best": 0.5})
    assert checkpoint.facts["other"]["args"] == "argparse.Namespace"
    assert_loads(checkpoint, net)


def test_facts_are_plain(tmp_path, net):
    tree = {"model": net.state_dict(), "epoch": np.int64(3), 7: net, "x": torch.ones(1)}
    facts = read_torch(save(tmp_path, tree)).facts
    assert json.loads(json.dumps(facts)) == facts


def test_provenance_in_the_archive(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(archive(records({"w": tensor()}) | {"a/polyfuse.json": b'{"version": 1}'}))
    assert read_torch(path).facts["metadata"] == {"polyfuse": '{"version": 1}'}


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(CheckpointError, match="its name has more than 4,096 characters"):
        read_torch(torch_file(tmp_path, {"w" * 5000: tensor()}))


def test_a_pickled_module(tmp_path, net):
    with pytest.raises(CheckpointError, match=r"a whole nn\.Module was pickled, .*state_dict"):
        read_torch(save(tmp_path, net))
    with pytest.raises(CheckpointError, match=r"pickled under \['model'\]"):
        read_torch(save(tmp_path, {"model": net}))


class Arms:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@both_formats
def test_nothing_is_run(tmp_path, zipped):
    path = save(tmp_path, {"model": {"w": torch.ones(2)}, "x": Arms(tmp_path / "ran")}, zipped)
    if zipped:
        assert read_torch(path).facts["other"]["x"] == "posix.mkdir"
    else:
        with pytest.raises(CheckpointError, match="legacy format and cannot be read safely"):
            read_torch(path)
    assert not (tmp_path / "ran").exists()


@legacy
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": torch.eye(2).to_sparse()}, "'a': it is a sparse tensor"),
        ({"a": torch.ones(2, device="meta")}, "'a': it is a meta tensor"),
        ({"a": torch.ones(1).expand(1 << 30)}, "'a': it repeats 4 bytes of storage"),
    ],
)
def test_legacy_tensors_of_other_kinds(tmp_path, value, message):
    with pytest.raises(CheckpointError, match=message):
        read_torch(save(tmp_path, value, zipped=False))


@legacy
@given(cut=st.integers(30, 500))
def test_a_legacy_file_that_is_cut_off(tmp_path_factory, cut):
    path = save(tmp_path_factory.mktemp("a"), {"w": torch.arange(50.0)}, zipped=False)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match="legacy format and cannot be read safely"):
        read_torch(path)


def test_a_legacy_file_needs_a_torch_that_is_safe(tmp_path, monkeypatch):
    path = save(tmp_path, {"w": torch.ones(2)}, zipped=False)
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(CheckpointError, match=r"only by torch 2\.10 and later.*pip install -U"):
        read_torch(path)


@legacy
def test_the_number_in_a_legacy_tensor(tmp_path):
    tree = {"model": {"w": torch.ones(2)}, "a": torch.tensor([1.5]), "b": torch.ones(2)}
    facts = read_torch(save(tmp_path, tree | {"c": torch.tensor(1j)}, zipped=False)).facts
    assert facts["metrics"] == {"a": 1.5}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs pointer; type: git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"<html>", "is a web page"),
        (b"\x10\0\0\0\0\0\0\0{}", "looks like a safetensors file"),
        (bytes(257) + b"ustar" + bytes(300), "saved by torch 0.1"),
        (pickle.dumps({"w": 1}), "is a pickle, but none of torch.save"),
        (b"hello", "is not a torch file"),
        (b"PK\3\4", "no sound zip archive"),
    ],
)
def test_files_that_are_none(tmp_path, raw, message):
    path = tmp_path / "a.pt"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=message) as error:
        read_torch(path)
    assert "a.pt" in str(error.value)


def test_paths_that_are_no_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for name in (".", "fifo", "loop", "missing"):
        with pytest.raises(CheckpointError):
            read_torch(tmp_path / name)
    with pytest.raises(CheckpointError, match="is not a regular file"):
        read_torch("/dev/zero")


def test_a_failed_open_closes_the_file(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(torch_files.File, "close", lambda file: closed.append(file.shown))
    (tmp_path / "a.pt").write_bytes(b"hello")
    with pytest.raises(CheckpointError):
        read_torch(tmp_path / "a.pt")
    assert closed


@given(st.binary(max_size=600))
def test_a_zip_file_cut_or_overwritten_anywhere(tmp_path_factory, noise):
    """A right checkpoint or an error, whatever is written over the end of a file."""
    out = io.BytesIO()
    torch.save({"w": torch.arange(4.0)}, out)
    path = tmp_path_factory.mktemp("a") / "a.pt"
    path.write_bytes(out.getvalue()[: len(out.getvalue()) - len(noise)] + noise)
    if noise:
        with pytest.raises(CheckpointError):
            read_torch(path)
