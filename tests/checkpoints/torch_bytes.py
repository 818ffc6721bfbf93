"""Torch files by hand, for tests: pickles of any operations, zip archives with any fault."""

import io
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import torch


class Called:
    """Pickles as a call of a name that need not exist."""

    def __init__(self, name, *arguments):
        self.name, self.arguments = name, arguments


class Pickler(pickle._Pickler):
    """Python's own pickler in Python, taught to write what is not there."""

    def save(self, value, save_persistent_id=True):
        if not isinstance(value, Called):
            return super().save(value, save_persistent_id)
        self.write(pickle.GLOBAL + "{}\n{}\n".format(*value.name.rsplit(".", 1)).encode())
        if value.arguments == ("storage",):
            return None
        self.save(value.arguments)
        return self.write(pickle.REDUCE)


class Name(Called):
    """Pickles as a name, without a call."""

    def __init__(self, name):
        super().__init__(name, "storage")


class Stored:
    """Pickles as a reference to a storage."""

    def __init__(self, kind="Float", key="0", count=4, place="cpu"):
        name = kind if "." in kind else f"torch.{kind}Storage"
        self.identity = ("storage", Name(name), key, place, count)


class StoragePickler(Pickler):
    def persistent_id(self, value):
        return value.identity if isinstance(value, Stored) else None


def pickled(value, protocol=2):
    out = io.BytesIO()
    StoragePickler(out, protocol).dump(value)
    return out.getvalue()


def tensor(storage=None, offset=0, shape=(4,), strides=(1,), *more):
    """Pickles as a float tensor over a storage of four floats."""
    rest = (False, {}, *more)
    storage = storage or Stored()
    return Called("torch._utils._rebuild_tensor_v2", storage, offset, shape, strides, *rest)


FLOATS = struct.pack("<4f", 0, 1, 2, 3)


def records(value, storages=None, protocol=2, prefix="a"):
    """Return the records of a torch file, by name."""
    raw = value if isinstance(value, bytes) else pickled(value, protocol)
    storages = {"0": FLOATS} if storages is None else storages
    data = {f"{prefix}/data/{key}": raw for key, raw in storages.items()}
    own = {f"{prefix}/data.pkl": raw, f"{prefix}/byteorder": b"little"}
    return own | data | {f"{prefix}/version": b"3\n"}


def archive(entries, deflate=()):
    """Return a zip archive, and accept a name twice where `entries` is a list of pairs."""
    out = io.BytesIO()
    pairs = entries.items() if isinstance(entries, dict) else entries
    with zipfile.ZipFile(out, "w") as made:
        for name, raw in pairs:
            method = zipfile.ZIP_DEFLATED if name in deflate else zipfile.ZIP_STORED
            info = zipfile.ZipInfo(name)
            made._didModify = True
            info.compress_type = method
            made.NameToInfo.pop(name, None)  # zipfile warns of a name twice
            made.writestr(info, raw)
    return out.getvalue()


def torch_file(folder: Path, value, storages=None, *, deflate=(), **options) -> Path:
    """Write a torch file of what `value` pickles as."""
    path = folder / "a.pt"
    path.write_bytes(archive(records(value, storages, **options), deflate))
    return path


def saved(folder: Path, value, **options) -> Path:
    """Write a torch file with torch itself."""
    path = folder / "a.pt"
    torch.save(value, path, **options)
    return path


def deflated(path: Path) -> Path:
    """Write a torch file again with all entries deflated, as `zip` would."""
    with zipfile.ZipFile(path) as before:
        entries = {info.filename: before.read(info) for info in before.infolist()}
    path.write_bytes(archive(entries, deflate=entries))
    return path


def resealed(path: Path, name: str, change) -> Path:
    """Change the data of a stored entry, and its CRC too, so that only the content is odd."""
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as found:
        info = next(i for i in found.infolist() if i.filename.endswith(name))
    start = info.header_offset
    named, extra = struct.unpack_from("<2H", raw, start + 26)
    data = start + 30 + named + extra
    raw[data : data + info.file_size] = change(bytes(raw[data : data + info.file_size]))
    old = struct.pack("<L", info.CRC)
    new = struct.pack("<L", zlib.crc32(raw[data : data + info.file_size]))
    path.write_bytes(bytes(raw).replace(old, new))
    return path
