"""torch files, whole: which state dict is meant, what its tensors are, what else is in there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyfuse.checkpoints import archive, nested, torch_zip
from polyfuse.checkpoints.base import LIMITS, Check, Checkpoint, File, InMemory, TensorInfo
from polyfuse.checkpoints.layouts.base import PROVENANCE, PROVENANCE_FILE
from polyfuse.checkpoints.torch_zip import TensorRecord, TorchZip
from polyfuse.dtypes import dtype_of
from polyfuse.errors import CheckpointError, printable

if TYPE_CHECKING:
    from torch import Tensor

SAFE_TORCH = (2, 10)  # whose torch.load(weights_only=True) has no known hole
_LEGACY = bytes.fromhex("8a0a6cfc9c46f9206aa850192e")  # torch's mark, as a pickled integer
_SHOWN = 20
_STARTS = {
    b"version https://git-lfs": "is a git-lfs pointer; type: git lfs pull",
    b"<!doctype html": "is a web page, not the file behind it; download the file itself",
    b"<html": "is a web page, not the file behind it; download the file itself",
}


def read_torch(path: Path, key: str | None = None, index: int | None = None) -> Checkpoint:
    """Open a file of torch.save, of any age: weights alone, or a training state with weights in it.

    A zip file is read lazily and runs nothing. A legacy file, from before torch 1.6, is read whole
    by torch.load(weights_only=True).

    Which state dict is taken: that of `key`; else the first of state_dict, model_state_dict,
    model_state, model, module, net, network, weights, params; else the only one in the file. An
    EMA is taken only where `key` names it.

    Args:
        path: of the file.
        key: of the state dict in it, dotted where it lies deeper.
        index: which one, where the file (or what `key` names) is a list of state dicts.

    Returns:
        The checkpoint; its `facts` are those of `nested.facts`.

    Raises:
        CheckpointError: damaged, no torch file, or not to be read safely.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "a.pt"
        >>> torch.save({"model": {"w": torch.arange(4.0).view(2, 2).T}, "epoch": 3}, path)
        >>> with read_torch(path) as checkpoint:
        ...     checkpoint.facts["key"], checkpoint.facts["epoch"], checkpoint.state_dict()["w"]
        ('model', 3, tensor([[0., 2.],
                [1., 3.]]))
    """
    file = File(path)
    try:
        head = file.read(0, min(file.size, 512))
        if head.startswith(b"PK\3\4"):
            return _from_zip(file, key, index)
        if _LEGACY in head[:32]:
            return _from_legacy(file, key, index)
        raise CheckpointError(f"'{file.shown}' {_no_torch_file(head)}")
    except BaseException:
        file.close()
        raise


def _no_torch_file(head: bytes) -> str:
    """Say what a file is that is no torch file, and what to do."""
    for start, fact in _STARTS.items():
        if head.lstrip().lower().startswith(start):
            return fact
    if not head:
        return "is empty; fetch it again"
    if head[8:9] == b"{":
        return "looks like a safetensors file; name it .safetensors"
    if head[257:262] == b"ustar":
        return "was saved by torch 0.1; load it with torch < 1.6 and save it again"
    if head[:1] == b"\x80":
        return "is a pickle, but none of torch.save; save a state dict with torch.save in its place"
    return "is not a torch file; fetch it again, or save it again with torch.save"


def _from_zip(file: File, key: str | None, index: int | None) -> Checkpoint:
    opened = torch_zip.read_tree(file)
    choice = nested.choose(file.shown, opened.tree, key, index)
    tensors, aliases = _described(file, choice.state, opened.tensor)
    facts = nested.facts(opened.tree, choice, lambda value: _number_in(opened, value))
    note = opened.entries.get(f"{opened.prefix}/{PROVENANCE_FILE}")
    if note:
        text = archive.read_entry(file, note, LIMITS.metadata_bytes).decode("utf-8", "replace")
        facts["metadata"] = {PROVENANCE: text}
    checks = _checks(opened, [choice.state[name] for name in tensors])
    return Checkpoint(file.path, "torch", (file,), tensors, aliases, facts, checks)


def _number_in(opened: TorchZip, record: Any) -> float | int | None:
    try:
        return opened.number(record)
    except ValueError:  # it is not among the tensors that were asked for
        return None


def _checks(opened: TorchZip, records: list[TensorRecord]) -> tuple[Check, ...]:
    """Return the stated CRC of each storage that the tensors lie in, once."""
    storages = {record.storage.key: record for record in records}
    found = [opened.check(record) for record in storages.values()]
    return tuple(check for check in found if check)


def _described(
    file: File, state: Mapping[Any, Any], describe: Callable[[Any], TensorInfo]
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Return the tensors of a state dict, each once, and the further names of tied ones."""
    tensors: dict[str, TensorInfo] = {}
    aliases: dict[str, str] = {}
    first: dict[Hashable, str] = {}
    faults: list[str] = []
    for name, value in state.items():
        if not isinstance(name, str) or not nested.holds_tensor(value):
            continue  # facts["ignored"] tells of it
        try:
            if len(name) > LIMITS.name_characters:
                raise ValueError(f"its name has more than {LIMITS.name_characters:,} characters")
            info = describe(value)
        except ValueError as error:
            faults.append(f"  '{printable(name)}': {error}")
            continue
        known = first.setdefault(_identity(value), name)
        if known == name:
            tensors[name] = info
        else:
            aliases[name] = known
    if faults:
        raise _unreadable(file, faults)
    return tensors, aliases


