"""safetensors layouts: byte for byte what the safetensors package writes, ties included."""

import json

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from written import in_torch, same, slots_of, some_tensor, written

from polyfuse.checkpoints.base import Slot
from polyfuse.checkpoints.layouts.base import Contents
from polyfuse.checkpoints.layouts.safetensors_file import DTYPES, layout, one_file
from polyfuse.errors import CheckpointError

LOADED = in_torch(d for d, name in DTYPES.items() if name not in ("F4", "F8_E8M0"))
names = st.text(st.characters(codec="utf-8"), max_size=6).filter(lambda n: n != "__metadata__")
names |= st.sampled_from(
    ['"', "\\", "\n\t\b\f\r\x00\x1f\x7f", "é", "日本", "😀", "a.b", "A.b", "a"]
)
shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)
states = st.dictionaries(
    names,
    st.builds(some_tensor, st.sampled_from(LOADED), shapes, st.integers(0, 9)),
    min_size=1,
    max_size=6,
)
metadata = st.dictionaries(st.text(st.characters(codec="utf-8")), st.text('a"\\é\n\0'), max_size=1)


def one(state, note=None, aliases=None):
    contents = Contents(slots_of(state), aliases or {}, note or {})
    return written(layout(contents), state)[""]


@given(states, metadata)
def test_the_bytes_are_those_of_save_file(state, note):
    theirs = safetensors.torch.save(state, note or None)
    assert one(state, note) == theirs


@pytest.mark.parametrize("note", [{}, {"format": "pt"}])
def test_every_dtype_in_one_file_is_as_save_file_writes_it(note):
    state = {str(dtype): some_tensor(dtype, (2, 3)) for dtype in in_torch(DTYPES)}
    assert len(state) >= 16
    assert one(state, note) == safetensors.torch.save(state, note or None)


def test_save_file_itself_writes_the_same_file(tmp_path):
    state = {"w": torch.rand(3, 2), "n": torch.tensor(7)}
    safetensors.torch.save_file(state, tmp_path / "theirs", {"format": "pt"})
    assert one(state, {"format": "pt"}) == (tmp_path / "theirs").read_bytes()


@given(states, st.dictionaries(st.text(max_size=3), st.text(max_size=9), max_size=4))
def test_any_metadata_and_tensors_load(tmp_path_factory, state, note):
    note = {key.encode(errors="ignore").decode(): "value" for key in note}
    path = tmp_path_factory.getbasetemp() / "a.safetensors"
    path.write_bytes(one(state, note))
    assert same(safetensors.torch.load_file(path), state)
    with safetensors.safe_open(path, "pt") as file:
        assert (file.metadata() or {}) == note


def test_metadata_are_sorted_and_no_tensors_are_a_file_too():
    raw = one({}, {"b": "2", "a": "1"})
    assert raw[8:].decode().rstrip() == '{"__metadata__":{"a":"1","b":"2"}}'
    assert one({"w": torch.ones(1)}, {"a": "1", "b": "2"}) == one(
        {"w": torch.ones(1)}, {"b": "2", "a": "1"}
    )
    assert safetensors.torch.load(one({})) == {}


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5)
        self.head.weight = self.embed.weight


def test_tied_tensors_load_into_their_model(tmp_path):
    model, other = Tied(), Tied()
    state = {k: v for k, v in model.state_dict().items() if k != "head.weight"}
    raw = one(state, {"format": "pt"}, {"head.weight": "embed.weight"})
    (tmp_path / "a").write_bytes(raw)
    assert safetensors.torch.load_model(other, tmp_path / "a", strict=True) == (set(), [])
    assert same(other.state_dict(), model.state_dict())
    assert other.head.weight is other.embed.weight


def test_ties_alone_are_the_bytes_of_save_model(tmp_path):
    model = Tied()
    safetensors.torch.save_model(model, str(tmp_path / "theirs"))
    kept = safetensors.torch.load_file(tmp_path / "theirs")
    (alias,) = model.state_dict().keys() - kept.keys()
    (of,) = {"embed.weight", "head.weight"} - {alias}
    assert one(kept, {}, {alias: of}) == (tmp_path / "theirs").read_bytes()


def test_a_note_of_the_same_lengths_moves_nothing():
    slots = [Slot("w", torch.float32, (3,))]
    first, then = (one_file(slots, {"polyfuse": c * 64}) for c in "0f")
    assert (first.files, first.places) == (then.files, then.places)
    assert [part[:2] for part in first.parts] == [part[:2] for part in then.parts]


def test_sizes_beyond_memory_are_arithmetic():
    plan = one_file([Slot("w", torch.bfloat16, (1 << 40, 3))], {})
    header = json.loads(plan.parts[0][2][8:])
    assert header["w"]["data_offsets"] == [0, 6 << 40]
    assert plan.files[""] == (6 << 40) + len(plan.parts[0][2])


def test_what_the_format_cannot_hold_is_refused_all_at_once():
    slots = [Slot("a\x1b", torch.complex128, (1,)), Slot("__metadata__", torch.float32, ())]
    slots += [Slot("w\ud800", torch.float32, ()), Slot("q", torch.qint8, ())]
    with pytest.raises(CheckpointError) as error:
        one_file(slots, {})
    assert str(error.value) == (
        "safetensors cannot hold 4 tensors: 'a\\x1b' is torch.complex128, '__metadata__' is a "
        "reserved name, 'w\\ud800' has half a character in its name, 'q' is torch.qint8; "
        "write a .pt file instead"
    )


def test_a_tie_named_as_other_metadata_is_refused():
    with pytest.raises(CheckpointError, match=r"\['format'\] have names that .* write a \.pt"):
        layout(Contents([Slot("w", torch.float32, ())], {"format": "w"}, {"format": "pt"}))
