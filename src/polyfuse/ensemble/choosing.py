"""Loop or vmap: which answers faster, measured once for each kind of input."""

import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.ensemble.base import Call
from polyfuse.ensemble.outputs import Select
from polyfuse.ensemble.vmapped import Unlike, Vmapped
from polyfuse.errors import DataError

EXECUTORS = ("auto", "loop", "vmap")
ROUNDS, SECONDS = 7, 0.1  # at most so many rounds, and about so long
GAIN = 0.8  # vmap has to take at most this part of the loop's time
_CLOSE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}

Loop = Iterable[Any]  # runs the members whenever it is iterated over


class Execution:
    """How these members are run.

    Attributes:
        choices: "loop" or "vmap" for each kind of input that was measured.
        reason: why vmap is out of the question; nothing if it is not.
    """

    def __init__(self, members: Sequence[nn.Module], select: Sequence[Select]) -> None:
        """Compare the members."""
        self.members, self.select = members, select
        self.choices: dict[Hashable, str] = {}
        self.reason = ""
        self.vmapped: Vmapped | None = None
        self._compare()

    def run(self, call: Call, executor: str, loop: Loop) -> Tensor | None:
        """Return the stacked logits by vmap; None where the loop is to answer.

        Raises:
            DataError: executor is "vmap", and these members cannot be vmapped.
        """
        if executor == "vmap":
            return self._forced(call)
        if self.choose(call, loop) == "loop":
            return None
        assert self.vmapped is not None
        try:
            return self.vmapped(call)
        except Exception:  # whatever it is, the loop says it better, or answers
            self.choices[self._key(call)] = "loop"
            return None

    def choose(self, call: Call, loop: Loop) -> str:
        """Return "loop" or "vmap"; measure where this kind of input is new.

        While gradients are recorded it is the loop, which is what training is measured to want.
        """
        if self.vmapped is None or torch.is_grad_enabled():
            return "loop"
        key = self._key(call)
        if self.choices.get(key) == "loop":
            return "loop"
        if not self._ready():
            return "loop"
        if key not in self.choices:
            self.choices[key] = self._measured(call, loop)
        return self.choices[key]

    def _key(self, call: Call) -> Hashable:
        """Return the kind of a call: similar sizes, and equal in all else, share a choice."""
        mode = self.members[0].training, torch.is_autocast_enabled()
        return mode, _kind(call.inputs), _kind(call.keywords)

    def _ready(self) -> bool:
        """Tell whether the members are still, or again, one architecture."""
        if self.vmapped is not None and self.vmapped.changed():
            self._compare()
        return self.vmapped is not None

    def _compare(self) -> None:
        self.vmapped, self.reason = None, ""
        try:
            self.vmapped = Vmapped(self.members, self.select)
        except Unlike as error:
            self.reason = str(error)

    def _forced(self, call: Call) -> Tensor:
        if self.vmapped is None:
            self._compare()  # the mode may be another one now
        if not self._ready():
            raise cannot(self.reason)
        assert self.vmapped is not None
        try:
            return self.vmapped(call, "different")
        except (Unlike, RuntimeError) as error:
            raise cannot(str(error)) from error

    def _measured(self, call: Call, loop: Loop) -> str:
        """Return what is faster, where vmap answers as the loop does and changes nothing."""
        vmapped = self.vmapped
        assert vmapped is not None
        try:
            with warnings.catch_warnings():
                # What vmap runs as a loop of its own is better looped over here.
                warnings.filterwarnings("error", message="There is a performance drop")
                got = vmapped(call)  # random numbers raise here, before the loop has drawn any
            close = _close(got, list(loop))
        except Exception:  # whatever it is, the loop says it better, or answers
            return "loop"
        if not close:
            return "loop"
        return _faster(lambda: (vmapped.changed(), vmapped(call)), lambda: list(loop))


def cannot(reason: str) -> DataError:
    """Return the error for a vmap that was asked for and is impossible."""
    return DataError(
        f"executor='vmap' cannot run these members: {reason}. Use executor='auto', which loops "
        "where it must"
    )


def check_executor(executor: str, members: Sequence[nn.Module], select: Sequence[Select]) -> None:
    """Refuse an unknown executor, and "vmap" for members of several architectures.

    Raises:
        DataError: with the reason.
    """
    if executor not in EXECUTORS:
        raise DataError(f"executor is {executor!r}; use {', '.join(map(repr, EXECUTORS))}")
    if executor == "vmap":
        reason = Execution(members, select).reason
        if reason and ".eval()" not in reason:
            raise cannot(reason)


def _kind(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return tuple(map(int.bit_length, value.shape)), value.dtype, value.device
    if isinstance(value, dict):
        return tuple((name, _kind(item)) for name, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_kind, value))
    return (value,) if isinstance(value, bool | int | float | str) else (type(value),)


def _close(got: Tensor, wanted: Sequence[Tensor]) -> bool:
    """Tell whether vmap's answer is the loop's but for rounding."""
    right = torch.stack(list(wanted))
    if got.shape != right.shape or got.dtype != right.dtype:
        return False
    slack = _CLOSE.get(got.dtype, 0.0)
    scale = right.abs().amax().clamp(min=1) if right.numel() else 1
    return bool(((got - right).abs() <= slack * scale).all())


def _faster(vmapped: Callable[[], Any], loop: Callable[[], Any]) -> str:
    """Time both in turn; NaN, infinity and out of memory never get here."""
    times: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    while len(times[0]) < ROUNDS and (not times[0] or time.perf_counter() - start < SECONDS):
        for seconds, function in zip(times, (vmapped, loop), strict=True):
            seconds.append(_timed(function))
    return "vmap" if median(times[0]) < GAIN * median(times[1]) else "loop"


def _timed(function: Callable[[], Any]) -> float:
    _wait()
    start = time.perf_counter()
    function()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
