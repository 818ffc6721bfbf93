"""Keep the progress of unfinished training in one file, and refuse that of other training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyfuse.checkpoints import safetensors
from polyfuse.errors import CheckpointError
from polyfuse.statedict import flatten, unflatten


def save(path: Path, key: str, tree: Mapping[str, Any]) -> None:
    """Write the progress: tensors, numbers, text, in mappings and lists.

    Args:
        path: the file; it is replaced as a whole.
        key: tells this training from any other.
        tree: what goes on.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "resume"
        >>> save(file, "mine", {"epochs": 3, "w": torch.ones(2)})
        >>> load(file, "mine")["epochs"]
        3
    """
    tensors, skeleton = flatten(tree)
    safetensors.write(path, tensors, note={"key": key, "skeleton": skeleton})


def load(path: Path | None, key: str) -> Any:
    """Return the progress that is in a file; None where there is no file.

    Raises:
        CheckpointError: it is damaged, or that of other training.

    Example:
        >>> load(None, "mine")
    """
    if path is None or not path.exists():
        return None
    tensors, note = safetensors.read(path)
    if not isinstance(note, dict) or note.get("key") != key:
        raise foreign(path)
    return unflatten(tensors, note["skeleton"])


def foreign(path: Path) -> CheckpointError:
    """Return the error that refuses the progress of other training.

    Example:
        >>> type(foreign(Path("RUN/resume/000.safetensors"))).__name__
        'CheckpointError'
    """
    return CheckpointError(
        f"'{path}' keeps the progress of other training (another model, data, option, or "
        "number of threads); delete it and run the same command again"
    )


def match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Lay the optimiser's tensors out as their parameters: other strides round differently.

    Example:
        >>> match_layout(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))]))
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
