"""torch's zip format, read without torch.load: lazily, and without running anything.

The archive holds a pickle, whose tensors say storage, offset, shape and strides, and one entry a
storage. A contiguous tensor is read in place, straight from the file; one behind strides is
gathered; one in a deflated entry is unpacked.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from polyfuse.checkpoints import archive, pickles
from polyfuse.checkpoints.archive import Entry
from polyfuse.checkpoints.base import LIMITS, Check, File, Raw, Source, TensorInfo, is_file_name
from polyfuse.checkpoints.pickles import Global
from polyfuse.checkpoints.views import Packed, Strided
from polyfuse.dtypes import DTYPES, DType, item
from polyfuse.errors import CheckpointError, printable

EXPANSION = 64  # bytes of a tensor to bytes of its storage: `expand` repeats elements
SMALL = 64 << 20  # bytes of a tensor that are bearable however small its storage
_NUMBER_BYTES = 4096  # of a storage that is read for the one number in it
_HUGE = 1 << 63

_STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexDouble": "complex128",
    "ComplexFloat": "complex64",
}
_LATER = (  # dtypes without a storage of their own; some are younger than our oldest torch
    *("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"),
    *("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
_KINDS = {
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_sparse_csr_tensor": "sparse",
    "_rebuild_nested_tensor": "nested",
    "_rebuild_qtensor": "quantised",
    "_rebuild_meta_tensor_no_storage": "meta",
    "_rebuild_wrapper_subclass": "subclass",
    "_rebuild_device_tensor_from_numpy": "device",
    "_rebuild_device_tensor_from_cpu_tensor": "device",
    "_rebuild_xla_tensor": "device",  # this and the next two: written by older versions
    "_rebuild_hpu_tensor": "device",
    "_rebuild_mlc_tensor": "device",
}
_FIXES = {
    "sparse": "save tensor.to_dense() in its place",
    "nested": "save the tensors of tensor.unbind() in its place",
    "quantised": "save tensor.dequantize() in its place",
    "meta": "it has no data: save the model after its weights were loaded",
    "device": "save tensor.cpu() in its place",
}


class StorageKind(NamedTuple):
    """A class of storages: the dtype of its elements."""

    dtype: DType


class Storage(NamedTuple):
    """A storage as the pickle refers to it; nothing of it is checked yet."""

    kind: Any
    key: Any
    count: Any


class TensorRecord(NamedTuple):
    """A tensor as the pickle states it; nothing of it is checked yet."""

    storage: Any
    dtype: Any
    offset: Any
    shape: Any
    strides: Any
    flips: Any = None


class Unreadable(NamedTuple):
    """A tensor of a kind that cannot be averaged as it is."""

    kind: str
    fix: str


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> TensorRecord:
    dtype = getattr(getattr(storage, "kind", None), "dtype", None)  # rest: requires_grad, hooks
    return TensorRecord(storage, dtype, offset, shape, strides, *rest[2:3])


def _tensor3(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *m: Any
) -> TensorRecord:
    return TensorRecord(storage, dtype, offset, shape, strides, *m[:1])


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _of_type(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """Return a tensor that has attributes, which are dropped; or is of a subclass."""
    make = NAMES.get(function) if isinstance(function, Global) else None
    if not isinstance(kind, Global) or not isinstance(arguments, tuple) or len(arguments) > 9:
        raise ValueError("a tensor of something that is not a class")
    if kind == ("torch", "Tensor") and make in (_tensor, _tensor3):
        return make(*arguments)
    return Unreadable(printable(kind), "save a plain tensor in its place")


def _unreadable(name: str) -> Callable[..., Unreadable]:
    kind = _KINDS[name]
    return lambda *_: Unreadable(kind, _FIXES.get(kind, "save a plain tensor in its place"))


_READABLE = {name: DTYPES[name] for name in (*_STORAGES.values(), *_LATER)}

NAMES: Final[Mapping[tuple[str, str], Any]] = {
    **pickles.PLAIN,
    **{("torch", name): dtype for name, dtype in _READABLE.items()},
    **{
        ("torch", f"{name}Storage"): StorageKind(DTYPES[dtype]) for name, dtype in _STORAGES.items()
    },
    ("torch.storage", "UntypedStorage"): StorageKind(DTYPES["uint8"]),
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor3,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _of_type,
    **{("torch._utils", name): _unreadable(name) for name in _KINDS},
}


class TorchZip(NamedTuple):
    """A torch zip file, opened.

    Attributes:
        file: that holds it.
        tree: what was saved, with a `TensorRecord` or `Unreadable` for each tensor.
        prefix: of all names in the archive.
        entries: of the archive.
    """

    file: File
    tree: Any
    prefix: str
    entries: Mapping[str, Entry]

    def entry(self, record: TensorRecord) -> Entry:
        """Return the entry with a tensor's storage.

        Raises:
            ValueError: there is none, or it is not as long as stated.
        """
        storage = record.storage
        if not isinstance(storage, Storage) or not isinstance(storage.kind, StorageKind):
            raise ValueError("it lies in a storage of an unknown kind")
        if not is_file_name(storage.key):
            shown = printable(storage.key) if isinstance(storage.key, str) else "not even text"
            raise ValueError(f"its storage's key '{shown}' is no name")
        entry = self.entries.get(f"{self.prefix}/data/{storage.key}")
        if entry is None:
            raise ValueError(f"its storage '{printable(storage.key)}' is not in the archive")
        _natural("storage size", storage.count)
        if entry.size != storage.count * storage.kind.dtype.itemsize:
            stated = storage.count * storage.kind.dtype.itemsize
            raise ValueError(f"its storage has {entry.size:,} bytes, stated are {stated:,}")
        return entry

    def tensor(self, record: TensorRecord | Unreadable) -> TensorInfo:
        """Return where a tensor's elements are, after checking all that is stated of it.

        Raises:
            ValueError: its kind cannot be read, or its numbers contradict the archive.
        """
        if isinstance(record, Unreadable):
            raise ValueError(f"it is a {record.kind} tensor; {record.fix}")
        entry = self.entry(record)
        if not isinstance(record.dtype, DType):
            shown = printable(record.dtype) if isinstance(record.dtype, Global) else "unknown"
            raise ValueError(f"its dtype, {shown}, cannot be averaged; save tensor.float() instead")
        _check_numbers(record, entry.size)
        offset = record.offset * record.dtype.itemsize
        source = self._place(record, entry, offset)
        return TensorInfo(record.dtype, record.shape, source, (0, entry.offset + offset))

    def _place(self, record: TensorRecord, entry: Entry, offset: int) -> Source:
        conjugated, negated = _flips(record)
        if conjugated or negated or not _is_contiguous(record.shape, record.strides):
            shape, strides = record.shape or (1,), record.strides or (1,)
            return Strided(
                self.file, entry, offset, record.dtype, shape, strides, conjugated, negated
            )
        if entry.deflated:
            return Packed(self.file, entry, offset)
        return Raw(self.file, entry.offset + offset)

    def check(self, record: TensorRecord) -> Check | None:
        """Return what the directory says of a tensor's storage; None where reading checks it."""
        entry = self.entry(record)
        if entry.deflated:
            return None
        return Check(self.file, entry.offset, entry.size, entry.crc, entry.name)

    def number(self, record: TensorRecord) -> float | int | None:
        """Return the number in a tensor of one element; None for any other tensor.

        Raises:
            ValueError: as for `tensor`.
            CheckpointError: it is damaged.
        """
        info, entry = self.tensor(record), self.entry(record)
        if info.count != 1 or entry.size > _NUMBER_BYTES or info.dtype.is_complex:
            return None
        archive.read_entry(self.file, entry, _NUMBER_BYTES)  # checks the CRC
        out = info.dtype.empty(1)
        info.source.fill(out, 0)
        return item(out, info.dtype)


