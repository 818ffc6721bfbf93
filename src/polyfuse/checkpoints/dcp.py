"""Folders of torch.distributed.checkpoint: each tensor in boxes, each box where its rank saved it.

Each box is a small torch zip inside a shard file, whose data are read in place.
"""

from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

from polyfuse.checkpoints import nested
from polyfuse.checkpoints.base import Check, Checkpoint, File, Source, TensorInfo
from polyfuse.checkpoints.boxes import Box, Boxes, Place
from polyfuse.checkpoints.dcp_metadata import Metadata, Window, read_metadata
from polyfuse.checkpoints.headers import Header, read_header
from polyfuse.checkpoints.torch_zip import TensorRecord, TorchZip, read_tree
from polyfuse.dtypes import DType
from polyfuse.errors import CheckpointError, printable

SHOWN = 10  # names in an error


def read_dcp(folder: Path, key: str | None = None) -> Checkpoint:
    """Open a folder of torch.distributed.checkpoint; no tensor data are read.

    Args:
        folder: with `.metadata` and the shards.
        key: of the state dict to read, such as "model"; its tensors are then named without it. Left
            out, it is found as in a torch file, see `nested.choose`.

    Returns:
        The checkpoint. Facts are those of `nested.facts`, and `ignored` what is no tensor (numbers,
        settings), which is not read.

    Raises:
        CheckpointError: damaged or malicious; missing shards are told all at once.

    Example:
        >>> read_dcp(Path("/no/such"))
        Traceback (most recent call last):
        polyfuse.errors.CheckpointError: cannot read '/no/such/.metadata': No such file or directory
    """
    metadata = read_metadata(folder)
    tree = _tree(folder, metadata, key)
    choice = nested.choose(printable(folder), tree, key, None)
    chosen = {
        name: record.storage
        for name, record in choice.state.items()
        if isinstance(record, TensorRecord)
    }
    shards = _Shards(folder, metadata)
    shards.open(set(chosen.values()))
    first: dict[Hashable, str] = {}
    names = {name: first.setdefault(shards.identity(saved), name) for name, saved in chosen.items()}
    tensors = {name: shards.tensor(chosen[name]) for name in names if names[name] == name}
    aliases = {alias: name for alias, name in names.items() if alias != name}
    facts = nested.facts(tree, choice, lambda _: None)
    facts["ignored"] |= dict.fromkeys(metadata.others, "no tensor")
    files = tuple(shards.files.values())
    return Checkpoint(folder, "dcp", files, tensors, aliases, facts, tuple(shards.checks))


def _tree(folder: Path, metadata: Metadata, key: str | None) -> dict[str, Any]:
    """Return the state that was saved, with a record in place of each tensor, as a torch file's."""
    tree: dict[str, Any] = {}
    records: dict[str, Any] = {
        name: TensorRecord(name, tensor.dtype, 0, tensor.shape, ())
        for name, tensor in metadata.tensors.items()
    }
    for name, record in (records | dict.fromkeys(metadata.others)).items():
        path = metadata.paths[name]
        if len(path) == 1 and key and name.startswith(f"{key}."):
            path = (*key.split("."), name.removeprefix(f"{key}."))
        node: Any = tree
        for part in path[:-1]:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict) or path[-1] in node:
            raise CheckpointError(
                f"'{printable(name)}' has the same place in the state as another entry of "
                f"'{printable(folder)}'; fetch or save the folder again"
            )
        node[path[-1]] = record
    return tree


class _Shards:
    """The files of a folder, and what lies in them."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        self.folder, self.metadata = folder, metadata
        self.files: dict[str, File] = {}
        self.numbers: dict[str, int] = {}
        self.headers: dict[str, Header] = {}
        self.checks: list[Check] = []

    def open(self, tensors: set[str]) -> None:
        """Open the files that tensors lie in; tell all that are missing."""
        windows = self.metadata.windows
        names = sorted({window.file for (name, _), window in windows.items() if name in tensors})
        self._refuse([name for name in names if not (self.folder / name).exists()], "missing")
        home = self.folder.resolve()
        strangers = [name for name in names if (self.folder / name).resolve().parent != home]
        self._refuse(strangers, "links to elsewhere")
        self.files = {name: File(self.folder / name) for name in names}
        self.numbers = {name: number for number, name in enumerate(names)}

    def _refuse(self, names: Iterable[str], fault: str) -> None:
        if shown := [f"'{printable(name)}'" for name in names]:
            more = f" and {len(shown) - SHOWN:,} more" if len(shown) > SHOWN else ""
            raise CheckpointError(
                f"'{printable(self.folder)}': {len(shown)} shards are {fault}: "
                f"{', '.join(shown[:SHOWN])}{more}; copy them into the folder"
            )

    def identity(self, name: str) -> Hashable:
        """Return what two names of one tensor have in common: where its boxes lie."""
        dtype, shape, places = self.metadata.tensors[name]
        windows = tuple(self.metadata.windows.get((name, offsets)) for offsets, _ in places)
        return (dtype, shape, windows) if places and None not in windows else name

    def tensor(self, name: str) -> TensorInfo:
        """Return where the elements of a tensor are."""
        dtype, shape, places = self.metadata.tensors[name]
        boxes = tuple(Box(*place, self._source(name, dtype, place)) for place in places)
        order = (0, 0)
        if places:
            window = self.metadata.windows[name, places[0][0]]
            order = (self.numbers[window.file], window.offset)
        source: Source = boxes[0].source if len(boxes) == 1 else Boxes(shape, boxes)
        return TensorInfo(dtype, shape, source, order)

    def _source(self, name: str, dtype: DType, place: Place) -> Source:
        """Return where the elements of a box are, checked against the metadata."""
        offsets, sizes = place
        window = self.metadata.windows.get((name, offsets))
        where = f"'{printable(self.folder)}', chunk {offsets} of '{printable(name)}'"
        if window is None:
            raise CheckpointError(f"{where}: the metadata do not say where it lies")
        file = self.files[window.file]
        file.check_range(window.offset, window.length)
        try:
            info = self._saved(name, file, window)
        except ValueError as error:
            raise CheckpointError(f"{where} in '{window.file}': {error}") from None
        if (info.dtype, info.shape) != (dtype, sizes):
            raise CheckpointError(
                f"{where}: {dtype} of shape {sizes} expected, '{printable(window.file)}' has "
                f"{info.dtype} of shape {info.shape}; fetch or save the folder again"
            )
        return info.source

    def _saved(self, name: str, file: File, window: Window) -> TensorInfo:
        """Return what was saved in a window: a torch zip, or a tensor of a safetensors file."""
        if window.offset == 0 and not file.read(0, min(file.size, 4)).startswith(b"PK"):
            if window.file not in self.headers:
                self.headers[window.file] = read_header(file)
            return self.headers[window.file].tensors[name]
        saved: TorchZip = read_tree(file, window.offset, window.length)
        info = saved.tensor(saved.tree)
        if check := saved.check(saved.tree):
            self.checks.append(check)
        return info
