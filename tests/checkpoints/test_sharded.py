"""Shards and Hugging Face directories: all that is wrong is told at once, nothing is followed."""

import json
import os

import pytest
import safetensors.torch
import torch

from polyfuse.checkpoints import open_checkpoint, sharded
from polyfuse.checkpoints.base import Limits
from polyfuse.checkpoints.safetensors import read_safetensors
from polyfuse.errors import CheckpointError

STATE = {name: torch.rand(2, 3) for name in ("a.w", "a.b", "b.w", "b.b", "c.w")}
SHARDS = {
    "model-00001-of-00003.safetensors": ("a.w", "a.b"),
    "model-00002-of-00003.safetensors": ("b.w", "b.b"),
    "model-00003-of-00003.safetensors": ("c.w",),
}
INDEX = "model.safetensors.index.json"


def save(folder, shards=SHARDS, index=INDEX, weight_map=None, total=None, state=STATE, **more):
    """Write shards and their index as Hugging Face does; return the index."""
    folder.mkdir(exist_ok=True)
    for shard, names in shards.items():
        part = {name: state[name] for name in names}
        if shard.endswith(".bin"):
            torch.save(part, folder / shard)
        else:
            safetensors.torch.save_file(part, folder / shard, {"format": "pt"})
    places = {name: shard for shard, names in shards.items() for name in names}
    size = sum(tensor.nbytes for tensor in state.values()) if total is None else total
    document = {"metadata": {"total_size": size}, "weight_map": weight_map or places, **more}
    (folder / index).write_text(json.dumps(document))
    return folder / index


def assert_holds(checkpoint, state=STATE):
    assert sorted(checkpoint.names()) == sorted(state)
    assert all(torch.equal(tensor, state[n]) for n, tensor in checkpoint.state_dict().items())


def test_shards_read_as_one(tmp_path):
    index = save(tmp_path / "m")
    for path in (index, tmp_path / "m", f"{tmp_path}/m/"):
        with open_checkpoint(path) as opened:
            assert_holds(opened)
            assert opened.format == "safetensors"
            assert [file.path.name for file in opened.files] == list(SHARDS)
            assert {opened.tensors[name].order[0] for name in SHARDS[list(SHARDS)[1]]} == {1}
            assert opened.facts["shards"] == list(SHARDS)
            assert opened.facts["metadata"] == {"total_size": 120, "format": "pt"}
            assert "notes" not in opened.facts


def test_shards_of_torch_files_keep_ties_and_checks(tmp_path):
    tied = STATE | {"d.w": STATE["a.w"]}
    shards = {
        "pytorch_model-1.bin": ("a.w", "a.b", "d.w"),
        "pytorch_model-2.bin": ("b.w", "b.b", "c.w"),
    }
    save(tmp_path, shards, "pytorch_model.bin.index.json", state=tied)
    opened = open_checkpoint(tmp_path)
    assert_holds(opened, tied)
    assert opened.format == "torch"
    assert opened.aliases == {"d.w": "a.w"}
    assert {check.file for check in opened.checks} == set(opened.files)


@pytest.mark.parametrize("total", [240, 121, -1])
def test_a_total_size_that_is_off_is_noted(tmp_path, total):
    opened = open_checkpoint(save(tmp_path, total=total))
    assert opened.facts["notes"] == [
        f"the index states {total:,} bytes in all, its shards hold 120"
    ]


def test_an_index_without_a_total_size_is_read(tmp_path):
    index = save(tmp_path)
    for metadata in (None, {}, {"total_size": "12"}, []):
        document = json.loads(index.read_text()) | {"metadata": metadata}
        index.write_text(json.dumps(document))
        assert_holds(open_checkpoint(index))


def test_all_missing_shards_are_told_at_once(tmp_path):
    index = save(tmp_path)
    for shard in list(SHARDS)[::2]:
        (tmp_path / shard).unlink()
    with pytest.raises(CheckpointError, match=r"2 of 3 shards missing: .*00001.*00003.*fetch"):
        open_checkpoint(index)


