"""The weights that training starts from: read from any checkpoint, fitted, told by a digest."""

from pathlib import Path

from torch import nn

from polyfuse.checkpoints import load_checkpoint
from polyfuse.errors import CheckpointError, printable
from polyfuse.statedict import digest, match_names


def begin(model: nn.Module, path: str | Path | None) -> None:
    """Give a model the weights of a checkpoint; wrappers' prefixes in names do not matter.

    Args:
        model: changed in place.
        path: the checkpoint, in any format; None leaves the model as it is.

    Raises:
        CheckpointError: it cannot be read, or does not fit the model; all misfits are named.

    Example:
        >>> begin(nn.Linear(1, 1), "/no/such.safetensors")
        Traceback (most recent call last):
        polyfuse.errors.CheckpointError: ...'/no/such.safetensors'...
    """
    if path is None:
        return
    state, shown = load_checkpoint(path), printable(path)
    match = match_names([model.state_dict(), state], ["the model", shown])
    faults = "; ".join(match.faults)
    if not faults:
        try:
            model.load_state_dict({name: state[both[1]] for name, both in match.columns.items()})
        except RuntimeError as error:
            faults = str(error)
    if faults:
        raise CheckpointError(
            f"start='{shown}' does not fit the model: {printable(faults, 600)}; "
            "name weights of this model, with these sizes"
        )


def digest_of(path: str | Path) -> str:
    """Return a SHA-256 over the weights in a checkpoint, the same in any format and place.

    Raises:
        CheckpointError: it cannot be read.

    Example:
        >>> import tempfile, torch
        >>> torch.save({"w": torch.ones(2)}, f"{tempfile.gettempdir()}/start.pt")
        >>> len(digest_of(f"{tempfile.gettempdir()}/start.pt"))
        64
    """
    return digest(load_checkpoint(path).items())
