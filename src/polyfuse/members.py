"""One member in its folder: weights, predictions, rows, and the record that vouches for them.

    members/000/member.json           strategy, fold, seed; sizes and digests of the rest
            100000/                   and on: members that were trained elsewhere and added
                model.safetensors     weights
                rows/*.npy            rows it learned from, stopped on, and held out
                predictions/*.npy     logits of train (out of fold), val, test; NaN: no say
                lengths/*.npy         logits of a length head, of val and test, where it has one
                averages/NAME/        the same of its averaged weights
                carried/*.npy         what later rounds of a boosting need of it

A member appears whole or not at all.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polyfuse import durable, predictions, records
from polyfuse.checkpoints import safetensors
from polyfuse.errors import RunError, did_you_mean, printable
from polyfuse.stochastic import mc_dropout
from polyfuse.subspaces import Subspace

SCHEMA = 1
FOREIGN = "foreign"  # the strategy of a member that was trained elsewhere
FIRST_ADDED = 100_000  # its number is this or above, so that none to be trained here has the same
LONGEST = 80  # characters of a name
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Member:
    """One member of a population, as its record vouches for it.

    Attributes:
        path: its folder.
        record: the contents of `member.json`.
        average: whose weights and predictions it gives; its own where None.

    Example:
        >>> Member(Path("RUN/members/003"), {"index": 3}).name
        'member 3'
    """

    path: Path
    record: Mapping[str, Any]
    average: str | None = None

    @property
    def index(self) -> int:
        """Its number, from 0."""
        return int(self.record["index"])

    @property
    def name(self) -> str:
        """Its name on a scoreboard: the one it was added under, or its number."""
        return with_average(str(self.record.get("name", f"member {self.index}")), self.average)

    @property
    def added(self) -> bool:
        """Whether it was trained elsewhere and added by `polyfuse add`."""
        return self.record.get("strategy") == FOREIGN

    @property
    def factory(self) -> int:
        """Place of the function that makes its model, among those of the task."""
        return int(self.record.get("factory", 0))

    @property
    def fused(self) -> bool:
        """Whether fusions are made of it; a fold may only speak for another member on train."""
        return bool(self.record.get("fused", True))

    @property
    def has_weights(self) -> bool:
        """Whether its weights are here; a member that was added by its predictions has none."""
        return "model.safetensors" in self.record["files"] or "weights_of" in self.record

    @property
    def averages(self) -> tuple[str, ...]:
        """Names of the averages that were tracked while it was trained."""
        return tuple(self.record.get("averages", ()))

    def averaged(self, average: str) -> "Member":
        """Return this member with the weights and predictions of an average.

        Raises:
            RunError: none of that name was tracked.
        """
        if average not in self.averages:
            raise RunError(
                f"'{printable(self.path)}' has no average '{printable(average)}'"
                f"{did_you_mean(average, self.averages)}; it has: "
                f"{printable(', '.join(self.averages)) or 'none'}"
            )
        return replace(self, average=average)

    @property
    def parameters(self) -> int | None:
        """How many parameters it has; None where nobody said."""
        number = self.record["parameters"]
        return None if number is None else int(number)

    @property
    def milliseconds(self) -> float | None:
        """Time of a forward pass a sample, as it was told or measured when it was added."""
        return self.record.get("milliseconds")

    def state(self) -> dict[str, Tensor]:
        """Return its weights, once their digest is checked.

        Raises:
            RunError: it was added by its predictions alone, or the file was changed.
        """
        owner = self._owner()
        return safetensors.parse(*owner._checked(owner._weights()))[0]

    def checkpoint(self) -> Path:
        """Return the file of its weights, once its digest is checked.

        Raises:
            RunError: it was added by its predictions alone, or the file was changed.
        """
        owner = self._owner()
        name = owner._weights()
        owner._checked(name)
        return owner.path / name

    def model(self, factory: Callable[[], nn.Module]) -> nn.Module:
        """Return the net that `factory` makes, with this member's weights, in eval mode.

        It is told only the features that the member has seen, where those are a part of all; and
        where it is a sample of MC dropout, it drops the same units as ever.
        """
        net = factory()
        if "features" in self.record:
            net = Subspace(net, torch.zeros(self.record["features"], dtype=torch.int64))
        net, seed = fitted(net, self.state(), self.path), self.record.get("dropout_seed")
        return net if seed is None else mc_dropout(net, seed=seed)

    def predictions(self, split: str) -> Floats:
        """Return logits of a split, a row a sample; NaN where this member has no say."""
        return predictions.parse(*self._checked(self._own(f"predictions/{split}.npy")))

    @property
    def has_lengths(self) -> bool:
        """Whether its model has a length head."""
        return self._own("lengths/val.npy") in self.record["files"]

    def lengths(self, split: str) -> Floats:
        """Return logits of the lengths 0 to positions, `(row, positions + 1)`, of val or test."""
        return predictions.parse(*self._checked(self._own(f"lengths/{split}.npy")))

    def rows(self, part: str) -> NDArray[np.int64]:
        """Return the training split's rows it `learned` from, `stopped` on or `held_out`."""
        return predictions.parse(*self._checked(f"rows/{part}.npy"))

    def carried(self, name: str) -> NDArray[Any]:
        """Return what it carries for later rounds, an array that its strategy named so."""
        return predictions.parse(*self._checked(f"carried/{name}.npy"))

    def trained_on(self) -> NDArray[np.int64] | None:
        """Return the training split's rows that it learned from or was stopped on.

        Returns:
            Row numbers, sorted, each once; None where they are unknown: nobody said it of an added
            member, or it started from weights that may have learned from any row.
        """
        files = self.record["files"]
        if "start" in self.record or "rows/learned.npy" not in files:
            return None
        parts = [part for part in ("learned", "stopped") if f"rows/{part}.npy" in files]
        return np.unique(np.concatenate([self.rows(part) for part in parts]))

    def _owner(self) -> "Member":
        """Return the member whose folder keeps its weights: several may be samples of one net."""
        of = self.record.get("weights_of")
        if of is None:
            return self
        owner = open_member(self.path.parent / f"{of:03d}")
        return owner if self.average is None else owner.averaged(self.average)

    def _weights(self) -> str:
        if not self.has_weights:
            name = printable(self.name)
            raise RunError(
                f"'{name}' was added by its predictions alone: it has no weights to average, to "
                "mix or to apply to new data; use what is made without it, or delete "
                f"'{printable(self.path)}' and bring its weights: polyfuse add "
                f"{printable(self.path.parents[1])} --name '{name}' --checkpoint FILE"
            )
        return self._own("model.safetensors")

    def _own(self, name: str) -> str:
        return name if self.average is None else f"averages/{self.average}/{name}"

    def _checked(self, name: str) -> tuple[bytes, str]:
        return records.checked(self.path, name, self.record["files"])