def _identity(value: Any) -> Hashable:
    """Return what two names of one tensor have in common."""
    if isinstance(value, TensorRecord):
        flips = value.flips or {}
        key, place = value.storage.key, (value.offset, value.shape, value.strides)
        return key, value.dtype, place, bool(flips.get("conj")), bool(flips.get("neg"))
    alone = None if value.numel() else id(value)
    flips = (value.is_conj(), value.is_neg(), alone)
    return value.data_ptr(), value.dtype, tuple(value.shape), value.stride(), flips


def _unreadable(file: File, faults: list[str]) -> CheckpointError:
    more = f"\n  and {len(faults) - _SHOWN:,} more" if len(faults) > _SHOWN else ""
    return CheckpointError(
        f"'{file.shown}' holds {len(faults):,} tensors that cannot be read; where no fix is named, "
        "it is damaged: fetch it again\n" + "\n".join(faults[:_SHOWN]) + more
    )


def _from_legacy(file: File, key: str | None, index: int | None) -> Checkpoint:
    tree = _load_legacy(file)
    file.check_unchanged()
    choice = nested.choose(file.shown, tree, key, index)
    tensors, aliases = _described(file, choice.state, _in_memory)
    facts = nested.facts(tree, choice, _number_of)
    return Checkpoint(file.path, "torch", (file,), tensors, aliases, facts)


def _load_legacy(file: File) -> Any:
    """Load a file from before torch 1.6, as safely as torch can; there is no other way."""
    import torch

    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < SAFE_TORCH:
        raise CheckpointError(
            f"'{file.shown}' is in torch's legacy format, which is read safely only by torch "
            f"2.10 and later, and this is {torch.__version__}: type: pip install -U torch; or "
            "load it where you trust it, and save it again with torch.save"
        )
    try:
        # Opened here: torch would take a file named .safetensors for one.
        with warnings.catch_warnings(), open(file.path, "rb") as raw:
            warnings.simplefilter("ignore")
            return torch.load(raw, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # a damaged file makes torch.load raise almost anything
        raise CheckpointError(
            f"'{file.shown}' is in torch's legacy format and cannot be read safely "
            f"({printable(error)}); fetch it again, or, where you trust it, load it with torch and "
            "type: torch.save(model.state_dict(), 'weights.pt')"
        ) from None


def _number_of(tensor: Tensor) -> float | int | None:
    plain = _kind(tensor) is None and tensor.numel() == 1 and not tensor.is_complex()
    return tensor.item() if plain else None


def _kind(tensor: Tensor) -> str | None:
    """Return of what kind a tensor is, unless it is plain."""
    if tensor.is_nested:
        return "nested"
    if str(tensor.layout) != "torch.strided":
        return "sparse"
    if tensor.is_quantized:
        return "quantised"
    return "meta" if tensor.is_meta else None


def _in_memory(tensor: Tensor) -> TensorInfo:
    if kind := _kind(tensor):
        raise ValueError(f"it is a {kind} tensor; save a plain one in its place")
    size = tensor.untyped_storage().nbytes()
    if tensor.nbytes > max(torch_zip.SMALL, torch_zip.EXPANSION * size):
        raise ValueError(f"it repeats {size:,} bytes of storage as {tensor.nbytes:,}")
    return TensorInfo(dtype_of(tensor.dtype), tuple(tensor.shape), InMemory(tensor.detach()))
