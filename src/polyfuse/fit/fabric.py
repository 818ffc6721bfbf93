"""The one door to Lightning Fabric: devices, precision, its logger; loaded late."""

from typing import TYPE_CHECKING, Any

from polyfuse.errors import MissingExtraError, TrainingError
from polyfuse.fit.base import FitOptions

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def fabric_of(options: FitOptions) -> "Fabric":
    """Make a Fabric for the devices of one member; Lightning loads only here.

    Raises:
        TrainingError: what Fabric refuses, by name.

    Example:
        >>> fabric_of(FitOptions(accelerator="cpu")).world_size
        1
    """
    from lightning_fabric import Fabric

    # Spawned, not started as a script again: the caller may be anything.
    strategy = "auto" if options.devices == 1 else "ddp_spawn"
    try:
        return Fabric(
            accelerator=options.accelerator,
            devices=options.devices,
            strategy=strategy,
            precision=options.precision,
        )
    except (ValueError, RuntimeError) as error:
        raise TrainingError(
            f"Lightning Fabric refuses accelerator={options.accelerator!r}, "
            f"precision={options.precision!r}, devices={options.devices}: {error}"
        ) from error


def tensorboard_logger(folder: str, name: str) -> Any:
    """Make Fabric's TensorBoard logger; it writes event files into `folder/name`.

    Raises:
        MissingExtraError: TensorBoard is not installed.

    Example:
        >>> tensorboard_logger.__name__
        'tensorboard_logger'
    """
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger

    try:  # what was logged before a kill is logged again, so the older events are hidden
        return TensorBoardLogger(folder, name, version="", purge_step=0)
    except ModuleNotFoundError:
        raise MissingExtraError(
            "the logger tensorboard needs tensorboard, which is not installed: "
            "pip install tensorboard"
        ) from None
