"""What a pickle is read into: plain values, and inert records of everything else."""

import codecs
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

_LONG_BYTES = 1024  # of an integer; hashing and printing longer ones takes time
_KEY_DEPTH = 2  # of tuples in tuples in a key; hashing deeper ones uses up the C stack
_KEY_ITEMS = 8
_SCALARS = {
    **{f"f{n}": code for n, code in ((2, "e"), (4, "f"), (8, "d"))},
    **{f"i{n}": code for n, code in ((1, "b"), (2, "h"), (4, "i"), (8, "q"))},
    **{f"u{n}": code for n, code in ((1, "B"), (2, "H"), (4, "I"), (8, "Q"))},
    "b1": "?",
}


class Global(NamedTuple):
    """The name of a class or function that a pickle refers to."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Opaque:
    """An object that was not built.

    Attributes:
        made_by: the class or function that was to make it.
        arguments: that it was to be given.
        state: that the object was to be filled with; None where there was none.
    """

    __slots__ = ("arguments", "made_by", "state")

    def __init__(self, made_by: Global, arguments: tuple[Any, ...] = ()) -> None:
        """Remember what was asked for."""
        self.made_by: Final = made_by
        self.arguments: Final = arguments
        self.state: Any = None

    @property
    def attributes(self) -> dict[Any, Any]:
        """The attributes that the object was to have; none where its state is of another form."""
        state = self.state
        if isinstance(state, tuple) and len(state) == 2:  # of __dict__, and of __slots__
            state = state[0] or state[1]
        return state if isinstance(state, dict) else {}

    def __repr__(self) -> str:  # its contents may be endless
        return f"<{self.made_by}>"


def _encoded(text: object, encoding: object = None) -> Any:
    """Return short bytes; protocols below 3 write bytes as Latin-1 text."""
    if isinstance(text, str) and encoding == "latin1" and len(text) <= 64:
        return text.encode("latin1")
    return Opaque(Global("_codecs", "encode"), (text, encoding))


def _no_bytes(*arguments: object) -> Any:
    """Return empty bytes, which protocols below 3 write as a call; others would be allocated."""
    return Opaque(Global("builtins", "bytes"), arguments) if arguments else b""


def _scalar(dtype: object, data: object = None) -> Any:
    """Return the number in a numpy scalar."""
    if isinstance(dtype, Opaque) and isinstance(data, bytes) and dtype.arguments:
        name, state = dtype.arguments[0], dtype.state
        big = isinstance(state, tuple) and len(state) > 1 and state[1] in (">",)
        order, code = ">" if big else "<", _SCALARS.get(name, "") if isinstance(name, str) else ""
        if code and struct.calcsize(code) == len(data):
            return struct.unpack(order + code, data)[0]
    return Opaque(Global("numpy", "generic"), (dtype, data))


def _empty_dict(*arguments: object) -> Any:
    """Return an empty dict; contents come by later operations, except from other writers."""
    if arguments and not isinstance(arguments[0], Global):
        return Opaque(Global("builtins", "dict"), arguments)
    return {}


def _counter(counts: object = None) -> Any:
    return counts if isinstance(counts, dict) else {}


def _shape(sizes: object = ()) -> Any:
    if not isinstance(sizes, tuple):
        raise ValueError("torch.Size of something else than a tuple")
    return sizes


def _reconstructed(made_by: object, *_: object) -> Any:
    """Return what protocols 0 and 1 make objects of plain classes with."""
    if not isinstance(made_by, Global):
        raise ValueError("an object of something that is not a class")
    return Opaque(made_by)


PLAIN: Mapping[tuple[str, str], Callable[..., Any] | Any] = {
    ("collections", "OrderedDict"): _empty_dict,
    ("collections", "defaultdict"): _empty_dict,
    ("collections", "Counter"): _counter,
    ("torch", "Size"): _shape,
    ("_codecs", "encode"): _encoded,
    ("builtins", "bytes"): _no_bytes,
    ("__builtin__", "bytes"): _no_bytes,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("copyreg", "_reconstructor"): _reconstructed,
    ("copy_reg", "_reconstructor"): _reconstructed,
}


def text(raw: bytes) -> str:
    """Return text; it must be UTF-8, without halves of surrogate pairs."""
    return raw.decode()


def old_text(raw: bytes) -> str | bytes:
    """Return text of Python 2, which made no difference between text and bytes."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def quoted(line: bytes) -> str | bytes:
    """Return the text of Python 2 that a literal stands for."""
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise ValueError("text without quotes")
    return old_text(codecs.escape_decode(line[1:-1])[0])


def escaped(line: bytes) -> str:
    """Return text written with backslashes."""
    return line.decode("raw-unicode-escape")


def integer(line: bytes) -> int | bool:
    """Return a written integer; two of them are booleans."""
    return line == b"01" if line in (b"00", b"01") else int(line)


def long_line(line: bytes) -> int:
    """Return a written integer that may end with an L."""
    return int(line.removesuffix(b"L"))


def long(raw: bytes) -> int:
    """Return a little-endian integer of bounded length."""
    if len(raw) > _LONG_BYTES:
        raise ValueError(f"an integer of {len(raw):,} bytes, more than {_LONG_BYTES:,}")
    return int.from_bytes(raw, "little", signed=True)


def key(item: Any, depth: int = 0) -> Any:
    """Return a key of a dict or item of a set, if hashing it is cheap."""
    if isinstance(item, list | dict | set | bytearray):
        raise ValueError(f"a {type(item).__name__} as a key")
    if isinstance(item, int) and not -(1 << 63) < item < 1 << 64:
        raise ValueError("a huge integer as a key")
    if isinstance(item, tuple):
        if len(item) > _KEY_ITEMS or depth >= _KEY_DEPTH:
            raise ValueError("a long or deep tuple as a key")
        for part in item:
            key(part, depth + 1)
    return item
