"""The door: every format by its content, whatever its name; and the whole way into memory."""

import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp

from polyfuse.checkpoints import load_checkpoint, open_checkpoint
from polyfuse.errors import CheckpointError

STATE = {"a.w": torch.arange(6.0).view(2, 3), "a.b": torch.tensor([1, 2])}


def save_shards(folder):
    folder.mkdir()
    index = {"weight_map": {"a.w": "1.safetensors", "a.b": "2.safetensors"}}
    for name, shard in index["weight_map"].items():
        safetensors.torch.save_file({name: STATE[name]}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def save_legacy(path):
    torch.save(STATE, path, _use_new_zipfile_serialization=False)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def save_dcp(path):
    dcp.save({"model": STATE}, checkpoint_id=path)


FORMATS = {
    "safetensors": ("safetensors", lambda path: safetensors.torch.save_file(STATE, path)),
    "torch": ("torch", lambda path: torch.save(STATE, path)),
    "nested": ("torch", lambda path: torch.save({"state_dict": STATE, "epoch": 3}, path)),
    "legacy": ("torch", save_legacy),
    "shards": ("safetensors", save_shards),
    "dcp": ("dcp", save_dcp),
}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("name", ["a", "a.pt", "a.bin", "a.safetensors", "b.json", "a b.d/c"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_known_by_its_content(tmp_path, kind, name):
    form, save = FORMATS[kind]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    save(path)
    with open_checkpoint(path) as opened:
        assert opened.format == form
        assert opened.path == path
    for named in (path, str(path)):
        state = load_checkpoint(named)
        assert state.keys() == STATE.keys()
        assert all(torch.equal(state[n], STATE[n]) for n in STATE)


def test_a_misleading_name_is_noted(tmp_path):
    safetensors.torch.save_file(STATE, tmp_path / "a.pt")
    torch.save(STATE, tmp_path / "b.safetensors")
    torch.save(STATE, tmp_path / "c.pt")
    for name, note in (
        ("a.pt", "'a.pt' is in the format safetensors, despite its name"),
        ("b.safetensors", "'b.safetensors' is in the format torch, despite its name"),
    ):
        assert open_checkpoint(tmp_path / name).facts["notes"] == [note]
    assert "notes" not in open_checkpoint(tmp_path / "c.pt").facts


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    torch.save(STATE, tmp_path / "a.pt")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_checkpoint("~/a.pt").keys() == STATE.keys()
    assert load_checkpoint(Path("~/a.pt")).keys() == STATE.keys()


def test_one_of_a_list_is_addressed(tmp_path):
    torch.save([{"w": torch.tensor([float(i)])} for i in range(3)], tmp_path / "a.pt")
    assert load_checkpoint(f"{tmp_path}/a.pt[1]")["w"].tolist() == [1]
    assert load_checkpoint(tmp_path / "a.pt[2]")["w"].tolist() == [2]
    with pytest.raises(CheckpointError, match=r"name one of it: '.*a.pt\[0\]' to '.*a.pt\[2\]'"):
        open_checkpoint(f"{tmp_path}/a.pt[3]")
    torch.save(STATE, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"one state dict, no list; leave \[0\] away"):
        open_checkpoint(f"{tmp_path}/b.pt[0]")
    with pytest.raises(CheckpointError, match=r"is a folder, no list; leave \[0\] away"):
        open_checkpoint(f"{tmp_path}[0]")


def test_a_file_that_is_really_named_so_is_that_file(tmp_path):
    torch.save(STATE, tmp_path / "a[1]")
    assert load_checkpoint(tmp_path / "a[1]").keys() == STATE.keys()
    with pytest.raises(CheckpointError, match="cannot read"):
        open_checkpoint(tmp_path / "[1]")


@pytest.mark.parametrize(("path", "key"), [("a.safetensors", "model"), ("a.safetensors[1]", None)])
def test_a_key_or_number_where_there_is_none_is_refused(tmp_path, path, key):
    safetensors.torch.save_file(STATE, tmp_path / "a.safetensors")
    asked = "--key model" if key else r"\[1\]"
    with pytest.raises(CheckpointError, match=f"holds one state dict only; leave {asked} away"):
        open_checkpoint(tmp_path / path, key)


def test_a_key_is_followed_in_a_file_and_in_a_folder_of_one(tmp_path):
    torch.save({"net": {"w": torch.zeros(2)}, "model": STATE}, tmp_path / "a.pt")
    for path in (tmp_path / "a.pt", tmp_path):
        assert load_checkpoint(path, "net").keys() == {"w"}
        assert open_checkpoint(path).facts["key"] == "model"


def test_a_json_file_that_is_no_index_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 3}')
    with pytest.raises(CheckpointError, match=r"no 'weight_map'.*name the weights"):
        open_checkpoint(tmp_path / "config.json")


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a"])
def test_noise_is_refused(tmp_path, name):
    for raw in (b"\x93" * 8, b"PK\3\4" + bytes(100), b"\x80\x02}q\0.", bytes(300), b"{", b"\n"):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(CheckpointError, match=name):
            open_checkpoint(tmp_path / name)


def test_flipped_data_of_a_torch_file_are_told_by_their_crc(tmp_path):
    torch.save(STATE, tmp_path / "a.pt")
    raw = bytearray((tmp_path / "a.pt").read_bytes())
    raw[raw.index(STATE["a.w"].numpy().tobytes()) + 5] ^= 64
    (tmp_path / "a.pt").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"a.pt', '.*data/0': its CRC is not the stated one"):
        load_checkpoint(tmp_path / "a.pt")


def test_no_file_stays_open(tmp_path):
    torch.save(STATE, tmp_path / "a.pt")
    save_shards(tmp_path / "m")
    (tmp_path / "bad.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    before = os.listdir("/proc/self/fd")
    for path in ("a.pt", "m", "m/1.safetensors"):
        load_checkpoint(tmp_path / path)
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / "bad.safetensors")
    assert len(os.listdir("/proc/self/fd")) == len(before)
