"""A RUN folder's copy in an object store: s3://, gs://, or whatever else fsspec opens.

    ADDRESS/run.json                              of the recipe
            labels/index.json                     marker, written last
            members/003/member.json               marker, written last
            members/003/DIGEST/model.safetensors  what the marker of this digest vouches for

Such stores have no rename, so a part is finished by its marker. Its files lie under the marker's
own SHA-256: two attempts at a member never write over each other's files, and whichever marker
stands at last, all that it vouches for is there. A marker that was cut short counts for nothing.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from polyfuse import durable, records
from polyfuse.errors import MissingExtraError, PolyfuseError, RunError, printable
from polyfuse.members import open_member
from polyfuse.runners.base import Function, Notify, Result, Runner, Watch


@dataclass(frozen=True)
class Mirror:
    """A copy of a RUN folder under an address.

    Args:
        address: where: `s3://bucket/run`, `gs://bucket/run`, `file:///mnt/run`, ...
        options: for fsspec: credentials, endpoints.

    Example:
        >>> import tempfile
        >>> Mirror("memory://runs/empty").pull(Path(tempfile.mkdtemp()))
        []
    """

    address: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def pull(self, root: Path) -> list[str]:
        """Fetch what is finished there and is not here; return the parts' names.

        Raises:
            RunError: the store refuses, holds another run, or has lost or changed a file.
            MissingExtraError: fsspec lacks a package for such an address.
        """
        with self._asked() as store:
            self._refuse_another(store, root)
            if not (root / "run.json").exists() and store.document("run.json"):
                durable.make_folder(root)
                durable.write_bytes(root / "run.json", store.read("run.json"))
            new = [part for part in store.parts() if not (root / part.folder).exists()]
            return [part.folder for part in new if _fetch(store, part, root)]

    def push(self, root: Path) -> list[str]:
        """Copy what is finished here and not there; return the parts' names.

        Raises:
            RunError: as for `pull`, or a part here is damaged.
            MissingExtraError: as for `pull`.
        """
        with self._asked() as store:
            self._refuse_another(store, root)
            if (root / "run.json").exists() and not store.document("run.json"):
                store.write("run.json", durable.read_bytes(root / "run.json"))
            new = [part for part in _parts(root) if store.record(part) is None]
            for part in new:
                _copy(store, part, root)
            return [part.folder for part in new]

    @contextlib.contextmanager
    def _asked(self) -> Iterator["_Store"]:
        """Open the store; what it refuses becomes an error that names it."""
        try:
            yield _Store(self.address, self.options)
        except PolyfuseError:
            raise
        except ImportError as error:
            raise MissingExtraError(
                f"'{printable(self.address)}' needs a package: {printable(error, 400)}"
            ) from None
        except Exception as error:  # each file system raises its own kinds
            raise RunError(
                f"'{printable(self.address)}' refuses: {type(error).__name__}: "
                f"{printable(error, 400)}; check address and credentials, and run the same command "
                "again"
            ) from error

    def _refuse_another(self, store: "_Store", root: Path) -> None:
        """Refuse a store that holds members of another recipe or other data."""
        for name, key in (("run.json", "recipe"), ("labels/index.json", "fingerprint")):
            there = store.document(name) if (root / name).exists() else None
            if there and there.get(key) != durable.read_json(root / name).get(key):
                raise RunError(
                    f"'{printable(self.address)}' holds another run: its {name} has another {key} "
                    f"than that of '{printable(root)}'; name another address, or another folder"
                )


@dataclass(frozen=True)
class Mirrored:
    """A runner whose jobs take members from a mirror and bring theirs there.

    Its workers need no folder in common: each keeps the RUN folder for itself, and this process
    fetches what they have made.

    Args:
        runner: where jobs run.
        mirror: the copy that all share.
        root: the RUN folder.

    Example:
        >>> from polyfuse.runners.local import LocalRunner
        >>> Mirrored(LocalRunner(2), Mirror("memory://runs/1"), Path("RUN")).workers
        2
    """

    runner: Runner
    mirror: Mirror
    root: Path

    @property
    def workers(self) -> int | None:
        """How many jobs run at once, where the runner says."""
        number: int | None = getattr(self.runner, "workers", None)
        return number

    def map(self, function: Function, jobs: Sequence[Any], watch: Watch) -> Iterator[Result]:
        """Yield one result a job, its members fetched; see `Runner`."""
        far = partial(_carried, function=function, mirror=self.mirror, root=self.root.absolute())
        for result in self.runner.map(far, jobs, watch):
            if result.error is None:
                self.mirror.pull(self.root)
            yield result


def _carried(job: Any, notify: Notify, *, function: Function, mirror: Mirror, root: Path) -> Any:
    """Do a job beside the mirror: it may need members of earlier rounds, or be done already."""
    for part in ("members", "resume"):
        durable.make_folder(root / part)
    mirror.pull(root)
    wanted = [root / "members" / f"{index:03d}" for index in getattr(job, "indices", ())]
    if wanted and all(folder.exists() for folder in wanted):
        return True
    value = function(job, notify)
    mirror.push(root)
    return value


@dataclass(frozen=True)
class _Part:
    """A folder that is there when its marker is."""

    folder: str
    marker: str

    def file(self, marker: bytes, name: str) -> str:
        """Return where a file lies that such a marker vouches for."""
        return f"{self.folder}/{hashlib.sha256(marker).hexdigest()}/{name}"


class _Store:
    """The objects under an address."""

    def __init__(self, address: str, options: Mapping[str, Any]) -> None:
        from fsspec.core import url_to_fs

        self.files, base = url_to_fs(address, **options)
        self.base = base.rstrip("/")
        self.address = address
        self.files.invalidate_cache()

    def has(self, name: str) -> bool:
        return bool(self.files.exists(f"{self.base}/{name}"))

    def read(self, name: str) -> bytes:
        return bytes(self.files.cat_file(f"{self.base}/{name}"))

    def write(self, name: str, raw: bytes) -> None:
        path = f"{self.base}/{name}"
        try:
            self.files.pipe_file(path, raw)
        except FileNotFoundError:  # a store with folders
            self.files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self.files.pipe_file(path, raw)

    def parts(self) -> list[_Part]:
        """Return the parts that may have a marker."""
        found = self.files.glob(f"{self.base}/members/*/member.json")
        names = sorted(str(path).split("/")[-2] for path in found)
        members = [_Part(f"members/{name}", "member.json") for name in names if name.isdecimal()]
        labels = _Part("labels", "index.json")
        return [labels, *members]

    def document(self, name: str) -> dict[str, Any] | None:
        """Return what a JSON object says; None where there is none, or it was cut short."""
        return _document(self.read(name)) if self.has(name) else None

    def record(self, part: _Part) -> tuple[bytes, Mapping[str, Any]] | None:
        """Return a part's marker and what it says; None where it is not finished."""
        name = f"{part.folder}/{part.marker}"
        raw = self.read(name) if self.has(name) else b""
        record = _document(raw)
        if record is None or not records.are_files(record.get("files")):
            return None
        return raw, record


