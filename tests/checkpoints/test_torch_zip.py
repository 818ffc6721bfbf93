"""torch's zip format: the tensors are those of torch.load, and what contradicts itself is refused.

The first tests are those that a widely used lazy reader, or torch.load itself, fails.
"""

import argparse
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_bytes import (
    FLOATS,
    Called,
    Name,
    Stored,
    archive,
    deflated,
    records,
    resealed,
    saved,
    tensor,
    torch_file,
)

from polyfuse.checkpoints import torch_zip, views
from polyfuse.checkpoints.base import File, Raw
from polyfuse.checkpoints.torch_zip import Unreadable, read_tree
from polyfuse.dtypes import as_elements, as_tensor
from polyfuse.errors import CheckpointError

DTYPES = [getattr(torch, name) for name in sorted(torch_zip._READABLE)]


def read(opened, record):
    info = opened.tensor(record)
    out = info.dtype.empty(info.count)
    info.source.fill(out, 0)
    return as_tensor(out, info.dtype).view(info.shape)


def read_all(path):
    opened = read_tree(File(path))
    return {name: read(opened, record) for name, record in opened.tree.items()}


def equal(ours, theirs):
    """Tell whether two tensors have the same dtype, shape and bits."""
    plain = (
        theirs.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    )
    bits = plain.reshape(-1).view(torch.uint8), ours.reshape(-1).view(torch.uint8)
    return ours.dtype == theirs.dtype and ours.shape == theirs.shape and torch.equal(*bits)


def assert_as_torch(path):
    ours, theirs = read_all(path), torch.load(path, weights_only=True)
    assert list(ours) == list(theirs)
    assert [name for name in ours if not equal(ours[name], theirs[name])] == []


def test_a_strided_slice(tmp_path):
    path = saved(tmp_path, {"a": torch.arange(12.0)[::3]})
    assert read_all(path)["a"].tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize("entry", ["data.pkl", "data/0", "byteorder", "version"])
def test_a_flipped_bit_is_found(tmp_path, entry):
    path = saved(tmp_path, {"a": torch.tensor(0.25)})
    with zipfile.ZipFile(path) as found:
        raw = found.read(f"a/{entry}")
    path.write_bytes(path.read_bytes().replace(raw, bytes([raw[0] ^ 1, *raw[1:]])))
    with pytest.raises(CheckpointError, match=rf"'a/{entry}' in '.*a\.pt' is damaged"):
        read_number(path)


def read_number(path):
    opened = read_tree(File(path))
    return opened.number(opened.tree["a"])


def test_the_stated_crc_is_handed_on_for_the_reading(tmp_path):
    path = saved(tmp_path, {"a": torch.arange(12.0)})
    opened = read_tree(File(path))
    check = opened.check(opened.tree["a"])
    assert zlib.crc32(path.read_bytes()[check.start :][: check.length]) == check.crc
    assert (check.name, check.length) == ("a/data/0", 48)


def test_deflated_entries(tmp_path):
    state = {"a": torch.arange(12.0), "b": torch.arange(12.0).view(3, 4).T, "n": torch.tensor(3)}
    path = deflated(saved(tmp_path, state))
    assert all(torch.equal(tensor, state[name]) for name, tensor in read_all(path).items())
    opened = read_tree(File(path))
    assert opened.check(opened.tree["a"]) is None
    assert opened.tensor(opened.tree["a"]).source.whole
    part = torch.empty(5)
    opened.tensor(opened.tree["a"]).source.fill(as_elements(part), 3)
    assert part.tolist() == [3, 4, 5, 6, 7]


def test_an_entry_twice(tmp_path):
    path = tmp_path / "a.pt"
    evil = records({"a": tensor()}, {"0": FLOATS[::-1]})
    path.write_bytes(archive([*records({"a": tensor()}).items(), *evil.items()]))
    with pytest.raises(CheckpointError, match=r"'a/data\.pkl' is in it twice"):
        read_tree(File(path))