def write_member(
    root: Path,
    record: Mapping[str, Any],
    state: Mapping[str, Tensor] | None,
    logits: Mapping[str, Floats],
    rows: Mapping[str, NDArray[np.int64]],
    averages: Mapping[str, tuple[Mapping[str, Tensor] | None, Mapping[str, Floats]]] | None = None,
    carried: Mapping[str, NDArray[Any]] | None = None,
    lengths: Mapping[str | None, Mapping[str, Floats]] | None = None,
) -> Member:
    """Commit a member to a population; the first commit of an index wins.

    Args:
        root: the RUN folder.
        record: `index`, `parameters`, strategy, seed, scores; goes into `member.json`.
        state: weights; None where only predictions are known, or another member has them, which
            the record then names as `weights_of`.
        logits: by split, `(n, ..., class)` float32.
        rows: `learned`, `stopped`, `held_out`, int64.
        averages: by name, averaged weights, or None likewise, and their logits.
        carried: arrays for later rounds, by name.
        lengths: of a length head, by the name of an average (None: its own weights) and by split,
            `(n, positions + 1)` float32 logits.

    Returns:
        The member that is in the folder now.

    Raises:
        RunError: a half-written member stands in the way.
        DiskError: the file system refused; nothing half-written is left.
    """
    durable.make_folder(root / "members")
    path = root / "members" / f"{record['index']:03d}"
    with durable.new_folder(path) as fresh:
        if rows:
            write_arrays(fresh / "rows", rows)
        _write_model(fresh, state, logits)
        for name, average in (averages or {}).items():
            _write_model(fresh / "averages" / name, *average)
        if carried:
            write_arrays(fresh / "carried", carried)
        for owner, said in (lengths or {}).items():
            place = fresh if owner is None else fresh / "averages" / owner
            write_arrays(place / "lengths", said)
        complete = {"schema": SCHEMA, **record, "files": records.digests(fresh)}
        durable.write_json(fresh / "member.json", complete)
    return open_member(path)


