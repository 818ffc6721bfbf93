"""Mutated safetensors headers: ours and the library's reader agree, but for the known differences.

python tests/checkpoints/fuzz_safetensors.py --count 100000 --seed 0
"""

import argparse
import json
import random
import re
import time
from collections import Counter

import torch
from safetensors import SafetensorError, deserialize

from polyfuse.checkpoints.base import File
from polyfuse.checkpoints.headers import DTYPES, read_header
from polyfuse.dtypes import bytes_of
from polyfuse.errors import CheckpointError

CODES = {dtype: code for code, dtype in DTYPES.items()}
# Where ours refuses what the library accepts; headers.py says why.
STRICTER = re.compile(
    r"it names '.*' twice|an entry of dtype, shape and data_offsets expected|packs several|"
    r"unknown dtype '\{|a name of [\d,]+ char|at most 64 sizes|torch has no tensor|too deeply"
)
MINUS_ZERO = re.compile(rb"-0[^.\deE]")  # the library calls it a fraction
TOKENS = [
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b" ", b"\0", b"-", b"-0", b"0", b"1"),
    *(b"1.0", b"1e2", b"NaN", b"null", b"true", b"9" * 20, b"18446744073709551616", b"/*"),
    *(b"\xef\xbb\xbf", b"\xff", b"\\ud800", b"\\udc00", b"\\ud83d\\ude00", b"\\u0000", b"[[[["),
    *(b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__":{},', b'"F32"', b'"F4"'),
    *(b'"x":1,', b'"BOOL"', b'"F8_E8M0"', b'"C64"', b'"U16"', b'"__metadata__":null,', b'"b":"c",'),
]
SIZES = [
    0,
    1,
    2,
    3,
    4,
    8,
    16,
    2**31,
    2**32,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**64,
    -1,
    1.0,
    True,
]


class Memory(File):
    """A file that is in memory; everything else of it is as on the disk."""

    def __init__(self, raw):
        self.raw, self.size, self.shown, self._descriptor = raw, len(raw), "mutant", -1

    def read_into(self, offset, buffer):
        buffer[:] = self.raw[offset : offset + len(buffer)]


def seed_header(draw):
    """Return a legal header of a few tensors, and how many bytes of data it needs."""
    header, end = {}, 0
    if draw.random() < 0.5:
        header["__metadata__"] = {"format": "pt", "epoch": "3"}
    for number in range(draw.randint(0, 4)):
        code = draw.choice(list(DTYPES))
        shape = [draw.randint(0, 3) for _ in range(draw.randint(0, 3))]
        size = torch.Size(shape).numel() * DTYPES[code].itemsize
        header[f"t{number}"] = {"dtype": code, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return header, end


def mutate_entry(draw, header):
    """Change one number, dtype or name of a header."""
    name = draw.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    kind = draw.randrange(6)
    if kind == 0 and entry["shape"]:
        entry["shape"][draw.randrange(len(entry["shape"]))] = draw.choice(SIZES)
    elif kind == 1:
        entry["data_offsets"][draw.randrange(2)] = draw.choice(SIZES)
    elif kind == 2:
        entry["dtype"] = draw.choice([*DTYPES, "F4", "F6_E2M3", "f32", 3, None])
    elif kind == 3:
        entry["shape"].insert(0, draw.choice(SIZES))
    elif kind == 4:
        entry.pop(draw.choice(list(entry)))
    else:
        header[draw.choice(["", "\x1b", "\ud83d\ude00", "../x", "t0", "é"])] = header.pop(name)


def mutate_bytes(draw, raw):
    """Change, insert, remove or repeat a few bytes of a header."""
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        at = draw.randrange(len(raw) + 1)
        stop = min(at + draw.choice((0, 0, 1, 1, 2, 8, 30)), len(raw))
        kind = draw.randrange(4)
        if kind == 0:
            raw[at:stop] = draw.choice(TOKENS)
        elif kind == 1:
            del raw[at:stop]
        elif kind == 2:
            raw[at:at] = raw[at:stop]
        elif raw:
            raw[draw.randrange(len(raw))] = draw.randrange(256)


def mutant(draw):
    """Return the bytes of a safetensors file that something was done to."""
    header, size = seed_header(draw)
    if draw.random() < 0.4 and size:
        mutate_entry(draw, header)
    raw = bytearray(json.dumps(header, separators=draw.choice(((",", ":"), (", ", ": ")))).encode())
    if draw.random() < 0.7:
        mutate_bytes(draw, raw)
    stated = len(raw)
    if draw.random() < 0.03:
        stated = draw.choice((0, stated - 1, stated + 1, 100_000_001, 2**63, 2**64 - 1))
    size += draw.choice((0,) * 30 + (1, -1))
    data = bytes(draw.choices((0, 1), k=max(size, 0)))  # which every dtype may hold
    return max(stated, 0).to_bytes(8, "little") + raw + data


def by_ours(raw):
    """Return names, dtypes, shapes and bytes as polyfuse reads them, or its error."""
    try:
        tensors = read_header(Memory(raw)).tensors
    except CheckpointError as error:
        return str(error)
    found = {}
    for name, info in tensors.items():
        flat = info.dtype.empty(info.count)
        info.source.fill(flat, 0)
        found[name] = (CODES[info.dtype], list(info.shape), bytes(bytes_of(flat)))
    return found


def by_theirs(raw):
    """Return the same as the library reads it, or None where it refuses."""
    try:
        found = deserialize(raw)
    except SafetensorError:
        return None
    return {name: (e["dtype"], list(e["shape"]), bytes(e["data"])) for name, e in found}


def is_known(code):
    """Tell whether the library, which may be an old one, has a dtype."""
    entry = {"dtype": code, "shape": [0], "data_offsets": [0, 0]}
    raw = json.dumps({"w": entry}).encode()
    return by_theirs(len(raw).to_bytes(8, "little") + raw) is not None


KNOWN = set(filter(is_known, DTYPES))


def verdict(raw):
    """Return what becomes of a file, after both readers have seen it."""
    ours, theirs = by_ours(raw), by_theirs(raw)
    if isinstance(ours, str):
        if theirs is None:
            return "refused by both"
        assert STRICTER.search(ours), f"ours refuses, theirs reads: {ours}\n{raw!r}"
        return "refused by ours only"
    if theirs is None:
        younger = any(code not in KNOWN for code, _, _ in ours.values())
        agreed = younger or MINUS_ZERO.search(raw)
        assert agreed, f"theirs refuses, ours reads: {ours}\n{raw!r}"
        return "refused by theirs only"
    assert ours == theirs, f"{ours}\n{theirs}\n{raw!r}"
    return "read by both"


def main(count, seed):
    """Judge that many mutants; return how many came to which end."""
    draw = random.Random(seed)
    return Counter(verdict(mutant(draw)) for _ in range(count))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begun = time.monotonic()
    print(dict(main(options.count, options.seed)), f"{time.monotonic() - begun:.1f} s")
