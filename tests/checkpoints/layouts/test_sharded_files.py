"""Hugging Face folders: shards, index and what lies beside them."""

import json

import pytest
import safetensors.torch
import torch
from written import same, slots_of, write_folder

from polyfuse.checkpoints.layouts.base import Contents
from polyfuse.checkpoints.layouts.sharded_files import layout

STATE = {f"layer.{i}": torch.full((250,), float(i)) for i in (2, 0, 1, 10, 3)}
NOTE = {"format": "pt", "polyfuse": '{"tool": "polyfuse 1"}'}
INDEX = "model.safetensors.index.json"


def plan_of(**rest):
    return layout(
        Contents(slots_of(STATE), rest.pop("aliases", {}), rest.pop("note", NOTE), **rest)
    )


def test_shards_index_and_side_files(tmp_path):
    plan = plan_of(limit=2000, side_files=[("config.json", b"{}"), (INDEX, b"of the input")])
    folder = write_folder(tmp_path / "out", plan, STATE)
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert list(plan.files) == ["config.json", "polyfuse.json", *shards, INDEX]
    assert plan.parts[-1][0] == INDEX
    assert (folder / "polyfuse.json").read_text() == NOTE["polyfuse"]
    index = json.loads((folder / INDEX).read_text())
    assert index["metadata"] == {"total_size": 5000}
    assert list(index["weight_map"]) == sorted(STATE)
    loaded = {}
    for shard in shards:
        part = safetensors.torch.load_file(folder / shard)
        assert all(index["weight_map"][name] == shard for name in part)
        assert (folder / shard).read_bytes() == safetensors.torch.save(part, {"format": "pt"})
        loaded |= part
    assert same(loaded, STATE)


def test_what_fits_one_file_has_no_index(tmp_path):
    plan = plan_of(limit=5000)
    folder = write_folder(tmp_path / "out", plan, STATE)
    assert list(plan.files) == ["polyfuse.json", "model.safetensors"]
    assert same(safetensors.torch.load_file(folder / "model.safetensors"), STATE)
    assert plan == plan_of()


def test_an_old_index_is_not_carried_beside_one_file():
    sides = [(INDEX, b"of the input"), ("tokenizer.json", b"{}")]
    assert next(iter(plan_of(side_files=sides).files)) == "tokenizer.json"
    assert INDEX not in plan_of(side_files=sides).files


def test_ties_are_named_in_the_shard_that_holds_them_and_not_in_the_index(tmp_path):
    plan = plan_of(limit=2000, aliases={"head": "layer.10"}, note={})
    folder = write_folder(tmp_path / "out", plan, STATE)
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    assert "head" not in index
    found = {}
    for shard in sorted(set(index.values())):
        with safetensors.safe_open(folder / shard, "pt") as file:
            found[shard] = file.metadata()
    assert found.pop(index["layer.10"]) == {"format": "pt", "head": "layer.10"}
    assert list(found.values()) == [{"format": "pt"}] * 2


def test_other_entries_of_the_note_stay_metadata(tmp_path):
    folder = write_folder(tmp_path / "out", plan_of(note={"title": "mine"}), STATE)
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "title": "mine"}


def test_transformers_own_rule_for_shards():
    hub = pytest.importorskip("huggingface_hub")
    for limit in (1, 999, 1000, 1001, 2000, 2999, 4000, 10_000):
        split = hub.split_torch_state_dict_into_shards(STATE, max_shard_size=limit)
        ours = {name: file for name, (file, _) in plan_of(limit=limit).places.items()}
        assert ours == split.tensor_to_filename
