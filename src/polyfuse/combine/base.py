"""What all combiners share: members checked, their space, their weights, and the way back.

Everything is computed by torch; NumPy arrays go in and out without a copy. The exception is the
softmax of float32 and float64 NumPy logits, which NumPy computes, so that results stay the same to
the bit, whatever the number of rows and threads.
"""

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, NoReturn, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyfuse.errors import DataError, did_you_mean

Array = TypeVar("Array", NDArray[Any], Tensor)

_KEPT = 1 << 20  # numbers
_LOG2_E, _LONGEST = math.log2(math.e), 1 << 15

SPACES = {
    "logit": "scores before softmax",
    "prob": "probabilities",
    "log_prob": "logarithms of probabilities",
    "value": "plain numbers, as in regression",
}


class Pieces(tuple[Tensor, ...]):
    """The same rows of every member, not stacked: what `in_chunks` hands to our combiners."""

    from_numpy = False


class Members(Generic[Array]):
    """Checked predictions of the members, read one member at a time.

    Attributes:
        each: the members, `(sample, ..., class)` tensors in the precision they came in.
        space: of `SPACES`.
        exclusive: exactly one class of the last axis is true; else each number is a label's own,
            and is read as the pair (no, yes).
        shares: `(member,)` weights that sum to 1; None where all are equal.
    """

    def __init__(
        self,
        predictions: Array,
        *,
        space: str = "logit",
        exclusive: bool = True,
        weights: Any = None,
        spaces: Sequence[str] = ("logit", "prob", "log_prob"),
        absent: bool = False,
    ) -> None:
        """Check everything that can be told without computing.

        Raises:
            DataError: what the combiners say they refuse.
        """
        if space not in spaces:
            known = ", ".join(f"'{name}' ({SPACES[name]})" for name in spaces)
            raise DataError(f"unknown space {space!r}{did_you_mean(space, spaces)}; use {known}")
        classes = exclusive and space != "value"
        self.like: Any = predictions
        self.each = _members(predictions, classes, space)
        self.space, self.exclusive, self.absent = space, exclusive or space == "value", absent
        self.wide = torch.float64 if self.each[0].dtype == torch.float64 else torch.float32
        self.shares = None if weights is None else shares(weights, len(self.each))
        if space in ("prob", "log_prob") and not torch.compiler.is_compiling():
            self._check_sums()

    def __len__(self) -> int:
        """Return the number of members."""
        return len(self.each)

    def scores(self) -> Iterator[Tensor]:
        """Yield what softmax makes probabilities of: logits, or logarithms of probabilities."""
        return map(self._scores, self.each)

    def logs(self) -> Iterator[Tensor]:
        """Yield each member's log-probabilities."""
        for scores in self.scores():
            wide = scores.to(self.wide)
            yield wide.log_softmax(-1) if self.space == "logit" else wide

    def probabilities(self) -> Iterator[Tensor]:
        """Yield each member's probabilities; plain numbers as they are."""
        for member in self.each:
            if self.space == "logit":
                yield self.softmax(self._scores(member))
            elif self.space == "log_prob":
                yield self._scores(member).exp()
            else:
                yield member.to(self.wide) if self.exclusive else _pairs(member.to(self.wide))

    def passing_probabilities(self) -> Iterator[Tensor]:
        """Yield each member's probabilities, in memory that the next ones overwrite.

        New memory for each costs more than the exponentials: the system clears every page of it.
        """
        if self.space != "logit" or not self.exclusive or not self._plain():
            yield from self.probabilities()
            return
        room = _rooms.room("share", self.each[0].shape, self.wide)
        for member in self.each:
            if _by_exp2(member):
                yield _share(room.copy_(member), room)
            elif member.dtype == self.wide:
                yield torch.softmax(member, -1, out=room)
            else:
                yield self.softmax(member)

    def _plain(self) -> bool:
        """Tell whether torch's softmax may write into memory that is kept: some rows at a time."""
        if not isinstance(self.like, Pieces) or (self._from_numpy() and self._is_wide()):
            return False
        return all(m.device.type == "cpu" and not m.requires_grad for m in self.each)

    def _is_wide(self) -> bool:
        return self.each[0].dtype == self.wide

    def softmax(self, scores: Tensor) -> Tensor:
        """Return the softmax over the last axis, in the wide precision."""
        if self._from_numpy() and self._is_wide() and scores.dtype == self.wide:
            logits = scores.numpy()
            with np.errstate(invalid="ignore"):  # infinity gives NaN, which answer() explains
                raised = np.exp(logits - logits.max(-1, keepdims=True))
            return torch.from_numpy(raised / raised.sum(-1, keepdims=True))
        if _by_exp2(scores) and not scores.requires_grad and not torch.compiler.is_compiling():
            return _share(scores.to(self.wide))
        return torch.softmax(scores, -1, dtype=self.wide)

    def mean(self, parts: Iterable[Tensor], *, passing: bool = False) -> Tensor:
        """Return the weighted mean of these tensors, one for each member, added in turn.

        With `passing` it may lie in memory that the next such mean overwrites.
        """
        total = None
        for part, share in zip(parts, self.shares or [1.0] * len(self), strict=True):
            if share:  # without a weight there is no say: not even 0 times infinity
                if total is None:
                    total = self._zeros(part, passing)
                total.add_(part, alpha=share)
        assert total is not None
        return total if self.shares else total.div_(len(self))

    def _zeros(self, part: Tensor, passing: bool) -> Tensor:
        if passing and self._plain():
            return _rooms.room("total", part.shape, self.wide).zero_()
        return torch.zeros(part.shape, dtype=self.wide, device=part.device)

    def normalised(self, result: Tensor) -> Tensor:
        """Divide by the sum over classes, but for logits' probabilities, which have it at 1."""
        return result if self.space == "logit" else result / result.sum(-1, keepdim=True)

    def answer(self, result: Tensor) -> Array:
        """Return a result as it was asked for: no pairs, rounded once, the kind that came in.

        Raises:
            DataError: it holds NaN; the message says why.
        """
        # A sum sees NaN in one pass; infinities of both signs may only look like it.
        suspect = not torch.compiler.is_compiling() and bool(result.sum().isnan())
        if suspect and bool(result.isnan().any()):
            self.blame()
        narrow = (result if self.exclusive else result[..., 1]).to(self.each[0].dtype)
        answer: Array = self.back(narrow)
        return answer

    def back(self, result: Tensor) -> Any:
        """Return a tensor as the kind of array that came in."""
        if isinstance(self.like, np.ndarray):
            array = result.numpy()
            return array.astype(self.like.dtype) if array.dtype.kind == "f" else array
        return result

    def blame(self) -> NoReturn:
        """Say which member has NaN or infinity in which rows, or that every class is ruled out.

        Raises:
            DataError: always.
        """
        faults = []
        for number, member in enumerate(self.each):
            odd = member.isnan() | (member == torch.inf)
            rows = odd.reshape(len(odd), -1).any(1).nonzero()[:, 0].tolist()
            if rows:
                faults.append(f"member {number} has NaN or infinity in {places(rows)}")
        if faults:
            raise DataError(
                f"{'; '.join(faults)}; leave out those rows or those members (in hard_vote and "
                "soft_vote a member may abstain: NaN in a whole row)"
            )
        raise DataError(
            "in some row every class has probability 0 with one member or another, so nothing is "
            "left of their product; clip the probabilities first: p.clip(1e-6, 1)"
        )

    def _from_numpy(self) -> bool:
        if isinstance(self.like, Pieces):
            return self.like.from_numpy
        return isinstance(self.like, np.ndarray)

    def _scores(self, member: Tensor) -> Tensor:
        if self.space == "prob":
            wide = member.to(self.wide)
            return (wide if self.exclusive else _pairs(wide)).log()
        if self.exclusive:  # logits are added as they are, without a wide copy
            return member.to(self.wide) if self.space == "log_prob" else member
        wide = member.to(self.wide)
        if self.space == "logit":
            no = torch.where(wide.isnan(), wide, torch.zeros_like(wide))  # NaN is no "no"
        else:
            no = (-wide.expm1()).log()
        return torch.stack([no, wide], -1)

    def _check_sums(self) -> None:
        """Refuse logits and whatever else is no probability, naming every such member.

        Raises:
            DataError: with the member, the row and the sum.
        """
        # Rounding to this precision moves a sum by no more; text files often keep four digits.
        slack = max(1e-3, 2 * torch.finfo(self.each[0].dtype).eps)
        found = [_fault(p, self, slack) for p in self.each]
        faults = [f"member {number}: {fault}" for number, fault in enumerate(found) if fault]
        if faults:
            raise DataError(
                f"space='{self.space}' means {SPACES[self.space]}, but {'; '.join(faults)}. "
                "Give logits with space='logit', labels that do not exclude each other with "
                "exclusive=False, and divide other numbers by their sum: p / p.sum(-1)[..., None]"
            )