def test_a_dangling_link_and_a_loop_are_missing_shards(tmp_path):
    index = save(tmp_path)
    first, second, _ = SHARDS
    for shard, target in ((first, "nowhere"), (second, second)):
        (tmp_path / shard).unlink()
        (tmp_path / shard).symlink_to(target)
    with pytest.raises(CheckpointError, match="2 of 3 shards missing"):
        open_checkpoint(index)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/abs/secret.safetensors",
        "a/b",
        "..",
        ".",
        "",
        "a\x00b",
        "c:x",
        "a\\b",
        None,
        3,
        1.5,
        True,
        ["x"],
        {},
        "x" * 300,
    ],
)
def test_what_is_no_name_in_the_folder_is_refused(tmp_path, name):
    safetensors.torch.save_file(STATE, tmp_path / "secret.safetensors")
    index = save(tmp_path / "m", weight_map={"a.w": name})
    with pytest.raises(CheckpointError, match=r"names of files beside it expected, found .*'a\.w'"):
        open_checkpoint(index)


def test_a_link_out_of_the_folder_is_refused_and_one_within_is_not(tmp_path):
    index = save(tmp_path / "m")
    shard = tmp_path / "m" / next(iter(SHARDS))
    shard.rename(tmp_path / "m" / "blob")
    shard.symlink_to("blob")
    assert_holds(open_checkpoint(index))
    (tmp_path / "m" / "blob").rename(tmp_path / "blob")
    shard.unlink()
    shard.symlink_to("../blob")
    with pytest.raises(CheckpointError, match=r"links to elsewhere: 'model-00001.*copy them into"):
        open_checkpoint(index)


def in_hub_cache(root, folder):
    """Move a folder's files to where the Hub's cache has them, with links in their places."""
    model = root / "models--org--net"
    snapshot = model / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(model / "blobs" / f"{number:040}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:040}")
    return snapshot


