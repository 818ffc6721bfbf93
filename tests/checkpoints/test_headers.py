"""safetensors headers: what the library accepts reads the same; damage is refused by its name."""

import json
import math
import os
import re

import fuzz_safetensors
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from polyfuse.checkpoints import headers
from polyfuse.checkpoints.base import LIMITS, File, Limits
from polyfuse.checkpoints.safetensors import read_safetensors
from polyfuse.dtypes import as_elements, bytes_of
from polyfuse.errors import CheckpointError

THEIRS = sorted(safetensors.torch._TYPES.items())
shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)
names = st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda n: n != "__metadata__")


def file_of(header, data=b"", length=None):
    """Return a file of any header, with any stated header length."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def entry_text(text):
    """Return a header whose one entry is written by hand."""
    return b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]' + text + b"}}"


def random_tensor(dtype, shape):
    count = math.prod(shape) * dtype.itemsize
    raw = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=torch.manual_seed(1))
    return (raw % 2 if dtype == torch.bool else raw).view(dtype).view(shape)


def same_bits(ours, theirs):
    flat = [tensor.contiguous().view(-1) for tensor in (ours, theirs)]
    return (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape) and bytes_of(
        as_elements(flat[0])
    ) == bytes_of(as_elements(flat[1]))


@given(
    st.dictionaries(names, st.tuples(st.sampled_from(THEIRS), shapes), max_size=5),
    st.none()
    | st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(max_size=5), min_size=1),
)
def test_what_the_library_writes_reads_the_same(tmp_path_factory, layout, metadata):
    path = tmp_path_factory.getbasetemp() / "a.safetensors"
    tensors = {name: random_tensor(kind[1], shape) for name, (kind, shape) in layout.items()}
    safetensors.torch.save_file(tensors, path, metadata)
    theirs = safetensors.torch.load_file(path)
    with read_safetensors(path) as ours:
        assert ours.tensors.keys() == theirs.keys()
        state = ours.state_dict()
        assert all(same_bits(state[name], theirs[name]) for name in theirs)
        assert ours.facts.get("metadata", {}) == (metadata or {})


@pytest.mark.parametrize(("code", "dtype"), THEIRS)
def test_every_dtype_of_the_library_reads_in_parts(tmp_path, code, dtype):
    tensor = random_tensor(dtype, (7, 3))
    safetensors.torch.save_file(
        {"n": torch.tensor([1], dtype=torch.int8), "w": tensor}, tmp_path / "a"
    )
    ours = read_safetensors(tmp_path / "a")
    assert headers.DTYPES[code] == dtype
    assert same_bits(ours.read("w", 5, 12), tensor.view(-1)[5:12])


@pytest.mark.skipif("F8_E8M0" not in fuzz_safetensors.KNOWN, reason="older torch or safetensors")
def test_the_dtype_that_the_library_opens_but_does_not_save(tmp_path):
    (tmp_path / "a").write_bytes(file_of({"w": entry("F8_E8M0", (2,), (0, 2))}, b"\x7f\x80"))
    with safe_open(tmp_path / "a", "pt") as theirs:
        assert same_bits(read_safetensors(tmp_path / "a").read("w"), theirs.get_tensor("w"))


LEGAL = {
    "empty": file_of({}),
    "metadata only": file_of({"__metadata__": {"a": "b"}}),
    "metadata null": file_of({"__metadata__": None}),
    "spaces around": file_of(b" \n" + entry_text(b"") + b" \t\r\n ", bytes(8)),
    "spaces between": file_of(json.dumps({"w": entry()}, indent=3).encode(), bytes(8)),
    "no tensors in order": file_of(
        {"b": entry(shape=(1,), offsets=(4, 8)), "a": entry(shape=(1,), offsets=(0, 4))}, bytes(8)
    ),
    "zero-sized at one place": file_of(
        {"a": entry(shape=(0,), offsets=(0, 0)), "b": entry(shape=(4, 0), offsets=(0, 0))}
    ),
    "a huge size beside a zero": file_of({"w": entry(shape=(2**62, 0), offsets=(0, 0))}),
    "no name": file_of({"": entry()}, bytes(8)),
    "control characters": file_of({"\0\x1b[31m\x7f": entry()}, bytes(8)),
    "a path": file_of({"../../etc/passwd": entry()}, bytes(8)),
    "a surrogate pair": file_of(
        b'{"\\ud83d\\ude00":' + json.dumps(entry()).encode() + b"}", bytes(8)
    ),
    "escaped field": file_of(entry_text(b"").replace(b"dtype", b"\\u0064type"), bytes(8)),
    "rank 64": file_of({"w": entry(shape=(2,) + (1,) * 63)}, bytes(8)),
}


@pytest.mark.parametrize("raw", LEGAL.values(), ids=LEGAL)
def test_odd_but_legal_files_read_as_the_library_reads_them(tmp_path, raw):
    (tmp_path / "a").write_bytes(raw)
    theirs = safetensors.torch.load(raw)
    ours = read_safetensors(tmp_path / "a").state_dict()
    assert ours.keys() == theirs.keys()
    assert all(same_bits(ours[name], theirs[name]) for name in theirs)


# What the library refuses too, and what our error says.
DAMAGED = {
    "empty file": (b"", "it has 0 bytes, the length of its header alone takes 8"),
    "seven bytes": (bytes(7), "it has 7 bytes"),
    "header length 0": (file_of(b""), "Expecting value"),
    "header length 2^64 - 1": (
        file_of({}, length=2**64 - 1),
        "header of 18,446,744,073,709,551,615",
    ),
    "header length past the end": (
        file_of({}, length=1000),
        "1,000 bytes in a file of 10: it is trunc",
    ),
    "header over the limit": (file_of({}, length=100_000_001), "at most 100,000,000 expected"),
    "header cut": (file_of({"w": entry()}, bytes(8), length=10), "Unterminated string|Expecting"),
    "no JSON": (file_of(b"{nothing}"), "Expecting property name"),
    "a list": (file_of([1]), "a JSON object expected, found list"),
    "no UTF-8": (file_of(b'{"\xff": 1}'), "'utf-8' codec can't decode"),
    "UTF-16": (file_of('{"a":1}'.encode("utf-16")), "'utf-8' codec can't decode"),
    "byte order mark": (file_of(b"\xef\xbb\xbf{}"), "BOM"),
    "zeros after": (file_of(b"{}\0\0"), "Extra data"),
    "deep": (file_of(b"[" * 1_000_000), "nested too deeply"),
    "deep inside": (file_of(entry_text(b',"x":' + b"[" * 100_000)), "nested too deeply"),
    "NaN": (file_of(entry_text(b',"x":NaN'), bytes(8)), "NaN is not JSON"),
    "Infinity": (file_of(entry_text(b',"x":-Infinity'), bytes(8)), "-Infinity is not JSON"),
    "huge integer": (file_of(entry_text(b',"x":' + b"9" * 5000), bytes(8)), "4300 digits"),
    "half a surrogate pair": (file_of(b'{"\\uD800":1}'), "surrogates not allowed"),
    "raw control character": (file_of(b'{"a\x01":1}'), "Invalid control character"),
    "field twice": (file_of(entry_text(b',"dtype":"F32"'), bytes(8)), "it names 'dtype' twice"),
    "metadata twice": (
        file_of(b'{"__metadata__":{},"__metadata__":{}}'),
        "names '__metadata__' twice",
    ),
    "metadata a list": (file_of({"__metadata__": []}), "__metadata__ is no object but list"),
    "metadata no text": (
        file_of({"__metadata__": {"a": 3}}),
        "__metadata__ 'a' is no text but int",
    ),
    "entry null": (file_of({"w": None}), "'w': an entry of dtype, shape and data_offsets expected"),
    "entry without shape": (
        file_of({"w": {"dtype": "F32", "data_offsets": [0, 8]}}),
        "an entry of dtype",
    ),
    "trailing bytes": (file_of({"w": entry()}, bytes(9)), "1 bytes after the last tensor"),
    "only trailing bytes": (file_of({}, bytes(9)), "9 bytes after the last tensor"),
    "data missing": (
        file_of({"w": entry()}, bytes(7)),
        "take 8 bytes, but it has 7: it is truncated",
    ),
    "hole at the start": (
        file_of({"w": entry(offsets=(4, 12))}, bytes(12)),
        "bytes 4 to 12 leave a hole before 0",
    ),
    "hole": (
        file_of({"a": entry(), "b": entry(offsets=(9, 17))}, bytes(17)),
        "tensor 'b': its bytes 9 to 17 leave a hole before 8",
    ),
    "overlap": (
        file_of({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
        "tensor 'b': its bytes 4 to 12 overlap those before 8",
    ),
    "same range": (
        file_of({"a": entry(), "b": entry()}, bytes(8)),
        "'b': its bytes 0 to 8 overlap",
    ),
    "reversed offsets": (file_of({"w": entry(offsets=(8, 0))}, bytes(8)), r"found \[8, 0\]"),
    "negative offset": (file_of({"w": entry(offsets=(-8, 0))}, bytes(8)), r"found \[-8, 0\]"),
    "float offset": (file_of({"w": entry(offsets=(0, 8.0))}, bytes(8)), r"found \[0, 8\.0\]"),
    "bool offset": (file_of({"w": entry(offsets=(False, 8))}, bytes(8)), r"found \[False, 8\]"),
    "three offsets": (file_of({"w": entry(offsets=(0, 8, 8))}, bytes(8)), r"found \[0, 8, 8\]"),
    "offset beyond 64 bits": (
        file_of({"w": entry(offsets=(0, 2**64))}, bytes(8)),
        "data_offsets of start",
    ),
    "negative size": (
        file_of({"w": entry(shape=(-2,))}, bytes(8)),
        r"sizes expected, found \[-2\]",
    ),
    "float size": (file_of({"w": entry(shape=(2.0,))}, bytes(8)), r"found \[2\.0\]"),
    "bool size": (file_of({"w": entry(shape=(True, 2))}, bytes(8)), r"found \[True, 2\]"),
    "shape a number": (file_of({"w": {**entry(), "shape": 2}}, bytes(8)), "found 2"),
    "size against shape": (
        file_of({"w": entry(shape=(3,))}, bytes(8)),
        r"shape \[3\] takes 12 bytes, data_offsets \[0, 8\] hold 8",
    ),
    "size overflow": (
        file_of({"w": entry(shape=(2**62, 4, 2**60))}, bytes(8)),
        "torch has no tensor of shape",
    ),
    "size overflow to the right size": (
        file_of({"w": entry(shape=(2**62 + 1, 2))}, bytes(8)),
        "no tensor",
    ),
    "unknown dtype": (
        file_of({"w": entry("F33")}, bytes(8)),
        "unknown dtype 'F33'; known are F64, F32",
    ),
    "dtype a number": (file_of({"w": entry(5)}, bytes(8)), "unknown dtype '5'"),
}


@pytest.mark.parametrize(("raw", "message"), DAMAGED.values(), ids=DAMAGED)
def test_what_the_library_refuses_is_refused_by_its_name(tmp_path, raw, message):
    with pytest.raises(Exception):  # noqa: B017, PT011  # the library has several
        safetensors.torch.load(raw)
    (tmp_path / "mine").write_bytes(raw)
    with pytest.raises(CheckpointError, match=message) as error:
        read_safetensors(tmp_path / "mine")
    assert re.match(r"'.*/mine' is not a sound safetensors file: ", str(error.value))
    assert str(error.value).endswith("fetch or save it again")
    assert len(str(error.value)) < 3000


# The deliberate differences: the library accepts these, or has no say in them.
STRICTER = {
    "name twice": (
        file_of(b'{"w":%b,"w":%b}' % ((json.dumps(entry()).encode(),) * 2), bytes(8)),
        "it names 'w' twice",
    ),
    "metadata name twice": (file_of(b'{"__metadata__":{"a":"1","a":"2"}}'), "it names 'a' twice"),
    "unknown field": (file_of({"w": entry(strides=[1])}, bytes(8)), "and nothing else"),
    "entry as a list": (file_of({"w": ["F32", [2], [0, 8]]}, bytes(8)), "an entry of dtype"),
    "dtype as an object": (file_of({"w": entry({"F32": None})}, bytes(8)), "unknown dtype"),
    "rank": (file_of({"w": entry(shape=(2,) + (1,) * 64)}, bytes(8)), "at most 64 sizes"),
    "strides overflow": (
        file_of({"w": entry(shape=(0, 2**62, 2**62), offsets=(0, 0))}),
        "torch has no tensor of shape",
    ),
    "no signed size": (file_of({"w": entry(shape=(0, 2**64 - 1), offsets=(0, 0))}), "sizes expec"),
    "long name": (file_of({"w" * 5000: entry()}, bytes(8)), "a name of 5,000 characters"),
    **{
        code: (file_of({"w": entry(code, (8,), (0, 8))}, bytes(8)), f"{code} packs several")
        for code in ("F4", "F6_E2M3", "F6_E3M2")
    },
}


@pytest.mark.parametrize(("raw", "message"), STRICTER.values(), ids=STRICTER)
def test_where_ours_is_stricter_than_the_library(tmp_path, raw, message):
    (tmp_path / "mine").write_bytes(raw)
    with pytest.raises(CheckpointError, match=message):
        read_safetensors(tmp_path / "mine")


def test_all_faults_are_told_at_once_but_for_many(tmp_path):
    (tmp_path / "a").write_bytes(file_of({f"t{i}": entry("F33") for i in range(9)}, bytes(8)))
    with pytest.raises(CheckpointError, match=r"tensor 't0'.*tensor 't4'.* \(and 4 more\)"):
        read_safetensors(tmp_path / "a")


def test_text_from_the_file_cannot_drive_the_terminal(tmp_path):
    (tmp_path / "a").write_bytes(file_of({"\x1b[31mred": entry("\x1b[0m")}, bytes(8)))
    with pytest.raises(CheckpointError) as error:
        read_safetensors(tmp_path / "a")
    assert "\x1b" not in str(error.value)


def test_more_names_than_the_limit_are_refused(tmp_path, monkeypatch):
    assert LIMITS.names == 1_000_000
    monkeypatch.setattr(headers, "LIMITS", Limits(names=2))
    empty = entry(shape=(0,), offsets=(0, 0))
    (tmp_path / "a").write_bytes(file_of(dict.fromkeys("abc", empty)))
    with pytest.raises(CheckpointError, match="3 tensors, at most 2 expected"):
        headers.read_header(File(tmp_path / "a"))


def test_a_header_over_the_limit_is_never_read(tmp_path, monkeypatch):
    monkeypatch.setattr(headers, "LIMITS", Limits(header_bytes=10))
    path = tmp_path / "a"
    path.write_bytes(file_of({"w": entry()}, bytes(8)))
    file = File(path)
    monkeypatch.setattr(
        file, "read", lambda at, n: path.read_bytes()[at : at + n] if n <= 10 else 1 / 0
    )
    with pytest.raises(CheckpointError, match="at most 10 expected"):
        headers.read_header(file)


@pytest.mark.parametrize("bad", [2, 128, 255])
def test_a_bool_that_is_neither_0_nor_1_is_refused_when_read(tmp_path, bad):
    data = bytes([0, 1, bad, 1])
    (tmp_path / "a").write_bytes(file_of({"m.w": entry("BOOL", (4,), (0, 4))}, data))
    ours = read_safetensors(tmp_path / "a")
    assert ours.read("m.w", 0, 2).tolist() == [False, True]
    with pytest.raises(CheckpointError, match=rf"tensor 'm.w': a bool is .* 0 or 1, found {bad};"):
        ours.read("m.w", 1)


def test_a_file_cut_after_it_was_opened_is_an_error_not_a_signal(tmp_path):
    safetensors.torch.save_file({"w": torch.rand(5000)}, tmp_path / "a")
    ours = read_safetensors(tmp_path / "a")
    os.truncate(tmp_path / "a", 200)
    with pytest.raises(CheckpointError, match="was truncated while it was read"):
        ours.read("w")
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        ours.check_unchanged()


@pytest.mark.parametrize("count", [2000, pytest.param(100_000, marks=pytest.mark.fuzz)])
def test_mutants_are_read_as_the_library_reads_them_or_refused(count):
    ends = fuzz_safetensors.main(count, seed=count)
    assert ends.total() == count
    assert min(ends["read by both"], ends["refused by both"]) > count / 10