class _Rooms(threading.local):
    """Memory of one thread that is used again and again; what is larger is not kept."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, torch.dtype], Tensor] = {}

    def room(self, use: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return a tensor of this shape; it holds whatever it held."""
        count = shape.numel()
        if count > _KEPT:
            return torch.empty(shape, dtype=dtype)
        kept = self._kept.get((use, dtype))
        if kept is None or len(kept) < count:
            kept = self._kept[use, dtype] = torch.empty(count, dtype=dtype)
        return kept[:count].view(shape)


_rooms = _Rooms()


def _by_exp2(scores: Tensor) -> bool:
    """Tell whether scores are of 16 bits on a processor: see `_share`.

    Of longer rows a sum could depend on the number of threads.
    """
    short = scores.dtype in (torch.float16, torch.bfloat16)
    return short and scores.device.type == "cpu" and scores.shape[-1] <= _LONGEST


def _share(wide: Tensor, out: Tensor | None = None) -> Tensor:
    """Return the softmax of what were 16-bit scores, by powers of two: twice as fast.

    Scaling by log2(e) rounds, but thousands of times finer than 16 bits have done.
    """
    top = wide.amax(-1, keepdim=True).mul_(-_LOG2_E)
    raised = torch.add(top, wide, alpha=_LOG2_E, out=out).exp2_()
    return raised.div_(raised.sum(-1, keepdim=True))


