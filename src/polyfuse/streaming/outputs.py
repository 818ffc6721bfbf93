"""Where results go: files that are written in place and appear whole, or memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from polyfuse import durable
from polyfuse.checkpoints.base import Layout, Slot
from polyfuse.checksums import Passing, crc32
from polyfuse.dtypes import Elements, as_tensor, bytes_of
from polyfuse.streaming.base import Plan, Target
from polyfuse.streaming.provenance import note

if TYPE_CHECKING:
    from torch import Tensor


class Output(Protocol):
    """One output while a plan is carried out."""

    @property
    def claims(self) -> list[Any]:
        """What an earlier attempt claimed."""
        ...

    def put(self, name: str, start: int, values: Elements) -> None:
        """Take some elements of a tensor, from any thread."""
        ...

    def claim(self, value: Any) -> None:
        """Make sure that what was put is not lost, and note what it is."""
        ...

    def finish(self, hashes: Mapping[str, str]) -> None:
        """Take the inputs' SHA-256 by path; the output is whole then."""
        ...


class Memory:
    """A state dict in memory.

    Example:
        >>> import numpy as np, torch
        >>> memory = Memory({"w": Slot("w", torch.float32, (2,))})
        >>> memory.put("w", 1, np.array([0x3F800000], np.uint32))
        >>> float(memory.state["w"][1])
        1.0
    """

    def __init__(self, slots: Mapping[str, Slot]) -> None:
        """Make room for all tensors."""
        self.claims: list[Any] = []
        self._slots = slots
        self._kept = {name: s.dtype.empty(s.count) for name, s in slots.items()}

    @property
    def state(self) -> dict[str, Tensor]:
        """The tensors, over the memory that was filled."""
        return {
            name: as_tensor(self._kept[name], slot.dtype).view(slot.shape)
            for name, slot in self._slots.items()
        }

    def put(self, name: str, start: int, values: Elements) -> None:
        """Copy elements; see `Output`."""
        self._kept[name][start : start + len(values)] = values

    def claim(self, value: Any) -> None:
        """Do nothing: memory ends with the process."""

    def finish(self, hashes: Mapping[str, str]) -> None:
        """Do nothing: a state dict says nothing of its origin."""


class Files:
    """One file, or the files of a folder, through `durable.draft`.

    Args:
        stack: the draft becomes final when it ends without an error.
        plan: of the merge.
        target: the output.
        resume: go on with an earlier attempt's draft, and keep this one if it fails.
    """

    def __init__(self, stack: ExitStack, plan: Plan, target: Target, *, resume: bool) -> None:
        """Reserve the space and write what is known; place holders stand for the hashes."""
        assert target.request.out is not None  # else the output is kept in memory
        self._plan, self._target = plan, target
        self._layout = self._laid_out({})
        self._draft = stack.enter_context(
            durable.draft(
                target.request.out,
                self._layout.files,
                key=_key(plan, self._layout),
                resume=resume,
                keep=resume,
            )
        )
        self._passing = {file: Passing() for file, *_ in self._layout.checksums}
        self.done = self._draft.done
        self.claims = self._draft.claims
        self._write_parts(self._layout)

    def put(self, name: str, start: int, values: Elements) -> None:
        """Write elements at their place; see `Output`."""
        file, offset = self._layout.places[name]
        place, raw = offset + start * values.itemsize, bytes_of(values)
        self._draft.write(file, place, raw)
        if file in self._passing:
            self._passing[file].note(place, raw)

    def claim(self, value: Any) -> None:
        """Put everything on disk, then note it in the journal; see `Output`."""
        self._draft.claim(value)

    def finish(self, hashes: Mapping[str, str]) -> None:
        """Write the provenance, then the checksums of what is there now; see `Output`."""
        self._write_parts(self._laid_out(hashes))
        if not self.done:
            write_checksums(self._layout, self._draft, self._passing)

    def _laid_out(self, hashes: Mapping[str, str]) -> Layout:
        assert self._target.layout is not None  # it has files
        return self._target.layout(note(self._plan, self._target, hashes))

    def _write_parts(self, layout: Layout) -> None:
        for name, offset, part in () if self.done else layout.parts:
            self._draft.write(name, offset, part)


def write_checksums(
    layout: Layout, draft: durable.Draft, passing: Mapping[str, Passing] | None = None
) -> None:
    """Put the CRCs that a layout asks for in their places.

    Args:
        layout: of the output.
        draft: with all of its data.
        passing: what was written, by file; what is not in there, as when an earlier attempt wrote
            it, is read again.

    Raises:
        DiskError: the file system refused.
    """
    for file, start, length, places in layout.checksums:
        crc = passing[file].crc32(start, length) if passing else None
        if crc is None:
            crc = crc32(partial(draft.read_into, file), start, length)
        for place in places:
            draft.write(file, place, crc.to_bytes(4, "little"))


def _key(plan: Plan, layout: Layout) -> str:
    """Return a digest of all that decides the bytes of an output, and how the work is cut."""
    prints = [[str(f.path), *f.fingerprint] for c in plan.inputs for f in c.files]
    facts = [prints, sorted(layout.files.items()), len(plan.items)]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for _, _, part in layout.parts:  # the provenance is in there: method, options, policies
        digest.update(part)
    return digest.hexdigest()