def _natural(what: str, number: Any) -> None:
    if type(number) is not int or not 0 <= number < _HUGE:
        shown = printable(number) if type(number) is int else f"a {type(number).__name__}"
        raise ValueError(f"its {what} is {shown}, not a count")


def _check_numbers(record: TensorRecord, size: int) -> None:
    """Refuse offset, shape and strides that reach outside of `size` bytes, or are absurd."""
    shape, strides, itemsize = record.shape, record.strides, record.dtype.itemsize
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides):
        raise ValueError("its shape and strides do not fit together")
    if len(shape) > LIMITS.rank:
        raise ValueError(f"it has {len(shape)} dimensions, more than {LIMITS.rank}")
    for what, numbers in (("offset", (record.offset,)), ("shape", shape), ("stride", strides)):
        for number in numbers:
            _natural(what, number)
    if math.prod(n or 1 for n in shape) * itemsize >= _HUGE:
        raise ValueError(f"its shape {printable(shape)} is too large")
    count = math.prod(shape)
    reach = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1
    if (record.offset + (reach if count else 0)) * itemsize > size:
        raise ValueError(
            f"it reaches to element {record.offset + reach:,} of a storage of {size:,} bytes"
        )
    if count * itemsize > max(SMALL, EXPANSION * size):
        raise ValueError(
            f"it repeats {size:,} bytes of storage as {count * itemsize:,}, more than {EXPANSION} "
            "times; save tensor[:1] in its place, and expand it after loading"
        )


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1 and stride != expected:
            return 0 in shape
        expected *= n
    return True


