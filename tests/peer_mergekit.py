"""Merge with mergekit, in its own environment: python peer_mergekit.py REQUEST.json

The request names inputs (safetensors), method, parameters and output; the answer is a safetensors
file. test_peers.py compares it with ours.
"""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file


def main(file: str) -> None:
    """Carry out all requests of a file."""
    from mergekit.merge_methods import merge_state_dicts  # it is not in this environment

    for request in json.loads(Path(file).read_text()):
        states = [load_file(path) for path in request["inputs"]]
        options = {key: request[key] for key in ("parameters", "base")}
        merged = merge_state_dicts(states, request["method"], **options)
        save_file({name: value.contiguous() for name, value in merged.items()}, request["out"])


if __name__ == "__main__":
    main(sys.argv[1])