def test_a_bytearray_of_eight_gigabytes(tmp_path):
    path = torch_file(tmp_path, {"a": tensor(), "b": Called("builtins.bytearray", 8 << 30)})
    opened = read_tree(File(path))
    assert read(opened, opened.tree["a"]).tolist() == [0, 1, 2, 3]


def test_an_expansion_to_four_terabytes(tmp_path):
    path = torch_file(tmp_path, {"a": tensor(shape=(1 << 40,), strides=(0,))})
    opened = read_tree(File(path))
    with pytest.raises(ValueError, match="repeats 16 bytes of storage as 4,398,046,511,104"):
        opened.tensor(opened.tree["a"])


# --- everything that torch.load(weights_only=True) reads ---


def some(dtype, count):
    generator = torch.Generator().manual_seed(count)
    raw = torch.randint(0, 256, (count * dtype.itemsize,), generator=generator, dtype=torch.uint8)
    return raw.remainder(2).bool() if dtype == torch.bool else raw.view(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(tmp_path, dtype):
    whole = some(dtype, 24)
    path = saved(tmp_path, {"a": whole, "b": whole.view(4, 6).T, "c": whole[3], "d": whole[:0]})
    assert_as_torch(path)


views_of = st.sampled_from(
    list(
        {
            "whole": lambda t: t,
            "transposed": lambda t: t.transpose(0, -1),
            "every other": lambda t: t[::2],
            "last columns": lambda t: t[..., 1:],
            "expanded": lambda t: t[:1].expand(5, *t.shape[1:]),
            "one": lambda t: t.flatten()[-1],
            "none": lambda t: t[:0],
            "turned": lambda t: t.movedim(0, -1),
            "windows": lambda t: t.flatten().unfold(0, 3, 1),
            "flat": lambda t: t.reshape(-1),
            "parameter": lambda t: torch.nn.Parameter(t, requires_grad=False),
        }.values()
    )
)
sizes = st.lists(st.integers(1, 4), min_size=1, max_size=4).filter(lambda s: np.prod(s) >= 3)


@st.composite
def states(draw):
    bases = [some(draw(st.sampled_from(DTYPES)), int(np.prod(s))).view(s)
             for s in draw(st.lists(sizes, min_size=1, max_size=3))]  # fmt: skip
    picks = draw(st.lists(st.tuples(st.sampled_from(range(len(bases))), views_of), max_size=6))
    return {f"t{i}": view(bases[base]) for i, (base, view) in enumerate(picks)}


@given(states(), st.booleans())
def test_any_state_dict(tmp_path_factory, state, packed):
    path = saved(tmp_path_factory.mktemp("a"), state)
    assert_as_torch(deflated(path) if packed else path)


@given(st.data())
def test_any_part_of_a_view(tmp_path_factory, data):
    view = data.draw(views_of)(torch.arange(60.0).view(3, 4, 5))
    opened = read_tree(File(saved(tmp_path_factory.mktemp("a"), {"a": view})))
    start = data.draw(st.integers(0, view.numel()))
    out = torch.empty(data.draw(st.integers(0, view.numel() - start)))
    opened.tensor(opened.tree["a"]).source.fill(as_elements(out), start)
    assert torch.equal(out, view.flatten()[start : start + out.numel()])


def test_a_view_is_gathered_in_pieces(tmp_path, monkeypatch):
    whole = torch.arange(6000.0).view(20, 30, 10)
    state = {
        "a": whole.permute(2, 0, 1),
        "b": whole[::3, :, 1],
        "c": whole[:, :1].expand(20, 9, 10),
    }
    path = saved(tmp_path, state)
    monkeypatch.setattr(views, "_BLOCK", 256)
    assert_as_torch(path)


def test_conjugated_and_negated_views(tmp_path):
    numbers = some(torch.float32, 12).nan_to_num().view(torch.complex64)
    state = {"a": numbers.conj(), "b": numbers.view(2, 3).conj().T}
    state |= {"c": numbers.clone().conj().imag}
    assert_as_torch(saved(tmp_path, {**state, "d": numbers[0].conj()}))


def test_channels_last_and_memory_formats(tmp_path):
    image = torch.arange(120.0).view(2, 3, 4, 5)
    assert_as_torch(saved(tmp_path, {"a": image.to(memory_format=torch.channels_last)}))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(tmp_path, protocol):
    state = {"a": torch.arange(4.0), "b": torch.ones(2, dtype=torch.uint16)}
    ours = read_all(saved(tmp_path, state, pickle_protocol=protocol))  # torch.load reads only 2
    assert all(equal(ours[name], state[name]) for name in state)


def test_a_parameter_and_a_tensor_with_attributes(tmp_path):
    parameter, plain = torch.nn.Parameter(torch.ones(2)), torch.ones(3)
    parameter.note, plain.note = "mine", "yours"
    assert set(read_all(saved(tmp_path, {"a": parameter, "b": plain}))) == {"a", "b"}


def test_a_renamed_archive(tmp_path):
    path = saved(tmp_path, {"a": torch.ones(2)}).rename(tmp_path / "other.bin")
    assert_as_torch(path)
    assert read_tree(File(path)).prefix == "a"


def test_a_file_saved_on_another_device(tmp_path):
    path = torch_file(tmp_path, {"a": tensor(Stored(place="cuda:7"))})
    assert read_all(path)["a"].tolist() == [0, 1, 2, 3]


def test_two_dtypes_on_one_storage(tmp_path):
    both = {"a": tensor(), "b": tensor(Stored("Int"))}
    ours = read_all(torch_file(tmp_path, both))
    assert ours["b"].tolist() == torch.tensor(ours["a"].tolist()).view(torch.int32).tolist()


def test_contiguous_tensors_are_read_in_place(tmp_path):
    state = {"a": torch.ones(4, 3)[1:], "b": torch.ones(1, 4).T, "c": torch.ones(4, 1).T}
    opened = read_tree(File(saved(tmp_path, state)))
    assert all(isinstance(opened.tensor(r).source, Raw) for r in opened.tree.values())


def test_an_archive_inside_a_larger_file(tmp_path):
    raw = saved(tmp_path, {"a": torch.arange(5.0)[1:]}).read_bytes()
    (tmp_path / "b").write_bytes(b"before" + raw + b"after")
    opened = read_tree(File(tmp_path / "b"), 6, len(raw))
    assert read(opened, opened.tree["a"]).tolist() == [1, 2, 3, 4]


def test_what_lies_beside_the_tensors_does_not_block(tmp_path):
    beside = {
        "epoch": np.float64(3.0),
        "args": argparse.Namespace(lr=0.1),
        "array": np.arange(3),
        "sparse": torch.eye(2).to_sparse(),
        "dtype": torch.float16,
        "size": torch.Size([2, 3]),
        "device": torch.device("cpu"),
    }
    opened = read_tree(File(saved(tmp_path, {**beside, "w": torch.ones(2)})))
    assert opened.tree["epoch"] == 3.0
    assert opened.tree["args"].attributes == {"lr": 0.1}
    assert (opened.tree["dtype"], opened.tree["size"]) == (torch.float16, (2, 3))
    assert read(opened, opened.tree["w"]).tolist() == [1, 1]


def test_the_number_in_a_tensor(tmp_path):
    state = {
        "a": torch.tensor(0.5),
        "b": torch.tensor([7]),
        "c": torch.ones(2),
        "d": torch.zeros(0),
    }
    state |= {"big": torch.zeros(5000)[0], "complex": torch.tensor(1j)}
    opened = read_tree(File(saved(tmp_path, state)))
    numbers = {name: opened.number(record) for name, record in opened.tree.items()}
    assert numbers == {"a": 0.5, "b": 7, "c": None, "d": None, "big": None, "complex": None}


# --- what contradicts itself ---

V3 = "torch._utils._rebuild_tensor_v3"
FAULTY = {
    "an offset beyond the storage": (tensor(offset=1), "reaches to element 5 of a storage of 16"),
    "a shape beyond the storage": (tensor(shape=(5,)), "reaches to element 5 "),
    "a stride beyond the storage": (tensor(strides=(2,)), "reaches to element 7 "),
    "an empty tensor beyond the storage": (tensor(offset=9, shape=(0,)), "element "),
    "a negative offset": (tensor(offset=-1), "offset is -1, not a count"),
    "a negative stride": (tensor(strides=(-1,)), "stride is -1, not a count"),
    "a negative size": (tensor(shape=(-4,)), "shape is -4, not a count"),
    "a size that is a bool": (tensor(shape=(True,)), "a bool, not a count"),
    "a size that is a float": (tensor(shape=(4.0,)), "a float, not a count"),
    "a size that is a list": (tensor(shape=([4],)), "a list, not a count"),
    "a shape that is text": (tensor(shape="4"), "do not fit together"),
    "a size of 2**64": (tensor(shape=(1 << 64,)), "not a count"),
    "sizes that overflow": (tensor(shape=(1 << 40, 1 << 40), strides=(0, 0)), "is too large"),
    "an empty shape that overflows": (
        tensor(shape=(1 << 40, 1 << 40, 0), strides=(0, 0, 0)), "is too large",
    ),
    "strides that overflow": (tensor(shape=(2,), strides=(1 << 62,)), "reaches to element"),
    "fewer strides than sizes": (tensor(strides=()), "do not fit together"),
    "65 dimensions": (tensor(shape=(1,) * 65, strides=(1,) * 65), "65 dimensions, more than 64"),
    "a missing storage": (tensor(Stored(key="7")), "'7' is not in the archive"),
    "a key that is a path": (tensor(Stored(key="../data.pkl")), r"'\.\./data\.pkl' is no name"),
    "a key that is a number": (tensor(Stored(key=0)), "not even text"),
    "a storage shorter than stated": (tensor(Stored(count=5)), "has 16 bytes, stated are 20"),
    "a storage longer than stated": (tensor(Stored(count=3)), "has 16 bytes, stated are 12"),
    "a storage of a negative size": (tensor(Stored(count=-4)), "storage size is -4"),
    "a storage of 2**70 elements": (tensor(Stored(count=1 << 70)), "storage size is"),
    "a storage of unknown kind": (tensor(Stored("QInt8")), "unknown kind"),
    "a storage of no kind": (tensor(Stored("os.system")), "unknown kind"),
    "a storage that is none": (tensor([1, 2]), "unknown kind"),
    "a dtype that is none": (
        Called(V3, Stored(), 0, (4,), (1,), False, {}, "float32"), "cannot be averaged",
    ),
    "a dtype of parts of bytes": (
        Called(V3, Stored("torch.storage.UntypedStorage", count=16), 0, (4,), (1,), False, {},
               Name("torch.quint4x2")),
        "cannot be averaged",
    ),
    "a wider dtype than the storage holds": (
        Called(V3, Stored("torch.storage.UntypedStorage", count=16), 0, (3,), (1,), False, {},
               Name("torch.int64")),
        "reaches to element 3 ",
    ),
    "unknown properties": (tensor(None, 0, (4,), (1,), {"magic": True}), "properties"),
    "properties that are no dict": (tensor(None, 0, (4,), (1,), [1]), "properties"),
    "a conjugated real tensor": (tensor(None, 0, (4,), (1,), {"conj": True}), "not complex"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTY)
def test_a_tensor_that_contradicts_the_archive(tmp_path, name):
    stated, message = FAULTY[name]
    opened = read_tree(File(torch_file(tmp_path, {"bad": stated, "good": tensor()})))
    with pytest.raises(ValueError, match=message):
        opened.tensor(opened.tree["bad"])
    assert read(opened, opened.tree["good"]).tolist() == [0, 1, 2, 3]


class Subclass(torch.Tensor):
    pass


with torch.no_grad():
    KINDS = {
        "sparse": torch.eye(2).to_sparse(),
        "quantised": None,
        "meta": torch.ones(2, device="meta"),
        f"{__name__}.Subclass": torch.ones(2).as_subclass(Subclass),
    }


def quantised():
    return Called("torch._utils._rebuild_qtensor", Stored("QInt8"), 0, (2,), (1,), (), False, {})


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_tensors_are_told_apart(tmp_path, kind):
    if kind == "quantised":
        path = torch_file(tmp_path, {"a": quantised()})
    else:
        path = saved(tmp_path, {"a": KINDS[kind]})
    opened = read_tree(File(path))
    assert isinstance(opened.tree["a"], Unreadable)
    with pytest.raises(ValueError, match=rf"it is a {kind} tensor; "):
        opened.tensor(opened.tree["a"])


def test_a_reference_to_no_storage(tmp_path):
    odd = Stored()
    odd.identity = ("module", 1)
    with pytest.raises(CheckpointError, match=r"something else than a storage .*BINPERSID"):
        read_tree(File(torch_file(tmp_path, {"a": odd})))


def test_a_tensor_of_something_that_is_no_class(tmp_path):
    odd = Called("torch._tensor._rebuild_from_type_v2", 1, 2, 3, 4)
    with pytest.raises(CheckpointError, match="not a class"):
        read_tree(File(torch_file(tmp_path, {"a": odd})))


def test_a_big_endian_file(tmp_path):
    path = resealed(saved(tmp_path, {"a": torch.ones(2)}), "byteorder", lambda _: b"biglit")
    with pytest.raises(CheckpointError, match="byte order 'biglit'; only 'little' is read"):
        read_tree(File(path))


@pytest.mark.parametrize("version", [b"0\n", b"11\n", b"", b"x", b"-1"])
def test_a_version_that_is_unknown(tmp_path, version):
    path = tmp_path / "a.pt"
    path.write_bytes(archive(records({"a": tensor()}) | {"a/version": version}))
    with pytest.raises(CheckpointError, match="of torch's zip format, not one of 1 to 10"):
        read_tree(File(path))


def without(name):
    return {key: raw for key, raw in records({"a": tensor()}).items() if key != name}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (without("a/data.pkl"), "not one of torch.save"),
        (without("a/version"), "version ''"),
        (without("") | {"b/data.pkl": b""}, "not one of torch.save"),
        ({"word/document.xml": b"<x>"}, "not one of torch.save"),
        ({}, "not one of torch.save"),
        (without("") | {"a/constants.pkl": b""}, r"is a TorchScript archive; .*torch\.jit\.load"),
        ({"a/.data/extern_modules": b""}, "is a torch.package archive"),
    ],
)
def test_archives_of_another_kind(tmp_path, entries, message):
    path = tmp_path / "a.pt"
    path.write_bytes(archive(entries))
    with pytest.raises(CheckpointError, match=message):
        read_tree(File(path))


def test_a_real_torchscript_archive(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer torch calls TorchScript deprecated
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "a.pt"))
    with pytest.raises(CheckpointError, match="is a TorchScript archive"):
        read_tree(File(tmp_path / "a.pt"))


def test_no_byte_order_means_little(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(archive(without("a/byteorder")))
    assert read_all(path)["a"].tolist() == [0, 1, 2, 3]


def test_a_pickle_that_is_deeper_than_python_recurses(tmp_path):
    deep = b"\x80\x02}X\1\0\0\0a]" + b"\x85" * 100_000 + b"s."
    opened = read_tree(File(torch_file(tmp_path, deep)))
    assert isinstance(opened.tree["a"], tuple)
