"""A folder of members: the hand-over point between training, weights, predictions and reports.

    RUN/members/000/member.json           strategy, fold, seed; sizes and digests of the rest
                    model.safetensors     weights
                    rows/*.npy            rows it learned from, stopped on, and held out
                    predictions/*.npy     logits of train (out of fold), val, test; NaN: no say
    RUN/labels/index.json                 what the splits are; sizes and digests of the rest
               {train,val,test}.npy       labels, beside *_groups.npy and *_names.json

A member appears whole or not at all; `member.json` vouches for its files.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from polyfuse import durable, predictions, records
from polyfuse.checkpoints import safetensors
from polyfuse.errors import DataError, RunError, printable
from polyfuse.labels import read_index

SCHEMA = 1
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Member:
    """One member of a population, as its record vouches for it.

    Attributes:
        path: its folder.
        record: the contents of `member.json`.

    Example:
        >>> Member(Path("RUN/members/003"), {"index": 3}).name
        'member 3'
    """

    path: Path
    record: Mapping[str, Any]

    @property
    def index(self) -> int:
        """Its number, from 0."""
        return int(self.record["index"])

    @property
    def name(self) -> str:
        """Its name on a scoreboard."""
        return f"member {self.index}"

    @property
    def parameters(self) -> int:
        """How many parameters it has."""
        return int(self.record["parameters"])

    def state(self) -> dict[str, Tensor]:
        """Return its weights, once their digest is checked."""
        return safetensors.parse(*self._checked("model.safetensors"))[0]

    def checkpoint(self) -> Path:
        """Return the file of its weights, once its digest is checked."""
        self._checked("model.safetensors")
        return self.path / "model.safetensors"

    def model(self, factory: Callable[[], nn.Module]) -> nn.Module:
        """Return the net that `factory` makes, with this member's weights, in eval mode."""
        return _loaded(factory(), self.state(), self.path)

    def predictions(self, split: str) -> Floats:
        """Return logits of a split, a row a sample; NaN where this member has no say."""
        return predictions.parse(*self._checked(f"predictions/{split}.npy"))

    def rows(self, part: str) -> NDArray[np.int64]:
        """Return the training split's rows it `learned` from, `stopped` on or `held_out`."""
        return predictions.parse(*self._checked(f"rows/{part}.npy"))

    def _checked(self, name: str) -> tuple[bytes, str]:
        return records.checked(self.path, name, self.record["files"])


