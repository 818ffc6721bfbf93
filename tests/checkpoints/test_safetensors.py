"""safetensors: what is written reads back, bit for bit, and damaged files are refused."""

import json
import math
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfuse.checkpoints import safetensors as ours
from polyfuse.errors import CheckpointError

DTYPES = [
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool),
]
shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
names = names.filter(lambda name: name != "__metadata__")
notes = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


def some_tensor(dtype, shape):
    return (10 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)


def file_of(header, data=b"", length=None):
    """Return a file of any header, with any stated header length."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@given(st.dictionaries(names, st.tuples(st.sampled_from(DTYPES), shapes), max_size=4))
def test_what_is_written_reads_back(tmp_path_factory, layout):
    path = tmp_path_factory.getbasetemp() / "a.safetensors"
    tensors = {name: some_tensor(*facts) for name, facts in layout.items()}
    ours.write(path, tensors)
    back, note = ours.read(path)
    assert note is None
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


@given(notes)
def test_the_note_reads_back(tmp_path_factory, note):
    path = tmp_path_factory.getbasetemp() / "a.safetensors"
    ours.write(path, {"w": torch.ones(1)}, note=note)
    assert ours.read(path)[1] == note


def test_bits_survive_also_of_nan_and_negative_zero(tmp_path):
    bits = torch.tensor([0x7FC00001, -0x80000000, 0x00000001], dtype=torch.int32)
    ours.write(tmp_path / "a", {"w": bits.view(torch.float32)})
    assert torch.equal(ours.read(tmp_path / "a")[0]["w"].view(torch.int32), bits)


def test_views_shared_storage_and_parameters_are_written_as_they_look(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"t": base.T, "row": base[1], "again": base, "p": torch.nn.Parameter(base)}
    tensors["channels"] = torch.rand(1, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    ours.write(tmp_path / "a", tensors)
    back, _ = ours.read(tmp_path / "a")
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    assert not any(tensor.requires_grad for tensor in back.values())


def test_other_readers_read_ours_and_we_theirs(tmp_path):
    tensors = {"w": torch.rand(3, 2), "n": torch.tensor(7)}
    ours.write(tmp_path / "ours", tensors, note={"epoch": 3})
    theirs = safetensors.torch.load_file(tmp_path / "ours")
    assert all(torch.equal(theirs[name], tensor) for name, tensor in tensors.items())
    safetensors.torch.save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    back, note = ours.read(tmp_path / "theirs")
    assert note is None
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_the_file_is_the_same_every_time(tmp_path):
    for name in ("a", "b"):
        ours.write(tmp_path / name, {"w": torch.ones(2), "v": torch.zeros(3)}, note=[1])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tensors_do_not_change_with_their_file(tmp_path):
    ours.write(tmp_path / "a", {"w": torch.ones(1000)})
    back, _ = ours.read(tmp_path / "a")
    os.truncate(tmp_path / "a", 100)
    assert torch.equal(back["w"], torch.ones(1000))


def test_every_truncation_is_refused(tmp_path):
    ours.write(tmp_path / "a", {"w": torch.ones(2)}, note={"epoch": 3})
    raw = (tmp_path / "a").read_bytes()
    for length in range(len(raw)):
        with pytest.raises(CheckpointError, match="'mine' is not a whole safetensors file"):
            ours.parse(raw[:length], "mine")


BAD = {
    "empty": b"",
    "zeros": bytes(64),
    "html": b"<!doctype html><html></html>",
    "pickle": pickle.dumps({"w": [1.0]}),
    "header length 2^64 - 1": file_of({}, length=2**64 - 1),
    "header length past the end": file_of({}, length=1000),
    "header cut": file_of({"w": entry()}, bytes(8), length=10),
    "no JSON": file_of(b"{nothing}"),
    "no dict": file_of([1, 2]),
    "no UTF-8": file_of(b'{"\xff": 1}'),
    "deep": file_of(b"[" * 100_000),
    "trailing bytes": file_of({"w": entry()}, bytes(9)),
    "data missing": file_of({"w": entry()}, bytes(7)),
    "hole": file_of({"w": entry(offsets=(4, 12))}, bytes(12)),
    "overlap": file_of({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "reversed offsets": file_of({"w": entry(offsets=(8, 0))}, bytes(8)),
    "negative offset": file_of({"w": entry(offsets=(-8, 0))}, bytes(8)),
    "float offset": file_of({"w": entry(offsets=(0, 8.0))}, bytes(8)),
    "size against shape": file_of({"w": entry(shape=(3,))}, bytes(8)),
    "size overflow": file_of({"w": entry(shape=(2**62, 4, 2**60))}, bytes(8)),
    "unknown dtype": file_of({"w": entry("F33")}, bytes(8)),
    "no shape": file_of({"w": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
    "metadata no text": file_of({"__metadata__": {"polyfuse": 3}, "w": entry()}, bytes(8)),
    "note no JSON": file_of({"__metadata__": {"polyfuse": "{"}, "w": entry()}, bytes(8)),
    "note deep": file_of({"__metadata__": {"polyfuse": "[" * 100_000}, "w": entry()}, bytes(8)),
}


@pytest.mark.parametrize("raw", BAD.values(), ids=BAD)
def test_damaged_files_are_refused(tmp_path, raw):
    (tmp_path / "mine").write_bytes(raw)
    with pytest.raises(
        CheckpointError, match=r"mine' is not a whole safetensors file .*restore it"
    ):
        ours.read(tmp_path / "mine")


@given(st.data())
def test_random_damage_is_refused_or_keeps_the_size(data):
    raw = bytearray(file_of({"w": entry(), "v": entry("BF16", (2, 2), (8, 16))}, bytes(range(16))))
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4)):
        raw[at] = data.draw(st.integers(0, 255))
    try:
        tensors, _ = ours.parse(bytes(raw), "mine")
    except CheckpointError as error:
        assert "'mine'" in str(error)  # noqa: PT017  # damage may be harmless, too
    else:
        assert sum(math.prod(t.shape) * t.itemsize for t in tensors.values()) == 16


def test_no_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is not a regular file"):
        ours.read(tmp_path)


def test_a_note_that_is_no_json_leaves_the_old_file(tmp_path):
    ours.write(tmp_path / "a", {"w": torch.ones(2)}, note=1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        ours.write(tmp_path / "a", {"w": torch.zeros(2)}, note=float("nan"))
    assert ours.read(tmp_path / "a")[0]["w"].tolist() == [1, 1]
    assert os.listdir(tmp_path) == ["a"]


# Any file, opened: see also test_headers.py.


class Tied(torch.nn.Module):
    """A model whose two ends share a weight, beside a list whose tensors are named by numbers."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(3, 4), torch.nn.Linear(4, 3)
        self.head.weight = self.embed.weight


