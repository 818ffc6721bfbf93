"""The zip directory: what torch and zip write is read, and whatever is ambiguous is refused."""

import io
import struct
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_bytes import archive

from polyfuse.checkpoints.archive import Entry, fill, read_directory, read_entry
from polyfuse.checkpoints.base import File
from polyfuse.errors import CheckpointError

TWO = {"a/one": b"first data", "a/two": b"second, longer data"}
END, CENTRAL, LOCAL = b"PK\5\6", b"PK\1\2", b"PK\3\4"


def opened(folder, raw):
    path = folder / "a.zip"
    path.write_bytes(raw)
    return File(path)


def edited(raw, sign, offset, code, value, number=0):
    """Return the archive with one field of its n-th record of a kind overwritten."""
    at = -1
    for _ in range(number + 1):
        at = raw.index(sign, at + 1)
    out = bytearray(raw)
    struct.pack_into(code, out, at + offset, value)
    return bytes(out)


def all_data(file, directory):
    return {name: read_entry(file, entry, 1 << 30) for name, entry in directory.items()}


@pytest.mark.parametrize("deflate", [(), tuple(TWO)])
def test_what_zipfile_writes_is_read(tmp_path, deflate):
    file = opened(tmp_path, archive(TWO, deflate))
    assert all_data(file, read_directory(file)) == TWO


def test_what_torch_writes_is_read(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.arange(1000.0), "b": torch.ones(3)}, path)
    file = File(path)
    with zipfile.ZipFile(path) as other:
        want = {name: other.read(name) for name in other.namelist()}
    assert all_data(file, read_directory(file)) == want


def test_what_is_written_to_a_stream_is_read(tmp_path):
    class Stream(io.BytesIO):
        def seekable(self):
            return False

        def seek(self, *_):
            raise io.UnsupportedOperation

        tell = seek

    stream = Stream()
    with zipfile.ZipFile(stream, "w") as made:
        for name, raw in TWO.items():
            made.writestr(name, raw)
    file = opened(tmp_path, stream.getvalue())
    assert all_data(file, read_directory(file)) == TWO


