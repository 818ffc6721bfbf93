"""Image files of a data set, in its folders and tars, by path: `train/1.png`, `images.tar/1.png`.

Names come from strangers: each is one component, inside the data set, and a regular file. Nothing
is ever unpacked: a tar is read once for where its files lie in it, and those are read from there.
"""

import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from polyfuse import durable
from polyfuse.data.images import SUFFIXES
from polyfuse.errors import DataError, PolyfuseError, printable

TAR = ".tar"
FILE_LIMIT = 64 << 20  # bytes of one image file
_LONGEST = 255  # characters of a name
_BLOCK = 512  # bytes; a tar's files are whole blocks of so many, and two empty ones end it
Identity = tuple[int, int]  # size, time of change in ns


class Tar(NamedTuple):
    """Where the images in an uncompressed tar lie.

    Attributes:
        path: the tar.
        identity: what tells whether it was changed since.
        spans: first byte and number of bytes, by the name of the image.
        faults: names and what is wrong with them.
    """

    path: Path
    identity: Identity
    spans: Mapping[str, tuple[int, int]]
    faults: Sequence[tuple[str, str]]

    def read(self, name: str) -> bytes:
        """Return the bytes of an image.

        Raises:
            DataError: there is no such image, or the tar was changed.
        """
        if name not in self.spans:
            raise DataError("is not in the tar")
        start, size = self.spans[name]
        try:
            with open(self.path, "rb") as file:
                if _identity(file.fileno()) != self.identity:
                    raise DataError(f"'{printable(self.path)}' was changed; start again")
                file.seek(start)
                return file.read(size)
        except OSError as error:
            raise DataError(f"cannot read '{printable(self.path)}': {error.strerror}") from None


@dataclass(frozen=True)
class ImageFiles:
    """The image files under a folder, and in the tars that were listed there.

    Args:
        root: the folder of the data set.

    Example:
        >>> ImageFiles(Path("/no/such/folder")).read("train/1.png")
        Traceback (most recent call last):
        polyfuse.errors.DataError: there is no such file
    """

    root: Path
    tars: dict[str, Tar] = field(default_factory=dict)

    def places(self, names: Mapping[str, str]) -> dict[str, str]:
        """Return where the images of each split are, by the names of the folders.

        Raises:
            DataError: all places that are not there, or are there twice.
        """
        found, faults = {}, []
        for split, name in names.items():
            try:
                found[split] = self.place(name)
            except DataError as error:
                faults.append(str(error))
        if faults:
            raise DataError("\n".join(faults))
        return found

    def place(self, name: str) -> str:
        """Return where images are: the folder of this name, or the tar, `name.tar`.

        Raises:
            DataError: there is neither, or both.
        """
        there = [n for n in (name, name + TAR) if _is_there(self.root / n, n.endswith(TAR))]
        root = printable(self.root)
        if not there:
            raise DataError(
                f"'{root}' has no folder '{printable(name)}' and no '{printable(name)}{TAR}'; "
                "put the images there"
            )
        if len(there) > 1:
            raise DataError(
                f"'{root}' has both '{printable(name)}' and '{printable(name)}{TAR}'; keep one"
            )
        return there[0]

    def names(self, place: str) -> list[str]:
        """Return the names of the images in a folder or tar, sorted; a tar's faults are kept.

        Files of other kinds, and hidden ones, are no images.

        Raises:
            DataError: the folder or tar cannot be read.
        """
        path = self.root / place
        if place.endswith(TAR):
            self.tars[place] = index_tar(path)
            return sorted(self.tars[place].spans)
        try:
            return sorted(name for name in os.listdir(path) if _is_image(name))
        except OSError as error:
            raise DataError(f"cannot read '{printable(path)}': {error.strerror}") from None

    def paths(self, files: Sequence[str]) -> list[Path]:
        """Return the files on the disk that have these images: each its own, or a tar once."""
        places = (file.rpartition("/")[0] for file in files)
        held = zip(files, places, strict=True)
        return list(
            dict.fromkeys(self.root / (place if place in self.tars else f) for f, place in held)
        )

    def read(self, file: str) -> bytes:
        """Return the bytes of an image, by its path under the root.

        Raises:
            DataError: missing, no regular file, a link, larger than 64 MB.
        """
        place, _, name = file.rpartition("/")
        if place in self.tars:
            return self.tars[place].read(name)
        path = self.root / file
        if path.is_symlink():  # it may lead anywhere
            raise DataError("is a symbolic link; put the file itself there")
        if not path.exists():
            raise DataError("there is no such file")
        try:
            return durable.read_bytes(path, limit=FILE_LIMIT)
        except PolyfuseError as error:
            raise DataError(str(error).replace(f"'{printable(path)}' ", "")) from None