def _fault(member: Tensor, members: Members[Any], slack: float) -> str:
    """Say what is wrong with a member's probabilities or their logarithms; nothing if all is."""
    wide = member.detach().to(members.wide)
    if members.absent:  # whole rows of NaN are for the votes to judge
        wide = wide[~wide.isnan().all(-1)] if members.exclusive else wide[~wide.isnan()]
    if not wide.numel():
        return ""
    if bool(wide.isnan().any()):
        return "there is NaN"
    high, low = float(wide.max()), float(wide.min())
    slack = slack if members.exclusive else 0.0
    if members.space == "log_prob":
        if high > slack:
            return f"there is {high:.4g}, above 0 as in logits"
        total = wide.logsumexp(-1).exp()
    else:
        if low < 0 or high > 1 + slack:
            side = f"{low:.4g}, below 0" if low < 0 else f"{high:.4g}, above 1"
            return f"there is {side} as in logits"
        total = wide.sum(-1)
    off = (total - 1).abs().reshape(-1)
    if not members.exclusive or not bool((off > slack).any()):
        return ""
    worst = int(off.argmax())
    return f"a row sums to {float(total.reshape(-1)[worst]):.4g} (row {worst}), not to 1"


def _pairs(wide: Tensor) -> Tensor:
    """Return (1 - p, p) along a new last axis."""
    return torch.stack([1 - wide, wide], -1)


def places(rows: Sequence[int]) -> str:
    """Say where something is: in one row, or in how many and which is first."""
    return f"row {rows[0]}" if len(rows) == 1 else f"{len(rows)} rows, the first is {rows[0]}"


def shares(weights: Any, count: int) -> list[float]:
    """Return one weight a member, divided by their sum.

    Args:
        weights: numbers of 0 or more, one a member.
        count: of members.

    Raises:
        DataError: another number of them, negative ones, none above 0, NaN.

    Example:
        >>> shares([1, 3], 2)
        [0.25, 0.75]
    """
    if torch.compiler.is_compiling() and isinstance(weights, list):  # constants of the graph
        return [weight / sum(weights) for weight in weights]
    plain = weights.detach().cpu().numpy() if isinstance(weights, Tensor) else weights
    numbers = np.asarray(plain, np.float64)
    if numbers.shape != (count,):
        raise DataError(
            f"expected {count} weights, one a member; got an array of shape {numbers.shape}"
        )
    if not np.isfinite(numbers).all() or numbers.min() < 0 or not numbers.sum() > 0:
        raise DataError(
            f"weights are {numbers.tolist()}; they must be finite, 0 or more, and not all 0"
        )
    return [float(x) for x in numbers / numbers.sum()]


def check_members(logits: Any, axes: int = 3) -> None:
    """Refuse what is no stack of members' logits.

    Raises:
        DataError: not an array, fewer than `axes` axes, an empty axis, or integers.
    """
    if not isinstance(logits, np.ndarray | Tensor):
        raise DataError(
            f"expected a NumPy array or torch tensor of logits, got {type(logits).__name__}; "
            "stack the members first: np.stack(logits)"
        )
    floating = (
        logits.is_floating_point() if isinstance(logits, Tensor) else logits.dtype.kind == "f"
    )
    if logits.ndim < axes or 0 in logits.shape or not floating:
        raise DataError(
            f"expected floating logits with {axes} or more axes (member, sample, ..., class), none "
            f"empty; got {logits.dtype} of shape {tuple(logits.shape)}"
        )


def as_tensor(array: Any) -> Tensor:
    """Return an array as a tensor of the same numbers, without a copy where that is possible.

    A read-only array is copied: torch has no read-only tensors and would warn. Arrays in other
    byte orders, and longer than float64, are converted.

    Example:
        >>> as_tensor(np.ones(2, ">f4"))
        tensor([1., 1.])
    """
    if isinstance(array, Tensor):
        return array
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    native = native.astype(np.float64) if native.dtype.itemsize > 8 else native
    if not native.flags.writeable or min(native.strides, default=0) < 0:
        native = native.copy()
    return torch.from_numpy(native)


def _members(predictions: Any, classes: bool, space: str) -> tuple[Tensor, ...]:
    in_pieces = isinstance(predictions, Pieces)
    whole = predictions[0][None] if in_pieces else predictions
    check_members(whole, axes=3 if classes else 2)
    if classes and whole.shape[-1] == 1:
        raise DataError(
            f"one class, in an array of shape {tuple(whole.shape)}: its probability is always"
            f" 1; a binary model's single {space} is exclusive=False"
        )
    each = predictions if in_pieces else as_tensor(predictions).unbind(0)
    # Numbers of one byte have no arithmetic of their own.
    return tuple(part.float() if part.element_size() == 1 else part for part in each)