def test_links_of_the_hub_cache_are_followed_but_not_out_of_the_model(tmp_path):
    save(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text("{}")
    snapshot = in_hub_cache(tmp_path / "hub", tmp_path / "m")
    for path in (snapshot, snapshot / INDEX):
        assert_holds(open_checkpoint(path))
    assert open_checkpoint(snapshot).facts["side_files"] == [snapshot / "config.json"]
    (tmp_path / "hub" / "outside").write_bytes(b"secret")
    for name in ("config.json", next(iter(SHARDS))):
        (snapshot / name).unlink()
        (snapshot / name).symlink_to("../../../outside")
    with pytest.raises(CheckpointError, match="links to elsewhere"):
        open_checkpoint(snapshot)


def test_what_index_and_shards_disagree_about_is_told_at_once(tmp_path):
    _first, second, third = SHARDS
    places = {name: shard for shard, names in SHARDS.items() for name in names}
    places |= {"a.b": second, "lost": third}
    del places["b.b"]
    index = save(tmp_path, weight_map=places)
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(index)
    for fault in (
        f"'b.b' in '{second}' is not in the index",
        f"'a.b' is not in '{second}'",
        f"'lost' is not in '{third}'",
    ):
        assert fault in str(error.value)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    shards = SHARDS | {"model-00003-of-00003.safetensors": ("c.w", "a.w")}
    with pytest.raises(CheckpointError, match=r"'a\.w' lies in 'model-00001.*' and 'model-00003"):
        open_checkpoint(save(tmp_path, shards))


BAD_INDEXES = {
    "not JSON": (b"{nothing}", "Expecting property name"),
    "name twice": (b'{"weight_map":{"a":"x","a":"y"}}', "it names 'a' twice"),
    "no weight_map": (b'{"architectures":["x"]}', "no 'weight_map'.*name the weights"),
    "weight_map null": (b'{"weight_map":null}', "no 'weight_map'"),
    "weight_map empty": (b'{"weight_map":{}}', "no 'weight_map'"),
    "weight_map a list": (b'{"weight_map":["a"]}', "no 'weight_map'"),
    "NaN": (b'{"weight_map":{"a":NaN}}', "NaN is not JSON"),
    "deep": (b'{"weight_map":' + b"[" * 100_000, "nested too deeply"),
    "half a surrogate pair": (b'{"weight_map":{"\\ud800":"x"}}', "surrogates not allowed"),
    "no UTF-8": (b'{"weight_map":{"a":"\xff"}}', "can't decode"),
}


@pytest.mark.parametrize(("raw", "message"), BAD_INDEXES.values(), ids=BAD_INDEXES)
def test_a_bad_index_is_refused(tmp_path, raw, message):
    (tmp_path / INDEX).write_bytes(raw)
    with pytest.raises(CheckpointError, match=rf"index '.*{INDEX}': .*{message}"):
        open_checkpoint(tmp_path / INDEX)


def test_limits_hold_for_an_index(tmp_path, monkeypatch):
    index = save(tmp_path)
    monkeypatch.setattr(sharded, "LIMITS", Limits(names=4))
    with pytest.raises(CheckpointError, match="5 tensors, at most 4 expected"):
        sharded.read_index(index, read_safetensors)
    monkeypatch.setattr(sharded, "LIMITS", Limits(index_bytes=50))
    with pytest.raises(CheckpointError, match="bytes, at most 50 expected"):
        sharded.read_index(index, read_safetensors)


def test_an_index_that_names_itself_ends(tmp_path):
    index = save(tmp_path, weight_map={"a.w": INDEX})
    with pytest.raises(CheckpointError, match="is not a torch file"):
        open_checkpoint(index)


# Folders.


def test_a_hugging_face_directory_brings_its_side_files(tmp_path):
    safetensors.torch.save_file(STATE, tmp_path / "model.safetensors")
    carried = ["config.json", "generation_config.json", "merges.txt", "tokenizer.json"]
    carried += ["chat_template.jinja", "tokenizer.model", "special_tokens_map.json"]
    for name in [*carried, "polyfuse.json", "trainer_state.json", ".hidden.json", "notes.md"]:
        (tmp_path / name).write_text("{}")
    os.mkfifo(tmp_path / "fifo.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "away.json").symlink_to("/etc/hostname")
    opened = open_checkpoint(tmp_path)
    assert_holds(opened)
    assert opened.path == tmp_path
    assert [path.name for path in opened.facts["side_files"]] == sorted(carried)
    assert opened.facts["metadata"] == {"polyfuse": "{}"}


def test_safetensors_are_preferred_and_what_is_not_read_is_said(tmp_path):
    safetensors.torch.save_file(STATE, tmp_path / "model.safetensors")
    torch.save({"old": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    torch.save({}, tmp_path / "optimizer.pt")
    opened = open_checkpoint(tmp_path)
    assert_holds(opened)
    assert opened.facts["notes"] == [
        "model.safetensors read, but not 'optimizer.pt', 'pytorch_model.bin' beside it"
    ]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "epoch_3.ckpt", "best.pth", "x.safetensors"])
def test_a_folder_with_one_checkpoint_is_that_checkpoint(tmp_path, name):
    write = safetensors.torch.save_file if name.endswith("safetensors") else torch.save
    write(STATE, tmp_path / name)
    (tmp_path / "log.txt").write_text("epoch 3")
    assert_holds(open_checkpoint(tmp_path))


def test_a_folder_with_several_checkpoints_lists_them(tmp_path):
    for number in range(12):
        torch.save(STATE, tmp_path / f"epoch_{number:02}.pt")
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(tmp_path)
    assert "holds 12 checkpoints: 'epoch_00.pt', 'epoch_01.pt'" in str(error.value)
    assert "and 2 more; name the files instead of the folder, such as '" in str(error.value)


def test_a_folder_with_none_says_what_was_looked_for(tmp_path):
    (tmp_path / "log.txt").write_text("")
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(tmp_path)
    for part in ("no checkpoint", "model.safetensors", ".metadata", "*.pt", "found 'log.txt'"):
        assert part in str(error.value)
