"""A folder of members: the hand-over point between training, weights, predictions and reports.

    RUN/members/000/                      a member; see members.py
    RUN/labels/index.json                 what the splits are; sizes and digests of the rest
               {train,val,test}.npy       labels, beside *_groups.npy and *_names.json

A member appears whole or not at all; so does a fusion, in fusions/NAME/.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from polyfuse import durable, predictions, records
from polyfuse.checkpoints import safetensors
from polyfuse.errors import DataError, RunError, printable
from polyfuse.labels import read_index
from polyfuse.leaks import trained_mask
from polyfuse.members import (
    FIRST_ADDED,
    SCHEMA,
    Floats,
    Member,
    fitted,
    open_member,
    write_arrays,
)
from polyfuse.sequences import DIGITS
from polyfuse.tasks import CLASSES, kept, mean_said, meant

FITTED = "fitted"  # the kind of a fusion that was fitted on held-out rows


class BaseModel(NamedTuple):
    """One model as stacking sees it.

    Attributes:
        name: of the member, or of the folds.
        members: their places in `Population.members`.
    """

    name: str
    members: tuple[int, ...]


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
                members.append(open_member(folder))
            except RunError as error:
                faults.append(str(error))
        if faults:
            raise RunError("\n".join(faults))
        return cls(root, tuple(sorted(members, key=lambda member: member.index)))

    @property
    def trained_here(self) -> "Population":
        """The members that this run trained, without those that were added to it."""
        return replace(self, members=tuple(member for member in self.members if not member.added))

    @property
    def averages(self) -> tuple[str, ...]:
        """Names of the averages that members have; those that were added apart.

        All have the same, but where several members are of one training run: its averages are kept
        with the last of them.
        """
        own = self.trained_here.members
        return tuple(dict.fromkeys(name for member in own for name in member.averages))

    def averaged(self, average: str) -> "Population":
        """Return the members that were trained here and have it, with an average's weights.

        Raises:
            RunError: none has an average of that name.
        """
        own = self.trained_here.members
        having = [m for m in own if average in m.averages] or own
        return replace(self, members=tuple(member.averaged(average) for member in having))

    @property
    def index(self) -> Mapping[str, Any]:
        """What the splits are: task, rows, blank class, fingerprint, files."""
        return read_index(self.path / "labels")

    @property
    def task(self) -> str:
        """What the labels are: classes, "multilabel" zeros and ones, or numbers of a regression."""
        return str(self.index.get("task", CLASSES))  # older folders do not say it

    @property
    def alphabet(self) -> str:
        """The characters that classes of strings stand for."""
        return str(self.index.get("alphabet", DIGITS))  # older folders do not say it

    def rows(self, split: str) -> int:
        """Return how many rows a split has."""
        return int(self.index["splits"][split]["rows"])

    def labels(self, split: str) -> NDArray[Any] | None:
        """Return the labels of a split, int64, or float32 of a regression; None where unknown."""
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
        """Return all members' outputs of a split, `(member, sample, ..., class)` logits.

        Of a regression they are the numbers themselves, in the shape of the labels.

        Raises:
            DataError: the members' predictions and the labels differ in length or shape.
        """
        if not self.members:
            raise RunError(f"'{self.path}' has no members yet; run the same command again")
        arrays = [member.predictions(split) for member in self.members]
        shapes = sorted({a.shape for a in arrays})
        rows = self.rows(split)
        if len(shapes) > 1 or shapes[0][0] != rows:
            raise DataError(
                f"predictions of '{self.path}' for {split} have shapes {shapes}, but the split has "
                f"{rows} rows; delete the members that differ and run again"
            )
        return np.stack(arrays)

    def lengths(self, split: str) -> Floats | None:
        """Return what the members' length heads say of val or test; None where none has one.

        Returns:
            `(member, sample, positions + 1)` logits of the lengths 0 to positions; NaN where a
            member has no length head.
        """
        found = [m.lengths(split) if m.has_lengths else None for m in self.members]
        told = [each for each in found if each is not None]
        if not told:
            return None
        silent = np.full_like(told[0], np.nan)
        return np.stack([silent if each is None else each for each in found])

    def out_of_fold(self) -> Floats:
        """Return, for every training row, the mean output of the members that did not see it.

        NaN where no member held the row out.
        """
        stacked = self.stack("train")
        said = ~np.isnan(stacked)
        total = np.where(said, stacked, 0).sum(0)
        with np.errstate(invalid="ignore"):
            mean: Floats = total / said.sum(0)
        return mean

    def trained(self, split: str) -> NDArray[np.bool_]:
        """Return which member trained on which row of a split.

        On train, rows that it learned from or was stopped on; every row where that is unknown (see
        `Member.trained_on`). On val and test nothing is true: who trained on those is not let in.

        Returns:
            `(member, row)` booleans, as the fits of `polyfuse.leaks` and others take them.
        """
        rows = self.rows(split)
        if split != "train":
            return np.zeros((len(self.members), rows), bool)
        seen = [member.trained_on() for member in self.members]
        return trained_mask([np.ones(rows, bool) if s is None else s for s in seen], rows)

    def base_models(self) -> tuple[BaseModel, ...]:
        """Return what stacking takes for one model each: folds or bags together, others alone.

        The members of a k-fold are one model that was trained several times: none of them speaks
        for every training row, together they do. Several models in one k-fold are one each.
        """
        together: dict[object, list[int]] = {}
        for number, member in enumerate(self.members):
            parts = member.record.keys() & {"folds", "bag"}
            key = (member.record.get("strategy"), member.factory) if parts else number
            together.setdefault(key, []).append(number)
        several = any(self.members[n].factory for numbers in together.values() for n in numbers)
        return tuple(
            BaseModel(_name_of([self.members[n] for n in numbers], several), tuple(numbers))
            for numbers in together.values()
        )

    def speakers(self, base: BaseModel) -> tuple[int, ...]:
        """Return the places of a base model's members that speak of rows other than training's."""
        return tuple(n for n in base.members if self.members[n].fused) or base.members

    @property
    def for_fusions(self) -> "Population":
        """The members that fusions are made of; all where there is none of them yet.

        Those that boosting has dropped are none: see `training.rounds`.
        """
        ends = [m.record["kept"] for m in self.members if "kept" in m.record]
        dropped = range(min(ends), FIRST_ADDED) if ends else ()
        fused = tuple(m for m in self.members if m.fused and m.index not in dropped)
        return replace(self, members=fused or self.members)

    def base_predictions(self, split: str) -> NDArray[np.float64]:
        """Return what each base model says: the mean probability of its members that have a say.

        On train they are out-of-fold predictions, NaN where no member held the row out. Of a
        regression it is the mean of their numbers.

        Returns:
            `(base model, sample, ..., class)` float64, in the order of `base_models`; of labels
            that do not exclude each other the probability that each applies.

        Raises:
            DataError: the members' predictions and the labels differ in length or shape.
        """
        stacked, bases = meant(self.task, self.stack(split)), self.base_models()
        heard = [base.members if split == "train" else self.speakers(base) for base in bases]
        return np.stack([mean_said(self.task, stacked[list(numbers)]) for numbers in heard])

    def base_trained(self, split: str) -> NDArray[np.bool_]:
        """Return where a base model speaks through a member that trained on the row.

        Returns:
            `(base model, row)` booleans; all False where the folds are honest.
        """
        stacked = self.stack(split)
        said = ~np.isnan(stacked.reshape(*stacked.shape[:2], -1)).all(-1)
        leaks = said & self.trained(split)
        return np.stack([leaks[list(base.members)].any(0) for base in self.base_models()])

    def fusion(self, name: str) -> Mapping[str, Any]:
        """Return the record of a fusion that is kept here.

        Raises:
            RunError: there is none, or it is damaged.
        """
        return _fusion_record(self.path / "fusions" / name)

    def fused(self, name: str, split: str) -> NDArray[Any]:
        """Return a fusion's stored answer: log-probabilities, classes of a vote, or numbers."""
        folder, files = self.path / "fusions" / name, self.fusion(name)["files"]
        return predictions.parse(*records.checked(folder, f"predictions/{split}.npy", files))

    def said(self, name: str, split: str) -> NDArray[Any]:
        """Return what a fusion answered: probabilities, classes where it is a vote, or numbers."""
        stored = self.fused(name, split)
        return np.exp(stored) if self.fusion(name)["space"] == "log_prob" else stored

    @property
    def fits(self) -> Mapping[str, bool]:
        """Names of the fusions that were fitted here, and whether on the members of now."""
        folders = sorted((self.path / "fusions").glob("*/fusion.json"))
        kept = {file.parent.name: self.fusion(file.parent.name) for file in folders}
        now = self.fingerprint()
        return {n: r["inputs"] == now for n, r in kept.items() if r.get("kind") == FITTED}

    def fit(self, name: str) -> Mapping[str, Any]:
        """Return the document of what was fitted: `polyfuse.combining.documents` reads it."""
        folder, files = self.path / "fusions" / name, self.fusion(name)["files"]
        raw, shown = records.checked(folder, "fitted.json", files)
        try:
            return dict(json.loads(raw))
        except (ValueError, TypeError) as error:
            raise RunError(f"'{shown}' is no document: {printable(error)}; fit it again") from None

    def soup(self, name: str, factory: Callable[[], nn.Module]) -> nn.Module:
        """Return a fusion that is one model, in eval mode, once its digest is checked."""
        folder, files = self.path / "fusions" / name, self.fusion(name)["files"]
        state, _ = safetensors.parse(*records.checked(folder, "model.safetensors", files))
        return fitted(factory(), state, folder)

    def fingerprint(self) -> str:
        """Return a SHA-256 over the records of all members and the labels."""
        digest = hashlib.sha256(str(self.index["fingerprint"]).encode())
        for member in self.members:
            digest.update(repr(sorted(member.record["files"].items())).encode())
        return digest.hexdigest()

    def _array(self, name: str) -> NDArray[Any] | None:
        files = self.index["files"]
        if name not in files:
            return None
        return predictions.parse(*records.checked(self.path / "labels", name, files))