def test_tied_names_that_save_model_leaves_out_are_aliases(tmp_path):
    model = Tied()
    safetensors.torch.save_model(model, tmp_path / "a", {"format": "pt", "epoch": "3"})
    opened = ours.read_safetensors(tmp_path / "a")
    assert opened.aliases == {"head.weight": "embed.weight"}
    assert opened.facts["metadata"]["head.weight"] == "embed.weight"
    state = opened.state_dict()
    Tied().load_state_dict(state, strict=True)
    assert state["head.weight"] is state["embed.weight"]


def test_metadata_that_equal_a_name_by_chance_are_no_tie(tmp_path):
    tensors = {name: torch.rand(2) for name in ("0", "1", "pt", "a.w")}
    metadata = {"epoch": "1", "format": "pt", "2": "0", "a.w": "0", "b.w": "c.w", "t.w": "a.w"}
    safetensors.torch.save_file(tensors, tmp_path / "a", metadata)
    assert ours.read_safetensors(tmp_path / "a").aliases == {"2": "0", "t.w": "a.w"}


def test_epoch_and_step_are_found_where_they_are_whole_numbers(tmp_path):
    metadata = {"epoch": "3", "step": "1e4", "global_step": "1200", "note": "x"}
    safetensors.torch.save_file({"w": torch.rand(2)}, tmp_path / "a", metadata)
    assert ours.read_safetensors(tmp_path / "a").facts == {
        "metadata": metadata,
        "epoch": 3,
        "step": 1200,
    }
    safetensors.torch.save_file({"w": torch.rand(2)}, tmp_path / "a")
    assert ours.read_safetensors(tmp_path / "a").facts == {}


@pytest.mark.parametrize(("offsets", "refused"), [([0, 0], False), ([4, 0], True), ([0, 10], True)])
def test_parts_of_tensors_that_one_rank_saved_are_refused(tmp_path, offsets, refused):
    sharding = json.dumps({"w": {"saved_offsets": offsets}})  # as torch's HuggingFaceStorageWriter
    metadata = {"DCP_SHARDING_INFO": sharding, "DCP_VERSION": "1.0", "format": "pt"}
    safetensors.torch.save_file({"w": torch.rand(2, 2)}, tmp_path / "a", metadata)
    if not refused:
        assert ours.read_safetensors(tmp_path / "a").info("w").shape == (2, 2)
        return
    with pytest.raises(CheckpointError, match="holds parts of tensors that one rank saved; join"):
        ours.read_safetensors(tmp_path / "a")


def test_what_we_write_opens(tmp_path):
    ours.write(tmp_path / "a", {"w": torch.arange(6.0).view(2, 3)}, note={"epoch": 3})
    with ours.read_safetensors(tmp_path / "a") as opened:
        assert (opened.format, opened.info("w").shape) == ("safetensors", (2, 3))
        assert opened.read("w", 2, 4).tolist() == [2, 3]
        opened.check_unchanged()


def test_a_missing_file_is_named():
    with pytest.raises(CheckpointError, match=r"cannot read '/no/such': No such file"):
        ours.read_safetensors(Path("/no/such"))
