"""One member on several devices: a process each, a part of every batch each, gradients averaged.

Each process trains the same weights (distributed data parallel, DDP), so that a step is that of
the whole batch to rounding. The first process is the one that writes, logs and tells.
"""

import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from polyfuse.data.base import Rows
from polyfuse.errors import TrainingError, printable
from polyfuse.fit.base import Notify, silent

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PORTS = 3  # how often another is tried, where someone took the free one that was found


class Part:
    """What one of several devices does of the work; of one device, all of it, to the bit.

    Args:
        fabric: of this device.
    """

    def __init__(self, fabric: "Fabric") -> None:
        """Look up which one it is."""
        self.fabric = fabric
        self.number, self.of = fabric.global_rank, fabric.world_size

    @property
    def first(self) -> bool:
        """Whether it is the one that writes."""
        return self.number == 0

    def seed(self, *key: int) -> tuple[int, ...]:
        """Return the key of its own draws: dropout and augmentation differ between devices."""
        return key if self.first else (*key, self.number)

    def rows(self, rows: Rows) -> Rows:
        """Return its part of some rows; parts differ by one row at most."""
        return rows if self.of == 1 else np.array_split(rows, self.of)[self.number]

    def share(self, places: Rows) -> float:
        """Return by what the loss of its part is divided, to be averaged to that of the whole."""
        return len(places) / (len(self.rows(places)) * self.of)

    def total(self, value: float) -> float:
        """Return the sum over all devices."""
        if self.of == 1:
            return value
        one = torch.tensor(value, dtype=torch.float64, device=self.fabric.device)
        total: Any = self.fabric.all_reduce(one, reduce_op="sum")
        return float(total)

    def agreed(self, decision: bool) -> bool:
        """Return what the first one has decided."""
        return decision if self.of == 1 else bool(self.fabric.broadcast(decision))

    def match_buffers(self, model: nn.Module) -> None:
        """Give all devices the buffers of the first, such as batch-norm's running statistics."""
        if self.of > 1:
            for buffer in model.buffers():
                buffer.copy_(self.fabric.broadcast(buffer))


def spread(
    make: Callable[[], "Fabric"], function: Callable[..., Any], notify: Notify = silent
) -> Any:
    """Call a function in a process a device; return what it returns in the first.

    Args:
        make: makes a Fabric for several devices.
        function: called as `function(fabric, notify)`; it, what it holds and what it returns can
            be pickled.
        notify: is told what the function in the first process tells.

    Raises:
        TrainingError: it cannot be pickled, or a process died.
        Exception: what the function raised.

    Example:
        >>> spread.__name__
        'spread'
    """
    try:
        packed = pickle.dumps(function)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TrainingError(
            f"several devices need functions that can be imported, but {printable(error)}; "
            "define them at the top of a module, or use devices=1"
        ) from None
    for _ in range(PORTS):
        outcomes = _launched(make(), packed, notify)
        if "EADDRINUSE" not in str(outcomes.get("fault")):
            break
    return _outcome(outcomes)


def _launched(fabric: "Fabric", packed: bytes, notify: Notify) -> dict[str, Any]:
    """Call the function in a process a device; return what came of it, by kind."""
    told = multiprocessing.get_context("spawn").SimpleQueue()
    outcomes: dict[str, Any] = {}
    listener = threading.Thread(target=_listen, args=(told, notify, outcomes), daemon=True)
    listener.start()
    port = os.environ.get("MASTER_PORT")  # Fabric sets it; the next launch wants one of its own
    try:  # in a partial, which Fabric leaves as it is
        fabric.launch(partial(_call, packed, told))
    except Exception as error:  # the reason is what a process has told, if it could
        outcomes["fault"] = error
    finally:
        told.put(("end", None))
        listener.join()
        os.environ.pop("MASTER_PORT", None)
        if port is not None:
            os.environ["MASTER_PORT"] = port
    return outcomes


def _outcome(outcomes: dict[str, Any]) -> Any:
    if "raised" in outcomes:
        raise pickle.loads(outcomes["raised"])
    if "unheard" in outcomes:
        raise outcomes["unheard"]
    if "fault" in outcomes:
        last = str(outcomes["fault"]).strip().splitlines()[-1:]
        raise TrainingError(
            f"a process of one of the devices failed: {printable(' '.join(last), 600)}"
        ) from outcomes["fault"]
    return pickle.loads(outcomes["returned"])


def _listen(told: Any, notify: Notify, outcomes: dict[str, Any]) -> None:
    """Pass on what the first process tells, until the end; keep what comes of it."""
    while (message := told.get())[0] != "end":
        kind, value = message
        if kind != "told":
            outcomes.setdefault(kind, value)
            continue
        try:
            notify(*value)
        except BaseException as error:  # raised where the caller is, once the processes have ended
            outcomes.setdefault("unheard", error)


def _call(packed: bytes, told: Any, fabric: "Fabric") -> None:
    """Call the function in a process of a device, and say what comes of it."""
    first = fabric.global_rank == 0

    def notify(done: float, total: float, note: str = "") -> None:
        told.put(("told", (done, total, note)))

    try:
        result = pickle.loads(packed)(fabric, notify if first else silent)
    except Exception as error:
        told.put(("raised", pickle.dumps(error)))
        raise  # so that the other processes are ended
    if first:
        told.put(("returned", pickle.dumps(result)))