def _document(raw: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _parts(root: Path) -> list[_Part]:
    """Return the parts of a RUN folder that are finished, and refuse damaged members."""
    folders = sorted(p for p in (root / "members").glob("*") if not p.name.startswith("."))
    names = [open_member(folder).path.name for folder in folders]
    members = [_Part(f"members/{name}", "member.json") for name in names]
    labels = _Part("labels", "index.json")
    return [labels, *members] if (root / "labels" / "index.json").exists() else members


def _copy(store: _Store, part: _Part, root: Path) -> None:
    """Copy a part's files, and its marker last."""
    folder = root / part.folder
    marker = durable.read_bytes(folder / part.marker)
    files = json.loads(marker)["files"]
    for name in sorted(files):
        raw, _ = records.checked(folder, name, files)
        store.write(part.file(marker, name), raw)
    store.write(f"{part.folder}/{part.marker}", marker)


def _fetch(store: _Store, part: _Part, root: Path) -> bool:
    """Fetch a part whole; return whether it was finished."""
    found = store.record(part)
    if found is None:
        return False
    marker, record = found
    durable.make_folder((root / part.folder).parent)
    with durable.new_folder(root / part.folder) as fresh:
        for name, facts in record["files"].items():
            raw = _vouched(store, part.file(marker, name), facts)
            durable.make_folder((fresh / name).parent)
            durable.write_bytes(fresh / name, raw)
        durable.write_bytes(fresh / part.marker, marker)
    return True


def _vouched(store: _Store, name: str, facts: Mapping[str, Any]) -> bytes:
    """Return an object's bytes, once its digest is checked."""
    raw = store.read(name) if store.has(name) else b""
    if len(raw) != facts["bytes"] or hashlib.sha256(raw).hexdigest() != facts["sha256"]:
        part = "/".join(name.split("/")[:-2])
        raise RunError(
            f"'{printable(store.address)}/{printable(name)}' is missing or was changed; delete "
            f"everything under {printable(part)}/ there, and run the same command again"
        )
    return raw