def _write_model(
    folder: Path, state: Mapping[str, Tensor] | None, logits: Mapping[str, NDArray[Any]]
) -> None:
    durable.make_folder(folder)
    if state is not None:
        safetensors.write(folder / "model.safetensors", dict(state))
    write_arrays(folder / "predictions", logits)


def write_arrays(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as `NAME.npy` into a folder, which is made where it is missing.

    Example:
        >>> import tempfile
        >>> write_arrays(Path(tempfile.mkdtemp()) / "rows", {"learned": np.arange(3)})
    """
    durable.make_folder(folder)
    for name, array in arrays.items():
        predictions.write(folder / f"{name}.npy", array)


def with_average(name: str, average: str | None) -> str:
    """Return what a row of the scoreboard is called whose members have averaged weights.

    Example:
        >>> with_average("mean_probability", "ema"), with_average("mean_probability", None)
        ('mean_probability, ema', 'mean_probability')
    """
    return name if average is None else f"{name}, {average}"


def fitted(net: nn.Module, state: Mapping[str, Tensor], path: Path) -> nn.Module:
    """Return a net in eval mode, once it has these weights; `path` is for the error.

    Raises:
        RunError: they do not fit.

    Example:
        >>> fitted(nn.Linear(1, 1), nn.Linear(1, 1).state_dict(), Path("RUN")).training
        False
    """
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise RunError(
            f"'{printable(path)}' does not fit the model: {printable(error, 600)}; "
            "name the model that it was trained as"
        ) from None
    return net.eval()


def open_member(path: Path) -> Member:
    """Read a member's record; sizes of its files are checked now, digests when they are read.

    Raises:
        RunError: half-written, damaged, or a copy of another member.

    Example:
        >>> open_member(Path("/no/such/run/members/000"))
        Traceback (most recent call last):
        polyfuse.errors.RunError: '/no/such/run/members/000' is half-written: it has no ...
    """
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
    added = record.get("strategy") == FOREIGN
    numbers = [record.get("index"), record.get("parameters")]
    if added and numbers[1] is None:
        del numbers[1]
    numbers += [record.get(name, 0) for name in ("factory", "features", "dropout_seed")]
    if "weights_of" in record:
        numbers.append(record["weights_of"])
    return (
        records.are_files(record.get("files"))
        and all(isinstance(number, int) and number >= 0 for number in numbers)
        and isinstance(record.get("averages", {}), dict)
        and record.get("weights_of", -1) < record["index"]
        and added == (record["index"] >= FIRST_ADDED) == ("name" in record)
        and (not added or _is_added(record))
    )


def _is_added(record: Mapping[str, Any]) -> bool:
    """Tell whether the record of an added member has a number and a name of its own."""
    name, time = record.get("name"), record.get("milliseconds", 0.0)
    told = time is None or (isinstance(time, int | float) and math.isfinite(time) and time >= 0)
    return is_name(name) and told


def is_name(name: Any) -> bool:
    """Tell whether an added member, or a fusion, may be called so.

    Example:
        >>> is_name("ResNet, 224 px"), is_name("../up"), is_name("member 3")
        (True, False, False)
    """
    return (
        isinstance(name, str)
        and 0 < len(name) <= LONGEST
        and name == name.strip()
        and name.isprintable()
        and not name.startswith(".")
        and not set(name) & set("/\\:")
        and not re.fullmatch(r"member \d+.*", name)
    )
