"""The pickle reader: plain data as Python reads them, everything else inert, nothing run."""

import argparse
import collections
import contextlib
import datetime
import decimal
import functools
import math
import os
import pathlib
import pickle
import pickletools
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch_bytes import Called, Name, pickled

from polyfuse.checkpoints import base, pickle_machine, pickles
from polyfuse.checkpoints.pickles import Global, Opaque, load
from polyfuse.errors import CheckpointError

every_protocol = pytest.mark.parametrize("protocol", range(6))
numbers = st.integers(-(1 << 80), 1 << 80) | st.floats(allow_nan=False)
leaves = st.none() | st.booleans() | numbers | st.text() | st.binary()
keys = st.none() | st.booleans() | st.integers(-(1 << 40), 1 << 40) | st.text() | st.binary()
plain = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(keys | st.tuples(keys, keys), inner)
        | st.dictionaries(st.text(), inner).map(collections.OrderedDict)
    ),
    max_leaves=20,
)


def same(ours, theirs):
    """Compare, except that long bytes of protocols below 3 stay a call, and types of dicts."""
    if isinstance(theirs, dict):
        pairs = zip(ours.items(), theirs.items(), strict=True)
        return all(same(a, c) and same(b, d) for (a, b), (c, d) in pairs)
    if isinstance(theirs, list | tuple):
        return type(ours) is type(theirs) and all(map(same, ours, theirs))
    if isinstance(theirs, bytes) and isinstance(ours, Opaque):
        return ours.made_by == Global("_codecs", "encode") and len(ours.arguments[0]) > 64
    return ours == theirs and type(ours) is type(theirs)


@given(plain, st.integers(0, 5))
def test_plain_data_are_read_as_python_reads_them(value, protocol):
    raw = pickle.dumps(value, protocol)
    assert same(load(raw), pickle.loads(raw))


@given(plain, st.integers(0, 5))
def test_the_other_pickler_of_python_too(value, protocol):
    raw = pickled(value, protocol)
    assert same(load(raw), pickle.loads(raw))


@every_protocol
def test_sets_of_late_protocols(protocol):
    value = {"a": {1, 2}, "b": frozenset("xy"), "c": bytearray(b"abc")}
    read = load(pickle.dumps(value, protocol))
    assert all(isinstance(read[k], Opaque) or read[k] == value[k] for k in value)
    assert protocol < 5 or read == value


@pytest.mark.parametrize(
    "value",
    [np.float64(3.5), np.float32(1.5), np.float16(0.5), np.int64(-7), np.uint8(200), np.bool_(1)],
    ids=lambda value: type(value).__name__,
)
@every_protocol
def test_numpy_scalars_are_numbers(value, protocol):
    assert load(pickle.dumps(value, protocol)) == value.item()


def test_numpy_scalars_of_the_other_byte_order():
    big = Opaque(Global("numpy", "dtype"), ("f8", False, True))
    big.state = (3, ">", None, None, None, -1, -1, 0)
    scalar = pickles.PLAIN["numpy._core.multiarray", "scalar"]
    assert scalar(big, struct.pack(">d", 2.5)) == 2.5


@pytest.mark.parametrize(("kind", "raw"), [("f8", b"1234"), ("V8", bytes(8)), (8, bytes(8))])
def test_other_numpy_scalars_are_opaque(kind, raw):
    scalar = Called("numpy._core.multiarray.scalar", Called("numpy.dtype", kind), raw)
    assert isinstance(load(pickled(scalar)), Opaque)


class Slotted:
    __slots__ = ("a",)


class Numbered(int):
    pass


