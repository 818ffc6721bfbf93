"""torch layouts: byte for byte what torch.save writes, and what every reader of zips accepts."""

import io
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.serialization import skip_data
from torch.utils.serialization import config
from written import in_torch, same, slots_of, some_tensor, written

from polyfuse.checkpoints.base import Slot
from polyfuse.checkpoints.layouts import torch_file
from polyfuse.checkpoints.layouts.base import Contents
from polyfuse.checkpoints.layouts.torch_file import layout, one_tensor
from polyfuse.errors import CheckpointError

DTYPES = sorted(in_torch([*torch_file._STORAGES, *torch_file._BARE]), key=str)
names = st.text(max_size=5).filter(lambda name: name != "_metadata")
shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)
states = st.dictionaries(
    names, st.builds(some_tensor, st.sampled_from(DTYPES), shapes, st.integers(0, 9)), max_size=5
)


def one(state, note=None, aliases=None):
    return written(layout(Contents(slots_of(state), aliases or {}, note or {})), state)[""]


def theirs(value):
    """Return what torch writes, up to the record that it makes from the data's checksums."""
    stream = io.BytesIO()
    torch.save(value, stream)
    with zipfile.ZipFile(stream) as archive:
        facts = archive.infolist()
        assert facts[-1].filename == "archive/.data/serialization_id"
    return stream.getvalue()[: facts[-1].header_offset], facts[:-1]


def check_is_as_torch_writes(raw, value):
    stem, facts = theirs(value)
    assert raw[: len(stem)] == stem
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        assert archive.testzip() is None
        assert archive.start_dir == len(stem)
        assert [facts_of(info) for info in archive.infolist()] == [facts_of(info) for info in facts]


def facts_of(info):
    return {name: getattr(info, name, None) for name in zipfile.ZipInfo.__slots__}


modern = pytest.mark.skipif(
    b".storage_alignment" not in theirs({})[0], reason="this torch writes fewer records"
)


@modern
@given(states)
def test_the_bytes_are_those_of_torch_save(state):
    check_is_as_torch_writes(one(state), OrderedDict(state))


@modern
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_tensor_is_as_torch_saves_it(dtype):
    tensor = some_tensor(dtype, (2, 1, 3))
    (slot,) = slots_of({"w": tensor})
    check_is_as_torch_writes(written(one_tensor(slot), {"w": tensor})[""], tensor)


@modern
def test_a_tied_model_is_as_torch_saves_it():
    weight = torch.rand(5, 3)
    state = OrderedDict(embed=weight, bias=torch.rand(5), head=weight.detach())
    kept = {"embed": weight, "bias": state["bias"]}
    check_is_as_torch_writes(one(kept, {}, {"head": "embed"}), state)


# torch says so once a process, whenever it first meets complex32.
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
@given(states, st.text(max_size=9))
def test_it_loads_in_every_mode(tmp_path_factory, state, provenance):
    path = tmp_path_factory.getbasetemp() / "renamed.ckpt"
    provenance = provenance.encode(errors="ignore").decode()
    path.write_bytes(one(state, {"format": "pt", "polyfuse": provenance}))
    for options in ({"weights_only": True}, {"weights_only": False}):
        for mmap in (True, False):
            assert same(torch.load(path, mmap=mmap, **options), state)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.read("archive/polyfuse.json").decode() == provenance


@modern
@pytest.mark.parametrize("count", [1, 3, 300])
def test_offsets_that_torch_calculates_are_right(tmp_path, monkeypatch, count):
    state = {f"layer.{i}.weight": some_tensor(torch.float32, (i % 7, 5), i) for i in range(count)}
    (tmp_path / "a.pt").write_bytes(one(state, {"polyfuse": "{}"}))
    monkeypatch.setenv("TORCH_SERIALIZATION_DEBUG", "1")  # torch compares with the archive's
    with config.patch("load.calculate_storage_offsets", True):
        assert same(torch.load(tmp_path / "a.pt", mmap=True), state)


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = torch.nn.Embedding(5, 3), torch.nn.BatchNorm1d(3)
        self.head = torch.nn.Linear(3, 5)
        self.head.weight = self.embed.weight


def test_tied_tensors_are_written_once_and_stay_tied(tmp_path):
    model = Tied()
    state = {k: v for k, v in model.state_dict().items() if k != "head.weight"}
    (tmp_path / "a.pt").write_bytes(one(state, {}, {"head.weight": "embed.weight"}))
    loaded = torch.load(tmp_path / "a.pt")
    assert loaded["head.weight"].data_ptr() == loaded["embed.weight"].data_ptr()
    assert same(loaded, model.state_dict())
    assert str(Tied().load_state_dict(loaded, strict=True)) == "<All keys matched successfully>"


