"""DCP folders: torch.distributed.checkpoint loads them, ties and all."""

import pickle
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from written import in_torch, same, slots_of, some_tensor, write_folder

from polyfuse.checkpoints.base import Slot
from polyfuse.checkpoints.layouts import torch_file
from polyfuse.checkpoints.layouts.base import Contents
from polyfuse.checkpoints.layouts.dcp_folder import layout
from polyfuse.errors import CheckpointError

SHAPES = [(), (3,), (2, 0), (2, 3, 4)]
STATE = {f"a.{s}": some_tensor(torch.float32, s, i) for i, s in enumerate(SHAPES)}
STATE["layer.weight"] = some_tensor(torch.bfloat16, (5, 7))
NOTE = {"format": "pt", "polyfuse": '{"tool": "polyfuse 1"}'}


def folder_of(folder, state, aliases=None, **rest):
    plan = layout(Contents(slots_of(state), aliases or {}, NOTE, **rest))
    return write_folder(folder, plan, state), plan


def loaded(folder, like):
    """Load with DCP into tensors of these shapes; it warns that no process group is there."""
    state = {name: torch.zeros_like(tensor) for name, tensor in like.items()}
    with warnings.catch_warnings(action="ignore"):
        dcp.load(state, checkpoint_id=folder)
    return state


def converted(folder, target):
    with warnings.catch_warnings(action="ignore"):
        dcp_to_torch_save(folder, target)
    return torch.load(target)


@pytest.mark.parametrize("limit", [None, 100, 50])
def test_torch_loads_it(tmp_path, limit):
    folder, plan = folder_of(tmp_path / "out", STATE, limit=limit)
    assert same(loaded(folder, STATE), STATE)
    assert same(converted(folder, tmp_path / "a.pt"), STATE)
    assert (folder / "polyfuse.json").read_text() == NOTE["polyfuse"]
    assert list(plan.files)[-1] == plan.parts[-1][0] == ".metadata"
    shards = [name for name in plan.files if name.endswith(".distcp")]
    assert shards == [f"__0_{i}.distcp" for i in range(1 if limit is None else len(shards))]
    assert (limit is None) == (len(shards) == 1)


def test_every_dtype(tmp_path):
    dtypes = in_torch([*torch_file._STORAGES, *torch_file._BARE])
    state = {str(dtype): some_tensor(dtype, (2, 3)) for dtype in dtypes}
    folder, _ = folder_of(tmp_path / "out", state)
    assert same(converted(folder, tmp_path / "a.pt"), state)


def test_both_names_of_a_tie_point_to_the_same_bytes(tmp_path):
    folder, plan = folder_of(tmp_path / "out", STATE, {"head": "layer.weight"})
    assert plan.places.keys() == STATE.keys()
    both = STATE | {"head": STATE["layer.weight"]}
    assert same(loaded(folder, both), both)
    assert same(converted(folder, tmp_path / "a.pt"), both)


def test_the_records_are_those_that_torch_makes(tmp_path):
    with warnings.catch_warnings(action="ignore"):
        dcp.save(dict(STATE), checkpoint_id=tmp_path / "theirs")
    theirs = pickle.loads((tmp_path / "theirs" / ".metadata").read_bytes())
    folder, _ = folder_of(tmp_path / "ours", STATE)
    ours = pickle.loads((folder / ".metadata").read_bytes())
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.planner_data == theirs.planner_data
    assert ours.storage_data.keys() == theirs.storage_data.keys()
    assert getattr(ours, "version", None) == getattr(theirs, "version", None)


def test_it_is_the_same_every_time_and_names_no_path(tmp_path):
    first, _ = folder_of(tmp_path / "a", STATE)
    second, _ = folder_of(tmp_path / "b", STATE)
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()
    assert str(tmp_path).encode() not in (first / ".metadata").read_bytes()


def test_side_files_of_the_format_are_left_out():
    sides = [("config.json", b"{}"), (".metadata", b"old"), ("__0_0.distcp", b"old")]
    plan = layout(Contents(slots_of(STATE), {}, {}, None, sides))
    assert list(plan.files) == ["config.json", "__0_0.distcp", ".metadata"]


def test_dtypes_that_torch_cannot_load_are_refused_all_at_once():
    slots = [Slot(name, torch.qint8, (1,)) for name in "ab"]
    with pytest.raises(CheckpointError, match="2 tensors"):
        layout(Contents(slots, {}, {}))
