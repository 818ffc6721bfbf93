"""Mutate small torch files and read them: a right checkpoint or a PolyfuseError, nothing else.

    python tests/checkpoints/fuzz_torch.py --count 100000 --seed 0

The pickle is mutated most, then the zip directory, then anything. Most files with a mutated pickle
get its right CRC, and some are packed anew, so that the mutation reaches the pickle reader. What is
right: every tensor that is found is read within the file; where only the directory was touched
and the CRCs are right, the tensors are the original ones; and no file takes long or much memory.
"""

import argparse
import io
import os
import random
import resource
import signal
import struct
import tempfile
import time
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch_bytes import Called, archive, pickled, records, tensor

from polyfuse.checkpoints.torch_files import read_torch
from polyfuse.errors import PolyfuseError

SECONDS = 5  # of processor time a file; more is a hang
MEMORY = 256 << 20  # above what the process had; more is a bomb
ODD = [0, 1, 2, 0x7F, 0x80, 0xFF, *b"PK().0RbQ}]tusaeXcq\x85\x86\x87\x88\x8a\x8e\x93\x95"]
WIDE = [0, 1, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


PICKLES = [pickled({"a": tensor(), "b": [tensor(offset=1, shape=(2,)), (1.5, "x")]}, 2)]


class Seed(NamedTuple):
    """A file to mutate: its bytes, where its pickle lies, its tensors, pickles to pack anew."""

    raw: bytes
    pickle: slice
    stated: list[int]  # where the CRC of the pickle is stated
    tensors: dict[str, torch.Tensor]
    pickles: list[bytes]


def seed_files():
    """Return small files of several writers."""
    base = torch.arange(6.0)
    state = {"w": base.view(2, 3), "t": base.view(2, 3).T, "n": torch.tensor(3)}
    out = io.BytesIO()
    torch.save(state, out)
    nested = io.BytesIO()
    torch.save({"epoch": 3, "model": {"a": torch.nn.Parameter(torch.ones(2))}}, nested)
    odd = {"a": tensor(), "b": Called("os.system", "true"), "c": [1.5, None, {2: (b"x", "y")}]}
    by_hand = records(odd, protocol=4)
    floats = {"a": torch.tensor([0.0, 1.0, 2.0, 3.0])}
    return [
        as_seed(out.getvalue(), state),
        as_seed(nested.getvalue(), {"a": torch.ones(2)}),
        as_seed(archive(by_hand), floats),
        as_seed(archive(by_hand, deflate=by_hand), floats),
    ]


def as_seed(raw, tensors):
    with zipfile.ZipFile(io.BytesIO(raw)) as found:
        info = next(i for i in found.infolist() if i.filename.endswith("data.pkl"))
    named, extra = struct.unpack_from("<2H", raw, info.header_offset + 26)
    start = info.header_offset + 30 + named + extra
    crc = struct.pack("<L", info.CRC)
    stated = [at for at in range(len(raw)) if raw[at : at + 4] == crc]
    ops = [raw[start : start + info.compress_size]] if not info.compress_type else []
    return Seed(raw, slice(start, start + info.compress_size), stated, tensors, ops + PICKLES)


def mutated(seed, random):
    """Return a mutated file, and whether only what describes the data was touched."""
    raw = bytearray(seed.raw)
    where = random.random()
    if where < 0.1:
        ops = bytearray(random.choice(seed.pickles))
        for _ in range(random.choice((1, 2))):
            ops = splice(ops, random)
        return archive(records(bytes(ops))), False
    if where < 0.5:
        for _ in range(random.choice((1, 1, 2, 4))):
            change(raw, random.randrange(seed.pickle.start, seed.pickle.stop), random)
        del raw[len(seed.raw) :]
        if random.random() < 0.8:
            reseal(raw, seed)
        return bytes(raw), False
    directory = raw.index(b"PK\1\2")
    for _ in range(random.choice((1, 1, 2))):
        low = directory if where < 0.85 else 0
        change(raw, random.randrange(low, len(raw)), random)
    if random.random() < 0.2:
        raw = splice(raw, random)
    return bytes(raw), where < 0.85


def change(raw, at, random):
    """Overwrite a byte, a number, or copy some bytes from elsewhere."""
    kind = random.randrange(5)
    if kind == 0:
        raw[at] ^= 1 << random.randrange(8)
    elif kind == 1:
        raw[at] = random.choice(ODD)
    elif kind == 2 and at + 4 <= len(raw):
        struct.pack_into("<L", raw, at, random.choice(WIDE))
    elif kind == 3 and at + 8 <= len(raw):
        struct.pack_into("<Q", raw, at, random.choice((1 << 62, (1 << 64) - 1, 1 << 40)))
    else:
        source, length = random.randrange(len(raw)), random.randrange(1, 24)
        copied = raw[source : source + length]
        raw[at : at + len(copied)] = copied


def splice(raw, random):
    """Cut, remove, repeat or insert a stretch."""
    at, length = random.randrange(max(1, len(raw))), random.choice((1, 2, 3, 10, 100))
    kind = random.randrange(4)
    if kind == 0:
        return raw[:at]
    if kind == 1:
        return raw[:at] + raw[at + length :]
    if kind == 2:
        return raw[:at] + raw[at : at + length] + raw[at:]
    return raw[:at] + bytes(random.choices(ODD, k=min(length, 3))) + raw[at:]


def reseal(raw, seed):
    """State the right CRC of the mutated pickle."""
    crc = zlib.crc32(raw[seed.pickle])
    for at in seed.stated:
        struct.pack_into("<L", raw, at, crc)


def check(path, seed, described):
    """Read a file; return whether it was one."""
    try:
        with read_torch(path) as checkpoint:
            state = checkpoint.state_dict()
            sound = all(
                zlib.crc32(part.file.read(part.start, part.length)) == part.crc
                for part in checkpoint.checks
            )
    except PolyfuseError as error:
        message = str(error)
        assert message.isprintable() or "\n" in message, message
        assert len(message) < 10_000
        return False
    for name, found in state.items():
        assert found.is_contiguous(), name
        assert found.shape == checkpoint.info(name).shape
    if described and sound:
        assert state.keys() == seed.tensors.keys()
        assert all(torch.equal(state[name], want) for name, want in seed.tensors.items())
    return True


def main(count, seed):
    """Read `count` mutated files; return how many were read, and how many refused."""
    source = random.Random(seed)
    seeds = seed_files()
    descriptor = os.memfd_create("fuzz") if hasattr(os, "memfd_create") else None
    folder = None if descriptor else tempfile.TemporaryDirectory()
    path = Path(folder.name, "a.pt") if folder else Path(f"/proc/self/fd/{descriptor}")
    read = 0
    signal.signal(signal.SIGPROF, lambda *_: (_ for _ in ()).throw(TimeoutError("a hang")))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        for number in range(count):
            origin = source.choice(seeds)
            raw, described = mutated(origin, source)
            path.write_bytes(raw)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                read += check(path, origin, described)
            except BaseException:
                print(f"case {number} of seed {seed}: {raw!r}")
                raise
            signal.setitimer(signal.ITIMER_PROF, 0)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        folder.cleanup() if folder else os.close(descriptor)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MEMORY, f"memory grew by {grown:,} bytes"
    return read, count - read


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begun = time.perf_counter()
    read, refused = main(options.count, options.seed)
    seconds = time.perf_counter() - begun
    print(f"{read:,} read, {refused:,} refused, {options.count / seconds:,.0f} files a second")
