"""The command line: arguments in, one call, results out. torch loads only when a verb runs."""

import os
import sys

from polyfuse.cli import runs, weights

# isort: split
from polyfuse.cli import adding, checks, combining, data
from polyfuse.cli.base import app, call

__all__ = ["adding", "app", "call", "checks", "combining", "data", "main", "runs", "weights"]


# They hold no processes and no files when they end.
_LEAVES_AT_ONCE = ("average", "merge", "inspect", "verify", "combine")


def main() -> None:
    """Run the command line.

    Example:
        >>> main.__module__
        'polyfuse.cli'
    """
    try:
        call()
    except SystemExit as end:
        heavy = "torch" in sys.modules and sys.argv[1:2] and sys.argv[1] in _LEAVES_AT_ONCE
        if heavy and isinstance(end.code, int):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)  # Python takes 0.6 s to take torch apart
        raise