def name_fault(name: str) -> str | None:
    """Return what is wrong with a file's name that a stranger's list has; None where nothing is.

    Example:
        >>> name_fault("000000.png"), name_fault("../000000.png")
        (None, 'leaves its folder: a name has no slash')
    """
    if not name or len(name) > _LONGEST:
        return f"is no name of 1 to {_LONGEST} characters"
    if not name.isprintable():
        return "has characters that cannot be shown"
    if set(name) & set("/\\") or name in (".", ".."):
        return "leaves its folder: a name has no slash"
    if not _is_image(name):
        return f"is no image file; those end in {', '.join(SUFFIXES)}"
    return None


def index_tar(path: Path) -> Tar:
    """Find the images in an uncompressed tar; those in one folder of it count as at its top.

    Args:
        path: of the tar.

    Raises:
        DataError: no such file, no tar, a compressed or a damaged one.

    Example:
        >>> index_tar(Path("/no/such.tar"))
        Traceback (most recent call last):
        polyfuse.errors.DataError: cannot read '/no/such.tar': No such file or directory
    """
    shown = printable(path)
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            members = archive.getmembers()
            file.seek(archive.offset)
            if any(file.read(_BLOCK)):  # tarfile takes a damaged header for the end
                raise DataError(f"'{shown}' is damaged after {len(members)} files; fetch it again")
            identity = _identity(file.fileno())
    except tarfile.TarError as error:
        raise DataError(
            f"'{shown}' is no tar, a compressed or a damaged one ({printable(error)}); "
            "fetch it again, or unpack it: gunzip"
        ) from None
    except (OSError, ValueError, OverflowError, EOFError) as error:
        reason = getattr(error, "strerror", None) or printable(error)
        raise DataError(f"cannot read '{shown}': {reason}") from None
    return Tar(path, identity, *_spans(members))


def _spans(
    members: Sequence[tarfile.TarInfo],
) -> tuple[dict[str, tuple[int, int]], list[tuple[str, str]]]:
    spans: dict[str, tuple[int, int]] = {}
    faults = []
    for member in members:
        parts = member.name.split("/")
        name = parts[-1]
        if member.isdir() or not _is_image(name):
            continue
        fault = _member_fault(member, parts)
        if fault is None and name in spans:
            fault = "is twice in the tar"
        if fault:
            faults.append((member.name, fault))
        else:
            spans[name] = (member.offset_data, member.size)
    return spans, faults


def _member_fault(member: tarfile.TarInfo, parts: Sequence[str]) -> str | None:
    """Return what is wrong with an image of a tar, as its header tells."""
    if ".." in parts or parts[0] == "" or "\\" in member.name or len(parts[-1]) > _LONGEST:
        return "leaves the tar: a name has no .. and no slash in front"
    if not member.isreg() or member.issparse():
        return "is no regular file in the tar"
    if member.size > FILE_LIMIT:
        return f"has {member.size:,} bytes; at most {FILE_LIMIT:,} are read"
    return None


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def _is_there(path: Path, tar: bool) -> bool:
    return path.is_file() if tar else path.is_dir()


def _identity(descriptor: int) -> Identity:
    facts = os.fstat(descriptor)
    return facts.st_size, facts.st_mtime_ns
