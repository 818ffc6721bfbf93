"""What is no checkpoint is named, and so is what helps."""

import io
import os
import socket
import tarfile

import numpy as np
import pytest

from polyfuse.checkpoints import foreign, open_checkpoint
from polyfuse.errors import CheckpointError


def packed(write):
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def tar(buffer):
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pt"))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"
FILES = {
    "empty.pt": (b"", "is empty; fetch or save it again"),
    "lfs.safetensors": (POINTER, "is a git-lfs pointer, not the file itself; type: git lfs pull"),
    "page.bin": (b"\n <!DOCTYPE html><html>404", "is a web page, not the file behind it; download"),
    "page2.safetensors": (b"<html lang='en'>", "is a web page"),
    "denied.pt": (b"<?xml version='1.0'?><Error>AccessDenied", "is a web page"),
    "a.pt.gz": (b"\x1f\x8b\x08" + bytes(50), "is packed with gzip; unpack it"),
    "a.pt.bz2": (b"BZh91AY" + bytes(50), "is packed with bzip2; unpack it"),
    "a.pt.xz": (b"\xfd7zXZ\0" + bytes(50), "is packed with xz; unpack it"),
    "a.pt.zst": (b"\x28\xb5\x2f\xfd" + bytes(50), "is packed with zstd; unpack it"),
    "a.7z": (b"7z\xbc\xaf\x27\x1c" + bytes(50), "is a 7z archive; unpack it"),
    "a.tar": (packed(tar), "is a tar archive; unpack it"),
    "q4.gguf": (b"GGUF\x03\0\0\0" + bytes(50), "is a GGUF file.*name the files that it was conv"),
    "net.h5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "is an HDF5 file, as Keras writes them"),
    "net.keras": (b"PK\3\4" + bytes(50), "is a Keras archive"),
    "a.npy": (packed(lambda f: np.save(f, np.ones(3))), "is a numpy array; save its tensors with"),
    "a.npz": (packed(lambda f: np.savez(f, a=np.ones(3))), "is a numpy archive; save its tensors"),
    "renamed.pt": (packed(lambda f: np.savez(f, a=np.ones(3))), "is a numpy archive"),
    "net.onnx": (b"\x08\x07\x12\x07pytorch", "is an ONNX model; name the checkpoint that it was"),
    "net.tflite": (b"\x1c\0\0\0TFL3", "is a TensorFlow Lite model"),
    "frozen.pb": (b"\n\x0b\n\x01x\x12", "is a TensorFlow graph"),
    "flax.msgpack": (b"\x81\xa1w", "is a Flax checkpoint"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_foreign_file_is_named(tmp_path, name):
    raw, message = FILES[name]
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(CheckpointError, match=rf"'{tmp_path / name}' {message}"):
        open_checkpoint(tmp_path / name)


def test_a_shard_that_is_none_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=r"model.safetensors' is a git-lfs pointer"):
        open_checkpoint(tmp_path)


def test_what_is_neither_file_nor_folder_is_named(tmp_path):
    os.mkfifo(tmp_path / "fifo.pt")
    with pytest.raises(CheckpointError, match=r"fifo.pt' is a FIFO, not a file; name the check"):
        open_checkpoint(tmp_path / "fifo.pt")
    with pytest.raises(CheckpointError, match="'/dev/zero' is a device, not a file"):
        open_checkpoint("/dev/zero")
    os.chdir(tmp_path)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.pt")
        with pytest.raises(CheckpointError, match="is a socket, not a file"):
            open_checkpoint("socket.pt")


def test_links_that_lead_nowhere_say_where(tmp_path):
    (tmp_path / "a.pt").symlink_to("gone.pt")
    with pytest.raises(CheckpointError, match=r"No such file.*it is a link to 'gone.pt': fetch"):
        open_checkpoint(tmp_path / "a.pt")
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    with pytest.raises(CheckpointError, match=r"cannot read '.*': Too many levels.*is a link to"):
        open_checkpoint(tmp_path / "loop.pt")


def test_a_name_misspelt_is_told(tmp_path):
    (tmp_path / "epoch_39.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"No such file.*; did you mean 'epoch_39.pt'\?"):
        open_checkpoint(tmp_path / "epoch_38.pt")
    with pytest.raises(CheckpointError, match=r"cannot read '/no/such/file.pt': No such file"):
        open_checkpoint("/no/such/file.pt")
    for name in ("a\0b", "x" * 5000):
        with pytest.raises(CheckpointError, match="cannot read"):
            open_checkpoint(name)


def test_the_name_alone_says_it_where_the_content_cannot(tmp_path):
    foreign.refuse_foreign(tmp_path / "model.pt", b"\x08\x07")
    with pytest.raises(CheckpointError, match="is an ONNX model"):
        foreign.refuse_foreign(tmp_path / "MODEL.ONNX", b"\x08\x07")


def test_a_saved_model_of_tensorflow_is_named(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")
    with pytest.raises(CheckpointError, match=r"saved_model.pb' is a TensorFlow graph; load it"):
        open_checkpoint(tmp_path)