@dataclass(frozen=True)
class Population:
    """The members of a RUN folder and the labels they are scored on.

    Attributes:
        path: the RUN folder; everything inside is found relative to it, so it may be moved.
        members: in order of their index.

    Example:
        >>> Population(Path("RUN"), ())
        Population(path=PosixPath('RUN'), members=())
    """

    path: Path
    members: tuple[Member, ...]

    @classmethod
    def open(cls, path: str | Path) -> "Population":
        """Read the records of all members of a RUN folder.

        Raises:
            RunError: no such folder, or a member that is half-written or damaged; all are named.
        """
        root = Path(path)
        if not root.is_dir():
            raise RunError(f"there is no RUN folder '{printable(root)}'; make one: polyfuse demo")
        folders = sorted(p for p in (root / "members").glob("*") if not p.name.startswith("."))
        members, faults = [], []
        for folder in folders:
            try:
                members.append(_open_member(folder))
            except RunError as error:
                faults.append(str(error))
        if faults:
            raise RunError("\n".join(faults))
        return cls(root, tuple(sorted(members, key=lambda member: member.index)))

    @property
    def index(self) -> Mapping[str, Any]:
        """What the splits are: rows, blank class, fingerprint, files."""
        return read_index(self.path / "labels")

    def labels(self, split: str) -> NDArray[np.int64] | None:
        """Return the labels of a split; None where unknown."""
        return self._array(f"{split}.npy")

    def groups(self, split: str) -> NDArray[np.int64] | None:
        """Return the groups of a split's rows; None where every row stands alone."""
        return self._array(f"{split}_groups.npy")

    def names(self, split: str) -> list[str]:
        """Return the names of a split's rows."""
        record = self.index
        raw, _ = records.checked(self.path / "labels", f"{split}_names.json", record["files"])
        return [str(name) for name in json.loads(raw)]

    def stack(self, split: str) -> Floats:
        """Return all members' logits of a split, `(member, sample, ..., class)`.

        Raises:
            DataError: the members' predictions and the labels differ in length or shape.
        """
        if not self.members:
            raise RunError(f"'{self.path}' has no members yet; run the same command again")
        arrays = [member.predictions(split) for member in self.members]
        shapes = sorted({a.shape for a in arrays})
        rows = int(self.index["splits"][split]["rows"])
        if len(shapes) > 1 or shapes[0][0] != rows:
            raise DataError(
                f"predictions of '{self.path}' for {split} have shapes {shapes}, but the split has "
                f"{rows} rows; delete the members that differ and run again"
            )
        return np.stack(arrays)

    def out_of_fold(self) -> Floats:
        """Return, for every training row, the mean logits of the members that did not see it.

        NaN where no member held the row out.
        """
        stacked = self.stack("train")
        said = ~np.isnan(stacked)
        total = np.where(said, stacked, 0).sum(0)
        with np.errstate(invalid="ignore"):
            mean: Floats = total / said.sum(0)
        return mean

    def fusion(self, name: str) -> Mapping[str, Any]:
        """Return the record of a fusion that is kept here.

        Raises:
            RunError: there is none, or it is damaged.
        """
        return _fusion_record(self.path / "fusions" / name)

    def fused(self, name: str, split: str) -> NDArray[Any]:
        """Return a fusion's stored answer: log-probabilities, or classes where it is a vote."""
        folder, files = self.path / "fusions" / name, self.fusion(name)["files"]
        return predictions.parse(*records.checked(folder, f"predictions/{split}.npy", files))

    def soup(self, name: str, factory: Callable[[], nn.Module]) -> nn.Module:
        """Return a fusion that is one model, in eval mode, once its digest is checked."""
        folder, files = self.path / "fusions" / name, self.fusion(name)["files"]
        state, _ = safetensors.parse(*records.checked(folder, "model.safetensors", files))
        return _loaded(factory(), state, folder)

    def fingerprint(self) -> str:
        """Return a SHA-256 over the records of all members and the labels."""
        digest = hashlib.sha256(str(self.index["fingerprint"]).encode())
        for member in self.members:
            digest.update(repr(sorted(member.record["files"].items())).encode())
        return digest.hexdigest()

    def _array(self, name: str) -> NDArray[np.int64] | None:
        files = self.index["files"]
        if name not in files:
            return None
        return predictions.parse(*records.checked(self.path / "labels", name, files))


def write_member(
    root: Path,
    record: Mapping[str, Any],
    state: Mapping[str, Tensor],
    logits: Mapping[str, Floats],
    rows: Mapping[str, NDArray[np.int64]],
) -> Member:
    """Commit a member to a population; the first commit of an index wins.

    Args:
        root: the RUN folder.
        record: `index`, `parameters`, strategy, seed, scores; goes into `member.json`.
        state: weights.
        logits: by split, `(n, ..., class)` float32.
        rows: `learned`, `stopped`, `held_out`, int64.

    Returns:
        The member that is in the folder now.

    Raises:
        RunError: a half-written member stands in the way.
        DiskError: the file system refused; nothing half-written is left.
    """
    durable.make_folder(root / "members")
    path = root / "members" / f"{record['index']:03d}"
    with durable.new_folder(path) as fresh:
        safetensors.write(fresh / "model.safetensors", dict(state))
        for folder, arrays in {"rows": rows, "predictions": logits}.items():
            durable.make_folder(fresh / folder)
            for name, array in arrays.items():
                predictions.write(fresh / folder / f"{name}.npy", array)
        complete = {"schema": SCHEMA, **record, "files": records.digests(fresh)}
        durable.write_json(fresh / "member.json", complete)
    return _open_member(path)


