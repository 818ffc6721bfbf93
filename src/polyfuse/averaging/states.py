"""Averages as a state dict and back: rules, counters and tensors, checked before they are taken."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from polyfuse.averaging.shadows import local
from polyfuse.averaging.structure import differences, like, shapes_of, some
from polyfuse.averaging.tracks import COUNTERS, Track
from polyfuse.errors import CheckpointError, printable

FORMAT = "polyfuse averages 1"
_TORCH = "n_averaged"  # what a checkpoint of torch's AveragedModel has, beside its module


def write(
    tracks: Mapping[str, Track], tensors: Mapping[str, Tensor], step: int, epoch: int
) -> dict[str, Any]:
    """Return all that there is to know of averages: tensors and plain data.

    Args:
        tracks: the averages by name.
        tensors: the model's, which averages are of.
        step: so far.
        epoch: so far.
    """
    averages = {}
    for name, track in tracks.items():
        rows: list[dict[str, Tensor]] = track.rows()
        if not track.is_loose:
            rows = [{key: _apart(like(tensors[key], row[key])) for key in row} for row in rows]
        averages[name] = {
            **_said(track),
            **{key: getattr(track, key) for key in COUNTERS},
            "rows": rows,
            "statistics": dict(track.statistics),
        }
    return {"format": FORMAT, "step": step, "epoch": epoch, "averages": averages}


def read(
    state: Mapping[str, Any], tracks: Mapping[str, Track], tensors: Mapping[str, Tensor]
) -> tuple[int, int]:
    """Let averages go on from a state; return its steps and epochs.

    Raises:
        CheckpointError: a state of something else, or of other averages; nothing is changed then.
    """
    if _TORCH in state:
        state = _of_torch(state, tracks, tensors)
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"this is no state of Averages, nor of torch's AveragedModel: it has the keys "
            f"{some([str(key) for key in state])}; give what state_dict() returned"
        )
    faults = list(_faults(state["averages"], tracks, tensors))
    if faults:
        raise CheckpointError(
            f"the checkpoint is of other averages: {'; '.join(faults)}; "
            "make Averages with the rules and the model that it was made with"
        )
    for name, track in tracks.items():
        _take(track, state["averages"][name])
    return state["step"], state["epoch"]


def _apart(tensor: Tensor) -> Tensor:
    """Copy a complex or sharded tensor: torch cannot save several of these in one memory."""
    return tensor.clone() if tensor.is_complex() or hasattr(tensor, "to_local") else tensor


def _said(track: Track) -> dict[str, Any]:
    """Return what rule an average has, and when."""
    rule, timing = track.rule, track.timing
    return {"rule": rule.name, "options": dict(rule.options), "timing": timing._asdict()}


def _faults(
    held: Mapping[str, Any], tracks: Mapping[str, Track], tensors: Mapping[str, Tensor]
) -> Iterator[str]:
    """Yield what does not fit, a sentence each."""
    if held.keys() != tracks.keys():
        yield f"it has {some(list(held))}, where {some(list(tracks))} is expected"
    for name, track in tracks.items():
        for key, mine in _said(track).items():
            if name in held and held[name][key] != mine:
                theirs = printable(held[name][key])
                yield f"'{printable(name)}' has the {key} {theirs}, where {mine} is expected"
        if name in held and not track.is_loose:
            titles = ("the averages", "the checkpoint")
            for row in held[name]["rows"]:
                yield from differences(shapes_of(tensors), shapes_of(row), titles)


def _take(track: Track, held: Mapping[str, Any]) -> None:
    """Put what is held into an average; the memory stays where it is."""
    for key in COUNTERS:
        setattr(track, key, held[key])
    track.statistics = {name: tensor.clone() for name, tensor in held["statistics"].items()}
    if track.is_loose:
        [row] = held["rows"]
        slots = track.slots
        track.loose = {name: t.to(*slots[name].bucket, copy=True) for name, t in row.items()}
        return
    for mine, row in zip(track.rows(), held["rows"], strict=True):
        for name, tensor in mine.items():
            tensor.copy_(local(row[name]))


def _of_torch(
    state: Mapping[str, Any], tracks: Mapping[str, Track], tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return the state that a checkpoint of torch's `AveragedModel` comes to."""
    if len(tracks) != 1:
        raise CheckpointError(
            "a checkpoint of torch's AveragedModel holds one average; load it into Averages with "
            f"one rule, not {len(tracks)}"
        )
    [(name, track)] = tracks.items()
    found = {within(key): value for key, value in state.items() if key != _TORCH}
    updates = int(state[_TORCH])
    every = track.timing.update_every
    span = every if isinstance(every, int) else 1
    average = {
        **_said(track), "updates": updates, "last": updates * span,
        "copied": span, "begun": [0, 0] if updates else None, "samples": 0, "tokens": 0,
        "rows": [{key: found[key] for key in tensors if key in found}],
        "statistics": {},
    }  # fmt: skip
    return {"format": FORMAT, "step": updates * span, "epoch": 0, "averages": {name: average}}


def within(name: str) -> str:
    """Return a tensor's name in the model that wrappers, torch's `AveragedModel` too, are around.

    Example:
        >>> within("module.module._orig_mod.weight")
        'weight'
    """
    while name.startswith(("module.", "_orig_mod.")):
        name = name.partition(".")[2]
    return name
