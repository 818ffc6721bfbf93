"""Which format a name asks for, and one door to all layouts."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from written import same, slots_of, some_tensor, write_folder

from polyfuse.checkpoints import open_checkpoint
from polyfuse.checkpoints.base import Slot
from polyfuse.checkpoints.layouts import LAYOUTS, format_of, layout_for
from polyfuse.errors import CheckpointError

SLOTS = [Slot(name, torch.float32, (250,)) for name in "abc"]


def plan_of(out, **rest):
    return layout_for(out, SLOTS, aliases={}, note={}, **rest)


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ("a.safetensors", "safetensors"),
        (Path("deep/a.SafeTensors"), "safetensors"),
        *((f"a{suffix}", "torch") for suffix in (".pt", ".pth", ".bin", ".ckpt", ".x.PT")),
        *((name, "hf") for name in ("a", "a/", "a.pt/", "llama-3.2-1B", "v1.5", ".hidden", "..")),
    ],
)
def test_the_name_tells_the_format(out, expected):
    assert format_of(out, "torch") == expected
    assert format_of(out, "dcp") == ("dcp" if expected == "hf" else expected)


def test_a_folder_that_is_there_is_a_folder_whatever_its_name(tmp_path):
    (tmp_path / "a.pt").mkdir()
    assert format_of(tmp_path / "a.pt", "torch") == "hf"


@pytest.mark.parametrize(
    ("out", "hint"),
    [("a.safetensor", "mean '.safetensors'"), ("a.ptx", "mean '.pt'"), ("a.gguf", "in '/'$")],
)
def test_unknown_suffixes_are_refused_with_what_is_known(out, hint):
    with pytest.raises(CheckpointError, match=rf"\.safetensors, \.pt, \.pth, \.bin, .*{hint}"):
        format_of(out, "torch")


def test_an_unknown_format_is_refused():
    with pytest.raises(CheckpointError, match=r"'safetensor'; .* hf, torch, dcp; did you mean"):
        plan_of("a", form="safetensor")


@pytest.mark.parametrize("form", LAYOUTS)
def test_a_named_format_wins_over_the_name(form):
    plan = plan_of("a", form=form)
    assert (list(plan.files) == [""]) == (form in ("safetensors", "torch"))
    assert plan.places.keys() == set("abc")


@pytest.mark.parametrize("out", ["a.safetensors", "a.pt"])
def test_what_does_not_fit_one_file_is_refused_there(out):
    with pytest.raises(CheckpointError, match=r"3,000 bytes, more than the 2,999 .* name a folder"):
        plan_of(out, max_shard_size=2999)
    assert plan_of(out, max_shard_size="3KB") == plan_of(out)
    assert len(plan_of("a/", max_shard_size="1 kB").files) == 4


@given(
    st.sampled_from(sorted(LAYOUTS)),
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.sampled_from([None, 1000]),
)
def test_a_note_of_the_same_length_moves_nothing(form, text, limit):
    limit = limit if form in ("hf", "dcp") else None
    first, then = (
        layout_for("x", SLOTS, aliases={"t": "a"}, note=n, form=form, max_shard_size=limit)
        for n in ({"format": "pt", "polyfuse": text + c * 64} for c in "0f")
    )
    assert (first.files, first.places, first.checksums) == (then.files, then.places, then.checksums)
    assert [(f, o, len(raw)) for f, o, raw in first.parts] == [
        (f, o, len(raw)) for f, o, raw in then.parts
    ]


@pytest.mark.parametrize("form", LAYOUTS)
def test_every_byte_of_a_file_is_a_part_or_a_tensor(form):
    plan = plan_of("a", form=form)
    size = {slot.name: slot.nbytes for slot in SLOTS}
    for file, total in plan.files.items():
        known = sum(len(raw) for name, _, raw in plan.parts if name == file)
        placed = sum(size[slot] for slot, (name, _) in plan.places.items() if name == file)
        assert known + placed == total


@pytest.mark.parametrize("form", LAYOUTS)
def test_our_own_readers_read_it_back(tmp_path, form):
    dtypes = (torch.float32, torch.bfloat16, torch.uint16, torch.float8_e4m3fn, torch.bool)
    state = {str(dtype): some_tensor(dtype, (3, 2)) for dtype in dtypes}
    state |= {"scalar": torch.tensor(3), "empty": torch.empty(0, 2)}
    note, limit = {"format": "pt", "polyfuse": '{"x": 1}'}, 30 if form in ("hf", "dcp") else None
    plan = layout_for(
        "x",
        slots_of(state),
        aliases={"tied": "scalar"},
        note=note,
        form=form,
        max_shard_size=limit,
    )
    folder = write_folder(tmp_path / "out", plan, state)
    path = folder / "one" if list(plan.files) == [""] else folder
    with open_checkpoint(path) as checkpoint:
        assert same(checkpoint.state_dict(), state | {"tied": state["scalar"]})
        assert checkpoint.aliases == {"tied": "scalar"}
        assert checkpoint.facts["metadata"]["polyfuse"] == note["polyfuse"]