def write_fusion(
    population: Population,
    name: str,
    members: Sequence[int],
    answers: Mapping[str, NDArray[Any]],
    *,
    state: Mapping[str, Tensor] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Keep a fusion's answers, in place of other ones of that name.

    Args:
        population: whose members were fused.
        name: of the fusion.
        members: their indices.
        answers: by split: probabilities, kept as their logs, or decided classes.
        state: weights, where the fusion is one model.
        facts: what else its record says of it.

    Raises:
        RunError: a half-written fusion stands in the way.
        DiskError: the file system refused.

    Example:
        >>> write_fusion.__name__
        'write_fusion'
    """
    folder = population.path / "fusions" / name
    durable.make_folder(folder.parent)
    votes = all(answer.dtype.kind in "iu" for answer in answers.values())
    with durable.new_folder(folder) as fresh:
        durable.make_folder(fresh / "predictions")
        for split, answer in answers.items():
            kept = answer if votes else np.log(np.maximum(answer, np.finfo(np.float32).tiny))
            predictions.write(fresh / "predictions" / f"{split}.npy", kept)
        if state is not None:
            safetensors.write(fresh / "model.safetensors", dict(state))
        record = {
            "schema": SCHEMA,
            "name": name,
            **(facts or {}),
            "members": list(members),
            "space": "label" if votes else "log_prob",
            "inputs": population.fingerprint(),
            "files": records.digests(fresh),
        }
        durable.write_json(fresh / "fusion.json", record)
        if folder.is_dir() and _fusion_record(folder) != record:
            durable.remove_folder(folder)  # else the same stands there, and ours is thrown away


def _loaded(net: nn.Module, state: Mapping[str, Tensor], path: Path) -> nn.Module:
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise RunError(
            f"'{printable(path)}' does not fit the model: {printable(error, 600)}; "
            "name the model that it was trained as"
        ) from None
    return net.eval()


def _fusion_record(folder: Path) -> Mapping[str, Any]:
    try:
        record = durable.read_json(folder / "fusion.json")
    except RunError:
        record = None
    files = record.get("files") if isinstance(record, dict) else None
    if not records.are_files(files) or record.get("schema") != SCHEMA:
        raise RunError(
            f"'{printable(folder)}' is half-written or damaged: fusion.json is missing or no "
            "record; delete the folder and run the same command again (fusions are made again, "
            "members are kept)"
        )
    return dict(record)


def _open_member(path: Path) -> Member:
    """Read a member's record; sizes of its files are checked now, digests when they are read."""
    shown = printable(path)
    if not (path / "member.json").is_file():
        raise RunError(
            f"'{shown}' is half-written: it has no member.json; delete or move the folder away and "
            "run the same command again (the other members are kept)"
        )
    record = durable.read_json(path / "member.json")
    if not _is_record(record):
        raise RunError(
            f"'{shown}/member.json' is no record of schema {SCHEMA}; it was written by another "
            "version of polyfuse or by hand: delete the folder and run the same command again"
        )
    if path.name != f"{record['index']:03d}":
        raise RunError(
            f"'{shown}' says that it is member {printable(record['index'])}; a copy would count "
            "twice: delete or move the folder away"
        )
    for name, facts in record["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != facts["bytes"]:
            raise RunError(
                f"'{shown}/{printable(name)}' is missing or truncated (member.json says "
                f"{facts['bytes']:,} bytes); delete '{shown}' and run the same command again "
                "(the other members are kept)"
            )
    return Member(path, record)


def _is_record(record: Any) -> bool:
    """Tell whether a document from a file is a member's record; names in it stay in the folder."""
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        return False
    numbers = (record.get("index"), record.get("parameters"))
    return records.are_files(record.get("files")) and all(
        isinstance(number, int) and number >= 0 for number in numbers
    )
