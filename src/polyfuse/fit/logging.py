"""What is told of every epoch of a member, to whom: a file, or any logger of Lightning.

A logger is what a function or class makes that takes, by name, any of `folder`, `save_dir`,
`root_dir` (where to write, `RUN/logs`) and `name`, `run_name` (the member's). It has
`log_metrics(metrics, step)` and, if it likes, `finalize(status)`.
"""

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from polyfuse import durable
from polyfuse.errors import PolyfuseError, TrainingError, printable
from polyfuse.fit.base import OutOfTime
from polyfuse.fit.fabric import tensorboard_logger
from polyfuse.tables import comma_separated

FOLDERS = ("folder", "save_dir", "root_dir")
NAMES = ("name", "run_name")
History = Sequence[Mapping[str, float]]


class CsvLog:
    r"""The history of a member as `NAME.csv`, written anew after each epoch.

    Args:
        folder: where; made where missing.
        name: of the member.

    Example:
        >>> import tempfile
        >>> log = CsvLog(tempfile.mkdtemp(), "member 0")
        >>> log.log_metrics({"loss": 0.5}, 1)
        >>> log.file.read_text()
        'epoch,loss\n1,0.5\n'
    """

    def __init__(self, folder: str, name: str) -> None:
        """Make the folder; the file comes with the first epoch."""
        durable.make_folder(Path(folder))
        self.file = Path(folder) / f"{name}.csv"
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add an epoch; a column that begins later is empty before."""
        self.rows.append({"epoch": step, **metrics})
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        lines = [[row.get(column) for column in columns] for row in self.rows]
        durable.write_bytes(self.file, comma_separated(columns, lines).encode())


def csv(*, folder: str, name: str) -> CsvLog:
    """Write `RUN/logs/NAME.csv`: a row an epoch.

    Example:
        >>> import tempfile
        >>> csv(folder=tempfile.mkdtemp(), name="member 0").file.name
        'member 0.csv'
    """
    return CsvLog(folder, name)


def tensorboard(*, folder: str, name: str) -> Any:
    """Write events for TensorBoard into `RUN/logs/NAME/`; needs `pip install tensorboard`.

    Example:
        >>> LOGGERS["tensorboard"] is tensorboard
        True
    """
    return tensorboard_logger(folder, name)


LOGGERS: dict[str, Callable[..., Any]] = {"csv": csv, "tensorboard": tensorboard}


class Log:
    """A logger that may fail: then it is left alone, a warning says so, and training goes on.

    Args:
        logger: what has `log_metrics`; None logs nothing.
        name: of the member.
    """

    def __init__(self, logger: Any, name: str) -> None:
        """Take it in."""
        self.logger, self.name = logger, name

    def tell(self, history: History) -> None:
        """Log these epochs.

        Example:
            >>> Log(None, "member 0").tell([{"epoch": 1, "loss": 0.5}])
        """
        for facts in history:
            metrics = {key: value for key, value in facts.items() if key != "epoch"}
            self._try(_log, metrics, int(facts["epoch"]))

    def end(self, status: str) -> None:
        """Tell the logger that this is all: "success", "aborted" or "failed".

        Example:
            >>> Log(None, "member 0").end("success")
        """
        self._try(_end, status)

    def _try(self, call: Callable[..., Any], *given: Any) -> None:
        if self.logger is None:
            return
        try:
            call(self.logger, *given)
        except Exception as error:  # a third party's logger may raise anything
            self.logger = None
            _warn(self.name, error)


@contextlib.contextmanager
def logged(maker: Callable[..., Any] | None, place: Path | None) -> Iterator[Log]:
    """Open a member's log, and end it with what became of the training.

    Args:
        maker: makes the logger; None logs nothing.
        place: the folder to write in, and in it the member's name.

    Raises:
        TrainingError: a logger without a place.
        PolyfuseError: the logger needs a package that is not installed.

    Example:
        >>> with logged(None, None) as log:
        ...     log.tell([{"epoch": 1, "loss": 0.5}])
    """
    if maker is None:
        yield Log(None, "")
        return
    if place is None:
        raise TrainingError("a logger needs a place; give fit_member log=Path('logs/member 0')")
    log = Log(_opened(maker, place), place.name)
    status = "failed"
    try:
        yield log
        status = "success"
    except (KeyboardInterrupt, OutOfTime):
        status = "aborted"
        raise
    finally:
        log.end(status)


def _log(logger: Any, metrics: Mapping[str, float], step: int) -> None:
    logger.log_metrics(metrics, step)


def _end(logger: Any, status: str) -> None:
    """End a logger; its service, too, where that would take the next member for the same run."""
    if hasattr(logger, "finalize"):
        logger.finalize(status)
    if callable(finish := getattr(getattr(logger, "experiment", None), "finish", None)):
        finish()  # Weights & Biases has one run a process


def _opened(maker: Callable[..., Any], place: Path) -> Any:
    takes = inspect.signature(maker).parameters
    given = dict.fromkeys(FOLDERS, str(place.parent)) | dict.fromkeys(NAMES, place.name)
    filled = maker.keywords if isinstance(maker, partial) else {}
    try:
        return maker(**{key: v for key, v in given.items() if key in takes and key not in filled})
    except (PolyfuseError, ImportError, TypeError):  # before training, so nothing is lost
        raise
    except Exception as error:  # a service that does not answer, for example
        _warn(place.name, error)
        return None


def _warn(name: str, error: Exception) -> None:
    fact = f"{type(error).__name__}: {printable(error)}"
    warnings.warn(f"the logger of {name} failed ({fact}); training goes on", stacklevel=2)
