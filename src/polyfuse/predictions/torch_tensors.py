"""Tensors in files of torch and safetensors, read by the inert reader: nothing is unpickled."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyfuse.checkpoints import safetensors, torch_zip
from polyfuse.checkpoints.base import File, TensorInfo
from polyfuse.checkpoints.torch_zip import TensorRecord, TorchZip
from polyfuse.checksums import crc32
from polyfuse.dtypes import doubles
from polyfuse.errors import CheckpointError, DataError, did_you_mean, printable

_DEPTH = 4
_WHOLE = {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"}
_FLOATS = {"float16", "float32", "float64"}


def read_tensor(path: Path, key: str | None = None, *, labels: bool = False) -> NDArray[Any]:
    """Read one tensor of a file of `torch.save`, or of a safetensors file, as an array.

    Args:
        path: of the file.
        key: of the tensor, dotted where it lies deeper; needed where several may be meant.
        labels: whole numbers and one axis are looked for; otherwise floating ones of two or more.

    Returns:
        A new array; bfloat16 is widened to float32.

    Raises:
        DataError: no such tensor, several to choose from, damaged, or a pickle of something else.

    Example:
        >>> import tempfile, torch
        >>> target = Path(tempfile.mkdtemp()) / "a.pt"
        >>> torch.save({"logits": torch.zeros(3, 2), "epoch": 4}, target)
        >>> read_tensor(target).shape
        (3, 2)
    """
    shown = printable(path)
    try:
        if path.suffix.lower() == ".safetensors":
            with safetensors.read_safetensors(path) as checkpoint:
                return _read(_chosen(shown, dict(checkpoint.tensors), key, labels), shown)
        file = File(path)
        try:
            return _from_zip(shown, file, key, labels)
        finally:
            file.close()
    except CheckpointError as error:
        raise DataError(str(error)) from None


def _from_zip(shown: str, file: File, key: str | None, labels: bool) -> NDArray[Any]:
    if file.size < 4 or file.read(0, 4) != b"PK\3\4":
        raise DataError(
            f"'{shown}' is not a file of torch.save, or from before torch 1.6; load it where you "
            "trust it, and type: numpy.save(path, tensor.float().numpy())"
        )
    opened = torch_zip.read_tree(file)
    records = dict(_tensors(opened.tree))
    known = {name: info for name, r in records.items() if (info := _info(opened, r)) is not None}
    if not known:
        raise DataError(
            f"'{shown}' holds no tensor that can be read; save one: torch.save(logits.cpu(), path)"
        )
    chosen = _chosen(shown, known, key, labels)
    name = next(name for name, info in known.items() if info is chosen)
    array = _read(chosen, shown)
    check = opened.check(records[name])
    if check and crc32(check.file.read_into, check.start, check.length) != check.crc:
        raise DataError(f"'{shown}' is damaged: a CRC is not the stated one; fetch it again")
    return array


def _info(opened: TorchZip, record: Any) -> TensorInfo | None:
    try:
        return opened.tensor(record)
    except ValueError:  # sparse, quantised, damaged: not what is looked for
        return None


def _tensors(node: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, TensorRecord]]:
    """Yield the tensors that are reached by text keys, or by places in a list."""
    if isinstance(node, TensorRecord):
        yield path, node
    elif depth < _DEPTH and isinstance(node, dict | list | tuple):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for name, child in items:
            if isinstance(name, str | int):
                yield from _tensors(child, f"{path}.{name}" if path else str(name), depth + 1)


def _chosen(shown: str, known: dict[str, TensorInfo], key: str | None, labels: bool) -> TensorInfo:
    if key is not None and key in known:
        return known[key]
    fits: Callable[[TensorInfo], bool] = _may_be_labels if labels else _may_be_predictions
    likely = {name: info for name, info in known.items() if fits(info)}
    if key is None and (len(likely) == 1 or len(known) == 1):
        return next(iter((likely or known).values()))
    listed = ", ".join(
        f"'{printable(name)}' {tuple(info.shape)} {info.dtype.name}"
        for name, info in list(known.items())[:20]
    )
    first = printable(next(iter(likely or known), "key"))
    missing = f"no tensor '{printable(key)}'{did_you_mean(key, known)}" if key else "several"
    raise DataError(f"'{shown}' has {missing}: {listed}; name one: '{shown}[{first}]'")


def _may_be_predictions(info: TensorInfo) -> bool:
    return info.dtype.is_floating_point and len(info.shape) >= 2


def _may_be_labels(info: TensorInfo) -> bool:
    return info.dtype.name in _WHOLE and len(info.shape) >= 1


def _read(info: TensorInfo, shown: str) -> NDArray[Any]:
    bits = info.dtype.empty(info.count)
    info.source.fill(bits, 0)
    name = info.dtype.name
    if name in _FLOATS | _WHOLE:
        flat: NDArray[Any] = bits.view(name)
    elif name == "bfloat16":
        flat = doubles(bits, info.dtype).astype(np.float32)  # exact
    else:
        raise DataError(f"'{shown}' holds {name}; save plain numbers: torch.save(x.float(), path)")
    return flat.reshape(info.shape)