def test_zip64_sizes_in_both_headers_are_read(tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made, made.open("a", "w", force_zip64=True) as entry:
        entry.write(b"wide")
    file = opened(tmp_path, out.getvalue())
    assert all_data(file, read_directory(file)) == {"a": b"wide"}


def test_zip64_sizes_in_the_directory_are_read(tmp_path):
    raw = archive({"a": b"wide"})
    at, end = raw.index(CENTRAL), raw.index(END)
    extra = struct.pack("<2H3Q", 1, 24, 4, 4, 0)
    central = bytearray(raw[at:end])
    struct.pack_into("<2L", central, 20, 0xFFFFFFFF, 0xFFFFFFFF)
    struct.pack_into("<H", central, 30, len(extra))
    struct.pack_into("<L", central, 42, 0xFFFFFFFF)
    tail = edited(raw[end:], END, 12, "<L", len(central) + len(extra))
    file = opened(tmp_path, raw[:at] + central + extra + tail)
    assert all_data(file, read_directory(file)) == {"a": b"wide"}


def test_an_archive_inside_a_larger_file(tmp_path):
    inner = archive(TWO)
    file = opened(tmp_path, b"x" * 100 + inner + archive({"other": b"data"}))
    assert all_data(file, read_directory(file, 100, len(inner))) == TWO
    with pytest.raises(CheckpointError, match=r"at byte 100: "):
        read_directory(file, 100, len(inner) - 1)


def test_entries_beyond_the_stretch(tmp_path):
    raw = archive(TWO)
    file = opened(tmp_path, edited(raw, CENTRAL, 42, "<L", len(raw) + 5) + b"x" * 999)
    with pytest.raises(CheckpointError, match="outside of it"):
        read_directory(file, 0, len(raw))


def local(offset, code, value, number=0):
    return lambda raw: edited(raw, LOCAL, offset, code, value, number)


def central(offset, code, value, number=0):
    return lambda raw: edited(raw, CENTRAL, offset, code, value, number)


def end(offset, code, value):
    return lambda raw: edited(raw, END, offset, code, value)


def both(*changes):
    def change(raw):
        for one in changes:
            raw = one(raw)
        return raw

    return change


def sizes(value, number=0):
    """State another size of a stored entry, everywhere."""
    headers = (local(at, "<L", value, number) for at in (18, 22))
    return both(*headers, *(central(at, "<L", value, number) for at in (20, 24)))


DAMAGE = {
    "truncated": (lambda raw: raw[:-30], "end record is missing"),
    "truncated in the end record": (lambda raw: raw[:-1], "end record"),
    "bytes after the end": (lambda raw: raw + b"more", "not at its end"),
    "one byte": (lambda raw: raw[:1], "end record is missing"),
    "encrypted": (both(local(6, "<H", 1), central(8, "<H", 1)), "encrypted"),
    "an unknown method": (both(local(8, "<H", 12), central(10, "<H", 12)), "method 12"),
    "another method in the local header": (local(8, "<H", 8), "packed in another way"),
    "another flag in the local header": (local(6, "<H", 8), "packed in another way"),
    "another size in the local header": (local(22, "<L", 9), "another size or CRC"),
    "another packed size in the local header": (local(18, "<L", 9), "another size or CRC"),
    "another CRC in the local header": (local(14, "<L", 9), "another size or CRC"),
    "another name in the local header": (lambda raw: raw.replace(b"one", b"owe", 1), "no such"),
    "a place without an entry": (central(42, "<L", 3), "no such entry"),
    "the place of another entry": (central(42, "<L", 45), "no such entry"),
    "a stored entry of two sizes": (central(24, "<L", 9), "two sizes"),
    "data beyond the archive": (sizes(5000), "end after it"),
    "data that reach into the next entry": (sizes(40), "'a/one' and 'a/two' overlap"),
    "data that reach into the directory": (sizes(60, 1), "the directory overlap"),
    "two entries at one place": (
        both(lambda raw: raw.replace(b"two", b"one"), central(42, "<L", 0, 1)),
        "another size or CRC",
    ),
    "a directory that is too short": (end(12, "<L", 20), "its directory does not end"),
    "fewer entries than there are": (both(end(8, "<H", 1), end(10, "<H", 1)), "more than the 1 "),
    "more entries than there are": (both(end(8, "<H", 3), end(10, "<H", 3)), "damaged at byte"),
    "several disks": (end(4, "<H", 1), "several parts"),
    "several disks by count": (end(8, "<H", 1), "several parts"),
    "a directory at another place": (end(16, "<L", 7), "does not end where"),
    "a name with a newline": (lambda raw: raw.replace(b"a/one", b"a/o\ne"), "is no name"),
    "a name that is not UTF-8": (lambda raw: raw.replace(b"a/one", b"a/o\xffe"), "not UTF-8"),
    "a NUL in a name": (lambda raw: raw.replace(b"a/one", b"a/o\0e"), "is no name"),
    "zip64 sizes that are missing": (central(24, "<L", 0xFFFFFFFF), "lacks its zip64 sizes"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused(tmp_path, name):
    damage, message = DAMAGE[name]
    file = opened(tmp_path, damage(archive(TWO)))
    with pytest.raises(CheckpointError, match=message) as error:
        read_directory(file)
    assert "a.zip" in str(error.value)
    assert "fetch it again" in str(error.value)


def test_a_name_twice_is_refused(tmp_path):
    file = opened(tmp_path, archive([("a", b"1"), ("b", b"2"), ("a", b"3")]))
    with pytest.raises(CheckpointError, match="'a' is in it twice"):
        read_directory(file)


@pytest.mark.parametrize(
    ("sign", "offset", "code", "value"),
    [
        (b"PK\6\7", 8, "<Q", 0),  # place of the end record
        (b"PK\6\7", 16, "<L", 2),  # disks
        (b"PK\6\6", 4, "<Q", 45),  # its size
        (b"PK\6\6", 24, "<Q", 2),  # entries on this disk
        (b"PK\6\6", 16, "<L", 1),  # number of this disk
        (b"PK\6\6", 48, "<Q", 1),  # place of the directory
        (b"PK\6\6", 40, "<Q", 1 << 62),  # size of the directory
    ],
)
def test_damage_to_zip64_records_is_refused(tmp_path, sign, offset, code, value):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(3)}, path)
    file = opened(tmp_path, edited(path.read_bytes(), sign, offset, code, value))
    with pytest.raises(CheckpointError, match="no sound zip archive"):
        read_directory(file)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    file = opened(tmp_path, archive({"a": bytes(2 << 20)}, ("a",)))
    with pytest.raises(CheckpointError, match="more than 64 times as many"):
        read_directory(file)


def test_little_data_may_be_packed_well(tmp_path):
    file = opened(tmp_path, archive({"a": bytes(1 << 20)}, ("a",)))
    assert read_entry(file, read_directory(file)["a"], 1 << 20) == bytes(1 << 20)


def test_a_bomb_that_states_a_small_size_is_stopped(tmp_path):
    raw = archive({"a": bytes(1 << 20)}, ("a",))
    raw = edited(edited(raw, LOCAL, 22, "<L", 100), CENTRAL, 24, "<L", 100)
    file = opened(tmp_path, raw)
    with pytest.raises(CheckpointError, match="more than the 100 bytes stated"):
        read_entry(file, read_directory(file)["a"], 1 << 30)


@pytest.mark.parametrize("deflate", [(), ("a",)])
def test_a_flipped_bit_is_found(tmp_path, deflate):
    raw = bytearray(archive({"a": b"hello, hello, hello" * 9}, deflate))
    raw[40] ^= 4
    file = opened(tmp_path, bytes(raw))
    with pytest.raises(CheckpointError, match=r"'a' in '.*a\.zip' is damaged"):
        read_entry(file, read_directory(file)["a"], 1 << 30)


def test_more_than_the_caller_wants_is_refused(tmp_path):
    file = opened(tmp_path, archive(TWO))
    with pytest.raises(CheckpointError, match=r"has 10 bytes; at most 9 are read"):
        read_entry(file, read_directory(file)["a/one"], 9)


def packed_entry(tmp_path, raw, size):
    """Return an entry that states as packed data bytes that need not be so."""
    file = opened(tmp_path, raw)
    return file, Entry("a", 0, 0, len(raw), size, 0, True)


@pytest.mark.parametrize(
    ("raw", "message"),
    [(b"", "too early"), (b"\x03\x00x", "go on after"), (b"\xff\xff", "cannot be unpacked")],
)
def test_packed_data_that_are_none(tmp_path, raw, message):
    file, entry = packed_entry(tmp_path, raw, 0)
    with pytest.raises(CheckpointError, match=message):
        fill(file, entry, 0, memoryview(bytearray()))


def test_a_part_beyond_the_entry_is_refused(tmp_path):
    file = opened(tmp_path, archive(TWO))
    with pytest.raises(CheckpointError, match="only 10 bytes"):
        fill(file, read_directory(file)["a/one"], 8, memoryview(bytearray(3)))


@given(st.binary(max_size=200), st.booleans(), st.data())
def test_any_part_of_an_entry_is_read(tmp_path_factory, raw, deflate, data):
    file = opened(tmp_path_factory.mktemp("a"), archive({"a": raw}, ("a",) if deflate else ()))
    start = data.draw(st.integers(0, len(raw)))
    out = bytearray(data.draw(st.integers(0, len(raw) - start)))
    fill(file, read_directory(file)["a"], start, memoryview(out))
    assert out == raw[start : start + len(out)]
