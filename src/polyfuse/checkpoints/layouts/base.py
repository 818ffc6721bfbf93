"""What all layouts share: contents, shards, folders of files, sizes as people type them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from polyfuse.checkpoints.base import Checksum, Layout, Slot, is_file_name
from polyfuse.errors import CheckpointError, printable

PROVENANCE = "polyfuse"  # the entry of a note that folders and archives keep as a file of its own
PROVENANCE_FILE = "polyfuse.json"
SIDE_LIMIT = 64 << 20  # bytes of all side files together: they are held in memory
SHOWN = 10  # faults of one kind that an error lists
_UNITS = {unit: 1000**i for i, unit in enumerate(("", "K", "M", "G", "T"))}
_UNITS |= {f"{unit}I": 1024**i for i, unit in enumerate(_UNITS) if unit}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?I?)B?\s*", re.IGNORECASE)


class Contents(NamedTuple):
    """What an output holds, whatever its format.

    Attributes:
        slots: tensors, in the order in which shards take them.
        aliases: further names of tied tensors, and the slot each stands for.
        note: texts to keep with them; the provenance is the one named `PROVENANCE`.
        limit: bytes of tensors in one file, at most.
        side_files: (name, bytes) of further files of a folder.
    """

    slots: Sequence[Slot]
    aliases: Mapping[str, str]
    note: Mapping[str, str]
    limit: int | None = None
    side_files: Sequence[tuple[str, bytes]] = ()


@dataclass
class Folder:
    """A layout that grows: files are added, each under its name or behind what is there.

    Example:
        >>> folder = Folder()
        >>> folder.add_bytes("a.json", b"{}")
        >>> folder.layout()
        Layout(files={'a.json': 2}, parts=[('a.json', 0, b'{}')], places={}, checksums=[])
    """

    files: dict[str, int] = field(default_factory=dict)
    parts: list[tuple[str, int, bytes]] = field(default_factory=list)
    places: dict[str, tuple[str, int]] = field(default_factory=dict)
    checksums: list[Checksum] = field(default_factory=list)

    def add(self, name: str, one: Layout) -> tuple[int, int]:
        """Put a layout of one file at the end of file `name`; return its offset and size there."""
        start, size = self.files.get(name, 0), one.files[""]
        self.files[name] = start + size
        self.parts += [(name, start + offset, raw) for _, offset, raw in one.parts]
        self.places |= {slot: (name, start + offset) for slot, (_, offset) in one.places.items()}
        self.checksums += [
            Checksum(name, start + c.start, c.length, tuple(start + place for place in c.places))
            for c in one.checksums
        ]
        return start, size

    def add_bytes(self, name: str, raw: bytes) -> None:
        """Put a file whose bytes are known."""
        self.add(name, Layout({"": len(raw)}, [("", 0, raw)], {}))

    def layout(self) -> Layout:
        """Return all of it."""
        return Layout(self.files, self.parts, self.places, self.checksums)


def folder_beside(contents: Contents, own_names: Iterable[str]) -> Folder:
    """Return a folder with the side files and the provenance; `own_names` are written later.

    A side file of a name that the format itself writes is left out: it described the input.

    Raises:
        CheckpointError: names that are paths, or more than `SIDE_LIMIT` bytes.

    Example:
        >>> note = {"polyfuse": '{"tool": "polyfuse"}'}
        >>> contents = Contents([], {}, note, side_files=[("config.json", b"{}")])
        >>> folder_beside(contents, []).files
        {'config.json': 2, 'polyfuse.json': 20}
    """
    _check_side_files(contents.side_files)
    folder, own = Folder(), {PROVENANCE_FILE, *own_names}
    for name, raw in contents.side_files:
        if name not in own:
            folder.add_bytes(name, raw)
    if PROVENANCE in contents.note:
        folder.add_bytes(PROVENANCE_FILE, contents.note[PROVENANCE].encode())
    return folder


def _check_side_files(side_files: Sequence[tuple[str, bytes]]) -> None:
    bad = [printable(name) for name, _ in side_files if not is_file_name(name)]
    if bad:
        raise CheckpointError(f"these are no file names: {bad[:SHOWN]}; rename them")
    size = sum(len(raw) for _, raw in side_files)
    if size > SIDE_LIMIT:
        largest, raw = max(side_files, key=lambda side: len(side[1]))
        raise CheckpointError(
            f"the files beside the weights have {size:,} bytes, at most {SIDE_LIMIT:,} are carried "
            f"along; the largest is '{printable(largest)}' with {len(raw):,}: move it elsewhere"
        )


def in_shards(slots: Sequence[Slot], limit: int | None) -> list[list[Slot]]:
    """Split tensors into files of at most `limit` bytes, greedily, in their order.

    As Hugging Face does: a tensor that is larger than the limit gets a file of its own, and the
    file that was being filled goes on after it.

    Args:
        slots: tensors.
        limit: bytes in one file; None puts all in one.

    Returns:
        At least one list; none but an only one is empty.

    Example:
        >>> import torch
        >>> slots = [Slot(str(n), torch.uint8, (n,)) for n in (2, 9, 3, 4)]
        >>> [[slot.count for slot in shard] for shard in in_shards(slots, 5)]
        [[9], [2, 3], [4]]
    """
    shards: list[list[Slot]] = []
    current: list[Slot] = []
    filled = 0
    for slot in slots:
        if limit is not None and slot.nbytes > limit:
            shards.append([slot])
            continue
        if limit is not None and filled + slot.nbytes > limit:
            shards.append(current)
            current, filled = [], 0
        current.append(slot)
        filled += slot.nbytes
    return [*shards, current] if current or not shards else shards


def refuse_split(contents: Contents) -> None:
    """Refuse contents that do not fit the limit, where the format is one file.

    Raises:
        CheckpointError: they do not.

    Example:
        >>> import torch
        >>> refuse_split(Contents([Slot("w", torch.float32, (2,))], {}, {}, limit=4))
        Traceback (most recent call last):
        polyfuse.errors.CheckpointError: the tensors have 8 bytes, more than the 4 that one file...
    """
    total = sum(slot.nbytes for slot in contents.slots)
    if contents.limit is not None and total > contents.limit:
        raise CheckpointError(
            f"the tensors have {total:,} bytes, more than the {contents.limit:,} that one file may "
            "have, and the output is one file; name a folder (end its name with '/')"
        )


def parse_size(size: int | str) -> int:
    """Return a number of bytes, as people write it: GB are 1000^3 bytes, GiB are 1024^3.

    Raises:
        CheckpointError: it is no size, or not at least one byte.

    Example:
        >>> [parse_size(size) for size in (7, "5GB", "1.5 mb", "1GiB", "300")]
        [7, 5000000000, 1500000, 1073741824, 300]
    """
    found = _SIZE.fullmatch(str(size))
    count = int(float(found[1]) * _UNITS[found[2].upper()]) if found and found[2] != "i" else 0
    if count < 1:
        raise CheckpointError(
            f"'{printable(size)}' is no size of a file; type one like 5GB, 500MB or 1GiB"
        )
    return count


def refuse_unwritable(format_name: str, faults: Iterable[str], fix: str) -> None:
    """Refuse tensors that a format cannot hold; all of them are counted, the first are named.

    Raises:
        CheckpointError: there are some.

    Example:
        >>> refuse_unwritable("safetensors", ["'w' is complex128"], "write a .pt file")
        Traceback (most recent call last):
        polyfuse.errors.CheckpointError: safetensors cannot hold 1 tensor: 'w' is complex128; ...
    """
    listed = list(faults)
    if listed:
        what = "1 tensor" if len(listed) == 1 else f"{len(listed):,} tensors"
        more = ", ..." if len(listed) > SHOWN else ""
        shown = ", ".join(listed[:SHOWN])
        raise CheckpointError(f"{format_name} cannot hold {what}: {shown}{more}; {fix}")