class Hollow(io.RawIOBase):
    """A file of a layout that has no data: zeros where no part is."""

    def __init__(self, plan):
        self.size, self.parts, self.at = plan.files[""], plan.parts, 0

    def seekable(self):
        return True

    def seek(self, offset, whence=0):
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def tell(self):
        return self.at

    def read(self, count=-1):
        count = self.size - self.at if count < 0 else min(count, self.size - self.at)
        assert count < 1 << 24  # of what is known, never of the data
        out = bytearray(count)
        for _, start, raw in self.parts:
            low, high = max(start, self.at), min(start + len(raw), self.at + count)
            if low < high:
                out[low - self.at : high - self.at] = raw[low - start : high - start]
        self.at += count
        return bytes(out)


GIB = 1 << 30
LARGE = {
    "one large": [3, 5 * GIB, 2, 0],
    "at the border": [(1 << 32) - 1, 1],
    "below the border": [(1 << 32) - 2],
    "many make large": [3 * GIB, 3 * GIB, 0, 5],
    "all large": [5 * GIB, 6 * GIB],
}


@pytest.mark.parametrize("sizes", LARGE.values(), ids=LARGE)
def test_beyond_4_gib_a_zip_reader_finds_all(sizes):
    plan = layout(Contents([Slot(f"w{i}", torch.uint8, (n,)) for i, n in enumerate(sizes)], {}, {}))
    file = Hollow(plan)
    with zipfile.ZipFile(file) as archive:
        for number, size in enumerate(sizes):
            info = archive.getinfo(f"archive/data/{number}")
            assert info.file_size == info.compress_size == size
            file.seek(info.header_offset)
            header = file.read(30)
            lengths = [int.from_bytes(header[at : at + 2], "little") for at in (26, 28)]
            assert plan.places[f"w{number}"] == ("", info.header_offset + 30 + sum(lengths))
            assert plan.places[f"w{number}"][1] % 64 == 0
        assert archive.read("archive/version") == b"3\n"


@modern
@pytest.mark.parametrize("sizes", LARGE.values(), ids=LARGE)
def test_beyond_4_gib_every_known_byte_is_as_torch_writes_it(tmp_path, sizes):
    meta = OrderedDict((f"w{i}", torch.empty(n, dtype=torch.uint8)) for i, n in enumerate(sizes))
    with skip_data():
        torch.save(meta, tmp_path / "archive.pt")  # a file of holes
    plan = layout(Contents(slots_of(meta), {}, {}))
    with open(tmp_path / "archive.pt", "rb") as file, zipfile.ZipFile(file) as archive:
        *facts, last = archive.infolist()
        assert last.filename == "archive/.data/serialization_id"
        for _, offset, raw in plan.parts:
            raw = raw[: last.header_offset - offset]
            file.seek(offset)
            assert file.read(len(raw)) == raw
        with zipfile.ZipFile(Hollow(plan)) as ours:
            assert ours.start_dir == last.header_offset
            assert [facts_of(a) for a in ours.infolist()] == [facts_of(b) for b in facts]


def test_more_entries_than_a_short_count_holds():
    raw = torch_file._end_of_directory(66_000, 5 << 30, 100)
    *_, count, total, size, start = struct.unpack_from("<4sQ2H2I4Q", raw)
    assert (count, total, size, start) == (66_000, 66_000, 100, 5 << 30)
    short = struct.unpack("<4s4H2IH", raw[-22:])
    assert short == (b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 100, 0xFFFFFFFF, 0)


def test_checksums_name_both_places():
    plan = layout(Contents([Slot("a", torch.int8, (3,)), Slot("z", torch.int8, (0,))], {}, {}))
    (only,) = plan.checksums  # nothing of no bytes is summed
    assert (only.start, only.length) == (plan.places["a"][1], 3)
    assert len(only.places) == 2


def test_a_note_of_the_same_lengths_moves_nothing():
    slots = [Slot("w", torch.float32, (3,))]
    first, then = (layout(Contents(slots, {}, {"polyfuse": c * 64})) for c in "0f")
    assert (first.files, first.places, first.checksums) == (then.files, then.places, then.checksums)
    assert [part[:2] for part in first.parts] == [part[:2] for part in then.parts]
    assert [len(part[2]) for part in first.parts] == [len(part[2]) for part in then.parts]


def test_shared_shapes_make_the_same_bytes_as_own_ones():
    shape = (2, 3)
    shared = [Slot(name, torch.float32, shape) for name in "ab"]
    own = [Slot(name, torch.float32, tuple([2, 3])) for name in "ab"]  # noqa: C409
    assert layout(Contents(shared, {}, {})) == layout(Contents(own, {}, {}))


def test_dtypes_that_torch_cannot_load_are_refused():
    slots = [Slot("a", torch.qint8, (1,)), Slot("b", torch.bits8, (1,))]
    with pytest.raises(CheckpointError, match=r"'a' is torch\.qint8, 'b' is torch\.bits8; choose"):
        layout(Contents(slots, {}, {}))
