"""Carries out a layout in the plainest way, for tests: the reference for the streaming engine."""

import zlib

import torch

from polyfuse.checkpoints.base import Slot


def in_torch(dtypes):
    """Return torch's own of these dtypes, as far as this version has them."""
    return [dtype.torch for dtype in dtypes if hasattr(torch, dtype.name)]


def raw(tensor):
    """Return a tensor's bytes, in the order of flatten()."""
    flat = tensor.detach().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def slots_of(state):
    return [Slot(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()]


def written(layout, state):
    """Return the bytes of each file of a layout; every byte is written exactly once."""
    files = {name: bytearray(size) for name, size in layout.files.items()}
    covered = {name: bytearray(size) for name, size in layout.files.items()}

    def put(file, offset, data):
        end = offset + len(data)
        assert end <= len(files[file])
        assert not any(covered[file][offset:end])
        files[file][offset:end], covered[file][offset:end] = data, b"\1" * len(data)

    for part in layout.parts:
        put(*part)
    for name, (file, offset) in layout.places.items():
        put(file, offset, raw(state[name]))
    assert all(all(bits) for bits in covered.values())
    for file, start, length, places in layout.checksums:
        crc = zlib.crc32(files[file][start : start + length]).to_bytes(4, "little")
        for place in places:
            assert files[file][place : place + 4] == bytes(4)
            files[file][place : place + 4] = crc
    return {name: bytes(data) for name, data in files.items()}


def write_folder(folder, layout, state):
    """Write a layout's files to a folder; an only file is called `one`."""
    folder.mkdir(exist_ok=True)
    for name, data in written(layout, state).items():
        (folder / (name or "one")).write_bytes(data)
    return folder


def same(ours, theirs):
    """Tell whether two state dicts hold the same names, dtypes, shapes and bytes."""
    return ours.keys() == theirs.keys() and all(
        ours[n].dtype == t.dtype and ours[n].shape == t.shape and raw(ours[n]) == raw(t)
        for n, t in theirs.items()
    )


def some_tensor(dtype, shape, seed=0):
    """Return a tensor of any dtype with bytes of no pattern (a bool's are 0 and 1)."""
    count = torch.Size(shape).numel() * dtype.itemsize
    generator = torch.Generator().manual_seed(seed)
    high = 2 if dtype == torch.bool else 256
    data = torch.randint(high, (count,), dtype=torch.uint8, generator=generator)
    return data.view(dtype).reshape(shape)