def write_fusion(
    population: Population,
    name: str,
    members: Sequence[int],
    answers: Mapping[str, NDArray[Any]],
    *,
    state: Mapping[str, Tensor] | None = None,
    fit: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Keep a fusion's answers, in place of other ones of that name.

    Args:
        population: whose members were fused.
        name: of the fusion.
        members: their indices.
        answers: by split: probabilities, kept as their logs; decided classes, or numbers.
        state: weights, where the fusion is one model.
        fit: document of what was fitted, where anything was.
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
    stored = {split: kept(population.task, answer) for split, answer in answers.items()}
    with durable.new_folder(folder) as fresh:
        write_arrays(fresh / "predictions", {s: array for s, (_, array) in stored.items()})
        if state is not None:
            safetensors.write(fresh / "model.safetensors", dict(state))
        if fit is not None:
            durable.write_json(fresh / "fitted.json", fit)
        record = {
            "schema": SCHEMA,
            "name": name,
            **(facts or {}),
            "members": list(members),
            "space": next(iter(stored.values()))[0],
            "inputs": population.fingerprint(),
            "files": records.digests(fresh),
        }
        durable.write_json(fresh / "fusion.json", record)
        if folder.is_dir() and _fusion_record(folder) != record:
            durable.remove_folder(folder)  # else the same stands there, and ours is thrown away


def _name_of(members: Sequence[Member], several: bool) -> str:
    """Return what a base model is called: as its member, or as the folds that it is made of."""
    if len(members) == 1:
        return members[0].name
    model = f", model {members[0].factory}" if several else ""
    return f"{members[0].record.get('strategy')} of {len(members)}{model}"


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