def _flips(record: TensorRecord) -> tuple[bool, bool]:
    """Return whether a tensor is to be conjugated, and negated, when it is read."""
    flips = record.flips or {}
    if type(flips) is not dict or not flips.keys() <= {"conj", "neg"}:
        raise ValueError("it has properties that are unknown")
    conjugated = bool(flips.get("conj", False))
    if conjugated and not record.dtype.is_complex:
        raise ValueError("it is conjugated, but not complex")
    return conjugated, bool(flips.get("neg", False))


def _storage(identity: Any) -> Storage:
    """Return a storage for the persistent id that torch gives it; where it was is ignored."""
    if type(identity) is not tuple or len(identity) != 5 or identity[0] != "storage":
        raise ValueError("a reference to something else than a storage")
    _, kind, key, _, count = identity
    return Storage(kind, key, count)


def read_tree(file: File, start: int = 0, length: int | None = None) -> TorchZip:
    """Read what torch.save saved, but no tensor data.

    Args:
        file: that holds the archive.
        start: where the archive begins in it.
        length: of the archive; to the end of the file where not given.

    Raises:
        CheckpointError: damaged, of another byte order, or no archive of torch.save.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "a.pt"
        >>> torch.save({"w": torch.arange(12.0)[::3], "epoch": 3}, path)
        >>> opened = read_tree(File(path))
        >>> opened.tree["epoch"], opened.tree["w"].strides
        (3, (3,))
    """
    entries = archive.read_directory(file, start, length)
    prefix = _prefix(file, entries)
    _check_version(file, prefix, entries)
    entry = entries[f"{prefix}/data.pkl"]
    raw = archive.read_entry(file, entry, LIMITS.pickle_bytes)
    tree = pickles.load(raw, names=NAMES, persistent=_storage, shown=file.shown)
    return TorchZip(file, tree, prefix, entries)


def _prefix(file: File, entries: Mapping[str, Entry]) -> str:
    """Return the folder in the archive, which keeps the name that the file was saved under."""
    found = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    prefix = next(iter(entries), "").partition("/")[0]
    if f"{prefix}/constants.pkl" in entries:
        raise _not_plain(file, "is a TorchScript archive", "torch.jit.load('{}').state_dict()")
    if any(name.endswith(".data/extern_modules") for name in entries):
        raise _not_plain(file, "is a torch.package archive", "model.state_dict()")
    if len(found) != 1 or any(not name.startswith(f"{prefix}/") for name in entries):
        raise _not_plain(file, "is a zip archive, but not one of torch.save", "model.state_dict()")
    return prefix


def _not_plain(file: File, fact: str, state: str) -> CheckpointError:
    state = state.format(file.shown)
    return CheckpointError(
        f"'{file.shown}' {fact}; where you trust it, load it with what wrote it, then type: "
        f"torch.save({state}, 'weights.pt')"
    )


def _check_version(file: File, prefix: str, entries: Mapping[str, Entry]) -> None:
    def record(name: str, default: str) -> str:
        entry = entries.get(f"{prefix}/{name}")
        return archive.read_entry(file, entry, 64).decode("latin1") if entry else default

    version = record("version", "").strip()
    if not (version.isascii() and version.isdigit() and 1 <= int(version) <= 10):
        raise CheckpointError(
            f"'{file.shown}' has version '{printable(version)}' of torch's zip format, not one of "
            "1 to 10; save it again with torch.save"
        )
    order = record("byteorder", "little")
    if order != "little":
        raise CheckpointError(
            f"'{file.shown}' was saved with byte order '{printable(order)}'; only 'little' is "
            "read: on the machine that saved it, type: torch.serialization."
            "set_default_load_endianness(torch.serialization.LoadEndianness.BIG), then load it "
            "and save it with safetensors.torch.save_file"
        )
