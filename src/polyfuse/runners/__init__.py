"""Where jobs run, by the names that `--runner` takes."""

from collections.abc import Callable

from polyfuse.runners.base import Runner
from polyfuse.runners.local import LocalRunner

RUNNERS: dict[str, Callable[..., Runner]] = {"local": LocalRunner}