def things():
    slotted = Slotted()
    slotted.a = 1
    return {
        "namespace": argparse.Namespace(lr=0.1),
        "path": pathlib.PurePosixPath("/tmp"),
        "date": datetime.date(2024, 1, 1),
        "decimal": decimal.Decimal("1.5"),
        "partial": functools.partial(math.hypot, 3),
        "array": np.arange(3.0),
        "objects": np.array([1, "a"], dtype=object),
        "deque": collections.deque([1, 2]),
        "counter": collections.Counter("aab"),
        "default": collections.defaultdict(list, a=[1]),
        "slotted": slotted,
        "numbered": Numbered(3),
        "exception": ValueError("x"),
        "class": argparse.Namespace,
        "function": math.hypot,
        "method": [1].append,
        "range": range(3),
        "slice": slice(1, 2),
        "complex": 1 + 2j,
        "dtype": np.dtype("f8"),
        "generator state": np.random.default_rng(0).bit_generator.state,
    }


@pytest.mark.parametrize("name", things())
@every_protocol
def test_objects_do_not_block_what_lies_beside_them(name, protocol):
    try:
        raw = pickle.dumps({"before": 1, name: things()[name], "after": 2}, protocol)
    except TypeError:
        pytest.skip("Python cannot pickle it with this protocol")
    read = load(raw)
    assert (read["before"], read["after"]) == (1, 2)


@every_protocol
def test_what_an_object_was_to_be_is_told(protocol):
    read = load(pickle.dumps(argparse.Namespace(lr=0.1), protocol))
    assert str(read.made_by) == "argparse.Namespace"
    assert read.attributes == {"lr": 0.1}
    assert load(pickle.dumps(collections.Counter("aab"), protocol)) == {"a": 2, "b": 1}


def test_the_attributes_of_slots_are_told():
    slotted = things()["slotted"]
    assert load(pickle.dumps(slotted, 2)).attributes == {"a": 1}
    assert Opaque(Global("a", "b")).attributes == {}


