"""What an output says of how it was made: inputs with SHA-256, weights, method, policies, dtype."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from polyfuse import durable
from polyfuse.checkpoints.base import Checkpoint
from polyfuse.errors import CheckpointError, RunError, printable
from polyfuse.merge.base import plain
from polyfuse.streaming.base import Plan, Target, short

SCHEMA = 1
ENTRY = "polyfuse"  # in a file's metadata
FILE = "polyfuse.json"  # in a folder
UNKNOWN = "0" * 64  # holds the place of a SHA-256 that is not there yet


def note(plan: Plan, target: Target, hashes: Mapping[str, str] | None) -> dict[str, str]:
    """Return the metadata of an output; its length does not depend on the hashes.

    Args:
        plan: of the merge.
        target: one of its outputs.
        hashes: SHA-256 by path of every input file; place holders stand for those that lack.
    """
    document = provenance(plan, target, hashes or {})
    return {"format": "pt", ENTRY: json.dumps(document, ensure_ascii=True, sort_keys=True)}


def provenance(plan: Plan, target: Target, hashes: Mapping[str, str]) -> dict[str, Any]:
    """Return how an output was made, as JSON has it; input paths are relative to its folder."""
    request = target.request
    base = Path(request.out or ".").absolute().parent
    labels = Counter(treatment.label for treatment in target.treatments.values())
    return {
        "schema": SCHEMA,
        "tool": f"polyfuse {version('polyfuse')}",
        "method": request.method,
        "options": plain(dict(request.options)),
        "dtype": short(request.dtype) if request.dtype else None,
        "policies": [list(pair) for pair in request.policies.items()],
        "treatments": dict(sorted(labels.items())),
        "allow_nonfinite": plan.allow_nonfinite,
        **{key: list(patterns) for key, patterns in plan.patterns.items()},
        "inputs": [_input(checkpoint, base, hashes) for checkpoint in plan.inputs],
    }


def read_provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what an output of ours says of how it was made.

    Raises:
        CheckpointError: it says nothing, or nothing that we wrote.
    """
    shown = printable(checkpoint.path)
    metadata = checkpoint.facts.get("metadata")
    text = metadata.get(ENTRY) if isinstance(metadata, dict) else None
    try:
        if text is None and (checkpoint.path / FILE).is_file():
            document = durable.read_json(checkpoint.path / FILE)
        else:
            document = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError, RunError) as error:
        raise CheckpointError(f"'{shown}' has a damaged provenance: {printable(error)}") from None
    if document is None:
        raise CheckpointError(
            f"'{shown}' does not say how it was made, so nothing can be verified; outputs of "
            "`polyfuse average` do"
        )
    if not _is_provenance(document):
        raise CheckpointError(f"'{shown}' has a provenance that is none of schema {SCHEMA}")
    return dict(document)


def _input(checkpoint: Checkpoint, base: Path, hashes: Mapping[str, str]) -> dict[str, Any]:
    files = [
        {
            "name": file.path.name,
            "bytes": file.size,
            "sha256": hashes.get(str(file.path), UNKNOWN),
        }
        for file in checkpoint.files
    ]
    path = os.path.relpath(checkpoint.path.absolute(), base)
    return {"path": path, "key": checkpoint.facts.get("key"), "files": files}


def _is_provenance(document: Any) -> bool:
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        return False
    kinds = {"method": str, "options": dict, "policies": list, "include": list, "exclude": list}
    whole = all(isinstance(document.get(key), kind) for key, kind in kinds.items())
    pairs = all(isinstance(p, list) and len(p) == 2 for p in document.get("policies", ()))
    inputs = document.get("inputs")
    return whole and pairs and isinstance(inputs, list) and all(map(_is_input, inputs))


def _is_input(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("path"), str)
        and isinstance(entry.get("files"), list)
        and all(isinstance(f, dict) and isinstance(f.get("sha256"), str) for f in entry["files"])
    )
