"""The command line: arguments in, one call, results out. torch loads only when a verb runs."""

from polyfuse.cli import runs, weights

# isort: split
from polyfuse.cli import checks
from polyfuse.cli.base import app, call

__all__ = ["app", "checks", "main", "runs", "weights"]


def main() -> None:
    """Run the command line.

    Example:
        >>> main.__module__
        'polyfuse.cli'
    """
    call()