class Arms:
    """Runs code where it is unpickled the ordinary way."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments"),
    [(os.system, ("touch {}",)), (eval, ("open({!r}, 'w')",)), (exec, ("open({!r}, 'w')",))],
)
@every_protocol
def test_nothing_is_run(tmp_path, function, arguments, protocol):
    marker = tmp_path / "ran"
    armed = Arms(function, arguments[0].format(str(marker)))
    read = load(pickle.dumps({"a": armed}, protocol))
    assert isinstance(read["a"], Opaque)
    assert read["a"].made_by.name == function.__name__
    assert not marker.exists()


def test_a_name_is_looked_up_as_it_is_written():
    for name in ("posix.system", "builtins.getattr", "torch.hub.load", "torch._utils.os.system"):
        read = load(pickled(Called(name, "x")))
        assert str(read.made_by) == name


def test_names_of_the_caller():
    names = {("mine", "Pair"): lambda a, b: ("pair", a, b), ("mine", "mark"): 7}
    raw = pickled([Called("mine.Pair", 1, 2), Name("mine.mark"), Name("mine.Pair")])
    assert load(raw, names=names) == [("pair", 1, 2), 7, Global("mine", "Pair")]


def test_a_callable_is_not_given_away():
    raw = pickled([Name("collections.OrderedDict"), Called("torch.Size", (1, 2))])
    assert load(raw) == [Global("collections", "OrderedDict"), (1, 2)]


def test_an_alias_is_one_object_and_a_cycle_is_harmless():
    shared, endless = [1], []
    endless.append(endless)
    state = {"a": shared, "b": shared, "c": endless}
    read = load(pickle.dumps(state))
    assert read["a"] is read["b"]
    assert read["c"][0] is read["c"]


def op(*parts):
    return b"".join(parts) + pickle.STOP


def text(value):
    raw = value.encode()
    return pickle.BINUNICODE + struct.pack("<L", len(raw)) + raw


E, N, M, K1 = pickle.EMPTY_DICT, pickle.NONE, pickle.MARK, pickle.BININT1 + b"\1"
OBJECT = pickle.GLOBAL + b"a\nb\n" + pickle.EMPTY_TUPLE + pickle.REDUCE
DAMAGE = {
    "nothing": b"",
    "no end": N,
    "an end without a value": op(),
    "an unknown operation": op(b"\xff"),
    "a protocol of the future": op(pickle.PROTO, b"\x06"),
    "text that is cut off": op(pickle.BINUNICODE, struct.pack("<L", 100)),
    "text of 2**62 bytes": op(pickle.BINUNICODE8, struct.pack("<Q", 1 << 62)),
    "bytes of 2**62 bytes": op(pickle.BINBYTES8, struct.pack("<Q", 1 << 62)),
    "bytes of 2**31 bytes": op(pickle.BINBYTES, struct.pack("<L", 1 << 31)),
    "a bytearray of 2**62 bytes": op(pickle.BYTEARRAY8, struct.pack("<Q", 1 << 62)),
    "text that is not UTF-8": op(pickle.SHORT_BINUNICODE, b"\1\xff"),
    "half of a surrogate pair": op(pickle.SHORT_BINUNICODE, b"\3\xed\xa0\x80"),
    "a huge integer": op(pickle.LONG4, struct.pack("<L", 2000), bytes(2000)),
    "a huge integer in digits": op(pickle.LONG, b"9" * 5000 + b"L\n"),
    "digits that are none": op(pickle.INT, b"x1\n"),
    "a number that is none": op(pickle.FLOAT, b"one\n"),
    "a line without an end": op(pickle.INT, b"1"),
    "text without quotes": op(pickle.STRING, b"abc\n"),
    "a number that is cut off": op(pickle.BININT, b"\1"),
    "a mark that is not there": op(pickle.TUPLE),
    "a tuple of too few": op(N, pickle.TUPLE2),
    "a tuple across a mark": op(N, M, N, pickle.TUPLE2),
    "a value kept of nothing": op(pickle.BINPUT, b"\0"),
    "a value that was not kept": op(pickle.BINGET, b"\7"),
    "kept under text": op(N, pickle.PUT, b"x\n"),
    "an item without a dict": op(K1, K1, pickle.SETITEM),
    "an item set in a list": op(pickle.EMPTY_LIST, K1, K1, pickle.SETITEM),
    "an item set in text": op(text("a"), K1, K1, pickle.SETITEM),
    "items set in a tuple": op(pickle.EMPTY_TUPLE, M, K1, K1, pickle.SETITEMS),
    "a key without a value": op(E, M, K1, pickle.SETITEMS),
    "a dict of a key without a value": op(M, K1, pickle.DICT),
    "appended to a dict": op(E, K1, pickle.APPEND),
    "appended to text": op(text("a"), M, K1, pickle.APPENDS),
    "added to a list": op(pickle.EMPTY_LIST, M, K1, pickle.ADDITEMS),
    "a list as a key": op(E, pickle.EMPTY_LIST, K1, pickle.SETITEM),
    "a dict in a set": op(pickle.EMPTY_SET, M, E, pickle.ADDITEMS),
    "a dict in a frozen set": op(M, E, pickle.FROZENSET),
    "a long tuple as a key": op(E, M, K1 * 20, pickle.TUPLE, K1, pickle.SETITEM),
    "a deep tuple as a key": op(E, K1, pickle.TUPLE1 * 100_000, K1, pickle.SETITEM),
    "a huge integer as a key": op(E, pickle.LONG1, b"\xff", b"\1" * 255, K1, pickle.SETITEM),
    "arguments that are no tuple": op(pickle.GLOBAL, b"a\nb\n", N, pickle.REDUCE),
    "a number that is called": op(K1, pickle.EMPTY_TUPLE, pickle.REDUCE),
    "a list that is called": op(pickle.EMPTY_LIST, pickle.EMPTY_TUPLE, pickle.NEWOBJ),
    "a name that is no text": op(K1, K1, pickle.STACK_GLOBAL),
    "a known name with wrong arguments": pickled(Called("torch.Size", 1, 2, 3)),
    "torch.Size of text": pickled(Called("torch.Size", "abc")),
    "very many arguments": pickled(Called("collections.OrderedDict", *range(100))),
    "named arguments that are no dict": op(
        *(pickle.GLOBAL, b"a\nb\n", pickle.EMPTY_TUPLE, N, pickle.NEWOBJ_EX)
    ),
    "an object of nothing": op(M, pickle.OBJ),
    "state for a number": op(K1, E, pickle.BUILD),
    "data outside": op(K1, pickle.BINPERSID),
    "data outside, by text": op(pickle.PERSID, b"1\n"),
    "an extension": op(pickle.EXT1, b"\1"),
    "a buffer outside": op(pickle.NEXT_BUFFER),
    "marks without end": M * 1000 + pickle.STOP,
    "a frame that is cut off": op(pickle.FRAME, b"\1"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused(name):
    with pytest.raises(CheckpointError, match=r"'bad\.pt' is damaged: .*\(byte [\d,]+, \w+\)"):
        load(DAMAGE[name], shown="bad.pt")


def test_the_error_names_the_operation_and_its_place():
    with pytest.raises(CheckpointError, match=r"a dict, which is no list \(byte 3, APPEND\)"):
        load(op(E, K1, pickle.APPEND))


ODD = {
    "an object that is called": (op(OBJECT, pickle.EMPTY_TUPLE, pickle.REDUCE), Opaque),
    "items of an object": (op(OBJECT, M, K1, pickle.APPENDS, K1, K1, pickle.SETITEM), Opaque),
    "an object as a key": (op(E, OBJECT, K1, pickle.SETITEM), dict),
    "an object with named arguments": (
        op(pickle.GLOBAL, b"a\nb\n", pickle.EMPTY_TUPLE, E, text("x"), K1, pickle.SETITEM,
           pickle.NEWOBJ_EX),
        Opaque,
    ),
    "an old instance": (op(M, K1, pickle.INST, b"a\nb\n", E, pickle.BUILD), Opaque),
    "an old object": (op(M, pickle.GLOBAL, b"a\nb\n", K1, pickle.OBJ), Opaque),
    "state of a dict": (op(E, E, pickle.BUILD), dict),
    "a value thrown away": (op(N, K1, pickle.POP, M, K1, pickle.POP_MARK), type(None)),
    "a mark thrown away": (op(N, M, pickle.POP), type(None)),
    "a value twice": (op(K1, pickle.DUP, pickle.TUPLE2), tuple),
    "old text": (op(pickle.STRING, b"'a\\n'\n", pickle.POP, pickle.SHORT_BINSTRING, b"\1a"), str),
    "old bytes": (op(pickle.SHORT_BINSTRING, b"\1\xff"), bytes),
    "a billion laughs": (
        op(pickle.EMPTY_LIST, (pickle.DUP + pickle.DUP + pickle.TUPLE2) * 50_000), tuple,
    ),
    "a deep tuple": (op(K1, pickle.TUPLE1 * 300_000), tuple),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_but_harmless(name):
    raw, kind = ODD[name]
    assert type(load(raw)) is kind


@pytest.mark.parametrize("name", ["builtins.bytearray", "__builtin__.bytearray", "builtins.bytes"])
def test_a_bytearray_of_stated_size_is_not_made(name):
    read = load(pickled(Called(name, 8 << 30)))
    assert read.arguments == (8 << 30,)


def test_text_is_not_encoded_again_and_again():
    read = load(pickled([Called("_codecs.encode", "x" * 100, "latin1")]))
    assert isinstance(read[0], Opaque)


def test_limits(monkeypatch):
    limits = base.LIMITS._replace(pickle_operations=10, pickle_bytes=100)
    monkeypatch.setattr(pickle_machine, "LIMITS", limits)
    monkeypatch.setattr(pickles, "LIMITS", limits)
    with pytest.raises(CheckpointError, match="more than 10 operations"):
        load(op(N * 20))
    with pytest.raises(CheckpointError, match="has 101 bytes; at most 100 are read"):
        load(bytes(101))


def test_every_operation_of_python_is_known_or_refused_on_purpose():
    known = {code[0] for code in pickle_machine._OPCODES} | {pickle.STOP[0]}
    every = {ord(operation.code) for operation in pickletools.opcodes}
    refused = {"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
    assert {pickletools.code2op[chr(code)].name for code in every - known} == refused


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(raw):
    with contextlib.suppress(CheckpointError):
        load(raw)
