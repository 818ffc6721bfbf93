"""torch.distributed.checkpoint: what torch saved reads as torch loads it, and runs nothing."""

import argparse
import pickle
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from polyfuse.checkpoints import dcp_metadata as ours
from polyfuse.checkpoints import load_checkpoint, open_checkpoint
from polyfuse.checkpoints.base import Limits
from polyfuse.errors import CheckpointError

RANKS = Path(__file__).with_name("dcp_ranks.py")


@pytest.fixture(autouse=True)
def alone():
    """Torch warns of one process without a group, which is meant here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def save_boxes(folder, tensors, change=lambda record: record):
    """Save tensors in boxes, as that many ranks would, each box in a file of its own.

    Args:
        folder: to save in.
        tensors: (tensor, [(offsets, sizes), ...]) by name.
        change: of the metadata, before they are saved.
    """
    folder.mkdir(exist_ok=True)
    entries, storage = {}, {}
    for name, (tensor, places) in tensors.items():
        chunks = []
        for offsets, sizes in places:
            file = f"__{len(storage)}_0.distcp"
            part = tensor[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))]
            torch.save(part.clone(), folder / file)
            chunks.append(metadata.ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
            index = metadata.MetadataIndex(name, offsets, len(chunks) - 1)
            length = (folder / file).stat().st_size
            storage[index] = filesystem._StorageInfo(file, 0, length)
        properties = metadata.TensorProperties(dtype=tensor.dtype)
        entries[name] = metadata.TensorStorageMetadata(properties, tensor.shape, chunks)
    record = metadata.Metadata(entries, {name: (name,) for name in entries}, storage)
    (folder / ".metadata").write_bytes(pickle.dumps(change(record)))
    return folder


def by_torch(folder, file):
    """Return what torch loads of a folder."""
    dcp_to_torch_save(folder, file)
    return torch.load(file, weights_only=False)


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        narrow = tensor.is_floating_point() and tensor.itemsize == 1  # torch cannot compare them
        pair = (ours[name].float(), tensor.float()) if narrow else (ours[name], tensor)
        assert torch.equal(*pair)


TABLE = torch.arange(60.0).view(6, 10)
PLAIN = {
    "w": TABLE,
    "half": torch.rand(3).bfloat16(),
    "transposed": TABLE.T,
    "view": TABLE[::2, 1:4],
    "number": torch.tensor(3),
    "empty": torch.empty(0, 4),
    "parameter": torch.nn.Parameter(torch.rand(2)),
    "last": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "flags": torch.tensor([True, False]),
    "complex": torch.rand(2, dtype=torch.complex64),
    "eight": torch.rand(4).to(torch.float8_e4m3fn),
}


def test_a_plain_state_reads_as_torch_loads_it(tmp_path):
    dcp.save(PLAIN, checkpoint_id=tmp_path / "a")
    with open_checkpoint(tmp_path / "a") as opened:
        assert opened.format == "dcp"
        assert opened.facts["key"] == ""
        assert opened.facts["ignored"] == {}
        assert opened.read("w", 7, 12).tolist() == [7, 8, 9, 10, 11]
    assert_same(load_checkpoint(tmp_path / "a"), by_torch(tmp_path / "a", tmp_path / "a.pt"))


def test_the_model_is_chosen_out_of_a_training_state(tmp_path):
    state = {"model": {"w": TABLE, "b": TABLE[0]}, "ema": {"w": TABLE + 1}, "epoch": 3}
    state |= {"optimizer": {"state": {"0": {"exp_avg": TABLE}}}, "args": argparse.Namespace(a=1)}
    dcp.save(state, checkpoint_id=tmp_path / "a")
    opened = open_checkpoint(tmp_path / "a")
    assert opened.facts["key"] == "model"
    assert opened.facts["keys"] == {"model": 2, "ema": 1}
    assert opened.facts["ignored"] == {"epoch": "no tensor", "args": "no tensor"}
    assert_same(opened.state_dict(), {"w": TABLE, "b": TABLE[0]})
    assert_same(load_checkpoint(tmp_path / "a", "ema"), {"w": TABLE + 1})
    with pytest.raises(CheckpointError, match=r"no state dict 'modell'; did you mean 'model'\?"):
        open_checkpoint(tmp_path / "a", "modell")


def test_a_key_strips_a_prefix_of_names_that_were_saved_flat(tmp_path):
    dcp.save({"model.w": TABLE, "optim.w": TABLE + 1}, checkpoint_id=tmp_path / "a")
    assert_same(load_checkpoint(tmp_path / "a"), {"model.w": TABLE, "optim.w": TABLE + 1})
    assert_same(load_checkpoint(tmp_path / "a", "model"), {"w": TABLE})


def test_what_two_ranks_saved_reads_as_torch_loads_it(tmp_path, run_scripts):
    """FSDP2, rows and columns of DTensors, a tensor of one row, buffers, an optimizer."""
    ended = run_scripts([[RANKS, rank, 2, tmp_path] for rank in range(2)], tmp_path)
    assert [status for status, _, _ in ended] == [0, 0], ended
    state = load_checkpoint(tmp_path / "saved")
    assert_same(state, torch.load(tmp_path / "full.pt"))
    theirs = by_torch(tmp_path / "saved", tmp_path / "a.pt")
    assert_same(state, theirs["model"])
    opened = open_checkpoint(tmp_path / "saved")
    assert [file.path.name for file in opened.files] == ["__0_0.distcp", "__1_0.distcp"]
    assert opened.read("columns", 3, 9).tolist() == [3, 4, 5, 6, 7, 8]


QUARTERS = [((0, 0), (4, 3)), ((0, 3), (4, 7)), ((4, 0), (2, 3)), ((4, 3), (2, 7))]


@pytest.mark.parametrize("places", [QUARTERS, [((0, 0), (6, 4)), ((0, 4), (6, 6))]])
def test_boxes_in_two_dimensions_read_as_torch_loads_them(tmp_path, places):
    folder = save_boxes(tmp_path / "a", {"w": (TABLE, places), "v": (TABLE[0], [((0,), (10,))])})
    assert_same(by_torch(folder, tmp_path / "a.pt"), {"w": TABLE, "v": TABLE[0]})
    assert_same(load_checkpoint(folder), {"w": TABLE, "v": TABLE[0]})
    assert open_checkpoint(folder).read("w", 23, 29).tolist() == [23, 24, 25, 26, 27, 28]


def test_a_rank_that_has_nothing_of_a_tensor_is_no_fault(tmp_path):
    folder = save_boxes(tmp_path / "a", {"w": (TABLE, [((0, 0), (6, 10)), ((6, 0), (0, 10))])})
    assert_same(load_checkpoint(folder), {"w": TABLE})


def test_two_names_of_the_same_bytes_are_tied(tmp_path):
    def tie(record):
        (index, info), *_ = record.storage_data.items()
        record.state_dict_metadata["head"] = record.state_dict_metadata["w"]
        record.storage_data[metadata.MetadataIndex("head", index.offset, 0)] = info
        return record

    opened = open_checkpoint(save_boxes(tmp_path / "a", {"w": (TABLE, [((0, 0), (6, 10))])}, tie))
    assert opened.aliases == {"head": "w"}
    assert torch.equal(opened.state_dict()["head"], TABLE)


@pytest.mark.skipif(not hasattr(filesystem, "SerializationFormat"), reason="torch < 2.8")
def test_shards_in_the_safetensors_format_are_read(tmp_path):
    kind = filesystem.SerializationFormat.SAFETENSORS
    writer = dcp.FileSystemWriter(tmp_path / "a", serialization_format=kind)
    dcp.save({"w": TABLE, "half": PLAIN["half"]}, storage_writer=writer)
    assert_same(load_checkpoint(tmp_path / "a"), {"w": TABLE, "half": PLAIN["half"]})


def test_one_file_a_tensor_is_read(tmp_path):
    writer = dcp.FileSystemWriter(tmp_path / "a", single_file_per_rank=False, thread_count=2)
    dcp.save({"w": TABLE, "half": PLAIN["half"]}, storage_writer=writer)
    assert_same(load_checkpoint(tmp_path / "a"), {"w": TABLE, "half": PLAIN["half"]})


# Damage and malice.


def test_flipped_data_are_told_by_their_crc(tmp_path):
    folder = save_boxes(tmp_path / "a", {"w": (TABLE, [((0, 0), (6, 10))])})
    shard = folder / "__0_0.distcp"
    raw = bytearray(shard.read_bytes())
    raw[raw.index(TABLE.numpy().tobytes()) + 7] ^= 1
    shard.write_bytes(raw)
    assert len(open_checkpoint(folder).checks) == 1
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp', '.*data/0': its CRC is not"):
        load_checkpoint(folder)


class Evil:
    def __init__(self, module, name, *arguments):
        self.made_by, self.arguments = (module, name), arguments

    def __reduce__(self):
        return getattr(sys.modules[self.made_by[0]], self.made_by[1]), self.arguments


@pytest.mark.parametrize("where", ["document", "planner_data", "storage_meta", "storage_data"])
def test_code_in_the_metadata_is_refused_and_not_run(tmp_path, where):
    evil = Evil("os", "system", f"touch {tmp_path}/ran")

    def put(record):
        if where == "document":
            return evil
        setattr(record, where, {"w": evil} if where.endswith("data") else evil)
        return record

    folder = save_boxes(tmp_path / "a", {"w": (TABLE, [((0, 0), (6, 10))])}, put)
    with pytest.raises(CheckpointError, match=r"\.metadata.*(posix|nt)\.system"):
        open_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


def stored(**changes):
    """Return a change of where the first box is said to lie."""

    def change(record):
        for name, value in changes.items():
            setattr(next(iter(record.storage_data.values())), name, value)
        return record

    return change


def described(**changes):
    """Return a change of what the tensor is said to be."""

    def change(record):
        for name, value in changes.items():
            setattr(record.state_dict_metadata["w"], name, value)
        return record

    return change


def chunked(*places):
    return described(
        chunks=[metadata.ChunkStorageMetadata(torch.Size(o), torch.Size(n)) for o, n in places]
    )


def without(**fields):
    def change(record):
        for name, value in fields.items():
            setattr(record, name, value)
        return record

    return change


def twice(record):
    record.state_dict_metadata["v"] = record.state_dict_metadata["w"]
    record.planner_data = {"w": ("model", "w"), "v": ("model", "w")}
    return record


def inside(record):
    record.state_dict_metadata["v"] = record.state_dict_metadata["w"]
    record.planner_data = {"w": ("model",), "v": ("model", "w")}
    return record


PROPERTIES = metadata.TensorProperties(dtype=torch.float64)
DAMAGED = {
    "a path up": (stored(relative_path="../outside"), "name of a file beside it.*'../outside'"),
    "an absolute path": (stored(relative_path="/etc/passwd"), "name of a file beside it"),
    "no text as path": (stored(relative_path=3), "name of a file beside it expected, found '3'"),
    "a missing shard": (stored(relative_path="gone"), "1 shards are missing: 'gone'; copy"),
    "a link out": (stored(relative_path="link"), "links to elsewhere: 'link'; copy"),
    "a folder": (stored(relative_path="folder"), "is not a regular file"),
    "past the end": (stored(length=10**9), "states data at 0 to 1,000,000,000; it is truncated"),
    "too short": (stored(length=100), "__0_0.distcp' .*zip"),
    "negative": (stored(offset=-1), r"sizes expected, found \(-1, "),
    "huge": (stored(offset=2**64), "sizes expected"),
    "float": (stored(offset=0.0), "sizes expected"),
    "transformed": (stored(transform_descriptors=["zstd"]), "transformed when saved"),
    "a hole": (
        chunked(((1, 0), (5, 10))),
        r"chunks of 'w' do not tile \(6, 10\): they leave a hol",
    ),
    "an overlap": (chunked(((0, 0), (6, 10)), ((0, 0), (6, 10))), "do not tile .* one a place"),
    "beyond": (chunked(((0, 0), (7, 10))), "they reach to 7 instead of 6"),
    "no chunks": (chunked(), "they reach to 0 instead of 6"),
    "another rank": (chunked(((0,), (60,))), "a chunk of 1 dimensions in a tensor of 2"),
    "elsewhere": (
        chunked(((0, 0), (3, 10)), ((3, 0), (3, 10))),
        r"chunk \(0, 0\) of 'w': torch.float32 of shape \(3, 10\) expected, '__0_0",
    ),
    "no place": (without(storage_data={}), r"chunk \(0, 0\) of 'w': the metadata do not say where"),
    "another shape": (
        lambda record: chunked(((0, 0), (60, 1)))(described(size=torch.Size([60, 1]))(record)),
        r"float32 of shape \(60, 1\) expected, '__0_0.distcp' has torch.float32 of shape \(6, 10\)",
    ),
    "another dtype": (described(properties=PROPERTIES), "torch.float64 of shape .* expected"),
    "a dtype of no kind": (
        described(properties=metadata.TensorProperties(dtype=torch.quint8)),
        "quint8.*no checkpoint needs",
    ),
    "sparse": (
        described(properties=metadata.TensorProperties(torch.float32, layout=torch.sparse_coo)),
        "is sparse; save its to_dense",
    ),
    "too large for torch": (described(size=torch.Size([2**62, 4])), "torch has no tensor of shape"),
    "no size": (
        lambda record: record.state_dict_metadata["w"].__dict__.pop("size") and record,
        "no 'size'",
    ),
    "two at one place": (twice, "'v' has the same place in the state as another"),
    "one in another": (inside, "'v' has the same place in the state as another"),
    "no entries": (without(state_dict_metadata=None), "state_dict_metadata and storage_data"),
    "no storage": (without(storage_data=[]), "state_dict_metadata and storage_data"),
    "no Metadata": (lambda record: {"a": 1}, "Metadata expected"),
    "names of no text": (without(state_dict_metadata={3: None}), "a tensor named 3"),
    "an entry of no kind": (without(state_dict_metadata={"w": 3}), "TensorStorageMetadata exp"),
}


@pytest.mark.parametrize(("change", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_metadata_are_refused(tmp_path, change, message):
    (tmp_path / "outside").write_bytes(b"secret")
    folder = save_boxes(tmp_path / "a", {"w": (TABLE, [((0, 0), (6, 10))])}, change)
    (folder / "link").symlink_to("../outside")
    (folder / "folder").mkdir()
    with pytest.raises(CheckpointError, match=message) as error:
        open_checkpoint(folder)
    assert str(folder) in str(error.value)


def test_all_missing_shards_are_told_at_once(tmp_path):
    folder = save_boxes(tmp_path / "a", {"w": (TABLE, QUARTERS)})
    for number in (1, 3):
        (folder / f"__{number}_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=r"2 shards are missing: '__1_0.*', '__3_0"):
        open_checkpoint(folder)


def test_every_truncation_of_the_metadata_is_refused(tmp_path):
    folder = save_boxes(tmp_path / "a", {"w": (TABLE, QUARTERS)})
    raw = (folder / ".metadata").read_bytes()
    for length in range(0, len(raw), 7):
        (folder / ".metadata").write_bytes(raw[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(folder)


def test_metadata_deeper_than_a_function_can_follow_are_refused(tmp_path):
    for raw in (b"\x80\x02)" + b"\x85" * 100_000 + b".", b"\x80\x02" + b"(" * 100_000 + b"."):
        (tmp_path / ".metadata").write_bytes(raw)
        with pytest.raises(CheckpointError, match=r"\.metadata"):
            open_checkpoint(tmp_path)


def test_limits_hold_for_the_metadata(tmp_path, monkeypatch):
    folder = save_boxes(tmp_path / "a", {"w": (TABLE, QUARTERS)})
    monkeypatch.setattr(ours, "LIMITS", Limits(metadata_bytes=100))
    with pytest.raises(CheckpointError, match="bytes, at most 100 expected"):
        open_checkpoint(folder)
    monkeypatch.setattr(ours, "LIMITS", Limits(names=3))
    with pytest.raises(CheckpointError, match="more than 3 tensors"):
        open_checkpoint(folder)
